"""Numbers of charts: counts by bins and steps, and that nothing which draws computes its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.program import ROOT
from seqloss_cli.analysis.histograms import (
    concentration,
    count_by_step,
    count_in_bins,
    divergence_histogram,
    loss_histogram,
    margin_histogram,
    means_of_neighbours,
    shares_by_step,
)
from seqloss_cli.display.scales import KL_EDGES, LOSS_EDGES, step_of

LOSSES = st.lists(st.floats(0, 30), min_size=1, max_size=50)


@given(LOSSES, st.integers(1, 40))
def test_bins_are_those_of_numpy(losses: list[float], n_bins: int) -> None:
    values = np.array(losses)
    inside = values[values < n_bins / 4]
    expected = np.histogram(inside, np.arange(n_bins + 1) / 4)[0]
    expected[-1] += len(values) - len(inside)  # the last bin is open
    assert count_in_bins(values, 0.0, 0.25, n_bins).tolist() == expected.tolist()


def test_outer_bins_hold_infinities() -> None:
    values = np.array([-math.inf, -9.0, 0.0, 1.0, math.inf])
    assert count_in_bins(values, -1.0, 1.0, 3).tolist() == [2, 1, 2]


@given(LOSSES)
def test_steps_are_those_of_the_colours(losses: list[float]) -> None:
    steps = [step_of(loss, LOSS_EDGES) for loss in losses]
    counts = [steps.count(n) for n in range(len(LOSS_EDGES) + 1)]
    assert count_by_step([*losses, None], LOSS_EDGES) == counts
    shares = shares_by_step(np.array([*losses, math.inf]), LOSS_EDGES)
    assert [each.of_values for each in shares] == [100 * n / len(losses) for n in counts]
    assert (shares[0].low, shares[-1].high) == (0, math.inf)


def test_powers_of_ten_are_of_the_bin_above_them() -> None:
    bins = divergence_histogram(np.array([*KL_EDGES, 1e-5, 0.0, 100.0]))
    assert bins is not None
    ends = [(low, high) for (low, high), n in zip(bins.bounds(), bins.counts[0], strict=True) if n]
    assert ends == [(-5, -4.75), (-2, -1.75), (-1.75, -1.5), (-1, -0.75), (-0.75, -0.5),
                    (0, 0.25), (0.25, 0.5), (0.75, 1)]  # fmt: skip


def test_a_sign_says_which_questions_are_wrong() -> None:
    bins = margin_histogram(np.array([0.0, -0.0, 0.3, -0.3, math.inf]))
    assert bins is not None
    assert bins.counts == [[1, 1], [1, 1]]  # wrong, right
    assert loss_histogram([np.array([1.0]), np.array([math.inf])]) is None


@given(LOSSES.filter(lambda losses: sum(losses) > 1e-9))  # half of the least float is 0
def test_the_worst_tokens_make_up_most(losses: list[float]) -> None:
    found = concentration(np.array(losses), (50, 100))
    assert found is not None
    assert found.curve[0] == (0, 0)
    assert found.curve[-1] == pytest.approx((100, 100))
    assert all(y >= x - 1e-9 for x, y in found.curve)
    assert found.shares[50] >= 50 - 1e-9
    assert found.shares[100] == pytest.approx(100)


@given(st.lists(st.none() | st.floats(0, 9), min_size=1, max_size=30), st.integers(1, 30))
def test_means_of_neighbours(values: list[float | None], n_cells: int) -> None:
    n_cells = min(n_cells, len(values))
    means = means_of_neighbours(values, n_cells)
    assert len(means) == n_cells
    if n_cells == len(values):
        assert means == values
    known = [value for value in values if value is not None]
    found = [mean for mean in means if mean is not None]
    assert bool(known) == bool(found)
    assert all(min(known) - 1e-9 <= mean <= max(known) + 1e-9 for mean in found)


def test_what_draws_computes_no_numbers() -> None:
    display = ROOT / "seqloss_cli" / "display"
    for path in (*(display / "plots").glob("*.py"), *map((display / "html").joinpath, ("charts.py",
                 "svg.py"))):  # fmt: skip
        assert "numpy" not in path.read_text(), path
