"""Rows of `seqloss diverge`, written and read back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.records import Bools, Floats, Rejected, TokenSequence
from seqloss_cli.metrics.divergence import (
    FURTHER,
    SUMS,
    DivergenceScore,
    DivergenceTotals,
    Documents,
)
from seqloss_cli.metrics.totals import Totals, to_units
from seqloss_cli.results.schema import (
    ABSENT,
    LARGEST,
    ROUNDING,
    Fields,
    Key,
    Kind,
    Row,
    RowKind,
    RowOptions,
    Rows,
    When,
    always,
    as_column,
    check_arrays,
    check_places,
    check_types,
    children,
    count,
    figure,
    flags_of,
    ints,
    number,
    numbers_or_null,
    possible,
    with_tokens,
)
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses
from seqloss_cli.results.schema.sequences import (
    BYTE_OFFSETS,
    ENDS,
    IDENTITY,
    LOSS_MASK,
    MASK_OF_TOKENS,
    META,
    POSITION,
    STARTS_AND_ENDS,
    TEXTS,
    TOKEN_IDS,
    TOKENS,
    expected_row,
    flags_key,
)

# -- written ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DivergenceView:
    """A sequence's divergences with its own totals."""

    diverged: DivergenceScore
    totals: DivergenceTotals
    options: RowOptions

    @property
    def sequence(self) -> TokenSequence:
        """Return the sequence that was scored."""
        return self.diverged.score.sequence

    def column(self, name: str) -> list[Any]:
        """Return an array of N tokens by its name in `Divergences`, null where unscored."""
        values = getattr(self.diverged.divergences, name)
        return ABSENT if values is None else numbers_or_null(values, self.diverged.score.scored)

    def infinite(self, name: str) -> list[int]:
        """Return the tokens where an array is infinite, and so null; ABSENT without any."""
        values = getattr(self.diverged.divergences, name)
        return ints(np.flatnonzero(np.isinf(values) & self.diverged.score.scored)) or ABSENT

    def has(self, name: str) -> bool:
        """Return whether the run has a sum."""
        return name in SUMS or name in self.totals.units or name in self.totals.n_infinite


def divergence_rows(
    options: RowOptions,
    documents: Documents,
    measured: Callable[[], Row | None],
    in_part: bool = False,
) -> Rows[DivergenceScore, DivergenceTotals, TokenSequence | Rejected]:
    """Return the rows of a run of `diverge`.

    `documents` are those of the rows, for the totals' intervals; `measured` gives at the end the
    error of a teacher's file that is saved beside.
    """

    def kept_sums(row: Fields, place: str, entry: TokenSequence | Rejected) -> DivergenceTotals:
        if any(f"mean_{name}" in row for name in _CUTS):
            raise UsageError(
                f"--resume: {place} holds the mean of what a head was cut by, of which the sum "
                "cannot be told to the last bit: --force starts anew"
            )
        found = read_divergence(row, place)
        documents.add(found.sums, found.counted_values())
        return found.sums

    return Rows(
        options,
        possible(options, DIVERGENCE_KEYS),
        {"token": possible(options, _TOKEN_COLUMNS)},
        lambda diverged, sums: DivergenceView(diverged, sums, options),
        lambda sums, n_rejected, n_empty: divergence_totals_row(
            sums, documents, n_rejected, n_empty, measured(), in_part
        ),
        lambda entry, row: expected_row(entry, row, options),
        kept_sums,
    )


def _sums_row(totals: DivergenceTotals) -> Row:
    """Return sums, means and shares, of one sequence or many."""
    names = [n for n in (*SUMS, *FURTHER) if n in {*SUMS, *totals.units, *totals.n_infinite}]
    row: Row = {"n_tokens": totals.n_tokens, "n_scored": totals.n_scored}
    row |= {name: totals.total(name) for name in names if not name.endswith("_cut")}
    row |= {f"mean_{name}": totals.mean(name) for name in names}
    return row | {"same_top1": totals.same_top1, "delta_p": _delta_p(totals)}


def _delta_p(totals: DivergenceTotals) -> Row:
    mean_square = totals.mean("squared_delta_p")
    root = None if mean_square is None else mean_square**0.5
    return {"mean": totals.mean("delta_p"), "rms": root}


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


def _with_teacher(options: RowOptions) -> bool:
    return options.run.teacher is not None


def _known_in_part(options: RowOptions) -> bool:
    return bool((options.run.teacher or {}).get("saved_as"))


