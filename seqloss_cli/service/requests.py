"""Requests in the shapes of vLLM and of OpenAI's `echo`: what is done, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.records import (
    Entry,
    Ints,
    Item,
    Rejected,
    Sample,
    TokenSequence,
)
from seqloss_cli.inputs.reading import text_sample
from seqloss_cli.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """The most that one server takes."""

    longest_queue: int = 256
    """Rows that wait; more are answered by 429."""
    most_bytes: int = 8 << 20
    """Size of a request."""
    most_alternatives: int = 20
    seconds: float = 600.0
    """Time that a request may wait and take."""


class RequestError(Exception):
    """A request is refused: a status, and a message for whoever sent it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One request, checked."""

    rows: list[Ints]
    """Ids; shape L each."""
    max_tokens: int
    first: int
    """The first position whose log-probability is asked for."""
    prompt_logprobs: int | None
    """Alternatives in vLLM's shape; None where it is not asked for."""
    echo_logprobs: int | None
    """Alternatives in OpenAI's shape; None where it is not asked for."""
    echo: bool
    return_token_ids: bool

    @property
    def top_k(self) -> int:
        """Alternatives to compute: the greedy token is one."""
        return max(self.prompt_logprobs or 0, self.echo_logprobs or 0, self.max_tokens)


_IGNORED = frozenset(
    ("model", "temperature", "seed", "stream", "n", "user", "top_p", "top_k", "stop", "best_of")
)
"""Fields that change nothing of a prompt's log-probabilities; some values are refused below."""
_KNOWN = _IGNORED | {
    *("prompt", "max_tokens", "prompt_logprobs", "prompt_logprob_start", "echo", "logprobs"),
    *("return_token_ids", "add_special_tokens"),
}


def read_request(body: Any, scorer: Scorer, limits: ServiceLimits) -> CompletionRequest:
    """Return what a body asks for. Raises RequestError for what this server does not do."""
    if not isinstance(body, dict):
        raise RequestError(400, "the body is no JSON object")
    if unknown := sorted(body.keys() - _KNOWN):
        raise RequestError(400, f"{unknown[0]!r} is not known here")
    if body.get("model") not in (None, own := model_name(scorer)):
        # Another model's numbers under the name that was asked for would be wrong in silence.
        raise RequestError(404, f"there is no model {body['model']!r:.80} here, but {own!r}")
    if body.get("stream"):
        raise RequestError(400, "'stream' is not done here: answers are whole")
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1):
        raise RequestError(400, "'n' and 'best_of' are 1 here: nothing is sampled")
    max_tokens = body.get("max_tokens", 16)
    if max_tokens not in (0, 1) or isinstance(max_tokens, bool):
        raise RequestError(400, f"'max_tokens' is 0 or 1 here, not {max_tokens!r}: this server "
                           "scores prompts and writes no texts")  # fmt: skip
    prompt_logprobs = _count(body, "prompt_logprobs", limits)
    echo = _flag(body, "echo")
    echo_logprobs = _count(body, "logprobs", limits)
    rows = _rows(body, scorer)
    for row in rows:
        _require_fitting(row, max_tokens, scorer)
    return CompletionRequest(
        rows=rows,
        max_tokens=max_tokens,
        first=_first(body),
        prompt_logprobs=prompt_logprobs,
        echo_logprobs=echo_logprobs,
        echo=echo,
        return_token_ids=_flag(body, "return_token_ids"),
    )


def _count(body: dict[str, Any], name: str, limits: ServiceLimits) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RequestError(400, f"{name!r} is a whole number, not {value!r}")
    if value > limits.most_alternatives:
        raise RequestError(400, f"{name!r} is at most {limits.most_alternatives}, not {value}")
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(400, f"{name!r} is true or false, not {value!r}")
    return value


def _first(body: dict[str, Any]) -> int:
    value = body.get("prompt_logprob_start", 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RequestError(400, f"'prompt_logprob_start' is a whole number, not {value!r}")
    return value


def _rows(body: dict[str, Any], scorer: Scorer) -> list[Ints]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [_tokens(prompt, scorer)]
    if not isinstance(prompt, list) or not prompt:
        raise RequestError(400, "'prompt' is a text, ids, or a list of these")
    if all(isinstance(each, str) for each in prompt):
        return [_tokens(each, scorer) for each in prompt]
    lists = prompt if all(isinstance(each, list) for each in prompt) else [prompt]
    return [_ids(each, scorer.tokenization.n_ids) for each in lists]


def _tokens(text: str, scorer: Scorer) -> Ints:
    """Return the ids of a text with the BOS that the policy of the server puts before it."""
    found: Item | Entry = text_sample(text, "prompt")
    if isinstance(found, Sample):
        found = scorer.tokenization.tokenize([found])[0]
    if isinstance(found, Rejected):
        raise RequestError(400, found.message)
    assert isinstance(found, TokenSequence)
    return found.token_ids


def _ids(values: Any, n_ids: int) -> Ints:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_ids:
            raise RequestError(400, f"{value!r:.40} is no id of this model: 0 to {n_ids - 1}")
    return np.array(values, dtype=np.int64)


def _require_fitting(row: Ints, max_tokens: int, scorer: Scorer) -> None:
    longest = scorer.windows.context + 1 - max_tokens
    if not 1 <= len(row) <= longest:
        raise RequestError(
            400, f"a prompt of {len(row)} tokens: from 1 to {longest} are taken with max_tokens "
            f"{max_tokens}",
        )  # fmt: skip


def model_name(scorer: Scorer) -> str:
    """Return the model's name as the server tells it: without the folders before it."""
    return str(scorer.backend.describe().get("model") or "model").rstrip("/").rsplit("/", 1)[-1]
