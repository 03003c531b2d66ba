"""Probes of servers: numbers that are of another place, or that a cache of beginnings has spoilt,
end the run before its first row."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT, document, in_process
from helpers.servers import (
    Broken,
    FakeServer,
    bytes_of,
    losses_of,
    openai_answer,
    serving,
    sglang_answer,
    vllm_answer,
)
from seqloss_cli.backends.server.known_rows import RECORDED_TOKENS, Watch
from seqloss_cli.backends.server.pieces import Pieces
from seqloss_cli.core.policies import ModelChoice, TokenPolicy
from seqloss_cli.models.checkpoint import load_tokenizer_only
from seqloss_cli.tokenization.tokenizer import Tokenization

DEMO = ROOT / "seqloss_cli" / "demo"
Answers = Callable[..., dict[str, Any]]
BY_KIND: dict[str, Answers] = {
    "vllm": vllm_answer,
    "sglang": sglang_answer,
    "openai": openai_answer,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are kept for this test alone, and nobody waits between attempts."""
    from seqloss_cli.backends.server import transport

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transport, "_BACKOFF", 0.0)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Responses whose prompts a server may remember."""
    file = tmp_path / "pairs.jsonl"
    rows = [("The cat sat on the", " mat."), ("The cat sat on the", " mat."),
            ("A dog sat on the", " mat.")]  # fmt: skip
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in rows))
    return file


def refused(server: FakeServer, *words: object) -> str:
    """The message of a run that ends before its first row."""
    result = in_process(*words, "-m", "demo", "--engine", server.url, "--probe-tolerance", "1e-4")
    assert result.exit_code == 1, result.stdout
    return " ".join(result.stderr.split())


# -- values of another place ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize(
    ("shift", "said"),
    [(0, "depend on that token"), (2, "its values are a place late")],
    ids=["early", "late"],
)
def test_values_of_another_place_end_the_run(kind: str, shift: int, said: str) -> None:
    """All that an answer says agrees with itself: its distributions are those of a place beside."""
    with serving(FakeServer(kind)) as server:
        server.fault = lambda number, body, right: BY_KIND[kind](body, shift)
        assert said in refused(server, "score", "--text", "The cat sat.")


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_value_that_its_token_has_where_it_stands_alone_ends_the_run(kind: str) -> None:
    """Where a token is that of the row it is less probable than as an alternative."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if kind == "vllm":
            for entry, own in zip(
                right["choices"][0]["prompt_logprobs"][1:], body["prompt"][1:], strict=True
            ):
                entry[str(own)]["logprob"] -= 0.01
                for each in entry.values():
                    each["rank"] = None
        else:
            tops = right["meta_info"]["input_top_logprobs"]
            for triple, top in zip(right["meta_info"]["input_token_logprobs"], tops, strict=True):
                for each in [triple, *(e for e in top or [] if e[1] == triple[1])]:
                    each[0] = each[0] and each[0] - 0.01
        return right

    with serving(FakeServer(kind, fault=fault)) as server:
        assert "than as an alternative" in refused(server, "score", "--text", "The cat sat.")


