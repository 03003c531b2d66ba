"""Where prompt and response meet, and what of them is scored (rules 4, 5, 6, 8, 9, 10, 13).

The tokenizers are trained here. What each token covers is worked out again from its piece alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers.builders import BOS, EOS, N_BYTE_IDS, byte_tokenizer, llama
from helpers.oracles import reference_losses
from seqloss_cli import Pair, PairPolicy, Rejected, Sample, SequenceScore, TokenPolicy
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import TokenSequence
from seqloss_cli.metrics.chain_rule import ChainRule, chain_rule
from seqloss_cli.metrics.totals import totals_of
from seqloss_cli.scoring.pipeline import score_samples
from seqloss_cli.tokenization.pairs import PairTokenization
from seqloss_cli.tokenization.tokenizer import Tokenization

TOLERANCE = 1e-4  # nats per token in float32, rule 11
N_IDS = 700

# -- tokenizers -------------------------------------------------------------------------------

SPEECH = ["Answer: A", "Answer: B", "the question", "the answer", "日本", "日本語", "the \n"] * 4
LATIN = ["Answer: A", "Answer: B", "the question is the answer", "an answer, a question"] * 4
CROSSING = [first + second for first in "日春楥步" for second in "本木林森東梅桜"] * 4
"""Every first character ends in the byte A5 and every second one begins with E6."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def named(tokenizer: Tokenizer, **names: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level(corpus: list[str], n_learnt: int, split: str | None = None) -> Any:
    """As GPT-2's; `split` is another pattern than GPT-2's for what no token reaches across."""
    tokenizer = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = bytes_only
    if split is not None:
        steps = [pre_tokenizers.Split(Regex(split), "isolated"), bytes_only]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258 + n_learnt,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return named(tokenizer, bos_token=BOS, eos_token=EOS)


