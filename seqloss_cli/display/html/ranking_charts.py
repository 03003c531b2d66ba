"""How sure a model is of right and of wrong answers, and how often each score is right."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from seqloss_cli.core.records import Bools, Floats, Ints
from seqloss_cli.display.html import svg
from seqloss_cli.display.html.charts import Cell, Chart
from seqloss_cli.metrics.intervals import Estimate

RIGHT, WRONG, NEITHER = "g1", "g7", "f3"
_N_BINS, _MOST = 20, 0.99
"""Bars on either side of zero; of margins, the share that lies within them."""
_STEPS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)


def margins(values: Floats, are_right: Bools) -> Chart | None:
    """Score of the right choice less that of the best wrong one."""
    known = np.isfinite(values)
    sizes, right = np.abs(values[known]), are_right[known]
    if not len(sizes):
        return None
    bin, n_bins = _bins(sizes)
    places = np.minimum((sizes / bin).astype(np.int64), n_bins - 1)
    counts = {-1: _counts(places[~right], n_bins), 1: _counts(places[right], n_bins)}
    highest = max(1, *(int(each.max()) for each in counts.values()))
    frame = svg.Frame(-n_bins * bin, n_bins * bin, 0, highest * 1.05)
    parts = svg.y_axis(frame, "questions")
    for sign, kind, said in ((-1, WRONG, "wrong"), (1, RIGHT, "right")):
        for n, count in enumerate(counts[sign].tolist()):
            ends = sorted((sign * n * bin, sign * (n + 1) * bin))
            hint = f"{said}, margin {ends[0]:g} to {ends[1]:g} nats: {count:,}"
            parts.append(_bar(frame, ends[0], ends[1], 0, count, kind, hint))
    parts += svg.x_axis_of_losses(frame, "margin")
    rows: list[list[str | Cell]] = [
        [said, f"{len(each):,}", Cell(float(np.median(each)) if len(each) else None)]
        for said, each in (("wrong", -sizes[~right]), ("right", sizes[right]))
    ]
    return Chart(
        "margins", "By how much right and wrong",
        svg.drawing("Histogram of margins of right and of wrong questions", parts),
        "Score of the right choice less that of the best wrong one: orange, left of 0, where a "
        "wrong one is preferred. The outer bars hold what lies beyond.",
        ["questions", "how many", "median margin"], rows,
    )  # fmt: skip


def leads(values: Floats) -> Chart | None:
    """Score of the best choice less that of the second, where no answer is known."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    bin, n_bins = _bins(known)
    counts = _counts(np.minimum((known / bin).astype(np.int64), n_bins - 1), n_bins)
    frame = svg.Frame(0, n_bins * bin, 0, int(counts.max()) * 1.05)
    parts = svg.y_axis(frame, "questions")
    for n, count in enumerate(counts.tolist()):
        hint = f"{n * bin:g} to {(n + 1) * bin:g} nats: {count:,}"
        parts.append(_bar(frame, n * bin, (n + 1) * bin, 0, count, NEITHER, hint))
    parts += svg.x_axis_of_losses(frame, "lead")
    return Chart(
        "leads", "How far the best is ahead", svg.drawing("Histogram of leads", parts),
        "Score of the best choice less that of the second. The last bar holds all above.",
    )  # fmt: skip


def probabilities(values: Floats, are_right: Bools | None) -> Chart | None:
    """Of right choices, by whether one of them is preferred; without verdicts of preferred ones."""
    if not len(values):
        return None
    places = np.minimum((values * _N_BINS).astype(np.int64), _N_BINS - 1)
    parts_of = [(WRONG, "wrong", ~are_right), (RIGHT, "right", are_right)] if (
        are_right is not None
    ) else [(NEITHER, "", np.ones(len(values), dtype=bool))]  # fmt: skip
    every = _counts(places, _N_BINS)
    frame = svg.Frame(0, 1, 0, int(every.max()) * 1.05)
    parts, below = svg.y_axis(frame, "questions"), np.zeros(_N_BINS, dtype=np.int64)
    for kind, said, which in parts_of:
        counts = _counts(places[which], _N_BINS)
        for n, count in enumerate(counts.tolist()):
            low, high = n / _N_BINS, (n + 1) / _N_BINS
            hint = f"{low:g} to {high:g}: {count:,} {said}".rstrip()
            parts.append(_bar(frame, low, high, below[n].item(), count, kind, hint))
        below = below + counts
    parts += svg.x_figures(frame, [(tick, f"{tick:g}") for tick in svg.ticks(0, 1, 5)])
    of = "preferred choice" if are_right is None else "right answer"
    parts.append(svg.x_label(frame, f"probability of the {of} among the choices"))
    colours = "" if are_right is None else " Blue: right; orange: another choice is preferred."
    return Chart(
        "probabilities", f"Probability of the {of}",
        svg.drawing(f"Histogram of the probability of the {of}", parts),
        f"Softmax of ln Pr(y|x) over the choices of a question.{colours}",
    )  # fmt: skip


def accuracies_by_score(found: Mapping[str, Estimate], chance: float | None) -> Chart | None:
    """`found` by the name of the score."""
    if not found:
        return None
    frame = svg.Frame(-0.5, max(1, len(found) - 0.5), 0, 1)
    parts = svg.y_axis(frame, "accuracy")
    if chance is not None:
        y = frame.y(chance)
        parts.append(svg.line(frame.left, y, frame.right, y, "guide"))
    for n, estimate in enumerate(found.values()):
        x = frame.x(n)
        if estimate.value is None or estimate.low is None or estimate.high is None:
            continue
        parts.append(svg.line(x, frame.y(estimate.low), x, frame.y(estimate.high), "whisker"))
        parts.append(svg.dot(x, frame.y(estimate.value), "dot"))
    parts += svg.x_figures(frame, list(enumerate(found)))
    parts.append(svg.x_label(frame, "score that chooses"))
    return Chart(
        "accuracies", "How often each score is right",
        svg.drawing("Accuracy by score", parts),
        "Share of questions whose best choice is right, with Wilson's 95 % interval; the dashed "
        "line is what guessing would get.",
    )  # fmt: skip


def _bins(sizes: Floats) -> tuple[float, int]:
    """Width and number of bars, so that most lie within."""
    reach = max(float(np.quantile(sizes, _MOST)), _STEPS[0])
    bin = next((step for step in _STEPS if reach <= step * _N_BINS), _STEPS[-1])
    return bin, min(_N_BINS, math.ceil(reach / bin + 1e-9))


def _counts(places: Ints, n: int) -> Ints:
    return np.bincount(places, minlength=n)


def _bar(
    frame: svg.Frame, low: float, high: float, below: int, count: int, kind: str, hint: str
) -> Markup:
    x1, x2 = frame.x(low) + 0.4, frame.x(high) - 0.4
    return svg.bar(x1, frame.y(below + count), x2, frame.y(below), f"bar {kind}", hint)
