"""Results files read back: JSONL, one JSON document, or Parquet, told apart by how they begin.

Here, too: the differences between the runs of two files that change their numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.escaping import shown_path
from seqloss_cli.core.records import SCHEMA_VERSION, Rejected
from seqloss_cli.core.run_record import POLICIES
from seqloss_cli.inputs.streams import STDIN
from seqloss_cli.metrics.totals import from_units
from seqloss_cli.results.formats import FORMATS, Format, Records
from seqloss_cli.results.formats.json import NoResultsError, read_json
from seqloss_cli.results.schema import RowKind, flags_of, typed
from seqloss_cli.results.schema.scores import ResultRow

Run = Mapping[str, Any]
Row = TypeVar("Row")


@dataclass(slots=True)
class ResultsOf(Generic[Row]):
    """A results file: its run, its rows as they are read, and counts once they were."""

    name: str
    run: Run
    kind: RowKind[Row]
    rows: Iterator[Row | Rejected]
    """A `Rejected` is a row of the file that cannot be used; the file tells of it itself."""
    n_sequences: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason to the number of inputs that the run itself rejected for it."""
    n_empty_lines: int = 0
    complete: bool = False
    """Every run in it came to its end: its totals are there."""
    shards: list[Any] = field(default_factory=list)
    """The shard of each run record in it; None of a run that was not cut."""
    n_cut: int = 0
    """Runs in it that did not."""
    n_since: int = 0
    """Sequences since the last totals, those that cannot be used counted."""
    loss_since: int = 0
    """Sum of their losses (of `kind.total`), in units of 2^-1074 nats."""
    whole_since: bool = True
    """All of them could be read, and their sums are numbers."""
    totals: Run | None = None
    """The last totals, as they were written."""

    def note_shard(self, run: Run) -> None:
        """Note of which shard the rows behind a run record are."""
        shard = (run.get("reading") or {}).get("shard")
        self.shards.append(shard if isinstance(shard, Mapping) else None)

    @property
    def part(self) -> str | None:
        """Return of which part of a run its rows are; None where they are of all of it."""
        cut = [shard for shard in self.shards if shard is not None]
        if not cut:
            return None
        if len({shard.get("of") for shard in cut}) > 1 or len(cut) < len(self.shards):
            return "holds shards of several runs"
        numbers, of = [shard.get("index") for shard in cut], cut[0].get("of")
        if len(numbers) == 1 and of != 1:
            return f"is shard {numbers[0]}/{of}, a part of its run"
        twice = sorted({n for n in numbers if numbers.count(n) > 1}, key=str)
        here = f"holds {len({*numbers})} of {of} shards of its run"
        if twice:
            return f"{here}, and {', '.join(map(str, twice))} more than once"
        return here if len(numbers) != of else None


ResultsFile = ResultsOf[ResultRow]
"""A file that `score` or `cond` wrote."""


def open_any(
    name: str,
    kinds: Mapping[str, RowKind[Any]],
    on_line: Callable[[bytes | None], object] | None = None,
) -> ResultsOf[Any]:
    """Open a results file of one of the commands in `kinds`.

    `on_line` is told the bytes of each row before it comes, None where it stands in no line.
    Raises RowError when there is no such file or it holds no results of these. Raises UsageError
    while rows are read when the file goes on with another run's.
    """
    source = "<stdin>" if name == STDIN else shown_path(name)
    records = _records(name, on_line)
    try:
        line, first = next(records)
    except StopIteration:
        raise RowError("empty", "holds nothing") from None
    if isinstance(first, NoResultsError):
        raise first
    if isinstance(first, RowError):
        raise RowError("no_results", f"holds no results of seqloss: line {line} {first.message}")
    if first.get("type") != "run":
        raise NoResultsError("it does not begin with a run", first)
    run = _checked_run(first, kinds)
    # The rows tell the file of what they come across, so that it is there before them.
    file = ResultsOf[Any](source, run, kinds[run["command"]], iter(()))
    file.note_shard(run)
    file.rows = _rows(file, records)
    return file


