"""Read whole files, lines and rows as samples."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any, BinaryIO

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.policies import DEFAULT_MAX_BYTES
from seqloss_cli.core.records import Choices, Item, Pair, Rejected, Sample
from seqloss_cli.core.urls import shown_name
from seqloss_cli.inputs import rows
from seqloss_cli.inputs.choices import checked_choices, choice_content
from seqloss_cli.inputs.duplicates import DuplicateIds
from seqloss_cli.inputs.options import Kind, suffix_of
from seqloss_cli.inputs.options import ReadOptions as ReadOptions
from seqloss_cli.inputs.recordings import recording_content
from seqloss_cli.inputs.shards import WHOLE, Cuts, Part
from seqloss_cli.inputs.streams import BOM, STDIN, bounded_lines, open_input
from seqloss_cli.inputs.tables import table_rows

ParseLine = Callable[[bytes], dict[str, Any]]
"""Makes the fields of a `Sample` of a line; raises RowError."""


@dataclass(slots=True)
class ReadStats:
    """Inputs that reading left out or noticed, for the command to report at the end."""

    n_empty_lines: int = 0
    n_duplicate_ids: int = 0
    duplicate_id: str | None = None
    """The first id that came twice."""
    n_pairs: int = 0
    """Rows of plain texts before a response, or several."""
    n_run_together: int = 0
    """Rows of these where two words become one, as no white space parts them."""
    n_double_blanks: int = 0
    """Rows of these whose own blank meets one of the separator."""
    run_together: str = ""
    """The first seam of two words, in words."""
    double_blank: str = ""
    """The first seam of two blanks, in words."""
    last_row: bytes | None = None
    """The bytes of the last row: a line, or the JSON of a table's row; None of a whole text."""

    def note_seams(self, item: Item) -> None:
        """Count a row by the way in which its prompt, separator and response meet."""
        if isinstance(item, Rejected) or not (seams := list(_seams(item))):
            return
        self.n_pairs += 1
        place = item.source if item.line is None else f"{item.source}:{item.line}"
        for before, after, _ in seams:
            if _run_together(before[-1], after[0]):
                self.n_run_together += 1
                self.run_together = self.run_together or _shown_seam(place, before, after)
                break
        for before, after, is_own in seams:
            if not is_own and before[-1] == after[0] == " ":
                self.n_double_blanks += 1
                self.double_blank = self.double_blank or _shown_seam(place, before, after)
                break


def text_sample(
    text: str, source: str = "<text>", max_bytes: int | None = DEFAULT_MAX_BYTES
) -> Item:
    """A text from the command line or the API."""
    return _given(source, max_bytes, lambda: {"text": rows.checked_text(text)}, text)


def pair_sample(
    pair: Pair, source: str = "<pair>", chat: bool = False, max_bytes: int | None = None
) -> Item:
    """A pair from the command line or the API; with `chat` as one turn of each side."""
    texts = pair.prompt, pair.separator, pair.response
    return _given(source, max_bytes, partial(rows.pair_content, pair, chat), *texts)


def choices_sample(
    choices: Choices, source: str = "<choices>", max_bytes: int | None = None
) -> Item:
    """A prompt with several responses from the command line."""
    texts = choices.prompt, *choices.responses
    return _given(source, max_bytes, lambda: {"choices": checked_choices(choices)}, *texts)


def _given(
    source: str, max_bytes: int | None, content_of: Callable[[], dict[str, Any]], *texts: str
) -> Item:
    """The sample of some texts, which may have `max_bytes` together."""
    try:
        content = content_of()
        # After the check: half a surrogate pair has no bytes to count.
        n_bytes = sum(len(text.encode()) for text in texts)
        if max_bytes is not None and n_bytes > max_bytes:
            raise RowError("too_long", f"is longer than --max-bytes {max_bytes}")
        return Sample(source, source, n_bytes_read=n_bytes, **content)
    except RowError as error:
        return Rejected(source, source, None, error.reason, error.message)


