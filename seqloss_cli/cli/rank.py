"""`seqloss rank`: which of several responses a model prefers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli.commands import (
    CONFIG,
    OtherSettings,
    OutputSettings,
    ShowSettings,
    with_options,
)
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.options import given, only
from seqloss_cli.cli.results_io import refuse_second_output
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import OUTPUT, SHOW, command_record, option

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.results.formats.json import RankedRows

EXAMPLES = (
    'seqloss rank --prompt "A list is" --response " sorted." --response " wet."',
    "seqloss rank samples/choices.jsonl --separator ' ' --pmi",
    "seqloss rank samples/minimal-pairs.jsonl --no-prompt --choices-field good,bad",
    "seqloss rank samples/choices.jsonl --separator ' ' --report page.html --summary",
)


By = Literal["sum", "token", "byte", "char", "pmi", "mutual_information"]


@command_record
class RankSettings:
    """The order of choices, and the rows that are written of them."""

    PANEL = OUTPUT

    by: By = option("sum", "Score that orders tables and n-best lists.", panel=SHOW)
    output_ranked: Path | None = option(None, "JSONL of the rows, best choice first.")
    tokens: bool = option(False, "Rows hold choices' token losses; so with --report.")
    level: Literal["choice", "token"] = option(
        "choice", "What a line of CSV or TSV is: choice or token.", metavar="LEVEL"
    )


@with_options(
    only(i.PairArguments, "files", "prompt"),
    only(i.ChoiceArguments, "response"),
    only(i.PairArguments, "prompt_field"),
    only(i.ChoiceArguments, "no_prompt", "choices_field", "answer_field", "answer"),
    only(p.PairPolicy, "separator"),
    only(p.Reading, "keep_meta", "limit", "max_bytes"),
    only(i.PairArguments, "chat", "chat_template"),
    only(p.PairPolicy, "end_of_turn"),
    p.ModelChoice,
    p.TokenPolicy,
    only(p.WindowChoice, "context"),
    only(p.PairPolicy, "boundary", "truncate"),
    only(p.PairPolicy, "pmi", pmi="Score responses without the prompt, too."),
    only(p.BatchPolicy, "share_prefix", "tokens"),
    p.SpeedPolicy,
    only(RankSettings, "by"),
    only(ShowSettings, "unit", "all_tokens", "summary"),
    only(RankSettings, "output_ranked"),
    only(OutputSettings, "json", "jsonl", "format"),
    only(RankSettings, "level"),
    only(OutputSettings, "output", "force", "text"),
    only(RankSettings, "tokens"),
    only(OutputSettings, "resume", "report"),
    CONFIG,
    OtherSettings,
)
def rank(ctx: typer.Context) -> None:
    """Rank responses to a prompt by their log-probability, and judge the best.

    Rows have a prompt, a list of choices and, where it is known, an answer. Accuracies are those
    of lm-evaluation-harness; the first of equal scores wins. Lengths exclude the separator.
    """
    from dataclasses import replace

    from seqloss_cli.cli.report_option import page_after
    from seqloss_cli.cli.settings import output_choice

    choice = output_choice(ctx)
    _refuse(ctx, choice)
    # A page shows the losses of choices' tokens, whatever -o's rows are to hold.
    has_page = given(ctx, OutputSettings).report is not None
    choice = replace(choice, tokens=choice.tokens or has_page)
    with page_after(ctx, choice, "Preferences of") as choice:
        with _ranked_rows(ctx) as ranked:
            exit_code = _rank(ctx, choice, ranked)
        # Only now: --output-ranked is to be whole, too.
        if exit_code:
            raise typer.Exit(exit_code)


def _rank(ctx: typer.Context, choice: OutputChoice, ranked: RankedRows | None) -> int:
    """Rank everything and write it; returns the exit code."""
    from dataclasses import replace

    from seqloss_cli.cli.run import Command, Inputs, run
    from seqloss_cli.cli.settings import load_scorer
    from seqloss_cli.display.terminal.rank_and_diverge import RankTableWriter
    from seqloss_cli.inputs.reading import ReadStats, described
    from seqloss_cli.metrics.ranking import MEANINGS, SCORES
    from seqloss_cli.results.schema.rankings import ranking_rows
    from seqloss_cli.scoring.tasks import rank_task

    names, stats, by = i.choice_names(ctx), ReadStats(), given(ctx, RankSettings).by
    items = i.choice_items(ctx, names, stats)
    scorer = load_scorer(ctx, replace(i.pair_policy(ctx), marginal=False))
    reading = described(names or ["<choices>"], i.choice_reading(ctx))
    rows: dict[str, Any] = {"text": choice.text, "tokens": choice.tokens}
    rows |= {"summary": choice.summary, "pmi": choice.pmi, "by": by}
    # The last two scores need the responses alone.
    rows["scores"] = {name: MEANINGS[name] for name in SCORES[: None if choice.pmi else -2]}
    command = Command(
        rank_task(scorer, choice.pmi),
        ranking_rows,
        lambda console, options: RankTableWriter(console, options, by),
    )
    also = () if ranked is None else (ranked,)
    return run(command, Inputs(items, stats, names, reading), choice, rows, also).exit_code


def _refuse(ctx: typer.Context, choice: OutputChoice) -> None:
    """Raises UsageError for what this command cannot do, before anything is loaded."""
    from seqloss_cli.cli.report_option import refuse_page

    ranked, page = given(ctx, RankSettings).output_ranked, given(ctx, OutputSettings).report
    refuse_page(ctx, choice, {"--output-ranked": ranked})
    prompt, choices = given(ctx, i.PairArguments).prompt, given(ctx, i.ChoiceArguments)
    responses, answer = choices.response or [], choices.answer
    for text in (prompt or "", *responses):
        path = Path(text.removeprefix("@"))
        if page and text.startswith("@") and path.absolute() == page.absolute():
            raise UsageError(f"--report {page} is one of the inputs: name another file")
    if answer is not None and prompt is not None and answer >= len(responses):
        raise UsageError(f"--answer {answer}: there are {len(responses)} responses, from 0 on")
    refuse_second_output("--output-ranked", ranked, choice.path, choice.force)


@contextmanager
def _ranked_rows(ctx: typer.Context) -> Iterator[RankedRows | None]:
    """The writer of re-ordered rows, if they are asked for."""
    from seqloss_cli.results.formats.json import RankedRows
    from seqloss_cli.results.sinks import open_sink

    settings = given(ctx, RankSettings)
    path = settings.output_ranked
    if path is None:
        yield None
        return
    with open_sink(path, given(ctx, OutputSettings).force, warn=say) as sink:
        rows = RankedRows(sink, settings.by)
        yield rows
        if rows.n_unordered:
            say(f"warning: {rows.n_unordered} rows of {path} have no order by {rows.by}")
