"""`seqloss plot`: results as figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import reports as r
from seqloss_cli.cli.enums import BinsBy, Metric, PlotKind, PlotLevel, Unit
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.cli.plot_flags import Asked, refuse_idle_flags
from seqloss_cli.core.errors import UsageError

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
                "By default groups with --by, curve of what objective --json wrote, else histogram "
                "of one file, scatter of two, curve of more.",
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
        Annotated[int, o.option(o.SHOW, "--bins", "calibration: how many bins.", min=2, max=1000)],
        15,
    ),
    "bins_by": (
        Annotated[
            BinsBy,
            o.option(
                o.SHOW,
                "--bins-by",
                "calibration: bins of equal width, or of equally many tokens (mass), which are "
                "all kept in memory.",
            ),
        ],
        BinsBy.width,
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
        Annotated[
            int, o.option(PAPER, "--dpi", "Pixels per inch: .png, and scatter.", min=30, max=1200)
        ],
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


@o.with_options(
    PLOT_OPTIONS,
    r.STATISTICS_OPTIONS,
    {name: r.REPORT_OPTIONS[name] for name in ("allow_different", "force", "config", "debug")},
)
def plot(ctx: typer.Context, results: r.Files) -> None:
    """Plots of results: curves over checkpoints, histograms, positions, calibration, groups.

    Intervals are over documents: those of summarize, and for calibration Wilson's, and a bootstrap
    for its expected error. The same results give the same bytes; the file's metadata names the
    models. Needs the extra `plot`.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.plotting import made_plot, open_source

        _check_output(ctx, results)
        source = open_source(results, ctx.params["kind"] is PlotKind.calibration)
        kind = _chosen_kind(ctx, source.name, len(results), source.objective is not None)
        made = made_plot(ctx, kind, source)
        if ctx.params["output"] is not None:
            _draw(ctx, made)
        if ctx.params["json"]:
            _print_numbers(made)
        if made.n_unusable:
            raise typer.Exit(REJECTED)


def _check_output(context: typer.Context, results: list[str]) -> None:
    """Raises UsageError before any work is done."""
    from seqloss_cli.display.plots.style import Format, require_matplotlib

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


def _chosen_kind(context: typer.Context, name: str, n: int, is_objective: bool) -> PlotKind:
    """Raises UsageError for options that are for other kinds, and for the wrong number of files."""
    values = context.params
    kind: PlotKind | None = values["kind"]
    if is_objective and kind not in (None, PlotKind.curve):
        raise UsageError(f"{name} is a report of objective, which --kind curve is for, not {kind}")
    if kind is None:
        kind, why = _default_kind(values["by"], n, is_objective)
        say(f"note: --kind {kind}, as {why}")
    output: Path | None = values["output"]
    extension = "" if output is None else output.suffix
    refuse_idle_flags(context, Asked(kind, values["metric"], extension, n, is_objective))
    if not is_objective:
        _check_number(kind, n)
    if kind is PlotKind.groups and not values["by"]:
        raise UsageError("--by FIELD says which groups the bars are of")
    return kind


def _default_kind(by: str | None, n: int, is_objective: bool) -> tuple[PlotKind, str]:
    """And why it is this one."""
    if is_objective:
        return PlotKind.curve, "objective wrote this report"
    if by:
        return PlotKind.groups, "there is --by"
    if n == 1:
        return PlotKind.histogram, "there is one file"
    return (PlotKind.scatter if n == 2 else PlotKind.curve), f"there are {n} files"


def _check_number(kind: PlotKind, n: int) -> None:
    from seqloss_cli.display.plots.style import MOST_SERIES

    if kind is PlotKind.scatter and n != 2:
        raise UsageError(f"--kind scatter is of two RESULTS files, A and B; {n} given")
    if kind is PlotKind.curve and n < 2:
        raise UsageError(
            "--kind curve needs RESULTS of two checkpoints or more, or what objective --json wrote"
        )
    if kind is not PlotKind.curve and n > MOST_SERIES:
        raise UsageError(f"--kind {kind} shows {MOST_SERIES} RESULTS files at most; {n} given")


def _draw(context: typer.Context, made: Made) -> None:
    from importlib.metadata import version

    from seqloss_cli.display.plots.draw import draw, size_of
    from seqloss_cli.display.plots.style import Paper, file_bytes
    from seqloss_cli.results.sinks import open_sink

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
    content = file_bytes(lambda figure: draw(made.plot, figure), paper, suffix, metadata, say)  # type: ignore[arg-type]
    with open_sink(path, values["force"], warn=say) as sink:
        sink.write(content)


def _print_numbers(made: Made) -> None:
    from seqloss_cli.analysis.json_summaries import summary_bytes
    from seqloss_cli.results.sinks import open_sink

    with open_sink(None, force=False) as sink:
        sink.write(summary_bytes(made.report))
