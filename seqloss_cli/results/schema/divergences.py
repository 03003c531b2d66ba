"""Rows of `seqloss diverge`, written and read back.

`s` are the declarations of keys, `q` the keys that all sequences have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.policies import DEFAULT_OVERLAP_K
from seqloss_cli.core.records import Bools, Entry, Floats, Rejections
from seqloss_cli.metrics import divergence as d
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.totals import Totals, to_units
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import sequences as q
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses, check_sum, loss_totals

_CUTS = tuple(name for name in d.OPTIONAL_SUMS if name.endswith("_cut"))
"""Probability beyond the ids that both models have: only the mean of it is written."""
_AT_MOST = tuple(name for name in d.OPTIONAL_SUMS if name.endswith("_at_most"))
"""Upper bounds, where a teacher is known in part."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The comparison that a run was to make, by its record."""

    has_teacher: bool = False
    is_saved: bool = False
    """The teacher is known from a file."""
    draft_length: int = 0
    """Tokens of a draft; 0 for none."""
    overlap_k: int = 0
    """Most probable ids of both that were compared."""

    @classmethod
    def of(cls, teacher: s.Fields | None, rows: s.Fields | None) -> Asked:
        """Return what the record says of its teacher and its rows; older ones say nothing."""
        if teacher is None:
            return cls()
        rows, saved = rows or {}, bool(teacher.get("saved_as"))
        least = [teacher.get("n_words"), teacher.get("top_k") if saved else None]
        overlap_k = min(rows.get("overlap_k") or DEFAULT_OVERLAP_K, *filter(None, least))
        return cls(True, saved, rows.get("draft_length") or 0, overlap_k)

    def conditions(self) -> dict[str, bool]:
        """Return the conditions of keys of totals, and which of them hold."""
        drafts = self.has_teacher and bool(self.draft_length)
        return {"teacher": self.has_teacher, "bounds": self.is_saved, "drafts": drafts}


@dataclass
class _View(q.SequenceView):
    asked: Asked = field(default_factory=Asked)


def divergence_rows(
    options: s.RowOptions,
    documents: d.DocumentSums,
    measured: Callable[[], s.Row | None],
    in_part: bool = False,
) -> s.Rows[d.DivergenceScore, d.DivergenceTotals, Entry]:
    """Return the rows of a run of `diverge`.

    `documents` are those of the rows, for the totals' intervals; `measured` gives at the end the
    error of a teacher's file that is saved beside. With `in_part` divergences are lower bounds.
    """
    asked = Asked.of(options.run.teacher, options.run.rows)

    def kept_sums(row: s.Fields, place: str, entry: Entry) -> d.DivergenceTotals:
        # A mean times a count is not, to the last bit, the sum that was divided by it.
        if any(f"mean_{name}" in row for name in _CUTS):
            raise UsageError(
                f"--resume: {place} holds the mean of what a head was cut by, of which the sum "
                "cannot be told to the last bit: --force starts anew"
            )
        found = read_divergence(row, place, asked)
        # In the order of the rows: which values a reservoir keeps depends on all before.
        documents.add(found.sums, found.counted_values())
        return found.sums

    def totals_row(sums: d.DivergenceTotals, rejected: Rejections, n_empty_lines: int) -> s.Row:
        counts = s.TotalsView(sums, rejected, n_empty_lines)
        return divergence_totals_row(counts, documents, in_part, asked, measured())

    return s.Rows(
        options,
        DIVERGENCE_KEYS,
        LEVELS,
        lambda each, sums: _View(options, each.score.sequence, each.score, sums, each, asked),
        totals_row,
        lambda entry, row: q.of_input(entry, row, options),
        kept_sums,
    )


def divergence_totals_row(
    counts: s.TotalsView,
    documents: d.DocumentSums,
    in_part: bool,
    asked: Asked,
    saved: s.Row | None = None,
) -> s.Row:
    """Return the totals of a run; with `in_part` divergences are lower bounds."""
    known = asked.conditions()
    keys = [key for key in TOTALS_KEYS if all(known.get(name, True) for name in key.when.split())]
    own = counts.sums, counts.rejected, counts.n_empty_lines
    return s.row_of(keys, _TotalsView(*own, documents, in_part, asked, saved))


