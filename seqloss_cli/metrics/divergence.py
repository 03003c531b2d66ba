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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import DIVERGENCES, MEAN_LOG_PROB
from seqloss_cli.core.records import Bools, Floats, Ints, Sample, SequenceScore
from seqloss_cli.metrics.intervals import (
    Estimate,
    exact_total,
    ratio_estimate,
    share_estimate,
    unknown,
    within_one,
)
from seqloss_cli.metrics.resampling import Reservoir, cluster_quantiles
from seqloss_cli.metrics.series import Derived, Series
from seqloss_cli.metrics.totals import SumRecord, from_units, score_flags, to_units

SMOOTHING_REQUEST = Requested(top_k=1, internal=(MEAN_LOG_PROB,))
TEACHER_REQUEST = Requested(internal=(DIVERGENCES,))
SUMS = ("cross_entropy", "teacher_entropy", "kl", "student_loss", "teacher_loss")
"""Sums over the scored tokens, nats."""
OPTIONAL_SUMS = ("cross_entropy_at_most", "kl_at_most", "student_cut", "teacher_cut")
"""Sums that not every comparison has."""
MEASURES = ("reverse_kl", "jensen_shannon", "total_variation", "acceptance", "top_k_overlap")
"""Other measures of two models, of which means are written: nats, nats, and three shares."""
MEASURES_AT_MOST = tuple(f"{name}_at_most" for name in MEASURES[:-1])
"""Their upper bounds, where a teacher is known in part."""
SHARES = (*MEASURES[2:], *MEASURES_AT_MOST[2:])
"""Measures between 0 and 1 at each token."""
DRAFTS, DRAFTS_AT_MOST = "accepted_draft_tokens", "accepted_draft_tokens_at_most"
_IN_ORDER = (
    *(*SUMS, *OPTIONAL_SUMS, "delta_p", "squared_delta_p"),
    *(*MEASURES, *MEASURES_AT_MOST, DRAFTS, DRAFTS_AT_MOST),
)
QUANTILES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
QUANTILE_FIGURES = ("delta_p", "kl")
"""Figures whose quantiles over tokens are known."""
BINNED = ("kl", "acceptance")
"""Figures whose means by position and by the teacher's entropy are known; `same_top1`, too."""
ENTROPY_EDGES = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, math.inf)
"""Nats."""
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
    arrays |= bounds | cuts | _measures(found, nothing)
    return Divergences(arrays, found.get("same_top1", nothing > 0))


def _measures(found: Mapping[str, Floats], nothing: Floats) -> dict[str, Floats]:
    """Return the arrays of other measures, shape N, nats or shares; lower bounds with upper ones
    where the reference is known in part."""
    variations = found.get("total_variations", nothing)
    most = found.get("total_variations_at_most")
    arrays = {
        "reverse_kl": found.get("reverse_kls", nothing),
        "jensen_shannon": found.get("jensen_shannons", nothing),
        "total_variation": variations,
        "acceptance": 1 - (variations if most is None else most),
        "top_k_overlap": found.get("top_k_overlaps", nothing),
    }
    if most is not None:
        arrays |= {f"{name}_at_most": found[f"{name}s_at_most"] for name in MEASURES[:3]}
        arrays["acceptance_at_most"] = 1 - variations
    return arrays


def accepted_drafts(acceptances: Floats, counted: Bools, length: int) -> Floats:
    """Return how many tokens of a draft are accepted on average from each start, shape starts.

    A draft is of `length` tokens, of which the first i are accepted with the probability
    Π α_t … α_{t+i-1}. `acceptances` are shares, shape N. Starts have as many counted tokens after
    one another. Source: Leviathan, Kalman & Matias 2023, section 3.1, without its assumption that
    α is the same at each token.
    """
    places = np.flatnonzero(counted)
    starts = places[: max(0, len(places) - length + 1)]
    # Where the last token of the draft is as far on as there are tokens, none between is left out.
    starts = starts[places[length - 1 :][: len(starts)] == starts + length - 1]
    total, product = np.zeros(len(starts)), np.ones(len(starts))
    for n in range(length):
        product = product * acceptances[starts + n]
        total = total + product
    return total


