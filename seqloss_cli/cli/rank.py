"""`seqloss rank`: which of several responses a model prefers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from seqloss_cli.cli import distribute as d
from seqloss_cli.cli import inputs as i
from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import exit_with, say
from seqloss_cli.cli.report import write_with_page
from seqloss_cli.cli.results_io import check_places, open_second
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import OUTPUT, SHOW, command_record, option

if TYPE_CHECKING:
    from seqloss_cli.cli.settings import OutputPlan

By = Literal["sum", "token", "byte", "char", "pmi", "mutual_information"]


@command_record
class RankSettings:
    """The order of choices, and the rows that are written of them."""

    PANEL = OUTPUT

    by: By = option("sum", "Score that orders tables and n-best lists.", panel=SHOW)
    output_ranked: Path | None = option(None, "JSONL of the rows, best choice first.")
    tokens: bool = option(False, "Rows hold choices' token losses; so with --report.")
    # Not of its two names alone: a variable or file that sets another command's level is no error
    # where no lines are written.
    level: o.LevelName = option(
        "choice", "What a line of CSV or TSV is: choice or token.", metavar="LEVEL"
    )


@o.with_options(
    o.only(i.PairArguments, "files", "prompt"),
    o.only(i.ChoiceArguments, "response"),
    o.only(i.PairArguments, "prompt_field"),
    o.only(i.ChoiceArguments, "no_prompt", "choices_field", "answer_field", "answer"),
    o.only(p.PairPolicy, "separator"),
    o.only(p.Reading, "keep_meta", "limit", "max_bytes", *p.ROWS_ELSEWHERE),
    o.only(i.PairArguments, "chat", "chat_template"),
    o.only(p.PairPolicy, "end_of_turn", "template_date"),
    p.ModelChoice,
    p.EngineChoice,
    p.TokenPolicy,
    o.only(p.WindowChoice, "context"),
    o.only(p.PairPolicy, "boundary", "truncate"),
    o.only(p.PairPolicy, "pmi", pmi="Score responses without the prompt, too."),
    o.only(p.BatchPolicy, "share_prefix", "tokens"),
    p.SpeedPolicy,
    d.DistributeSettings,
    o.only(RankSettings, "by"),
    o.only(o.ShowSettings, "unit", "all_tokens", "summary"),
    o.only(RankSettings, "output_ranked"),
    o.only(o.OutputSettings, "json", "jsonl", "format"),
    o.only(RankSettings, "level"),
    o.only(o.OutputSettings, "output", "force", "text"),
    o.only(RankSettings, "tokens"),
    o.only(o.OutputSettings, "resume", "report"),
    o.CONFIG,
    o.OtherSettings,
)
def rank(ctx: typer.Context) -> None:
    """Rank responses to a prompt by their log-probability, and judge the best.

    Rows have a prompt, a list of choices and, where it is known, an answer. Accuracies are those
    of lm-evaluation-harness; the first of equal scores wins. Lengths exclude the separator.

    Examples:
        seqloss rank --prompt "A list is" --response " sorted." --response " wet."
        seqloss rank samples/choices.jsonl --separator ' ' --pmi
        seqloss rank samples/minimal-pairs.jsonl --no-prompt --choices-field good,bad
        seqloss rank samples/choices.jsonl --separator ' ' --report page.html

    """
    from seqloss_cli.cli.settings import output_choice

    choice, page = output_choice(ctx), o.given(ctx, o.OutputSettings).report
    check_places(ctx, "report", "output_ranked")
    _refuse_answer(ctx)
    # A page shows the losses of choices' tokens, whatever -o's rows are to hold.
    choice = replace(choice, tokens=choice.tokens or page is not None)
    if d.is_asked(ctx):
        exit_with(d.distribute(ctx, choice, rank_rows, i.choice_inputs))
    else:
        write_with_page(ctx, choice, lambda choice: rank_rows(ctx, choice), "Preferences of")


def rank_rows(ctx: typer.Context, choice: OutputPlan) -> int:
    """Rank everything and write it; returns the exit code."""
    from seqloss_cli.cli.run import Command
    from seqloss_cli.cli.settings import load_scorer
    from seqloss_cli.core.run_record import recorded
    from seqloss_cli.display.terminal.rank_and_diverge import RankTableWriter, rank_answer
    from seqloss_cli.metrics.ranking import MEANINGS, NEED_PMI, RankingQueue
    from seqloss_cli.results.formats.json import RankedRows
    from seqloss_cli.results.schema.rankings import ranking_rows
    from seqloss_cli.scoring.tasks import rank_task

    inputs, own = i.choice_inputs(ctx), o.given(ctx, RankSettings)
    scorer = load_scorer(ctx, replace(i.pair_policy(ctx), marginal=False))
    as_pairs = lambda items: RankingQueue(items, without_prompt=False).pairs()  # noqa: E731
    inputs = replace(inputs, items=scorer.verified(inputs.items, as_pairs))
    rows = recorded(choice, "text", "tokens", "summary", "pmi") | {"by": own.by}
    left_out = () if choice.pmi else NEED_PMI
    rows["scores"] = {name: text for name, text in MEANINGS.items() if name not in left_out}
    command = Command(
        rank_task(scorer, choice.pmi),
        ranking_rows,
        lambda console, options: RankTableWriter(console, options, own.by),
        rank_answer,
    )
    with open_second(ctx, own.output_ranked) as sink:
        ranked = [] if sink is None else [RankedRows(sink, own.by)]
        written = command.run(inputs, choice, rows, ranked)
        if n := sum(each.n_unordered for each in ranked):
            say(f"warning: {n} rows of {own.output_ranked} have no order by {own.by}")
    return written.exit_code


def _refuse_answer(ctx: typer.Context) -> None:
    """Raises UsageError for an answer that is none of the responses."""
    prompt, choices = o.given(ctx, i.PairArguments).prompt, o.given(ctx, i.ChoiceArguments)
    responses, answer = choices.response or [], choices.answer
    if answer is not None and prompt is not None and answer >= len(responses):
        raise UsageError(f"--answer {answer}: there are {len(responses)} responses, from 0 on")
