"""Fixed steps of losses, differences, divergences and ranks, the colours that stand for them, and
figures in digits.

The steps are the same in every view and for every text, so that two pictures can be compared. Their
colours go from pale to dark on a light ground, from dark to bright on a dark one: lightness alone
tells them apart, hue (white to brown; blue against orange) helps those who see it, and pairs that
people confuse, such as red and green, are never used.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Theme = Literal["light", "dark"]

LOSS_EDGES = (0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
"""Nats: step 0 is below the first, step 6 from the last on. As probabilities: 0.61, 0.37, 0.14,
0.018, 0.0009, 0.00005. Entropies have the same."""
DIFFERENCE_EDGES = (-4.0, -2.0, -1.0, -0.25, 0.25, 1.0, 2.0, 4.0)
"""Nats, B less A: step 4 is about the same, steps below it are where B is better."""
KL_EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Nats of KL(teacher ‖ model): half a power of ten each, since what a quantised model loses and
what an unfinished one lacks are powers of ten apart. The colours are those of losses."""
RANK_EDGES = (2, 11, 101, 1001)
"""Step 0 is the model's top-1, then ranks to 10, to 100, to 1000, and beyond."""


@dataclass(frozen=True, slots=True)
class Paint:
    """A background and a text colour, `#rrggbb`; None where the terminal's or page's own stay."""

    background: str | None
    text: str | None


PLAIN = Paint(None, None)
_BLACK, _WHITE = "#000000", "#ffffff"


def _paints(text: str, *backgrounds: str) -> list[Paint]:
    return [Paint(background, text) for background in backgrounds]


SEQUENTIAL: dict[Theme, tuple[Paint, ...]] = {
    "light": (
        PLAIN,
        *_paints(_BLACK, "#fceac6", "#f9d596", "#f5b465", "#e58a3c"),
        *_paints(_WHITE, "#b4501a", "#77270a"),
    ),
    "dark": (
        PLAIN,
        *_paints(_WHITE, "#2c2416", "#4a3614", "#744a10"),
        *_paints(_BLACK, "#b06c14", "#e29431", "#ffcf70"),
    ),
}
"""For `LOSS_EDGES`, one more than there are edges."""
DIVERGING: dict[Theme, tuple[Paint, ...]] = {
    "light": (
        *_paints(_WHITE, "#1d5a9e"),
        *_paints(_BLACK, "#5f9fd6", "#abcfee", "#dfecf8"),
        PLAIN,
        *_paints(_BLACK, "#fcead0", "#fad09b", "#ea9a4c"),
        *_paints(_WHITE, "#a5500f"),
    ),
    "dark": (
        *_paints(_BLACK, "#8cc6fa", "#4d8cc4"),
        *_paints(_WHITE, "#255a8a", "#16334e"),
        PLAIN,
        *_paints(_WHITE, "#3f2b12", "#744a10"),
        *_paints(_BLACK, "#c47a1e", "#ffc766"),
    ),
}
"""For `DIFFERENCE_EDGES`."""
RANKED: dict[Theme, tuple[Paint, ...]] = {
    theme: (paints[0], paints[2], paints[3], paints[4], paints[6])
    for theme, paints in SEQUENTIAL.items()
}
"""For `RANK_EDGES`."""

Entry = tuple[int, int, bool] | None
"""Numbers of a background and a text colour in a terminal's palette, and whether it is underlined;
None where its own colours stay."""


def _entries(text: int, *backgrounds: int) -> list[Entry]:
    return [(background, text, False) for background in backgrounds]


# Nearest colours are not good enough for the palettes of 256 and of 16: steps would fall together,
# or on the ground. Entries below 16 are avoided among the 256, since users repaint them.
SEQUENTIAL_256: dict[Theme, list[Entry]] = {
    "light": [None, *_entries(16, 223, 215, 173, 166), *_entries(231, 130, 88)],
    "dark": [None, *_entries(231, 236, 58, 94), *_entries(16, 136, 179, 221)],
}
DIVERGING_256: dict[Theme, list[Entry]] = {
    "light": [
        *(*_entries(231, 25), *_entries(16, 68, 110, 189), None),
        *(*_entries(16, 223, 215, 173), *_entries(231, 130)),
    ],
    "dark": [
        *(*_entries(16, 117, 68), *_entries(231, 25, 18), None),
        *(*_entries(231, 52, 94), *_entries(16, 172, 221)),
    ],
}
# Every terminal paints the 16 in its own way: these keep their order of lightness in the palettes
# that are common. The outermost difference is told by its underline, since no colour is left.
SEQUENTIAL_16: dict[Theme, list[Entry]] = {
    "light": [None, *_entries(0, 11, 7, 3), *_entries(15, 5, 4), (0, 15, True)],
    "dark": [None, *_entries(15, 4, 5), *_entries(0, 3, 7, 11), (15, 0, True)],
}
DIVERGING_16: dict[Theme, list[Entry]] = {
    "light": [
        *((4, 15, True), *_entries(15, 4), *_entries(0, 6, 14), None),
        *(*_entries(0, 11, 3), *_entries(15, 1), (1, 15, True)),
    ],
    "dark": [
        *((14, 0, True), *_entries(0, 14, 6), *_entries(15, 4), None),
        *(*_entries(15, 1), *_entries(0, 3, 11), (11, 0, True)),
    ],
}

SERIES = ("#1d5a9e", "#e07b1f", "#5b5b5b", "#5fb0e8", "#77270a", "#b9a46a")
"""Lines and bars on white paper, in this order: blue and orange, then what differs from both, and
from each other, in lightness or in how blue it is."""


def step_of(value: float, edges: Sequence[float]) -> int:
    """Return a step from 0 to the number of edges; a value at an edge is of the step above it."""
    return bisect_right(edges, value)


_LEAST_DIGITS = 7
"""Digits that a large figure keeps: a total of many losses would say little with four."""


def number(value: float, digits: int) -> str:
    """Return a figure with fixed decimals, in groups of three digits.

    Of large ones decimals are left out beyond seven digits in all; from a thousand millions on, and
    of what would be all zeros, it is in powers of ten.
    """
    size = abs(value)
    if 0 < size < 10**-digits:
        return f"{value:.4g}"
    if 1e9 <= size < math.inf:
        return f"{value:.{_LEAST_DIGITS - 1}e}"
    return f"{value:,.{_fewer(size, digits)}f}"


def _fewer(size: float, digits: int) -> int:
    whole = len(str(int(size))) if 1 <= size < math.inf else 0
    return max(0, min(digits, _LEAST_DIGITS - whole)) if whole else digits


def decimals(values: Iterable[float | None], digits: int) -> int:
    """Return how many decimals to show alike for a figure and its interval, or for a column.

    So many that the largest has three digits that count, at least `digits` where it is not large.
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    size = max(sizes, default=0.0)
    # what is nearly 0 is better told in powers of ten
    if size >= 1 or size < 1e-6:
        return _fewer(size, digits)
    return max(digits, 2 - math.floor(math.log10(size)))


def count_of(n: int, noun: str) -> str:
    """Return `1 token`, `2 tokens`, `12,345 tokens`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
