"""`seqloss score` from the outside: documents, files, configuration, exit codes, bad input.

Most runs are in this process (torch is loaded once); pipes, signals and full disks need a real one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from helpers.builders import bigram_model, byte_tokenizer, llama, save_checkpoint
from helpers.program import ROOT, Run, document, in_process, strictly
from seqloss_cli.cli.main import app
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.inputs.reading import text_sample

TEXT = "The cat sat on the mat.\r\nDéjà vu: 🐕, 日本語.\n"
ROWS = [{"id": "a", "text": "one two"}, {"id": 2, "text": "three"}, {"text": "four five six"}]
COUNTS = (
    "n_tokens",
    "n_scored",
    "n_bytes",
    "n_scored_bytes",
    "n_chars",
    "n_scored_chars",
    "n_words",
)
RATES = (
    "total_loss",
    "mean_loss",
    "log_prob",
    "perplexity",
    "bits_per_byte",
    "bits_per_char",
    "word_perplexity",
)
ARRAYS = ("token_ids", "tokens", "token_losses", "byte_offsets")
ASKED_ARRAYS = ("ranks", "entropies", "top_logprobs", "context_lengths")
EVIL = "\x1b[31m\x1b]0;title\x07\x9b2J\x7f\u202etxt\u2066"
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
PROGRAM = [sys.executable, "-m", "seqloss_cli", "score", "--model", "demo"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ENVIRONMENT = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}

Score = Callable[..., Any]


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Score:
    """Run the command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes | None = None, **env: str) -> Any:
        return in_process("score", *arguments, stdin=stdin, **env)

    return run


def lines_of(text: str) -> list[Any]:
    return [strictly(line) for line in text.splitlines()]


