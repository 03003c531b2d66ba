"""The mean of absolute gaps between two sums, bin by bin: expected calibration error.

The figure lies above the truth on average: a gap that chance alone made counts as much as a real
one, and gaps are taken without their signs. Resamples add chance once more, so that their plain
percentiles would lie higher still. The interval is therefore the one that is mirrored at the figure
(basic bootstrap: Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 5.2),
which takes that much off; it ends at 0 and 1, and may lie below the figure itself.

In simulations with 30 to 300 documents of log-normal length and 15 bins, the 95 % intervals held
the truth in 83 to 94 % of samples where the model was off (by 0.05 and 0.12; plain percentiles in
29 to 95 %), and in 41 to 47 % where it was perfectly calibrated (plain percentiles: never).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from seqloss_cli.core.records import Floats, Ints
from seqloss_cli.metrics.statistics.estimates import MOST_ENTRIES, Estimate, percentiles, unknown


@dataclass(frozen=True, slots=True)
class UnitGaps:
    """What each unit (document or cluster) adds to the bins that it has a part in: parallel."""

    units: Ints
    """Numbered from 0, all of them somewhere."""
    bins: Ints
    gaps: Floats
    counts: Floats


def mean_gap(parts: UnitGaps) -> float | None:
    """Σ over bins of |Σ gaps|, over Σ counts."""
    total = math.fsum(parts.counts.tolist())
    sums = [
        math.fsum(parts.gaps[parts.bins == each].tolist())
        for each in np.unique(parts.bins).tolist()
    ]
    return math.fsum(map(abs, sums)) / total if total else None


def mean_gap_estimate(
    parts: UnitGaps, n_resamples: int, seed: int, unit: str, confidence: float = 0.95
) -> tuple[Estimate, float | None]:
    """The figure with its interval, and by how much resamples lie above it on average: about what
    the figure itself lies above the truth, or less than that."""
    from scipy.sparse import csr_array

    value, n = mean_gap(parts), int(parts.units.max(initial=-1)) + 1
    if value is None or n < 2:
        return unknown(value, n, f"no interval: one {unit}" if n else "nothing to divide by"), None
    n_bins = int(parts.bins.max()) + 1
    gaps = csr_array((parts.gaps, (parts.bins, parts.units)), shape=(n_bins, n))
    counts = np.bincount(parts.units, parts.counts, n)
    generator, found = np.random.default_rng(seed), np.empty(n_resamples)
    step = max(1, MOST_ENTRIES // n)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = generator.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).T.astype(np.float64)
        found[start : start + rows] = np.abs(gaps @ times).sum(0) / (times.T * counts).sum(1)
    method = (
        f"basic bootstrap over {unit}s, {n_resamples} resamples, seed {seed}; the figure itself "
        "is biased upward"
    )
    plain = percentiles(value, found, confidence, n, method)
    low, high = (min(1.0, max(0.0, 2 * value - (end or 0.0))) for end in (plain.high, plain.low))
    return replace(plain, low=low, high=high), float(found.mean()) - value
