"""Losses from a server: the right ones of each kind, and none of an answer that is wrong."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT, document, in_process
from helpers.servers import Broken, FakeServer, log_probs_after, losses_of, serving, shown

TEXTS = [
    "The cat sat on the mat.",
    "A list is sorted in place, and stays so.",
    "The cat sat on a log.",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are kept for this test alone, and nobody waits between attempts."""
    from seqloss_cli.backends.server import transport

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQLOSS_MODEL", "demo")  # its tokenizer
    monkeypatch.setattr(transport, "_BACKOFF", 0.0)


@pytest.fixture(params=["vllm", "sglang", "openai"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with serving(FakeServer(request.param)) as found:
        yield found


@pytest.fixture
def vllm() -> Iterator[FakeServer]:
    with serving(FakeServer()) as found:
        yield found


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers were probed before."""
    from seqloss_cli.backends.server import openai, probing
    from seqloss_cli.backends.server.known_rows import KnownRow

    ids = ids_of("A row that is known.")

    def kept(server: Any, _: str) -> probing.Probe:
        way = openai.Way() if server.protocol.name == "openai" else None
        row = KnownRow(ids, 1, [-loss for loss in losses_of(ids)])
        return probing.Probe(0.0, True, "2026-01-01T00:00:00+00:00", 0.0, [row], 289, way)

    monkeypatch.setattr(probing, "kept_probe", kept)


def ids_of(text: str) -> list[int]:
    """The demo's ids of a text, after its BOS."""
    from tokenizers import Tokenizer

    file = ROOT / "seqloss_cli" / "demo" / "tokenizer.json"
    return [0, *Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids]


def scored(server: FakeServer, tmp_path: Path, *flags: object, code: int = 0) -> Any:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    url = f"{server.kind}+{server.url}"
    return document(in_process("score", file, "--lines", "--json", "--engine", url, *flags), code)


def test_losses_are_those_of_the_server(server: FakeServer, tmp_path: Path) -> None:
    found = scored(server, tmp_path)
    assert len(found["sequences"]) == 3
    for row in found["sequences"]:
        assert row["token_losses"][0] is None
        assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)
    engine = found["run"]["engine"]
    assert engine["kind"] == server.kind
    assert engine["probe_worst_difference"] == 0
    assert found["run"]["model"] == "fake"
    assert found["run"]["path"] == "server"


def test_the_server_is_sent_no_text(server: FakeServer, tmp_path: Path) -> None:
    scored(server, tmp_path)
    prompts = [body.get("prompt", body.get("input_ids")) for body in server.asked]
    assert all(isinstance(i, int) for prompt in prompts for i in prompt)


def test_a_plain_url_asks_what_the_server_is(server: FakeServer, tmp_path: Path) -> None:
    result = in_process("score", "--text", TEXTS[0], "--json", "--engine", server.url)
    assert document(result)["run"]["engine"]["kind"] == server.kind
    assert f"note: {server.url} is a server of kind {server.kind}" in result.stderr
    named = in_process("score", "--text", "a", "--engine", f"{server.kind}+{server.url}")
    assert "is a server of kind" not in named.stderr


def test_special_tokens_are_text_where_they_are_to_be(server: FakeServer) -> None:
    """The probe's tokenizer, which parses them, is another."""
    words = ("score", "--text", "a<|end_of_text|>b", "--special-tokens", "text", "--json")
    (row,) = document(in_process(*words, "--engine", f"{server.kind}+{server.url}"))["sequences"]
    (here,) = document(in_process(*words))["sequences"]
    assert row["token_ids"] == here["token_ids"]
    assert 1 not in row["token_ids"]


@pytest.mark.parametrize("context", [1, 2, 5, None])
def test_windows_hold_at_the_servers_limit(vllm: FakeServer, context: int | None) -> None:
    """C + 1 ids are sent and one is generated: none is longer than `max_model_len` - 1."""
    vllm.max_model_len = 9
    flags = [] if context is None else ["--context", context]
    text = " ".join(TEXTS)
    in_process("score", "--text", "a b", "--engine", vllm.url)
    # Probes do not depend on --context: their result is kept for others.
    assert max(len(body["prompt"]) for body in vllm.asked) == 8
    vllm.asked.clear()
    found = document(in_process("score", "--text", text, "--json", "--engine", vllm.url, *flags))
    (row,) = found["sequences"]
    ids = row["token_ids"]
    # The token before alone counts, whatever the window: of the shortest that is BOS.
    expected = losses_of(ids)
    if context == 1:
        expected = [losses_of([ids[0], i])[0] for i in ids[1:]]
    assert row["token_losses"][1:] == pytest.approx(expected, abs=1e-12)
    rows = [body["prompt"] for body in vllm.asked]
    ours = [row for row in rows if row[:2] != rows[0][:2]]  # the others are known rows
    assert max(map(len, ours)) == 1 + (context or 7)
    too_long = in_process("score", "--text", text, "--engine", vllm.url, "--context", 8)
    assert too_long.exit_code == 2
    assert "max_model_len: 7" in too_long.stderr.replace("\n", " ")


def test_pairs_and_choices(server: FakeServer, tmp_path: Path) -> None:
    words = ("--prompt", "A list is", "--response", " sorted.")
    found = document(in_process("cond", *words, "--json", "--engine", server.url))
    (row,) = found["sequences"]
    losses = losses_of(row["token_ids"])
    n_response = sum(row["loss_mask"])
    assert -row["log_prob_y_given_x"] == pytest.approx(sum(losses[-n_response:]), abs=1e-9)
    words = (*words, "--response", " wet.", "--concurrency", 1)
    ranked = document(in_process("rank", *words, "--json", "--engine", server.url))
    assert ranked["sequences"][0]["choices"][0]["scores"]["sum"] == pytest.approx(
        row["log_prob_y_given_x"], abs=1e-9
    )
    if server.kind == "sglang":  # what comes before the response may be the cache's
        # Of known rows the beginning is asked for, of some of them the end alone, too.
        known = server.asked[0]["input_ids"][:3]
        starts = [
            body["logprob_start_len"] for body in server.asked if body["input_ids"][:3] != known
        ]
        assert starts[-1] > 0


def test_ranks_and_alternatives(tmp_path: Path) -> None:
    for kind in ("vllm", "sglang"):
        with serving(FakeServer(kind)) as server:
            flags = ["--top-k", 3] + (["--ranks"] if kind == "vllm" else [])
            found = scored(server, tmp_path, *flags)
        for row in found["sequences"]:
            for n, (a, b) in enumerate(
                zip(row["token_ids"], row["token_ids"][1:], strict=False), start=1
            ):
                probs = log_probs_after(a)
                best = probs.argsort()[::-1][:3]
                assert [each["id"] for each in row["top_logprobs"][n]] == best.tolist()
                values = [each["log_prob"] for each in row["top_logprobs"][n]]
                assert values == pytest.approx(probs[best].tolist())
                if kind == "vllm":
                    assert row["ranks"][n] == int((probs > probs[b]).sum()) + 1


@pytest.mark.parametrize(
    ("kind", "flags", "word"),
    [
        ("vllm", ["--entropy"], "--entropy"),
        ("vllm", ["--words", "--word-correction"], "--word-correction"),
        ("sglang", ["--ranks"], "--ranks"),
        ("openai", ["--top-k", "3"], "--top-k"),
        ("vllm", ["--dtype", "bfloat16"], "--dtype"),
        ("vllm", ["--compile", "on"], "--compile"),
        ("vllm", ["--quantize", "int8"], "--quantize"),
    ],
)
def test_what_a_server_does_not_do_is_refused(kind: str, flags: list[str], word: str) -> None:
    with serving(FakeServer(kind)) as server:
        result = in_process("score", "--text", "a b", "--engine", server.url, *flags)
    assert result.exit_code == 2
    assert word in result.stderr


def test_a_revision_of_a_directory_is_refused(vllm: FakeServer) -> None:
    result = in_process("score", "--text", "a", "--engine", vllm.url, "--revision", "main")
    assert result.exit_code == 2
    assert "--revision is for names of the hub" in " ".join(result.stderr.split())


def test_from_python_an_engine_is_the_backend(vllm: FakeServer) -> None:
    from seqloss_cli.core.policies import EngineChoice, ModelChoice

    assert ModelChoice(engine=EngineChoice(url=vllm.url)).backend == "server"


def test_a_server_is_no_teacher() -> None:
    result = in_process("diverge", "README.md", "--teacher", "http://127.0.0.1:1")
    assert result.exit_code == 2
    assert "whole distributions" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("--concurrency", "2"), ("--verify", "1"), ("--probe-tolerance", "1"), ("--probe", None)],
)
def test_options_of_a_server_need_one(name: str, value: str | None) -> None:
    result = in_process("score", "--text", "a", name, *([] if value is None else [value]))
    assert result.exit_code == 2
    assert "--engine" in result.stderr


