"""Rows of `seqloss check`: recorded and scored log-probabilities, and how they differ.

`s` are the declarations of keys, `q` the keys that all sequences have.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from seqloss_cli.core.columns import LOGIT_SHAPE, TEMPERATURES
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Floats, Rejections, Sample, SequenceScore, TokenSequence
from seqloss_cli.metrics import deltas as d
from seqloss_cli.metrics.faults import Checking, Diagnosis, Verdict
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.totals import to_units
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import sequences as q
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses, loss_totals


@dataclass
class CheckView(q.SequenceView):
    """A sequence beside its recording: keys take their values from here."""

    is_examined: bool = False
    """The diagnosis may look at it."""

    @cached_property
    def figures(self) -> d.SequenceDeltas:
        """Return the sequence's own figures."""
        return d.sequence_deltas(self.result)


def check_rows(
    options: s.RowOptions, checking: Checking
) -> s.Rows[d.RecordedScore, d.DeltaTotals, Any]:
    """Return the rows of a run of `check`, of which `checking` gathers figures."""
    with_logits = options.run.model is not None

    def view_of(found: d.RecordedScore, sums: d.DeltaTotals) -> CheckView:
        own = options, found.score.sequence, found.score, sums, found
        return CheckView(*own, is_examined=checking.has_kept)

    def of_input(entry: Any, row: s.Fields) -> s.Row:
        if isinstance(entry, TokenSequence):
            return _of_recording(entry, row, options)
        # Of two recordings all of a row follows from them.
        sums = d.delta_totals(entry, checking.documents.threshold)
        return s.row_of(
            rows.keys, CheckView(options, entry.score.sequence, entry.score, sums, entry)
        )

    rows = s.Rows[d.RecordedScore, d.DeltaTotals, Any](
        options,
        CHECK_KEYS,
        LEVELS,
        view_of,
        lambda sums, rejected, n_empty_lines: check_totals(sums, rejected, n_empty_lines, checking),
        of_input,
        lambda row, place, entry: take_row(row, checking, with_logits),
    )
    return rows


def check_totals(
    sums: d.DeltaTotals, rejected: Rejections, n_empty_lines: int, checking: Checking
) -> s.Row:
    """Return the totals of a run."""
    found = checking.diagnosis()
    view = _CheckTotals(sums, rejected, n_empty_lines, checking.documents, found)
    return s.row_of(CHECK_TOTALS, view)


def _of_recording(entry: TokenSequence, row: s.Fields, options: s.RowOptions) -> s.Row:
    """Return what a row of this input holds before it is scored."""
    view, recording = q.SequenceView(options, entry), d.aligned(entry)
    there = [key for key in (q.META,) if key.name in row]
    return {
        **s.row_of(q.IDENTITY, view),
        **s.row_with_nulls(there, view),
        "n_tokens": entry.n_tokens,
        "n_prompt_tokens": recording.n_prompt,
        "token_ids": entry.token_ids.tolist(),
        "recorded_log_probs": s.numbers_or_null(
            recording.log_probs, np.isfinite(recording.log_probs)
        ),
        "sampled_mask": s.ints(recording.sampled),
    }


@dataclass(frozen=True)
class _CheckTotals(s.TotalsView):
    """The sums of a run, its documents and what was found: keys of totals take values from here."""

    documents: d.DeltaDocuments
    found: Diagnosis

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Return figures of all documents, nats, with their intervals."""
        return self.documents.estimates()

    @cached_property
    def weights(self) -> dict[str, Any]:
        """Return figures of the weights of importance sampling."""
        return self.documents.weights()


def _worst(view: _CheckTotals) -> s.Row | None:
    worst = view.documents.max_abs
    return None if worst is None else {"id": worst[1], "position": worst[2]}


def _estimate(name: str) -> s.Key:
    return s.real(name, lambda v: v.estimates[name].value, about="Over all documents: nats.")


def _count(name: str) -> s.Key:
    return s.whole(name, f"sums.{name}", about=(d.DeltaTotals, name))


def _of_drawn(name: str) -> s.Key:
    """Return the key of a quantile over tokens, which none has without a token."""
    return s.only_if(lambda v: name in v.estimates, _estimate(name))[0]


@dataclass(frozen=True, slots=True)
class WorstPlace:
    """The place of the greatest difference."""

    id: str
    """The input's id."""
    position: int
    """The token's place, from 0."""