@dataclass(frozen=True)
class _TotalsView(s.TotalsView):
    """The sums of a run and its documents: keys of totals take their values from here."""

    documents: d.DocumentSums
    in_part: bool
    asked: Asked
    saved: s.Row | None

    @cached_property
    def delta_ps(self) -> dict[float, Estimate]:
        """Return quantiles of changes of a probability, of no unit."""
        return self.documents.quantiles("delta_p")

    @cached_property
    def kls(self) -> dict[float, Estimate]:
        """Return quantiles of KL, nats."""
        return self.documents.quantiles("kl")


def _delta_p(totals: d.DivergenceTotals) -> s.Row:
    mean_square = totals.mean("squared_delta_p")
    root = None if mean_square is None else mean_square**0.5
    return {"mean": totals.mean("delta_p"), "rms": root}


def _delta_p_of_all(view: Any) -> s.Row:
    found = {str(q): each.value for q, each in view.delta_ps.items()}
    return _delta_p(view.sums) | {"quantiles": found}


def _estimates(view: Any) -> s.Row:
    means, deltas, kls = view.documents.means(), view.delta_ps, view.kls
    return {_estimate_name(name): asdict(each) for name, each in means.items()} | {
        "delta_p_quantiles": {str(q): asdict(each) for q, each in deltas.items()},
        "kl_quantiles": {str(q): asdict(each) for q, each in kls.items()},
    }


def _bins(sums: str, ends: Callable[[int], tuple[float, float | None]]) -> Callable[[Any], Any]:
    return lambda v: [asdict(each) for each in getattr(v.documents, sums).means(ends)]


def _estimate_name(name: str) -> str:
    plain = ("same_top1", "rms_delta_p", d.DRAFTS, d.DRAFTS_AT_MOST)
    return name if name in plain else f"mean_{name}"


_MEANINGS = {
    "cross_entropy": "Mean of H(q, p), q the teacher and p the model, nats.",
    "teacher_entropy": "Mean of H(q), nats.",
    "kl": "Mean of KL(q ‖ p), nats.",
    "student_loss": "Mean of the model's losses on the text itself, nats.",
    "teacher_loss": "Mean of the teacher's losses on the text itself, nats.",
    "student_cut": "Mean of the model's probability beyond the ids that both have.",
    "teacher_cut": "Mean of the teacher's probability beyond the ids that both have.",
    "delta_p": "Mean of the change of the probability of each token.",
    "reverse_kl": "Mean of KL(p ‖ q), nats.",
    "jensen_shannon": "Mean of the Jensen-Shannon divergence, nats.",
    "total_variation": "Mean of ½ Σ |p - q|, a probability.",
    "acceptance": "Mean of Σ min(p, q), a probability.",
    "top_k_overlap": "Mean of the share of the most probable ids that both have.",
}
_MEANINGS |= {
    name: f"{_MEANINGS[name.removesuffix('_at_most')]} An upper bound."
    for name in (*_AT_MOST, *d.MEASURES_AT_MOST)
}


def _sum(name: str, prefix: str, of: Callable[[d.DivergenceTotals, str], float | None]) -> s.Key:
    """Return the key of a sum or its mean; bounds need a saved teacher, cuts two heads."""

    def value(view: q.SequenceView) -> Any:
        known = name in d.SUMS or name in view.sums.units or name in view.sums.n_infinite
        return of(view.sums, name) if known else s.ABSENT

    when = "" if name in d.SUMS else "bounds" if name in _AT_MOST else "teacher"
    about = _MEANINGS[name]
    about = about if prefix else about.replace("Mean of ", "Sum of ")
    return s.real(prefix + name, value, when, optional=name not in d.SUMS, about=about)


