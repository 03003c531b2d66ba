"""Ratios of sums over documents, with intervals.

A mean loss is a ratio: nats over tokens, both sums over documents of unequal length. Its standard
error is the linearised one (Cochran, Sampling Techniques, 1977, section 6.4): of the residuals
e_i = y_i - R m_i of n documents, se^2 = n / (n - 1) * sum e_i^2 / (sum m_i)^2, with Student's t on
n - 1 degrees of freedom. Where documents come in clusters, e is summed over each cluster first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.records import Floats, Ints
from seqloss_cli.metrics.totals import exp_or_none

FEW_UNITS = 30
"""Below this many, intervals are said to rest on few documents: they tend to be too narrow."""
MOST_ENTRIES = 1 << 21
"""Of a block of resamples."""
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval, null where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    n: int = 0
    """Units that were drawn: documents, clusters or blocks."""
    method: str = ""

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def exp(self) -> Estimate:
        """Of e to the figure: the ends go along, a standard error does not."""
        ends = (exp_or_none(end) for end in (self.value, self.low, self.high))
        value, low, high = ends
        return replace(self, value=value, low=low, high=high, standard_error=None)

    def times(self, factor: float) -> Estimate:
        values = [
            None if v is None else v * factor
            for v in (self.value, self.low, self.high, self.standard_error)
        ]
        return replace(
            self, value=values[0], low=values[1], high=values[2], standard_error=values[3]
        )


def interval_notes(estimate: Estimate, n_documents: int) -> list[str]:
    """What to bear in mind about an interval."""
    if estimate.low is None:
        return []
    if n_documents == 1:
        return ["one document: the interval is of this text, not of others like it"]
    if estimate.n < FEW_UNITS:
        unit = "documents" if estimate.n == n_documents else "clusters"
        return [f"few {unit} ({estimate.n}): the interval may be too narrow"]
    return []


def unknown(value: float | None, n: int, why: str) -> Estimate:
    """A figure without an interval."""
    return Estimate(value, n=n, method=why)


def ratio_estimate(
    y: Floats, m: Floats, clusters: Ints | None = None, confidence: float = 0.95
) -> Estimate:
    """sum(y) / sum(m) over documents, with the linearised standard error.

    `clusters` numbers the cluster of each document from 0.
    """
    total = math.fsum(m.tolist())
    if total == 0:
        return unknown(None, len(y), "nothing to divide by")
    value = math.fsum(y.tolist()) / total
    residuals = _summed(y - value * m, clusters)
    n, unit = len(residuals), "document" if clusters is None else "cluster"
    if n < 2:
        return unknown(value, n, f"no interval: one {unit}")
    scaled, exponent = _scaled(residuals)
    root = math.sqrt(n / (n - 1) * float(scaled @ scaled))
    error = math.ldexp(root, exponent) / abs(total)
    reach = student_quantile(n - 1, 0.5 + confidence / 2) * error
    method = f"linearised ratio over {unit}s, t on {n - 1} degrees of freedom"
    return Estimate(value, value - reach, value + reach, error, n, method)


def bootstrap_ratio(
    y: Floats,
    m: Floats,
    n_resamples: int,
    seed: int,
    clusters: Ints | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The same ratio; documents (or clusters) are drawn with replacement, and the interval is that
    of the percentiles (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    value = math.fsum(y.tolist()) / math.fsum(m.tolist()) if m.sum() else None
    y, m = _summed(y, clusters), _summed(m, clusters)
    n, unit = len(y), "document" if clusters is None else "cluster"
    if n < 2 or value is None:
        return unknown(value, n, f"no interval: {n} {unit}s")
    generator, found = np.random.default_rng(seed), np.empty(n_resamples)
    step = max(1, MOST_ENTRIES // n)
    for start in range(0, n_resamples, step):
        drawn = generator.integers(0, n, (min(step, n_resamples - start), n))
        sums = m[drawn].sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[start : start + step] = y[drawn].sum(1) / sums
    method = f"bootstrap over {unit}s, percentiles of {n_resamples} resamples, seed {seed}"
    return percentiles(value, found[np.isfinite(found)], confidence, n, method)


def default_block(n_tokens: int) -> int:
    """Tokens of a block: the square root of the text's, long enough for most of what neighbouring
    losses have in common, and short enough that there are many."""
    return max(1, math.isqrt(n_tokens))


def block_bootstrap(
    losses: Floats, block: int, n_resamples: int, seed: int, confidence: float = 0.95
) -> Estimate:
    """The mean of one long text's losses; blocks of neighbouring tokens are drawn with replacement,
    from a circle that the text makes (Politis & Romano 1992)."""
    n, value = len(losses), math.fsum(losses.tolist()) / len(losses)
    n_blocks = n // block
    if n_blocks < 2:
        return unknown(value, n_blocks, f"no interval: fewer than 2 blocks of {block} tokens")
    prefetch = np.concatenate([[0.0], np.cumsum(np.concatenate([losses, losses[: block - 1]]))])
    block_sums = prefetch[block:] - prefetch[:-block]
    generator, found = np.random.default_rng(seed), np.empty(n_resamples)
    step = max(1, MOST_ENTRIES // n_blocks)
    for start in range(0, n_resamples, step):
        drawn = generator.integers(0, n, (min(step, n_resamples - start), n_blocks))
        found[start : start + step] = block_sums[drawn].sum(1) / (n_blocks * block)
    method = (
        f"circular block bootstrap of one text, {n_blocks} blocks of {block} tokens, percentiles "
        f"of {n_resamples} resamples, seed {seed}"
    )
    return percentiles(value, found, confidence, n_blocks, method)


def quantile_estimate(values: Floats, share: float, confidence: float = 0.95) -> Estimate:
    """A quantile of independent values with the interval of the order statistics (Conover,
    Practical Nonparametric Statistics, 1999, section 3.2): by ranks alone, whatever the shape."""
    from scipy.special import bdtr

    ordered, n = np.sort(values), len(values)
    value = float(np.quantile(ordered, share))
    below = bdtr(np.arange(n + 1), n, share)  # P(at most so many values lie under the quantile)
    tail = (1 - confidence) / 2
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    if low < 1 or high > n:
        return unknown(value, n, "no interval: too few documents for this quantile")
    method = "order statistics of documents"
    return Estimate(value, float(ordered[low - 1]), float(ordered[high - 1]), None, n, method)


def cluster_quantiles(
    values: Floats,
    clusters: Ints,
    shares: Sequence[float],
    n_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[float, Estimate]:
    """Quantiles of values that are alike within a cluster (tokens of a document): each the least
    value that so large a share does not exceed; whole clusters are drawn with replacement, and the
    intervals are those of the percentiles."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    codes = np.unique(clusters[order], return_inverse=True)[1]
    n = int(codes.max()) + 1
    found = np.empty((n_resamples + 1, len(shares)))
    generator = np.random.default_rng(seed)
    for row in range(n_resamples + 1):  # the first is of what was seen
        drawn = np.bincount(generator.integers(0, n, n), minlength=n) if row else np.ones(n)
        reached = np.cumsum(drawn[codes])
        places = np.searchsorted(reached, np.asarray(shares) * reached[-1] * (1 - _ROUNDING))
        found[row] = ordered[np.minimum(places, len(ordered) - 1)]
    if n < 2:
        why = "no interval: one document"
        return {share: unknown(float(v), n, why) for share, v in zip(shares, found[0], strict=True)}
    method = f"bootstrap over documents, percentiles of {n_resamples} resamples, seed {seed}"
    columns = zip(shares, found[0].tolist(), found[1:].T, strict=True)
    return {share: _ordered(v, drawn, confidence, n, method) for share, v, drawn in columns}