def check_version(record: Run) -> None:
    """Raise RowError for a run record that this version cannot read."""
    version = record.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise RowError("no_results", f"has no schema_version, but {version!r:.40}")
    if version > SCHEMA_VERSION:
        raise RowError(
            "newer_schema",
            f"was written by a newer seqloss: schema version {version}, and this one knows up to "
            f"{SCHEMA_VERSION}; update seqloss",
        )


def _checked_run(record: Run, commands: Collection[str]) -> Run:
    check_version(record)
    if (command := typed(record, "command", str)) not in commands:
        known = " or ".join(commands)
        known += "; `seqloss report` reads it" if command in ("rank", "diverge") else ""
        message = f"holds what {command!r} wrote, not results of {known}"
        raise RowError("no_results", message)
    for name in ("pairs", "teacher", "versions", "reading", "rows"):
        typed(record, name, Mapping | None)
    if models := typed(record, "models", list | None):
        raise RowError(
            "several_models",
            f"holds rows of {len(models)} models for each input; its totals compare them. Run "
            "diverge with each --model alone for a file of its own",
        )
    if (record.get("rows") or {}).get("summary") is True:
        raise RowError(
            "no_rows",
            "was written with --summary: it holds no rows; leave --summary out to have them",
        )
    return {k: v for k, v in record.items() if k not in ("type", "schema_version")}


def _rows(file: ResultsOf[Row], records: Iterator[tuple[int, Any]]) -> Iterator[Row | Rejected]:
    for line, record in records:
        try:
            if isinstance(record, RowError):
                raise record
            # Before it is read: the totals count a row that cannot be used, too.
            file.n_since += record.get("type") == "sequence"
            row = _take(file, line, record)
        except RowError as error:
            file.whole_since = False
            yield Rejected(f"{file.name}:{line}", file.name, line, error.reason, error.message)
            continue
        if row is not None:
            file.n_sequences += 1
            units = file.kind.units(row)
            file.loss_since += units or 0
            file.whole_since &= units is not None
            yield row


def _take(file: ResultsOf[Row], line: int, record: Run) -> Row | None:
    """The row, or None where the record is about the run."""
    kind = record.get("type")
    if kind == "sequence":
        file.complete = False
        return file.kind.read(record, f"{file.name}:{line}")
    if kind == "rejected":
        file.rejected[str(record.get("reason"))] += 1
    elif kind == "totals":
        n_empty = record.get("n_empty_lines")
        file.n_empty_lines += n_empty if isinstance(n_empty, int) else 0
        # Totals of a run that --strict stopped are not of all inputs.
        file.complete = not file.n_cut and "stopped_early" not in flags_of(record)
        _check_totals(file, record)
        file.totals = record
    elif kind == "run":
        file.complete = False
        # Rows and then another run, without totals between: that run was cut off.
        file.n_cut += file.n_since > 0
        file.n_since, file.loss_since, file.whole_since = 0, 0, True
        _require_same_run(file, line, record)
        file.note_shard(record)
    else:
        raise RowError("bad_row", f"has no known type, but {kind!r:.40}")
    return None


def _check_totals(file: ResultsOf[Any], totals: Run) -> None:
    """Raises RowError when the rows since the last totals are not those that were summed up."""
    n, loss, whole = file.n_since, file.loss_since, file.whole_since
    file.n_since, file.loss_since, file.whole_since = 0, 0, True
    if (printed := totals.get("n_sequences")) != n:
        raise RowError("rows_missing", f"its totals are of {printed} sequences, and {n} are there")
    # Sums are exact in these units, whatever the order of rows: any difference is a damaged file.
    total = totals.get(file.kind.total)
    if whole and total is not None and from_units(loss) != total:
        raise RowError("impossible", f"its rows sum to {from_units(loss)}, its totals say {total}")


