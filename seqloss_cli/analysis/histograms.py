"""Spread out values over bins and steps: the numbers of charts of pages and of the terminal.

A page's histograms are of all tokens, or of a sample that fits in memory. Plots, which are of whole
files, count in fine bins as rows come (`plot_data`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from seqloss_cli.core.records import Floats, Ints


def count_in_bins(values: Floats, low: float, width: float, n_bins: int) -> Ints:
    """Return how many of the values lie in each bin, shape n_bins; none of them may be NaN.

    Values have shape n, and the unit of `low` and `width`.

    The outer bins hold what lies beyond them, infinities too. A value at an edge is of the bin
    above it.
    """
    # clipped as floats: an infinity as an integer is whatever the processor makes of it
    places = np.clip((values - low) / width, 0, n_bins - 1).astype(np.int64)
    return np.bincount(places, minlength=n_bins)


def finite(values: Floats) -> Floats:
    """Return the finite ones of the values, shape n, of any unit."""
    return values[np.isfinite(values)]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values in bins of one width."""

    low: float
    """Begin of the first bin."""
    width: float
    counts: list[list[int]]
    """For each of several sets of values, (sets, bins)."""
    is_open: bool = False
    """The last bin holds values that lie above it, too."""

    @property
    def n_bins(self) -> int:
        """Return the number of bins."""
        return len(self.counts[0])

    @property
    def high(self) -> float:
        """Return where the last bin ends."""
        return self.low + self.n_bins * self.width

    def bounds(self) -> list[tuple[float, float]]:
        """Return where each bin begins and ends."""
        return list(pairwise(self.low + n * self.width for n in range(self.n_bins + 1)))

    def percent(self) -> list[list[float]]:
        """Return the share of each bin in percent of its set, (sets, bins)."""
        return [
            (np.array(counts, dtype=np.float64) * (100 / sum(counts))).tolist()
            for counts in self.counts
        ]


_BIN, _WIDE_BIN, _FEW = 0.25, 0.5, 1000
"""Nats; wider bins where there are few tokens."""
_HIGHEST_LOSS = 20.0
LOWEST_POWER, HIGHEST_POWER, BINS_PER_POWER = -5, 1, 4
"""Powers of ten, nats, of the histogram of divergences."""
_FURTHEST_DIFFERENCE = 10.0


def loss_histogram(losses: Sequence[Floats]) -> Histogram | None:
    """Return the histogram of each model's finite losses, shape n, nats; None if one has none."""
    known = [finite(each) for each in losses]
    if not all(len(each) for each in known):
        return None
    top = min(_HIGHEST_LOSS, max(float(each.max()) for each in known))
    width = _WIDE_BIN if min(map(len, known)) < _FEW else _BIN
    n_bins = max(4, math.ceil(top / width + 1e-9))
    counts = [count_in_bins(each, 0.0, width, n_bins).tolist() for each in known]
    return Histogram(0.0, width, counts, is_open=top == _HIGHEST_LOSS)


def difference_histogram(differences: Floats) -> Histogram | None:
    """Return the histogram of differences, shape n, nats, symmetric about 0; None where n is 0."""
    if not len(differences):
        return None
    most = math.ceil(float(np.quantile(np.abs(differences), 0.995)))
    reach = min(_FURTHEST_DIFFERENCE, max(1.0, most))
    counts = count_in_bins(differences, -reach, _BIN, round(2 * reach / _BIN))
    return Histogram(-reach, _BIN, [counts.tolist()])


def divergence_histogram(divergences: Floats) -> Histogram | None:
    """Return the histogram of finite divergences, shape n, nats, over decimal logarithms."""
    known = finite(divergences)
    if not len(known):
        return None
    logarithms = np.log10(np.maximum(known, 10.0**LOWEST_POWER))
    width, n_bins = 1 / BINS_PER_POWER, (HIGHEST_POWER - LOWEST_POWER) * BINS_PER_POWER
    # 0.01 is no float, and its logarithm is a little less than -2: it belongs above the edge
    counts = count_in_bins(logarithms + 1e-9, LOWEST_POWER, width, n_bins)
    return Histogram(LOWEST_POWER, width, [counts.tolist()])


@dataclass(frozen=True, slots=True)
class StepShare:
    """Values within one step of a scale."""

    low: float
    high: float
    of_values: float | None
    """Percent of the values; None where there is none at all."""
    of_total: float | None
    """Percent of their sum; None where that is 0."""