def sequence(result: Any) -> Any:
    return document(result)["sequences"][0]


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unwrapped(stderr: str) -> str:
    """Without the box that usage errors stand in."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", stderr).split())


# -- the document -------------------------------------------------------------------------------


def test_a_sequence_has_every_key_with_its_type_and_length(score: Score) -> None:
    found = document(score("--text", TEXT, "--json"))
    assert list(found) == ["schema_version", "run", "sequences", "rejected", "totals"]
    assert (found["schema_version"], found["rejected"]) == (1, [])
    row = found["sequences"][0]
    strings = ("id", "source", "text_sha256", "text")
    assert {name: type(row[name]) for name in strings} == dict.fromkeys(strings, str)
    assert {name: type(row[name]) for name in COUNTS} == dict.fromkeys(COUNTS, int)
    assert {name: type(row[name]) for name in RATES} == dict.fromkeys(RATES, float)
    assert (row["id"], row["source"], row["line"], row["text"]) == ("<text>", "<text>", None, TEXT)
    assert row["flags"] == {}
    assert [len(row[name]) - row["n_tokens"] for name in ARRAYS] == [0, 0, 0, 1]
    assert not set(row) & {*ASKED_ARRAYS, "words", "word_losses", "word_byte_offsets", "meta"}


def test_counts_and_rates_follow_from_the_text_and_the_losses(score: Score) -> None:
    row = sequence(score("--text", TEXT, "--json"))
    source, total = TEXT.encode(), row["total_loss"]
    assert row["text_sha256"] == hashlib.sha256(source).hexdigest()
    assert row["n_scored"] == row["n_tokens"] - 1, "all but BOS"
    assert row["n_bytes"] == row["n_scored_bytes"] == len(source)
    assert row["n_chars"] == row["n_scored_chars"] == len(TEXT)
    assert row["n_words"] == len(TEXT.split())
    assert (row["log_prob"], row["mean_loss"]) == (-total, total / row["n_scored"])
    assert row["perplexity"] == pytest.approx(math.exp(row["mean_loss"]), rel=1e-12)
    assert row["bits_per_byte"] == pytest.approx(total / math.log(2) / len(source), rel=1e-12)
    assert row["bits_per_char"] == pytest.approx(total / math.log(2) / len(TEXT), rel=1e-12)
    assert row["word_perplexity"] == pytest.approx(math.exp(total / row["n_words"]), rel=1e-12)


def test_tokens_are_the_source_text_that_they_cover(score: Score) -> None:
    row = sequence(score("--text", TEXT, "--json"))
    source, offsets = TEXT.encode(), row["byte_offsets"]
    assert (offsets[0], offsets[-1]) == (0, len(source))
    assert offsets == sorted(offsets)
    assert row["tokens"][0] == "<|begin_of_text|>"
    pieces = [source[a:b] for a, b in pairwise(offsets)][1:]
    spelled = [
        re.sub(rb"[\x80-\xff]", lambda byte: b"<0x%02X>" % byte[0][0], piece)
        if b"\xef\xbf\xbd" in piece.decode(errors="replace").encode()
        else piece
        for piece in pieces
    ]
    assert [token.encode() for token in row["tokens"][1:]] == spelled
    assert any(token.startswith("<0x") for token in row["tokens"]), "the dog is in parts"


def test_losses_read_back_as_the_values_that_were_summed(score: Score, demo: Any) -> None:
    row = sequence(score("--text", TEXT, "--json"))
    outcome = next(demo.score([text_sample(TEXT)]))
    assert isinstance(outcome, SequenceScore)
    assert row["token_losses"] == [None, *outcome.losses.tolist()[1:]]
    assert math.fsum(row["token_losses"][1:]) == row["total_loss"]
    assert row["token_ids"] == outcome.sequence.token_ids.tolist()


def test_the_run_says_what_was_done(score: Score) -> None:
    options = ("--context", 100, "--stride", 7, "--batch-tokens", 300, "--bos", "always", "--eos")
    run = document(score("--text", TEXT, "--json", *options))["run"]
    expected = {
        "command": "score",
        "model": "demo",
        "revision": None,
        "tokenizer": "demo",
        "dtype": "float32",
        "device": "cpu",
        "bos": "always",
        "bos_token_id": 0,
        "eos": True,
        "eos_token_id": 1,
        "special_tokens": "parse",
        "context": 100,
        "context_source": "--context",
        "stride": 7,
        "boundary": None,
        "batch_tokens": 300,
    }
    assert {name: run[name] for name in expected} == expected
    assert re.fullmatch("[0-9a-f]{64}", run["weights_sha256"])
    assert re.fullmatch("[0-9a-f]{64}", run["tokenizer_sha256"])
    assert {"seqloss", "torch", "transformers", "tokenizers", "python"} <= set(run["versions"])


def test_totals_are_the_sums_of_the_sequences(score: Score, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", *ROWS)
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.encode())
    found = document(score(text, rows, "--json"))
    sequences, totals = found["sequences"], found["totals"]
    assert [row["id"] for row in sequences] == [str(text), "a", "2", f"{rows}:3"]
    assert [row["line"] for row in sequences] == [None, 1, 2, 3]
    assert [row["source"] for row in sequences] == [str(text), *[str(rows)] * 3]
    assert (totals["n_sequences"], totals["n_rejected"]) == (4, 0)
    for name in COUNTS:
        assert totals[name] == sum(row[name] for row in sequences), name
    losses = [loss for row in sequences for loss in row["token_losses"] if loss is not None]
    total = totals["total_loss"]
    assert total == pytest.approx(math.fsum(losses), rel=1e-15)
    assert total == math.fsum(row["total_loss"] for row in sequences)
    assert totals["mean_loss"] == total / len(losses)
    assert totals["mean_sequence_loss"] == total / 4
    macro = math.fsum(row["mean_loss"] for row in sequences) / 4
    assert totals["mean_of_mean_losses"] == pytest.approx(macro, rel=1e-15)
    assert totals["log_prob"] == -total
    assert totals["perplexity"] == pytest.approx(math.exp(totals["mean_loss"]), rel=1e-12)
    bits = total / math.log(2)
    assert totals["bits_per_byte"] == pytest.approx(bits / totals["n_scored_bytes"], rel=1e-12)
    assert totals["bits_per_char"] == pytest.approx(bits / totals["n_scored_chars"], rel=1e-12)
    assert totals["word_perplexity"] == pytest.approx(
        math.exp(total / totals["n_words"]), rel=1e-12
    )


def test_lines_come_in_input_order_with_their_types(score: Score, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[0], {"no": "text"}, *ROWS[1:])
    (tmp_path / "empty.txt").touch()
    result = score(rows, "empty.txt", "--jsonl")
    assert result.exit_code == 3
    run, *middle, totals = lines_of(result.stdout)
    kinds = ["sequence", "rejected", "sequence", "sequence", "rejected"]
    assert [line["type"] for line in (run, *middle, totals)] == ["run", *kinds, "totals"]
    assert run["schema_version"] == 1
    whole = document(score(rows, "empty.txt", "--json"), 3)
    of_kind = {kind: [line for line in middle if line["type"] == kind] for kind in kinds}
    assert [line | {"type": "sequence"} for line in whole["sequences"]] == of_kind["sequence"]
    assert [line | {"type": "rejected"} for line in whole["rejected"]] == of_kind["rejected"]
    assert whole["totals"] | {"type": "totals"} == totals


# -- what can be asked for ----------------------------------------------------------------------


def test_arrays_that_were_asked_for(score: Score) -> None:
    options = ("--ranks", "--entropy", "--top-k", 5, "--context-lengths")
    row = sequence(score("--text", TEXT, "--json", *options))
    n = row["n_tokens"]
    assert all(len(row[name]) == n and row[name][0] is None for name in ASKED_ARRAYS)
    assert row["context_lengths"][1:] == list(range(1, n))
    assert all(0 <= entropy <= math.log(4096) for entropy in row["entropies"][1:])
    for t in range(1, n):
        top, rank, loss = row["top_logprobs"][t], row["ranks"][t], row["token_losses"][t]
        log_probs = [entry["log_prob"] for entry in top]
        assert [set(entry) for entry in top] == [{"id", "token", "log_prob"}] * 5
        assert log_probs == sorted(log_probs, reverse=True)
        better = [entry for entry in top if entry["log_prob"] > -loss + 1e-9]
        assert min(rank, 6) == min(len(better) + 1, 6)
        own = [entry["log_prob"] for entry in top if entry["id"] == row["token_ids"][t]]
        assert own == ([pytest.approx(-loss, abs=1e-9)] if rank <= 5 else [])


def test_what_was_not_asked_for_is_left_out(score: Score) -> None:
    everything = ("--ranks", "--entropy", "--top-k", 2, "--context-lengths")
    row = sequence(score("--text", TEXT, "--json", "--no-tokens", *everything))
    assert not set(row) & {*ARRAYS, *ASKED_ARRAYS}
    assert row["text"] == TEXT
    without = sequence(score("--text", TEXT, "--json", "--no-text"))
    assert "text" not in without
    assert without["text_sha256"] == row["text_sha256"]


def test_words(score: Score) -> None:
    row = sequence(score("--text", TEXT, "--json", "--words"))
    source = TEXT.encode()
    assert row["words"] == TEXT.split()
    assert [source[a:b].decode() for a, b in row["word_byte_offsets"]] == TEXT.split()
    assert math.fsum(row["word_losses"]) == pytest.approx(row["total_loss"], rel=1e-12)


def test_json_stays_in_nats(score: Score, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", *ROWS)
    nats, bits = (document(score(rows, "--json", *unit)) for unit in ((), ("--unit", "bits")))
    assert bits["sequences"] == nats["sequences"]
    assert bits["totals"] == nats["totals"]


def test_the_completions_format(score: Score, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.encode())
    plain = sequence(score(text, "--json"))
    found = document(score(text, "--format", "openai", "--top-k", 2))
    assert found["object"] == "text_completion"
    choice = found["choices"][0]
    assert (choice["index"], choice["text"]) == (0, TEXT)
    logprobs = choice["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert logprobs["tokens"] == plain["tokens"]
    assert logprobs["token_logprobs"] == [
        None if loss is None else -loss for loss in plain["token_losses"]
    ]
    assert logprobs["top_logprobs"][0] is None
    assert all(len(top) == 2 for top in logprobs["top_logprobs"][1:])
    source = TEXT.encode()
    starts = [source[:at].decode(errors="ignore") for at in plain["byte_offsets"][:-1]]
    assert logprobs["text_offset"] == [len(start) for start in starts]
    without = document(score(text, "--format", "openai"))["choices"][0]["logprobs"]
    assert without["top_logprobs"] is None


def test_tables_and_summary(score: Score) -> None:
    table = score("--text", TEXT, "--words").stdout
    summary = score("--text", TEXT, "--summary").stdout
    assert "<|begin_of_text|>" in table.split("totals")[0]
    assert table.endswith(summary)
    assert "·cat" not in summary
    assert "word perplexity" in summary
    whole, totals = (document(score("--text", TEXT, "--json", *o)) for o in ((), ("--summary",)))
    assert (totals["sequences"], totals["totals"]) == ([], whole["totals"])


# -- inputs -------------------------------------------------------------------------------------


def test_a_text_can_be_piped_in(seqloss: Run) -> None:
    found = seqloss("score", "--json", stdin=TEXT.encode(), **ONE_THREAD)
    assert found.returncode == 0
    row = strictly(found.stdout.decode())["sequences"][0]
    assert (row["id"], row["source"], row["text"]) == ("<stdin>", "<stdin>", TEXT)
    assert found.stderr.decode().count("\n") == 1, "only that the demo model is used"


def test_stdin_among_files(score: Score, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a file")
    found = document(score("a.txt", "-", "--json", stdin=b"piped\n"))
    assert [row["text"] for row in found["sequences"]] == ["a file", "piped\n"]


def test_lines_and_limit(score: Score) -> None:
    found = document(score("--lines", "--json", stdin=b"one\n\ntwo\r\n\nthree"))
    assert [row["text"] for row in found["sequences"]] == ["one", "two", "three"]
    assert [row["id"] for row in found["sequences"]] == ["<stdin>:1", "<stdin>:3", "<stdin>:5"]
    assert found["totals"]["n_empty_lines"] == 2
    limited = document(score("--lines", "--limit", 2, "--json", stdin=b"one\n\ntwo\r\n\nthree"))
    for short, long in zip(limited["sequences"], found["sequences"][:2], strict=True):
        assert short["id"] == long["id"]
        assert short["total_loss"] == pytest.approx(long["total_loss"], abs=1e-4)


def test_compressed_rows_with_meta(score: Score, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"body": "one two", "source": {"page": 1}}\n'))
    row = sequence(score(path, "--text-field", "body", "--keep-meta", "--json"))
    assert (row["text"], row["meta"]) == ("one two", {"source": {"page": 1}})


def test_rows_of_ids_have_no_rates_per_byte_or_word(score: Score, tmp_path: Path) -> None:
    ids = sequence(score("--text", TEXT, "--json"))["token_ids"]
    labels = [token if t % 3 == 1 else -100 for t, token in enumerate(ids)]
    nothing = {"input_ids": ids, "labels": [-100] * len(ids)}
    rows = write_rows(
        tmp_path / "r.jsonl", {"input_ids": ids}, {"input_ids": ids, "labels": labels}, nothing
    )
    found = document(score(rows, "--json"))
    plain, labelled, unscored = found["sequences"]
    null = ("n_bytes", "n_chars", "n_words", "bits_per_byte", "bits_per_char", "word_perplexity")
    for row in (plain, labelled, unscored):
        assert row["token_ids"] == ids
        assert [row[name] for name in null] == [None] * len(null)
        assert (row["byte_offsets"], row["text"], row["text_sha256"]) == (None, None, None)
    assert plain["n_scored"] == len(ids) - 1
    assert labelled["n_scored"] == sum(label != -100 for label in labels)
    assert labelled["labels"] == labels
    counted = [loss for loss, label in zip(plain["token_losses"], labels, strict=True) if label > 0]
    assert labelled["total_loss"] == pytest.approx(math.fsum(counted), abs=1e-4)
    assert (unscored["n_scored"], unscored["flags"]["nothing_scored"]) == (0, True)
    assert [unscored[name] for name in RATES] == [None] * len(RATES)
    totals = found["totals"]
    assert totals["n_scored"] == plain["n_scored"] + labelled["n_scored"]
    assert [totals[name] for name in RATES[4:]] == [None, None, None]
    assert totals["mean_loss"] == totals["total_loss"] / totals["n_scored"]
    assert totals["mean_sequence_loss"] == totals["total_loss"] / 2, "of those with a loss"


def test_duplicate_ids_are_reported(score: Score, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "r.jsonl", *({"id": "x", "text": text} for text in "abc"))
    result = score(rows, "--json")
    flags = [row["flags"] for row in document(result)["sequences"]]
    assert flags == [{}, {"duplicate_id": True}, {"duplicate_id": True}]
    assert document(result)["totals"]["flags"] == {"duplicate_id": 2}
    assert "2 ids" in result.stderr
    assert "'x'" in result.stderr


def test_a_name_that_is_not_utf8_is_scored_and_written(score: Score, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("a text")
    found = document(score(name, "--json"))
    assert found["sequences"][0]["text"] == "a text"
    assert "caf" in found["sequences"][0]["source"]
    missing = score(name + "x", "--json")
    assert missing.exit_code == 2
    assert "caf" in missing.stderr


# -- numbers that are not numbers ---------------------------------------------------------------


@pytest.fixture(scope="session")
def odd_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`impossible`: no 'b' follows 'a'; `nan`: a part of its head is NaN; `far`: losses of 1000."""
    folder, tokenizer = tmp_path_factory.mktemp("odd"), byte_tokenizer()
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    log_probs = torch.randn(258, 258, generator=torch.manual_seed(0))
    log_probs[a, b] = -torch.inf
    impossible = bigram_model(log_probs.log_softmax(-1))
    with torch.no_grad():  # -inf itself would make 0 * -inf of every row: let it overflow instead
        impossible.model.norm.weight.mul_(4)
        impossible.lm_head.weight.div_(4)
        impossible.lm_head.weight[b, a] = torch.finfo(torch.float32).min
    save_checkpoint(folder / "impossible", impossible, tokenizer)
    broken = llama()
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    save_checkpoint(folder / "nan", broken, tokenizer)
    far = torch.zeros(258, 258)
    far[:, 0] = 1000
    save_checkpoint(folder / "far", bigram_model(far.log_softmax(-1)), tokenizer)
    return folder


