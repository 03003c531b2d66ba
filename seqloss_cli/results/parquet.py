"""A Parquet file of results as the lines of its JSONL twin. Needs pyarrow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.extras import load_pyarrow

_ROWS_AT_ONCE = 64
_RUN, _TOTALS = b"seqloss.run", b"seqloss.totals"


def read_parquet_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The run, then a dict for each row, then the totals, a few rows in memory at a time.

    Raises RowError for a file that is damaged or that seqloss did not write, UsageError without
    pyarrow.
    """
    arrow = load_pyarrow()
    with _damage_told(arrow), arrow.parquet.ParquetFile(os.fspath(path)) as file:
        stored = file.metadata.metadata or {}
        if _RUN not in stored:
            raise RowError("no_results", "holds no results of seqloss: its metadata has no run")
        yield {"type": "run", **orjson.loads(stored[_RUN])}
        nested = {f.name for f in file.schema_arrow if (f.metadata or {}).get(b"seqloss")}
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield _json_row(row, nested)
        if _TOTALS in stored:
            yield {"type": "totals", **orjson.loads(stored[_TOTALS])}


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
