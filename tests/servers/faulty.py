"""`seqloss serve` of the demo model; one per cent of its answers are faults. A program of its own:

    python faulty.py PORT SHARE SEED

Faults are drawn by the seed, in the order of requests: a status, a cut before the answer or in its
middle, and answers that must not be believed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import orjson
import uvicorn

from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.service.app import Service
from seqloss_cli.service.requests import ServiceLimits

KINDS = ("error", "busy", "cut_headers", "cut_body", "no_json", "wrong_ids", "nan", "short")
"""After the first five the same request is sent again; the others reject their row."""


class Faulty:
    """An application whose answers to completions are faults now and then."""

    def __init__(self, app: Any, share: float, seed: int) -> None:
        self._app, self._share, self._random = app, share, random.Random(seed)
        self._n_asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/v1/completions":
            await self._app(scope, receive, send)
            return
        self._n_asked += 1
        # The probe's rows come first: a fault there ends the run, which other tests hold.
        if self._n_asked <= 80 or self._random.random() >= self._share:
            await self._app(scope, receive, send)
            return
        await self._fault(self._random.choice(KINDS), scope, receive, send)

    async def _fault(self, kind: str, scope: Any, receive: Any, send: Any) -> None:
        if kind in ("error", "busy"):
            headers = [(b"retry-after", b"0")] if kind == "busy" else []
            status = 500 if kind == "error" else 429
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        if kind == "cut_headers":
            raise ConnectionError("cut")
        parts: list[Any] = []

        async def keep(message: Any) -> None:
            parts.append(message)

        await self._app(scope, receive, keep)
        body = b"".join(part.get("body", b"") for part in parts)
        if kind == "cut_body":
            length = str(len(body)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(
                {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True}
            )
            raise ConnectionError("cut")
        body = _SPOILED[kind](body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def _wrong_ids(body: bytes) -> bytes:
    found = orjson.loads(body)
    choice = found["choices"][0]
    if choice["logprobs"]:
        choice["logprobs"]["tokens"] = ["x" for _ in choice["logprobs"]["tokens"]]
    else:
        choice["prompt_token_ids"][-1] ^= 1
    return orjson.dumps(found)


def _nan(body: bytes) -> bytes:
    found = orjson.loads(body)
    choice = found["choices"][0]
    if choice["logprobs"]:
        values = choice["logprobs"]["token_logprobs"]
        values[1:] = ["here" for _ in values[1:]]
    else:
        for entry in choice["prompt_logprobs"][-1].values():
            entry["logprob"] = "here"
    return orjson.dumps(found).replace(b'"here"', b"NaN")


def _short(body: bytes) -> bytes:
    found = orjson.loads(body)
    choice = found["choices"][0]
    shortened = choice["logprobs"]["token_logprobs"] if choice["logprobs"] else (
        choice["prompt_logprobs"]
    )  # fmt: skip
    shortened.pop()
    return orjson.dumps(found)


_SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "no_json": lambda body: body[:-2],
    "wrong_ids": _wrong_ids,
    "nan": _nan,
    "short": _short,
}


def main() -> None:
    port, share, seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    service = Service(Scorer(ModelChoice()), None, ServiceLimits())
    service.queue.start()
    app = Faulty(service.app, share, seed)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", access_log=False)


if __name__ == "__main__":
    main()
