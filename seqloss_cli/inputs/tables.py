"""Rows of tables: Parquet, Arrow and Feather by the batch, CSV and TSV by the row.

Each row becomes the JSON of an object, and is read from there as a line of JSONL is. A null cell is
a field that the row does not have, as a table cannot leave one out.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import accumulate, count
from typing import Any, BinaryIO, NamedTuple, cast

import orjson

from seqloss_cli.core.errors import RowError, load_pyarrow
from seqloss_cli.core.records import WrittenNumber
from seqloss_cli.inputs.options import ARROW, PARQUET, ReadOptions, suffix_of
from seqloss_cli.inputs.rows import RecordingFields
from seqloss_cli.inputs.shards import WHOLE, Part
from seqloss_cli.inputs.streams import open_input

_ROWS_AT_ONCE, _ROWS_OF_BYTES = 128, 8
_BUFFER = 1 << 20
_RESULTS = b"seqloss.run"
_MISSING = re.compile(r"has no field '(.*?)'")
_PIECE = 1 << 20
_PLAIN = re.compile(r'[^",\t\r\n]+')
"""Signs that mean nothing to a reader of delimited rows."""
_KEPT_NULLS = ("content",)
"""Names in nested objects where null is not nothing: messages with calls of tools have it."""


class TableRow(NamedTuple):
    """A row of a table, or why it is none."""

    number: int
    """From 1; the header of CSV is none."""
    content: bytes | RowError
    """A JSON object; empty for a blank line."""
    nulls: frozenset[str] = frozenset()
    """Columns that are null in it."""
    end: int = 0
    """Bytes of the file up to its end, as near as that is known."""

    def explained(self, error: RowError) -> RowError:
        """Return the error of a field that the row does not have, where its column is null."""
        found = _MISSING.match(error.message)
        if found is None or found[1] not in self.nulls:
            return error
        return RowError("wrong_type", f"field {found[1]!r} is null")


def table_rows(name: str, options: ReadOptions, part: Part = WHOLE) -> Iterator[TableRow]:
    """Yield the rows of a part of a table.

    Raises RowError for what is none or holds no rows, and where it breaks off.
    """
    suffix = suffix_of(name)
    with open_input(name) as (stream, position):
        if suffix in PARQUET:
            rows = _column_rows(stream, "Parquet", _parquet, options, part)
        elif suffix in ARROW:
            rows = _column_rows(stream, "Arrow", _arrow, options, part)
        else:
            rows = _delimited_rows(stream, position, suffix, options, part)
        yield from rows


# -- columns ---------------------------------------------------------------------------------------

Batches = Iterator[tuple[int, Any]]
"""Batches of rows, each with the number of its first row, from 0."""


def _column_rows(
    stream: BinaryIO,
    kind: str,
    open_table: Callable[[Any, BinaryIO, Part], tuple[int, Batches]],
    options: ReadOptions,
    part: Part,
) -> Iterator[TableRow]:
    size, arrow = stream.seek(0, io.SEEK_END), load_pyarrow()
    stream.seek(0)
    with _damage_told(arrow, kind):
        n_rows, batches = open_table(arrow, stream, part)
        for row in rows_of_batches(batches, options, part, is_empty=not n_rows):
            yield row._replace(end=size * row.number // n_rows if n_rows else stream.tell())


def rows_of_batches(
    batches: Batches, options: ReadOptions, part: Part, is_empty: bool
) -> Iterator[TableRow]:
    """Yield the rows of Arrow's batches that are the part's. Raises RowError where `is_empty`, as
    far as is known, and no batch has a row."""
    arrow, make = load_pyarrow(), None
    for before, batch in batches:
        is_empty = is_empty and not batch.num_rows
        make = make or _row_maker(arrow, batch.schema, options)
        own = [n for n in range(batch.num_rows) if part.has(before + n + 1)]
        if not own:
            continue
        some = batch if len(own) == batch.num_rows else _taken(arrow, batch, own)
        for n, (content, nulls) in zip(own, make(some), strict=True):
            yield TableRow(before + n + 1, content, nulls)
    if is_empty and part.owns_file:
        raise RowError("empty", "holds nothing")


def _taken(arrow: Any, batch: Any, own: list[int]) -> Any:
    """Return rows of a batch."""
    try:
        return batch.take(own)
    except NotImplementedError:  # of views of strings, which polars writes
        return arrow.Table.from_batches([batch.slice(n, 1) for n in own])


def _parquet(arrow: Any, stream: BinaryIO, part: Part) -> tuple[int, Batches]:
    """Return the number of rows, and batches of those of the part."""
    # Buffered, or whole columns of a row group would be in memory.
    file = arrow.parquet.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
    about = file.metadata
    if _RESULTS in (about.metadata or {}):
        raise RowError("results", "holds results of seqloss, for `seqloss summarize` or `report`")
    groups = [about.row_group(n) for n in range(about.num_row_groups)]
    own = part.rows_of([(each.num_rows, each.total_byte_size) for each in groups])
    starts = [0, *accumulate(each.num_rows for each in groups)]

    def batches() -> Batches:
        # Group by group: a batch over two of them would be lost where the second is damaged.
        n_rows = _batch_rows(arrow, file.schema_arrow)
        for group, rows in own:
            row = starts[group]
            for batch in file.iter_batches(batch_size=n_rows, row_groups=[group]):
                first, end = max(rows.start - row, 0), min(rows.stop - row, batch.num_rows)
                if first < end:
                    yield row + first, batch.slice(first, end - first)
                row += batch.num_rows
                if row >= rows.stop:
                    break

    return about.num_rows, batches()


def _arrow(arrow: Any, stream: BinaryIO, part: Part) -> tuple[int, Batches]:
    """Return the batches of a file, or of a stream that was saved in one, and no number."""
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if is_file:
        file = arrow.ipc.open_file(stream)
        wholes = (file.get_batch(n) for n in range(file.num_record_batches))
    else:
        file = arrow.ipc.open_stream(stream)
        wholes = iter(file)

    def batches() -> Batches:
        # A batch is as large as its writer liked; objects of Python take many times its room.
        n_rows, row = _batch_rows(arrow, file.schema), 0
        for whole in wholes:
            for at in range(0, whole.num_rows, n_rows):
                yield row + at, whole.slice(at, n_rows)
            row += whole.num_rows

    return 0, batches()


def _batch_rows(arrow: Any, schema: Any) -> int:
    """Return how many rows are made at once: few where they may hold pictures."""
    has_bytes = "binary" in str(schema.types)
    return _ROWS_OF_BYTES if has_bytes else _ROWS_AT_ONCE


def _row_maker(
    arrow: Any, schema: Any, options: ReadOptions
) -> Callable[[Any], Iterator[tuple[bytes | RowError, frozenset[str]]]]:
    """Return what makes rows of a batch, each with the columns that are null in it."""
    names = schema.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RowError("bad_table", f"has two columns {twice!r}")
    nested = [name for name, kind in zip(names, schema.types, strict=True) if kind.num_fields]
    is_recording = isinstance(options.pairs, RecordingFields)

    def made(row: dict[str, Any]) -> tuple[bytes | RowError, frozenset[str]]:
        nulls = frozenset(name for name, value in row.items() if value is None)
        for name in nulls:
            del row[name]
        for name in nested:
            if name in row:
                row[name] = _without_nulls(row[name])
                if is_recording:
                    row[name] = _told_apart(row[name])
        return _as_json(row, options.max_bytes), nulls

    def rows(batch: Any) -> Iterator[tuple[bytes | RowError, frozenset[str]]]:
        try:
            found = batch.to_pylist()
        # Text that is not UTF-8, dates beyond Python's: each costs its own row only.
        except (UnicodeDecodeError, ValueError, OverflowError, arrow.ArrowException):
            for at in range(batch.num_rows):
                yield _alone(arrow, batch.slice(at, 1), made)
            return
        yield from map(made, found)

    return rows


def _alone(
    arrow: Any, batch: Any, made: Callable[..., tuple[bytes | RowError, frozenset[str]]]
) -> tuple[bytes | RowError, frozenset[str]]:
    try:
        return made(batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return RowError(
            "invalid_utf8", f"holds text that is not UTF-8: {error.reason}"
        ), frozenset()
    except (ValueError, OverflowError, arrow.ArrowException) as error:
        return RowError("wrong_type", f"holds a value that cannot be read: {error}"), frozenset()


def _without_nulls(value: Any) -> Any:
    """Return what a nested value holds: writers of tables put null where an object has no field."""
    if isinstance(value, dict):
        return {
            key: _without_nulls(inner)
            for key, inner in value.items()
            if inner is not None or key in _KEPT_NULLS
        }
    # Of lists that hold plain values the first tells: ids are thousands.
    if isinstance(value, list) and value and isinstance(value[0], dict | list | type(None)):
        return [_without_nulls(inner) for inner in value]
    return value


def _told_apart(value: Any) -> Any:
    """Return a nested value with words for NaN and infinity, which JSON would have as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _told_apart(inner) for key, inner in value.items()}
    return [*map(_told_apart, value)] if isinstance(value, list | tuple) else value