# -- answers that cannot be believed --------------------------------------------------------------


def n_known(server: FakeServer) -> int:
    """The requests for a known row: whole, and its end where beginnings may be remembered."""
    return 2 if server.kind == "sglang" else 1


def n_probes(server: FakeServer, tmp_path: Path) -> int:
    """Probe a server, which is kept; return the number of requests that it took."""
    scored(server, tmp_path)
    n = len(server.asked)
    server.asked.clear()
    scored(server, tmp_path)
    return n - len(server.asked)


def test_a_probe_is_kept(server: FakeServer, tmp_path: Path) -> None:
    assert n_probes(server, tmp_path) > 10
    # Two rows that are known and one of them again at the start, one after each of two blocks; one
    # beside the first row and the second.
    assert len(server.asked) == 3 + (3 + 2) * n_known(server) + 2
    server.asked.clear()
    scored(server, tmp_path, "--probe")
    assert len(server.asked) > 10
    server.model = "another"
    server.asked.clear()
    scored(server, tmp_path)
    assert len(server.asked) > 10


def test_a_probe_under_a_loose_tolerance_is_none_for_a_strict_one(
    vllm: FakeServer, tmp_path: Path
) -> None:
    """Its other checks may have passed only by it: here those of options of sampling."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if body.get("top_p") == 0.5:
            for entry in right["choices"][0]["prompt_logprobs"][1:]:
                for each in entry.values():
                    each["logprob"] -= 1
        return right

    vllm.fault = fault
    words = ("score", "--text", "a b", "--engine", vllm.url)
    assert in_process(*words, "--probe-tolerance", 10).exit_code == 0
    strict = in_process(*words)
    assert strict.exit_code == 1
    assert "depend on options of sampling" in strict.stderr


@pytest.mark.usefixtures("trusted")
def test_shards_of_servers_of_two_kinds_are_not_merged(tmp_path: Path) -> None:
    """Addresses may be others, and what probes found."""
    file, shards = tmp_path / "texts.jsonl", [tmp_path / f"{n}.jsonl" for n in range(4)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for n, kind in enumerate(("vllm", "vllm", "sglang")):
        with serving(FakeServer(kind)) as found:
            words = ("--shard", f"{min(n, 1)}/2", "-o", shards[n], "--engine")
            assert in_process("score", file, *words, f"{kind}+{found.url}").exit_code == 0
    assert in_process("merge", *shards[:2], "-o", shards[3]).exit_code == 0
    other = in_process("merge", shards[0], shards[2], "-o", shards[3], "--force")
    assert other.exit_code == 2
    assert "engine.kind: 'vllm' and 'sglang'" in other.stderr


@pytest.mark.usefixtures("trusted")
def test_the_first_row_does_not_wait_for_others(vllm: FakeServer) -> None:
    """As those of a pipe that is idle, however many are sent at a time."""
    from seqloss_cli.core.policies import EngineChoice, ModelChoice
    from seqloss_cli.core.records import Sample
    from seqloss_cli.scoring.scorer import Scorer

    scorer = Scorer(ModelChoice(backend="server", engine=EngineChoice(url=vllm.url)))
    read: list[int] = []

    def items() -> Iterator[Sample]:
        for n in range(40):
            read.append(n)
            yield Sample(str(n), "made up", text=TEXTS[0])

    next(scorer.score(items()))
    assert len(read) <= 2


def changed(kind: str, answer: Any, make: Any) -> Any:
    """An answer whose list of log-probabilities, of (value, id), is another."""
    if kind == "vllm":
        choice = answer["choices"][0]
        ids = choice["prompt_token_ids"]
        entries = [(None if e is None else e[str(i)]["logprob"], i)
                   for e, i in zip(choice["prompt_logprobs"], ids, strict=True)]  # fmt: skip
        entries = make(entries)
        choice["prompt_logprobs"] = [
            None
            if p is None and n == 0
            else {str(i): {"logprob": p, "rank": 1, "decoded_token": shown(i)}}
            for n, (p, i) in enumerate(entries)
        ]
    elif kind == "sglang":
        meta = answer["meta_info"]
        entries = make([(p, i) for p, i, _ in meta["input_token_logprobs"]])
        meta["input_token_logprobs"] = [[p, i, shown(i)] for p, i in entries]
    else:
        found = answer["choices"][0]["logprobs"]
        entries = make(list(zip(found["token_logprobs"], found["tokens"], strict=True)))
        found["token_logprobs"] = [p for p, _ in entries]
        found["tokens"] = [text for _, text in entries]
        found["top_logprobs"] = None
    return answer


def another(token: int | str) -> int | str:
    return token + 1 if isinstance(token, int) else f"{token}s"


def with_last(value: Any) -> Any:
    """Replace the log-probability of a token in the middle."""
    return lambda entries: [(value if n == 2 else p, i) for n, (p, i) in enumerate(entries)]


WRONG = {
    "missing": with_last(None),
    "positive": with_last(0.25),
    "clamped": with_last(-9999.0),
    "not_finite": with_last(math.nan),
    "not_finite ": with_last(-math.inf),
    "answer": with_last("-1.5"),
    "zeros": lambda entries: [(0.0 if n else None, i) for n, (_, i) in enumerate(entries)],
    "length": lambda entries: entries[:-2],
    "length ": lambda entries: entries + entries[-2:],
    "length  ": lambda entries: [],
    "ids": lambda entries: [(p, another(i) if n == 2 else i) for n, (p, i) in enumerate(entries)],
}


@pytest.mark.parametrize("reason", WRONG)
@pytest.mark.usefixtures("trusted")
def test_an_answer_that_is_wrong_rejects_its_row(
    server: FakeServer, tmp_path: Path, reason: str
) -> None:
    bad = ids_of(TEXTS[1])

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        is_bad = body.get("prompt", body.get("input_ids")) == bad
        return changed(server.kind, right, WRONG[reason]) if is_bad else right

    server.fault = fault
    found = scored(server, tmp_path, code=3)
    (rejected,) = found["rejected"]
    assert rejected["reason"] == f"server_{reason.strip()}", rejected
    assert rejected["line"] == 2
    assert [row["line"] for row in found["sequences"]] == [1, 3]
    for row in found["sequences"]:
        assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)


@pytest.mark.usefixtures("trusted")
def test_an_answer_that_contradicts_itself_rejects_its_row(
    server: FakeServer, tmp_path: Path
) -> None:
    """Another value of a token than its own rank or its alternatives allow."""
    bad = ids_of(TEXTS[1])

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if body.get("prompt", body.get("input_ids")) != bad:
            return right
        if server.kind == "openai":
            right["choices"][0]["logprobs"]["token_logprobs"][2] = -0.5
        elif server.kind == "vllm":
            right["choices"][0]["prompt_logprobs"][2][str(bad[2])]["logprob"] = -0.5
        else:
            right["meta_info"]["input_token_logprobs"][2][0] = -0.5
        return right

    server.fault = fault
    flags = {"vllm": ["--ranks"], "sglang": ["--top-k", 2], "openai": []}[server.kind]
    found = scored(server, tmp_path, *flags, code=3)
    assert [each["reason"] for each in found["rejected"]] == ["server_contradiction"]
    assert [row["line"] for row in found["sequences"]] == [1, 3]


def test_a_name_that_is_no_text_ends_the_run(server: FakeServer) -> None:
    """Half of a character, which JSON may hold."""
    server.model = "half \ud800"
    result = in_process("score", "--text", "a b", "--engine", server.url)
    assert result.exit_code == 1
    assert "which is no text" in " ".join(result.stderr.split())


@pytest.mark.usefixtures("trusted")
def test_other_ids_than_those_sent_reject_the_row(vllm: FakeServer, tmp_path: Path) -> None:

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if body["prompt"] in map(ids_of, TEXTS):
            right["choices"][0]["prompt_token_ids"][0] += 1
        return right

    vllm.fault = fault
    found = scored(vllm, tmp_path, code=3)
    assert [each["reason"] for each in found["rejected"]] == ["server_ids"] * 3


@pytest.mark.parametrize(
    "broken",
    [Broken(content=b"[]"), Broken(content=b'{"choices": null}'),
     Broken(endless=True), Broken(400, content=b'{"error": "too long"}')],
    ids=["list", "null", "endless", "400"],
)  # fmt: skip
@pytest.mark.usefixtures("trusted")
def test_no_answer_of_the_kind_rejects_the_row(
    server: FakeServer, tmp_path: Path, broken: Broken
) -> None:
    server.fault = lambda number, body, right: broken if number == n_before else right
    n_before = len(server.asked) + n_known(server)
    found = scored(server, tmp_path, "--concurrency", 1, code=3)
    assert len(found["rejected"]) == 1
    assert found["rejected"][0]["reason"] in ("server_answer", "server_refused")
    assert len(found["sequences"]) == 2


# -- answers that come the second time ------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        Broken(500),
        Broken(503, {"Retry-After": "0"}),
        Broken(429, {"Retry-After": "0"}),
        Broken(429, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        Broken(cut_headers=True),
        Broken(content=b'{"a": 1}', cut_body=True),
        Broken(content=b'{"choices": ['),  # cut where the end of the connection is its end
        Broken(content=b""),
        Broken(content=b"<html>"),
        Broken(content=b'{"error": {"message": "try later", "code": 503}}'),
    ],
    ids=[
        "500",
        "503",
        "429",
        "429-date",
        "cut-headers",
        "cut-body",
        "cut",
        "empty",
        "html",
        "error",
    ],
)
@pytest.mark.usefixtures("trusted")
def test_a_request_that_failed_is_sent_again(
    server: FakeServer, tmp_path: Path, broken: Broken
) -> None:
    seen = set()

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        key = str({**body, "rid": None, "user": None})  # requests have names of their own
        if key in seen:
            return right
        seen.add(key)
        return broken

    server.fault = fault
    server.asked.clear()
    found = scored(server, tmp_path)
    # Three rows and the known one, which is asked for twice more, and beside two rows.
    assert len(server.asked) == 2 * (3 + n_known(server)) + 2 * n_known(server) + 2
    for row in found["sequences"]:
        assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)


@pytest.mark.usefixtures("trusted")
def test_a_page_in_the_place_of_answers_ends_the_run(vllm: FakeServer) -> None:
    vllm.fault = lambda number, body, right: Broken(content=b"<html>try later</html>")
    result = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert result.exit_code == 1
    found = " ".join(result.stderr.split())
    assert "after 6 attempts, the last: the answer is no JSON: <html>try later</html>" in found


@pytest.mark.usefixtures("trusted")
def test_a_busy_server_is_waited_for(vllm: FakeServer, tmp_path: Path) -> None:
    """However often it says so: these are no failures."""
    n_first = len(vllm.asked)
    busy = Broken(429, {"Retry-After": "0"})
    vllm.fault = lambda number, body, right: busy if number < n_first + 20 else right
    scored(vllm, tmp_path)


@pytest.mark.usefixtures("trusted")
def test_a_server_that_stays_busy_ends_the_run(
    vllm: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqloss_cli.backends.server import transport

    class Clock:
        """A second passes whenever somebody looks."""

        monotonic = count().__next__

    monkeypatch.setattr(transport, "time", Clock)
    vllm.fault = lambda number, body, right: Broken(429, {"Retry-After": "0"})
    words = ("score", "--text", "a b", "--engine", vllm.url, "--engine-timeout", 100)
    result = in_process(*words)
    assert result.exit_code == 1
    assert "too busy for 100 s (--engine-timeout): status 429" in " ".join(result.stderr.split())


def rows_asked_for(server: FakeServer, tmp_path: Path, broken: Broken, most: int) -> list[int]:
    """Rows in each request of a run, of which one of more than `most` is answered otherwise."""
    file, sizes = tmp_path / "many.txt", list[int]()
    file.write_text("\n".join(f"{text} {n}" for n in range(20) for text in TEXTS))

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        sizes.append(len(right["choices"]))
        return right if sizes[-1] <= most else broken

    words = ("--json", "--concurrency", 1, "--engine", server.url)
    assert in_process("score", "--text", "a b", *words).exit_code == 0
    server.fault = fault
    found = document(in_process("score", file, "--lines", *words))
    assert [row["line"] for row in found["sequences"]] == list(range(1, 61))
    for row in found["sequences"]:
        assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)
    return sizes


def test_a_number_of_rows_that_was_refused_is_not_asked_for_again(tmp_path: Path) -> None:
    with serving(FakeServer("seqloss")) as server:
        sizes = rows_asked_for(server, tmp_path, Broken(400, content=b"too many"), 5)
    assert [n for n in sizes if n > 5] == [8]
    assert max(sizes[sizes.index(8) + 1 :]) == 4


def test_fewer_rows_are_asked_for_while_a_server_is_busy(tmp_path: Path) -> None:
    """A request needs places for all of its rows at once."""
    with serving(FakeServer("seqloss")) as server:
        sizes = rows_asked_for(server, tmp_path, Broken(429, {"Retry-After": "0"}), 5)
    halves = {n: sizes[at + 1] for at, n in enumerate(sizes[:-1]) if n > 5}
    assert halves
    assert all(after == n // 2 for n, after in halves.items())


@pytest.mark.usefixtures("trusted")
def test_a_slow_answer_is_cut_off(vllm: FakeServer, tmp_path: Path) -> None:
    vllm.fault = lambda number, body, right: Broken(content=b" " * 1000, slow=0.05)
    vllm.asked.clear()
    result = in_process("score", "--text", "a b", "--engine", vllm.url, "--engine-timeout", "0.1")
    assert result.exit_code == 1
    assert "no answer after 6 attempts" in result.stderr.replace("\n", " ")
    assert len(vllm.asked) == 6


@pytest.mark.usefixtures("trusted")
def test_a_server_that_stays_away_ends_the_run_and_resume_goes_on(
    vllm: FakeServer, tmp_path: Path
) -> None:
    """Never is a failure of transport a row."""
    file, out = tmp_path / "many.txt", tmp_path / "out.jsonl"
    file.write_text("\n".join(f"{text} {n}" for n in range(40) for text in TEXTS))
    words = ("score", file, "--lines", "-o", out, "--engine", vllm.url, "--concurrency", 2)
    n_first = len(vllm.asked)
    vllm.fault = lambda number, body, right: Broken(500) if number > n_first + 60 else right
    failed = in_process(*words)
    assert failed.exit_code == 1
    assert "--resume" in failed.stderr
    kept = (tmp_path / "out.jsonl.partial").read_text().splitlines()
    assert 1 < len(kept) < 100
    assert all('"type":"rejected"' not in line for line in kept)
    vllm.fault = None
    again = in_process(*words, "--resume")
    assert again.exit_code == 0, again.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rows = [row for row in rows if row["type"] == "sequence"]
    assert [row["line"] for row in rows] == list(range(1, 121))
    for row in rows:
        assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(("command", "n_answers"), [("score", 40), ("cond", 40), ("rank", 80)])
def test_rows_that_were_rejected_for_the_servers_answer_are_kept(
    vllm: FakeServer, tmp_path: Path, command: str, n_answers: int
) -> None:
    """No input tells of them: on a resumed run only their places are compared."""
    file, out = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    responses: dict[str, dict[str, Any]] = {
        "score": {},
        "cond": {"response": " end"},
        "rank": {"choices": [" a", " b"]},
    }
    field = "text" if command == "score" else "prompt"
    rows = [{field: f"The {n}", **responses[command]} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (command, file, "-o", out, "--engine", vllm.url, "--concurrency", 2)
    n_first = len(vllm.asked)

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if number > n_first + n_answers:
            return Broken(500)
        if number % 7 == 6:
            right["choices"][0]["prompt_token_ids"][-1] ^= 1
        return right

    vllm.fault = fault
    failed = in_process(*words)
    assert failed.exit_code == 1, failed.stderr
    assert "no answer after 6 attempts, the last: status 500" in failed.stderr
    kept = [json.loads(line) for line in Path(f"{out}.partial").read_text().splitlines()]
    rejected = [row for row in kept if row["type"] == "rejected"]
    assert {row["reason"] for row in rejected} == {"server_ids"}
    assert len(kept) > len(rejected) + 1
    vllm.fault = None
    again = in_process(*words, "--resume")
    assert again.exit_code == 3, again.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found[: len(kept)] == kept
    assert [row["line"] for row in found[1:-1]] == list(range(1, 61))
    assert found[-1]["rejections"] == {"server_ids": len(rejected)}


@pytest.mark.usefixtures("trusted")
def test_a_server_that_asks_for_too_long_a_wait(vllm: FakeServer, tmp_path: Path) -> None:
    vllm.fault = lambda *_: Broken(429, {"Retry-After": "86400"})
    result = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert result.exit_code == 1
    assert "86400 s" in result.stderr


# -- servers that are not believed ----------------------------------------------------------------


def test_numbers_that_depend_on_the_order_end_the_run(vllm: FakeServer) -> None:
    """As vLLM's with a prefix cache (its issue 42019)."""
    seen: list[list[int]] = []

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        ids = body["prompt"]
        if any(ids[:8] == other[:8] and ids != other for other in seen):
            right = changed("vllm", right, with_last(-1.0))
        seen.append(ids)
        return right

    vllm.fault = fault
    result = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert result.exit_code == 1
    assert "--no-enable-prefix-caching" in result.stderr.replace("\n", " ")


