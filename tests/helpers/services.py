"""Services of this process, on a free port of loopback."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpx2 as httpx
import uvicorn

from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.service.app import Service
from seqloss_cli.service.requests import ServiceLimits


class Listening:
    """A service on a free port of loopback."""

    def __init__(self, scorer: Scorer, key: str | None = None, **limits: Any) -> None:
        self.service = Service(scorer, key, ServiceLimits(**limits))
        self.service.queue.start()
        config = uvicorn.Config(self.service.app, port=0, log_level="error", access_log=False)
        self._server, self._socket = uvicorn.Server(config), config.bind_socket()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `serve` does
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> Listening:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def ask(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)


class Held:
    """A service whose rows wait until they are let go."""

    def __init__(self, service: Service) -> None:
        self._go, self._queue = threading.Event(), service.queue
        self.scored: list[list[int]] = []
        score = service.queue._score

        def held(jobs: Any) -> Any:
            self._go.wait(60)
            self.scored += [job.row.tolist() for job in jobs]
            return score(jobs)

        service.queue._score = held  # type: ignore[method-assign]

    def begun(self) -> None:
        """Return as soon as rows are taken out of the queue, and held."""
        while not self._queue.is_scoring:
            time.sleep(0.001)

    def waiting(self, n: int) -> None:
        """Return as soon as that many rows wait."""
        while len(self._queue) != n:
            time.sleep(0.001)

    def let_go(self) -> None:
        self._go.set()
