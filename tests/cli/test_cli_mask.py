"""`seqloss mask` as a program: labels with and without a model, TRL's, and those of a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.program import ROOT, Run
from seqloss_cli import ModelChoice
from seqloss_cli.cli.main import app
from seqloss_cli.core.errors import RunError
from seqloss_cli.models import checkpoint

SAMPLES = ROOT / "samples"
PAIRS, CHATS, TEMPLATE = SAMPLES / "pairs.jsonl", SAMPLES / "chats.jsonl", SAMPLES / "chat.jinja"
IGNORED = -100


@pytest.fixture
def seqloss() -> Run:
    """The program in this process: imports once, not at each run."""

    def run(
        *arguments: str | Path, stdin: bytes | None = None, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        words = [str(argument) for argument in arguments]
        done = CliRunner().invoke(app, words, input=stdin, env={"COLUMNS": "80"} | env)
        return subprocess.CompletedProcess(
            words, done.exit_code, done.stdout_bytes, done.stderr_bytes
        )

    return run


def document(done: Any) -> Any:
    assert done.returncode in (0, 3), done.stderr
    return json.loads(done.stdout)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labels_of(seqloss: Run, *arguments: Any) -> list[dict[str, Any]]:
    """Our own labels in the shape that `--check` reads."""
    found = document(seqloss("mask", *arguments, "--json"))["sequences"]
    return [{"input_ids": row["token_ids"], "labels": row["labels"]} for row in found]


def test_labels_are_those_of_cond(seqloss: Run) -> None:
    """Without weights: the same ids and labels, and nothing about a model."""
    masked = document(seqloss("mask", PAIRS, "--json"))
    scored = document(seqloss("cond", PAIRS, "--json"))
    assert masked["run"]["weights_sha256"] is masked["run"]["model"] is None
    for a, b in zip(masked["sequences"], scored["sequences"], strict=True):
        for key in ("id", "token_ids", "labels", "loss_mask", "tokens", "boundary", "prompt"):
            assert a[key] == b[key], key
        assert "token_losses" not in a
        expected = [
            i if m else IGNORED for i, m in zip(a["token_ids"], a["loss_mask"], strict=True)
        ]
        assert a["labels"] == expected
        assert a["n_prompt_tokens"] + a["n_response_tokens"] == a["n_tokens"]
    totals = masked["totals"]
    assert totals["n_response_tokens"] == scored["totals"]["n_response_tokens"]


def test_a_tokenizer_without_weights_or_configuration_is_enough(
    seqloss: Run, tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    pair = ("--prompt", "ab", "--response", "cd")
    done = seqloss("mask", "--tokenizer", tmp_path / "tokenizer", *pair, "--json")
    (row,) = document(done)["sequences"]
    assert row["loss_mask"] == [0, 0, 0, 1, 1]
    save_checkpoint(tmp_path / "model", llama(), byte_tokenizer())
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    done = seqloss("mask", "--model", tmp_path / "model", *pair, "--json")
    assert document(done)["sequences"][0]["loss_mask"] == [0, 0, 0, 1, 1]
    assert seqloss("mask", "--model", tmp_path / "model", *pair, "--loss").returncode == 1


def test_the_program_imports_no_torch_without_a_model() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "seqloss_cli", "mask", str(PAIRS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "transformers" in imported
    assert "torch" not in imported
    assert "PyTorch" not in done.stderr


@pytest.mark.parametrize("needs_torch", [False, True])
def test_a_tokenizer_that_needs_torch_after_all_gets_it(
    needs_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: dict[str, Any] = {"json": json}
    attempts: list[set[str]] = []

    def load(choice: ModelChoice) -> str:
        attempts.append(set(modules))
        modules["transformers.utils"] = json
        if needs_torch and "torch" in modules:
            try:
                raise ModuleNotFoundError("torch")
            except ModuleNotFoundError as error:
                raise RunError("no tokenizer") from error
        return "tokenizer"

    monkeypatch.setattr(checkpoint, "_load_tokenizer", load)
    monkeypatch.setattr(checkpoint, "sys", SimpleNamespace(modules=modules))
    assert checkpoint.load_tokenizer_only(ModelChoice("x"), spare_torch=True) == "tokenizer"
    hidden, whole = {"json", "torch"}, {"json"}
    assert attempts == ([hidden, whole] if needs_torch else [hidden])


@pytest.mark.parametrize(
    "choice", [ModelChoice("x", trust_remote_code=True), ModelChoice("x", tokenizer="a.gguf")]
)
def test_torch_stays_for_what_is_read_with_it(
    choice: ModelChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.gguf").write_bytes(b"GGUF")
    modules: dict[str, Any] = {}
    monkeypatch.setattr(checkpoint, "_load_tokenizer", lambda choice: "tokenizer")
    monkeypatch.setattr(checkpoint, "sys", SimpleNamespace(modules=modules))
    checkpoint.load_tokenizer_only(choice, spare_torch=True)
    assert modules == {}


def test_text_with_what_counts_in_brackets(seqloss: Run) -> None:
    shown = seqloss("mask", CHATS, "--chat-template", TEMPLATE).stdout.decode()
    assert "assistant:↵\n⟦No.<|end_of_text|>⟧↵\n" in shown
    assert "user: Is a tuple mutable?↵\n" in shown
    assert "   4  assistant      15      9" in shown
    assert "89, 27 count (30.3 %)" in shown


def test_loss_beside_the_loss_of_a_trainer_that_forgot_to_mask(seqloss: Run) -> None:
    masked = document(seqloss("mask", PAIRS, "--loss", "--json"))
    scored = document(seqloss("cond", PAIRS, "--json"))
    for a, b in zip(masked["sequences"], scored["sequences"], strict=True):
        assert a["response"]["total_loss"] == pytest.approx(b["loss"], abs=1e-4)
        known = [loss for loss in b["token_losses"] if loss is not None]
        assert a["all_tokens"]["total_loss"] == pytest.approx(sum(known), abs=1e-3)
        assert a["all_tokens"]["n_scored"] == len(known)
        assert a["prompt_share"] == pytest.approx(1 - b["n_scored"] / len(known))
    shown = seqloss("mask", PAIRS, "--loss", COLUMNS="200").stdout.decode()
    assert "unmasked, 25.5 % of the tokens that carry a gradient would be prompt" in shown


def test_like_trl_says_where_its_labels_differ(seqloss: Run) -> None:
    found = document(seqloss("mask", CHATS, "--chat-template", TEMPLATE, "--like", "trl", "--json"))
    for row in found["sequences"]:
        trainer = row["trainer"]
        assert trainer["labels"] == trainer["input_ids"] == row["token_ids"]
        kinds = [finding["kind"] for finding in trainer["differences"]]
        assert kinds == ["loss_on_prompt", "loss_on_template"]
    assert found["totals"]["trainer"] == {"loss_on_prompt": 2, "loss_on_template": 2}
    marked = ("--like", "trl-assistant-only", "--json")
    found = document(seqloss("mask", CHATS, "--chat-template", TEMPLATE, *marked))
    assert [row["trainer"]["differences"] for row in found["sequences"]] == [[], []]
    found = document(seqloss("mask", PAIRS, "--eos", "--like", "trl", "--json"))
    assert [row["trainer"]["differences"] for row in found["sequences"]] == [[]] * 5
    cut = document(seqloss("mask", PAIRS, "--like", "trl", "--max-length", "3", "--json"))
    dropped = [row["trainer"]["not_trained"] for row in cut["sequences"]]
    assert dropped[0].startswith("dropped: nothing that counts")
    assert cut["totals"]["n_not_trained"] == sum(note is not None for note in dropped)


def test_check_passes_our_own_labels_and_names_differences(seqloss: Run, tmp_path: Path) -> None:
    rows = labels_of(seqloss, PAIRS, "--eos")
    same = write_rows(tmp_path / "same.jsonl", rows)
    done = seqloss("mask", PAIRS, "--eos", "--check", same)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().count("check: the same labels") == 5
    rows[1]["labels"] = rows[1]["input_ids"]
    rows[3]["labels"] = [IGNORED] * len(rows[3]["labels"])
    other = write_rows(tmp_path / "other.jsonl", rows)
    done = seqloss("mask", PAIRS, "--eos", "--check", other, "--json")
    assert done.returncode == 3
    assert b"2 of 5 rows differ from" in done.stderr
    kinds = [[f["kind"] for f in row["check"]] for row in document(done)["sequences"]]
    assert kinds == [[], ["loss_on_prompt"], [], ["everything_masked"], []]
    shown = seqloss("mask", PAIRS, "--eos", "--check", other).stdout.decode()
    assert "check: the loss falls on 3 tokens of the prompt, first token 0" in shown
    assert "2 of 5 differ: loss_on_prompt 1, everything_masked 1" in shown


def test_labels_are_found_by_id_where_they_have_one(seqloss: Run, tmp_path: Path) -> None:
    rows = labels_of(seqloss, PAIRS)
    for row, identity in zip(rows, ("sorted", "list", "merged", "space", "unlikely"), strict=True):
        row["id"] = identity
    shuffled = write_rows(tmp_path / "labels.jsonl", [*rows[::-1], {**rows[0], "id": "nobody"}])
    done = seqloss("mask", PAIRS, "--check", shuffled)
    assert done.returncode == 0, done.stderr
    assert b"1 rows of" in done.stderr
    done = seqloss("mask", PAIRS, "--check", write_rows(tmp_path / "few.jsonl", rows[:3]))
    assert done.returncode == 3
    assert done.stderr.count(b"has no labels for it (no_labels)") == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("not json", "bad_json"),
        ({"labels": [1]}, "missing_field"),
        ({"input_ids": [1], "labels": [1, 2]}, "bad_labels"),
        ({"input_ids": [], "labels": []}, "empty"),
        ({"input_ids": ["a"], "labels": [1]}, "wrong_type"),
        (
            {"input_ids": [1], "labels": [1], "log_prob_x": -5.2, "log_prob_xy": -3.5},
            "impossible",
        ),
    ],
)
def test_a_bad_row_of_labels_costs_only_itself(
    row: Any, reason: str, seqloss: Run, tmp_path: Path
) -> None:
    rows = labels_of(seqloss, PAIRS)
    lines = [json.dumps(each) for each in rows]
    lines[2] = row if isinstance(row, str) else json.dumps(row)
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(lines) + "\n")
    done = seqloss("mask", PAIRS, "--check", path, "--json")
    assert done.returncode == 3
    found = document(done)
    (rejected,) = found["rejected"]
    assert (rejected["reason"], rejected["source"], rejected["line"]) == (reason, str(path), 3)
    assert [row["check"] for row in found["sequences"]] == [[]] * 4


def test_rejected_inputs_use_up_their_labels(seqloss: Run, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    lines = PAIRS.read_text().splitlines()
    data.write_text("\n".join([lines[0], '{"prompt": "x"}', *lines[1:]]) + "\n")
    rows = labels_of(seqloss, PAIRS)
    path = write_rows(tmp_path / "labels.jsonl", [rows[0], rows[0], *rows[1:]])
    done = seqloss("mask", data, "--check", path, "--json")
    assert [row["check"] for row in document(done)["sequences"]] == [[]] * 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--boundary", "compare"), "one boundary policy at a time"),
        (("--format", "openai"), "mask writes json, jsonl, parquet, csv, tsv"),
        (("--like", "trl", "--special-tokens", "text"), "leave --special-tokens out"),
        (("--chat", "--eos"), "the template ends the turns"),
    ],
)
def test_flags_that_do_not_go_together(arguments: tuple[str, ...], said: str, seqloss: Run) -> None:
    done = seqloss("mask", PAIRS, *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.decode().split())


def test_a_file_of_labels_that_is_not_there(seqloss: Run, tmp_path: Path) -> None:
    done = seqloss("mask", PAIRS, "--check", tmp_path / "none.jsonl")
    assert done.returncode == 2
    assert b"no such file" in done.stderr
    done = seqloss("mask", "-", "--check", "-", stdin=b"")
    assert done.returncode == 2
    assert b"can be read once only" in done.stderr
    done = seqloss("mask", PAIRS, "--max-length", "5")
    assert done.returncode == 2
    assert b"goes with --like" in done.stderr


def test_ids_that_no_tokenizer_knows_are_shown_as_they_are(seqloss: Run, tmp_path: Path) -> None:
    rows = labels_of(seqloss, PAIRS)
    rows[0]["input_ids"][2:4] = [-100, 1 << 40]
    done = seqloss("mask", PAIRS, "--check", write_rows(tmp_path / "labels.jsonl", rows), "--json")
    assert done.returncode == 3
    (first, *_) = document(done)["sequences"]
    kinds = {finding["kind"]: finding["message"] for finding in first["check"]}
    assert set(kinds) == {"tokens_differ", "extra_tokens"}
    assert "'<id -100>'" in kinds["extra_tokens"]


def test_results_of_our_own_are_labels_too(seqloss: Run, tmp_path: Path) -> None:
    """The run and totals lines are passed over; a byte order mark is no part of the first row."""
    written = seqloss("cond", PAIRS, "--jsonl").stdout
    path = tmp_path / "results.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + written)
    done = seqloss("mask", PAIRS, "--check", path)
    assert done.returncode == 0, done.stderr


def test_masks_of_a_data_set_are_labels_too(seqloss: Run, tmp_path: Path) -> None:
    """TRL's own, before its collator makes labels of them."""
    ours = document(seqloss("mask", PAIRS, "--json"))["sequences"]
    rows = [{"input_ids": row["token_ids"], "completion_mask": row["loss_mask"]} for row in ours]
    path = write_rows(tmp_path / "labels.jsonl", rows)
    assert seqloss("mask", PAIRS, "--check", path).returncode == 0
    rows[0] |= {"labels": ours[0]["labels"], "loss_mask": [0] * ours[0]["n_tokens"]}
    done = seqloss("mask", PAIRS, "--check", write_rows(path, rows), "--json")
    checks = [row["check"] for row in document(done)["sequences"]]
    assert [[each["kind"] for each in check] for check in checks] == [
        ["everything_masked"],
        *[[]] * 4,
    ]


