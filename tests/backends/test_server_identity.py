"""What a server is: its model, its tokenizer, its weights. Another one is never taken for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT, document, in_process
from helpers.servers import FakeServer, demo_tokenizer, losses_of, serving
from helpers.services import Listening
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.scoring.scorer import Scorer

DEMO = ROOT / "seqloss_cli" / "demo"
KINDS = ("vllm", "sglang", "openai")
WORDS = ("score", "--text", "The cat sat on the mat.", "--engine")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are kept for this test alone, and nobody waits between attempts."""
    from seqloss_cli.backends.server import transport

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transport, "_BACKOFF", 0.0)


@pytest.fixture
def vllm() -> Iterator[FakeServer]:
    with serving(FakeServer()) as found:
        yield found


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(ModelChoice())


@pytest.fixture(scope="module")
def served(scorer: Scorer) -> Iterator[Listening]:
    with Listening(scorer) as found:
        yield found


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tokenizer with a thousand ids that stand for each other's tokens."""
    folder = tmp_path_factory.mktemp("permuted")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    ids = whole["model"]["vocab"]
    tokens = {i: token for token, i in ids.items()}
    for i in range(2000, 2500):
        ids[tokens[i]], ids[tokens[i + 500]] = i + 500, i
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    return folder


def said(result: Any) -> str:
    return " ".join(result.stderr.split())


def ids_of(text: str) -> list[int]:
    """The demo's ids of a text, after its BOS."""
    return [0, *demo_tokenizer().encode(text, add_special_tokens=False).ids]


# -- tokenizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_other_tokens_ends_the_run(kind: str, permuted: Path) -> None:
    """Its ids are the server's, one for one; half of a thousand tokens are others."""
    with serving(FakeServer(kind)) as server:
        result = in_process(*WORDS, server.url, "-m", permuted)
        assert result.exit_code == 1
        assert "is about other tokens" in said(result)
        assert "--model or --tokenizer names the tokenizer" in said(result)
        assert in_process(*WORDS, server.url, "-m", "demo").exit_code == 0


@pytest.mark.parametrize("missing", [None, 5])
def test_tokens_without_a_text_are_not_believed(vllm: FakeServer, missing: Any) -> None:
    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        for entry in right["choices"][0]["prompt_logprobs"][1:]:
            for each in entry.values():
                each["decoded_token"] = missing
        return right

    vllm.fault = fault
    result = in_process(*WORDS, vllm.url, "-m", "demo")
    assert result.exit_code == 1
    assert f"is {missing}, sent" in said(result)


