"""A model behind HTTP: log-probabilities of prompts in the shapes of vLLM and of OpenAI's `echo`.

Requests are scored together, as many as wait, within the budget of tokens; rows do not see one
another, so numbers do not depend on the company (rule 11). Nothing is generated but the one greedy
token that some clients ask for and drop.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from seqloss_cli.backends.batching import plan_batches, smaller_batches
from seqloss_cli.core.backend import Batch, Requested, TokenScores
from seqloss_cli.core.errors import OutOfMemoryError, SeqlossError
from seqloss_cli.core.records import (
    Entry,
    Floats,
    Ints,
    Item,
    Rejected,
    Sample,
    TokenSequence,
)
from seqloss_cli.inputs.reading import text_sample
from seqloss_cli.scoring.scorer import Scorer

OWNER = "seqloss"
"""By this owner of its model a client knows the server."""


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


@dataclass(frozen=True, slots=True)
class RowScores:
    """Scores of a row of L tokens; the place after the last is for what would follow."""

    log_probs: Floats
    """Shape L + 1, nats; NaN at the first place and the last."""
    ranks: Ints
    """Shape L + 1."""
    top_ids: Ints
    """Shape (L + 1) x K."""
    top_log_probs: Floats
    """Shape (L + 1) x K, nats."""


@dataclass(slots=True, eq=False)
class _Job:
    row: Ints
    first: int
    top_k: int
    with_end: bool
    deadline: float
    answer: Future[RowScores] = field(default_factory=Future)


class RowQueue:
    """Rows of all requests, scored together by one thread."""

    def __init__(self, scorer: Scorer, limits: ServiceLimits) -> None:
        self._scorer, self._limits = scorer, limits
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.n_tokens = 0
        """Tokens scored so far."""
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of rows that wait."""
        return len(self._waiting)

    def add(self, jobs: Sequence[_Job]) -> None:
        """Let jobs wait for their turn. Raises RequestError where too many wait."""
        with self._changed:
            if self._closed:
                raise RequestError(503, "the server stops")
            if len(self._waiting) + len(jobs) > self._limits.longest_queue:
                raise RequestError(429, f"{len(self._waiting)} rows wait already")
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self) -> None:
        """Score what waits, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._next():
            try:
                found = self._score(jobs)
            except Exception as error:  # whoever waits is told, and the server goes on
                for job in jobs:
                    job.answer.set_exception(error)
            else:
                for job, scores in zip(jobs, found, strict=True):
                    job.answer.set_result(scores)

    def _next(self) -> list[_Job]:
        """Return jobs of some batches' tokens, in the order in which they came; none at the end."""
        budget = 4 * self._scorer.batches.tokens
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                jobs = [self._waiting.popleft()]
                used = len(jobs[0].row)
                while self._waiting and used + len(self._waiting[0].row) <= budget:
                    jobs.append(self._waiting.popleft())
                    used += len(jobs[-1].row)
            # Nobody waits any more for a job that was cancelled, or is too late.
            now = time.monotonic()
            if kept := [job for job in jobs if _is_due(job, now)]:
                return kept

    def _score(self, jobs: Sequence[_Job]) -> list[RowScores]:
        scorer, k = self._scorer, max(1, *(job.top_k for job in jobs))
        sequences = [_sequence(job) for job in jobs]
        scores = [_empty(len(job.row), k) for job in jobs]
        policy = replace(scorer.batches, share_prefix=True)
        requested = Requested(ranks=True, top_k=k)
        capabilities = scorer.backend.capabilities
        for planned in plan_batches(sequences, scorer.windows, policy, capabilities):
            for batch, found in self._halved(planned, sequences, requested):
                for part in batch.parts:
                    _take(scores[part.sequence], part.targets, found, part.score_places)
        self.n_tokens += sum(len(job.row) for job in jobs)
        return scores

    def _halved(
        self, batch: Batch, sequences: Sequence[TokenSequence], requested: Requested
    ) -> list[tuple[Batch, TokenScores]]:
        try:
            return [(batch, self._scorer.backend.score(batch, requested))]
        except OutOfMemoryError:
            halves = smaller_batches(batch, sequences)
            if not halves:
                raise
        return [each for half in halves for each in self._halved(half, sequences, requested)]


def _is_due(job: _Job, now: float) -> bool:
    if not job.answer.set_running_or_notify_cancel():
        return False
    if now > job.deadline:
        job.answer.set_exception(RequestError(503, "waited too long: the server is busy"))
        return False
    return True


def _sequence(job: _Job) -> TokenSequence:
    n = len(job.row)
    mask = np.arange(n) >= max(1, job.first)
    sample = Sample("", "", input_ids=job.row)
    return TokenSequence(
        sample, None, job.row, None, mask, mask, "none", "none", {}, scores_text_end=job.with_end
    )


