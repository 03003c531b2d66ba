"""The numbers of each kind of plot, from results files and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seqloss_cli.analysis.confidence import CalibrationOptions, calibration_plot
from seqloss_cli.analysis.joining import JoinReport, RowsUsed
from seqloss_cli.analysis.json_summaries import file_row
from seqloss_cli.analysis.membership import RESAMPLES, MembershipOptions, MembershipScores
from seqloss_cli.analysis.objective import (
    CurvePlot,
    curve_of_objective,
    curve_of_results,
    is_objective,
)
from seqloss_cli.analysis.plot_data import (
    Measure,
    groups_plot,
    histogram_plot,
    position_plot,
    scatter_plot,
    without_directories,
)
from seqloss_cli.analysis.summarize import Clusters, SummaryOptions
from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.failures import say, say_first
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.escaping import shown_path
from seqloss_cli.core.options import values_of
from seqloss_cli.display.plots.draw import Plot
from seqloss_cli.inputs.streams import STDIN
from seqloss_cli.results.files import ResultsFile
from seqloss_cli.results.formats.json import NoResultsError


@dataclass(frozen=True, slots=True)
class PlotRequest:
    """The plot that is asked for."""

    kind: str
    measure: Measure
    statistics: SummaryOptions
    """They name the field that groups have in common, too."""
    of_tokens: bool
    """Points of a scatter are tokens."""
    n_bins: int
    by_mass: bool
    """Bins of a calibration hold about as many tokens each, else they have equal widths."""
    allow_different: bool
    """Runs may differ in their policies."""
    membership: MembershipOptions


@dataclass(frozen=True, slots=True)
class PlotResult:
    """A plot with its numbers and its texts."""

    plot: Plot
    title: str
    """For the file's metadata."""
    description: str
    report: dict[str, Any]
    """The numbers, for --json."""
    n_unusable: int


@dataclass(frozen=True, slots=True)
class _PlotData(PlotRequest):
    """The request for a plot, with the results of its files."""

    reader: r.ResultsReader
    labels: list[str]
    same_tokenizer: bool


@dataclass(frozen=True, slots=True)
class Source:
    """The files that a plot is made of."""

    name: str
    """The first file's."""
    files: list[ResultsFile]
    objective: Mapping[str, Any] | None = None
    """The report of `objective` that stands in place of results."""


def open_source(results: Sequence[str], top1: bool, whole: bool) -> Source:
    """Open results, or one report of `objective`. Raises UsageError for a file that is neither."""
    if len(results) > 1:
        files = [r.open_one(name, top1=top1, whole=whole) for name in results]
        return Source(files[0].name, files)
    # One file alone may be a report of `objective`: a document without rows.
    try:
        file = r.open_one(results[0], top1=top1, whole=whole)
        return Source(file.name, [file])
    except UsageError as error:
        found = error.__cause__
        if isinstance(found, NoResultsError) and is_objective(found.document):
            name = "<stdin>" if results[0] == STDIN else shown_path(results[0])
            return Source(name, [], found.document)
        raise


def made_plot(request: PlotRequest, source: Source) -> PlotResult:
    """The numbers of a plot. Raises UsageError where the runs' policies differ."""
    if source.objective is not None:
        return _of_objective(request, source.name, source.objective)
    _, same_tokenizer = r.settle_runs(source.files, request.allow_different)
    labels = without_directories(r.labels_of(source.files))
    reader = r.ResultsReader(source.files)
    data = _PlotData(
        **values_of(request), reader=reader, labels=labels, same_tokenizer=same_tokenizer
    )
    plot = _KINDS[request.kind](data)
    if data.measure.metric == "mean_loss" and not same_tokenizer and request.kind != "scatter":
        say("warning: tokens of other tokenizers are other units; --metric bits_per_byte compares")
    models = list(dict.fromkeys(str(file.run.get("model")) for file in data.reader.files))
    rows = [file_row(file) for file in data.reader.files]
    return _made(plot, rows, models, data.reader.n_unusable, data.statistics.confidence)


def _of_objective(request: PlotRequest, name: str, document: Mapping[str, Any]) -> PlotResult:
    """The curve of a report whose intervals the other command has made."""
    curve = curve_of_objective(document, request.measure)
    _say_gaps(curve)
    models = [point.model for point in curve.points]
    confidence = document.get("confidence") or request.statistics.confidence
    return _made(curve, [{"file": name}], models, 0, confidence)


def _made(
    plot: Plot, files: list[dict[str, Any]], models: list[str], n: int, confidence: float
) -> PlotResult:
    numbers = {"kind": plot.kind, **asdict(plot)}
    of_documents = plot.kind not in ("histogram", "scatter")
    intervals = f"; {100 * confidence:g} % intervals over documents" if of_documents else ""
    return PlotResult(
        plot=plot,
        title=f"{plot.kind}: {', '.join(models)}",
        description=f"seqloss plot --kind {plot.kind}; models: {', '.join(models)}{intervals}",
        report={"files": files, "confidence": confidence, "n_unusable": n, **numbers},
        n_unusable=n,
    )


def _curve(data: _PlotData) -> CurvePlot:
    models = [str(file.run.get("model")) for file in data.reader.files]
    # Steps are read off names of checkpoints; files of one model are told apart by their own.
    if len(set(models)) < len(models):
        models = [file.name for file in data.reader.files]
    plot, joined = curve_of_results(
        data.reader.each(), models, data.same_tokenizer, data.measure, data.statistics
    )
    _say_left_out(data, joined, joined.used())
    _say_notes(plot.notes)
    _say_gaps(plot)
    return plot


