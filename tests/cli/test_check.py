"""`seqloss check` as a program, with the demo model and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.program import ROOT, document
from seqloss_cli.cli.main import app
from seqloss_cli.inputs import duplicates
from seqloss_cli.metrics import series

ROLLOUTS = ROOT / "samples" / "rollouts.jsonl"


def check(*arguments: str | Path, **env: str) -> Any:
    words = ["check", *map(str, arguments)]
    return CliRunner().invoke(app, words, env={"COLUMNS": "100"} | env)


def totals(*arguments: str | Path, code: int = 0) -> Any:
    return document(check(*arguments, "--json", "--summary"), code)["totals"]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def untimed(document: str) -> Any:
    found = json.loads(document)
    del found["run"]["started_at"]
    return found


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROLLOUTS.read_text().splitlines()]


def faults(found: Any) -> list[tuple[str, Any]]:
    return [(each["fault"], each["parameters"]) for each in found["diagnosis"]]


def test_what_was_computed_in_float32_is_right() -> None:
    found = totals(ROLLOUTS, "--field", "old_log_probs", "--fail-above", "0")
    assert (found["verdict"], found["diagnosis"]) == ("exact", [])
    assert found["n_compared"] == found["n_sampled"] == 192
    assert found["max_abs_delta"] < 1e-4
    assert found["effective_sample_size"]["sequences"] == pytest.approx(1, abs=1e-6)


def test_a_sampler_is_named() -> None:
    found = totals(ROLLOUTS, "--field", "rollout_log_probs", "--fail-above", "0.5", code=3)
    assert faults(found) == [("temperature", {"temperature": 0.7}), ("top_p", {"top_p": 0.9})]
    assert found["diagnosed"]["mean_abs_delta_left"] < 3e-4
    assert found["k1"] == -found["mean_delta"]


def test_two_recordings_need_no_model(rows: list[Any], tmp_path: Path) -> None:
    sampler = write(tmp_path / "a.jsonl", rows[::-1])
    done = check(
        sampler, "--field", "rollout_log_probs", "--against", ROLLOUTS,
        "--against-field", "old_log_probs", "--json",
    )  # fmt: skip
    found = document(done, 0)
    assert found["run"]["model"] is None
    whole = totals(ROLLOUTS, "--field", "rollout_log_probs")
    for name in ("mean_delta", "mean_abs_delta", "k3", "p99_abs_delta"):
        assert found["totals"][name] == pytest.approx(whole[name], abs=1e-5)
    ids = [each["id"] for each in found["sequences"]]
    assert ids == [row["id"] for row in rows[::-1]]
    first = found["sequences"][0]
    assert first["scored_log_probs"][-24:] == rows[-1]["old_log_probs"]
    assert first["recorded_log_probs"][-24:] == rows[-1]["rollout_log_probs"]


def test_rows_that_are_not_of_the_same_ids(rows: list[Any], tmp_path: Path) -> None:
    changed = [{**row} for row in rows]
    changed[1]["response_ids"] = [9, *rows[1]["response_ids"][1:]]
    changed[2]["response_ids"] = rows[2]["response_ids"][:-1]
    changed[2]["old_log_probs"] = rows[2]["old_log_probs"][:-1]
    other = write(tmp_path / "b.jsonl", [*changed[:7], {**rows[7], "id": "else"}])
    done = check(ROLLOUTS, "--against", other, "--field", "old_log_probs", "--json")
    found = document(done, 3)
    reasons = [each["reason"] for each in found["rejected"]]
    assert reasons == ["other_ids", "other_ids", "no_recording"]
    assert "has id" in found["rejected"][0]["message"]
    assert "1 rows of" in done.stderr


def test_rows_wait_on_disk_as_in_memory(
    rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the other recording in another order; and numbers of documents on disk."""
    bad = {**rows[3], "old_log_probs": "none"}
    other = write(tmp_path / "b.jsonl", [*rows[4:][::-1], bad, *rows[:3]])
    words = (ROLLOUTS, "--against", other, "--field", "old_log_probs", "--json")
    expected = check(*words).stdout
    monkeypatch.setattr(duplicates, "MOST_WAITING", 0)
    monkeypatch.setattr(series, "CHUNK", 3)
    assert untimed(check(*words).stdout) == untimed(expected)
    assert json.loads(expected)["rejected"][0]["source"] == str(other)


