"""How the losses of tokens are spread: shares of tokens in bins that all files have in common.

Losses are counted in fixed fine bins as they come, so that no file has to fit in memory; the bins
that are shown are made of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Floats
from seqloss_cli.display.plots.measures import Measure
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.schema.scores import ResultRow

_FINEST, _LAST = 1 / 16, 64
_WIDTHS = (1, 2, 4, 8, 16, 32)  # of the finest
_MOST_BINS = 60


@dataclass(frozen=True, slots=True)
class HistogramSeries:
    label: str
    shares: list[float]
    """Of the scored tokens, by bin; with `share_beyond` they sum to 1."""
    share_beyond: float
    """Of tokens at or above the last edge, infinite losses among them."""
    n_tokens: int
    mean: float | None
    """None where a loss is infinite."""


@dataclass(frozen=True, slots=True)
class HistogramPlot:
    kind: ClassVar[str] = "histogram"
    unit: str
    """Of losses: nats or bits."""
    edges: list[float]
    series: list[HistogramSeries]


class _Counts:
    """Of tokens, by fine bins; the last one has no end."""

    def __init__(self, nats: float) -> None:
        self._nats = nats
        self.fine = np.zeros(int(_LAST / _FINEST) + 1, dtype=np.int64)
        self.totals = Totals()

    def add(self, row: ResultRow) -> None:
        """Raises UsageError where the row has no tokens."""
        self.totals += row.totals
        losses = counted_losses(row) / self._nats
        places = np.minimum(losses / _FINEST, len(self.fine) - 1).astype(np.int64)
        self.fine += np.bincount(places, minlength=len(self.fine))


def counted_losses(row: ResultRow) -> Floats:
    """In nats. Raises UsageError where the row was written without them."""
    require_tokens(row)
    return np.empty(0) if row.tokens is None else row.tokens.losses[row.tokens.counted]


def require_tokens(row: ResultRow) -> None:
    """Raises UsageError where something is scored, and the row was written without its losses."""
    if row.tokens is None and row.totals.n_scored:
        raise UsageError(
            f"{row.place} has no losses of tokens, which this plot is of: score again without "
            "--no-tokens"
        )


def histogram_plot(
    files: Sequence[Iterable[ResultRow]], labels: Sequence[str], measure: Measure
) -> HistogramPlot:
    counts = []
    for rows in files:
        counts.append(_Counts(measure.nats))
        for row in rows:
            counts[-1].add(row)
    filled = [int(np.flatnonzero(each.fine[:-1]).max(initial=0)) + 1 for each in counts]
    last = max([*filled, *(len(each.fine) - 1 for each in counts if each.fine[-1])])
    step = next(width for width in _WIDTHS if last <= width * _MOST_BINS)
    n_bins = -(-last // step)
    series = [
        _series(label, each, step, n_bins, measure.nats)
        for label, each in zip(labels, counts, strict=True)
    ]
    edges = (np.arange(n_bins + 1) * step * _FINEST).tolist()
    return HistogramPlot(measure.unit, edges, series)


def _series(label: str, counts: _Counts, step: int, n_bins: int, nats: float) -> HistogramSeries:
    n, mean = int(counts.fine.sum()), counts.totals.mean_loss
    padded = np.zeros(step * n_bins, dtype=np.int64)
    shown = counts.fine[:-1][: len(padded)]
    padded[: len(shown)] = shown
    shares = padded.reshape(n_bins, step).sum(1) / max(n, 1)
    beyond = int(counts.fine[-1]) / max(n, 1)
    return HistogramSeries(label, shares.tolist(), beyond, n, None if mean is None else mean / nats)