def _say_gaps(plot: CurvePlot) -> None:
    """Raises RunError where no checkpoint has a point."""
    for point in plot.points:
        if point.estimate.value is None:
            say(f"warning: {point.label} has no point: its figure is infinite, or not known")
    known = any(point.estimate.value is not None for point in plot.points)
    _require_something(known, "no checkpoint has a finite figure")
    if not plot.by_step:
        say("note: no training step in every name: checkpoints are in the order given")


def _histogram(data: _PlotData) -> Plot:
    plot = histogram_plot(data.reader.each(), data.labels, data.measure)
    for series in plot.series:
        _require_scored(series.label, series.n_tokens > 0)
        if series.share_beyond:
            say(
                f"note: {series.label}: {100 * series.share_beyond:.3g} % of the tokens lie beyond "
                f"{plot.edges[-1]:g} {plot.unit}"
            )
    return plot


def _position(data: _PlotData) -> Plot:
    plot, found = position_plot(data.reader.each(), data.labels, data.measure, data.statistics)
    n_rows = sum(summary.whole.totals.n_sequences for summary in found)
    n_without = sum(summary.n_without_cluster for summary in found)
    _require_cluster(data, n_without, n_rows)
    _say_notes(plot.notes)
    for series in plot.series:
        _require_scored(series.label, bool(series.positions))
        without = [p for p in series.positions if p.mean_loss.value is None]
        unknown = [f"positions {p.first}-{p.last} have no point: infinite" for p in without]
        say_first("warning", [f"{series.label}: {each}" for each in unknown])
        _require_something(len(without) < len(series.positions), f"{series.label}: no finite loss")
    return plot


def _scatter(data: _PlotData) -> Plot:
    # A token of one tokenizer has no partner among those of another; a document has.
    tokens = data.of_tokens
    if tokens and not data.same_tokenizer:
        raise UsageError("--level token needs results of one tokenizer; --level sequence does not")
    plot, joined = scatter_plot(
        data.reader.each(),
        data.labels,
        data.same_tokenizer,
        data.measure,
        "token" if tokens else "document",
        data.statistics.seed,
    )
    _say_left_out(data, joined, plot.rows)
    if plot.n > len(plot.first):
        say(f"note: {len(plot.first):,} of {plot.n:,} {plot.of}s are drawn; all are counted")
    return plot


def _groups(data: _PlotData) -> Plot:
    plot = groups_plot(data.reader.each(), data.labels, data.measure, data.statistics)
    r.require_field("--by", plot.by, plot.n_without_by, plot.n_rows, data.reader)
    _require_cluster(data, plot.n_without_cluster, plot.n_rows)
    _require_something(bool(plot.groups))
    if plot.n_known > len(plot.groups):
        say(f"note: {len(plot.groups)} of {plot.n_known} groups are shown, the highest")
    for name, label in plot.without_bar:
        say(f"warning: {name}: {label} has no bar: a loss is infinite, or nothing is scored")
    return plot


def _calibration(data: _PlotData) -> Plot:
    options = CalibrationOptions(
        n_bins=data.n_bins,
        by_mass=data.by_mass,
        cluster=data.statistics.cluster,
        seed=data.statistics.seed,
        confidence=data.statistics.confidence,
    )
    plot = calibration_plot(data.reader.each(), data.labels, options)
    for series in plot.series:
        _require_scored(series.label, series.n_tokens > 0)
        if len(series.bins) < options.n_bins:
            say(
                f"note: {series.label}: {len(series.bins)} bins, as many probabilities are equal: "
                "those are not parted"
            )
    n_rows = sum(file.n_sequences for file in data.reader.files)
    _require_cluster(data, plot.n_without_cluster, n_rows)
    return plot


def _roc(data: _PlotData) -> Plot:
    scores, options = MembershipScores(data.membership), data.statistics
    clusters, n_rows = Clusters(options.cluster), 0
    for row in data.reader.rows(data.reader.files[0]):
        scores.add(row, clusters.number(row))
        n_rows += 1
    r.require_membership_fields(data.membership, scores, data.reader)
    _require_cluster(data, clusters.n_without, n_rows)
    plot = scores.plot(RESAMPLES, options.seed, bool(options.cluster), options.confidence)
    _require_something(bool(plot.series), "no score is known of members and of non-members")
    return plot


_KINDS: dict[str, Callable[[_PlotData], Plot]] = {
    "curve": _curve,
    "histogram": _histogram,
    "position": _position,
    "scatter": _scatter,
    "groups": _groups,
    "calibration": _calibration,
    "roc": _roc,
}


def _require_cluster(data: _PlotData, n_without: int, n_rows: int) -> None:
    r.require_field("--cluster", data.statistics.cluster, n_without, n_rows, data.reader)


def _say_left_out(data: _PlotData, joined: JoinReport, rows: RowsUsed) -> None:
    """Raises RunError where no row is left."""
    r.say_what_was_left_out(joined, data.reader.files)
    _require_something(rows.n_used > 0)
    if rows.n_missing:
        say(f"note: the plot is of {rows.n_used:,} of the rows of each file")
    _require_cluster(data, joined.n_without_cluster, rows.n_used)


def _say_notes(notes: list[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def _require_scored(label: str, there: bool) -> None:
    _require_something(there, f"{label}: no token is scored")


def _require_something(there: bool, why: str = "no row of the results can be used") -> None:
    if not there:
        raise RunError(f"there is nothing to plot: {why}")
