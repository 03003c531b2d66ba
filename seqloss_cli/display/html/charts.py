"""What the page draws: how losses are spread, where they stand, and how few tokens make most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from seqloss_cli.analysis.summarize import PositionLoss
from seqloss_cli.core.records import Floats
from seqloss_cli.display.html import svg
from seqloss_cli.display.scales import DIFFERENCE_EDGES, LOSS_EDGES, step_of
from seqloss_cli.metrics.intervals import Estimate

_BIN, _WIDE_BIN, _FEW = 0.25, 0.5, 1000
"""Nats; wider ones where there are few tokens."""
_LONGEST = 20.0
_POINTS = 120
SIDES = ("side-a", "side-b")


@dataclass(frozen=True, slots=True)
class Cell:
    value: float | None
    """Nats where `digits` is given, else a plain figure; with `low` and `high` of an interval."""
    digits: int = 4
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    name: str
    title: str
    drawing: Markup
    about: str
    """How it is to be read."""
    header: list[str] = field(default_factory=list)
    rows: list[list[str | Cell]] = field(default_factory=list)
    """The same as figures."""
    sides: list[str] = field(default_factory=list)
    """Names of the lines, where there are two."""


# -- how losses are spread -----------------------------------------------------------------------


def histogram(losses: Sequence[Floats], sides: list[str], n_seen: int = 0) -> Chart | None:
    """Of finite losses; one model as bars in the colours of the steps, two as lines. `n_seen` are
    the tokens that these were drawn from."""
    known = [each[np.isfinite(each)] for each in losses]
    if not all(len(each) for each in known):
        return None
    top = min(_LONGEST, max(float(each.max()) for each in known))
    bin = _bin_for(known)
    n_bins = max(4, math.ceil(top / bin + 1e-9))
    shares = [_shares(each, bin, n_bins) for each in known]
    highest = max(float(share.max()) for share in shares)
    frame = svg.Frame(0, n_bins * bin, 0, highest * 1.05)
    parts = [*svg.y_axis(frame, "share of tokens", percent=True)]
    if len(shares) == 1:
        ends = [*(n * bin for n in range(1, n_bins)), math.inf if top == _LONGEST else n_bins * bin]
        parts += [
            _step_bar(frame, n * bin, end, bin, float(share))
            for n, (end, share) in enumerate(zip(ends, shares[0], strict=True))
        ]
    else:
        for share, side in zip(shares, SIDES, strict=False):
            parts.append(svg.path(_outline(frame, bin, share), f"line {side}"))
    parts += svg.x_axis_of_losses(frame, "loss of a token")
    over = " The last bar holds all above." if top == _LONGEST else ""
    about = f"Scored tokens by their loss, in steps of {bin} nats.{over}{_sample(losses, n_seen)}"
    header = ["loss", *(f"{name} tokens".strip() for name in sides or [""])]
    header += [f"{name} share of the loss".strip() for name in sides or [""]]
    return Chart(
        "histogram", "How losses are spread", svg.drawing("Histogram of token losses", parts),
        about, header, _step_rows(known), sides,
    )  # fmt: skip


def _bin_for(values: Sequence[Floats]) -> float:
    return _WIDE_BIN if min(map(len, values)) < _FEW else _BIN


def _shares(losses: Floats, bin: float, n_bins: int) -> Floats:
    places = np.minimum((losses / bin).astype(np.int64), n_bins - 1)
    counts = np.bincount(places, minlength=n_bins).astype(np.float64)
    return counts * (100 / len(losses))


def _sample(drawn: Sequence[Floats], n_seen: int) -> str:
    n = max(map(len, drawn))
    return f" Of a random sample of {n:,} of the {n_seen:,} tokens." if n < n_seen else ""


def _step_bar(frame: svg.Frame, low: float, end: float, bin: float, share: float) -> Markup:
    hint = f"{_stretch(low, end)} nats: {share:.2f}% of tokens"
    step = step_of(low, LOSS_EDGES)
    x1, x2 = frame.x(low) + 0.4, frame.x(low + bin) - 0.4
    return svg.bar(x1, frame.y(share), x2, frame.bottom, f"bar f{step}", hint)


def _outline(frame: svg.Frame, bin: float, shares: Floats) -> list[tuple[float, float]]:
    points = [(frame.x(0), frame.y(0))]
    for n, share in enumerate(shares.tolist()):
        points += [(frame.x(n * bin), frame.y(share)), (frame.x((n + 1) * bin), frame.y(share))]
    return points


def _stretch(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g}"
    return f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more"


def _step_rows(known: Sequence[Floats]) -> list[list[str | Cell]]:
    """For each step of the scale the share of tokens and of the loss."""
    edges = (0.0, *LOSS_EDGES, math.inf)
    rows: list[list[str | Cell]] = []
    for low, high in pairwise(edges):
        inside = [each[(each >= low) & (each < high)] for each in known]
        tokens = [_percent(len(i), len(k)) for i, k in zip(inside, known, strict=True)]
        loss = [_percent(i.sum(), k.sum()) for i, k in zip(inside, known, strict=True)]
        rows.append([f"{_stretch(low, high)} nats", *tokens, *loss])
    return rows


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


# -- loss by position ----------------------------------------------------------------------------


def by_position(
    positions: Sequence[Sequence[PositionLoss]],
    sides: list[str],
    interval: str,
    what: str = "loss",
) -> Chart | None:
    """Mean losses (or of `what`) with their intervals, and what these are called; the positions
    double."""
    known = [[p for p in each if p.mean_loss.value is not None] for each in positions]
    if not all(known):
        return None
    firsts = sorted({p.first for each in known for p in each})
    ends = [end for each in known for p in each for end in _ends(p.mean_loss)]
    frame = svg.Frame(-0.5, max(1, len(firsts) - 0.5), 0, max(ends) * 1.08 or 1)
    parts = svg.y_axis_of_losses(frame, f"mean {what}")
    for n, each in enumerate(known):
        places = {p.first: frame.x(firsts.index(p.first) + _aside(n, len(known))) for p in each}
        parts += _means(frame, each, places, SIDES[n] if len(known) > 1 else "")
    figures = [(n, _brief(first)) for n, first in enumerate(firsts)]
    parts += svg.x_figures(frame, figures if len(figures) < 10 else figures[::2])
    parts.append(svg.x_label(frame, "position in the sequence, tokens (first of each stretch)"))
    return Chart(
        "positions", f"{what[0].upper()}{what[1:]} by position",
        svg.drawing(f"Mean {what} by position", parts),
        f"Mean {what} of the tokens at these positions, with its {interval}.",
        ["positions", *(f"{name} mean {what}".strip() for name in sides or [""]), "scored"],
        _position_rows(known, firsts), sides,
    )  # fmt: skip


def _aside(n: int, n_sides: int) -> float:
    return 0.0 if n_sides == 1 else (-0.08, 0.08)[n]


def _means(
    frame: svg.Frame, positions: Sequence[PositionLoss], places: dict[int, float], side: str
) -> list[Markup]:
    parts, points = list[Markup](), list[tuple[float, float]]()
    for position in positions:
        x, mean = places[position.first], position.mean_loss
        assert mean.value is not None
        points.append((x, frame.y(mean.value)))
        if mean.low is not None and mean.high is not None:
            low, high = frame.y(max(mean.low, 0)), frame.y(mean.high)
            parts.append(svg.line(x, low, x, high, f"whisker {side}"))
    parts.append(svg.path(points, f"line {side}"))
    return [*parts, *(svg.dot(x, y, f"dot {side}") for x, y in points)]


def _position_rows(
    known: Sequence[Sequence[PositionLoss]], firsts: Sequence[int]
) -> list[list[str | Cell]]:
    rows: list[list[str | Cell]] = []
    for first in firsts:
        found = [next((p for p in each if p.first == first), None) for each in known]
        cells = [Cell(None) if p is None else _cell(p.mean_loss) for p in found]
        some = next(p for p in found if p is not None)
        rows.append([_range(some.first, some.last), *cells, f"{some.n_scored:,}"])
    return rows


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.value, 4, estimate.low, estimate.high)


def _ends(estimate: Estimate) -> list[float]:
    return [v for v in (estimate.value, estimate.high) if v is not None]


def _range(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{_brief(first)}–{_brief(last)}"


def _brief(n: int) -> str:
    return str(n) if n < 10_000 else f"{n / 1000:.0f}k"


# -- how few tokens make most of the loss --------------------------------------------------------


def concentration(losses: Sequence[Floats], sides: list[str], n_seen: int = 0) -> Chart | None:
    """The tokens of the highest losses, and the share of the total that they make up."""
    known = [np.sort(each[np.isfinite(each)])[::-1] for each in losses]
    if not all(len(each) and each.sum() > 0 for each in known):
        return None
    frame = svg.Frame(0, 100, 0, 100)
    parts = svg.y_axis(frame, "share of the total loss", percent=True)
    parts.append(svg.line(frame.x(0), frame.y(0), frame.x(100), frame.y(100), "guide"))
    for n, each in enumerate(known):
        points = [(frame.x(x), frame.y(y)) for x, y in _cumulative(each)]
        side = SIDES[n] if len(known) > 1 else ""
        if not side:
            corners = [(frame.x(100), frame.y(0)), (frame.x(0), frame.y(0))]
            parts.append(svg.path([*points, *corners], "area", closed=True))
        parts.append(svg.path(points, f"line {side}"))
    parts += svg.x_figures(frame, [(x, f"{x:g}%") for x in (0, 20, 40, 60, 80, 100)])
    parts.append(svg.x_label(frame, "share of the scored tokens, highest losses first"))
    rows: list[list[str | Cell]] = [
        [f"worst {share:g}%", *(_share_of(each, share) for each in known)]
        for share in (1, 5, 10, 25, 50)
    ]
    return Chart(
        "concentration", "Loss of the worst tokens",
        svg.drawing("Cumulative share of the total loss", parts),
        "How much of the loss how few tokens make up; on the dashed line all would have the same."
        + _sample(losses, n_seen),
        ["tokens", *(f"{name} share of the loss".strip() for name in sides or [""])], rows, sides,
    )  # fmt: skip


def _cumulative(ordered: Floats) -> list[tuple[float, float]]:
    places = np.unique(np.linspace(0, len(ordered), _POINTS).round().astype(np.int64))
    reached = np.concatenate([[0.0], np.cumsum(ordered)])
    shares = 100 * reached[places] / reached[-1]
    return list(zip((100 * places / len(ordered)).tolist(), shares.tolist(), strict=True))


def _share_of(ordered: Floats, share: float) -> str:
    """Where the curve stands, which is straight from token to token."""
    reached = np.concatenate([[0.0], np.cumsum(ordered)])
    place = len(ordered) * share / 100
    return _percent(float(np.interp(place, np.arange(len(reached)), reached)), float(reached[-1]))


# -- differences ---------------------------------------------------------------------------------


def differences(values: Floats, n_seen: int = 0) -> Chart | None:
    """Of stretches that both models see alike, B - A."""
    if not len(values):
        return None
    reach = min(10.0, max(1.0, math.ceil(float(np.quantile(np.abs(values), 0.995)))))
    n_bins = round(2 * reach / _BIN)
    places = np.clip(((values + reach) / _BIN).astype(np.int64), 0, n_bins - 1)
    shares = np.bincount(places, minlength=n_bins) * (100 / len(values))
    frame = svg.Frame(-reach, reach, 0, float(shares.max()) * 1.05)
    parts = svg.y_axis(frame, "share", percent=True)
    for n, share in enumerate(shares.tolist()):
        low = n * _BIN - reach
        step = step_of(low + _BIN / 2, DIFFERENCE_EDGES)
        ends = -math.inf if not n else low, math.inf if n == n_bins - 1 else low + _BIN
        hint = f"{_stretch(*ends)} nats: {share:.2f}%"
        x1, x2 = frame.x(low) + 0.4, frame.x(low + _BIN) - 0.4
        parts.append(svg.bar(x1, frame.y(share), x2, frame.bottom, f"bar g{step}", hint))
    parts += svg.x_axis_of_losses(frame, "B − A")
    return Chart(
        "differences", "Where the two differ", svg.drawing("Histogram of differences", parts),
        "Differences of all tokens (or of the smallest stretches that both models' tokens share); "
        f"left of 0 B is better. The outer bars hold what lies beyond.{_sample([values], n_seen)}",
    )  # fmt: skip