def read_inputs(
    names: Sequence[str], options: ReadOptions, stats: ReadStats, cuts: Cuts | None = None
) -> Iterator[Item]:
    """Samples of all inputs in order, or of the parts that `cuts` has; `-` is stdin. Duplicate ids
    are flagged."""
    cuts = cuts or Cuts(names, options)
    parts = ((name, part) for name in names if (part := cuts.part_of(name)) is not None)
    items = (item for name, part in parts for item in read_one(name, options, stats, part))
    seen = DuplicateIds()
    for item in islice(items, options.limit):
        if seen.seen_before(item.id):
            stats.n_duplicate_ids += 1
            stats.duplicate_id = stats.duplicate_id or item.id
            if isinstance(item, Sample):
                item = replace(item, flags={**item.flags, "duplicate_id": True})
        stats.note_seams(item)
        yield item


_LOOK_ON = 1 << 16
"""Bytes of a line at a time, where only an empty one is looked for."""
_SEAM_SHOWN = 12
_WITHOUT_BLANKS = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HENTAIGANA", "BOPOMOFO", "HALFWIDTH"),
    *("FULLWIDTH", "YI ", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI LUE"),
    *("JAVANESE", "BALINESE"),
)
"""Beginnings of the names of characters of scripts that put no blanks between words."""


def _seams(sample: Sample) -> Iterator[tuple[str, str, bool]]:
    """Neighbours in the texts of a pair or of choices, and whether both are the row's own. The
    template of a chat separates."""
    pair, choices = sample.pair, sample.choices
    if pair is not None and sample.chat is None:
        texts = [(pair.prompt, pair.separator, pair.response)]
    elif choices is not None and not choices.as_chat:
        texts = [(choices.prompt, choices.separator, each) for each in choices.responses]
    else:
        return
    for own in texts:
        for before, after in pairwise(filter(None, own)):
            yield before, after, not own[1]


def _run_together(before: str, after: str) -> bool:
    """Both characters are of words, in scripts that put blanks between them."""
    return all(
        unicodedata.category(each)[0] in "LMN"
        and not unicodedata.name(each, "").startswith(_WITHOUT_BLANKS)
        for each in (before, after)
    )


def _shown_seam(place: str, before: str, after: str) -> str:
    return f"{before[-_SEAM_SHOWN:]!r} and {after[:_SEAM_SHOWN]!r} in {place}"


def read_one(
    name: str, options: ReadOptions, stats: ReadStats, part: Part = WHOLE
) -> Iterator[Item]:
    """Yield the samples of a part of one input; the last is the file's own rejection where it
    breaks off."""
    source = "<stdin>" if name == STDIN else shown_name(name)
    line: int | None = None
    try:
        if (kind := options.kind_of(name)) is Kind.text:
            if part.has(1):
                yield _text_of_file(name, source, options)
            return
        line = 0
        of_kind = _line_items if kind is Kind.lines else _table_items
        for item in of_kind(name, source, options, stats, part):
            line = item.line
            yield item
    except RowError as error:
        # What is wrong with all of a file is told once; what hides rows of a part, by each.
        if part.owns_file or error.reason == "unreadable":
            after = f" (after line {line})" if line else ""
            yield Rejected(source, source, None, error.reason, error.message + after)


def read_written(name: str, options: ReadOptions) -> Iterator[tuple[Item, bytes | None]]:
    """Yield the samples of one input, each with the bytes of its row."""
    stats = ReadStats()
    for item in read_one(name, options, stats):
        yield item, stats.last_row


def _text_of_file(name: str, source: str, options: ReadOptions) -> Sample:
    with open_input(name) as (stream, position):
        text, flags = _whole_text(stream, options.max_bytes)
        if suffix_of(name) == ".json":
            rows.refuse_document(text)
        place: dict[str, Any] = {"end": position(), "n_bytes_read": len(text.encode())}
        return Sample(source, source, text=text, flags=flags, **place)


def _whole_text(stream: BinaryIO, max_bytes: int) -> tuple[str, dict[str, int | bool]]:
    raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise RowError(
            "too_long",
            f"is longer than --max-bytes {max_bytes}; raise it, or score line by line with --lines",
        )
    flags: dict[str, int | bool] = {"bom_dropped": True} if raw.startswith(BOM) else {}
    return plain_text(raw.removeprefix(BOM)), flags


