"""`seqloss serve` asked by programs of others: the `openai` package, and curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.program import ROOT
from helpers.real_servers import program_of, serve
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.core.records import Sample, SequenceScore
from seqloss_cli.scoring.scorer import Scorer

pytestmark = pytest.mark.servers
TEXT = "Raises ValueError if the value is not a number: naïve 日本語 🙂."


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp("serve") / "log") as found:
        yield found


@pytest.fixture(scope="module")
def scored() -> SequenceScore:
    (found,) = Scorer(ModelChoice()).score([Sample("0", "", text=TEXT)])
    assert isinstance(found, SequenceScore)
    return found


REFUSED: list[dict[str, Any]] = [
    {"max_tokens": 16},
    {"stream": True},
    {"n": 2},
    {"best_of": 2},
    {"suffix": "x"},
    {"logit_bias": {"5": 1}},
    {"temperature": 0.7, "max_tokens": 1},
    {"frequency_penalty": 1},
    {"stop": ["x"]},
    {"extra_body": {"truncate_prompt_tokens": 3}},
    {"extra_body": {"min_tokens": 1}},
    {"extra_body": {"guided_regex": "a"}},
    {"prompt": [[5], [5000]]},
    {"logprobs": 21},
]


def test_the_openai_package(url: str, scored: SequenceScore) -> None:
    plain: dict[str, Any] = {"model": "demo", "prompt": TEXT, "max_tokens": 0}
    vllm = {"prompt_logprobs": 5, "return_token_ids": True, "add_special_tokens": False,
            "ignore_eos": True}  # fmt: skip
    asked: list[dict[str, Any]] = [
        {**plain, "echo": True, "logprobs": 3},
        {**plain, "prompt": [TEXT, "A list"], "echo": True, "logprobs": 0, "max_tokens": 1},
        {**plain, "prompt": [[0, 5, 6], [7]], "extra_body": vllm},
        {**plain, "prompt": [0, 5, 6], "temperature": 0.7, "top_p": 0.9, "seed": 1, "user": "me",
         "extra_body": vllm},
        *({**plain, **more} for more in REFUSED),
        {**plain, "model": "gpt-4"},
    ]  # fmt: skip
    done = subprocess.run(
        [program_of("VLLM_VENV", ".venv-vllm", "python"),
         str(Path(__file__).parents[1] / "helpers" / "openai_side.py"), f"{url}/v1"],
        input=json.dumps(asked), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [model["id"] for model in found["models"]] == ["demo"]
    echoed, two, ids, drawn, *refused, other = found["answers"]
    logprobs = echoed["choices"][0]["logprobs"]
    assert echoed["choices"][0]["text"] == TEXT
    assert logprobs["token_logprobs"][0] is None
    worst = np.abs(np.array(logprobs["token_logprobs"][1:]) + scored.losses[1:]).max()
    print(f"\nopenai, echo: {worst:.2g} nats at most over {len(scored.losses) - 1} tokens")
    assert worst <= 1e-5
    assert all(len(each) in (3, 4) for each in logprobs["top_logprobs"][1:])
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert len(two["choices"][0]["logprobs"]["tokens"]) == len(logprobs["tokens"]) + 1
    assert two["choices"][0]["text"].startswith(TEXT)
    assert [each["prompt_token_ids"] for each in ids["choices"]] == [[0, 5, 6], [7]]
    assert ids["choices"][1]["prompt_logprobs"] == [None]
    assert drawn["choices"][0]["prompt_logprobs"] == ids["choices"][0]["prompt_logprobs"]
    assert {each.get("status") for each in refused} == {400}
    for keywords, each in zip(REFUSED, refused, strict=True):
        keywords = {k: v for k, v in keywords.items() if k != "max_tokens" or len(keywords) == 1}
        (name,) = keywords.pop("extra_body", keywords)
        assert name in each["message"] or name == "prompt", each
    assert other["status"] == 404


def test_curl(url: str, scored: SequenceScore) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "apt-get install curl"

    def ask(*words: str) -> str:
        return subprocess.run(
            [curl, "-s", *words], capture_output=True, text=True, check=True
        ).stdout

    body = {"prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": 1}
    # As people type it: no Content-Type of JSON.
    found = json.loads(ask(f"{url}/v1/completions", "-d", json.dumps(body)))
    values = found["choices"][0]["logprobs"]["token_logprobs"]
    worst = np.abs(np.array(values[1:]) + scored.losses[1:]).max()
    print(f"\ncurl, echo: {worst:.2g} nats at most over {len(values) - 1} tokens")
    assert worst <= 1e-5
    assert json.loads(ask(f"{url}/v1/models"))["data"][0]["max_model_len"] == 513
    assert json.loads(ask(f"{url}/health")) == {}
    assert 'seqloss_answers_total{status="200"}' in ask(f"{url}/metrics")
    status = ask("-o", "/dev/null", "-w", "%{http_code}", f"{url}/v1/completions", "-d", "{")
    assert status == "400"


def test_the_page_of_servers_shows_what_works(url: str) -> None:
    """The curl of docs/servers.md, at this server's address."""
    page = (ROOT / "docs" / "servers.md").read_text()
    (command,) = [each for each in page.split("```")[1::2] if each.strip().startswith("curl")]
    command = command.strip().replace("http://127.0.0.1:8000", url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["choices"][0]
    assert found["text"] == "The cat"
    assert len(found["logprobs"]["token_logprobs"]) > 2