def proportion_estimate(n_right: int, n: int, confidence: float = 0.95) -> Estimate:
    """A share of independent units with Wilson's score interval (Wilson 1927), which stays within
    0 and 1 and has a width at either end, too; the standard error is the sample's own."""
    if not n:
        return unknown(None, 0, "nothing to divide by")
    p = n_right / n
    low, high = _wilson(p, n, normal_quantile(0.5 + confidence / 2))
    error = math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None
    return Estimate(p, low, high, error, n, "Wilson's score interval over rows")


def share_estimate(
    y: Floats, m: Floats, clusters: Ints | None = None, confidence: float = 0.95
) -> Estimate:
    """sum(y) / sum(m) where y counts some of m: Wilson's interval for as many independent units as
    would have the linearised standard error (Korn & Graubard 1998), so that it stays within 0
    and 1; no more than there are, and where the share is 0 or 1 as many as there are documents."""
    plain = ratio_estimate(y, m, clusters, confidence)
    if plain.value is None or plain.standard_error is None:
        return plain
    p, most = plain.value, float(m.sum())
    n_effective = float(plain.n)  # where all have the same share of 0 or 1, that is all to go by
    if 0 < p < 1:
        n_effective = min(most, p * (1 - p) / max(plain.standard_error**2, p * (1 - p) / most))
    low, high = _wilson(p, n_effective, student_quantile(plain.n - 1, 0.5 + confidence / 2))
    method = f"Wilson's score interval, {n_effective:.1f} effective units, {plain.method}"
    return replace(plain, low=low, high=high, method=method)


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * math.sqrt((p * (1 - p) + z**2 / (4 * n)) / n) / (1 + z**2 / n)
    # p lies between them, and at p = 0 or 1 is one of them: rounding must not part them
    return max(0.0, min(p, centre - reach)), min(1.0, max(p, centre + reach))


def _scaled(values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Values over a power of two, and its exponent: their squares stay within a float64, and what
    is made of them has the same bits as it would have without."""
    exponent = math.frexp(float(np.abs(values).max(initial=0.0)))[1]
    return np.ldexp(values, -exponent), exponent


def _summed(values: Floats, clusters: Ints | None) -> Floats:
    return values if clusters is None else np.bincount(clusters, values).astype(np.float64)


def student_quantile(degrees: int, share: float) -> float:
    """Return the quantile of Student's t on so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, share))


def normal_quantile(share: float) -> float:
    """Return the quantile of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(share))


def _ordered(value: float, found: NDArray[Any], confidence: float, n: int, method: str) -> Estimate:
    """As `percentiles`, by ranks alone: some may be infinite."""
    tail = (1 - confidence) / 2
    low = np.quantile(found, tail, method="inverted_cdf")
    high = np.quantile(found, 1 - tail, method="inverted_cdf")
    return Estimate(value, float(low), float(high), None, n, method)


def percentiles(
    value: float, found: NDArray[Any], confidence: float, n: int, method: str
) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    scaled, exponent = _scaled(found)
    error = math.ldexp(float(scaled.std(ddof=1)), exponent)
    return Estimate(value, float(low), float(high), error, n, method)
