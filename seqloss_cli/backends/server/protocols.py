"""Requests to each kind of server, and checks of the answers: ids in, log-probabilities out.

A server that gives no log-probabilities of prompts answers as if it did: zeros, empty lists, fewer
entries. So each answer is checked for ids, lengths and values before a number of it is used.

Shapes: L tokens that are sent, M of them scored (the last M), K alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from seqloss_cli.backends.server.agreement import (
    GIVE_LOGITS,
    SLACK,
    contradiction,
    require_agreement,
)
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Floats, Ints

LOWEST = -9999.0
"""Servers write this for a probability of zero, and for one that they do not know."""
MOST_ALTERNATIVES = 20
"""vLLM's and OpenAI's own limit, unless the server was started with another."""
GIVE_NONE = (
    "llama.cpp's llama-server, `transformers serve`, TGI, Ollama and trtllm-serve give no "
    "log-probabilities of prompts; vLLM, SGLang, llama-cpp-python's server and `seqloss serve` do"
)
_HINTS = {
    "server_positive": GIVE_LOGITS,
    "server_contradiction": GIVE_LOGITS,
    "server_refused": "its own limits may be smaller than a probe's rows (seqloss serve: "
    "--longest-queue, --most-bytes)",
    "server_ids": "--model or --tokenizer names the tokenizer of the model that is served",
}
_BYTES_EACH = 512
"""Bytes of JSON for a token with its log-probability and text, generously."""
_MANY = 8
"""Tokens of which a model is hardly ever certain all at once: of zeros alone they have no values.
Probes have more of them, so a server that gives zeros for every row scores none."""
_LARGEST = 2**31
"""No id and no rank is as large."""


@dataclass(frozen=True, slots=True)
class Question:
    """A row of ids, and which of them are scored."""

    ids: Sequence[int]
    """Length L, at least 2."""
    first: int
    """The first one that is scored, from 1 to L - 1; those after it are, too."""
    top_k: int = 0
    ranks: bool = False
    texts: bool = False
    """The texts of its tokens are asked for, and held to ours, where an answer has none else."""

    @property
    def most_bytes(self) -> int:
        """Bytes that an answer may have."""
        return (1 << 16) + len(self.ids) * (self.top_k + 2) * _BYTES_EACH


@dataclass(frozen=True, slots=True)
class Answer:
    """Log-probabilities of the scored tokens of a row, checked."""

    log_probs: Floats
    """Shape M, nats."""
    ranks: Ints | None = None
    """Shape M: 1 is the most probable; None where the server gives none."""
    top_ids: Ints | None = None
    """Shape M x K, best first, ties by id."""
    top_log_probs: Floats | None = None
    """Shape M x K, nats."""

    def last(self, n: int) -> Answer:
        """Return the answer of the last `n` tokens."""

        def cut(array: Any) -> Any:
            return None if array is None else array[-n:]

        return Answer(*map(cut, (self.log_probs, self.ranks, self.top_ids, self.top_log_probs)))


class Shown(Protocol):
    """Texts that servers show of tokens, held to ours."""

    def require_shown(self, shown: Sequence[object], ids: Sequence[int], name: str) -> None:
        """Raises RowError where a text is not of its id; `name` is what the server calls them."""

    def has_shown(self, ids: Sequence[int]) -> bool:
        """Tell whether each id was shown to be ours."""


class ServerProtocol(Protocol):
    """The requests and answers of a kind of server."""

    name: str
    path: str
    quantities: frozenset[str]
    """Columns that it can give beside losses."""
    id_field: str | None
    """The request's own name, which stands in the answer, too; None where it has none."""

    @property
    def sends_first(self) -> bool:
        """The server is told where the scored tokens begin, and may remember those before."""

    @property
    def takes_several(self) -> bool:
        """It takes several rows in a request, each scored from a token of its own on."""

    @property
    def takes_ids(self) -> bool:
        """It takes any ids, and no texts."""

    def has_shown(self, ids: Sequence[int]) -> bool:
        """Tell whether each id needs no text, or was shown in an answer to be ours."""

    def body(self, model: str, question: Question) -> dict[str, Any]:
        """Return the request."""

    def read(self, answer: Any, question: Question) -> Answer:
        """Return what an answer says. Raises RowError for one that cannot be believed."""


def hint_of(reason: str) -> str:
    """Return what may mend that no row is believed, by the reason of their rejection."""
    return _HINTS.get(reason, GIVE_NONE)


def wrong(reason: str, message: str) -> RowError:
    """Return the rejection of a row whose answer cannot be believed."""
    return RowError(f"server_{reason}", f"the server's answer {message}")


