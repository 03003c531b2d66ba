"""The reliability diagram, and how many tokens it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqloss_cli.display.plots.calibrations import (
    CalibrationBin,
    CalibrationPlot,
    CalibrationSeries,
)
from seqloss_cli.display.plots.marks import GAP, LINES, legend, with_intervals
from seqloss_cli.display.plots.style import MUTED, named
from seqloss_cli.display.scales import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNEVEN = 50


def draw_calibration(plot: CalibrationPlot, figure: Figure) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    alone = len(plot.series) == 1
    for n, series in enumerate(plot.series):
        # an empty bin breaks the line, in its middle
        x = [(b.low + b.high) / 2 if b.confidence is None else b.confidence for b in series.bins]
        estimates = [GAP if each.accuracy is None else each.accuracy for each in series.bins]
        with_intervals(above, x, estimates, n, "-", name_of(series, alone))
        edges = [series.bins[0].low, *(each.high for each in series.bins)]
        below.stairs(
            [_height(plot, each, series.n_tokens) for each in series.bins], edges,
            fill=alone, color=SERIES[n], linewidth=1, linestyle=LINES[n],
        )  # fmt: skip
    above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="Favourite is right\n(share of tokens)")
    legend(above)
    below.set_xlabel("Probability of the model's favourite")
    _scale_of_heights(plot, below)


def name_of(series: CalibrationSeries, alone: bool) -> str:
    error = series.expected_calibration_error
    figures = f"ECE {error.value:.3f}"
    if error.low is not None and error.high is not None:
        figures += f" [{error.low:.3f}, {error.high:.3f}]"
    return figures if alone else f"{named(series.label)}\n{figures}"


def _height(plot: CalibrationPlot, each: CalibrationBin, n_tokens: int) -> float:
    """Tokens; where bins are of unequal width, their density."""
    if plot.bins_by == "width":
        return each.n_tokens
    return each.n_tokens / n_tokens / (each.high - each.low)


def _scale_of_heights(plot: CalibrationPlot, below: Axes) -> None:
    heights = [
        _height(plot, each, series.n_tokens)
        for series in plot.series for each in series.bins if each.n_tokens
    ]  # fmt: skip
    least, most = min(heights), max(heights)
    below.set_ylabel("Tokens" if plot.bins_by == "width" else "Density")
    if most > _UNEVEN * least:
        below.set_yscale("log")
        below.set_ylim(bottom=least / 2, top=most * 2)
    else:
        below.set_ylim(bottom=0)
    below.minorticks_off()
    below.yaxis.set_major_formatter(lambda n, _: f"{n:,.0f}" if n >= 1 else f"{n:g}")
