"""Whole files, lines, and JSONL rows as samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from seqloss_cli.config import DEFAULT_MAX_BYTES
from seqloss_cli.errors import RowError
from seqloss_cli.paths import shown_path
from seqloss_cli.reading.duplicates import DuplicateIds
from seqloss_cli.reading.streams import STDIN, bounded_lines, open_input
from seqloss_cli.records import IGNORED, Ints, Item, Rejected, Sample

_BOM = b"\xef\xbb\xbf"
_COMPRESSED = (".gz", ".zst")
_MOST_NAMES = 10
_JSONL = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    lines: bool = False
    """Each non-empty line is a sequence."""
    jsonl: bool = False
    """Inputs are JSONL, whatever they are called."""
    text_field: str = "text"
    keep_meta: bool = False
    limit: int | None = None
    max_bytes: int = DEFAULT_MAX_BYTES


@dataclass(slots=True)
class ReadStats:
    """What reading left out or noticed, for the command to report at the end."""

    n_empty_lines: int = 0
    n_duplicate_ids: int = 0
    duplicate_id: str | None = None
    """The first id that came twice."""
    n_unchecked_ids: int = 0
    """Ids that came after the memory for finding duplicates was full."""


def read_inputs(names: Sequence[str], options: ReadOptions, stats: ReadStats) -> Iterator[Item]:
    """Samples of all inputs in order; `-` is stdin. Duplicate ids are flagged."""
    items = (item for name in names for item in _read_one(name, options, stats))
    seen = DuplicateIds()
    for item in islice(items, options.limit):
        if seen.is_full:
            stats.n_unchecked_ids += 1
        elif seen.seen_before(item.id):
            stats.n_duplicate_ids += 1
            stats.duplicate_id = stats.duplicate_id or item.id
            if isinstance(item, Sample):
                item = replace(item, flags={**item.flags, "duplicate_id": True})
        yield item


def text_sample(
    text: str, source: str = "<text>", max_bytes: int | None = DEFAULT_MAX_BYTES
) -> Item:
    """A text from the command line or the API."""
    try:
        n_bytes = len(_checked(text).encode())
        if max_bytes is not None and n_bytes > max_bytes:
            raise RowError("too_long", f"is longer than --max-bytes {max_bytes}")
        return Sample(id=source, source=source, text=text, n_bytes_read=n_bytes)
    except RowError as error:
        return Rejected(source, source, None, error.reason, error.message)


def _read_one(name: str, options: ReadOptions, stats: ReadStats) -> Iterator[Item]:
    source = "<stdin>" if name == STDIN else shown_path(name)
    line: int | None = None
    try:
        with open_input(name) as (stream, position):
            if not (options.lines or _is_jsonl(name, options)):
                text, flags = _whole_text(stream, options.max_bytes)
                n_bytes = len(text.encode())
                yield Sample(
                    source, source, text=text, flags=flags, end=position(), n_bytes_read=n_bytes
                )
                return
            parse = _parse_line if options.lines else _parse_row
            line = 0
            for item in _lines(source, stream, position, parse, options, stats):
                line = item.line
                yield item
            if line == 0:
                raise RowError("empty", "holds nothing")
    except RowError as error:
        after = f" (after line {line})" if line else ""
        yield Rejected(source, source, None, error.reason, error.message + after)


def _is_jsonl(name: str, options: ReadOptions) -> bool:
    path = Path(name)
    suffix = Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    return options.jsonl or suffix in _JSONL


def _whole_text(stream: BinaryIO, max_bytes: int) -> tuple[str, dict[str, int | bool]]:
    raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise RowError(
            "too_long",
            f"is longer than --max-bytes {max_bytes}; raise it, or score line by line with --lines",
        )
    flags: dict[str, int | bool] = {"bom_dropped": True} if raw.startswith(_BOM) else {}
    return _plain_text(raw.removeprefix(_BOM)), flags


def _plain_text(raw: bytes) -> str:
    text = _checked(_decode(raw))
    if "\0" in text:
        raise RowError("binary_data", f"holds a NUL at character {text.index(chr(0))}: not a text")
    return text


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if b"\0" in raw:
            raise RowError("binary_data", "is binary data, not UTF-8 text") from None
        byte = raw[error.start]
        raise RowError(
            "invalid_utf8", f"is not UTF-8: byte 0x{byte:02x} at offset {error.start}"
        ) from None


def _checked(text: str) -> str:
    if not text:
        raise RowError("empty", "holds no text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "lone_surrogate", f"holds half of a character at position {error.start}"
        ) from None
    return text


Parse = Callable[[bytes, ReadOptions], dict[str, Any]]


def _lines(
    source: str,
    stream: BinaryIO,
    position: Callable[[], int],
    parse: Parse,
    options: ReadOptions,
    stats: ReadStats,
) -> Iterator[Item]:
    """One sample for each line that is not empty; `parse` makes the sample's fields of a line."""
    for number, raw in enumerate(bounded_lines(stream, options.max_bytes), start=1):
        flags: dict[str, int | bool] = {}
        if number == 1 and raw is not None and raw.startswith(_BOM):
            raw, flags = raw.removeprefix(_BOM), {"bom_dropped": True}
        if raw == b"":
            stats.n_empty_lines += 1
            continue
        identity = f"{source}:{number}"
        try:
            if raw is None:
                raise RowError("too_long", f"line is longer than --max-bytes {options.max_bytes}")
            parts: dict[str, Any] = {"id": identity} | parse(raw, options)
            place: dict[str, Any] = {"end": position(), "n_bytes_read": len(raw)}
            yield Sample(source=source, line=number, flags=flags, **place, **parts)
        except RowError as error:
            own = error.row_id or identity
            n_bytes = len(raw or b"")
            yield Rejected(own, source, number, error.reason, error.message, position(), n_bytes)


