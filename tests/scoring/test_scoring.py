"""The pipeline against oracles (bigram by hand, ln V, one forward per prefix) and invariants."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import N_BYTE_IDS, bigram_model, byte_tokenizer, llama, zero_model
from helpers.oracles import reference_losses
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import BatchPolicy, TokenPolicy, WindowPolicy
from seqloss_cli.core.records import Rejected, Sample, SequenceScore
from seqloss_cli.metrics.totals import totals_of
from seqloss_cli.scoring.pipeline import read_ahead, score_samples
from seqloss_cli.tokenization.tokenizer import Tokenization

TOLERANCE = 1e-4  # nats per token in float32, rule 11


def samples(texts: list[str]) -> list[Sample]:
    return [Sample(str(n), "test", text=text) for n, text in enumerate(texts)]


def run(
    backend: Any,
    texts: list[str],
    context: int = 64,
    stride: int = 32,
    batch_tokens: int = 4096,
    policy: TokenPolicy | None = None,
    requested: Requested | None = None,
) -> list[SequenceScore]:
    tokenization = Tokenization(byte_tokenizer(), policy or TokenPolicy(), N_BYTE_IDS)
    windows = WindowPolicy(context, "test", stride)
    outcomes = score_samples(
        samples(texts),
        tokenization.tokenize,
        backend,
        windows,
        requested or Requested(),
        BatchPolicy(batch_tokens),
    )
    found = list(outcomes)
    assert all(isinstance(outcome, SequenceScore) for outcome in found)
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.fixture(scope="module")
def backend(model: Any) -> TorchBackend:
    return TorchBackend(model, 64)


def test_every_loss_of_the_zero_model_is_ln_v():
    for score in run(TorchBackend(zero_model(), 64), ["abc", "日本" * 40]):
        assert score.losses[score.scored] == pytest.approx(math.log(N_BYTE_IDS), abs=1e-6)
        assert not score.scored[0]


def test_bigram_model_by_hand():
    """Each loss is the table's entry, whatever the window: context beyond one token is nothing."""
    table = torch.randn(N_BYTE_IDS, N_BYTE_IDS, generator=torch.manual_seed(1)).mul(3)
    table = table.log_softmax(-1)
    backend = TorchBackend(bigram_model(table), 64)
    for context, stride in ((64, 32), (7, 3), (2, 1), (5, 5)):
        for score in run(backend, ["to be or not to be 🐕" * 5, "x"], context, stride):
            ids = score.sequence.token_ids
            # The first target of a later window whose stride is the context sees BOS alone.
            seen = np.where(score.context_lengths[1:] == 1, ids[0], ids[:-1])
            expected = -table[seen, ids[1:]].double().numpy()
            assert score.losses[1:] == pytest.approx(expected, abs=TOLERANCE)


def test_losses_are_those_of_one_forward_per_prefix_in_float64(model):
    double = llama().double()
    texts = ["Hello, wörld!", "a", "the quick brown fox jumps over the lazy dog"]
    for score in run(TorchBackend(model, 64), texts):
        expected = reference_losses(double, score.sequence.token_ids.tolist())
        assert score.losses[1:] == pytest.approx(expected[1:], abs=TOLERANCE)


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 1), (16, 16), (9, 4), (1, 1)])
@pytest.mark.parametrize("bos", ["auto", "never"])
def test_windows_are_scored_as_a_forward_over_what_each_target_may_see(
    model, backend, context, stride, bos
):
    text = "The window moves on, and every target is scored once."
    policy = TokenPolicy(bos=bos)
    (score,) = run(backend, [text], context, stride, policy=policy)
    ids = score.sequence.token_ids.tolist()
    for t in range(1, len(ids)):
        seen = int(score.context_lengths[t])
        assert 1 <= seen <= context
        fed = ids[t - seen : t] if bos == "never" else [ids[0], *ids[t - seen + 1 : t]]
        expected = reference_losses(model, [*fed, ids[t]])[-1]
        assert score.losses[t] == pytest.approx(expected, abs=TOLERANCE)


