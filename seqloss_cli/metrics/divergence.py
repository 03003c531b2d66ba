"""Divergences of a model from a reference distribution: a teacher's, or smoothed one-hot.

Units: nats. The loss is the cross-entropy of the reference q and the model p (docs/numbers.md,
section 1 and rule 15), H(q, p) = H(q) + KL(q ‖ p) (Kullback & Leibler 1951). Sums are over the
tokens that are scored and count, exact as those of `totals`; a mean is per such token, its interval
over documents. Where a teacher's file holds a part of its distributions only, divergences are lower
bounds, with upper ones beside them.

Shapes: N tokens of a sequence, n of them counted.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import DIVERGENCES, MEAN_LOG_PROB
from seqloss_cli.core.records import Bools, Floats, Sample, SequenceScore
from seqloss_cli.metrics.intervals import Estimate, ratio_estimate, share_estimate, unknown
from seqloss_cli.metrics.resampling import Reservoir, cluster_quantiles
from seqloss_cli.metrics.totals import SumRecord, from_units, score_flags, to_units

SMOOTHING_REQUEST = Requested(top_k=1, internal=(MEAN_LOG_PROB,))
TEACHER_REQUEST = Requested(internal=(DIVERGENCES,))
SUMS = ("cross_entropy", "teacher_entropy", "kl", "student_loss", "teacher_loss")
"""Sums over the scored tokens, nats."""
OPTIONAL_SUMS = ("cross_entropy_at_most", "kl_at_most", "student_cut", "teacher_cut")
"""Sums that not every comparison has."""
_IN_ORDER = (*SUMS, *OPTIONAL_SUMS, "delta_p", "squared_delta_p")
QUANTILES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
QUANTILE_FIGURES = ("delta_p", "kl")
"""Figures whose quantiles over tokens are known."""
_MOST_SAMPLED, _RESAMPLES = 100_000, 200


@dataclass(frozen=True, slots=True)
class Divergences:
    """Figures at each of a sequence's N tokens. Without a loss they mean nothing."""

    arrays: Mapping[str, Floats]
    """Name of a sum to its terms, shape N, nats; changes of a probability have no unit. Where the
    reference is known in part, `kl` and `cross_entropy` are lower bounds and have upper ones."""
    same_top1: Bools
    """Shape N: both have the same top-1 token, of equals the one with the least id."""


def teacher_divergences(score: SequenceScore) -> Divergences:
    """Return the divergences of a sequence that was scored with `TEACHER_REQUEST`."""
    # A sequence without a target (a lone BOS) has no columns.
    found, nothing = score.columns, np.zeros(len(score.losses))
    entropies, at_most = found.get("teacher_entropies", nothing), found.get("kls_at_most")
    bounds = {}
    if at_most is not None:
        bounds = {"cross_entropy_at_most": entropies + at_most, "kl_at_most": at_most}
    # Of heads of different widths: the probability of the ids that one has and the other has not.
    cuts = {name: found[name] for name in ("student_cut", "teacher_cut") if name in found}
    arrays = _arrays(
        score, found.get("kls", nothing), entropies, found.get("teacher_losses", nothing)
    )
    return Divergences(arrays | bounds | cuts, found.get("same_top1", nothing > 0))


def smoothing_divergences(score: SequenceScore, smoothing: float, vocab_size: int) -> Divergences:
    """Return divergences from the reference (1 - E) one-hot + E / V over the model's V ids.

    The sequence was scored with `SMOOTHING_REQUEST`. With E = 0 the cross-entropy is the loss
    itself, to the last bit. Source: Szegedy et al., Rethinking the Inception Architecture for
    Computer Vision, 2016, section 7.
    """
    n, spread = len(score.losses), smoothing / vocab_size
    own = 1 - smoothing + spread  # the reference's probability of the text's own token
    entropy, cross = 0.0, score.losses
    # Without smoothing 0 ln 0 is 0, and no product with an infinite loss may be made.
    if smoothing:
        entropy = -(own * math.log(own) + (vocab_size - 1) * spread * math.log(spread))
        mean = score.columns.get("mean_log_prob", np.zeros(n))
        cross = (1 - smoothing) * score.losses - smoothing * mean
    top_ids = score.top_ids
    top1 = np.full(n, -1) if top_ids is None else top_ids[:, 0]
    reference_losses = np.full(n, 0.0 - math.log(own))  # never -0.0
    arrays = _arrays(score, cross - entropy, np.full(n, entropy), reference_losses)
    return Divergences(arrays, top1 == score.sequence.token_ids)


def _arrays(
    score: SequenceScore, kls: Floats, entropies: Floats, reference_losses: Floats
) -> dict[str, Floats]:
    """Return the arrays that every comparison has; what is given has shape N, nats."""
    deltas = np.exp(-score.losses) - np.exp(-reference_losses)
    return {
        "cross_entropy": entropies + kls,
        "teacher_entropy": entropies,
        "kl": kls,
        "student_loss": score.losses,
        "teacher_loss": reference_losses,
        "delta_p": deltas,
        "squared_delta_p": deltas**2,
    }