def _as_json(row: dict[str, Any], max_bytes: int) -> bytes | RowError:
    try:
        raw = orjson.dumps(row, _plain, orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        return RowError("wrong_type", f"holds a value that is no JSON: {error}")
    return _too_long(max_bytes) if len(raw) > max_bytes else raw


def _too_long(max_bytes: int) -> RowError:
    return RowError("too_long", f"row is longer than --max-bytes {max_bytes}")


def _plain(value: Any) -> Any:
    """Return what JSON has for a value of a column: bytes as text, or else as base64."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return b64encode(value).decode()
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(WrittenNumber(f"{value:f}").written)
    return str(value)


@contextmanager
def _damage_told(arrow: Any, kind: str) -> Iterator[None]:
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        what = " ".join(str(error).split())
        raise RowError("unreadable", f"cannot be read as {kind}: {what:.200}") from error


# -- delimited lines -------------------------------------------------------------------------------


def _delimited_rows(
    stream: BinaryIO, position: Callable[[], int], suffix: str, options: ReadOptions, part: Part
) -> Iterator[TableRow]:
    # surrogateescape: bytes that are not UTF-8 cost their row, not all rows after it.
    text = io.TextIOWrapper(cast(Any, stream), "utf-8-sig", errors="surrogateescape", newline="")
    lines = _Lines(text, options.max_bytes)
    reader = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    # The limit is of the process, and too small for a text.
    csv.field_size_limit(max(csv.field_size_limit(), lines.most))
    header = _header(reader, lines, options.max_bytes)
    needed, is_empty = _may_be_empty(options), True
    _refuse_other_separator(header, needed, reader.dialect.delimiter)
    for number in count(1):
        began, wrong = reader.line_num + 1, None
        lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            at = f"line {began}"
            if began < reader.line_num:
                at = f"lines {began} to {reader.line_num}"
            wrong = RowError("bad_row", f"is no row of the table ({at}): {error}")
        if lines.is_cut and wrong is None:
            wrong = _too_long(options.max_bytes)
        is_empty = is_empty and wrong is None and not cells
        if part.has(number):
            content = wrong or _cells(header, cells, needed, options.max_bytes)
            yield TableRow(number, content, end=position())
    if is_empty and part.owns_file:
        raise RowError("empty", "holds nothing")


def _header(reader: Any, lines: _Lines, max_bytes: int) -> list[str]:
    """Return the first row that is not blank. Raises RowError for what names no columns."""
    try:
        header: list[str] | None = next(filter(None, reader), None)
    except csv.Error as error:
        raise RowError("bad_table", f"its header is no row: {error}") from None
    if lines.is_cut:
        raise RowError("bad_table", f"its header is longer than --max-bytes {max_bytes}")
    if header is None:
        raise RowError("empty", "holds nothing")
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise RowError("bad_table", f"its header names {twice!r} twice: a header must name columns")
    return header


def _refuse_other_separator(header: list[str], needed: frozenset[str], separator: str) -> None:
    """Raise RowError for a header that is one column, as others part its cells."""
    for other in ";\t,|":
        if len(header) == 1 and other in header[0] and not needed.intersection(header):
            raise RowError(
                "bad_table",
                f"its header is the one column {header[0]!r:.60}: {separator!r} parts cells under "
                f"this extension, and not {other!r}",
            )


class _Lines:
    """Lines for a reader of delimited rows, of which a row that is too long is cut.

    The reader must see where such a row ends, or what is left of it would be rows: each stretch
    of its signs but those that part cells and rows becomes one.
    """

    def __init__(self, text: io.TextIOWrapper, max_bytes: int) -> None:
        # Two signs for the quotes of each cell and one between: no shorter than the row's JSON.
        self._text, self.most = text, min(4 * max_bytes + (1 << 12), sys.maxsize)
        self._n = 0
        self.is_cut = False
        """The row that was begun last was too long."""

    def begin_row(self) -> None:
        """Note that the next line begins a row."""
        self._n, self.is_cut = 0, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(_PIECE)
        if not line:
            raise StopIteration
        pieces = [self._kept(line)]
        # Of CR LF the first may be the last of a piece.
        while len(line) == _PIECE and not line.endswith("\n"):
            line = self._text.readline(_PIECE)
            pieces.append(self._kept(line))
        return "".join(pieces)

    def _kept(self, line: str) -> str:
        self._n += len(line)
        self.is_cut = self.is_cut or self._n > self.most
        return _PLAIN.sub("x", line) if self.is_cut else line


def _cells(
    header: list[str], cells: list[str], needed: frozenset[str], max_bytes: int
) -> bytes | RowError:
    if not cells:
        return b""
    if len(cells) != len(header):
        return RowError("bad_row", f"has {len(cells)} cells under a header of {len(header)}")
    row = dict(zip(header, cells, strict=True))
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return RowError("invalid_utf8", "is not UTF-8")
    # An empty cell is nothing, but for texts: an empty prompt is one.
    row = {name: cell for name, cell in row.items() if cell or name in needed}
    return _as_json(row, max_bytes)


def _may_be_empty(options: ReadOptions) -> frozenset[str]:
    """Return the columns whose empty cells are empty texts."""
    fields: Any = options.pairs
    if fields is None:
        return frozenset([options.text_field])
    own = [getattr(fields, "response", None), *getattr(fields, "choices", ())]
    return frozenset(name for name in [fields.prompt, *own] if name is not None)
