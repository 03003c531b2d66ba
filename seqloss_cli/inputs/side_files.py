"""Files beside the inputs: JSONL with labels of their tokens, or with regions of their texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.escaping import shown_path
from seqloss_cli.core.records import Item, Region, Regions, Rejected, Sample
from seqloss_cli.inputs.duplicates import DuplicateIds, Waiting
from seqloss_cli.inputs.rows import (
    masked,
    own_id_of,
    parse_object,
    refuse_document_line,
    string_or_whole,
    whole_numbers,
)
from seqloss_cli.inputs.streams import BOM, STDIN, bounded_lines, open_input
from seqloss_cli.metrics.chain_rule import ChainRule
from seqloss_cli.tokenization.labels import Labels

_MISMATCH = "regions_mismatch"
_SHOWN = 40
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SideRow(Generic[T]):
    """A row of a side file: its content, or why it has none."""

    line: int
    id: str | None
    content: T | RowError


class SideFile(Generic[T]):
    """Finds the row of each input: by `id` where the first readable row has one, else by order.

    By order there is a row for each input, the rejected ones too. By id, rows that come before the
    one that is looked for wait, on disk where many do. Rows of which `parse` makes None are passed
    over.
    """

    def __init__(
        self,
        name: str,
        max_bytes: int,
        noun: str,
        parse: Callable[[dict[str, Any]], T | None],
        is_part: bool,
    ) -> None:
        """`noun` names the content in messages, such as `labels`. `parse` raises RowError.
        `is_part`: not all inputs will be asked for."""
        self._is_part = is_part
        self._name, self.source, self._noun, self._parse = name, shown_path(name), noun, parse
        self._rows: Iterator[SideRow[T]] = self._read(max_bytes)
        self._by_id: bool | None = None
        self._kept = Waiting[SideRow[T]]()
        self._failed: RowError | None = None
        self.unmatched: list[str] = []
        """Rows that were unreadable and, ids being looked for, belong to no input."""
        if is_part:
            self._require_ids_once(max_bytes)

    def find_row(self, item: Item) -> tuple[int, T] | Rejected:
        """Line and content of an input's row, or why there is none.

        It is to be asked once for each input, in order.
        """
        row, missing = self._row(item.id), f"no_{self._noun}"
        if row is None:
            error = self._failed or RowError(missing, f"{self.source} has no {self._noun} for it")
            return Rejected(item.id, item.source, item.line, error.reason, error.message)
        found = row.content
        if not self._by_id and row.id not in (None, item.id):
            message = f"holds the {self._noun} of {row.id!r:.60}, not of {item.id!r}"
            found = RowError(missing, message)
        if isinstance(found, RowError):
            return Rejected(item.id, self.source, row.line, found.reason, found.message)
        return row.line, found

    def count_unused(self) -> int:
        """Number of rows that belong to no input."""
        n_left = 0
        while self._next_row() is not None:
            n_left += 1
        return len(self._kept) + n_left

    def _row(self, identity: str) -> SideRow[T] | None:
        if self._by_id is None:
            self._look_for_ids()
        if self._by_id and self._kept.has(identity):
            return self._kept.take(identity)
        while (row := self._next_row()) is not None:
            if not self._by_id or row.id == identity:
                return row
            self._keep(row)
        return None

    def _look_for_ids(self) -> None:
        """Read on to the first readable row, which tells whether rows have ids."""
        ahead = list[SideRow[T]]()
        while (row := self._next_row()) is not None:
            ahead.append(row)
            if not isinstance(row.content, RowError):
                self._by_id = row.id is not None
                break
        self._rows = chain(ahead, self._rows)
        if self._is_part and self._by_id is False:
            raise UsageError(
                f"--shard: rows of {self.source} have no id, and go by the order of all inputs: "
                "give each the id of its input"
            )

    def _require_ids_once(self, max_bytes: int) -> None:
        """Raise UsageError for an id of two rows: which input has which tells the order of all."""
        if self._name == STDIN:
            raise UsageError(f"--shard: {self._noun} cannot come by stdin, which is read once")
        seen = DuplicateIds()
        with suppress(RowError):
            for identity in self._own_ids(max_bytes):
                if identity is not None and seen.seen_before(identity):
                    raise UsageError(
                        f"--shard: {self.source} has the id {identity!r:.60} twice: which row is "
                        "of which input is told by the order of all inputs"
                    )

    def _own_ids(self, max_bytes: int) -> Iterator[str | None]:
        """Yield the ids of rows. Raises RowError where the file breaks off."""
        with open_input(self._name) as (stream, _):
            for raw in filter(None, bounded_lines(stream, max_bytes)):
                with suppress(RowError):
                    yield own_id_of(parse_object(raw.removeprefix(BOM)))

    def _keep(self, row: SideRow[T]) -> None:
        if row.id is not None:
            ids = getattr(row.content, "input_ids", None)
            self._kept.add(row.id, "", row, 0 if ids is None else len(ids))
            return
        why = "has no id, while the first row has one"
        if isinstance(row.content, RowError):
            why = row.content.message
        self.unmatched.append(f"{self.source}:{row.line}: {why}")

    def _next_row(self) -> SideRow[T] | None:
        try:
            return next(self._rows, None)
        except RowError as error:
            # The file broke off: the inputs from here on are rejected, each with this reason.
            self._failed = RowError(error.reason, f"{self.source} {error.message}")
            return None

    def _read(self, max_bytes: int) -> Iterator[SideRow[T]]:
        with open_input(self._name) as (stream, _):
            for line, raw in enumerate(bounded_lines(stream, max_bytes), start=1):
                if line == 1 and raw is not None:
                    raw = raw.removeprefix(BOM)
                    refuse_document_line(raw)
                if raw != b"" and (row := self._parsed(line, raw, max_bytes)) is not None:
                    yield row

    def _parsed(self, line: int, raw: bytes | None, max_bytes: int) -> SideRow[T] | None:
        own_id = None
        try:
            if raw is None:
                raise RowError("too_long", f"line is longer than --max-bytes {max_bytes}")
            row = parse_object(raw)
            own_id = own_id_of(row)
            content = self._parse(row)
            return None if content is None else SideRow(line, own_id, content)
        except RowError as error:
            return SideRow(line, own_id, error)


class LabelFile(SideFile[Labels]):
    """Finds the labels of each input that a training pipeline wrote as `input_ids` and `labels`.

    Rows of results that are no sequence (the run, totals) are passed over.
    """

    def __init__(self, name: str, max_bytes: int, is_part: bool = False) -> None:
        super().__init__(name, max_bytes, "labels", _parse_labels, is_part)

    def find(self, item: Item) -> Labels | Rejected:
        """The labels of an input, or why there are none: asked once for each input, in order."""
        row = self.find_row(item)
        return row if isinstance(row, Rejected) else row[1]


def _parse_labels(row: dict[str, Any]) -> Labels | None:
    """The labels of a row; None for a row of results that is no sequence."""
    if row.get("type", "sequence") != "sequence":
        return None
    # A row of results is refused where its figures contradict the chain rule.
    ChainRule.read(row)
    name = "input_ids" if "input_ids" in row else "token_ids"
    if name not in row:
        raise RowError("missing_field", "has no field 'input_ids'")
    ids, given = whole_numbers(row[name], name), row.get("labels")
    # Trainers mask what a row's masks mask, its labels given or not.
    given = masked(row, ids, None if given is None else whole_numbers(given, "labels"))
    if given is None:
        raise RowError("missing_field", "has no field 'labels', nor a mask such as 'loss_mask'")
    labels = Labels(ids, given)
    if len(labels.input_ids) != len(labels.labels):
        raise RowError(
            "bad_labels", f"has {len(labels.labels)} labels for {len(labels.input_ids)} {name}"
        )
    if not len(labels.labels):
        raise RowError("empty", "has no labels")
    return labels


class RecordingFile(SideFile[Sample]):
    """Finds the recording of each input in another file of recordings."""

    def __init__(
        self, name: str, items: Callable[[], Iterator[Item]], is_part: bool = False
    ) -> None:
        """`items` reads the file. `is_part`: not all inputs will be asked for."""
        self._items = items
        super().__init__(name, 0, "recording", lambda row: None, is_part)

    def _own_ids(self, max_bytes: int) -> Iterator[str | None]:
        return map(_own_id, self._items())

    def _read(self, max_bytes: int) -> Iterator[SideRow[Sample]]:
        for item in self._items():
            if isinstance(item, Rejected) and item.line is None:
                raise RowError(item.reason, item.message)
            own_id, line = _own_id(item), item.line or 0
            if isinstance(item, Rejected):
                yield SideRow(line, own_id, RowError(item.reason, item.message))
            else:
                yield SideRow(line, own_id, item)


def _own_id(item: Item) -> str | None:
    # Without an id of its own a row is called by its file and number.
    return None if item.id == f"{item.source}:{item.line}" else item.id


@dataclass(frozen=True, slots=True)
class _RegionRow:
    """Regions as a row has them: names with spans of characters, or with strings."""

    find: Callable[[str], Iterator[Region]]
    """Finds them in the input's text; raises RowError for a text that they do not fit."""
    item: str | int | None
    condition: str | int | None


