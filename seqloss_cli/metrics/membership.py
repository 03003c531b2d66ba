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

Shapes: n tokens of a text, D documents, R resamples, T thresholds. Losses and
log-probabilities are in nats.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from seqloss_cli.core.records import Bools, Floats, Ints
from seqloss_cli.metrics.intervals import LEAST_UNITS, Estimate, too_few, unknown
from seqloss_cli.metrics.resampling import draws, percentiles, times_drawn

SCORES = ("mean_loss", "min_k", "min_k_plus_plus", "zlib_ratio", "lower_ratio")
LOWER_IS_MEMBER = ("mean_loss", "zlib_ratio")
"""Scores that are low for members; they are turned where members are told from others."""
FALSE_POSITIVE_RATES = (0.01, 0.001)
_ZLIB_LEVEL = 6
_ROUNDING = 1e-12


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
    """Counts of D documents at each threshold that their scores make, the highest score first."""

    def __init__(self, scores: Floats, is_member: Bools) -> None:
        """Both of shape D; a higher score, in any unit, is that of a member."""
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        # Equal scores are on one side of every threshold.
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._members = is_member[self._order].astype(np.float64)

    def counts(self, weights_RD: Floats) -> tuple[Floats, Floats]:
        """Return members and others from the highest score to each threshold, R x T.

        `weights_RD`, of shape R x D, says how often each document counts. No unit.
        """
        ordered = weights_RD[:, self._order]
        of_members = ordered * self._members
        both = of_members, ordered - of_members
        members, others = (np.add.reduceat(each, self._starts, axis=1) for each in both)
        return members.cumsum(axis=1), others.cumsum(axis=1)


def areas(members: Floats, others: Floats) -> Floats:
    """Return the area under each of R curves, shape R, of counts of shape R x T; no unit.

    It is NaN where a class has no document.
    """
    new_members = np.diff(members, axis=1, prepend=0.0)
    # Of a member, others below its threshold count whole, those at it half.
    beaten = others[:, -1:] - others + np.diff(others, axis=1, prepend=0.0) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((new_members * beaten).sum(1) / (members[:, -1] * others[:, -1]))


def rates_at(members: Floats, others: Floats, false_positive_rate: float) -> Floats:
    """Return the true positive rate of each of R curves, shape R, of counts of shape R x T.

    Rates have no unit. One is NaN where a class has no document.
    """
    most = false_positive_rate * others[:, -1:] * (1 + _ROUNDING)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(others <= most, members, 0.0).max(axis=1) / members[:, -1]
        return np.asarray(found)


def roc_curve(scores: Floats, is_member: Bools) -> tuple[Floats, Floats]:
    """Return false and true positive rates at each threshold, from 0 to 1; both classes are there.

    The arrays that are given have shape D; a higher score, in any unit, is that of a member.
    """
    members, others = RocSums(scores, is_member).counts(np.ones((1, len(scores))))
    return np.r_[0.0, others[0] / others[0, -1]], np.r_[0.0, members[0] / members[0, -1]]


def separation(
    scores: Floats,
    is_member: Bools,
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
    n_members, n_others = int(is_member.sum()), int((~is_member).sum())
    if not n_members or not n_others:
        missing = "members" if not n_members else "non-members"
        none = unknown(None, len(scores), f"there are no {missing}")
        return Separation(none, dict.fromkeys(FALSE_POSITIVE_RATES, none), n_members, n_others)
    sums = RocSums(scores, is_member)
    seen = sums.counts(np.ones((1, len(scores))))
    n, unit = (
        (len(scores), "document") if clusters is None else (int(clusters.max()) + 1, "cluster")
    )
    least = min(n_members, n_others) if clusters is None else n
    drawn = None if least < LEAST_UNITS else _drawn(sums, is_member, clusters, n_resamples, seed)
    within = "documents, within members and non-members" if clusters is None else "clusters"
    method = f"bootstrap over {within}, percentiles of {n_resamples} resamples, seed {seed}"

    def estimate(value: float, rate: float | None) -> Estimate:
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
        rates[x] = unknown(None, n, why) if few else estimate(float(rates_at(*seen, x)[0]), x)
    return Separation(estimate(float(areas(*seen)[0]), None), rates, n_members, n_others)


def _drawn(
    sums: RocSums, is_member: Bools, clusters: Ints | None, n_resamples: int, seed: int
) -> dict[float | None, Floats]:
    """Return true positive rates of R resamples by false positive rate, and areas by None."""
    found: dict[float | None, list[Floats]] = {x: [] for x in (None, *FALSE_POSITIVE_RATES)}
    for weights in _weights(is_member, clusters, n_resamples, seed):
        counts = sums.counts(weights)
        for x, parts in found.items():
            parts.append(areas(*counts) if x is None else rates_at(*counts, x))
    return {x: np.concatenate(parts) for x, parts in found.items()}


def _weights(
    is_member: Bools, clusters: Ints | None, n_resamples: int, seed: int
) -> Iterator[Floats]:
    """Yield how often each of D documents is drawn, R x D, some resamples at a time."""
    if clusters is not None:
        n = int(clusters.max()) + 1
        for drawn in draws(n, n, n_resamples, seed):
            yield times_drawn(drawn, n)[:, clusters]
        return
    classes = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    # Another seed for each class; as many at a time as the larger one allows, or they would
    # not come in pieces of one length.
    most = max(map(len, classes))
    both = (draws(len(own), len(own), n_resamples, seed + k, most) for k, own in enumerate(classes))
    for of_members, of_others in zip(*both, strict=True):
        weights = np.empty((len(of_members), len(is_member)))
        weights[:, classes[0]] = times_drawn(of_members, len(classes[0]))
        weights[:, classes[1]] = times_drawn(of_others, len(classes[1]))
        yield weights
