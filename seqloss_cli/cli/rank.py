"""`seqloss rank`: which of several responses a model prefers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from seqloss_cli.cli import choice_inputs as i
from seqloss_cli.cli import options as o
from seqloss_cli.cli import pairs as p
from seqloss_cli.cli.enums import Format
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.core.records import Rejected
    from seqloss_cli.metrics.accuracy import RankTotals
    from seqloss_cli.metrics.ranking import Ranking
    from seqloss_cli.results.formats import Writer
    from seqloss_cli.results.schema.rankings import RankedRows
    from seqloss_cli.scoring.scorer import Scorer

EXAMPLES = (
    'seqloss rank --prompt "A list is" --response " sorted." --response " wet."',
    "seqloss rank samples/choices.jsonl --separator ' ' --pmi",
    "seqloss rank samples/minimal-pairs.jsonl --no-prompt --choices-field good,bad",
    "seqloss rank samples/choices.jsonl --separator ' ' --report page.html --summary",
)


class By(StrEnum):
    sum = "sum"
    token = "token"
    byte = "byte"
    char = "char"
    pmi = "pmi"
    mutual_information = "mutual_information"


_CHAT = {n: p.CHAT_OPTIONS[n] for n in ("chat", "chat_template", "no_end_of_turn")}


@o.with_options(
    i.CHOICE_INPUTS,
    _CHAT,
    o.MODEL_OPTIONS,
    o.POLICY_OPTIONS,
    p.SEAM_OPTIONS,
    {
        "pmi": (
            Annotated[bool, o.flag(o.POLICY, "--pmi", "Score responses without the prompt, too.")],
            False,
        ),
        "no_share_prefix": p.NO_SHARE_PREFIX,
    },
    o.SPEED_OPTIONS,
    {
        "by": (
            Annotated[By, o.option(o.SHOW, "--by", "Score that orders tables and n-best lists.")],
            By.sum,
        ),
    },
    {name: o.SHOW_OPTIONS[name] for name in ("unit", "all_tokens", "summary")},
    {
        "output_ranked": (
            Annotated[
                Path | None,
                o.option(o.OUTPUT, "--output-ranked", "JSONL of the rows, best choice first."),
            ],
            None,
        ),
    },
    {n: o.OUTPUT_OPTIONS[n] for n in ("json", "jsonl", "format", "output", "force", "no_text")},
    {
        "tokens": (
            Annotated[
                bool,
                o.flag(o.OUTPUT, "--tokens", "Rows hold choices' token losses; so with --report."),
            ],
            False,
        ),
    },
    o.PAGE_OPTION,
    o.OTHER_OPTIONS,
)
def rank(ctx: typer.Context) -> None:
    """Rank responses to a prompt by their log-probability, and judge the best.

    Rows have a prompt, a list of choices and, where it is known, an answer. Accuracies are those
    of lm-evaluation-harness; the first of equal scores wins. Lengths exclude the separator.
    """
    with command_errors(ctx):
        from dataclasses import replace

        from seqloss_cli.cli.choices import choose_output
        from seqloss_cli.cli.paging import page_after

        choice = choose_output(ctx)
        _refuse(ctx, choice)
        choice = replace(choice, tokens=choice.tokens or ctx.params["report"] is not None)
        with page_after(ctx, choice, "Preferences of") as choice:
            with _ranked_rows(ctx) as ranked:
                n_rejected = _rank(ctx, choice, ranked)
            if n_rejected:  # once both files are whole
                raise typer.Exit(REJECTED)


def _rank(ctx: typer.Context, choice: OutputChoice, ranked: RankedRows | None) -> int:
    """How many rows were rejected."""
    from dataclasses import replace

    from seqloss_cli.cli.choices import load_scorer
    from seqloss_cli.cli.output import Work, say_what_did_not_fit, say_what_was_written, write_all
    from seqloss_cli.cli.progress import ProgressBar
    from seqloss_cli.cli.writers import also_beside
    from seqloss_cli.inputs import ReadStats, described
    from seqloss_cli.metrics.accuracy import RankTotals, rank_totals
    from seqloss_cli.metrics.ranking import MEANINGS, SCORES
    from seqloss_cli.metrics.ranking import rank as rankings
    from seqloss_cli.results.schema.rankings import ranking_rows
    from seqloss_cli.results.sinks import open_sink

    values, names, stats = ctx.params, i.choice_names(ctx), ReadStats()
    items = i.choice_items(ctx, names, stats)
    scorer = load_scorer(ctx, p.choose_pairs(ctx, marginal=False))
    bar = ProgressBar(names)
    found = rankings(items, lambda pairs: scorer.score(pairs, None, bar.on_progress), values["pmi"])
    read = described(names or ["<choices>"], i.choice_reading(ctx))
    rows: dict[str, Any] = {"text": choice.text, "tokens": choice.tokens}
    rows |= {"summary": choice.summary, "pmi": values["pmi"], "by": str(values["by"])}
    rows["scores"] = {name: MEANINGS[name] for name in SCORES[: None if values["pmi"] else -2]}
    run = replace(scorer.run_info("rank"), reading=read, rows=rows)
    with open_sink(choice.path, choice.force, warn=say) as sink:
        own = _writer(sink, choice, scorer, str(values["by"]))
        results = found if ranked is None else _also_ranked(found, ranked)
        with also_beside(own, choice, scorer.tokenization, ranking_rows) as writer:
            work = Work(results, rank_totals, RankTotals(), run, writer)
            written = write_all(work, stats, bar, choice)
    say_what_was_written(written, stats, choice)
    say_what_did_not_fit(scorer)
    return written.n_rejected


def _refuse(ctx: typer.Context, choice: OutputChoice) -> None:
    """Raises UsageError for what this command cannot do, before anything is loaded."""
    from seqloss_cli.cli.paging import refuse_page

    values = ctx.params
    refuse_page(ctx, choice)
    _refuse_page_over(ctx)
    if choice.tokens and (choice.format is Format.table or choice.summary):
        raise UsageError("--tokens is for rows: they need --json, --jsonl or -o FILE.jsonl")
    if choice.format not in (Format.table, Format.json, Format.jsonl):
        raise UsageError(f"rank does not write {choice.format.value}, but --json and --jsonl")
    if values["boundary"] == "compare":
        raise UsageError("--boundary compare is for cond; rank goes by joint or separate")
    if values["by"] in (By.pmi, By.mutual_information) and not values["pmi"]:
        raise UsageError(f"--by {values['by']} needs the responses alone: --pmi")
    if values["pmi"] and values["chat"]:
        raise UsageError("--pmi is for plain prompts: without --chat")
    if values["no_prompt"] and (values["prompt"] is not None or values["chat"]):
        raise UsageError("--no-prompt excludes --prompt and --chat")
    i.refuse_fields(ctx)
    if values["answer"] is not None and values["prompt"] is not None:
        n = len(values["response"] or [])
        if values["answer"] >= n:
            raise UsageError(f"--answer {values['answer']}: there are {n} responses, from 0 on")
    ranked = values["output_ranked"]
    if ranked is not None:
        from seqloss_cli.results.sinks import refuse_to_overwrite

        if choice.path is not None and ranked.absolute() == choice.path.absolute():
            raise UsageError("--output-ranked and -o name the same file")
        refuse_to_overwrite(ranked, choice.force)


def _refuse_page_over(ctx: typer.Context) -> None:
    """Raises UsageError where the page would take the place of another file of the command."""
    values = ctx.params
    page: Path | None = values["report"]
    if page is None:
        return
    if (
        values["output_ranked"] is not None
        and values["output_ranked"].absolute() == page.absolute()
    ):
        raise UsageError(f"--report {page} and --output-ranked are one file")
    for text in (values["prompt"], *(values["response"] or ())):
        name = Path((text or "").removeprefix("@"))
        if text and text.startswith("@") and name.absolute() == page.absolute():
            raise UsageError(f"--report {page} is one of the inputs: name another file")


@contextmanager
def _ranked_rows(ctx: typer.Context) -> Iterator[RankedRows | None]:
    """Where re-ordered rows go, if they are asked for."""
    from seqloss_cli.results.schema.rankings import RankedRows
    from seqloss_cli.results.sinks import open_sink

    path: Path | None = ctx.params["output_ranked"]
    if path is None:
        yield None
        return
    with open_sink(path, ctx.params["force"], warn=say) as sink:
        rows = RankedRows(sink, str(ctx.params["by"]))
        yield rows
        if rows.n_unordered:
            say(f"warning: {rows.n_unordered} rows of {path} have no order by {rows.by}")


def _also_ranked(
    rankings: Iterator[Ranking | Rejected], rows: RankedRows
) -> Iterator[Ranking | Rejected]:
    """The same, each written to the other file as it comes."""
    from seqloss_cli.metrics.ranking import Ranking

    for ranking in rankings:
        if isinstance(ranking, Ranking):
            rows.write(ranking)
        yield ranking


def _writer(
    sink: BinaryIO, choice: OutputChoice, scorer: Scorer, by: str
) -> Writer[Ranking, RankTotals]:
    from seqloss_cli.cli.writers import JSON_WRITERS, console, row_options, table_options
    from seqloss_cli.display.terminal import RankTableWriter
    from seqloss_cli.results.schema.rankings import ranking_rows

    if choice.format is Format.table:
        options = table_options(scorer.tokenization, choice)
        return RankTableWriter(console(choice.path, sink), options, by)
    rows = ranking_rows(row_options(scorer.tokenization, choice))
    writer: Writer[Ranking, RankTotals] = JSON_WRITERS[choice.format](sink, rows)
    return writer
