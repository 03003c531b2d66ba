"""`seqloss plot`: results as figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import reports as r
from seqloss_cli.cli.enums import Metric, PlotKind, PlotLevel, Unit
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.cli.plotting import Made

EXAMPLES = (
    "seqloss plot results.jsonl -o losses.svg",
    "seqloss plot a.jsonl b.jsonl -o paired.pdf",
    "seqloss plot results.jsonl --by source -o groups.png --force",
    "seqloss plot a.jsonl b.jsonl --kind curve --unit bits --json",
)
PAPER = "Paper"
PLOT_OPTIONS: o.Group = {
    "kind": (
        Annotated[
            PlotKind | None,
            o.option(
                o.SHOW,
                "--kind",
                "By default groups with --by, else histogram of one file, scatter of two, curve "
                "of more.",
                show_default=False,
            ),
        ],
        None,
    ),
    "by": (
        Annotated[
            str | None,
            o.option(o.SHOW, "--by", "groups: a bar for each value of this field or meta field."),
        ],
        None,
    ),
    "metric": (
        Annotated[Metric, o.option(o.SHOW, "--metric", "curve and groups: what is measured.")],
        Metric.mean_loss,
    ),
    "level": (
        Annotated[PlotLevel, o.option(o.SHOW, "--level", "scatter: what a point is.")],
        PlotLevel.sequence,
    ),
    "bins": (
        Annotated[
            int, o.option(o.SHOW, "--bins", "calibration: bins of equal width.", min=2, max=1000)
        ],
        15,
    ),
    "unit": (Annotated[Unit, o.option(o.SHOW, "--unit", "Unit of losses.")], Unit.nats),
    "title": (
        Annotated[str | None, o.option(PAPER, "--title", "Above the plot; none by default.")],
        None,
    ),
    "width": (
        Annotated[
            float | None,
            o.option(PAPER, "--width", "Inches; by the kind.", min=1, max=50, show_default=False),
        ],
        None,
    ),
    "height": (
        Annotated[
            float | None,
            o.option(PAPER, "--height", "Inches; by the kind.", min=1, max=50, show_default=False),
        ],
        None,
    ),
    "dpi": (
        Annotated[int, o.option(PAPER, "--dpi", "Pixels per inch of a PNG.", min=30, max=1200)],
        300,
    ),
    "json": (
        Annotated[
            bool, o.flag(o.OUTPUT, "--json", "Print the numbers; without -o nothing is drawn.")
        ],
        False,
    ),
    "output": (
        Annotated[
            Path | None,
            o.option(o.OUTPUT, "--output", "The plot: .svg, .png or .pdf.", aliases=("-o",)),
        ],
        None,
    ),
}
_ONLY_FOR = {
    "by": ("groups",),
    "metric": ("curve", "groups"),
    "level": ("scatter",),
    "bins": ("calibration",),
    "unit": ("curve", "histogram", "position", "scatter", "groups"),
    "cluster": ("curve", "position", "groups", "calibration"),
    "confidence": ("curve", "position", "groups", "calibration"),
}


@o.with_options(
    PLOT_OPTIONS,
    r.STATISTICS_OPTIONS,
    {name: r.REPORT_OPTIONS[name] for name in ("allow_different", "force", "config", "debug")},
)
def plot(ctx: typer.Context, results: r.Files) -> None:
    """Plots of results: curves over checkpoints, histograms, positions, calibration, groups.

    Intervals are over documents, as those of summarize. The same results give the same bytes; the
    file's metadata names the models. Needs the extra `plot`.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.plotting import made_plot

        _check_output(ctx, results)
        kind = _chosen_kind(ctx, results)
        made = made_plot(ctx, kind, results)
        if ctx.params["output"] is not None:
            _draw(ctx, made)
        if ctx.params["json"]:
            _print_numbers(made)
        if made.n_unusable:
            raise typer.Exit(REJECTED)


def _check_output(context: typer.Context, results: list[str]) -> None:
    """Raises UsageError before any work is done."""
    from seqloss_cli.plots import require_matplotlib
    from seqloss_cli.plots.style import Format

    path: Path | None = context.params["output"]
    if path is None:
        if context.params["json"]:
            return
        raise UsageError(
            "-o FILE says where the plot goes (.svg, .png, .pdf), --json prints numbers"
        )
    if path.suffix.removeprefix(".") not in get_args(Format):
        raise UsageError(f"-o {path}: its extension names no format of plots: .svg, .png or .pdf")
    r.check_place(context, results)
    require_matplotlib()


def _chosen_kind(context: typer.Context, results: list[str]) -> PlotKind:
    """Raises UsageError for options that are for other kinds."""
    kind: PlotKind | None = context.params["kind"]
    if kind is None and context.params["by"]:
        kind = PlotKind.groups
    elif kind is None:
        kind = {1: PlotKind.histogram, 2: PlotKind.scatter}.get(len(results), PlotKind.curve)
        n = len(results)
        say(f"note: --kind {kind}, as there {'is one file' if n == 1 else f'are {n} files'}")
    for parameter in context.command.params:
        kinds = _ONLY_FOR.get(str(parameter.name))
        source = context.get_parameter_source(str(parameter.name))
        if kinds and kind not in kinds and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{parameter.opts[0]} is for --kind {' and '.join(kinds)}, not {kind}")
    return kind


def _draw(context: typer.Context, made: Made) -> None:
    from importlib.metadata import version

    from seqloss_cli.plots import Paper, draw, drawn, size_of
    from seqloss_cli.writing import open_sink

    values = context.params
    path: Path = values["output"]
    width, height = size_of(made.plot)
    paper = Paper(
        values["width"] or width, values["height"] or height, values["dpi"], values["title"]
    )
    metadata = {
        "title": values["title"] or made.title,
        "creator": f"seqloss {version('seqloss')}",
        "description": made.description,
    }
    suffix = path.suffix.removeprefix(".")
    content = drawn(lambda figure: draw(made.plot, figure), paper, suffix, metadata, say)  # type: ignore[arg-type]
    with open_sink(path, values["force"], warn=say) as sink:
        sink.write(content)


def _print_numbers(made: Made) -> None:
    from seqloss_cli.writing import open_sink
    from seqloss_cli.writing.reports import report_bytes

    with open_sink(None, force=False) as sink:
        sink.write(report_bytes(made.report))
