"""Output of the commands on results: a summary as JSON or for a person, checked beforehand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from seqloss_cli.cli.failures import say
from seqloss_cli.cli.options import given, only
from seqloss_cli.cli.presentation import OutputSettings
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import SHOW, STATISTICS, option, record

if TYPE_CHECKING:
    from rich.console import RenderableType

    from seqloss_cli.analysis.compare import CompareOptions

LEAST_RESAMPLES = 100
"""With fewer, the ends of an interval would be single draws."""


@record
class StatisticsSettings:
    """Intervals of figures, and figures that are listed one by one."""

    cluster: str | None = option(
        None,
        "--cluster",
        STATISTICS,
        "Field (or meta field) that rows share which were not drawn independently.",
    )
    seed: int = option(0, "--seed", STATISTICS, "Of resampling.", min=0)
    confidence: float = option(
        0.95, "--confidence", STATISTICS, "Of the intervals.", min=0.5, max=0.9999
    )
    worst: int = option(10, "--worst", SHOW, "How many extremes are listed.", min=0)
    bootstrap: int = option(2000, "--bootstrap", STATISTICS, "Resamples.", min=LEAST_RESAMPLES)


INTERVALS = only(StatisticsSettings, "cluster", "seed", "confidence")
SUMMARY_OUTPUT = only(
    OutputSettings, "json", "output", "force", output="Write to FILE (.json or .txt)."
)


def comparison_options(context: typer.Context) -> CompareOptions:
    """The settings of a comparison of models."""
    from seqloss_cli.analysis.compare import CompareOptions

    statistics = given(context, StatisticsSettings)
    return CompareOptions(
        n_extremes=statistics.worst,
        bootstrap=statistics.bootstrap,
        seed=statistics.seed,
        cluster=statistics.cluster,
        confidence=statistics.confidence,
    )


def check_output(context: typer.Context, inputs: Sequence[str] = ()) -> None:
    """Raises UsageError, before any work is done, for a format or file that -o is not to have."""
    wants_json(context)
    check_place(context, inputs)


def check_place(context: typer.Context, inputs: Sequence[str]) -> None:
    """Raises UsageError where -o names a file that is taken or is one of the inputs."""
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


def write_summary(
    context: typer.Context, report: dict[str, Any], views: Callable[[], Iterable[RenderableType]]
) -> None:
    """Write it to -o or stdout, as JSON or as the views for a person."""
    from seqloss_cli.analysis.json_summaries import summary_bytes
    from seqloss_cli.cli.output import console
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
            # rich would cut what is too long off: it is to go on in the next line
            terminal.print(view, crop=False)


def wants_json(context: typer.Context) -> bool:
    """--json, or a file of that name. Raises UsageError when the extension of -o says neither."""
    path: Path | None = context.params["output"]
    if context.params["json"] or path is None or path.suffix == ".txt":
        return bool(context.params["json"])
    if path.suffix == ".json":
        return True
    raise UsageError(f"-o {path}: its extension names no format; use .json or .txt, or say --json")