def _when(name: str) -> When:
    """Return when rows can have a sum: bounds need a saved teacher, cuts two heads."""
    if name in SUMS:
        return always
    return _known_in_part if name.endswith("at_most") else _with_teacher


def _sum(name: str) -> Key:
    value = lambda v: v.totals.total(name) if v.has(name) else ABSENT  # noqa: E731
    return Key(name, Kind.real, value, _when(name))


def _mean(name: str) -> Key:
    value = lambda v: v.totals.mean(name) if v.has(name) else ABSENT  # noqa: E731
    return Key(f"mean_{name}", Kind.real, value, _when(name))


def _array(name: str, column: str, when: When = always) -> Key:
    return Key(
        name,
        Kind.reals,
        lambda v: v.column(column),
        lambda options: options.tokens and when(options),
    )


def _infinite(name: str, column: str) -> Key:
    return Key(name, Kind.wholes, lambda v: v.infinite(column))


def _same_top1(view: DivergenceView) -> list[bool | None]:
    same, scored = view.diverged.divergences.same_top1, view.diverged.score.scored
    pairs = zip(same.tolist(), scored.tolist(), strict=True)
    return [agree if known else None for agree, known in pairs]


_CROSS_ENTROPIES = _array("token_losses", "cross_entropies")
_ARRAYS = (
    (_array("teacher_entropies", "reference_entropies"), "teacher_entropy"),
    (_array("kls", "kls"), "kl"),
    (_array("kls_at_most", "kls_at_most", _known_in_part), "kl_at_most"),
    (_array("student_losses", "student_losses"), "student_loss"),
    (_array("teacher_losses", "reference_losses"), "teacher_loss"),
    (_array("token_delta_p", "delta_p"), "delta_p"),
)
"""Keys of arrays, and their columns where a line is a token."""
DIVERGENCE_KEYS = (
    *IDENTITY,
    *TEXTS,
    META,
    *ENDS,
    Key("n_tokens", Kind.whole, lambda v: v.totals.n_tokens),
    Key("n_scored", Kind.whole, lambda v: v.totals.n_scored),
    *(_sum(name) for name in (*SUMS, *FURTHER[:2])),
    *(_mean(name) for name in (*SUMS, *FURTHER)),
    Key("same_top1", Kind.real, lambda v: v.totals.same_top1),
    Key("delta_p", Kind.nested, lambda v: _delta_p(v.totals), cells=children("mean", "rms")),
    flags_key(lambda v: v.totals.flags),
    _infinite("inf_losses", "student_losses"),
    _infinite("inf_teacher_losses", "reference_losses"),
    _infinite("inf_kls", "kls"),
    TOKEN_IDS,
    TOKENS,
    _CROSS_ENTROPIES,
    *(key for key, _ in _ARRAYS),
    Key("token_same_top1", Kind.bools, _same_top1, with_tokens),
    BYTE_OFFSETS,
    LOSS_MASK,
)
"""Of a row, in the order of its JSON object."""
_TOKEN_COLUMNS = (
    POSITION,
    as_column(TOKEN_IDS, "token_id"),
    as_column(TOKENS, "token"),
    as_column(_CROSS_ENTROPIES, "loss"),
    Key("scored", Kind.wholes, lambda v: ints(v.diverged.score.scored)),
    MASK_OF_TOKENS,
    *STARTS_AND_ENDS,
    *(as_column(key, name) for key, name in _ARRAYS),
    Key("same_top1", Kind.wholes, lambda v: [n if n is None else int(n) for n in _same_top1(v)]),
)
"""What a line is at `--level token`; its loss is the cross-entropy."""


# -- read back ----------------------------------------------------------------------------------

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
    check_types(DIVERGENCE_KEYS, fields)
    n_tokens = count(fields, "n_tokens")
    check_arrays(DIVERGENCE_KEYS, fields, n_tokens)
    check_places(fields, "inf_losses", n_tokens)
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
    # Null is an infinite sum, but of a row without a scored token one that is 0.
    known = {n: total or 0.0 for n, total in totals.items() if total is not None or not n_scored}
    return DivergenceTotals(
        n_sequences=1,
        n_sequences_scored=int(n_scored > 0),
        n_tokens=count(fields, "n_tokens"),
        n_scored=n_scored,
        units={name: to_units(total) for name, total in known.items()},
        n_infinite={name: 1 for name in totals if name not in known},
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
