"""Draw axes, bars and lines as SVG, without styles of their own: classes say what things are.

What is drawn in nats gets a twin in bits where figures stand beside it; the page shows one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from seqloss_cli.metrics.totals import NATS_PER_BIT

Point = tuple[float, float]
"""A place on a drawing."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of a drawing of 440 by 240 where figures lie, and the figures at its ends."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    left: float = 50
    right: float = 428
    top: float = 26
    bottom: float = 196

    def x(self, value: float) -> float:
        """Return where a figure lies across."""
        # two digits after the point are finer than any screen, and the page stays small
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1)
        return round(self.left + share * (self.right - self.left), 2)

    def y(self, value: float) -> float:
        """Return where a figure lies, from the top."""
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


def drawing(title: str, parts: Iterable[Markup]) -> Markup:
    """Return a drawing of its parts; the title is for those who do not see it."""
    return Markup('<svg viewBox="0 0 440 240" role="img" aria-label="{}">{}</svg>').format(
        title, Markup("").join(parts)
    )


def text(x: float, y: float, words: str, classes: str = "", anchor: str = "middle") -> Markup:
    """Return a text at a place."""
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, classes, words
    )


def line(x1: float, y1: float, x2: float, y2: float, classes: str) -> Markup:
    """Return a straight line."""
    made = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{escape(classes)}"/>'
    return Markup(made)


def path(points: Sequence[Point], classes: str, closed: bool = False) -> Markup:
    """Return straight lines from point to point."""
    where = "L".join(f"{x:g} {y:g}" for x, y in points)
    return Markup(f'<path d="M{where}{"Z" if closed else ""}" class="{escape(classes)}"/>')


def dot(x: float, y: float, classes: str) -> Markup:
    """Return a dot."""
    return Markup('<circle cx="{:g}" cy="{:g}" r="3.2" class="{}"/>').format(x, y, classes)


def bar(
    frame: Frame,
    ends: tuple[float, float],
    height: float,
    kind: str,
    hint: str,
    bottom: float = 0.0,
) -> Markup:
    """Return a bar between two figures, with a text for the pointer."""
    # a little room to the next one, and thin bars stay visible
    left, right = frame.x(ends[0]) + 0.4, frame.x(ends[1]) - 0.4
    low, high = frame.y(bottom), frame.y(bottom + height)
    width, tall = round(max(0.6, right - left), 2), round(max(0.0, low - high), 2)
    return Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" class="bar {}"><title>{}</title></rect>'
    ).format(left, high, width, tall, kind, hint)


def y_axis(frame: Frame, label: str, percent: bool = False) -> list[Markup]:
    """Return lines across the drawing with their figures; `label` says the unit."""
    figures = []
    for value in ticks(frame.y_low, frame.y_high, 4):
        brief = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        figures.append((value, f"{brief}%" if percent else brief))
    return _y_figures(frame, label, figures)


def _y_figures(frame: Frame, label: str, figures: Iterable[tuple[float, str]]) -> list[Markup]:
    parts = [text(frame.left - 38, frame.top - 13, label, "label", "start")]
    for value, shown in figures:
        y = frame.y(value)
        parts.append(line(frame.left, y, frame.right, y, "grid"))
        parts.append(text(frame.left - 6, y + 4, shown, "", "end"))
    return parts


def y_axis_of_losses(frame: Frame, label: str) -> list[Markup]:
    """Return the axis in nats and its twin in bits."""
    nats = y_axis(frame, f"{label}, nats")
    # round figures in bits stand at other heights than those in nats
    values = ticks(frame.y_low / NATS_PER_BIT, frame.y_high / NATS_PER_BIT, 4)
    figures = [(value * NATS_PER_BIT, f"{value:.3g}") for value in values]
    return _two_units(nats, _y_figures(frame, f"{label}, bits", figures))


def x_axis_of_losses(frame: Frame, label: str) -> list[Markup]:
    """Return the axis in nats and its twin in bits, which have round figures of their own."""
    made = []
    for unit, factor in (("nats", 1.0), ("bits", 1 / NATS_PER_BIT)):
        values = ticks(frame.x_low * factor, frame.x_high * factor, 8)
        parts = x_figures(frame, [(value / factor, f"{value:g}") for value in values])
        made.append([*parts, x_label(frame, f"{label}, {unit}")])
    return _two_units(*made)


def x_figures(frame: Frame, figures: Iterable[tuple[float, str]]) -> list[Markup]:
    """Return the axis below the drawing, with texts at figures."""
    parts = [line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    for value, shown in figures:
        x = frame.x(value)
        parts.append(line(x, frame.bottom, x, frame.bottom + 4, "axis"))
        parts.append(text(x, frame.bottom + 17, shown))
    return parts


def x_label(frame: Frame, label: str) -> Markup:
    """Return the name of the axis below the drawing."""
    return text((frame.left + frame.right) / 2, frame.bottom + 37, label, "label")


def _two_units(nats: Iterable[Markup], bits: Iterable[Markup]) -> list[Markup]:
    """Return both, of which the page shows one."""
    return [
        Markup('<g class="nats">{}</g>').format(Markup("").join(nats)),
        Markup('<g class="bits">{}</g>').format(Markup("").join(bits)),
    ]
