"""HTTP with a server that may be busy, slow or wrong: retries, and answers of bounded size."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2 as httpx
import orjson

from seqloss_cli.core.errors import RowError, RunError, UsageError
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.policies import EngineChoice

ATTEMPTS = 6
"""Times that a request is sent before the run ends."""
_BACKOFF = 0.25
"""Seconds of the first wait, at most; each is twice as long as the one before."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts, unless the server asks for more (`Retry-After`)."""
LONGEST_ASKED_WAIT = 300.0
"""Seconds that a server may ask to wait; a longer time ends the run."""
_FULL = 429
_BUSY = (408, _FULL, *range(500, 600))
"""Codes of answers that may be other ones the next time."""
# llama-cpp-python answers 500 to requests that it will never take.
_FINAL = (b"validation error", b"logits_all")
"""Words of answers with such a code that no other attempt changes."""
_NO_KEY, _REDIRECTS = (401, 403), (301, 302, 303, 307, 308)
_NONE = object()
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Refused(Exception):  # noqa: N818
    """The server understood a request and does not do it: status 400, 404, 413, 422 or another."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status, self.text = status, text


class Busy(Exception):  # noqa: N818
    """The server has no place for a request now; it may have one for a smaller one."""


class Transport:
    """Requests to one server, from several threads."""

    def __init__(self, url: str, choice: EngineChoice) -> None:
        """Raises UsageError for a URL that is none, or that would send texts in the clear."""
        parts = _checked(url, choice.insecure_http)
        self.url = url.rstrip("/")
        """The address without the protocol's prefix; no key stands in it."""
        self.gate = Gate(choice.concurrency)
        self._timeout = choice.timeout
        self._stopped, self._why = threading.Event(), ""
        self._sockets, self._of_sockets = set[Any](), threading.Lock()
        key = read_key(choice.api_key_file)
        is_local = parts.hostname in LOOPBACK
        self._client = httpx.Client(
            headers={
                "Cache-Control": "no-store",
                **({"Authorization": f"Bearer {key}"} if key else {}),
            },
            timeout=httpx.Timeout(choice.timeout, connect=min(10.0, choice.timeout)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not is_local,
        )

    def get(self, path: str) -> Any:
        """Return the JSON of an answer. Raises Refused, and RunError where there is no answer."""
        return self._send("GET", path, None, 1 << 22)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        most_bytes: int,
        id_field: str | None = None,
        may_be_cut: bool = False,
    ) -> Any:
        """Return the JSON of an answer of at most `most_bytes`.

        The body's `id_field` gets the number of the attempt: a server may still be busy with the
        one before, and takes no id twice.

        Raises Refused; RowError for an answer that is too long; RunError where there is none after
        all attempts; with `may_be_cut` Busy where the server was too busy, after a while.
        """

        def content(attempt: int) -> bytes:
            own = {} if id_field is None else {id_field: f"{body[id_field]}-{attempt}"}
            return orjson.dumps({**body, **own})

        return self._send("POST", path, content, most_bytes, may_be_cut)

    def close(self, why: str = "closed") -> None:
        """Send nothing more: requests that wait give up, with the first reason that was given."""
        self._why = self._why or why
        self._stopped.set()
        # A thread that waits for a socket which another one closes may wait on: its number may be
        # that of the next connection. One that is shut down wakes it.
        with self._of_sockets:
            for each in self._sockets:
                _shut_down(each)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the sockets of connections that are opened."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            found = info["return_value"].get_extra_info("socket")
            with self._of_sockets:
                self._sockets = {each for each in self._sockets if each.fileno() >= 0} | {found}
                if self._stopped.is_set():
                    _shut_down(found)

    def _send(
        self,
        method: str,
        path: str,
        content: Callable[[int], bytes] | None,
        most_bytes: int,
        may_be_cut: bool = False,
    ) -> Any:
        failure, n_sent, n_failed, busy_since = "", 0, 0, None
        while n_failed < ATTEMPTS:
            self._raise_if_stopped()
            status, asked, body = 0, None, content(n_sent) if content else None
            n_sent += 1
            try:
                with self.gate.passed():
                    status, asked, answer = self._once(method, path, body, most_bytes)
            except (httpx.HTTPError, RuntimeError) as error:
                # Another request failed, and the client was closed: RuntimeError in the end.
                self._raise_if_stopped()
                if isinstance(error, RuntimeError):
                    raise
                failure = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if status >= 300:
                    failure = f"status {status}: {_shown(answer)}"
                    self._raise_if_final(status, answer)
                elif _is_failure(found := _json(answer)):  # of a gateway that says 200 to all
                    failure = f"an error in place of an answer: {_shown(answer)}"
                elif found is not _NONE:
                    return found
                else:  # it was cut, or is a page of a proxy
                    failure = f"the answer is no JSON: {_shown(answer)}"
                    if method == "GET":  # other programs have pages there
                        raise RowError("server_answer", failure)
            self.gate.failed()
            if status == _FULL:
                # No attempt: it is there, and has other work.
                busy_since = busy_since or time.monotonic()
                if time.monotonic() - busy_since > self._timeout:
                    raise self._given_up(
                        path, f"too busy for {self._timeout:g} s (--engine-timeout)", failure
                    )
                self._wait(n_sent, asked)
                if may_be_cut:
                    raise Busy
            elif (n_failed := n_failed + 1) < ATTEMPTS:
                self._wait(n_failed - 1, asked)
        raise self._given_up(path, f"no answer after {ATTEMPTS} attempts, the last", failure)

    def _given_up(self, path: str, tried: str, failure: str) -> RunError:
        return RunError(
            f"{self.url}{path}: {tried}: {failure}; what came before is written, and --resume goes "
            "on"
        )

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise RunError(self._why)

    def _once(
        self, method: str, path: str, body: bytes | None, most_bytes: int
    ) -> tuple[int, float | None, bytes]:
        """Send once. Returns status, seconds that the server asks to wait, and the answer."""
        deadline = time.monotonic() + self._timeout
        headers = {"Content-Type": "application/json"} if body is not None else {}
        url, content = self.url + path, bytearray()
        own = {"trace": self._trace}
        with self._client.stream(
            method, url, content=body, headers=headers, extensions=own
        ) as response:
            if response.status_code in _REDIRECTS:
                place = response.headers.get("location", "")
                raise RunError(
                    f"{self.url}{path} points to {escape(place)}: name that server with --engine"
                )
            for piece in response.iter_bytes():
                content += piece
                if len(content) > most_bytes:
                    raise RowError(
                        "server_answer", f"the answer has more than {most_bytes} bytes: not read"
                    )
                # Time-outs of the client are between pieces: one byte a minute would do.
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no whole answer in {self._timeout:g} s")
            return response.status_code, _retry_after(response), bytes(content)

    def _raise_if_final(self, status: int, content: bytes) -> None:
        if status in _NO_KEY:
            raise RunError(
                f"{self.url} wants another key (status {status}): SEQLOSS_API_KEY, or "
                "--api-key-file FILE"
            )
        if status not in _BUSY or any(words in content for words in _FINAL):
            raise Refused(status, _shown(content))

    def _wait(self, attempt: int, asked: float | None) -> None:
        import random

        if asked is not None and asked > LONGEST_ASKED_WAIT:
            raise RunError(f"{self.url} asks to wait {asked:g} s (Retry-After): try again then")
        # Full jitter: clients that failed together would come back together.
        longest = LONGEST_WAIT if asked is None else max(1.0, asked)
        drawn = random.uniform(0, min(longest, _BACKOFF * 2.0 ** min(attempt, 20)))
        self._stopped.wait(drawn if asked is None else asked + drawn)


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed
        # Not SSLSocket's own, which would leave the reader without its session.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Gate:
    """Let in as many requests at a time as the server answers best: twice as many as long as that
    brings more answers a second, half as many when it is too busy."""

    def __init__(self, n_fixed: int | None) -> None:
        self.most = n_fixed or 64
        self._limit = n_fixed or min(4, self.most)
        self._is_fixed = n_fixed is not None
        self._n_inside = self._n_answers = 0
        self._best, self._since = 0.0, time.monotonic()
        self._changed = threading.Condition()

    def begin_with(self, n: int) -> None:
        """Let in so many for a start, unless their number is fixed."""
        if not self._is_fixed:
            self._limit = self.most = n

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Wait for a place, and keep it meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._n_inside < self._limit)
            self._n_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_inside -= 1
                self._n_answers += 1
                self._settle()
                self._changed.notify_all()

    def failed(self) -> None:
        """Take note that the server was too busy, or away."""
        with self._changed:
            if not self._is_fixed:
                self._limit = max(1, self._limit // 2)
                self._begin_again()

    def _settle(self) -> None:
        # Four rounds: with fewer the rate is that of single rows.
        if self._is_fixed or self._n_answers < 4 * self._limit:
            return
        rate = self._n_answers / max(1e-9, time.monotonic() - self._since)
        if rate > 1.1 * self._best and self._limit < self.most:
            self._best, self._limit = rate, min(self.most, 2 * self._limit)
        self._begin_again()

    def _begin_again(self) -> None:
        self._n_answers, self._since = 0, time.monotonic()


def _checked(url: str, insecure: bool) -> SplitResult:
    shown = escape(url)
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise UsageError(
            f"--engine {shown}: no URL of a server; such as vllm+http://127.0.0.1:8000"
        )
    if parts.username or parts.password:
        raise UsageError(
            "--engine: a name or key in the URL would stand in records; give it in SEQLOSS_API_KEY "
            "or --api-key-file"
        )
    if parts.query or parts.fragment:
        raise UsageError(f"--engine {shown}: no '?' or '#' belongs there but ?model=NAME")
    if parts.scheme == "http" and host not in LOOPBACK and not insecure:
        raise UsageError(
            f"--engine {shown}: texts and key would go to {host} unencrypted; use https, or say "
            "--insecure-http"
        )
    return parts


def read_key(file: str | None) -> str | None:
    """Return the key of SEQLOSS_API_KEY, or of a file; None without one. Raises UsageError."""
    if file is None:
        key = os.environ.get("SEQLOSS_API_KEY", "").strip()
    else:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UsageError(f"--api-key-file {file}: {error}") from None
        if not key:
            raise UsageError(f"--api-key-file {file} is empty")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("the server's key holds what no header may hold")
    return key or None


def _retry_after(response: httpx.Response) -> float | None:
    from email.utils import parsedate_to_datetime

    text = response.headers.get("retry-after")
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _is_failure(answer: Any) -> bool:
    """Tell whether an answer is an error that may be none the next time, by its own code."""
    error = answer.get("error") if isinstance(answer, dict) and "choices" not in answer else None
    return isinstance(error, dict) and str(error.get("code")) in map(str, _BUSY)


def _json(content: bytes) -> Any:
    """Return what JSON says; _NONE where it is none."""
    import json

    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(content)  # takes NaN and Infinity, which are looked for later
    except ValueError:
        return _NONE


def _shown(content: bytes) -> str:
    return escape(" ".join(content[:400].decode(errors="replace").split())[:200])