@given(
    texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8),
    batch_tokens=st.sampled_from([1, 50, 200, 4096]),
    shuffler=st.randoms(use_true_random=False),
)
def test_numbers_do_not_depend_on_batch_order_or_padding(backend, texts, batch_tokens, shuffler):
    alone = [run(backend, [text], 20, 10)[0] for text in texts]
    order = list(range(len(texts)))
    shuffler.shuffle(order)
    together = run(backend, [texts[n] for n in order], 20, 10, batch_tokens)
    for n, score in zip(order, together, strict=True):
        assert score.sequence.sample.text == texts[n]
        assert score.losses == pytest.approx(alone[n].losses, abs=TOLERANCE)
        assert (score.scored == alone[n].scored).all()


def test_output_order_is_input_order_with_rejected_rows_between(backend):
    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
    items: list[Any] = samples(["b" * (50 - n % 50) for n in range(100)])
    items[3] = Rejected("3", "test", 3, "empty", "holds no text")
    items[40] = Sample("40", "test", input_ids=np.array([5, 9999]))
    policy = WindowPolicy(64, "test", 32)
    found = list(
        score_samples(items, tokenization.tokenize, backend, policy, Requested(), BatchPolicy(200))
    )
    ids = [o.id if isinstance(o, Rejected) else o.sequence.sample.id for o in found]
    assert ids == [str(n) for n in range(100)]
    assert [n for n, o in enumerate(found) if isinstance(o, Rejected)] == [3, 40]
    assert found[40].reason == "id_out_of_range"


def test_ranks_entropy_and_alternatives_against_full_logits(model, backend):
    (score,) = run(backend, ["Ranks and entropies"], requested=Requested(True, True, 5))
    ids = score.sequence.token_ids
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits[0, :-1].double()
    log_probs = logits.log_softmax(-1)
    for t in range(1, len(ids)):
        row = log_probs[t - 1]
        assert score.ranks[t] == 1 + int((row > row[ids[t]]).sum())
        assert score.entropies[t] == pytest.approx(float(-(row.exp() * row).sum()), abs=TOLERANCE)
        best = row.argsort(descending=True)[:5]
        assert score.top_ids[t].tolist() == best.tolist()
        assert score.top_log_probs[t] == pytest.approx(row[best].numpy(), abs=TOLERANCE)


def test_a_nan_from_the_model_rejects_the_row():
    broken = llama()
    with torch.no_grad():
        broken.lm_head.weight[7] = math.nan
    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
    policy = WindowPolicy(64, "test", 32)
    backend = TorchBackend(broken, 64)
    found = list(
        score_samples(
            samples(["ab"]), tokenization.tokenize, backend, policy, Requested(), BatchPolicy(64)
        )
    )
    assert isinstance(found[0], Rejected)
    assert found[0].reason == "nan_loss"


def test_a_single_token_without_bos_has_nothing_scored(backend):
    (score,) = run(backend, ["a"], policy=TokenPolicy(bos="never"))
    assert not score.scored.any()
    assert totals_of(score).total_loss is None


def test_threads_share_a_backend(backend):
    texts = [[f"{n} and {k} " * (1 + (3 * n + k) % 5) for n in range(12)] for k in range(6)]
    alone = [run(backend, each) for each in texts]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda each: run(backend, each), texts))
    for scores, expected in zip(found, alone, strict=True):
        for score, other in zip(scores, expected, strict=True):
            np.testing.assert_array_equal(score.losses, other.losses)


def test_read_ahead_is_bounded_lazy_and_keeps_order():
    taken = []

    def endless():
        n = 0
        while True:
            taken.append(n)
            yield Sample(str(n), "test", text="x" * 10)
            n += 1

    blocks = read_ahead(endless())
    sizes = [len(next(blocks)) for _ in range(13)]
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024]
    assert len(taken) == sum(sizes)


def test_read_ahead_cuts_after_a_mebibyte_of_what_was_read():
    long = [Sample(str(n), "test", text="x" * 600_000) for n in range(6)]
    assert [len(block) for block in read_ahead(long)] == [1, 2, 2, 1]
    other_fields = [Sample(str(n), "test", text="x", n_bytes_read=600_000) for n in range(6)]
    assert [len(block) for block in read_ahead(other_fields)] == [1, 2, 2, 1]
