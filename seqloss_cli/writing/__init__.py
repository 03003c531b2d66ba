"""Results for machines, streamed: JSON, JSONL, and the completions format."""

from seqloss_cli.writing.formats import (
    JsonlWriter,
    JsonWriter,
    OpenAIWriter,
    RowMakers,
    Writer,
    score_rows,
)
from seqloss_cli.writing.masks import mask_rows
from seqloss_cli.writing.rows import RowOptions
from seqloss_cli.writing.sinks import open_sink, refuse_to_overwrite

__all__ = [
    "JsonWriter",
    "JsonlWriter",
    "OpenAIWriter",
    "RowMakers",
    "RowOptions",
    "Writer",
    "mask_rows",
    "open_sink",
    "refuse_to_overwrite",
    "score_rows",
]