def test_an_infinite_loss_is_null_and_flagged(score: Score, odd_models: Path) -> None:
    options = ("--lines", "--json", "--words", "--ranks", "--entropy", "--top-k", 258)
    stdin = b"xab ab\nba\n"
    found = document(score("-m", odd_models / "impossible", *options, stdin=stdin))
    odd, fine = found["sequences"]
    assert odd["flags"] == {"inf_loss": 2}
    assert odd["inf_losses"] == [3, 6]
    assert [t for t, loss in enumerate(odd["token_losses"]) if loss is None] == [0, 3, 6]
    assert odd["n_scored"] == 6, "zero probability counts"
    assert [odd[name] for name in RATES] == [None] * len(RATES)
    assert odd["word_losses"] == [None, None]
    assert (odd["ranks"][3], odd["top_logprobs"][3][-1]["log_prob"]) == (258, None)
    assert all(math.isfinite(entropy) for entropy in odd["entropies"][1:])
    assert fine["flags"] == {}
    assert "inf_losses" not in fine
    assert fine["total_loss"] == math.fsum(fine["token_losses"][1:])
    totals = found["totals"]
    assert totals["flags"] == {"inf_loss": 2}
    means = ("mean_sequence_loss", "mean_of_mean_losses")
    assert [totals[name] for name in (*RATES, *means)] == [None] * 9


