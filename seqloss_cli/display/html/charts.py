"""Draw the charts of pages from the numbers that `analysis` made, each with a table of figures.

Losses: how they are spread, where they stand, how few tokens make most of them, where two models
differ. Divergences over powers of ten. Questions: how sure a model is of right and wrong answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from seqloss_cli.analysis import histograms
from seqloss_cli.analysis.histograms import Histogram
from seqloss_cli.analysis.summarize import PositionLoss
from seqloss_cli.core.records import Floats
from seqloss_cli.display.html import svg
from seqloss_cli.display.html.page import Cell, Chart, TableRow
from seqloss_cli.display.scales import DIFFERENCE_EDGES, KL_EDGES, LOSS_EDGES, count_of, step_of
from seqloss_cli.metrics.intervals import Estimate

_SIDES = ("side-a", "side-b")
"""Classes of what is drawn for the first and the second of two models."""
_RIGHT, _WRONG, _NEITHER = "g1", "g7", "f3"
"""Classes of colours: of the scales of differences and of losses."""
_WORST_PERCENTS = (1, 5, 10, 25, 50)


def _stretch(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g}"
    return f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} and more"


def _in_unit(name: str) -> Markup:
    """Return the name of an axis with the unit of losses that the page shows."""
    return Markup("{}, {}").format(name, svg.UNIT)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f}%"


def _step_rows(values: Sequence[Floats], edges: Sequence[float]) -> list[TableRow]:
    """Return for each step of a scale the shares of tokens, and of the sums; values (n) nats."""
    steps = zip(*(histograms.shares_by_step(each, edges) for each in values), strict=True)
    return [
        [
            f"{_stretch(step[0].low, step[0].high)} nats",
            *(_percent(each.of_values) for each in step),
            *(_percent(each.of_total) for each in step),
        ]
        for step in steps
    ]


def _sample(drawn: Sequence[Floats], n_seen: int) -> str:
    n = max(map(len, drawn))
    return f" Of a random sample of {n:,} of the {n_seen:,} tokens." if n < n_seen else ""


def loss_chart(losses: Sequence[Floats], sides: list[str], n_seen: int = 0) -> Chart | None:
    """Draw how losses, in nats, shape n for each model, are spread: one as bars, two as lines.

    `n_seen` are the tokens that these were drawn from.
    """
    bins = histograms.loss_histogram(losses)
    if bins is None:
        return None
    shares = bins.percent()
    frame = svg.Frame(0, bins.high, 0, max(map(max, shares)) * 1.05)
    parts = svg.y_axis(frame, percent=True)
    if len(shares) == 1:
        for (low, high), share in zip(bins.bounds(), shares[0], strict=True):
            end = math.inf if bins.is_open and high == bins.high else high
            hint = f"{_stretch(low, end)} nats: {share:.2f}% of tokens"
            parts.append(svg.bar(frame, (low, high), share, f"f{step_of(low, LOSS_EDGES)}", hint))
    else:
        for each, side in zip(shares, _SIDES, strict=False):
            parts.append(svg.path(_outline(frame, bins, each), f"line {side}"))
    parts += svg.x_axis_of_losses(frame)
    over = " The last bar holds all above." if bins.is_open else ""
    steps = f"in steps of {bins.width} nats."
    header = ["loss", *(f"{name} tokens".strip() for name in sides or [""])]
    header += [f"{name} share of the loss".strip() for name in sides or [""]]
    return Chart(
        "histogram", "How losses are spread",
        svg.drawing(
            "Histogram of token losses", parts, "share of tokens", _in_unit("loss of a token")
        ),
        f"Scored tokens by their loss, {steps}{over}{_sample(losses, n_seen)}",
        header, _step_rows(losses, LOSS_EDGES), sides,
    )  # fmt: skip


def _outline(frame: svg.Frame, bins: Histogram, shares: Sequence[float]) -> list[svg.Point]:
    points = [(frame.x(0), frame.y(0))]
    for (low, high), share in zip(bins.bounds(), shares, strict=True):
        points += [(frame.x(low), frame.y(share)), (frame.x(high), frame.y(share))]
    return points


def concentration_chart(
    losses: Sequence[Floats], sides: list[str], n_seen: int = 0
) -> Chart | None:
    """Draw the share of the total loss that the tokens of the highest losses make up.

    `losses`, in nats, have shape n for each model and are drawn from `n_seen` tokens.
    """
    found = [histograms.concentration(each, _WORST_PERCENTS) for each in losses]
    known = [each for each in found if each is not None]
    if len(known) < len(found):  # two curves or none: one alone would be taken for both
        return None
    frame = svg.Frame(0, 100, 0, 100)
    parts = svg.y_axis(frame, percent=True)
    parts.append(svg.line(frame.x(0), frame.y(0), frame.x(100), frame.y(100), "guide"))
    for n, each in enumerate(known):
        points = [(frame.x(x), frame.y(y)) for x, y in each.curve]
        side = _SIDES[n] if len(known) > 1 else ""
        if not side:
            corners = [(frame.x(100), frame.y(0)), (frame.x(0), frame.y(0))]
            parts.append(svg.path([*points, *corners], "area", closed=True))
        parts.append(svg.path(points, f"line {side}"))
    parts += svg.x_figures(frame, [(x, f"{x:g}%") for x in (0, 20, 40, 60, 80, 100)])
    rows: list[TableRow] = [
        [f"worst {percent:g}%", *(_percent(each.shares[percent]) for each in known)]
        for percent in _WORST_PERCENTS
    ]
    return Chart(
        "concentration", "Loss of the worst tokens",
        svg.drawing(
            "Cumulative share of the total loss", parts, "share of the total loss",
            "share of the scored tokens, highest losses first",
        ),
        "How much of the loss how few tokens make up; on the dashed line all would have the same."
        + _sample(losses, n_seen),
        ["tokens", *(f"{name} share of the loss".strip() for name in sides or [""])], rows, sides,
    )  # fmt: skip


def difference_chart(differences: Floats, n_seen: int = 0) -> Chart | None:
    """Draw B - A, shape n, nats, of the smallest stretches that both models' tokens share."""
    bins = histograms.difference_histogram(differences)
    if bins is None:
        return None
    (shares,) = bins.percent()
    frame = svg.Frame(bins.low, bins.high, 0, max(shares) * 1.05)
    parts = svg.y_axis(frame, percent=True)
    for (low, high), share in zip(bins.bounds(), shares, strict=True):
        # by its middle: the ends of a bin lie on edges of the scale, where rounding would decide
        step = step_of(low + bins.width / 2, DIFFERENCE_EDGES)
        ends = -math.inf if low == bins.low else low, math.inf if high == bins.high else high
        hint = f"{_stretch(*ends)} nats: {share:.2f}%"
        parts.append(svg.bar(frame, (low, high), share, f"g{step}", hint))
    parts += svg.x_axis_of_losses(frame)
    return Chart(
        "differences", "Where the two differ",
        svg.drawing("Histogram of differences", parts, "share", _in_unit("B − A")),
        "Differences of all tokens (or of the smallest stretches that both models' tokens share); "
        "left of 0 B is better. The outer bars hold what lies beyond."
        + _sample([differences], n_seen),
    )  # fmt: skip