def _empty(n: int, k: int) -> RowScores:
    return RowScores(
        np.full(n + 1, np.nan),
        np.zeros(n + 1, dtype=np.int64),
        np.zeros((n + 1, k), dtype=np.int64),
        np.zeros((n + 1, k)),
    )


def _take(row: RowScores, targets: Ints, found: TokenScores, places: Any) -> None:
    row.log_probs[targets] = -found.losses[places]
    row.ranks[targets] = found.columns["ranks"][places]
    row.top_ids[targets] = found.columns["top_ids"][places]
    row.top_log_probs[targets] = found.columns["top_log_probs"][places]


# -- requests ------------------------------------------------------------------------------------

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


# -- answers -------------------------------------------------------------------------------------


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


def model_name(scorer: Scorer) -> str:
    """Return the model's name as the server tells it: without the folders before it."""
    return str(scorer.backend.describe().get("model") or "model").rstrip("/").rsplit("/", 1)[-1]


# -- the application -----------------------------------------------------------------------------


class Service:
    """The routes of one server."""

    def __init__(
        self, scorer: Scorer, key: str | None = None, limits: ServiceLimits | None = None
    ) -> None:
        """With `key`, requests without it are refused."""
        self.limits = limits or ServiceLimits()
        self._scorer, self._key = scorer, key
        self.queue = RowQueue(scorer, self.limits)
        self._statuses: Counter[int] = Counter()
        routes = [
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/version", self._version),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.queue.close)

    async def _completions(self, request: Request) -> Response:
        try:
            self._require_key(request)
            body = await self._body(request)
            asked = read_request(body, self._scorer, self.limits)
            scores = await self._scored(asked)
            # Off the loop: a long prompt's JSON takes tens of milliseconds.
            content = await asyncio.to_thread(
                lambda: orjson.dumps(completion(asked, scores, self._scorer))
            )
            return self._json(200, content)
        except RequestError as error:
            return self._error(error.status, error.message)
        except SeqlossError as error:
            return self._error(500, str(error))
        except ClientDisconnect:
            return self._error(499, "the client went away")

    async def _scored(self, asked: CompletionRequest) -> list[RowScores]:
        deadline = time.monotonic() + self.limits.seconds
        jobs = [
            _Job(row, asked.first, asked.top_k, bool(asked.max_tokens), deadline)
            for row in asked.rows
        ]
        self.queue.add(jobs)
        waiting = asyncio.gather(*(asyncio.wrap_future(job.answer) for job in jobs))
        try:
            return list(await asyncio.wait_for(waiting, self.limits.seconds))
        except TimeoutError:
            raise RequestError(503, f"not done in {self.limits.seconds:g} s") from None

    async def _body(self, request: Request) -> Any:
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > self.limits.most_bytes:
                raise RequestError(413, f"more than {self.limits.most_bytes} bytes")
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise RequestError(400, "the body is no JSON") from None

    def _require_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        # In constant time: how long it takes tells nothing of the key.
        if self._key is not None and not hmac.compare_digest(given.encode(), self._key.encode()):
            raise RequestError(401, "the key is missing or wrong (Authorization: Bearer …)")

    async def _models(self, request: Request) -> Response:
        try:
            self._require_key(request)
        except RequestError as error:
            return self._error(error.status, error.message)
        longest = self._scorer.windows.context + 1
        card = {
            "id": model_name(self._scorer),
            "object": "model",
            "owned_by": OWNER,
            "max_model_len": longest,
            "dtype": self._scorer.backend.describe().get("dtype"),
        }
        return self._json(200, orjson.dumps({"object": "list", "data": [card]}))

    async def _version(self, request: Request) -> Response:
        return self._json(200, orjson.dumps({"version": version("seqloss")}))

    async def _health(self, request: Request) -> Response:
        return self._json(200, b"{}")

    async def _metrics(self, request: Request) -> Response:
        lines = [
            "# TYPE seqloss_rows_waiting gauge",
            f"seqloss_rows_waiting {len(self.queue)}",
            "# TYPE seqloss_tokens_total counter",
            f"seqloss_tokens_total {self.queue.n_tokens}",
            "# TYPE seqloss_answers_total counter",
            *(
                f'seqloss_answers_total{{status="{status}"}} {n}'
                for status, n in sorted(self._statuses.items())
            ),
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    def _json(self, status: int, content: bytes) -> Response:
        self._statuses[status] += 1
        return Response(content, status, media_type="application/json")

    def _error(self, status: int, message: str) -> Response:
        found = {"error": {"message": message, "type": "invalid_request_error", "code": status}}
        response = self._json(status, orjson.dumps(found))
        if status in (429, 503):
            response.headers["Retry-After"] = "1"
        return response
