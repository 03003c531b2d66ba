"""What answers of servers say of one place, held against each other: true ones are taken, whatever
they hold, and those that contradict themselves are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.program import ROOT
from seqloss_cli.backends.server.agreement import require_agreement, require_own
from seqloss_cli.backends.server.protocols import Answer, Question, Sglang, Vllm
from seqloss_cli.core.errors import RowError

N_IDS = 12


class Untold:
    """What is shown of tokens, of which nothing is asked here."""

    def require_shown(self, *shown: object) -> None:
        """Take any."""

    def has_shown(self, ids: object) -> bool:
        return True


SGLANG_READER = Sglang(N_IDS + 1, Untold())

DISTRIBUTIONS = st.lists(
    st.lists(st.sampled_from([-200.0, -3.0, -1.0, 0.0, 0.25, 5.0, 40.0]), min_size=N_IDS,
             max_size=N_IDS),
    min_size=1, max_size=4,
)  # fmt: skip
"""Logits of each place, many of them the same: ties, near certainty, next to nothing."""


def log_softmax(logits: list[float]) -> NDArray[np.float64]:
    """In single precision, as servers do."""
    found = np.asarray(logits, dtype=np.float32)
    return (found - np.log(np.exp(found - found.max()).sum()) - found.max()).astype(np.float64)


def vllm_answer(
    places: list[NDArray[np.float64]], ids: list[int], k: int, counts_ties: bool
) -> dict[str, Any]:
    """As vLLM writes it: the token itself, then the K best; the ranks of these are their places."""
    entries: list[Any] = [None]
    for probs, own in zip(places, ids[1:], strict=True):
        rank = int((probs >= probs[own]).sum() if counts_ties else (probs > probs[own]).sum() + 1)
        entry = {str(own): {"logprob": float(probs[own]), "rank": rank}}
        for place, i in enumerate(np.argsort(-probs, kind="stable")[:k], start=1):
            said = {"logprob": float(probs[i]), "rank": place}
            entry[str(i)] = entry[str(i)] if counts_ties and i == own else said
        entries.append(entry)
    return {"choices": [{"prompt_logprobs": entries, "prompt_token_ids": ids}]}


def sglang_answer(places: list[NDArray[np.float64]], ids: list[int], k: int) -> dict[str, Any]:
    triples: list[Any] = [[None, ids[0], None]]
    tops: list[Any] = [None]
    for probs, own in zip(places, ids[1:], strict=True):
        triples.append([float(probs[own]), own, None])
        tops.append([[float(probs[i]), int(i), None] for i in np.argsort(-probs)[:k]])
    meta = {"input_token_logprobs": triples, "input_top_logprobs": tops if k else None}
    return {"meta_info": meta}


@given(DISTRIBUTIONS, st.data(), st.integers(0, 6), st.booleans())
def test_true_answers_are_taken(
    logits: list[list[float]], data: st.DataObject, k: int, counts_ties: bool
) -> None:
    places = [log_softmax(row) for row in logits]
    # A probability of zero is another matter: such rows are rejected as clamped.
    ids = [0, *(data.draw(st.integers(0, N_IDS - 1)) for _ in places)]
    question = Question(ids, 1, k)
    answers = [
        Vllm(None).read(vllm_answer(places, ids, k, counts_ties), question),
        SGLANG_READER.read(sglang_answer(places, ids, k), question),
    ]
    for found in answers:
        own = [probs[i] for probs, i in zip(places, ids[1:], strict=True)]
        assert found.log_probs.tolist() == own
        if k:
            assert found.top_log_probs is not None
            best = [sorted(probs, reverse=True)[:k] for probs in places]
            assert found.top_log_probs.tolist() == best


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "raw_logits"])
def test_answers_of_a_real_vllm(mode: str) -> None:
    """What `tests/servers/record_vllm.py` wrote down: its logits alone are refused."""
    lines = (ROOT / "tests" / "data" / f"vllm-{mode}.jsonl").read_text().splitlines()
    assert len(lines) == 10
    for line in lines:
        answer = json.loads(line)
        choice = answer["choices"][0]
        ids, entries = choice["prompt_token_ids"], choice["prompt_logprobs"]
        question = Question(ids, 1)
        if mode == "raw_logits":
            with pytest.raises(RowError):
                Vllm(None).read(answer, question)
            continue
        found = Vllm(None).read(answer, question)
        pairs = list(zip(ids[1:], entries[1:], strict=True))
        assert found.log_probs.tolist() == [entry[str(i)]["logprob"] for i, entry in pairs]
        assert found.ranks is not None
        assert found.ranks.tolist() == [entry[str(i)]["rank"] for i, entry in pairs]


# -- answers that cannot be true -------------------------------------------------------------------

IDS = [0, 3, 5]
LOGITS = [[0.0, 1, 2, 3, 4, 5, 1.5, 2.5, 3.5, 0.5, -1, -2], [3.0, 2, 1, 0, -1, 6, 2, 2, 2, 2, 2, 2]]
"""The first token is the fourth best of its place, the second the best of its own."""


def asked(k: int, change: Callable[[list[Any]], object]) -> Answer:
    """Read an answer of vLLM whose entries were changed."""
    answer = vllm_answer([log_softmax(row) for row in LOGITS], IDS, k, True)
    change(answer["choices"][0]["prompt_logprobs"])
    return Vllm(None).read(answer, Question(IDS, 1, k))


def with_rank(place: int, token: int, rank: int) -> Callable[[list[Any]], object]:
    return lambda entries: entries[place][str(token)].update(rank=rank)


def with_value(place: int, token: int, log_prob: float) -> Callable[[list[Any]], object]:
    return lambda entries: entries[place][str(token)].update(logprob=log_prob)


def worst(entries: list[Any]) -> None:
    """The alternatives are the least probable ones."""
    probs = log_softmax(LOGITS[1])
    entries[2] = {"5": entries[2]["5"]} | {
        str(i): {"logprob": float(probs[i]), "rank": None} for i in (2, 3, 4)
    }


CONTRADICTIONS: dict[str, tuple[int, Callable[[list[Any]], object]]] = {
    "the first rank, and others are better": (4, with_rank(1, 3, 1)),
    "a low rank, and nothing better is listed": (4, with_rank(2, 5, 9)),
    "a low rank of a token among the best": (5, with_rank(1, 3, 11)),
    "a low rank of more than half": (0, with_rank(2, 5, 2)),
    "a low rank of an alternative": (4, with_rank(2, 0, 9)),
    "a value above that of the best one": (1, with_value(1, 3, -0.3)),
    "values late by a token": (4, with_value(2, 5, -4.0)),
    "more than one in all": (4, with_value(1, 4, -0.2)),
    "the least probable alternatives": (3, worst),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_rejects_the_row(name: str) -> None:
    k, change = CONTRADICTIONS[name]
    asked(k, lambda entries: None)
    with pytest.raises(RowError) as raised:
        asked(k, change)
    assert raised.value.reason == "server_contradiction", raised.value.message


def of_sglang(k: int, change: Callable[[dict[str, Any]], object]) -> Answer:
    answer = sglang_answer([log_softmax(row) for row in LOGITS], IDS, k)
    change(answer["meta_info"])
    return SGLANG_READER.read(answer, Question(IDS, 1, k))


SGLANG: dict[str, tuple[int, Callable[[dict[str, Any]], object], str]] = {
    # A list that is one off would pass for one of the right length.
    "a value before the first": (
        0, lambda meta: meta["input_token_logprobs"][0].__setitem__(0, -1.0), "server_length"),
    "another value beside it": (
        3, lambda meta: meta["input_token_logprobs"][2].__setitem__(0, -2.0),
        "server_contradiction"),
    "better than all alternatives": (
        2, lambda meta: meta["input_token_logprobs"][1].__setitem__(0, -0.5),
        "server_contradiction"),
    "an alternative twice": (
        3, lambda meta: meta["input_top_logprobs"][1].__setitem__(
            2, meta["input_top_logprobs"][1][0]), "server_contradiction"),
    "more alternatives than asked for": (
        1, lambda meta: meta["input_top_logprobs"][1].extend([[-9.0, 10, None], [-9.0, 11, None]]),
        "server_length"),
}  # fmt: skip


@pytest.mark.parametrize("name", SGLANG)
def test_a_contradiction_of_sglang_rejects_the_row(name: str) -> None:
    k, change, reason = SGLANG[name]
    of_sglang(k, lambda meta: None)
    with pytest.raises(RowError) as raised:
        of_sglang(k, change)
    assert raised.value.reason == reason, raised.value.message


@given(DISTRIBUTIONS, st.integers(1, 5), st.data())
def test_ranks_are_true_within_ties_and_no_further(
    logits: list[list[float]], k: int, data: st.DataObject
) -> None:
    """The oracle counts every token. What is listed shows the best K and the token itself: a rank
    is refused where no distribution with these values could have it."""
    probs, own = log_softmax(logits[0]), data.draw(st.integers(0, N_IDS - 1))
    rank = data.draw(st.integers(1, N_IDS))
    best = [int(i) for i in np.argsort(-probs, kind="stable")[:k] if i != own]
    values = np.array([[probs[own], *probs[best]]])
    ranks = np.array([[rank, *[0] * len(best)]])
    least, most = int((probs > probs[own]).sum()) + 1, int((probs >= probs[own]).sum())
    try:
        require_agreement(values, ranks, k)
    except RowError:
        assert not least <= rank <= most
    else:
        assert rank >= least or least > k + 1  # with nothing listed between
        if probs[own] > np.sort(probs)[-k]:  # else others that are as probable may be unlisted
            assert rank <= most


@pytest.mark.parametrize(
    ("own", "by_text", "is_shared", "is_taken"),
    [
        (-1.0, {"a": -1.0, "b": -0.7}, False, True),
        (-1.0, {"a": -1.0}, False, True),
        (-0.5, {"a": -0.9, "b": -0.7}, False, False),  # more probable than the best one
        (-2.0, {"a": -1.0}, False, False),
        (-2.0, {"b": -1.0}, False, False),
        (-2.0, {"a": -1.0, "b": -0.7}, True, False),
        (-2.0, {"a": -1.0}, True, True),  # the best one is shown as this one is
        (-2.0, {"b": -1.0}, True, True),
        (-0.5, {"b": -1.0}, True, False),
    ],
)  # fmt: skip
def test_alternatives_by_their_texts(
    own: float, by_text: dict[str, float], is_shared: bool, is_taken: bool
) -> None:
    if is_taken:
        require_own(own, "a", by_text, 0, lambda text: is_shared)
        return
    with pytest.raises(RowError) as raised:
        require_own(own, "a", by_text, 0, lambda text: is_shared)
    assert raised.value.reason == "server_contradiction"


# -- values that no number holds -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_value(1, 3, -(10**400)), "server_not_finite"),
        (with_value(1, 4, -(10**400)), None),
        (with_value(1, 4, 10**400), "server_answer"),
        (with_rank(1, 3, 2**63), "server_answer"),
        (with_rank(1, 4, 10**400), "server_answer"),
        (lambda entries: entries[1].update({"9" * 30: entries[1].pop("4")}), "server_answer"),
        (lambda entries: entries[1].update({"04": entries[1].pop("5")}), "server_answer"),
    ],
)
def test_numbers_beyond_all_others_reject_the_row(
    change: Callable[[list[Any]], object], reason: str | None
) -> None:
    with pytest.raises(RowError) as raised:
        asked(4, change)
    assert raised.value.reason == (reason or "server_contradiction")


def certain(n: int) -> tuple[list[int], list[NDArray[np.float64]]]:
    """Ids, each with a probability of exactly 1 in single precision."""
    ids = [0, *(1 + i % (N_IDS - 1) for i in range(n))]
    return ids, [log_softmax([50.0 * (i == own) for i in range(N_IDS)]) for own in ids[1:]]


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("n", [1, 7])
def test_a_model_may_be_certain_of_a_few_tokens(n: int, k: int) -> None:
    ids, places = certain(n)
    question = Question(ids, 1, k)
    answers = [
        Vllm(None).read(vllm_answer(places, ids, k, True), question),
        SGLANG_READER.read(sglang_answer(places, ids, k), question),
    ]
    for found in answers:
        assert found.log_probs.tolist() == [0.0] * n


def test_a_longer_row_of_zeros_has_no_values() -> None:
    ids, places = certain(8)
    answer = vllm_answer(places, ids, 0, True)
    with pytest.raises(RowError) as raised:
        Vllm(None).read(answer, Question(ids, 1))
    assert raised.value.reason == "server_zeros"


def test_the_best_alternative_of_many_places_may_be_certain() -> None:
    """One zero is no row of zeros: the token itself is another."""
    ids, places = certain(9)
    others = [0, *([11] * 9)]
    found = Vllm(None).read(vllm_answer(places, others, 1, True), Question(others, 1, 1))
    assert found.top_log_probs is not None
    assert found.top_log_probs.tolist() == [[0.0]] * 9
    assert found.top_ids is not None
    assert found.top_ids[:, 0].tolist() == ids[1:]
