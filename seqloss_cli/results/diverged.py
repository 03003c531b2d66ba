"""A row of `seqloss diverge`, checked as it is read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Bools, Floats
from seqloss_cli.metrics.divergence_totals import SUMS, DivergenceTotals
from seqloss_cli.metrics.totals import Totals, to_units
from seqloss_cli.results.checks import (
    LARGEST,
    ROUNDING,
    Fields,
    check_arrays,
    check_identity,
    count,
    figure,
    flags_of,
    number,
)
from seqloss_cli.results.files import RowKind
from seqloss_cli.results.rows import ResultRow, TokenLosses

_AT_MOST = ("cross_entropy_at_most", "kl_at_most")
_CUTS = ("student_cut", "teacher_cut")
_COLUMNS = {
    "cross_entropy": "token_losses",
    "teacher_entropy": "teacher_entropies",
    "kl": "kls",
    "kl_at_most": "kls_at_most",
    "student_loss": "student_losses",
    "teacher_loss": "teacher_losses",
    "delta_p": "token_delta_p",
}
"""Name of a sum to the array of its tokens."""
_LEAST = -1e-6
"""A divergence is not below 0, but for rounding."""


@dataclass(frozen=True, slots=True)
class DivergenceRow:
    """A sequence as a results file of `diverge` tells of it."""

    row: ResultRow
    """With the model's own losses on the text."""
    sums: DivergenceTotals
    columns: Mapping[str, Floats] | None
    """Shape N, by the names of sums; infinite ones are. None where it was written without tokens.
    Where `row.tokens` has nothing scored, they mean nothing."""

    def of_tokens(self) -> dict[str, Floats] | None:
        """What `Documents` takes."""
        if self.columns is None or self.row.tokens is None:
            return None
        counted = self.row.tokens.counted
        return {name: self.columns[name][counted] for name in ("delta_p", "kl")}

    def with_kls(self) -> ResultRow:
        """The row as if its divergences were its losses."""
        tokens = self.row.tokens
        if self.columns is not None and tokens is not None:
            tokens = TokenLosses(self.columns["kl"], tokens.scored, tokens.counted)
        return ResultRow(self.row.place, self.row.fields, _totals(self.sums, "kl"), tokens)


def read_divergence(fields: Fields, place: str) -> DivergenceRow:
    """Raises RowError for a field that is missing or of a wrong type, and for figures that cannot
    be: a divergence below 0, or that is not the sum of its tokens'."""
    check_identity(fields)
    n_tokens = count(fields, "n_tokens")
    check_arrays(fields, n_tokens)
    columns, tokens = None, None
    if fields.get("token_losses") is not None:
        columns, scored = _columns(fields, n_tokens)
        mask = fields.get("loss_mask")
        counted = scored if mask is None else scored & np.array(mask, dtype=bool)
        tokens = TokenLosses(columns["student_loss"], scored, counted)
    sums = _sums(fields, None if tokens is None or columns is None else columns, tokens)
    if columns is not None and tokens is not None:
        _check_sum(columns["kl"], tokens.counted, sums)
    kept = dict(fields)
    for name in ("token_ids", "byte_offsets"):
        if kept.get(name) is not None:
            kept[name] = np.array(kept[name], dtype=np.int64)
    return DivergenceRow(
        ResultRow(place, kept, _totals(sums, "student_loss"), tokens), sums, columns
    )


def _columns(fields: Fields, n: int) -> tuple[dict[str, Floats], Bools]:
    """What is null although the token is scored is infinite."""
    found: dict[str, Floats] = {}
    for name, key in _COLUMNS.items():
        written = fields.get(key)
        if written is None and name == "kl_at_most":
            continue
        if not isinstance(written, list) or len(written) != n:
            raise RowError("wrong_length", f"{key} is not as long as n_tokens {n} says")
        if not all(_is_figure(value, name) for value in written):
            raise RowError("impossible", f"field {key!r} holds what it cannot")
        found[name] = np.array(written, dtype=np.float64)  # None becomes NaN
    scored = ~np.isnan(found["teacher_entropy"])  # this one is never infinite
    filled = {
        name: np.where(scored, np.where(np.isnan(values), np.inf, values), 0.0)
        for name, values in found.items()
    }
    return filled, scored