def divergence_chart(divergences: Floats) -> Chart | None:
    """Draw how divergences of tokens, shape n, nats, are spread over powers of ten."""
    bins = histograms.divergence_histogram(divergences)
    if bins is None:
        return None
    (shares,) = bins.percent()
    frame = svg.Frame(bins.low, bins.high, 0, max(shares) * 1.05)
    parts = svg.y_axis(frame, percent=True)
    for (low, high), share in zip(bins.bounds(), shares, strict=True):
        hint = f"{10**low:.2g} to {10**high:.2g} nats: {share:.2f}% of tokens"
        # 10 ** -1.5 is of the step above the edge, whatever the last bit of the power is
        step = step_of(10**low * (1 + 1e-9), KL_EDGES)
        parts.append(svg.bar(frame, (low, high), share, f"f{step}", hint))
    powers = range(round(bins.low), round(bins.high) + 1)
    parts += svg.x_figures(frame, [(power, _without_exponent(power)) for power in powers])
    return Chart(
        "histogram", "How divergences are spread",
        svg.drawing("Histogram of divergences", parts, "share of tokens", "KL of a token, nats"),
        "Scored tokens by their KL, over powers of ten. The outer bars hold what lies beyond.",
        ["KL", "tokens", "share of the KL"], _step_rows([divergences], KL_EDGES),
    )  # fmt: skip


def _without_exponent(power: int) -> str:
    return f"{10.0**power:.5f}".rstrip("0").rstrip(".")


