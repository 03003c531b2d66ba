"""Loss by position and by group: what `summarize` says of these, in the unit of an axis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from seqloss_cli.analysis.summarize import PositionLoss, Summary, SummaryOptions, summarize
from seqloss_cli.display.plots.histograms import require_tokens
from seqloss_cli.display.plots.measures import Measure
from seqloss_cli.metrics.statistics import Estimate
from seqloss_cli.results.schema.scores import ResultRow

MOST_GROUPS = 40


@dataclass(frozen=True, slots=True)
class PositionSeries:
    label: str
    positions: list[PositionLoss]


@dataclass(frozen=True, slots=True)
class PositionPlot:
    kind: ClassVar[str] = "position"
    axis: str
    series: list[PositionSeries]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class GroupBar:
    value: Any
    """Of the field, None where a row has none."""
    estimates: list[Estimate | None]
    """One for each series; None where the file has no such rows, or no such figure for them."""
    n_documents: list[int]
    """With something scored, in each series."""


@dataclass(frozen=True, slots=True)
class GroupsPlot:
    kind: ClassVar[str] = "groups"
    axis: str
    by: str
    labels: list[str]
    """Of the series."""
    groups: list[GroupBar]
    """The highest first, by the first series that has them."""
    n_groups: int
    """With those that are not shown."""
    n_known: int
    """Of these, with a figure."""
    without_bar: list[tuple[str, str]]
    """Series and group where there is none: a loss is infinite, or nothing is scored."""
    n_rows: int
    n_without_by: int
    n_without_cluster: int


def position_plot(
    files: Sequence[Iterable[ResultRow]],
    labels: Sequence[str],
    measure: Measure,
    options: SummaryOptions,
) -> tuple[PositionPlot, list[Summary]]:
    """Raises UsageError where rows were written without the losses of their tokens."""
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


def groups_plot(
    files: Sequence[Iterable[ResultRow]],
    labels: Sequence[str],
    measure: Measure,
    options: SummaryOptions,
) -> GroupsPlot:
    found = [summarize(rows, options) for rows in files]
    by_value: dict[tuple[str, Any], list[Estimate | None]] = {}
    n_documents: dict[tuple[str, Any], list[int]] = {}
    without_bar: list[tuple[str, str]] = []
    for place, summary in enumerate(found):
        for group in summary.groups:
            key = (type(group.value).__name__, group.value)
            estimate = group.estimates.get(measure.metric)
            values = by_value.setdefault(key, [None] * len(found))
            values[place] = None if estimate is None else measure.of(estimate)
            if estimate is None or estimate.value is None:
                without_bar.append((labels[place], str(group.value)))
            counts = n_documents.setdefault(key, [0] * len(found))
            counts[place] = group.totals.n_sequences_scored
    bars = [GroupBar(key[1], values, n_documents[key]) for key, values in by_value.items()]
    known = [bar for bar in bars if _height(bar) is not None]
    known.sort(key=lambda bar: _height(bar) or 0.0, reverse=True)
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
    )


def _height(bar: GroupBar) -> float | None:
    return next((e.value for e in bar.estimates if e is not None and e.value is not None), None)