def require_list(value: Any, name: str, length: int) -> list[Any]:
    """Raises RowError unless the value is a list of this length."""
    if not isinstance(value, list):
        raise wrong("answer", f"has no list {name}, but {kind_of(value)}")
    if not value:
        raise wrong("length", f"has no entries in {name}: this server may give no "
                    "log-probabilities of prompts")  # fmt: skip
    if len(value) != length:
        raise wrong("length", f"has {len(value)} entries in {name}, not {length}")
    return value


def require_ids(value: Any, name: str, ids: Sequence[int]) -> None:
    """Raises RowError unless the ids are those that were sent."""
    found = require_list(value, name, len(ids))
    for n, (theirs, ours) in enumerate(zip(found, ids, strict=True)):
        if type(theirs) is not int or theirs != ours:
            raise wrong("ids", f"is about other tokens: {name}[{n}] is {theirs!r:.40}, sent {ours}")


def require_log_probs(values: Sequence[Any], name: str) -> Floats:
    """Return log-probabilities, shape M, nats.

    Raises RowError for a value that is none: missing, no number, positive, clamped; and for a row
    of zeros, unless it is so short that the model may be certain of all its tokens.
    """
    for n, value in enumerate(values):
        at = f"{name} of scored token {n}"
        if value is None:
            raise wrong("missing", f"has no {at}")
        number = _number(value, at)
        if not math.isfinite(number):
            raise wrong("not_finite", f"has {number} as {at}")
        if number > 0:
            raise wrong("positive", f"has {number} as {at}, which is no log-probability")
        if number <= LOWEST:
            raise wrong("clamped", f"has {number} as {at}, which stands for what it does not know")
    found = np.array(values, dtype=np.float64)
    if len(found) >= _MANY and not found.any():
        raise wrong("zeros", f"has zeros only as {name}")
    return found


def _number(value: Any, at: str) -> float:
    """Return a number of JSON; one that no float holds is infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong("answer", f"has {kind_of(value)} as {at}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def kind_of(value: Any) -> str:
    """Return a value's type and beginning, for messages."""
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"


def require_entry(value: Any, name: str) -> Mapping[str, Any]:
    """Raises RowError unless the value is an object."""
    if not isinstance(value, dict):
        raise wrong("answer", f"has {kind_of(value)} as {name}")
    return value


def require_choice(answer: Any) -> Mapping[str, Any]:
    """Return the one choice of a completion."""
    found = require_list(require_entry(answer, "an answer").get("choices"), "choices", 1)
    return require_entry(found[0], "choices[0]")


@dataclass(frozen=True, slots=True)
class _Listed:
    """A token that an answer names at a place, with what it says of it."""

    token_id: int
    log_prob: float
    """Nats, which may be 0 or clamped."""
    rank: int = 0
    """0 where the answer has none."""


def _answer(
    question: Question, log_probs: Floats, ranks: Ints | None, listed: Sequence[Sequence[_Listed]]
) -> Answer:
    """Return an answer of M scored tokens that does not contradict itself: their values, nats, and
    what is listed at each place, where the token itself may be, too."""
    k, ids = question.top_k, question.ids[question.first :]
    others = [_others(row, *own) for row, *own in zip(listed, ids, log_probs.tolist(), strict=True)]
    n_most = 1 + max(map(len, others))
    values, told = np.full((len(ids), n_most), -np.inf), np.zeros((len(ids), n_most), np.int64)
    values[:, 0], told[:, 0] = log_probs, 0 if ranks is None else ranks
    for n, row in enumerate(others):
        values[n, 1 : 1 + len(row)] = [each.log_prob for each in row]
        told[n, 1 : 1 + len(row)] = [each.rank for each in row]
    require_agreement(values, told, k)
    if not k:
        return Answer(log_probs, ranks)
    best = [_best(row, k, n) for n, row in enumerate(listed)]
    top_ids = np.array([[each.token_id for each in row] for row in best], dtype=np.int64)
    names = [[each.log_prob for each in row] for row in best]
    top = np.array([require_log_probs(row, "alternatives") for row in names])
    return Answer(log_probs, ranks, top_ids, top)


def _others(listed: Sequence[_Listed], token_id: int, log_prob: float) -> list[_Listed]:
    """Return what is listed beside the token itself, which must be listed with its own value."""
    found = [each for each in listed if each.token_id != token_id]
    if len({each.token_id for each in listed}) < len(listed):
        raise contradiction(f"it lists a token twice: {[each.token_id for each in listed]!r:.200}")
    for each in listed:
        if each.token_id == token_id and abs(each.log_prob - log_prob) > SLACK:
            raise contradiction(f"token {token_id} has {log_prob}, and {each.log_prob} beside it")
    return found


