"""Fields of a row that is read back: of their kinds, and no larger than they can be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from seqloss_cli.core.errors import RowError

Fields = Mapping[str, Any]
Row = dict[str, Any]
Result = TypeVar("Result", contravariant=True)
Sums = TypeVar("Sums", contravariant=True)
ReadRow = TypeVar("ReadRow")
ROUNDING = 1e-9
LARGEST, _MOST = 1e300, 1 << 53
"""What a sum or a count of a row stays below, so that those of many rows can be written."""
_ARRAYS = ("token_ids", "tokens", "token_losses", "loss_mask")
_KINDS: Mapping[str, Any] = {
    "id": str,
    "source": str | None,
    "line": int | None,
    "text_sha256": str | None,
    "response_sha256": str | None,
    "ids_sha256": str | None,
    "meta": dict | None,
    "inf_losses": list | None,
}


def check_identity(row: Fields) -> None:
    for name, kinds in _KINDS.items():
        if not isinstance(row.get(name), kinds):
            raise RowError("wrong_type", f"field {name!r} cannot be {row.get(name)!r:.40}")


def check_arrays(row: Fields, n: int) -> None:
    """Arrays that are there are as long as the row has tokens."""
    for name, length in {**dict.fromkeys(_ARRAYS, n), "byte_offsets": n + 1}.items():
        if (array := row.get(name)) is not None and not isinstance(array, list):
            raise RowError("wrong_type", f"field {name!r} is no array")
        if array is not None and len(array) != length:
            raise RowError("wrong_length", f"{name} is not as long as n_tokens {n} says")
    for name in ("token_ids", "loss_mask", "byte_offsets", "inf_losses"):
        if not all(isinstance(value, int) and value >= 0 for value in row.get(name) or ()):
            raise RowError("wrong_type", f"field {name!r} holds what is no count")
    if not all(isinstance(value, str) for value in row.get("tokens") or ()):
        raise RowError("wrong_type", "field 'tokens' holds what is no text")
    if any(place >= n for place in row.get("inf_losses") or ()):
        raise RowError("wrong_length", f"inf_losses names a token beyond n_tokens {n}")


def flags_of(row: Fields) -> Mapping[str, int]:
    flags = row.get("flags") or {}
    if not isinstance(flags, Mapping) or not all(isinstance(n, int) for n in flags.values()):
        raise RowError("wrong_type", f"field 'flags' cannot be {flags!r:.40}")
    return flags


def count(row: Fields, name: str) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST:
        raise RowError("wrong_type", f"field {name!r} is not a count: {value!r:.40}")
    return value


def number(row: Fields, name: str) -> float | None:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise RowError("wrong_type", f"field {name!r} is not a number: {value!r:.40}")
    if value is not None and not abs(value) < LARGEST:
        raise RowError("impossible", f"field {name!r} is {value}")
    return None if value is None else float(value)


def figure(row: Fields, name: str) -> float | None:
    if name not in row:
        raise RowError("missing_field", f"no field {name!r}")
    return number(row, name)


def field_of(fields: Fields, name: str) -> Any:
    """A value to group by: a plain field of the row, else one of its `meta` (what is nested as
    JSON text); else None."""
    value = fields.get(name)
    if value is None or isinstance(value, list | dict):
        value = (fields.get("meta") or {}).get(name.removeprefix("meta."))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


@dataclass(frozen=True, slots=True)
class RowMakers(Generic[Result, Sums]):
    """How results and sums become JSON objects."""

    of_sequence: Callable[[Result, Sums], Row]
    of_totals: Callable[[Sums, int, int], Row]
    """Of the sums, and the numbers of rejected inputs and empty lines."""
    summary: bool = False
    """Leave the sequences out."""


@dataclass(frozen=True, slots=True)
class RowKind(Generic[ReadRow]):
    """How the rows of a command are read back."""

    read: Callable[[Fields, str], ReadRow]
    """Of a record and its file:line. Raises RowError for one that cannot be."""
    total: str
    """What of the totals is the sum of the rows' own figures of that name."""
    units: Callable[[ReadRow], int | None]
    """A row's own, in units of 2^-1074 nats; None where it is no number."""
