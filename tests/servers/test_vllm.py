"""Scores of a real vLLM on the CPU, beside those of the same model here: `make test-servers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from helpers.program import ROOT, document, in_process
from helpers.real_servers import MAX_MODEL_LEN, serve, vllm

pytestmark = pytest.mark.servers
TOLERANCE = 1e-4
"""Nats per token, in float32."""
MODELS = {
    "demo": ROOT / "seqloss_cli" / "demo",
    "step-100": ROOT / "samples" / "checkpoints" / "step-100",
    "step-600": ROOT / "samples" / "checkpoints" / "step-600",
}
LIMIT = MAX_MODEL_LEN - 2
"""C + 1 ids are sent, and one is generated."""
CASES = {
    "lines": ("score", "samples/text.txt", "--lines", "--ranks", "--top-k", "20"),
    "rows": ("score", "samples/texts.jsonl", "--ranks", "--eos"),
    "windows": ("score", "README.md", "docs/numbers.md", "--ranks", "--top-k", "3"),
    "short windows": ("score", "samples/text.txt", "README.md", "--context", "64", "--stride", "9"),
    "pairs": ("cond", "samples/pairs.jsonl", "--pmi", "--boundary", "compare", "--ranks"),
    "chats": ("cond", "samples/chats.jsonl", "--chat-template", "samples/chat.jinja"),
    "choices": ("rank", "samples/choices.jsonl", "--separator", " ", "--pmi", "--tokens"),
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def url_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """URLs of the servers of models, which start when they are first asked for."""
    found: dict[str, str] = {}
    logs = tmp_path_factory.mktemp("vllm")
    with ExitStack() as stack:

        def url(name: str) -> str:
            if name not in found:
                found[name] = stack.enter_context(vllm(MODELS[name], logs / f"{name}.log"))
            return found[name]

        yield url


def pairs(here: Any, there: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Values of the same place in two documents."""
    assert type(here) is type(there), path
    if isinstance(here, dict):
        assert here.keys() == there.keys(), path
        for key in here:
            yield from pairs(here[key], there[key], f"{path}.{key}")
    elif isinstance(here, list):
        assert len(here) == len(there), path
        for a, b in zip(here, there, strict=True):
            yield from pairs(a, b, path)
    else:
        yield path, here, there


LONGEST = 600
"""Tokens of a sequence or a word at most, whose losses are added."""


def compared(here: Any, there: Any) -> tuple[float, int, int]:
    """The worst difference of a token's loss in nats, how many there are, and how many ranks are
    others. All else must be the same, sums to the tolerance of their tokens."""
    worst, n, n_ranks = 0.0, 0, 0
    for path, a, b in pairs(here["sequences"], there["sequences"]):
        name = path.rpartition(".")[2]
        if name.endswith("token_losses") and a is not None:
            worst, n = max(worst, abs(a - b)), n + 1
            assert worst <= TOLERANCE, path
        elif name == "ranks" and a != b:
            # Where the next probabilities are as near as rounding.
            n_ranks += 1
            assert abs(a - b) <= 1 + a / 100, path
        elif path.endswith((".top_logprobs.id", ".top_logprobs.token")) and a != b:
            n_ranks += 1  # of two alternatives that are as near: their values are compared
        elif isinstance(a, float):
            assert a == pytest.approx(b, abs=LONGEST * TOLERANCE, rel=LONGEST * TOLERANCE), path
        else:
            assert a == b or name == "ranks", path
    return worst, n, n_ranks


def local(model: str, words: tuple[str, ...]) -> Any:
    """What the model says here, in the windows that the server has."""
    windows = () if "--context" in words else ("--context", str(LIMIT))
    return document(in_process(*words, *windows, "--json", "-m", MODELS[model]))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_model_here(
    url_of: Callable[[str], str], model: str, case: str
) -> None:
    words = CASES[case]
    there = document(in_process(*words, "--json", "-m", MODELS[model], "--engine", url_of(model)))
    here = local(model, words)
    worst, n, n_ranks = compared(here, there)
    print(f"\n{model}, {case}: {worst:.2g} nats at most over {n} tokens, {n_ranks} other ranks")
    assert n > 10
    run = there["run"]
    assert run["engine"]["kind"] == "vllm"
    assert run["engine"]["max_model_len"] == MAX_MODEL_LEN
    if case == "windows":
        assert run["context"] == LIMIT
        assert max(row["n_tokens"] for row in there["sequences"]) > 2 * LIMIT