def _best(listed: Sequence[_Listed], k: int, n: int) -> list[_Listed]:
    """Return K alternatives, best first, ties by id; RowError where there are others in number."""
    if not k <= len(listed) <= k + 1:  # the token itself may be one more
        raise wrong("length", f"has {len(listed)} alternatives at scored token {n}, not {k}")
    return sorted(listed, key=lambda each: (-each.log_prob, each.token_id))[:k]


class Vllm:
    """vLLM's `prompt_logprobs`, which `seqloss serve` speaks, too."""

    path = "/v1/completions"
    quantities = frozenset({"ranks", "top_logprobs"})
    id_field: str | None = None
    takes_ids = True

    def __init__(self, shown: Shown | None, name: str = "vllm") -> None:
        """`shown` is None where the tokenizer is known to be ours. `seqloss` generates
        nothing, and leaves out what is not scored."""
        self._shown, self.name = shown, name
        self._has_ranks = False

    @property
    def sends_first(self) -> bool:
        """`seqloss serve` is told, and computes common beginnings once."""
        return self.name == "seqloss"

    @property
    def takes_several(self) -> bool:
        """`seqloss serve` does; others start each row at its first token."""
        return self.name == "seqloss"

    def has_shown(self, ids: Sequence[int]) -> bool:
        """Tell whether each id but the first, of which nothing is shown, was shown to be ours."""
        return self._shown is None or self._shown.has_shown(ids[1:])

    def body(self, model: str, question: Question) -> dict[str, Any]:
        """Return the request of one row. vLLM generates one token at least, which nobody reads."""
        return {
            "model": model,
            "prompt": list(question.ids),
            "max_tokens": 0 if self.name == "seqloss" else 1,
            "temperature": 0,
            "prompt_logprobs": question.top_k,
            "return_token_ids": True,
            **(self._own_fields(question) if self.name == "seqloss" else {}),
        }

    def body_of_all(self, model: str, questions: Sequence[Question]) -> dict[str, Any]:
        """Return the request of several rows."""
        return {
            **self.body(model, questions[0]),
            "prompt": [list(each.ids) for each in questions],
            "prompt_logprob_start": [each.first for each in questions],
        }

    def read_all(self, answer: Any, questions: Sequence[Question]) -> list[Answer]:
        """Return what an answer says of several rows. Raises RowError as `read` does."""
        given = require_entry(answer, "an answer").get("choices")
        choices = require_list(given, "choices", len(questions))
        for n, choice in enumerate(choices):
            index = require_entry(choice, f"choices[{n}]").get("index")
            if type(index) is not int or index != n:
                raise wrong("answer", f"has {kind_of(index)} as the index of choices[{n}]")
        pairs = zip(choices, questions, strict=True)
        return [self.read({"choices": [choice]}, question) for choice, question in pairs]

    def _own_fields(self, question: Question) -> dict[str, Any]:
        return {
            "prompt_logprob_start": question.first,
            "prompt_logprob_ranks": question.ranks,
        }

    def read(self, answer: Any, question: Question) -> Answer:
        """Return what an answer says: entries by id, each with its log-probability and rank."""
        choice, ids, first = require_choice(answer), question.ids, question.first
        if choice.get("prompt_token_ids") is None:
            raise wrong("missing", "has no prompt_token_ids: vLLM gives them from 0.10.2 on")
        require_ids(choice["prompt_token_ids"], "prompt_token_ids", ids)
        entries = require_list(choice.get("prompt_logprobs"), "prompt_logprobs", len(ids))
        if entries[0] is not None:
            raise wrong("length", "has a log-probability of the first token, which has none")
        own, listed = [], []
        for n in range(first, len(ids)):
            entry = require_entry(entries[n], f"prompt_logprobs[{n}]")
            if (found := entry.get(str(ids[n]))) is None:
                raise wrong("ids", f"is about other tokens: prompt_logprobs[{n}] lacks id {ids[n]}")
            own.append(require_entry(found, f"prompt_logprobs[{n}]"))
            has_more = question.top_k or len(entry) > 1
            listed.append([_vllm_listed(*each, n) for each in entry.items()] if has_more else [])
        if self._shown is not None:
            shown = [each.get("decoded_token") for each in own]
            self._shown.require_shown(shown, ids[first:], "decoded_token")
        log_probs = require_log_probs([each.get("logprob") for each in own], "logprob")
        ranks = [_rank(each.get("rank"), n) for n, each in enumerate(own)]
        if not all(ranks) and (any(ranks) or (self._has_ranks and self.name != "seqloss")):
            raise wrong("missing", f"has no rank of scored token {ranks.index(0)}")
        self._has_ranks = self._has_ranks or any(ranks)
        return _answer(question, log_probs, np.array(ranks) if any(ranks) else None, listed)