def accepted_if_alike(acceptance: float, length: int) -> float:
    """Return the tokens of a draft that are accepted if each is with the same probability."""
    if acceptance == 1:
        return float(length)
    return acceptance * (1 - acceptance**length) / (1 - acceptance)


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
    model: str | None = None
    """Its name, where several are compared."""

    @property
    def sample(self) -> Sample:
        """The input that was scored."""
        return self.score.sequence.sample

    def counted_values(self) -> dict[str, Floats]:
        """Return what `DocumentSums` is given of n counted tokens: shape n, nats or shares."""
        found = self.divergences
        return token_values(found.arrays, found.same_top1, self.score.counted)


def token_values(
    arrays: Mapping[str, Floats], same_top1: Bools | Floats, counted: Bools
) -> dict[str, Floats]:
    """Return the figures of tokens that quantiles and bins are made of, at n counted tokens.

    The arrays have shape N, their figures are nats or shares; those that are returned shape n.
    """
    found = {name: arrays[name][counted] for name in QUANTILE_FIGURES}
    if "acceptance" in arrays:
        found |= {name: arrays[name][counted] for name in ("acceptance", "teacher_entropy")}
        found["same_top1"] = same_top1[counted].astype(np.float64)
        found["position"] = np.flatnonzero(counted).astype(np.float64)
    return found


@dataclass(frozen=True, slots=True)
class ModelsScore:
    """A sequence with the divergences of each of several models."""

    scores: tuple[DivergenceScore, ...]

    @property
    def sample(self) -> Sample:
        """The input that was scored."""
        return self.scores[0].sample


def score_of_each(score: SequenceScore, n_models: int) -> list[SequenceScore]:
    """Return a model's score for each column of the arrays, shape N x models, of a joint one."""
    found = []
    for n in range(n_models):
        columns = {
            name: np.ascontiguousarray(values[:, n]) for name, values in score.columns.items()
        }
        losses = columns.pop("student_losses", score.losses)
        # One that only other models have: NaN of a model itself would have rejected the text.
        columns = {
            k: v for k, v in columns.items() if not (v.size and np.isnan(v[score.scored]).any())
        }
        found.append(replace(score, losses=losses, columns=columns))
    return found


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
    """Name of a sum to its terms that are infinite, or that an older file does not hold; with any
    of them it is None."""
    n_draft_starts: int = 0
    """Tokens from which drafts are begun."""
    n_same_top1: int = 0
    flags: Mapping[str, int] = field(default_factory=dict)

    def total(self, name: str) -> float | None:
        """Return a sum, nats; None where nothing is scored or a term is infinite."""
        if not self.n_scored or self.n_infinite.get(name):
            return None
        return from_units(self.units.get(name, 0))

    def mean(self, name: str) -> float | None:
        """Return a sum per scored token, nats per token; of drafts per start."""
        total, n = self.total(name), self.n_scored
        if name in (DRAFTS, DRAFTS_AT_MOST):
            n = self.n_draft_starts
        return None if total is None or not n else total / n

    @property
    def same_top1(self) -> float | None:
        """Share of the scored tokens at which both have the same top-1 token."""
        return self.n_same_top1 / self.n_scored if self.n_scored else None


@dataclass(frozen=True, slots=True)
class ModelsTotals:
    """Sums of several models, over the same tokens."""

    parts: tuple[DivergenceTotals, ...]
    flags: Mapping[str, int] = field(default_factory=dict)
    """Flags of the run; the sums have their own."""

    def __add__(self, other: ModelsTotals) -> ModelsTotals:
        """Return the sums of both sets of sequences, model by model."""
        parts = zip(self.parts, other.parts, strict=True)
        names = dict.fromkeys((*self.flags, *other.flags))
        flags = {name: self.flags.get(name, 0) + other.flags.get(name, 0) for name in names}
        return ModelsTotals(tuple(a + b for a, b in parts), flags)

    @property
    def best(self) -> int | None:
        """Number of the model of the least mean KL, the first of equals; None without any."""
        kls = {n: kl for n, each in enumerate(self.parts) if (kl := each.mean("kl")) is not None}
        return min(kls, key=kls.__getitem__) if kls else None


