"""The colours of the fixed scales on a given terminal, or marks where it shows none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console
from rich.style import Style

from seqloss_cli.display.scales import (
    DIFFERENCE_EDGES,
    DIVERGING,
    LOSS_EDGES,
    SEQUENTIAL,
    Paint,
    Theme,
    step_of,
)

DIM = Style(dim=True)
_LIGHT_GROUNDS = {"7", *map(str, range(9, 16))}
"""Of the 16 colours, as COLORFGBG numbers them."""

# Entries of the 256 and of the 16 colours for each step: background, text, and whether it is
# underlined. Nearest colours are not good enough for either: steps would fall together, or on the
# ground. Of the 16, which every terminal paints in its own way, these keep their order of lightness
# in the palettes that are common; the outermost difference is told by its underline.
_Entry = tuple[int, int, bool] | None
_BLACK, _WHITE = 16, 231
_SEQUENTIAL_256: Mapping[Theme, Sequence[_Entry]] = {
    "light": (
        None,
        *((n, _BLACK, False) for n in (223, 215, 173, 166)),
        *((n, _WHITE, False) for n in (130, 88)),
    ),
    "dark": (
        None,
        *((n, _WHITE, False) for n in (236, 58, 94)),
        *((n, _BLACK, False) for n in (136, 179, 221)),
    ),
}
_DIVERGING_256: Mapping[Theme, Sequence[_Entry]] = {
    "light": (
        (25, _WHITE, False),
        *((n, _BLACK, False) for n in (68, 110, 189)),
        None,
        *((n, _BLACK, False) for n in (223, 215, 173)),
        (130, _WHITE, False),
    ),
    "dark": (
        *((n, _BLACK, False) for n in (117, 68)),
        *((n, _WHITE, False) for n in (25, 18)),
        None,
        *((n, _WHITE, False) for n in (52, 94)),
        *((n, _BLACK, False) for n in (172, 221)),
    ),
}
_SEQUENTIAL_16: Mapping[Theme, Sequence[_Entry]] = {
    "light": (
        None,
        (11, 0, False),
        (7, 0, False),
        (3, 0, False),
        (5, 15, False),
        (4, 15, False),
        (0, 15, True),
    ),
    "dark": (
        None,
        (4, 15, False),
        (5, 15, False),
        (3, 0, False),
        (7, 0, False),
        (11, 0, False),
        (15, 0, True),
    ),
}
_DIVERGING_16: Mapping[Theme, Sequence[_Entry]] = {
    "light": (
        (4, 15, True),
        (4, 15, False),
        (6, 0, False),
        (14, 0, False),
        None,
        (11, 0, False),
        (3, 0, False),
        (1, 15, False),
        (1, 15, True),
    ),
    "dark": (
        (14, 0, True),
        (14, 0, False),
        (6, 0, False),
        (4, 15, False),
        None,
        (1, 15, False),
        (3, 0, False),
        (11, 0, False),
        (11, 0, True),
    ),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """Steps of a figure, and what they look like."""

    edges: Sequence[float]
    true_colours: Mapping[Theme, Sequence[Paint]]
    entries_256: Mapping[Theme, Sequence[_Entry]]
    entries_16: Mapping[Theme, Sequence[_Entry]]
    marks: str = "012345678"
    """Of each step, where there are no colours."""

    def labels(self, factor: float = 1.0) -> list[str]:
        """`below 0.5`, `0.5 to 1`, …, `10 or more`; edges are multiplied by the factor."""
        shown = [f"{edge * factor:.3g}" for edge in self.edges]
        between = (f"{a} to {b}" for a, b in pairwise(shown))
        return [f"below {shown[0]}", *between, f"{shown[-1]} or more"]


LOSSES = Scale(LOSS_EDGES, SEQUENTIAL, _SEQUENTIAL_256, _SEQUENTIAL_16)
DIFFERENCES = Scale(DIFFERENCE_EDGES, DIVERGING, _DIVERGING_256, _DIVERGING_16)
COUNTS = Scale(
    edges=(),
    true_colours={theme: [paints[2]] for theme, paints in DIVERGING.items()},
    entries_256={"light": [(110, _BLACK, False)], "dark": [(25, _WHITE, False)]},
    entries_16={"light": [(14, 0, False)], "dark": [(4, 15, False)]},
    marks="+",
)
"""Of one step, whatever the value: a token counts, or has none. The blue is of the differences, so
that it is not taken for a loss."""


class Palette:
    """A scale on a console."""

    def __init__(self, console: Console, scale: Scale, theme: Theme) -> None:
        self.scale = scale
        self.marks = console.color_system is None or console.no_color
        self.styles = _styles(console.color_system, scale, theme)

    def step(self, value: float | None) -> int | None:
        return None if value is None else step_of(value, self.scale.edges)

    def style(self, value: float | None) -> Style:
        """Of a token: dim where it has no value, which is to be seen."""
        step = self.step(value)
        if step is None:
            return DIM
        return Style.null() if self.marks else self.styles[step]

    def mark(self, value: float | None) -> str:
        step = self.step(value)
        return "-" if step is None else self.scale.marks[step]


def choose_theme(wanted: str, colorfgbg: str | None) -> tuple[Theme, str]:
    """From `light`, `dark` or `auto`: the theme, and what is to be said of it. Terminals that set
    COLORFGBG put their background last."""
    if wanted != "auto":
        return ("light" if wanted == "light" else "dark"), "--theme"
    if colorfgbg:
        light = colorfgbg.rpartition(";")[2] in _LIGHT_GROUNDS
        return ("light" if light else "dark"), "by COLORFGBG; --theme says otherwise"
    return "dark", "--theme light for a light one"


def _styles(system: str | None, scale: Scale, theme: Theme) -> list[Style]:
    if system == "truecolor":
        return [Style(color=p.text, bgcolor=p.background) for p in scale.true_colours[theme]]
    entries = (scale.entries_256 if system == "256" else scale.entries_16)[theme]
    return [Style.null() if entry is None else _style(*entry) for entry in entries]


def _style(background: int, text: int, underlined: bool) -> Style:
    return Style(
        color=f"color({text})", bgcolor=f"color({background})", underline=underlined or None
    )