# -- among models ---------------------------------------------------------------------------------


def test_a_server_beside_the_model_here(url_of: Callable[[str], str]) -> None:
    """`compare` shows no difference, and says where the losses come from."""
    server = f"{url_of('demo')}#{MODELS['demo']}"
    words = ("--data", "samples/text.txt", "--data", "README.md", "--lines", "--json")
    result = in_process("compare", "-m", MODELS["demo"], "-m", server, *words)
    found = document(result)
    (one,) = found["comparisons"]
    worst = max(abs(each["difference"]) for each in one["tokens"])
    print(f"\ncompare with the model here: {worst:.2g} nats at most over {one['n_tokens']} tokens")
    assert worst <= TOLERANCE
    assert one["n_documents"] > 100
    assert one["n_b_lower"] == one["n_b_higher"] == 0
    said = " ".join(result.stderr.split())
    assert f"losses of {server} come from {url_of('demo')}" in said
    assert f"losses of {MODELS['demo']} come from a model that was run here" in said


def test_a_server_beside_a_server(url_of: Callable[[str], str]) -> None:
    """`compare` of two servers is that of the models here."""
    servers = [f"vllm+{url_of(name)}#{MODELS[name]}" for name in ("step-600", "demo")]
    words = ("--data", "samples/text.txt", "--data", "README.md", "--lines", "--json")
    there = document(in_process("compare", "-m", servers[0], "-m", servers[1], *words))
    models = "-m", MODELS["step-600"], "-m", MODELS["demo"]
    here = document(in_process("compare", *models, *words, "--context", LIMIT))
    (one,), (other,) = there["comparisons"], here["comparisons"]
    for key in ("n_documents", "n_tokens", "n_b_lower", "n_tied", "n_b_higher", "p"):
        assert one[key] == other[key], key
    for key in ("value", "low", "high"):
        assert one["difference"][key] == pytest.approx(other["difference"][key], abs=TOLERANCE)
    worst = abs(one["difference"]["value"] - other["difference"]["value"])
    print(f"\ncompare of two servers: the mean difference is within {worst:.2g} nats per token")


def test_checkpoints_behind_servers(url_of: Callable[[str], str]) -> None:
    """`objective` chooses as it does with the models here, and names what was asked for."""
    words = ("--data", "samples/text.txt", "--data", "README.md", "--lines", "--json")
    servers = [f"{url_of(name)}#{directory}" for name, directory in MODELS.items()]
    there = document(in_process("objective", *servers, *words))
    here = document(in_process("objective", *MODELS.values(), *words, "--context", LIMIT))
    assert [each["model"] for each in there["checkpoints"]] == servers
    assert servers.index(there["best"]) == [str(m) for m in MODELS.values()].index(here["best"])
    assert [each["step"] for each in there["checkpoints"]] == [None, 100, 600]
    worst = 0.0
    for one, other in zip(there["checkpoints"], here["checkpoints"], strict=True):
        assert one["n_scored"] == other["n_scored"]
        worst = max(worst, abs(one["mean_loss"] - other["mean_loss"]))
    assert worst <= TOLERANCE
    print(f"\nobjective: mean losses within {worst:.2g} nats per token")


# -- limits ---------------------------------------------------------------------------------------


def test_a_window_that_the_server_does_not_take_is_refused(url_of: Callable[[str], str]) -> None:
    words = ("score", "README.md", "-m", MODELS["demo"], "--engine", url_of("demo"))
    refused = in_process(*words, "--context", LIMIT + 1)
    assert refused.exit_code == 2
    assert f"max_model_len: {LIMIT}" in " ".join(refused.stderr.split())


