"""Each kind of plot drawn on a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from seqloss_cli.plots.calibrations import CalibrationPlot
from seqloss_cli.plots.curves import CurvePlot
from seqloss_cli.plots.groups import GroupsPlot, PositionPlot
from seqloss_cli.plots.histograms import HistogramPlot
from seqloss_cli.plots.scatters import ScatterPlot
from seqloss_cli.plots.style import MUTED, named
from seqloss_cli.scales import SERIES
from seqloss_cli.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = CurvePlot | HistogramPlot | PositionPlot | ScatterPlot | GroupsPlot | CalibrationPlot
MOST_SERIES = len(SERIES)
_MARKERS, _LINES = "osD^vP", ("-", "--", "-.", ":", (0, (4, 1, 1, 1)), (0, (1, 1)))
_MANY_POINTS = 3_000
_UNEVEN = 50
_FEW, _SHORT = 4, 75
"""Series, and letters of all their names, that a legend between the data may have."""


def size_of(plot: Plot) -> tuple[float, float]:
    """Width and height in inches; a column of a paper is 3 to 3.5 wide, a page 5.5 to 7."""
    if isinstance(plot, GroupsPlot):
        return 4.5, 0.85 + len(plot.groups) * (0.14 + 0.1 * len(plot.labels))
    if isinstance(plot, ScatterPlot):
        return 3.6, 3.6
    return (3.6, 4.4) if isinstance(plot, CalibrationPlot) else (4.5, 2.9)


def draw(plot: Plot, figure: Figure) -> None:
    match plot:
        case CurvePlot():
            _draw_curve(plot, figure.subplots())
        case HistogramPlot():
            _draw_histogram(plot, figure.subplots())
        case PositionPlot():
            _draw_positions(plot, figure.subplots())
        case ScatterPlot():
            _draw_scatter(plot, figure.subplots())
        case GroupsPlot():
            _draw_groups(plot, figure.subplots())
        case CalibrationPlot():
            _draw_calibration(plot, figure)


def _draw_curve(plot: CurvePlot, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    known = [(n, p) for n, p in enumerate(plot.points) if p.estimate.value is not None]
    places, points = [n for n, _ in known], [point for _, point in known]
    x = [point.step or 0 for point in points] if plot.by_step else places
    estimates = [point.estimate for point in points]
    line = "-" if plot.by_step else ""
    if plot.by_step and len(x) > 1 and all(e.low is not None for e in estimates):
        low, high = ([getattr(e, end) for e in estimates] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=SERIES[0], alpha=0.2, linewidth=0)
        axes.plot(x, [_value(e) for e in estimates], color=SERIES[0], marker="o")
    else:
        _with_intervals(axes, x, estimates, 0, line)
    axes.set_ylabel(plot.axis)
    if plot.by_step:
        axes.set_xlabel("Training step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        return
    axes.set_xlabel("Checkpoint")
    names = [named(point.label) for point in plot.points]
    crowded = sum(map(len, names)) > 60
    axes.set_xticks(
        range(len(names)), names,
        rotation=30 if crowded else 0, ha="right" if crowded else "center",
    )  # fmt: skip
    axes.set_xlim(-0.5, len(names) - 0.5)


def _draw_histogram(plot: HistogramPlot, axes: Axes) -> None:
    alone = len(plot.series) == 1
    for n, series in enumerate(plot.series):
        shares = [100 * share for share in series.shares]
        mean = "infinite" if series.mean is None else f"{series.mean:.4g}"
        label = f"{named(series.label)} (mean {mean})"
        if alone:
            axes.stairs(shares, plot.edges, fill=True, color=SERIES[n], alpha=0.25, linewidth=0)
        line = _LINES[n]
        axes.stairs(
            shares, plot.edges, baseline=None if not alone else 0, color=SERIES[n],
            linewidth=1.1, linestyle=line, label=label,
        )  # fmt: skip
        if series.mean is not None and series.mean <= plot.edges[-1]:
            axes.axvline(series.mean, color=SERIES[n], linewidth=0.9, linestyle=(0, (2, 2)))
    mean_of_one = plot.series[0].mean if alone else None
    if mean_of_one is not None and mean_of_one <= plot.edges[-1]:
        _beside_line(axes, mean_of_one, plot.edges, f"mean {mean_of_one:.2f}")
    axes.set_xlim(0, plot.edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"Loss of a token ({plot.unit})")
    axes.set_ylabel(f"Tokens (% per {plot.edges[1]:g} {plot.unit})")
    if not alone:
        _legend(axes, "upper right")
    beyond = [series.share_beyond for series in plot.series]
    if any(beyond):
        shown = ", ".join(f"{100 * share:.3g} %" for share in beyond)
        axes.set_xlabel(f"{axes.get_xlabel()}; beyond: {shown}")
    if mean_of_one is not None and mean_of_one > plot.edges[-1]:
        axes.set_title(f"mean {mean_of_one:.4g}, beyond the axis", fontsize=7, color=SERIES[0])


def _beside_line(axes: Axes, x: float, edges: Sequence[float], text: str) -> None:
    """On the side where there is more room."""
    right = x < edges[-1] / 2
    axes.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), xytext=(4 if right else -4, -2),
        textcoords="offset points", ha="left" if right else "right", va="top", fontsize=7,
        color=SERIES[0],
    )  # fmt: skip


def _draw_positions(plot: PositionPlot, axes: Axes) -> None:
    n_series = len(plot.series)
    for n, series in enumerate(plot.series):
        known = [p for p in series.positions if p.mean_loss.value is not None]
        aside = 2 ** (0.08 * (n - (n_series - 1) / 2))
        x = [math.sqrt(p.first * p.last) * aside for p in known]
        _with_intervals(axes, x, [p.mean_loss for p in known], n, "-", named(series.label))
    last = max(p.last for series in plot.series for p in series.positions)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.8, last * 1.1)
    axes.xaxis.set_major_formatter(lambda position, _: f"{position:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("Position in the sequence (tokens; bins double)")
    axes.set_ylabel(plot.axis)
    if n_series > 1:
        _legend(axes, "best")


def _draw_scatter(plot: ScatterPlot, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    lowest, highest = min(*plot.first, *plot.second), max(*plot.first, *plot.second)
    edge = 0.04 * (highest - lowest) or 0.5
    limits = (lowest - edge, highest + edge)
    axes.plot(limits, limits, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    many = len(plot.first) > _MANY_POINTS
    axes.scatter(
        plot.first, plot.second, s=3 if many else 11, alpha=0.25 if many else 0.6,
        color=SERIES[0], linewidths=0, rasterized=many, zorder=2,
    )  # fmt: skip
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    a, b = (named(label) for label in plot.labels)
    axes.set_xlabel(f"Loss under A ({plot.unit})\nA = {a}")
    axes.set_ylabel(f"B = {b}\nLoss under B ({plot.unit})")
    ties = f"\n{plot.n_tied:,} tied" if plot.n_tied else ""
    for text, x, y, left in (
        (f"B higher: {plot.n_higher:,} of {plot.n:,} {plot.of}s", 0.02, 0.98, True),
        (f"B lower: {plot.n_lower:,} of {plot.n:,}{ties}", 0.98, 0.02, False),
    ):
        axes.text(
            x, y, text, transform=axes.transAxes, fontsize=7, color=MUTED,
            ha="left" if left else "right", va="top" if left else "bottom",
        )  # fmt: skip


def _draw_groups(plot: GroupsPlot, axes: Axes) -> None:
    n_series = len(plot.labels)
    thick = 0.78 / n_series
    for n, label in enumerate(plot.labels):
        rows = [(y, bar.estimates[n]) for y, bar in enumerate(plot.groups)]
        known = [(y, e) for y, e in rows if e is not None and e.value is not None]
        y = [place + (n - (n_series - 1) / 2) * thick for place, _ in known]
        values = [_value(e) for _, e in known]
        reach = _reach([e for _, e in known])
        axes.barh(
            y, values, thick, color=SERIES[n], label=named(label), alpha=0.85,
            xerr=reach, error_kw={"ecolor": "#202020", "elinewidth": 0.8, "capsize": 1.5},
        )  # fmt: skip
    names = [
        f"{'(none)' if bar.value is None else named(str(bar.value))} ({bar.n_documents:,})"
        for bar in plot.groups
    ]
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(plot.axis)
    axes.annotate(
        f"{named(plot.by)} (documents)", (0, 1), xycoords="axes fraction", xytext=(-6, 3),
        textcoords="offset points", ha="right", va="bottom", fontsize=7, color=MUTED,
    )  # fmt: skip
    if n_series > 1:
        _legend(axes, None)


def _draw_calibration(plot: CalibrationPlot, figure: Figure) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    most, least = 0, math.inf
    for n, series in enumerate(plot.series):
        filled = [each for each in series.bins if each.confidence is not None]
        error = f"ECE {series.expected_calibration_error:.3f}"
        label = error if len(plot.series) == 1 else f"{named(series.label)} ({error})"
        estimates = [each.accuracy for each in filled if each.accuracy is not None]
        _with_intervals(above, [each.confidence or 0 for each in filled], estimates, n, "-", label)
        counts = [each.n_tokens for each in series.bins]
        edges = [series.bins[0].low, *(each.high for each in series.bins)]
        below.stairs(
            counts, edges, fill=len(plot.series) == 1, color=SERIES[n], linewidth=1,
            linestyle=_LINES[n],
        )  # fmt: skip
        most, least = max(most, *counts), min([least, *filter(None, counts)])
    above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="Favourite is right (share of tokens)")
    _legend(above, "upper left")
    below.set_xlabel("Probability of the model's favourite")
    below.set_ylabel("Tokens")
    if most > _UNEVEN * least:
        below.set_yscale("log")
        below.set_ylim(bottom=max(0.5, least / 2))
    else:
        below.set_ylim(bottom=0)
    below.minorticks_off()
    below.yaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")


def _legend(axes: Axes, place: Literal["best", "upper left", "upper right"] | None) -> None:
    """Inside where that is small, else (or without a place) above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if place is not None and len(labels) <= _FEW and sum(map(len, labels)) <= _SHORT:
        axes.legend(handles, labels, loc=place)
        return
    columns = 1 if max(map(len, labels)) > _SHORT // 3 else min(3, len(labels))
    axes.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.01), ncols=columns)


# -- estimates -----------------------------------------------------------------------------------


def _with_intervals(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    n: int,
    line: str,
    label: str | None = None,
) -> None:
    """The series of number `n`, an error bar where there is an interval."""
    axes.errorbar(
        x, [_value(e) for e in estimates], yerr=_reach(estimates), color=SERIES[n],
        marker=_MARKERS[n], linestyle=line, elinewidth=0.9, capsize=1.5, label=label,
    )  # fmt: skip


def _value(estimate: Estimate) -> float:
    return math.nan if estimate.value is None else estimate.value


def _reach(estimates: Iterable[Estimate]) -> list[list[float]]:
    """Below and above the value; not a number where there is no interval: nothing is drawn."""
    found: list[list[float]] = [[], []]
    for e in estimates:
        known = e.value is not None and e.low is not None and e.high is not None
        found[0].append(max(0.0, (e.value or 0) - (e.low or 0)) if known else math.nan)
        found[1].append(max(0.0, (e.high or 0) - (e.value or 0)) if known else math.nan)
    return found
