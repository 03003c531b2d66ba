"""The one loop that scores inputs and writes what comes out, for every command that scores."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from typing import Any, BinaryIO, Generic, Protocol, TypeVar, cast

from rich.console import Console

from seqloss_cli.cli.failures import REJECTED, RejectionReport, StrictStopError, say
from seqloss_cli.cli.inputs import Inputs
from seqloss_cli.cli.places import deliver
from seqloss_cli.cli.progress import ProgressBar, shown_seconds
from seqloss_cli.cli.settings import OutputPlan, console, row_options, table_options
from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Rejected, Rejections, Sample
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal.formatting import TableOptions, Unit
from seqloss_cli.inputs.reading import ReadStats
from seqloss_cli.results.formats import FORMATS, Writer
from seqloss_cli.results.resume import KeptRows, PartialFile, inspect_partial, require_same_run
from seqloss_cli.results.schema import RowOptions, Rows, Summable
from seqloss_cli.results.sinks import (
    cut,
    earlier_output,
    named,
    open_sink,
    partial_path,
    place_of,
)
from seqloss_cli.scoring.tasks import FinishedInputs, Task


class HasSample(Protocol):
    """A result, or an input that was read again."""

    @property
    def sample(self) -> Sample:
        """The input."""


Result = TypeVar("Result", bound=HasSample)
Sums = TypeVar("Sums", bound=Summable)
Unscored = TypeVar("Unscored")


@dataclass(frozen=True, slots=True)
class RunSummary(Generic[Sums]):
    """The sums and counts of a run that came to its end."""

    totals: Sums
    n_sequences: int
    rejected: Counter[str]
    """Reason to the number of inputs that were rejected for it."""
    n_kept: int = 0
    """Rows of an earlier run among these two."""
    was_done: bool = False
    """An earlier run wrote all of it."""

    @property
    def n_rejected(self) -> int:
        """Return how many inputs were rejected."""
        return self.rejected.total()

    @property
    def exit_code(self) -> int:
        """Return that of a run that came to its end."""
        return REJECTED if self.n_rejected else 0


@dataclass(frozen=True, slots=True)
class Command(Generic[Result, Sums, Unscored]):
    """A task, bound to its rows and tables."""

    task: Task[Result, Sums, Unscored]
    rows: Callable[[RowOptions], Rows[Result, Sums, Unscored]]
    table: Callable[[Console, TableOptions], Writer[Result, Sums]]
    answer: Callable[[Sums, Unit], str]
    """The figure that the run was for, in a few words: for the end of a run into a file."""
    word_boundary_ids: WordBoundaryIds | None = None
    """For corrected losses of words."""
    as_rows: Callable[[Writer[Any, Any]], Writer[Any, Any]] = lambda writer: writer
    """Makes, of a writer of rows, that of results which are several rows each."""

    def run(
        self,
        inputs: Inputs,
        choice: OutputPlan,
        described: Mapping[str, Any] | None,
        more_writers: Sequence[Writer[Result, Sums]] = (),
    ) -> RunSummary[Sums]:
        """Score everything and write it, after what an earlier run left where that is asked for;
        a file that belongs elsewhere is put there.

        `described` is what rows hold, for the run's record; `more_writers` get every result, too.
        """
        written = self._run(inputs, choice, described, more_writers)
        if written.was_done:
            deliver(choice.place, unless_there=True)
        return written

    def _run(
        self,
        inputs: Inputs,
        choice: OutputPlan,
        described: Mapping[str, Any] | None,
        more_writers: Sequence[Writer[Result, Sums]],
    ) -> RunSummary[Sums]:
        if choice.format is not None and not choice.format.holds_totals:
            say(f"{choice.format.name} holds neither the run nor the totals; --jsonl holds both")
        record = replace(self.task.run, reading=inputs.reading, rows=described)
        rows = self._rows(record, choice)
        # Before the sink is opened, which would make a partial file beside the whole one.
        if choice.resume and (file := already_complete(choice, record)):
            return self._nothing_to_do(rows, file, inputs)
        prints = choice.path is None and not choice.summary
        bar = ProgressBar(inputs.names, inputs.n_expected, prints=prints, span=inputs.span)
        kept = None
        with (
            open_sink(choice.path, choice.force, choice.resume, say, not choice.summary) as sink,
            ExitStack() as stack,
        ):
            if choice.resume:
                kept = self._resume(sink, record, rows, choice)
            own = self._writer(rows, sink, choice)
            page_writers = self._page_writers(record, choice, stack)
            # One writer is called as it is: around short rows each call is felt.
            others = (*more_writers, *page_writers)
            writer = TeeWriter(own, *others) if others else own
            report = RejectionReport(elsewhere=_each_named(choice))
            written = write_all(self.task, inputs, record, writer, bar, kept, choice.strict, report)
        # First: until it is in its place nothing was written there.
        deliver(choice.place)
        _say_what_was_written(written, inputs.stats, choice)
        if n := getattr(written.totals, "flags", {}).get("unspelled_text"):
            why = "no rate per byte, character or word is made of them"
            say(f"warning: {n} texts hold what no token stands for (flag unspelled_text): {why}")
        pairing = self.task.source.pairing
        for warning in pairing.template.warnings if pairing else ():
            say(f"warning: {warning}")
        if n := self.task.count_halved():
            say(f"warning: {n} batches did not fit in memory and were halved (see --batch-tokens)")
        if choice.path is not None:
            answer = self.answer(written.totals, Unit(choice.bits))
            say(f"{answer}, in {shown_seconds(bar.seconds)}: {_place_of(choice)}")
        return written

    def _rows(self, run: RunInfo, choice: OutputPlan) -> Rows[Result, Sums, Unscored]:
        tokens, ids = self.task.tokenization, self.word_boundary_ids
        return self.rows(row_options(tokens, choice, run, ids))

    def _writer(
        self, rows: Rows[Result, Sums, Unscored], sink: BinaryIO, choice: OutputPlan
    ) -> Writer[Result, Sums]:
        if choice.format is not None:
            return self.as_rows(choice.format.write(sink, rows, choice.level))
        tokens, ids = self.task.tokenization, self.word_boundary_ids
        options = table_options(tokens, choice, ids)
        return self.table(console(choice.path, sink), options)

    def _page_writers(
        self, run: RunInfo, choice: OutputPlan, stack: ExitStack
    ) -> list[Writer[Result, Sums]]:
        """Return the writer of the rows that a page is made of, if one is to be made."""
        if choice.page_rows is None:
            return []
        whole = replace(choice, text=True, tokens=True, summary=False, context_lengths=True)
        # No sink: a file for this process alone, which is thrown away when the page is made.
        file = stack.enter_context(choice.page_rows.open("wb"))
        return [FORMATS["jsonl"].write(file, self._rows(run, whole), "")]

    def _resume(
        self, sink: BinaryIO, run: RunInfo, rows: Rows[Result, Sums, Unscored], choice: OutputPlan
    ) -> KeptRows[Sums, Unscored] | None:
        """Return the rows that are kept; None where a run begins anew.

        Bytes after them are cut off once all rows were checked, and never before. The sink stands
        at their end then. Raises UsageError when another run wrote them, and StrictStopError when
        --strict would have stopped among them.
        """
        assert choice.path is not None
        partial = partial_path(choice.path)
        file = inspect_partial(partial)
        if file.run is not None:
            require_same_run(partial, file.run, run, choice.flags)
        # As the run that is continued would have stopped there.
        if choice.strict and file.n_rejected:
            raise StrictStopError(
                f"--strict: {named(partial)} holds {file.n_rejected} rejected inputs; leave "
                "--strict out to go on after them"
            )
        # No row will be checked, after the last of which it would be done.
        if not file.n_rows:
            _cut_off(sink, file)
        if file.run is None:
            return None
        say(f"going on with {named(partial)}: {file.n_rows:,} rows are kept")
        return KeptRows(file, rows, self.task.zero, lambda: _cut_off(sink, file))

    def _nothing_to_do(
        self, rows: Rows[Result, Sums, Unscored], file: PartialFile, inputs: Inputs
    ) -> RunSummary[Sums]:
        """Say that a finished file is the one that was asked for, once the inputs were read again.

        Nothing is scored: every input counts as finished. Raises UsageError when an input changed,
        came or went since, or a row is invalid.
        """
        kept = KeptRows(file, rows, self.task.zero)
        # More than any file holds: whether there are as many inputs as rows, `kept` tells.
        finished = FinishedInputs(sys.maxsize, kept.check)
        deque(self.task.results(inputs.items, lambda *_: None, finished), maxlen=0)
        kept.require_all_checked()
        say(
            f"{named(file.path)} is whole: {count_of(kept.n_sequences, 'sequence')}, "
            f"{kept.rejected.total():,} rejected; nothing to do"
        )
        return RunSummary(kept.sums, kept.n_sequences, kept.rejected, kept.n_rows, was_done=True)


class TeeWriter(Generic[Result, Sums]):
    """A writer that hands everything to several others."""

    def __init__(self, *writers: Writer[Result, Sums]) -> None:
        self._writers = writers

    def begin(self, run: RunInfo) -> None:
        """Begin with each."""
        for writer in self._writers:
            writer.begin(run)

    def sequence(self, result: Result, sums: Sums) -> None:
        """Hand a result to each."""
        for writer in self._writers:
            writer.sequence(result, sums)

    def reject(self, rejected: Rejected) -> None:
        """Hand a rejected input to each."""
        for writer in self._writers:
            writer.reject(rejected)

    def end(self, sums: Sums, rejected: Rejections, n_empty_lines: int) -> None:
        """End with each."""
        for writer in self._writers:
            writer.end(sums, rejected, n_empty_lines)


def write_all(
    task: Task[Result, Sums, Unscored],
    inputs: Inputs,
    record: RunInfo,
    writer: Writer[Result, Sums],
    bar: ProgressBar,
    kept: KeptRows[Sums, Unscored] | None = None,
    strict: bool = False,
    report: RejectionReport | None = None,
) -> RunSummary[Sums]:
    """Write every result as it comes, after the rows that are kept; `report` takes rejections."""
    totals, n_sequences, report = task.zero, 0, report or RejectionReport()

    def on_kept(entry: Any) -> None:
        assert kept is not None
        kept.check(entry)
        rejected = isinstance(entry, Rejected)
        bar.on_kept(entry if rejected else entry.sample, rejected)

    finished = FinishedInputs(0 if kept is None else kept.n_rows, on_kept)
    results = task.results(inputs.items, bar.on_progress, finished)
    # However it ends, a thread that reads ahead ends with it: all results are of generators.
    # Results and bar may share the terminal: what a writer writes would stand across the bar.
    with bar, closing(cast(Any, results)):
        # Of rows that are kept the run line is, too.
        if kept is None:
            with bar.hidden():
                writer.begin(record)
        for result in results:
            if isinstance(result, Rejected):
                with bar.hidden():
                    writer.reject(result)
                bar.on_input(result, rejected=True)
                report.add(result)
                if strict:
                    break
                continue
            sums = task.totals(result)
            task.on_result(result, sums)
            totals, n_sequences = totals + sums, n_sequences + 1
            with bar.hidden():
                writer.sequence(result, sums)
            bar.on_input(result.sample)
        # Before the totals: a table of them stands where the bar was.
        bar.stop()
        report.end()
        written = _with_kept(RunSummary(totals, n_sequences, report.counts), kept)
        stopped = bool(report.counts) and strict
        sums = _stopped(written.totals) if stopped else written.totals
        writer.end(sums, written.rejected, inputs.stats.n_empty_lines)
        if stopped:
            raise StrictStopError("--strict: stopped at the first rejected input")
    return written


def _with_kept(
    written: RunSummary[Sums], kept: KeptRows[Sums, Unscored] | None
) -> RunSummary[Sums]:
    """Add the rows of an earlier run. Raises UsageError where it had more inputs than this one."""
    if kept is None:
        return written
    kept.require_all_checked()
    return RunSummary(
        kept.sums + written.totals,
        kept.n_sequences + written.n_sequences,
        kept.rejected + written.rejected,
        kept.n_rows,
    )


def _stopped(totals: Any) -> Any:
    """Return totals that say that inputs were left, where they have flags."""
    if not any(field.name == "flags" for field in fields(totals)):
        return totals
    return replace(totals, flags={**totals.flags, "stopped_early": 1})


def _each_named(choice: OutputPlan) -> str:
    """Return where each rejected input is named; empty where stdout does."""
    if choice.format is None:
        return "--jsonl names each"
    return "" if choice.path is None else f"{_place_of(choice)} names each"


def _place_of(choice: OutputPlan) -> str:
    """Return the file of results as it is called once it is whole."""
    where = choice.place or choice.path
    return "" if where is None else place_of(where)


def _say_what_was_written(written: RunSummary[Any], stats: ReadStats, choice: OutputPlan) -> None:
    if stats.n_duplicate_ids:
        say(f"warning: {stats.n_duplicate_ids:,} ids came before, first {stats.duplicate_id!r}")
    _say_seams(stats)
    # With -o the answer at the end says so.
    if not written.n_sequences and choice.path is None:
        say(f"nothing was scored; inputs that were rejected: {written.n_rejected:,}")
    if choice.path is not None:
        kept = f" ({count_of(written.n_kept, 'row')} kept)" if written.n_kept else ""
        totals_of, no_rows = ("totals of ", " (--summary: no rows)") if choice.summary else ("", "")
        say(
            f"wrote {_place_of(choice)}: {totals_of}{count_of(written.n_sequences, 'sequence')}, "
            f"{written.n_rejected:,} rejected{kept or no_rows}"
        )


def _say_seams(stats: ReadStats) -> None:
    """Report rows whose prompt and response meet as their writer can hardly have meant it."""
    n, of_rows = stats.n_run_together, f"of {stats.n_pairs:,} rows"
    if n:
        others = ", and in all other rows, too" if n < stats.n_pairs else ""
        say(
            f"warning: in {n:,} {of_rows} no white space parts two words where a prompt ends, and "
            f"they are scored as one (first {stats.run_together}); --separator ' ' puts a blank "
            f"there{others}"
        )
    if n := stats.n_double_blanks:
        first = stats.double_blank
        say(f"warning: in {n} {of_rows} the blank of --separator meets another one (first {first})")


def already_complete(choice: OutputPlan, run: RunInfo) -> PartialFile | None:
    """Return the finished file, if a run with the same model and settings came to its end before.

    Raises UsageError when the file is another run's, or not whole.
    """
    path = choice.path
    if path is None or earlier_output(path) != path:
        return None
    file = inspect_partial(path)
    if file.run is None or not file.has_totals or file.n_torn:
        raise UsageError(
            f"--resume: {named(path)} is not whole; rename it to {path}.partial to go on with it, "
            "or give --force to start anew"
        )
    require_same_run(path, file.run, run, choice.flags)
    return file


def _cut_off(sink: BinaryIO, file: PartialFile) -> None:
    cut(sink, file.length)
    if file.n_lost:
        say(
            f"warning: {named(file.path)}:{file.torn_line} is damaged: cut {file.n_torn} bytes "
            f"off, with {file.n_lost} whole rows behind it, which are scored again"
        )
    elif file.n_torn:
        say(f"cut {file.n_torn} bytes of a torn end off {named(file.path)}")
