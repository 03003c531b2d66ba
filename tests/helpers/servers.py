"""A server on loopback with the shapes of vLLM, SGLang, OpenAI and llama-cpp-python, and with
faults on demand.

Its model knows the token before alone: ln Pr(b | a) is a softmax of numbers drawn by the seed a. So
each number that a client should find is known without any of its code.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.program import ROOT

N_IDS = 4096
"""Ids of the demo's tokenizer."""


@lru_cache(maxsize=4096)
def log_probs_after(previous: int) -> NDArray[np.float64]:
    """ln Pr(· | previous), shape V, nats."""
    logits = np.random.default_rng(previous).normal(size=N_IDS) * 3
    logits[(previous * 7 + 3) % N_IDS] += 25  # something is nearly certain
    found: NDArray[np.float64] = logits - np.log(np.exp(logits).sum())
    return found


@lru_cache(maxsize=4096)
def best_after(previous: int) -> list[int]:
    """The 32 most probable ids after one, best first."""
    return [int(i) for i in np.argsort(-log_probs_after(previous))[:32]]


def losses_of(ids: list[int]) -> list[float]:
    """Losses of all tokens but the first, nats."""
    return [-float(log_probs_after(a)[b]) for a, b in pairwise(ids)]


def places(ids: list[int], shift: int) -> list[tuple[int, int]]:
    """Pairs of ids: those of which the second has its probability after the first. It is the one
    before, `shift` 1, unless a server takes that of another place."""
    n = len(ids)
    return [(ids[min(n - 1, max(0, t - shift))], ids[t]) for t in range(1, n)]


def vllm_answer(body: dict[str, Any], shift: int = 1) -> dict[str, Any]:
    ids, k = body["prompt"], body["prompt_logprobs"]
    entries: list[Any] = [None]
    for a, b in places(ids, shift):
        probs = log_probs_after(a)
        chosen = [b, *(i for i in best_after(a)[:k] if i != b)]
        entries.append({
            str(i): {"logprob": float(probs[i]), "rank": int((probs > probs[i]).sum()) + 1,
                     "decoded_token": shown(i)}
            for i in chosen
        })  # fmt: skip
    choice = {"index": 0, "text": "x", "logprobs": None, "prompt_logprobs": entries,
              "prompt_token_ids": ids, "token_ids": [1]}  # fmt: skip
    return {"object": "text_completion", "model": body["model"], "choices": [choice]}


def seqloss_answer(body: dict[str, Any]) -> dict[str, Any]:
    """As `seqloss serve` answers: one or several rows, each from a place of its own on."""
    prompts, starts = body["prompt"], body["prompt_logprob_start"]
    if not isinstance(starts, list):
        prompts, starts = [prompts], [starts]
    choices = []
    for n, (ids, start) in enumerate(zip(prompts, starts, strict=True)):
        (choice,) = vllm_answer({**body, "prompt": ids})["choices"]
        choice["prompt_logprobs"][:start] = [None] * start
        choices.append({**choice, "index": n})
    return {"object": "text_completion", "model": body["model"], "choices": choices}


def sglang_answer(body: dict[str, Any], shift: int = 1) -> dict[str, Any]:
    ids, start, k = body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]

    def text(i: int) -> str | None:
        return shown(i) if body.get("return_text_in_logprobs") else None

    triples: list[Any] = [[None, ids[start], text(ids[start])]]
    tops: list[Any] = [None]
    for a, b in places(ids, shift)[start:]:
        probs = log_probs_after(a)
        # The last id of the vocabulary comes back as 0.
        triples.append([float(probs[b]), 0 if b == N_IDS - 1 else b, text(b)])
        tops.append([[float(probs[i]), i, None] for i in best_after(a)[:k]])
    meta = {"id": body.get("rid"), "prompt_tokens": len(ids), "input_token_logprobs": triples,
            "input_top_logprobs": tops}  # fmt: skip
    return {"text": "", "meta_info": meta}


@lru_cache(maxsize=1)
def demo_tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(ROOT / "seqloss_cli" / "demo" / "tokenizer.json"))


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


def bytes_of(token_id: int) -> bytes:
    """The bytes of one of the demo's ids; none of a control token."""
    if token_id < 2:
        return b""
    return bytes(_byte_letters()[letter] for letter in demo_tokenizer().id_to_token(token_id))


def shown(token_id: int) -> str:
    """A token as llama-cpp-python shows it: parts of characters and control tokens are left out."""
    return bytes_of(token_id).decode(errors="ignore")


def _top(previous: int, own: int, k: int) -> dict[str, float]:
    probs = log_probs_after(previous)
    best = {shown(i): float(probs[i]) for i in best_after(previous)[:k]}
    return best | {shown(own): float(probs[own])}


def openai_answer(body: dict[str, Any], shift: int = 1) -> dict[str, Any]:
    ids, n, k = body["prompt"], body["max_tokens"], body["logprobs"]
    before = [a for a, _ in places([*ids, 0], shift)]
    tokens = [*ids, *(best_after(before[-1])[:n])]
    pairs = list(zip(before, tokens[1:], strict=False))
    own = [None, *(float(log_probs_after(a)[b]) for a, b in pairs)]
    tops = [None, *(_top(a, b, k) for a, b in pairs)]
    logprobs = {"tokens": [*map(shown, tokens)], "token_logprobs": own, "top_logprobs": tops}
    usage = {"prompt_tokens": len(ids), "completion_tokens": n}
    return {"model": body["model"], "choices": [{"index": 0, "logprobs": logprobs}], "usage": usage}


