"""Losses of words with their own ends: a closed lexicon, an oracle with full logits, invariants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers.builders import (
    BOS,
    EOS,
    N_BYTE_IDS,
    bigram_model,
    byte_tokenizer,
    llama,
    save_checkpoint,
)
from helpers.program import document, in_process
from seqloss_cli import Sample, SequenceScore, UsageError
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.backend import BEGINS, STARTS_UNSPACED, Requested
from seqloss_cli.core.policies import BatchPolicy, TokenPolicy, WindowPolicy
from seqloss_cli.metrics.words import WordLosses, word_losses
from seqloss_cli.scoring.pipeline import score_samples
from seqloss_cli.tokenization.tokenizer import Tokenization
from seqloss_cli.tokenization.vocabulary import word_boundary_ids

TOLERANCE = 1e-4
NEVER = -80.0  # of a bigram that does not come: less than 1e-34
CORPUS = [
    "the cats sat on the mat and the cat ate the rats that the dogs had caught",
    "a dog and a catalogue of dogs, mats and hats; then the hatter sat down.",
    "some catching of caterpillars on matted thatch",
]
TEXTS = ["the cat sat", "dogs had a catalogue of hats, then sat down.", "matted caterpillars"]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def toy_tokenizer(*merged: tuple[str, str]) -> PreTrainedTokenizerFast:
    """GPT-2-like, with the merges of a few words; its size is even, as rotary positions ask."""
    pieces = [BOS, EOS, "Ġ", "Ċ", *"abc.", *("".join(merge) for merge in merged)]
    pieces += ["d"] * (len(pieces) % 2)
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [*merged]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(tokenizer)


def trained(kind: str) -> PreTrainedTokenizerFast:
    """`gpt2`: words begin with Ġ, the first without; `sentencepiece`: each with ▁."""
    tokenizer = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        prepend, replaced = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.normalizer = normalizers.Sequence([prepend, replaced])
        tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 90, special_tokens=[BOS, EOS], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer)


class Scored:
    """A tokenizer and an engine, asked for words."""

    def __init__(self, tokenizer: Any, model: Any, policy: TokenPolicy | None = None) -> None:
        n_ids = model.get_input_embeddings().weight.shape[0]
        self.tokenization = Tokenization(tokenizer, policy or TokenPolicy(), n_ids)
        self.boundary_ids = self.tokenization.word_boundary_ids()
        self.backend = TorchBackend(model, 64, share_prefix=False)

    def scores(
        self, texts: list[str], context: int = 64, stride: int = 32, tokens: int = 4096
    ) -> list[SequenceScore]:
        outcomes = score_samples(
            [Sample(str(n), "test", text=text) for n, text in enumerate(texts)],
            self.tokenization.tokenize,
            self.backend,
            WindowPolicy(context, "test", stride),
            Requested(word_boundary_ids=self.boundary_ids),
            BatchPolicy(tokens),
        )
        return [outcome for outcome in outcomes if isinstance(outcome, SequenceScore)]

    def words(self, text: str, **settings: int) -> WordLosses:
        (score,) = self.scores([text], **settings)
        found = word_losses(score, self.boundary_ids)
        assert found is not None
        return found

    def last(self, text: str) -> tuple[float, float]:
        """Probabilities of the last word: plain, corrected."""
        found = self.words(text)
        assert found.corrected is not None
        plain, corrected = found.losses[-1], found.corrected[-1]
        assert plain is not None
        assert corrected is not None
        return math.exp(-plain), math.exp(-corrected)


def bigrams(tokenizer: Any, rows: dict[str, dict[str, float]]) -> tuple[torch.Tensor, Any]:
    """ln P[next | previous] of named pieces; what is not named never comes."""
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.get_vocab()}
    weights = torch.full((len(ids), len(ids)), NEVER, dtype=torch.float64)
    for before, row in rows.items():
        for after, weight in row.items():
            weights[ids[before], ids[after]] = math.log(weight)
    table = weights.log_softmax(-1).float()
    return table.double().exp(), bigram_model(table)


# -- a closed lexicon -------------------------------------------------------------------------

MERGES = (("Ġ", "a"), ("Ġa", "b"), ("Ġ", "b"))
NEXT = {"Ġa": 3.0, "Ġab": 2.0, "Ġb": 4.0}
LEXICON = ["a", "ac", "ab", "abc", "b", "bc"]
ROWS = {
    BOS: {"a": 3.0, "b": 2.0, "c": 1.0, **NEXT, EOS: 0.5},
    "a": {"b": 2.0, "c": 5.0, **NEXT, EOS: 1.0},
    "b": {"c": 6.0, **NEXT, EOS: 2.0},
    "c": {**NEXT, EOS: 3.0},
    "Ġa": {"c": 4.0, **NEXT, EOS: 1.0},
    "Ġab": {"c": 7.0, **NEXT, EOS: 1.5},
    "Ġb": {"c": 0.5, **NEXT, EOS: 2.5},
}


def ended(table: torch.Tensor, tokenizer: Any, before: str, beside: list[str]) -> float:
    """The probability that the text is over, among what may come beside it."""
    row = table[tokenizer.convert_tokens_to_ids(before)]
    return float(row[1] / row[tokenizer.convert_tokens_to_ids([*beside, EOS])].sum())


@pytest.mark.parametrize(("before", "token"), [("a", "a"), ("ac", "c"), ("b ab", "Ġab")])
def test_corrected_words_of_a_closed_lexicon_and_the_end_sum_to_one(
    before: str, token: str
) -> None:
    tokenizer = toy_tokenizer(*MERGES)
    table, model = bigrams(tokenizer, ROWS)
    scored = Scored(tokenizer, model)
    plain, corrected = zip(*(scored.last(f"{before} {word}") for word in LEXICON), strict=True)
    end = ended(table, tokenizer, token, [*NEXT])
    assert math.fsum(corrected) + end == pytest.approx(1, abs=1e-5)
    assert abs(math.fsum(plain) + end - 1) > 0.1
    assert abs(math.fsum(plain) - 1) > 0.05


def test_first_words_of_a_closed_lexicon_and_the_empty_text_sum_to_one() -> None:
    tokenizer = toy_tokenizer(*MERGES)
    table, model = bigrams(tokenizer, ROWS)
    scored = Scored(tokenizer, model)
    words = ["a", "ac", "ab", "abc", "b", "bc", "c"]
    plain, corrected = zip(*(scored.last(word) for word in words), strict=True)
    end = ended(table, tokenizer, BOS, ["a", "b", "c"])
    assert math.fsum(corrected) + end == pytest.approx(1, abs=1e-5)
    assert abs(math.fsum(plain) + end - 1) > 0.1
    spaced, corrected = zip(*(scored.last(f" {word}") for word in LEXICON), strict=True)
    end = ended(table, tokenizer, BOS, [*NEXT])
    assert math.fsum(corrected) + end == pytest.approx(1, abs=1e-5)
    assert abs(math.fsum(spaced) + end - 1) > 0.1


def test_words_that_the_model_never_ends_a_text_after_sum_to_one_alone() -> None:
    tokenizer = toy_tokenizer(*MERGES)
    rows = {name: {k: w for k, w in row.items() if k != EOS} for name, row in ROWS.items()}
    scored = Scored(tokenizer, bigrams(tokenizer, rows)[1])
    plain, corrected = zip(*(scored.last(f"a {word}") for word in LEXICON), strict=True)
    assert math.fsum(corrected) == pytest.approx(1, abs=1e-5)
    assert math.fsum(plain) > 1.1 or math.fsum(plain) < 0.9


def test_a_piece_that_ends_in_white_space_counts_as_an_end_of_the_shorter_word() -> None:
    """As with Llama 3: a full stop alone, or with the line break after it."""
    tokenizer = toy_tokenizer(*MERGES, (".", "Ċ"))
    stops = {".": 5.0, ".Ċ": 4.0}
    rows = {name: {**row, **stops} for name, row in ROWS.items() if name not in (BOS, ".")}
    rows |= {BOS: ROWS[BOS], ".": {**NEXT, EOS: 1.0}, ".Ċ": {**NEXT, "a": 1.0, EOS: 1.0}}
    table, model = bigrams(tokenizer, rows)
    scored = Scored(tokenizer, model)
    words = [*LEXICON, *(f"{word}." for word in LEXICON)]
    plain, corrected = zip(*(scored.last(f"a. {word}") for word in words), strict=True)
    dot = table[tokenizer.convert_tokens_to_ids(".")]
    a = table[tokenizer.convert_tokens_to_ids("a")]
    over = float(a[tokenizer.convert_tokens_to_ids(".")])
    over += float(a[tokenizer.convert_tokens_to_ids(".Ċ")])
    # After "a." stand a word with a space before it, the end, or what follows the line break.
    through_space = float(a[tokenizer.convert_tokens_to_ids(".")] / over)
    end = float(dot[1]) * through_space
    assert math.fsum(corrected) + end == pytest.approx(through_space, abs=1e-5)
    assert abs(math.fsum(plain) + end - through_space) > 0.1
    found = scored.words("a b.\na b")
    assert found.corrected is not None
    assert [loss is None for loss in found.corrected] == [False, True, True, False]
    assert found.flags == {"uncorrected_word": 2}


# -- an oracle with all logits ----------------------------------------------------------------


def begins_word(piece: str) -> bool:
    return piece.startswith(("▁", *"ĉĊċČčĜĝĞğĠ"))  # bytes 9 to 13 and 28 to 32


@torch.no_grad()
def oracle(model: Any, tokenizer: Any, ids: list[int], first_is_spaced: bool) -> list[float]:
    """Of texts whose words stand between single blanks; float64, one forward over all."""
    log_probs = model.double()(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    pieces = tokenizer.convert_ids_to_tokens(list(range(log_probs.shape[1])))
    spaced = np.array([begins_word(piece) for piece in pieces])
    special = np.array([piece in (BOS, EOS) for piece in pieces])

    def total(place: int, which: Any) -> float:
        return float(np.logaddexp.reduce(log_probs[place, which]))

    starts = [t for t in range(1, len(ids)) if t == 1 or spaced[ids[t]]]
    losses = []
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        plain = -sum(log_probs[t - 1, ids[t]] for t in range(start, stop))
        unspaced = start == 1 and not first_is_spaced
        before = total(start - 1, ~spaced if unspaced else spaced | special)
        losses.append(plain - total(stop - 1, spaced | special) + before)
    return losses


@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece"])
def test_corrected_losses_are_those_of_a_plain_forward_in_float64(kind: str) -> None:
    tokenizer = trained(kind)
    scored = Scored(tokenizer, llama(len(tokenizer)))
    assert any(len(s.sequence.token_ids) > 8 for s in scored.scores(TEXTS))
    for score in scored.scores(TEXTS, tokens=20):
        found = word_losses(score, scored.boundary_ids)
        ids = score.sequence.token_ids.tolist()
        expected = oracle(llama(len(tokenizer)), tokenizer, ids, kind == "sentencepiece")
        assert found is not None
        assert found.corrected == pytest.approx(expected, abs=TOLERANCE)
        assert not found.flags


def test_an_end_that_is_scored_counts_as_any_other() -> None:
    """With --eos the distribution that predicts EOS is the one after the last word."""
    tokenizer, model = trained("gpt2"), llama(len(trained("gpt2")))
    without, with_eos = Scored(tokenizer, model), Scored(tokenizer, model, TokenPolicy(eos=True))
    for text in TEXTS:
        expected = without.words(text).corrected
        assert with_eos.words(text).corrected == pytest.approx(expected, abs=TOLERANCE)


@pytest.fixture(scope="module")
def gpt2() -> Scored:
    tokenizer = trained("gpt2")
    return Scored(tokenizer, llama(len(tokenizer)))


@torch.no_grad()
def boundary_by_hand(scored: Scored, fed: list[int], column: int) -> float:
    row = scored.backend.model(torch.tensor([fed])).logits[0, -1].double().log_softmax(-1).numpy()
    spaced, ends = scored.boundary_ids.leading_space, scored.boundary_ids.ends_text
    return float(np.logaddexp.reduce(row[(spaced if column == BEGINS else ~spaced) | ends]))


@pytest.mark.parametrize(
    ("context", "stride"), [(16, 8), (16, 1), (16, 16), (9, 4), (2, 1), (1, 1)]
)
@pytest.mark.parametrize("n_words", range(1, 10))
def test_windows_leave_losses_alone_and_boundaries_see_what_losses_see(
    gpt2: Scored, context: int, stride: int, n_words: int
) -> None:
    text = " ".join(CORPUS[0].split()[:n_words])
    (score,) = gpt2.scores([text], context, stride)
    plain = list(
        score_samples(
            [score.sequence.sample],
            gpt2.tokenization.tokenize,
            gpt2.backend,
            WindowPolicy(context, "test", stride),
            Requested(),
            BatchPolicy(),
        )
    )
    assert isinstance(plain[0], SequenceScore)
    np.testing.assert_allclose(score.losses, plain[0].losses, atol=TOLERANCE)
    np.testing.assert_array_equal(score.context_lengths, plain[0].context_lengths)
    ids = score.sequence.token_ids.tolist()
    assert len(score.columns["word_boundary_log_probs"]) == len(ids) + 1
    seen = [*score.context_lengths.tolist(), min(len(ids), context)]
    for t in range(1, len(ids) + 1):
        n = seen[t]
        fed = [ids[0], *ids[t - n + 1 : t]]
        for column in (BEGINS, STARTS_UNSPACED):
            expected = boundary_by_hand(gpt2, fed, column)
            assert score.columns["word_boundary_log_probs"][t, column] == pytest.approx(
                expected, abs=TOLERANCE
            )


@given(
    texts=st.lists(
        st.lists(st.sampled_from(CORPUS[1].split()), min_size=1, max_size=12).map(" ".join),
        min_size=1,
        max_size=5,
    ),
    tokens=st.sampled_from([1, 20, 4096]),
)
@settings(max_examples=25)
def test_neither_batch_nor_order_matters_and_corrections_telescope(
    gpt2: Scored, texts: list[str], tokens: int
) -> None:
    together = gpt2.scores(texts, tokens=tokens)
    turned = gpt2.scores(texts[::-1])[::-1]
    for text, score, other in zip(texts, together, turned, strict=True):
        found, again = word_losses(score, gpt2.boundary_ids), word_losses(other, gpt2.boundary_ids)
        assert found is not None
        assert again is not None
        assert found.corrected is not None
        assert found.corrected == pytest.approx(again.corrected, abs=TOLERANCE)
        assert found.corrected == pytest.approx(gpt2.words(text).corrected, abs=TOLERANCE)
        ends = score.columns["word_boundary_log_probs"]
        moved = ends[1, STARTS_UNSPACED] - ends[-1, BEGINS]
        assert math.fsum(found.corrected) == pytest.approx(
            math.fsum(found.losses) + moved, abs=TOLERANCE
        )
        assert min(found.corrected) > -1e-5


def test_blocks_of_the_vocabulary_and_whole_rows_agree(gpt2: Scored) -> None:
    whole = TorchBackend(llama(len(trained("gpt2"))), 64, path="plain")
    blocks = TorchBackend(llama(len(trained("gpt2"))), 64)
    blocks.model_forward.block_width = 7
    found = []
    for backend in (whole, blocks):
        gpt2.backend, before = backend, gpt2.backend
        found.append(gpt2.scores(TEXTS, tokens=1)[1].columns["word_boundary_log_probs"])
        gpt2.backend = before
    np.testing.assert_allclose(found[0], found[1], atol=TOLERANCE)


# -- layouts of words -------------------------------------------------------------------------


def test_white_space_around_words(gpt2: Scored) -> None:
    """Two blanks and line breaks are part of how the next word begins; at the end, of nothing."""
    plain, spaced = gpt2.words("the cat sat"), gpt2.words("the  cat\n\nsat \n")
    assert plain.corrected is not None
    assert spaced.corrected is not None
    assert None not in spaced.corrected
    (whole,), (cut,) = gpt2.scores(["the cat sat"]), gpt2.scores(["the cat sat \n"])
    assert word_losses(cut, gpt2.boundary_ids).corrected == pytest.approx(  # type: ignore[union-attr]
        word_losses(whole, gpt2.boundary_ids).corrected,
        abs=TOLERANCE,  # type: ignore[union-attr]
    )


def test_words_whose_ends_are_not_told_are_flagged(gpt2: Scored) -> None:
    found = gpt2.words("the cat\u00a0sat on mats")  # its two bytes are tokens of their own
    assert found.corrected is not None
    assert [loss is None for loss in found.corrected] == [False, True, True, False, False]
    assert found.flags == {"uncorrected_word": 2}
    found = gpt2.words(f"the cat{EOS}sat on")
    assert found.corrected is not None
    assert [loss is None for loss in found.corrected] == [False, True, False]


def test_without_bos_the_first_word_has_neither_loss() -> None:
    tokenizer = trained("gpt2")
    scored = Scored(tokenizer, llama(len(tokenizer)), TokenPolicy(bos="never"))
    found = scored.words("the cat sat")
    assert found.corrected is not None
    assert [loss is None for loss in found.corrected] == [True, False, False]
    assert not found.flags


@given(st.text(alphabet="abcdehost .,\n\t\u00a0\u3000é", min_size=1, max_size=40))
def test_any_text_has_losses_that_are_above_zero_or_none(gpt2: Scored, text: str) -> None:
    for score in gpt2.scores([text], 16, 4):
        found = word_losses(score, gpt2.boundary_ids)
        assert found is not None
        assert found.corrected is not None
        assert len(found.corrected) == len(found.losses) == len(text.split())
        for plain, corrected in zip(found.losses, found.corrected, strict=True):
            assert corrected is None or (plain is not None and corrected > -1e-5)
        none = sum(corrected is None for corrected in found.corrected)
        assert found.flags.get("uncorrected_word", 0) + found.losses.count(None) == none


# -- vocabularies -----------------------------------------------------------------------------


def of_pieces(*pieces: str) -> Any:
    return word_boundary_ids([piece.encode() for piece in pieces], set())


@pytest.mark.parametrize(
    "pieces",
    [
        ("a", "b", " ", "\n", "."),
        ("cat", "##s", "the"),
        ("cat</w>", "the</w>", "th"),
        ("cat ", "the ", "th"),
    ],
    ids=["characters", "wordpiece", "word ends", "white space behind"],
)
def test_pieces_that_do_not_mark_starts_are_refused(pieces: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"--word-correction: .*; leave the flag out"):
        of_pieces(*pieces)


def test_pieces_of_several_words_are_refused_unless_they_are_few() -> None:
    words = [f" w{n}" for n in range(200)]
    with pytest.raises(UsageError, match=r"3 of this tokenizer's pieces .* such as ' of the'"):
        of_pieces(*words, " of the", " in the", " to a")
    boundary_ids = of_pieces(*words, " of the", " of", ".", ".\n", ";\n\n")
    assert [
        *zip(
            boundary_ids.word_then_space_ids.tolist(),
            boundary_ids.bare_word_ids.tolist(),
            strict=True,
        )
    ] == [
        (200, 201),
        (203, 202),
        (204, -1),
    ]


def test_a_tokenizer_in_python_is_asked_as_well() -> None:
    from transformers import ByT5Tokenizer

    tokenization = Tokenization(ByT5Tokenizer(), TokenPolicy(), 600)
    with pytest.raises(UsageError, match=r"0 of \d+ pieces with letters begin with white space"):
        tokenization.word_boundary_ids()


def test_marks_of_the_demo_model(demo: Any) -> None:
    boundary_ids = demo.tokenization.word_boundary_ids()
    assert boundary_ids.ends_text.tolist().count(True) == 2
    assert 1500 < int(boundary_ids.leading_space.sum()) < 3500
    assert (boundary_ids.members.sum(axis=1) >= 1).all()


# -- the command line -------------------------------------------------------------------------


def test_the_flag_adds_a_key_and_changes_no_other() -> None:
    words = ("score", "samples/texts.jsonl", "--model", "demo", "--json", "--words")
    plain = document(in_process(*words))
    corrected = document(in_process(*words, "--word-correction"))
    assert "word_correction" not in plain["run"]["rows"]
    rows = corrected["run"]["rows"]
    assert rows.pop("word_correction") is True
    assert rows.pop("word_correction_source") == "Pimentel & Meister 2024"
    assert rows == plain["run"]["rows"]
    assert corrected["totals"] == {
        **plain["totals"],
        "total_loss": corrected["totals"]["total_loss"],
    } | {
        name: pytest.approx(value)
        for name, value in plain["totals"].items()
        if isinstance(value, float)
    }
    for there, here in zip(plain["sequences"], corrected["sequences"], strict=True):
        moved = here.pop("corrected_word_losses")
        here["flags"].pop("uncorrected_word", None)
        assert (moved is None) == (there["words"] is None)
        assert here.keys() == there.keys()
        assert moved is None or len(moved) == len(there["words"])
        assert here["token_losses"] == pytest.approx(there["token_losses"], abs=TOLERANCE)


def test_responses_are_corrected_given_their_prompts() -> None:
    words = ("cond", "samples/pairs.jsonl", "--model", "demo", "--json", "--words")
    found = document(in_process(*words, "--word-correction"))["sequences"]
    alone = document(
        in_process(
            "score", "--text", "The list is sorted in place.", *words[2:], "--word-correction"
        )
    )["sequences"][0]
    assert found[0]["corrected_word_losses"] == pytest.approx(
        alone["corrected_word_losses"], abs=TOLERANCE
    )
    unshared = document(in_process(*words, "--word-correction", "--no-share-prefix"))["sequences"]
    for a, b in zip(found, unshared, strict=True):
        assert a["corrected_word_losses"] == pytest.approx(
            b["corrected_word_losses"], abs=TOLERANCE
        )
    some = document(in_process(*words, "--word-correction", "--no-marginal"))["sequences"][0]
    assert some["corrected_word_losses"] == pytest.approx(
        [None] * 3 + found[0]["corrected_word_losses"][3:], abs=TOLERANCE
    )


def test_a_word_that_was_put_together_of_two_has_no_corrected_loss(tmp_path: Any) -> None:
    """Tokenized apart, the second part begins with a mark: to the model there are two words."""
    tokenizer = trained("sentencepiece")
    folder = save_checkpoint(tmp_path, llama(len(tokenizer)), tokenizer)
    words = ["cond", "--prompt", "the", "--response", "cat", "-m", folder, "--words"]
    apart = document(in_process(*words, "--word-correction", "--boundary", "separate", "--json"))
    (row,) = apart["sequences"]
    assert row["words"] == ["thecat"]
    assert row["corrected_word_losses"] == [None]
    assert row["flags"]["uncorrected_word"] == 1


def test_a_pair_that_fills_the_context_keeps_its_losses() -> None:
    words = (
        "cond",
        "--prompt",
        "The list is",
        "--response",
        " sorted in place.",
        "--model",
        "demo",
    )
    rows = [
        document(in_process(*words, "--json", "--words", "--word-correction", *more))["sequences"][
            0
        ]
        for more in ((), ("--context", "7"))
    ]
    assert rows[1]["n_tokens"] == 8
    assert rows[0]["token_losses"] == pytest.approx(rows[1]["token_losses"], abs=TOLERANCE)
    assert rows[0]["corrected_word_losses"][:-1] == pytest.approx(
        rows[1]["corrected_word_losses"][:-1], abs=TOLERANCE
    )


def test_what_cannot_be_corrected_is_refused(tmp_path: Any) -> None:
    done = in_process("score", "--text", "a b", "--model", "demo", "--word-correction")
    assert done.exit_code == 2
    assert "give --words" in done.stderr
    folder = save_checkpoint(tmp_path / "bytes", llama(N_BYTE_IDS), byte_tokenizer())
    done = in_process("score", "--text", "a b", "--model", folder, "--words", "--word-correction")
    assert done.exit_code == 2
    assert "do not mark where a word begins" in done.stderr


def test_a_resumed_run_must_correct_as_the_first_did(tmp_path: Any) -> None:
    out = tmp_path / "out.jsonl"
    words = ("score", "samples/texts.jsonl", "--model", "demo", "--words", "-o", out)
    assert in_process(*words).exit_code == 0
    done = in_process(*words, "--word-correction", "--resume")
    assert done.exit_code == 2
    assert "rows.word_correction is missing there and True here" in done.stderr
    assert in_process(*words, "--resume").exit_code == 0
    assert in_process(*words, "--word-correction", "--force").exit_code == 0
    done = in_process(*words, "--resume")
    assert "give --word-correction" in done.stderr


def test_the_table_of_words_has_a_column_more(run_cli: Any) -> None:
    shown = run_cli("score", "--text", "The cat sat.", "--words", "--word-correction").stdout
    header = next(line for line in shown.splitlines() if line.startswith("bytes"))
    assert header.split() == ["bytes", "word", "loss", "corrected"]
