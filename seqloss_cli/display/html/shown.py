"""A sequence that a page shows: its figures and, where the file has them, its text and tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from seqloss_cli.analysis.aligning import LossesOnBytes
from seqloss_cli.core.byte_spans import TokenBytes, is_edge
from seqloss_cli.core.columns import cell_columns
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.schema.scores import ResultRow

NO_TOKENS = "written without tokens (--no-tokens): there is nothing to colour"
NO_TEXT = "written without texts (--no-text): there is nothing to colour"
OTHER_TEXT = "the byte offsets of its tokens are not those of its text"


@dataclass(frozen=True, slots=True)
class Shown:
    order: int
    """Place among the rows of its file."""
    id: str
    source: str
    line: int | None
    totals: Totals
    flags: Mapping[str, int]
    fields: Mapping[str, Any]
    """Values that rows are grouped by."""
    why_plain: str
    """Why no text is coloured; empty where it is."""
    text: bytes = b""
    """UTF-8; of ids without a text, the names of the tokens."""
    offsets: tuple[int, ...] = ()
    losses: tuple[float | None, ...] = ()
    """Nats; None where unscored."""
    counted: tuple[bool, ...] = ()
    tokens: tuple[str, ...] = ()
    ids: tuple[int, ...] | None = None
    columns: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """By name, the quantities of one number a token that the file has (`core/columns.py`)."""
    contexts: tuple[float | None, ...] | None = None
    alternatives: tuple[Any, ...] | None = None
    further: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """What else is known of each token, by name."""
    of_ids: bool = False
    n_left_out: int = 0
    """Tokens at its end that the page does not show."""

    @property
    def size(self) -> int:
        """Tokens that the page would show."""
        return len(self.losses)

    def covered(self) -> LossesOnBytes:
        """The bytes of its tokens, and the losses that count."""
        pairs = zip(self.losses, self.counted, strict=True)
        token_bytes = TokenBytes(self.text, np.array(self.offsets, dtype=np.int64))
        return LossesOnBytes(token_bytes, [loss if counts else None for loss, counts in pairs])


def shown(row: ResultRow, order: int, fields: tuple[str, ...] = ()) -> Shown:
    """`fields` are those that rows are grouped by."""
    found = Shown(
        order=order,
        id=row.id,
        source=str(row.fields.get("source") or ""),
        line=row.fields.get("line"),
        totals=row.totals,
        flags=row.fields.get("flags") or {},
        fields={name: row.field(name) for name in fields},
        why_plain="",
    )
    if row.tokens is None or not row.fields.get("tokens"):
        return replace(found, why_plain=NO_TOKENS)
    source = _text(row)
    if source is None:
        return replace(found, why_plain=NO_TEXT)
    text, offsets = source
    if not _fits(text, offsets):
        return replace(found, why_plain=OTHER_TEXT)
    return replace(
        found,
        text=text,
        offsets=offsets,
        of_ids=row.fields.get("text_sha256") is None,
        **_arrays(row),
    )


def _text(row: ResultRow) -> tuple[bytes, tuple[int, ...]] | None:
    """The text and where in its bytes tokens begin and end; None where the row does not hold it."""
    fields = row.fields
    if fields.get("text_sha256") is None:  # ids: the tokens' names stand for the text
        parts = [str(token).encode("utf-8", "replace") for token in fields["tokens"]]
        ends = [0]
        for part in parts:
            ends.append(ends[-1] + len(part))
        return b"".join(parts), tuple(ends)
    text, offsets = fields.get("text"), fields.get("byte_offsets")
    if not isinstance(text, str):
        parts_of_pair = (fields.get("prompt"), fields.get("separator", ""), fields.get("response"))
        if not all(isinstance(part, str) for part in parts_of_pair):
            return None
        text = "".join(map(str, parts_of_pair))
    if offsets is None:
        return None
    return text.encode("utf-8", "replace"), tuple(offsets.tolist())


def _fits(text: bytes, offsets: tuple[int, ...]) -> bool:
    """They never fall, and end where the text does."""
    ordered = all(a <= b for a, b in pairwise(offsets))
    return ordered and offsets[-1] == len(text)


def _arrays(row: ResultRow) -> dict[str, Any]:
    assert row.tokens is not None
    n, tokens = len(row.tokens.losses), row.tokens
    losses = zip(tokens.losses.tolist(), tokens.scored.tolist(), strict=True)
    ids = row.fields.get("token_ids")
    return {
        "losses": tuple(loss if scored else None for loss, scored in losses),
        "counted": tuple(tokens.counted.tolist()),
        "tokens": tuple(map(str, row.fields["tokens"])),
        "ids": None if ids is None else tuple(ids.tolist()),
        "columns": {
            column.name: values
            for column in cell_columns()
            if (values := _read(row, column.name, n, _number)) is not None
        },
        "contexts": _read(row, "context_lengths", n, _number),
        "alternatives": _read(row, "top_logprobs", n, _alternatives),
    }


def _read(row: ResultRow, name: str, n: int, take: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    """An array beside the tokens; None where it is not there or not as long as they are."""
    values = row.fields.get(name)
    if not isinstance(values, list) or len(values) != n:
        return None
    return tuple(map(take, values))


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _alternatives(value: Any) -> list[tuple[str, float | None, Any]] | None:
    """Name, log-probability and id of each."""
    if not isinstance(value, list):
        return None
    return [
        (str(each.get("token")), _number(each.get("log_prob")), each.get("id"))
        for each in value
        if isinstance(each, Mapping)
    ]


def cut(whole: Shown, n_tokens: int) -> Shown:
    """Its first tokens, and as many more as the last character needs."""
    if whole.size <= n_tokens:
        return whole
    while n_tokens < whole.size and not is_edge(whole.text, whole.offsets[n_tokens]):
        n_tokens += 1
    parts: dict[str, Any] = {
        name: None if (array := getattr(whole, name)) is None else array[:n_tokens]
        for name in (
            *("losses", "counted", "tokens", "ids"),
            *("contexts", "alternatives"),
        )
    }
    return replace(
        whole,
        text=whole.text[: whole.offsets[n_tokens]],
        offsets=whole.offsets[: n_tokens + 1],
        n_left_out=whole.n_left_out + whole.size - n_tokens,
        columns={name: array[:n_tokens] for name, array in whole.columns.items()},
        further={name: array[:n_tokens] for name, array in whole.further.items()},
        **parts,
    )
