"""`seqloss compare`: whether one model's losses are lower than another's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqloss_cli.cli import in_turn as t
from seqloss_cli.cli import options as o
from seqloss_cli.cli import reports as r
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.views import VIEW_OPTIONS, choose_heat
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from seqloss_cli.analysis.compare import Comparisons
    from seqloss_cli.analysis.joining import JoinReport
    from seqloss_cli.display.terminal import HeatOptions
    from seqloss_cli.results.files import ResultsFile
    from seqloss_cli.results.runs import Difference

EXAMPLES = (
    "seqloss compare a.jsonl b.jsonl",
    "seqloss compare -m samples/checkpoints/step-600 -m demo --data README.md --lines",
    "seqloss compare a.jsonl b.jsonl c.parquet --cluster source --json",
)


@o.with_options(
    t.MODELS,
    t.TURN_OPTIONS,
    r.COMPARE_OPTIONS,
    r.REPORT_OPTIONS,
    {"all_tokens": o.SHOW_OPTIONS["all_tokens"]},
    VIEW_OPTIONS,
    o.PAGE_OPTION,
)
def compare(
    ctx: typer.Context,
    results: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RESULTS]", help="Two or more: .jsonl, .json, .parquet."),
    ] = None,
) -> None:
    """Compare models on the same inputs: results files, or models that are scored in turn.

    Rows are joined on their text. With one tokenizer differences are per token, across tokenizers
    per byte; documents are what was drawn at random.
    """
    with command_errors(ctx):
        r.check_output(ctx, results or ())
        heat = choose_heat(ctx, _no_heat(ctx, results or ()))
        _refuse_idle_flag(ctx, heat)
        models = ctx.params["models"] or []
        _check_page(ctx, results or (), len(models or results or ()))
        if models and results:
            raise UsageError("name either RESULTS files, or --model A --model B with --data FILE")
        if models:
            if len(models) < 2:
                raise UsageError("--model: name two or more to compare")
            with t.scored_in_turn(ctx, models) as (names, n_rejected):
                files = [r.open_one(*each) for each in zip(names, models, strict=True)]
                _compare(ctx, files, n_rejected, heat, list(zip(names, models, strict=True)))
            return
        if not results or len(results) < 2:
            raise UsageError("name two or more RESULTS files, or --model A --model B --data FILE")
        t.refuse_scoring_options(ctx)
        files = [r.open_one(name) for name in results]
        _compare(ctx, files, 0, heat, [(name, name) for name in results])


def _no_heat(ctx: typer.Context, results: Sequence[str]) -> str | None:
    """Why texts cannot be coloured, if they cannot."""
    if r.wants_json(ctx):
        return "is for the terminal, and json is not"
    if STDIN in results:
        return "reads its files twice: name a file instead of -"
    if not ctx.params["worst"]:
        return "shows the documents that --worst counts: give --worst 1 or more"
    return None


def _refuse_idle_flag(ctx: typer.Context, heat: HeatOptions | None) -> None:
    """Raises UsageError for --all-tokens where no text is shown."""
    source = ctx.get_parameter_source("all_tokens")
    if heat is None and source is not None and source.name == "COMMANDLINE":
        raise UsageError("--all-tokens is of texts in colours; it goes with --view heat")


def _check_page(ctx: typer.Context, results: Sequence[str], n_files: int) -> None:
    """Raises UsageError for a page that could not be."""
    path: Path | None = ctx.params["report"]
    if path is None:
        return
    r.refuse_outputs(path, ctx.params["force"], results)
    if path == ctx.params["output"]:
        raise UsageError(f"--report {path} and -o are one file")
    if n_files > 2:
        raise UsageError("--report shows two models; name two, or leave it out")


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
    from seqloss_cli.cli.report import page_of_compared, write_out
    from seqloss_cli.display.html import PageOptions
    from seqloss_cli.display.terminal import Unit
    from seqloss_cli.display.terminal.comparisons import comparison_view

    values = ctx.params
    options = r.choose_comparison(ctx)
    reading = r.Reading(files)
    shown, same = settle_runs(files, values["allow_different"])
    found = compared([reading.rows(file) for file in files], same, options)
    say_what_was_left_out(found.joined, files)
    n_compared = found.pairs[0].n_documents
    r.require_field("--cluster", options.cluster, found.joined.n_without_cluster, n_compared)
    report = comparison_json(found, files, shown, options)
    labels, unit = labels_of(files), Unit(values["unit"] == "bits")

    def views() -> Iterator[RenderableType]:
        yield from comparison_view(found, labels, options.confidence, unit)
        if heat is not None:
            yield from _texts(ctx, found, [name for name, _ in known], same, labels, heat)

    r.write_report(ctx, report, views)
    if values["report"] is not None:
        page = PageOptions(
            n_worst=max(options.n_extremes, 25),
            seed=options.seed,
            confidence=options.confidence,
            cluster=options.cluster,
        )
        made = page_of_compared(known, files, found, same, page, reading.n_unusable)
        write_out(made, values["report"], values["force"])
    if reading.n_unusable or n_rejected or not n_compared:
        raise typer.Exit(REJECTED)


def settle_runs(
    files: list[ResultsFile], allow_different: bool
) -> tuple[dict[str, list[Difference]], bool]:
    """How the runs differ from the first, by file, and whether they have the same tokens.

    Raises UsageError when their policies differ and that is not allowed.
    """
    from seqloss_cli.results.runs import NUMERICS, POLICIES, TOKENIZER, run_differences

    if not allow_different:
        r.require_same(
            files,
            lambda file: run_differences(files[0].run, file.run, POLICIES),
            "their losses are not of the same tokens",
        )
    shown = {
        file.name: run_differences(files[0].run, file.run, (*POLICIES, *TOKENIZER, *NUMERICS))
        for file in files[1:]
    }
    r.say_differences(files, shown)
    # with other policies other tokens are scored, of the same bytes
    same = not any(run_differences(files[0].run, f.run, (*POLICIES, *TOKENIZER)) for f in files[1:])
    return shown, same


def model_label(run: Mapping[str, Any]) -> str:
    """A model with its adapter and quantisation."""
    adapter, quantization = run.get("adapter"), run.get("quantization")
    with_adapter = f" with {adapter}" if adapter else ""
    return f"{run.get('model')}{with_adapter}" + (f", {quantization}" if quantization else "")


def _texts(
    ctx: typer.Context,
    found: Comparisons,
    paths: Sequence[str],
    same_tokens: bool,
    labels: Sequence[str],
    heat: HeatOptions,
) -> Iterator[RenderableType]:
    """The documents that differ most, in colours."""
    from seqloss_cli.analysis.compare import documents_of
    from seqloss_cli.display.terminal import Unit
    from seqloss_cli.display.terminal.comparisons import difference_views

    again = r.Reading([r.open_one(path) for path in paths])
    rows = [again.rows(file, quiet=True) for file in again.files]
    documents = documents_of(rows, found, same_tokens)
    pairs = list(zip(found.pairs, documents, strict=True))
    unit, all_tokens = Unit(ctx.params["unit"] == "bits"), ctx.params["all_tokens"]
    yield from difference_views(pairs, labels, heat, unit, all_tokens)


def labels_of(files: list[ResultsFile]) -> list[str]:
    """Models by name where that tells them apart, else the files."""
    models = [model_label(file.run) for file in files]
    if len(set(models)) == len(files):
        return models
    names = [file.name for file in files]
    return names if len(set(names)) == len(files) else [chr(65 + n) for n in range(len(files))]


def say_what_was_left_out(report: JoinReport, files: list[ResultsFile]) -> None:
    for file, ids in zip(files, report.without_partner, strict=True):
        if ids:
            few = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
            say(f"warning: {file.name}: {len(ids)} rows have no partner: {few}")
    for reason, ids in report.left_out.items():
        say(f"warning: {len(ids)} rows are left out: {reason} (first {ids[0]})")
    if n := report.n_joined_by_order:
        say(f"note: {n} rows of one text under other ids, taken in order")
