"""Figures of recorded against scored log-probabilities, held to their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloss_cli.core.records import Sample, SequenceScore, TokenSequence
from seqloss_cli.metrics import deltas as d
from seqloss_cli.metrics import series
from seqloss_cli.metrics.intervals import ratio_estimate


def row(scored: list[float | None], recorded: list[float | None], sampled: Any = None) -> Any:
    """A row of ln p as scored and as recorded; None where there is none."""
    n = len(scored)
    ids, everywhere = np.arange(n), np.ones(n, dtype=bool)
    sample = Sample("a", "a.jsonl", 1, input_ids=ids)
    sequence = TokenSequence(sample, None, ids, None, everywhere, everywhere, "none", "none", {})
    known = np.array([each is not None for each in scored])
    losses = -np.array([0.0 if each is None else each for each in scored])
    values = np.array([np.nan if each is None else each for each in recorded])
    score = SequenceScore(sequence, losses, known, ids)
    return d.RecordedScore(score, values, None if sampled is None else np.array(sampled))


ROW = row([None, -1.0, -2.0, -0.5], [-9.0, -1.5, None, -0.25], [False, True, True, True])


def test_tokens_that_are_compared() -> None:
    assert ROW.recorded.tolist() == [True, True, False, True]
    assert ROW.compared.tolist() == [False, True, False, True]
    assert ROW.deltas.tolist() == [0, 0.5, 0, -0.25]
    assert ROW.counted.tolist() == [False, True, False, True]


def test_the_figures_of_a_row() -> None:
    found = d.sequence_deltas(ROW)
    # Of two deltas the lower one is the median, as it is in totals.
    assert (found.mean, found.median, found.mean_abs) == (0.125, -0.25, 0.375)
    documents = d.DeltaDocuments(0.3)
    documents.add(ROW)
    assert documents.estimates()["median_delta"].value == found.median
    assert (found.max_abs, found.max_abs_at) == (0.5, 1)
    assert found.log_weight == 0.25
    assert found.kls["k1"] == -0.125
    assert found.kls["k2"] == pytest.approx((0.125 + 0.03125) / 2)
    k3 = [math.exp(x) - 1 - x for x in (0.5, -0.25)]
    assert found.kls["k3"] == pytest.approx(sum(k3) / 2)


def test_without_sampled_tokens_there_is_no_kl() -> None:
    found = d.sequence_deltas(row([-1.0], [-2.0]))
    assert found.mean == 1
    assert found.log_weight is None
    assert set(found.kls.values()) == {None}


def test_counts() -> None:
    totals = d.delta_totals(ROW, 0.3)
    assert (totals.n_recorded, totals.n_compared, totals.n_sampled, totals.n_beyond) == (3, 2, 2, 1)
    assert totals.flags == {"not_compared": 1}
    assert (totals + totals).share_beyond == 0.5


def test_an_infinite_loss_is_not_compared() -> None:
    found = row([-math.inf, -1.0], [-1.0, -1.0])
    assert found.compared.tolist() == [False, True]
    assert d.delta_totals(found, 0.1).flags == {"inf_loss": 1, "not_compared": 1}


weights = st.lists(st.floats(-30, 30), min_size=1, max_size=20)


@given(logs=weights, shift=st.floats(-600, 600))
def test_the_effective_sample_size(logs: list[float], shift: float) -> None:
    w = np.exp(np.array(logs))
    expected = w.sum() ** 2 / (len(w) * (w**2).sum())
    assert d.effective_sample_size(np.array(logs)) == pytest.approx(expected, rel=1e-9)
    # Weights far beyond a float64 have one, too.
    moved = d.effective_sample_size(np.array(logs) + shift)
    assert moved == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.lists(st.floats(0, 1), max_size=5))
def test_figures_of_weights_on_disk_are_those_of_numpy(
    logs: list[float], shares: list[float]
) -> None:
    values = np.array(logs)
    size = d.effective_sample_size(values)
    shares = [*shares, *d.WEIGHT_QUANTILES, *(k / len(logs) for k in range(len(logs) + 1))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "CHUNK", 3)
        assert d.effective_sample_size(values) == size
        found = d.quantiles_of(values, shares)
    for share in shares:
        assert found[share] == np.quantile(values, share, method="inverted_cdf")


def test_the_effective_sample_size_of_equal_weights_and_of_one() -> None:
    assert d.effective_sample_size(np.full(7, 900.0)) == pytest.approx(1)
    assert d.effective_sample_size(np.array([900.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert d.effective_sample_size(np.array([])) is None


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_estimates_are_those_of_the_formulas(data: st.DataObject) -> None:
    value = st.floats(-5, 0)
    rows = data.draw(st.lists(st.lists(st.tuples(value, value), min_size=1, max_size=6),
                              min_size=1, max_size=8))  # fmt: skip
    documents = d.DeltaDocuments(0.05)
    made = [row([s for s, _ in each], [r for _, r in each], [True] * len(each)) for each in rows]
    for each in made:
        documents.add(each)
    found, own = documents.estimates(), [np.array([s - r for s, r in each]) for each in rows]
    whole, counts = np.concatenate(own), np.array([len(each) for each in own], dtype=float)
    assert found["mean_delta"].value == pytest.approx(whole.mean(), abs=1e-12)
    assert found["mean_abs_delta"].value == pytest.approx(np.abs(whole).mean(), abs=1e-12)
    assert found["k1"].value == pytest.approx(-whole.mean(), abs=1e-12)
    assert found["k2"].value == pytest.approx((whole**2 / 2).mean(), abs=1e-12)
    assert found["k3"].value == pytest.approx((np.exp(whole) - 1 - whole).mean(), abs=1e-9)
    assert found["share_beyond"].value == pytest.approx((np.abs(whole) > 0.05).mean())
    sizes = np.sort(np.abs(whole))
    assert found["p99_abs_delta"].value == sizes[math.ceil(0.99 * len(sizes)) - 1]
    interval = ratio_estimate(np.array([x.sum() for x in own]), counts, signed=True)
    assert found["mean_delta"].low == pytest.approx(interval.low)
    assert documents.max_abs is not None
    assert documents.max_abs[0] == sizes[-1]
    of_weights = documents.weights()
    w, sequences = np.exp(whole), np.exp([x.sum() for x in own])
    for name, each in (("tokens", w), ("sequences", sequences)):
        size = each.sum() ** 2 / (len(each) * (each**2).sum())
        assert of_weights["effective_sample_size"][name] == pytest.approx(size)
        quantile = np.sort(each)[math.ceil(0.05 * len(each)) - 1]
        assert of_weights["weight_quantiles"][name]["0.05"] == pytest.approx(quantile)


def test_a_weight_beyond_a_float_is_null() -> None:
    documents = d.DeltaDocuments(0.05)
    documents.add(row([-1.0, -1.0], [-9999.0, -1.0], [True, True]))
    assert documents.estimates()["k3"].value is None
    weights = documents.weights()
    assert weights["weight_quantiles"]["tokens"]["0.99"] is None
    assert weights["effective_sample_size"]["tokens"] == pytest.approx(0.5)
