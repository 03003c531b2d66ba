"""Shards as schedulers run them merge to the run that was not cut: a Slurm-shaped array of real
processes, by xargs; and losses of a real model, to rule 11."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from helpers.program import ROOT, in_process

COUNTS = ("n_sequences", "n_rejected", "n_tokens", "n_scored", "n_bytes", "n_scored_bytes", "flags")
ARRAY = """
score() {{ SLURM_ARRAY_TASK_ID=$1 {stub} score rows.parquet --model demo --no-text \
--shard auto/3 -o shards/$1.jsonl --resume; }}
export -f score
# Task 1 is lost at first: `--missing` names it, and the array is submitted again for it.
printf '%s\\n' 0 2 | xargs -P 2 -I{{}} bash -c 'score {{}}'
{stub} merge --missing shards/*.jsonl | tee missing | xargs -I{{}} bash -c 'score {{}}'
{stub} merge shards/*.jsonl -o merged.jsonl && {stub} score rows.parquet -m demo --no-text --jsonl
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a Parquet file of 40 rows, three of which have an id that came before."""
    words = ["return", "a", "list", "of", "the", "names", "in", "the", "file"]
    texts = [" ".join(words[n % 5 : n % 5 + 1 + n % 4]) for n in range(40)]
    table = pyarrow.table({"id": [f"r{n % 37}" for n in range(40)], "text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=7)
    (tmp_path / "shards").mkdir()
    return tmp_path


def _records(lines: str) -> list[Any]:
    return [json.loads(line) for line in lines.splitlines()]


def _same(records: list[Any], others: list[Any], tolerance: float) -> None:
    (run, *rows, totals), (other_run, *other_rows, other_totals) = records, others
    assert run["weights_sha256"] == other_run["weights_sha256"]
    for row, other in zip(rows, other_rows, strict=True):
        for name in ("id", "source", "line", "n_tokens", "n_scored", "flags"):
            assert row[name] == other[name]
        losses = [np.array(each["token_losses"], dtype=float) for each in (row, other)]
        np.testing.assert_allclose(*losses, rtol=0, atol=tolerance)
    assert {k: totals[k] for k in COUNTS} == {k: other_totals[k] for k in COUNTS}
    assert totals["total_loss"] == pytest.approx(other_totals["total_loss"], rel=1e-6)
    assert sum("duplicate_id" in row["flags"] for row in rows) == 3


@pytest.mark.skipif(None in map(shutil.which, ("bash", "xargs")), reason="no bash or xargs")
def test_an_array_that_lost_a_task_merges_to_the_plain_run(folder: Path) -> None:
    stub = f"{sys.executable} {ROOT / 'benchmarks' / 'stub_engine.py'}"
    done = subprocess.run(
        ["bash", "-c", ARRAY.format(stub=stub)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "missing").read_text() == "1\n"
    _same(_records(done.stdout), _records((folder / "merged.jsonl").read_text()), 0)


def test_losses_of_shards_are_those_of_the_whole_to_rule_11(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    score = ["score", "rows.parquet", "--model", "demo", "--no-text"]
    plain = in_process(*score, "--jsonl").stdout
    names = [f"shards/{n}.jsonl" for n in range(3)]
    for n, name in enumerate(names):
        assert in_process(*score, "--shard", f"{n}/3", "-o", name).exit_code == 0
    _same(_records(plain), _records(in_process("merge", *names).stdout), 1e-4)