def test_the_server_itself_refuses_one_token_more(url_of: Callable[[str], str]) -> None:
    """C is not a token less than it could be."""
    body = {"model": str(MODELS["demo"]), "max_tokens": 1, "prompt_logprobs": 0}
    url = f"{url_of('demo')}/v1/completions"
    longest = [0] * (LIMIT + 1)
    assert httpx.post(url, json={**body, "prompt": longest}, timeout=60).status_code == 200
    assert httpx.post(url, json={**body, "prompt": [*longest, 0]}, timeout=60).status_code == 400


def test_rows_are_verified(url_of: Callable[[str], str]) -> None:
    words = (
        "score",
        "samples/text.txt",
        "--lines",
        "--json",
        "-m",
        MODELS["demo"],
        "--engine",
        url_of("demo"),
    )
    engine = document(in_process(*words, "--verify", 3, "--probe-tolerance", TOLERANCE))["run"][
        "engine"
    ]
    assert engine["verified_rows"] == 3
    assert engine["verified_worst_difference"] <= TOLERANCE
    # Another model of the same tokenizer: nothing but --verify can tell.
    others = [MODELS["step-600"] if word == MODELS["demo"] else word for word in words]
    other = in_process(*others, "--verify", 3)
    assert other.exit_code == 1
    assert "differ" in other.stderr


# -- the server here, beside vLLM -----------------------------------------------------------------

ASKED: list[dict[str, Any]] = [
    {"prompt": "The cat sat on € 5.", "max_tokens": 1, "echo": True, "logprobs": 2},
    {"prompt": "naïve 日本語 🙂", "max_tokens": 0, "echo": True, "logprobs": 0},
    {"prompt": "Return a list of", "max_tokens": 1, "prompt_logprobs": 5, "logprobs": 3},
    {"prompt": "Return a list of", "max_tokens": 1, "prompt_logprobs": 0,
     "add_special_tokens": False},
    # vLLM would put a second BOS before it.
    {"prompt": "<|begin_of_text|>A list", "max_tokens": 1, "prompt_logprobs": 1,
     "add_special_tokens": False},
    {"prompt": [0, 450, 271, 289], "max_tokens": 1, "prompt_logprobs": 20, "ignore_eos": True},
    {"prompt": [[450, 271], [0, 5, 6, 7]], "max_tokens": 1, "prompt_logprobs": 1},
    {"prompt": ["A list", "Two texts"], "max_tokens": 1, "echo": True, "logprobs": 1},
]  # fmt: skip


def test_serve_answers_as_vllm_does(url_of: Callable[[str], str], tmp_path: Path) -> None:
    """The same ids, texts, log-probabilities and ranks, in the same places."""
    worst, n = 0.0, 0
    with serve(tmp_path / "log", "-m", str(MODELS["demo"])) as ours:
        for body in ASKED:
            both = []
            for url, model in ((url_of("demo"), str(MODELS["demo"])), (ours, "demo")):
                # With these vLLM echoes no text.
                more = {"model": model, "temperature": 0, "return_token_ids": "echo" not in body}
                found = httpx.post(f"{url}/v1/completions", json={**body, **more}, timeout=60)
                assert found.status_code == 200, found.text
                both.append(found.json())
            assert both[0]["usage"]["prompt_tokens"] == both[1]["usage"]["prompt_tokens"]
            for a, b in zip(both[0]["choices"], both[1]["choices"], strict=True):
                for key in ("index", "text", "finish_reason"):
                    assert a[key] == b[key], (body, key)
                for key in ("prompt_token_ids", "token_ids"):
                    assert "echo" in body or a[key] == b[key], (body, key)
                for x, y in [*of_prompts(a, b), *of_echo(a, b)]:
                    worst, n = max(worst, abs(x - y)), n + 1
    print(f"\nserve beside vLLM: {worst:.2g} nats at most over {n} log-probabilities")
    assert worst <= TOLERANCE
    assert n > 100


