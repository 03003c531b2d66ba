"""Draw each kind of plot on a figure, from the numbers that `analysis` made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from seqloss_cli.analysis import plot_data
from seqloss_cli.analysis.confidence import CalibrationBin, CalibrationPlot, CalibrationSeries
from seqloss_cli.analysis.joining import RowsUsed
from seqloss_cli.analysis.membership import RocPlot, RocSeries
from seqloss_cli.analysis.objective import CurvePlot
from seqloss_cli.display import plots as style
from seqloss_cli.display.scales import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = (
    CurvePlot | plot_data.HistogramPlot | plot_data.PositionPlot
    | plot_data.ScatterPlot | plot_data.GroupsPlot | CalibrationPlot | RocPlot
)  # fmt: skip
_MANY_POINTS = 3_000
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

    if plot.rows is not None and plot.rows.n_missing:
        style.remark(axes, _rows_taken(plot.rows))
    if not plot.by_step:
        _draw_names(plot, axes)
        return
    estimates = [point.estimate for point in plot.points]
    x = [point.step or 0 for point in plot.points]
    if len(x) > 1 and all(e.low is not None for e in estimates):
        low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=SERIES[0], alpha=0.2, linewidth=0)
        axes.plot(x, [style.value_of(e) for e in estimates], color=SERIES[0], marker="o")
    else:  # a band would hide the interval of a point that stands alone
        style.draw_series(axes, x, estimates, 0, "-")
    axes.set_ylabel(plot.axis)
    axes.set_xlabel("Training step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")


def _draw_names(plot: CurvePlot, axes: Axes) -> None:
    """Draw a dot for each checkpoint: names without steps are in no order that a line could be."""
    estimates = [point.estimate for point in plot.points]
    style.draw_dots(axes, range(len(estimates)), estimates, 0)
    _name_rows(axes, [style.label_text(point.label) for point in plot.points])
    axes.set_xlabel(plot.axis)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Put names beside the rows of a plot, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _rows_taken(rows: RowsUsed) -> str:
    return f"{rows.n_used:,} documents; {rows.n_missing:,} rows left out"


def _draw_histogram(plot: plot_data.HistogramPlot, axes: Axes) -> None:
    alone, last = len(plot.series) == 1, plot.edges[-1]
    for n, series in enumerate(plot.series):
        shares = [100 * share for share in series.shares]
        if alone:
            axes.stairs(shares, plot.edges, fill=True, color=SERIES[n], alpha=0.25, linewidth=0)
        axes.stairs(
            shares, plot.edges, baseline=None if not alone else 0, color=SERIES[n],
            linewidth=1.1, linestyle=style.LINES[n], label=_with_mean(series, last),
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
    style.legend(axes)


def _with_mean(series: plot_data.HistogramSeries, last: float) -> str:
    mean = "infinite" if series.mean is None else f"{series.mean:.4g}"
    beyond = ", beyond the axis" if series.mean is not None and series.mean > last else ""
    return f"{style.label_text(series.label)} (mean {mean}{beyond})"


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
        style.draw_series(axes, x, estimates, n, "-", _with_documents(series))
    last = max(p.last for series in plot.series for p in series.positions)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.8, last * 1.1)
    axes.xaxis.set_major_formatter(lambda position, _: f"{position:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("Position in the sequence (tokens; bins double)")
    axes.set_ylabel(plot.axis)
    style.legend(axes)


def _with_documents(series: plot_data.PositionSeries) -> str:
    """Return the label with how many documents, or clusters of them, the means are over."""
    numbers = [p.mean_loss.n for p in series.positions]
    clusters = any("cluster" in p.mean_loss.method for p in series.positions)
    unit = "cluster" if clusters else "document"
    most, last = max(numbers), numbers[-1]
    said = f"{most:,} {unit}{'s' if most > 1 else ''}"
    if last < most:
        said += f", {last:,} in the last bin"
    return f"{style.label_text(series.label)} ({said})"


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
        estimates, name = [e for _, e in known], style.label_text(label)
        if plot.baseline:  # the length of a bar that does not begin at 0 would mislead
            style.draw_dots(axes, y, estimates, n, name)
            continue
        axes.barh(
            y, [style.value_of(e) for e in estimates], thick, color=SERIES[n], label=name,
            alpha=0.85, xerr=style.reach_of(estimates),
            error_kw={"ecolor": "#202020", "elinewidth": 0.8, "capsize": 1.5},
        )  # fmt: skip
    _name_rows(axes, [_name_of_group(bar) for bar in plot.groups])
    axes.set_xlim(left=plot.baseline)
    begins = f"; the axis begins at {plot.baseline:g}" if plot.baseline else ""
    axes.set_xlabel(f"{plot.axis}{begins}")
    axes.annotate(
        f"{style.label_text(plot.by)} (documents)", (0, 0), xycoords="axes fraction",
        xytext=(-9, -5), textcoords="offset points", ha="right", va="top", fontsize=7,
        color=style.MUTED,
    )  # fmt: skip
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
        style.draw_series(above, x, estimates, n, "-", _name_with_error(series))
        edges = [series.bins[0].low, *(each.high for each in series.bins)]
        below.stairs(
            [_height(plot, each, series.n_tokens) for each in series.bins], edges,
            fill=alone, color=SERIES[n], linewidth=1, linestyle=style.LINES[n],
        )  # fmt: skip
    above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="Favourite is right\n(share of tokens)")
    style.legend(above)
    below.set_xlabel("Probability of the model's favourite")
    _scale_of_heights(plot, below)


def _name_with_error(series: CalibrationSeries) -> str:
    error = series.expected_calibration_error
    figures = f"ECE {error.value:.3f}"
    if error.low is not None and error.high is not None:
        figures += f" [{error.low:.3f}, {error.high:.3f}]"
    return f"{style.label_text(series.label)}\n{figures}"


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
    name = "Tokens" if plot.bins_by == "width" else "Density"
    if most > _UNEVEN * least:
        name += "\n(log scale)"
        below.set_yscale("log")
        below.set_ylim(bottom=least / 2, top=most * 2)
    else:
        below.set_ylim(bottom=0)
    below.set_ylabel(name)
    below.minorticks_off()
    below.yaxis.set_major_formatter(lambda n, _: f"{n:,.0f}" if n >= 1 else f"{n:g}")


def _draw_roc(plot: RocPlot, axes: Axes) -> None:
    # Both axes logarithmic: what counts is how many are found where few are accused wrongly.
    least = 1 / (2 * max(plot.n_members, plot.n_non_members))
    diagonal = (least, 1)
    axes.plot(diagonal, diagonal, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    for n, series in enumerate(plot.series):
        rates = series.false_positive_rates, series.true_positive_rates
        # a rate of 0 has no place on such an axis: it stands at its edge
        x, y = ([max(rate, least) for rate in each] for each in rates)
        axes.plot(
            x, y, color=SERIES[n], linestyle=style.LINES[n], drawstyle="steps-post",
            label=_name_with_area(series),
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=diagonal, ylim=(least, 1.1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")
    axes.set_xlabel(f"False positive rate ({plot.n_non_members:,} non-members)")
    axes.set_ylabel(f"True positive rate ({plot.n_members:,} members)")
    style.legend(axes)


def _name_with_area(series: RocSeries) -> str:
    area = series.auroc
    figures = f"AUROC {area.value:.3f}"
    if area.low is not None and area.high is not None:
        figures += f" [{area.low:.3f}, {area.high:.3f}]"
    return f"{series.label}\n{figures}"


class _Kind(NamedTuple):
    """Functions that draw a kind of plot on axes, and give its size in inches and its legend."""

    draw: Callable[[Any, Any], None]
    size: Callable[[Any], tuple[float, float]] = lambda _: (4.5, 2.9)
    labels: Callable[[Any], list[str]] = lambda _: []
    grid: Mapping[str, Any] = {}
    """Several axes."""


_KINDS = {
    "curve": _Kind(_draw_curve, lambda p: (4.5, 2.9 if p.by_step else 0.85 + 0.24 * len(p.points))),
    "histogram": _Kind(
        _draw_histogram, labels=lambda p: [_with_mean(each, p.edges[-1]) for each in p.series]
    ),
    "position": _Kind(
        _draw_positions, labels=lambda p: [_with_documents(each) for each in p.series]
    ),
    "scatter": _Kind(_draw_scatter, lambda _: (3.6, 3.75)),
    "groups": _Kind(
        _draw_groups,
        lambda p: (4.5, 0.85 + len(p.groups) * (0.14 + 0.1 * len(p.labels))),
        lambda p: [style.label_text(label) for label in p.labels],
    ),
    "calibration": _Kind(
        _draw_calibration,
        lambda _: (3.6, 4.4),
        lambda p: [_name_with_error(each) for each in p.series],
        {"nrows": 2, "sharex": True, "height_ratios": (4, 1)},
    ),
    "roc": _Kind(
        _draw_roc, lambda _: (4.5, 3.4), lambda p: [_name_with_area(each) for each in p.series]
    ),
}
