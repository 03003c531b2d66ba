"""Say how inputs are read: the options, what a name tells of a file, and the run's record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any

from seqloss_cli.core.policies import Reading
from seqloss_cli.core.run_record import recorded
from seqloss_cli.core.urls import bare_name, shown_name
from seqloss_cli.inputs.choices import ChoiceFields
from seqloss_cli.inputs.rows import PairFields, RecordingFields

COMPRESSED = (".gz", ".zst")
PARQUET, ARROW, DELIMITED = (".parquet",), (".arrow", ".feather"), (".csv", ".tsv")
_JSONL = (".jsonl", ".ndjson")
ROWS = (*PARQUET, *ARROW, *DELIMITED, *_JSONL)
"""Extensions of files of rows."""


class Kind(StrEnum):
    """Kinds of inputs."""

    text = "text"
    """The whole file is one text."""
    lines = "lines"
    """A row or a text a line."""
    table = "table"
    """Rows under named columns."""
    dataset = "dataset"
    """Rows of a split of a data set."""


@dataclass(frozen=True, slots=True)
class ReadOptions(Reading):
    """Settings that say how inputs are cut into samples: the options, and the fields of rows."""

    pairs: PairFields | ChoiceFields | RecordingFields | None = None
    """Rows are prompts with responses, chats, or recorded log-probabilities; inputs are rows,
    whatever they are called."""

    @property
    def dataset_name(self) -> str:
        """Return the name under which rows of the data set are known."""
        return f"{self.dataset}:{self.split}"

    def kind_of(self, name: str) -> Kind:
        """Return the kind of an input of this name."""
        if self.dataset is not None:
            return Kind.dataset
        if self.lines or self.jsonl:
            return Kind.lines
        suffix = suffix_of(name)
        if suffix in DELIMITED or (suffix in (*PARQUET, *ARROW) and not is_packed(name)):
            return Kind.table
        is_rows = self.pairs is not None or suffix in _JSONL
        return Kind.lines if is_rows else Kind.text


def suffix_of(name: str) -> str:
    """Return the extension of a name in small letters, before that of its compression."""
    path = PurePath(bare_name(name).lower())
    return PurePath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def is_packed(name: str) -> bool:
    """Return whether a file of this name is unpacked as it is read."""
    return bare_name(name).lower().endswith(COMPRESSED)


def described(names: Sequence[str], options: ReadOptions) -> dict[str, Any]:
    """The inputs and how they are read, for the run's record."""
    found: dict[str, Any] = {"inputs": [shown_name(name) for name in names]}
    # Not in the order of the fields: the bytes of run records stay as they were.
    names = ("lines", "jsonl", "text_field", "limit", "max_bytes", "keep_meta")
    found |= recorded(options, *names)
    if options.dataset is not None:
        found |= recorded(options, "dataset", "split", "dataset_config", "dataset_revision")
    if options.pairs is None:
        return found
    fields = options.pairs
    if isinstance(fields, RecordingFields):
        return found | {"field": fields.field}
    found |= {"prompt_field": fields.prompt, "separator": fields.separator, "chat": fields.chat}
    if isinstance(fields, PairFields):
        return found | {"response_field": fields.response}
    return found | {
        "choices_field": [*fields.choices],
        "answer_field": fields.answer if fields.fixed_answer is None else None,
        "answer": fields.fixed_answer,
    }