def test_log_probabilities_after_sampling_end_the_run(vllm: FakeServer) -> None:
    """As vLLM's with --logprobs-mode processed_logprobs."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if body["temperature"] == 0:
            return right
        return changed(
            "vllm", right, lambda es: [(p and p / body["temperature"], i) for p, i in es]
        )

    vllm.fault = fault
    result = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert result.exit_code == 1
    assert "raw_logprobs" in result.stderr.replace("\n", " ")


def test_logits_end_the_run(vllm: FakeServer) -> None:
    """As vLLM's with --logprobs-mode raw_logits, where all of them are negative."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        for entry in right["choices"][0]["prompt_logprobs"]:
            for each in (entry or {}).values():
                each["logprob"] /= 4
        return right

    vllm.fault = fault
    result = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert result.exit_code == 1
    assert "raw_logprobs" in result.stderr.replace("\n", " ")


def test_positive_logits_end_the_run(vllm: FakeServer) -> None:
    vllm.fault = lambda n, body, right: changed("vllm", right, with_last(5.5))
    result = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert result.exit_code == 1
    assert "has 5.5" in result.stderr
    assert "--logprobs-mode raw_logprobs" in " ".join(result.stderr.split())


def test_a_server_without_log_probabilities_is_named(server: FakeServer) -> None:
    """As llama.cpp's llama-server, which answers as if nothing had been asked."""
    server.fault = lambda number, body, right: {
        "choices": [{"index": 0, "text": "x", "logprobs": None}], "meta_info": {},
    }  # fmt: skip
    result = in_process("score", "--text", "a b", "--engine", server.url)
    assert result.exit_code == 1
    assert "llama-server" in result.stderr