def _measure(name: str) -> s.Key:
    """Return the key of the mean of a measure."""
    when = "bounds" if name in d.MEASURES_AT_MOST else "teacher"
    return s.real(f"mean_{name}", lambda view: view.sums.mean(name), when, about=_MEANINGS[name])


def _draft(
    name: str, value: Callable[[q.SequenceView], Any], about: str, when: str = "drafts"
) -> s.Key:
    return s.real(name, value, when, about=about)


def _tokens_per_step(view: q.SequenceView) -> float | None:
    accepted = view.sums.mean(d.DRAFTS)
    return None if accepted is None else accepted + 1


def _accepted_if_alike(view: Any) -> float | None:
    acceptance = view.sums.mean("acceptance")
    return None if acceptance is None else d.accepted_if_alike(acceptance, view.asked.draft_length)


def _of(sum_name: str) -> Callable[[q.SequenceView], Any]:
    """Return what takes the array of a sum's terms, shape N."""
    return lambda view: view.result.divergences.arrays.get(sum_name)


_COLUMNS = {
    "cross_entropy": "token_losses",
    "teacher_entropy": "teacher_entropies",
    "kl": "kls",
    "kl_at_most": "kls_at_most",
    "student_loss": "student_losses",
    "teacher_loss": "teacher_losses",
    "delta_p": "token_delta_p",
    **{name: f"{name}s" for name in d.MEASURES},
    **{f"{name}_at_most": f"{name}s_at_most" for name in d.MEASURES[1:-1]},
}
"""Name of a sum, and of a column of lines that are a token each, to the array of its tokens."""


def _when(name: str) -> str:
    """Return the conditions of an array of tokens."""
    if name.endswith("_at_most"):
        return "tokens bounds"
    return "tokens teacher" if name in d.MEASURES else "tokens"


def _of_token(name: str) -> str:
    about = _MEANINGS[name].removeprefix("Mean of ")
    return about[:1].upper() + about[1:]


_ARRAYS = {
    name: q.token_array(key, _of(name), _when(name), about=_of_token(name))
    for name, key in _COLUMNS.items()
}


def _infinite_reverse_kls(view: q.SequenceView) -> Any:
    values = _of("reverse_kl")(view)
    assert view.score is not None
    return s.ABSENT if values is None else s.infinite_places(values, view.score.scored)