def test_a_server_of_few_alternatives_is_not_held_to_them() -> None:
    """Then nothing shows what its numbers are, which is said."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        return Broken(400, content=b'{"error": "at most 0"}') if body["prompt_logprobs"] else right

    with serving(FakeServer(fault=fault)) as server:
        words = ("score", "--text", "The cat sat.", "-m", "demo", "--json")
        result = in_process(*words, "--engine", server.url)
    (row,) = document(result)["sequences"]
    assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]))
    assert "nothing shows that its numbers are log-probabilities" in " ".join(result.stderr.split())


# -- beginnings that are remembered ----------------------------------------------------------------


def start_of(body: dict[str, Any]) -> Any:
    """The first place that is asked for, of each row."""
    found = body.get("logprob_start_len")
    return body.get("prompt_logprob_start") if found is None else found + 1


def lowered(right: Any, by: float = 0.5) -> Any:
    """An answer of which all scored tokens are less probable."""
    for triple in right.get("meta_info", {}).get("input_token_logprobs", [])[1:]:
        triple[0] -= by
    for choice in right.get("choices", []):
        for entry in choice["prompt_logprobs"]:
            for each in (entry or {}).values():
                each["logprob"] -= by
    return right


def seen_before() -> Callable[..., Any]:
    """As a cache that spoils what comes after a beginning that it knows."""
    seen = set[str]()

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        start = start_of(body)
        if isinstance(start, list) or start < 5:
            return right
        key = str((body.get("prompt") or body.get("input_ids"))[: start - 1])
        if key in seen:
            return lowered(right)
        seen.add(key)
        return right

    return fault


def at_first() -> Callable[..., Any]:
    """Wrong ends of rows that are not yet known, as from places that are counted anew."""
    known = set[str]()

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        row, start = str(body.get("prompt") or body.get("input_ids")), start_of(body)
        if start == 1 or isinstance(start, list):
            known.add(row)
        return right if row in known else lowered(right)

    return fault


def of_another_beginning() -> Callable[..., Any]:
    """Answers that are kept by the length and the end of a row alone."""
    kept: dict[str, Any] = {}

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        ids, start = body.get("prompt") or body.get("input_ids"), start_of(body)
        if isinstance(start, list) or start < 5:
            return right
        found = kept.setdefault(str((len(ids), ids[start - 1 :])), number)
        return right if found == number else lowered(right, 0.25)

    return fault


CACHES = {"seen before": seen_before, "at first": at_first, "another's": of_another_beginning}


@pytest.mark.parametrize("kind", ["sglang", "seqloss"])
@pytest.mark.parametrize("name", CACHES)
def test_ends_of_rows_that_depend_on_what_is_remembered_end_the_run(
    kind: str, name: str, pairs: Path
) -> None:
    with serving(FakeServer(kind, fault=CACHES[name]())) as server:
        assert "where no more of the row is asked for" in refused(server, "cond", pairs)


def test_rows_of_one_request_that_depend_on_each_other_end_the_run(pairs: Path) -> None:
    """As a beginning that rows have in common, and that is computed once."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        return lowered(right) if len(right["choices"]) > 1 else right

    with serving(FakeServer("seqloss", fault=fault)) as server:
        assert "where no more of the row is asked for" in refused(server, "cond", pairs)


@pytest.mark.parametrize("kind", ["sglang", "seqloss"])
def test_a_server_that_remembers_rightly_is_believed(kind: str, pairs: Path) -> None:
    with serving(FakeServer(kind)) as server:
        words = ("cond", pairs, "-m", "demo", "--json", "--engine", server.url)
        rows = document(in_process(*words))["sequences"]
        asked = [start_of(body) for body in server.asked]
    for row in rows:
        ids = row["token_ids"]
        n = sum(row["loss_mask"])
        assert -row["log_prob_y_given_x"] == pytest.approx(sum(losses_of(ids)[-n:]), abs=1e-9)
    assert sum(isinstance(start, int) and start > 100 for start in asked) > 10


def test_rows_are_longer_than_the_blocks_of_a_cache() -> None:
    """vLLM's has blocks of 128 tokens on CPUs: what follows a block that it knows is spoilt."""
    blocks = set[str]()

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        ids = body["prompt"]
        for n in range(128, len(ids), 128):
            block = str(ids[:n])
            if block in blocks:
                for entry in right["choices"][0]["prompt_logprobs"][n + 1 :]:
                    for each in entry.values():
                        each["logprob"] -= 0.5
            blocks.add(block)
        return right

    with serving(FakeServer(fault=fault)) as server:
        assert "in another order" in refused(server, "score", "--text", "The cat sat.")
    rows = {tuple(body["prompt"]) for body in server.asked}
    assert max(map(len, rows)) > 256
    alike = [row[:128] for row in rows if len(row) > 128]
    assert len(set(alike)) < len(alike)


# -- answers to others -----------------------------------------------------------------------------


