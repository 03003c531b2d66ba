"""What is said while a run goes on, and at its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.program import ROOT, document, in_process
from seqloss_cli import Sample
from seqloss_cli.cli.progress import ProgressBar


def test_progress_moves_within_a_block(tmp_path: Path) -> None:
    """Two files of 100 bytes; half of the first block's targets is done."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"x" * 100)
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    bar = ProgressBar(names)
    bar._console._force_terminal = True
    bar._started -= 10
    last = Sample(names[1], names[1], text="x", end=100)
    bar.on_progress(50, 0.5, last)
    assert bar._progress.tasks[0].total == 200
    assert bar._progress.tasks[0].completed == 100
    bar.on_input(last)
    bar.on_progress(50, 1.0, last)
    assert bar._progress.tasks[0].completed == 200
    bar.stop()


def test_help_into_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m seqloss_cli score --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        check=True,
    )
    assert done.stdout.split()[-1] == "0"
    assert done.stderr == ""


def test_a_corpus_of_rejected_rows_says_that_nothing_was_scored(
    tmp_path: Path,
) -> None:
    done = in_process("score", "--model", "demo", tmp_path / "none.txt", "--json")
    totals = document(done, exit_code=3)["totals"]
    assert totals["flags"] == {"nothing_scored": True}
    assert totals["total_loss"] is None
