"""The writer that an output choice asks for, and what its rows and tables hold."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar

from rich.console import Console

from seqloss_cli.cli.formats import DELIMITERS, Format, Level
from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.records import Rejected, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal import HeatWriter, TableOptions, TableWriter
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.formats import Writer
from seqloss_cli.results.formats.delimited import RegionLines, SequenceLines, TokenLines, WordLines
from seqloss_cli.results.formats.json import JsonlWriter, JsonWriter
from seqloss_cli.results.formats.openai import OpenAIWriter
from seqloss_cli.results.formats.parquet import ParquetWriter
from seqloss_cli.results.schema import RowMakers
from seqloss_cli.results.schema.scores import score_rows
from seqloss_cli.results.writing.rows import RowOptions
from seqloss_cli.tokenization.tokenizer import Tokenization

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice

Result = TypeVar("Result")
Sums = TypeVar("Sums")
JSON_WRITERS: dict[Format, Any] = {Format.json: JsonWriter, Format.jsonl: JsonlWriter}
LINES: dict[Level, Any] = {
    Level.sequence: SequenceLines,
    Level.token: TokenLines,
    Level.word: WordLines,
    Level.region: RegionLines,
}
_FILE_WIDTH = 120  # columns of tables that go to a file


def row_options(
    tokenization: Tokenization, choice: OutputChoice, marks: WordBoundaryIds | None = None
) -> RowOptions:
    return RowOptions(
        tokenization.token_texts,
        tokenization.name_token,
        text=choice.text,
        tokens=choice.tokens,
        summary=choice.summary,
        words=choice.words,
        marks=marks,
        regions=choice.regions,
        context_lengths=choice.context_lengths,
        pmi=choice.pmi,
        columns=choice.columns,
    )


def table_options(
    tokenization: Tokenization, choice: OutputChoice, marks: WordBoundaryIds | None = None
) -> TableOptions:
    return TableOptions(
        tokenization.token_texts,
        tokenization.name_token,
        bits=choice.bits,
        all_tokens=choice.all_tokens,
        summary=choice.summary,
        words=choice.words,
        marks=marks,
        pmi=choice.pmi,
        heat=choice.heat,
    )


def score_writer(
    tokenization: Tokenization, sink: BinaryIO, choice: OutputChoice, marks: WordBoundaryIds | None
) -> Writer[SequenceScore, Totals]:
    if choice.format is Format.table:
        shows = TableWriter if choice.heat is None else HeatWriter
        return shows(console(choice.path, sink), table_options(tokenization, choice, marks))
    options = row_options(tokenization, choice, marks)
    if choice.format is Format.openai:
        return OpenAIWriter(sink, options)
    if choice.format is Format.parquet:
        return ParquetWriter(sink, score_rows(options), options)
    if choice.format in DELIMITERS:
        lines: Writer[SequenceScore, Totals] = LINES[choice.level](
            sink, options, DELIMITERS[choice.format]
        )
        return lines
    writer: Writer[SequenceScore, Totals] = JSON_WRITERS[choice.format](sink, score_rows(options))
    return writer


@contextmanager
def also_beside(
    writer: Writer[Result, Sums],
    choice: OutputChoice,
    tokenization: Tokenization,
    rows_of: Callable[[RowOptions], RowMakers[Result, Sums]],
) -> Iterator[Writer[Result, Sums]]:
    """The writer, and one of the rows that go to `choice.beside`, if they do."""
    if choice.beside is None:
        yield writer
        return
    whole = replace(choice, text=True, tokens=True, summary=False, context_lengths=True)
    with choice.beside.open("wb") as sink:
        yield Both(writer, JsonlWriter(sink, rows_of(row_options(tokenization, whole))))


class Both(Generic[Result, Sums]):
    """Two writers as one."""

    def __init__(self, *writers: Writer[Result, Sums]) -> None:
        self._writers = writers

    def begin(self, run: RunInfo) -> None:
        for writer in self._writers:
            writer.begin(run)

    def sequence(self, result: Result, sums: Sums) -> None:
        for writer in self._writers:
            writer.sequence(result, sums)

    def reject(self, rejected: Rejected) -> None:
        for writer in self._writers:
            writer.reject(rejected)

    def end(self, sums: Sums, n_rejected: int, n_empty_lines: int) -> None:
        for writer in self._writers:
            writer.end(sums, n_rejected, n_empty_lines)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would exit with 1 here; the error goes on to where exit codes are decided."""
        raise


def console(path: Path | None, sink: BinaryIO) -> Console:
    if path is not None:
        text = io.TextIOWrapper(sink, encoding="utf-8", write_through=True)
        return _Console(file=text, width=_FILE_WIDTH, markup=False, highlight=False, emoji=False)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an ASCII terminal shows \\u2026, not a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    return _Console(markup=False, highlight=False, emoji=False)