def test_an_answer_to_another_request_rejects_its_row(tmp_path: Path) -> None:
    """Rows with other beginnings have the same end, which is all that SGLang shows."""
    file = tmp_path / "choices.jsonl"
    prompts = ("The cat sat on", "The dog sat on")
    rows = [{"prompt": prompt, "choices": [" yes", " no"]} for prompt in prompts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept: dict[str, Any] = {}

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        start, ids = body["logprob_start_len"], body["input_ids"]
        is_choice = start and len(ids) < 20  # and not the row that is known
        return kept.setdefault(str(ids[start:]), right) if is_choice else right

    with serving(FakeServer("sglang")) as server:
        words = ("rank", file, "-m", "demo", "--json", "--engine", server.url)
        assert in_process(*words).exit_code == 0  # the probe's result is kept
        server.fault = fault
        found = document(in_process(*words, "--concurrency", 1), 3)
    assert [each["line"] for each in found["sequences"]] == [1]
    (rejected,) = found["rejected"]
    assert (rejected["line"], rejected["reason"]) == (2, "server_answer")
    assert "is to another request" in rejected["message"]


def test_no_two_attempts_have_the_same_name() -> None:
    """SGLang refuses one that it is still busy with."""
    seen = set[str]()

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if body["rid"] in seen:
            return Broken(400, content=b"Duplicate request ID")
        seen.add(body["rid"])
        return Broken(500) if number % 2 else right

    with serving(FakeServer("sglang", fault=fault)) as server:
        words = ("score", "--text", "The cat sat.", "-m", "demo", "--json")
        (row,) = document(in_process(*words, "--engine", server.url))["sequences"]
    assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]))


# -- what changed since a probe that was kept ------------------------------------------------------


def shifted(body: Any, right: Any, by: float, is_meant: Callable[[list[int], int], bool]) -> Any:
    """The answer of kind sglang or seqloss, values of the rows that are meant moved by nats."""
    if "meta_info" in right:
        if is_meant(body["input_ids"], body["logprob_start_len"] + 1):
            for each in right["meta_info"]["input_token_logprobs"][1:]:
                each[0] = min(0.0, each[0] + by)
        return right
    starts = body.get("prompt_logprob_start", 1)
    for n, choice in enumerate(right["choices"]):
        start = starts[n] if isinstance(starts, list) else starts
        if is_meant(choice["prompt_token_ids"], start):
            for entry in filter(None, choice["prompt_logprobs"]):
                for each in entry.values():
                    each["logprob"], each["rank"] = min(0.0, each["logprob"] + by), None
    return right


@pytest.mark.parametrize("kind", ["sglang", "seqloss"])
def test_a_cache_that_goes_wrong_after_the_probe(kind: str, pairs: Path) -> None:
    with serving(FakeServer(kind)) as server:
        words = ("cond", pairs, "--json", "-m", "demo", "--engine", server.url)
        assert in_process(*words).exit_code == 0
        server.fault = lambda n, body, right: shifted(body, right, -2, lambda ids, at: at > 1)
        result = in_process(*words)
    assert result.exit_code == 1
    assert "a cache of beginnings does that" in result.stderr


