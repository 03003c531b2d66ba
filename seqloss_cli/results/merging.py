"""Join the results of shards: rows in the order of the inputs, and the totals of the whole.

One row of each open shard is in memory. Sums of losses are exact, so that those of the rows, in
whatever order, are the totals that one run over all inputs would have written.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple, cast

from seqloss_cli.core.errors import RowError, RunError, UsageError
from seqloss_cli.core.records import Rejections, WrittenNumber
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.inputs.duplicates import DuplicateIds
from seqloss_cli.inputs.rows import whole_number
from seqloss_cli.results.formats.json import JsonWriter
from seqloss_cli.results.formats.parquet import ParquetWriter
from seqloss_cli.results.schema import Key, Row, RowWriter, json_bytes
from seqloss_cli.results.shards import Record, ShardFile, ends, records_of

_LATER = math.inf
"""The number of what is told of a whole file, after all of its rows."""
_ROWS = ("sequence", "rejected")


# -- rows and sums ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Sums:
    """The sums of rows that were read, of one command."""

    read: Callable[[Row, str], Any]
    """Returns the sums of a row, with its file; raises RowError for invalid figures."""
    zero: Any
    figure: Callable[[Any], float | None]
    """Returns the figure of sums that must be that of a shard's totals."""
    name: str
    """Its name in the totals."""
    totals: Callable[[Any, Rejections, Sequence[Row]], Row]
    """Returns the totals, of all sums and rejections and the totals of all shards."""
    of_shards: tuple[str, ...] = ()
    """Keys of rows that those of a run that was not cut lack."""


def sums_of(run: Mapping[str, Any]) -> Sums:
    """Return how rows of a run's command are added up. Raises UsageError for other commands."""
    command = run.get("command")
    makers = {
        "score": _loss_sums, "cond": _loss_sums, "rank": _rank_sums,
        "diverge": _divergence_sums, "mask": _mask_sums, "check": _check_sums,
    }  # fmt: skip
    if command not in makers:
        raise UsageError(f"results of {command!r} cannot be merged")
    return makers[command](run)


def _n_empty(shards: Sequence[Row]) -> int:
    return sum(int(each.get("n_empty_lines") or 0) for each in shards)


def _loss_sums(run: Mapping[str, Any]) -> Sums:
    from seqloss_cli.metrics.totals import Totals
    from seqloss_cli.results.schema.score_keys import totals_row
    from seqloss_cli.results.schema.scores import read_row

    return Sums(
        lambda row, place: read_row(row, place).totals,
        Totals(),
        lambda sums: sums.total_loss,
        "total_loss",
        lambda sums, rejected, shards: totals_row(sums, rejected, _n_empty(shards)),
    )


def _rank_sums(run: Mapping[str, Any]) -> Sums:
    from seqloss_cli.metrics.accuracy import RankTotals
    from seqloss_cli.results.schema.rankings import rank_totals_row, read_ranking

    def totals(sums: RankTotals, rejected: Rejections, shards: Sequence[Row]) -> Row:
        # Rows do not tell how many tokens prompts have.
        sums = replace(sums, n_tokens=sum(int(each["n_tokens"]) for each in shards))
        return rank_totals_row(sums, rejected, _n_empty(shards))

    return Sums(
        lambda row, place: read_ranking(row, place).counts,
        RankTotals(),
        lambda sums: sums.n_choices,
        "n_choices",
        totals,
    )


