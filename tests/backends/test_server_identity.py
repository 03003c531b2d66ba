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


@pytest.fixture(scope="module")
def two_exchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tokenizer with two ids, of ` passed` and ` possible`, that stand for each other's
    tokens; no row of a probe has them."""
    folder = tmp_path_factory.mktemp("exchanged")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    ids = whole["model"]["vocab"]
    a, b = "\u0120passed", "\u0120possible"
    ids[a], ids[b] = ids[b], ids[a]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_a_tokenizer_that_differs_in_few_ids(
    kind: str, two_exchanged: Path, tmp_path: Path
) -> None:
    """Each id is shown once to be ours, those of prompts, too."""
    rows = [("We saw it", " and then here."), ("We saw it", " and passed here."),
            ("We saw possible", " and then here."), ("We saw it", " and then here.")]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in rows))
    words = ("cond", file, "--json", "--concurrency", 1, "--engine")
    with serving(FakeServer(kind)) as server:
        found = document(in_process(*words, server.url, "-m", two_exchanged), 3)
        asked = list(server.asked)
        assert in_process(*words, server.url, "-m", "demo").exit_code == 0
    assert [row["line"] for row in found["sequences"]] == [1, 4]
    rejected = [(row["line"], row["reason"]) for row in found["rejected"]]
    assert rejected == [(2, "server_ids"), (3, "server_ids")]
    if kind == "sglang":  # all were shown by then: no text is asked for
        ids = found["sequences"][-1]["token_ids"]
        last = [body for body in asked if body["input_ids"] == ids][-1]
        assert "return_text_in_logprobs" not in last


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_are_exchanged_with_the_same_after_a_blank(kind: str, tmp_path: Path) -> None:
    """Some servers leave blanks out; of one that has shown some they tell words apart."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    ids = whole["model"]["vocab"]
    blank = "\u0120"
    pairs = [each for each in ids if each[0] == blank and each[1:].isalpha() and each[1:] in ids]
    assert len(pairs) > 100
    for each in pairs:
        ids[each], ids[each[1:]] = ids[each[1:]], ids[each]
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with serving(FakeServer(kind)) as server:
        result = in_process(*WORDS, server.url, "-m", tmp_path)
    assert result.exit_code == 1
    assert "is about other tokens" in said(result)


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


# -- weights --------------------------------------------------------------------------------------


def with_other_weights(number: int, body: dict[str, Any], right: Any) -> Any:
    """The answer of another model, for each kind of server."""
    if "meta_info" in right:
        own, tops = (right["meta_info"][f"input_{name}_logprobs"][1:] for name in ("token", "top"))
        for triple in [*own, *(each for top in tops for each in top)]:
            triple[0] = triple[0] * 1.5 - 0.1
        return right
    choice = right["choices"][0]
    if choice["logprobs"] is not None:
        found = choice["logprobs"]
        found["token_logprobs"] = [p and p * 1.5 - 0.1 for p in found["token_logprobs"]]
        found["top_logprobs"] = [
            tops and {text: p * 1.5 - 0.1 for text, p in tops.items()}
            for tops in found["top_logprobs"]
        ]
        return right
    for entry in choice["prompt_logprobs"][1:]:
        for each in entry.values():
            each["logprob"] = each["logprob"] * 1.5 - 0.1
    return right


def many(tmp_path: Path, n: int = 20) -> Path:
    file = tmp_path / "many.txt"
    file.write_text("".join(f"The cat {n} sat on the mat.\n" for n in range(n)))
    return file


def rows_of(path: Path) -> list[Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in found if row["type"] == "sequence"]


def begun(server: FakeServer, tmp_path: Path, *flags: object) -> tuple[object, ...]:
    """The words of a run, which left two rows of twenty."""
    out = tmp_path / "out.jsonl"
    words = ("score", many(tmp_path), "--lines", "-m", "demo", "-o", out, "--engine", server.url)
    assert in_process(*words, *flags).exit_code == 0
    lines = out.read_bytes().splitlines(keepends=True)
    out.unlink()
    Path(f"{out}.partial").write_bytes(b"".join(lines[:3]))
    return words


