"""Whether the model is as often right as it is sure: reliability diagrams.

At each scored token the model's favourite has a probability, and either is the text's token or is
not. In bins of that probability the share of tokens at which it is stands beside the mean
probability; the expected calibration error is the mean of what lies between, weighted by tokens
(Guo, Pleiss, Sun & Weinberger, On Calibration of Modern Neural Networks, 2017).

Bins are of equal width, or hold about as many tokens each: these are cut at quantiles of the
probabilities, and equal ones are never parted, so that no bin depends on the order of rows.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seqloss_cli.analysis.summarize import Clusters
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Floats, Ints
from seqloss_cli.metrics.statistics import Estimate, UnitGaps, mean_gap_estimate, share_estimate
from seqloss_cli.results.schema.scores import ResultRow

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    n_bins: int = 15
    by_mass: bool = False
    """Bins of about as many tokens, else of equal width."""
    cluster: str | None = None
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    low: float
    """Exclusive, but for the first bin."""
    high: float
    n_tokens: int
    confidence: float | None
    """Mean probability of the favourite; None in an empty bin."""
    accuracy: Estimate | None
    """Share of tokens that are the favourite, with its interval over documents."""


@dataclass(frozen=True, slots=True)
class CalibrationSeries:
    label: str
    expected_calibration_error: Estimate
    """Biased upward: chance alone makes gaps, too."""
    resampling_bias: float | None
    """By how much it lies higher on average in resamples; the figure's own bias is about that, or
    more. None without an interval."""
    accuracy: float | None
    """None, as the confidence, where nothing is scored."""
    confidence: float | None
    n_tokens: int
    bins: list[CalibrationBin]


@dataclass(frozen=True, slots=True)
class CalibrationPlot:
    kind: ClassVar[str] = "calibration"
    bins_by: str
    """width or mass."""
    series: list[CalibrationSeries]
    n_without_cluster: int


class _Sums:
    """Of each document in each bin that it has tokens in."""

    def __init__(self, edges: Floats) -> None:
        self._edges, self._n_bins = edges, len(edges) - 1
        self._places, self._units = array("q"), array("q")
        self._sums = [array("d") for _ in range(3)]

    def add(self, sure: Floats, right: Floats, unit: int) -> None:
        """Of one document: the favourites' probabilities, and 1 where they are right."""
        places = np.searchsorted(self._edges[1:-1], sure, side="left")
        each_token = (np.ones_like(sure), sure, right)
        sums = [np.bincount(places, values, self._n_bins) for values in each_token]
        filled = np.flatnonzero(sums[0])
        self._places.extend(filled.tolist())
        self._units.extend([unit] * len(filled))
        for kept, each in zip(self._sums, sums, strict=True):
            kept.extend(each[filled].tolist())

    def series(self, label: str, options: CalibrationOptions) -> CalibrationSeries:
        parts = _Parts(
            np.array(self._places, dtype=np.int64),
            np.unique(np.array(self._units, dtype=np.int64), return_inverse=True)[1],
            *(np.array(each) for each in self._sums),
        )
        error, bias = _error(parts, options)
        n = math.fsum(parts.n.tolist())
        edges = self._edges.tolist()
        return CalibrationSeries(
            label=label,
            expected_calibration_error=error,
            resampling_bias=bias,
            accuracy=math.fsum(parts.right.tolist()) / n if n else None,
            confidence=math.fsum(parts.sure.tolist()) / n if n else None,
            n_tokens=int(n),
            bins=[_bin(parts, k, edges[k], edges[k + 1], options) for k in range(self._n_bins)],
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """A document (or cluster) in a bin, parallel."""

    places: Ints
    units: Ints
    n: Floats
    sure: Floats
    right: Floats


def _error(parts: _Parts, options: CalibrationOptions) -> tuple[Estimate, float | None]:
    gaps = UnitGaps(parts.units, parts.places, parts.right - parts.sure, parts.n)
    unit = "cluster" if options.cluster else "document"
    return mean_gap_estimate(gaps, _RESAMPLES, options.seed, unit, options.confidence)


def _bin(
    parts: _Parts, place: int, low: float, high: float, options: CalibrationOptions
) -> CalibrationBin:
    here = parts.places == place
    n, right = parts.n[here], parts.right[here]
    if not len(n):
        return CalibrationBin(low, high, 0, None, None)
    units = np.unique(parts.units[here], return_inverse=True)[1] if options.cluster else None
    accuracy = share_estimate(right, n, units, options.confidence)
    total = math.fsum(n.tolist())
    return CalibrationBin(
        low, high, int(total), math.fsum(parts.sure[here].tolist()) / total, accuracy
    )


class _Tokens:
    """All of a file's, as bins of equal mass are not known before the last of them."""

    def __init__(self) -> None:
        self._documents: list[tuple[Floats, Floats, int]] = []

    def add(self, sure: Floats, right: Floats, unit: int) -> None:
        self._documents.append((sure, right, unit))

    def series(self, label: str, options: CalibrationOptions) -> CalibrationSeries:
        everything = [sure for sure, _, _ in self._documents]
        sums = _Sums(edges_of_mass(np.concatenate([np.empty(0), *everything]), options.n_bins))
        for document in self._documents:
            sums.add(*document)
        return sums.series(label, options)


def edges_of_mass(values: Floats, n_bins: int) -> Floats:
    """From 0 to 1; fewer bins than asked for where many values are equal."""
    ordered, n = np.sort(values), len(values)
    if not n:
        return np.array([0.0, 1.0])
    last_of_each = -(-np.arange(1, n_bins) * n // n_bins) - 1
    inner = np.unique(ordered[np.maximum(last_of_each, 0)])
    return np.concatenate([[0.0], inner[(inner > 0) & (inner < ordered[-1])], [1.0]])


def calibration_plot(
    files: Sequence[Iterable[ResultRow]], labels: Sequence[str], options: CalibrationOptions
) -> CalibrationPlot:
    """Raises UsageError where rows have no alternatives."""
    series, n_without = [], 0
    for label, rows in zip(labels, files, strict=True):
        clusters = Clusters(options.cluster)
        equal_width = np.arange(options.n_bins + 1) / options.n_bins
        sums = _Tokens() if options.by_mass else _Sums(equal_width)
        for number, row in enumerate(rows):
            cluster = clusters.number(row)
            if row.totals.n_scored:
                sums.add(*_favourites(row), cluster if options.cluster else number)
        series.append(sums.series(label, options))
        n_without += clusters.n_without
    return CalibrationPlot("mass" if options.by_mass else "width", series, n_without)


def _favourites(row: ResultRow) -> tuple[Floats, Floats]:
    """How sure of its favourite the model is at the scored tokens, and whether it is right."""
    if row.top1 is None or row.tokens is None:
        raise UsageError(
            f"{row.place} has no alternatives: calibration needs results that were made with "
            "--top-k 1 or more (and without --no-tokens)"
        )
    counted = row.tokens.counted
    right = row.top1.ids == row.fields["token_ids"]
    return row.top1.probabilities[counted], right[counted].astype(np.float64)
