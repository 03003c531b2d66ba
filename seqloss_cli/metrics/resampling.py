"""Statistics that draw at random: bootstraps, calibration gaps, sign flips, samples of a stream.

Each takes a seed and gives the same figures for it. Whole units are drawn (documents, clusters or
blocks of a text), never tokens: see `intervals`.

Shapes: D documents, U units, T tokens, in arrays that run parallel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.records import Floats, Ints
from seqloss_cli.metrics.intervals import (
    Estimate,
    exact_total,
    normal_quantile,
    scale_down,
    student_quantile,
    sum_clusters,
    too_few,
    unknown,
)
from seqloss_cli.metrics.series import Numbers, chunks_of, zeros

_MOST_ENTRIES = 1 << 21
"""Numbers drawn at a time: more resamples at once would take more memory and be no faster."""
_MOST_EXACT = 16
"""Up to so many differences every choice of signs is tried."""
_ROUNDING = 1e-12
_MOST_SMALL = 1 << 12
"""Arrays that a sample holds as they came."""


def bootstrap_ratio(
    y: Numbers,
    m: Numbers,
    n_resamples: int,
    seed: int,
    clusters: Numbers | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Estimate sum(y) / sum(m), shape D each, with the percentiles of resampled documents.

    y is in nats, say, and m in tokens. With `clusters` (shape D, numbers from 0) whole clusters are
    drawn. Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    total = exact_total(m)
    value = exact_total(y) / total if total else None
    sums = sum_clusters(y, clusters), sum_clusters(m, clusters)
    n, unit = len(sums[0]), "document" if clusters is None else "cluster"
    if value is None:
        return unknown(None, n, "nothing to divide by")
    if few := too_few(value, n, unit):
        return few
    # A resample of documents without a token has no ratio, and is left out.
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.divide(*_resampled_sums(sums, n_resamples, seed))
    method = f"bootstrap over {unit}s, percentiles of {n_resamples} resamples, seed {seed}"
    return percentiles(value, found[np.isfinite(found)], confidence, n, method)


def _resampled_sums(columns: Sequence[Floats], n_resamples: int, seed: int) -> Floats:
    """Return sums of C columns of n units, drawn with replacement: C x resamples."""
    n = len(columns[0])
    if n <= _MOST_ENTRIES:
        drawn_sums = [
            [each[drawn].sum(1) for each in columns] for drawn in draws(n, n, n_resamples, seed)
        ]
        return np.concatenate(drawn_sums, axis=1)
    generator = np.random.default_rng(seed)

    def part(size: int) -> Floats:
        drawn = generator.integers(0, n, size)
        return np.array([each[drawn].sum() for each in columns])

    return np.stack([_pairwise(n, part) for _ in range(n_resamples)], axis=1)


def _pairwise(n: int, part: Callable[[int], Floats]) -> Floats:
    """Return the sum of n numbers, of which `part` sums the next so many: any shape and unit."""
    if n <= _MOST_ENTRIES:
        return part(n)
    # The halves that numpy sums each by itself: the same bits as those of one array.
    half = n // 2 - n // 2 % 8
    return _pairwise(half, part) + _pairwise(n - half, part)


def default_block(n_tokens: int) -> int:
    """Return a block's length: the square root of the text's, in tokens.

    It is long enough for most of what neighbouring losses have in common, and short enough that
    there are many blocks.
    """
    return max(1, math.isqrt(n_tokens))


def block_bootstrap(
    losses: Floats, block: int, n_resamples: int, seed: int, confidence: float = 0.95
) -> Estimate:
    """Estimate the mean of one text's losses, shape T, nats, from blocks of neighbouring tokens.

    Blocks are drawn from a circle that the text makes, so that every token is in as many of them
    (Politis & Romano, A Circular Block-resampling Procedure for Stationary Data, 1992).
    """
    n, value = len(losses), math.fsum(losses.tolist()) / len(losses)
    n_blocks = n // block
    if few := too_few(value, n_blocks, "block"):
        return few
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([losses, losses[: block - 1]]))])
    block_sums = sums[block:] - sums[:-block]
    resamples = draws(n, n_blocks, n_resamples, seed)
    found = np.concatenate([block_sums[drawn].sum(1) / (n_blocks * block) for drawn in resamples])
    method = (
        f"circular block bootstrap of one text, {n_blocks} blocks of {block} tokens, percentiles "
        f"of {n_resamples} resamples, seed {seed}"
    )
    return percentiles(value, found, confidence, n_blocks, method)


def cluster_quantiles(
    values: Floats, clusters: Ints, shares: Sequence[float], n_resamples: int, seed: int
) -> dict[float, Estimate]:
    """Estimate quantiles of values that are alike within a cluster (tokens of a document).

    A quantile is the least value that so large a share does not exceed; values may be infinite.
    Whole clusters are drawn, and the 95 % intervals are those of the percentiles. Both arrays have
    shape T.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    codes = np.unique(clusters[order], return_inverse=True)[1]
    n = int(codes.max()) + 1
    # Values are sorted once: a resample only changes how often each of them counts.
    found = np.empty((n_resamples + 1, len(shares)))
    generator = np.random.default_rng(seed)
    for row in range(n_resamples + 1):  # the first is of what was seen
        drawn = np.bincount(generator.integers(0, n, n), minlength=n) if row else np.ones(n)
        reached = np.cumsum(drawn[codes])
        # A share times a count may round to just above a whole number, and skip a value.
        places = np.searchsorted(reached, np.asarray(shares) * reached[-1] * (1 - _ROUNDING))
        found[row] = ordered[np.minimum(places, len(ordered) - 1)]
    if few := too_few(None, n, "document"):
        columns = zip(shares, found[0].tolist(), strict=True)
        return {share: replace(few, value=value) for share, value in columns}
    # By ranks alone: between values of which one is infinite nothing can be interpolated.
    tail = (1 - 0.95) / 2
    lows, highs = (
        np.quantile(found[1:], q, axis=0, method="inverted_cdf") for q in (tail, 1 - tail)
    )
    method = f"bootstrap over documents, percentiles of {n_resamples} resamples, seed {seed}"
    ends = zip(shares, found[0].tolist(), lows.tolist(), highs.tolist(), strict=True)
    return {share: Estimate(v, low, high, None, n, method) for share, v, low, high in ends}


