"""Pipes, compressed stdin, and what cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.program import Run
from seqloss_cli.core.records import Rejected, Sample
from seqloss_cli.inputs.reading import ReadOptions, ReadStats, read_inputs


def test_pipes_by_name(seqloss: Run) -> None:
    done = seqloss("score", "/dev/stdin", "--json", "--no-tokens", stdin=b"hello")
    assert json.loads(done.stdout)["totals"]["n_bytes"] == 5


def test_compressed_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packed").write_bytes(gzip.compress(b"hello"))
    with (tmp_path / "packed").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        (sample,) = read_inputs(["-"], ReadOptions(), ReadStats())
    assert isinstance(sample, Sample)
    assert sample.text == "hello"


def test_stdin_that_cannot_be_read_is_a_rejected_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Broken()))
    (rejected,) = read_inputs(["-"], ReadOptions(), ReadStats())
    assert isinstance(rejected, Rejected)
    assert (rejected.source, rejected.reason) == ("<stdin>", "unreadable")