def _divergence_sums(run: Mapping[str, Any]) -> Sums:
    from seqloss_cli.metrics.divergence import DivergenceTotals, DocumentSums
    from seqloss_cli.results.schema import TotalsView
    from seqloss_cli.results.schema.divergences import (
        Asked,
        divergence_totals_row,
        read_divergence,
    )

    documents, asked = DocumentSums(), Asked.of(run.get("teacher"), run.get("rows"))

    def read(row: Row, place: str) -> DivergenceTotals:
        found = read_divergence(row, place, asked)
        # In the order of the inputs: which values a reservoir keeps depends on all before.
        documents.add(found.sums, found.counted_values())
        return found.sums

    def totals(sums: DivergenceTotals, rejected: Rejections, shards: Sequence[Row]) -> Row:
        counts = TotalsView(sums, rejected, _n_empty(shards))
        in_part = any(each.get("kl_is") == "at least" for each in shards)
        return divergence_totals_row(counts, documents, in_part, asked)

    return Sums(read, DivergenceTotals(), lambda sums: sums.total("kl"), "kl", totals)


def _mask_sums(run: Mapping[str, Any]) -> Sums:
    from seqloss_cli.metrics.masks import MaskTotals
    from seqloss_cli.results.schema.masks import kept_mask_totals, mask_totals_row

    with_losses = run.get("model") is not None
    return Sums(
        lambda row, place: kept_mask_totals(row, with_losses),
        MaskTotals(),
        lambda sums: sums.n_tokens,
        "n_tokens",
        lambda sums, rejected, shards: mask_totals_row(sums, rejected, _n_empty(shards)),
    )


def _check_sums(run: Mapping[str, Any]) -> Sums:
    from seqloss_cli.metrics.deltas import DeltaDocuments, DeltaTotals
    from seqloss_cli.metrics.faults import Checking, Examined
    from seqloss_cli.results.schema.checks import OF_SHARDS, check_totals, take_row

    threshold = (run.get("rows") or {}).get("threshold")
    if not isinstance(threshold, int | float):
        raise UsageError(f"the run's record is damaged: its threshold is {threshold!r:.40}")
    checking = Checking(DeltaDocuments(threshold), Examined(run.get("eos_token_id")))
    with_logits = run.get("model") is not None
    return Sums(
        # In the order of the inputs, as the run that was not cut would have taken them.
        lambda row, place: take_row(row, checking, with_logits),
        DeltaTotals(),
        lambda sums: sums.n_compared,
        "n_compared",
        lambda sums, rejected, shards: check_totals(sums, rejected, _n_empty(shards), checking),
        OF_SHARDS,
    )


@dataclass(slots=True)
class Merged:
    """All rows of shards, in the order of the inputs, and what they come to."""

    files: Sequence[ShardFile]
    rejected: Counter[str] = field(default_factory=Counter)
    n_sequences: int = 0
    n_duplicate_ids: int = 0
    totals: Row = field(default_factory=dict)
    """Once all rows were taken."""

    def records(self) -> Iterator[Record]:
        """Yield the rows. Raises RunError for a shard that is cut off or damaged, or whose rows
        another one has, too."""
        sums_kind = sums_of(self.files[0].run)
        seen, last = DuplicateIds(), None
        sums = {file.index: sums_kind.zero for file in self.files}
        flags = dict[str, None]()
        for place, file, record in _in_order(self.files):
            if place == last:
                # A file that broke off did so under each shard that came to read it.
                if place[1] == _LATER and record.row["type"] == "rejected":
                    continue
                where = f"{record.row.get('source')}:{record.row.get('line')}"
                raise RunError(f"{file.name}: {where} came before: two shards have it")
            last = place
            record = self._marked(record, seen)
            if record.row["type"] == "rejected":
                self.rejected[str(record.row.get("reason"))] += 1
            else:
                self.n_sequences += 1
                found = _read(sums_kind, record.row, file)
                sums[file.index] += found
                flags |= dict.fromkeys(getattr(found, "flags", ()))
            yield _without(record, sums_kind.of_shards)
        for file in self.files:
            found, said = sums_kind.figure(sums[file.index]), (file.totals or {})[sums_kind.name]
            # Sums are exact, whatever the order of rows: any difference is a damaged file.
            if found != said:
                raise RunError(f"{file.name} is damaged: its rows sum to {found}, not to {said}")
        whole = sum(sums.values(), sums_kind.zero)
        shards = [file.totals or {} for file in self.files]
        self.totals = sums_kind.totals(whole, self.rejected, shards)
        if "flags" in self.totals:
            # In the order of the rows, as one run would have come across them.
            self.totals["flags"] = {name: self.totals["flags"][name] for name in flags}

    def _marked(self, record: Record, seen: DuplicateIds) -> Record:
        """Return the row with the flag of an id that came before, in another shard, too."""
        row = record.row
        if not seen.seen_before(str(row.get("id"))):
            return record
        self.n_duplicate_ids += 1
        flags = row.get("flags")
        if row["type"] == "rejected" or not isinstance(flags, dict) or "duplicate_id" in flags:
            return record
        _mark(row)
        raw = None
        if record.raw is not None:
            exact = _exact(record)
            _mark(exact)
            raw = json_bytes(exact)
        return Record(raw, row)


