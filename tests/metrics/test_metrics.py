"""Sums are exact, rates follow the contract, words own their tokens."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.records import Sample, SequenceScore, TokenSequence
from seqloss_cli.metrics.totals import Totals, from_units, to_units, totals_of
from seqloss_cli.metrics.words import word_losses

losses = st.floats(0, 1e6, allow_nan=False, allow_infinity=False)


def scored(
    values: list[float | None],
    text: str | None = None,
    widths: list[int] | None = None,
    mask: list[int] | None = None,
    bos: str = "none",
    eos: str = "none",
) -> SequenceScore:
    """A score by hand: a loss for each token, None where it has none."""
    n = len(values)
    offsets = None if text is None else np.cumsum([0, *(widths or [0] * n)])
    sequence = TokenSequence(
        sample=Sample("x", "x", text=text),
        text=text,
        token_ids=np.arange(n),
        byte_offsets=offsets,
        loss_mask=np.array(mask or [1] * n, dtype=bool),
        score_mask=np.ones(n, dtype=bool),
        bos=bos,
        eos=eos,
        flags={},
    )
    known = np.array([value is not None for value in values])
    numbers = np.array([0.0 if value is None else value for value in values])
    return SequenceScore(sequence, numbers, known, np.zeros(n, dtype=np.int64))


def test_worked_example_sum_of_a_four_token_sequence():
    totals = totals_of(scored([None, 1.2, 0.5, 2.3]))
    assert totals.total_loss == 4.0
    assert totals.n_scored == 3


def test_worked_example_total_and_mean():
    totals = totals_of(scored([0.1, 0.3, 0.2, 0.4]))
    assert totals.total_loss == 1.0
    assert totals.mean_loss == 0.25
    assert totals.log_prob == -1.0
    assert totals.perplexity == math.exp(0.25)


def test_worked_example_corpus_total():
    parts = [totals_of(scored([None, value])) for value in (8.4, 2.1, 5.5)]
    assert sum(parts, Totals()).total_loss == 16.0


def test_worked_example_three_means():
    corpus = totals_of(scored([10.0])) + totals_of(scored([1.0] * 99))
    assert corpus.mean_loss == 1.09
    assert corpus.mean_of_mean_losses == 5.5
    assert corpus.mean_sequence_loss == 54.5


def test_a_thousand_equal_losses_do_not_drift():
    assert totals_of(scored([2.296875] * 1000)).total_loss == 2296.875


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_units_hold_every_float_exactly(value):
    assert from_units(to_units(value)) == value


@given(st.lists(st.lists(losses, min_size=1), max_size=12), st.randoms(), st.integers(0, 12))
def test_totals_do_not_depend_on_order_or_split(rows, shuffler, cut):
    parts = [totals_of(scored(row)) for row in rows]
    whole = sum(parts, Totals())
    shuffled = parts[:]
    shuffler.shuffle(shuffled)
    assert sum(shuffled, Totals()) == whole
    assert sum(parts[:cut], Totals()) + sum(parts[cut:], Totals()) == whole
    expected = math.fsum(part.total_loss for part in parts)
    assert (whole.total_loss or 0.0) == expected


@given(st.lists(losses, min_size=1))
def test_a_sequence_total_is_the_correctly_rounded_sum(values):
    shuffled = values[:]
    random.Random(0).shuffle(shuffled)
    assert totals_of(scored(shuffled)).total_loss == math.fsum(values)


def test_unscored_and_masked_tokens_do_not_count():
    totals = totals_of(scored([None, 1.0, 2.0, 4.0], mask=[1, 0, 1, 1]))
    assert totals.n_scored == 2
    assert totals.total_loss == 6.0


def test_nothing_scored_is_null_and_flagged():
    totals = totals_of(scored([None]))
    assert totals.total_loss is None
    assert totals.mean_loss is None
    assert totals.perplexity is None
    assert totals.bits_per_byte is None
    assert totals.mean_sequence_loss is None
    assert totals.flags == {"nothing_scored": 1}


def test_an_infinite_loss_counts_and_makes_the_sums_null():
    totals = totals_of(scored([None, 1.0, math.inf])) + totals_of(scored([None, 1.0]))
    assert totals.n_scored == 3
    assert totals.total_loss is None
    assert totals.mean_of_mean_losses is None
    assert totals.flags == {"inf_loss": 1}


def test_rates_per_byte_char_and_word():
    # "日x a" is 3 + 1 + 1 + 1 bytes; the first token covers two bytes of 日 and is not scored.
    totals = totals_of(scored([None, 2.0, 3.0], text="日x a", widths=[2, 2, 2]))
    assert totals.n_bytes == 6
    assert totals.n_scored_bytes == 4
    assert totals.n_chars == 4
    assert totals.n_scored_chars == 4  # the last byte of 日 lies in a scored token
    assert totals.bits_per_byte == 5.0 / (math.log(2) * 4)
    assert totals.bits_per_char == 5.0 / (math.log(2) * 4)
    assert totals.n_words == 2
    assert totals.word_perplexity is None  # a text token is unscored


def test_word_perplexity_counts_eos_and_not_bos():
    score = scored([None, 2.0, 3.0, 1.0], "ab cd", [0, 2, 3, 0], bos="prepended", eos="appended")
    assert totals_of(score).word_perplexity == math.exp(6.0 / 2)


def test_word_perplexity_that_overflows_or_has_no_word_is_null():
    assert totals_of(scored([1e6], "ab", [2])).word_perplexity is None
    assert totals_of(scored([1.0], "  ", [2])).word_perplexity is None
    assert totals_of(scored([1e6], "ab", [2])).perplexity is None


def test_rates_are_null_with_a_row_of_ids_among_texts():
    corpus = totals_of(scored([1.0], "ab", [2])) + totals_of(scored([1.0]))
    assert corpus.bits_per_byte is None
    assert corpus.word_perplexity is None
    assert corpus.mean_loss == 1.0


def unspelled(values: list[float | None], text: str, widths: list[int], n: int) -> Totals:
    """Totals of a text of which the first `n` bytes have no token that stands for them."""
    score = scored(values, text, widths)
    return totals_of(replace(score, sequence=replace(score.sequence, unspelled=np.arange(n))))


def test_rates_of_text_are_over_the_sequences_that_tokens_spell():
    spelled, dropped = (
        totals_of(scored([1.0, 3.0], "ab c", [2, 2])),
        unspelled([8.0], "吾a", [4], 3),
    )
    for name in ("bits_per_byte", "bits_per_char", "word_perplexity"):
        assert getattr(dropped, name) is None
        assert getattr(dropped + spelled, name) == getattr(spelled, name)
    corpus = dropped + spelled + dropped
    assert (corpus.n_unspelled_sequences, corpus.unspelled_bytes) == (2, 6)
    assert corpus.total_loss == 20.0
    assert corpus.mean_loss == 5.0
    assert corpus.n_scored_bytes == 12


def test_an_infinite_loss_in_what_is_left_out_leaves_the_rates():
    corpus = unspelled([math.inf], "吾a", [4], 3) + totals_of(scored([2.0], "ab", [2]))
    assert corpus.total_loss is None
    assert corpus.bits_per_byte == 1.0 / math.log(2)


@given(st.lists(st.tuples(losses, st.integers(0, 2)), max_size=8), st.integers(0, 8))
def test_sums_of_what_is_left_out_do_not_depend_on_a_split(rows, cut):
    parts = [unspelled([loss], "ab", [2], n) for loss, n in rows]
    assert sum(parts[:cut], Totals()) + sum(parts[cut:], Totals()) == sum(parts, Totals())


def test_words_own_tokens_by_their_first_byte_that_is_not_white_space():
    #        BOS   "the"  " " " ca" "t."  "\n" EOS
    score = scored(
        [None, 1.0, 0.25, 2.0, 4.0, 8.0, 16.0],
        text="the  cat.\n",
        widths=[0, 3, 1, 3, 2, 1, 0],
        bos="tokenizer",
        eos="appended",
    )
    found = word_losses(score)
    assert found.words == ["the", "cat."]
    assert found.losses == [1.0, 0.25 + 2.0 + 4.0 + 8.0]
    assert found.byte_offsets.tolist() == [[0, 3], [5, 9]]
    assert found.n_shared_tokens == 0


def test_a_token_over_two_words_counts_on_the_first():
    found = word_losses(scored([1.0, 2.0], text="a b c", widths=[3, 2]))
    assert found.losses == [1.0, None, 2.0]
    assert found.n_shared_tokens == 1


def test_a_word_with_an_unscored_part_is_null():
    assert word_losses(scored([None, 2.0, 3.0], "ab c", [1, 1, 2])).losses == [None, 3.0]


@given(st.text(alphabet="ab \n日🐕", min_size=1), st.data())
def test_word_losses_add_up_to_the_total(text, data):
    size = len(text.encode())
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, size - 1)))) & set(range(1, size)))
    edges = [0, *cuts, size]
    values = [float(n + 1) for n in range(len(edges) - 1)]
    score = scored(values, text, list(np.diff(edges)))
    found = word_losses(score)
    if found.words:
        known = [loss for loss in found.losses if loss is not None]
        assert math.fsum(known) == totals_of(score).total_loss


@pytest.mark.parametrize(
    ("probability", "loss"),
    [(0.75, 0.287682), (0.15, 1.897120), (0.8, 0.223144), (0.2, 1.609438)],
)
def test_worked_examples_of_single_probabilities(probability, loss):
    """Through the head: logits whose softmax gives the probability."""
    import torch

    from helpers.builders import lazy_logits
    from seqloss_cli.backends.torch.head import score_logits
    from seqloss_cli.core.backend import Requested

    logits = torch.tensor([[probability, 1 - probability]]).log()
    found = score_logits(lazy_logits(logits), torch.tensor([0]), Requested()).losses
    assert float(found[0]) == pytest.approx(loss, abs=5e-7)
