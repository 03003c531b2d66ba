"""`seqloss compare`: whether one model's losses are lower than another's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.failures import REJECTED
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.objective import SCORING_OPTIONS, ModelArguments, score_models
from seqloss_cli.cli.report import page_of_compared, write_page
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import argument, command_record
from seqloss_cli.core.policies import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.console import RenderableType

    from seqloss_cli.analysis.compare import CompareOptions
    from seqloss_cli.display.html.page import PageOptions
    from seqloss_cli.display.terminal.formatting import HeatOptions
    from seqloss_cli.results.files import ResultsFile


@command_record
class CompareArguments:
    """Results files, where no models are scored first."""

    results: list[str] | None = argument("[RESULTS]", "Two or more: .jsonl, .json, .parquet.")


@o.with_options(
    CompareArguments,
    o.only(ModelArguments, "models"),
    SCORING_OPTIONS,
    r.INTERVALS,
    o.only(r.StatisticsSettings, "bootstrap"),
    o.only(r.ResultsArguments, "allow_different"),
    o.only(r.StatisticsSettings, "n_extremes"),
    o.only(o.ShowSettings, "unit"),
    r.SUMMARY_OUTPUT,
    o.CONFIG,
    o.only(o.OtherSettings, "debug"),
    o.only(o.ShowSettings, "all_tokens", "view", "theme", "show_whitespace"),
    o.only(o.OutputSettings, "report"),
)
def compare(ctx: typer.Context) -> None:
    """Compare models on the same inputs: results files, or models that are scored in turn.

    Rows are joined on their text. With one tokenizer differences are per token, across tokenizers
    per byte; documents are what was drawn at random.

    Examples:
        seqloss compare -m samples/checkpoints/step-600 -m demo --data LICENSE --lines
        seqloss score LICENSE --lines -m samples/checkpoints/step-600 -o a.jsonl
        seqloss score LICENSE --lines -o b.jsonl
        seqloss compare a.jsonl b.jsonl
        seqloss compare a.jsonl b.jsonl c.parquet --cluster meta.document --json

    """
    from seqloss_cli.cli.settings import heat_options

    results = o.given(ctx, CompareArguments).results or []
    models = o.given(ctx, ModelArguments).models or []
    _refuse_directories(results)
    r.check_output(ctx)
    heat = heat_options(ctx, _no_heat(ctx, results))
    r.check_places(ctx, "report")
    if not models:
        files = [r.open_one(name) for name in results]
        _compare(ctx, files, 0, heat, [(name, name) for name in results])
        return
    with score_models(ctx, models) as scored:
        known = list(zip(scored.paths, models, strict=True))
        _compare(ctx, [r.open_one(*each) for each in known], scored.n_rejected, heat, known)


def _refuse_directories(results: Sequence[str]) -> None:
    """Raises UsageError where models are named in the place of results."""
    models = [name for name in results if Path(name).is_dir() or name == DEFAULT_MODEL]
    if not models:
        return
    data = [name for name in results if name not in models] or ["FILE"]
    named = [*(f"--model {name}" for name in models), *(f"--data {name}" for name in data)]
    raise UsageError(
        f"{models[0]} is a model, and no RESULTS file; models are scored, and compared, by "
        f"`seqloss compare {' '.join(named)}`"
    )


def _no_heat(ctx: typer.Context, results: Sequence[str]) -> str | None:
    """Why texts cannot be coloured, if they cannot."""
    if r.wants_json(ctx):
        return "is for the terminal, and json is not"
    if STDIN in results:
        return "reads its files twice: name a file instead of -"
    if not o.given(ctx, r.StatisticsSettings).n_extremes:
        return "shows the documents that --worst counts: give --worst 1 or more"
    return None


def _compare(
    ctx: typer.Context,
    files: list[ResultsFile],
    n_rejected: int,
    heat: HeatOptions | None,
    known: list[tuple[str, str]],
) -> None:
    """`known` are the files' names, and what they are called."""
    from seqloss_cli.analysis.compare import compare as compared
    from seqloss_cli.analysis.compare import documents_of
    from seqloss_cli.analysis.json_summaries import comparison_json
    from seqloss_cli.display.terminal.comparisons import (
        comparison_sentence,
        comparison_view,
        difference_views,
    )

    options, output = r.comparison_options(ctx), o.given(ctx, o.OutputSettings)
    reader = r.ResultsReader(files)
    shown, same = r.settle_runs(files, o.given(ctx, r.ResultsArguments).allow_different)
    found = compared(reader.each(), same, options)
    r.say_what_was_left_out(found.joined, files)
    n_compared = found.pairs[0].n_documents
    r.require_field(
        "--cluster", options.cluster, found.joined.n_without_cluster, n_compared, reader
    )
    labels, unit = r.labels_of(files), r.unit_of(ctx)

    def views() -> Iterator[RenderableType]:
        yield from comparison_view(found, labels, options.confidence, unit)
        if heat is None:
            return
        # Texts were not kept while all rows were compared: these few documents are read again.
        again = r.ResultsReader([r.open_one(name, whole=True) for name, _ in known])
        documents = documents_of(again.each(quiet=True), found, same)
        pairs = list(zip(found.pairs, documents, strict=True))
        whole = o.given(ctx, o.ShowSettings).all_tokens
        yield from difference_views(pairs, heat, unit, whole)

    answers = (comparison_sentence(pair, labels, unit) for pair in found.pairs)
    r.write_summary(ctx, comparison_json(found, files, shown, options), views, answers)
    if output.report is not None:
        made = page_of_compared(known, reader, found, same, _page_options(options))
        write_page(made, output.report, output.force)
    if reader.n_unusable or n_rejected or not n_compared:
        raise typer.Exit(REJECTED)


def _page_options(options: CompareOptions) -> PageOptions:
    """The page's part of the options: it has room for more than a terminal."""
    from seqloss_cli.display.html.page import PageOptions

    return PageOptions(
        n_worst=max(options.n_extremes, 25),
        seed=options.seed,
        confidence=options.confidence,
        cluster=options.cluster,
    )
