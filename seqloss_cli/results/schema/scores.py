"""Rows of `seqloss score` and `cond`, written and read back.

Losses are read back as the float64 that was summed. Wrong figures are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.records import Bools, Entry, Floats, Ints, SequenceScore
from seqloss_cli.metrics.chain_rule import ChainRule
from seqloss_cli.metrics.totals import TEXT_COUNTS, Totals, to_units
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema.score_keys import SCORE_KEYS, SCORE_LEVELS, ScoreView, totals_row
from seqloss_cli.results.schema.sequences import of_input

_META, _WRITTEN = "meta.", "seqloss."
"""Beginnings of names that say whose a value is: of the inputs, or written by seqloss."""
_ONLY_OF_ROWS = ("overflow", "shared_token", "uncorrected_word", "shared_region_token")
"""Flags that a row has of its own and a corpus does not add up."""
_BULKY = frozenset(key.name for key in SCORE_KEYS if key.bulky)


def score_rows(options: s.RowOptions) -> s.Rows[SequenceScore, Totals, Entry]:
    """Return the rows of a run of `score` or `cond`."""
    return s.Rows(
        options,
        SCORE_KEYS,
        SCORE_LEVELS,
        lambda score, totals: ScoreView(options, score.sequence, score, totals),
        totals_row,
        lambda entry, row: of_input(entry, row, options),
        lambda row, place, entry: read_row(row, place).totals,
    )


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """The per-token arrays of a row; where `scored` is false, a loss means nothing."""

    losses: Floats
    """Shape N, nats."""
    scored: Bools
    """Shape N: the token has a loss."""
    counted: Bools
    """Shape N: scored, and the loss counts in the totals."""

    @classmethod
    def of(cls, losses: Floats, scored: Bools, row: s.Fields) -> TokenLosses:
        """Return the arrays of a row, shape N, nats; its mask may leave tokens out."""
        mask = row.get("loss_mask")
        counted = scored if mask is None else scored & np.array(mask, dtype=bool)
        return cls(losses, scored, counted)


@dataclass(frozen=True, slots=True)
class Top1:
    """The most probable token at each of N tokens."""

    ids: Ints
    """Shape N; -1 where none is known."""
    probabilities: Floats
    """Probabilities from 0 to 1, shape N; 0 where none is known."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A scored sequence as a results file tells of it."""

    place: str
    """file:line, for messages."""
    fields: s.Fields
    """The row as it was written, but for texts and for arrays that nobody asks for again: rows may
    have to wait for their partners in another file."""
    totals: Totals
    tokens: TokenLosses | None
    """None where the row was written without them."""
    top1: Top1 | None = None
    """None where nobody asked for them, or the row was written without alternatives."""

    @property
    def id(self) -> str:
        """Return the input's id."""
        return str(self.fields["id"])

    @property
    def field_names(self) -> list[str]:
        """Return the names that `field` has a plain value for."""
        meta = (self.fields.get("meta") or {}).items()
        named = [*self.fields.items(), *((f"{_META}{name}", value) for name, value in meta)]
        return [name for name, value in named if isinstance(value, str | int | float)]

    def field(self, name: str) -> Any:
        """Return a value to group by: one that seqloss wrote, else one of `meta`, else None.

        `meta.NAME` and `seqloss.NAME` are of one of these only. A nested value is returned as JSON
        text. Raises UsageError for a name that both have.
        """
        meta = self.fields.get("meta") or {}
        written = None if name.startswith(_META) else self.fields.get(name.removeprefix(_WRITTEN))
        own = None if name.startswith(_WRITTEN) else meta.get(name.removeprefix(_META))
        value = own if isinstance(written, list | dict) else written
        if value is None:
            value = own
        elif own is not None and value is not own:
            raise UsageError(
                f"{name!r} is the name of two things in {self.place}: a field of the input, "
                f"{own!r:.60}, and one that seqloss wrote, {written!r:.60}; call it {_META}{name} "
                f"or {_WRITTEN}{name}"
            )
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def read_row(fields: s.Fields, place: str, top1: bool = False, whole: bool = False) -> ResultRow:
    """Return a row; `top1` asks for the first of the alternatives, `whole` for texts and arrays.

    Raises RowError for a field that is missing or of a wrong type, and for impossible figures:
    a joint above its marginal, a negative loss, a total that is not the sum of its tokens.
    """
    s.check_types(SCORE_KEYS, fields)
    totals = totals_of_row(fields)
    s.check_arrays(SCORE_KEYS, fields, totals.n_tokens)
    ChainRule.read(fields)
    if totals.total_loss is not None and totals.total_loss < 0:
        raise RowError("impossible", f"total_loss is {totals.total_loss}: no loss is below 0")
    tokens = token_losses(fields, totals.n_tokens)
    if tokens is not None:
        losses, total = tokens.losses[tokens.counted], totals.total_loss
        check_sum(losses, totals.n_scored, total, "total_loss", "its tokens' losses")
    # Whoever joins two files has one of them waiting: without these a row is a fraction as large.
    kept = {name: value for name, value in fields.items() if whole or name not in _BULKY}
    found = _top1_of(fields, tokens) if top1 and tokens is not None else None
    return ResultRow(place, s.with_arrays(kept), totals, tokens, found)


