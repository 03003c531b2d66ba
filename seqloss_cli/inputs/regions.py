"""Regions of the inputs' texts, from a JSONL file: spans of characters, or the strings that a text
is made of, as SyntaxGym has them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.paths import shown_path
from seqloss_cli.core.records import Item, Region, Regions, Rejected, Sample
from seqloss_cli.inputs.beside import RowsBeside

_MISMATCH = "regions_mismatch"
_SPACE = re.compile(r"\s*")
_CHUNK = 1 << 20
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class _Written:
    """What a row says: names with spans, or with strings."""

    spans: tuple[tuple[str, int, int], ...] | None
    strings: tuple[tuple[str, str], ...] | None
    item: str | int | None
    condition: str | int | None


class RegionFile(RowsBeside[_Written]):
    """Gives each input its regions; one without, or whose text they do not fit, is rejected."""

    def __init__(self, name: str, max_bytes: int) -> None:
        """Raises UsageError when there is no such file."""
        if not Path(name).is_file():
            raise UsageError(f"--regions {name}: no such file")
        super().__init__(name, max_bytes, "regions", _written)
        self._path = Path(name)
        self.all_asked = False
        """Every input was given its regions, or rejected."""

    def attach(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            row = self.find_row(item)
            if isinstance(item, Rejected):
                yield item
            elif isinstance(row, Rejected):
                yield replace(row, end=item.end, n_bytes_read=item.n_bytes_read)
            else:
                assert isinstance(row.content, _Written)
                yield self._with_regions(item, row.content, row.line)
        self.all_asked = True

    def described(self) -> dict[str, str]:
        """Which file it is, for the run's record."""
        digest = hashlib.sha256()
        with self._path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return {"regions": shown_path(str(self._path)), "regions_sha256": digest.hexdigest()}

    def _with_regions(self, sample: Sample, written: _Written, line: int) -> Item:
        text = sample.pair.text if sample.pair is not None else sample.text
        try:
            if text is None or sample.chat is not None:
                what = "a chat, whose text its template makes" if sample.chat else "without a text"
                raise RowError(_MISMATCH, f"regions are of a text: the input is {what}")
            found = _spans(written.spans, text) if written.spans else _matched(written, text)
            regions = Regions(tuple(found), written.item, written.condition)
            return replace(sample, regions=regions)
        except RowError as error:
            place = self.source, line, error.reason, error.message
            return Rejected(sample.id, *place, sample.end, sample.n_bytes_read)


# -- regions in a text ------------------------------------------------------------------------


def _spans(spans: Iterable[tuple[str, int, int]], text: str) -> Iterator[Region]:
    for name, start, end in spans:
        if not 0 <= start <= end <= len(text):
            raise RowError(
                _MISMATCH,
                f"region {name!r:.60} is characters {start} to {end} of a text of {len(text)}",
            )
        yield Region(name, start, end)


def _matched(written: _Written, text: str) -> Iterator[Region]:
    """Strings follow one another in the text, with nothing but white space between."""
    cursor = 0
    for name, content in written.strings or ():
        start = cursor
        if content and not text.startswith(content, cursor):
            start = _past_space(text, cursor)
        if not text.startswith(content, start):
            there = text[start : start + _SHOWN]
            raise RowError(
                _MISMATCH,
                f"region {name!r:.60} is {content!r:.60}, the text goes on with {there!r} at "
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
    match = _SPACE.match(text, cursor)
    assert match is not None
    return match.end()


# -- rows -------------------------------------------------------------------------------------


def _written(row: dict[str, Any]) -> _Written:
    regions = row.get("regions")
    if not isinstance(regions, list) or not regions:
        raise RowError(
            "missing_field", "has no field 'regions' that is a list with something in it"
        )
    item, condition = (_plain(row, name) for name in ("item", "condition"))
    if all(isinstance(r, Mapping) and "start" in r for r in regions):
        spans = tuple(_span(region, n) for n, region in enumerate(regions, start=1))
        return _Written(spans, None, item, condition)
    strings = tuple(_string(region, n) for n, region in enumerate(regions, start=1))
    return _Written(None, strings, item, condition)


def _span(region: Mapping[str, Any], number: int) -> tuple[str, int, int]:
    start, end = region["start"], region.get("end")
    if type(start) is not int or type(end) is not int:
        raise RowError("wrong_type", f"region {number}: start and end are no whole numbers")
    return _name(region, number), start, end


def _string(region: object, number: int) -> tuple[str, str]:
    if isinstance(region, str):
        return str(number), region
    if not isinstance(region, Mapping) or not isinstance(region.get("content"), str):
        raise RowError(
            "wrong_type",
            f"region {number} is neither a string, nor an object with start and end, or content",
        )
    return _name(region, number), region["content"]


def _name(region: Mapping[str, Any], number: int) -> str:
    """Its own, SyntaxGym's number, or which one of the row it is."""
    names = (_plain(region, "name"), _plain(region, "region_number"), number)
    return str(next(name for name in names if name is not None))


def _plain(row: Mapping[str, Any], name: str) -> str | int | None:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise RowError("wrong_type", f"field {name!r} is neither a string nor a whole number")
    return value