def position_chart(
    positions: Sequence[Sequence[PositionLoss]], sides: list[str], interval: str, what: str = "loss"
) -> Chart | None:
    """Draw the mean losses of each model by position, in bins that double.

    `interval` is what their intervals are called, `what` the quantity.
    """
    known = [[p for p in each if p.mean_loss.value is not None] for each in positions]
    if not all(known):
        return None
    firsts = sorted({p.first for each in known for p in each})
    ends = [end for each in known for p in each for end in (p.mean_loss.value, p.mean_loss.high)]
    highest = max(end for end in ends if end is not None)
    frame = svg.Frame(-0.5, max(1, len(firsts) - 0.5), 0, highest * 1.08 or 1)
    parts = svg.y_axis_of_losses(frame)
    for n, each in enumerate(known):
        # side by side, so that no interval hides the other
        aside = 0.0 if len(known) == 1 else (-0.08, 0.08)[n]
        places = {p.first: frame.x(firsts.index(p.first) + aside) for p in each}
        parts += _means(frame, each, places, _SIDES[n] if len(known) > 1 else "")
    # ten figures would run into each other
    figures = [(n, _brief(first)) for n, first in enumerate(firsts)]
    parts += svg.x_figures(frame, figures if len(figures) < 10 else figures[::2])
    unit = f"{_unit_of(known)}s"
    return Chart(
        "positions", f"{what[0].upper()}{what[1:]} by position",
        svg.drawing(
            f"Mean {what} by position", parts, _in_unit(f"mean {what}"),
            "position in the sequence, tokens (first of each stretch)",
        ),
        f"Mean {what} of the tokens at these positions, with its {interval}: from 5 of them up. "
        f"{_reached(known)}",
        ["positions", *(f"{name} mean {what}".strip() for name in sides or [""]), "scored", unit],
        _position_rows(known, firsts), sides,
    )  # fmt: skip


def _unit_of(positions: Sequence[Sequence[PositionLoss]]) -> str:
    """Return a word for one of what the intervals of positions are over."""
    methods = (position.mean_loss.method for each in positions for position in each)
    return "cluster" if any("cluster" in method for method in methods) else "document"


def _reached(positions: Sequence[Sequence[PositionLoss]]) -> str:
    """Say how many documents there are at the positions where most are, and at the last."""
    numbers = [position.mean_loss.n for position in positions[0]]
    last = "" if numbers[-1] == max(numbers) else f", the last positions over {numbers[-1]:,}"
    return f"Over {count_of(max(numbers), _unit_of(positions))}{last}."


def _means(
    frame: svg.Frame, positions: Sequence[PositionLoss], places: dict[int, float], side: str
) -> list[Markup]:
    parts, points = list[Markup](), list[svg.Point]()
    for position in positions:
        x, mean = places[position.first], position.mean_loss
        assert mean.value is not None
        points.append((x, frame.y(mean.value)))
        parts += _whisker(frame, x, mean, f"whisker {side}")
    parts.append(svg.path(points, f"line {side}"))
    return [*parts, *(svg.dot(x, y, f"dot {side}") for x, y in points)]


def _whisker(frame: svg.Frame, x: float, estimate: Estimate, kind: str) -> list[Markup]:
    if estimate.low is None or estimate.high is None:
        return []
    return [svg.line(x, frame.y(max(estimate.low, 0)), x, frame.y(estimate.high), kind)]


def _position_rows(
    known: Sequence[Sequence[PositionLoss]], firsts: Sequence[int]
) -> list[TableRow]:
    rows: list[TableRow] = []
    for first in firsts:
        found = [next((p for p in each if p.first == first), None) for each in known]
        cells = [Cell(None) if p is None else Cell.of(p.mean_loss) for p in found]
        some = next(p for p in found if p is not None)
        places = f"{_brief(some.first)}–{_brief(some.last)}"
        name = str(first) if first == some.last else places
        rows.append([name, *cells, f"{some.n_scored:,}", f"{some.mean_loss.n:,}"])
    return rows


def _brief(n: int) -> str:
    return str(n) if n < 10_000 else f"{n / 1000:.0f}k"


def margin_chart(margins: Floats) -> Chart | None:
    """Draw the score of the right choice less that of the best wrong one: shape questions, nats.

    A negative sign, that of -0.0 too, is of a question where a wrong choice is preferred.
    """
    bins = histograms.margin_histogram(margins)
    if bins is None:
        return None
    frame = svg.Frame(-bins.high, bins.high, 0, max(1, *map(max, bins.counts)) * 1.05)
    parts = svg.y_axis(frame, whole=True)
    names = ("wrong", "right")
    for name, kind, sign, counts in zip(names, (_WRONG, _RIGHT), (-1, 1), bins.counts, strict=True):
        for ends, count in zip(bins.bounds(), counts, strict=True):
            low, high = sorted(0.0 + sign * end for end in ends)  # 0.0, and not -0.0
            hint = f"{name}, margin {low:g} to {high:g} nats: {count:,}"
            parts.append(svg.bar(frame, (low, high), count, kind, hint))
    parts += svg.x_axis_of_losses(frame)
    medians = zip(names, histograms.median_margins(margins), strict=True)
    return Chart(
        "margins", "By how much right and wrong",
        svg.drawing(
            "Histogram of margins of right and of wrong questions", parts, "questions",
            _in_unit("margin"),
        ),
        "Score of the right choice less that of the best wrong one: orange, left of 0, where a "
        "wrong one is preferred. The outer bars hold what lies beyond.",
        ["questions", "how many", "median margin"],
        [[name, f"{n:,}", Cell(median)] for name, (n, median) in medians],
    )  # fmt: skip


