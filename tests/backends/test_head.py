"""The head against float64 arithmetic written out by hand: losses, ranks, entropies, top k."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import lazy_logits
from seqloss_cli import Sample, totals_of
from seqloss_cli.backends.torch import head as head_module
from seqloss_cli.backends.torch import quantities
from seqloss_cli.backends.torch.head import LazyLogits, score_logits, to_host
from seqloss_cli.core.backend import Requested, WordBoundaryIds
from seqloss_cli.core.columns import LOGIT_SHAPE, MEAN_LOG_PROB, TEMPERATURES
from seqloss_cli.core.records import SequenceScore, TokenSequence

TOKEN_FIGURES = ("ranks", "entropies", "top_ids", "top_log_probs")
EVERYTHING = Requested(ranks=True, entropy=True, top_k=3)
RANK_AND_ENTROPY = Requested(ranks=True, entropy=True)
FLOAT32_MAX = float(np.finfo(np.float32).max)

ordinary = st.floats(-50, 50, width=32)
near_ties = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-23, 5.0, -3.0])
huge = st.floats(-FLOAT32_MAX, FLOAT32_MAX, width=32)
impossible = st.just(-math.inf)


@st.composite
def rows_with_targets(draw: st.DrawFn, *kinds: st.SearchStrategy[float]) -> Any:
    """Logits, M x V, each row with a finite one; and a target per row."""
    width = draw(st.integers(1, 12))
    row = st.lists(st.one_of(*kinds), min_size=width, max_size=width)
    finite = row.filter(lambda values: any(map(math.isfinite, values)))
    rows = draw(st.lists(finite, min_size=1, max_size=5))
    targets = [draw(st.integers(0, width - 1)) for _ in rows]
    return rows, targets


def loss_by_hand(row: list[float], target: int) -> float:
    """ln Σ exp(z - z_target), float64, the sum split off at the greatest logit."""
    top = max(row)
    total = math.fsum(math.exp(z - top) for z in row)
    return math.log(total) + (top - row[target])


def probabilities_by_hand(row: list[float]) -> list[float]:
    return [math.exp(-loss_by_hand(row, v)) for v in range(len(row))]


def whole_rows(logits: torch.Tensor, targets: torch.Tensor, requested: Requested) -> Any:
    return score_logits(lazy_logits(logits, in_blocks=False), targets, requested)


def score(
    rows: Any,
    targets: Any,
    requested: Requested = RANK_AND_ENTROPY,
    dtype: Any = torch.float32,
) -> Any:
    return whole_rows(torch.tensor(rows, dtype=dtype), torch.tensor(targets), requested)


@given(rows_with_targets(ordinary, near_ties, huge, impossible))
def test_losses_are_the_negative_log_softmax_and_never_below_zero(case: Any) -> None:
    rows, targets = case
    losses = score(rows, targets).losses.tolist()
    expected = [loss_by_hand(row, target) for row, target in zip(rows, targets, strict=True)]
    assert min(losses) >= 0
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert np.isinf(losses).tolist() == [
        row[t] == -math.inf for row, t in zip(rows, targets, strict=True)
    ]


@given(rows_with_targets(ordinary, near_ties, impossible))
def test_float64_logits_stay_in_float64(case: Any) -> None:
    rows, targets = case
    losses = score(rows, targets, dtype=torch.float64).losses.tolist()
    expected = [loss_by_hand(row, target) for row, target in zip(rows, targets, strict=True)]
    assert losses == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(rows_with_targets(ordinary, near_ties), st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_precision_logits_are_summed_in_float32(case: Any, dtype: torch.dtype) -> None:
    rows, targets = case
    rounded = torch.tensor(rows, dtype=dtype)
    losses = whole_rows(rounded, torch.tensor(targets), Requested()).losses.tolist()
    expected = [loss_by_hand(row.tolist(), t) for row, t in zip(rounded, targets, strict=True)]
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_losses_of_hundreds_of_nats_are_not_clamped() -> None:
    losses = score([[0.0, -1e4, -1e30], [0.0, -1e4, -1e30]], [1, 2]).losses.tolist()
    assert losses == pytest.approx([1e4, 1e30], rel=1e-6)


def test_the_span_of_two_huge_logits_may_exceed_float32() -> None:
    scores = score([[FLOAT32_MAX, -FLOAT32_MAX]], [1])
    assert scores.losses.tolist() == pytest.approx([2 * FLOAT32_MAX])
    assert scores.columns["entropies"].tolist() == [0.0]


def test_a_target_of_probability_zero_has_an_infinite_loss_and_finite_entropy() -> None:
    scores = score([[0.0, 0.0, -math.inf]], [2], EVERYTHING)
    assert scores.losses.tolist() == [math.inf]
    assert scores.columns["entropies"].tolist() == pytest.approx([math.log(2)])
    assert scores.columns["top_ids"].tolist() == [[0, 1, 2]]
    expected = [-math.log(2), -math.log(2), -math.inf]
    assert scores.columns["top_log_probs"][0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "row",
    [[0.0, math.nan, 1.0], [math.nan] * 3, [-math.inf] * 3, [math.inf, 0.0, 0.0]],
    ids=["one NaN", "all NaN", "nothing possible", "one infinite"],
)
@pytest.mark.parametrize("target", [0, 1])
def test_a_row_that_is_no_distribution_has_a_nan_loss(row: list[float], target: int) -> None:
    bad, good = score([row, [1.0, 2.0, 3.0]], [target, 0], Requested()).losses.tolist()
    assert math.isnan(bad)
    assert good == pytest.approx(loss_by_hand([1.0, 2.0, 3.0], 0), rel=1e-6)


@given(rows_with_targets(ordinary, near_ties, huge, impossible))
def test_a_rank_is_one_more_than_the_number_of_strictly_greater_logits(case: Any) -> None:
    rows, targets = case
    ranks = score(rows, targets).columns["ranks"].tolist()
    assert ranks == [
        1 + sum(z > row[target] for z in row) for row, target in zip(rows, targets, strict=True)
    ]


@given(rows_with_targets(ordinary, near_ties, impossible))
def test_entropies_are_the_mean_surprise_of_the_distribution(case: Any) -> None:
    rows, targets = case
    entropies = score(rows, targets).columns["entropies"].tolist()
    expected = [
        -math.fsum(p * math.log(p) for p in probabilities_by_hand(row) if p > 0) for row in rows
    ]
    assert entropies == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert all(-1e-6 <= entropy <= math.log(len(rows[0])) + 1e-6 for entropy in entropies)


def varentropy_by_hand(row: list[float]) -> float:
    """Σ p (ln p + H)², float64; an id of probability zero adds nothing."""
    log_probs = [-loss_by_hand(row, v) for v in range(len(row))]
    known = [(math.exp(log_p), log_p) for log_p in log_probs if math.exp(log_p) > 0]
    entropy = -math.fsum(p * log_p for p, log_p in known)
    return math.fsum(p * (log_p + entropy) ** 2 for p, log_p in known)


@given(
    rows_with_targets(ordinary, near_ties, huge, impossible),
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_varentropies_are_the_variance_of_the_surprise(
    case: Any, width: int | None, dtype: torch.dtype
) -> None:
    """Whole rows, or blocks of any width."""
    rows, targets = case
    requested = Requested(varentropy=True)
    if width is None:
        found = score(rows, targets, requested, dtype)
    else:
        logits = torch.tensor(rows, dtype=dtype)
        found = score_logits(lazy_logits(logits), torch.tensor(targets), requested, width)
    varentropies = found.columns["varentropies"].tolist()
    assert varentropies == pytest.approx(list(map(varentropy_by_hand, rows)), rel=1e-9, abs=1e-25)
    assert min(varentropies) >= 0


@pytest.mark.parametrize("width", [None, 1, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_varentropies_of_uniform_and_of_peaked_distributions(
    width: int | None, dtype: torch.dtype
) -> None:
    """Exactly 0 where all ids are alike, whatever their logit; a peaked one's is not rounded off,
    though it is the difference of two numbers of its entropy's size."""
    n_ids = 1000
    uniform = torch.full((2, n_ids), 3.7)
    peaked = torch.randn(4, n_ids, generator=torch.manual_seed(0))
    peaked[torch.arange(4), torch.tensor([0, 500, 999, 3])] += 35.0
    for rows in (uniform, peaked):
        logits, ids = rows.to(dtype), torch.zeros(len(rows), dtype=torch.long)
        requested = Requested(varentropy=True)
        if width is None:
            found: Any = whole_rows(logits, ids, requested)
        else:
            found = score_logits(lazy_logits(logits), ids, requested, width)
        expected = [varentropy_by_hand(row) for row in logits.double().tolist()]
        if rows is uniform:
            assert found.columns["varentropies"].tolist() == [0.0, 0.0]
        else:
            assert max(expected) < 1e-8
            assert found.columns["varentropies"].tolist() == pytest.approx(expected, rel=1e-9)