def llama_cpp_answer(body: dict[str, Any], adds_bos: bool) -> dict[str, Any]:
    """As llama-cpp-python 0.3.36 answers: it leaves BOS out of its lists, puts the distribution
    after the n-th token of the prompt beside the n-th of the list, and makes the first one null."""
    ids = demo_tokenizer().encode(body["prompt"], add_special_tokens=False).ids
    prompt = [0] * adds_bos + ids
    tokens = [*prompt[prompt[0] == 0 :], best_after(prompt[-1])[0]]
    pairs = [(a, b) for a, b in zip(prompt, tokens, strict=False) if b != 0]
    own: list[Any] = [float(log_probs_after(a)[b]) for a, b in pairs]
    tops: list[Any] = [_top(a, b, body["logprobs"]) for a, b in pairs]
    own[0] = tops[0] = None
    logprobs = {"tokens": [shown(i) for _, i in pairs], "token_logprobs": own, "top_logprobs": tops}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 1}
    return {"model": body["model"], "choices": [{"index": 0, "logprobs": logprobs}], "usage": usage}


Fault = Callable[[int, dict[str, Any], Any], Any]
"""Of the number of the request, its body and the right answer: another one, or a `Broken`."""


@dataclass(frozen=True)
class Broken:
    """An answer that is none."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b"{}"
    cut_headers: bool = False
    """The connection ends before the headers do."""
    cut_body: bool = False
    """The connection ends in the middle of the content."""
    endless: bool = False
    slow: float = 0.0
    """Seconds between two bytes of the content."""


@dataclass
class FakeServer:
    """What a server is to answer, and what it was asked."""

    kind: str = "vllm"
    max_model_len: int | None = 514
    model: str = "fake"
    fault: Fault | None = None
    key: str | None = None
    takes_ids: bool = True
    """Else it is llama-cpp-python's."""
    adds_bos: bool = True
    """Of texts: what llama-cpp-python's model says."""
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any] | None) -> Any:
        """Return the JSON of an answer, a `Broken`, or None for what is not there."""
        if path == "/v1/models" and self.kind != "sglang":
            card = {"id": self.model, "owned_by": self.kind, "max_model_len": self.max_model_len}
            return {"data": [card]}
        if path == "/version" and self.kind in ("vllm", "seqloss"):
            return {"version": "0.32.0"}
        if path == "/get_model_info" and self.kind == "sglang":
            return {"model_path": self.model}
        if path == "/get_server_info" and self.kind == "sglang":
            return {"context_length": self.max_model_len, "version": "0.5.23", "dtype": "auto"}
        if path == "/openapi.json" and not self.takes_ids:
            return {"info": {"title": "llama.cpp Python API", "version": "0.3.36"}}
        if body is None or path != ("/generate" if self.kind == "sglang" else "/v1/completions"):
            return None
        with self._lock:
            number = len(self.asked)
            self.asked.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            right = self._right(body)
            return right if self.fault is None else self.fault(number, body, right)
        finally:
            with self._lock:
                self._now -= 1

    def _right(self, body: dict[str, Any]) -> Any:
        if not self.takes_ids:
            if not isinstance(body["prompt"], str):
                return Broken(500, content=b'{"error": {"message": "4 validation errors: ..."}}')
            return llama_cpp_answer(body, self.adds_bos)
        answers = {"vllm": vllm_answer, "sglang": sglang_answer, "openai": openai_answer,
                   "seqloss": seqloss_answer}  # fmt: skip
        return answers[self.kind](body)


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Let a server answer on a free port of loopback."""
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body are two packets: the second would wait 40 ms for a delayed ACK.
        disable_nagle_algorithm = True

        def log_message(self, *args: Any) -> None:
            """Write nothing."""

        def do_GET(self) -> None:
            self._send(server.answer(self.path, None))

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            server.headers.append(dict(self.headers))
            self._send(server.answer(self.path, body))

        def _send(self, found: Any) -> None:
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                found = Broken(401, content=b'{"error": "no key"}')
            broken = found if isinstance(found, Broken) else Broken(
                404 if found is None else 200, content=json.dumps(found).encode()
            )  # fmt: skip
            if broken.cut_headers:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(broken.status)
            for name, value in broken.headers.items():
                self.send_header(name, value)
            n = len(broken.content)
            self.send_header("Content-Length", str(1 << 40 if broken.endless else n))
            self.end_headers()
            try:
                self._write(broken)
            except OSError:  # the client has seen enough
                self.close_connection = True

        def _write(self, broken: Broken) -> None:
            if broken.endless:
                while not stopped.is_set():
                    self.wfile.write(b" " * (1 << 16))
            elif broken.cut_body:
                self.wfile.write(broken.content[: len(broken.content) // 2])
                self.close_connection = True
            elif broken.slow:
                for byte in broken.content:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    if stopped.is_set():
                        break
                    time.sleep(broken.slow)
            else:
                self.wfile.write(broken.content)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Write nothing."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{listening.server_address[1]}"
        try:
            yield server
        finally:
            stopped.set()
            listening.shutdown()
