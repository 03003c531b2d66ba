"""Texts that a tokenizer changes or drops parts of, from input to totals and comparison."""

from __future__ import annotations

import json
import string
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.program import document, in_process, strictly

FORMS = ("NFC", "NFD")
TEXTS = ("café The quick", "한국어 문장을 하나")
RATES = ("bits_per_byte", "bits_per_char", "word_perplexity")
DROPPED = "ROMEO 0: 吾輩は猫である。"


@pytest.fixture(scope="module")
def nfc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a byte of what NFC makes of a text."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return save_checkpoint(tmp_path_factory.mktemp("nfc"), llama(), tokenizer)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a letter; what else a text holds is dropped."""
    pieces = {char: n for n, char in enumerate(string.ascii_letters + " :.\n")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(pieces, [])))
    return save_checkpoint(tmp_path_factory.mktemp("letters"), llama(len(pieces)), tokenizer)


def rows_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_words_and_regions_are_those_of_the_normalised_text(nfc: Path, tmp_path: Path) -> None:
    texts = [(form, unicodedata.normalize(form, text)) for text in TEXTS for form in FORMS]
    data = rows_of(
        tmp_path / "in.jsonl",
        [{"id": str(n), "text": text} for n, (_, text) in enumerate(texts)],
    )
    regions = rows_of(
        tmp_path / "regions.jsonl",
        [{"id": str(n), "regions": text.split()} for n, (_, text) in enumerate(texts)],
    )
    done = in_process("score", data, "--model", nfc, "--words", "--regions", regions, "--json")
    found = document(done)["sequences"]
    for composed, apart in (found[:2], found[2:]):
        assert composed["token_ids"] == apart["token_ids"]
        assert apart["word_losses"] == composed["word_losses"]
        assert None not in apart["word_losses"]
        losses = [[region["loss"] for region in row["regions"]] for row in (composed, apart)]
        assert losses[0] == losses[1] == apart["word_losses"]
        assert apart["bits_per_byte"] == pytest.approx(
            composed["bits_per_byte"] * composed["n_bytes"] / apart["n_bytes"]
        )
        assert apart["flags"] == {"lossy_tokenizer": True}
        assert "unspelled_bytes" not in apart


def test_a_prompt_meets_its_response_as_it_does_normalised(nfc: Path, tmp_path: Path) -> None:
    pairs = [
        {"id": form, "prompt": unicodedata.normalize(form, "café"), "response": " The"}
        for form in FORMS
    ]
    data = rows_of(tmp_path / "pairs.jsonl", pairs)
    composed, apart = document(in_process("cond", data, "--model", nfc, "--json"))["sequences"]
    assert apart["boundary"] == composed["boundary"] == "clean"
    for name in ("token_ids", "loss", "n_scored_bytes", "bits_per_byte"):
        assert apart[name] == composed[name]


def test_what_was_dropped_has_no_rate_and_is_told(letters: Path, tmp_path: Path) -> None:
    rows = [{"id": "dropped", "text": DROPPED}, {"id": "whole", "text": "ROMEO: no"}]
    data, out = rows_of(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    done = in_process("score", data, "--model", letters, "-o", out)
    assert done.exit_code == 0
    assert done.stderr.count("warning: 1 texts hold what no token stands for") == 1
    _, dropped, whole, totals = map(strictly, out.read_text().splitlines())
    assert dropped["flags"]["unspelled_text"] is True
    assert dropped["unspelled_bytes"] == 1 + 3 * 8
    assert [dropped[name] for name in RATES] == [None] * 3
    assert dropped["total_loss"] == pytest.approx(dropped["mean_loss"] * dropped["n_scored"])
    assert "unspelled_bytes" not in whole
    assert (totals["n_unspelled_sequences"], totals["unspelled_bytes"]) == (1, 25)
    assert totals["bits_per_byte"] == whole["bits_per_byte"]
    assert totals["n_scored_bytes"] == dropped["n_scored_bytes"] + whole["n_scored_bytes"]
    summary = document(in_process("summarize", out, "--json"))["totals"]
    assert summary == {name: value for name, value in totals.items() if name != "type"}
    again = in_process("score", data, "--model", letters, "-o", out, "--resume")
    assert "nothing to do" in again.stderr


def test_a_comparison_per_byte_of_dropped_text_is_refused(
    letters: Path, nfc: Path, tmp_path: Path
) -> None:
    data = rows_of(tmp_path / "in.jsonl", [{"id": str(n), "text": DROPPED} for n in range(3)])
    done = in_process("compare", "-m", letters, "-m", nfc, "--data", data)
    assert done.exit_code == 2, done.stderr
    assert "3 rows hold text that no token of a model stands for" in done.stderr