def test_an_infinite_loss_in_the_other_formats(score: Score, odd_models: Path) -> None:
    run = ("-m", odd_models / "impossible", "--text", "ab", "--top-k", 258)
    line = lines_of(score(*run, "--jsonl").stdout)[1]
    assert (line["token_losses"][2], line["top_logprobs"][2][-1]["log_prob"]) == (None, None)
    logprobs = document(score(*run, "--format", "openai"))["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [None, -line["token_losses"][1], None]
    assert logprobs["top_logprobs"][2]["b"] is None


def test_an_infinite_loss_in_tables(score: Score, odd_models: Path) -> None:
    shown = score("-m", odd_models / "impossible", "--text", "ab", "--words").stdout
    assert "inf_loss 1" in shown
    assert "nan" not in shown


def test_a_nan_from_the_model_rejects_the_row(score: Score, odd_models: Path) -> None:
    result = score("-m", odd_models / "nan", "--text", "abc", "--json")
    rejected = document(result, 3)["rejected"][0]
    assert (rejected["reason"], rejected["id"]) == ("nan_loss", "<text>")
    assert "--dtype" in result.stderr


def test_a_perplexity_that_overflows_is_null(score: Score, odd_models: Path) -> None:
    row = sequence(score("-m", odd_models / "far", "--text", "ab", "--json"))
    assert row["mean_loss"] == pytest.approx(1000)
    assert (row["perplexity"], row["word_perplexity"]) == (None, None)


# -- an output file -----------------------------------------------------------------------------


def test_the_extension_chooses_the_format(score: Score, tmp_path: Path) -> None:
    for name in ("out.json", "out.jsonl"):
        result = score("--text", TEXT, "-o", name)
        assert (result.exit_code, result.stdout) == (0, "")
        assert f"wrote {name}" in result.stderr
    whole = strictly((tmp_path / "out.json").read_text())
    run, line, totals = lines_of((tmp_path / "out.jsonl").read_text())
    assert line == whole["sequences"][0] | {"type": "sequence"}
    assert (run["type"], totals["type"]) == ("run", "totals")
    assert not list(tmp_path.glob("*.partial"))


def test_a_flag_is_stronger_than_the_extension(score: Score, tmp_path: Path) -> None:
    assert score("--text", TEXT, "-o", "a.out", "--json").exit_code == 0
    assert strictly((tmp_path / "a.out").read_text())["schema_version"] == 1
    assert score("--text", TEXT, "-o", "b.json", "--jsonl").exit_code == 0
    assert len(lines_of((tmp_path / "b.json").read_text())) == 3
    assert score("--text", TEXT, "-o", "c.txt", "--format", "table").exit_code == 0
    assert "total loss" in (tmp_path / "c.txt").read_text()


@pytest.mark.parametrize("name", ["out.txt", "out", "out.json.gz", "."])
def test_an_extension_that_names_no_format(score: Score, tmp_path: Path, name: str) -> None:
    result = score("--text", TEXT, "-o", name)
    assert result.exit_code == 2
    assert name in result.stderr
    assert "--jsonl" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("existing", ["out.json", "out.json.partial"])
def test_nothing_is_written_over_without_force(score: Score, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    refused = score("--text", TEXT, "-o", "out.json")
    assert refused.exit_code == 2
    assert existing in refused.stderr
    assert "--force" in refused.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    assert score("--text", TEXT, "-o", "out.json", "--force").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert strictly((tmp_path / "out.json").read_text())["totals"]["n_sequences"] == 1


def test_a_directory_that_is_not_there(score: Score) -> None:
    result = score("--text", TEXT, "-o", "nowhere/out.json")
    assert result.exit_code == 2
    assert "nowhere/out.json" in result.stderr


def test_a_file_with_rejected_rows_is_whole(score: Score, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "fine").write_text("fine")
    assert score("empty", "fine", "-o", "out.json").exit_code == 3
    assert strictly((tmp_path / "out.json").read_text())["totals"]["n_rejected"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_under_the_output_file(score: Score, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.partial").symlink_to("/dev/full")
    result = score("-m", "demo", "--text", TEXT, "-o", "out.jsonl", "--force")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "out.jsonl.partial" in result.stderr
    assert "No space left" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


# -- configuration ------------------------------------------------------------------------------


def _top_k(result: Any) -> int:
    row = sequence(result)
    return len(row["top_logprobs"][1]) if "top_logprobs" in row else 0


def test_flag_then_variable_then_file_then_default(score: Score, tmp_path: Path) -> None:
    run = ("--text", "ab", "--json")
    assert _top_k(score(*run)) == 0
    (tmp_path / "seqloss.yaml").write_text("top-k: 4\n")
    assert _top_k(score(*run)) == 4
    (tmp_path / "other.yaml").write_text("top-k: 3\n")
    assert _top_k(score(*run, "--config", "other.yaml")) == 3
    assert _top_k(score(*run, SEQLOSS_CONFIG="other.yaml")) == 3
    assert _top_k(score(*run, SEQLOSS_TOP_K="2")) == 2
    assert _top_k(score(*run, "--config", "other.yaml", SEQLOSS_TOP_K="2")) == 2
    assert _top_k(score(*run, "--top-k", "1", SEQLOSS_TOP_K="2")) == 1


def test_keys_are_the_long_option_names(score: Score, tmp_path: Path) -> None:
    settings = "text: a b\nno-tokens: true\ncontext: 40\nbos-token: 1\njson: true\n"
    (tmp_path / "seqloss.yaml").write_text(settings)
    found = document(score())
    assert found["sequences"][0]["text"] == "a b"
    assert "tokens" not in found["sequences"][0]
    assert (found["run"]["context"], found["run"]["bos_token_id"]) == (40, 1)


@pytest.mark.parametrize("configured", ["json: true", "format: json"])
def test_a_format_flag_is_stronger_than_a_configured_format(
    score: Score, tmp_path: Path, configured: str
) -> None:
    (tmp_path / "seqloss.yaml").write_text(configured)
    result = score("--text", "a", "--jsonl")
    assert result.exit_code == 0, result.stderr
    assert [line["type"] for line in lines_of(result.stdout)] == ["run", "sequence", "totals"]


def test_the_default_model_is_said(score: Score, tmp_path: Path) -> None:
    run = ("--text", "a", "--summary")
    assert "demo" in score(*run).stderr
    assert score(*run, "--model", "demo").stderr == ""
    assert score(*run, SEQLOSS_MODEL="demo").stderr == ""
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "my.yaml").write_text("model: demo", encoding)
        assert score(*run, "--config", "my.yaml").stderr == ""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("top_k: 3", "'top_k'"),
        ("tpo-k: 3", "'tpo-k'"),
        ("files: a.txt", "'files'"),
        ("top-k: abc", "top-k"),
        ("top-k: -1", "top-k"),
        ("limit: 0", "limit"),
        ("unit: parsecs", "unit"),
        ("eos: perhaps", "eos"),
        ("model: [a, b]", "model"),
        ("- top-k", "mapping"),
        ("3: 4", "mapping"),
        ("a: [", "YAML"),
        ("score:\n  top-k: 3", "score: is no section"),
        ("rank: {by: sum}", "rank: is no section"),
        ("top-k: 3\ntop-k: 3", "top-k: is there twice"),
        ("text-field: no", "text-field: takes a text (YAML reads it as False"),
        ("text-field: 2020-01-02", "put it in quotes"),
        ("compile: on", "put it in quotes"),
        ("a: 2020-13-45", "is not YAML"),
    ],
)
def test_a_wrong_configuration_names_file_and_key(
    score: Score, tmp_path: Path, settings: str, said: str
) -> None:
    (tmp_path / "my.yaml").write_text(settings)
    result = score("--text", "a", "--config", "my.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "my.yaml" in result.stderr
    assert said in unwrapped(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (("--nope",), {}, "--nope"),
        (("--top-k", "x"), {}, "--top-k"),
        (("--stride", "0"), {}, "--stride"),
        (("--top-k", "4097"), {}, "--top-k 4097"),
        ((), {"SEQLOSS_TOP_K": "x"}, "--top-k"),
        (("--config", "missing.yaml"), {}, "missing.yaml"),
        (("--json", "--jsonl"), {}, "--jsonl"),
        (("file.txt",), {}, "--text"),
        (("--context", "513"), {}, "max_position_embeddings: 512"),
        (("--context", "8", "--stride", "9"), {}, "--stride 9"),
        (("--device", "toaster"), {}, "--device toaster"),
        (("--bos", "never", "--bos-token", "0"), {}, "--bos-token"),
        (("--bos-token", "nope"), {}, "'nope'"),
    ],
)
def test_wrong_flags_exit_2(
    score: Score, arguments: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    result = score("--text", "a", *arguments, **env)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in unwrapped(result.stderr)


@pytest.mark.parametrize("width", ["0", "00", "-3", "²", "x", ""])
def test_a_width_that_is_none_is_not_taken(width: str) -> None:
    words = ("score", "--model", "demo", "--text", "a b")
    result = in_process(*words, COLUMNS=width, LINES=width, TERMINAL_WIDTH=width)
    assert result.stdout == in_process(*words, COLUMNS="80").stdout != ""
    assert "Usage: seqloss" in in_process("score", "--help", COLUMNS=width).stdout


@pytest.mark.parametrize("command", [(), ("score",), ("cond",), ("mask",)])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command: tuple[str, ...], flag: str) -> None:
    result = CliRunner().invoke(app, (*command, flag), env={"COLUMNS": "100"})
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Usage: seqloss" in result.stdout


# -- inputs that are wrong ----------------------------------------------------------------------


def test_bad_inputs_are_named_and_the_others_go_on(score: Score, tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\xff")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "fine.txt").write_text("fine")
    rows = [b"{", b"5", b"{}", b'{"text": "\\ud800"}', b'{"text": NaN}', b'{"text": "fine"}']
    long = json.dumps({"text": "x" * 100}).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*rows, long]))
    names = ["binary.txt", "latin.txt", "empty.txt", "rows.jsonl", "fine.txt"]
    found = score("-m", "demo", "--json", "--max-bytes", 50, *names)
    result = document(found, exit_code=3)
    assert [row["text"] for row in result["sequences"]] == ["fine", "fine"]
    expected = [
        ("binary.txt", None, "binary_data"),
        ("latin.txt", None, "invalid_utf8"),
        ("empty.txt", None, "empty"),
        ("rows.jsonl", 1, "bad_json"),
        ("rows.jsonl", 2, "wrong_type"),
        ("rows.jsonl", 3, "missing_field"),
        ("rows.jsonl", 4, "bad_json"),
        ("rows.jsonl", 5, "bad_json"),
        ("rows.jsonl", 7, "too_long"),
    ]
    rejected = [(row["source"], row["line"], row["reason"]) for row in result["rejected"]]
    assert rejected == expected
    assert [row["id"] for row in result["rejected"]][2:4] == ["empty.txt", "rows.jsonl:1"]
    said = found.stderr.splitlines()
    where = [source if line is None else f"{source}:{line}" for source, line, _ in expected]
    assert [line.split(": ")[1] for line in said] == [f"rejected {place}" for place in where]


