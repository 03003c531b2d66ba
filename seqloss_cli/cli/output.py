"""Run the pipeline to its end and write what comes out of it: shared by the scoring commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import typer
from rich.console import Console

from seqloss_cli.backend import Wants
from seqloss_cli.cli.failures import REJECTED, say
from seqloss_cli.cli.options import Format
from seqloss_cli.cli.progress import ProgressBar
from seqloss_cli.errors import SeqlossError
from seqloss_cli.masking import MaskTotals
from seqloss_cli.metrics import Totals, totals_of
from seqloss_cli.reading import ReadStats
from seqloss_cli.records import Rejected, RunInfo, Sample, SequenceScore, TokenSequence
from seqloss_cli.rendering import TableOptions, TableWriter
from seqloss_cli.scorer import Scorer
from seqloss_cli.tokenization import Tokenization
from seqloss_cli.writing import (
    JsonlWriter,
    JsonWriter,
    OpenAIWriter,
    RowOptions,
    Writer,
    open_sink,
    score_rows,
)

JSON_WRITERS: dict[Format, Any] = {Format.json: JsonWriter, Format.jsonl: JsonlWriter}
_FILE_WIDTH = 120  # columns of tables that go to a file


@dataclass(frozen=True, slots=True)
class OutputChoice:
    format: Format
    path: Path | None
    force: bool
    text: bool
    tokens: bool
    words: bool
    context_lengths: bool
    bits: bool
    all_tokens: bool
    summary: bool
    strict: bool
    pmi: bool


class StrictStopError(SeqlossError):
    """--strict met a rejected input."""

    exit_code = REJECTED


class HasSequence(Protocol):
    @property
    def sequence(self) -> TokenSequence: ...


Result = TypeVar("Result", bound=HasSequence)
Sums = TypeVar("Sums", Totals, MaskTotals)


@dataclass(frozen=True, slots=True)
class Work(Generic[Result, Sums]):
    """What a command computes and how it is written."""

    results: Iterator[Result | Rejected]
    """In input order, as they are ready."""
    sums_of: Callable[[Result], Sums]
    nothing: Sums
    run: RunInfo
    writer: Callable[[BinaryIO], Writer[Result, Sums]]


def run_to_end(
    scorer: Scorer,
    items: Iterable[Sample | Rejected],
    stats: ReadStats,
    names: Sequence[str],
    wants: Wants,
    choice: OutputChoice,
    command: str,
) -> None:
    """Score everything, write it, and exit with 3 if something was rejected."""
    bar = ProgressBar(names)
    outcomes = scorer.score(items, wants, bar.on_progress)
    _, n_rejected = write_all(
        Work(
            outcomes,
            totals_of,
            Totals(),
            scorer.run_info(command),
            lambda sink: _writer(scorer.tokenization, sink, choice),
        ),
        stats,
        bar,
        choice,
    )
    say_what_did_not_fit(scorer)
    if n_rejected:
        raise typer.Exit(REJECTED)


def say_what_did_not_fit(scorer: Scorer) -> None:
    if n := scorer.engine.n_too_large:
        say(f"warning: {n} batches did not fit in memory and were halved (see --batch-tokens)")


def write_all(
    work: Work[Result, Sums], stats: ReadStats, bar: ProgressBar, choice: OutputChoice
) -> tuple[Sums, int]:
    """Write every result as it comes; gives the sums of all, and how many inputs were rejected."""
    totals, n_rejected, n_written = work.nothing, 0, 0
    with open_sink(choice.path, choice.force) as sink, bar, _closing(work.results):
        writer = work.writer(sink)
        writer.begin(work.run)
        for result in work.results:
            bar.make_way()
            if isinstance(result, Rejected):
                n_rejected += 1
                _reject(result, writer, bar)
                if choice.strict:
                    break
                continue
            sums = work.sums_of(result)
            totals += sums
            n_written += 1
            writer.sequence(result, sums)
            bar.on_input(result.sequence.sample)
        bar.stop()
        writer.end(totals, n_rejected, stats.n_empty_lines)
        if n_rejected and choice.strict:
            raise StrictStopError("--strict: stopped at the first rejected input")
    _say_what_was_noticed(stats)
    if choice.path is not None:
        say(f"wrote {choice.path}: {n_written} sequences, {n_rejected} rejected")
    return totals, n_rejected


@contextmanager
def _closing(results: Iterator[Any]) -> Iterator[None]:
    """However it ends, a thread that reads ahead ends with it."""
    try:
        yield
    finally:
        if isinstance(results, Generator):
            results.close()


def _reject(rejected: Rejected, writer: Writer[Any, Any], bar: ProgressBar) -> None:
    writer.reject(rejected)
    bar.on_input(rejected)
    where = rejected.source if rejected.line is None else f"{rejected.source}:{rejected.line}"
    say(f"rejected {where}: {rejected.message} ({rejected.reason})")


def _say_what_was_noticed(stats: ReadStats) -> None:
    if stats.n_duplicate_ids:
        say(f"warning: {stats.n_duplicate_ids} ids came before, first {stats.duplicate_id!r}")
    if stats.n_unchecked_ids:
        say(f"warning: {stats.n_unchecked_ids} ids were not checked for duplicates (too many)")


def row_options(tokenization: Tokenization, choice: OutputChoice) -> RowOptions:
    return RowOptions(
        tokenization.token_texts,
        tokenization.name_token,
        text=choice.text,
        tokens=choice.tokens,
        summary=choice.summary,
        words=choice.words,
        context_lengths=choice.context_lengths,
        pmi=choice.pmi,
    )


def table_options(tokenization: Tokenization, choice: OutputChoice) -> TableOptions:
    texts, name = tokenization.token_texts, tokenization.name_token
    return TableOptions(
        texts, name, choice.bits, choice.all_tokens, choice.summary, choice.words, choice.pmi
    )


def _writer(
    tokenization: Tokenization, sink: BinaryIO, choice: OutputChoice
) -> Writer[SequenceScore, Totals]:
    if choice.format is Format.table:
        return TableWriter(console(choice.path, sink), table_options(tokenization, choice))
    options = row_options(tokenization, choice)
    if choice.format is Format.openai:
        return OpenAIWriter(sink, options)
    writer: Writer[SequenceScore, Totals] = JSON_WRITERS[choice.format](sink, score_rows(options))
    return writer


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
