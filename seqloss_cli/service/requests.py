"""Requests in the shapes of vLLM and of OpenAI's `echo`: what is done, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.records import (
    Entry,
    Ints,
    Item,
    Rejected,
    Sample,
    TokenSequence,
)
from seqloss_cli.core.run_record import WEIGHTS
from seqloss_cli.inputs.reading import text_sample
from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.tokenization.tokenizer import Tokenization


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


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of ids, and the text that they stand for."""

    ids: Ints
    """Shape L."""
    pieces: list[bytes]
    """The bytes that each token covers, of its text or of what it spells: of BOS and EOS that were
    put around a text, none. Length L."""
    first: int = 0
    """The first position whose log-probability is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One request, checked."""

    prompts: list[Prompt]
    max_tokens: int
    prompt_logprobs: int | None
    """Alternatives in vLLM's shape; None where it is not asked for."""
    ranks: bool
    """Ranks are asked for, which are part of vLLM's shape."""
    echo_logprobs: int | None
    """Alternatives in OpenAI's shape; None where it is not asked for."""
    echo: bool
    return_token_ids: bool
    names_ids: bool
    """Tokens are shown as `token_id:N` in OpenAI's shape, which no two of them share."""

    @property
    def top_k(self) -> int:
        """Alternatives to compute: the greedy token is one."""
        return max(self.prompt_logprobs or 0, self.echo_logprobs or 0, self.max_tokens)


_READ = frozenset(
    (
        *("model", "prompt", "max_tokens", "prompt_logprobs", "prompt_logprob_start", "echo"),
        "prompt_logprob_ranks",
        *("logprobs", "return_token_ids", "return_tokens_as_token_ids", "add_special_tokens"),
        "user",
    )
)
_NOT_SAMPLED = "nothing is sampled"
_OWN_NUMBERS = "the model's own log-probabilities are given"
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "stream": ((False,), "answers are whole"),
    "stream_options": ((), "answers are whole"),
    "n": ((1,), _NOT_SAMPLED),
    "best_of": ((1,), _NOT_SAMPLED),
    "use_beam_search": ((False,), _NOT_SAMPLED),
    "stop": (([], ""), "no text is written that could be cut"),
    "suffix": (("",), "nothing follows a prompt"),
    "truncate_prompt_tokens": ((), "a prompt is scored whole"),
    "logit_bias": (({},), _OWN_NUMBERS),
    "allowed_token_ids": ((), _OWN_NUMBERS),
    "bad_words": (([],), _OWN_NUMBERS),
    "presence_penalty": ((0,), _OWN_NUMBERS),
    "frequency_penalty": ((0,), _OWN_NUMBERS),
    "repetition_penalty": ((1,), _OWN_NUMBERS),
}
"""Fields that have only values here that change nothing, beside null; and why."""
_IDLE = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "seed": int,
         "ignore_eos": bool}  # fmt: skip
"""Fields that change nothing of the most probable token, and their types; `temperature` does."""


def read_request(body: Any, scorer: Scorer, limits: ServiceLimits) -> CompletionRequest:
    """Return what a body asks for. Raises RequestError for what this server does not do."""
    if not isinstance(body, dict):
        raise RequestError(400, "the body is no JSON object")
    if body.get("model") not in (None, own := model_name(scorer)):
        # Another model's numbers under the name that was asked for would be wrong in silence.
        raise RequestError(404, f"there is no model {body['model']!r:.80} here, but {own!r}")
    max_tokens = _max_tokens(body)
    _refuse_fields(body, max_tokens)
    most = min(limits.most_alternatives, scorer.tokenization.n_ids)
    prompts = _from_starts(_prompts(body, scorer, limits), body)
    _each(prompts, lambda prompt: _require_fitting(prompt.ids, max_tokens, scorer))
    return CompletionRequest(
        prompts=prompts,
        max_tokens=max_tokens,
        prompt_logprobs=(wanted := _whole(body, "prompt_logprobs", most)),
        ranks=_flag(body, "prompt_logprob_ranks", True) and wanted is not None,
        echo_logprobs=_whole(body, "logprobs", most),
        echo=_flag(body, "echo", False),
        return_token_ids=_flag(body, "return_token_ids", False),
        names_ids=_flag(body, "return_tokens_as_token_ids", False),
    )


def _from_starts(prompts: list[Prompt], body: dict[str, Any]) -> list[Prompt]:
    """Return prompts with the positions from which on each is scored: one for all, or one each."""
    name = "prompt_logprob_start"
    starts = body.get(name)
    if not isinstance(starts, list):
        starts = [starts] * len(prompts)
    if len(starts) != len(prompts):
        raise RequestError(400, f"{name!r} has {len(starts)} entries for {len(prompts)} prompts")
    return [
        replace(prompt, first=_whole({name: start}, name) or 0)
        for prompt, start in zip(prompts, starts, strict=True)
    ]


def _max_tokens(body: dict[str, Any]) -> int:
    value = body.get("max_tokens")
    if type(value) is int and value in (0, 1):
        return value
    given = "left out, which means 16" if value is None else f"{value!r:.40}"
    raise RequestError(
        400,
        f"'max_tokens' is 0 or 1 here, and is {given}: this server scores prompts and writes no "
        "texts",
    )