@dataclass(frozen=True, slots=True)
class FaultRow:
    """A fault that explains differences."""

    fault: str
    """Its name."""
    parameters: dict[str, Any]
    """Names to values that were found, such as a temperature."""
    explains: float | None
    """Share of the mean of |Δ| that goes with it."""


_DIAGNOSED = (
    s.whole("n_sequences", "n_sequences", about="Sequences that were looked at."),
    s.whole("n_tokens", "n_tokens", about="Tokens of these."),
    s.real("mean_abs_delta", "mean_abs", about="Mean of |Δ| before any fault, nats."),
    s.real("mean_abs_delta_left", "mean_abs_left", about="The same beyond the faults, nats."),
)
_COUNTS = ("n_tokens", "n_recorded", "n_compared", "n_sampled", "n_beyond")
CHECK_TOTALS = (
    _count("n_sequences"),
    _count("n_sequences_compared"),
    *s.UNSCORED,
    *map(_count, _COUNTS),
    _estimate("mean_delta"),
    _estimate("mean_abs_delta"),
    *map(_of_drawn, ("median_delta", "median_abs_delta", "p99_abs_delta")),
    *map(_estimate, d.KLS),
    s.real("share_beyond", "sums.share_beyond", about="Share of tokens beyond the threshold."),
    s.real("threshold", "documents.threshold", of=float, about="--threshold, nats."),
    s.real(
        "max_abs_delta",
        lambda v: v.documents.max_abs and v.documents.max_abs[0],
        about="The greatest |Δ|, nats.",
    ),
    s.nested(
        "max_abs_delta_at",
        _worst,
        of=WorstPlace | None,
        about="Where it is; null where nothing is compared.",
    ),
    s.nested(
        "effective_sample_size",
        lambda v: v.weights["effective_sample_size"],
        of=dict[str, float | None],
        about="(Σw)² / (n Σw²) of the weights w = e^Δ of tokens and of sequences.",
    ),
    s.nested(
        "weight_quantiles",
        lambda v: v.weights["weight_quantiles"],
        of=dict[str, dict[str, float | None]],
        about="Quantiles of these weights.",
    ),
    s.text("verdict", "found.verdict", of=Verdict, about="What the differences come to."),
    s.nested(
        "diagnosis",
        lambda v: [
            {"fault": each.name, "parameters": {**each.parameters}, "explains": each.explains}
            for each in v.found.faults
        ],
        of=list[FaultRow],
        about="Faults that explain them, the first one first.",
    ),
    s.nested(
        "diagnosed",
        lambda v: s.row_of(_DIAGNOSED, v.found),
        of=_DIAGNOSED,
        about="What the faults were looked for in.",
    ),
    s.nested(
        "estimates",
        lambda v: {name: asdict(each) for name, each in v.estimates.items()},
        of=dict[str, Estimate],
        about="The figures above with their intervals over documents.",
    ),
    q.flags_key("sums.flags"),
)
"""Keys of totals."""


def _at_compared(name: str, of: Callable[[d.RecordedScore], Any]) -> s.Key:
    """Return the key of an array of shape N, null where not both values are there."""
    return s.reals(
        name,
        lambda v: s.numbers_or_null(of(v.result), v.result.compared),
        "tokens",
        length=0,
        about="Δ of each token, scored less recorded, nats.",
    )


def _sampled(view: CheckView) -> Any:
    sampled = view.result.sampled
    return s.ABSENT if sampled is None else s.ints(sampled)


def _kl(name: str) -> s.Key:
    return s.real(
        name,
        lambda v: v.figures.kls[name],
        about="Estimate of KL, nats per token; null where nothing is compared.",
    )


_RECORDED = s.reals(
    "recorded_log_probs",
    lambda v: s.numbers_or_null(v.result.log_probs, v.result.recorded),
    "tokens",
    length=0,
    about="The log-probability of each token as it was recorded, nats.",
)
_SCORED = q.token_array(
    "scored_log_probs",
    lambda v: v.result.scored_log_probs,
    length=0,
    about="The same as it was scored, nats.",
)
_DELTAS = _at_compared("deltas", lambda found: found.deltas)
_SAMPLED = s.wholes(
    "sampled_mask", _sampled, "tokens", length=0, optional=True, about="1 where it was sampled."
)