@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_do_not_go_on_with_a_file(kind: str, tmp_path: Path) -> None:
    with serving(FakeServer(kind)) as server:
        words = begun(server, tmp_path)
        server.fault = with_other_weights
        refused = in_process(*words, "--resume")
        assert refused.exit_code == 2
        assert "another model, or other weights, which were probed anew" in said(refused)
        assert "engine.probe_row: the log-probabilities of one row differ by" in said(refused)
        server.fault = None
        again = in_process(*words, "--resume")
        assert again.exit_code == 0, again.stderr
        for row in rows_of(tmp_path / "out.jsonl"):
            expected = losses_of(row["token_ids"])
            assert row["token_losses"][1:] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_change_in_the_middle_end_the_run(kind: str, tmp_path: Path) -> None:
    """No row of them is written, so that --resume may go on with the file."""
    out = tmp_path / "out.jsonl"
    with serving(FakeServer(kind)) as server:
        words = (
            "score",
            many(tmp_path),
            "--lines",
            "-m",
            "demo",
            "-o",
            out,
            "--engine",
            server.url,
        )
        assert in_process(*WORDS, server.url, "-m", "demo").exit_code == 0
        n = len(server.asked)
        server.fault = lambda number, body, right: (
            with_other_weights(number, body, right) if number > n + 12 else right
        )
        failed = in_process(*words)
        assert failed.exit_code == 1
        assert "differ by" in said(failed)
        assert "other weights under the name 'fake'" in said(failed)
        left = rows_of(Path(f"{out}.partial"))
        assert 0 < len(left) < 20
        for row in left:
            expected = losses_of(row["token_ids"])
            assert row["token_losses"][1:] == pytest.approx(expected, abs=1e-12)


def test_weights_that_change_after_the_last_row_end_the_run(vllm: FakeServer) -> None:
    words = (*WORDS, vllm.url, "-m", "demo")
    assert in_process(*words).exit_code == 0
    n = len(vllm.asked)  # three of known rows, the text, one beside it, then one of them again
    assert in_process(*words).exit_code == 0
    assert len(vllm.asked) == n + 6
    vllm.fault = lambda number, body, right: (
        with_other_weights(number, body, right) if number == n + 11 else right
    )
    failed = in_process(*words, "--json")
    assert failed.exit_code == 1
    assert "token_losses" not in failed.stdout


def test_a_known_row_that_is_answered_wrongly_is_asked_for_again(vllm: FakeServer) -> None:
    words = (*WORDS, vllm.url, "-m", "demo")
    assert in_process(*words).exit_code == 0
    n = len(vllm.asked)

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if n + 4 <= number < n + 4 + n_faults:
            right["choices"][0]["prompt_token_ids"][-1] ^= 1
        return right

    vllm.fault, n_faults = fault, 2
    assert in_process(*words).exit_code == 0
    n, n_faults = len(vllm.asked), 3
    assert "is about other tokens" in said(in_process(*words))


def test_shards_of_other_weights_are_not_merged(vllm: FakeServer, tmp_path: Path) -> None:
    shards = [tmp_path / f"{n}.jsonl" for n in range(3)]
    file = many(tmp_path)
    words = ("score", file, "--lines", "-m", "demo", "--engine", vllm.url)
    for n in range(2):
        flags = ["--probe-tolerance", 0.07] if n else []
        assert in_process(*words, *flags, "--shard", f"{n}/2", "-o", shards[n]).exit_code == 0
    out = tmp_path / "all.jsonl"
    assert in_process("merge", *shards[:2], "-o", out).exit_code == 0
    engine = json.loads(out.read_text().splitlines()[0])["engine"]
    assert engine["probe_tolerance"] == 0.07  # what holds of both
    vllm.fault = with_other_weights
    assert in_process(*words, "--shard", "1/2", "-o", shards[2]).exit_code == 0
    refused = in_process("merge", shards[0], shards[2], "-o", out, "--force")
    assert refused.exit_code == 2
    assert "engine.probe_row: the log-probabilities of one row differ by" in said(refused)
    first, *rest = shards[1].read_text().splitlines(keepends=True)
    record = json.loads(first)
    del record["engine"]["probe_row"]
    shards[1].write_text("".join([json.dumps(record) + "\n", *rest]))
    unknown = in_process("merge", *shards[:2], "-o", out, "--force")
    assert unknown.exit_code == 2
    assert "engine.probe_row: missing in one of them" in said(unknown)


def test_a_record_of_all_shards_says_the_worst() -> None:
    from seqloss_cli.results.engines import worst_of

    one = {"url": "a", "probed_at": "2026-02-01", "probe_tolerance": 0.05, "normalised": True,
           "probe_worst_difference": 1e-6, "verified_rows": 3, "verified_worst_difference": 0.01,
           "probe_row": {"token_ids": [1, 2]}}  # fmt: skip
    other = {"url": "b", "probed_at": "2026-01-01", "probe_tolerance": None, "normalised": None,
             "probe_worst_difference": 1e-3}  # fmt: skip
    assert worst_of([one, other]) == one | {
        "probed_at": "2026-01-01", "probe_tolerance": float("inf"), "normalised": None,
        "probe_worst_difference": 1e-3, "urls": ["a", "b"],
    }  # fmt: skip
    assert worst_of([one, one])["verified_rows"] == 6
    assert worst_of([one, one])["normalised"] is True


