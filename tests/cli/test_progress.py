"""What is said while a run goes on, and at its end."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import Progress, TaskID

from helpers.program import ROOT, document, in_process
from seqloss_cli import Sample
from seqloss_cli.cli.progress import ProgressBar


def test_progress_moves_within_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of 100 bytes; half of the first block's targets is done."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    clock = itertools.count(0, 10)
    monkeypatch.setattr("seqloss_cli.cli.progress.time.monotonic", lambda: next(clock))
    shown, totals = list[float](), list[float]()
    monkeypatch.setattr(
        "rich.progress.Progress.update", lambda bar, task, **new: shown.append(new["completed"])
    )
    add_task = Progress.add_task

    def added(bar: Progress, name: str, total: float) -> TaskID:
        totals.append(total)
        return add_task(bar, name, total=total)

    monkeypatch.setattr("rich.progress.Progress.add_task", added)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"x" * 100)
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    last = Sample(names[1], names[1], text="x", end=100)
    with ProgressBar(names) as bar:
        bar.on_progress(50, 0.5, last)
        bar.on_input(last)
        bar.on_progress(50, 1.0, last)
    assert (totals, shown) == ([200], [100, 200])


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


def test_the_process_ends_without_a_search_for_garbage() -> None:
    """Nothing that torch made is walked when the interpreter ends."""
    code = """
import atexit, gc, sys
from seqloss_cli.cli.main import main
atexit.register(lambda: print(gc.get_freeze_count() > 1000))
sys.argv = ["seqloss", "--version"]
main()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "True"
