"""Results for machines, streamed: JSON, JSONL, and the completions format."""

from seqloss_cli.writing.formats import JsonlWriter, JsonWriter, OpenAIWriter, Writer
from seqloss_cli.writing.rows import RowOptions
from seqloss_cli.writing.sinks import open_sink, refuse_to_overwrite

__all__ = [
    "JsonWriter",
    "JsonlWriter",
    "OpenAIWriter",
    "RowOptions",
    "Writer",
    "open_sink",
    "refuse_to_overwrite",
]
