"""`seqloss compare`: whether one model's losses are lower than another's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.commands import (
    CONFIG,
    OtherSettings,
    OutputSettings,
    ShowSettings,
    with_options,
)
from seqloss_cli.cli.failures import REJECTED
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.options import given, only
from seqloss_cli.cli.score_models import SCORING_OPTIONS, ModelArguments, score_models
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import argument, command_record

if TYPE_CHECKING:
    from rich.console import RenderableType

    from seqloss_cli.analysis.compare import Comparisons
    from seqloss_cli.display.terminal.formatting import HeatOptions
    from seqloss_cli.results.files import ResultsFile

EXAMPLES = (
    "seqloss compare a.jsonl b.jsonl",
    "seqloss compare -m samples/checkpoints/step-600 -m demo --data README.md --lines",
    "seqloss compare a.jsonl b.jsonl c.parquet --cluster source --json",
)


@command_record
class CompareArguments:
    """Results files, where no models are scored first."""

    results: list[str] | None = argument("[RESULTS]", "Two or more: .jsonl, .json, .parquet.")


@with_options(
    CompareArguments,
    only(ModelArguments, "models"),
    SCORING_OPTIONS,
    r.INTERVALS,
    only(r.StatisticsSettings, "bootstrap"),
    only(r.ResultsArguments, "allow_different"),
    only(r.StatisticsSettings, "worst"),
    only(ShowSettings, "unit"),
    r.SUMMARY_OUTPUT,
    CONFIG,
    only(OtherSettings, "debug"),
    only(ShowSettings, "all_tokens", "view", "theme", "show_whitespace"),
    only(OutputSettings, "report"),
)
def compare(ctx: typer.Context) -> None:
    """Compare models on the same inputs: results files, or models that are scored in turn.

    Rows are joined on their text. With one tokenizer differences are per token, across tokenizers
    per byte; documents are what was drawn at random.
    """
    from seqloss_cli.cli.output import heat_options

    results = given(ctx, CompareArguments).results or []
    models = given(ctx, ModelArguments).models or []
    r.check_output(ctx, results)
    heat = heat_options(ctx, _no_heat(ctx, results))
    _check_page(ctx, results)
    if not models:
        files = [r.open_one(name) for name in results]
        _compare(ctx, files, 0, heat, [(name, name) for name in results])
        return
    with score_models(ctx, models) as (names, n_rejected):
        known = list(zip(names, models, strict=True))
        _compare(ctx, [r.open_one(*each) for each in known], n_rejected, heat, known)


def _no_heat(ctx: typer.Context, results: Sequence[str]) -> str | None:
    """Why texts cannot be coloured, if they cannot."""
    if r.wants_json(ctx):
        return "is for the terminal, and json is not"
    if STDIN in results:
        return "reads its files twice: name a file instead of -"
    if not given(ctx, r.StatisticsSettings).worst:
        return "shows the documents that --worst counts: give --worst 1 or more"
    return None


def _check_page(ctx: typer.Context, results: Sequence[str]) -> None:
    """Raises UsageError where the page cannot be written."""
    output = given(ctx, OutputSettings)
    path: Path | None = output.report
    if path is None:
        return
    r.refuse_outputs(path, output.force, results)
    if path == output.output:
        raise UsageError(f"--report {path} and -o are one file")


def _compare(
    ctx: typer.Context,
    files: list[ResultsFile],
    n_rejected: int,
    heat: HeatOptions | None,
    known: list[tuple[str, str]],
) -> None:
    """`known` are the files' names, and what they are called."""
    from seqloss_cli.analysis.compare import compare as compared
    from seqloss_cli.analysis.json_summaries import comparison_json
    from seqloss_cli.cli.pages import page_of_compared, write_out
    from seqloss_cli.display.html.page import PageOptions
    from seqloss_cli.display.terminal.comparisons import comparison_view
    from seqloss_cli.display.terminal.formatting import Unit

    options, output = r.comparison_options(ctx), given(ctx, OutputSettings)
    reader = r.ResultsReader(files)
    shown, same = r.settle_runs(files, given(ctx, r.ResultsArguments).allow_different)
    found = compared([reader.rows(file) for file in files], same, options)
    r.say_what_was_left_out(found.joined, files)
    n_compared = found.pairs[0].n_documents
    r.require_field("--cluster", options.cluster, found.joined.n_without_cluster, n_compared)
    labels, show = r.labels_of(files), given(ctx, ShowSettings)
    unit = Unit(show.unit == "bits")

    def views() -> Iterator[RenderableType]:
        yield from comparison_view(found, labels, options.confidence, unit)
        if heat is not None:
            yield from _texts(found, [name for name, _ in known], same, labels, heat, show)

    r.write_summary(ctx, comparison_json(found, files, shown, options), views)
    if output.report is not None:
        # A page has room for more than a terminal.
        page = PageOptions(
            n_worst=max(options.n_extremes, 25),
            seed=options.seed,
            confidence=options.confidence,
            cluster=options.cluster,
        )
        made = page_of_compared(known, files, found, same, page, reader.n_unusable)
        write_out(made, output.report, output.force)
    if reader.n_unusable or n_rejected or not n_compared:
        raise typer.Exit(REJECTED)


def _texts(
    found: Comparisons,
    paths: Sequence[str],
    same_tokens: bool,
    labels: Sequence[str],
    heat: HeatOptions,
    show: ShowSettings,
) -> Iterator[RenderableType]:
    """The documents that differ most, in colours; the files are read again for them."""
    from seqloss_cli.analysis.compare import documents_of
    from seqloss_cli.display.terminal.comparisons import difference_views
    from seqloss_cli.display.terminal.formatting import Unit

    # Texts were not kept while all rows were compared: these few documents are read again.
    again = r.ResultsReader([r.open_one(path) for path in paths])
    rows = [again.rows(file, quiet=True) for file in again.files]
    documents = documents_of(rows, found, same_tokens)
    pairs = list(zip(found.pairs, documents, strict=True))
    yield from difference_views(pairs, labels, heat, Unit(show.unit == "bits"), show.all_tokens)
