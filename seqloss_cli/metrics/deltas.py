"""Differences between log-probabilities that were scored and those that were recorded.

Δ_t = ln p_scored(x_t) - ln p_recorded(x_t), nats. Over tokens that the recording's engine sampled,
k1 = -Δ, k2 = Δ²/2 and k3 = e^Δ - 1 - Δ estimate KL(recorded ‖ scored) (Schulman, Approximating KL
Divergence, 2020), and w = e^Δ are the weights of importance sampling. Intervals are over documents.

Shapes: N tokens of a sequence, n of them compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from seqloss_cli.core.records import (
    Bools,
    Floats,
    Recording,
    Sample,
    SequenceScore,
    TokenSequence,
)
from seqloss_cli.metrics.intervals import Estimate, ratio_estimate, share_estimate, unknown
from seqloss_cli.metrics.resampling import Reservoir, cluster_quantiles
from seqloss_cli.metrics.series import Numbers, Series, chunks_of, zeros
from seqloss_cli.metrics.totals import SumRecord, exp_or_none, score_flags

WEIGHT_QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
KLS = ("k1", "k2", "k3")
_MEANS = ("delta", "abs_delta")
_MOST_SAMPLED, _RESAMPLES = 100_000, 200
_MEDIAN, _HIGH = 0.5, 0.99


@dataclass(frozen=True)
class RecordedScore:
    """A sequence's scores beside what was recorded of its tokens."""

    score: SequenceScore
    log_probs: Floats
    """Shape N, as recorded, nats; NaN where there is none."""
    sampled: Bools | None
    """Shape N: tokens that were sampled; None where the row does not tell."""
    n_prompt: int | None = None
    """Tokens before the response; None where the row does not tell."""

    @property
    def sample(self) -> Sample:
        """The input that was scored."""
        return self.score.sample

    @property
    def scored_log_probs(self) -> Floats:
        """ln p of each token as it was scored, shape N, nats; means nothing where not scored."""
        return 0.0 - self.score.losses

    @cached_property
    def recorded(self) -> Bools:
        """Shape N: a value was recorded."""
        return np.isfinite(self.log_probs)

    @cached_property
    def compared(self) -> Bools:
        """Shape N: both values are there, and finite."""
        return self.recorded & self.score.scored & np.isfinite(self.score.losses)

    @cached_property
    def counted(self) -> Bools:
        """Shape N: compared tokens that were sampled."""
        none = np.zeros(len(self.log_probs), dtype=bool)
        return none if self.sampled is None else self.compared & self.sampled

    @cached_property
    def deltas(self) -> Floats:
        """Δ of each token, shape N, nats; 0 where none is known."""
        both = self.scored_log_probs - np.where(self.compared, self.log_probs, 0.0)
        return np.where(self.compared, both, 0.0)


def aligned(sequence: TokenSequence) -> Recording:
    """Return the recording of a sequence, shape N, which may have a BOS more than was recorded."""
    recording = sequence.sample.recording
    assert recording is not None
    n_more = sequence.n_tokens - len(recording.log_probs)
    before = np.full(n_more, np.nan)
    sampled = recording.sampled
    if sampled is not None:
        sampled = np.concatenate([np.zeros(n_more, dtype=bool), sampled])
    n_prompt = None if recording.n_prompt is None else recording.n_prompt + n_more
    return Recording(np.concatenate([before, recording.log_probs]), sampled, n_prompt)


@dataclass(frozen=True, slots=True)
class DeltaTotals(SumRecord):
    """Counts of sequences and tokens."""

    n_sequences: int = 0
    """Sequences: inputs that were not rejected."""
    n_sequences_compared: int = 0
    """Sequences with a compared token."""
    n_tokens: int = 0
    """Tokens of these."""
    n_recorded: int = 0
    """Tokens with a recorded value."""
    n_compared: int = 0
    """Tokens with a recorded value and a scored one."""
    n_sampled: int = 0
    """Compared tokens that were sampled."""
    n_beyond: int = 0
    """Compared tokens whose |Δ| is beyond the threshold."""
    flags: Mapping[str, int] = field(default_factory=dict)

    @property
    def share_beyond(self) -> float | None:
        """Share of the compared tokens whose |Δ| is beyond the threshold."""
        return self.n_beyond / self.n_compared if self.n_compared else None


