"""Score how familiar a text is to a model, and how well such scores tell members from others.

A member is a text of the model's training data. All scores are made of figures that a results file
holds. With the least likely k % of a text's n tokens, max(1, ⌊k n / 100⌋ of them:

- `min_k`, the mean of their ln p(x_t) (Shi et al., Detecting Pretraining Data from Large Language
  Models, 2024);
- `min_k_plus_plus`, the mean of the least z_t = (ln p(x_t) + H_t) / √V_t, where H_t and V_t are the
  entropy and varentropy of the model's distribution: its mean and variance of ln p are -H_t and V_t
  (Zhang et al., Min-K%++, 2024);
- `zlib_ratio`, the mean loss over the bytes that zlib makes of the text, and `lower_ratio`, the
  mean loss of the text in lower case over that of the text (Carlini et al., Extracting Training
  Data from Large Language Models, 2021).

Shapes: n tokens of a text, D documents, U units that are drawn, R resamples, t thresholds. Losses
and log-probabilities are in nats.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from seqloss_cli.core.records import Floats, Ints
from seqloss_cli.metrics.intervals import LEAST_UNITS, Estimate, exact_total, too_few, unknown
from seqloss_cli.metrics.resampling import percentiles, times_drawn
from seqloss_cli.metrics.series import Numbers, as_array, chunks_of, zeros

SCORES = ("mean_loss", "min_k", "min_k_plus_plus", "zlib_ratio", "lower_ratio")
LOWER_IS_MEMBER = ("mean_loss", "zlib_ratio")
"""Scores that are low for members; they are turned where members are told from others."""
FALSE_POSITIVE_RATES = (0.01, 0.001)
_ZLIB_LEVEL = 6
_ROUNDING = 1e-12
_MOST_ENTRIES = 1 << 18
"""Counts that are looked at together."""


def least_mean(values: Floats, percent: float) -> float:
    """Return the mean of the least `percent` of n values, shape n, at least one; in their unit."""
    # As the percentage is written: the float of 4.6, times 1500, is below 6900.
    k = max(1, math.floor(Fraction(repr(float(percent))) * len(values) / 100))
    return math.fsum(np.partition(values, k - 1)[:k].tolist()) / k


def standardised(losses: Floats, entropies: Floats, varentropies: Floats) -> Floats | None:
    """Return z_t of n tokens, shape n, no unit; None where a variance is 0.

    The arrays, of shape n each, are in nats, and nats² for the varentropies.
    """
    if not (varentropies > 0).all():
        return None
    return np.asarray((entropies - losses) / np.sqrt(varentropies))


def compressed_bytes(text: str) -> int:
    """Return how many bytes zlib makes of the text in UTF-8."""
    return len(zlib.compress(text.encode(), _ZLIB_LEVEL))


def turned(name: str, values: Floats) -> Floats:
    """Return scores, shape D, any unit, of which the higher are those of members."""
    return -values if name in LOWER_IS_MEMBER else values


@dataclass(frozen=True, slots=True)
class Separation:
    """Success of a score at telling members from others."""

    auroc: Estimate
    """Probability that a member's score is above a non-member's, ties counting half."""
    true_positive_rates: dict[float, Estimate]
    """False positive rate to the largest share of members found at a threshold with at most it."""
    n_members: int
    n_non_members: int


class RocSums:
    """Documents by falling scores, of which members and others are counted at each threshold."""

    def __init__(self, scores: Numbers, is_member: Numbers, units: Numbers) -> None:
        """All of shape D; a higher score, in any unit, is that of a member. `units` numbers what is
        drawn, from 0: documents, or clusters of them."""
        scores, is_member, units = map(as_array, (scores, is_member, units))
        n_units = 1 + int(units.max())
        self._members, self._others = zeros(n_units), zeros(n_units)
        # Sorted where they lie: a score is the real part, unit and class are the other one.
        self._sorted = zeros(len(scores), np.complex128)
        columns = map(chunks_of, (self._sorted, scores, is_member, units))
        for place, own, member, unit in zip(*columns, strict=True):
            place.real, place.imag = -own, 2 * unit + member
            for counts, each in ((self._members, member), (self._others, 1.0 - member)):
                np.add.at(counts, unit.astype(np.int64), each)
        self._sorted.sort()

    def parts(self, weights_RU: Floats) -> Iterator[list[Floats]]:
        """Yield members and others at thresholds, both R x t, from the highest score on, some at a
        time.

        `weights_RU`, of shape R x U, says how often each unit counts. No unit.
        """
        held, score, step = None, None, max(1, _MOST_ENTRIES // len(weights_RU))
        for start in range(0, len(self._sorted), step):
            some = self._sorted[start : start + step]
            codes = some.imag.astype(np.int64)
            # Equal scores are on one side of every threshold.
            starts = np.flatnonzero(np.r_[True, some.real[1:] != some.real[:-1]])
            both = weights_RU[:, codes >> 1]
            members = both * (codes & 1)
            new = [np.add.reduceat(each, starts, axis=1) for each in (members, both - members)]
            if held is not None and some.real[0] == score:
                for each, before in zip(new, held, strict=True):
                    each[:, :1] += before
            elif held is not None:
                yield held
            held, score = [each[:, -1:] for each in new], some.real[-1]
            yield [each[:, :-1] for each in new]
        if held is not None:
            yield held

    def figures(self, weights_RU: Floats) -> dict[float | None, Floats]:
        """Return true positive rates by false positive rate, and areas under the curve by None.

        Of weights of R x U, all have shape R, and no unit. A figure is NaN where a class has no
        document. Sums are of whole numbers, and exact: parts may be of any size.
        """
        n_members, n_others = weights_RU @ self._members, weights_RU @ self._others
        most = {x: (x * n_others * (1 + _ROUNDING))[:, None] for x in FALSE_POSITIVE_RATES}
        rows = len(weights_RU)
        members, others, area = np.zeros((rows, 1)), np.zeros((rows, 1)), np.zeros(rows)
        found = {x: np.zeros(rows) for x in FALSE_POSITIVE_RATES}
        for new_members, new_others in self.parts(weights_RU):
            if not new_members.size:
                continue
            all_members = members + new_members.cumsum(axis=1)
            all_others = others + new_others.cumsum(axis=1)
            # Of a member, others below its threshold count whole, those at it half.
            beaten = n_others[:, None] - all_others + new_others / 2
            area += (new_members * beaten).sum(1)
            for x, best in found.items():
                np.maximum(best, np.where(all_others <= most[x], all_members, 0.0).max(1), out=best)
            members, others = all_members[:, -1:], all_others[:, -1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            area = area / (n_members * n_others)
            return {None: area} | {x: best / n_members for x, best in found.items()}


def roc_curve(scores: Numbers, is_member: Numbers) -> tuple[Floats, Floats]:
    """Return false and true positive rates at each threshold, from 0 to 1; both classes are there.

    The arrays that are given have shape D; a higher score, in any unit, is that of a member.
    """
    n = len(scores)
    parts = RocSums(scores, is_member, np.arange(n)).parts(np.ones((1, n)))
    members, others = (np.concatenate(each, axis=1)[0] for each in zip(*parts, strict=True))
    rates = (np.r_[0.0, each.cumsum() / each.sum()] for each in (others, members))
    return next(rates), next(rates)


def separation(
    scores: Numbers,
    is_member: Numbers,
    n_resamples: int,
    seed: int,
    clusters: Ints | None = None,
    confidence: float = 0.95,
) -> Separation:
    """Tell how well scores, shape D, any unit, higher for members, separate the two classes.

    Intervals are those of a bootstrap: documents are drawn within each class; with `clusters`
    (shape D, numbers from 0) whole clusters. A rate at a false positive rate of 1 in N is unknown
    with fewer than N non-members.
    """
    n_members = int(exact_total(is_member))
    n_others = len(scores) - n_members
    if not n_members or not n_others:
        missing = "members" if not n_members else "non-members"
        none = unknown(None, len(scores), f"there are no {missing}")
        return Separation(none, dict.fromkeys(FALSE_POSITIVE_RATES, none), n_members, n_others)
    units, unit = clusters, "cluster"
    if units is None:
        units, unit = _numbered_by_class(as_array(is_member), n_members), "document"
    sums, n = RocSums(scores, is_member, units), int(units.max()) + 1
    weights = zeros(n)[None]
    for each in chunks_of(weights[0]):
        each += 1
    seen = {x: float(each[0]) for x, each in sums.figures(weights).items()}
    least = min(n_members, n_others) if clusters is None else n
    classes = [n_members, n_others] if clusters is None else [n]
    drawn = None if least < LEAST_UNITS else _drawn(sums, classes, n_resamples, seed)
    within = "documents, within members and non-members" if clusters is None else "clusters"
    method = f"bootstrap over {within}, percentiles of {n_resamples} resamples, seed {seed}"

    def estimate(rate: float | None) -> Estimate:
        value = seen[rate]
        if drawn is None:
            few = too_few(value, least, unit)
            assert few is not None
            return few
        found = drawn[rate]
        found = found[np.isfinite(found)]
        # Where the classes are wholly apart they are in each resample, too.
        if found.min() == found.max():
            return unknown(value, n, "no interval: all resamples have the same figure")
        return percentiles(value, found, confidence, n, method)

    rates = {}
    for x in FALSE_POSITIVE_RATES:
        needed = round(1 / x)
        why = f"fewer than {needed:,} non-members ({n_others:,})"
        few = n_others < needed
        rates[x] = unknown(None, n, why) if few else estimate(x)
    return Separation(estimate(None), rates, n_members, n_others)


def _numbered_by_class(is_member: Numbers, n_members: int) -> Ints:
    """Return numbers of D documents, shape D, no unit, in their order: members first."""
    numbers = zeros(len(is_member), np.int64)
    next_member, next_other = 0, n_members
    for own, member in zip(chunks_of(numbers), chunks_of(is_member), strict=True):
        members = np.cumsum(member).astype(np.int64)
        others = np.arange(1, len(own) + 1) - members
        own[:] = np.where(member, next_member + members, next_other + others) - 1
        next_member, next_other = next_member + int(members[-1]), next_other + int(others[-1])
    return numbers


def _drawn(
    sums: RocSums, classes: list[int], n_resamples: int, seed: int
) -> dict[float | None, Floats]:
    """Return figures of R resamples, shape R: units are drawn within each class, of so many."""
    found: dict[float | None, list[Floats]] = {x: [] for x in (None, *FALSE_POSITIVE_RATES)}
    for weights in times_drawn(classes, n_resamples, seed):
        for x, each in sums.figures(weights).items():
            found[x].append(each)
    return {x: np.concatenate(each) for x, each in found.items()}