def test_the_first_rows_are_scored_here_too(vllm: FakeServer, tmp_path: Path) -> None:
    result = in_process("score", "--text", "a b", "--engine", vllm.url, "--verify", 1, "--json")
    assert result.exit_code == 1
    assert "--verify" in result.stderr
    found = scored(vllm, tmp_path, "--verify", 2, "--probe-tolerance", 1000)
    assert found["run"]["engine"]["verified_rows"] == 2
    assert found["run"]["engine"]["verified_worst_difference"] > 0.1


@pytest.mark.parametrize("command", ["compare", "objective"])
def test_models_that_are_compared_are_verified(
    vllm: FakeServer, tmp_path: Path, command: str
) -> None:
    file, models = tmp_path / "texts.txt", (f"{vllm.url}#demo", "demo")
    file.write_text("\n".join(TEXTS))
    named = [word for model in models for word in ("-m", model)]
    words = (command, *(named if command == "compare" else models), "--data", file, "--lines")
    result = in_process(*words, "--verify", 1)
    assert result.exit_code == 1
    assert "--verify: the server's losses differ" in result.stderr


@pytest.mark.usefixtures("trusted")
def test_rows_without_a_scored_token_verify_nothing(vllm: FakeServer, tmp_path: Path) -> None:
    """Their difference is none, not 0."""
    file = tmp_path / "texts.txt"
    file.write_text("a\nb\n" + TEXTS[0])
    words = ("score", file, "--lines", "--bos", "never", "--engine", vllm.url, "--verify", 2)
    result = in_process(*words)
    assert result.exit_code == 1
    assert "--verify: the server's losses differ" in result.stderr
    file.write_text("a\nb\n")
    assert "no input with a token that both scored" in in_process(*words).stderr


