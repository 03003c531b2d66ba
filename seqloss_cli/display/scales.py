"""What colours and marks stand for: fixed steps of loss, of differences, of ranks.

The steps are the same in every view and for every text, so that two pictures can be compared. Their
colours go from pale to dark on a light ground, from dark to bright on a dark one: lightness alone
tells them apart, hue (white to brown; blue against orange) helps those who see it, and pairs that
people confuse, such as red and green, are never used.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Theme = Literal["light", "dark"]

LOSS_EDGES = (0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
"""Nats: step 0 is below the first, step 6 from the last on. As probabilities: 0.61, 0.37, 0.14,
0.018, 0.0009, 0.00005. Entropies have the same."""
DIFFERENCE_EDGES = (-4.0, -2.0, -1.0, -0.25, 0.25, 1.0, 2.0, 4.0)
"""Nats, B less A: step 4 is about the same, steps below it are where B is better."""
KL_EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Nats of KL(gold ‖ model): half a power of ten each, since what a quantised model loses and what
an unfinished one lacks are powers of ten apart. The colours are those of losses."""
RANK_EDGES = (2, 11, 101, 1001)
"""Step 0 is the model's favourite, then ranks to 10, to 100, to 1000, and beyond."""


@dataclass(frozen=True, slots=True)
class Paint:
    """A background and a text colour, `#rrggbb`; None where the terminal's or page's own stay."""

    background: str | None
    text: str | None


PLAIN = Paint(None, None)
SEQUENTIAL: dict[Theme, tuple[Paint, ...]] = {
    "light": (
        PLAIN,
        Paint("#fceac6", "#000000"),
        Paint("#f9d596", "#000000"),
        Paint("#f5b465", "#000000"),
        Paint("#e58a3c", "#000000"),
        Paint("#b4501a", "#ffffff"),
        Paint("#77270a", "#ffffff"),
    ),
    "dark": (
        PLAIN,
        Paint("#2c2416", "#ffffff"),
        Paint("#4a3614", "#ffffff"),
        Paint("#744a10", "#ffffff"),
        Paint("#b06c14", "#000000"),
        Paint("#e29431", "#000000"),
        Paint("#ffcf70", "#000000"),
    ),
}
"""For `LOSS_EDGES`, one more than there are edges."""
DIVERGING: dict[Theme, tuple[Paint, ...]] = {
    "light": (
        Paint("#1d5a9e", "#ffffff"),
        Paint("#5f9fd6", "#000000"),
        Paint("#abcfee", "#000000"),
        Paint("#dfecf8", "#000000"),
        PLAIN,
        Paint("#fcead0", "#000000"),
        Paint("#fad09b", "#000000"),
        Paint("#ea9a4c", "#000000"),
        Paint("#a5500f", "#ffffff"),
    ),
    "dark": (
        Paint("#8cc6fa", "#000000"),
        Paint("#4d8cc4", "#000000"),
        Paint("#255a8a", "#ffffff"),
        Paint("#16334e", "#ffffff"),
        PLAIN,
        Paint("#3f2b12", "#ffffff"),
        Paint("#744a10", "#ffffff"),
        Paint("#c47a1e", "#000000"),
        Paint("#ffc766", "#000000"),
    ),
}
"""For `DIFFERENCE_EDGES`."""
RANKED: dict[Theme, tuple[Paint, ...]] = {
    theme: (paints[0], paints[2], paints[3], paints[4], paints[6])
    for theme, paints in SEQUENTIAL.items()
}
"""For `RANK_EDGES`."""

SERIES = ("#1d5a9e", "#e07b1f", "#5b5b5b", "#5fb0e8", "#77270a", "#b9a46a")
"""Lines and bars on white paper, in this order: blue and orange, then what differs from both, and
from each other, in lightness or in how blue it is."""


def step_of(value: float, edges: Sequence[float]) -> int:
    """From 0 to the number of edges; a value at an edge is of the step above it."""
    return bisect_right(edges, value)