def _parse_line(raw: bytes, options: ReadOptions) -> dict[str, Any]:
    return {"text": _plain_text(raw)}


def _parse_row(raw: bytes, options: ReadOptions) -> dict[str, Any]:
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RowError("bad_json", f"is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RowError("wrong_type", "is not a JSON object")
    own_id = _own_id(row.get("id"))
    try:
        fields = _content(row, options.text_field)
    except RowError as error:
        error.row_id = own_id
        raise
    if options.keep_meta:
        used = {"id", options.text_field} if "text" in fields else {"id", *fields}
        fields["meta"] = {key: value for key, value in row.items() if key not in used}
    return fields if own_id is None else fields | {"id": own_id}


def _own_id(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise RowError("wrong_type", "field 'id' is neither a string nor a whole number")
    return None if value is None else str(value)


def _content(row: dict[str, Any], text_field: str) -> dict[str, Any]:
    """The sample's text, or its ids and labels."""
    if text_field in row and "input_ids" in row:
        raise RowError("ambiguous", f"has both {text_field!r} and 'input_ids'; give one of them")
    if text_field in row:
        if not isinstance(row[text_field], str):
            raise RowError("wrong_type", f"field {text_field!r} is not a string")
        return {"text": _checked(row[text_field])}
    if "input_ids" not in row:
        names = ", ".join(f"{name!r:.40}" for name in sorted(row)[:_MOST_NAMES]) or "none"
        names += ", …" if len(row) > _MOST_NAMES else ""
        raise RowError(
            "missing_field", f"has no field {text_field!r} (its fields: {names}); see --text-field"
        )
    ids = _whole_numbers(row["input_ids"], "input_ids")
    if not len(ids):
        raise RowError("empty", "field 'input_ids' is empty")
    return {"input_ids": ids} | _labels(row, ids)


def _labels(row: dict[str, Any], ids: Ints) -> dict[str, Ints]:
    if "labels" not in row:
        return {}
    labels = _whole_numbers(row["labels"], "labels")
    if len(labels) != len(ids):
        raise RowError("bad_labels", f"has {len(labels)} labels for {len(ids)} input_ids")
    wrong = (labels != IGNORED) & (labels != ids)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise RowError(
            "bad_labels",
            f"labels[{at}] is {labels[at]}, neither -100 nor input_ids[{at}] = {ids[at]} (labels "
            "are not shifted)",
        )
    return {"labels": labels}


def _whole_numbers(value: object, name: str) -> Ints:
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        raise RowError("wrong_type", f"field {name!r} is not a list of whole numbers")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError:
        raise RowError("wrong_type", f"field {name!r} holds a number beyond 64 bits") from None
