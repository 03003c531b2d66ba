"""Keys of rows, each declared once: for writing, for fixed headers and for reading back.

The keys of a command's rows stand in a module of their own, in the order of the JSON objects. The
columns of Parquet and CSV are the keys that a row of the run can have. A key that is not declared
cannot be written. When a row is read back, a key marked `checked` is held to its type, one with a
`length` to that length. Readers check others by name. `seqloss schema` prints JSON Schema of them
(`results/schema/published.py`).
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, BinaryIO, Generic, Protocol, Self, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import SERVER_REASON, RowError
from seqloss_cli.core.records import (
    SCHEMA_VERSION,
    Bools,
    Floats,
    Rejected,
    Rejections,
    TokenSequence,
    WrittenNumber,
)
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.results import RowContents

Fields = Mapping[str, Any]
"""A row that was read."""
Row = dict[str, Any]
"""A row that is written: a JSON object."""
Cell = str | int | float | bool | None
Result = TypeVar("Result")
Sums = TypeVar("Sums", bound="Summable")
Unscored = TypeVar("Unscored")
"""An input that was read again, as far as it is told without scoring."""
ReadRow = TypeVar("ReadRow")
ROUNDING = 1e-9
LARGEST, _MOST = 1e300, 1 << 53
"""Limits of a sum and of a count in a row, so that those of many rows can be written."""
ABSENT: Any = object()
"""The value of a key that a row does not have."""


class Summable(Protocol):
    """Sums of one set of inputs; `+` joins two sets."""

    def __add__(self, other: Self, /) -> Self:
        """Return the sums of both."""


@dataclass(frozen=True, slots=True)
class Either:
    """The type of what is of one of several, of which some are keys of objects."""

    types: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    """The type of what is one of these texts."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadBack:
    """The type of a record of this class that an earlier version or a later one may have written:
    none of its keys is sure."""

    record: type


class Kind(StrEnum):
    """Kinds of a key's values, beside null."""

    text = "text"
    whole = "whole"
    real = "real"
    nested = "nested"
    """Anything that JSON can say."""
    texts = "texts"
    wholes = "wholes"
    reals = "reals"
    bools = "bools"
    spans = "spans"
    """Pairs of whole numbers."""


OF_KIND: Mapping[Kind, Any] = {
    Kind.text: str,
    Kind.whole: int,
    # What is not known or infinite is null.
    Kind.real: float | None,
    Kind.nested: Any,
    Kind.texts: list[str],
    Kind.wholes: list[int],
    Kind.reals: list[float | None],
    Kind.bools: list[bool | None],
    Kind.spans: list[tuple[int, int]],
}
"""Types of the values of each kind; a key that says nothing else is never null."""


