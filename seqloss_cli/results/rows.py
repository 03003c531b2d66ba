"""A row of a results file, checked as it is read back: wrong figures are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.conditional import ChainRule
from seqloss_cli.errors import RowError
from seqloss_cli.metrics import Totals, to_units
from seqloss_cli.records import Bools, Floats

Fields = Mapping[str, Any]
_ONLY_OF_ROWS = ("overflow", "shared_token")
"""Flags that a row has of its own and a corpus does not add up."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """The per-token arrays of a row; where `scored` is false, a loss means nothing."""

    losses: Floats
    """Shape N, nats."""
    scored: Bools
    counted: Bools
    """Shape N: scored, and the loss counts in the totals."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A scored sequence as a results file tells of it."""

    place: str
    """file:line, for messages."""
    fields: Fields
    """The row as it was written."""
    totals: Totals
    tokens: TokenLosses | None
    """None where the row was written without them."""

    @property
    def id(self) -> str:
        return str(self.fields["id"])

    def field(self, name: str) -> Any:
        """A value to group by: a plain field of the row, else one of its `meta`; else None."""
        value = self.fields.get(name)
        if value is None or isinstance(value, list | dict):
            value = (self.fields.get("meta") or {}).get(name.removeprefix("meta."))
        return value


def read_row(fields: Fields, place: str) -> ResultRow:
    """Raises RowError for a field that is missing or of a wrong type, and for figures that cannot
    be: a joint above its marginal, a negative loss, a total that is not the sum of its tokens."""
    if not isinstance(fields.get("id"), str):
        raise RowError("missing_field", "no field 'id' that is a text")
    totals = totals_of_row(fields)
    ChainRule.read(fields)
    if totals.total_loss is not None and totals.total_loss < 0:
        raise RowError("impossible", f"total_loss is {totals.total_loss}: no loss is below 0")
    tokens = _token_losses(fields, totals.n_tokens)
    if tokens is not None:
        _check_sum(tokens, totals)
    return ResultRow(place, fields, totals, tokens)


def totals_of_row(row: Fields) -> Totals:
    """The sums of one sequence, to the last bit those that `metrics.totals_of` made of it.

    Of how many losses are infinite the row only tells that some are: the sums are null either way.
    Raises RowError for a field that is missing or is no number.
    """
    n_scored, total = _count(row, "n_scored"), _loss(row, "total_loss")
    without_text = row.get("n_bytes") is None
    texts: dict[str, Any] = (
        {} if without_text else {name: _count(row, name) for name in _TEXT_COUNTS}
    )
    return Totals(
        n_sequences=1,
        n_sequences_scored=int(n_scored > 0),
        n_tokens=_count(row, "n_tokens"),
        n_scored=n_scored,
        n_infinite=int(n_scored > 0 and total is None),
        n_without_text=int(without_text),
        loss_units=to_units(total or 0.0),
        mean_loss_units=to_units((total or 0.0) / n_scored) if n_scored else 0,
        flags={
            name: int(count)
            for name, count in (row.get("flags") or {}).items()
            if name not in _ONLY_OF_ROWS
        },
        **texts,
        **_pair_counts(row),
    )


_TEXT_COUNTS = (
    "n_bytes",
    "n_scored_bytes",
    "n_chars",
    "n_scored_chars",
    "n_words",
    "n_unscored_text_tokens",
)


def _pair_counts(row: Fields) -> dict[str, Any]:
    if row.get("n_response_tokens") is None:
        return {}
    boundary, n_response = row.get("boundary"), _count(row, "n_response_tokens")
    return {
        "n_pairs": 1,
        "n_response_tokens": n_response,
        "n_pair_tokens": n_response + _count(row, "n_prompt_tokens"),
        "boundaries": {} if boundary is None else {str(boundary): 1},
        "alone": _alone(row, n_response),
        "other_boundary": _apart(row.get("separate")),
    }


def _alone(row: Fields, n_response: int) -> Totals | None:
    """None where there was no BOS to begin the response with (rule 14)."""
    if "log_prob_y" not in row or row.get("bos") == "none":
        return None
    value = _number(row, "log_prob_y")
    sums: dict[str, Any] = {"n_sequences": 1, "n_scored": n_response}
    if value is None:
        return Totals(**sums, n_infinite=1)
    return Totals(**sums, loss_units=to_units(0.0 - value))


def _apart(separate: Any) -> Totals | None:
    if not isinstance(separate, Mapping):
        return None
    n_scored, loss = _count(separate, "n_scored"), _loss(separate, "loss")
    infinite = int(n_scored > 0 and loss is None)
    return Totals(
        n_sequences=1, n_scored=n_scored, n_infinite=infinite, loss_units=to_units(loss or 0.0)
    )


def _token_losses(row: Fields, n: int) -> TokenLosses | None:
    """Raises RowError when the arrays are not as long as the row has tokens."""
    written = row.get("token_losses")
    if written is None:
        return None
    mask = row.get("loss_mask")
    if len(written) != n or (mask is not None and len(mask) != n):
        raise RowError("wrong_length", f"its arrays are not as long as n_tokens {n} says")
    losses = np.array(written, dtype=np.float64)  # None becomes NaN
    losses[list(row.get("inf_losses") or ())] = np.inf
    scored = ~np.isnan(losses)
    counted = scored if mask is None else scored & np.array(mask, dtype=bool)
    return TokenLosses(np.where(scored, losses, 0.0), scored, counted)


def _check_sum(tokens: TokenLosses, totals: Totals) -> None:
    if int(tokens.counted.sum()) != totals.n_scored:
        raise RowError("impossible", f"n_scored is not the {tokens.counted.sum()} of its tokens")
    total = totals.total_loss
    if total is None:
        return
    found = math.fsum(tokens.losses[tokens.counted].tolist())
    if not abs(found - total) <= _ROUNDING * max(1.0, abs(total)):
        raise RowError(
            "impossible", f"total_loss is {total}, and its tokens' losses sum to {found}"
        )


def _count(row: Fields, name: str) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RowError("wrong_type", f"field {name!r} is not a count: {value!r:.40}")
    return value


def _number(row: Fields, name: str) -> float | None:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise RowError("wrong_type", f"field {name!r} is not a number: {value!r:.40}")
    return None if value is None else float(value)


def _loss(row: Fields, name: str) -> float | None:
    if name not in row:
        raise RowError("missing_field", f"no field {name!r}")
    return _number(row, name)
