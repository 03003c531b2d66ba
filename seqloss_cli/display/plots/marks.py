"""What the charts have in common: series with their intervals, and legends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from seqloss_cli.display.plots.style import MUTED
from seqloss_cli.display.scales import SERIES
from seqloss_cli.metrics.statistics import Estimate, unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = ("-", "--", "-.", ":", (0, (4, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "osD^vP"
_LETTERS_PER_INCH, _HANDLE = 15, 6
"""Of a legend's size; and letters that the piece of line before a name takes up."""
_LINE = 0.135
"""Inches."""
GAP = unknown(None, 0, "nothing is there")
"""Among estimates: the line is broken there."""


def legend(axes: Axes) -> None:
    """Above the axes, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    columns = _columns(labels, axes.figure.bbox.width / axes.figure.dpi)
    axes.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1.01), ncols=columns)


def legend_height(labels: Sequence[str], width: float) -> float:
    """Inches that the legend of several series takes, about, in a figure of that width."""
    lines = max(label.count("\n") + 1 for label in labels)
    rows = -(-len(labels) // _columns(labels, width))
    return 0.0 if len(labels) == 1 else _LINE * rows * lines


def _columns(labels: Sequence[str], width: float) -> int:
    longest = max(len(line) for label in labels for line in label.split("\n"))
    return max(1, min(3, len(labels), int(_LETTERS_PER_INCH * width / (longest + _HANDLE))))


def remark(axes: Axes, text: str) -> None:
    """In small letters above the axes, on the right."""
    axes.set_title(text, loc="right", fontsize=7, color=MUTED)


def with_intervals(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    n: int,
    line: str,
    label: str | None = None,
) -> None:
    """The series of number `n`, an error bar where there is an interval."""
    axes.errorbar(
        x, [value_of(e) for e in estimates], yerr=reach_of(estimates), color=SERIES[n],
        marker=_MARKERS[n], linestyle=line, elinewidth=0.9, capsize=1.5, label=label,
    )  # fmt: skip


def value_of(estimate: Estimate) -> float:
    return math.nan if estimate.value is None else estimate.value


def reach_of(estimates: Iterable[Estimate]) -> list[list[float]]:
    """Below and above the value; not a number where there is no interval: nothing is drawn."""
    found: list[list[float]] = [[], []]
    for e in estimates:
        known = e.value is not None and e.low is not None and e.high is not None
        found[0].append(max(0.0, (e.value or 0) - (e.low or 0)) if known else math.nan)
        found[1].append(max(0.0, (e.high or 0) - (e.value or 0)) if known else math.nan)
    return found
