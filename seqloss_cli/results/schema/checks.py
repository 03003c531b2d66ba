"""Rows of `seqloss check`: recorded and scored log-probabilities, and how they differ.

`s` are the declarations of keys, `q` the keys that all sequences have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.records import Floats, Rejections
from seqloss_cli.metrics import deltas as d
from seqloss_cli.metrics.faults import Diagnosis
from seqloss_cli.metrics.totals import to_units
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import sequences as q
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses, loss_totals


class CheckView(q.SequenceView):
    """A sequence beside its recording: keys take their values from here."""

    result: d.RecordedScore
    sums: d.DeltaTotals

    @cached_property
    def figures(self) -> d.SequenceDeltas:
        """Return the sequence's own figures."""
        return d.sequence_deltas(self.result)


def check_rows(
    options: s.RowOptions, documents: d.DeltaDocuments, diagnosis: Callable[[], Diagnosis]
) -> s.Rows[d.RecordedScore, d.DeltaTotals, Any]:
    """Return the rows of a run of `check`; `diagnosis` is asked for when all rows are written."""

    def kept(row: s.Fields, place: str, entry: Any) -> d.DeltaTotals:
        raise UsageError(f"{place}: --resume does not go on with a check")

    def totals(sums: d.DeltaTotals, rejected: Rejections, n_empty_lines: int) -> s.Row:
        return check_totals(sums, rejected, n_empty_lines, documents, diagnosis())

    return s.Rows(
        options,
        CHECK_KEYS,
        {"token": _TOKEN_COLUMNS},
        lambda found, sums: CheckView(options, found.score.sequence, found.score, sums, found),
        totals,
        lambda entry, row: {},
        kept,
    )


def check_totals(
    sums: d.DeltaTotals,
    rejected: Rejections,
    n_empty_lines: int,
    documents: d.DeltaDocuments,
    found: Diagnosis,
) -> s.Row:
    """Return the totals of a run."""
    estimates, worst = documents.estimates(), documents.max_abs
    counts = ("n_tokens", "n_recorded", "n_compared", "n_sampled", "n_beyond")
    row: s.Row = s.attributes(sums, "n_sequences", "n_sequences_compared")
    row |= s.unscored_counts(rejected, n_empty_lines) | s.attributes(sums, *counts)
    row |= {name: each.value for name, each in estimates.items()}
    row |= {"threshold": documents.threshold, "share_beyond": sums.share_beyond}
    row["max_abs_delta"] = None if worst is None else worst[0]
    row["max_abs_delta_at"] = None if worst is None else {"id": worst[1], "position": worst[2]}
    row |= documents.weights()
    row["verdict"] = found.verdict
    row["diagnosis"] = [
        {"fault": each.name, "parameters": {**each.parameters}, "explains": each.explains}
        for each in found.faults
    ]
    row["diagnosed"] = {
        **s.attributes(found, "n_sequences", "n_tokens"),
        "mean_abs_delta": found.mean_abs,
        "mean_abs_delta_left": found.mean_abs_left,
    }
    row["estimates"] = {name: asdict(each) for name, each in estimates.items()}
    return row | {"flags": sums.flags}


def _at_compared(name: str, of: Callable[[d.RecordedScore], Any]) -> s.Key:
    """Return the key of an array of shape N, null where not both values are there."""
    return s.reals(
        name, lambda v: s.numbers_or_null(of(v.result), v.result.compared), "tokens", length=0
    )


def _sampled(view: CheckView) -> Any:
    sampled = view.result.sampled
    return s.ABSENT if sampled is None else s.ints(sampled)


def _kl(name: str) -> s.Key:
    return s.real(name, lambda v: v.figures.kls[name])


_RECORDED = s.reals(
    "recorded_log_probs",
    lambda v: s.numbers_or_null(v.result.log_probs, v.result.recorded),
    "tokens",
    length=0,
)
_SCORED = q.token_array("scored_log_probs", lambda v: v.result.scored_log_probs, length=0)
_DELTAS = _at_compared("deltas", lambda found: found.deltas)
_SAMPLED = s.wholes("sampled_mask", _sampled, "tokens", length=0)
CHECK_KEYS = (
    *q.IDENTITY,
    q.META,
    *q.BOS_AND_EOS,
    *(
        s.whole(name, f"sums.{name}")
        for name in ("n_tokens", "n_recorded", "n_compared", "n_sampled", "n_beyond")
    ),
    s.real("mean_delta", "figures.mean"),
    s.real("median_delta", "figures.median"),
    s.real("mean_abs_delta", "figures.mean_abs"),
    s.real("max_abs_delta", "figures.max_abs"),
    s.whole("max_abs_delta_at", "figures.max_abs_at"),
    *(_kl(name) for name in d.KLS),
    s.real("log_weight", "figures.log_weight"),
    q.flags_key("sums.flags"),
    q.infinite_key("inf_losses", lambda v: v.score.losses, checked=True),
    *q.TOKENS,
    _RECORDED,
    _SCORED,
    _DELTAS,
    _SAMPLED,
)
"""Keys of a row, in the order of its JSON object."""
_TOKEN_COLUMNS = (
    *q.TOKEN,
    s.as_column(_RECORDED, "recorded_log_prob"),
    s.as_column(_SCORED, "scored_log_prob"),
    s.as_column(_DELTAS, "delta"),
    s.wholes(
        "sampled",
        lambda v: [None] * len(v.result.log_probs) if v.result.sampled is None else _sampled(v),
    ),
)
"""Columns of a line at `--level token`."""


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A sequence as a results file of `check` tells of it."""

    row: ResultRow
    """With |Δ| in the place of losses."""
    columns: dict[str, Floats] | None
    """`deltas`, `recorded_log_probs` and `scored_log_probs`, shape N, nats; NaN where there is
    none. None if the row was written without tokens."""


def read_check(fields: s.Fields, place: str) -> CheckRow:
    """Return a row with its arrays. Raises RowError for a field that is missing or of a wrong
    type."""
    s.check_types(CHECK_KEYS, fields)
    n, n_compared = s.count(fields, "n_tokens"), s.count(fields, "n_compared")
    s.check_arrays(CHECK_KEYS, fields, n)
    mean, columns, tokens = s.figure(fields, "mean_abs_delta"), None, None
    if fields.get("deltas") is not None:
        columns = {key.name: _numbers(fields, key.name) for key in (_DELTAS, _RECORDED, _SCORED)}
        sizes = np.abs(columns["deltas"])
        compared = np.isfinite(sizes)
        if int(compared.sum()) != n_compared:
            raise RowError("impossible", "n_compared is not the number of its deltas")
        tokens = TokenLosses(np.where(compared, sizes, 0.0), compared, compared)
    total = None if mean is None else mean * n_compared
    sums = loss_totals(n_compared, total, n_tokens=n, n_without_text=1)
    return CheckRow(ResultRow(place, s.with_arrays(fields), sums, tokens), columns)


def _numbers(fields: s.Fields, name: str) -> Floats:
    written = s.typed(fields, name, list)
    if not all(each is None or s.number({name: each}, name) is not None for each in written):
        raise RowError("wrong_type", f"field {name!r} holds what is no number")
    return np.array(written, dtype=np.float64)


CHECK_KINDS = {
    "check": s.RowKind(
        read_check, "n_compared", lambda row: to_units(float(row.row.totals.n_scored))
    )
}
