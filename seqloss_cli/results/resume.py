"""Rows that --resume keeps of a results file, each checked against its input, which is read again.

Read line by line. Of a file that a crash cut off, or that holds garbage after a loss of power, the
longest beginning of whole lines is kept. Whole rows behind a damaged line are no torn end, but a
damaged disk: they are counted, so that nobody loses them without a word.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from errno import ENXIO
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, Generic

import orjson

from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.records import Rejected
from seqloss_cli.core.run_record import WEIGHTS, RunInfo
from seqloss_cli.inputs.streams import BOM
from seqloss_cli.results.engines import FOUND, doubts, engine_differences
from seqloss_cli.results.files import TEMPLATE_DATE
from seqloss_cli.results.schema import Row, Rows, Sums, Unscored, json_bytes, parse_record, run_row
from seqloss_cli.results.sinks import named

_RUN = b'{"type":"run"'
_ROWS = ("sequence", "rejected")
_PIECE = 1 << 20
_MEND = "give the inputs of the first run, or --force to start anew"


@dataclass(frozen=True, slots=True)
class PartialFile:
    """The content of a results file, as far as it is whole."""

    path: Path
    run: Mapping[str, Any] | None
    """The run line; None where there is none that is whole, and so nothing to keep."""
    n_rows: int = 0
    """After the run line, through the last that is whole."""
    n_rejected: int = 0
    length: int = 0
    """Bytes through that row."""
    has_totals: bool = False
    """The run came to its end (or to that of --strict)."""
    n_torn: int = 0
    """Bytes after all that, which mean nothing."""
    n_lost: int = 0
    """Rows among these that are whole, but stand behind a line that is not."""

    @property
    def torn_line(self) -> int:
        """Return the line, counted from 1, at which the bytes that mean nothing begin."""
        return 1 if self.run is None else self.n_rows + 2 + self.has_totals


def inspect_partial(path: Path) -> PartialFile:
    """Return what is whole; raises UsageError for other content, or rows without a run."""
    n_bytes = path.stat().st_size
    with path.open("rb") as stream:
        run = _run_line(stream, path)
        if run is None:
            return PartialFile(path, None, n_torn=n_bytes)
        n_rows, n_rejected, length = 0, 0, stream.tell()
        while (line := _whole_line(stream)) is not None and line["type"] in _ROWS:
            n_rows += 1
            n_rejected += line["type"] == "rejected"
            length = stream.tell()
        # Totals are no part of `length`: a run that goes on writes its own in their place.
        has_totals = line is not None and line["type"] == "totals"
        end = stream.tell() if has_totals else length
        stream.seek(end)
        n_lost = _n_whole_rows(stream)
    return PartialFile(path, run, n_rows, n_rejected, length, has_totals, n_bytes - end, n_lost)


def recorded_run(path: Path) -> Mapping[str, Any] | None:
    """Return the run line of a results file; None where it is torn or not there at all.

    Raises UsageError when the file holds something else, or whole rows behind a damaged run line.
    """
    with path.open("rb") as stream:
        return _run_line(stream, path)


def _run_line(stream: BufferedReader, path: Path) -> Mapping[str, Any] | None:
    if stream.peek(len(BOM)).startswith(BOM):  # as editors put it there
        stream.seek(len(BOM))
    # A loss of power may leave the length and nothing but NULs: a torn line, not another's file.
    start = stream.peek(len(_RUN))[: len(_RUN)].rstrip(b"\0")
    if not _RUN.startswith(start):
        raise UsageError(
            f"--resume: {named(path)} holds no results of seqloss: it does not begin with a run; "
            "--force writes over it"
        )
    line = _whole_line(stream)
    if line is not None and line["type"] == "run":
        return line
    stream.seek(0)
    if n_whole := _n_whole_rows(stream):
        raise UsageError(
            f"--resume: {named(path)}:1 is damaged, and only that line tells of which run the "
            f"{n_whole} whole rows after it are; --force starts anew and writes over them"
        )
    return None


def _whole_line(stream: BufferedReader) -> Row | None:
    """Return the next line's object; None at the end, and where a line is torn or garbage."""
    # A look at one byte first: garbage may be a line of gigabytes.
    return _parsed(_raw_line(stream)) if stream.peek(1)[:1] == b"{" else None


def _parsed(raw: bytes) -> Row | None:
    line = parse_record(raw) if raw.endswith(b"\n") else None
    # Garbage may happen to be JSON, such as a number: an error in place of a record.
    return line if isinstance(line, dict) and isinstance(line.get("type"), str) else None


def _raw_line(stream: BufferedReader) -> bytes:
    """Return the next line, but of one with NULs in it a piece."""
    # A crash can leave gigabytes of them, which are no line to be held in memory.
    pieces = [stream.readline(_PIECE)]
    while pieces[-1] and not pieces[-1].endswith(b"\n") and b"\0" not in pieces[-1]:
        pieces.append(stream.readline(_PIECE))
    return b"".join(pieces)


