"""Results files read back: JSONL, one JSON document, or Parquet, told apart by how they begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from seqloss_cli.errors import RowError, UsageError
from seqloss_cli.paths import shown_path
from seqloss_cli.reading.streams import STDIN, bounded_lines, open_input
from seqloss_cli.records import SCHEMA_VERSION, Rejected
from seqloss_cli.results.rows import ResultRow, read_row
from seqloss_cli.results.runs import run_differences

_PARQUET = b"PAR1"
_LONGEST_LINE = 1 << 30
_COMMANDS = ("score", "cond")
Run = Mapping[str, Any]


@dataclass(slots=True)
class ResultsFile:
    """What is known of a file once its rows were read; `run` is known from the start."""

    name: str
    run: Run
    rows: Iterator[ResultRow | Rejected]
    """A `Rejected` is a row of the file that cannot be used; the file tells of it itself."""
    n_sequences: int = 0
    n_rejected: int = 0
    """Inputs that the run itself rejected."""
    n_empty_lines: int = 0
    complete: bool = False
    """The run came to its end: its totals are there."""
    totals: list[Mapping[str, Any]] = field(default_factory=list)
    """As they were printed, of each run that the file holds."""


def open_results(name: str) -> ResultsFile:
    """Raises RowError when there is no such file or it holds no results of `score` or `cond`, and
    UsageError while rows are read when it goes on with another run's."""
    source = "<stdin>" if name == STDIN else shown_path(name)
    records = _records(name)
    try:
        line, first = next(records)
    except StopIteration:
        raise RowError("empty", "holds nothing") from None
    if isinstance(first, RowError):
        raise RowError("no_results", f"holds no results of seqloss: line {line} {first.message}")
    if first.get("type") != "run":
        raise RowError(
            "no_results", "holds no results of seqloss: it does not begin with a run; -o FILE.jsonl"
        )
    run = _checked_run(first)
    file = ResultsFile(source, run, iter(()))
    file.rows = _rows(file, records)
    return file


def _checked_run(record: Run) -> Run:
    version = record.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise RowError("no_results", f"has no schema_version, but {version!r:.40}")
    if version > SCHEMA_VERSION:
        raise RowError(
            "newer_schema",
            f"was written by a newer seqloss: schema version {version}, and this one knows up to "
            f"{SCHEMA_VERSION}; update seqloss",
        )
    if record.get("command") not in _COMMANDS:
        command = record.get("command")
        raise RowError("no_results", f"holds what {command!r} wrote, not results of score or cond")
    return {k: v for k, v in record.items() if k not in ("type", "schema_version")}


def _rows(file: ResultsFile, records: Iterator[tuple[int, Any]]) -> Iterator[ResultRow | Rejected]:
    for line, record in records:
        try:
            if isinstance(record, RowError):
                raise record
            row = _take(file, line, record)
        except RowError as error:
            yield Rejected(f"{file.name}:{line}", file.name, line, error.reason, error.message)
            continue
        if row is not None:
            file.n_sequences += 1
            yield row


def _take(file: ResultsFile, line: int, record: Run) -> ResultRow | None:
    """The row, or None where the record is about the run."""
    kind = record.get("type")
    if kind == "sequence":
        file.complete = False
        return read_row(record, f"{file.name}:{line}")
    if kind == "rejected":
        file.n_rejected += 1
    elif kind == "totals":
        file.complete = True
        file.totals.append(record)
        file.n_empty_lines += int(record.get("n_empty_lines") or 0)
    elif kind == "run":
        file.complete = False
        _require_same_run(file, line, _checked_run(record))
    else:
        raise RowError("bad_row", f"has no known type, but {kind!r:.40}")
    return None


def _require_same_run(file: ResultsFile, line: int, run: Run) -> None:
    """A file may be shards of one run, one after another, and of no other."""
    if differences := run_differences(file.run, run):
        named = "; ".join(str(difference) for difference in differences)
        raise UsageError(f"{file.name}:{line} goes on with another run: {named}")


# -- records of each format --------------------------------------------------------------------


def _records(name: str) -> Iterator[tuple[int, Any]]:
    """Line (of JSONL, else the count) and object, or the RowError that stands for it."""
    if name != STDIN and _begins_with(name, _PARQUET):
        from seqloss_cli.results.parquet import read_parquet_rows

        yield from enumerate(read_parquet_rows(name), start=1)
        return
    with open_input(name) as (stream, _):
        number = 0
        for number, raw in enumerate(bounded_lines(stream, _LONGEST_LINE), start=1):
            if number == 1 and raw is not None and _is_document(raw):
                yield from _of_document(raw + b"\n" + stream.read())
                return
            yield number, _parsed(raw)


def _begins_with(name: str, magic: bytes) -> bool:
    try:
        with open_input(name) as (stream, _):
            return stream.read(len(magic)) == magic
    except RowError:
        return False  # said where it is opened to be read


def _parsed(raw: bytes | None) -> Any:
    try:
        record = orjson.loads(raw or b"")
    except orjson.JSONDecodeError:
        return RowError("torn_row", "is no whole JSON object: cut off or damaged")
    return record if isinstance(record, dict) else RowError("bad_row", "is no JSON object")


def _is_document(first_line: bytes) -> bool:
    return first_line.startswith(b'{"schema_version"') or first_line.strip() == b"{"  # jq's


def _of_document(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The records of `--json`, in the order of `--jsonl`."""
    try:
        document = orjson.loads(raw)
        run, sequences = document["run"], document["sequences"]
        rejected, totals = document["rejected"], document["totals"]
    except (orjson.JSONDecodeError, KeyError) as error:
        yield 1, RowError("torn_row", f"is no whole JSON document: {error}")
        return
    yield 1, {"type": "run", "schema_version": document["schema_version"], **run}
    number = 1
    for kind, rows in (("sequence", sequences), ("rejected", rejected), ("totals", [totals])):
        for row in rows:
            number += 1
            yield number, {"type": kind, **row}