def test_each_row_of_vllm_shows_its_tokens(vllm: FakeServer) -> None:
    """Also where a server that was probed has another tokenizer since."""
    assert in_process(*WORDS, vllm.url, "-m", "demo").exit_code == 0
    bad = "A list is sorted in place."

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        third = right["choices"][0]["prompt_logprobs"][3]
        if body["prompt"] == ids_of(bad):
            third[str(body["prompt"][3])]["decoded_token"] = "x"
        return right

    vllm.fault = fault
    words = ("score", "--text", bad, "--json", "-m", "demo", "--engine", vllm.url)
    found = document(in_process(*words), 3)
    assert [each["reason"] for each in found["rejected"]] == ["server_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_of_others_needs_a_tokenizer(kind: str) -> None:
    with serving(FakeServer(kind)) as server:
        result = in_process(*WORDS, server.url)
        assert result.exit_code == 2
        assert f"serves fake by {kind}: name its tokenizer" in said(result)
        assert server.asked == []


def test_a_tokenizer_alone_is_beside_its_own_configuration(
    vllm: FakeServer, tmp_path: Path
) -> None:
    """Not beside the demo's, which knows 512 tokens of context, and other ids."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    vllm.max_model_len = 1000
    found = document(in_process(*WORDS, vllm.url, "--tokenizer", tmp_path, "--json"))
    assert found["run"]["context"] == 998
    (row,) = found["sequences"]
    assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)


def test_the_demo_s_tokenizer_is_that_of_its_server(served: Listening) -> None:
    found = in_process(*WORDS, served.url, "--json")
    assert document(found)["run"]["tokenizer"] == "demo"
    assert "the built-in 'demo' tokenizer" in said(found)


def test_serve_says_which_tokenizer_it_has(
    served: Listening, permuted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = in_process(*WORDS, served.url, "-m", permuted)
    assert result.exit_code == 1
    assert "is about other tokens" in said(result)
    # The same tokens in another file: said, and each is held to what the server shows.
    monkeypatch.setitem(served.service._card, "tokenizer_sha256", "0" * 64)
    other = in_process(*WORDS, served.url, "-m", "demo")
    assert other.exit_code == 0
    assert "its tokenizer is not that of demo (tokenizer_sha256)" in said(other)
    unnamed = in_process(*WORDS, served.url)
    assert unnamed.exit_code == 2
    assert "is not the demo's: name its tokenizer" in said(unnamed)


# -- models ---------------------------------------------------------------------------------------


class Several(FakeServer):
    """A vLLM with a LoRA module, whose losses are halved."""

    def answer(self, path: str, body: dict[str, Any] | None) -> Any:
        if path == "/v1/models":
            base = {"id": "org/base", "owned_by": "vllm", "max_model_len": 50}
            return {"data": [base, {"id": "my lora", "owned_by": "vllm", "max_model_len": None,
                                    "parent": "org/base"}]}  # fmt: skip
        found = super().answer(path, body)
        if body is not None and body["model"] == "my lora":
            for entry in found["choices"][0]["prompt_logprobs"][1:]:
                for each in entry.values():
                    each["logprob"] = each["logprob"] * 2 - 0.5
        return found


def test_of_several_models_one_is_named() -> None:
    with serving(Several()) as server:
        result = in_process(*WORDS, server.url, "-m", "demo")
        assert result.exit_code == 2
        assert "has 2 models: org/base, my lora; name one" in said(result)
        assert f"'{server.url}?model=org/base'" in said(result)
        unknown = in_process(*WORDS, f"{server.url}?model=other", "-m", "demo")
        assert unknown.exit_code == 2
        assert "has no model 'other', but org/base, my lora" in said(unknown)
        assert server.asked == []
        url = f"vllm+{server.url}?model=my%20lora"
        found = document(in_process(*WORDS, url, "-m", "demo", "--json"))
        assert {body["model"] for body in server.asked} == {"my lora"}
        assert found["run"]["model"] == "my lora"
        assert found["run"]["engine"]["url"] == url
        assert found["run"]["context"] == 48
        (row,) = found["sequences"]
        expected = [2 * loss + 0.5 for loss in losses_of(row["token_ids"])]
        assert row["token_losses"][1:] == pytest.approx(expected, abs=1e-12)


def test_models_of_one_server_are_compared() -> None:
    file = ROOT / "samples" / "text.txt"
    with serving(Several()) as server:
        models = [f"{server.url}?model={name}#demo" for name in ("org/base", "my lora")]
        words = ("objective", *models, "--data", file, "--lines", "--limit", 2, "--json")
        found = document(in_process(*words))
    assert [each["model"] for each in found["checkpoints"]] == models
    assert found["best"] == models[0]


@pytest.mark.parametrize(("kind", "n"), [("sglang", 1), ("openai", 1), ("vllm", 1)])
def test_a_name_may_be_said_of_the_only_model(kind: str, n: int) -> None:
    with serving(FakeServer(kind)) as server:
        assert in_process(*WORDS, f"{server.url}?model=fake", "-m", "demo").exit_code == 0
        result = in_process(*WORDS, f"{server.url}?model=lora", "-m", "demo")
        assert result.exit_code == 2
        assert "has no model 'lora', but fake" in said(result)
        empty = in_process(*WORDS, f"{server.url}?model=", "-m", "demo")
        assert "no name after ?model=" in said(empty)