def draft_sums(
    arrays: Mapping[str, Floats], counted: Bools, length: int
) -> tuple[dict[str, Floats], int]:
    """Return the terms of sums over drafts, tokens, shape starts, by name; and the starts.

    The arrays (shares among them) and the mask have shape N. Without a length there are none.
    """
    if not length or "acceptance" not in arrays:
        return {}, 0
    names = {DRAFTS: "acceptance", DRAFTS_AT_MOST: "acceptance_at_most"}
    found = {
        name: accepted_drafts(arrays[own], counted, length)
        for name, own in names.items()
        if own in arrays
    }
    return found, len(found[DRAFTS])


def divergence_totals(diverged: DivergenceScore, draft_length: int = 0) -> DivergenceTotals:
    """Return the sums of one sequence, over its counted tokens and drafts of a length."""
    score, counted = diverged.score, diverged.score.counted
    arrays = diverged.divergences.arrays
    drafts, n_starts = draft_sums(arrays, counted, draft_length)
    units, infinite = {}, {}
    for name, terms in ({n: values[counted] for n, values in arrays.items()} | drafts).items():
        # One infinite term makes the sum none: it is counted, and the others need no adding.
        if n := int(np.isinf(terms).sum()):
            infinite[name] = n
        else:
            units[name] = to_units(math.fsum(terms.tolist()))
    flags = {name: int(count) for name, count in score_flags(score).items()}
    flags |= {
        f"inf_{name}": infinite[name]
        for name in ("kl", "kl_at_most", "teacher_loss", "reverse_kl")
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
        n_draft_starts=n_starts,
        flags=flags,
    )


class DocumentSums:
    """Sums of each document, and a bounded sample of tokens: the data of estimates."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._counts, self._same = Series(), Series()
        self._drafted = {DRAFTS: Series(), DRAFTS_AT_MOST: Series()}
        """Starts of drafts of the documents that have some: those shorter than a draft have none,
        and tell nothing."""
        self.positions, self.entropies = _BinSums(), _BinSums()
        self._sums: dict[str, Series] = {}
        self._unknown = set[str]()
        """Sums with a term that is infinite, or not known."""
        self._tokens = {name: Reservoir(_MOST_SAMPLED, seed) for name in QUANTILE_FIGURES}
        self._has_tokens = True

    def add(self, totals: DivergenceTotals, tokens: Mapping[str, Floats] | None) -> None:
        """Add a document: its sums, and the arrays of `token_values` at its counted tokens.

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
            self._add(name, totals.total(name), totals.n_draft_starts)
        if "student_loss" in present:
            own, teacher = totals.total("student_loss"), totals.total("teacher_loss")
            difference = None if own is None or teacher is None else own - teacher
            self._add("loss_difference", difference, 0)
        tokens = tokens or {}
        if "position" in tokens:
            # The exponent of a float64 is exact, where log2 of 2**k - 1 can round up to k.
            self.positions.add(np.frexp(tokens["position"])[1] - 1, tokens)
            edges = np.array(ENTROPY_EDGES[1:-1])
            self.entropies.add(np.searchsorted(edges, tokens["teacher_entropy"], "right"), tokens)
        for name in (name for name in QUANTILE_FIGURES if name in tokens):
            values = tokens[name]
            # Each value with its document, since whole documents are drawn for the intervals.
            self._tokens[name].add(np.column_stack([values, np.full(len(values), document)]))

    def _add(self, name: str, total: float | None, n_starts: int) -> None:
        series = self._sums.setdefault(name, Series())
        if total is None:
            self._unknown.add(name)
        elif name not in self._drafted or n_starts:
            series.append(total)
            if name in self._drafted:
                self._drafted[name].append(n_starts)

    def means(self) -> dict[str, Estimate]:
        """Estimate each sum per token, nats, and the figures that are made of two sums."""
        found = {name: self._mean(name) for name in self._sums}
        squares = found.pop("squared_delta_p", None)
        if squares is not None:
            found["rms_delta_p"] = squares.transform(math.sqrt)
        if found:
            found["loss_difference"] = found.pop("loss_difference")
            found["same_top1"] = share_estimate(self._same, self._counts)
        return found

    def kl_less(self, other: DocumentSums) -> Estimate:
        """Estimate the mean KL less that of another model on the same documents, nats per token:
        documents are pairs."""
        if "kl" in self._unknown | other._unknown:
            return unknown(None, len(self._counts), "no interval: a term is infinite")
        differences = Derived(np.subtract, self._sums["kl"], other._sums["kl"])
        return ratio_estimate(differences, self._counts, signed=True)

    def quantiles(self, name: str) -> dict[float, Estimate]:
        """Estimate the `QUANTILES` of a figure over tokens; intervals resample documents."""
        drawn = self._tokens[name].values()
        if not len(drawn) or not self._has_tokens:
            return {}
        return cluster_quantiles(
            drawn[:, 0], drawn[:, 1].astype(np.int64), QUANTILES, _RESAMPLES, self._seed
        )

    def _mean(self, name: str) -> Estimate:
        sums, n = self._sums[name], len(self._counts)
        if name in self._drafted:
            if name in self._unknown:
                return unknown(None, n, "no interval: a term is not known")
            return ratio_estimate(sums, self._drafted[name])
        if name in self._unknown:
            return unknown(None, n, "no interval: a term is infinite, or not known")
        if name in SHARES:
            return within_one(ratio_estimate(sums, self._counts, signed=True))
        signed = name in ("delta_p", "loss_difference")
        return ratio_estimate(sums, self._counts, signed=signed)