def _refuse_fields(body: dict[str, Any], max_tokens: int) -> None:
    """Raise RequestError for a field that would change a number, or that nobody here knows."""
    for name, value in body.items():
        if name in _READ or value is None:  # null asks for nothing
            continue
        if name in _ONLY:
            values, reason = _ONLY[name]
            if value not in values:
                raise RequestError(400, f"{name!r} is not {value!r:.40} here: {reason}")
        elif name in _IDLE:
            _require_type(name, value)
        else:
            raise RequestError(400, f"{name!r} is not known here, and nothing is ignored")
    if max_tokens and body.get("temperature"):
        raise RequestError(
            400,
            f"'temperature' is not {body['temperature']!r} here: the one token is the most "
            "probable (0); with 'max_tokens' 0 there is none",
        )


def _require_type(name: str, value: Any) -> None:
    kind = _IDLE[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number if kind is float else type(value) is kind):
        raise RequestError(400, f"{name!r} is no {kind.__name__}: {value!r:.40}")


def _whole(body: dict[str, Any], name: str, most: int | None = None) -> int | None:
    """Return a number of at least 0; None where it is not given."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise RequestError(400, f"{name!r} is a whole number of at least 0, not {value!r:.40}")
    if most is not None and value > most:
        raise RequestError(400, f"{name!r} is at most {most} here, not {value}")
    return value


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(400, f"{name!r} is true or false, not {value!r:.40}")
    return value


def _prompts(body: dict[str, Any], scorer: Scorer, limits: ServiceLimits) -> list[Prompt]:
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list) or prompt == []:
        raise RequestError(400, "'prompt' is a text, ids, or a list of these")
    is_one = isinstance(prompt, str) or not isinstance(prompt[0], str | list)
    prompts: list[Any] = [prompt] if is_one else list(prompt)
    if len(prompts) > limits.longest_queue:
        # Not 429: it would never fit.
        raise RequestError(400, f"{len(prompts)} prompts: at most {limits.longest_queue} at a time")
    tokenization = _text_tokenization(scorer, _flag(body, "add_special_tokens", True))
    if all(isinstance(each, str) for each in prompts):
        return _each(prompts, lambda text: _text_prompt(text, tokenization))
    if all(isinstance(each, list) for each in prompts):
        return _each(prompts, lambda ids: _ids_prompt(ids, tokenization))
    raise RequestError(400, "'prompt' is a text, ids, or a list of these, not of both")


def _each(prompts: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
    """Return what `do` makes of each prompt. Raises RequestError that names the one of several."""
    found = []
    for n, prompt in enumerate(prompts):
        try:
            found.append(do(prompt))
        except RequestError as error:
            which = f"prompt {n} of {len(prompts)}: " if len(prompts) > 1 else ""
            raise RequestError(error.status, f"{which}{error.message}") from None
    return found


def _text_tokenization(scorer: Scorer, adds_special_tokens: bool) -> Tokenization:
    """Return the tokenization of texts: as vLLM's, with what the tokenizer itself puts before one.

    `--bos always` puts a BOS there that the tokenizer does not, `--bos never` none.
    """
    found = copy(scorer.tokenization)
    by_itself = found.policy.bos == "always" or bool(found.vocabulary.prefix_ids)
    if not (adds_special_tokens and by_itself):
        found.policy = replace(found.policy, bos="never")
    if not adds_special_tokens:
        found.policy = replace(found.policy, eos=False)
    return found


def _text_prompt(text: str, tokenization: Tokenization) -> Prompt:
    found: Item | Entry = text_sample(text, "prompt")
    if isinstance(found, Sample):
        found = tokenization.tokenize([found])[0]
    if isinstance(found, Rejected):
        raise RequestError(400, found.message)
    assert isinstance(found, TokenSequence)
    token_bytes = TokenBytes.of(found)
    assert token_bytes is not None
    return Prompt(found.token_ids, token_bytes.pieces())


def _ids_prompt(values: list[Any], tokenization: Tokenization) -> Prompt:
    ids = _ids(values, tokenization.n_ids)
    return Prompt(ids, [tokenization.vocabulary.bytes_of(i) for i in ids.tolist()])


def _ids(values: list[Any], n_ids: int) -> Ints:
    for value in values:
        if type(value) is not int or not 0 <= value < n_ids:
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
    return _last_part(str(scorer.backend.describe().get("model") or "model"))


def identity(scorer: Scorer) -> dict[str, Any]:
    """Return which weights and tokenizer are served, as run records say it, and the hash of the
    configuration, which decides numbers, too."""
    described = scorer.backend.describe()
    found = {name: described.get(name) for name in (*WEIGHTS, "dtype")}
    if (adapter := found["adapter"]) is not None:
        found["adapter"] = _last_part(adapter)
    return {
        **found,
        "config_sha256": scorer.configuration_sha256,
        "tokenizer_sha256": scorer.tokenization.sha256,
    }


def fingerprint(card: Mapping[str, Any]) -> str:
    """Return a hash of what is served: it stands in the server's card, and in each answer."""
    return hashlib.sha256(repr(sorted(card.items())).encode()).hexdigest()[:16]


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]
