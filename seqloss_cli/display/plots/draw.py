"""Draw each kind of plot on a figure, from the numbers that `analysis` made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from seqloss_cli.analysis import plot_data
from seqloss_cli.analysis.confidence import CalibrationBin, CalibrationPlot, CalibrationSeries
from seqloss_cli.analysis.joining import RowsUsed
from seqloss_cli.analysis.objective import CurvePlot
from seqloss_cli.display import plots as style
from seqloss_cli.display.scales import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = (
    CurvePlot | plot_data.HistogramPlot | plot_data.PositionPlot
    | plot_data.ScatterPlot | plot_data.GroupsPlot | CalibrationPlot
)  # fmt: skip
_MANY_POINTS = 3_000
_ABREAST = 60
"""Letters that fit below an axis."""
_UNEVEN = 50
"""Above this ratio of the highest to the lowest bar, heights are on a logarithmic scale."""


def size_of(plot: Plot) -> tuple[float, float]:
    """Return width and height in inches; a paper's column is 3 to 3.5 wide, a page 5.5 to 7."""
    kind = _KINDS[plot.kind]
    (width, height), labels = kind.size(plot), kind.labels(plot)
    return width, height + (style.legend_height(labels, width) if labels else 0.0)


def draw(plot: Plot, figure: Figure) -> None:
    """Draw the plot on an empty figure."""
    kind = _KINDS[plot.kind]
    kind.draw(plot, figure.subplots(**kind.grid))


def _draw_curve(plot: CurvePlot, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    estimates = [point.estimate for point in plot.points]
    x = [(p.step or 0) if plot.by_step else n for n, p in enumerate(plot.points)]
    if plot.by_step and len(x) > 1 and all(e.low is not None for e in estimates):
        low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=SERIES[0], alpha=0.2, linewidth=0)
        axes.plot(x, [style.value_of(e) for e in estimates], color=SERIES[0], marker="o")
    else:  # a band would hide the interval of a point that stands alone
        style.draw_series(axes, x, estimates, 0, "-" if plot.by_step else "")
    if plot.rows is not None and plot.rows.n_missing:
        style.remark(axes, _rows_taken(plot.rows))
    axes.set_ylabel(plot.axis)
    if plot.by_step:
        axes.set_xlabel("Training step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        return
    axes.set_xlabel("Checkpoint")
    names = [style.label_text(point.label) for point in plot.points]
    crowded = _crowded(plot)
    axes.set_xticks(
        range(len(names)), names,
        rotation=30 if crowded else 0, ha="right" if crowded else "center",
    )  # fmt: skip
    axes.set_xlim(-0.5, len(names) - 0.5)


def _crowded(plot: CurvePlot) -> bool:
    """Tell whether the checkpoints' names are too long to stand side by side."""
    return sum(len(style.label_text(point.label)) for point in plot.points) > _ABREAST


def _rows_taken(rows: RowsUsed) -> str:
    return f"{rows.n_used:,} documents; {rows.n_missing:,} rows left out"


def _draw_histogram(plot: plot_data.HistogramPlot, axes: Axes) -> None:
    alone, last, mean = len(plot.series) == 1, plot.edges[-1], plot.series[0].mean
    for n, series in enumerate(plot.series):
        shares = [100 * share for share in series.shares]
        if alone:
            axes.stairs(shares, plot.edges, fill=True, color=SERIES[n], alpha=0.25, linewidth=0)
        axes.stairs(
            shares, plot.edges, baseline=None if not alone else 0, color=SERIES[n],
            linewidth=1.1, linestyle=style.LINES[n], label=_with_mean(series),
        )  # fmt: skip
        # beyond the last edge a line would stretch the axis
        if series.mean is not None and series.mean <= last:
            axes.axvline(series.mean, color=SERIES[n], linewidth=0.9, linestyle=(0, (2, 2)))
    beyond = [series.share_beyond for series in plot.series]
    shown = ", ".join(f"{100 * share:.3g} %" for share in beyond)
    axes.set_xlim(0, last)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"Loss of a token ({plot.unit}){f'; beyond: {shown}' if any(beyond) else ''}")
    axes.set_ylabel(f"Tokens (% per {plot.edges[1]:g} {plot.unit})")
    if not alone:
        style.legend(axes)
    elif mean is not None and mean > last:
        style.remark(axes, f"mean {mean:.4g}, beyond the axis")
    elif mean is not None:
        _above_line(axes, mean, plot.edges, f"mean {mean:.4g}")


