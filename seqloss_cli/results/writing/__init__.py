"""Results for machines, streamed: JSON, JSONL, the completions format, Parquet, CSV, TSV."""

from seqloss_cli.results.writing.delimited import RegionLines, SequenceLines, TokenLines, WordLines
from seqloss_cli.results.writing.divergences import divergence_rows
from seqloss_cli.results.writing.formats import (
    JsonlWriter,
    JsonWriter,
    OpenAIWriter,
    RowMakers,
    Writer,
    score_rows,
)
from seqloss_cli.results.writing.kept import KeptRows, PartialFile, look_at, recorded_run
from seqloss_cli.results.writing.masks import mask_rows
from seqloss_cli.results.writing.parquet import ParquetWriter
from seqloss_cli.results.writing.rankings import RankedRows, ranking_rows
from seqloss_cli.results.writing.rows import RowOptions
from seqloss_cli.results.writing.same_run import require_same_run
from seqloss_cli.results.writing.sinks import cut, left_behind, open_sink, refuse_to_overwrite

__all__ = [
    "JsonWriter",
    "JsonlWriter",
    "KeptRows",
    "OpenAIWriter",
    "ParquetWriter",
    "PartialFile",
    "RankedRows",
    "RegionLines",
    "RowMakers",
    "RowOptions",
    "SequenceLines",
    "TokenLines",
    "WordLines",
    "Writer",
    "cut",
    "divergence_rows",
    "left_behind",
    "look_at",
    "mask_rows",
    "open_sink",
    "ranking_rows",
    "recorded_run",
    "refuse_to_overwrite",
    "require_same_run",
    "score_rows",
]
