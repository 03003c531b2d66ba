"""Results of shards: what their files say of the run, and whether all of them are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from seqloss_cli.core.errors import RowError, RunError, UsageError
from seqloss_cli.core.urls import shown_name
from seqloss_cli.inputs.options import is_packed
from seqloss_cli.inputs.streams import bounded_lines, open_input, open_stored
from seqloss_cli.results.engines import FOUND, engine_differences, worst_of
from seqloss_cli.results.files import check_version, run_differences
from seqloss_cli.results.formats.parquet import parquet_totals, read_parquet_rows
from seqloss_cli.results.schema import Row, parse_record

_LONGEST = 1 << 30
_TAIL = 1 << 16
_OWN = ("started_at", "guesses", "engine", "versions", "type")
"""Keys of runs that differ between shards of one run."""
_SPEED = (
    *(
        "device",
        "threads",
        "batch_tokens",
        "path",
        "compiled",
        "devices",
        "tensor_parallel",
        "share_prefix",
        "model",
    ),
    *("revision", "context_source"),
)
"""Keys that change the last digits of losses at most, or names of the same weights."""


class Record(NamedTuple):
    """A row of a results file."""

    raw: bytes | None
    """Its line, where the file has lines."""
    row: Row


@dataclass(slots=True)
class ShardFile:
    """The results of one shard."""

    name: str
    run: Mapping[str, Any]
    index: int
    of: int
    totals: Row | None = None
    """The totals of the file, once all of its rows were read."""

    @property
    def place(self) -> str:
        """Return the shard as `I/N`."""
        return f"{self.index}/{self.of}"


def records_of(name: str) -> Iterator[Record]:
    """Yield the run, the rows and the totals of a file. Raises RowError for what is none."""
    if _is_parquet(name):
        with open_stored(name) as stored:
            yield from (Record(None, row) for row in read_parquet_rows(stored))
        return
    with open_input(name) as (stream, _):
        for number, raw in enumerate(bounded_lines(stream, _LONGEST), start=1):
            row = RowError("too_long", "is too long") if raw is None else parse_record(raw)
            if isinstance(row, RowError) or "type" not in row:
                why = row.message if isinstance(row, RowError) else "is no record of results"
                raise RowError("torn_row", f"line {number} {why}")
            yield Record(raw, row)


def _is_parquet(name: str) -> bool:
    try:
        with open_stored(name) as stream:
            return stream.read(4) == b"PAR1"
    except OSError:
        return False


def open_shard(name: str) -> ShardFile:
    """Return the shard that a file is of. Raises RowError for a file that is no shard's."""
    try:
        first = next(records_of(name), None)
    except RowError as error:
        if error.reason == "torn_row":
            raise RowError("no_results", f"holds no lines of results: {error.message}") from error
        raise
    run: Mapping[str, Any] = {} if first is None else first.row
    if run.get("type") != "run":
        raise RowError("no_results", "holds no results of seqloss that stand in lines, or Parquet")
    check_version(run)
    shard = (run.get("reading") or {}).get("shard")
    if not isinstance(shard, dict):
        raise RowError("no_shard", "was written without --shard: there is nothing to merge it with")
    index, of = shard.get("index"), shard.get("of")
    if not (isinstance(index, int) and isinstance(of, int) and 0 <= index < of):
        raise RowError("no_shard", f"its run record is damaged: it tells of shard {shard!r:.60}")
    if (run.get("rows") or {}).get("summary") is True:
        raise RowError("no_rows", "was written with --summary: it holds no rows to merge")
    return ShardFile(name, run, index, of)


def is_whole(file: ShardFile) -> bool:
    """Return whether a shard came to its end, by the end of its file."""
    return totals_at_end(file.name) is not None


def totals_at_end(name: str) -> Row | None:
    """Return the totals of a run that met all of its inputs; None where the file ends otherwise.

    Raises FileNotFoundError, and RunError where the file cannot be read.
    """
    try:
        return _totals_at_end(name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"{shown_name(name)} cannot be read: {error.strerror or error}") from error


def _totals_at_end(name: str) -> Row | None:
    if _is_parquet(name):
        with open_stored(name) as stored:
            totals = {"type": "totals", **(parquet_totals(stored) or {"type": None})}
            return totals if ends(totals) else None
    # Totals are short; a line that begins before these bytes is a row.
    last_line = _end(name).rstrip(b"\n").rpartition(b"\n")[2]
    row = parse_record(last_line)
    return row if isinstance(row, dict) and ends(row) else None


