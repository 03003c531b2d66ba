"""Answers in the shapes of vLLM's `prompt_logprobs` and of OpenAI's `logprobs`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.service.queue import RowScores
from seqloss_cli.service.requests import CompletionRequest, RequestError, model_name


def completion(
    request: CompletionRequest, scores: Sequence[RowScores], scorer: Scorer
) -> dict[str, Any]:
    """Return the JSON of an answer: a choice for each row."""
    name = scorer.tokenization.name_token
    choices = []
    for n, (row, found) in enumerate(zip(request.rows, scores, strict=True)):
        ids = row.tolist()
        greedy = [int(found.top_ids[-1, 0])] if request.max_tokens else []
        choice: dict[str, Any] = {
            "index": n,
            "text": "".join(map(name, (ids if request.echo else []) + greedy)),
            "finish_reason": "length",
            "logprobs": None,
        }
        if request.echo_logprobs is not None:
            choice["logprobs"] = _echoed(request, ids, greedy, found, name)
        if request.prompt_logprobs is not None:
            entries = _entries(ids, found, request.prompt_logprobs, request.first, name)
            choice["prompt_logprobs"] = entries
        if request.return_token_ids:
            choice |= {"prompt_token_ids": ids, "token_ids": greedy}
        choices.append(choice)
    n_prompt = sum(map(len, request.rows))
    n_more = request.max_tokens * len(request.rows)
    return {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model_name(scorer),
        "choices": choices,
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_more,
            "total_tokens": n_prompt + n_more,
        },
    }


def _entries(
    ids: list[int], found: RowScores, k: int, first: int, name: Any
) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`: for each token its own entry, then the alternatives."""
    log_probs, ranks = found.log_probs.tolist(), found.ranks.tolist()
    top_ids, top_probs = found.top_ids[:, :k].tolist(), found.top_log_probs[:, :k].tolist()
    entries: list[dict[str, Any] | None] = [None] * min(max(1, first), len(ids))
    for n in range(len(entries), len(ids)):
        entry = {str(ids[n]): _vllm_entry(log_probs[n], ranks[n], name(ids[n]))}
        for rank, (i, p) in enumerate(zip(top_ids[n], top_probs[n], strict=True), start=1):
            entry.setdefault(str(i), _vllm_entry(p, rank, name(i)))
        entries.append(entry)
    return entries


def _vllm_entry(log_prob: float, rank: int, text: str) -> dict[str, Any]:
    return {"logprob": _finite(log_prob), "rank": rank, "decoded_token": text}


def _finite(log_prob: float) -> float | None:
    """Return a log-probability as vLLM writes it: -9999 stands for a probability of zero."""
    if np.isnan(log_prob):
        raise RequestError(500, "the model gives NaN")
    return max(log_prob, -9999.0)


def _echoed(
    request: CompletionRequest, ids: list[int], greedy: list[int], found: RowScores, name: Any
) -> dict[str, Any]:
    """Return OpenAI's `logprobs`: of the prompt where it is echoed, and of the greedy token."""
    k = request.echo_logprobs or 0
    start = 0 if request.echo else len(ids)
    tokens = (ids + greedy)[start:]
    values, tops, offsets, length = list[Any](), list[Any](), list[int](), 0
    for n, token_id in enumerate(tokens, start=start):
        offsets.append(length)
        length += len(name(token_id))
        # What follows the prompt is the greedy token itself.
        own = found.top_log_probs[n, 0] if n == len(ids) else found.log_probs[n]
        if n == 0 or (n < len(ids) and n < request.first):
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
        "text_offset": offsets,
    }