def _require_same_run(file: ResultsOf[Any], line: int, record: Run) -> None:
    """A file may be shards of one run, one after another, and of no other."""
    command, other = file.run["command"], record.get("command")
    if other != command:
        raise UsageError(
            f"{file.name}:{line} goes on with what {other!r} wrote, after what {command!r} wrote: "
            "keep them in files of their own"
        )
    try:
        run = _checked_run(record, (command,))
    except RowError as error:
        raise UsageError(f"{file.name}:{line} goes on with a run that {error.message}") from error
    if differences := run_differences(file.run, run):
        named = "; ".join(str(difference) for difference in differences)
        raise UsageError(f"{file.name}:{line} goes on with another run: {named}")


def _records(name: str, on_line: Callable[[bytes | None], object] | None) -> Records:
    """Return the records of a file of any format that is read back."""
    # By content and not by extension: files are renamed, and piped in.
    format = next((each for each in FORMATS.values() if _is_of(name, each)), FORMATS["jsonl"])
    assert format.read is not None
    is_json = format.name in ("json", "jsonl")
    return read_json(name, on_line) if is_json and on_line else format.read(name)


def _is_of(name: str, format: Format) -> bool:
    """Return whether a file begins as those of the format do; stdin can be read once only."""
    if not format.magic or name == STDIN:
        return False
    # An error is reported where the file is opened to be read.
    with suppress(OSError, ValueError), Path(name).open("rb") as stream:
        return stream.read(len(format.magic)) == format.magic
    return False


TEMPLATE_DATE = "pairs.template_date"
"""The date that chat templates were told, of those that read the clock."""
MODEL = ("model", "revision", "weights_sha256")
TOKENIZER = ("tokenizer_sha256",)
TOKENS = ("bos_token_id", "eos_token_id")
"""Policies, too, between runs with one tokenizer."""
NUMERICS = ("context", "stride", "dtype", "quantization", "adapter")
"""Keys that change the losses of unchanged tokens: context, precision, adapted weights."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A key of two run records with another value in each."""

    key: str
    """Key of the run's record."""
    first: Any
    """Its value in the first run."""
    second: Any
    """Its value in this one."""

    def __str__(self) -> str:
        if isinstance(self.first, Mapping) and isinstance(self.second, Mapping):
            a, b = self.first, self.second
            keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
            parts = (f"{key} {_shown(a.get(key))} and {_shown(b.get(key))}" for key in keys)
            return f"{self.key}: {', '.join(parts)}"
        return f"{self.key} {_shown(self.first)} and {_shown(self.second)}"


def run_differences(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    keys: Sequence[str] = (*MODEL, *TOKENIZER, *POLICIES, *NUMERICS),
) -> list[Difference]:
    """Return differences that change numbers: of names only where the weights differ, too."""
    # A checkpoint may have been moved, or fetched under another name.
    same_weights = first.get("weights_sha256") == second.get("weights_sha256") is not None
    skipped = ("model", "revision") if same_weights else ()
    same_tokenizer = first.get("tokenizer_sha256") == second.get("tokenizer_sha256")
    more = TOKENS if same_tokenizer and "bos" in keys else ()
    return [
        Difference(key, a, b)
        for key in (*keys, *more)
        if (a := _value(first, key)) != (b := _value(second, key)) and key not in skipped
    ]


def _value(run: Run, key: str) -> Any:
    """A key's value; the date of templates apart from the other policies of pairs."""
    pairs = run.get("pairs") or {}
    if key == TEMPLATE_DATE:
        return pairs.get("template_date")
    # It is of chats alone: those rendered at another date have other texts, and pairs the same.
    dated = key == "pairs" and "template_date" in pairs
    return {k: v for k, v in pairs.items() if k != "template_date"} if dated else run.get(key)


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value).lower() if value is True else str(value)
    return text if len(text) <= 40 else text[:12] + "…"
