"""A model behind HTTP: log-probabilities of prompts in the shapes of vLLM and of OpenAI's `echo`.

Nothing is generated but the one greedy token that some clients ask for and drop.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from secrets import token_hex

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from seqloss_cli.core.errors import SeqlossError
from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.service.answers import completion
from seqloss_cli.service.queue import Job, RowQueue, RowScores
from seqloss_cli.service.requests import (
    CompletionRequest,
    RequestError,
    ServiceLimits,
    fingerprint,
    identity,
    model_name,
    read_request,
)

OWNER = "seqloss"
"""By this owner of its model a client knows the server."""
SECONDS_BETWEEN_LOOKS = 0.5
"""Seconds after which it is looked again whether a client that waits is still there."""


class Service:
    """The routes of one server."""

    def __init__(
        self,
        scorer: Scorer,
        key: str | None = None,
        limits: ServiceLimits | None = None,
        on_error: Callable[[Exception], object] = lambda _: None,
    ) -> None:
        """With `key`, requests without it are refused. `on_error` is told of what is a bug.

        Rows wait until `queue` is started, or run.
        """
        self._on_error = on_error
        self.limits = limits or ServiceLimits()
        self._scorer, self._key = scorer, key
        self.queue = RowQueue(scorer, self.limits)
        self._card = {
            "id": model_name(scorer),
            "object": "model",
            "owned_by": OWNER,
            "max_model_len": scorer.windows.context + 1,
            **identity(scorer),
        }
        self._card["system_fingerprint"] = fingerprint(self._card)
        # After it: the same model started again has another one, by which clients see that.
        self._card["instance"] = token_hex(8)
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
        self.queue.close()
        await asyncio.to_thread(self.queue.wait)

    async def _completions(self, request: Request) -> Response:
        deadline = time.monotonic() + self.limits.seconds
        try:
            self._require_key(request)
            content = await self._answer(request, deadline)
        except RequestError as error:
            return self._error(error.status, error.message)
        except ClientDisconnect:
            return self._error(499, "the client went away")
        except SeqlossError as error:
            return self._error(500, str(error))
        except Exception as error:  # the server goes on, and both sides are told
            self._on_error(error)
            return self._error(500, f"{type(error).__name__}: {error}")
        return self._json(200, content)

    async def _answer(self, request: Request, deadline: float) -> bytes:
        content = await self._body(request, deadline)
        # Off the loop: a long prompt's tokens and JSON take tens of milliseconds.
        asked = await asyncio.to_thread(self._read, content)
        scores = await self._scored(request, asked, deadline)
        marks = {name: self._card[name] for name in ("system_fingerprint", "instance")}
        return await asyncio.to_thread(
            lambda: orjson.dumps(completion(asked, scores, self._scorer, marks))
        )

    def _read(self, content: bytes) -> CompletionRequest:
        try:
            body = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise RequestError(400, "the body is no JSON") from None
        return read_request(body, self._scorer, self.limits)

    async def _scored(
        self, request: Request, asked: CompletionRequest, deadline: float
    ) -> list[RowScores]:
        jobs = [
            Job(
                prompt.ids, prompt.first, asked.top_k, asked.ranks, bool(asked.max_tokens), deadline
            )
            for prompt in asked.prompts
        ]
        self.queue.add(jobs)
        answers = [asyncio.wrap_future(job.answer) for job in jobs]
        waiting = set(answers)
        try:
            while waiting:
                if time.monotonic() > deadline:
                    raise self._late()
                if await request.is_disconnected():
                    raise ClientDisconnect
                done, waiting = await asyncio.wait(
                    waiting, timeout=SECONDS_BETWEEN_LOOKS, return_when=asyncio.FIRST_EXCEPTION
                )
                for each in done:
                    each.result()
            return [each.result() for each in answers]
        finally:
            # Nobody waits any more: rows whose turn has not come are not scored.
            for each in answers:
                if each.done() and not each.cancelled():
                    each.exception()  # asyncio complains of those that nobody looked at
                each.cancel()

    async def _body(self, request: Request, deadline: float) -> bytes:
        content = bytearray()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for piece in request.stream():
                    content += piece
                    if len(content) > self.limits.most_bytes:
                        raise RequestError(413, f"more than {self.limits.most_bytes} bytes")
        except TimeoutError:
            raise self._late() from None
        return bytes(content)

    def _late(self) -> RequestError:
        return RequestError(503, f"not done in {self.limits.seconds:g} s")

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
        return self._json(200, orjson.dumps({"object": "list", "data": [self._card]}))

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
            # Of a queue that is full: when there may be places again.
            seconds = self.queue.seconds_left() if status == 429 else 1
            response.headers["Retry-After"] = str(seconds)
        return response