def _end(name: str) -> bytes:
    """Return the last bytes of a file; of one that is compressed, which is read through, of its
    content, and nothing where that breaks off."""
    if not is_packed(name):
        with open_stored(name) as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL))
            return stream.read()
    end = b""
    with suppress(RowError), open_input(name) as (stream, _):
        while piece := stream.read(_TAIL):
            end = (end + piece)[-_TAIL:]
        return end
    return b""


def ends(row: Row) -> bool:
    """Return whether a row is the totals of a run that met all of its inputs."""
    return row.get("type") == "totals" and "stopped_early" not in (row.get("flags") or {})


def require_all(files: Sequence[ShardFile]) -> None:
    """Raise UsageError where shards are missing, doubled, or of another run or number."""
    first = files[0]
    by_index: dict[int, ShardFile] = {}
    for file in files:
        if file.of != first.of:
            raise UsageError(
                f"{file.name} is shard {file.place} and {first.name} {first.place}: all must be "
                "of one number of shards"
            )
        if (other := by_index.setdefault(file.index, file)) is not file:
            raise UsageError(f"{other.name} and {file.name} are both shard {file.place}")
        require_one_run(first, file)
    if missing := [n for n in range(first.of) if n not in by_index]:
        raise UsageError(
            f"{len(missing)} of {first.of} shards are missing: {shown_numbers(missing)}; run them, "
            "or `seqloss merge --missing` prints all that are to be run again"
        )


def require_one_run(first: ShardFile, other: ShardFile) -> None:
    """Raise UsageError where two shards are of runs that are not one."""
    if differences := list(_differences(first.run, other.run)):
        raise UsageError(
            f"{other.name} is of another run than {first.name}: {'; '.join(differences)}"
        )


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Yield what makes two runs others: their numbers, their rows, or their inputs."""
    differences = list(map(str, run_differences(first, other)))
    yield from differences
    known = {*_OWN, *_SPEED, "reading"}
    named = {each.partition(" ")[0].rstrip(":") for each in differences}
    for key in {**first, **other}:
        if key not in known | named and first.get(key) != other.get(key):
            yield f"{key} {first.get(key)!r:.60} and {other.get(key)!r:.60}"
    # Shards may ask servers at several addresses, but not of another kind, or in another way.
    here, there = (dict(run.get("engine") or {}) for run in (first, other))
    for key in sorted({**here, **there}.keys() - {"url", *FOUND}):
        if here.get(key) != there.get(key):
            yield f"engine.{key}: {here.get(key)!r:.60} and {there.get(key)!r:.60}"
    yield from engine_differences(here, there)
    one, two = (dict(run["reading"]) for run in (first, other))
    for reading in (one, two):
        reading["shard"] = {**reading["shard"], "index": None}
    for key in {**one, **two}:
        if one.get(key) != two.get(key):
            values = f"{one.get(key)!r:.80} and {two.get(key)!r:.80}"
            yield _changed_file(one, two) if key == "shard" else f"reading.{key}: {values}"


def _changed_file(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Return the first file whose size is not the same in two records of how inputs were read."""
    sizes = [reading["shard"].get("input_bytes") for reading in (one, two)]
    if one.get("inputs") == two.get("inputs") and all(isinstance(each, list) for each in sizes):
        for name, here, there in zip(one["inputs"], *sizes, strict=False):
            if here != there:
                return f"{name} changed between runs: {here} bytes and {there}"
    against = [reading["shard"].get("against_bytes") for reading in (one, two)]
    if against[0] != against[1]:
        return f"--against changed between runs: {against[0]} bytes and {against[1]}"
    return f"reading.shard.input_bytes: {sizes[0]!r:.80} and {sizes[1]!r:.80}"


def speed_differences(files: Sequence[ShardFile]) -> list[str]:
    """Return the keys that change last digits at most, and that are not the same in all."""
    first = files[0].run
    return [
        key
        for key in (*_SPEED, "versions")
        if any(file.run.get(key) != first.get(key) for file in files)
    ]


def shown_numbers(numbers: Sequence[int]) -> str:
    """Return numbers as `sbatch --array` takes them."""
    return ",".join(map(str, numbers))


def whole_run(files: Sequence[ShardFile]) -> Row:
    """Return the run's record of all shards together."""
    ordered = sorted(files, key=lambda file: file.index)
    run = dict(ordered[0].run)
    if run.get("engine"):
        run["engine"] = worst_of([file.run["engine"] for file in ordered])
    run["started_at"] = min(str(file.run.get("started_at")) for file in files)
    run["reading"] = {k: v for k, v in run["reading"].items() if k != "shard"}
    # `mask` tells of its inputs only where they were cut.
    if run.get("command") == "mask":
        run["reading"] = None
    return run
