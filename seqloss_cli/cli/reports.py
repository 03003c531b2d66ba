"""What the commands on results have in common: their options, opening files, writing a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import say
from seqloss_cli.core.errors import RowError, RunError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from seqloss_cli.analysis.compare import CompareOptions
    from seqloss_cli.results.files import ResultsFile, ResultsOf
    from seqloss_cli.results.runs import Difference
    from seqloss_cli.results.schema import RowKind
    from seqloss_cli.results.schema.scores import ResultRow

Row = TypeVar("Row")
STATISTICS = "Statistics"
LEAST_RESAMPLES = 100
Files = Annotated[
    list[str],
    typer.Argument(metavar="RESULTS", help="Results: .jsonl, .json or .parquet."),
]
STATISTICS_OPTIONS: o.Group = {
    "cluster": (
        Annotated[
            str | None,
            o.option(
                STATISTICS,
                "--cluster",
                "Field (or meta field) that rows share which were not drawn independently.",
            ),
        ],
        None,
    ),
    "seed": (Annotated[int, o.option(STATISTICS, "--seed", "Of resampling.", min=0)], 0),
    "confidence": (
        Annotated[
            float,
            o.option(STATISTICS, "--confidence", "Of the intervals.", min=0.5, max=0.9999),
        ],
        0.95,
    ),
}
COMPARE_OPTIONS: o.Group = {
    **STATISTICS_OPTIONS,
    "bootstrap": (
        Annotated[int, o.option(STATISTICS, "--bootstrap", "Resamples.", min=LEAST_RESAMPLES)],
        2000,
    ),
}
REPORT_OPTIONS: o.Group = {
    "allow_different": (
        Annotated[
            bool,
            o.flag(o.POLICY, "--allow-different", "Take runs whose policies differ together."),
        ],
        False,
    ),
    "worst": (
        Annotated[int, o.option(o.SHOW, "--worst", "How many extremes are listed.", min=0)],
        10,
    ),
    "unit": o.SHOW_OPTIONS["unit"],
    "json": o.OUTPUT_OPTIONS["json"],
    "output": (
        Annotated[
            Path | None,
            o.option(o.OUTPUT, "--output", "Write to FILE (.json or .txt).", aliases=("-o",)),
        ],
        None,
    ),
    "force": o.OUTPUT_OPTIONS["force"],
    "config": o.OTHER_OPTIONS["config"],
    "debug": o.OTHER_OPTIONS["debug"],
}


def choose_comparison(context: typer.Context) -> CompareOptions:
    from seqloss_cli.analysis.compare import CompareOptions

    values = context.params
    return CompareOptions(
        n_extremes=values["worst"],
        bootstrap=values["bootstrap"],
        seed=values["seed"],
        cluster=values["cluster"],
        confidence=values["confidence"],
    )


class Reading:
    """Results files that are being read, and how many rows of them could not be used."""

    def __init__(self, files: Sequence[ResultsFile] = ()) -> None:
        self.files, self.n_unusable = list(files), 0

    def rows(self, file: ResultsOf[Row], quiet: bool = False) -> Iterator[Row]:
        from seqloss_cli.core.records import Rejected

        try:
            for row in file.rows:
                if not isinstance(row, Rejected):
                    yield row
                elif not quiet:
                    self.n_unusable += 1
                    say(f"rejected {row.source}:{row.line}: {row.message} ({row.reason})")
        except RowError as error:  # the file itself: cut off, or damaged
            raise RunError(f"{file.name}: {error.message} ({error.reason})") from error
        if not file.complete and not quiet:
            say(f"warning: {file.name} is not complete: its run did not come to its end")

    def all_rows(self) -> Iterator[ResultRow]:
        for file in self.files:
            yield from self.rows(file)


def open_one(
    name: str, shown: str | None = None, top1: bool = False, whole: bool = False
) -> ResultsFile:
    """By the name that messages are to have; `whole`: with texts and all arrays. Raises RunError
    when it holds no results."""
    from seqloss_cli.results.files import loss_kinds

    return open_of(name, loss_kinds(top1, whole), shown)


def open_of(
    name: str, kinds: Mapping[str, RowKind[Any]], shown: str | None = None
) -> ResultsOf[Any]:
    """The same, of what these commands wrote."""
    from seqloss_cli.results.files import open_any

    try:
        file = open_any(name, kinds)
        file.name = shown or file.name
        return file
    except RowError as error:
        raise cannot_open(name, error) from error


def cannot_open(name: str, error: RowError) -> RunError:
    from seqloss_cli.core.paths import shown_path

    return RunError(f"{shown_path(name)}: {error.message} ({error.reason})")


def require_same(
    files: Sequence[ResultsFile],
    differences: Callable[[ResultsFile], Iterable[Difference]],
    why: str,
) -> None:
    """Raises UsageError naming what differs between the first run and another."""
    for file in files[1:]:
        if named := "; ".join(map(str, differences(file))):
            raise UsageError(
                f"{file.name} and {files[0].name} differ: {named}; {why} (--allow-different)"
            )


def say_differences(
    files: Sequence[ResultsFile], differences: Mapping[str, Iterable[Difference]]
) -> None:
    for name, found in differences.items():
        for difference in found:
            say(f"note: {name} against {files[0].name}: {difference}")


def require_field(flag: str, name: str | None, n_without: int, n_rows: int) -> None:
    """Raises UsageError when no row has the field that rows are to be grouped by."""
    if name is None or not n_rows:
        return
    if n_without == n_rows:
        raise UsageError(f"{flag} {name}: no row has such a field, nor in its meta (--keep-meta)")
    if n_without:
        say(f"warning: {flag} {name}: {n_without} of {n_rows} rows have no such field")


def check_output(context: typer.Context, inputs: Sequence[str] = ()) -> None:
    """Before any work is done. Raises UsageError for an output that cannot be, or is an input."""
    wants_json(context)
    check_place(context, inputs)


def check_place(context: typer.Context, inputs: Sequence[str]) -> None:
    """Of -o. Raises UsageError where it is taken, or is one of the inputs."""
    path: Path | None = context.params["output"]
    if path is not None:
        refuse_outputs(path, context.params["force"], inputs)


def refuse_outputs(path: Path, force: bool, inputs: Sequence[str] = ()) -> None:
    """Raises UsageError for a file that is there already, could not be written, or is an input."""
    from seqloss_cli.results.sinks import refuse_to_overwrite

    refuse_to_overwrite(path, force)
    for name in inputs:
        if path.exists() and os.path.exists(name) and path.samefile(name):  # noqa: PTH110
            raise UsageError(f"-o {path} is one of the inputs")


def write_report(
    context: typer.Context, report: dict[str, Any], views: Callable[[], Iterable[RenderableType]]
) -> None:
    """As JSON, or as the views for a person."""
    from seqloss_cli.analysis.json_summaries import summary_bytes
    from seqloss_cli.cli.writers import console
    from seqloss_cli.results.sinks import open_sink

    path: Path | None = context.params["output"]
    as_json = wants_json(context)
    with open_sink(path, context.params["force"], warn=say) as sink:
        if as_json:
            sink.write(summary_bytes(report))
            return
        terminal = console(path, sink)
        for n, view in enumerate(views()):
            if n:
                terminal.print()
            terminal.print(view, crop=False)  # what is too long goes on in the next line


def wants_json(context: typer.Context) -> bool:
    """Raises UsageError when the extension of -o says neither."""
    path: Path | None = context.params["output"]
    if context.params["json"] or path is None or path.suffix == ".txt":
        return bool(context.params["json"])
    if path.suffix == ".json":
        return True
    raise UsageError(f"-o {path}: its extension names no format; use .json or .txt, or say --json")