_SAME_TOP1 = q.token_array(
    "token_same_top1",
    lambda v: v.result.divergences.same_top1,
    declare=s.bools,
    length=0,
    optional=False,
    about="Both hold the same token most probable.",
)
_DELTA_P = (
    s.real("mean", "mean", about="Mean, a probability."),
    s.real("rms", "rms", about="Root mean square, a probability."),
)
_SUM_KEYS = (
    *q.SIZES,
    # Of what heads were cut by, rows hold means only.
    *(_sum(name, "", d.DivergenceTotals.total) for name in (*d.SUMS, *_AT_MOST)),
    *(_sum(name, "mean_", d.DivergenceTotals.mean) for name in (*d.SUMS, *d.OPTIONAL_SUMS)),
    s.real("same_top1", "sums.same_top1", about=(d.DivergenceTotals, "same_top1")),
    *map(_measure, (*d.MEASURES, *d.MEASURES_AT_MOST)),
    s.whole(
        "n_draft_starts", "sums.n_draft_starts", "drafts", about="Tokens that a draft begins at."
    ),
    _draft(
        d.DRAFTS,
        lambda view: view.sums.mean(d.DRAFTS),
        "Mean of the tokens of a draft that are accepted.",
    ),
    _draft(
        d.DRAFTS_AT_MOST,
        lambda view: view.sums.mean(d.DRAFTS_AT_MOST),
        "Its upper bound.",
        "drafts bounds",
    ),
    _draft("tokens_per_step", _tokens_per_step, "Accepted tokens, and one more."),
    _draft(
        f"{d.DRAFTS}_if_alike",
        _accepted_if_alike,
        "Accepted tokens if each is with the mean acceptance.",
    ),
    s.nested(
        "delta_p",
        lambda v: _delta_p(v.sums),
        cells=s.children("mean", "rms"),
        of=_DELTA_P,
        about="Change of the probability of each token, the model's less the teacher's.",
    ),
)
"""Sums, means and shares, of one sequence or many."""
_BY_BIN = "KL, acceptance and same_top1 of the tokens in bins of "
TOTALS_KEYS = (
    *(s.whole(n, f"sums.{n}", about=(Totals, n)) for n in ("n_sequences", "n_sequences_scored")),
    *s.UNSCORED,
    *_SUM_KEYS[:-1],
    s.nested(
        "delta_p",
        _delta_p_of_all,
        of=(
            *_DELTA_P,
            s.nested(
                "quantiles", "quantiles", of=dict[str, float | None], about="Quantiles over tokens."
            ),
        ),
        about=_SUM_KEYS[-1].about,
    ),
    s.text(
        "kl_is",
        lambda v: "at least" if v.in_part else "whole",
        of=Literal["whole", "at least"],
        about="Whether divergences are lower bounds.",
    ),
    s.whole("overlap_k", "asked.overlap_k", "teacher", about="Ids of top-k overlap."),
    s.nested(
        "by_position",
        _bins("positions", d.position_ends),
        "teacher",
        of=list[d.BinMeans],
        about=f"{_BY_BIN}positions.",
    ),
    s.nested(
        "by_teacher_entropy",
        _bins("entropies", d.entropy_ends),
        "teacher",
        of=list[d.BinMeans],
        about=f"{_BY_BIN}the teacher's entropy.",
    ),
    s.nested(
        "kl_quantiles",
        lambda v: {str(q): each.value for q, each in v.kls.items()},
        of=dict[str, float | None],
        about="Of KL over tokens, nats.",
    ),
    s.nested(
        "estimates",
        _estimates,
        of=dict[str, Estimate | dict[str, Estimate]],
        about="The figures above with their intervals over documents.",
    ),
    s.nested(
        "saved",
        lambda v: s.ABSENT if v.saved is None else v.saved,
        of=dict[str, Any],
        optional=True,
        about="With --save-teacher: what the file leaves out.",
    ),
    q.flags_key("sums.flags"),
)
"""Keys of totals, in their order; those that are not known are left out by what was asked for."""
_MODEL = s.text("model", "result.model", "models", about="Its name, as it was typed.")
"""Only where a row is of an input and one of several models."""
DIVERGENCE_KEYS = (
    *q.FIRST_KEYS,
    _MODEL,
    *_SUM_KEYS,
    q.flags_key("sums.flags"),
    q.infinite_key("inf_losses", _of("student_loss")),
    q.infinite_key("inf_teacher_losses", _of("teacher_loss")),
    q.infinite_key("inf_kls", _of("kl")),
    s.wholes(
        "inf_reverse_kls",
        _infinite_reverse_kls,
        "teacher",
        optional=True,
        about="Tokens whose reverse KL is infinite.",
    ),
    *q.TOKENS,
    *_ARRAYS.values(),
    _SAME_TOP1,
    q.BYTE_OFFSETS,
    q.LOSS_MASK,
)
"""Keys of a row, in the order of its JSON object."""
_TOKEN_COLUMNS = (
    *q.TOKEN,
    s.texts(
        "model",
        lambda v: [v.result.model] * v.sequence.n_tokens,
        "models",
        about=_MODEL.about,
    ),
    s.as_column(_ARRAYS["cross_entropy"], "loss"),
    *q.SCORED,
    *(s.as_column(key, name) for name, key in _ARRAYS.items() if name != "cross_entropy"),
    s.wholes(
        "same_top1",
        lambda v: [n if n is None else int(n) for n in _SAME_TOP1.value(v)],
        about="1 where both hold the same token most probable, else 0; null where not scored.",
    ),
)
"""Columns of a line at `--level token`; its loss is the cross-entropy."""
LEVELS = {"token": _TOKEN_COLUMNS}