def test_a_bos_that_is_put_before(rows: list[Any], tmp_path: Path) -> None:
    """Values stay with the tokens that they are of."""
    bare = [
        {"input_ids": row["prompt_ids"][1:] + row["response_ids"],
         "loss_mask": [0] * (len(row["prompt_ids"]) - 1) + [1] * len(row["response_ids"]),
         "logprobs": [None] * (len(row["prompt_ids"]) - 1) + row["old_log_probs"]}
        for row in rows
    ]  # fmt: skip
    path = write(tmp_path / "bare.jsonl", bare)
    assert totals(path, "--bos", "always")["verdict"] == "exact"
    assert totals(path)["n_compared"] == 192


def spelled(ids: list[int]) -> list[bytes]:
    from seqloss_cli.core.policies import ModelChoice, TokenPolicy
    from seqloss_cli.models.checkpoint import load_tokenizer_only
    from seqloss_cli.tokenization.tokenizer import Tokenization

    loaded = load_tokenizer_only(ModelChoice("demo"))
    tokenization = Tokenization(loaded.tokenizer, TokenPolicy(), loaded.n_ids)
    return [tokenization.vocabulary.bytes_of(i) for i in ids]


def test_tokens_that_are_known_by_their_bytes(rows: list[Any], tmp_path: Path) -> None:
    made = []
    for row in rows:
        pieces = zip(spelled(row["response_ids"]), row["old_log_probs"], strict=True)
        content = [
            {"token": piece.decode(errors="replace"), "bytes": [*piece], "logprob": value}
            for piece, value in pieces
        ]
        prompt = b"".join(spelled(row["prompt_ids"][1:])).decode()
        made.append({"id": row["id"], "prompt": prompt,
                     "choices": [{"logprobs": {"content": content}}]})  # fmt: skip
    unknown = {"token": "?", "bytes": [240, 159, 144, 149, 240], "logprob": -1.0}
    made.append({"id": "x", "prompt": "A", "choices": [{"logprobs": {"content": [unknown]}}]})
    path = write(tmp_path / "openai.jsonl", made)
    found = document(check(path, "--json"), 3)
    assert found["totals"]["verdict"] == "exact"
    assert [each["reason"] for each in found["rejected"]] == ["unknown_token"]
    ids = [each["token_ids"] for each in found["sequences"]]
    assert ids == [row["prompt_ids"] + row["response_ids"] for row in rows]
    # Without a model the bytes themselves are compared.
    assert totals(path, "--against", write(tmp_path / "copy.jsonl", made))["mean_abs_delta"] == 0


def test_ids_of_responses_to_prompts_that_are_texts(rows: list[Any], tmp_path: Path) -> None:
    made = []
    for row in rows:
        prompt = b"".join(spelled(row["prompt_ids"][1:])).decode()
        answer = {"token_ids": row["response_ids"], "logprobs": row["old_log_probs"]}
        made.append({"id": row["id"], "prompt": prompt, "outputs": [answer]})
    totals = document(check(write(tmp_path / "texts.jsonl", made), "--json"))["totals"]
    assert totals["verdict"] == "exact"
    assert totals["n_sampled"] == totals["n_compared"] == sum(len(r["response_ids"]) for r in rows)


def test_the_answer_of_a_chat(tmp_path: Path) -> None:
    content = [{"token": "a", "bytes": [97], "logprob": -1.0}]
    row = {"messages": [{"role": "user", "content": "Say a."}],
           "choices": [{"logprobs": {"content": content}}]}  # fmt: skip
    path = write(tmp_path / "chat.jsonl", [row])
    template = ROOT / "samples" / "chat.jinja"
    done = check(path, "--chat-template", template, "--json")
    (found,) = document(done, 0)["sequences"]
    assert "Say a." in "".join(found["tokens"])
    assert found["n_sampled"] == 1
    assert check(path, "--json").exit_code == 2


