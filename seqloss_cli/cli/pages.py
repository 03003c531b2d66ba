"""Web pages of results, for `report`, `compare` and `--report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.failures import say
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.analysis.compare import Comparisons
    from seqloss_cli.display.html.page import Page, PageOptions
    from seqloss_cli.results.files import ResultsFile, ResultsOf
    from seqloss_cli.results.schema import RowKind
    from seqloss_cli.results.schema.divergences import DivergenceRow
    from seqloss_cli.results.schema.rankings import RankedRow


def write_page(
    names: list[str],
    path: Path,
    force: bool,
    options: PageOptions,
    allow_different: bool = False,
    called: list[str] | None = None,
) -> int:
    """Write the page of one results file or two; returns how many of their rows are unusable.

    `called` are the names of the files in messages and on the page.
    """
    known = list(zip(names, called or names, strict=True))
    if len(names) == 1:
        page, n_unusable = _page_of_one(*known[0], options)
    else:
        page, n_unusable = _page_of_two(known, options, allow_different)
    write_out(page, path, force)
    return n_unusable


def _page_of_one(name: str, called: str, options: PageOptions) -> tuple[Page, int]:
    from seqloss_cli.display.html.text_pages import gather_losses, loss_page
    from seqloss_cli.results.schema.divergences import DIVERGENCE_KINDS
    from seqloss_cli.results.schema.rankings import RANKING_KINDS
    from seqloss_cli.results.schema.scores import loss_kinds

    kinds: dict[str, RowKind[Any]] = {**loss_kinds(whole=True), **DIVERGENCE_KINDS, **RANKING_KINDS}
    file = r.open_of(name, kinds, called)
    reader = r.ResultsReader()
    if file.run["command"] in RANKING_KINDS:
        return _page_of_rankings(file, reader, options), reader.n_unusable
    if file.run["command"] in DIVERGENCE_KINDS:
        return _page_of_divergences(file, reader, options), reader.n_unusable
    found = gather_losses(reader.rows(file), options)
    n_rows = found.summary.whole.totals.n_sequences
    for field, groups in found.groups.items():
        n_without = sum(g.totals.n_sequences for g in groups if g.value is None)
        r.require_field("--by", field, n_without, n_rows)
    return loss_page(file, found, options, reader.n_unusable), reader.n_unusable


def _page_of_divergences(
    file: ResultsOf[DivergenceRow], reader: r.ResultsReader, options: PageOptions
) -> Page:
    from seqloss_cli.display.html.text_pages import divergence_page, gather_divergences

    if options.by:
        raise UsageError("--by is for pages of what score and cond wrote")
    found = gather_divergences(reader.rows(file), options)
    return divergence_page(file, found, options, reader.n_unusable)


def _page_of_rankings(
    file: ResultsOf[RankedRow], reader: r.ResultsReader, options: PageOptions
) -> Page:
    from seqloss_cli.display.html.page import PageOptions
    from seqloss_cli.display.html.ranking_page import gather_rankings, ranking_page

    if options.by:
        raise UsageError(
            "--by is for pages of what score and cond wrote; rank has a --by of its own"
        )
    # The default asks for nothing: pages of losses have the same.
    if options.n_worst != PageOptions().n_worst:
        raise UsageError(
            "--worst lists tokens; what rank wrote is listed by question: leave it out"
        )
    found = gather_rankings(reader.rows(file), file.run, options)
    return ranking_page(file, found, options, reader.n_unusable)


def _page_of_two(
    known: list[tuple[str, str]], options: PageOptions, allow_different: bool
) -> tuple[Page, int]:
    """The page of two files, and how many of their rows are unusable."""
    from seqloss_cli.analysis.compare import CompareOptions
    from seqloss_cli.analysis.compare import compare as compared

    # Read twice: for the figures of all rows, then with texts for those that a page has room for.
    files = [r.open_one(*each) for each in known]
    reader = r.ResultsReader(files)
    _, same = r.settle_runs(files, allow_different)
    found = compared(
        [reader.rows(file) for file in files],
        same,
        CompareOptions(n_extremes=0, seed=options.seed),
    )
    r.say_what_was_left_out(found.joined, files)
    page = page_of_compared(known, files, found, same, options, reader.n_unusable)
    return page, reader.n_unusable or int(not found.pairs[0].n_documents)


def page_of_compared(
    known: list[tuple[str, str]],
    files: list[ResultsFile],
    found: Comparisons,
    same_tokenizer: bool,
    options: PageOptions,
    n_unusable: int,
) -> Page:
    """The page of two files that were read to their ends, and of their comparison."""
    from seqloss_cli.display.html.comparison_page import comparison_page, gather_comparison

    again = r.ResultsReader([r.open_one(*each, whole=True) for each in known])
    rows = [again.rows(file, quiet=True) for file in again.files]
    texts = gather_comparison(rows, same_tokenizer, options)
    left_out = [
        f"{len(ids):,} rows of {side} have no partner, and are in no figure."
        for side, ids in zip("AB", found.joined.without_partner, strict=True)
        if ids
    ]
    left_out += [
        f"{len(ids):,} rows are left out: {reason}."
        for reason, ids in found.joined.left_out.items()
    ]
    return comparison_page(files, texts, found.pairs[0], left_out, options, n_unusable)


def write_out(page: Page, path: Path, force: bool) -> None:
    """Write a page, and report its size."""
    from seqloss_cli.display.html import page_bytes
    from seqloss_cli.results.sinks import open_sink

    made = page_bytes(page)
    with open_sink(path, force, warn=say) as sink:
        sink.write(made)
    say(f"wrote {path}: {len(made):,} bytes")