def _with_mean(series: plot_data.HistogramSeries) -> str:
    mean = "infinite" if series.mean is None else f"{series.mean:.4g}"
    return f"{style.label_text(series.label)} (mean {mean})"


def _above_line(axes: Axes, x: float, edges: Sequence[float], text: str) -> None:
    """Put a text beyond the axes, where no data is, on the side where more room is."""
    right = x < edges[-1] / 2
    axes.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), xytext=(-3 if right else 3, 2),
        textcoords="offset points", ha="left" if right else "right", va="bottom", fontsize=7,
        color=SERIES[0],
    )  # fmt: skip


def _draw_positions(plot: plot_data.PositionPlot, axes: Axes) -> None:
    n_series = len(plot.series)
    for n, series in enumerate(plot.series):
        # bins that no document reaches, or that hold an infinite loss, break the line
        by_first = {p.first: p.mean_loss for p in series.positions}
        firsts = [1 << k for k in range(max(by_first).bit_length())]
        aside = 2 ** (0.08 * (n - (n_series - 1) / 2))
        # the middle of a bin on the logarithmic axis
        x = [math.sqrt(first * (2 * first - 1)) * aside for first in firsts]
        estimates = [by_first.get(first, style.GAP) for first in firsts]
        style.draw_series(axes, x, estimates, n, "-", style.label_text(series.label))
    last = max(p.last for series in plot.series for p in series.positions)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.8, last * 1.1)
    axes.xaxis.set_major_formatter(lambda position, _: f"{position:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("Position in the sequence (tokens; bins double)")
    axes.set_ylabel(plot.axis)
    if n_series > 1:
        style.legend(axes)


def _draw_scatter(plot: plot_data.ScatterPlot, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    lowest, highest = min(*plot.first, *plot.second), max(*plot.first, *plot.second)
    # where all points are one, the axis still needs a length
    edge = 0.04 * (highest - lowest) or 0.5
    limits = (lowest - edge, highest + edge)
    axes.plot(limits, limits, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    # thousands of points as shapes make a file of megabytes: they become one picture
    many = len(plot.first) > _MANY_POINTS
    axes.scatter(
        plot.first, plot.second, s=3 if many else 11, alpha=0.25 if many else 0.6,
        color=SERIES[0], linewidths=0, rasterized=many, zorder=2,
    )  # fmt: skip
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    a, b = (style.label_text(label) for label in plot.labels)
    axes.set_xlabel(f"Loss under A ({plot.unit})\nA = {a}")
    axes.set_ylabel(f"B = {b}\nLoss under B ({plot.unit})")
    style.remark(axes, "\n".join(_who_is_lower(plot)))


def _who_is_lower(plot: plot_data.ScatterPlot) -> Iterator[str]:
    if plot.rows.n_missing:
        yield _rows_taken(plot.rows)
    yield f"B is higher on {plot.n_higher:,} of {plot.n:,} {plot.of}s,"
    ties = f", tied on {plot.n_tied:,}" if plot.n_tied else ""
    yield f"lower on {plot.n_lower:,}{ties}"


def _draw_groups(plot: plot_data.GroupsPlot, axes: Axes) -> None:
    n_series = len(plot.labels)
    thick = 0.78 / n_series
    for n, label in enumerate(plot.labels):
        rows = [(y, bar.estimates[n]) for y, bar in enumerate(plot.groups)]
        known = [(y, e) for y, e in rows if e is not None and e.value is not None]
        y = [place + (n - (n_series - 1) / 2) * thick for place, _ in known]
        values = [style.value_of(e) for _, e in known]
        reach = style.reach_of([e for _, e in known])
        axes.barh(
            y, values, thick, color=SERIES[n], label=style.label_text(label), alpha=0.85,
            xerr=reach, error_kw={"ecolor": "#202020", "elinewidth": 0.8, "capsize": 1.5},
        )  # fmt: skip
    names = [_name_of_group(bar) for bar in plot.groups]
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first group on top
    axes.set_xlim(left=0)
    axes.set_xlabel(plot.axis)
    axes.annotate(
        f"{style.label_text(plot.by)} (documents)", (0, 0), xycoords="axes fraction",
        xytext=(-9, -5), textcoords="offset points", ha="right", va="top", fontsize=7,
        color=style.MUTED,
    )  # fmt: skip
    if n_series > 1:
        style.legend(axes)


def _name_of_group(bar: plot_data.GroupBar) -> str:
    """Return its value, and the documents of each series: one count where they are equal."""
    name = "(none)" if bar.value is None else style.label_text(str(bar.value))
    least, most = min(bar.n_documents), max(bar.n_documents)
    return f"{name} ({least:,})" if least == most else f"{name} ({least:,} to {most:,})"


def _draw_calibration(plot: CalibrationPlot, axes: Sequence[Axes]) -> None:
    above, below = axes
    above.plot((0, 1), (0, 1), color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    alone = len(plot.series) == 1
    for n, series in enumerate(plot.series):
        # an empty bin breaks the line, in its middle
        x = [(b.low + b.high) / 2 if b.confidence is None else b.confidence for b in series.bins]
        estimates = [style.GAP if each.accuracy is None else each.accuracy for each in series.bins]
        style.draw_series(above, x, estimates, n, "-", _name_with_error(series, alone))
        edges = [series.bins[0].low, *(each.high for each in series.bins)]
        below.stairs(
            [_height(plot, each, series.n_tokens) for each in series.bins], edges,
            fill=alone, color=SERIES[n], linewidth=1, linestyle=style.LINES[n],
        )  # fmt: skip
    above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="Favourite is right\n(share of tokens)")
    style.legend(above)
    below.set_xlabel("Probability of the model's favourite")
    _scale_of_heights(plot, below)


def _name_with_error(series: CalibrationSeries, alone: bool) -> str:
    error = series.expected_calibration_error
    figures = f"ECE {error.value:.3f}"
    if error.low is not None and error.high is not None:
        figures += f" [{error.low:.3f}, {error.high:.3f}]"
    return figures if alone else f"{style.label_text(series.label)}\n{figures}"


def _height(plot: CalibrationPlot, each: CalibrationBin, n_tokens: int) -> float:
    """Return the tokens of a bin; their density where bins are of unequal width."""
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


class _Kind(NamedTuple):
    """Functions that draw a kind of plot on axes, and give its size in inches and its legend."""

    draw: Callable[[Any, Any], None]
    size: Callable[[Any], tuple[float, float]] = lambda _: (4.5, 2.9)
    labels: Callable[[Any], list[str]] = lambda _: []
    grid: Mapping[str, Any] = {}
    """Several axes."""


def _labels(plot: Any) -> list[str]:
    return [style.label_text(series.label) for series in plot.series]


_KINDS = {
    "curve": _Kind(_draw_curve, lambda p: (4.5, 3.7 if not p.by_step and _crowded(p) else 2.9)),
    "histogram": _Kind(_draw_histogram, labels=lambda p: [_with_mean(each) for each in p.series]),
    "position": _Kind(_draw_positions, labels=_labels),
    "scatter": _Kind(_draw_scatter, lambda _: (3.6, 3.75)),
    "groups": _Kind(
        _draw_groups,
        lambda p: (4.5, 0.85 + len(p.groups) * (0.14 + 0.1 * len(p.labels))),
        lambda p: [style.label_text(label) for label in p.labels],
    ),
    "calibration": _Kind(
        _draw_calibration,
        lambda _: (3.6, 4.4),
        lambda p: [_name_with_error(each, len(p.series) == 1) for each in p.series],
        {"nrows": 2, "sharex": True, "height_ratios": (4, 1)},
    ),
}