_SHARES = ("total_variation", "acceptance", "top_k_overlap")
_LEAST = -1e-6
"""A divergence is not below 0, but for rounding."""


@dataclass(frozen=True, slots=True)
class DivergenceRow:
    """A sequence as a results file of `diverge` tells of it."""

    row: ResultRow
    """With the model's own losses on the text."""
    sums: d.DivergenceTotals
    columns: Mapping[str, Floats] | None
    """Arrays by the names of sums: shape N, nats or changes of a probability. They may be infinite,
    and mean nothing at tokens that are not scored. None if the row was written without tokens."""

    def counted_values(self) -> dict[str, Floats] | None:
        """Return the figures for `DocumentSums` at n counted tokens: shape n, nats or shares."""
        if self.columns is None or self.row.tokens is None:
            return None
        same = np.array(self.row.fields[_SAME_TOP1.name], dtype=np.float64)
        return d.token_values(self.columns, same, self.row.tokens.counted)

    def with_kls(self) -> ResultRow:
        """Return the row as if its divergences, nats, were its losses."""
        tokens = self.row.tokens
        if self.columns is not None and tokens is not None:
            tokens = TokenLosses(self.columns["kl"], tokens.scored, tokens.counted)
        return ResultRow(self.row.place, self.row.fields, _totals(self.sums, "kl"), tokens)


def read_divergence(fields: s.Fields, place: str, asked: Asked | None = None) -> DivergenceRow:
    """Return a row with its sums and arrays.

    Sums of the other measures, and of the drafts that were asked for, are made of tokens, as rows
    hold means. They are unknown of rows of an older file.

    Raises RowError for a field that is missing or of a wrong type, and for impossible figures: a
    divergence below 0, or that is not the sum of its tokens'.
    """
    s.check_types(DIVERGENCE_KEYS, fields)
    n_tokens = s.count(fields, "n_tokens")
    s.check_arrays(DIVERGENCE_KEYS, fields, n_tokens)
    columns = tokens = None
    if fields.get("token_losses") is None:
        sums = _sums(fields, None)
    else:
        columns, scored = _columns(fields, n_tokens)
        tokens = TokenLosses.of(columns["student_loss"], scored, fields)
        sums = _sums(fields, columns["delta_p"][tokens.counted])
        asked = asked or Asked("mean_acceptance" in fields)
        if asked.has_teacher:
            sums = sums + _measures(columns, tokens.counted, asked.draft_length)
        # Null is an infinite sum; then one of the tokens is infinite, too, and so listed.
        kls = columns["kl"][tokens.counted]
        check_sum(kls, sums.n_scored, sums.total("kl"), "kl", "its tokens'")
    row = ResultRow(place, s.with_arrays(fields), _totals(sums, "student_loss"), tokens)
    return DivergenceRow(row, sums, columns)


def _measures(
    columns: Mapping[str, Floats], counted: Bools, draft_length: int
) -> d.DivergenceTotals:
    """Return the sums of measures of N tokens, nats or shares, shape N; of no sequence."""
    drafts, n_starts = d.draft_sums(columns, counted, draft_length)
    terms = {n: columns[n][counted] for n in (*d.MEASURES, *d.MEASURES_AT_MOST) if n in columns}
    units, missing = {}, {}
    for name, values in (terms | drafts).items():
        if np.isinf(values).any():
            missing[name] = int(np.isinf(values).sum())
        else:
            units[name] = to_units(math.fsum(values.tolist()))
    asked = (*d.MEASURES, *([d.DRAFTS] if draft_length else []))
    missing |= {name: 1 for name in asked if name not in units and name not in missing}
    if "acceptance_at_most" in columns:
        missing["reverse_kl_at_most"] = 1
    return d.DivergenceTotals(units=units, n_infinite=missing, n_draft_starts=n_starts)