def _n_whole_rows(stream: BufferedReader) -> int:
    """Count the rows that are whole from here to the end, whatever is between them."""
    n_whole = 0
    while _pass_hole(stream) and (raw := _raw_line(stream)):
        line = _parsed(raw)
        n_whole += line is not None and line["type"] in _ROWS
    return n_whole


def _pass_hole(stream: BufferedReader) -> bool:
    """Go to the next bytes that are on the disk; returns False where none are."""
    if stream.peek(1)[:1] == b"\0" and hasattr(os, "SEEK_DATA"):
        try:
            stream.seek(stream.tell(), os.SEEK_DATA)
        except OSError as error:
            # ENXIO: a hole is all that is left. Otherwise the file system knows no holes.
            return error.errno != ENXIO
    return True


class KeptRows(Generic[Sums, Unscored]):
    """The rows that are kept, checked one by one as the inputs are read again."""

    def __init__(
        self,
        file: PartialFile,
        rows: Rows[Any, Sums, Unscored],
        zero: Sums,
        when_all_checked: Callable[[], object] = lambda: None,
    ) -> None:
        """`zero` are the sums of no row. `when_all_checked` is called after the last row: until
        then the file may turn out to be of other inputs."""
        self.path, self.n_rows, self._when_all_checked = file.path, file.n_rows, when_all_checked
        self.sums, self._of = zero, rows
        self.n_sequences = 0
        self.rejected = Counter[str]()
        """Reason to the number of rows that are of inputs rejected for it."""
        self._rows = _rows(file.path, file.n_rows)

    @property
    def n_checked(self) -> int:
        """Rows whose inputs were read again."""
        return self.n_sequences + self.rejected.total()

    def check(self, entry: Unscored) -> None:
        """Take the next input, not scored, for that of the next row.

        Raises UsageError when it is not, or when that row's figures are invalid.
        """
        row = next(self._rows, None)
        if row is None:
            raise UsageError(
                f"--resume: {named(self.path)} has rows of {self.n_rows} inputs, and now there are "
                f"more, first {_named(entry)}; {_MEND}"
            )
        # Lines count from 1, and the first is that of the run.
        place = f"{named(self.path)}:{self.n_checked + 2}"
        try:
            expected = self._of.expected(entry, row)
        except UsageError as error:
            raise UsageError(f"--resume: {place} {error}") from error
        for name, value in expected.items():
            if row.get(name) != value:
                raise UsageError(
                    f"--resume: {place} belongs to another input than what is read now: {name} is "
                    f"{_shown(row.get(name))} there and {_shown(value)} here; {_MEND}"
                )
        if row["type"] == "rejected":
            self.rejected[str(row["reason"])] += 1
        else:
            self.n_sequences += 1
            self.sums = self.sums + self._checked_sums(row, place, entry)
        # Not before: as long as a row may be another input's, nothing is cut off its file.
        if self.n_checked == self.n_rows:
            self._when_all_checked()

    def _checked_sums(self, row: Row, place: str, entry: Unscored) -> Sums:
        try:
            return self._of.sums_of(row, place, entry)
        except RowError as error:
            raise UsageError(
                f"--resume: {place} is damaged: {error}; delete that line and those after it to go "
                "on from there, or give --force to start anew"
            ) from error

    def require_all_checked(self) -> None:
        """Raise UsageError when the inputs ended before the rows did."""
        n_checked = self.n_checked
        if n_checked < self.n_rows:
            raise UsageError(
                f"--resume: the inputs end after {n_checked}, and {named(self.path)} has rows of "
                f"{self.n_rows}, the next in line {n_checked + 2}; {_MEND}"
            )


def _rows(path: Path, n_rows: int) -> Iterator[Row]:
    # By a descriptor of its own, and no line further: the sink writes behind these rows.
    with path.open("rb") as stream:
        for raw in islice(stream, 1, 1 + n_rows):
            yield orjson.loads(raw)


def _named(entry: Any) -> str:
    """Return where an input was read, and its id."""
    item = entry if isinstance(entry, Rejected) else entry.sample
    where = item.source if item.line is None else f"{item.source}:{item.line}"
    return f"{where} (id {_shown(item.id)})"


def _shown(value: object, longest: int = 60) -> str:
    text = "missing" if value is _ABSENT else repr(value)
    return text if len(text) <= longest else text[:longest] + "…"


