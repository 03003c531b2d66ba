"""Rows of `seqloss diverge`, written and read back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Bools, Floats
from seqloss_cli.metrics.divergence import (
    FURTHER,
    SUMS,
    DivergenceScore,
    DivergenceTotals,
    Documents,
)
from seqloss_cli.metrics.totals import Totals, to_units
from seqloss_cli.results.schema import (
    LARGEST,
    ROUNDING,
    Fields,
    RowKind,
    RowMakers,
    check_arrays,
    check_identity,
    count,
    figure,
    flags_of,
    number,
)
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses
from seqloss_cli.results.writing.rows import Row, RowOptions, identity_row, numbers_or_null


def divergence_rows(
    options: RowOptions,
    documents: Documents,
    measured: Callable[[], Row | None],
    in_part: bool = False,
) -> RowMakers[DivergenceScore, DivergenceTotals]:
    """`documents` are those of the rows, for the totals' intervals; `measured` says at the end what
    the error of a file is that was saved by the way."""
    return RowMakers(
        lambda diverged, sums: divergence_row(diverged, sums, options),
        lambda sums, n_rejected, n_empty: divergence_totals_row(
            sums, documents, n_rejected, n_empty, measured(), in_part
        ),
        options.summary,
    )


def divergence_row(diverged: DivergenceScore, totals: DivergenceTotals, options: RowOptions) -> Row:
    """`totals` are those of this sequence."""
    sequence, sample = diverged.score.sequence, diverged.sample
    row = identity_row(sequence)
    if options.text:
        row["text"] = sequence.text
    if sample.meta is not None:
        row["meta"] = sample.meta
    row |= {"bos": sequence.bos, "eos": sequence.eos}
    row |= _sums_row(totals)
    row["flags"] = totals.flags
    row |= _infinite(diverged)
    if options.tokens:
        row |= _token_arrays(diverged, options)
    return row


def _sums_row(totals: DivergenceTotals) -> Row:
    row: Row = {"n_tokens": totals.n_tokens, "n_scored": totals.n_scored}
    names = (*SUMS, *(name for name in FURTHER if name in {*totals.units, *totals.n_infinite}))
    row |= {name: totals.total(name) for name in names if not name.endswith("_cut")}
    row |= {f"mean_{name}": totals.mean(name) for name in names}
    row["same_top1"] = totals.same_top1
    mean_square = totals.mean("squared_delta_p")
    row["delta_p"] = {
        "mean": totals.mean("delta_p"),
        "rms": None if mean_square is None else mean_square**0.5,
    }
    return row


def _infinite(diverged: DivergenceScore) -> Row:
    """Where losses and divergences are infinite, and so null."""
    found, scored = diverged.divergences, diverged.score.scored
    columns = {
        "inf_losses": found.student_losses,
        "inf_teacher_losses": found.reference_losses,
        "inf_kls": found.kls,
    }
    places = {name: np.flatnonzero(np.isinf(each) & scored) for name, each in columns.items()}
    return {name: each.tolist() for name, each in places.items() if len(each)}


def _token_arrays(diverged: DivergenceScore, options: RowOptions) -> Row:
    """Of every token, null where it has no loss."""
    score, found = diverged.score, diverged.divergences
    sequence, scored = score.sequence, score.scored
    columns = {
        "token_losses": found.cross_entropies,
        "teacher_entropies": found.reference_entropies,
        "kls": found.kls,
        "kls_at_most": found.kls_at_most,
        "student_losses": found.student_losses,
        "teacher_losses": found.reference_losses,
        "token_delta_p": found.delta_p,
    }
    row: Row = {"token_ids": sequence.token_ids.tolist(), "tokens": options.token_texts(sequence)}
    for name, values in columns.items():
        if values is not None:
            row[name] = numbers_or_null(values, scored)
    row["token_same_top1"] = [
        same if known else None
        for same, known in zip(found.same_top1.tolist(), scored.tolist(), strict=True)
    ]
    offsets = sequence.byte_offsets
    row["byte_offsets"] = None if offsets is None else offsets.tolist()
    if sequence.sample.labels is not None:
        row["loss_mask"] = sequence.loss_mask.astype(int).tolist()
    return row


def divergence_totals_row(
    totals: DivergenceTotals,
    documents: Documents,
    n_rejected: int,
    n_empty_lines: int,
    measured: Row | None,
    in_part: bool,
) -> Row:
    """`in_part`: gold is known in part, and divergences and cross-entropies are lower bounds."""
    means = documents.means()
    deltas, kls = documents.quantiles("delta_p"), documents.quantiles("kl")
    row: Row = {
        "n_sequences": totals.n_sequences,
        "n_sequences_scored": totals.n_sequences_scored,
        "n_rejected": n_rejected,
        "n_empty_lines": n_empty_lines,
        **_sums_row(totals),
    }
    row["kl_is"] = "at least" if in_part else "whole"
    row["delta_p"] |= {"quantiles": {str(q): each.value for q, each in deltas.items()}}
    row["kl_quantiles"] = {str(q): each.value for q, each in kls.items()}
    row["estimates"] = {_estimate_name(name): asdict(each) for name, each in means.items()} | {
        "delta_p_quantiles": {str(q): asdict(each) for q, each in deltas.items()},
        "kl_quantiles": {str(q): asdict(each) for q, each in kls.items()},
    }
    if measured is not None:
        row["saved"] = measured
    row["flags"] = totals.flags
    return row


def _estimate_name(name: str) -> str:
    return name if name in ("same_top1", "rms_delta_p") else f"mean_{name}"


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

    def counted_values(self) -> dict[str, Floats] | None:
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
