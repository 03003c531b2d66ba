"""Answers in the shapes of vLLM's `prompt_logprobs` and of OpenAI's `logprobs`."""

from __future__ import annotations

import math
import time
from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.service.queue import RowScores
from seqloss_cli.service.requests import CompletionRequest, Prompt, RequestError, model_name
from seqloss_cli.tokenization.tokenizer import Tokenization


def completion(
    request: CompletionRequest,
    scores: Sequence[RowScores],
    scorer: Scorer,
    marks: Mapping[str, str],
) -> dict[str, Any]:
    """Return the JSON of an answer: a choice for each prompt; `marks` say what is served, and by
    which process.

    Raises RequestError where the model gives no number.
    """
    rows = zip(request.prompts, scores, strict=True)
    choices = [_choice(request, n, *row, scorer.tokenization) for n, row in enumerate(rows)]
    n_prompt = sum(len(prompt.ids) for prompt in request.prompts)
    n_more = request.max_tokens * len(request.prompts)
    return {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model_name(scorer),
        **marks,
        "choices": choices,
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_more,
            "total_tokens": n_prompt + n_more,
        },
    }


def _choice(
    request: CompletionRequest, n: int, prompt: Prompt, found: RowScores, tokens: Tokenization
) -> dict[str, Any]:
    ids, pieces = prompt.ids.tolist(), prompt.pieces
    greedy = []
    if request.max_tokens:
        _finite(float(found.top_log_probs[-1, 0]))  # of NaN no token is the most probable
        greedy = [int(found.top_ids[-1, 0])]
    shown = (pieces if request.echo else []) + list(map(tokens.vocabulary.bytes_of, greedy))
    text, offsets = _joined(shown)
    choice: dict[str, Any] = {
        "index": n,
        "text": text,
        "finish_reason": "stop" if greedy == [tokens.eos_id] else "length",
        "logprobs": None,
    }
    if request.echo_logprobs is not None:
        name = "token_id:{}".format if request.names_ids else tokens.name_token
        found_by_token = _echoed(request, prompt, greedy, found, name)
        choice["logprobs"] = {**found_by_token, "text_offset": offsets}
    if request.prompt_logprobs is not None:
        k, first = request.prompt_logprobs, prompt.first
        entries = _entries(ids, found, k, first, tokens.name_token, request.ranks)
        choice["prompt_logprobs"] = entries
    if request.return_token_ids:
        choice |= {"prompt_token_ids": ids, "token_ids": greedy}
    return choice


def _joined(pieces: Sequence[bytes]) -> tuple[str, list[int]]:
    """Return the text that tokens make, and the character in which each of them begins."""
    decoder = getincrementaldecoder("utf-8")("replace")
    parts, offsets, n_chars = list[str](), list[int](), 0
    for piece in pieces:
        offsets.append(n_chars)
        # A character that is not whole yet comes with the token that ends it.
        parts.append(decoder.decode(piece))
        n_chars += len(parts[-1])
    return "".join(parts) + decoder.decode(b"", final=True), offsets


def _entries(
    ids: list[int], found: RowScores, k: int, first: int, name: Any, has_ranks: bool
) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`: for each token its own entry, then the alternatives."""
    log_probs, ranks = found.log_probs.tolist(), found.ranks.tolist()
    top_ids, top_probs = found.top_ids[:, :k].tolist(), found.top_log_probs[:, :k].tolist()
    entries: list[dict[str, Any] | None] = [None] * min(max(1, first), len(ids))
    for n in range(len(entries), len(ids)):
        rank = ranks[n] if has_ranks else None
        entry = {str(ids[n]): _vllm_entry(log_probs[n], rank, name(ids[n]))}
        for rank, (i, p) in enumerate(zip(top_ids[n], top_probs[n], strict=True), start=1):
            entry.setdefault(str(i), _vllm_entry(p, rank, name(i)))
        entries.append(entry)
    return entries


def _vllm_entry(log_prob: float, rank: int | None, text: str) -> dict[str, Any]:
    return {"logprob": _finite(log_prob), "rank": rank, "decoded_token": text}


def _finite(log_prob: float) -> float:
    """Return a log-probability as vLLM writes it: -9999 stands for a probability of zero."""
    if math.isnan(log_prob):
        # Not 500, which clients ask for again: the next answer is the same.
        raise RequestError(422, "the model gives no number there, but NaN")
    return max(log_prob, -9999.0)


def _echoed(
    request: CompletionRequest, prompt: Prompt, greedy: list[int], found: RowScores, name: Any
) -> dict[str, Any]:
    """Return OpenAI's `logprobs`: of the prompt where it is echoed, and of the greedy token."""
    k, ids = request.echo_logprobs or 0, prompt.ids.tolist()
    start = 0 if request.echo else len(ids)
    tokens = (ids + greedy)[start:]
    values, tops = list[Any](), list[Any]()
    for n, token_id in enumerate(tokens, start=start):
        # What follows the prompt is the greedy token itself.
        own = found.top_log_probs[n, 0] if n == len(ids) else found.log_probs[n]
        if n == 0 or (n < len(ids) and n < prompt.first):
            values.append(None)
            tops.append(None)
            continue
        values.append(_finite(float(own)))
        pairs = zip(found.top_ids[n, :k].tolist(), found.top_log_probs[n, :k].tolist(), strict=True)
        top: dict[str, Any] = {}
        for i, p in pairs:
            top.setdefault(name(i), _finite(p))
        top.setdefault(name(token_id), _finite(float(own)))
        tops.append(top)
    return {
        "tokens": [name(i) for i in tokens],
        "token_logprobs": values,
        "top_logprobs": tops,
    }