def count_by_step(values: Iterable[float | None], edges: Sequence[float]) -> list[int]:
    """Return how many of the known values lie within each step that the edges make."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    # a value at an edge is of the step above it, as in the colours of a text
    steps = np.searchsorted(np.array(edges), known, side="right")
    return [*map(int, np.bincount(steps, minlength=len(edges) + 1))]


def shares_by_step(values: Floats, edges: Sequence[float]) -> list[StepShare]:
    """Return the shares of finite values, shape n, nats, for each step that the edges make."""
    known, found = finite(values), []
    for low, high in pairwise((-math.inf, *edges, math.inf)):
        inside = known[(known >= low) & (known < high)]
        of_values, of_total = _percent(len(inside), len(known)), _percent(inside.sum(), known.sum())
        found.append(StepShare(max(low, 0.0), high, of_values, of_total))
    return found


def _percent(part: float, whole: float) -> float | None:
    return float(100 * part / whole) if whole else None


_POINTS = 120


@dataclass(frozen=True, slots=True)
class Concentration:
    """The share of the total loss that the tokens of the highest losses make up."""

    curve: list[tuple[float, float]]
    """Percent of the tokens, the highest losses first, and percent of the loss."""
    shares: dict[float, float]
    """Percent of the loss by percent of the tokens, on the straight lines from token to token."""


def concentration(losses: Floats, percents: Sequence[float]) -> Concentration | None:
    """Return the curve of finite losses, shape n, nats; None where they sum to 0."""
    known = finite(losses)
    ordered = np.sort(known)[::-1]
    if not len(ordered) or not ordered.sum() > 0:
        return None
    reached = np.concatenate([[0.0], np.cumsum(ordered)])
    places = np.unique(np.linspace(0, len(ordered), _POINTS).round().astype(np.int64))
    shares = 100 * reached[places] / reached[-1]
    curve = list(zip((100 * places / len(ordered)).tolist(), shares.tolist(), strict=True))
    at = {percent: len(ordered) * percent / 100 for percent in percents}
    numbers = np.arange(len(reached))
    between = {p: float(np.interp(place, numbers, reached)) for p, place in at.items()}
    return Concentration(curve, {p: 100 * x / float(reached[-1]) for p, x in between.items()})


def means_of_neighbours(values: Sequence[float | None], n_cells: int) -> list[float | None]:
    """Return the means of the known values in so many stretches; None where there is none."""
    means = list[float | None]()
    for n in range(n_cells):
        # whole numbers: with bounds of a float width a token may be missed, or be in two cells
        part = values[n * len(values) // n_cells : (n + 1) * len(values) // n_cells]
        known = [value for value in part if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


_N_BINS, _WITHIN = 20, 0.99
"""Bins on either side of zero; of margins, the share that lies within them."""
_WIDTHS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)


def margin_histogram(margins: Floats) -> Histogram | None:
    """Return the histograms of sizes of finite margins, of wrong and of right questions.

    Margins have shape n, nats.

    A margin is of a wrong question where its sign is negative; -0.0 is. None where n is 0.
    """
    known = finite(margins)
    if not len(known):
        return None
    width, n_bins = _bins_for(np.abs(known))
    counts = (count_in_bins(np.abs(each), 0.0, width, n_bins) for each in _by_verdict(known))
    return Histogram(0.0, width, [each.tolist() for each in counts])


def _by_verdict(values: Floats) -> tuple[Floats, Floats]:
    """Return the values, shape n, of wrong questions, which have a sign, and of right ones."""
    wrong = np.signbit(values)
    return values[wrong], values[~wrong]


def median_margins(margins: Floats) -> list[tuple[int, float | None]]:
    """Return how many finite margins are of wrong and of right questions, and their medians.

    Margins have shape n, nats.
    """
    sides = _by_verdict(finite(margins))
    return [(len(each), float(np.median(each)) if len(each) else None) for each in sides]


def lead_histogram(leads: Floats) -> Histogram | None:
    """Return the histogram of finite leads of best choices, shape n, nats; None where n is 0."""
    known = finite(leads)
    if not len(known):
        return None
    width, n_bins = _bins_for(known)
    return Histogram(0.0, width, [count_in_bins(known, 0.0, width, n_bins).tolist()])


def probability_histogram(probabilities: Floats, with_verdicts: bool) -> Histogram | None:
    """Return the histogram of probabilities, shape n; None where n is 0.

    With verdicts they are two, of wrong and right questions: a negative sign is of a wrong one.
    """
    if not len(probabilities):
        return None
    sets = _by_verdict(probabilities) if with_verdicts else (probabilities,)
    # times 20, and not over 0.05: 0.15 / 0.05 is less than 3
    counts = [count_in_bins(np.abs(each) * _N_BINS, 0.0, 1.0, _N_BINS).tolist() for each in sets]
    return Histogram(0.0, 1 / _N_BINS, counts)


def _bins_for(sizes: Floats) -> tuple[float, int]:
    """Return width and number of bins, so that most of the sizes, (n) nats, lie within them."""
    reach = max(float(np.quantile(sizes, _WITHIN)), _WIDTHS[0])
    width = next((width for width in _WIDTHS if reach <= width * _N_BINS), _WIDTHS[-1])
    return width, min(_N_BINS, math.ceil(reach / width + 1e-9))