def test_a_broken_first_row_does_not_hide_the_ids_of_the_others(
    seqloss: Run, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in seqloss("mask", PAIRS, "--jsonl").stdout.splitlines()]
    good = [json.dumps(row) for row in rows if row["type"] == "sequence"]
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(["{", *good[1:][::-1]]) + "\n")
    done = seqloss("mask", PAIRS, "--check", path, "--json")
    assert done.returncode == 3
    found = document(done)
    assert [row["check"] for row in found["sequences"]] == [[]] * 4
    (rejected,) = found["rejected"]
    assert (rejected["id"], rejected["reason"], rejected["line"]) == ("sorted", "no_labels", 1)
    assert b"labels.jsonl:1: " in b" ".join(done.stderr.split())
    ordered = write_rows(tmp_path / "ordered.jsonl", [{**json.loads(line)} for line in good])
    lines = ordered.read_text().splitlines()
    swapped = [json.dumps({k: v for k, v in json.loads(lines[0]).items() if k != "id"}), *lines[2:]]
    ordered.write_text("\n".join(swapped) + "\n")
    done = seqloss("mask", PAIRS, "--check", ordered, "--json")
    (first, *others) = document(done)["rejected"]
    assert "holds the labels of 'merged', not of 'list'" in first["message"]
    assert len(others) == 3


def test_chats_take_no_flags_of_plain_pairs(seqloss: Run) -> None:
    for flags, reason in (
        (("--separator", "ZZ"), "separator_with_chat"),
        (("--boundary", "separate"), "boundary_with_chat"),
        (("--eos",), "eos_with_chat"),
    ):
        done = seqloss("mask", CHATS, "--chat-template", TEMPLATE, *flags, "--json")
        assert [row["reason"] for row in document(done)["rejected"]] == [reason] * 2