def of_prompts(a: Any, b: Any) -> Iterator[tuple[float, float]]:
    """Log-probabilities of two answers' `prompt_logprobs`, where these were asked for."""
    if "prompt_logprobs" not in b:
        return
    for x, y in zip(a["prompt_logprobs"], b["prompt_logprobs"], strict=True):
        assert (x is None) == (y is None)
        assert (x or {}).keys() == (y or {}).keys()
        for key in x or {}:
            assert x[key]["rank"] == y[key]["rank"]
            yield x[key]["logprob"], y[key]["logprob"]


def of_echo(a: Any, b: Any) -> Iterator[tuple[float, float]]:
    """Log-probabilities of two answers' `logprobs`, where these were asked for."""
    if b["logprobs"] is None:
        assert a["logprobs"] is None
        return
    x, y = a["logprobs"], b["logprobs"]
    for theirs, ours in zip(x["tokens"], y["tokens"], strict=True):
        # Parts of a character are nothing there, and bytes here.
        assert theirs == ours or ours.startswith("<0x")
    for p, q in zip(x["token_logprobs"], y["token_logprobs"], strict=True):
        assert (p is None) == (q is None)
        if p is not None:
            yield p, q


# -- servers that were started in another way -----------------------------------------------------


def test_with_a_prefix_cache(tmp_path: Path) -> None:
    """Right numbers, or none: vLLM 0.32 reads no cache for requests with prompt_logprobs."""
    with vllm(MODELS["demo"], tmp_path / "log", "--enable-prefix-caching") as url:
        # Beginnings of several blocks of its cache, filled by requests without log-probabilities.
        file = tmp_path / "rows.txt"
        words = (ROOT / "README.md").read_text().split()
        file.write_text("\n".join(" ".join(words[:n] + words[-20:]) for n in range(20, 180, 20)))
        for line in file.read_text().splitlines():
            body = {"model": str(MODELS["demo"]), "prompt": line, "max_tokens": 1}
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        asked = ("score", file, "--lines", "--ranks")
        result = in_process(*asked, "--json", "-m", MODELS["demo"], "--engine", url)
        if result.exit_code == 1:
            assert "--no-enable-prefix-caching" in " ".join(result.stderr.split())
            print("\nprefix cache: refused")
            return
        here = local("demo", tuple(map(str, asked)))
        worst, n, _ = compared(here, document(result))
        assert n > 1000
        print(f"\nprefix cache: {worst:.2g} nats at most over {n} tokens")


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logits"])
def test_logits_are_refused(tmp_path: Path, mode: str) -> None:
    with vllm(MODELS["demo"], tmp_path / "log", "--logprobs-mode", mode) as url:
        result = in_process("score", "samples/text.txt", "--engine", url, "-m", MODELS["demo"])
    assert result.exit_code == 1
    assert "--logprobs-mode raw_logprobs" in " ".join(result.stderr.split())


def test_log_probabilities_after_sampling(tmp_path: Path) -> None:
    """Those of prompts are the raw ones in vLLM 0.32, whatever the options of sampling are."""
    with vllm(MODELS["demo"], tmp_path / "log", "--logprobs-mode", "processed_logprobs") as url:
        case = CASES["lines"]
        there = document(in_process(*case, "--json", "-m", MODELS["demo"], "--engine", url))
        worst, n, _ = compared(local("demo", case), there)
        print(f"\nprocessed_logprobs: {worst:.2g} nats at most over {n} tokens")
        body = {"model": str(MODELS["demo"]), "prompt": [0, 450, 271, 289], "max_tokens": 1}
        options = {
            "temperature": 2.0,
            "top_k": 2,
            "repetition_penalty": 1.5,
            "logit_bias": {"5": 9},
        }
        found = [
            httpx.post(f"{url}/v1/completions", timeout=60,
                       json={**body, "prompt_logprobs": 1, "logprobs": 1, **more}).json()
            for more in ({"temperature": 0}, {**options, "seed": 1})
        ]  # fmt: skip
        raw, processed = ([each["choices"][0][key] for each in found]
                          for key in ("prompt_logprobs", "logprobs"))  # fmt: skip
        assert raw[0] == raw[1]
        assert processed[0] != processed[1]