def lead_chart(leads: Floats) -> Chart | None:
    """Draw the score of the best choice less that of the second: shape questions, nats."""
    bins = histograms.lead_histogram(leads)
    if bins is None:
        return None
    frame = svg.Frame(0, bins.high, 0, max(bins.counts[0]) * 1.05)
    parts = svg.y_axis(frame, whole=True)
    for (low, high), count in zip(bins.bounds(), bins.counts[0], strict=True):
        hint = f"{low:g} to {high:g} nats: {count:,}"
        parts.append(svg.bar(frame, (low, high), count, _NEITHER, hint))
    parts += svg.x_axis_of_losses(frame)
    return Chart(
        "leads", "How far the best is ahead",
        svg.drawing("Histogram of leads", parts, "questions", _in_unit("lead")),
        "Score of the best choice less that of the second. The last bar holds all above.",
    )  # fmt: skip


def probability_chart(probabilities: Floats, with_verdicts: bool) -> Chart | None:
    """Draw the probabilities of right choices, shape questions.

    A negative sign, that of -0.0 too, is of a question where a wrong choice is preferred. Without
    verdicts they are the probabilities of the preferred choices.
    """
    bins = histograms.probability_histogram(probabilities, with_verdicts)
    if bins is None:
        return None
    below = [0] * bins.n_bins
    frame = svg.Frame(0, 1, 0, max(map(sum, zip(*bins.counts, strict=True))) * 1.05)
    parts = svg.y_axis(frame, whole=True)
    kinds = [(_WRONG, " wrong"), (_RIGHT, " right")] if with_verdicts else [(_NEITHER, "")]
    for (kind, name), counts in zip(kinds, bins.counts, strict=True):
        for n, ((low, high), count) in enumerate(zip(bins.bounds(), counts, strict=True)):
            hint = f"{low:g} to {high:g}: {count:,}{name}"
            parts.append(svg.bar(frame, (low, high), count, kind, hint, below[n]))
        below = [sum(pair) for pair in zip(below, counts, strict=True)]
    parts += svg.x_figures(frame, [(tick, f"{tick:g}") for tick in svg.ticks(0, 1, 5)])
    choice = "right answer" if with_verdicts else "preferred choice"
    colours = " Blue: right; orange: another choice is preferred." if with_verdicts else ""
    return Chart(
        "probabilities", f"Probability of the {choice}",
        svg.drawing(
            f"Histogram of the probability of the {choice}", parts, "questions",
            f"probability of the {choice} among the choices",
        ),
        f"Softmax of ln Pr(y|x) over the choices of a question.{colours}",
    )  # fmt: skip


def accuracy_chart(accuracies: Mapping[str, Estimate], chance: float | None) -> Chart | None:
    """Draw accuracies by the name of the score, and what guessing would get."""
    if not accuracies:
        return None
    # the first on top: the axis of rows runs downwards
    frame = svg.Frame(0, 1, len(accuracies) - 0.5, -0.5)
    parts = svg.y_figures(frame, [(n, name) for n, name in enumerate(accuracies)])
    if chance is not None:
        x = frame.x(chance)
        parts.append(svg.line(x, frame.top, x, frame.bottom, "guide"))
    for n, estimate in enumerate(accuracies.values()):
        if estimate.value is None:
            continue
        y = frame.y(n)
        if estimate.low is not None and estimate.high is not None:
            parts.append(svg.line(frame.x(estimate.low), y, frame.x(estimate.high), y, "whisker"))
        parts.append(svg.dot(frame.x(estimate.value), y, "dot"))
    parts += svg.x_figures(frame, [(tick, f"{tick:g}") for tick in svg.ticks(0, 1, 5)])
    return Chart(
        "accuracies", "How often each score is right",
        svg.drawing("Accuracy by score", parts, "score that chooses", "accuracy", "named"),
        "Share of questions whose best choice is right, with Wilson's 95 % interval; the dashed "
        "line is what guessing would get.",
    )  # fmt: skip