def _columns(fields: s.Fields, n: int) -> tuple[dict[str, Floats], Bools]:
    """Return arrays of N tokens by the names of sums, and which tokens are scored."""
    found: dict[str, Floats] = {}
    s.typed(fields, _SAME_TOP1.name, list)
    for name, key in _COLUMNS.items():
        written = fields.get(key)
        if written is None and (name.endswith("_at_most") or name in d.MEASURES):
            continue
        if not isinstance(written, list) or len(written) != n:
            raise RowError("wrong_length", f"{key} is not as long as n_tokens {n} says")
        if not all(_is_figure(value, name) for value in written):
            raise RowError("impossible", f"field {key!r} holds what it cannot")
        # None becomes NaN.
        found[name] = np.array(written, dtype=np.float64)
    # An entropy is never infinite, so null there is a token that is not scored; elsewhere null may
    # be an infinite figure.
    scored = ~np.isnan(found["teacher_entropy"])
    filled = {
        name: np.where(scored, np.where(np.isnan(values), np.inf, values), 0.0)
        for name, values in found.items()
    }
    return filled, scored


def _is_figure(value: Any, name: str) -> bool:
    # JSON's `true` is an int to Python. Null is an infinite figure, or that of an unscored token.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value is None
    if name == "delta_p":
        return abs(value) <= 1
    most = 1.0 if name.partition("_at_most")[0] in _SHARES else s.LARGEST
    return _LEAST <= value <= most


def _sums(fields: s.Fields, deltas: Floats | None) -> d.DivergenceTotals:
    """Return the sums of a row; `deltas` are those of its n counted tokens, where they are known.

    Without them, sums of the changes are made of the row's means, and so to rounding only.
    """
    n_scored = s.count(fields, "n_scored")
    totals = {name: s.figure(fields, name) for name in d.SUMS}
    totals |= {name: s.number(fields, name) for name in _AT_MOST if name in fields}
    for name in _CUTS:
        if (mean := s.number(fields, f"mean_{name}")) is not None:
            totals[name] = mean * n_scored
    if deltas is None:
        written = s.typed(fields, "delta_p", Mapping)
        mean, root = (s.number(written, name) or 0.0 for name in ("mean", "rms"))
        totals |= {"delta_p": mean * n_scored, "squared_delta_p": root**2 * n_scored}
    else:
        # Not of the means, which were divided and rooted: the sums come out as they were.
        totals["delta_p"] = math.fsum(deltas.tolist())
        totals["squared_delta_p"] = math.fsum((deltas**2).tolist())
    least = dict.fromkeys(totals, _LEAST) | {"delta_p": -math.inf}
    same = s.number(fields, "same_top1") or 0.0
    are_sums = all(total is None or least[n] <= total < math.inf for n, total in totals.items())
    if not (are_sums and 0 <= same <= 1):
        raise RowError("impossible", "a sum is below 0, or infinite, or a share is none")
    # Null is an infinite sum, but of a row without a scored token one that is 0.
    known = {n: total or 0.0 for n, total in totals.items() if total is not None or not n_scored}
    return d.DivergenceTotals(
        n_sequences=1,
        n_sequences_scored=int(n_scored > 0),
        n_tokens=s.count(fields, "n_tokens"),
        n_scored=n_scored,
        units={name: to_units(total) for name, total in known.items()},
        n_infinite={name: 1 for name in totals if name not in known},
        # A share of so many tokens: the nearest whole number is the one that was divided.
        n_same_top1=round(same * n_scored),
        flags=s.flags_of(fields),
    )


def _totals(sums: d.DivergenceTotals, name: str) -> Totals:
    """Return the totals of one sequence of which one of the sums is the loss."""
    units = to_units(sums.mean(name) or 0.0)
    return loss_totals(
        sums.n_scored,
        sums.total(name),
        n_tokens=sums.n_tokens,
        n_without_text=1,
        mean_loss_units=units,
    )


DIVERGENCE_KINDS = {
    "diverge": s.RowKind(
        read_divergence,
        "kl",
        lambda row: None if row.sums.n_infinite.get("kl") else row.sums.units.get("kl", 0),
    )
}