def _without(record: Record, names: Sequence[str]) -> Record:
    """Return the row without some of its keys."""
    if not any(name in record.row for name in names):
        return record
    row = {name: value for name, value in record.row.items() if name not in names}
    if record.raw is None:
        return Record(None, row)
    exact = _exact(record).items()
    return Record(json_bytes({k: value for k, value in exact if k not in names}), row)


def _mark(row: Row) -> None:
    """Give a row the flag of an id that came before."""
    choices = row.get("choices")
    if choices is None:
        row["flags"] = {"duplicate_id": True, **row["flags"]}
        return
    # Of a ranking each choice has it, and the row counts them.
    for choice in choices:
        choice["flags"] = {"duplicate_id": True, **choice["flags"]}
    row["flags"] = {"duplicate_id": len(choices), **row["flags"]}


def _read(kind: Sums, row: Row, file: ShardFile) -> Any:
    place = f"{row.get('source')}:{row.get('line')}"
    try:
        return kind.read(row, place)
    except (RowError, UsageError) as error:
        raise RunError(f"{file.name}: the row of {place} is damaged: {error}") from error


Place = tuple[int, float, int]
"""Number of the input, number of the record in it, and of rows that stand behind that record, or
below 0 before it."""
Placed = tuple[Place, ShardFile, Record]


def _in_order(files: Sequence[ShardFile]) -> Iterator[Placed]:
    """Yield the rows of all shards by their places. A file is open from its first row to its last:
    of shards that were cut by bytes one at a time, however many there are."""
    waiting = sorted(((_first_place(file), n) for n, file in enumerate(files)), reverse=True)
    # The number decides between equal places: rows are not compared.
    rows: list[tuple[Place, int, Placed, Iterator[Placed]]] = []
    while waiting or rows:
        is_new = bool(waiting) and (not rows or waiting[-1][0] <= rows[0][0])
        if is_new:
            n = waiting.pop()[1]
            stream: Iterator[Placed] = _placed(files[n])
        else:
            _, n, row, stream = rows[0]
            yield row
        if (following := next(stream, None)) is not None:
            entry = following[0], n, following, stream
            (heapq.heappush if is_new else heapq.heapreplace)(rows, entry)
        elif not is_new:
            heapq.heappop(rows)


def _first_place(file: ShardFile) -> Place:
    rows = _placed(file)
    first = next(rows, None)
    rows.close()
    return (-1, 0, 0) if first is None else first[0]