_MAY_DIFFER = (
    *("type", "started_at", "guesses"),
    *(f"engine.{key}" for key in FOUND),
    # How a run was distributed, which says nothing of its rows.
    *(f"distributed.{key}" for key in ("by", "shards", "input_bytes", "options")),
)
# Keys that are not named as their parameters; `jsonl` would be the format of the output.
_PARAMETERS = {
    "reading.jsonl": "jsonl_input",
    "pairs.scored_turns": "score",
    "compiled": "compile",
    "engine.url": "engine",
    "eos_token_id": "eos_token",
}
_OTHER_ADVICE = {
    "reading.inputs": "name the same files",
    "reading.shard": "the same --shard, and files that did not change",
    "reading.regions_sha256": "--regions FILE with the same content",
    "pairs.chat_template_sha256": "--chat-template FILE with the same template",
    "rows.chat_template_sha256": "--chat-template FILE with the same template",
    "schema_version": "the seqloss that began it",
    "weights_sha256": "the same weights",
    "gold": "the same --teacher or --label-smoothing",
    "engine.version": "the same server",
    "quantization": "the same weights; --quantize makes them of others",
}
_NOT_OF_SERVERS = ("batch_tokens", "versions.torch", "versions.transformers")
"""Keys that runs with a server once had, though they said nothing of its numbers."""
_ABSENT = object()


def require_same_run(
    path: Path, recorded: Mapping[str, Any], run: RunInfo, flags: Mapping[str, str]
) -> None:
    """Raise UsageError with every difference between a results file's run line and this run.

    `flags` are those of the command by parameter: the one that mends a difference is named with it.
    """
    if (recorded.get("rows") or {}).get("summary") is True:
        raise UsageError(
            f"--resume: {named(path)} was written with --summary: it holds no rows to go on with; "
            "--force writes over it"
        )
    # Through JSON, as what is there has been: tuples are lists in it.
    own = orjson.loads(json_bytes(run_row(run)))
    there, here = dict(_flat(recorded)), dict(_flat(own))
    pairs = {k: (there.get(k, _ABSENT), here.get(k, _ABSENT)) for k in {**there, **here}}
    if TEMPLATE_DATE not in there:  # chats of another date show by their texts
        pairs.pop(TEMPLATE_DATE, None)
    if run.engine is not None:
        pairs = {k: v for k, v in pairs.items() if k not in _NOT_OF_SERVERS}
    if run.engine is not None:  # flags of weights are for models that are loaded here
        flags = {name: flag for name, flag in flags.items() if name not in WEIGHTS}
    differences = [_difference(key, a, b, flags) for key, (a, b) in pairs.items() if a != b]
    if (then := recorded.get("engine")) and (now := own.get("engine")):
        differences += [*engine_differences(then, now), *doubts(then, now)]
    if differences:
        raise UsageError(
            f"--resume: {named(path)} was begun in another way: {'; '.join(differences)}. Give "
            "what was given then, or --force to start anew"
        )


def _flat(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys with their values, those of parts as `part.key`."""
    for key, value in run.items():
        parts = {key: value}
        if isinstance(value, dict):
            parts = {f"{key}.{name}": inner for name, inner in value.items()}
        yield from (each for each in parts.items() if each[0] not in _MAY_DIFFER)


def _difference(key: str, there: Any, here: Any, flags: Mapping[str, str]) -> str:
    # A command that takes rows without prompts records no field for them.
    if key == "reading.prompt_field" and None in (there, here) and "no_prompt" in flags:
        advice = _switched(flags["no_prompt"], there is None)
    else:
        advice = _advice(key, there, flags)
    values = f"{_shown(there, 80)} there and {_shown(here, 80)} here"
    return f"{key} is {values}" + (advice and f" ({advice})")


def _advice(key: str, there: Any, flags: Mapping[str, str]) -> str:
    """Return what to give on the command line to have the value that is there."""
    part, _, name = key.rpartition(".")
    if key in _OTHER_ADVICE:
        return _OTHER_ADVICE[key]
    if part == "versions":
        return "" if there is _ABSENT else "the same version"
    if "teacher" in (part, key):
        return "the same --teacher and its options"
    name = _PARAMETERS.get(key, name)
    # `text` of a row is turned off by --no-text, and is not the text that --text gives.
    if is_negative := f"no_{name}" in flags:
        name = f"no_{name}"
    flag = flags.get(name, "")
    # Options that came later are named only where they are given.
    if there is _ABSENT:
        return _switched(flag, False) if flag and not is_negative else ""
    if is_negative:
        return _switched(flag, not there)
    if not flag:
        return ""
    # `--compile auto` was decided by the machine: what it came to is named.
    if key == "compiled":
        return f"{flag} {'on' if there else 'off'}"
    # Nothing was given then, or a flag that takes no value.
    if there is None or isinstance(there, bool):
        return _switched(flag, bool(there))
    value = ",".join(there) if isinstance(there, list) else str(there)
    return f"{flag} {shlex.quote(value)}"


def _switched(flag: str, on: bool) -> str:
    return f"give {flag}" if on else f"leave {flag} out"