@dataclass(frozen=True, slots=True)
class LogitShapeRow:
    """Logits of the M compared tokens of a row, as far as a diagnosis goes by them."""

    log_sums: str
    """Base64 of M x 19 float64s: ln Σ exp(z), and ln Σ exp(z / T) at each of 18 temperatures."""
    top_logits: str
    """Base64 of M x K numbers: the greatest logits, 128 or all."""
    of: str
    """Their type: `float32` or `float64`, little-endian."""


def _logits(view: CheckView) -> Any:
    """Return the logits of a row that the diagnosis may look at, once shards are merged."""
    compared, columns = view.result.compared, view.result.score.columns
    if not (view.is_examined and columns and compared.any()):
        return s.ABSENT
    normalisers, tempered, top = (columns[name][compared] for name in LOGIT_SHAPE.array_names)
    # As exact as they are: what is merged is to name the same faults.
    is_single = np.array_equal(top.astype(np.float32), top)
    return {
        "log_sums": _base64(np.column_stack([normalisers, tempered]), "float64"),
        "top_logits": _base64(top, of := "float32" if is_single else "float64"),
        "of": of,
    }


def _base64(values: Any, of: str) -> str:
    """Return numbers of any shape and unit as text."""
    return base64.b64encode(np.asarray(values, _type(of)).tobytes()).decode()


def _type(of: str) -> Any:
    # Of one byte order on every machine.
    return np.dtype(of).newbyteorder("<")


_LOGITS = s.nested(
    "logit_shape", _logits, "tokens shard", of=LogitShapeRow, bulky=True, optional=True,
    about="In shards, of rows that the diagnosis may look at: logits of their compared tokens.",
)  # fmt: skip
CHECK_KEYS = (
    *q.IDENTITY,
    q.META,
    *q.BOS_AND_EOS,
    *map(_count, _COUNTS),
    s.whole(
        "n_prompt_tokens",
        lambda v: s.ABSENT if v.result.n_prompt is None else v.result.n_prompt,
        optional=True,
        about="Tokens before the response; not there where the row does not tell.",
    ),
    s.real("mean_delta", "figures.mean", about="Mean of Δ, scored less recorded, nats."),
    s.real("median_delta", "figures.median", about="Its median, nats."),
    s.real("mean_abs_delta", "figures.mean_abs", about="Mean of |Δ|, nats."),
    s.real("max_abs_delta", "figures.max_abs", about="The greatest |Δ|, nats."),
    s.whole(
        "max_abs_delta_at",
        "figures.max_abs_at",
        of=int | None,
        about="Its token; null where nothing is compared.",
    ),
    *(_kl(name) for name in d.KLS),
    s.real("log_weight", "figures.log_weight", about=(d.SequenceDeltas, "log_weight")),
    q.flags_key("sums.flags"),
    q.infinite_key("inf_losses", lambda v: v.score.losses, checked=True),
    *q.TOKENS,
    _RECORDED,
    _SCORED,
    _DELTAS,
    _SAMPLED,
    _LOGITS,
)
"""Keys of a row, in the order of its JSON object."""
OF_SHARDS = (_LOGITS.name,)
"""Keys of rows of shards that rows of a whole run lack."""
_TOKEN_COLUMNS = (
    *q.TOKEN,
    s.as_column(_RECORDED, "recorded_log_prob"),
    s.as_column(_SCORED, "scored_log_prob"),
    s.as_column(_DELTAS, "delta"),
    s.wholes(
        "sampled",
        lambda v: [None] * len(v.result.log_probs) if v.result.sampled is None else _sampled(v),
        about="1 where the token was sampled, else 0; null where the row does not tell.",
    ),
)
"""Columns of a line at `--level token`."""
LEVELS = {"token": _TOKEN_COLUMNS}


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
    # Rows wait in memory, and nothing but `merge` looks at logits.
    kept = {name: value for name, value in fields.items() if name not in OF_SHARDS}
    return CheckRow(ResultRow(place, s.with_arrays(kept), sums, tokens), columns)