# Numbers are not among them: `count` and `number` check these where they are used.
_TYPES: Mapping[Kind, type] = {
    Kind.text: str,
    Kind.whole: int,
    Kind.nested: dict,
    Kind.wholes: list,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions(RowContents):
    """The content of the rows of a run, and what they are made with."""

    run: RunInfo
    token_texts: Callable[[TokenSequence], list[str]]
    name_token: Callable[[int], str]
    word_boundary_ids: WordBoundaryIds | None = None
    """For corrected losses of words."""

    def conditions(self) -> Mapping[str, bool]:
        """Return the conditions that keys name in `when`, and which of them hold for the run."""
        run, asked = self.run, ("text", "tokens", "words", "regions", "context_lengths", "pmi")
        return {
            **{name: getattr(self, name) for name in asked},
            **{column.name: column in self.columns for column in COLUMNS},
            # Losses of words and regions are corrected, too.
            "corrected": self.word_boundary_ids is not None,
            "pairs": run.pairs is not None,
            # Pairs are tokenized both ways.
            "compared": run.boundary == "compare",
            # A model was run: `mask` needs none.
            "losses": run.model is not None,
            "teacher": run.teacher is not None,
            "models": bool(run.models),
            "drafts": bool(self.draft_length) and run.teacher is not None,
            # The teacher is known from a file, and so in part.
            "bounds": bool((run.teacher or {}).get("saved_as")),
            "shard": bool((run.reading or {}).get("shard")),
        }


Cells = Mapping[str, Callable[[Any], Cell]]
"""Suffix that a CSV column adds to a key's name, to what makes its cell of the key's value."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a row: its name, its kind, and its value from a view of one result."""

    name: str
    kind: Kind
    value: Callable[[Any], Any]
    when: str = ""
    """Conditions of `RowOptions`, all of which must hold where rows of a run can have it."""
    cells: Cells = field(default_factory=dict)
    """Its columns where a line of CSV is a row; of plain kinds that is one of the same name."""
    checked: bool = False
    """Its type is checked when a row is read back."""
    length: int | None = None
    """Entries of a checked array beyond the row's tokens; None where it is not checked."""
    bulky: bool = False
    """Dropped when a row is read back, unless all is asked for: rows wait in memory."""
    of: Any = None
    """Type of its value, or the keys of the object that it is, where its kind does not tell: of
    what is nested, and of what may be null though others of its kind are not."""
    optional: bool = False
    """Some rows lack it though `when` holds: it is ABSENT of them."""
    about: str | tuple[type, str] | tuple[type, str, str] = ""
    """Its meaning, with its unit, and when it is null; or the class and the name of what has it as
    a docstring, and what is to be added."""

    @property
    def type(self) -> Any:
        """Return the type of its value."""
        return OF_KIND[self.kind] if self.of is None else self.of

    def row_cells(self) -> Cells:
        """Return the columns of CSV that hold it; none for what no cell can hold."""
        if self.cells or self.kind not in (Kind.text, Kind.whole, Kind.real):
            return self.cells
        return {"": _itself}


def _key(
    kind: Kind, name: str, value: str | Callable[[Any], Any], when: str = "", **settings: Any
) -> Key:
    """Return a key; its value may be the path of an attribute of the view."""
    # A path rather than a function where it does: it runs in C, for some forty keys a row.
    of = attrgetter(value) if isinstance(value, str) else value
    return Key(name, kind, of, when, **settings)


text, texts = partial(_key, Kind.text), partial(_key, Kind.texts)
whole, wholes = partial(_key, Kind.whole), partial(_key, Kind.wholes)
real, reals = partial(_key, Kind.real), partial(_key, Kind.reals)
nested, bools, spans = (partial(_key, kind) for kind in (Kind.nested, Kind.bools, Kind.spans))


def _itself(value: Any) -> Any:
    return value


def children(*names: str) -> Cells:
    """Return cells for the values of an object, each in a column `key.name`."""
    return {f".{name}": itemgetter(name) for name in names}


def row_with_nulls(keys: Iterable[Key], view: Any) -> Row:
    """Return the row of one result, with null for the keys that it does not have."""
    values = {key.name: key.value(view) for key in keys}
    return {name: None if value is ABSENT else value for name, value in values.items()}


def attributes(record: Any, *names: str) -> Row:
    """Return attributes of a record by their names, in this order."""
    return {name: getattr(record, name) for name in names}


def as_column(key: Key, name: str) -> Key:
    """Return an array's key under the name that it has where a line is one of its entries."""
    return replace(key, name=name)


def row_of(keys: Iterable[Key], view: Any) -> Row:
    """Return the row of one result, without the keys that it does not have."""
    row = {}
    # A plain loop: rows of short texts take as long to make as their share of the model's time.
    for key in keys:
        if (value := key.value(view)) is not ABSENT:
            row[key.name] = value
    return row


@dataclass(slots=True)
class Rows(Generic[Result, Sums, Unscored]):
    """The rows of one run: how they are written, and how those of an earlier run are taken back.

    Of the keys that it is given it keeps those that a row of this run can have.
    """

    options: RowOptions
    keys: tuple[Key, ...]
    levels: Mapping[str, tuple[Key, ...]]
    """Parts of a row that a line of CSV can be of, to their columns: arrays of one length each."""
    view: Callable[[Result, Sums], Any]
    totals: Callable[[Sums, Rejections, int], Row]
    """Returns the totals, of sums and the numbers of rejected inputs and of empty lines."""
    of_input: Callable[[Any, Fields], Row]
    """Returns what the row of an input must hold, of the input, read again, and the row."""
    sums_of: Callable[[Fields, str, Unscored], Sums]
    """Returns the sums of a row that was read back, with its file:line; raises RowError."""
    found_by_scoring: tuple[str, ...] = ("nan_loss",)
    """Reasons for which a row is rejected that reading and tokenizing take."""

    def __post_init__(self) -> None:
        self.keys = possible(self.options, self.keys)
        self.levels = {name: possible(self.options, keys) for name, keys in self.levels.items()}

    def expected(self, entry: Any, row: Fields) -> Row:
        """Return what the row of an input holds, read again, as far as it is told without a model.

        The message of a rejection may be worded anew. Null is a key that must not be there.
        """
        if isinstance(entry, Rejected):
            return {"type": "rejected", **attributes(entry, "id", "source", "line", "reason")}
        # Such a row holds only where the input was read; why it is rejected, scoring would tell.
        if self._was_found_by_scoring(str(row.get("reason"))):
            return {"type": "rejected", **attributes(entry.sample, "id", "source", "line")}
        return {"type": "sequence", **self.of_input(entry, row)}

    def _was_found_by_scoring(self, reason: str) -> bool:
        return reason in self.found_by_scoring or reason.startswith(SERVER_REASON)


@dataclass(frozen=True, slots=True)
class TotalsView:
    """The sums of a run, and what was not scored: keys of totals take their values from here."""

    sums: Any
    rejected: Rejections
    n_empty_lines: int


def only_if(condition: Callable[[Any], Any], *keys: Key) -> tuple[Key, ...]:
    """Return the keys; views of which the condition does not hold have none of them."""

    def only(key: Key) -> Key:
        return replace(key, value=lambda v: key.value(v) if condition(v) else ABSENT, optional=True)

    return tuple(map(only, keys))


UNSCORED = (
    whole("n_rejected", lambda v: sum(v.rejected.values()), about="Inputs that were rejected."),
    nested(
        "rejections",
        lambda v: {**v.rejected} or ABSENT,
        of=dict[str, int],
        optional=True,
        about="The same by reason.",
    ),
    whole("n_empty_lines", "n_empty_lines", about="Blank lines among the inputs."),
)
"""Keys of what was not scored, of a `TotalsView`."""


class RowWriter(ABC):
    """A writer of JSON objects: of the run, of each row as it comes, and of the totals."""

    def __init__(self, sink: BinaryIO, rows: Rows[Any, Any, Any]) -> None:
        self.sink, self.rows = sink, rows

    @abstractmethod
    def begin(self, run: RunInfo) -> None:
        """Write the run's record."""

    @abstractmethod
    def write_row(self, kind: str, row: Row) -> None:
        """Write a row of a `sequence` or of a `rejected` input."""

    @abstractmethod
    def write_totals(self, row: Row) -> None:
        """Write the totals, the last of all."""

    def make_row(self, result: Any, sums: Any) -> Row:
        """Return the object of a result; `sums` are its own."""
        return row_of(self.rows.keys, self.rows.view(result, sums))

    def sequence(self, result: Any, sums: Any) -> None:
        """Write a result, unless totals are all that is asked for."""
        if not self.rows.options.summary:
            self.write_row("sequence", self.make_row(result, sums))

    def reject(self, rejected: Rejected) -> None:
        """Write a rejected input."""
        self.write_row("rejected", rejected_row(rejected))

    def end(self, sums: Any, rejected: Rejections, n_empty_lines: int) -> None:
        """Write the totals."""
        self.write_totals(self.rows.totals(sums, rejected, n_empty_lines))


def possible(options: RowOptions, keys: Iterable[Key]) -> tuple[Key, ...]:
    """Return the keys that rows of this run can have."""
    conditions = options.conditions()
    return tuple(key for key in keys if all(conditions[name] for name in key.when.split()))


@dataclass(frozen=True, slots=True)
class RowKind(Generic[ReadRow]):
    """Reading back of the rows of a command."""

    read: Callable[[Fields, str], ReadRow]
    """Returns a row, of a record and its file:line; raises RowError for an invalid one."""
    total: str
    """Name of the figure whose sum over the rows is that of the totals."""
    units: Callable[[ReadRow], int | None]
    """Returns a row's own figure in units of 2^-1074 nats; None where it is no number."""


# DEL and C1, bidirectional controls, line separators: what a terminal would act on in a text.
_TERMINAL_CONTROLS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def json_bytes(value: Any) -> bytes:
    """Return compact UTF-8; floats in the shortest form that reads back as the same float64.

    Characters that a terminal would act on are escaped: JSON itself only asks for those below
    U+0020.
    """
    raw = orjson.dumps(value, _as_written, orjson.OPT_SERIALIZE_NUMPY)
    # Most rows: the search below takes longer than the whole dump.
    if raw.isascii() and b"\x7f" not in raw:
        return raw
    return _TERMINAL_CONTROLS.sub(lambda m: f"\\u{ord(m[0]):04x}", raw.decode()).encode()


def parse_record(raw: bytes) -> Row | RowError:
    """Return the JSON object of a line, or the error that stands for it."""
    if not raw.strip():
        return RowError("empty_line", "is empty")
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return RowError("torn_row", "is no whole JSON object: cut off or damaged")
    return record if isinstance(record, dict) else RowError("bad_row", "is no JSON object")


def numbers_or_null(values: NDArray[Any], known: Bools) -> list[Any]:
    """Return numbers of shape N where known and finite, else None; whole ones stay whole.

    JSON has neither NaN nor infinities, and orjson would write null for both without a word.
    """
    # Lists first: numbers that numpy hands out one by one take ten times as long.
    kept = known & np.isfinite(values)
    return [
        value if keep else None for value, keep in zip(values.tolist(), kept.tolist(), strict=True)
    ]


def infinite_places(values: Floats, known: Bools) -> list[int]:
    """Return the places of infinite numbers, nats, shape N, where known; ABSENT without any."""
    return np.flatnonzero(np.isinf(values) & known).tolist() or ABSENT


def finite(value: float | None) -> float | None:
    """Return a finite number, else None, as JSON knows no other: flags tell of infinite ones."""
    return None if value is None or math.isinf(value) else value


def ints(values: NDArray[Any] | None) -> list[int] | None:
    """Return an array of shape N as a list of N whole numbers; a mask as 0 and 1."""
    return None if values is None else values.astype(np.int64).tolist()


def _as_written(value: Any) -> orjson.Fragment:
    if isinstance(value, WrittenNumber):
        return orjson.Fragment(value.written)
    raise TypeError


def flags_cell(flags: Fields) -> str:
    """Return flags as the text of a CSV cell: their names, and counts where they are counted."""
    return ";".join(name if n is True else f"{name}={n}" for name, n in flags.items())


def rejected_row(rejected: Rejected) -> Row:
    """Return the row of an input that could not be scored."""
    return attributes(rejected, "id", "source", "line", "reason", "message")


REJECTED = (
    text("reason", _itself, about="Why it was rejected: a word that scripts can match."),
    text("message", _itself, about="The same for people."),
)
"""Keys of rejected inputs beside their identity."""


def run_row(run: RunInfo) -> Row:
    """Return the record of a run."""
    return {"schema_version": SCHEMA_VERSION, **run.as_json()}


def check_types(keys: Iterable[Key], row: Fields) -> None:
    """Raise RowError where a checked key's value is of another type; only the id is required."""
    # Null passes: of inputs without a text, a line or `meta` these keys are null.
    for key in keys:
        if key.checked and not (row.get(key.name) is None and key.name != "id"):
            typed(row, key.name, _TYPES[key.kind])


def typed(row: Fields, name: str, kind: Any, where: str = "") -> Any:
    """Return a field of one of the types; `where` it is, for the message of RowError."""
    value = row.get(name)
    if not isinstance(value, kind):
        raise RowError("wrong_type", f"field {name!r}{where} cannot be {value!r:.40}")
    return value


def check_arrays(keys: Iterable[Key], row: Fields, n: int) -> None:
    """Raise RowError where an array is not as long as the row's `n` tokens, or not of its kind."""
    # Whoever indexes one of them by another's tokens must not have to look at lengths again.
    arrays = [key for key in keys if key.length is not None and row.get(key.name) is not None]
    for key in arrays:
        if not isinstance(array := row[key.name], list):
            raise RowError("wrong_type", f"field {key.name!r} is no array")
        if len(array) != n + (key.length or 0):
            raise RowError("wrong_length", f"{key.name} is not as long as n_tokens {n} says")
    for name in (*(key.name for key in arrays if key.kind is Kind.wholes), "inf_losses"):
        if not all(isinstance(value, int) and 0 <= value < _MOST for value in row.get(name) or ()):
            raise RowError("wrong_type", f"field {name!r} holds what is no count")
    for name in (key.name for key in arrays if key.kind is Kind.bools):
        if not all(value is None or isinstance(value, bool) for value in row[name]):
            raise RowError("wrong_type", f"field {name!r} holds what is neither true nor false")
    if not all(isinstance(value, str) for value in row.get("tokens") or ()):
        raise RowError("wrong_type", "field 'tokens' holds what is no text")
    if any(place >= n for place in row.get("inf_losses") or ()):
        raise RowError("wrong_length", f"inf_losses names a token beyond n_tokens {n}")


def with_arrays(fields: Fields) -> Row:
    """Return the fields with ids and offsets as arrays, as lists are five times as large."""
    names = [n for n in ("token_ids", "byte_offsets") if fields.get(n) is not None]
    return {**fields, **{name: np.array(fields[name], dtype=np.int64) for name in names}}


def is_near(a: float, b: float) -> bool:
    """Return whether two sums of the same figures agree but for rounding."""
    return abs(a - b) <= ROUNDING * max(1.0, abs(b))


def flags_of(row: Fields) -> Mapping[str, int]:
    """Return a row's flags with their counts; RowError for anything else."""
    flags = row.get("flags") or {}
    if not isinstance(flags, Mapping) or not all(isinstance(n, int) for n in flags.values()):
        raise RowError("wrong_type", f"field 'flags' cannot be {flags!r:.40}")
    return flags


def count(row: Fields, name: str) -> int:
    """Return a field that is a whole number from 0 on; RowError for anything else."""
    value = row.get(name)
    # JSON's `true` is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST:
        raise RowError("wrong_type", f"field {name!r} is not a count: {value!r:.40}")
    return value


def number(row: Fields, name: str) -> float | None:
    """Return a field that is a number, or None; RowError for anything else."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise RowError("wrong_type", f"field {name!r} is not a number: {value!r:.40}")
    # Not `>=`, which NaN would pass: JSON has none, but Parquet has.
    if value is not None and not abs(value) < LARGEST:
        raise RowError("impossible", f"field {name!r} is {value}")
    return None if value is None else float(value)


def figure(row: Fields, name: str) -> float | None:
    """Return a field as `number` does; RowError where there is no such field."""
    if name not in row:
        raise RowError("missing_field", f"no field {name!r}")
    return number(row, name)
