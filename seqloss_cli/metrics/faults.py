"""Name what is wrong with recorded log-probabilities, by fitting.

A fault is a way in which the recorded values come from those that were scored. It is named only
where undoing it takes most of the differences away, and clearly more than a recording that is right
would lose by chance; simple faults go before those with more parameters. What nothing explains is
called unknown.

Shapes: M tokens of all rows together, one row after another.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.columns import LOGIT_SHAPE
from seqloss_cli.core.records import Bools, Floats, Ints
from seqloss_cli.metrics.deltas import DeltaDocuments, RecordedScore
from seqloss_cli.metrics.fault_fits import LEAST_TOKENS, Fit, Observed, clamps, fits
from seqloss_cli.metrics.sampling_fits import LogitShapes

EXPLAINS, MOST = 0.6, 0.8
"""Least share of the differences that a fault takes away; and the share from which on it is all
that there is to say. Of noise alone the best of all fits takes less than a tenth (a test says so),
and of one fault in a bfloat16 engine the engine's own noise is the rest."""
MOST_TOKENS = 1 << 15
"""Tokens that a diagnosis looks at."""
HALVES = 0.5
"""A second parameter must leave no more than this of what the first one left."""
LITTLE = 0.02
"""Faults of some tokens (padding, clamped values) are named from this share on."""
EXACT = 3e-4
"""Mean |Δ|, nats, of float32 against float32: nothing is looked for below it."""
NOISE = 0.03
"""Mean |Δ|, nats, that arithmetic in bfloat16 gives: nothing is called unknown below it."""
_WRONG = 0.05
_SENTINEL = -9999.0
"""The value that vLLM writes for minus infinity."""
_BF16_BITS, _ON_GRID = 8, 0.99
Verdict = Literal["nothing", "exact", "noise", "explained", "in part", "unknown"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was found."""

    name: str
    parameters: Mapping[str, Any]
    explains: float | None
    """Share of Σ|Δ| that it explains; None where its tokens have no Δ."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The faults of a recording, and what they come to."""

    verdict: Verdict
    faults: tuple[Fault, ...] = ()
    n_sequences: int = 0
    n_tokens: int = 0
    """Compared tokens that were looked at."""
    mean_abs: float | None = None
    """Mean |Δ| of these, nats."""
    mean_abs_left: float | None = None
    """Mean |Δ| once what was found is undone, nats."""


@dataclass
class _Search:
    """The state of a diagnosis: what is found, and what remains to be explained."""

    observed: Observed
    residual: Floats
    """Shape M, nats; NaN where no difference remains to be explained."""
    found: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.whole = self.size(self.residual)
        self.n = int(np.isfinite(self.residual).sum())

    @staticmethod
    def size(residual: Floats) -> float:
        """Return Σ|Δ|, nats."""
        return float(np.abs(residual[np.isfinite(residual)]).sum())

    @property
    def mean(self) -> float:
        """Mean of what remains, over all compared tokens, nats."""
        return self.size(self.residual) / max(1, self.n)

    def take(self, name: str, parameters: Mapping[str, Any], residual: Floats) -> None:
        """Note a fault, and what it leaves."""
        explained = (self.size(self.residual) - self.size(residual)) / self.whole
        self.found.append(Fault(name, parameters, float(np.clip(explained, 0.0, 1.0))))
        self.residual = residual

    def gain(self, residual: Floats) -> float:
        """Return the share of what remains that a fit takes away, where it gives values."""
        known = np.isfinite(self.residual) & np.isfinite(residual)
        before = float(np.abs(self.residual[known]).sum())
        # A fit of few tokens (probabilities of 0, edges of short rows) tells nothing of the others.
        if before == 0 or 2 * known.sum() < np.isfinite(self.residual).sum():
            return -math.inf
        return 1 - float(np.abs(residual[known]).sum()) / before


def diagnose(observed: Observed) -> Diagnosis:
    """Return the faults of a recording, in the order in which they were found."""
    compared = observed.compared
    difference = np.where(compared, observed.recorded - observed.scored, np.nan)
    search = _Search(observed, difference)
    if not search.n:
        return Diagnosis("nothing", tuple(_missing_eos(observed)))
    search.found += _missing_eos(observed)
    mean = search.mean
    if mean > EXACT:
        _some_tokens(search)
        if search.mean > EXACT and search.n >= LEAST_TOKENS:
            _whole_recording(search)
            _what_remains(search)
    n_rows = len(np.unique(observed.rows[compared]))
    verdict = _verdict(mean, search.mean, [each.name for each in search.found])
    return Diagnosis(verdict, tuple(search.found), n_rows, search.n, mean, search.mean)


def _verdict(before: float, after: float, found: list[str]) -> Verdict:
    if before <= EXACT:
        return "explained" if found else "exact"
    if found:
        # Of two truncations one that is another may take most away: it must leave rounding alone.
        share = 0.0 if {"top_k", "top_p", "min_p"} & {*found} else 1 - MOST
        return "explained" if after <= max(NOISE, share * before) else "in part"
    return "noise" if after <= NOISE else "unknown"


# -- faults of some tokens --------------------------------------------------------------------


def _missing_eos(observed: Observed) -> Iterator[Fault]:
    """Yield the fault that the last token of rows, EOS, has no value while others have."""
    last = observed.last & (observed.ids == (-1 if observed.eos_id is None else observed.eos_id))
    without = last & np.isnan(observed.recorded)
    rows = np.unique(observed.rows[np.isfinite(observed.recorded)])
    n = int(np.isin(observed.rows[without], rows).sum())
    if n and n >= 0.9 * last.sum():
        yield Fault("eos_missing", {"value": None, "n_sequences": n}, None)


def _some_tokens(search: _Search) -> None:
    """Look for padding, a missing EOS and minus infinity: values that are no measurements."""
    observed = search.observed
    is_zero = np.isfinite(search.residual) & (observed.recorded == 0) & (observed.scored < -_WRONG)
    if is_zero.any():
        edges = _edge_runs(observed, observed.recorded == 0)
        runs = is_zero & (edges > 0)
        if runs.sum() >= 0.9 * is_zero.sum():
            _zeros(search, runs, edges)
    is_least = np.isfinite(search.residual) & (observed.recorded <= _SENTINEL)
    if is_least.any():
        least = float(observed.recorded[is_least].min())
        _take_tokens(search, "clamped", {"least": least}, is_least)


def _zeros(search: _Search, runs: Bools, edges: Ints) -> None:
    observed = search.observed
    # A zero at the end of a row, and no other, stands for an EOS that was not recorded.
    single = runs & observed.last & (edges == 1)
    ends = observed.ids[single]
    known = observed.eos_id
    is_eos = len(ends) > 0 and (
        bool((ends == known).mean() > 0.9) if known is not None
        else len(ends) >= 3 and len(np.unique(ends)) == 1
    )  # fmt: skip
    if is_eos and single.sum() >= 0.9 * runs.sum():
        parameters = {"value": 0.0, "n_sequences": int(single.sum())}
        _take_tokens(search, "eos_missing", parameters, single)
    elif runs.sum() >= 2:
        _take_tokens(search, "padding", {"value": 0.0, "n_tokens": int(runs.sum())}, runs)


def _take_tokens(search: _Search, name: str, parameters: Mapping[str, Any], tokens: Bools) -> None:
    residual = np.where(tokens, np.nan, search.residual)
    if search.size(search.residual) - search.size(residual) >= LITTLE * search.whole:
        search.take(name, parameters, residual)


def _edge_runs(observed: Observed, marked: Bools) -> Ints:
    """Return for each token, shape M, the length of its run of marked tokens at an edge of what is
    recorded in its row; 0 elsewhere."""
    found = np.zeros(len(marked), dtype=np.int64)
    places = np.flatnonzero(np.isfinite(observed.recorded))
    for part in np.split(places, np.flatnonzero(np.diff(observed.rows[places])) + 1):
        own = marked[part]
        if own.all():
            continue
        n_before, n_after = int(np.argmin(own)), int(np.argmin(own[::-1]))
        found[part[:n_before]] = n_before
        found[part[len(part) - n_after :]] = n_after
    return found


# -- faults of a whole recording --------------------------------------------------------------


def _whole_recording(search: _Search) -> None:
    """Look for the transformation that explains most, the simplest first."""
    best: tuple[float, int, Fit] | None = None
    # Beyond rounding nothing is better.
    rounding = EXACT * search.n / search.size(search.residual)
    for n_parameters, fit in fits(search.observed, search.residual):
        gain = search.gain(fit.left)
        if best is not None:
            left, least = 1 - gain, 1 - best[0]
            # A further parameter has to earn its place.
            earns = HALVES if n_parameters > best[1] and best[0] >= EXPLAINS else 0.99
            if not left < earns * least:
                continue
        best = (gain, n_parameters, fit)
        if 1 - gain <= rounding:
            break
    if best is None or best[0] < EXPLAINS:
        return
    for (name, parameters), residual in zip(best[2].faults, best[2].residuals, strict=True):
        search.take(name, parameters, np.where(np.isfinite(search.residual), residual, np.nan))


# -- what remains -----------------------------------------------------------------------------


def _what_remains(search: _Search) -> None:
    """Look for faults that stand beside another, and for those that are told by their shape."""
    observed = search.observed
    if search.found and search.mean > EXACT:
        predicted = observed.recorded - search.residual
        for fit in clamps(observed.recorded, predicted, np.isfinite(search.residual)):
            if search.mean > EXACT and search.gain(fit.left) >= EXPLAINS:
                kept = np.where(np.isfinite(search.residual), fit.left, np.nan)
                search.take(*fit.faults[0], kept)
    if search.mean > EXACT:
        _another_beginning(search)
    if search.mean > EXACT:
        _grain(search)


def _another_beginning(search: _Search) -> None:
    """Look for differences at the start of rows that fade."""
    rows, sizes = search.observed.rows, np.abs(search.residual)
    known = np.isfinite(sizes)
    rows, sizes = rows[known], sizes[known]
    first = np.append(True, rows[1:] != rows[:-1]) if len(rows) else known
    order = np.arange(len(rows)) - np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
    best: tuple[float, int] | None = None
    for n in (1, 2, 4, 8, 16, 32, 64, 128):
        early = order < n
        if (~early).sum() < max(LEAST_TOKENS, 0.25 * len(rows)):
            break
        level, mean = float(sizes[~early].mean()), float(sizes[early].mean())
        gain = float((sizes[early] - level).sum()) / float(sizes.sum())
        fades = gain >= EXPLAINS and mean >= 5 * level and mean >= _WRONG
        # More tokens explain a little more: as few as explain nearly all.
        is_better = best is None or gain > best[0] + 0.1
        if fades and is_better and _in_most_rows(rows, sizes, early):
            best = (gain, n)
    if best is not None:
        beginning = np.zeros(len(search.residual), dtype=bool)
        beginning[np.flatnonzero(known)[order < best[1]]] = True
        residual = np.where(beginning, np.nan, search.residual)
        search.take("beginning", {"n_tokens": best[1]}, residual)


def _in_most_rows(rows: Ints, sizes: Floats, early: Bools) -> bool:
    numbers = np.unique(rows, return_inverse=True)[1]
    sums = [np.bincount(numbers, each * sizes) for each in (early, ~early)]
    counts = [np.bincount(numbers, each) for each in (early, ~early)]
    both = (counts[0] > 0) & (counts[1] > 0)
    means = [total[both] / n[both] for total, n in zip(sums, counts, strict=True)]
    return int(both.sum()) >= 3 and float((means[0] > 3 * means[1]).mean()) >= 0.6


def _grain(search: _Search) -> None:
    """Look for values that were rounded to bfloat16: 8 significant bits."""
    known = np.isfinite(search.residual) & (search.observed.recorded != 0)
    values = search.observed.recorded[known]
    if len(values) < LEAST_TOKENS or is_bfloat16(values).mean() < _ON_GRID:
        return
    half = np.zeros(len(known))
    # Of a value of binary exponent e, steps are of 2^(e - 8), as frexp counts exponents.
    half[known] = np.ldexp(0.5, np.frexp(values)[1] - _BF16_BITS)
    residual = np.sign(search.residual) * np.maximum(np.abs(search.residual) - half, 0.0)
    if search.gain(residual) >= HALVES:
        search.take("bfloat16", {"significant_bits": _BF16_BITS}, residual)


def is_bfloat16(values: Floats) -> NDArray[np.bool_]:
    """Return which of the values, any shape and unit, are numbers of bfloat16."""
    single = values.astype(np.float32)
    found: NDArray[np.bool_] = (single == values) & ((single.view(np.uint32) & 0xFFFF) == 0)
    return found


# -- rows that are looked at ------------------------------------------------------------------


class Examined:
    """Rows for a diagnosis, in bounded memory: the same ones however the inputs are cut.

    Rows are ordered by a hash of their ids, and the first ones are kept, as many as `MOST_TOKENS`
    have room for, at least one. A row that is kept of all inputs is kept of any part of them.
    """

    def __init__(self, eos_id: int | None) -> None:
        self._eos_id = eos_id
        # Negated, since the last of the order leaves first. Numbers of rows decide between equal
        # hashes; the order of a shard's rows is that of the whole.
        self._rows: list[tuple[int, int, RecordedScore]] = []
        self._end: tuple[int, int] | None = None
        """The first place of the order that there was no room for."""
        self._n_seen = self._n_tokens = 0

    def add(self, found: RecordedScore) -> bool:
        """Take a row; returns whether it is among those that are kept so far."""
        ids = found.score.sequence.token_ids.astype("<i8")
        digest = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
        place = (int.from_bytes(digest), self._n_seen)
        self._n_seen += 1
        if self._end is not None and place >= self._end:
            return False
        heapq.heappush(self._rows, (-place[0], -place[1], found))
        self._n_tokens += len(ids)
        while self._n_tokens > MOST_TOKENS and len(self._rows) > 1:
            digits, number, last = heapq.heappop(self._rows)
            self._end = (-digits, -number)
            self._n_tokens -= len(last.log_probs)
        return self._end is None or place < self._end

    def rows(self) -> list[RecordedScore]:
        """Return the rows that are kept, in the order of the inputs."""
        return [found for _, _, found in sorted(self._rows, key=lambda each: -each[1])]

    def diagnosis(self) -> Diagnosis:
        """Return what is wrong with these rows."""
        rows = self.rows()
        if not rows:
            return Diagnosis("nothing")
        lengths = [len(each.log_probs) for each in rows]
        # Of all tokens, recorded or not: a value may be that of a neighbour.
        known = [each.score.scored & np.isfinite(each.score.losses) for each in rows]
        scored = [
            np.where(mask, each.scored_log_probs, np.nan)
            for each, mask in zip(rows, known, strict=True)
        ]
        none = [np.zeros(n, dtype=bool) for n in lengths]
        sampled = [n if r.sampled is None else r.sampled for r, n in zip(rows, none, strict=True)]
        prompts = [-1 if each.n_prompt is None else each.n_prompt for each in rows]
        return diagnose(
            Observed(
                np.concatenate([each.log_probs for each in rows]),
                np.concatenate(scored),
                np.concatenate(sampled),
                np.repeat(np.arange(len(rows)), lengths),
                np.repeat(np.array(prompts), lengths),
                np.concatenate([each.score.sequence.token_ids for each in rows]),
                self._eos_id,
                _shapes(rows),
            )
        )


def _shapes(rows: list[RecordedScore]) -> LogitShapes | None:
    """Return the logits of compared tokens, as far as they are known; None where no model ran."""
    rows = [each for each in rows if each.compared.any()]
    if not rows or not all(each.score.columns for each in rows):
        return None
    columns = {
        name: np.concatenate([each.score.columns[name][each.compared] for each in rows])
        for name in LOGIT_SHAPE.array_names
    }
    log_probs = np.concatenate([each.scored_log_probs[each.compared] for each in rows])
    return LogitShapes.of(log_probs, columns)


@dataclass
class Checking:
    """Figures and rows that a check gathers."""

    documents: DeltaDocuments
    examined: Examined
    has_kept: bool = field(default=False, init=False)
    """The last row is among those that the diagnosis looks at, so far."""
    _diagnosis: Diagnosis | None = field(default=None, init=False)

    def add(self, found: RecordedScore) -> None:
        """Add a row; rows come in the order of the inputs."""
        self.documents.add(found)
        self.has_kept = self.examined.add(found)

    def diagnosis(self) -> Diagnosis:
        """Return what is wrong with the recording: to be asked for when all rows are there."""
        # Asked for by the table and by --fail-above's message, and it takes a second.
        if self._diagnosis is None:
            self._diagnosis = self.examined.diagnosis()
        return self._diagnosis