def delta_totals(found: RecordedScore, threshold: float) -> DeltaTotals:
    """Return the counts of one sequence; `threshold` is in nats."""
    compared, flags = found.compared, {n: int(c) for n, c in score_flags(found.score).items()}
    flags.pop("nothing_scored", None)
    if n := int((found.recorded & ~compared).sum()):
        flags["not_compared"] = n
    return DeltaTotals(
        n_sequences=1,
        n_sequences_compared=int(compared.any()),
        n_tokens=len(compared),
        n_recorded=int(found.recorded.sum()),
        n_compared=int(compared.sum()),
        n_sampled=int(found.counted.sum()),
        n_beyond=int((np.abs(found.deltas) > threshold).sum()),
        flags=flags,
    )


@dataclass(frozen=True, slots=True)
class SequenceDeltas:
    """Figures of one sequence, nats; None where no token is compared, or sampled."""

    mean: float | None
    median: float | None
    mean_abs: float | None
    max_abs: float | None
    max_abs_at: int | None
    """Position of the greatest |Δ|."""
    log_weight: float | None
    """Sum of Δ over the sampled tokens, nats: ln w of the sequence."""
    kls: Mapping[str, float | None]
    """Means of k1, k2 and k3 over the sampled tokens."""


def sequence_deltas(found: RecordedScore) -> SequenceDeltas:
    """Return the figures of one sequence."""
    deltas, sampled = found.deltas[found.compared], found.deltas[found.counted]
    kls = {name: _mean(values) for name, values in kl_terms(sampled).items()}
    log_weight = math.fsum(sampled.tolist()) if len(sampled) else None
    if not len(deltas):
        return SequenceDeltas(None, None, None, None, None, log_weight, kls)
    sizes = np.abs(deltas)
    at = int(np.flatnonzero(found.compared)[np.argmax(sizes)])
    return SequenceDeltas(
        _mean(deltas), _quantile(deltas, _MEDIAN), _mean(sizes), float(sizes.max()), at,
        log_weight, kls,
    )  # fmt: skip


def _mean(values: Floats) -> float | None:
    if not len(values) or not np.isfinite(values).all():
        return None
    return math.fsum(values.tolist()) / len(values)


def kl_terms(deltas: Floats) -> dict[str, Floats]:
    """Return k1, k2 and k3 of tokens, shape n, nats; infinite where e^Δ overflows."""
    with np.errstate(over="ignore"):
        return {
            "k1": 0.0 - deltas,
            "k2": deltas**2 / 2,
            # Not e^Δ - 1 - Δ as it stands, which would be 0 of small Δ.
            "k3": np.expm1(deltas) - deltas,
        }


def effective_sample_size(log_weights: Numbers) -> float | None:
    """Return (Σw)² / (n Σw²) of n weights, given as ln w, shape n, nats; None without
    any.

    It is 1 where all weights are equal, and 1/n where one of them is all there is.
    """
    if not len(log_weights):
        return None
    first = second = -np.inf
    for each in chunks_of(log_weights):
        first = np.logaddexp.reduce(each, initial=first)
        second = np.logaddexp.reduce(each * 2, initial=second)
    return float(np.exp(2 * first - second - math.log(len(log_weights))))


