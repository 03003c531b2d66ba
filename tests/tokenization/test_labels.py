"""Labels of others against ours: each mistake that pipelines make is found and named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import BOS, N_BYTE_IDS, byte_tokenizer
from seqloss_cli import PairPolicy, Sample, TokenPolicy
from seqloss_cli.core.records import IGNORED, Chat, Pair, TokenSequence
from seqloss_cli.tokenization.labels import Finding, Labels, compare_labels
from seqloss_cli.tokenization.pairs import PairTokenization
from seqloss_cli.tokenization.tokenizer import Tokenization

BOS_ID, EOS_ID = 0, 1
TOKENS = Tokenization(byte_tokenizer(), TokenPolicy(eos=True), N_BYTE_IDS)
PROMPT, RESPONSE = "What is it? ", "A test."
N_PROMPT = 1 + len(PROMPT)
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content }}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def sequence(prompt: str = PROMPT, response: str = RESPONSE) -> TokenSequence:
    pairing = PairTokenization(TOKENS, PairPolicy(), None)
    (found,) = pairing.tokenize([Sample("x", "test", pair=Pair(prompt, response))])
    assert isinstance(found, TokenSequence)
    return found


def chat() -> TokenSequence:
    tokens = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
    pairing = PairTokenization(tokens, PairPolicy(chat_template=TEMPLATE), None)
    turns = [("user", "Hi"), ("assistant", "Yes"), ("user", "Why"), ("assistant", "So")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (found,) = pairing.tokenize([Sample("x", "test", chat=Chat(messages))])
    assert isinstance(found, TokenSequence), found
    return found


def found_in(ids: list[int], labels: list[int], ours: TokenSequence | None = None) -> list[Finding]:
    theirs = Labels(np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64))
    return compare_labels(
        ours or sequence(), theirs, TOKENS.name_token, {BOS_ID, EOS_ID}.__contains__
    )


def ours(of: TokenSequence | None = None) -> tuple[list[int], list[int]]:
    found = of or sequence()
    labels = np.where(found.loss_mask, found.token_ids, IGNORED)
    return found.token_ids.tolist(), labels.tolist()


def kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


def test_our_own_labels_have_no_finding() -> None:
    ids, labels = ours()
    assert labels == [IGNORED] * N_PROMPT + ids[N_PROMPT:]
    assert ids[-1] == EOS_ID
    assert found_in(ids, labels) == []
    assert found_in(*ours(chat()), chat()) == []


def test_loss_on_the_prompt() -> None:
    ids, _ = ours()
    (finding,) = found_in(ids, ids)
    assert (finding.kind, finding.position, finding.count) == ("loss_on_prompt", 0, N_PROMPT)
    (finding,) = found_in(ids, [IGNORED] * 10 + ids[10:])
    assert (finding.kind, finding.position, finding.count) == ("loss_on_prompt", 10, N_PROMPT - 10)
    assert "3 tokens of the prompt, first token 10 't'" in finding.message


def test_response_truncated_away() -> None:
    ids, labels = ours()
    (finding,) = found_in(ids[:-4], labels[:-4])
    assert (finding.kind, finding.position, finding.count) == ("response_truncated", 17, 4)
    assert "4 of 8 response tokens cut off" in finding.message
    cut = kinds(found_in(ids[:N_PROMPT], labels[:N_PROMPT]))
    assert cut == ["response_truncated", "everything_masked"]
    assert "response_truncated" in kinds(found_in(ids[:N_PROMPT], ids[:N_PROMPT]))


def test_end_of_turn_missing() -> None:
    ids, labels = ours()
    (finding,) = found_in(ids[:-1], labels[:-1])
    assert (finding.kind, finding.position) == ("end_of_turn_missing", len(ids) - 1)
    assert "'<eos>'" in finding.message
    (finding,) = found_in(ids, [*labels[:-1], IGNORED])
    assert finding.kind == "end_of_turn_missing"
    assert "is masked" in finding.message
    ids, labels = ours(chat())
    masked = [
        IGNORED if token == EOS_ID else label for token, label in zip(ids, labels, strict=True)
    ]
    (finding,) = found_in(ids, masked, chat())
    assert (finding.kind, finding.count) == ("end_of_turn_missing", 2)


@pytest.mark.parametrize("step", [1, -1])
def test_shifted_by_one(step: int) -> None:
    ids, labels = ours()
    shifted = [*labels[1:], IGNORED] if step == 1 else [IGNORED, *labels[:-1]]
    findings = found_in(ids, shifted)
    assert findings[0].kind == "shifted"
    assert ("the next token" if step == 1 else "the previous token") in findings[0].message
    assert findings[1:] == []


def test_everything_masked() -> None:
    ids, _ = ours()
    (finding,) = found_in(ids, [IGNORED] * len(ids))
    assert finding.kind == "everything_masked"


def test_double_bos() -> None:
    ids, labels = ours()
    (finding,) = found_in([BOS_ID, *ids], [IGNORED, *labels])
    assert finding.kind == "double_bos"
    assert f"'{BOS}' twice" in finding.message


def test_missing_bos_and_an_end_that_ours_lack() -> None:
    ids, labels = ours()
    assert kinds(found_in(ids[1:], labels[1:])) == ["missing_bos"]
    (finding,) = found_in([*ids, EOS_ID], [*labels, EOS_ID])
    assert finding.kind == "extra_end"


@pytest.mark.parametrize("n", [1, 2, 30])
def test_padding_is_no_difference(n: int) -> None:
    ids, labels = ours()
    pad = 77
    assert found_in([*ids, *[pad] * n], [*labels, *[IGNORED] * n]) == []
    assert found_in([*ids, *[EOS_ID] * n], [*labels, *[IGNORED] * n]) == []
    if n > 1:
        assert found_in([*[pad] * n, *ids], [*[IGNORED] * n, *labels]) == []


@pytest.mark.parametrize("n", [2, 3, 30])
def test_padding_with_tokens_that_texts_hold(n: int) -> None:
    """Left with BOS, right with EOS, behind a text that was cut or has its EOS."""
    ids, labels = ours()
    padded = found_in([*[BOS_ID] * n, *ids], [*[IGNORED] * n, *labels])
    assert kinds(padded) == []
    cut = found_in([*ids[:-4], *[EOS_ID] * n], [*labels[:-4], *[IGNORED] * n])
    assert kinds(cut) == ["response_truncated"]
    cut = found_in([*ids[:N_PROMPT], *[EOS_ID] * n], [IGNORED] * (N_PROMPT + n))
    assert kinds(cut) == ["response_truncated", "everything_masked"]
    masked = found_in([*ids, *[EOS_ID] * n], [*labels[:-1], *[IGNORED] * (n + 1)])
    assert kinds(masked) == ["end_of_turn_missing"]
    plain = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
    sample = Sample("x", "test", pair=Pair(PROMPT, RESPONSE))
    (without,) = PairTokenization(plain, PairPolicy(), None).tokenize([sample])
    ended = found_in([*ids, *[EOS_ID] * n], [*labels, *[IGNORED] * n], without)
    assert kinds(ended) == ["extra_end"]
    assert "--eos adds EOS" in ended[0].message


def test_another_tokenizer_is_not_a_cut() -> None:
    ids, labels = ours()
    other = [i + 7 for i in ids]
    found = found_in(other, [i + 7 if i != IGNORED else i for i in labels])
    assert "tokens_differ" in kinds(found)
    assert "response_truncated" not in kinds(found)


def test_an_end_of_turn_that_is_gone_from_a_chat() -> None:
    ids, labels = ours(chat())
    kept = [n for n, token in enumerate(ids) if token != EOS_ID or n == 0]
    (finding,) = found_in([ids[n] for n in kept], [labels[n] for n in kept], chat())
    assert (finding.kind, finding.count) == ("end_of_turn_missing", 2)


def test_a_later_turn_of_the_user_is_prompt() -> None:
    sequence = chat()
    ids, labels = ours(sequence)
    user = sequence.prompt_boundary.turns[2]
    labels[user.start : user.end] = ids[user.start : user.end]
    (finding,) = found_in(ids, labels, sequence)
    assert (finding.kind, finding.position) == ("loss_on_prompt", user.start)
    ids, labels = ours(sequence)
    answer = sequence.prompt_boundary.turns[3]
    labels[answer.start] = ids[answer.start]  # its header
    (finding,) = found_in(ids, labels, sequence)
    assert (finding.kind, finding.position) == ("loss_on_prompt", answer.start)
    ids, labels = ours(sequence)
    labels[-1] = ids[-1]
    (finding,) = found_in(ids, labels, sequence)
    assert (finding.kind, finding.position) == ("loss_on_template", len(ids) - 1)


def test_other_tokens_and_masked_responses() -> None:
    ids, labels = ours()
    other = [*ids[:5], 99, *ids[6:]]
    assert set(kinds(found_in(other, labels))) == {"tokens_differ", "extra_tokens"}
    (finding,) = found_in(ids, [*labels[:N_PROMPT], IGNORED, IGNORED, *labels[N_PROMPT + 2 :]])
    assert (finding.kind, finding.position, finding.count) == ("response_masked", N_PROMPT, 2)
    (finding,) = found_in(ids, [*labels[:-1], 55])
    assert finding.kind == "wrong_labels"
    ids, labels = ours(chat())
    found = found_in(ids, ids[:5] + labels[5:8] + ids[8:], chat())
    assert set(kinds(found)) == {"loss_on_prompt", "loss_on_template"}


@given(st.data())
def test_any_change_of_the_mask_is_found(data: st.DataObject) -> None:
    ids, labels = ours()
    flipped = data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1))
    changed = [
        label if t not in flipped else ids[t] if label == IGNORED else IGNORED
        for t, label in enumerate(labels)
    ]
    assert sum(f.count for f in found_in(ids, changed)) >= min(len(flipped), 1)


@given(st.data())
def test_any_change_of_the_ids_is_found(data: st.DataObject) -> None:
    ids, labels = ours()
    at = data.draw(st.integers(0, len(ids) - 1))
    other = data.draw(st.integers(2, N_BYTE_IDS - 1).filter(lambda i: i != ids[at]))
    labels[at] = IGNORED if labels[at] == IGNORED else other
    ids[at] = other
    assert found_in(ids, labels)