def test_texts_from_the_command_line_that_are_wrong(score: Score) -> None:
    for text, said in (("", "holds no text"), ("a\udc80", "holds half of a character")):
        result = score("--text", text, "--json")
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"error: --text: {said}" in result.stderr


def test_files_of_which_none_can_be_scored_are_refused_before_a_model_is_loaded(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqloss_cli.cli.settings.load_scorer", lambda *_: pytest.fail("loaded"))
    (tmp_path / "empty").touch()
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "binary").write_bytes(b"a\0\xff")
    whole = {"empty": "holds no text", "rows.jsonl": "holds nothing", "latin": "is not UTF-8",
             "binary": "is binary data"}  # fmt: skip
    for name, said in whole.items():
        result = score("-m", "demo", name)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"error: {name}: {said}" in result.stderr
    assert score("-m", "demo", *whole).exit_code == 2


def test_windows_that_the_configuration_does_not_allow_show_before_a_model_is_loaded(
    score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqloss_cli.cli.settings.loading", lambda *_: pytest.fail("loaded"))
    for words, said in (
        (
            ("--context", 513, "-m", "demo"),
            "--context 513 is more than the model takes (max_position_emb",
        ),
        (
            ("--stride", 513, "-m", "demo"),
            "--stride 513 is more than the context of 512 (--context)",
        ),
        (("--context", 8, "--stride", 9, "-m", "no/such"), "--stride 9 is more than the context"),
    ):
        result = score("--text", "a", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr


def test_a_text_from_the_command_line_above_max_bytes(score: Score) -> None:
    result = score("--text", "abcd", "--max-bytes", 3, "--json")
    assert result.exit_code == 2
    assert "--text: is longer than --max-bytes 3" in result.stderr


def test_ids_that_the_model_does_not_have(score: Score, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "r.jsonl", {"input_ids": [5, 4096]}, {"input_ids": [-1]}, {"input_ids": [5, 6]}
    )
    result = score(rows, "--json")
    rejected = document(result, 3)["rejected"]
    assert [(row["line"], row["reason"]) for row in rejected] == [
        (1, "id_out_of_range"),
        (2, "id_out_of_range"),
    ]
    assert "4095" in result.stderr


def test_special_tokens_in_a_text_can_be_an_error(score: Score) -> None:
    result = score("--lines", "--special-tokens", "error", "--json", stdin=b"a\nb<|end_of_text|>\n")
    found = document(result, 3)
    assert [(row["line"], row["reason"]) for row in found["rejected"]] == [
        (2, "special_token_text")
    ]
    assert [row["line"] for row in found["sequences"]] == [1]


def test_strict_stops_at_the_first(score: Score, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "r.jsonl", ROWS[0], {}, ROWS[1], {})
    result = score(rows, "--jsonl", "--strict")
    assert result.exit_code == 3
    kinds = [line["type"] for line in lines_of(result.stdout)]
    assert kinds[:3] == ["run", "sequence", "rejected"]
    assert not {"sequence", "rejected"} & set(kinds[3:])
    assert result.stderr.count("rejected r.jsonl") + result.stderr.count(f"rejected {rows}") == 1
    assert "--strict" in result.stderr


def test_strict_leaves_a_partial_file(score: Score, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "r.jsonl", ROWS[0], {}, ROWS[1])
    assert score(rows, "-o", "out.jsonl", "--strict").exit_code == 3
    assert not (tmp_path / "out.jsonl").exists(), "a file of that name is always whole"
    assert lines_of((tmp_path / "out.jsonl.partial").read_text())[1]["id"] == "a"


def test_strict_changes_nothing_when_nothing_is_wrong(score: Score) -> None:
    assert score("--text", "a", "--strict").exit_code == 0


# -- models that are wrong ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def bad_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("models"), byte_tokenizer()
    good = save_checkpoint(folder / "good", llama(), tokenizer)
    save_checkpoint(folder / "no-tokenizer", llama(), None)
    for name in ("no-weights", "wrong-shape", "missing-layer", "cut", "no-json", "pickle"):
        shutil.copytree(good, folder / name)
    (folder / "no-weights/model.safetensors").unlink()
    _edit(folder / "wrong-shape/config.json", intermediate_size=64)
    _edit(folder / "missing-layer/config.json", num_hidden_layers=3)
    weights = folder / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (folder / "no-json/config.json").write_text("{")
    (folder / "pickle/model.safetensors").unlink()
    torch.save(llama().state_dict(), folder / "pickle/pytorch_model.bin")
    bert = BertConfig(
        vocab_size=258,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    encoder = BertForMaskedLM(bert)
    with torch.no_grad():  # as sharp as a trained one: what comes after a token matters by nats
        for parameter in encoder.parameters():
            parameter.mul_(10)
    save_checkpoint(folder / "encoder", encoder, tokenizer)
    t5 = T5Config(vocab_size=258, d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=16)
    save_checkpoint(folder / "seq2seq", T5ForConditionalGeneration(t5), tokenizer)
    (folder / "nothing").mkdir()
    return folder


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("not-there", "no such directory"),  # these three are named wrongly: exit code 2
        ("nothing", "config.json"),
        ("good/config.json", "directory"),
        ("no-tokenizer", "--tokenizer"),
        ("no-weights", "no weights"),
        ("wrong-shape", "do not match its config.json"),
        ("missing-layer", "do not match its config.json"),
        ("cut", "model"),
        ("no-json", "JSON"),
        ("pickle", "--allow-pickle"),
        ("encoder", "not causal"),
        ("seq2seq", "encoder-decoder"),
    ],
)
def test_a_model_that_cannot_score(score: Score, bad_models: Path, name: str, said: str) -> None:
    result = score("-m", bad_models / name, "--text", "a")
    is_named_wrongly = name in ("not-there", "nothing", "good/config.json")
    assert (result.exit_code, result.stdout) == (2 if is_named_wrongly else 1, "")
    assert result.stderr.startswith("seqloss: error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


TWICE = """
import sys
from seqloss_cli.cli.main import main
for name in sys.argv[1:]:
    sys.argv = ["seqloss", "score", "-m", name, "--text", "a"]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 1
"""


def test_transformers_own_reports_do_not_reach_stderr(bad_models: Path) -> None:
    names = [str(bad_models / name) for name in ("wrong-shape", "encoder")]
    command = [sys.executable, "-c", TWICE, *names]
    found = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=False)
    assert (found.returncode, found.stdout) == (0, b""), found.stderr
    assert found.stderr.count(b"\n") == 2


def test_pickled_weights_when_they_are_allowed(score: Score, bad_models: Path) -> None:
    run = ("--text", "abc", "--json", "-m")
    pickled = sequence(score(*run, bad_models / "pickle", "--allow-pickle"))
    assert pickled["token_losses"] == sequence(score(*run, bad_models / "good"))["token_losses"]


def test_another_tokenizer(score: Score, bad_models: Path) -> None:
    named = ("--tokenizer", bad_models / "good")
    run = ("--text", "abc", "--json", "-m")
    found = sequence(score(*run, bad_models / "no-tokenizer", *named))
    assert found["token_ids"] == sequence(score(*run, bad_models / "good"))["token_ids"]


def test_a_hub_name_that_cannot_be_had(score: Score) -> None:
    result = score("-m", "nobody/nothing", "--offline", "--text", "a")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "--offline" in result.stderr


def test_debug_shows_where(score: Score) -> None:
    assert "Traceback" in score("-m", "./not-there", "--text", "a", "--debug").stderr


# -- pipes, signals, full disks -----------------------------------------------------------------


def _program(
    *arguments: str, cwd: Path, before: str = "", after: str = ""
) -> subprocess.CompletedProcess[bytes]:
    script = f'"$@" {after}; exit "${{PIPESTATUS[0]}}"'
    return subprocess.run(
        ["bash", "-c", script, "bash", *PROGRAM, *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (("--all-tokens",), b"text.txt"),
        (("--lines",), b"losses in nats"),
        (("--jsonl",), b'{"type"'),
    ],
)
def test_head_ends_the_run_quietly(
    tmp_path: Path, arguments: tuple[str, ...], first: bytes
) -> None:
    (tmp_path / "text.txt").write_text("".join(f"line {n}\n" for n in range(900)))
    found = _program("text.txt", *arguments, cwd=tmp_path, after="| head -n 1")
    assert found.stdout.startswith(first)
    assert (found.returncode, found.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_full_disk_under_stdout(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    found = _program("--text", TEXT, *arguments, cwd=tmp_path, after="> /dev/full")
    assert (found.returncode, found.stderr) == (1, b"seqloss: error: No space left on device\n")


def _wait_for(path: Path, n_sequences: int) -> None:
    for _ in range(600):
        if path.exists() and path.read_bytes().count(b'"type":"sequence"') >= n_sequences:
            return
        time.sleep(0.1)
    pytest.fail(f"{path} never held {n_sequences} sequences")


@contextmanager
def _slowly_fed(folder: Path, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """A run that reads lines from a pipe and writes out.jsonl; killed if it is still there."""
    process = subprocess.Popen(
        [*PROGRAM, "--lines", "-o", "out.jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        cwd=folder,
        env={**ENVIRONMENT, "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _feed(process: subprocess.Popen[bytes], n_lines: int) -> None:
    assert process.stdin is not None
    process.stdin.write(b"a line\n" * n_lines)
    process.stdin.flush()


def test_ctrl_c_keeps_what_was_finished(tmp_path: Path) -> None:
    partial = tmp_path / "out.jsonl.partial"
    with _slowly_fed(tmp_path, subprocess.PIPE) as process:
        _feed(process, 20)  # blocks of 1, 2, 4 and 8, and part of the next
        _wait_for(partial, 15)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        said = process.stderr.read()
    kinds = [line["type"] for line in lines_of(partial.read_text())]
    assert kinds == ["run"] + ["sequence"] * 15
    assert not (tmp_path / "out.jsonl").exists()
    assert said.count(b"\n") == 1, "nor was there a progress bar"
    assert b"out.jsonl.partial" in said


@pytest.mark.parametrize("on_terminal", [True, False])
def test_the_progress_bar_is_for_terminals(tmp_path: Path, on_terminal: bool) -> None:
    reader, writer = pty.openpty() if on_terminal else os.pipe()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # of a terminal whose other end was closed
            while part := os.read(reader, 1 << 16):
                shown.extend(part)

    # A terminal that nobody reads is full in a second, and gets no more of the bar then.
    thread = threading.Thread(target=read)
    thread.start()
    with _slowly_fed(tmp_path, writer) as process:
        _feed(process, 7)
        _wait_for(tmp_path / "out.jsonl.partial", 7)
        time.sleep(0.3)
        _feed(process, 17)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    os.close(writer)
    thread.join(timeout=60)
    os.close(reader)
    said = shown.decode()
    wrote = "seqloss: wrote out.jsonl: 24 sequences, 0 rejected\n"
    answer = re.compile(
        re.escape(wrote)
        + r"seqloss: mean loss 6\.\d+ .* 48 tokens scored, in \d+\.\d s: out\.jsonl\n"
    )
    assert bool(answer.fullmatch(said)) != on_terminal
    assert answer.search(said.replace("\r\n", "\n"))
    assert bool(re.search(r"\d+ inputs · [\d,]+ tokens/s", said)) == on_terminal
    assert bool(re.search(r"loaded demo in \d+\.\d s", said)) == on_terminal


# -- what a terminal would act on ---------------------------------------------------------------


def _assert_harmless(result: Any) -> None:
    for shown in (result.stdout, result.stderr):
        assert not UNSAFE.search(shown), ascii(UNSAFE.search(shown))


@pytest.mark.parametrize("n_rows", [3, 12])
def test_control_characters_of_texts_and_names(score: Score, tmp_path: Path, n_rows: int) -> None:
    name = f"{EVIL}.jsonl"
    rows = [{"text": f"a {EVIL} b", "id": f"{EVIL}{n}"} for n in range(n_rows)]
    write_rows(tmp_path / name, *rows, {EVIL: 1}, {"text": f"no id {EVIL}"})
    (tmp_path / f"{EVIL}empty").touch()
    result = score(name, f"{EVIL}empty", "--words", "--top-k", 2)
    assert result.exit_code == 3
    assert r"\x9b2J\x7f\u202etxt" in result.stdout
    assert r"\u202e" in result.stderr
    _assert_harmless(result)


@pytest.mark.parametrize("form", ["json", "jsonl", "openai"])
def test_control_characters_in_json(score: Score, tmp_path: Path, form: str) -> None:
    (tmp_path / EVIL).write_text(EVIL)
    (tmp_path / f"{EVIL}empty").touch()
    result = score(EVIL, f"{EVIL}empty", "--format", form)
    assert result.exit_code == 3
    _assert_harmless(result)
    sources = re.findall(r'"source":("(?:[^"\\]|\\.)*")', result.stdout)
    assert json.loads(sources[-1]) == f"{EVIL}empty"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", f"./{EVIL}"),
        ("--tokenizer", f"./{EVIL}"),
        ("--device", EVIL),
        ("--bos-token", EVIL),
        ("--unit", EVIL),
        ("-o", f"{EVIL}.txt"),
        ("-o", f"{EVIL}/a.json"),
        ("--config", f"{EVIL}.yaml"),
        ("--config", f"{EVIL}-key.yaml"),
        ("--config", f"{EVIL}-value.yaml"),
        ("--config", f"{EVIL}-broken.yaml"),
    ],
)
def test_control_characters_in_errors(
    score: Score, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    (tmp_path / f"{EVIL}-key.yaml").write_text(json.dumps({EVIL: 1}))
    (tmp_path / f"{EVIL}-value.yaml").write_text(json.dumps({"unit": EVIL}))
    (tmp_path / f"{EVIL}-broken.yaml").write_text(f"a: {EVIL}")
    result = score("--text", "a", *arguments)
    assert result.exit_code in (1, 2)
    assert result.stderr
    _assert_harmless(result)
