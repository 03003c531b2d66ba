"""The numbers of each kind of plot, from results files and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import typer

from seqloss_cli.cli import reports as r
from seqloss_cli.cli.compare import labels_of, say_what_was_left_out
from seqloss_cli.cli.enums import PlotKind, PlotLevel
from seqloss_cli.cli.failures import say
from seqloss_cli.errors import RunError, UsageError
from seqloss_cli.plots import (
    MOST_SERIES,
    CurvePlot,
    Measure,
    Plot,
    Together,
    calibration_plot,
    curve_of_objective,
    curve_plot,
    groups_plot,
    histogram_plot,
    position_plot,
    read_objective,
    scatter_plot,
    without_directories,
)
from seqloss_cli.results import NUMERICS, POLICIES, TOKENIZER, ResultsFile, run_differences
from seqloss_cli.summaries import SummaryOptions
from seqloss_cli.writing.reports import file_row


@dataclass(frozen=True, slots=True)
class Made:
    plot: Plot
    title: str
    """For the file's metadata."""
    description: str
    report: dict[str, Any]
    """The numbers, for --json."""
    n_unusable: int


@dataclass(frozen=True, slots=True)
class _Work:
    """What every kind starts from."""

    context: typer.Context
    reading: r.Reading
    labels: list[str]
    same_tokenizer: bool
    measure: Measure
    options: SummaryOptions

    @property
    def files(self) -> list[ResultsFile]:
        return self.reading.files

    def rows(self) -> list[Any]:
        return [self.reading.rows(file) for file in self.files]


def made_plot(context: typer.Context, kind: PlotKind, results: Sequence[str]) -> Made:
    values = context.params
    measure = Measure(values["metric"].value, values["unit"] == "bits")
    if kind is PlotKind.curve and len(results) == 1 and (document := read_objective(results[0])):
        return _of_objective(context, results[0], document, measure)
    _check_number(kind, len(results))
    if kind is PlotKind.groups and not values["by"]:
        raise UsageError("--by FIELD says which groups the bars are of")
    work = _opened(context, kind, results, measure)
    plot = _KINDS[kind](work)
    if measure.metric == "mean_loss" and not work.same_tokenizer and kind is not PlotKind.scatter:
        say("warning: tokens of other tokenizers are other units; --metric bits_per_byte compares")
    models = list(dict.fromkeys(str(file.run.get("model")) for file in work.files))
    rows = [file_row(file) for file in work.files]
    return _made(context, plot, rows, models, work.reading.n_unusable)


def _of_objective(
    context: typer.Context, name: str, document: Mapping[str, Any], measure: Measure
) -> Made:
    """Its intervals were made by the other command: what makes intervals is refused."""
    for option in ("confidence", "cluster", "seed", "allow_different"):
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            flag = option.replace("_", "-")
            raise UsageError(f"--{flag} is for results files; {name} has its intervals already")
    curve = curve_of_objective(document, measure)
    _say_gaps(curve)
    models = [point.model for point in curve.points]
    return _made(context, curve, [{"file": name}], models, 0, document.get("confidence"))


def _check_number(kind: PlotKind, n: int) -> None:
    if kind is PlotKind.scatter and n != 2:
        raise UsageError(f"--kind scatter is of two RESULTS files, A and B; {n} given")
    if kind is PlotKind.curve and n < 2:
        raise UsageError(
            "--kind curve needs RESULTS of two checkpoints or more, or what objective --json wrote"
        )
    if kind is not PlotKind.curve and n > MOST_SERIES:
        raise UsageError(f"--kind {kind} shows {MOST_SERIES} RESULTS files at most; {n} given")


def _opened(
    context: typer.Context, kind: PlotKind, results: Sequence[str], measure: Measure
) -> _Work:
    """Raises UsageError where the runs' policies differ."""
    values = context.params
    favourites = kind is PlotKind.calibration
    files = [r.open_one(name, favourites=favourites) for name in results]
    if not values["allow_different"]:
        r.require_same(
            files,
            lambda file: run_differences(files[0].run, file.run, POLICIES),
            "their losses are not of the same tokens",
        )
    keys = (*POLICIES, *TOKENIZER, *NUMERICS)
    r.say_differences(
        files, {f.name: run_differences(files[0].run, f.run, keys) for f in files[1:]}
    )
    differ = (run_differences(files[0].run, f.run, (*POLICIES, *TOKENIZER)) for f in files[1:])
    options = SummaryOptions(
        by=values["by"],
        cluster=values["cluster"],
        n_extremes=0,
        seed=values["seed"],
        confidence=values["confidence"],
    )
    labels = without_directories(labels_of(files))
    return _Work(context, r.Reading(files), labels, not any(differ), measure, options)


