"""Read whole files, lines and JSONL rows as samples."""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

from seqloss_cli.core.errors import RowError, UsageError, did_you_mean_file
from seqloss_cli.core.escaping import shown_path
from seqloss_cli.core.policies import DEFAULT_MAX_BYTES, Reading
from seqloss_cli.core.records import Choices, Item, Pair, Rejected, Sample
from seqloss_cli.core.run_record import recorded
from seqloss_cli.inputs import rows
from seqloss_cli.inputs.choices import ChoiceFields, checked_choices, choice_content
from seqloss_cli.inputs.duplicates import DuplicateIds
from seqloss_cli.inputs.streams import BOM, STDIN, bounded_lines, open_input

COMPRESSED = (".gz", ".zst")
_JSONL = (".jsonl", ".ndjson")
ParseLine = Callable[[bytes], dict[str, Any]]
"""Makes the fields of a `Sample` of a line; raises RowError."""


@dataclass(frozen=True, slots=True)
class ReadOptions(Reading):
    """Settings that say how inputs are cut into samples: the options, and the fields of rows."""

    pairs: rows.PairFields | ChoiceFields | None = None
    """Rows are prompts with responses, or chats; inputs are JSONL, whatever they are called."""


def described(names: Sequence[str], options: ReadOptions) -> dict[str, Any]:
    """The inputs and how they are read, for the run's record."""
    found: dict[str, Any] = {"inputs": [shown_path(name) for name in names]}
    # Not in the order of the fields: the bytes of run records stay as they were.
    names = ("lines", "jsonl", "text_field", "limit", "max_bytes", "keep_meta")
    found |= recorded(options, *names)
    if options.pairs is None:
        return found
    fields = options.pairs
    found |= {"prompt_field": fields.prompt, "separator": fields.separator, "chat": fields.chat}
    if isinstance(fields, rows.PairFields):
        return found | {"response_field": fields.response}
    return found | {
        "choices_field": [*fields.choices],
        "answer_field": fields.answer if fields.fixed_answer is None else None,
        "answer": fields.fixed_answer,
    }


@dataclass(slots=True)
class ReadStats:
    """Inputs that reading left out or noticed, for the command to report at the end."""

    n_empty_lines: int = 0
    n_duplicate_ids: int = 0
    duplicate_id: str | None = None
    """The first id that came twice."""
    n_unchecked_ids: int = 0
    """Ids that came after the memory for finding duplicates was full."""
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
        stats.note_seams(item)
        yield item


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


def _read_one(name: str, options: ReadOptions, stats: ReadStats) -> Iterator[Item]:
    source = "<stdin>" if name == STDIN else shown_path(name)
    line: int | None = None
    try:
        with open_input(name) as (stream, position):
            if is_one_text(name, options):
                text, flags = _whole_text(stream, options.max_bytes)
                if name.endswith((".json", *(f".json{packed}" for packed in COMPRESSED))):
                    rows.refuse_document(text)
                n_bytes = len(text.encode())
                yield Sample(
                    source, source, text=text, flags=flags, end=position(), n_bytes_read=n_bytes
                )
                return
            line = 0
            for item in _lines(source, stream, position, options, stats):
                line = item.line
                yield item
            if line == 0:
                raise RowError("empty", "holds nothing")
    except RowError as error:
        after = f" (after line {line})" if line else ""
        yield Rejected(source, source, None, error.reason, error.message + after)


FIRST_ROWS, FIRST_BYTES = 8, 1 << 16
_WRONG_FILES = (
    *("no_such_file", "directory", "unreadable", "lfs_pointer", "utf_16", "binary_data"),
    "json_document",
)
"""Reasons that are of a whole file, and of its name on the command line."""
_WRONG_ROWS = ("bad_json", "missing_field")
"""Reasons that are of a kind of rows, where the first of a file have no other."""
_RESULTS = ": these are results of `seqloss "
_READERS = (
    ("messages", "cond", "chats are for `seqloss cond`"),
    ("prompt choices", "rank", "prompts with choices are for `seqloss rank`"),
    ("chosen rejected", "rank",
     "such pairs are for `seqloss rank --choices-field chosen,rejected`"),
    ("prompt response", "cond", "prompts with responses are for `seqloss cond`"),
    ("prompt completion", "cond",
     "prompts with responses are for `seqloss cond --response-field completion`"),
    ("text", "score", "texts are for `seqloss score`"),
    ("input_ids", "score", "ids are for `seqloss score`"),
)  # fmt: skip
"""Fields of rows, the command for them, and its advice."""