@given(case=rows_with_targets(ordinary, near_ties), width=st.integers(1, 12))
def test_the_shape_of_a_distribution(case: Any, width: int) -> None:
    """ln Σ exp(z / T) at each temperature, and the greatest logits, of blocks or of whole rows."""
    rows, targets = case
    logits, ids = torch.tensor(rows, dtype=torch.float32), torch.tensor(targets)
    asked = Requested(internal=(LOGIT_SHAPE,))
    blocks = score_logits(lazy_logits(logits), ids, asked, width).columns
    for found in (blocks, score(rows, targets, asked).columns):
        for m, row in enumerate(logits.double().tolist()):
            sums = [
                max(row) / t + math.log(math.fsum(math.exp((z - max(row)) / t) for z in row))
                for t in TEMPERATURES
            ]
            assert found["tempered_log_sums"][m].tolist() == pytest.approx(sums, rel=1e-6, abs=1e-5)
            assert found["log_normalisers"][m] == pytest.approx(sums[10], rel=1e-6, abs=1e-5)
            assert found["top_logits"][m].tolist() == sorted(row, reverse=True)


def test_what_float64_holds_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, ids = 5 * torch.randn(6, 100, generator=torch.manual_seed(0)), torch.arange(6)
    whole = whole_rows(logits, ids, Requested(varentropy=True)).columns["varentropies"]
    monkeypatch.setattr(quantities, "_EXACT_AT_ONCE", 42)
    parts = whole_rows(logits, ids, Requested(varentropy=True)).columns["varentropies"]
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