@dataclass(frozen=True, slots=True)
class DivergenceScore:
    """A sequence with its divergences."""

    score: SequenceScore
    divergences: Divergences

    @property
    def sample(self) -> Sample:
        """The input that was scored."""
        return self.score.sequence.sample

    def counted_values(self) -> dict[str, Floats]:
        """Return the figures of `QUANTILE_FIGURES` at n counted tokens: shape n, nats or shares."""
        arrays, counted = self.divergences.arrays, self.score.counted
        return {name: arrays[name][counted] for name in QUANTILE_FIGURES}


@dataclass(frozen=True, slots=True)
class DivergenceTotals(SumRecord):
    """Sums over the counted tokens of sequences."""

    n_sequences: int = 0
    n_sequences_scored: int = 0
    n_tokens: int = 0
    n_scored: int = 0
    units: Mapping[str, int] = field(default_factory=dict)
    """Name of a sum to its exact value, in the units of `totals`."""
    n_infinite: Mapping[str, int] = field(default_factory=dict)
    """Name of a sum to its infinite terms; with any of them it is None."""
    n_same_top1: int = 0
    flags: Mapping[str, int] = field(default_factory=dict)

    def total(self, name: str) -> float | None:
        """Return a sum, nats; None where nothing is scored or a term is infinite."""
        if not self.n_scored or self.n_infinite.get(name):
            return None
        return from_units(self.units.get(name, 0))

    def mean(self, name: str) -> float | None:
        """Return a sum per scored token, nats per token."""
        total = self.total(name)
        return None if total is None else total / self.n_scored

    @property
    def same_top1(self) -> float | None:
        """Share of the scored tokens at which both have the same top-1 token."""
        return self.n_same_top1 / self.n_scored if self.n_scored else None


def divergence_totals(diverged: DivergenceScore) -> DivergenceTotals:
    """Return the sums of one sequence, over its counted tokens."""
    score, counted = diverged.score, diverged.score.counted
    units, infinite = {}, {}
    for name, values in diverged.divergences.arrays.items():
        terms = values[counted]
        # One infinite term makes the sum none: it is counted, and the others need no adding.
        if n := int(np.isinf(terms).sum()):
            infinite[name] = n
        else:
            units[name] = to_units(math.fsum(terms.tolist()))
    flags = {name: int(count) for name, count in score_flags(score).items()}
    flags |= {
        f"inf_{name}": infinite[name]
        for name in ("kl", "kl_at_most", "teacher_loss")
        if name in infinite
    }
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


class DocumentSums:
    """Sums of each document, and a bounded sample of tokens: the data of estimates."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._counts, self._same = array("d"), array("d")
        self._sums: dict[str, array[float]] = {}
        self._tokens = {name: Reservoir(_MOST_SAMPLED, seed) for name in QUANTILE_FIGURES}
        self._has_tokens = True

    def add(self, totals: DivergenceTotals, tokens: Mapping[str, Floats] | None) -> None:
        """Add a document: its sums, and the arrays of `QUANTILE_FIGURES` at its counted tokens.

        The arrays, in nats or shares, have shape n. There are no quantiles if those of one document
        are None.
        """
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
            # Each value with its document, since whole documents are drawn for the intervals.
            self._tokens[name].add(np.column_stack([values, np.full(len(values), document)]))

    def means(self) -> dict[str, Estimate]:
        """Estimate each sum per token, nats, and the figures that are made of two sums."""
        sums = {name: np.asarray(each) for name, each in self._sums.items()}
        found = {name: self._mean(each, signed=name == "delta_p") for name, each in sums.items()}
        squares = found.pop("squared_delta_p", None)
        if squares is not None:
            found["rms_delta_p"] = squares.transform(math.sqrt)
        if sums:
            differences = sums["student_loss"] - sums["teacher_loss"]
            found["loss_difference"] = self._mean(differences, signed=True)
            found["same_top1"] = share_estimate(np.asarray(self._same), np.asarray(self._counts))
        return found

    def quantiles(self, name: str) -> dict[float, Estimate]:
        """Estimate the `QUANTILES` of a figure over tokens; intervals resample documents."""
        drawn = self._tokens[name].values()
        if not len(drawn) or not self._has_tokens:
            return {}
        return cluster_quantiles(
            drawn[:, 0], drawn[:, 1].astype(np.int64), QUANTILES, _RESAMPLES, self._seed
        )

    def _mean(self, sums: Floats, signed: bool) -> Estimate:
        if np.isnan(sums).any():
            return unknown(None, len(sums), "no interval: a term is infinite")
        return ratio_estimate(sums, np.asarray(self._counts), signed=signed)
