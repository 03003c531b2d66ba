"""Rule 7: nothing is cut, every target is scored exactly once, no forward is fed too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.backends.windows import plan_windows, with_end
from seqloss_cli.core.backend import Window

lengths = st.integers(0, 60)
contexts_and_strides = st.integers(1, 20).flatmap(
    lambda context: st.tuples(st.just(context), st.integers(1, context))
)


def fed_positions(window: Window) -> list[int]:
    return [0] * window.bos_first + list(range(window.start, window.end))


def targets(window: Window) -> list[int]:
    return list(range(window.score_from, window.end + 1))


@given(lengths, contexts_and_strides, st.booleans())
def test_every_target_is_scored_exactly_once_in_order(n, sizes, has_bos):
    context, stride = sizes
    scored = [t for w in plan_windows(n, context, stride, has_bos) for t in targets(w)]
    assert scored == list(range(1, n))


@given(lengths, contexts_and_strides, st.booleans())
def test_no_window_is_longer_than_the_context_or_feeds_the_last_token(n, sizes, has_bos):
    context, stride = sizes
    for window in plan_windows(n, context, stride, has_bos):
        fed = fed_positions(window)
        assert 1 <= len(fed) == window.n_fed <= context
        assert n - 1 not in fed
        assert len(set(fed)) == len(fed)
        assert len(targets(window)) <= len(fed)


@given(lengths, contexts_and_strides, st.booleans())
def test_context_lengths_count_the_tokens_that_a_target_sees(n, sizes, has_bos):
    context, stride = sizes
    for window in plan_windows(n, context, stride, has_bos):
        for target in targets(window):
            seen = [p for p in fed_positions(window) if p < target]
            assert window.context_length(target) == len(seen)


@given(lengths, contexts_and_strides)
def test_with_bos_every_window_begins_with_it(n, sizes):
    context, stride = sizes
    for window in plan_windows(n, context, stride, has_bos=True):
        assert fed_positions(window)[0] == 0


@given(lengths, contexts_and_strides, st.booleans())
def test_later_windows_score_at_most_a_stride_and_are_full(n, sizes, has_bos):
    context, stride = sizes
    for window in list(plan_windows(n, context, stride, has_bos))[1:]:
        assert len(targets(window)) <= stride
        assert window.n_fed == context


@given(st.integers(1, 60), contexts_and_strides, st.booleans())
def test_the_end_is_a_target_more_and_changes_no_other(n, sizes, has_bos):
    context, stride = sizes
    plain = list(plan_windows(n, context, stride, has_bos))
    found = list(with_end(plain, n, context, has_bos))
    seen = {t: w.context_length(t) for w in plain for t in targets(w)}
    with_it = {t: w.context_length(t) for w in found for t in targets(w)}
    assert with_it == seen | {n: min(n, context)}
    for window in found:
        fed = fed_positions(window)
        assert 1 <= len(fed) == window.n_fed <= context
        assert len(set(fed)) == len(fed)


def test_the_example_of_the_contract():
    windows = list(plan_windows(8, context=4, stride=2, has_bos=False))
    assert [targets(w) for w in windows] == [[1, 2, 3, 4], [5, 6], [7]]
    assert [w.context_length(t) for w in windows for t in targets(w)] == [1, 2, 3, 4, 3, 4, 4]
    assert [fed_positions(w) for w in windows] == [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]]


def test_stride_one_gives_every_target_the_fullest_context():
    for w in plan_windows(30, context=7, stride=1, has_bos=False):
        for target in targets(w):
            assert w.context_length(target) == min(target, 7)


def test_stride_equal_to_the_context_is_disjoint():
    windows = list(plan_windows(13, context=4, stride=4, has_bos=False))
    assert [fed_positions(w) for w in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize(("context", "stride"), [(4, 0), (4, 5), (0, 1)])
def test_impossible_sizes_are_refused(context, stride):
    with pytest.raises(ValueError, match="stride"):
        list(plan_windows(8, context, stride, has_bos=False))
