"""`seqloss report`, and --report of other commands: results as a web page in one file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.failures import REJECTED, exit_with, say
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import SHOW, command_record, option
from seqloss_cli.core.policies import DEFAULT_MODEL, ModelChoice

if TYPE_CHECKING:
    from seqloss_cli.analysis.compare import Comparisons
    from seqloss_cli.cli.settings import OutputPlan
    from seqloss_cli.display.html.page import Page, PageOptions
    from seqloss_cli.results.schema import RowKind


@command_record
class PageSettings:
    """The contents of a page."""

    PANEL = SHOW

    title: str | None = option(None, "Of the page.")
    n_worst: int = option(25, "How many tokens are listed.", flag="--worst", min=0)
    by: list[str] | None = option(
        None,
        "Also by the values of this field (id, source, meta.NAME); may be given again.",
        metavar="FIELD",
    )
    seed: int = option(0, "Of the sample that a long page shows.", min=0)


@o.with_options(
    o.only(r.ResultsArguments, "results"),
    o.only(o.OutputSettings, "output", "force", output="Write the page to FILE (.html)."),
    PageSettings,
    o.only(r.ResultsArguments, "allow_different"),
    o.CONFIG,
    o.only(o.OtherSettings, "debug"),
)
def report(ctx: typer.Context) -> None:
    """A web page of results: texts coloured by loss, charts, tables. One file, no network.

    Of two results files it shows both models side by side, and their differences; of what diverge
    wrote, texts coloured by KL; of what rank wrote, questions with their choices.

    Examples:
        seqloss score samples/texts.jsonl --keep-meta -o results.jsonl
        seqloss report results.jsonl -o report.html
        seqloss report a.jsonl b.jsonl -o differences.html
        seqloss report divergences.jsonl -o divergences.html
        seqloss report rankings.jsonl -o rankings.html
        seqloss score README.md --top-k 5 --ranks --report report.html --summary

    """
    from seqloss_cli.display.html.page import PageOptions

    arguments, page = o.given(ctx, r.ResultsArguments), o.given(ctx, PageSettings)
    output = o.given(ctx, o.OutputSettings)
    assert output.output is not None  # the table of conflicts refuses a page without a place
    r.check_places(ctx, "output")
    options = PageOptions(page.title, page.n_worst, tuple(page.by or ()), page.seed)
    if len(arguments.results) == 1:
        made, n_unusable = _page_of_one(arguments.results[0], options)
    else:
        made, n_unusable = _page_of_two(arguments.results, options, arguments.allow_different)
    write_page(made, output.output, output.force)
    if n_unusable:
        raise typer.Exit(REJECTED)


def write_with_page(
    context: typer.Context,
    choice: OutputPlan,
    write: Callable[[OutputPlan], int],
    what: str = "Losses under",
    without_model: str | None = None,
) -> None:
    """Write results, and of them the page of --report; exits with the code that `write` returns.

    The page is made of -o's file where that holds all, else of rows that are written a second
    time; its title then begins with `what`, or is the one of a run `without_model`.
    """
    from seqloss_cli.display.html.page import PageOptions

    path, code = o.given(context, o.OutputSettings).report, 0
    if path is None:
        code = write(choice)
    else:
        with tempfile.TemporaryDirectory(prefix="seqloss-") as folder:
            rows, called, title = choice.path, str(choice.path), None
            # Rows of -o will do where they can be read back: they are written once then.
            if rows is None or not (choice.format and choice.format.read) or choice.summary:
                rows, called = Path(folder) / "results.jsonl", "the results"
                model = o.given(context, ModelChoice).name or DEFAULT_MODEL
                title = without_model or f"{what} {model}"
                choice = replace(choice, page_rows=rows)
            code = write(choice)
            # Where some inputs were rejected, the page is of the others, and the exit code stays.
            page, _ = _page_of_one(str(rows), PageOptions(title), called)
            write_page(page, path, choice.force)
    exit_with(code)


def _page_of_one(name: str, options: PageOptions, called: str | None = None) -> tuple[Page, int]:
    """The page of one file, which messages have as `called`, and how many rows are unusable."""
    from seqloss_cli.display.html import check_page, ranking_page, text_pages
    from seqloss_cli.display.terminal.checks import diagnosis_words
    from seqloss_cli.results.schema.checks import CHECK_KINDS
    from seqloss_cli.results.schema.divergences import DIVERGENCE_KINDS
    from seqloss_cli.results.schema.rankings import RANKING_KINDS
    from seqloss_cli.results.schema.scores import loss_kinds

    kinds: dict[str, RowKind[Any]] = {**loss_kinds(whole=True), **DIVERGENCE_KINDS}
    kinds |= {**RANKING_KINDS, **CHECK_KINDS}
    file, reader = r.open_of(name, kinds, called or name), r.ResultsReader()
    command, rows = file.run["command"], reader.rows(file)
    if command in RANKING_KINDS:
        _refuse_for_rankings(options)
        ranked = ranking_page.gather_rankings(rows, file.run, options)
        page = ranking_page.ranking_page(file, ranked, options, reader.n_unusable)
    elif command in CHECK_KINDS:
        _refuse_by(options)
        checked = check_page.gather_checks(rows, options)
        page = check_page.check_page(file, checked, options, diagnosis_words, reader.n_unusable)
    elif command in DIVERGENCE_KINDS:
        _refuse_by(options)
        diverged = text_pages.gather_divergences(rows, options)
        page = text_pages.divergence_page(file, diverged, options, reader.n_unusable)
    else:
        found = text_pages.gather_losses(rows, options)
        n_rows = found.summary.whole.totals.n_sequences
        for field, groups in found.groups.items():
            n_without = sum(g.totals.n_sequences for g in groups if g.value is None)
            r.require_field("--by", field, n_without, n_rows, reader)
        page = text_pages.loss_page(file, found, options, reader.n_unusable)
    return page, reader.n_unusable


def _refuse_by(options: PageOptions) -> None:
    if options.by:
        raise UsageError("--by is for pages of what score and cond wrote")


def _refuse_for_rankings(options: PageOptions) -> None:
    from seqloss_cli.display.html.page import PageOptions

    if options.by:
        raise UsageError(
            "--by is for pages of what score and cond wrote; rank has a --by of its own"
        )
    # The default asks for nothing: pages of losses have the same.
    if options.n_worst != PageOptions().n_worst:
        raise UsageError(
            "--worst lists tokens; what rank wrote is listed by question: leave it out"
        )


def _page_of_two(names: list[str], options: PageOptions, allow_different: bool) -> tuple[Page, int]:
    """The page of two files, and how many of their rows are unusable."""
    from seqloss_cli.analysis.compare import CompareOptions
    from seqloss_cli.analysis.compare import compare as compared

    # Read twice: for the figures of all rows, then with texts for those that a page has room for.
    known = [(name, name) for name in names]
    reader = r.ResultsReader([r.open_one(*each) for each in known])
    _, same = r.settle_runs(reader.files, allow_different)
    found = compared(reader.each(), same, CompareOptions(n_extremes=0, seed=options.seed))
    r.say_what_was_left_out(found.joined, reader.files)
    page = page_of_compared(known, reader, found, same, options)
    return page, reader.n_unusable or int(not found.pairs[0].n_documents)


def page_of_compared(
    known: list[tuple[str, str]],
    reader: r.ResultsReader,
    found: Comparisons,
    same_tokenizer: bool,
    options: PageOptions,
) -> Page:
    """The page of two files that were read to their ends, and of their comparison. `known` are
    their names, and what they are called."""
    from seqloss_cli.display.html.comparison_page import comparison_page, gather_comparison

    again = r.ResultsReader([r.open_one(*each, whole=True) for each in known])
    texts = gather_comparison(again.each(quiet=True), same_tokenizer, options)
    left_out = [
        f"{len(ids):,} rows of {side} have no partner, and are in no figure."
        for side, ids in zip("AB", found.joined.without_partner, strict=True)
        if ids
    ]
    left_out += [
        f"{len(ids):,} rows are left out: {reason}."
        for reason, ids in found.joined.left_out.items()
    ]
    return comparison_page(
        reader.files, texts, found.pairs[0], left_out, options, reader.n_unusable
    )


def write_page(page: Page, path: Path, force: bool) -> None:
    """Write a page, and report its size."""
    from seqloss_cli.display.html.document import page_bytes
    from seqloss_cli.results.sinks import open_sink

    made = page_bytes(page)
    with open_sink(path, force, warn=say) as sink:
        sink.write(made)
    say(f"wrote {path}: {len(made):,} bytes")