@pytest.mark.usefixtures("trusted")
def test_a_model_that_is_there_no_more_ends_the_run(vllm: FakeServer) -> None:
    """Its rows are not rejected one by one."""
    vllm.fault = lambda *_: Broken(404)
    result = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert result.exit_code == 1
    assert "status 404" in result.stderr


@pytest.mark.usefixtures("trusted")
def test_every_error_of_a_server_is_asked_for_again(vllm: FakeServer, tmp_path: Path) -> None:
    n_first = len(vllm.asked)
    statuses = [500, 501, 520, 529]

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        return Broken(statuses.pop()) if statuses else right

    vllm.fault = fault
    scored(vllm, tmp_path)
    assert len(vllm.asked) - n_first == 3 + 3 + 2 + 4


def test_requests_on_their_way_end_where_another_one_ends_the_run(vllm: FakeServer) -> None:
    """Threads that wait for an answer are woken: the server gives none."""
    from seqloss_cli.backends.server.transport import Transport
    from seqloss_cli.core.errors import RunError
    from seqloss_cli.core.policies import EngineChoice

    is_asked, is_over = threading.Semaphore(0), threading.Event()

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        is_asked.release()
        is_over.wait(60)
        return right

    vllm.fault = fault
    transport = Transport(vllm.url, EngineChoice(concurrency=8))
    body = {"model": "fake", "prompt": [0, 5], "prompt_logprobs": 0}
    said = list[str]()

    def ask() -> None:
        with pytest.raises(RunError) as found:
            transport.post("/v1/completions", body, 1 << 16)
        said.append(str(found.value))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert is_asked.acquire(timeout=30)
    transport.close("for this reason")
    for thread in threads:
        thread.join(30)
    is_over.set()
    assert said == ["for this reason"] * 8


