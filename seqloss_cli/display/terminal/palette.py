"""The fixed scales on a given terminal: its colours or marks, its characters, and small figures.

Where colours can be shown, a step of a scale is a background; elsewhere it is a mark, its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console
from rich.style import Style

from seqloss_cli.analysis.histograms import means_of_neighbours
from seqloss_cli.core.escaping import WHITE_SPACE
from seqloss_cli.display import scales
from seqloss_cli.display.terminal.formatting import Unit

DIM = Style(dim=True)
_UNDERLINED, _OVERLINED = Style(underline=True), Style(overline=True)
# 8, bright black, is dark. Some terminals write "default" in place of a number: taken for dark.
_LIGHT_GROUNDS = {"7", *map(str, range(9, 16))}
"""Numbers of light colours among the 16, as COLORFGBG writes them."""
FULL_LOSS = scales.LOSS_EDGES[-1]
"""Nats: where a sparkline is full, whatever the text, so that two of them can be compared."""


@dataclass(frozen=True, slots=True)
class Charset:
    """Characters that figures are made of, and that make white space visible."""

    levels: str
    """Heights of a sparkline, lowest first."""
    bars: str
    """Parts of a bar's last cell, thinnest first; the last one is a full cell."""
    fold: str
    """Begins a note of what is left out."""
    white_space: Mapping[str, str]
    """Signs that make white space visible."""


UNICODE = Charset("▁▂▃▄▅▆▇█", "▏▎▍▌▋▊▉█", "⋮", WHITE_SPACE)
ASCII = Charset("_.:-=+*#", "#", ":", {" ": "_", "\n": "$", "\r": "\\r", "\t": ">"})


def can_encode(text: str, encoding: str) -> bool:
    """True where a terminal with that encoding can be sent the text."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):  # a console may name an encoding that Python lacks
        return False
    return True


def charset_of(console: Console) -> Charset:
    """Return the characters that the console's encoding has."""
    # All or none: a picture of both kinds of characters would be read wrongly.
    needed = "".join((UNICODE.levels, UNICODE.bars, UNICODE.fold, *WHITE_SPACE.values()))
    return UNICODE if can_encode(needed, console.encoding) else ASCII


@dataclass(frozen=True, slots=True)
class Scale:
    """Steps of a figure, and their looks."""

    edges: Sequence[float]
    """Nats, rising; there is one step more."""
    true_colours: Mapping[scales.Theme, Sequence[scales.Paint]]
    entries_256: Mapping[scales.Theme, Sequence[scales.Entry]]
    entries_16: Mapping[scales.Theme, Sequence[scales.Entry]]
    marks: str = "012345678"
    """A character for each step, where there are no colours."""

    def labels(self, unit: Unit) -> list[str]:
        """`below 0.5`, `0.5 to 1`, …, `10 or more`, in the unit."""
        ends = [f"{unit.of(edge):.3g}" for edge in self.edges]
        between = (f"{a} to {b}" for a, b in pairwise(ends))
        return [f"below {ends[0]}", *between, f"{ends[-1]} or more"]


LOSSES = Scale(scales.LOSS_EDGES, scales.SEQUENTIAL, scales.SEQUENTIAL_256, scales.SEQUENTIAL_16)
DIFFERENCES = Scale(
    scales.DIFFERENCE_EDGES, scales.DIVERGING, scales.DIVERGING_256, scales.DIVERGING_16
)
COUNTS = Scale(
    edges=(),
    true_colours={theme: [paints[2]] for theme, paints in scales.DIVERGING.items()},
    entries_256={"light": [(110, 16, False)], "dark": [(25, 231, False)]},
    entries_16={"light": [(14, 0, False)], "dark": [(4, 15, False)]},
    marks="+",
)
"""A scale of one step, whatever the value: a token counts, or has none. The blue is of the
differences, so that it is not taken for a loss."""


class Palette:
    """A scale on a console."""

    def __init__(self, console: Console, scale: Scale, theme: scales.Theme) -> None:
        self.scale = scale
        self.marks = shows_no_colour(console)
        """Marks stand in place of colours."""
        self.styles = _styles(console.color_system, scale, theme)
        """A style for each step."""

    def step(self, value: float | None) -> int | None:
        """Return the step of a value in nats."""
        return None if value is None else scales.step_of(value, self.scale.edges)

    def style(self, value: float | None, underlined: bool = False) -> Style:
        """Return the style of a token: dim where it has no value, which is to be seen.

        A token is underlined, so that two neighbours of one step are told apart.
        """
        step = self.step(value)
        if step is None:
            return DIM
        if self.marks:
            return Style.null()
        style = self.styles[step]
        # Of 16 colours the last steps are underlined themselves.
        return style + (_OVERLINED if style.underline else _UNDERLINED) if underlined else style

    def bar_style(self, step: int) -> Style:
        """Return the style of a bar of a step: its background as the colour of the bar."""
        if self.marks:
            return Style.null()
        # The step without a background is the least that there is: its bar is not to stand out.
        ground = self.styles[step].bgcolor
        return DIM if ground is None else Style(color=ground)

    def mark(self, value: float | None) -> str:
        """Return the mark of a token; `-` where it has no value."""
        step = self.step(value)
        return "-" if step is None else self.scale.marks[step]


def shows_no_colour(console: Console) -> bool:
    """True where marks must say what colours would."""
    # NO_COLOR leaves color_system as it was: rich takes the colours away only when it writes.
    return console.color_system is None or console.no_color


def choose_theme(wanted: str, colorfgbg: str | None) -> tuple[scales.Theme, str]:
    """From `light`, `dark` or `auto`: the theme, and a note for the legend. Terminals that set
    COLORFGBG put their background last."""
    if wanted != "auto":
        return ("light" if wanted == "light" else "dark"), "--theme"
    if colorfgbg:
        light = colorfgbg.rpartition(";")[2] in _LIGHT_GROUNDS
        return ("light" if light else "dark"), "by COLORFGBG; --theme says otherwise"
    return "dark", "--theme light for a light one"


def _styles(system: str | None, scale: Scale, theme: scales.Theme) -> list[Style]:
    if system == "truecolor":
        return [Style(color=p.text, bgcolor=p.background) for p in scale.true_colours[theme]]
    # what is neither, as the console of old Windows, has 16 colours
    entries = (scale.entries_256 if system == "256" else scale.entries_16)[theme]
    return [Style.null() if entry is None else _style(*entry) for entry in entries]


def _style(background: int, text: int, underlined: bool) -> Style:
    # None, not False: an attribute that is set to False is still set, and two equal looks differ.
    return Style(
        color=f"color({text})", bgcolor=f"color({background})", underline=underlined or None
    )


def sparkline(values: Sequence[float | None], width: int, charset: Charset) -> str:
    """Draw means of the known values (nats) of neighbouring tokens, a cell each; blank where there
    is none."""
    means = means_of_neighbours(values, min(len(values), width))
    return "".join(_level(mean, charset) for mean in means)


def _level(mean: float | None, charset: Charset) -> str:
    if mean is None:
        return " "
    top = len(charset.levels) - 1
    # Compared first: int() of an infinite mean raises.
    return charset.levels[top if mean >= FULL_LOSS else int(mean / FULL_LOSS * top)]


def bar_of(share: float, width: int, charset: Charset) -> str:
    """Draw a bar; at least a sliver of what is more than nothing."""
    parts = len(charset.bars)
    filled = max(round(share * width * parts), 1 if share else 0)
    whole, rest = divmod(filled, parts)
    return charset.bars[-1] * whole + (charset.bars[rest - 1] if rest else "")
