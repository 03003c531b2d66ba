"""Estimates with intervals in closed form: how sure a figure is. `resampling` has the drawn ones.

The unit that is drawn at random is a document (or a cluster of them, or a block of one long text),
never a token: tokens of a text are not independent.

A mean loss is a ratio: nats over tokens, both sums over documents of unequal length. Its standard
error is the linearised one (Cochran, Sampling Techniques, 1977, section 6.4): of the residuals
e_i = y_i - R m_i of n documents, se^2 = n / (n - 1) * sum e_i^2 / (sum m_i)^2, with Student's t on
n - 1 degrees of freedom. Where documents come in clusters, e is summed over each cluster first.

A loss, an entropy or a divergence is never below zero, and neither is an end of its interval: it is
taken on the logarithm's scale, R exp(+-t se / R). Differences have R +- t se, and means of
probabilities an interval on the scale of log odds.

Shapes: D documents, in arrays that run parallel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.records import Floats, Ints
from seqloss_cli.metrics.series import Derived, Numbers, as_array, chunks_of, zeros
from seqloss_cli.metrics.totals import exp_or_none

FEW_UNITS = 30
"""Intervals from fewer units tend to be too narrow, and a note says so."""
LEAST_UNITS = 5
"""From fewer documents or clusters there is no interval: nothing shows how much they vary."""

LOG_SCALE = "on the logarithm's scale"
"""Part of the method of an interval that has no end below zero."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval; None where there is none."""

    value: float | None
    """The figure; None where it is not known."""
    low: float | None = None
    """Low end of its interval; None where there is none."""
    high: float | None = None
    """High end; None where there is none."""
    standard_error: float | None = None
    """In the figure's unit; None where there is none."""
    n: int = 0
    """Units that were drawn: documents, clusters or blocks."""
    method: str = ""
    """Words on how the interval was made."""

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, in the figure's unit."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def transform(self, increasing: Callable[[float], float | None]) -> Estimate:
        """Apply an increasing function to the figure and its ends; a standard error is dropped."""
        value, low, high = (
            None if v is None else increasing(v) for v in (self.value, self.low, self.high)
        )
        return replace(self, value=value, low=low, high=high, standard_error=None)

    def exp(self) -> Estimate:
        """Return e to the figure, such as the perplexity of a mean loss."""
        return self.transform(exp_or_none)

    def times(self, factor: float) -> Estimate:
        """Return the figure in another unit, such as bits for nats."""
        error = None if self.standard_error is None else self.standard_error * factor
        return replace(self.transform(lambda value: value * factor), standard_error=error)


def interval_notes(estimate: Estimate, n_documents: int) -> list[str]:
    """Return what to bear in mind about an interval, a sentence each."""
    if estimate.low is None:
        return []
    if n_documents == 1:
        return ["one document: the interval is of this text, not of others like it"]
    if estimate.n < FEW_UNITS:
        unit = "documents" if estimate.n == n_documents else "clusters"
        return [f"few {unit} ({estimate.n}): the interval may be too narrow"]
    return []


def unknown(value: float | None, n: int, why: str) -> Estimate:
    """Return a figure without an interval."""
    return Estimate(value, n=n, method=why)


def too_few(value: float | None, n: int, unit: str) -> Estimate | None:
    """Return the figure without an interval where there are fewer than `LEAST_UNITS` units."""
    if n >= LEAST_UNITS:
        return None
    return unknown(value, n, f"no interval: fewer than {LEAST_UNITS} {unit}s ({n})")


def ratio_estimate(
    y: Numbers,
    m: Numbers,
    clusters: Numbers | None = None,
    confidence: float = 0.95,
    signed: bool = False,
) -> Estimate:
    """Estimate sum(y) / sum(m) over documents, with the linearised standard error.

    All are of shape D: y in nats, say, m in tokens; `clusters` numbers the documents' clusters
    from 0. `signed` values, such as differences, may be below zero, and so may their interval.
    """
    total = exact_total(m)
    if total == 0:
        return unknown(None, len(y), "nothing to divide by")
    value = exact_total(y) / total
    # Summed over clusters first: documents of one cluster err in the same direction.
    residuals = sum_clusters(Derived(lambda own, each: own - value * each, y, m), clusters)
    n, unit = len(residuals), "document" if clusters is None else "cluster"
    if few := too_few(value, n, unit):
        return few
    # Squares of losses near 1e300 would overflow.
    exponent = math.frexp(max(map(_greatest, chunks_of(residuals))))[1]
    scaled = as_array(Derived(lambda each: np.ldexp(each, -exponent), residuals))
    root = math.sqrt(n / (n - 1) * float(scaled @ scaled))
    error = math.ldexp(root, exponent) / abs(total)
    reach = student_quantile(n - 1, 0.5 + confidence / 2) * error
    method = f"linearised ratio over {unit}s, t on {n - 1} degrees of freedom"
    # What is never negative may round to just below zero, and has no logarithm then.
    if signed or value <= 0:
        return Estimate(value, value - reach, value + reach, error, n, method)
    low, high = (value * math.exp(each / value) for each in (-reach, reach))
    return Estimate(value, low, high, error, n, f"{method}, {LOG_SCALE}")


