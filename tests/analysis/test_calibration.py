"""Calibration: bins of equal mass, the interval of the expected error, and Wilson's bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.oracles import calibration_by_hand
from helpers.program import document
from helpers.results import row, rows_of, write
from seqloss_cli.display.plots.calibrations import edges_of_mass
from seqloss_cli.metrics.statistics import (
    UnitGaps,
    mean_gap_estimate,
    proportion_estimate,
    share_estimate,
)

Run = Callable[..., Any]
CONFIDENCES = st.floats(0.5, 0.9999)


# -- shares --------------------------------------------------------------------------------------


@given(st.integers(1, 10**7), st.data(), CONFIDENCES)
def test_the_interval_of_a_proportion_holds_it(n: int, data: Any, confidence: float) -> None:
    n_right = data.draw(st.sampled_from([0, n]) | st.integers(0, n))
    found = proportion_estimate(n_right, n, confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1
    if n_right == 0:
        assert found.low == 0
    if n_right == n:
        assert found.high == 1


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=2, max_size=30),
    st.sampled_from([None, 0.0, 1.0]),
    CONFIDENCES,
)
def test_the_interval_of_a_share_holds_it(
    documents: list[tuple[int, float]], end: float | None, confidence: float
) -> None:
    m = np.array([float(n) for n, _ in documents])
    y = np.array([math.floor(n * (share if end is None else end)) for n, share in documents])
    found = share_estimate(y.astype(np.float64), m, None, confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert math.copysign(1, found.low) == 1  # no -0.0 either


# -- the expected error --------------------------------------------------------------------------


def test_the_interval_of_the_error_is_that_of_a_plain_bootstrap() -> None:
    """Documents drawn one after another, tokens pooled, the figure computed anew."""
    generator = np.random.default_rng(5)
    documents = []
    for _ in range(12):
        sure = generator.uniform(0, 1, generator.integers(1, 9))
        documents.append((sure, generator.random(len(sure)) < sure**1.5))

    def error_of(chosen: Any) -> float:
        sure, right = (np.concatenate([documents[k][n] for k in chosen]) for n in (0, 1))
        bins = np.maximum(0, np.ceil(sure * 4) - 1)
        each = [(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).sum()
                for b in np.unique(bins)]  # fmt: skip
        return float(np.abs(each).sum() / len(sure))

    parts = []
    for unit, (sure, right) in enumerate(documents):
        bins = np.maximum(0, np.ceil(sure * 4) - 1).astype(int)
        parts += [(unit, b, (right - sure)[bins == b].sum(), (bins == b).sum())
                  for b in np.unique(bins)]  # fmt: skip
    units, bins, gaps, counts = (np.array(each) for each in zip(*parts, strict=True))
    made = UnitGaps(units, bins, gaps, counts.astype(float))
    found, bias = mean_gap_estimate(made, 300, 3, "document", 0.9)
    value = error_of(range(12))
    drawn = np.random.default_rng(3).integers(0, 12, (300, 12))
    again = np.array([error_of(chosen) for chosen in drawn])
    low, high = np.quantile(again, [0.05, 0.95])
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(max(0, 2 * value - high))
    assert found.high == pytest.approx(2 * value - low)
    assert found.standard_error == pytest.approx(again.std(ddof=1))
    assert bias == pytest.approx(again.mean() - value)
    assert "basic bootstrap over documents, 300 resamples, seed 3" in found.method


def test_resamples_lie_above_a_figure_that_chance_made() -> None:
    """A model that is perfectly calibrated: its figure is above 0, and resamples above that."""
    generator = np.random.default_rng(0)
    sure = generator.uniform(0, 1, 400)
    right = generator.random(400) < sure
    made = UnitGaps(np.arange(400), np.ceil(sure * 15).astype(int) - 1, right - sure, np.ones(400))
    found, bias = mean_gap_estimate(made, 1000, 0, "document")
    assert found.value > 0.02
    assert bias is not None
    assert bias > 0.005
    assert found.low < found.value - bias < found.high


def test_the_seed_and_the_clusters_are_those_of_the_options(run_cli: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows_of(40))
    words = ["plot", file, "--kind", "calibration", "--json"]

    def error(*more: str) -> Any:
        (series,) = document(run_cli(*words, *more))["series"]
        return series["expected_calibration_error"]

    assert error() == error()
    assert error("--seed", "1")["low"] != error()["low"]
    assert error("--seed", "1")["value"] == error()["value"]
    assert (error()["n"], error("--cluster", "book")["n"]) == (40, 10)
    assert "over clusters" in error("--cluster", "book")["method"]
    narrow = error("--confidence", "0.5")
    assert error()["low"] < narrow["low"] < narrow["high"] < error()["high"]


# -- bins of equal mass --------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1) | st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=200),
    st.integers(2, 20),
)
def test_bins_of_mass_hold_about_as_many_each(values: list[float], n_bins: int) -> None:
    edges = edges_of_mass(np.array(values), n_bins)
    assert (edges[0], edges[-1]) == (0, 1)
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= n_bins + 1
    counts = [
        sum((low < v <= high) or (k == 0 and v == 0) for v in values)
        for k, (low, high) in enumerate(pairwise(edges))
    ]
    assert sum(counts) == len(values)
    assert min(counts) > 0
    if len(set(values)) == len(values) >= n_bins and min(values) > 0:
        assert len(counts) == n_bins
        assert max(counts) - min(counts) <= 1


def test_bins_of_mass_are_those_of_the_definition(run_cli: Run, tmp_path: Path) -> None:
    rows = rows_of(40)
    words = ["--kind", "calibration", "--bins-by", "mass", "--bins", "8", "--json"]
    made = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        file = write(tmp_path / f"{name}.jsonl", order)
        found = document(run_cli("plot", file, *words))
        made.append(found["series"][0])
    assert found["bins_by"] == "mass"
    tokens = sorted(
        (math.exp(top[0]["log_prob"]), top[0]["id"] == id)
        for each in rows
        for id, top in zip(each["token_ids"], each["top_logprobs"], strict=True)
        if top
    )
    error, n = 0.0, len(tokens)
    for k, each in enumerate(made[0]["bins"]):
        here = tokens[-(-k * n // 8) : -(-(k + 1) * n // 8)]
        sure, right = np.mean(here, axis=0)
        assert each["n_tokens"] == len(here)
        assert each["confidence"] == pytest.approx(sure)
        assert each["accuracy"]["value"] == pytest.approx(right)
        error += len(here) / n * abs(right - sure)
    assert made[0]["expected_calibration_error"]["value"] == pytest.approx(error)
    for a, b in zip(made[0]["bins"], made[1]["bins"], strict=True):  # rows in another order
        assert a == b | {"accuracy": a["accuracy"]}
    by_width, _ = calibration_by_hand(rows, 8)
    assert error != pytest.approx(by_width)


def test_equal_probabilities_are_not_parted_and_that_is_said(run_cli: Run, tmp_path: Path) -> None:
    top = [None, *[[{"id": 1, "token": "x", "log_prob": 0.0}]] * 3]
    rows = [row(f"r{n}", [None, 1.0, 1.0, 1.0], top_logprobs=top) for n in range(4)]
    file = write(tmp_path / "a.jsonl", rows)
    done = run_cli("plot", file, "--kind", "calibration", "--bins-by", "mass", "--json")
    (series,) = document(done)["series"]
    assert [each["n_tokens"] for each in series["bins"]] == [12]
    assert "made: 1 bins, as many probabilities are equal" in done.stderr
