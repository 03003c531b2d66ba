"""Run the pipeline to its end and write what comes out of it: shared by the scoring commands."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import typer

from seqloss_cli.cli.failures import REJECTED, StrictStopError, say
from seqloss_cli.cli.formats import Format, Level, say_what_is_left_out
from seqloss_cli.cli.progress import ProgressBar
from seqloss_cli.cli.resuming import already_complete, resume, say_nothing_to_do
from seqloss_cli.cli.writers import also_beside, score_writer
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import TokenColumn
from seqloss_cli.core.records import Rejected, Sample, TokenSequence
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal import HeatOptions
from seqloss_cli.inputs import ReadStats
from seqloss_cli.metrics.accuracy import RankTotals
from seqloss_cli.metrics.divergence import DivergenceTotals
from seqloss_cli.metrics.masks import MaskTotals
from seqloss_cli.metrics.totals import Totals, totals_of
from seqloss_cli.metrics.words import CORRECTION_SOURCE
from seqloss_cli.results.formats import Writer
from seqloss_cli.results.resume import KeptRows
from seqloss_cli.results.schema.scores import score_rows
from seqloss_cli.results.sinks import open_sink, partial_path
from seqloss_cli.scoring.scorer import Scorer


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
    level: Level = Level.sequence
    columns: tuple[TokenColumn, ...] = ()
    """What was asked for of each token beside its loss."""
    resume: bool = False
    word_correction: bool = False
    regions: bool = False
    heat: HeatOptions | None = None
    """Texts in colours, in place of tables."""
    beside: Path | None = None
    """Where the rows go a second time, as JSONL with texts and tokens: for a page of them."""


class HasSample(Protocol):
    @property
    def sample(self) -> Sample: ...


Result = TypeVar("Result", bound=HasSample)
Sums = TypeVar("Sums", Totals, MaskTotals, RankTotals, DivergenceTotals)


@dataclass(frozen=True, slots=True)
class Work(Generic[Result, Sums]):
    """What a command computes and how it is written."""

    results: Iterator[Result | Rejected]
    """In input order, as they are ready."""
    sums_of: Callable[[Result], Sums]
    nothing: Sums
    run: RunInfo
    writer: Writer[Result, Sums]
    kept: KeptRows[Sums] | None = None
    """Of an earlier run, which this one goes on with: they stand before the results."""


@dataclass(frozen=True, slots=True)
class Written(Generic[Sums]):
    """What a results file holds at the end."""

    totals: Sums
    n_sequences: int
    n_rejected: int
    n_kept: int
    """Rows of an earlier run among these."""


def run_to_end(
    scorer: Scorer,
    items: Iterable[Sample | Rejected],
    stats: ReadStats,
    names: Sequence[str],
    requested: Requested,
    choice: OutputChoice,
    command: str,
    reading: Mapping[str, Any] | None = None,
) -> None:
    """Score everything, write it, and exit with 3 if something was rejected. `reading` says how
    the items are read, for the run's record."""
    say_what_is_left_out(choice)
    if choice.word_correction:
        requested = requested.with_word_boundaries(scorer.tokenization.word_boundary_ids())
    run = replace(scorer.run_info(command), reading=reading, rows=_described(choice, requested))
    if choice.resume and choice.path and (file := already_complete(choice.path, run)):
        say_nothing_to_do(file, scorer, items)
        raise typer.Exit(REJECTED if file.n_rejected else 0)
    bar = ProgressBar(names)
    with open_sink(choice.path, choice.force, choice.resume, warn=say) as sink:
        kept = None
        if choice.resume and choice.path:
            kept = resume(sink, partial_path(choice.path), run, choice.strict)

        def check(entry: TokenSequence | Rejected) -> None:
            assert kept is not None
            kept.check(entry)
            bar.on_input(entry if isinstance(entry, Rejected) else entry.sample)

        n_kept = kept.n_rows if kept is not None else 0
        outcomes = scorer.score(items, requested, bar.on_progress, n_kept, check)
        own = score_writer(scorer.tokenization, sink, choice, requested.word_boundary_ids)
        with also_beside(own, choice, scorer.tokenization, score_rows) as writer:
            work = Work(outcomes, totals_of, Totals(), run, writer, kept)
            written = write_all(work, stats, bar, choice)
    say_what_was_written(written, stats, choice)
    say_what_did_not_fit(scorer)
    if written.n_rejected:
        raise typer.Exit(REJECTED)


def _described(choice: OutputChoice, requested: Requested) -> dict[str, Any]:
    """What a sequence's row holds, for the run's record."""
    names = ("text", "tokens", "words", "context_lengths", "pmi", "summary")
    found = {name: getattr(choice, name) for name in names}
    found |= requested.described()
    if choice.word_correction:
        found |= {"word_correction": True, "word_correction_source": CORRECTION_SOURCE}
    return found


def say_what_did_not_fit(scorer: Scorer) -> None:
    if n := scorer.backend.n_too_large:
        say(f"warning: {n} batches did not fit in memory and were halved (see --batch-tokens)")


def write_all(
    work: Work[Result, Sums], stats: ReadStats, bar: ProgressBar, choice: OutputChoice
) -> Written[Sums]:
    """Write every result as it comes, after the rows that are kept."""
    totals, n_rejected, n_sequences = work.nothing, 0, 0
    writer, kept = work.writer, work.kept
    with bar, _closing(work.results):
        if kept is None:
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
            n_sequences += 1
            writer.sequence(result, sums)
            bar.on_input(result.sample)
        bar.stop()
        written = Written(totals, n_sequences, n_rejected, 0)
        if kept is not None:
            written = _with_kept(kept, written)
        stopped = bool(n_rejected) and choice.strict
        sums = _stopped(written.totals) if stopped else written.totals
        writer.end(sums, written.n_rejected, stats.n_empty_lines)
        if stopped:
            raise StrictStopError("--strict: stopped at the first rejected input")
    return written


def _stopped(totals: Sums) -> Sums:
    """Totals that say that inputs were left."""
    if isinstance(totals, MaskTotals):
        return totals
    return replace(totals, flags={**totals.flags, "stopped_early": 1})


def _with_kept(kept: KeptRows[Sums], later: Written[Sums]) -> Written[Sums]:
    """Raises UsageError when the inputs ended among the rows that are kept."""
    kept.require_all_checked()
    return Written(
        kept.sums + later.totals,
        kept.n_sequences + later.n_sequences,
        kept.n_rejected + later.n_rejected,
        kept.n_rows,
    )


def say_what_was_written(written: Written[Sums], stats: ReadStats, choice: OutputChoice) -> None:
    _say_what_was_noticed(stats)
    if choice.path is not None:
        kept = f" ({written.n_kept} rows kept)" if written.n_kept else ""
        say(
            f"wrote {choice.path}: {written.n_sequences} sequences, {written.n_rejected} rejected"
            f"{kept}"
        )


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