class RegionFile(SideFile[_RegionRow]):
    """Gives each input its regions; one without, or whose text they do not fit, is rejected.

    Rows hold spans of characters, or the strings that a text is made of, as SyntaxGym has them.
    """

    def __init__(self, name: str, max_bytes: int, is_part: bool = False) -> None:
        """Raises UsageError when there is no such file."""
        if not Path(name).is_file():
            raise UsageError(f"--regions {name}: no such file")
        super().__init__(name, max_bytes, "regions", _parse_regions, is_part)
        self._path = Path(name)
        self.all_asked = False
        """Every input was given its regions, or rejected."""

    def attach(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items with their regions, in order."""
        for item in items:
            row = self.find_row(item)
            if isinstance(item, Rejected):
                yield item
            elif isinstance(row, Rejected):
                yield replace(row, end=item.end, n_bytes_read=item.n_bytes_read)
            else:
                yield self._with_regions(item, *row)
        self.all_asked = True

    def described(self) -> dict[str, str]:
        """The file and its hash, for the run's record."""
        with self._path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        return {"regions": shown_path(str(self._path)), "regions_sha256": digest.hexdigest()}

    def _with_regions(self, sample: Sample, line: int, row: _RegionRow) -> Item:
        text = sample.pair.text if sample.pair is not None else sample.text
        try:
            if text is None or sample.chat is not None:
                what = "a chat, whose text its template makes" if sample.chat else "without a text"
                raise RowError(_MISMATCH, f"regions are of a text: the input is {what}")
            regions = Regions(tuple(row.find(text)), row.item, row.condition)
            return replace(sample, regions=regions)
        except RowError as error:
            place = self.source, line, error.reason, error.message
            return Rejected(sample.id, *place, sample.end, sample.n_bytes_read)


def _spans(spans: Iterable[tuple[str, int, int]], text: str) -> Iterator[Region]:
    for name, start, end in spans:
        if not 0 <= start <= end <= len(text):
            raise RowError(
                _MISMATCH,
                f"region {name!r:.60} is characters {start} to {end} of a text of {len(text)}",
            )
        yield Region(name, start, end)


def _match_strings(strings: Iterable[tuple[str, str]], text: str) -> Iterator[Region]:
    """Finds strings that follow one another, with nothing but white space between them."""
    cursor = 0
    for name, written in strings:
        content, start = written, cursor
        is_there = text.startswith(content, start)
        if not is_there:
            # Blanks at its ends stand for one or more, of any kind, or for an end of the text.
            content, start = written.strip(), _past_space(text, cursor)
            before, after = text[:start][-1:], text[start + len(content) :][:1]
            blanks = (written[:1].isspace(), before), (written[-1:].isspace(), after)
            is_there = text.startswith(content, start) and not any(
                asked and found and not found.isspace() for asked, found in blanks
            )
        if not is_there:
            there = text[start : start + _SHOWN]
            raise RowError(
                _MISMATCH,
                f"region {name!r:.60} is {written!r:.60}, the text goes on with {there!r} at "
                f"character {start}",
            )
        cursor = start + len(content)
        yield Region(name, start, cursor)
    if (end := _past_space(text, cursor)) < len(text):
        raise RowError(
            _MISMATCH,
            f"the regions end before {text[end : end + _SHOWN]!r} at character {end} of the text",
        )


def _past_space(text: str, cursor: int) -> int:
    return next((n for n in range(cursor, len(text)) if not text[n].isspace()), len(text))


def _parse_regions(row: dict[str, Any]) -> _RegionRow:
    regions = row.get("regions")
    if not isinstance(regions, list) or not regions:
        raise RowError(
            "missing_field", "has no field 'regions' that is a list with something in it"
        )
    item, condition = (string_or_whole(row, name) for name in ("item", "condition"))
    if all(isinstance(r, Mapping) and "start" in r for r in regions):
        spans = [_parse_span(region, n) for n, region in enumerate(regions, start=1)]
        return _RegionRow(partial(_spans, spans), item, condition)
    strings = [_parse_string(region, n) for n, region in enumerate(regions, start=1)]
    return _RegionRow(partial(_match_strings, strings), item, condition)


def _parse_span(region: Mapping[str, Any], number: int) -> tuple[str, int, int]:
    start, end = region["start"], region.get("end")
    # Not isinstance: to Python `true` is a whole number, too.
    if type(start) is not int or type(end) is not int:
        raise RowError("wrong_type", f"region {number}: start and end are no whole numbers")
    return _region_name(region, number), start, end


def _parse_string(region: object, number: int) -> tuple[str, str]:
    if isinstance(region, str):
        return str(number), region
    if not isinstance(region, Mapping) or not isinstance(region.get("content"), str):
        raise RowError(
            "wrong_type",
            f"region {number} is neither a string, nor an object with start and end, or content",
        )
    return _region_name(region, number), region["content"]


def _region_name(region: Mapping[str, Any], number: int) -> str:
    """The region's own name, SyntaxGym's number, or its place in the row from 1."""
    names = string_or_whole(region, "name"), string_or_whole(region, "region_number"), number
    return str(next(name for name in names if name is not None))