@dataclass(frozen=True, slots=True)
class BinMeans:
    """Figures of the tokens of one bin."""

    low: float
    """Position or entropy in nats; the high end of an entropy is in the next bin."""
    high: float | None
    """High end; None where there is none."""
    n_scored: int
    """Tokens of the bin."""
    mean_kl: Estimate
    """Mean over these, nats per token."""
    mean_acceptance: Estimate
    """Mean over these."""
    same_top1: Estimate
    """Share of these."""


class _BinSums:
    """Sums of each document in bins of its tokens."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Series]] = {}

    def add(self, bins: Ints, tokens: Mapping[str, Floats]) -> None:
        """Add a document's n tokens: numbers of bins and figures, shape n, nats or shares."""
        counts = np.bincount(bins)
        sums = [np.bincount(bins, tokens[name]) for name in (*BINNED, "same_top1")]
        for n in np.flatnonzero(counts).tolist():
            kept = self._parts.setdefault(n, [Series() for _ in range(len(sums) + 1)])
            for own, values in zip(kept, (counts, *sums), strict=True):
                own.append(float(values[n]))

    def means(self, ends: Callable[[int], tuple[float, float | None]]) -> list[BinMeans]:
        """Return the bins that some token is in; `ends` are those of a bin by its number."""
        found = []
        for n, parts in sorted(self._parts.items()):
            counts, kls, acceptances, same = parts
            kl = unknown(None, len(counts), "no interval: a term is infinite")
            if all(np.isfinite(each).all() for each in kls.chunks()):
                kl = ratio_estimate(kls, counts)
            acceptance = within_one(ratio_estimate(acceptances, counts, signed=True))
            means = kl, acceptance, share_estimate(same, counts)
            found.append(BinMeans(*ends(n), int(exact_total(counts)), *means))
        return found


def position_ends(n: int) -> tuple[float, float]:
    """Return the first and the last position of a bin; bins double."""
    return 1 << n, (2 << n) - 1


def entropy_ends(n: int) -> tuple[float, float | None]:
    """Return the ends of a bin of entropies, nats."""
    low, high = ENTROPY_EDGES[n : n + 2]
    return low, None if math.isinf(high) else high
