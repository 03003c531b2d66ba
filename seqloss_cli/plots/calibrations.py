"""Whether the model is as often right as it is sure: reliability diagrams.

At each scored token the model's favourite has a probability, and either is the text's token or is
not. In bins of that probability the share of tokens at which it is stands beside the mean
probability; the expected calibration error is the mean of what lies between, weighted by tokens
(Guo, Pleiss, Sun & Weinberger, On Calibration of Modern Neural Networks, 2017).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seqloss_cli.errors import UsageError
from seqloss_cli.records import Floats
from seqloss_cli.results import ResultRow
from seqloss_cli.statistics import Estimate, share_estimate
from seqloss_cli.summaries import Clusters


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
    expected_calibration_error: float
    accuracy: float
    confidence: float
    n_tokens: int
    bins: list[CalibrationBin]


@dataclass(frozen=True, slots=True)
class CalibrationPlot:
    kind: ClassVar[str] = "calibration"
    series: list[CalibrationSeries]
    n_without_cluster: int


class _Bins:
    """The sums of each document in bins of equal width."""

    def __init__(self, n_bins: int) -> None:
        self.n_bins = n_bins
        self._sums = [[array("d") for _ in range(3)] for _ in range(n_bins)]
        self._clusters = [array("q") for _ in range(n_bins)]

    def add(self, sure: Floats, right: Floats, cluster: int) -> None:
        places = np.clip(np.ceil(sure * self.n_bins).astype(np.int64) - 1, 0, self.n_bins - 1)
        each_token = (np.ones_like(sure), sure, right)
        sums = [np.bincount(places, values, self.n_bins) for values in each_token]
        for place in np.flatnonzero(sums[0]).tolist():
            for kept, each in zip(self._sums[place], sums, strict=True):
                kept.append(float(each[place]))
            self._clusters[place].append(cluster)

    def series(self, label: str, clustered: bool, confidence: float) -> CalibrationSeries:
        totals = np.array([[sum(each) for each in sums] for sums in self._sums])
        n = max(1.0, totals[:, 0].sum())
        return CalibrationSeries(
            label=label,
            expected_calibration_error=float(np.abs(totals[:, 2] - totals[:, 1]).sum() / n),
            accuracy=float(totals[:, 2].sum() / n),
            confidence=float(totals[:, 1].sum() / n),
            n_tokens=int(totals[:, 0].sum()),
            bins=[self._bin(place, clustered, confidence) for place in range(self.n_bins)],
        )

    def _bin(self, place: int, clustered: bool, confidence: float) -> CalibrationBin:
        edges = place / self.n_bins, (place + 1) / self.n_bins
        n, sure, right = (np.array(each) for each in self._sums[place])
        if not len(n):
            return CalibrationBin(*edges, 0, None, None)
        numbers = np.unique(np.array(self._clusters[place]), return_inverse=True)[1]
        accuracy = share_estimate(right, n, numbers if clustered else None, confidence)
        return CalibrationBin(*edges, int(n.sum()), float(sure.sum() / n.sum()), accuracy)


def calibration_plot(
    files: Sequence[Iterable[ResultRow]],
    labels: Sequence[str],
    n_bins: int,
    cluster: str | None,
    confidence: float,
) -> CalibrationPlot:
    """Raises UsageError where rows have no alternatives."""
    series, n_without = [], 0
    for label, rows in zip(labels, files, strict=True):
        bins, clusters = _Bins(n_bins), Clusters(cluster)
        for row in rows:
            number = clusters.number(row)
            if row.totals.n_scored:
                bins.add(*_favourites(row), number)
        series.append(bins.series(label, cluster is not None, confidence))
        n_without += clusters.n_without
    return CalibrationPlot(series, n_without)


def _favourites(row: ResultRow) -> tuple[Floats, Floats]:
    """How sure of its favourite the model is at the scored tokens, and whether it is right."""
    if row.favourites is None or row.tokens is None:
        raise UsageError(
            f"{row.place} has no alternatives: calibration needs results that were made with "
            "--top-k 1 or more (and without --no-tokens)"
        )
    counted = row.tokens.counted
    right = row.favourites.ids == row.fields["token_ids"]
    return row.favourites.probabilities[counted], right[counted].astype(np.float64)
