"""Look at the first rows of each input before a model is loaded, and refuse what is none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RowError, UsageError, did_you_mean_file
from seqloss_cli.core.records import Item, Rejected, Sample
from seqloss_cli.core.urls import shown_name
from seqloss_cli.inputs import rows
from seqloss_cli.inputs.datasets import dataset_rows
from seqloss_cli.inputs.options import Kind, ReadOptions, suffix_of
from seqloss_cli.inputs.reading import ReadStats, plain_text, read_one
from seqloss_cli.inputs.shards import WHOLE
from seqloss_cli.inputs.streams import BOM, STDIN, open_input
from seqloss_cli.inputs.tables import table_rows

FIRST_ROWS, FIRST_BYTES = 8, 1 << 16
_WRONG_FILES = (
    *("no_such_file", "directory", "unreadable", "lfs_pointer", "utf_16", "binary_data"),
    *("json_document", "bad_table", "results"),
)
"""Reasons that are of a whole file, and of its name on the command line."""
_WRONG_ROWS = ("bad_json", "missing_field", "several_fields")
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
    if options.kind_of(name) is Kind.text and suffix_of(name) != ".json":
        return [_first_block(name)]
    most = min(FIRST_ROWS, options.limit or FIRST_ROWS)
    return list(islice(read_one(name, options, ReadStats()), most))


def _first_block(name: str) -> Item:
    """Return how a text begins, which tells its kind: the text is read only once."""
    source = shown_name(name)
    try:
        with open_input(name) as (stream, _):
            raw = stream.read(FIRST_BYTES)
    except RowError as error:
        return Rejected(source, source, None, error.reason, error.message)
    try:
        text = plain_text(raw.removeprefix(BOM), len(raw) < FIRST_BYTES)
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
            raise UsageError(f"{shown_name(name)}: {row.message}{near}")
    # The first line tells of results, whose other rows have texts and ids, too.
    if not wrong or wrong[0] is not first[0] or wrong[0].reason not in _WRONG_ROWS:
        return
    message, advice = wrong[0].message, _advice(name, options)
    # Another command reads such rows as they are: a field's nearest neighbour is no help.
    message = message.partition("; did you mean ")[0] if advice else message
    if advice.startswith(_RESULTS):
        raise UsageError(f"{shown_name(name)}{advice}")
    if len(wrong) == len(first) and all(row.reason in _WRONG_ROWS for row in wrong):
        raise UsageError(
            f"{shown_name(name)}:{wrong[0].line} {message}{advice}{_of_all_rows(wrong)}"
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
    return f", or is it the model, --model {shown_name(name)}?" if is_model else ""


def _advice(name: str, options: ReadOptions) -> str:
    """Return the end of a message about the first row of a file: what reads such rows."""
    row = _first_row(name, options)
    if row is None:
        of_texts = options.pairs is None
        return "; --lines reads a text a line" if of_texts else "; texts are for `seqloss score`"
    if row.get("type") == "run" and "schema_version" in row:
        command = row.get("command")
        reader = "summarize" if command in ("score", "cond") else "report"
        return f"{_RESULTS}{command}`, for `seqloss {reader}`"
    own = "score" if options.pairs is None else "rank"
    own = "cond" if isinstance(options.pairs, rows.PairFields) else own
    own = "check" if isinstance(options.pairs, rows.RecordingFields) else own
    fitting = ((of, text) for fields, of, text in _READERS if row.keys() >= {*fields.split()})
    command, text = next(fitting, (own, ""))
    return "" if command == own else f"; {text}"


def _first_row(name: str, options: ReadOptions) -> dict[str, Any] | None:
    """Return the first row of a file of rows; None where its first line is none."""
    try:
        if options.kind_of(name) is Kind.dataset:
            first = next(dataset_rows(options, WHOLE)).content
            return rows.parse_object(first) if isinstance(first, bytes) else {}
        if options.kind_of(name) is Kind.table:
            first = next(table_rows(name, options)).content
            return rows.parse_object(first) if isinstance(first, bytes) else {}
        with open_input(name) as (stream, _):
            raw = stream.readline(options.max_bytes).removeprefix(BOM)
        return rows.parse_object(raw)
    except RowError:
        return None