# -- the first run's word -------------------------------------------------------------------------


def test_a_looser_tolerance_does_not_go_on_with_a_file(vllm: FakeServer, tmp_path: Path) -> None:
    words = begun(vllm, tmp_path)
    looser = in_process(*words, "--resume", "--probe-tolerance", 1)
    assert looser.exit_code == 2
    assert "engine.probe_tolerance is 0.05 there and 1 here (give --probe-tolerance 0.05)" in said(
        looser
    )
    assert in_process(*words, "--resume", "--probe-tolerance", 0.01).exit_code == 0


def test_log_probabilities_that_are_no_longer_shown_to_be_some_end_it(
    vllm: FakeServer, tmp_path: Path
) -> None:
    words = begun(vllm, tmp_path)

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if body["prompt_logprobs"] == 20:  # its alternatives are none that hold nearly all
            for entry in right["choices"][0]["prompt_logprobs"][1:]:
                for each in entry.values():
                    each["logprob"] -= 3
        return right

    vllm.fault = fault
    refused = in_process(*words, "--resume", "--probe")
    assert refused.exit_code == 2
    assert "engine.normalised is True there, and here nothing shows it" in said(refused)


# -- `seqloss serve` ------------------------------------------------------------------------------


def test_a_client_of_ours_records_the_weights(served: Listening, scorer: Scorer) -> None:
    n_answers = served.service._statuses[200]
    run = document(in_process(*WORDS, served.url, "-m", "demo", "--json"))["run"]
    n_first = served.service._statuses[200] - n_answers
    described = scorer.backend.describe()
    assert run["weights_sha256"] == described["weights_sha256"]
    assert run["dtype"] == described["dtype"]
    again = document(in_process(*WORDS, served.url, "-m", "demo", "--json"))["run"]
    # Two requests for what it is, one for the row that is known, one for the text.
    assert served.service._statuses[200] - n_answers - n_first == 4
    assert again["engine"]["probe_row"]["token_ids"] == run["engine"]["probe_row"]["token_ids"]


