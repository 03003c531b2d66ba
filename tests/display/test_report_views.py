"""Whole outputs of the commands on results, at fixed widths (see tests/helpers/terminals.py on how
to write them anew). Ids and tokens try to break out of the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.results import row, write
from helpers.terminals import UNSAFE, assert_snapshot

Run = Callable[..., Any]
EVIL = "row \x1b[31m\u202e 日本"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("COLUMNS", "80")
    generator, rows = np.random.default_rng(0), []
    for n in range(32):
        losses = np.round(generator.exponential(2, 4 + n % 9), 3) + 1
        made = row(f"d{n}" if n else EVIL, [None, *losses], meta={"set": ["a", "b\x1b[2J"][n % 2]})
        made["tokens"][2] = " \x9b\u2028日"
        rows.append(made)
    write(tmp_path / "a.jsonl", rows, model="models/a")
    lower = json.loads(json.dumps(rows))
    for each in lower:
        each["token_losses"] = [x and x - 0.25 for x in each["token_losses"]]
        each["total_loss"] = sum(x for x in each["token_losses"] if x is not None)
    write(tmp_path / "b.jsonl", lower, model="models/b\x1b[31m", weights_sha256="b")
    return str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")


def test_summarize(run_cli: Run, files: tuple[str, str]) -> None:
    shown = run_cli("summarize", files[0], "--by", "set", "--worst", "3").stdout
    assert not UNSAFE.search(shown)
    assert_snapshot("summarize-80", shown)


def test_compare(run_cli: Run, files: tuple[str, str]) -> None:
    shown = run_cli("compare", *files, "--worst", "3").stdout
    assert not UNSAFE.search(shown)
    assert_snapshot("compare-80", shown)


def test_texts_go_to_a_file(run_cli: Run, files: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "summary.txt"
    assert run_cli("summarize", files[0], "-o", str(path)).exit_code == 0
    assert "mean loss" in path.read_text()
    assert run_cli("summarize", files[0], "-o", str(path)).exit_code == 2
    assert run_cli("summarize", files[0], "-o", str(tmp_path / "summary.csv")).exit_code == 2
    assert run_cli("compare", *files, "-o", str(tmp_path / "c.json")).exit_code == 0
    assert json.loads((tmp_path / "c.json").read_text())["comparisons"]