def sentencepiece() -> Any:
    """BPE with `▁` for a space, one put before each text, and byte fall-back."""
    space = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = space
    trainer = trainers.BpeTrainer(vocab_size=100, show_progress=False)
    trained.train_from_iterator(LATIN, trainer)
    learnt = [*trained.get_vocab()]
    learnt.sort(key=trained.token_to_id)
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *learnt]
    merges = re.findall(r'\["([^"]+)","([^"]+)"\]', trained.to_str())
    assert merges
    tokenizer = Tokenizer(
        models.BPE(
            {piece: n for n, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = space
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return named(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*LATIN, "日本", "日本語"], trainer)
    return named(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def n_bytes_byte_level(piece: str) -> int:
    return len(piece)


def n_bytes_sentencepiece(piece: str) -> int:
    return 1 if re.fullmatch("<0x..>", piece) else len(piece.replace("▁", " ").encode())


@dataclass(frozen=True)
class Kind:
    make: Callable[[], Any]
    n_bytes: Callable[[str], int]
    """How many bytes a piece spells."""
    puts_space: bool
    """Before a text that does not begin with one."""
    letters: str
    """What it can spell."""


KINDS = {
    "byte-level": Kind(lambda: byte_level(SPEECH, 40), n_bytes_byte_level, False, "日本🐕"),
    "crossing": Kind(lambda: byte_level(CROSSING, 1), n_bytes_byte_level, False, "日本🐕"),
    "lookahead": Kind(
        lambda: byte_level(["the ", "the question"] * 4, 12, r" (?=\w)"),
        n_bytes_byte_level,
        False,
        "日本🐕",
    ),
    "sentencepiece": Kind(sentencepiece, n_bytes_sentencepiece, True, "日本🐕"),
    "unigram": Kind(unigram, n_bytes_sentencepiece, True, "日本"),
}


@cache
def tokenizer_of(kind: str) -> Any:
    return KINDS[kind].make()


def pairing(
    kind: str, policy: PairPolicy | None = None, longest: int | None = None, **tokens: Any
) -> PairTokenization:
    tokenization = Tokenization(tokenizer_of(kind), TokenPolicy(**tokens), N_IDS)
    return PairTokenization(tokenization, policy or PairPolicy(), longest)


def tokens_of(pairing: PairTokenization, *pair: str) -> TokenSequence:
    (sequence,) = pairing.tokenize([Sample("a", "test", pair=Pair(*pair))])
    assert isinstance(sequence, TokenSequence), sequence
    return sequence


def rejected(pairing: PairTokenization, *pair: str) -> Rejected:
    (outcome,) = pairing.tokenize([Sample("a", "test", pair=Pair(*pair))])
    assert isinstance(outcome, Rejected), outcome
    return outcome


# -- the oracle: rules 9 and 10 from the pieces -------------------------------------------------


def spans_of(kind: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a text, and the bytes [a, b) of each."""
    tokenizer, end, spans = tokenizer_of(kind), 0, []
    ids = tokenizer.encode(text, add_special_tokens=False)
    for n, piece in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        start, end = end, end + KINDS[kind].n_bytes(piece)
        if n == 0 and KINDS[kind].puts_space and not text.startswith(" "):
            end -= 1
        spans.append((start, end))
    assert end == len(text.encode())
    return ids, spans


def counts(span: tuple[int, int], prompt_boundary: int) -> int:
    if span[0] >= prompt_boundary:
        return 1
    return 0 if span[1] <= prompt_boundary else 1


def meeting_of(kind: str, prompt: str, response: str) -> str:
    ids, spans = spans_of(kind, prompt + response)
    prompt_boundary = len(prompt.encode())
    if any(a < prompt_boundary < b for a, b in spans):
        return "merged"
    before = [i for i, span in zip(ids, spans, strict=True) if not counts(span, prompt_boundary)]
    return "clean" if before == spans_of(kind, prompt)[0] else "differs"


def check_joint(kind: str, prompt: str, response: str, sequence: TokenSequence) -> None:
    """`sequence` begins with a BOS that was put in."""
    ids, spans = spans_of(kind, prompt + response)
    assert sequence.token_ids[1:].tolist() == ids
    assert [*pairwise(sequence.byte_offsets.tolist())][1:] == spans
    expected = [counts(span, len(prompt.encode())) for span in spans]
    assert sequence.loss_mask.astype(int).tolist() == [0, *expected]


def check_separate(kind: str, prompt: str, response: str, sequence: TokenSequence) -> None:
    before, prompt_spans = spans_of(kind, prompt)
    after, response_spans = spans_of(kind, response)
    prompt_boundary = len(prompt.encode())
    assert sequence.token_ids[1:].tolist() == before + after
    moved = [(prompt_boundary + a, prompt_boundary + b) for a, b in response_spans]
    assert [*pairwise(sequence.byte_offsets.tolist())][1:] == prompt_spans + moved
    expected = [0] * (1 + len(before)) + [1] * len(after)
    assert sequence.loss_mask.astype(int).tolist() == expected


def check_counts(sequence: TokenSequence, text: str) -> None:
    offsets = sequence.byte_offsets.tolist()
    assert len(offsets) == sequence.n_tokens + 1 == len(sequence.loss_mask) + 1
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert offsets[-1] == len(text.encode())


# -- the boundary of prompt and response ------------------------------------------------------

SEAMS = [
    ("byte-level", "Ans", "wer", "merged", ["Answer"]),
    ("byte-level", "Answer: ", "A", "merged", ["ĠA"]),
    ("byte-level", "the ", "question", "merged", ["Ġquestion"]),
    ("byte-level", "the \n", "question", "differs", None),
    ("byte-level", "日", "本", "merged", ["æĹ¥æľ¬"]),
    ("byte-level", "Answer", ": A", "clean", [":", "ĠA"]),
    ("byte-level", "the", " question", "clean", ["Ġquestion"]),
    ("byte-level", "🐕", "本", "clean", None),
    ("crossing", "日", "本", "merged", ["¥æ", "ľ", "¬"]),
    ("crossing", "🐕日", "本🐕", "merged", ["¥æ", "ľ", "¬", "ð", "Ł", "Ĳ", "ķ"]),
    ("crossing", "日🐕", "🐕", "clean", ["ð", "Ł", "Ĳ", "ķ"]),
    ("lookahead", "the ", "question", "differs", None),
    ("lookahead", "the ", " question", "clean", None),
    ("sentencepiece", "Ans", "wer", "merged", ["nswer"]),
    ("sentencepiece", "the ", "question", "merged", ["▁question"]),
    ("sentencepiece", "Answer: ", "A", "merged", ["▁A"]),
    ("sentencepiece", "日", "本", "clean", ["<0xE6>", "<0x9C>", "<0xAC>"]),
    ("sentencepiece", "Answer", " 🐕", "clean", ["▁", "<0xF0>", "<0x9F>", "<0x90>", "<0x95>"]),
    ("unigram", "Ans", "wer", "merged", None),
    ("unigram", "an ", "answer", "merged", ["▁answer"]),
    ("unigram", "an", " answer", "clean", ["▁answer"]),
]
seams = pytest.mark.parametrize(("kind", "prompt", "response", "flag", "pieces"), SEAMS)


@seams
def test_which_tokens_count_and_how_the_texts_meet(
    kind: str, prompt: str, response: str, flag: str, pieces: list[str] | None
) -> None:
    sequence = tokens_of(pairing(kind), prompt, response)
    check_joint(kind, prompt, response, sequence)
    assert sequence.prompt_boundary.boundary == flag == meeting_of(kind, prompt, response)
    if pieces is not None:
        counted = sequence.token_ids[sequence.loss_mask].tolist()
        assert tokenizer_of(kind).convert_ids_to_tokens(counted) == pieces


@seams
def test_apart_the_prompt_keeps_its_tokens_and_the_flag_is_still_that_of_the_joint_ones(
    kind: str, prompt: str, response: str, flag: str, pieces: list[str] | None
) -> None:
    sequence = tokens_of(pairing(kind, PairPolicy("separate")), prompt, response)
    check_separate(kind, prompt, response, sequence)
    assert sequence.prompt_boundary.boundary == flag
    both = tokens_of(pairing(kind, PairPolicy("compare")), prompt, response)
    assert both.separate_tokenization.token_ids.tolist() == sequence.token_ids.tolist()
    assert (
        both.separate_tokenization.prompt_boundary.boundary == both.prompt_boundary.boundary == flag
    )
    check_joint(kind, prompt, response, both)


@pytest.mark.parametrize(
    ("kind", "prompt", "alone", "joint"),
    [
        ("lookahead", "the ", ["theĠ"], ["the", "Ġ"]),
        ("byte-level", "the \n", ["the", "ĠĊ"], ["the", "Ġ", "Ċ"]),
    ],
)
def test_a_prompt_s_last_token_is_split_again(
    kind: str, prompt: str, alone: list[str], joint: list[str]
) -> None:
    ids, _ = spans_of(kind, prompt)
    assert tokenizer_of(kind).convert_ids_to_tokens(ids) == alone
    sequence = tokens_of(pairing(kind), prompt, "question")
    of_prompt = sequence.token_ids[~sequence.loss_mask].tolist()
    assert tokenizer_of(kind).convert_ids_to_tokens(of_prompt) == [BOS, *joint]


def test_apart_a_space_that_the_tokenizer_puts_before_the_response_covers_no_byte() -> None:
    """The bytes are those of the source, where no space is."""
    for kind in ("sentencepiece", "unigram"):
        sequence = tokens_of(pairing(kind, PairPolicy("separate")), "an", "answer")
        pieces = tokenizer_of(kind).convert_ids_to_tokens(sequence.token_ids)
        first = int(np.argmax(sequence.loss_mask))
        assert pieces[first].startswith("▁")
        width = len(pieces[first]) - 1
        assert sequence.byte_offsets[first : first + 2].tolist() == [2, 2 + width]


SEPARATORS = ["", " ", "\n", ": ", " the "]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_masks_bytes_and_flags_of_any_pair(kind: str, data: Any) -> None:
    fragments = [*LATIN[:3], "Ans", "wer", "the ", "question", " ", "a", *KINDS[kind].letters]
    strings = st.lists(st.sampled_from(fragments), max_size=5).map("".join)
    prompt, separator = data.draw(strings), data.draw(st.sampled_from(SEPARATORS))
    response = data.draw(strings.filter(bool))
    if KINDS[kind].puts_space:  # of white space in a row such tokenizers may make what they like
        prompt, response = prompt.replace("\n", ""), response.replace("\n", "")
        separator = separator.strip("\n")
    text, scored = prompt + separator + response, separator + response
    pair = (prompt, response, separator)
    joint = tokens_of(pairing(kind), *pair)
    check_joint(kind, prompt, scored, joint)
    separate = tokens_of(pairing(kind, PairPolicy("separate")), *pair)
    check_separate(kind, prompt, scored, separate)
    for sequence in (joint, separate):
        check_counts(sequence, text)
        assert sequence.prompt_boundary.boundary == meeting_of(kind, prompt, scored)
        assert sequence.prompt_boundary.n_words == len(scored.split())
        assert not sequence.flags


# -- scores over the same split -----------------------------------------------------------------


@cache
def model() -> Any:
    return llama(N_IDS)


@cache
def double_model() -> Any:
    return llama(N_IDS).double()


@cache
def backend() -> TorchBackend:
    return TorchBackend(model(), 64)


def score(pairing: PairTokenization, *pair: str) -> SequenceScore:
    samples = [Sample("a", "test", pair=Pair(*pair))]
    windows = WindowPolicy(64, "test", 64)
    (outcome,) = score_samples(
        samples, pairing.tokenize, backend(), windows, Requested(), BatchPolicy()
    )
    assert isinstance(outcome, SequenceScore), outcome
    return outcome


def rule_of(score: SequenceScore) -> ChainRule:
    return chain_rule(score, totals_of(score))


@pytest.mark.parametrize("boundary", ["joint", "separate"])
@seams
def test_the_chain_rule_is_over_the_split_that_the_mask_shows(
    boundary: Any, kind: str, prompt: str, response: str, flag: str, pieces: Any
) -> None:
    found = score(pairing(kind, PairPolicy(boundary)), prompt, response)
    ids, mask = found.sequence.token_ids.tolist(), found.sequence.loss_mask.tolist()
    losses = reference_losses(double_model(), ids)
    of_prompt = [x for x, is_y in zip(losses[1:], mask[1:], strict=True) if not is_y]
    of_response = [x for x, is_y in zip(losses[1:], mask[1:], strict=True) if is_y]
    rule, near = rule_of(found), TOLERANCE * len(ids)
    assert rule.log_prob_y_given_x == pytest.approx(-math.fsum(of_response), abs=near)
    if not of_prompt:  # `Ans|wer`: no token of the prompt is left (rule 13)
        assert rule.log_prob_x is rule.log_prob_xy is None
        return
    assert rule.log_prob_x == pytest.approx(-math.fsum(of_prompt), abs=near)
    assert rule.log_prob_xy == rule.log_prob_x + rule.log_prob_y_given_x


# -- BOS, EOS, and what tokens there are --------------------------------------------------------


def byte_pairing(
    policy: PairPolicy | None = None, longest: int | None = None, named: bool = True, **tokens: Any
) -> PairTokenization:
    """One token a byte."""
    tokenization = Tokenization(byte_tokenizer(named), TokenPolicy(**tokens), N_BYTE_IDS)
    return PairTokenization(tokenization, policy or PairPolicy(), longest)


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer().encode(text, add_special_tokens=False)
    return ids


def n_of(found: SequenceScore) -> tuple[int, int, int, int]:
    totals = totals_of(found)
    assert totals.n_prompt_tokens + totals.n_response_tokens == totals.n_tokens
    return totals.n_prompt_tokens, totals.n_response_tokens, totals.n_scored, totals.n_scored_bytes


@pytest.mark.parametrize("boundary", ["joint", "separate"])
@pytest.mark.parametrize(
    ("pair", "tokens", "expected"),
    [
        (("abc", "de"), {}, (4, 2, 2, 2)),
        (("abc", "de"), {"eos": True}, (4, 3, 3, 2)),
        (("abc", "de"), {"bos": "never"}, (3, 2, 2, 2)),
        (("abc", "de", ": "), {}, (4, 4, 4, 4)),
        (("", "de"), {}, (1, 2, 2, 2)),
        (("", "de"), {"eos": True}, (1, 3, 3, 2)),
        (("", "de"), {"bos": "never"}, (0, 2, 1, 1)),
        (("", "d", " "), {}, (1, 2, 2, 2)),
        (("<bos>abc", "de"), {}, (4, 2, 2, 2)),
        (("<bos>abc", "de"), {"bos": "never"}, (4, 2, 2, 2)),
        (("<bos>", "de"), {}, (1, 2, 2, 2)),
        (("", "<bos>de"), {}, (1, 2, 2, 2)),
        (("abc", "de<eos>"), {"eos": True}, (4, 3, 3, 7)),
        (("日", "🐕"), {}, (4, 4, 4, 4)),
    ],
)
def test_bos_is_the_prompt_s_and_eos_the_response_s(
    boundary: Any, pair: tuple[str, ...], tokens: Any, expected: Any
) -> None:
    found = score(byte_pairing(PairPolicy(boundary), **tokens), *pair)
    assert n_of(found) == expected
    check_counts(found.sequence, "".join([pair[0], *pair[2:], pair[1]]))
    has_eos = 1 in found.sequence.token_ids
    assert has_eos == tokens.get("eos", False)
    assert (found.sequence.token_ids == 0).sum() == int(found.sequence.bos != "none")


def test_bos_in_the_prompt_s_text_covers_its_own_bytes_and_none_is_added() -> None:
    sequence = tokens_of(byte_pairing(), "<bos>a", "b")
    assert sequence.bos == "text"
    assert sequence.token_ids.tolist() == [0, *ids_of("ab")]
    assert sequence.byte_offsets.tolist() == [0, 5, 6, 7]
    assert sequence.flags == {"special_tokens": 1}


def test_an_empty_prompt_has_probability_one() -> None:
    found = score(byte_pairing(), "", "de")
    losses = reference_losses(double_model(), [0, *ids_of("de")])
    assert rule_of(found).log_prob_x == 0
    assert rule_of(found).log_prob_xy == rule_of(found).log_prob_y_given_x
    assert rule_of(found).log_prob_xy == pytest.approx(-math.fsum(losses[1:]), abs=2 * TOLERANCE)
    assert found.sequence.flags == {}


@pytest.mark.parametrize("tokens", [{"bos": "never"}, {}], ids=["never", "no BOS in the tokenizer"])
def test_without_bos_an_empty_prompt_leaves_the_first_response_token_unscored(tokens: Any) -> None:
    found = score(byte_pairing(named=bool(tokens), **tokens), "", "de")
    assert found.sequence.bos == "none"
    assert found.sequence.flags == {"first_token_unscored": True}
    assert found.scored.tolist() == [False, True]
    assert found.sequence.loss_mask.tolist() == [True, True]
    assert rule_of(found).log_prob_x == 0
    alone = score(byte_pairing(PairPolicy(pmi=True), named=bool(tokens), **tokens), "", "de")
    assert alone.response_only is None  # rule 14


def test_without_bos_the_marginal_lacks_the_prompt_s_first_token() -> None:
    found = score(byte_pairing(bos="never"), "abc", "de")
    losses = reference_losses(double_model(), ids_of("abcde"))
    assert rule_of(found).log_prob_x == pytest.approx(-math.fsum(losses[1:3]), abs=2 * TOLERANCE)
    one = score(byte_pairing(bos="never"), "a", "de")
    assert rule_of(one).log_prob_x is None  # no token of the prompt is scored
    assert rule_of(one).log_prob_xy is None
    assert rule_of(one).log_prob_y_given_x is not None


def dropping(boundary: Any) -> PairTokenization:
    """Words; white space makes no token."""
    words = {"<unk>": 0, "fox": 1, "dog": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenization = Tokenization(named(tokenizer, unk_token="<unk>"), TokenPolicy(), N_IDS)
    return PairTokenization(tokenization, PairPolicy(boundary), None)


@pytest.mark.parametrize("boundary", ["joint", "separate", "compare"])
def test_a_response_that_the_tokenizer_drops_is_rejected(boundary: Any) -> None:
    """Its bytes lie in the gap after the prompt's last token, whose loss is none of it."""
    assert rejected(dropping(boundary), "dog fox", " ").reason == "no_response_token"


@pytest.mark.parametrize("tokens", [{}, {"eos": True}], ids=["no EOS", "EOS"])
def test_a_response_that_is_nothing_but_bos_is_rejected(tokens: Any) -> None:
    assert rejected(byte_pairing(**tokens), "", "<bos>").reason == "no_response_token"


def test_a_response_that_merges_into_the_prompt_s_last_token_takes_it_over() -> None:
    """Rule 9: the token crosses the boundary and is the response's, prompt's bytes included."""
    sequence = tokens_of(pairing("byte-level"), "the Ans", "wer")
    assert sequence.prompt_boundary.boundary == "merged"
    _, spans = spans_of("byte-level", "the Answer")
    assert sequence.loss_mask.tolist() == [False, *(b > 7 for _, b in spans)]
    assert spans[-1][0] < 7
    found = score(pairing("byte-level"), "the Ans", "wer")
    assert n_of(found)[3] == sum(b - a for a, b in spans if b > 7)


@pytest.mark.parametrize("boundary", ["joint", "separate", "compare"])
@pytest.mark.parametrize("place", [0, 1], ids=["prompt", "response"])
def test_special_tokens_in_either_text(boundary: Any, place: int) -> None:
    pair = ("a<eos>", "b") if place == 0 else ("a", "<eos>b")
    policy = PairPolicy(boundary)
    parsed = tokens_of(byte_pairing(policy), *pair)
    assert parsed.token_ids.tolist() == [0, *ids_of("a"), 1, *ids_of("b")]
    assert parsed.loss_mask.tolist() == [False, False, place == 1, True]
    assert parsed.byte_offsets.tolist() == [0, 0, 1, 6, 7]
    assert parsed.flags == {"special_tokens": 1}
    text = tokens_of(byte_pairing(policy, special_tokens="text"), *pair)
    assert text.n_tokens == 1 + 7
    assert text.loss_mask.sum() == (1 if place == 0 else 6)
    assert text.flags == {"special_tokens": 1}
    refused = rejected(byte_pairing(policy, special_tokens="error"), *pair)
    assert refused.reason == "special_token_text"


def test_special_tokens_of_both_texts_are_counted() -> None:
    for boundary in ("joint", "separate"):
        sequence = tokens_of(byte_pairing(PairPolicy(boundary)), "a<eos>", "b<eos>")
        assert sequence.flags == {"special_tokens": 2}


# -- too long (rule 8) --------------------------------------------------------------------------

LEFT = PairPolicy(truncate="left")


def test_what_the_context_just_takes_is_taken_and_one_token_more_is_rejected() -> None:
    just = tokens_of(byte_pairing(longest=9), "abcdef", "gh")  # the last of 9 is never fed
    assert just.n_tokens == 9
    outcome = rejected(byte_pairing(longest=9), "abcdefg", "hi")
    assert outcome.reason == "too_long"
    assert "10 tokens" in outcome.message


@given(
    st.text("ab 日", max_size=20), st.text("cd🐕", min_size=1, max_size=8), st.integers(2, 16),
    st.booleans(), st.sampled_from(["joint", "separate"]),
)  # fmt: skip
def test_tokens_are_dropped_from_the_start_of_the_prompt_only(
    prompt: str, response: str, longest: int, bos: bool, boundary: Any
) -> None:
    policy = PairPolicy(boundary, truncate="left")
    tokenize = byte_pairing(policy, longest, bos="auto" if bos else "never")
    before, after = ids_of(prompt), ids_of(response)
    begin = [0] if bos else []
    excess = len(begin + before + after) - longest
    # Without BOS one token of the prompt stays, which the response follows.
    if excess > len(before) - (0 if bos else 1) and excess > 0:
        assert rejected(tokenize, prompt, response).reason == "response_too_long"
        return
    sequence = tokens_of(tokenize, prompt, response)
    dropped = max(excess, 0)
    assert sequence.token_ids.tolist() == begin + before[dropped:] + after
    assert sequence.token_ids[sequence.loss_mask].tolist() == after
    assert sequence.flags.get("truncated_left", 0) == sequence.prompt_boundary.n_dropped == dropped
    check_counts(sequence, prompt + response)
    covered = np.diff(sequence.byte_offsets)
    assert covered[sequence.loss_mask].tolist() == [1] * len(after)


def test_losses_of_a_cut_prompt_are_those_of_what_is_left() -> None:
    found = score(byte_pairing(LEFT, 12), "The quick brown fox", " jumps")
    ids = [0, *ids_of("n fox jumps")]
    assert found.sequence.token_ids.tolist() == ids
    losses = reference_losses(double_model(), ids)
    assert found.losses[1:] == pytest.approx(losses[1:], abs=TOLERANCE)
    rule = rule_of(found)
    assert rule.log_prob_x is rule.log_prob_xy is None
    assert rule.log_prob_y_given_x == pytest.approx(-math.fsum(losses[6:]), abs=6 * TOLERANCE)
    assert n_of(found) == (6, 6, 6, 6)
    assert found.sequence.flags == {"truncated_left": 14}
    assert found.sequence.byte_offsets.tolist() == [0, 14, *range(15, 26)]


def test_a_prompt_may_be_dropped_whole_and_the_response_still_follows_bos() -> None:
    found = score(byte_pairing(PairPolicy(truncate="left", pmi=True), 7), "abc", " jumps")
    assert found.sequence.token_ids.tolist() == [0, *ids_of(" jumps")]
    assert rule_of(found).log_prob_x is None  # the prompt was not empty
    assert found.losses[1:] == pytest.approx(found.response_only.losses[1:], abs=TOLERANCE)
    assert rejected(byte_pairing(LEFT, 6), "abc", " jumps").reason == "response_too_long"


def test_eos_is_part_of_the_response_that_is_never_cut() -> None:
    sequence = tokens_of(byte_pairing(LEFT, 5, eos=True), "abc", "de")
    assert sequence.token_ids.tolist() == [0, *ids_of("cde"), 1]
    assert sequence.loss_mask.tolist() == [False, False, True, True, True]


def test_both_boundaries_are_cut_each_by_its_own_length() -> None:
    policy = PairPolicy("compare", truncate="left")
    ids, _ = spans_of("byte-level", "the Answer")
    apart = spans_of("byte-level", "the Ans")[0] + spans_of("byte-level", "wer")[0]
    assert len(apart) > len(ids)
    sequence = tokens_of(pairing("byte-level", policy, longest=1 + len(ids)), "the Ans", "wer")
    assert sequence.prompt_boundary.n_dropped == 0
    assert sequence.separate_tokenization.prompt_boundary.n_dropped == len(apart) - len(ids)