def first_look(names: Sequence[str], options: ReadOptions) -> list[Item]:
    """Return the first rows of each file, without stdin and pipes, which are read once only.

    Raises UsageError for a name that is no input: nothing is there, or a directory, a file of
    another kind, or one whose first rows are all of another kind. So it does where none of the
    files has anything to score.
    """
    found: list[Item] = []
    n_looked_at, useless = 0, list[Rejected]()
    for name in names:
        if not name:
            raise UsageError("'' is an empty name, and no file")
        # A name that the system does not take is refused where it is opened.
        with suppress(OSError, ValueError):
            if name == STDIN or (os.path.exists(name) and not _is_stored(name)):  # noqa: PTH110
                continue
        first = _first_rows(name, options)
        _refuse_wrong(name, first, options)
        n_looked_at += 1
        useless += [row for row in first[:1] if isinstance(row, Rejected) and row.line is None]
        found += first
    if useless and len(useless) == len(names) == n_looked_at:
        raise UsageError(f"{useless[0].source}: {useless[0].message}")
    return found


def _is_stored(name: str) -> bool:
    return Path(name).is_file() or Path(name).is_dir()


def _first_rows(name: str, options: ReadOptions) -> list[Item]:
    if is_one_text(name, options) and not name.endswith(".json"):
        return [_first_block(name)]
    most = min(FIRST_ROWS, options.limit or FIRST_ROWS)
    return list(islice(_read_one(name, options, ReadStats()), most))


def _first_block(name: str) -> Item:
    """Return how a text begins, which tells its kind: the text is read only once."""
    source = shown_path(name)
    try:
        with open_input(name) as (stream, _):
            raw = stream.read(FIRST_BYTES)
    except RowError as error:
        return Rejected(source, source, None, error.reason, error.message)
    try:
        text = _plain_text(raw.removeprefix(BOM), len(raw) < FIRST_BYTES)
    except RowError as error:
        # Not of the reasons for which a run does not begin: other files may be texts.
        return Rejected(source, source, None, "no_text", error.message)
    return Sample(source, source, text=text)


def _refuse_wrong(name: str, first: list[Item], options: ReadOptions) -> None:
    wrong = [row for row in first if isinstance(row, Rejected)]
    for row in wrong:
        if row.line is None and row.reason in _WRONG_FILES:
            near = did_you_mean_file(Path(name)) if row.reason == "no_such_file" else ""
            near += _model_advice(name) if row.reason == "directory" else ""
            raise UsageError(f"{shown_path(name)}: {row.message}{near}")
    # The first line tells of results, whose other rows have texts and ids, too.
    if not wrong or wrong[0] is not first[0] or wrong[0].reason not in _WRONG_ROWS:
        return
    message, advice = wrong[0].message, _advice(name, options)
    # Another command reads such rows as they are: a field's nearest neighbour is no help.
    message = message.partition("; did you mean ")[0] if advice else message
    if advice.startswith(_RESULTS):
        raise UsageError(f"{shown_path(name)}{advice}")
    if len(wrong) == len(first) and all(row.reason in _WRONG_ROWS for row in wrong):
        raise UsageError(
            f"{shown_path(name)}:{wrong[0].line} {message}{advice}{_of_all_rows(wrong)}"
        )


def _of_all_rows(wrong: list[Rejected]) -> str:
    """Return the end of a message about the first of some rows: what is true of all of them."""
    if len(wrong) == 1:
        return ""
    # In each the names of the fields may be others, and the place where JSON ends.
    kinds = {row.message.partition(": " if row.reason == "bad_json" else " (")[0] for row in wrong}
    if len(kinds) == 1:
        return f" (all of its first {len(wrong)} rows are alike)"
    n_of = Counter(row.reason for row in wrong)
    counted = ", ".join(f"{reason} {n}" for reason, n in n_of.items())
    return f" (none of its first {len(wrong)} rows can be scored: {counted})"


