"""`seqloss merge`: the results of shards as those of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import REJECTED, RejectionReport, say
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.places import deliver, prepare
from seqloss_cli.cli.progress import waiting
from seqloss_cli.core.errors import RowError, RunError, UsageError, did_you_mean_file
from seqloss_cli.core.options import INPUT, argument, command_record, option
from seqloss_cli.core.urls import is_url, shown_name

if TYPE_CHECKING:
    from seqloss_cli.core.records import Rejected
    from seqloss_cli.results.merging import Merged
    from seqloss_cli.results.schema import Row
    from seqloss_cli.results.shards import ShardFile

_FORMATS = ("jsonl", "json", "parquet")
_OTHER_FILES = 256
"""Files that a process may have open beside those of shards: libraries, above all."""


@command_record
class MergeArguments:
    """The results of shards."""

    PANEL = INPUT

    results: list[str] = argument(
        "RESULTS", "Results of all shards: .jsonl or .parquet.", required=True
    )
    missing: bool = option(False, "Print the numbers of shards to run again, and merge nothing.")


@o.with_options(
    o.only(MergeArguments),
    o.only(o.OutputSettings, "json", "output", "force", json="One JSON document, not JSONL."),
    o.CONFIG,
    o.only(o.OtherSettings, "debug"),
)
def merge(ctx: typer.Context) -> None:
    """Join the results of shards (--shard) as those of one run.

    Rows stand in the order of the inputs, and the totals are of all of them. Nothing is merged
    unless every shard of the run is there, once, and whole.

    Examples:
        seqloss merge shards/*.jsonl -o results.jsonl
        seqloss merge shards/*.jsonl | seqloss summarize -
        sbatch --array="$(seqloss merge --missing shards/*.jsonl)" job.sh

    """
    from seqloss_cli.inputs.names import expanded
    from seqloss_cli.results.sinks import local_path, refuse_to_overwrite

    own = o.given(ctx, MergeArguments)
    # No shell knows the names of other file systems, and of many its lines are too long.
    names = expanded(own.results, say)
    if own.missing:
        _print_missing(names)
        return
    output = o.given(ctx, o.OutputSettings)
    prepare(output.output, output.force, resume=False)
    if (path := local_path(output.output)) is not None:
        refuse_to_overwrite(path, output.force)
    name = _format(output)
    files = [_opened(each) for each in names]
    merged = merge_files(files, name, output.output, output.force)
    if merged.rejected:
        raise typer.Exit(REJECTED)


def merge_files(
    files: Sequence[ShardFile],
    name: str,
    output: Path | None,
    force: bool,
    more: Mapping[str, Any] | None = None,
    report: RejectionReport | None = None,
) -> Merged:
    """Write the results of all shards in the format of a name, to a file or stdout.

    The run's record has `more`, too, and `report` takes rejected inputs. Raises UsageError where
    shards are missing or of several runs.
    """
    from seqloss_cli.results import shards as m
    from seqloss_cli.results.merging import Merged

    m.require_all(files)
    if keys := m.speed_differences(files):
        say(f"note: not the same in all shards: {', '.join(keys)}; last digits may differ")
    allow_open_files(len(files))
    merged = Merged(files)
    _write(merged, name, output, force, more or {}, report)
    if merged.n_duplicate_ids:
        say(f"warning: {merged.n_duplicate_ids:,} ids came before")
    n_rejected = merged.rejected.total()
    say(f"merged {len(files)} shards: {merged.n_sequences:,} sequences, {n_rejected:,} rejected")
    return merged


def allow_open_files(n: int) -> None:
    """Let the process have a file of each shard open, where the system's limit is lower."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = n + _OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _opened(name: str) -> ShardFile:
    from seqloss_cli.results.shards import open_shard

    if name == STDIN:
        raise UsageError("'-' (stdin) is no shard: each is read twice; name its file")
    try:
        return open_shard(name)
    except RowError as error:
        near = did_you_mean_file(Path(name)) if error.reason == "no_such_file" else ""
        raise UsageError(f"{name}: {error.message}{near}") from error


def _print_missing(names: Sequence[str]) -> None:
    """Print the numbers of shards that no whole file is of."""
    from seqloss_cli.results.shards import (
        ShardFile,
        is_whole,
        open_shard,
        require_one_run,
        shown_numbers,
    )

    files = list[ShardFile]()
    for name in names:
        try:
            files.append(open_shard(name))
        except RowError as error:
            _require_reached(name, error)
            say(f"note: {name}: {error.message}")
    if not files:
        raise UsageError("none of these files tells how many shards there are: run all of them")
    if len(numbers := {file.of for file in files}) > 1:
        said = " and ".join(map(str, sorted(numbers)))
        raise UsageError(f"these are shards of runs of {said} shards: name those of one")
    done = set[int]()
    for file in files:
        try:
            require_one_run(files[0], file)
        except UsageError as error:
            say(f"warning: {error}")
        if is_whole(file):
            done.add(file.index)
        else:
            say(f"note: {file.name}: shard {file.place} is not whole")
    missing = [n for n in range(files[0].of) if n not in done]
    say(f"{len(missing)} of {files[0].of} shards are missing")
    if missing:
        typer.echo(shown_numbers(missing))


def _require_reached(name: str, error: RowError) -> None:
    """Raise RunError where a file could not be asked for: whether it is whole is not known."""
    if error.reason == "unreadable" and (
        is_url(name) or isinstance(error.__cause__, PermissionError)
    ):
        raise RunError(f"{shown_name(name)} {error.message}: whether it is whole is not known")


def _format(output: Any) -> str:
    if output.json or output.output is None:
        return "json" if output.json else "jsonl"
    name: str = output.output.suffix.removeprefix(".")
    if name not in _FORMATS:
        raise UsageError(f"-o {output.output}: merge writes .jsonl, .json or .parquet")
    return name


def _write(
    merged: Merged,
    name: str,
    output: Path | None,
    force: bool,
    more: Mapping[str, Any],
    report: RejectionReport | None,
) -> None:
    """Write everything to -o or stdout."""
    from seqloss_cli.cli.progress import STATUS
    from seqloss_cli.results.merging import MergeWriter
    from seqloss_cli.results.shards import whole_run
    from seqloss_cli.results.sinks import local_path, open_sink, place_of

    path = local_path(output)
    with (
        waiting("merging", f"{len(merged.files)} shards") as wait,
        open_sink(path, force, warn=say, keeps=False) as sink,
    ):
        if path is None:
            STATUS.clear()
        writer = MergeWriter(name, sink, {**whole_run(merged.files), **more})
        for record in merged.records():
            writer.write(record)
            if report is not None and record.row["type"] == "rejected":
                report.add(_rejected(record.row))
            wait.n_done += 1
        writer.end(merged.totals)
    if report is not None:
        report.end()
    deliver(output)
    if output is not None:
        say(f"wrote {place_of(output)}")


def _rejected(row: Row) -> Rejected:
    from seqloss_cli.core.records import Rejected

    return Rejected(*(row[key] for key in ("id", "source", "line", "reason", "message")))
