"""The formats of results for machines, a record each: how it is written and read, what it holds.

A new format is a module here, a line of `_write` and an entry of `FORMATS`: choices, extensions
and refusals follow.
Nothing heavy is imported before a format is used: the command line reads the names when it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from seqloss_cli.core.errors import load_pyarrow
from seqloss_cli.results import RowContents

if TYPE_CHECKING:
    from seqloss_cli.core.records import Rejected, Rejections
    from seqloss_cli.core.run_record import RunInfo
    from seqloss_cli.results.schema import Rows

Result = TypeVar("Result", contravariant=True)
Sums = TypeVar("Sums", contravariant=True)
Records = Iterator[tuple[int, Any]]
"""Line (of JSONL, else a count) and object of each record, or the RowError that stands for it."""


class Writer(Protocol[Result, Sums]):
    """Takes `begin`, then `sequence` and `reject` in input order, then `end`.

    A `Result` comes with its own sums; `end` is given those of all.
    """

    def begin(self, run: RunInfo) -> None:
        """Write what comes before all results."""

    def sequence(self, result: Result, sums: Sums) -> None:
        """Write a result."""

    def reject(self, rejected: Rejected) -> None:
        """Write an input that could not be scored."""

    def end(self, sums: Sums, rejected: Rejections, n_empty_lines: int) -> None:
        """Write what comes after all results."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of results, and what it can hold."""

    name: str
    """After --format, and as the extension of its files."""
    write: Callable[[BinaryIO, Rows[Any, Any, Any], str], Writer[Any, Any]]
    """A writer to a sink of the rows of a run, lines of a level."""
    read: Callable[[str], Records] | None = None
    """The records of a file that it wrote; None where it is not read back."""
    magic: bytes = b""
    """First bytes of its files, where they are told by these."""
    has_extension: bool = True
    """Files whose name ends in a dot and its name are of it."""
    has_levels: bool = False
    """A line is what --level says."""
    holds_totals: bool = True
    """The run and its totals are in it."""
    resumable: bool = False
    """Rows stand in lines, so that an interrupted run can go on after the last whole one."""
    conflicts: Callable[[RowContents], Iterator[str]] = lambda asked: iter(())
    """Why it cannot hold what is asked for."""
    require_package: Callable[[], object] = lambda: None
    """Raises UsageError when a package that it needs is not installed."""


LEVELS: Mapping[str, tuple[str, ...]] = {
    "score": ("sequence", "token", "word", "region"),
    "cond": ("sequence", "token", "word", "region"),
    "rank": ("choice", "token"),
    "diverge": ("sequence", "token"),
    "mask": ("sequence", "token"),
    "check": ("sequence", "token"),
}
"""Command to what a line of its formats with levels can be, the default first."""


def _write(name: str, sink: BinaryIO, rows: Rows[Any, Any, Any], level: str) -> Writer[Any, Any]:
    # Imported when a run writes: numpy and orjson would cost `--help` a tenth of a second.
    from seqloss_cli.results.formats import delimited, json, parquet

    writers: dict[str, Callable[..., Writer[Any, Any]]] = {
        "json": json.JsonWriter,
        "jsonl": json.JsonlWriter,
        "openai": json.OpenAIWriter,
        "parquet": parquet.ParquetWriter,
        "csv": partial(delimited.LineWriter, level, ","),
        "tsv": partial(delimited.LineWriter, level, "\t"),
    }
    return writers[name](sink, rows)


def _read_json(name: str) -> Records:
    from seqloss_cli.results.formats.json import read_json

    return read_json(name)


def _read_parquet(name: str) -> Records:
    from seqloss_cli.results.formats.parquet import read_parquet_rows

    return enumerate(read_parquet_rows(name), start=1)


def _openai_conflicts(asked: RowContents) -> Iterator[str]:
    if asked.command not in ("score", "cond"):
        others = ", ".join(name for name in FORMATS if name != "openai")
        yield f"--format openai is of losses of texts; {asked.command} writes {others}"
    if not asked.tokens:
        yield "--format openai is made of tokens; leave --no-tokens out"
    for flag, is_asked in (("--regions", asked.regions), ("--words", asked.words)):
        if is_asked:
            yield f"--format openai has no place for {flag}; --json has"


def _parquet_conflicts(asked: RowContents) -> Iterator[str]:
    # Its bytes would upset a terminal, and its end is written before its beginning can be read.
    if asked.path is None:
        yield "--format parquet is no text: it needs -o FILE"


def _line_conflicts(name: str, asked: RowContents) -> Iterator[str]:
    """Yield why lines of one kind cannot hold what is asked for."""
    levels = LEVELS[asked.command]
    if asked.summary:
        yield f"{name} has lines of inputs and no totals; --summary goes with --json"
    for column in asked.columns:
        if not column.csv:
            yield f"{name} has no place for {column.flag}; --jsonl has"
    if asked.level not in levels:
        known = " or a ".join(levels)
        yield f"a line of {asked.command} is a {known}: --level {asked.level} is not"
    if asked.regions != (asked.level == "region"):
        yield f"--regions and --level region go together in {name}: give both or none"
    if asked.level == "word" and not asked.words:
        yield "--level word is made of words: give --words, too"
    # Corrected losses of regions are made of those of their words.
    in_region = asked.level == "region" and asked.word_correction
    if asked.words and asked.level != "word" and not in_region:
        yield (
            f"{name} has no place for --words at this level: give --level word (or --level region "
            "with --word-correction), or --jsonl"
        )
    if asked.level == "token":
        if not asked.tokens:
            mend = "give --tokens" if asked.command == "rank" else "leave --no-tokens out"
            yield f"--level token is made of tokens; {mend}"
        return
    # Arrays, of which no cell of a longer line can hold one.
    flags = [column.flag for column in asked.columns]
    if asked.context_lengths:
        flags.append("--context-lengths")
    if asked.command == "rank" and asked.tokens:
        flags.append("--tokens")
    for flag in flags:
        yield f"{name} has a place for {flag} with --level token only"


def _lines(name: str) -> Format:
    return Format(
        name,
        partial(_write, name),
        has_levels=True,
        holds_totals=False,
        conflicts=partial(_line_conflicts, name),
    )


FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        Format("json", partial(_write, "json"), _read_json),
        Format("jsonl", partial(_write, "jsonl"), _read_json, resumable=True),
        # Its files end in .json, which names the format above.
        Format(
            "openai", partial(_write, "openai"), has_extension=False, conflicts=_openai_conflicts
        ),
        Format(
            "parquet",
            partial(_write, "parquet"),
            _read_parquet,
            magic=b"PAR1",
            conflicts=_parquet_conflicts,
            require_package=load_pyarrow,
        ),
        *map(_lines, ("csv", "tsv")),
    )
}
"""Name to format, in the order in which help and messages name them."""


def extensions() -> dict[str, Format]:
    """Return the formats that the extension of a file names."""
    return {f".{name}": format for name, format in FORMATS.items() if format.has_extension}