@pytest.mark.parametrize("kind", ["", "vllm+", "openai+"])
def test_a_server_of_ours_tells_of_other_weights(
    kind: str, served: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its card, in the place of the kept probe, and in each answer."""
    file, out, url = many(tmp_path, 3), tmp_path / "out.jsonl", f"{kind}{served.url}"
    words = ("score", file, "--lines", "-m", "demo", "-o", out, "--engine", url)
    assert in_process(*words).exit_code == 0
    card = served.service._card
    Path(f"{out}.partial").write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:2]))
    out.unlink()
    with monkeypatch.context() as other:
        other.setitem(card, "quantization", "torchao int8_weight_only (on load)")
        other.setitem(card, "adapter", "lora")
        refused = in_process(*words, "--resume")
    assert refused.exit_code == 2
    assert "quantization is None there and 'torchao int8_weight_only (on load)'" in said(refused)
    assert "adapter is None there and 'lora' here" in said(refused)
    real = served.service._read

    def then_others(content: bytes) -> Any:
        monkeypatch.setitem(card, "system_fingerprint", "another")
        return real(content)

    monkeypatch.setattr(served.service, "_read", then_others)
    changed = in_process(*words, "--resume")
    assert changed.exit_code == 1
    assert "serves another model, or other weights, than when the run began" in said(changed)


def test_the_configuration_is_part_of_what_is_served(
    served: Listening, scorer: Scorer, tmp_path: Path
) -> None:
    from seqloss_cli.models.checkpoint import load_checkpoint
    from seqloss_cli.service.requests import fingerprint

    folder = tmp_path / "elsewhere"
    shutil.copytree(DEMO, folder)
    choice, own = ModelChoice(name=str(folder)), scorer.configuration_sha256
    assert load_checkpoint(choice).configuration_sha256 == own is not None
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (folder / "config.json").write_text(json.dumps(config))
    other = load_checkpoint(choice)
    assert other.configuration_sha256 != own
    card = {**served.service._card}
    assert card.pop("instance")
    assert card["config_sha256"] == own
    found = card.pop("system_fingerprint")
    assert found == fingerprint(card)
    assert found != fingerprint(card | {"config_sha256": other.configuration_sha256})


class Restarted:
    """A service of which other processes answer from the fourth request on."""

    def __init__(self, served: Listening, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
        self.n_asked, self.by = 0, 0.0
        service = served.service
        read, score, card = service._read, service.queue._score, service._card

        def counted(content: bytes) -> Any:
            self.n_asked += 1
            if 4 <= self.n_asked < 4 + n:
                monkeypatch.setitem(card, "instance", f"another {self.n_asked}")
            return read(content)

        def lowered(jobs: Any) -> Any:
            found = score(jobs)
            for row in found if self.n_asked >= 4 else ():
                row.log_probs[:] -= self.by
                row.top_log_probs[:] -= self.by
            return found

        monkeypatch.setattr(service, "_read", counted)
        monkeypatch.setattr(service.queue, "_score", lowered)


@pytest.mark.parametrize("kind", ["", "vllm+", "openai+"])
@pytest.mark.parametrize("by", [0.0, 0.5])
def test_a_server_of_ours_that_is_started_again_is_asked_for_its_row(
    kind: str, by: float, served: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights and its configuration are the same; the program may be another."""
    out = tmp_path / "out.jsonl"
    words = ("score", many(tmp_path, 6), "--lines", "-m", "demo", "-o", out, "--engine")
    words = (*words, f"{kind}{served.url}")
    assert in_process(*words).exit_code == 0
    right = rows_of(out)

    def n_asked(n_restarts: int) -> int:
        with monkeypatch.context() as patch:
            counts = Restarted(served, patch, n_restarts)
            assert in_process(*words, "--force").exit_code == 0
        for row, other in zip(rows_of(out), right, strict=True):
            assert row["token_losses"] == pytest.approx(other["token_losses"], abs=1e-4)
        return counts.n_asked

    if not by:
        # The known row, and again the rows that were on their way.
        assert n_asked(1) >= n_asked(0) + 2
        return
    out.unlink()
    Restarted(served, monkeypatch, 1).by = by
    failed = in_process(*words)
    assert failed.exit_code == 1
    assert f"differ by {by:.2g} nats from those at the start of the run" in said(failed)
    left = rows_of(Path(f"{out}.partial"))
    assert left == right[: len(left)]


def test_a_server_of_ours_with_ever_other_processes_ends_the_run(
    served: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WORDS, served.url, "-m", "demo")
    assert in_process(*words).exit_code == 0
    Restarted(served, monkeypatch, 1000).n_asked = 2
    failed = in_process(*words)
    assert failed.exit_code == 1
    assert "processes of the server that had not answered before" in said(failed)


# -- texts of tokens ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces() -> Any:
    from seqloss_cli.backends.server.pieces import Pieces
    from seqloss_cli.core.policies import TokenPolicy
    from seqloss_cli.models.checkpoint import load_tokenizer_only
    from seqloss_cli.tokenization.tokenizer import Tokenization

    found = load_tokenizer_only(ModelChoice())
    return Pieces(Tokenization(found.tokenizer, TokenPolicy(), found.n_ids, (), ()))


def is_shown(pieces: Any, text: str, token_id: int) -> bool:
    from seqloss_cli.core.errors import RowError

    try:
        pieces.require_shown([text], [token_id], "text")
    except RowError:
        return False
    return True


def test_what_vllm_shows_of_tokens_is_ours(pieces: Any) -> None:
    """Recorded of vLLM 0.32."""
    n = 0
    for file in sorted((ROOT / "tests" / "data").glob("vllm-*.jsonl")):
        for line in file.read_text().splitlines():
            for choice in json.loads(line)["choices"]:
                for entry in choice["prompt_logprobs"][1:]:
                    for key, each in entry.items():
                        assert is_shown(pieces, each["decoded_token"], int(key))
                        n += 1
    assert n > 100


def test_texts_of_tokens_tell_ids_apart(pieces: Any) -> None:
    """Each id's own decoded text, and its string in the vocabulary, are taken; few others are."""
    tokenizer = demo_tokenizer()
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in range(4096)]
    assert all(is_shown(pieces, text, i) for i, text in enumerate(texts))
    assert all(is_shown(pieces, tokenizer.id_to_token(i), i) for i in range(4096))
    shifted = sum(is_shown(pieces, texts[(i + 500) % 4096], i) for i in range(4096))
    assert shifted < 0.08 * 4096  # parts of characters, which all look alike