def _made(
    context: typer.Context,
    plot: Plot,
    files: list[dict[str, Any]],
    models: list[str],
    n: int,
    confidence: float | None = None,
) -> Made:
    """`confidence` where it is not that of the options."""
    confidence = confidence or context.params["confidence"]
    numbers = {"kind": plot.kind, **asdict(plot)}
    of_documents = plot.kind not in ("histogram", "scatter")
    intervals = f"; {100 * confidence:g} % intervals over documents" if of_documents else ""
    return Made(
        plot=plot,
        title=f"{plot.kind}: {', '.join(models)}",
        description=f"seqloss plot --kind {plot.kind}; models: {', '.join(models)}{intervals}",
        report={"files": files, "confidence": confidence, "n_unusable": n, **numbers},
        n_unusable=n,
    )


# -- each kind -----------------------------------------------------------------------------------


def _curve(work: _Work) -> CurvePlot:
    models = [str(file.run.get("model")) for file in work.files]
    if len(set(models)) < len(models):
        models = [file.name for file in work.files]
    plot, together = curve_plot(
        work.rows(), models, work.same_tokenizer, work.measure, work.options
    )
    _say_together(work, together, plot.n_documents)
    _say_notes(plot.notes)
    _say_gaps(plot)
    return plot


def _say_gaps(plot: CurvePlot) -> None:
    """Raises RunError where no checkpoint has a point."""
    for point in plot.points:
        if point.estimate.value is None:
            say(f"warning: {point.label} has no point: its figure is infinite, or not known")
    _require_something(any(point.estimate.value is not None for point in plot.points))
    if not plot.by_step:
        say("note: no training step in every name: checkpoints are in the order given")


def _histogram(work: _Work) -> Plot:
    plot = histogram_plot(work.rows(), work.labels, work.measure)
    _require_something(all(series.n_tokens for series in plot.series))
    for series in plot.series:
        if series.share_beyond:
            say(
                f"note: {series.label}: {100 * series.share_beyond:.3g} % of the tokens lie beyond "
                f"{plot.edges[-1]:g} {plot.unit}"
            )
    return plot


def _position(work: _Work) -> Plot:
    plot, found = position_plot(work.rows(), work.labels, work.measure, work.options)
    n_rows = sum(summary.whole.totals.n_sequences for summary in found)
    n_without = sum(summary.n_without_cluster for summary in found)
    r.require_field("--cluster", work.options.cluster, n_without, n_rows)
    _say_notes(plot.notes)
    for series in plot.series:
        without = [p for p in series.positions if p.mean_loss.value is None]
        for p in without:
            say(f"warning: {series.label}: positions {p.first}-{p.last} have no point: infinite")
        _require_something(len(without) < len(series.positions))
    return plot


def _scatter(work: _Work) -> Plot:
    tokens = work.context.params["level"] is PlotLevel.token
    if tokens and not work.same_tokenizer:
        raise UsageError("--level token needs results of one tokenizer; --level sequence does not")
    plot, together = scatter_plot(
        work.rows(),
        work.labels,
        work.same_tokenizer,
        work.measure,
        "token" if tokens else "document",
        work.options.seed,
    )
    _say_together(work, together, plot.n)
    if plot.n > len(plot.first):
        say(f"note: {len(plot.first):,} of {plot.n:,} {plot.of}s are drawn; all are counted")
    return plot


def _groups(work: _Work) -> Plot:
    plot = groups_plot(work.rows(), work.labels, work.measure, work.options)
    r.require_field("--by", plot.by, plot.n_without_by, plot.n_rows)
    r.require_field("--cluster", work.options.cluster, plot.n_without_cluster, plot.n_rows)
    _require_something(bool(plot.groups))
    if plot.n_known > len(plot.groups):
        say(f"note: {len(plot.groups)} of {plot.n_known} groups are shown, the highest")
    for name, label in plot.without_bar:
        say(f"warning: {name}: {label} has no bar: a loss is infinite, or nothing is scored")
    return plot


def _calibration(work: _Work) -> Plot:
    values = work.context.params
    plot = calibration_plot(
        work.rows(), work.labels, values["bins"], values["cluster"], values["confidence"]
    )
    _require_something(all(series.n_tokens for series in plot.series))
    n_rows = sum(file.n_sequences for file in work.files)
    r.require_field("--cluster", values["cluster"], plot.n_without_cluster, n_rows)
    return plot


_KINDS: dict[PlotKind, Callable[[_Work], Plot]] = {
    PlotKind.curve: _curve,
    PlotKind.histogram: _histogram,
    PlotKind.position: _position,
    PlotKind.scatter: _scatter,
    PlotKind.groups: _groups,
    PlotKind.calibration: _calibration,
}


def _say_together(work: _Work, together: Together, n: int) -> None:
    """Raises RunError where no row is left."""
    say_what_was_left_out(together, work.files)
    _require_something(n > 0)
    cluster = work.options.cluster
    r.require_field("--cluster", cluster, together.n_without_cluster, together.joined.n_joined)


def _say_notes(notes: list[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def _require_something(there: bool) -> None:
    if not there:
        raise RunError("there is nothing to plot: no row of the results can be used")