def _model_advice(name: str) -> str:
    is_model = (Path(name) / "config.json").is_file()
    return f", or is it the model, --model {shown_path(name)}?" if is_model else ""


def _advice(name: str, options: ReadOptions) -> str:
    """Return the end of a message about the first row of a file: what reads such rows."""
    with open_input(name) as (stream, _):
        raw = stream.readline(options.max_bytes).removeprefix(BOM)
    try:
        row = rows.parse_object(raw)
    except RowError:
        of_texts = options.pairs is None
        return "; --lines reads a text a line" if of_texts else "; texts are for `seqloss score`"
    if row.get("type") == "run" and "schema_version" in row:
        command = row.get("command")
        reader = "summarize" if command in ("score", "cond") else "report"
        return f"{_RESULTS}{command}`, for `seqloss {reader}`"
    own = "score" if options.pairs is None else "rank"
    own = "cond" if isinstance(options.pairs, rows.PairFields) else own
    fitting = ((of, text) for fields, of, text in _READERS if row.keys() >= {*fields.split()})
    command, text = next(fitting, (own, ""))
    return "" if command == own else f"; {text}"


def is_one_text(name: str, options: ReadOptions) -> bool:
    """Tell whether an input of this name is one text, and not a row or text a line."""
    path = Path(name)
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    in_lines = options.lines or options.jsonl or options.pairs is not None
    return not in_lines and suffix not in _JSONL


def _whole_text(stream: BinaryIO, max_bytes: int) -> tuple[str, dict[str, int | bool]]:
    raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise RowError(
            "too_long",
            f"is longer than --max-bytes {max_bytes}; raise it, or score line by line with --lines",
        )
    flags: dict[str, int | bool] = {"bom_dropped": True} if raw.startswith(BOM) else {}
    return _plain_text(raw.removeprefix(BOM)), flags


def _lines(
    source: str,
    stream: BinaryIO,
    position: Callable[[], int],
    options: ReadOptions,
    stats: ReadStats,
) -> Iterator[Item]:
    """One sample for each line that is not empty."""
    parse, first = _line_parser(options), b""
    for number, raw in enumerate(bounded_lines(stream, options.max_bytes), start=1):
        flags: dict[str, int | bool] = {}
        # Some editors and spreadsheets begin files with a byte-order mark: no JSON, no word.
        if number == 1 and raw is not None and raw.startswith(BOM):
            raw, flags = raw.removeprefix(BOM), {"bom_dropped": True}
        if number <= 2 and raw is not None and not options.lines:
            rows.refuse_document_line(raw, None if number == 1 else first)
            first = raw
        if raw == b"":
            stats.n_empty_lines += 1
            continue
        identity = f"{source}:{number}"
        try:
            if raw is None:
                raise RowError("too_long", f"line is longer than --max-bytes {options.max_bytes}")
            parts: dict[str, Any] = {"id": identity} | parse(raw)
            flags |= parts.pop("flags", {})
            place: dict[str, Any] = {"end": position(), "n_bytes_read": len(raw)}
            yield Sample(source=source, line=number, flags=flags, **place, **parts)
        except RowError as error:
            own, n_bytes = error.row_id or identity, len(raw or b"")
            yield Rejected(own, source, number, error.reason, error.message, position(), n_bytes)


def _line_parser(options: ReadOptions) -> ParseLine:
    fields = options.pairs
    if options.lines:
        return lambda raw: {"text": _plain_text(raw)}
    if fields is None:
        content_of = partial(rows.text_or_ids, text_field=options.text_field)
    elif isinstance(fields, rows.PairFields):
        content_of = partial(rows.pair_or_chat, fields=fields)
    else:
        content_of = partial(choice_content, fields=fields)
    return partial(rows.parse_row, content_of=content_of, keep_meta=options.keep_meta)


def _plain_text(raw: bytes, is_whole: bool = True) -> str:
    """The bytes as UTF-8, without a character that is cut where more follows. Raises
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