def quantile_estimate(values: Floats, share: float, confidence: float = 0.95) -> Estimate:
    """Estimate a quantile of independent values, shape D, in their unit, by order statistics.

    Source: Conover, Practical Nonparametric Statistics, 1999, section 3.2: by ranks alone, whatever
    the distribution.
    """
    from scipy.special import bdtr

    ordered, n = np.sort(values), len(values)
    value = float(np.quantile(ordered, share))
    below = bdtr(np.arange(n + 1), n, share)  # P(at most so many values lie under the quantile)
    tail = (1 - confidence) / 2
    # Both ends are values: their ranks leave the quantile out with the tail's probability at most.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    if low < 1 or high > n:
        return unknown(value, n, "no interval: too few documents for this quantile")
    method = "order statistics of documents"
    return Estimate(value, float(ordered[low - 1]), float(ordered[high - 1]), None, n, method)


def proportion_estimate(n_right: int, n: int, confidence: float = 0.95) -> Estimate:
    """Estimate a share of n independent units with Wilson's score interval; sample standard error.

    It stays within 0 and 1, and has a width at either end, too (Wilson, Probable Inference, 1927).
    """
    if not n:
        return unknown(None, 0, "nothing to divide by")
    p = n_right / n
    low, high = _wilson(p, n, normal_quantile(0.5 + confidence / 2))
    error = math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None
    return Estimate(p, low, high, error, n, "Wilson's score interval over rows")


def share_estimate(
    y: Numbers, m: Numbers, clusters: Numbers | None = None, confidence: float = 0.95
) -> Estimate:
    """Estimate sum(y) / sum(m) where y counts some of m, shape D, with an interval within 0 and 1.

    It is Wilson's, for as many independent units as would have the linearised standard error (Korn
    & Graubard, Confidence Intervals for Proportions with Small Expected Number of Positive Counts,
    1998): no more than there are, and as many as documents where the share is 0 or 1.
    """
    plain = ratio_estimate(y, m, clusters, confidence, signed=True)
    if plain.value is None or plain.standard_error is None:
        return plain
    p, most = plain.value, exact_total(m)
    # At a share of 0 or 1 the standard error is 0, and tells nothing.
    n_effective = float(plain.n)
    if 0 < p < 1:
        n_effective = min(most, p * (1 - p) / max(plain.standard_error**2, p * (1 - p) / most))
    low, high = _wilson(p, n_effective, student_quantile(plain.n - 1, 0.5 + confidence / 2))
    method = f"Wilson's score interval, {n_effective:.1f} effective units, {plain.method}"
    return replace(plain, low=low, high=high, method=method)


def probability_estimate(probabilities: Floats, confidence: float = 0.95) -> Estimate:
    """Estimate the mean of independent probabilities, shape D, with an interval within 0 and 1.

    It is that of the mean on the scale of log odds, whose slope is 1 / (p (1 - p)).
    """
    ones = np.ones_like(probabilities)
    plain = ratio_estimate(probabilities, ones, confidence=confidence, signed=True)
    return within_one(plain, confidence)


def within_one(plain: Estimate, confidence: float = 0.95) -> Estimate:
    """Return an estimate of a mean between 0 and 1 with its interval on the scale of log odds."""
    p, error = plain.value, plain.standard_error
    if p is None or error is None or not 0 < p < 1:
        return plain
    reach = student_quantile(plain.n - 1, 0.5 + confidence / 2) * error / (p * (1 - p))
    odds = [p / (1 - p) * math.exp(each) for each in (-reach, reach)]
    low, high = (each / (1 + each) for each in odds)
    return replace(plain, low=low, high=high, method=f"{plain.method}, on the scale of log odds")


def student_quantile(degrees: int, share: float) -> float:
    """Return the quantile of Student's t on so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, share))


def normal_quantile(share: float) -> float:
    """Return the quantile of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(share))


def sum_clusters(values: Numbers, clusters: Numbers | None) -> Floats:
    """Sum values of documents, shape D, any unit, over each cluster; unchanged without clusters."""
    values = as_array(values)
    if clusters is None:
        return values
    sums = zeros(1 + int(max((each.max() for each in chunks_of(clusters)), default=-1)))
    for numbers, own in zip(chunks_of(clusters), chunks_of(values), strict=True):
        np.add.at(sums, numbers.astype(np.int64), own)
    return sums


def numbered_anew(clusters: Numbers) -> Ints:
    """Return numbers of clusters of n documents, shape n, without a unit, from 0 without a gap."""
    numbers = as_array(clusters)
    found = zeros(len(numbers), np.int64)
    new = zeros(1 + int(max((each.max() for each in chunks_of(numbers)), default=-1)), np.int64)
    for each in chunks_of(numbers):
        new[each.astype(np.int64)] = 1
    n = 0
    for each in chunks_of(new):
        each[:] = n - 1 + np.cumsum(each)
        n = int(each[-1]) + 1
    for own, each in zip(chunks_of(found), chunks_of(numbers), strict=True):
        own[:] = new[each.astype(np.int64)]
    return found


def scale_down(values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return values over a power of two, in their shape, and its exponent.

    Their squares stay within a float64, and figures made of them keep the bits that they would have
    had without: a power of two changes no digit.
    """
    exponent = math.frexp(_greatest(values))[1]
    return np.ldexp(values, -exponent), exponent


def _greatest(values: NDArray[Any]) -> float:
    """Return the greatest magnitude of values, of any shape and unit; 0 of none."""
    return float(np.abs(values).max(initial=0.0))


def exact_total(numbers: Numbers) -> float:
    """Return the sum of numbers, shape D, in their unit, rounded once."""
    return math.fsum(chain.from_iterable(each.tolist() for each in chunks_of(numbers)))


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * math.sqrt((p * (1 - p) + z**2 / (4 * n)) / n) / (1 + z**2 / n)
    # p lies between them, and at p = 0 or 1 is one of them: rounding must not part them.
    return max(0.0, min(p, centre - reach)), min(1.0, max(p, centre + reach))