@given(rows_with_targets(ordinary, near_ties, huge, impossible), st.integers(0, 11))
def test_top_k_is_a_sort_with_ties_by_id(case: Any, number: int) -> None:
    rows, targets = case
    k = 1 + number % len(rows[0])
    scores = score(rows, targets, Requested(top_k=k))
    for row, ids, log_probs in zip(
        rows, scores.columns["top_ids"], scores.columns["top_log_probs"], strict=True
    ):
        best = sorted(range(len(row)), key=lambda v: (-row[v], v))[:k]
        assert ids.tolist() == best
        assert log_probs.tolist() == pytest.approx(
            [-loss_by_hand(row, v) for v in best], rel=1e-5, abs=1e-6
        )
        assert max(log_probs.tolist()) <= 0


def test_a_wide_row_of_equal_logits_lists_the_first_ids() -> None:
    scores = score([[0.0] * 5000], [4999], Requested(ranks=True, top_k=7))
    assert scores.columns["top_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert scores.columns["ranks"].tolist() == [1]


def test_the_target_among_the_top_has_its_own_loss_there() -> None:
    """Both figures come from the same logits: not even the last bit may differ."""
    torch.manual_seed(0)
    logits = 5 * torch.randn(200, 11)
    targets = torch.randint(11, (200,))
    scores = whole_rows(logits, targets, Requested(top_k=11))
    is_target = scores.columns["top_ids"] == targets.numpy()[:, None]
    assert (-scores.columns["top_log_probs"][is_target] == scores.losses).all()


@pytest.mark.parametrize("at_once", [1, 10, 64])
def test_the_number_of_logits_held_at_once_changes_nothing(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    logits, targets = 5 * torch.randn(37, 10), torch.randint(10, (37,))
    asked: list[int] = []

    def compute(rows: slice, ids: slice | None) -> torch.Tensor:
        asked.append(len(logits[rows]))
        return logits[rows].clone()

    whole = score_logits(LazyLogits(compute, 10, False), targets, EVERYTHING)
    monkeypatch.setattr(head_module, "LOGITS_AT_ONCE", at_once)
    asked.clear()
    parts = score_logits(LazyLogits(compute, 10, False), targets, EVERYTHING)
    assert max(asked) == max(1, at_once // 10)
    assert sum(asked) == 37
    for name in TOKEN_FIGURES:
        np.testing.assert_array_equal(parts.columns[name], whole.columns[name])
    np.testing.assert_array_equal(parts.losses, whole.losses)


@given(
    rows_with_targets(ordinary, near_ties, huge, impossible),
    st.integers(1, 12),
    st.integers(0, 4),
)
def test_blocks_of_the_vocabulary_change_nothing(drawn: Any, width: int, top_k: int) -> None:
    rows, targets = drawn
    logits, ids = torch.tensor(rows, dtype=torch.float32), torch.tensor(targets)
    n_words = logits.shape[1]
    requested = Requested(ranks=True, entropy=True, top_k=min(top_k, n_words))
    whole = whole_rows(logits, ids, requested)
    found = score_logits(lazy_logits(logits), ids, requested, width)
    np.testing.assert_allclose(found.losses, whole.losses, rtol=1e-6, atol=1e-6)
    assert (found.losses >= 0).all()
    ours, theirs = found.columns, whole.columns
    np.testing.assert_allclose(ours["entropies"], theirs["entropies"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours["ranks"], theirs["ranks"])
    if requested.top_k:
        top_ids, top_log_probs = ours["top_ids"], ours["top_log_probs"]
        np.testing.assert_array_equal(top_ids, theirs["top_ids"])
        np.testing.assert_allclose(top_log_probs, theirs["top_log_probs"], rtol=1e-6, atol=1e-6)
        at_top = top_ids == np.array(targets)[:, None]
        np.testing.assert_array_equal(
            -top_log_probs[at_top], np.repeat(found.losses, at_top.sum(axis=1))
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_logit_in_any_block_breaks_the_loss(bad: float) -> None:
    logits = torch.zeros(3, 9)
    logits[1, 7] = bad
    for target in (0, 7):
        ids = torch.full((3,), target)
        found = score_logits(lazy_logits(logits), ids, Requested(), 2)
        assert np.isnan(found.losses).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ranks_hold_a_bounded_number_of_logits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "LOGITS_AT_ONCE", 40)
    torch.manual_seed(0)
    logits, ids = torch.randn(37, 10).to(dtype), torch.randint(10, (37,))
    asked: list[int] = []

    def compute(rows: slice, words: slice | None) -> torch.Tensor:
        asked.append(len(logits[rows]))
        return logits[rows, words].clone()

    found = score_logits(LazyLogits(compute, 10, True), ids, RANK_AND_ENTROPY, width=3)
    assert set(asked) == {4, 1}
    above = (logits > logits.gather(1, ids[:, None])).sum(dim=1)
    assert found.columns["ranks"].tolist() == (1 + above).tolist()


def test_no_more_logits_than_a_block_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "BLOCK_ROWS", 5)
    monkeypatch.setattr(head_module, "BLOCK_LOGITS", 20)
    monkeypatch.setattr(head_module, "LEAST_WIDTH", 3)
    logits, asked = torch.randn(12, 11), []

    def compute(rows: slice, words: slice | None) -> torch.Tensor:
        asked.append(logits[rows, words].shape)
        return logits[rows, words].clone()

    ids = torch.arange(12) % 11
    found = score_logits(LazyLogits(compute, 11, True), ids, Requested())
    assert max(rows * words for rows, words in asked) == 20
    assert sum(rows * words for rows, words in asked) == 12 * 11
    np.testing.assert_allclose(found.losses, whole_rows(logits, ids, Requested()).losses, atol=1e-6)


def test_only_what_is_wanted_is_computed() -> None:
    scores = whole_rows(torch.zeros(2, 4), torch.tensor([0, 1]), Requested())
    assert not scores.columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [None, 4, 11])
def test_what_is_asked_for_beside_it_changes_nothing(dtype: torch.dtype, width: int | None) -> None:
    """In float64, logits that word boundaries had turned into weights were once weighed again."""
    n_ids = 11
    rng = np.random.default_rng(0)
    logits, ids = 5 * torch.randn(7, n_ids, dtype=dtype), torch.arange(7)
    marks = WordBoundaryIds(
        leading_space=rng.random(n_ids) < 0.5,
        ends_text=np.zeros(n_ids, dtype=bool),
        members=(rng.random((n_ids, 2)) < 0.5).astype(np.float32),
        word_then_space_ids=np.array([2, 9]),
        bare_word_ids=np.array([1, 3]),
    )

    def scores(requested: Requested) -> Any:
        if width is None:
            return whole_rows(logits, ids, requested)
        return score_logits(lazy_logits(logits), ids, requested, width)

    plain, mean = scores(EVERYTHING), scores(Requested(internal=(MEAN_LOG_PROB,)))
    every = Requested(True, True, 3, word_boundary_ids=marks, internal=(MEAN_LOG_PROB,))
    found = scores(every)
    assert found.losses.tolist() == plain.losses.tolist() == mean.losses.tolist()
    for name, column in {**plain.columns, **mean.columns}.items():
        assert found.columns[name].tolist() == column.tolist(), name
    probabilities = logits.double().softmax(1)
    sums = np.exp(np.asarray(found.columns["word_boundary_log_probs"]))
    np.testing.assert_allclose(sums[:, :2], probabilities.numpy() @ marks.members, rtol=1e-6)


def test_worked_examples_of_the_contract() -> None:
    for probability, loss in [(0.75, 0.287682), (0.15, 1.897120), (0.8, 0.223144), (0.2, 1.609438)]:
        row = [math.log(probability), math.log(1 - probability)]
        assert score([row], [0]).losses.tolist() == pytest.approx([loss], abs=1e-6)


def test_a_thousand_equal_losses_sum_without_rounding() -> None:
    """In bfloat16 the sum would be 2304."""
    n = 1001
    ids = np.zeros(n, dtype=np.int64)
    sequence = TokenSequence(
        Sample("a", "<text>", input_ids=ids),
        None,
        ids,
        None,
        *[np.ones(n, dtype=bool)] * 2,
        "text",
        "none",
        {},
    )
    scored = np.arange(n) > 0
    totals = totals_of(SequenceScore(sequence, np.full(n, 2.296875), scored, ids))
    assert totals.n_scored == 1000
    assert totals.total_loss == 2296.875
    assert totals.mean_loss == 2.296875


def test_what_goes_to_the_host_in_one_transfer_arrives_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of any dtype, in one dimension or two, in parts; infinities and NaN keep their bits."""
    columns = {
        "losses": torch.tensor([0.5, torch.inf, torch.nan], dtype=torch.float64),
        "same": torch.tensor([True, False, True]),
        "ids": torch.arange(6, dtype=torch.int32).reshape(3, 2).t().contiguous().t(),
        "ranks": torch.tensor([1, 2**40, -3]),
    }
    n_transfers, cpu = 0, torch.Tensor.cpu

    def counting(self: torch.Tensor) -> torch.Tensor:
        nonlocal n_transfers
        n_transfers += 1
        return cpu(self)

    monkeypatch.setattr(torch.Tensor, "cpu", counting)
    parts = [
        {name: column[rows] for name, column in columns.items()} for rows in (slice(1), slice(1, 3))
    ]
    found = to_host(parts)
    assert n_transfers == 1
    for name, array in {"losses": found.losses, **found.columns}.items():
        assert array.dtype == columns[name].numpy().dtype
        np.testing.assert_array_equal(array, columns[name].numpy())