def _numbers(fields: s.Fields, name: str) -> Floats:
    written = s.typed(fields, name, list)
    if not all(each is None or s.number({name: each}, name) is not None for each in written):
        raise RowError("wrong_type", f"field {name!r} holds what is no number")
    return np.array(written, dtype=np.float64)


def take_row(fields: s.Fields, checking: Checking, with_logits: bool) -> d.DeltaTotals:
    """Add a row that was read back to what a check gathers; returns its sums.

    Rows come in the order of the inputs; `with_logits` where a model was run. Raises RowError for
    a row without its tokens, or whose figures contradict them.
    """
    found = _recorded_score(fields)
    sums = d.delta_totals(found, checking.documents.threshold)
    for name in _COUNTS:
        if s.count(fields, name) != getattr(sums, name):
            raise RowError("impossible", f"{name} is not {getattr(sums, name)}, as its tokens say")
    checking.add(found)
    if with_logits and checking.has_kept and found.compared.any() and not found.score.columns:
        raise RowError("missing_field", f"has no field {_LOGITS.name!r}, which the diagnosis needs")
    return replace(sums, flags={name: int(n) for name, n in s.flags_of(fields).items()})


def _recorded_score(fields: s.Fields) -> d.RecordedScore:
    """Return the scores of a row that was read back, beside what was recorded."""
    s.check_types(CHECK_KEYS, fields)
    n = s.count(fields, "n_tokens")
    s.check_arrays(CHECK_KEYS, fields, n)
    for key in (*q.BOS_AND_EOS, q.TOKEN_IDS, _RECORDED, _SCORED):
        if fields.get(key.name) is None:
            raise RowError("missing_field", f"has no field {key.name!r}")
    recorded, scored = (_numbers(fields, key.name) for key in (_RECORDED, _SCORED))
    known, losses = np.isfinite(scored), np.where(np.isfinite(scored), 0.0 - scored, 0.0)
    infinite = np.array(fields.get("inf_losses") or (), dtype=np.int64)
    known[infinite], losses[infinite] = True, np.inf
    everywhere, ids = np.ones(n, dtype=bool), np.array(fields["token_ids"], dtype=np.int64)
    identity, source = (s.typed(fields, name, str) for name in ("id", "source"))
    sample = Sample(identity, source, fields.get("line"))
    sequence = TokenSequence(
        sample, None, ids, None, everywhere, everywhere, fields["bos"], fields["eos"], {}
    )
    mask = fields.get("sampled_mask")
    sampled = None if mask is None else np.array(mask, dtype=bool)
    n_prompt = s.count(fields, "n_prompt_tokens") if "n_prompt_tokens" in fields else None
    score = SequenceScore(sequence, losses, known, np.arange(n))
    found = d.RecordedScore(score, recorded, sampled, n_prompt)
    columns = _columns_of(fields.get(_LOGITS.name), found.compared)
    return replace(found, score=replace(score, columns=columns)) if columns else found


def _columns_of(written: Any, compared: Any) -> Mapping[str, Any]:
    """Return the columns of `LOGIT_SHAPE`, of N tokens; 0 where nothing is compared."""
    if written is None:
        return {}
    n, n_compared = len(compared), int(compared.sum())
    try:
        if written["of"] not in ("float32", "float64"):
            raise ValueError(f"it is of {written['of']!r:.40}")
        parts = [
            np.frombuffer(base64.b64decode(written[name], validate=True), _type(of))
            for name, of in (("log_sums", "float64"), ("top_logits", written["of"]))
        ]
        sums, top = (part.reshape(n_compared, -1) for part in parts)
        wide = [np.zeros((n, each.shape[1])) for each in (sums, top)]
        wide[0][compared], wide[1][compared] = sums, top
    except (TypeError, ValueError, KeyError) as error:
        raise RowError("wrong_type", f"field {_LOGITS.name!r} is damaged: {error}") from error
    if wide[0].shape[1] != 1 + len(TEMPERATURES):
        raise RowError("wrong_length", f"field {_LOGITS.name!r} is of other temperatures")
    columns = (wide[0][:, 0], wide[0][:, 1:], wide[1])
    return dict(zip(LOGIT_SHAPE.array_names, columns, strict=True))


CHECK_KINDS = {
    "check": s.RowKind(
        read_check, "n_compared", lambda row: to_units(float(row.row.totals.n_scored))
    )
}
