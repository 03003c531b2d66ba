"""Rows as a Parquet file, for tools that read columns. Needs pyarrow.

The columns are the keys of the JSON rows, one row for each input in input order. What is nested is
JSON in a column of text (its field's metadata says so). A column is null where the JSON row has no
such key, too: `null_keys` names the keys that are there and null. The run and the totals are JSON
in the file's metadata. `read_parquet_rows` makes the lines of `--jsonl` of it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import orjson

from seqloss_cli.core.errors import RowError, load_pyarrow
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.results.schema import REJECTED, Kind, Row, RowWriter, json_bytes, run_row, text

MOST_ROWS, MOST_WEIGHT = 1 << 12, 1 << 20
"""Rows, and their characters and list entries, that wait as objects of Python at most."""
GROUP_ROWS, GROUP_WEIGHT = 1 << 15, 1 << 22
"""Rows, and characters and list entries, of a row group at most, whose columns are in memory until
it is written. Each takes 50 KB until the end of the file: of ten million rows there are 300."""


class ParquetWriter(RowWriter):
    """A row group whenever enough rows have come; the file can be read once `end` has been."""

    def begin(self, run: RunInfo) -> None:
        """Begin the file; its columns are known before its rows."""
        self._arrow = load_pyarrow()
        self._run = json_bytes(run_row(run))
        keys = (text("type", str), *self.rows.keys, *REJECTED)
        self._columns = {key.name: key.kind for key in keys}
        self._schema = _schema(self._arrow, self._columns)
        self._file = self._arrow.parquet.ParquetWriter(
            _Sink(self.sink), self._schema, compression="zstd"
        )
        self._waiting: list[Row] = []
        self._weight = 0
        self._group: list[Any] = []
        self._group_weight = 0

    def write_row(self, kind: str, row: Row) -> None:
        """Take a row; those before it are written where there are enough of them."""
        row = {"type": kind, **row}
        cells = {name: _cell(value, self._columns[name]) for name, value in row.items()}
        weight = sum(len(value) for value in cells.values() if isinstance(value, str | list))
        # By weight, too: thousands of long texts with alternatives do not fit in memory.
        if len(self._waiting) >= MOST_ROWS or self._weight + weight > MOST_WEIGHT:
            self._make_columns()
        # A column is null for a key that is null and for one that is not there alike.
        cells["null_keys"] = [name for name, value in row.items() if value is None]
        self._waiting.append(cells)
        self._weight += weight

    def write_totals(self, row: Row) -> None:
        """Write the last group, and run and totals as the file's metadata."""
        self._make_columns()
        self._write_group()
        metadata = {"seqloss.run": self._run, "seqloss.totals": json_bytes(row)}
        self._file.add_key_value_metadata(metadata)
        self._file.close()

    def _make_columns(self) -> None:
        """Make columns of the rows that wait, which take a tenth of the memory."""
        n_rows = len(self._waiting) + sum(map(len, self._group))
        if n_rows > GROUP_ROWS or self._group_weight + self._weight > GROUP_WEIGHT:
            self._write_group()
        if self._waiting:
            self._group.append(self._arrow.Table.from_pylist(self._waiting, schema=self._schema))
            self._group_weight += self._weight
        self._waiting, self._weight = [], 0

    def _write_group(self) -> None:
        if self._group:
            table = self._arrow.concat_tables(self._group)
            self._file.write_table(table, row_group_size=len(table))
        self._group, self._group_weight = [], 0


def _cell(value: Any, kind: Kind) -> Any:
    # As text: the columns are fixed before the first row, and `meta` may hold anything.
    return value if value is None or kind is not Kind.nested else json_bytes(value).decode()


def _schema(arrow: Any, columns: dict[str, Kind]) -> Any:
    types = {
        Kind.text: arrow.string(),
        Kind.whole: arrow.int64(),
        Kind.real: arrow.float64(),
        Kind.nested: arrow.string(),
        Kind.texts: arrow.list_(arrow.string()),
        Kind.wholes: arrow.list_(arrow.int64()),
        Kind.reals: arrow.list_(arrow.float64()),
        Kind.bools: arrow.list_(arrow.bool_()),
        Kind.spans: arrow.list_(arrow.list_(arrow.int64())),
    }
    metadata = {Kind.nested: {"seqloss": "json"}}
    fields = [
        arrow.field(n, types[kind], metadata=metadata.get(kind)) for n, kind in columns.items()
    ]
    return arrow.schema([*fields, arrow.field("null_keys", types[Kind.texts])])


class _Sink:
    """A file as pyarrow wants it. After an error the file is closed before pyarrow's writer goes,
    which would then write the end of the file into it, and complain."""

    closed = False

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self._position = sink, 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        # The position goes on all the same: pyarrow takes it for what it wrote.
        if not self._sink.closed:
            self._sink.write(data)
        self._position += size
        return size

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """`open_sink` does it."""

    def close(self) -> None:
        """`open_sink` does it."""


_ROWS_AT_ONCE = 64
_RUN, _TOTALS = b"seqloss.run", b"seqloss.totals"


def read_parquet_rows(path: Stored) -> Iterator[dict[str, Any]]:
    """The run, then a dict for each row, then the totals, a few rows in memory at a time.

    Raises RowError for a file that is damaged or that seqloss did not write, UsageError without
    pyarrow.
    """
    arrow = load_pyarrow()
    with _damage_told(arrow), arrow.parquet.ParquetFile(_opened(path)) as file:
        stored = file.metadata.metadata or {}
        if _RUN not in stored:
            raise RowError("no_results", "holds no results of seqloss: its metadata has no run")
        yield {"type": "run", **orjson.loads(stored[_RUN])}
        nested = {f.name for f in file.schema_arrow if (f.metadata or {}).get(b"seqloss")}
        # Few at once: Python's objects take many times the room of the columns.
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield _json_row(row, nested)
        if _TOTALS in stored:
            yield {"type": "totals", **orjson.loads(stored[_TOTALS])}


Stored = str | os.PathLike[str] | BinaryIO
"""The name of a file, or one that is open."""


def parquet_totals(file: Stored) -> dict[str, Any] | None:
    """Return the totals of a file; None where it has none, or is no whole file."""
    arrow = load_pyarrow()
    try:
        stored = arrow.parquet.read_metadata(_opened(file)).metadata or {}
    except (arrow.ArrowException, OSError):
        return None
    return orjson.loads(stored[_TOTALS]) if _TOTALS in stored else None


def _opened(file: Stored) -> Any:
    return os.fspath(file) if isinstance(file, str | os.PathLike) else file


def _json_row(row: dict[str, Any], nested: set[str]) -> dict[str, Any]:
    """Without the columns that are null only because the row has no such key."""
    null_keys = set(row.pop("null_keys", None) or ())
    return {
        name: orjson.loads(value) if name in nested and value is not None else value
        for name, value in row.items()
        if value is not None or name in null_keys
    }


@contextmanager
def _damage_told(arrow: Any) -> Iterator[None]:
    try:
        yield
    except (arrow.ArrowException, OSError, orjson.JSONDecodeError) as error:
        raise RowError("torn_row", f"is no whole Parquet file: {error}") from error
