"""Scores of llama-cpp-python's server, beside those of the same GGUF file here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.gguf_files import write_checkpoint
from helpers.program import ROOT, document, in_process
from helpers.real_servers import llama_cpp

pytestmark = pytest.mark.servers
TOLERANCE = 1e-4
"""Nats per token, where keys and values are kept in float32."""
FLOAT32 = ("--type_k", "0", "--type_v", "0")
CONTEXT = ("--n_ctx", "515")
"""C + 1 ids are sent, and one more where a text must not end; one is generated."""
MODELS = {
    "demo": (ROOT / "seqloss_cli" / "demo", True),
    "demo-without-bos": (ROOT / "seqloss_cli" / "demo", False),
    "step-600": (ROOT / "samples" / "checkpoints" / "step-600", True),
}
"""Checkpoints, and whether the file says that a BOS is put before texts."""
ODD = [
    "Plain words, 12345 and 17:45.", "🐕 日本 x", "  blanks   within  and after  ", "naïve Ω ß",
    'tabs\there "quoted" [brackets] <tags> {x}', "x = [i for i in range(10)]  # comment", "a",
    "a<|end_of_text|>b",
]  # fmt: skip
CASES = {
    "lines": ("score", "docs/numbers.md", "--lines", "--limit", "30"),
    "odd": ("score", "ODD", "--lines"),
    "windows": ("score", "BEGINNING", "--context", "100"),
    "longest": ("score", "BEGINNING"),
    "pairs": ("cond", "samples/pairs.jsonl", "--pmi"),
    "chats": ("cond", "samples/chats.jsonl", "--chat-template", "samples/chat.jinja"),
    "choices": ("rank", "samples/choices.jsonl", "--separator", " ", "--tokens"),
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("llama_cpp")
    (found / "ODD").write_text("\n".join(ODD))
    (found / "BEGINNING").write_text((ROOT / "docs" / "numbers.md").read_text()[:3000])
    for name, (checkpoint, add_bos) in MODELS.items():
        write_checkpoint(found / f"{name}.gguf", checkpoint, add_bos)
    return found


@pytest.fixture(scope="module")
def url_of(folder: Path) -> Iterator[Callable[..., str]]:
    """URLs of the servers of models and flags, which start when they are first asked for."""
    found: dict[tuple[str, ...], str] = {}
    with ExitStack() as stack:

        def url(name: str, *flags: str) -> str:
            if (name, *flags) not in found:
                log = folder / f"{len(found)}.log"
                server = llama_cpp(folder / f"{name}.gguf", log, *flags)
                found[name, *flags] = stack.enter_context(server)
            return found[name, *flags]

        yield url


def scored(folder: Path, name: str, *words: str) -> Any:
    """The document of a run with a model's file: here, or its tokens by a server of `words`."""
    places = {word: str(folder / word) for word in ("ODD", "BEGINNING")}
    words = tuple(places.get(word, word) for word in words)
    return document(in_process(*words, "--json", "--model", folder / f"{name}.gguf"))


def by(url: str) -> tuple[str, ...]:
    return ("--engine", f"openai+{url}", "--probe-tolerance", str(TOLERANCE))


def losses(row: dict[str, Any]) -> list[list[float | None]]:
    """Of the tokens after the first one after BOS; of choices those of the responses."""
    if "choices" in row:
        return [choice["token_losses"] for choice in row["choices"]]
    return [row["token_losses"][2:]]


def compared(here: Any, there: Any) -> tuple[float, int]:
    """The worst difference of a token's loss in nats, and how many there are. Every row and token
    has one, but for those right after BOS."""
    worst, n = 0.0, 0
    assert not there["rejected"]
    for ours, theirs in zip(here["sequences"], there["sequences"], strict=True):
        assert "choices" in theirs or theirs["token_losses"][:2] == [None, None]
        for a, b in zip(losses(ours), losses(theirs), strict=True):
            assert [x is None for x in a] == [x is None for x in b]
            found = [abs(x - y) for x, y in zip(a, b, strict=True) if None not in (x, y)]
            worst, n = max([worst, *found]), n + len(found)
    return worst, n


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_the_same_file_here(
    name: str, case: str, folder: Path, url_of: Callable[..., str]
) -> None:
    here = scored(folder, name, *CASES[case])
    there = scored(folder, name, *CASES[case], *by(url_of(name, *FLOAT32, *CONTEXT)))
    worst, n = compared(here, there)
    print(f"{name} {case}: {n} tokens, {worst:.1e} nats")
    assert n > 20
    assert worst <= TOLERANCE
    if case in ("lines", "odd"):
        flags = there["totals"]["flags"]
        assert flags["first_token_unscored"] == there["totals"]["n_sequences"]
        n_texts = sum(row["n_tokens"] > 1 for row in there["sequences"])
        assert there["totals"]["n_scored"] == here["totals"]["n_scored"] - n_texts


def test_many_at_a_time_and_one_are_the_same(folder: Path, url_of: Callable[..., str]) -> None:
    words = ("score", "README.md", "--lines", "--limit", "20", "--concurrency")
    engine = by(url_of("demo", *FLOAT32, *CONTEXT))
    runs = [scored(folder, "demo", *words, n, *engine) for n in ("1", "16")]
    assert compared(*runs)[0] <= TOLERANCE


def test_by_default_keys_and_values_are_float16_there(
    folder: Path, url_of: Callable[..., str]
) -> None:
    """So that the tolerance of float32 does not hold, but the default one, with --verify, does."""
    url = url_of("demo", *CONTEXT)
    words = ("score", "README.md", "--lines", "--limit", "20", "--json")
    engine = ("--model", folder / "demo.gguf", "--engine", f"openai+{url}", "--verify", 10)
    found = document(in_process(*words, *engine))
    worst = found["run"]["engine"]["verified_worst_difference"]
    print(f"float16 keys and values: {worst:.1e} nats")
    assert TOLERANCE < worst < 0.05


def test_without_bos_no_value_is_used(folder: Path, url_of: Callable[..., str]) -> None:
    for name in ("demo", "demo-without-bos"):
        url = url_of(name, *FLOAT32, *CONTEXT)
        words = ("score", "--text", "The cat sat.", "--bos", "never", "--json")
        engine = ("--model", folder / f"{name}.gguf", "--engine", f"openai+{url}")
        (rejected,) = document(in_process(*words, *engine), 3)["rejected"]
        assert rejected["reason"] == "server_position"


def test_what_the_server_cannot_do_names_what_mends_it(
    folder: Path, url_of: Callable[..., str]
) -> None:
    url = url_of("demo", "--n_ctx", "256", "--logits_all", "false")
    words = ("score", folder / "BEGINNING", "--model", folder / "demo.gguf", "--engine")
    result = in_process(*words, f"openai+{url}")
    assert result.exit_code == 1
    assert "--logits_all true" in " ".join(result.stderr.split())
    url = url_of("demo", "--n_ctx", "256")
    result = in_process(*words, f"openai+{url}")
    assert result.exit_code == 3
    assert "--context N" in " ".join(result.stderr.split())
    assert in_process(*words, f"openai+{url}", "--context", 253).exit_code == 0