def _line_items(
    name: str, source: str, options: ReadOptions, stats: ReadStats, part: Part
) -> Iterator[Item]:
    """Yield a sample for each line that is not empty."""
    parse, first, is_empty = _line_parser(options), b"", True
    long_line = RowError("too_long", f"line is longer than --max-bytes {options.max_bytes}")
    with open_input(name, in_lines=True) as (stream, position):
        before = part.go_to_start(stream)
        own = bounded_lines(stream, options.max_bytes, part.stop)
        for number, raw in enumerate(own, start=before + 1):
            flags: dict[str, int | bool] = {}
            # Some editors and spreadsheets begin files with a byte-order mark: no JSON, no word.
            if number == 1 and raw is not None and raw.startswith(BOM):
                raw, flags = raw.removeprefix(BOM), {"bom_dropped": True}
            if number <= 2 and raw is not None and not options.lines:
                rows.refuse_document_line(raw, None if number == 1 else first)
                first = raw
            is_empty = is_empty and raw == b""
            if not part.has(number):
                continue
            if raw == b"":
                stats.n_empty_lines += 1
                continue
            stats.last_row = raw
            yield _item(source, number, long_line if raw is None else raw, parse, position(), flags)
        # Of a part that is empty, others may hold something.
        is_empty = is_empty and part.owns_file
        if is_empty and all(raw == b"" for raw in bounded_lines(stream, _LOOK_ON)):
            raise RowError("empty", "holds nothing")


def _table_items(
    name: str, source: str, options: ReadOptions, stats: ReadStats, part: Part
) -> Iterator[Item]:
    """Yield a sample for each row that is not blank."""
    parse = _line_parser(options)
    if options.dataset is None:
        found = table_rows(name, options, part)
    else:
        from seqloss_cli.inputs.datasets import dataset_rows

        found = dataset_rows(options, part)
    for row in found:
        if row.content == b"":
            stats.n_empty_lines += 1
            continue
        stats.last_row = row.content if isinstance(row.content, bytes) else None
        yield _item(source, row.number, row.content, parse, row.end, {}, row.explained)


def _item(
    source: str,
    number: int,
    content: bytes | RowError,
    parse: ParseLine,
    end: int,
    flags: dict[str, int | bool],
    explained: Callable[[RowError], RowError] = lambda error: error,
) -> Item:
    """The sample of a line or row, or why it is none."""
    identity = f"{source}:{number}"
    n_bytes = len(content) if isinstance(content, bytes) else 0
    try:
        if isinstance(content, RowError):
            raise content
        parts: dict[str, Any] = {"id": identity} | parse(content)
        flags |= parts.pop("flags", {})
        place: dict[str, Any] = {"end": end, "n_bytes_read": n_bytes}
        return Sample(source=source, line=number, flags=flags, **place, **parts)
    except RowError as error:
        own, told = error.row_id or identity, explained(error)
        return Rejected(own, source, number, told.reason, told.message, end, n_bytes)


def _line_parser(options: ReadOptions) -> ParseLine:
    fields = options.pairs
    if options.lines:
        return lambda raw: {"text": plain_text(raw)}
    if fields is None:
        content_of = partial(rows.text_or_ids, text_field=options.text_field)
    elif isinstance(fields, rows.PairFields):
        content_of = partial(rows.pair_or_chat, fields=fields)
    elif isinstance(fields, rows.RecordingFields):
        content_of = partial(recording_content, fields=fields)
    else:
        content_of = partial(choice_content, fields=fields)
    return partial(rows.parse_row, content_of=content_of, keep_meta=options.keep_meta)


def plain_text(raw: bytes, is_whole: bool = True) -> str:
    """Return the bytes as UTF-8, without a character that is cut where more follows. Raises
    RowError for what is no text."""
    try:
        text = rows.checked_text(codecs.utf_8_decode(raw, "strict", is_whole)[0])
    except UnicodeDecodeError as error:
        if b"\0" in raw:
            raise RowError("binary_data", "is binary data, not UTF-8 text") from None
        byte = raw[error.start]
        raise RowError(
            "invalid_utf8", f"is not UTF-8: byte 0x{byte:02x} at offset {error.start}"
        ) from None
    # NUL is valid UTF-8, and what files in UTF-16 are full of.
    if "\0" in text:
        raise RowError("binary_data", f"holds a NUL at character {text.index(chr(0))}: not a text")
    return text