class DeltaDocuments:
    """Sums of each document, and a bounded sample of tokens: the data of estimates."""

    def __init__(self, threshold: float, seed: int = 0) -> None:
        """`threshold` is in nats."""
        self.threshold, self._seed = threshold, seed
        self._counts, self._sampled_counts = Series(), Series()
        self._beyond, self._log_weights = Series(), Series()
        self._sums = {name: Series() for name in (*_MEANS, *KLS)}
        self._infinite = set[str]()
        """Sums with a term that is infinite."""
        self._n_sampled = 0
        self._tokens, self._sampled = (Reservoir(_MOST_SAMPLED, seed) for _ in range(2))
        self._log_sums = np.array([-np.inf, -np.inf])
        """ln Σw and ln Σw² over the sampled tokens."""
        self.max_abs: tuple[float, str, int] | None = None
        """The greatest |Δ|, nats, with the id and the position where it is."""

    def add(self, found: RecordedScore) -> None:
        """Add a document."""
        deltas, sampled = found.deltas[found.compared], found.deltas[found.counted]
        if not len(deltas):
            return
        document, sizes = float(len(self._counts)), np.abs(deltas)
        terms = {"delta": deltas, "abs_delta": sizes, **kl_terms(sampled)}
        self._counts.append(len(deltas))
        self._sampled_counts.append(len(sampled))
        self._n_sampled += len(sampled)
        self._beyond.append(int((sizes > self.threshold).sum()))
        for name, values in terms.items():
            if np.isfinite(values).all():
                self._sums[name].append(math.fsum(values.tolist()))
            else:
                self._infinite.add(name)
        self._tokens.add(np.column_stack([deltas, np.full(len(deltas), document)]))
        if len(sampled):
            self._sampled.add(sampled)
            self._log_weights.append(math.fsum(sampled.tolist()))
            own = [np.logaddexp.reduce(sampled * power) for power in (1, 2)]
            self._log_sums = np.logaddexp(self._log_sums, own)
        worst = int(np.argmax(sizes))
        if self.max_abs is None or sizes[worst] > self.max_abs[0]:
            place = int(np.flatnonzero(found.compared)[worst])
            self.max_abs = (float(sizes[worst]), found.sample.id, place)

    def estimates(self) -> dict[str, Estimate]:
        """Estimate means and quantiles, nats, and the share beyond the threshold."""
        found = {f"mean_{name}": self._ratio(name, self._counts) for name in _MEANS}
        drawn = self._tokens.values()
        if len(drawn):
            deltas, documents = drawn[:, 0], drawn[:, 1].astype(np.int64)
            sizes = self._quantiles(np.abs(deltas), documents, (_MEDIAN, _HIGH))
            found["median_delta"] = self._quantiles(deltas, documents, (_MEDIAN,))[_MEDIAN]
            found |= {"median_abs_delta": sizes[_MEDIAN], "p99_abs_delta": sizes[_HIGH]}
        found |= {name: self._ratio(name, self._sampled_counts) for name in KLS}
        found["share_beyond"] = share_estimate(self._beyond, self._counts)
        return found

    def weights(self) -> dict[str, Any]:
        """Return effective sample sizes and quantiles of w, of tokens and of sequences."""
        n, sequences = self._n_sampled, self._log_weights
        of_tokens = None
        if n:
            of_tokens = math.exp(2 * self._log_sums[0] - self._log_sums[1] - math.log(n))
        sizes = {"tokens": of_tokens, "sequences": effective_sample_size(sequences)}
        both: dict[str, Numbers] = {"tokens": self._sampled.values(), "sequences": sequences}
        quantiles = {
            name: {str(q): exp_or_none(v) for q, v in quantiles_of(logs, WEIGHT_QUANTILES).items()}
            for name, logs in both.items()
            if len(logs)
        }
        return {"effective_sample_size": sizes, "weight_quantiles": quantiles}

    def _ratio(self, name: str, counts: Series) -> Estimate:
        if name in self._infinite:
            return unknown(None, len(counts), "no interval: a term is infinite")
        return ratio_estimate(self._sums[name], counts, signed=name in ("delta", "k1"))

    def _quantiles(
        self, values: Floats, documents: Any, shares: tuple[float, ...]
    ) -> dict[float, Estimate]:
        return cluster_quantiles(values, documents, shares, _RESAMPLES, self._seed)


def _quantile(values: Floats, share: float) -> float:
    """Return the least of the values, any unit, that so large a share does not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def quantiles_of(values: Numbers, shares: Sequence[float]) -> dict[float, float]:
    """Return the least of n values, shape n, any unit, that each share does not exceed."""
    # As numpy's inverted_cdf, which copies all: sorted where they lie, once for all shares.
    ordered, place = zeros(len(values)), 0
    for each in chunks_of(values):
        ordered[place : place + len(each)] = each
        place += len(each)
    ordered.sort()
    return {q: float(ordered[max(0, math.ceil(len(ordered) * q - 1))]) for q in shares}
