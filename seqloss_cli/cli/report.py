"""`seqloss report`: results as a web page in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import reports as r
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.analysis.compare import Comparisons
    from seqloss_cli.display.html import Page, PageOptions
    from seqloss_cli.results.files import ResultsFile, ResultsOf
    from seqloss_cli.results.schema import RowKind
    from seqloss_cli.results.schema.divergences import DivergenceRow
    from seqloss_cli.results.schema.rankings import RankedRow

EXAMPLES = (
    "seqloss report results.jsonl -o report.html",
    "seqloss report a.jsonl b.jsonl -o differences.html",
    "seqloss report divergences.jsonl -o divergences.html",
    "seqloss report rankings.jsonl -o rankings.html",
    "seqloss score README.md --ranks --entropy --top-k 5 --report report.html --summary",
)


@o.with_options(
    {
        "output": (
            Annotated[
                Path | None,
                o.option(o.OUTPUT, "--output", "Write the page to FILE (.html).", aliases=("-o",)),
            ],
            None,
        ),
        "force": o.OUTPUT_OPTIONS["force"],
        "title": (
            Annotated[str | None, o.option(o.SHOW, "--title", "Of the page.")],
            None,
        ),
        "worst": (
            Annotated[int, o.option(o.SHOW, "--worst", "How many tokens are listed.", min=0)],
            25,
        ),
        "by": (
            Annotated[
                list[str] | None,
                typer.Option(
                    "--by",
                    help="Also by the values of this field or meta field; may be given again.",
                    rich_help_panel=o.SHOW,
                    show_default=False,
                ),
            ],
            None,
        ),
        "seed": (
            Annotated[
                int, o.option(o.SHOW, "--seed", "Of the sample that a long page shows.", min=0)
            ],
            0,
        ),
        "allow_different": r.REPORT_OPTIONS["allow_different"],
        "config": o.OTHER_OPTIONS["config"],
        "debug": o.OTHER_OPTIONS["debug"],
    }
)
def report(ctx: typer.Context, results: r.Files) -> None:
    """A web page of results: texts coloured by loss, charts, tables. One file, no network.

    Of two results files it shows both models side by side, and their differences; of what diverge
    wrote, texts coloured by KL; of what rank wrote, questions with their choices.
    """
    with command_errors(ctx):
        from seqloss_cli.display.html import PageOptions

        values = ctx.params
        path: Path | None = values["output"]
        if path is None:
            raise UsageError("-o FILE.html says where the page goes")
        if len(results) > 2:
            raise UsageError("a page is of one results file, or of two that it compares")
        r.refuse_outputs(path, values["force"], results)
        options = PageOptions(
            values["title"], values["worst"], tuple(values["by"] or ()), values["seed"]
        )
        if write_page(results, path, values["force"], options, values["allow_different"]):
            raise typer.Exit(REJECTED)


def write_page(
    names: list[str],
    path: Path,
    force: bool,
    options: PageOptions,
    allow_different: bool = False,
    called: list[str] | None = None,
) -> int:
    """How many rows of the results could not be used. `called` are the names of the files in
    messages and on the page."""
    known = list(zip(names, called or names, strict=True))
    if len(names) == 1:
        page, n_unusable = _page_of_one(*known[0], options)
    else:
        page, n_unusable = _page_of_two(known, options, allow_different)
    write_out(page, path, force)
    return n_unusable


def _page_of_one(name: str, called: str, options: PageOptions) -> tuple[Page, int]:
    from seqloss_cli.display.html import gather, page_of
    from seqloss_cli.results.files import loss_kinds
    from seqloss_cli.results.schema.divergences import DIVERGENCE_KINDS
    from seqloss_cli.results.schema.rankings import RANKING_KINDS

    kinds: dict[str, RowKind[Any]] = {**loss_kinds(whole=True), **DIVERGENCE_KINDS, **RANKING_KINDS}
    file = r.open_of(name, kinds, called)
    reading = r.Reading()
    if file.run["command"] in RANKING_KINDS:
        return _page_of_rankings(file, reading, options), reading.n_unusable
    if file.run["command"] in DIVERGENCE_KINDS:
        return _page_of_divergences(file, reading, options), reading.n_unusable
    found = gather(reading.rows(file), options)
    n_rows = found.summary.whole.totals.n_sequences
    for field, groups in found.groups.items():
        n_without = sum(g.totals.n_sequences for g in groups if g.value is None)
        r.require_field("--by", field, n_without, n_rows)
    return page_of(file, found, options, reading.n_unusable), reading.n_unusable


def _page_of_divergences(
    file: ResultsOf[DivergenceRow], reading: r.Reading, options: PageOptions
) -> Page:
    from seqloss_cli.display.html import gather_divergences, page_of_divergences

    if options.by:
        raise UsageError("--by is for pages of what score and cond wrote")
    found = gather_divergences(reading.rows(file), options)
    return page_of_divergences(file, found, options, reading.n_unusable)


def _page_of_rankings(file: ResultsOf[RankedRow], reading: r.Reading, options: PageOptions) -> Page:
    from seqloss_cli.display.html import PageOptions, gather_rankings, page_of_rankings

    if options.by:
        raise UsageError(
            "--by is for pages of what score and cond wrote; rank has a --by of its own"
        )
    if options.n_worst != PageOptions().n_worst:
        raise UsageError(
            "--worst lists tokens; what rank wrote is listed by question: leave it out"
        )
    found = gather_rankings(reading.rows(file), file.run, options)
    return page_of_rankings(file, found, options, reading.n_unusable)


def _page_of_two(
    known: list[tuple[str, str]], options: PageOptions, allow_different: bool
) -> tuple[Page, int]:
    """The files are read twice: for the figures, and for the texts."""
    from seqloss_cli.analysis.compare import CompareOptions
    from seqloss_cli.analysis.compare import compare as compared
    from seqloss_cli.cli.compare import say_what_was_left_out, settle_runs

    if options.by:
        raise UsageError("--by is for the page of one results file")
    if any(name == STDIN for name, _ in known):
        raise UsageError("two results files are read twice: put what comes on stdin in a file")
    files = [r.open_one(*each) for each in known]
    reading = r.Reading(files)
    _, same = settle_runs(files, allow_different)
    found = compared(
        [reading.rows(file) for file in files],
        same,
        CompareOptions(n_extremes=0, seed=options.seed),
    )
    say_what_was_left_out(found.joined, files)
    page = page_of_compared(known, files, found, same, options, reading.n_unusable)
    return page, reading.n_unusable or int(not found.pairs[0].n_documents)


def page_of_compared(
    known: list[tuple[str, str]],
    files: list[ResultsFile],
    found: Comparisons,
    same_tokenizer: bool,
    options: PageOptions,
    n_unusable: int,
) -> Page:
    """Of two files that were read to their ends, and their comparison."""
    from seqloss_cli.display.html import gather_pair, page_of_pair

    again = r.Reading([r.open_one(*each, whole=True) for each in known])
    rows = [again.rows(file, quiet=True) for file in again.files]
    texts = gather_pair(rows, same_tokenizer, options)
    left_out = [
        f"{len(ids):,} rows of {side} have no partner, and are in no figure."
        for side, ids in zip("AB", found.joined.without_partner, strict=True)
        if ids
    ]
    left_out += [
        f"{len(ids):,} rows are left out: {reason}."
        for reason, ids in found.joined.left_out.items()
    ]
    return page_of_pair(files, texts, found.pairs[0], left_out, options, n_unusable)


def write_out(page: Page, path: Path, force: bool) -> None:
    from seqloss_cli.display.html import page_bytes
    from seqloss_cli.results.sinks import open_sink

    made = page_bytes(page)
    with open_sink(path, force, warn=say) as sink:
        sink.write(made)
    say(f"wrote {path}: {len(made):,} bytes")