def totals_of_row(row: s.Fields) -> Totals:
    """Return the sums of one sequence, to the last bit those that `metrics.totals_of` made of it.

    Of how many losses are infinite the row only tells that some are: the sums are null either way.
    Raises RowError for a field that is missing or is no number.
    """
    n_scored, total = s.count(row, "n_scored"), s.figure(row, "total_loss")
    without_text = row.get("n_bytes") is None
    texts = {} if without_text else {name: s.count(row, name) for name in TEXT_COUNTS}
    if row.get("unspelled_bytes") is not None:
        texts["unspelled_bytes"] = s.count(row, "unspelled_bytes")
    return loss_totals(
        n_scored,
        total,
        n_tokens=s.count(row, "n_tokens"),
        n_without_text=int(without_text),
        # The division of `metrics.totals_of`, of the same two numbers: the same last bit.
        mean_loss_units=to_units((total or 0.0) / n_scored) if n_scored else 0,
        flags={n: int(n_of) for n, n_of in s.flags_of(row).items() if n not in _ONLY_OF_ROWS},
        **texts,
        **_pair_counts(row),
    ).with_unspelled()


def loss_totals(n_scored: int, total: float | None, **others: Any) -> Totals:
    """Return the sums of one sequence: `total` nats over its scored tokens, None if infinite."""
    return Totals(
        n_sequences=1,
        n_sequences_scored=int(n_scored > 0),
        n_scored=n_scored,
        n_infinite=int(n_scored > 0 and total is None),
        loss_units=to_units(total or 0.0),
        **others,
    )


def written_loss(row: s.Fields, name: str) -> Totals:
    """Return the sums of an object that says how many tokens are scored, and their loss."""
    return loss_totals(s.count(row, "n_scored"), s.figure(row, name))


def _pair_counts(row: s.Fields) -> dict[str, Any]:
    if row.get("n_response_tokens") is None:
        return {}
    boundary, n_response = row.get("boundary"), s.count(row, "n_response_tokens")
    apart = row.get("separate")
    return {
        "n_pairs": 1,
        "n_response_tokens": n_response,
        "n_pair_tokens": n_response + s.count(row, "n_prompt_tokens"),
        "boundaries": {} if boundary is None else {str(boundary): 1},
        "response_only": _response_only(row, n_response),
        "separate_tokenization": written_loss(apart, "loss")
        if isinstance(apart, Mapping)
        else None,
    }


def _response_only(row: s.Fields, n_response: int) -> Totals | None:
    """Return None where the response could not be scored alone (rule 14)."""
    value = s.number(row, "log_prob_y")
    if value is None and not row.get("n_inf_losses_y"):
        return None
    # Not `-value`: the loss of a certain response is 0.0, and -0.0 has other bytes.
    return loss_totals(n_response, None if value is None else 0.0 - value)


def token_losses(row: s.Fields, n: int) -> TokenLosses | None:
    """Return arrays of the row's `n` tokens, nats; None where it was written without them.

    Raises RowError for an impossible loss.
    """
    written = row.get("token_losses")
    if written is None:
        return None
    for value in written:
        if value is not None and (isinstance(value, bool) or not isinstance(value, float | int)):
            raise RowError("wrong_type", "field 'token_losses' holds what is no number")
        if value is not None and not 0 <= value < s.LARGEST:
            raise RowError("impossible", f"a token's loss is {value}")
    # None becomes NaN: a token without a loss, but where `inf_losses` says that it is infinite.
    losses = np.array(written, dtype=np.float64)
    losses[list(row.get("inf_losses") or ())] = np.inf
    scored = ~np.isnan(losses)
    return TokenLosses.of(np.where(scored, losses, 0.0), scored, row)


def _top1_of(row: s.Fields, tokens: TokenLosses) -> Top1 | None:
    """Return arrays of N tokens; raises RowError where a token that counts has no alternative."""
    written, n = row.get("top_logprobs"), len(tokens.losses)
    if written is None or row.get("token_ids") is None:
        return None
    if not isinstance(written, list) or len(written) != n:
        raise RowError("wrong_length", f"top_logprobs is not as long as n_tokens {n} says")
    ids, log_probs = np.full(n, -1, dtype=np.int64), np.full(n, -np.inf)
    # Anything may stand in a file: one attempt instead of a check at each level. OverflowError: an
    # id of more than 64 bits.
    for place in np.flatnonzero(tokens.counted).tolist():
        try:
            first = written[place][0]
            ids[place], log_probs[place] = first["id"], first["log_prob"]
        except (TypeError, LookupError, ValueError, OverflowError):
            raise RowError("wrong_type", f"top_logprobs holds nothing at token {place}") from None
    # A little above 1 is rounding; NaN compares false, and is refused.
    if not (log_probs <= s.ROUNDING).all():
        raise RowError("impossible", "an alternative has a probability above 1")
    return Top1(ids, np.exp(np.minimum(log_probs, 0.0)))


def check_sum(
    losses: Floats, n_scored: int, total: float | None, name: str, of_tokens: str
) -> None:
    """Raise RowError where n counted tokens' figures, nats, shape n, are not those of the sums."""
    if len(losses) != n_scored:
        raise RowError("impossible", f"n_scored is not the {len(losses)} of its tokens")
    found = math.fsum(losses.tolist())
    if total is not None and not s.is_near(found, total):
        raise RowError("impossible", f"{name} is {total}, and {of_tokens} sum to {found}")


def loss_kinds(top1: bool = False, whole: bool = False) -> dict[str, s.RowKind[ResultRow]]:
    """Return how rows of `score` and `cond` are read back.

    `top1` asks for the most probable token at each token, `whole` for texts and all arrays, too.
    """
    kind = s.RowKind(
        lambda record, place: read_row(record, place, top1, whole),
        "total_loss",
        lambda row: None if row.totals.n_infinite else row.totals.loss_units,
    )
    return {"score": kind, "cond": kind}
