"""What divergences come to over sequences: exact sums, and estimates with intervals.

Units: nats. Sums are over the tokens that are scored and count; a mean is per such token, its
interval over documents (`statistics.ratio_estimate`).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from seqloss_cli.core.records import Floats, Outcome, Rejected, Sample, SequenceScore
from seqloss_cli.metrics.divergence import Divergences
from seqloss_cli.metrics.statistics import (
    Estimate,
    Reservoir,
    cluster_quantiles,
    ratio_estimate,
    share_estimate,
)
from seqloss_cli.metrics.totals import add_records, from_units, score_flags, to_units

SUMS = ("cross_entropy", "teacher_entropy", "kl", "student_loss", "teacher_loss")
"""Sums over the scored tokens, nats."""
FURTHER = ("cross_entropy_at_most", "kl_at_most", "student_cut", "teacher_cut")
"""Sums that not every comparison has."""
_IN_ORDER = (*SUMS, *FURTHER, "delta_p", "squared_delta_p")
WHO = ("student", "teacher")
QUANTILES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
OF_TOKENS = ("delta_p", "kl")
"""Figures whose quantiles over tokens are known."""
_DRAWN, _RESAMPLES = 100_000, 200


@dataclass(frozen=True, slots=True)
class DivergenceScore:
    """A sequence with its divergences."""

    score: SequenceScore
    divergences: Divergences

    @property
    def sample(self) -> Sample:
        return self.score.sequence.sample

    def values(self, name: str) -> Floats:
        """Per scored token, by the name of a sum."""
        found = self.divergences
        columns = {
            "cross_entropy": found.cross_entropies,
            "teacher_entropy": found.gold_entropies,
            "kl": found.kls,
            "student_loss": found.student_losses,
            "teacher_loss": found.gold_losses,
            "kl_at_most": found.kls_at_most,
            "cross_entropy_at_most": found.cross_entropies_at_most,
            "student_cut": found.student_cut,
            "teacher_cut": found.gold_cut,
        }
        column = columns[name]
        assert column is not None
        return column[self.score.counted]

    def delta_p(self) -> Floats:
        return self.divergences.delta_p[self.score.counted]

    def of_tokens(self) -> dict[str, Floats]:
        """Per scored token, by the names of `OF_TOKENS`."""
        return {name: _values(self, name) for name in OF_TOKENS}


@dataclass(frozen=True, slots=True)
class DivergenceTotals:
    """Sums over one sequence or many; `+` joins two sets of sequences."""

    n_sequences: int = 0
    n_sequences_scored: int = 0
    n_tokens: int = 0
    n_scored: int = 0
    units: Mapping[str, int] = field(default_factory=dict)
    """Name of a sum to its exact value in units of 2^-1074."""
    n_infinite: Mapping[str, int] = field(default_factory=dict)
    """Name of a sum to its infinite terms; with any it is no number."""
    n_same_top1: int = 0
    flags: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: DivergenceTotals) -> DivergenceTotals:
        return add_records(self, other)

    def total(self, name: str) -> float | None:
        """A sum; None where nothing is scored or a term is infinite."""
        if not self.n_scored or self.n_infinite.get(name):
            return None
        return from_units(self.units.get(name, 0))

    def mean(self, name: str) -> float | None:
        total = self.total(name)
        return None if total is None else total / self.n_scored

    @property
    def same_top1(self) -> float | None:
        """Share of the scored tokens at which both have the same favourite."""
        return self.n_same_top1 / self.n_scored if self.n_scored else None


def names_of(diverged: DivergenceScore) -> tuple[str, ...]:
    """The sums that there are."""
    found = diverged.divergences
    further = (
        ("cross_entropy_at_most", found.kls_at_most),
        ("kl_at_most", found.kls_at_most),
        ("student_cut", found.student_cut),
        ("teacher_cut", found.gold_cut),
    )
    return (*SUMS, *(name for name, values in further if values is not None))


def divergence_totals(diverged: DivergenceScore) -> DivergenceTotals:
    """The sums of one sequence."""
    score, units, infinite = diverged.score, {}, {}
    for name in (*names_of(diverged), "delta_p", "squared_delta_p"):
        values = _values(diverged, name)
        if n := int(np.isinf(values).sum()):
            infinite[name] = n
        else:
            units[name] = to_units(math.fsum(values.tolist()))
    counted = score.counted
    flags = {name: int(count) for name, count in score_flags(score).items()}
    for name in ("kl", "kl_at_most", "teacher_loss"):
        if name in infinite:
            flags[f"inf_{name}"] = infinite[name]
    return DivergenceTotals(
        n_sequences=1,
        n_sequences_scored=int(counted.any()),
        n_tokens=len(counted),
        n_scored=int(counted.sum()),
        units=units,
        n_infinite=infinite,
        n_same_top1=int(diverged.divergences.same_top1[counted].sum()),
        flags=flags,
    )


def _values(diverged: DivergenceScore, name: str) -> Floats:
    if name in ("delta_p", "squared_delta_p"):
        found = diverged.delta_p()
        return found if name == "delta_p" else found**2
    return diverged.values(name)


class Documents:
    """What estimates over documents need: sums of each, and a sample of tokens."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._counts, self._same = array("d"), array("d")
        self._sums: dict[str, array[float]] = {}
        self._tokens = {name: Reservoir(_DRAWN, seed) for name in OF_TOKENS}
        self._has_tokens = True

    def add(self, totals: DivergenceTotals, tokens: Mapping[str, Floats] | None) -> None:
        """Of one document; `tokens` are the values of its scored tokens, by the names of
        `OF_TOKENS`. Where one document's are not known, there are no quantiles."""
        if not totals.n_scored:
            return
        self._has_tokens &= tokens is not None
        document = float(len(self._counts))
        self._counts.append(totals.n_scored)
        self._same.append(totals.n_same_top1)
        present = {*totals.units, *totals.n_infinite}
        # A set of strings goes by their hashes, which differ from run to run: the order of the
        # estimates in JSON would, too.
        for name in (name for name in _IN_ORDER if name in present):
            total = totals.total(name)
            self._sums.setdefault(name, array("d")).append(math.nan if total is None else total)
        for name, values in (tokens or {}).items():
            self._tokens[name].add(np.column_stack([values, np.full(len(values), document)]))

    def means(self) -> dict[str, Estimate]:
        """Of each sum per token, and of what is made of two of them."""
        found = {name: self._mean(np.asarray(sums)) for name, sums in self._sums.items()}
        squares = found.pop("squared_delta_p", None)
        if squares is not None:
            found["rms_delta_p"] = _root(squares)
        if self._sums:
            student, teacher = (np.asarray(self._sums[f"{who}_loss"]) for who in WHO)
            found["loss_difference"] = self._mean(student - teacher)
            found["same_top1"] = share_estimate(np.asarray(self._same), np.asarray(self._counts))
        return found

    def _mean(self, sums: Floats) -> Estimate:
        if np.isnan(sums).any():
            return Estimate(None, n=len(sums), method="no interval: a term is infinite")
        return ratio_estimate(sums, np.asarray(self._counts))

    def quantiles(self, name: str) -> dict[float, Estimate]:
        """Of tokens; intervals from resampled documents."""
        drawn = self._tokens[name].values()
        if not len(drawn) or not self._has_tokens:
            return {}
        return cluster_quantiles(
            drawn[:, 0], drawn[:, 1].astype(np.int64), QUANTILES, _RESAMPLES, self._seed
        )


def _root(estimate: Estimate) -> Estimate:
    """Of a mean of squares; its ends go along (the lower one is 0 at the least)."""
    ends = [None if v is None else math.sqrt(max(v, 0.0)) for v in
            (estimate.value, estimate.low, estimate.high)]  # fmt: skip
    return Estimate(ends[0], ends[1], ends[2], None, estimate.n, estimate.method)


def diverged(
    outcomes: Iterator[Outcome], of: Callable[[SequenceScore], Divergences]
) -> Iterator[DivergenceScore | Rejected]:
    """Each outcome with its divergences."""
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            yield outcome
        else:
            yield DivergenceScore(outcome, of(outcome))
