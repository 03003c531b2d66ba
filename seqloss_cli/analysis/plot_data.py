"""Make the numbers of plots: histograms, by position and by group, two models in a scatter.

The curve over checkpoints is made in `objective`, the reliability diagram in `confidence`. Field
names of the records are keys of `plot --json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, ClassVar, Literal

import numpy as np

from seqloss_cli.analysis.compare import TIE
from seqloss_cli.analysis.histograms import count_in_bins
from seqloss_cli.analysis.joining import JoinReport, RowsUsed, join_usable, n_units
from seqloss_cli.analysis.summarize import PositionLoss, Summary, SummaryOptions, summarize
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Floats, Ints
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.resampling import Reservoir
from seqloss_cli.metrics.totals import NATS_PER_BIT, Totals
from seqloss_cli.results.schema.scores import ResultRow

Metric = Literal["mean_loss", "bits_per_byte", "perplexity"]
MOST_GROUPS = 40
_MOST_POINTS = 20_000


@dataclass(frozen=True, slots=True)
class Measure:
    """The quantity on an axis, and its unit."""

    metric: Metric = "mean_loss"
    bits: bool = False
    """For losses; rates have units of their own."""

    @property
    def nats(self) -> float:
        """Return how many nats a unit of loss is."""
        return NATS_PER_BIT if self.bits else 1.0

    @property
    def unit(self) -> str:
        """Return the name of the unit of loss."""
        return "bits" if self.bits else "nats"

    @property
    def label(self) -> str:
        """Return the name of the axis."""
        if self.metric == "mean_loss":
            return f"Mean loss ({self.unit} per token)"
        return "Perplexity (per token)" if self.metric == "perplexity" else "Loss (bits per byte)"

    def of(self, estimate: Estimate) -> Estimate:
        """Convert an estimate of the metric, in nats if it is a loss, to the unit of the axis."""
        return estimate.times(1 / self.nats) if self.metric == "mean_loss" else estimate


def without_directories(names: Sequence[str]) -> list[str]:
    """Return the shortest ends of the names, in whole parts of paths, that tell them apart."""
    parts = [PurePath(name).parts for name in names]
    for n in range(1, max(map(len, parts), default=0)):
        ends = [
            str(PurePath(*each[-n:])) if each else name
            for each, name in zip(parts, names, strict=True)
        ]
        if len(set(ends)) == len(names):
            return ends
    return list(names)


def require_tokens(row: ResultRow) -> None:
    """Raise UsageError where something is scored, but the row was written without token losses."""
    if row.tokens is None and row.totals.n_scored:
        raise UsageError(
            f"{row.place} has no losses of tokens, which this plot is of: score again without "
            "--no-tokens"
        )


def counted_losses(row: ResultRow) -> Floats:
    """Return the losses of scored tokens, shape n, nats; raises UsageError as `require_tokens`."""
    require_tokens(row)
    return np.empty(0) if row.tokens is None else row.tokens.losses[row.tokens.counted]


_FINEST, _LAST = 1 / 16, 64
_MULTIPLES = (1, 2, 4, 8, 16, 32)
"""Widths of the bins that are shown, in fine bins."""
_MOST_BINS = 60


@dataclass(frozen=True, slots=True)
class HistogramSeries:
    """The spread of the losses of a results file."""

    label: str
    """Name of the file."""
    shares: list[float]
    """Share of the scored tokens in each bin; with `share_beyond` they sum to 1."""
    share_beyond: float
    """Share of tokens at or above the last edge, infinite losses among them."""
    n_tokens: int
    """Scored tokens."""
    mean: float | None
    """Mean loss; None where a loss is infinite."""


@dataclass(frozen=True, slots=True)
class HistogramPlot:
    """The spread of losses, over bins that all files have in common."""

    kind: ClassVar[str] = "histogram"
    unit: str
    """Unit of losses: nats or bits."""
    edges: list[float]
    """Edges of the bins, in that unit."""
    series: list[HistogramSeries]
    """One for each file."""


def histogram_plot(
    files: Sequence[Iterable[ResultRow]], labels: Sequence[str], measure: Measure
) -> HistogramPlot:
    """Return a series for each file; raises UsageError for rows without losses of tokens."""
    found = [_fine_counts(rows, measure.nats) for rows in files]
    # one set of edges for all files: known once the last of them was read
    filled = [int(np.flatnonzero(counts[:-1]).max(initial=0)) + 1 for counts, _ in found]
    last = max([*filled, *(len(counts) - 1 for counts, _ in found if counts[-1])])
    multiple = next(m for m in _MULTIPLES if last <= m * _MOST_BINS)
    n_bins = -(-last // multiple)
    series = []
    for label, (counts, totals) in zip(labels, found, strict=True):
        # the bins that are shown may reach beyond the last fine one
        shown = np.zeros(multiple * n_bins, dtype=np.int64)
        shown[: len(counts) - 1] = counts[:-1][: len(shown)]
        n, mean = int(counts.sum()), totals.mean_loss
        shares = shown.reshape(n_bins, multiple).sum(1) / max(n, 1)
        beyond, mean = int(counts[-1]) / max(n, 1), None if mean is None else mean / measure.nats
        series.append(HistogramSeries(label, shares.tolist(), beyond, n, mean))
    edges = (np.arange(n_bins + 1) * multiple * _FINEST).tolist()
    return HistogramPlot(measure.unit, edges, series)


def _fine_counts(rows: Iterable[ResultRow], nats: float) -> tuple[Ints, Totals]:
    """Return counts of tokens in fine bins, of which the last one has no end, and the totals."""
    counts, totals = np.zeros(int(_LAST / _FINEST) + 1, dtype=np.int64), Totals()
    for row in rows:
        totals += row.totals
        counts += count_in_bins(counted_losses(row) / nats, 0.0, _FINEST, len(counts))
    return counts, totals


@dataclass(frozen=True, slots=True)
class PositionSeries:
    """Losses of a results file by position, in the unit of the axis."""

    label: str
    """Name of the file."""
    positions: list[PositionLoss]
    """From the first position on."""


@dataclass(frozen=True, slots=True)
class PositionPlot:
    """Loss by position in the sequence."""

    kind: ClassVar[str] = "position"
    axis: str
    """Name and unit of the axis."""
    series: list[PositionSeries]
    """One for each file."""
    notes: list[str]
    """Reasons to doubt an interval."""


def position_plot(
    files: Sequence[Iterable[ResultRow]],
    labels: Sequence[str],
    measure: Measure,
    options: SummaryOptions,
) -> tuple[PositionPlot, list[Summary]]:
    """Return a series for each file; raises UsageError for rows without losses of tokens."""
    found = [summarize(_with_tokens(rows), options) for rows in files]
    series, notes = [], list[str]()
    for label, summary in zip(labels, found, strict=True):
        scaled = [replace(p, mean_loss=measure.of(p.mean_loss)) for p in summary.positions]
        series.append(PositionSeries(label, scaled))
        notes += [note for note in summary.whole.notes if note not in notes]
    return PositionPlot(measure.label, series, notes), found


def _with_tokens(rows: Iterable[ResultRow]) -> Iterator[ResultRow]:
    for row in rows:
        require_tokens(row)
        yield row


@dataclass(frozen=True, slots=True)
class GroupBar:
    """The rows that have one value of a field."""

    value: Any
    """None for rows without the field."""
    estimates: list[Estimate | None]
    """For each series; None where the file has no such rows, or no such figure for them."""
    n_documents: list[int]
    """Documents with something scored, in each series."""

    @property
    def height(self) -> float | None:
        """Return the figure of the first series that has one."""
        known = (e.value for e in self.estimates if e is not None)
        return next((value for value in known if value is not None), None)


@dataclass(frozen=True, slots=True)
class GroupsPlot:
    """A figure for each value of a field."""

    kind: ClassVar[str] = "groups"
    axis: str
    """Name and unit of the axis."""
    by: str
    """Field of the groups."""
    labels: list[str]
    """Names of the series."""
    groups: list[GroupBar]
    """The highest first, by the first series that has them."""
    n_groups: int
    """Groups, with those that are not shown."""
    n_known: int
    """Groups that have a figure."""
    without_bar: list[tuple[str, str]]
    """Series and group where there is none: a loss is infinite, or nothing is scored."""
    n_rows: int
    """Rows that were read."""
    n_without_by: int
    """Rows without the field of groups."""
    n_without_cluster: int
    """Rows without the field of --cluster."""
    baseline: float
    """Begin of the axis: 0, or a round figure from which the groups can be told apart."""


def groups_plot(
    files: Sequence[Iterable[ResultRow]],
    labels: Sequence[str],
    measure: Measure,
    options: SummaryOptions,
) -> GroupsPlot:
    """Return the groups of all files by the field `options.by`, at most `MOST_GROUPS`."""
    found = [summarize(rows, options) for rows in files]
    bars: dict[tuple[str, Any], GroupBar] = {}
    without_bar: list[tuple[str, str]] = []
    for place, summary in enumerate(found):
        for group in summary.groups:
            # by type, too: 1, 1.0 and True are equal, but not one value of a field
            key = (type(group.value).__name__, group.value)
            empty = GroupBar(group.value, [None] * len(found), [0] * len(found))
            bar, estimate = bars.setdefault(key, empty), group.estimates.get(measure.metric)
            bar.estimates[place] = None if estimate is None else measure.of(estimate)
            bar.n_documents[place] = group.totals.n_sequences_scored
            if estimate is None or estimate.value is None:
                without_bar.append((labels[place], str(group.value)))
    known = [bar for bar in bars.values() if bar.height is not None]
    known.sort(key=lambda bar: bar.height or 0.0, reverse=True)
    return GroupsPlot(
        axis=measure.label,
        by=str(options.by),
        labels=list(labels),
        groups=known[:MOST_GROUPS],
        n_groups=len(bars),
        n_known=len(known),
        without_bar=without_bar,
        n_rows=sum(summary.whole.totals.n_sequences for summary in found),
        n_without_by=sum(summary.n_without_by for summary in found),
        n_without_cluster=sum(summary.n_without_cluster for summary in found),
        baseline=_baseline([e for bar in known[:MOST_GROUPS] for e in bar.estimates if e]),
    )


def _baseline(estimates: Sequence[Estimate]) -> float:
    """Return 0 where the figures fill half of an axis from there, else a round one below them."""
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if end is not None]
    least, most = min(ends, default=0.0), max(ends, default=0.0)
    if not 0 < most - least < most / 2:
        return 0.0
    step = 10.0 ** math.floor(math.log10(most - least))
    # A little room is left of the least figure, whose dot would be cut in two.
    return round(max(0.0, math.floor((least - step / 10) / step) * step), 12)


PointOf = Literal["document", "token"]


@dataclass(frozen=True, slots=True)
class ScatterPlot:
    """Losses under A against losses under B."""

    kind: ClassVar[str] = "scatter"
    unit: str
    """Unit of both axes: nats or bits, per token or byte."""
    labels: tuple[str, str]
    """Names of A and B."""
    of: PointOf
    """The thing that a point is."""
    first: list[float]
    """Losses under A of the points; beyond 20,000 those of a uniform sample."""
    second: list[float]
    """Losses under B of the same points."""
    n: int
    """Documents or tokens that are counted: all of them."""
    n_lower: int
    """Points where B is lower by more than a tie."""
    n_tied: int
    """Points where they are tied."""
    n_higher: int
    """Points where B is higher by more than a tie."""
    rows: RowsUsed
    """Rows that the points are made of."""


def scatter_plot(
    files: Sequence[Iterable[ResultRow]],
    labels: Sequence[str],
    same_tokenizer: bool,
    measure: Measure,
    of: PointOf,
    seed: int,
) -> tuple[ScatterPlot, JoinReport]:
    """Return a point for each document or token that both files have.

    Losses of documents are per token, across tokenizers per byte (rule 15); tokens are points with
    one tokenizer only.
    """
    assert same_tokenizer or of == "document"
    report, n_lower, n_higher = JoinReport(), 0, 0
    # one seed for both: they draw the same places, so that points stay pairs
    first, second = (Reservoir(_MOST_POINTS, seed) for _ in files)
    for rows in join_usable(files, report, same_tokenizer):
        if of == "token":
            # usable rows score the same tokens: the losses stand side by side
            a, b = map(counted_losses, rows)
        else:
            n = n_units(rows[0], same_tokenizer)
            a, b = (np.array([(row.totals.total_loss or 0.0) / n]) for row in rows)
        first.add(a)
        second.add(b)
        n_lower += int((b - a < -TIE).sum())
        n_higher += int((b - a > TIE).sum())
    per = "token" if same_tokenizer else "byte"
    return ScatterPlot(
        unit=measure.unit if of == "token" else f"{measure.unit} per {per}",
        labels=(labels[0], labels[1]),
        of=of,
        first=(first.values() / measure.nats).tolist(),
        second=(second.values() / measure.nats).tolist(),
        n=first.n_seen,
        n_lower=n_lower,
        n_tied=first.n_seen - n_lower - n_higher,
        n_higher=n_higher,
        rows=report.used(),
    ), report
