"""A model behind HTTP: the numbers of the command line, whoever asks beside, and clear refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn

from helpers.program import ROOT, document, in_process
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.service.app import Service
from seqloss_cli.service.requests import ServiceLimits

TEXTS = (ROOT / "samples" / "text.txt").read_text().splitlines()[:6]


class Listening:
    """A service on a free port of loopback."""

    def __init__(self, scorer: Scorer, key: str | None = None, **limits: Any) -> None:
        self.service = Service(scorer, key, ServiceLimits(**limits))
        config = uvicorn.Config(self.service.app, port=0, log_level="error", access_log=False)
        self._server, self._socket = uvicorn.Server(config), config.bind_socket()
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


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(ModelChoice())


@pytest.fixture(scope="module")
def served(scorer: Scorer) -> Iterator[Listening]:
    with Listening(scorer) as found:
        yield found


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def numbers(found: Any) -> dict[str, Any]:
    """The totals and rows of a document, without what tells of the run."""
    return {key: found[key] for key in ("sequences", "rejected", "totals")}


def alike(a: Any, b: Any) -> bool:
    """Equal, numbers to 1e-5 nats: rule 11."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, rel=1e-5, abs=1e-5)
    return bool(a == b)


@pytest.mark.parametrize(
    "words",
    [
        ("score", "samples/text.txt", "--lines", "--ranks", "--top-k", 3),
        ("score", "README.md", "--limit", 1, "--bos", "never"),
        ("score", "README.md", "--context", 64, "--stride", 16, "--eos"),
        ("cond", "samples/pairs.jsonl", "--pmi", "--boundary", "compare"),
        ("rank", "samples/choices.jsonl", "--separator", " ", "--pmi"),
    ],
    ids=["lines", "long", "windows", "pairs", "choices"],
)
def test_numbers_are_those_of_the_model_here(served: Listening, words: tuple[object, ...]) -> None:
    here = document(in_process(*words, "--json"))
    there = document(in_process(*words, "--json", "--engine", served.url))
    assert alike(numbers(here), numbers(there))
    assert there["run"]["engine"]["kind"] == "seqloss"
    assert there["run"]["context"] == here["run"]["context"]


def test_the_model_here_agrees(served: Listening) -> None:
    words = ("score", "samples/text.txt", "--lines", "--json", "--engine", served.url)
    found = document(in_process(*words, "--verify", 3))
    engine = found["run"]["engine"]
    assert engine["verified_rows"] == 3
    assert engine["verified_worst_difference"] <= 1e-4 == engine["probe_tolerance"]


def losses_here(scorer: Scorer, row: list[int]) -> list[float]:
    """Losses of a row of ids alone, nats."""
    from seqloss_cli.core.records import Sample, SequenceScore

    sample = Sample("0", "", input_ids=np.array(row))
    (found,) = scorer.score([sample])
    assert isinstance(found, SequenceScore)
    return found.losses[1:].tolist()


def test_rows_do_not_see_one_another(served: Listening, scorer: Scorer) -> None:
    random = np.random.default_rng(1)
    rows = [random.integers(2, 4096, random.integers(2, 60)).tolist() for _ in range(60)]
    rows += [rows[0][:5] + row[:20] for row in rows[:20]]  # common beginnings

    def ask(row: list[int]) -> Any:
        return served.ask(prompt=row, max_tokens=1, prompt_logprobs=2).json()["choices"][0]

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, rows))
    for row, answer in zip(rows, answers, strict=True):
        entries = answer["prompt_logprobs"]
        assert entries[0] is None
        found = [-entry[str(i)]["logprob"] for entry, i in zip(entries[1:], row[1:], strict=True)]
        assert found == pytest.approx(losses_here(scorer, row), abs=1e-4)


def test_the_greedy_token_follows(served: Listening, scorer: Scorer) -> None:
    """What is generated is the most probable next token, with its log-probability."""
    row = [0, 450, 271, 289]
    found = served.ask(prompt=row, max_tokens=1, echo=True, logprobs=3).json()["choices"][0]
    logprobs = found["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert [-p for p in logprobs["token_logprobs"][1:4]] == pytest.approx(
        losses_here(scorer, row), abs=1e-5
    )
    scores = {i: -losses_here(scorer, [*row, i])[-1] for i in range(0, 4096, 64)}
    assert logprobs["token_logprobs"][4] >= max(scores.values())
    name = logprobs["tokens"][4]
    best = next(i for i in range(4096) if scorer.tokenization.name_token(i) == name)
    assert -losses_here(scorer, [*row, best])[-1] == pytest.approx(
        logprobs["token_logprobs"][4], abs=1e-5
    )
    assert len(logprobs["top_logprobs"][4]) == 3
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == 5


