"""Run the pipeline to its end and write what comes out of it: shared by the scoring commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import typer
from rich.console import Console

from seqloss_cli.api import Scorer
from seqloss_cli.backend import Wants
from seqloss_cli.cli.failures import REJECTED, say
from seqloss_cli.cli.options import Format
from seqloss_cli.cli.progress import ProgressBar
from seqloss_cli.errors import SeqlossError
from seqloss_cli.metrics import Totals, totals_of
from seqloss_cli.reading import ReadStats
from seqloss_cli.records import Rejected, Sample
from seqloss_cli.rendering import TableOptions, TableWriter
from seqloss_cli.writing import (
    JsonlWriter,
    JsonWriter,
    OpenAIWriter,
    RowOptions,
    Writer,
    open_sink,
)

_JSON_WRITERS: dict[Format, Callable[[BinaryIO, RowOptions], Writer]] = {
    Format.json: JsonWriter,
    Format.jsonl: JsonlWriter,
    Format.openai: OpenAIWriter,
}
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
    totals, n_rejected = Totals(), 0
    bar = ProgressBar(names)
    outcomes = scorer.score(items, wants, bar.on_progress)  # first of all: it may refuse
    with open_sink(choice.path, choice.force) as sink, bar:
        writer = _writer(scorer, sink, choice)
        writer.begin(scorer.run_info(command))
        for outcome in outcomes:
            bar.make_way()
            if isinstance(outcome, Rejected):
                n_rejected += 1
                _reject(outcome, writer, bar)
                if choice.strict:
                    break
                continue
            of_sequence = totals_of(outcome)
            totals += of_sequence
            writer.sequence(outcome, of_sequence)
            bar.on_input(outcome.sequence.sample)
        bar.stop()
        writer.end(totals, n_rejected, stats.n_empty_lines)
        if n_rejected and choice.strict:
            raise StrictStopError("--strict: stopped at the first rejected input")
    _say_what_was_noticed(stats)
    if choice.path is not None:
        say(f"wrote {choice.path}: {totals.n_sequences} sequences, {n_rejected} rejected")
    if n_rejected:
        raise typer.Exit(REJECTED)


def _reject(rejected: Rejected, writer: Writer, bar: ProgressBar) -> None:
    writer.reject(rejected)
    bar.on_input(rejected)
    where = rejected.source if rejected.line is None else f"{rejected.source}:{rejected.line}"
    say(f"rejected {where}: {rejected.message} ({rejected.reason})")


def _say_what_was_noticed(stats: ReadStats) -> None:
    if stats.n_duplicate_ids:
        say(f"warning: {stats.n_duplicate_ids} ids came before, first {stats.duplicate_id!r}")
    if stats.n_unchecked_ids:
        say(f"warning: {stats.n_unchecked_ids} ids were not checked for duplicates (too many)")


def _writer(scorer: Scorer, sink: BinaryIO, choice: OutputChoice) -> Writer:
    texts, name = scorer.tokenization.token_texts, scorer.tokenization.name_token
    if choice.format is not Format.table:
        options = RowOptions(
            texts,
            name,
            text=choice.text,
            tokens=choice.tokens,
            summary=choice.summary,
            words=choice.words,
            context_lengths=choice.context_lengths,
            pmi=choice.pmi,
        )
        return _JSON_WRITERS[choice.format](sink, options)
    table = TableOptions(
        texts, name, choice.bits, choice.all_tokens, choice.summary, choice.words, choice.pmi
    )
    return TableWriter(_console(choice.path, sink), table)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would exit with 1 here; the error goes on to where exit codes are decided."""
        raise


def _console(path: Path | None, sink: BinaryIO) -> Console:
    if path is not None:
        text = io.TextIOWrapper(sink, encoding="utf-8", write_through=True)
        return _Console(file=text, width=_FILE_WIDTH, markup=False, highlight=False, emoji=False)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an ASCII terminal shows \\u2026, not a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    return _Console(markup=False, highlight=False, emoji=False)