# -- keys, addresses, load ------------------------------------------------------------------------


def test_a_key_is_sent_and_stands_nowhere(
    vllm: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm.key = "s3cret-key"
    refused = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert refused.exit_code == 1
    assert "SEQLOSS_API_KEY" in refused.stderr
    file = tmp_path / "key"
    file.write_text("s3cret-key\n")
    words = ("score", "--text", "a b", "--engine", vllm.url, "--json")
    found = in_process(*words, "--api-key-file", file)
    assert found.exit_code == 0
    monkeypatch.setenv("SEQLOSS_API_KEY", "s3cret-key")
    by_variable = in_process(*words)
    assert by_variable.exit_code == 0
    assert "s3cret" not in found.output + by_variable.output + refused.output


def test_a_key_that_is_misspelt_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOSS_API_KYE", "s3cret-key")
    result = in_process("score", "--text", "a")
    assert result.exit_code == 2
    assert "SEQLOSS_API_KEY" in result.stderr
    assert "s3cret" not in result.output + result.stderr


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://example.org", "--insecure-http"),
        ("vllm+http://user:key@127.0.0.1:1", "SEQLOSS_API_KEY"),
        ("tgi+http://127.0.0.1:1", "vllm, sglang, openai"),
        ("127.0.0.1:8000", "no URL"),
        ("http://127.0.0.1:1/?key=1", "belongs there"),
        ("http://", "no URL"),
    ],
)
def test_addresses_that_are_refused(url: str, word: str) -> None:
    result = in_process("score", "--text", "a", "--engine", url)
    assert result.exit_code == 2
    assert word in result.stderr.replace("\n", " ")


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    result = in_process("score", "--text", "a", "--engine", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.stderr


@pytest.mark.usefixtures("trusted")
def test_a_redirect_is_not_followed(vllm: FakeServer, tmp_path: Path) -> None:
    vllm.fault = lambda *_: Broken(307, {"Location": "http://evil.example/v1/completions"})
    result = in_process("score", "--text", "a b", "--engine", vllm.url)
    assert result.exit_code == 1
    assert "evil.example" in result.stderr


@pytest.mark.usefixtures("trusted")
def test_as_many_at_a_time_as_asked_for(vllm: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text("\n".join(f"{text} {n}" for n in range(20) for text in TEXTS))
    vllm.most_at_once = 0
    words = ("score", file, "--lines", "--json", "--engine", vllm.url)
    found = document(in_process(*words, "--concurrency", 3))
    assert vllm.most_at_once <= 3
    assert [row["line"] for row in found["sequences"]] == list(range(1, 61))
    free = document(in_process(*words))
    assert free["sequences"] == found["sequences"]


@pytest.mark.usefixtures("trusted")
def test_faults_under_load_lose_and_double_nothing(vllm: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text("\n".join(f"{n} {TEXTS[n % 3]}" for n in range(300)))
    faults = [Broken(500), Broken(429, {"Retry-After": "0"}), Broken(cut_headers=True),
              Broken(content=b'{"choices"', cut_body=True)]  # fmt: skip
    vllm.fault = lambda n, body, right: faults[n // 20 % 4] if n % 20 == 0 else right
    words = ("score", file, "--lines", "--json", "--engine", vllm.url, "--concurrency", 16)
    found = document(in_process(*words))
    assert [row["line"] for row in found["sequences"]] == list(range(1, 301))
    for row in found["sequences"]:
        assert row["token_losses"][1:] == pytest.approx(losses_of(row["token_ids"]), abs=1e-12)


def test_another_server_does_not_go_on_with_a_file(vllm: FakeServer, tmp_path: Path) -> None:
    file, out = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    file.write_text("\n".join(TEXTS))
    words = ("score", file, "--lines", "-o", out, "--engine")
    assert in_process(*words, vllm.url).exit_code == 0
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:2]))
    out.unlink()
    with serving(FakeServer()) as other:
        refused = in_process(*words, other.url, "--resume")
        assert refused.exit_code == 2
        assert f"--engine {vllm.url}" in " ".join(refused.stderr.split())
    assert in_process(*words, vllm.url, "--resume").exit_code == 0


def test_chats_of_the_demo_have_a_template_with_a_server(vllm: FakeServer) -> None:
    words = ("cond", "samples/chats.jsonl", "--chat-template", "samples/chat.jinja", "--json")
    found = document(in_process(*words, "--engine", vllm.url))
    here = document(in_process(*words))
    ids = [[row["token_ids"], row["loss_mask"]] for row in found["sequences"]]
    assert ids == [[row["token_ids"], row["loss_mask"]] for row in here["sequences"]]


# -- what is said of a server ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("diverge", "none.txt", "--teacher", "demo"), "diverge runs models here"),
        (("mask", "none.jsonl", "--loss"), "mask runs models here"),
        (("serve", "-m", "none"), "serve runs models here"),
        (("compare", "-m", "demo", "-m", "none", "--data", "none.txt"), "is URL#TOKENIZER"),
        (("objective", "none", "--data", "none.txt"), "is URL#TOKENIZER"),
        (("mask", "none.jsonl"), None),
        (("compare", "none.jsonl", "other.jsonl"), None),
        (("summarize", "none.jsonl"), None),
        (("score", "none.txt"), None),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_a_server_that_is_not_asked_is_no_secret(
    words: tuple[str, ...], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_variable = in_process(*words, SEQLOSS_ENGINE="http://127.0.0.1:9").stderr
    (tmp_path / "own.yaml").write_text("engine: http://127.0.0.1:9\n")
    by_file = in_process(*words, "--config", "own.yaml").stderr
    for place, stderr in (("SEQLOSS_ENGINE", by_variable), ("engine of own.yaml", by_file)):
        found = " ".join(stderr.split())
        assert (f"note: {place} is for score, cond and rank" in found) is (said is not None)
        assert said is None or said in found


def test_the_record_of_a_run_names_what_computed(vllm: FakeServer, tmp_path: Path) -> None:
    run = scored(vllm, tmp_path)["run"]
    assert sorted(run["versions"]) == ["numpy", "python", "seqloss", "tokenizers"]
    assert run["batch_tokens"] is None
    own = document(in_process("score", "--text", "a b", "--json"))["run"]
    assert {"torch", "transformers"} <= own["versions"].keys()
    assert own["batch_tokens"] == 4096


def test_files_of_servers_with_versions_of_torch_go_on(vllm: FakeServer, tmp_path: Path) -> None:
    """The first runs with a server named torch, which computed none of their numbers."""
    import orjson

    file, out = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    file.write_text("\n".join(TEXTS))
    words = ("score", file, "--lines", "-o", out, "--engine", vllm.url)
    assert in_process(*words).exit_code == 0
    whole = out.read_bytes().splitlines(keepends=True)
    run = orjson.loads(whole[0])
    run["versions"] |= {"torch": "2.13.0", "transformers": "5.23.0"}
    run["batch_tokens"] = 4096
    out.unlink()
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(orjson.dumps(run) + b"\n" + whole[1])
    found = in_process(*words, "--resume")
    assert found.exit_code == 0, found.stderr
    assert out.read_bytes().splitlines(keepends=True)[1:-1] == whole[1:-1]
    run["versions"]["tokenizers"] = "0.1"
    out.unlink()
    partial.write_bytes(orjson.dumps(run) + b"\n" + whole[1])
    refused = in_process(*words, "--resume")
    assert refused.exit_code == 2
    assert "versions.tokenizers" in refused.stderr


def test_objective_says_which_losses_come_from_a_server(vllm: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    server = f"{vllm.url}#demo"
    result = in_process("objective", "demo", server, "--data", file, "--lines", "--json")
    found = document(result)
    assert [each["model"] for each in found["checkpoints"]] == ["demo", server]
    assert found["best"] == "demo"
    said = " ".join(result.stderr.split())
    assert "losses of demo come from a model that was run here" in said
    assert f"losses of {server} come from {vllm.url}" in said
    vllm.max_model_len = 66
    result = in_process("objective", "demo", server, "--data", file, "--lines", "--json")
    assert f"{server} against demo: context 512 and 64" in " ".join(result.stderr.split())


def test_the_table_names_the_server(vllm: FakeServer) -> None:
    found = " ".join(in_process("score", "--text", "a b", "--engine", vllm.url).stdout.split())
    assert f"fake, dtype unknown by vllm 0.32.0 at {vllm.url}" in found.replace(" │ │ ", " ")