def _is_figure(value: Any, name: str) -> bool:
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 1 if name == "delta_p" else _LEAST <= value < LARGEST


def _sums(
    fields: Fields, columns: Mapping[str, Floats] | None, tokens: TokenLosses | None
) -> DivergenceTotals:
    n_scored = count(fields, "n_scored")
    totals = {name: figure(fields, name) for name in SUMS}
    totals |= {name: number(fields, name) for name in _AT_MOST if name in fields}
    for name in _CUTS:
        if (mean := number(fields, f"mean_{name}")) is not None:
            totals[name] = mean * n_scored
    totals |= _deltas(fields, n_scored, columns, tokens)
    if any(total is not None and total < _LEAST for n, total in totals.items() if n != "delta_p"):
        raise RowError("impossible", "a sum is below 0")
    same = number(fields, "same_top1")
    known = {name: total for name, total in totals.items() if total is not None}
    return DivergenceTotals(
        n_sequences=1,
        n_sequences_scored=int(n_scored > 0),
        n_tokens=count(fields, "n_tokens"),
        n_scored=n_scored,
        units={name: to_units(total) for name, total in known.items()},
        n_infinite={name: 1 for name in totals if name not in known and n_scored},
        n_same_top1=round((same or 0.0) * n_scored),
        flags=flags_of(fields),
    )


def _deltas(
    fields: Fields,
    n_scored: int,
    columns: Mapping[str, Floats] | None,
    tokens: TokenLosses | None,
) -> dict[str, float | None]:
    """Sums of the changed probabilities: of the tokens, else of the row's means."""
    if columns is not None and tokens is not None:
        deltas = columns["delta_p"][tokens.counted]
        return {
            "delta_p": math.fsum(deltas.tolist()),
            "squared_delta_p": math.fsum((deltas**2).tolist()),
        }
    written = fields.get("delta_p")
    if not isinstance(written, Mapping):
        raise RowError("wrong_type", f"field 'delta_p' cannot be {written!r:.40}")
    mean, root = number(written, "mean") or 0.0, number(written, "rms") or 0.0
    return {"delta_p": mean * n_scored, "squared_delta_p": root**2 * n_scored}


def _totals(sums: DivergenceTotals, name: str) -> Totals:
    """Those of a loss, of one of the sums."""
    total, mean = sums.total(name), sums.mean(name)
    return Totals(
        n_sequences=1,
        n_sequences_scored=sums.n_sequences_scored,
        n_tokens=sums.n_tokens,
        n_scored=sums.n_scored,
        n_infinite=int(sums.n_scored > 0 and total is None),
        n_without_text=1,
        loss_units=to_units(total or 0.0),
        mean_loss_units=to_units(mean or 0.0),
    )


def _check_sum(kls: Floats, counted: Bools, sums: DivergenceTotals) -> None:
    if int(counted.sum()) != sums.n_scored:
        raise RowError("impossible", f"n_scored is not the {counted.sum()} of its tokens")
    total = sums.total("kl")
    if total is None:
        return
    found = math.fsum(kls[counted].tolist())
    if not abs(found - total) <= ROUNDING * max(1.0, abs(total)):
        raise RowError("impossible", f"kl is {total}, and its tokens' sum to {found}")


def _kl_units(row: DivergenceRow) -> int | None:
    return None if row.sums.n_infinite.get("kl") else row.sums.units.get("kl", 0)


DIVERGENCE_KINDS = {"diverge": RowKind(read_divergence, "kl", _kl_units)}
