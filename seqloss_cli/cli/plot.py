"""`seqloss plot`: results as figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.failures import REJECTED, say
from seqloss_cli.cli.progress import STATUS
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import PAPER, SHOW, command_record, option, values_of

if TYPE_CHECKING:
    from seqloss_cli.cli.plotting import PlotRequest, PlotResult


PlotKind = Literal["curve", "histogram", "position", "calibration", "scatter", "groups", "roc"]


@command_record
class PlotSettings:
    """The plot, and the sheet that it is drawn on."""

    PANEL = SHOW

    kind: PlotKind | None = option(
        None,
        "By default groups with --by, curve of what objective --json wrote, else histogram "
        "of one file, scatter of two, curve of more.",
    )
    by: str | None = option(
        None, "groups: a row for each value of this field (source, meta.NAME).", metavar="FIELD"
    )
    metric: Literal["mean_loss", "bits_per_byte", "perplexity"] = option(
        "mean_loss", "curve and groups: what is measured."
    )
    level: Literal["sequence", "token"] = option("sequence", "scatter: what a point is.")
    bins: int = option(15, "calibration: how many bins.", min=2, max=1000)
    bins_by: Literal["width", "mass"] = option(
        "width",
        "calibration: bins of equal width, or of equally many tokens (mass), which are "
        "all kept in memory.",
    )
    title: str | None = option(None, "Above the plot; none by default.", panel=PAPER)
    width: float | None = option(None, "Inches; by the kind.", panel=PAPER, min=1, max=50)
    height: float | None = option(None, "Inches; by the kind.", panel=PAPER, min=1, max=50)
    dpi: int = option(300, "Pixels per inch: .png, and scatter.", panel=PAPER, min=30, max=1200)


@o.with_options(
    o.only(r.ResultsArguments, "results"),
    o.only(PlotSettings, "kind", "by", "metric", "level", "bins", "bins_by"),
    o.only(o.ShowSettings, "unit", unit="Unit of losses."),
    o.only(PlotSettings, "title", "width", "height", "dpi"),
    o.only(
        o.OutputSettings,
        "json",
        "output",
        json="Print the numbers; without -o nothing is drawn.",
        output="The plot: .svg, .png or .pdf.",
    ),
    r.INTERVALS,
    o.only(
        r.MembershipSettings,
        "label",
        "min_k",
        "pair",
        label="roc: the field that is 1 or true of members.",
        min_k="roc: percentage of tokens, the least likely, of min_k.",
        pair="roc: the field that a text and its lower case share.",
    ),
    o.only(r.ResultsArguments, "allow_different"),
    o.only(o.OutputSettings, "force"),
    o.CONFIG,
    o.only(o.OtherSettings, "debug"),
)
def plot(ctx: typer.Context) -> None:
    """Plots of results: curves, histograms, positions, calibration, groups, membership.

    Intervals are over documents: those of summarize, and for calibration Wilson's, and a bootstrap
    for its expected error. The same results give the same bytes; the file's metadata names the
    models. Needs the extra `plot`.

    Examples:
        seqloss score samples/texts.jsonl --keep-meta -o results.jsonl
        seqloss plot results.jsonl -o losses.svg
        seqloss plot a.jsonl b.jsonl -o paired.pdf
        seqloss plot results.jsonl --by meta.kind -o groups.png --force
        seqloss plot a.jsonl b.jsonl --kind curve --unit bits --json
        seqloss plot results.jsonl --kind roc --label meta.member -o roc.pdf

    """
    from seqloss_cli.analysis.json_summaries import summary_bytes
    from seqloss_cli.cli.plotting import made_plot, open_source
    from seqloss_cli.results.sinks import open_sink

    results = o.given(ctx, r.ResultsArguments).results
    settings, output = o.given(ctx, PlotSettings), o.given(ctx, o.OutputSettings)
    _check_output(ctx)
    # Only calibration needs the probabilities of the top-1 ids, which take memory and time, and
    # only scores of membership whole rows.
    source = open_source(results, settings.kind == "calibration", settings.kind == "roc")
    kind = _chosen_kind(ctx, settings, source.name, len(results), source.objective is not None)
    made = made_plot(_request(ctx, kind), source)
    if output.output is not None:
        _draw(settings, made, output.output, output.force)
    if output.json:
        STATUS.clear()
        with open_sink(None, force=False) as sink:
            sink.write(summary_bytes(made.report))
    if made.n_unusable:
        raise typer.Exit(REJECTED)


def _check_output(context: typer.Context) -> None:
    """Raises UsageError for a plot that could not be drawn, before any work is done."""
    from seqloss_cli.display.plots import Format, require_matplotlib

    path = o.given(context, o.OutputSettings).output
    if path is None:
        return
    if path.suffix.removeprefix(".") not in get_args(Format):
        raise UsageError(f"-o {path}: its extension names no format of plots: .svg, .png or .pdf")
    r.check_places(context, "output")
    # Numbers take minutes to be made of large files: what they cannot be drawn with shows first.
    require_matplotlib()


def _chosen_kind(
    context: typer.Context, settings: PlotSettings, name: str, n: int, is_objective: bool
) -> PlotKind:
    """Raises UsageError for options that are for other kinds, and for the wrong number of files."""
    from seqloss_cli.cli.conflicts import refuse_conflicts

    kind = settings.kind
    if is_objective and kind not in (None, "curve"):
        raise UsageError(f"{name} is a report of objective, which --kind curve is for, not {kind}")
    if kind is None:
        kind, why = _default_kind(settings.by, n, is_objective)
        say(f"note: --kind {kind}, as {why}")
    # The kind may depend on the files, so these conflicts show only now.
    path = o.given(context, o.OutputSettings).output
    suffix = "" if path is None else path.suffix
    # A report of objective holds many checkpoints: its curve is of one file.
    n_files = 0 if is_objective else n
    refuse_conflicts(context, draws=kind, suffix=suffix, objective=is_objective, n_files=n_files)
    return kind


def _request(context: typer.Context, kind: PlotKind) -> PlotRequest:
    from seqloss_cli.analysis.plot_data import Measure
    from seqloss_cli.analysis.summarize import SummaryOptions
    from seqloss_cli.cli.conflicts import WITH_METRICS
    from seqloss_cli.cli.plotting import PlotRequest

    settings, statistics = o.given(context, PlotSettings), o.given(context, r.StatisticsSettings)
    metric = settings.metric if kind in WITH_METRICS else "mean_loss"
    own = {"by": settings.by, "n_extremes": 0, "bootstrap": 0}
    return PlotRequest(
        kind=kind,
        measure=Measure(metric, o.given(context, o.ShowSettings).unit == "bits"),
        statistics=SummaryOptions(**values_of(statistics) | own),
        of_tokens=settings.level == "token",
        n_bins=settings.bins,
        by_mass=settings.bins_by == "mass",
        allow_different=o.given(context, r.ResultsArguments).allow_different,
        membership=r.membership_options(context),
    )


def _default_kind(by: str | None, n: int, is_objective: bool) -> tuple[PlotKind, str]:
    """The kind without --kind, and the reason for it."""
    if is_objective:
        return "curve", "objective wrote this report"
    if by:
        return "groups", "there is --by"
    if n == 1:
        return "histogram", "there is one file"
    return ("scatter" if n == 2 else "curve"), f"there are {n} files"


def _draw(settings: PlotSettings, made: PlotResult, path: Path, force: bool) -> None:
    from importlib.metadata import version

    from seqloss_cli.display.plots import Paper, file_bytes
    from seqloss_cli.display.plots.draw import draw, size_of
    from seqloss_cli.results.sinks import open_sink

    width, height = size_of(made.plot)
    paper = Paper(settings.width or width, settings.height or height, settings.dpi, settings.title)
    metadata = {
        "title": settings.title or made.title,
        "creator": f"seqloss {version('seqloss')}",
        "description": made.description,
    }
    suffix = path.suffix.removeprefix(".")
    content = file_bytes(lambda figure: draw(made.plot, figure), paper, suffix, metadata, say)  # type: ignore[arg-type]
    with open_sink(path, force, warn=say) as sink:
        sink.write(content)
    say(f"wrote {path}: {made.title}")
