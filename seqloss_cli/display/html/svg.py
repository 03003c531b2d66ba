"""Draw axes, bars and lines as SVG, without styles of their own: classes say what things are.

A drawing is as wide as its card: places across are in per cent, those from the top in pixels, so
that letters have the same size at every width. The names of axes are HTML, which breaks into lines.

What is drawn in nats gets a twin in bits where figures stand beside it; the page shows one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from seqloss_cli.metrics.totals import NATS_PER_BIT

Point = tuple[float, float]
"""A place on a drawing: per cent from the left, pixels from the top."""
UNIT = Markup('<span class="nats">nats</span><span class="bits">bits</span>')
"""The unit that the page shows."""
_HEIGHT = 200
"""Pixels, figures below the axis included."""
_LETTERS = 32
"""Letters of the figures below the axis that the narrowest card has room for."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of a drawing where figures lie, and the figures at its ends."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    top: float = 8
    """Pixels."""
    bottom: float = 178

    def x(self, value: float) -> float:
        """Return where a figure lies across, in per cent."""
        # two digits after the point are finer than any screen, and the page stays small
        return round(100 * (value - self.x_low) / ((self.x_high - self.x_low) or 1), 2)

    def y(self, value: float) -> float:
        """Return where a figure lies, in pixels from the top."""
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1)
        return round(self.bottom - share * (self.bottom - self.top), 2)


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Return round figures from `low` to `high`, about `n` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    # 0.3 / 0.1 is a little less than 3: the tick at 0.3 would be lost
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def drawing(
    title: str, parts: Iterable[Markup], y_name: str | Markup, x_name: str | Markup, kind: str = ""
) -> Markup:
    """Return a drawing of its parts between the names of its axes.

    The title is for those who do not see it; a `kind` is a class of its own.
    """
    return Markup(
        '<p class="axis-name">{}</p>\n'
        '<svg class="drawing{}" height="{}" role="img" aria-label="{}">{}</svg>\n'
        '<p class="axis-name across">{}</p>'
    ).format(y_name, f" {kind}" if kind else "", _HEIGHT, title, Markup("").join(parts), x_name)


def text(
    x: float, y: float, words: str, anchor: str = "middle", aside: int = 0, classes: str = ""
) -> Markup:
    """Return a text at a place, or so many pixels aside of it."""
    moved = f' dx="{aside}"' if aside else ""
    moved += f' class="{classes}"' if classes else ""
    return Markup('<text x="{}%" y="{}" text-anchor="{}"{}>{}</text>').format(
        x, y, anchor, Markup(moved), words
    )


def line(x1: float, y1: float, x2: float, y2: float, classes: str) -> Markup:
    """Return a straight line."""
    made = f'<line x1="{x1}%" y1="{y1}" x2="{x2}%" y2="{y2}" class="{escape(classes)}"/>'
    return Markup(made)


def path(points: Sequence[Point], classes: str, closed: bool = False) -> Markup:
    """Return straight lines from point to point."""
    where = "L".join(f"{x:g} {y:g}" for x, y in points)
    # a path knows no per cent: it has a drawing of its own, which is stretched
    return Markup(
        f'<svg viewBox="0 0 100 {_HEIGHT}" preserveAspectRatio="none">'
        f'<path d="M{where}{"Z" if closed else ""}" class="{escape(classes)}"/></svg>'
    )


def dot(x: float, y: float, classes: str) -> Markup:
    """Return a dot."""
    return Markup('<circle cx="{:g}%" cy="{:g}" r="3.2" class="{}"/>').format(x, y, classes)


def bar(
    frame: Frame,
    ends: tuple[float, float],
    height: float,
    kind: str,
    hint: str,
    bottom: float = 0.0,
) -> Markup:
    """Return a bar between two figures, with a text for the pointer."""
    left, right = frame.x(ends[0]), frame.x(ends[1])
    low, high = frame.y(bottom), frame.y(bottom + height)
    width, tall = round(right - left, 2), round(max(0.0, low - high), 2)
    return Markup(
        '<rect x="{}%" y="{}" width="{}%" height="{}" class="bar {}"><title>{}</title></rect>'
    ).format(left, high, width, tall, kind, hint)


def y_axis(frame: Frame, percent: bool = False, whole: bool = False) -> list[Markup]:
    """Return lines across the drawing with their figures, of counts only whole ones."""
    figures = []
    for value in ticks(frame.y_low, frame.y_high, 4):
        if whole and value % 1:
            continue
        brief = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        figures.append((value, f"{brief}%" if percent else brief))
    return y_figures(frame, figures)


def y_figures(frame: Frame, figures: Iterable[tuple[float, str]]) -> list[Markup]:
    """Return lines across the drawing with texts before them."""
    parts = []
    for value, shown in figures:
        y = frame.y(value)
        parts.append(line(0, y, 100, y, "grid"))
        parts.append(text(0, y + 4, shown, "end", aside=-6))
    return parts


def y_axis_of_losses(frame: Frame) -> list[Markup]:
    """Return the axis in nats and its twin in bits."""
    nats = y_axis(frame)
    # round figures in bits stand at other heights than those in nats
    values = ticks(frame.y_low / NATS_PER_BIT, frame.y_high / NATS_PER_BIT, 4)
    return _two_units(nats, y_figures(frame, [(v * NATS_PER_BIT, f"{v:.3g}") for v in values]))


def x_axis_of_losses(frame: Frame) -> list[Markup]:
    """Return the axis in nats and its twin in bits, which have round figures of their own."""
    made = []
    for factor in (1.0, 1 / NATS_PER_BIT):
        values = ticks(frame.x_low * factor, frame.x_high * factor, 6)
        figures = [(v / factor, f"{v:g}".replace("-", "−")) for v in values]
        made.append(x_figures(frame, figures))
    return _two_units(*made)


def x_figures(frame: Frame, figures: Sequence[tuple[float, str]]) -> list[Markup]:
    """Return the axis below the drawing, with texts at figures.

    Where they are long, the page leaves out every second if there is no room.
    """
    parts = [line(0, frame.bottom, 100, frame.bottom, "axis")]
    long = sum(len(shown) + 1 for _, shown in figures) > _LETTERS
    for n, (value, shown) in enumerate(reversed(figures)):
        x = frame.x(value)
        parts.append(line(x, frame.bottom, x, frame.bottom + 4, "axis"))
        spare = "spare" if long and n % 2 else ""
        parts.append(text(x, frame.bottom + 17, shown, classes=spare))
    return parts


def _two_units(nats: Iterable[Markup], bits: Iterable[Markup]) -> list[Markup]:
    """Return both, of which the page shows one."""
    return [
        Markup('<g class="nats">{}</g>').format(Markup("").join(nats)),
        Markup('<g class="bits">{}</g>').format(Markup("").join(bits)),
    ]
