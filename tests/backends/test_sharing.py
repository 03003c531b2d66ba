"""Common beginnings are computed once, and no number minds: rule 11 of the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.architectures import ARCHITECTURES, build
from helpers.builders import llama
from helpers.oracles import plain_losses
from helpers.runs import PROMPTS, Counting, outcomes
from seqloss_cli import PairPolicy, Sample
from seqloss_cli.backends.batching import WIDEST_SUFFIXES, plan_batches
from seqloss_cli.backends.prefix_sharing import SHORTEST_PREFIX, group_by_prefix
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.forward import cache_keyword
from seqloss_cli.core.backend import Capabilities, Requested
from seqloss_cli.core.errors import OutOfMemoryError
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import Pair, TokenSequence

CONTEXT = 64
UNSHARED = ("bloom", "falcon-h1", "mamba", "rwkv")
"""ALiBi and recurrent states: what they carry is no cache of keys and values at positions."""


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    found = TorchBackend(llama(context=CONTEXT), CONTEXT, share_prefix=True)
    assert found.capabilities.longest_shared == CONTEXT
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_shares_exactly_or_says_that_it_cannot(name: str) -> None:
    model = build(name, sliding_window=64) if name in ("gemma2", "phi3") else build(name)
    backend = TorchBackend(model, CONTEXT, share_prefix=True)
    counting = Counting(backend)
    for score in outcomes(counting, share=True):
        ids = score.sequence.token_ids.tolist()
        expected = plain_losses(model, ids)
        np.testing.assert_allclose(score.losses[1:], expected, rtol=0, atol=1e-4)
    shares = any(batch.suffixes for batch in counting.batches)
    assert shares == (name not in UNSHARED)
    assert any("computed for each" in w for w in backend.warnings) == (name in UNSHARED)


@pytest.mark.parametrize("name", ["gemma2", "phi3"])
def test_nothing_beyond_a_sliding_window_is_shared(name: str) -> None:
    backend = TorchBackend(build(name, sliding_window=30), CONTEXT, share_prefix=True)
    assert backend.capabilities.longest_shared == 30
    counting = Counting(backend)
    for score in outcomes(counting, share=True):
        ids = score.sequence.token_ids.tolist()
        np.testing.assert_allclose(score.losses[1:], plain_losses(backend.model, ids), atol=1e-4)
    assert any(batch.suffixes for batch in counting.batches)


def test_a_common_prompt_is_fed_once(backend: TorchBackend) -> None:
    pairs = [Pair("a common prompt of 27 bytes", f"response {n}") for n in range(8)]
    counting = Counting(backend)
    outcomes(counting, True, pairs)
    (batch,) = counting.batches
    assert batch.lengths.tolist() == [1 + 27 + len("response ")]
    assert batch.suffixes == ()  # the last token of each is never fed


@given(
    st.lists(
        st.tuples(st.sampled_from(PROMPTS), st.text("ab ", min_size=1, max_size=20)),
        min_size=1,
        max_size=24,
    ),
    st.sampled_from([1, 40, 100, 4096]),
    st.booleans(),
)
def test_sharing_changes_no_number(
    backend: TorchBackend, texts: list[tuple[str, str]], tokens: int, marginal: bool
) -> None:
    pairs = [Pair(*both) for both in texts]
    policy = PairPolicy(marginal=marginal, pmi=True)
    requested = Requested(ranks=True, entropy=True, top_k=2)
    apart = outcomes(backend, False, pairs, tokens, policy, requested)
    shared = outcomes(backend, True, pairs, tokens, policy, requested)
    for a, b in zip(apart, shared, strict=True):
        assert (a.scored == b.scored).all()
        assert (a.context_lengths == b.context_lengths).all()
        np.testing.assert_allclose(a.losses[a.scored], b.losses[b.scored], rtol=0, atol=1e-4)
        np.testing.assert_allclose(a.entropies, b.entropies, rtol=0, atol=1e-3)
        np.testing.assert_allclose(a.top_log_probs, b.top_log_probs, rtol=0, atol=1e-3)
        np.testing.assert_allclose(
            a.response_only.losses, b.response_only.losses, rtol=0, atol=1e-4
        )


SHARING = Capabilities(longest_shared=1000)


def probe(ids: list[int]) -> TokenSequence:
    array = np.array(ids, dtype=np.int64)
    wanted = np.arange(len(ids)) > 0
    return TokenSequence(Sample("", ""), None, array, None, wanted, wanted, "none", "none", {})


def test_many_long_branches_are_cut_into_rows_and_batches() -> None:
    prefix = list(range(100))
    rows = [probe([*prefix, *[200 + n] * 120, 7]) for n in range(30)]
    windows = WindowPolicy(1000, "test", 1000)
    batches = list(plan_batches(rows, windows, BatchPolicy(1200, True), SHARING))
    widths = [suffixes.input_ids.shape[1] for batch in batches for suffixes in batch.suffixes]
    assert max(widths) <= WIDEST_SUFFIXES
    fed = [batch.n_fed for batch in batches]
    assert max(fed) <= 1200
    assert sum(fed) < 30 * 120 + 6 * 100
    seen = sorted(part.sequence for batch in batches for part in batch.parts)
    assert seen == list(range(30))
    for batch in batches:
        for part in batch.parts:
            assert part.targets.tolist() == list(range(1, 221))


def test_long_tails_are_not_branches() -> None:
    """A mask of their length squared would cost more than the few tokens in common save."""
    prefix = list(range(100))
    rows = [probe([*prefix, *[200 + n] * tail]) for n, tail in enumerate((600, 600, 30, 30))]
    windows = WindowPolicy(1000, "test", 1000)
    shared, *apart = plan_batches(rows, windows, BatchPolicy(4096, True), SHARING)
    assert sorted(part.sequence for part in shared.parts) == [2, 3]
    assert sorted(part.sequence for batch in apart for part in batch.parts) == [0, 1]


def test_trees_that_do_not_fit_are_fed_row_by_row(backend: TorchBackend) -> None:
    class Tight(Counting):
        def score(self, batch: Any, requested: Requested) -> Any:
            if batch.suffixes or batch.input_ids.size > 100:
                raise OutOfMemoryError("no room")
            return super().score(batch, requested)

    tight = Tight(backend)
    found, expected = outcomes(tight, share=True), outcomes(backend, share=True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.losses, b.losses, rtol=0, atol=1e-4)
    assert tight.batches
    assert not any(batch.suffixes for batch in tight.batches)


# -- groups -----------------------------------------------------------------------------------


def saved(groups: Any) -> int:
    return sum(group.prefix * (len(group.members) - 1) for group in groups)


def test_groups_save_the_most_tokens() -> None:
    """Five examples that all rows begin with, then four endings for each question."""
    few_shot = list(range(30))
    rows = [np.array(few_shot + [100 + q] * 5 + [n]) for q in range(3) for n in range(4)]
    (group,) = group_by_prefix(rows)
    assert (group.prefix, len(group.members)) == (30, 12)
    longer = [np.array(few_shot + [100 + q] * 60 + [n]) for q in range(3) for n in range(4)]
    groups = group_by_prefix(longer)
    assert [(g.prefix, sorted(g.members)) for g in groups] == [
        (90, [0, 1, 2, 3]), (90, [4, 5, 6, 7]), (90, [8, 9, 10, 11]),
    ]  # fmt: skip


@given(st.lists(st.lists(st.integers(0, 1), max_size=8), max_size=10), st.integers(1, 4))
def test_groups_share_what_they_say(rows: list[list[int]], shortest: int) -> None:
    groups = group_by_prefix([np.array(row, dtype=np.int64) for row in rows], shortest)
    members = [n for group in groups for n in group.members]
    assert len(members) == len(set(members))
    for group in groups:
        assert group.prefix >= shortest
        assert len(group.members) >= 2
        assert len({tuple(rows[n][: group.prefix]) for n in group.members}) == 1
        assert min(len(rows[n]) for n in group.members) >= group.prefix
    grouped = set(members)
    by_prefix: dict[tuple[int, ...], int] = {}
    for n, row in enumerate(rows):
        if n not in grouped and len(row) >= shortest:
            key = tuple(row[:shortest])
            assert key not in by_prefix, "two rows that begin alike were left out"
            by_prefix[key] = n


def test_texts_that_grow_word_by_word_need_no_deep_recursion() -> None:
    groups = group_by_prefix([np.arange(n) for n in range(SHORTEST_PREFIX, 1024)])
    assert saved(groups) > 0


def test_models_are_given_caches_by_the_name_that_they_know() -> None:
    class Before(nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    class After(nn.Module):
        def forward(self, input_ids: Any, cache: Any = None) -> None: ...

    assert cache_keyword(Before()) == "past_key_values"
    assert cache_keyword(After()) == "cache"
