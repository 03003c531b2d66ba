"""`--resume`: go on with what an earlier run of the same command left, or start where there is
nothing."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from seqloss_cli.cli.failures import StrictStopError, say
from seqloss_cli.cli.formats import Format
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Rejected, Sample
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.resume import KeptRows, inspect_partial, recorded_run
from seqloss_cli.results.runs import require_same_run
from seqloss_cli.results.schema.scores import read_row
from seqloss_cli.results.sinks import cut, earlier_output

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.results.resume import PartialFile
    from seqloss_cli.scoring.scorer import Scorer


def require_resumable(choice: OutputChoice) -> None:
    """Raises UsageError for what cannot be gone on with, before a model is loaded."""
    if choice.path is None:
        raise UsageError("--resume goes on with a file: give -o FILE.jsonl")
    if choice.force:
        raise UsageError("--resume keeps what --force writes over: choose one of them")
    if choice.format is not Format.jsonl:
        raise UsageError(
            f"--resume goes on line by line, which {choice.format.value} does not have: give "
            "-o FILE.jsonl or --jsonl"
        )
    if choice.summary:
        raise UsageError("--resume needs the rows in the file: leave --summary out")
    earlier_output(choice.path)


def settings_of_earlier(path: Path | None) -> Mapping[str, Any]:
    """The run line of what an earlier run left; nothing where there is none."""
    left = None if path is None else earlier_output(path)
    return {} if left is None else recorded_run(left) or {}


def already_complete(path: Path, run: RunInfo) -> PartialFile | None:
    """The finished file, if a run with the same model and settings came to its end before.

    Raises UsageError when the file is another run's, or not whole.
    """
    if earlier_output(path) != path:
        return None
    file = inspect_partial(path)
    if file.run is None or not file.has_totals or file.n_torn:
        raise UsageError(
            f"--resume: {path} is not whole; rename it to {path}.partial to go on with it, or give "
            "--force to start anew"
        )
    require_same_run(path, file.run, run)
    return file


def say_nothing_to_do(
    file: PartialFile, scorer: Scorer, items: Iterable[Sample | Rejected]
) -> None:
    """Say that a finished file is the one that was asked for, once the inputs were read again:
    nothing is scored, as every one of them is said to be finished.

    Raises UsageError when an input changed, came or went since, or a row cannot be right.
    """
    kept = KeptRows(file, Totals(), _checked_totals)
    deque(scorer.score(items, n_finished=sys.maxsize, on_finished=kept.check), maxlen=0)
    kept.require_all_checked()
    say(
        f"{file.path} is whole: {kept.n_sequences} sequences, {kept.n_rejected} rejected; "
        "nothing to do"
    )


def resume(sink: BinaryIO, partial: Path, run: RunInfo, strict: bool) -> KeptRows[Totals] | None:
    """The rows that are kept; None where a run begins anew. Once they were all met, and not before,
    what stands after them is cut off and the sink is placed there.

    Raises UsageError when another run wrote them, and StrictStopError when `strict` would have
    stopped among them.
    """
    file = inspect_partial(partial)
    if file.run is not None:
        require_same_run(partial, file.run, run)
    if strict and file.n_rejected:
        raise StrictStopError(
            f"--strict: {partial} holds {file.n_rejected} rejected inputs; leave --strict out to "
            "go on after them"
        )
    if not file.n_rows:
        _cut_off(sink, file)
    if file.run is None:
        return None
    say(f"going on with {partial}: {file.n_rows} rows are kept")
    return KeptRows(file, Totals(), _checked_totals, lambda: _cut_off(sink, file))


def _cut_off(sink: BinaryIO, file: PartialFile) -> None:
    cut(sink, file.length)
    if file.n_lost:
        say(
            f"warning: {file.path}:{file.torn_line} is damaged: cut {file.n_torn} bytes off, with "
            f"{file.n_lost} whole rows behind it, which are scored again"
        )
    elif file.n_torn:
        say(f"cut {file.n_torn} bytes of a torn end off {file.path}")


def _checked_totals(row: Mapping[str, Any], place: str) -> Totals:
    """Like those of any results file that is read: RowError where they cannot be right."""
    return read_row(row, place).totals