def spoilt_blocks(length: int = 128) -> Callable[..., Any]:
    """As vLLM's cache with blocks of `length` tokens, where what follows one that it knows is
    wrong."""
    seen = set[str]()

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        ids = body["prompt"]
        known = [n for n in range(length, len(ids), length) if str(ids[:n]) in seen]
        seen.update(str(ids[:n]) for n in range(length, len(ids), length))
        if "echo" in body:
            found = right["choices"][0]["logprobs"]
            for n in range(max(known, default=len(ids)) + 1, len(ids)):
                found["token_logprobs"][n] -= 0.5
                found["top_logprobs"][n] = {k: v - 0.5 for k, v in found["top_logprobs"][n].items()}
            return right
        for entry in right["choices"][0]["prompt_logprobs"][max(known, default=len(ids)) + 1 :]:
            for each in entry.values():
                each["logprob"] -= 0.5
        return right

    return fault


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_a_cache_of_blocks_that_is_turned_on_after_the_probe(kind: str) -> None:
    """Its rows that are known begin alike: each reads what the other one left."""
    words = ("score", "--text", "The cat sat.", "-m", "demo", "--engine")
    with serving(FakeServer(kind)) as server:
        assert in_process(*words, server.url).exit_code == 0
        server.asked.clear()
        assert in_process(*words, server.url).exit_code == 0
        first, second, third, _, _, last = (body["prompt"] for body in server.asked)
        assert first == third != second == last
        assert first[:257] == second[:257]
        server.fault = spoilt_blocks()
        message = refused(server, *words[:3])
    assert "--no-enable-prefix-caching" in message


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tokenizer with windows of more than 512 tokens."""
    folder = tmp_path_factory.mktemp("long")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 4096
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["vllm", "openai", "sglang"])
def test_rows_much_longer_than_those_of_the_probe_are_held_to_themselves(
    kind: str, long_model: Path
) -> None:
    """Once a day, for each length that is more than a quarter longer than those before."""
    text = "The keeper winds both clocks and walks home. " * 90
    with serving(FakeServer(kind, max_model_len=2050)) as server:
        words = ("score", "--text", text, "-m", long_model, "--json", "--engine", server.url)
        n_long = []
        for _ in range(2):
            server.asked.clear()
            (row,) = document(in_process(*words))["sequences"]
            sizes = [len(body.get("prompt", body.get("input_ids"))) for body in server.asked]
            n_long.append(sum(n > 500 for n in sizes))
        assert max(sizes) == len(row["token_ids"]) > 2 * 289
        assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)
    n_kept = n_long[1]
    assert n_long == [n_kept + 3, n_kept]


@pytest.mark.parametrize("length", [300, 600])
def test_blocks_of_a_cache_that_are_longer_than_rows_of_the_probe(
    length: int, long_model: Path
) -> None:
    text = "The keeper winds both clocks and walks home. " * 90
    with serving(FakeServer("vllm", max_model_len=2050)) as server:
        server.fault = spoilt_blocks(length)
        words = ("score", "--text", text, "-m", long_model, "--engine", server.url)
        result = in_process(*words)
    assert result.exit_code == 1
    assert "asked for again, without its end" in " ".join(result.stderr.split())


def test_a_server_that_does_not_say_what_it_takes_is_probed_within_the_context() -> None:
    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        is_long = len(body["prompt"]) > 100
        return Broken(400, content=b'{"error": "too long"}') if is_long else right

    words = ("score", "--text", "The cat sat. " * 60, "-m", "demo", "--json", "--engine")
    with serving(FakeServer("vllm", max_model_len=None, fault=fault)) as server:
        refused_ = in_process(*words, server.url)
        assert refused_.exit_code == 1
        assert "--context N" in refused_.stderr
        (row,) = document(in_process(*words, server.url, "--context", 64))["sequences"]
    assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)


def test_long_rows_that_go_to_other_weights(long_model: Path) -> None:
    """As by a gateway with a fall-back for long prompts."""
    text = "The keeper winds both clocks and walks home. " * 60
    with serving(FakeServer("vllm", max_model_len=2050)) as server:
        server.fault = lambda n, body, right: (
            of_other_weights(right) if len(body["prompt"]) > 400 else right
        )
        words = ("score", "--text", text, "-m", long_model, "--engine", server.url)
        result = in_process(*words)
    assert result.exit_code == 1
    assert "after a known beginning" in " ".join(result.stderr.split())


def routed(n: int) -> Callable[..., Any]:
    """As a router of what has the same `n` tokens after BOS, before servers of sixteen weights."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        server = zlib.crc32(str(body["prompt"][: 1 + n]).encode()) % 16
        return of_other_weights(right, 0.5 * server)

    return fault