def test_what_cannot_be_checked(rows: list[Any], tmp_path: Path) -> None:
    both = check(ROLLOUTS)
    assert both.exit_code == 2
    assert "--field chooses" in both.stderr
    assert check(ROLLOUTS, "--against", tmp_path / "no.jsonl").exit_code == 2
    itself = check(ROLLOUTS, "--against", ROLLOUTS, "--field", "old_log_probs")
    assert "--against-field" in itself.stderr
    idle = check(ROLLOUTS, "--against", ROLLOUTS, "--model", "demo")
    assert "--model is for a model, and --against has none" in idle.stderr
    empty = write(tmp_path / "e.jsonl", [{"input_ids": [0, 5], "logprobs": [-1.0, None]}])
    done = check(empty, "--fail-above", "0.5", "--json")
    assert document(done, 3)["totals"]["verdict"] == "nothing"
    assert "no token was compared" in done.stderr


SAMPLER = [
    ("temperature", {"temperature": 0.7, "tokens": "sampled"}),
    ("top_p", {"top_p": 0.9, "tokens": "sampled"}),
]
VLLM: dict[str, Any] = {
    "processed_logits": [("logits", {}), SAMPLER[0]],
    "processed_logprobs": SAMPLER,
    "raw_logits": [("logits", {})],
    "raw_logprobs": [],
}


@pytest.mark.parametrize("mode", VLLM)
def test_answers_of_a_real_vllm(mode: str) -> None:
    """At temperature 0.7 and top-p 0.9, by --logprobs-mode (tests/servers/record_vllm.py)."""
    found = totals(ROOT / "tests" / "data" / f"vllm-{mode}.jsonl", "-m", "demo")
    assert faults(found) == VLLM[mode]
    assert found["verdict"] == ("explained" if VLLM[mode] else "exact")
    assert found["diagnosed"]["mean_abs_delta_left"] < 1e-4
    assert found["n_compared"] > found["n_sampled"] > 100


def test_a_page(tmp_path: Path) -> None:
    """Texts coloured by |Δ|, and the faults in words; with --report and of the file."""
    rows, one, two = tmp_path / "rows.jsonl", tmp_path / "one.html", tmp_path / "two.html"
    arguments = ("--field", "rollout_log_probs", "-o", rows, "--report", one)
    assert check(ROLLOUTS, *arguments, "-m", "demo").exit_code == 0
    done = CliRunner().invoke(app, ["report", str(rows), "-o", str(two)])
    assert done.exit_code == 0, done.stderr
    for path in (one, two):
        page = path.read_text()
        assert "Temperature 0.7, not 1; explains 80." in page
        assert "Tokens that differ most" in page
        data = json.loads(page.split('id="data">')[1].split("</script>")[0])
        pane = data["panes"][0]
        known = [abs(each) for each in pane["dl"] if each is not None]
        assert [each for each in pane["l"] if each is not None] == pytest.approx(known, abs=1e-4)
    by = CliRunner().invoke(app, ["report", str(rows), "-o", str(two), "--force", "--by", "id"])
    assert by.exit_code == 2
    broken = rows.read_text().replace('"n_compared":24', '"n_compared":25', 1)
    rows.write_text(broken)
    assert CliRunner().invoke(app, ["report", str(rows), "-o", str(tmp_path / "c.html")]).exit_code


def test_texts_coloured_by_their_differences() -> None:
    arguments = ("--field", "rollout_log_probs", "--view", "heat", "--limit", "1")
    shown = check(ROLLOUTS, *arguments).stdout
    assert "Steps of Δ, scored less recorded, in nats per token" in shown
    assert "24 compared, mean |Δ| 0.5021 nats" in shown