def draws(n_units: int, n_drawn: int, n_resamples: int, seed: int) -> Iterator[Ints]:
    """Yield numbers of units drawn with replacement, shape resamples x n_drawn, some at a time."""
    generator = np.random.default_rng(seed)
    step = max(1, _MOST_ENTRIES // n_drawn)
    for start in range(0, n_resamples, step):
        yield generator.integers(0, n_units, (min(step, n_resamples - start), n_drawn))


def times_drawn(classes: Sequence[int], n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each of U units is drawn, shape resamples x U, some resamples at a time.

    Units are drawn with replacement within each class, of so many; each has a seed of its own. The
    array is used again.
    """
    generators = [np.random.default_rng(seed + k) for k in range(len(classes))]
    n_units, step = sum(classes), max(1, _MOST_ENTRIES // max(classes))
    times = np.empty((step, n_units)) if n_units <= 2 * _MOST_ENTRIES else zeros(n_units)[None]
    for start in range(0, n_resamples, step):
        rows, first = min(step, n_resamples - start), 0
        for n, generator in zip(classes, generators, strict=True):
            own = times[:rows, first : first + n]
            first += n
            if n <= _MOST_ENTRIES:
                drawn = generator.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
                own[:] = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
                continue
            # One row, drawn in parts.
            own[:] = 0
            for at in range(0, n, _MOST_ENTRIES):
                drawn = generator.integers(0, n, min(n - at, _MOST_ENTRIES))
                np.add.at(own[0], drawn, 1.0)
        yield times[:rows]


def percentiles(
    value: float, found: NDArray[Any], confidence: float, n: int, method: str
) -> Estimate:
    """Return a figure with the percentiles of its resamples, an array of any shape, as interval."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    scaled, exponent = scale_down(found)
    error = math.ldexp(float(scaled.std(ddof=1)), exponent)
    return Estimate(value, float(low), float(high), error, n, method)


@dataclass(frozen=True, slots=True)
class CalibrationGaps:
    """The part of each unit (document or cluster) in each bin; arrays of one shape, in tokens."""

    units: Ints
    """Numbers of the units, from 0; every one occurs."""
    bins: Ints
    """Numbers of the bins, from 0."""
    gaps: Floats
    """Sums of the differences, such as 1 or 0 less a probability."""
    counts: Floats
    """Tokens."""


def calibration_error(parts: CalibrationGaps) -> float | None:
    """Return Σ over bins of |Σ gaps|, over Σ counts; None where nothing is counted."""
    total = math.fsum(parts.counts.tolist())
    sums = [
        math.fsum(parts.gaps[parts.bins == each].tolist())
        for each in np.unique(parts.bins).tolist()
    ]
    return math.fsum(map(abs, sums)) / total if total else None


def calibration_error_estimate(
    parts: CalibrationGaps, n_resamples: int, seed: int, unit: str, confidence: float = 0.95
) -> tuple[Estimate, float | None]:
    """Return the mean gap with its interval, and how far resamples lie above it on average.

    The figure is Σ |d_b| over bins, with d_b the gap of bin b over the count of all bins. It lies
    above the truth on average, by about as much or more: a gap that chance alone made counts as
    much as a real one, without its sign. A bootstrap of the figure itself is therefore no interval:
    resamples add chance once more, and lie above the figure as the figure lies above the truth.
    What is resampled is the vector of gaps.

    Let e be the error of that vector. The figure less the truth is Σ (|d_b| - |d_b - e_b|). It is
    at most Σ |e_b| (triangle inequality), and at least Σ s_b e_b for the signs s of the true gaps
    (convexity); for the signs that were seen, this sum has the same distribution. So the lower end
    is the figure less an upper quantile of Σ |e_b|, the upper end less a lower quantile of
    Σ s_b e_b. Neither needs to know which gaps are real. Both are stretched as Student's t is to
    the normal, for the resamples of few units are too alike.

    The interval holds the truth about as often as it says, or more often, whether the model is
    calibrated or not: of 95 % intervals 94 to 100 % did in `tests/analysis/test_calibration.py`.

    `unit` names what is resampled (document or cluster) in the method's text.
    """
    value, n = calibration_error(parts), int(parts.units.max(initial=-1)) + 1
    if value is None:
        return unknown(None, n, "nothing to divide by"), None
    if few := too_few(value, n, unit):
        return few, None
    total = parts.counts.sum()
    seen = np.bincount(parts.bins, parts.gaps)[:, None] / total
    figures, upward, signed = [], [], []
    for resampled in _resampled_gaps(parts, n, n_resamples, seed):
        errors = resampled - seen
        figures.append(np.abs(resampled).sum(0))
        upward.append(np.abs(errors).sum(0))
        signed.append((np.sign(seen) * errors).sum(0))
    tail = (1 - confidence) / 2
    stretch = math.sqrt(n / (n - 1)) * student_quantile(n - 1, 1 - tail) / normal_quantile(1 - tail)
    down = stretch * float(np.quantile(np.concatenate(upward), 1 - tail))
    up = -stretch * min(0.0, float(np.quantile(np.concatenate(signed), tail)))
    method = (
        f"bootstrap of the gaps over {unit}s, {n_resamples} resamples, seed {seed}; conservative; "
        "the figure itself is biased upward"
    )
    drawn = np.concatenate(figures)
    plain = percentiles(value, drawn, confidence, n, method)
    found = replace(plain, low=max(0.0, value - down), high=min(1.0, value + up))
    return found, float(drawn.mean()) - value


def _resampled_gaps(
    parts: CalibrationGaps, n: int, n_resamples: int, seed: int
) -> Iterator[Floats]:
    """Yield gaps over counts, shape bins x resamples, some resamples at a time."""
    from scipy.sparse import csr_array

    gaps = csr_array((parts.gaps, (parts.bins, parts.units)), shape=(int(parts.bins.max()) + 1, n))
    counts = np.bincount(parts.units, parts.counts, n)
    for times in (each.T for each in times_drawn([n], n_resamples, seed)):
        yield (gaps @ times) / (times.T * counts).sum(1)


@dataclass(frozen=True, slots=True)
class SignFlip:
    """The result of a test of paired differences against 0."""

    p: float
    """Two-sided."""
    exact: bool
    n_flips: int
    """Choices of signs that were tried, with the one that was seen."""


def sign_flip_test(differences: Floats, n_flips: int = 9_999, seed: int = 0) -> SignFlip:
    """Test whether paired differences, shape D, lean to one side by more than chance.

    p is the share of all choices of signs whose sum is as far from 0 as the one that was seen
    (Fisher, The Design of Experiments, 1935, section 21). With many differences signs are drawn at
    random, and the seen choice counts among them, so that p is never 0 (Phipson & Smyth,
    Permutation P-values Should Never Be Zero, 2010).
    """
    n, seen = len(differences), abs(float(differences.sum()))
    # Sums of the same numbers in another order differ in the last bits, and count as equal.
    edge = seen - _ROUNDING * sum(float(np.abs(each).sum()) for each in chunks_of(differences))
    if n <= _MOST_EXACT:
        numbers = np.arange(1 << n)[:, None] >> np.arange(n)
        sums = (1 - 2 * (numbers & 1)) @ differences
        return SignFlip(float((np.abs(sums) >= edge).mean()), True, 1 << n)
    generator, as_far = np.random.default_rng(seed), 1
    step = max(1, _MOST_ENTRIES // n)
    for start in range(0, n_flips, step):
        rows = min(step, n_flips - start)
        sums = np.zeros(rows)
        # More differences than entries: one row, in parts.
        for own in (differences[at : at + _MOST_ENTRIES] for at in range(0, n, _MOST_ENTRIES)):
            flips = generator.integers(0, 2, (rows, len(own)), dtype=np.int8)
            sums = sums + (1 - 2 * flips) @ own
        as_far += int((np.abs(sums) >= edge).sum())
    return SignFlip(as_far / (n_flips + 1), False, n_flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number: the smallest times k, the next times k - 1, …, at most 1.

    The chance of any false one stays what it was for one (Holm, A Simple Sequentially Rejective
    Multiple Test Procedure, 1979). Adjusted values never fall.
    """
    order, adjusted, highest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, highest)
    return adjusted


class Reservoir:
    """A uniform sample without replacement from a stream, of bounded size.

    It holds every value as long as there are at most `size`; then those with the smallest of random
    keys (Li, Reservoir-sampling Algorithms, 1994, names the family).
    """

    def __init__(self, size: int = 1_000_000, seed: int = 0) -> None:
        self._size, self._generator = size, np.random.default_rng(seed)
        self._values: list[Floats] = []
        self._keys: list[Floats] = []
        self._n_held = self._n_small = self.n_seen = 0

    def add(self, values: Floats) -> None:
        """Add values of any shape and unit; each row of the first dimension is one."""
        if not len(values):
            return
        self._values.append(values)
        self._keys.append(self._generator.random(len(values)))
        self.n_seen += len(values)
        self._n_held += len(values)
        self._n_small += 1
        # Arrays of a few values take ten times the memory of the values.
        if self._n_small > _MOST_SMALL:
            for own in (self._values, self._keys):
                own[-self._n_small :] = [np.concatenate(own[-self._n_small :])]
            self._n_small = 0
        # Not at every value: to select anew costs as much as all that is held.
        if self._n_held > 2 * self._size:
            self._shrink()

    def values(self) -> Floats:
        """Return the sample in the shape and unit of what was added, at most `size` rows."""
        if self._n_held > self._size:
            self._shrink()
        return np.concatenate(self._values) if self._values else np.empty(0)

    def _shrink(self) -> None:
        values, self._values = np.concatenate(self._values), []
        keys, self._keys = np.concatenate(self._keys), []
        kept = np.argpartition(keys, self._size)[: self._size]
        self._values, self._keys = [values[kept]], [keys[kept]]
        self._n_held, self._n_small = len(kept), 0