def test_several_prompts_and_texts(served: Listening) -> None:
    found = served.ask(prompt=["The cat", "A list"], max_tokens=0, echo=True, logprobs=1).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert found["choices"][0]["logprobs"]["tokens"][0] == "<|begin_of_text|>"
    ids = served.ask(prompt=[[0, 5], [0, 6, 7]], max_tokens=0, prompt_logprobs=0,
                     return_token_ids=True).json()  # fmt: skip
    assert [choice["prompt_token_ids"] for choice in ids["choices"]] == [[0, 5], [0, 6, 7]]
    assert ids["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"prompt": "a", "max_tokens": 2}, "max_tokens"),
        ({"prompt": "a"}, "max_tokens"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
        ({"prompt": [], "max_tokens": 0}, "prompt"),
        ({"prompt": [[]], "max_tokens": 0}, "0 tokens"),
        ({"prompt": [5000], "max_tokens": 0}, "no id"),
        ({"prompt": [1.5], "max_tokens": 0}, "no id"),
        ({"prompt": [True], "max_tokens": 0}, "no id"),
        ({"prompt": [0] * 514, "max_tokens": 0}, "514 tokens"),
        ({"prompt": [0] * 513, "max_tokens": 1}, "513 tokens"),
        ({"prompt": "", "max_tokens": 0}, "no text"),
        ({"prompt": "a", "max_tokens": 0, "prompt_logprobs": 21}, "at most 20"),
        ({"prompt": "a", "max_tokens": 0, "prompt_logprobs": -1}, "whole number"),
        ({"prompt": "a", "max_tokens": 0, "stream": True}, "stream"),
        ({"prompt": "a", "max_tokens": 0, "n": 2}, "'n'"),
        ({"prompt": "a", "max_tokens": 0, "suffix": "x"}, "suffix"),
        ({"prompt": "a", "max_tokens": 0, "echo": 1}, "echo"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused(served: Listening, body: dict[str, Any], word: str) -> None:
    found = served.ask(**body)
    assert found.status_code == 400
    assert word in found.json()["error"]["message"]


def test_another_model_is_not_there(served: Listening) -> None:
    found = served.ask(prompt="a", max_tokens=0, model="gpt2")
    assert (found.status_code, "gpt2" in found.text, "demo" in found.text) == (404, True, True)
    assert served.ask(prompt="a", max_tokens=0, model="demo").status_code == 200


def test_bodies_that_are_none(served: Listening) -> None:
    url = f"{served.url}/v1/completions"
    assert httpx.post(url, content=b"{").status_code == 400
    assert httpx.post(url, content=b"[]").status_code == 400
    assert httpx.get(url).status_code == 405
    assert httpx.get(f"{served.url}/v1/chat/completions").status_code == 404


def test_a_queue_that_is_full_answers_429(scorer: Scorer) -> None:
    with Listening(scorer, longest_queue=2, most_bytes=1000) as served:
        full = served.ask(prompt=[[0, 1]] * 3, max_tokens=0)
        assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
        assert served.ask(prompt=[[0, 1]] * 2, max_tokens=0).status_code == 200
        assert served.ask(prompt="a" * 1000, max_tokens=0).status_code == 413
        metrics = httpx.get(f"{served.url}/metrics").text
        assert 'seqloss_answers_total{status="429"} 1' in metrics
        assert "seqloss_tokens_total 4" in metrics


def test_a_server_with_a_key(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Listening(scorer, key="k3y") as served:
        assert served.ask(prompt="a", max_tokens=0).status_code == 401
        assert httpx.get(f"{served.url}/v1/models").status_code == 401
        assert httpx.get(f"{served.url}/health").status_code == 200
        words = ("score", "--text", TEXTS[0], "--json", "--engine", served.url)
        assert in_process(*words).exit_code == 1
        monkeypatch.setenv("SEQLOSS_API_KEY", "k3y")
        assert in_process(*words).exit_code == 0


def test_what_waits_is_scored_before_the_server_stops(scorer: Scorer) -> None:
    with Listening(scorer) as served, ThreadPoolExecutor(8) as pool:
        row = [0, *range(5, 400)]
        asked = [pool.submit(served.ask, prompt=row, max_tokens=1, prompt_logprobs=0)
                 for _ in range(8)]  # fmt: skip
        while not len(served.service.queue) and not asked[0].done():
            time.sleep(0.001)
        served.service.queue.close()
        statuses = {each.result().status_code for each in asked}
    assert statuses <= {200, 503}
    assert 200 in statuses


def test_another_address_needs_a_key() -> None:
    result = in_process("serve", "--host", "0.0.0.0")
    assert result.exit_code == 2
    assert "SEQLOSS_API_KEY" in result.stderr
