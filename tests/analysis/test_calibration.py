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
from scipy.stats import norm, t

from helpers.oracles import calibration_by_hand
from helpers.program import document
from helpers.results import row, rows_of, write
from seqloss_cli.analysis.confidence import edges_of_mass
from seqloss_cli.metrics.intervals import proportion_estimate, share_estimate
from seqloss_cli.metrics.resampling import CalibrationGaps, calibration_error_estimate

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
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=5, max_size=30),
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


def test_the_interval_of_the_error_is_that_of_its_definition() -> None:
    """Documents drawn one after another, tokens pooled, the figure computed anew."""
    generator = np.random.default_rng(5)
    documents = []
    for _ in range(12):
        sure = generator.uniform(0, 1, generator.integers(1, 9))
        documents.append((sure, generator.random(len(sure)) < sure**1.5))

    def gaps_of(chosen: Any) -> Any:
        sure, right = (np.concatenate([documents[k][n] for k in chosen]) for n in (0, 1))
        bins = np.maximum(0, np.ceil(sure * 4) - 1)
        return np.array([(right - sure)[bins == b].sum() / len(sure) for b in range(4)])

    def error_of(chosen: Any) -> float:
        return float(np.abs(gaps_of(chosen)).sum())

    parts = []
    for unit, (sure, right) in enumerate(documents):
        bins = np.maximum(0, np.ceil(sure * 4) - 1).astype(int)
        parts += [(unit, b, (right - sure)[bins == b].sum(), (bins == b).sum())
                  for b in np.unique(bins)]  # fmt: skip
    units, bins, gaps, counts = (np.array(each) for each in zip(*parts, strict=True))
    made = CalibrationGaps(units, bins, gaps, counts.astype(float))
    found, bias = calibration_error_estimate(made, 300, 3, "document", 0.9)
    value = error_of(range(12))
    drawn = np.random.default_rng(3).integers(0, 12, (300, 12))
    again = np.array([error_of(chosen) for chosen in drawn])
    assert found.value == pytest.approx(value)
    assert found.standard_error == pytest.approx(again.std(ddof=1))
    assert bias == pytest.approx(again.mean() - value)
    assert "bootstrap of the gaps over documents, 300 resamples, seed 3" in found.method
    signs = np.sign(gaps_of(range(12)))
    errors = np.array([gaps_of(chosen) for chosen in drawn]) - gaps_of(range(12))
    stretch = math.sqrt(12 / 11) * t.ppf(0.95, 11) / norm.ppf(0.95)
    low = value - stretch * np.quantile(np.abs(errors).sum(1), 0.95)
    assert found.low == pytest.approx(max(0, low))
    assert found.high == pytest.approx(value - stretch * np.quantile(errors @ signs, 0.05))


SIMULATED = {
    "calibrated": lambda p: p,
    "slightly off": lambda p: p - 0.01 * np.sin(np.pi * p),
    "sure by 0.05": lambda p: p - 0.05 * np.minimum(1, 4 * p),
    "sure by 0.12": lambda p: p - 0.12 * np.minimum(1, 3 * p),
    "off at one end": lambda p: np.where(p > 0.9, p - 0.08, p),
}
"""How often the model's top-1 is right, by its probability."""


def coverage(
    kind: str, n_documents: int, n_tokens: int, by_mass: bool, n_samples: int, n_resamples: int
) -> tuple[float, float]:
    """How often 95 % intervals hold the true error over 15 bins, and how wide they are on average.

    Lengths of documents are log-normal, and in each of them the model is right more or less often
    than it is on the whole: tokens of a document are not independent.
    """
    generator, right_of = np.random.default_rng(n_documents + n_tokens), SIMULATED[kind]
    population = np.random.default_rng(1).beta(1.2, 0.9, 50_000)
    gaps = right_of(population) - population
    edges, held, widths = np.arange(16) / 15, 0, []
    for _ in range(n_samples):
        lengths = generator.lognormal(-0.32, 0.8, n_documents) * n_tokens / n_documents
        units = np.repeat(np.arange(n_documents), np.maximum(1, lengths.round().astype(int)))
        sure = generator.beta(1.2, 0.9, len(units))
        shift = 0.2 * generator.choice([-1, 1], n_documents)[units] * np.minimum(sure, 1 - sure)
        right = generator.random(len(units)) < right_of(sure) + shift
        if by_mass:
            edges = edges_of_mass(sure, 15)
        bins = np.searchsorted(edges[1:-1], sure)
        made = CalibrationGaps(units, bins, right - sure, np.ones(len(units)))
        found, _ = calibration_error_estimate(made, n_resamples, 0, "document")
        of_bins = np.bincount(np.searchsorted(edges[1:-1], population), gaps)
        held += found.low <= np.abs(of_bins).sum() / len(population) <= found.high
        widths.append(found.high - found.low)
    return held / n_samples, float(np.mean(widths))


@pytest.mark.parametrize("by_mass", [False, True])
@pytest.mark.parametrize("kind", ["calibrated", "sure by 0.12"])
def test_intervals_of_the_error_hold_the_truth(kind: str, by_mass: bool) -> None:
    """Within what 80 samples can show of 95 %."""
    for n_documents, n_tokens in ((10, 300), (100, 3_000)):
        share, width = coverage(kind, n_documents, n_tokens, by_mass, 80, 200)
        assert share >= 0.91
        assert width < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("by_mass", [False, True])
@pytest.mark.parametrize("kind", SIMULATED)
def test_intervals_of_the_error_hold_the_truth_everywhere(kind: str, by_mass: bool) -> None:
    """The README's figures (`-s` prints them)."""
    for n_documents, n_tokens in ((10, 300), (30, 300), (30, 3_000), (300, 3_000), (300, 30_000)):
        share, width = coverage(kind, n_documents, n_tokens, by_mass, 1_000, 400)
        print(kind, f"{by_mass=} {n_documents=} {n_tokens=} {share=:.3f} {width=:.3f}")
        assert share >= 0.94


def test_resamples_lie_above_a_figure_that_chance_made() -> None:
    """A model that is perfectly calibrated: its figure is above 0, and resamples above that."""
    generator = np.random.default_rng(0)
    sure = generator.uniform(0, 1, 400)
    right = generator.random(400) < sure
    made = CalibrationGaps(
        np.arange(400), np.ceil(sure * 15).astype(int) - 1, right - sure, np.ones(400)
    )
    found, bias = calibration_error_estimate(made, 1000, 0, "document")
    assert found.value > 0.02
    assert bias is not None
    assert bias > 0.005
    assert found.low == 0
    assert found.low < found.value < found.high < 0.15


def test_the_seed_and_the_clusters_are_those_of_the_options(run_cli: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows_of(40))
    words = ["plot", file, "--kind", "calibration", "--json"]

    def error(*more: str) -> Any:
        (series,) = document(run_cli(*words, *more))["series"]
        return series["expected_calibration_error"]

    assert error() == error()
    assert error("--seed", "1")["high"] != error()["high"]
    assert error("--seed", "1")["value"] == error()["value"]
    assert (error()["n"], error("--cluster", "book")["n"]) == (40, 10)
    assert "over clusters" in error("--cluster", "book")["method"]
    narrow = error("--confidence", "0.5")
    assert error()["low"] <= narrow["low"] < narrow["high"] < error()["high"]


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
