"""Statistics against scipy, against what is known by hand, and by simulation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers.program import ROOT
from seqloss_cli.metrics import resampling
from seqloss_cli.metrics.intervals import probability_estimate, quantile_estimate, ratio_estimate
from seqloss_cli.metrics.resampling import (
    Reservoir,
    block_bootstrap,
    bootstrap_ratio,
    default_block,
    holm,
    sign_flip_test,
)

FLOATS = st.floats(-50, 50, allow_nan=False)


@given(st.lists(FLOATS, min_size=5, max_size=40), st.sampled_from([0.8, 0.95, 0.99]))
def test_with_documents_of_one_length_the_interval_is_that_of_a_mean(
    values: list[float], confidence: float
) -> None:
    y = np.array(values)
    found = ratio_estimate(y, np.full(len(y), 4.0), confidence=confidence, signed=True)
    error = stats.sem(y / 4)
    assert found.value == pytest.approx(float(np.mean(y / 4)), abs=1e-12)
    assert found.standard_error == pytest.approx(error, rel=1e-9, abs=1e-12)
    if error > 1e-9:
        low, high = stats.t.interval(confidence, len(y) - 1, np.mean(y / 4), error)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_the_ratio_by_hand() -> None:
    """Three times rows of 1 and 99 tokens with mean losses 10 and 1 (the contract's example): R =
    1.09, e = (10 - 1.09, 99 - 1.09 * 99) = (8.91, -8.91), se^2 = 6 / 5 * 6 * 8.91^2 / 300^2.

    The quantile 2.570582 of Student's t on 5 degrees of freedom is that of printed tables.
    """
    y, m = np.tile([10.0, 99.0], 3), np.tile([1.0, 99.0], 3)
    found, error = ratio_estimate(y, m), math.sqrt(36 / 5 * 8.91**2) / 300
    assert found.value == pytest.approx(1.09)
    assert found.standard_error == pytest.approx(error)
    factor = math.exp(2.570582 * error / 1.09)
    assert (found.low, found.high) == pytest.approx((1.09 / factor, 1.09 * factor), rel=1e-6)
    assert found.n == 6
    assert "5 degrees of freedom, on the logarithm's scale" in found.method
    difference = ratio_estimate(y, m, signed=True)
    reach = 2.570582 * error
    assert (difference.low, difference.high) == pytest.approx((1.09 - reach, 1.09 + reach))
    assert "logarithm" not in difference.method


@given(
    st.lists(st.tuples(st.floats(0, 1e300), st.integers(1, 10**6)), min_size=5, max_size=30),
    st.sampled_from([0.5, 0.95, 0.9999]),
)
def test_no_end_is_below_zero_where_no_value_is(
    documents: list[tuple[float, int]], confidence: float
) -> None:
    y, m = (np.array(each, dtype=np.float64) for each in zip(*documents, strict=True))
    found = ratio_estimate(y, m, confidence=confidence)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high
    assert found.low > 0 or found.value < 1e-250 or max(y) > 1e250


def test_a_regression_through_the_origin_of_clusters_is_that_of_their_sums() -> None:
    generator = np.random.default_rng(1)
    y, m = generator.normal(5, 1, 30), generator.integers(1, 9, 30).astype(float)
    clusters = np.repeat(np.arange(10), 3)
    summed = ratio_estimate(y.reshape(10, 3).sum(1), m.reshape(10, 3).sum(1))
    found = ratio_estimate(y, m, clusters)
    assert found.standard_error == pytest.approx(summed.standard_error, rel=1e-12)
    assert found.n == 10
    assert "clusters" in found.method


@pytest.mark.parametrize("n", [1, 4])
def test_fewer_than_five_documents_have_no_interval(n: int) -> None:
    found = ratio_estimate(np.full(n, 3.0), np.full(n, 2.0))
    assert (found.value, found.low, found.high, found.standard_error) == (1.5, None, None, None)
    assert found.method == f"no interval: fewer than 5 documents ({n})"
    resampled = bootstrap_ratio(np.full(n, 3.0), np.full(n, 2.0), 100, seed=0)
    assert (resampled.value, resampled.low, resampled.method) == (1.5, None, found.method)
    assert ratio_estimate(np.arange(1.0, 6), np.full(5, 2.0)).low is not None


def even(generator: np.random.Generator, n: int) -> np.ndarray:
    return 3 + 0.5 * generator.standard_normal(n)


def skewed(generator: np.random.Generator, n: int) -> np.ndarray:
    return 3 * generator.lognormal(-0.32, 0.8, n)


def divergences(generator: np.random.Generator, n: int) -> np.ndarray:
    return 3 * generator.lognormal(-0.72, 1.2, n)


def near_zero(generator: np.random.Generator, n: int) -> np.ndarray:
    return 3 * generator.gamma(0.3, 1 / 0.3, n)


KINDS = (even, skewed, divergences, near_zero)
"""Figures per token of n documents, whose mean is 3, as the columns of the table in the docs."""


def draw(
    generator: np.random.Generator, n: int, kind: Callable[..., np.ndarray] = even
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and lengths of n documents, whose lengths are log-normal (sigma 1)."""
    m = np.ceil(generator.lognormal(5, 1, n))
    return m * kind(generator, n), m


def coverage(n: int, kind: Callable[..., np.ndarray], n_runs: int = 4000) -> np.ndarray:
    """How many of 100 intervals hold the truth: on the plain scale, on that of the logarithm."""
    generator, hits = np.random.default_rng(n), np.zeros(2)
    for _ in range(n_runs):
        y, m = draw(generator, n, kind)
        for k, signed in enumerate((True, False)):
            found = ratio_estimate(y, m, signed=signed)
            assert found.low is not None
            assert found.high is not None
            hits[k] += found.low <= 3.0 <= found.high
    return 100 * hits / n_runs


def documented_coverage() -> dict[int, list[list[float]]]:
    """The table of docs/numbers.md: number of documents to pairs, one for each of `KINDS`."""
    text = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|((?: \d+ / \d+ \|){4})$", text, re.MULTILINE)
    cells = {int(n): row.split("|")[:4] for n, row in rows}
    return {n: [[float(x) for x in cell.split("/")] for cell in row] for n, row in cells.items()}


@pytest.mark.parametrize("n", [5, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_coverage_is_what_the_docs_say(n: int, kind: Callable[..., np.ndarray]) -> None:
    documented = documented_coverage()[n][KINDS.index(kind)]
    assert coverage(n, kind, 1500) == pytest.approx(documented, abs=3)


@pytest.mark.slow
def test_coverage_is_what_the_docs_say_everywhere() -> None:
    found = {n: [coverage(n, kind) for kind in KINDS] for n in documented_coverage()}
    for n, documented in documented_coverage().items():
        np.testing.assert_allclose(found[n], documented, rtol=0, atol=0.6)


def test_a_mean_of_probabilities_stays_within_0_and_1() -> None:
    """By hand: p 0.75, se sqrt(0.1375 / 4 / 5), t 2.776445; log odds ln 3 +- t se / (p (1 - p))."""
    found = probability_estimate(np.array([1.0, 0.75, 1.0, 0.0, 1.0]))
    error = math.sqrt(sum((x - 0.75) ** 2 for x in (1, 0.75, 1, 0, 1)) / 4 / 5)
    odds = [3 * math.exp(sign * 2.776445 * error / (0.75 * 0.25)) for sign in (-1, 1)]
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx([x / (1 + x) for x in odds], rel=1e-6)
    sure = probability_estimate(np.array([1.0, 1.0, 1.0, 1.0, 1.0 - 1e-16, 1.0]))
    assert 0 <= sure.low <= sure.value <= sure.high <= 1
    assert probability_estimate(np.ones(4)).low is None


def test_the_bootstrap_agrees_with_scipy() -> None:
    y, m = draw(np.random.default_rng(7), 120)
    ours = bootstrap_ratio(y, m, 9000, seed=1)
    theirs = stats.bootstrap(
        (y, m),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=9000,
        method="percentile",
        random_state=2,
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)
    assert bootstrap_ratio(y, m, 100, seed=3) == bootstrap_ratio(y, m, 100, seed=3)


def test_many_units_are_drawn_in_parts_with_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    y, m = draw(np.random.default_rng(7), 3001)
    clusters = np.arange(3001) // 2
    found = [bootstrap_ratio(y, m, 100, 1, each) for each in (None, clusters)]
    # Signs are drawn four at a time: of whole fours, rows do not depend on how many come together.
    differences = (y - y.mean())[:3000] + 0.01 * y.std()
    p = sign_flip_test(differences, 200, seed=3)
    monkeypatch.setattr(resampling, "_MOST_ENTRIES", 256)
    assert [bootstrap_ratio(y, m, 100, 1, each) for each in (None, clusters)] == found
    assert sign_flip_test(differences, 200, seed=3) == p
    assert 0.05 < p.p < 0.95


def test_a_sample_of_many_small_arrays_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (50, 1000):
        samples = [Reservoir(size, 1), Reservoir(size, 1)]
        for most, sample in zip((1 << 12, 3), samples, strict=True):
            monkeypatch.setattr(resampling, "_MOST_SMALL", most)
            for part in np.split(np.arange(330.0), 110):
                sample.add(part)
                assert len(sample._values) <= most + 1 + sample.n_seen // 9
        assert samples[0].values().tolist() == samples[1].values().tolist()


def test_blocks_see_what_neighbours_have_in_common() -> None:
    """Of a series in which each value resembles the one before, an error as of independent tokens
    is several times too small; that of blocks comes near the truth (AR(1): sqrt((1+r)/(1-r)))."""
    generator, r, n = np.random.default_rng(3), 0.8, 20_000
    noise, series = generator.standard_normal(n), np.empty(n)
    series[0] = noise[0]
    for t in range(1, n):
        series[t] = r * series[t - 1] + noise[t]
    independent = series.std() / math.sqrt(n)
    found = block_bootstrap(series, default_block(n), 1000, seed=0)
    assert found.standard_error is not None
    assert found.standard_error / independent == pytest.approx(3.0, rel=0.15)
    assert found.value == pytest.approx(float(series.mean()))


def test_blocks_of_one_token_are_the_bootstrap_of_tokens() -> None:
    losses = np.random.default_rng(5).exponential(2, 3000)
    found = block_bootstrap(losses, 1, 2000, seed=0)
    assert found.standard_error == pytest.approx(losses.std() / math.sqrt(3000), rel=0.1)


@given(st.lists(st.integers(-900, 900).map(float), min_size=1, max_size=9))
def test_sign_flips_of_few_are_exact(values: list[float]) -> None:
    d = np.array(values)
    sums = [abs(math.fsum(s * v for s, v in zip(signs, values, strict=True)))
            for signs in product((1, -1), repeat=len(values))]  # fmt: skip
    found = sign_flip_test(d)
    assert found.exact
    assert found.p == np.mean(np.array(sums) >= abs(math.fsum(values)))


def test_sign_flips_agree_with_scipy() -> None:
    for n in (8, 16, 40):
        d = np.random.default_rng(n).normal(0.3, 1, n)
        theirs = stats.permutation_test(
            (d,), np.sum, permutation_type="samples", n_resamples=100_000, random_state=1
        )
        assert sign_flip_test(d).p == pytest.approx(theirs.pvalue, abs=0.02 if n > 16 else 1e-12)


def test_no_difference_has_p_1_and_p_is_never_0() -> None:
    assert sign_flip_test(np.zeros(5)).p == 1.0
    assert sign_flip_test(np.zeros(50)).p == 1.0
    assert sign_flip_test(np.ones(200)).p == 1 / 10_000


def test_holm_by_hand() -> None:
    """p = 0.01, 0.04, 0.03, 0.005: in order times 4, 3, 2, 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_quantiles_by_order_statistics_cover() -> None:
    generator, hits = np.random.default_rng(9), 0
    for _ in range(1500):
        found = quantile_estimate(generator.standard_normal(60), 0.75)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= stats.norm.ppf(0.75) <= found.high
    assert 0.93 <= hits / 1500 <= 0.99  # ranks are whole: never below what was asked for, by much
    assert quantile_estimate(np.arange(5.0), 0.95).low is None


def test_a_reservoir_is_a_uniform_sample() -> None:
    small = Reservoir(size=100)
    small.add(np.arange(60.0))
    assert sorted(small.values()) == list(range(60))
    large = Reservoir(size=1000, seed=1)
    for start in range(0, 50_000, 500):
        large.add(np.arange(start, start + 500.0))
    drawn = large.values()
    assert len(drawn) == 1000 == len(set(drawn))
    assert large.n_seen == 50_000
    assert stats.kstest(drawn / 50_000, "uniform").pvalue > 0.001