def _vllm_listed(key: str, value: Any, n: int) -> _Listed:
    # No id has two spellings: a token would be listed twice.
    if not (key.isascii() and key.isdigit() and len(key) <= 10 and key == str(int(key))):
        raise wrong("answer", f"has {key!r:.40} as an id of prompt_logprobs[{n}]")
    entry = require_entry(value, f"prompt_logprobs[{n}]")
    return _Listed(int(key), require_log_prob(entry.get("logprob")), _rank(entry.get("rank"), n))


def require_log_prob(value: Any) -> float:
    """Return one log-probability, nats, which may be 0 or clamped: of an alternative."""
    found = _number(value, "a log-probability")
    if not found <= 0:
        raise wrong("answer", f"has {kind_of(value)} as a log-probability")
    return found


def _rank(value: Any, n: int) -> int:
    """Return a rank, 0 where there is none."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _LARGEST:
        raise wrong("answer", f"has {kind_of(value)} as a rank at prompt_logprobs[{n}]")
    return value


class Sglang:
    """SGLang's own `/generate`. Tested against recorded shapes, not against a running server."""

    name = "sglang"
    path = "/generate"
    quantities = frozenset({"top_logprobs"})
    id_field: str | None = "rid"
    sends_first, takes_several, takes_ids = True, False, True

    def __init__(self, n_ids: int, shown: Shown) -> None:
        self._n_ids, self._shown = n_ids, shown

    def has_shown(self, ids: Sequence[int]) -> bool:
        """Tell whether each id was shown to be ours, but for two that come back as 0."""
        return self._shown.has_shown([each for each in ids if 0 < each < self._n_ids - 1])

    def body(self, model: str, question: Question) -> dict[str, Any]:
        """Return the request of one row. Tokens before the first that is scored may come from the
        server's prefix cache."""
        return {
            "input_ids": list(question.ids),
            "sampling_params": {"max_new_tokens": 0, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": question.first - 1,
            "top_logprobs_num": question.top_k,
            **({"return_text_in_logprobs": True} if question.texts else {}),
        }

    def read(self, answer: Any, question: Question) -> Answer:
        """Return what an answer says: triples from `logprob_start_len` on, the first one empty."""
        meta = require_entry(require_entry(answer, "an answer").get("meta_info"), "meta_info")
        start, ids = question.first - 1, question.ids
        n_prompt = meta.get("prompt_tokens")
        if n_prompt is not None and n_prompt != len(ids):
            raise wrong("length", f"is about {n_prompt} tokens, not {len(ids)}")
        name = "input_token_logprobs"
        entries = require_list(meta.get(name), name, len(ids) - start)
        triples = [_triple(each, f"{name}[{n}]") for n, each in enumerate(entries)]
        for n, (_, theirs, _) in enumerate(triples):
            ours = ids[start + n]
            # The last id of the vocabulary comes back as 0, as those beyond it, which are images.
            is_cut = theirs == 0 and ours >= self._n_ids - 1
            if theirs != ours and not is_cut:
                raise wrong("ids", f"is about other tokens: {name}[{n}] is {theirs}, sent {ours}")
        if question.texts:
            shown = [triple for triple in triples if triple[1] != 0]
            texts = [each[2] for each in shown]
            self._shown.require_shown(texts, [each[1] for each in shown], f"texts of {name}")
        if triples[0][0] is not None:
            # Else a list that is a place off would be taken for one of the right length.
            raise wrong("length", f"has a log-probability in {name}[0], where none is asked for")
        log_probs = require_log_probs([value for value, _, _ in triples[1:]], name)
        listed: list[list[_Listed]] = [[] for _ in triples[1:]]
        if question.top_k:
            tops = require_list(meta.get("input_top_logprobs"), "input_top_logprobs", len(entries))
            listed = [_sglang_listed(each, n) for n, each in enumerate(tops[1:])]
        return _answer(question, log_probs, None, listed)


def answered_id(answer: Any) -> Any:
    """Return the request that an answer of SGLang is to."""
    return require_entry(require_entry(answer, "an answer").get("meta_info"), "meta_info").get("id")


def _triple(value: Any, name: str) -> tuple[Any, int, Any]:
    if not isinstance(value, list) or len(value) < 2 or not _is_id(value[1]):
        raise wrong("answer", f"has {kind_of(value)} as {name}")
    return value[0], value[1], value[2] if len(value) > 2 else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < _LARGEST


def _sglang_listed(value: Any, n: int) -> list[_Listed]:
    if not isinstance(value, list):
        raise wrong("answer", f"has {kind_of(value)} as alternatives of scored token {n}")
    found = [_triple(each, f"alternatives of scored token {n}") for each in value]
    return [_Listed(token_id, require_log_prob(log_prob)) for log_prob, token_id, _ in found]