def _placed(file: ShardFile) -> Generator[Placed]:
    """Yield the rows of a shard with their places in the inputs, and check its totals."""
    last: Place | None = None
    counts = Counter[str]()
    try:
        for place, record in _with_places(file):
            row = record.row
            counts[row["type"]] += 1
            if last is not None and place <= last:
                raise RowError(
                    "torn_row", f"has {row.get('source')}:{row.get('line')} out of order"
                )
            last = place
            yield place, file, record
    except RowError as error:
        raise RunError(f"{file.name}: {error.message}") from error
    totals = file.totals
    if totals is None or not ends(totals):
        raise RunError(f"{file.name} is not whole: shard {file.place} is to be run again")
    if (totals["n_sequences"], totals["n_rejected"]) != (counts["sequence"], counts["rejected"]):
        raise RunError(
            f"{file.name} is damaged: its totals are of {totals['n_sequences']} sequences and "
            f"{totals['n_rejected']} rejected, and {counts['sequence']} and {counts['rejected']} "
            "are there"
        )


def _with_places(file: ShardFile) -> Iterator[tuple[Place, Record]]:
    """Yield the rows of a shard with their places; its totals are noted when they come."""
    sources = {name: n for n, name in enumerate(file.run["reading"]["inputs"])}
    # It may have been read before, for the place of its first row.
    file.totals, last = None, None
    # What a file beside the inputs has no row for, is told of that file: it stays behind its
    # neighbour, or where it is the first before the one that comes.
    first = list[Record]()
    for record in records_of(file.name):
        row = record.row
        if row["type"] == "totals":
            file.totals = row
        if row["type"] not in _ROWS:
            continue
        if file.totals is not None:
            raise RowError("torn_row", "goes on behind its totals")
        if row.get("source") in sources:
            number = row.get("line")
            last = sources[str(row["source"])], _LATER if number is None else number, 0
            for n, each in enumerate(first, -len(first)):
                yield (last[0], last[1], n), each
            first.clear()
        elif last is None:
            first.append(record)
            continue
        else:
            last = last[0], last[1], last[2] + 1
        yield last, record
    yield from (((-1, file.index, n), each) for n, each in enumerate(first))


# -- writing ---------------------------------------------------------------------------------------


class _Recorded(NamedTuple):
    """A run's record that was read back."""

    record: Row

    def as_json(self) -> Row:
        return self.record


class MergeWriter:
    """Writes records of one run to a sink: JSONL lines as they were, other formats anew."""

    def __init__(self, name: str, sink: BinaryIO, run: Row) -> None:
        """`name` is that of a format that is read back."""
        self._sink = sink
        self._of: RowWriter | None = None
        if name == "jsonl":
            sink.write(json_bytes(run) + b"\n")
            return
        record = _Recorded({k: v for k, v in run.items() if k not in ("type", "schema_version")})
        rows: Any = SimpleNamespace(keys=_keys(str(run["command"])))
        self._of = (JsonWriter if name == "json" else ParquetWriter)(sink, rows)
        self._of.begin(cast(RunInfo, record))

    def write(self, record: Record) -> None:
        """Write a row."""
        if self._of is None:
            self._sink.write((record.raw or json_bytes(record.row)) + b"\n")
            return
        row = _exact(record) if record.row.get("meta") else record.row
        self._of.write_row(row["type"], {k: v for k, v in row.items() if k != "type"})

    def end(self, totals: Row) -> None:
        """Write the totals."""
        if self._of is None:
            self._sink.write(json_bytes({"type": "totals", **totals}) + b"\n")
        else:
            self._of.write_totals(totals)


def _exact(record: Record) -> Row:
    """Return a row whose numbers have the digits that they were written with: those of meta."""
    if record.raw is None:
        return record.row
    row: Row = json.loads(record.raw, parse_float=WrittenNumber, parse_int=whole_number)
    return row


def _keys(command: str) -> Sequence[Key]:
    """Return all keys that rows of a command can have."""
    from seqloss_cli.results.schema import checks, divergences, masks, rankings, score_keys

    return {
        "check": tuple(key for key in checks.CHECK_KEYS if key.name not in checks.OF_SHARDS),
        "rank": rankings.RANK_KEYS,
        "diverge": divergences.DIVERGENCE_KEYS,
        "mask": masks.MASK_KEYS,
    }.get(command, score_keys.SCORE_KEYS)
