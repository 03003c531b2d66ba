"""Small figures of losses: by position, and how many tokens are of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rich.style import Style
from rich.text import Text

from seqloss_cli.display.scales import LOSS_EDGES
from seqloss_cli.display.terminal.heat.palette import Palette
from seqloss_cli.display.terminal.heat.signs import Signs

_TOP = LOSS_EDGES[-1]
"""Nats: where a sparkline is full, whatever the text, so that two of them can be compared."""
_LONGEST_BAR, _LEAST_BAR = 40, 4


def sparkline(values: Sequence[float | None], width: int, signs: Signs) -> str:
    """Means of the known values of neighbouring tokens, a cell each; blank where there is none."""
    n_cells = min(len(values), width)
    cells = []
    for n in range(n_cells):
        part = values[n * len(values) // n_cells : (n + 1) * len(values) // n_cells]
        known = [value for value in part if value is not None]
        cells.append(_level(sum(known) / len(known), signs) if known else " ")
    return "".join(cells)


def _level(mean: float, signs: Signs) -> str:
    top = len(signs.levels) - 1
    return signs.levels[top if mean >= _TOP else int(mean / _TOP * top)]


def stretch(values: Sequence[float | None]) -> range:
    """From the first known value to the last."""
    known = [t for t, value in enumerate(values) if value is not None]
    return range(known[0], known[-1] + 1) if known else range(0)


def by_position(
    values: Sequence[float | None], width: int, signs: Signs, unit: str, factor: float, what: str
) -> tuple[str, str]:
    """How a sparkline is to be read, and the line itself; `what` is as far as to the places."""
    places = stretch(values)
    if not places:
        return "", ""
    a_cell = math.ceil(len(places) / width)
    each = f", up to {a_cell} in a cell" if a_cell > 1 else ""
    height = f"{signs.levels[0]} 0, {signs.levels[-1]} {_TOP * factor:.3g} {unit} or more"
    title = f"{what} {places[0]} to {places[-1]}{each}; {height})"
    return title, sparkline(values[places.start : places.stop], width, signs)


def count_steps(values: Iterable[float | None], edges: Sequence[float]) -> list[int]:
    """How many of the values are of each step (`step_of`, all at once)."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    steps = np.searchsorted(np.array(edges), known, side="right")
    return [*map(int, np.bincount(steps, minlength=len(edges) + 1))]


def histogram(
    counts: Sequence[int], palette: Palette, width: int, signs: Signs, factor: float
) -> Iterator[Text]:
    """A bar for each step, with its count and share; its label has the step's colour. Where there
    is no room for both beside each other, the figures stand under it; whoever draws them wraps what
    is still too long."""
    total, most = sum(counts), max(counts)
    if not total:
        return
    labels = palette.scale.labels(factor)
    if palette.marks:
        labels = [f"{n} {label}" for n, label in enumerate(labels)]
    wide = max(map(len, labels)) + 2
    figures = [f"{count:>{len(str(most))}} {100 * count / total:5.1f} %" for count in counts]
    room = min(width - wide - len(figures[0]) - 2, _LONGEST_BAR)
    for n, (label, count, figure) in enumerate(zip(labels, counts, figures, strict=True)):
        style = Style.null() if palette.marks else palette.styles[n]
        if room < -1:
            yield Text(f" {label} ", style)
            yield Text(figure.rjust(min(width, wide)))
            continue
        bar = "" if room < _LEAST_BAR else bar_of(count / most, room, signs).ljust(room)
        yield Text.assemble((f" {label} ".ljust(wide), style), " ", bar, f" {figure}")


def bar_of(share: float, width: int, signs: Signs) -> str:
    """At least a sliver of what is more than nothing."""
    parts = len(signs.bars)
    filled = max(round(share * width * parts), 1 if share else 0)
    whole, rest = divmod(filled, parts)
    return signs.bars[-1] * whole + (signs.bars[rest - 1] if rest else "")