@pytest.mark.parametrize("n", [1, 5, 30])
def test_a_router_by_beginnings_before_other_weights(n: int) -> None:
    with serving(FakeServer("vllm")) as server:
        server.fault = routed(n)
        message = refused(server, "score", "--text", "The cat sat.")
    # Others show in the first rows whose last token alone differs.
    said = "several servers of other weights", "the alternatives to a row's last token depend on"
    assert any(each in message for each in said)


def test_servers_that_take_few_alternatives_are_held_to_values() -> None:
    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if body["prompt_logprobs"] > 2:
            return Broken(400, content=b'{"error": "at most 2"}')
        return routed(5)(number, body, right)

    with serving(FakeServer("vllm")) as server:
        server.fault = fault
        message = refused(server, "score", "--text", "The cat sat.")
    assert "several servers of other weights are behind the address" in message


def test_a_cache_of_blocks_that_is_turned_on_within_a_run(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("A list is sorted.\n" * 12)
    with serving(FakeServer()) as server:
        words = ("score", file, "--lines", "-m", "demo", "--engine", server.url)
        assert in_process(*words).exit_code == 0
        n, spoil = len(server.asked), spoilt_blocks()
        server.fault = lambda number, body, right: (
            spoil(number, body, right) if number > n + 3 else right
        )
        result = in_process(*words)
    assert result.exit_code == 1
    assert "differ by 0.5 nats from those at the start" in " ".join(result.stderr.split())


def test_two_rows_of_one_request_that_exchange_their_values_end_the_run() -> None:
    def exchanged(number: int, body: dict[str, Any], right: Any) -> Any:
        lists = [[e for e in each["prompt_logprobs"] if e] for each in right["choices"]]
        for entry in (entry for each in lists for entry in each):
            for each in entry.values():
                each["rank"] = None
        for one, other in zip(*lists[:2], strict=False) if len(lists) > 1 else ():
            (a,), (b,) = one.values(), other.values()
            a["logprob"], b["logprob"] = b["logprob"], a["logprob"]
        return right

    with serving(FakeServer("seqloss", fault=exchanged)) as server:
        assert "no more of the row is asked for" in refused(server, "score", "--text", "The cat.")


@pytest.mark.parametrize("kind", ["sglang", "seqloss"])
def test_zeros_of_few_tokens_are_asked_for_again(kind: str, tmp_path: Path) -> None:
    words = ("score", "--text", "The cat sat", "--json", "-m", "demo", "--engine")
    with serving(FakeServer(kind)) as server:
        assert in_process(*words, server.url).exit_code == 0
        server.fault = lambda n, body, right: shifted(
            body, right, 1e3, lambda ids, at: len(ids) < 20 and "texts" not in body
        )
        result = in_process(*words, server.url)
    assert result.exit_code == 3
    assert "server_contradiction" in result.stderr or "server_zeros" in result.stderr


@pytest.mark.parametrize(
    ("kind", "longest"), [("seqloss", 2), ("seqloss", 3), ("seqloss", 4), ("openai", 4)]
)
def test_windows_of_two_or_three_tokens(kind: str, longest: int) -> None:
    with serving(FakeServer(kind, max_model_len=longest)) as server:
        words = ("--text", "The cat sat", "--json", "-m", "demo", "--engine", server.url)
        assert in_process("score", *words).exit_code == 0


# -- what the probe itself cannot see -------------------------------------------------------------


def test_a_cache_that_the_probe_has_warmed_is_refused_again() -> None:
    """Rows of a probe are new each time: what is kept of old ones would agree with itself."""
    with serving(FakeServer("vllm")) as server:
        server.fault = spoilt_blocks()
        for words in (("--text", "a b"), ("--text", "a b"), ("--text", "a b", "--probe")):
            assert "--no-enable-prefix-caching" in refused(server, "score", *words)


def of_other_weights(answer: dict[str, Any], nats: float = 1.0) -> dict[str, Any]:
    """The answer as other weights would give it: each value of the row is lower."""
    for entry in answer["choices"][0]["prompt_logprobs"][1:]:
        for value in entry.values():
            value["logprob"] -= nats
    return answer


@pytest.mark.parametrize("n_right", [100, 10**6])
def test_other_weights_for_some_requests_end_the_run(
    n_right: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a replica behind the address that is never asked when nothing else is."""
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(f"The cat {n} sat on the mat." for n in range(80)) + "\n")
    monkeypatch.setattr(Watch, "confirm", lambda _: None)
    with serving(FakeServer("vllm")) as server:
        server.fault = lambda n, body, right: of_other_weights(right) if n > n_right else right
        words = ("score", file, "--lines", "-m", "demo", "--json", "--engine", server.url)
        result = in_process(*words)
    if n_right > 200:
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert "or several servers are behind the address" in " ".join(result.stderr.split())


@pytest.mark.parametrize("n_broken", [1, 10**6])
def test_an_unbelievable_answer_to_a_known_row_costs_no_row_of_the_run(
    n_broken: int, tmp_path: Path
) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(f"The cat {n} sat on the mat." for n in range(40)) + "\n")
    n_left = [0]

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if len(body["prompt"]) == RECORDED_TOKENS and n_left[0]:
            n_left[0] -= 1
            right["choices"][0]["prompt_logprobs"][1] = None
        return right

    with serving(FakeServer("vllm")) as server:
        server.fault = fault
        words = ("score", file, "--lines", "-m", "demo", "--json", "--engine", server.url)
        assert in_process(*words).exit_code == 0
        n_left[0] = n_broken
        result = in_process(*words)
    if n_broken == 1:
        assert n_left == [0]
        assert document(result)["rejected"] == []
    else:
        assert result.exit_code == 1
        assert "(server_" not in result.stderr


@pytest.mark.parametrize(("kind", "what"), [("openai", "top_logprobs"), ("vllm", "rank")])
def test_what_a_server_has_shown_is_missed_where_it_is_not(
    kind: str, what: str, tmp_path: Path
) -> None:
    """Zeros of a short row are believed where alternatives and ranks do not deny them."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if len(body["prompt"]) > 8:
            return right
        choice = right["choices"][0]
        if kind == "openai":
            listed = choice["logprobs"]
            listed["token_logprobs"] = [None, *(0.0 for _ in listed["token_logprobs"][1:])]
            listed["top_logprobs"] = None
        else:
            for entry in choice["prompt_logprobs"][1:]:
                for value in entry.values():
                    value |= {"logprob": 0.0, "rank": None}
        return right

    with serving(FakeServer(kind)) as server:
        words = ("--text", "The cat sat", "-m", "demo", "--json", "--engine")
        assert in_process("score", *words, f"{kind}+{server.url}").exit_code == 0
        server.fault = fault
        result = in_process("score", *words, f"{kind}+{server.url}")
    assert result.exit_code == 3
    assert document(result, 3)["rejected"][0]["reason"] == "server_missing"


def test_a_text_that_is_not_that_of_the_ids() -> None:
    """Lists show nothing of parts of characters; the echo does, of servers that have one."""
    loaded = load_tokenizer_only(ModelChoice(name="demo"))
    tokens = Tokenization(loaded.tokenizer, TokenPolicy(), loaded.n_ids)
    pieces, rows = Pieces(tokens), tokens.encode(["日本", "中国"])
    assert pieces.is_within("日本 and more", rows[0]) is True
    assert pieces.is_within("日本 and more", rows[1]) is False
    assert pieces.is_within("\ufffd", rows[1]) is None
    assert pieces.is_within("any", [0]) is None


def test_an_echo_of_another_request_rejects_the_row(tmp_path: Path) -> None:
    def echoed(text: str, right: dict[str, Any]) -> dict[str, Any]:
        right["choices"][0]["text"] = text
        return right

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        own = b"".join(map(bytes_of, body["prompt"])).decode(errors="ignore")
        return echoed(own if "日" not in own else "中国", right)

    with serving(FakeServer("openai")) as server:
        server.fault = fault
        words = ("score", "--text", "日本", "-m", "demo", "--json", "--engine")
        result = in_process(*words, f"openai+{server.url}")
    assert document(result, 3)["rejected"][0]["reason"] == "server_text"
