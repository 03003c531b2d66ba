"""Many short rows on the built-in model: what is around the forward, memory, and growth of time."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import goals
import numpy as np
from figures import Figure, Found, Times, table
from settings import ROOT, Settings
from sides import Watch, load_scorer
from workload import cache, jsonl

from seqloss_cli.cli.inputs import Inputs
from seqloss_cli.cli.run import Command
from seqloss_cli.cli.settings import OutputPlan
from seqloss_cli.core.backend import Requested, TokenScores
from seqloss_cli.core.policies import BatchPolicy
from seqloss_cli.display.terminal.writer import TableWriter
from seqloss_cli.inputs.reading import ReadOptions, ReadStats, read_inputs
from seqloss_cli.results.formats import FORMATS
from seqloss_cli.results.schema.scores import score_rows
from seqloss_cli.scoring.tasks import score_task

MB = 1e6


# -- around the forward ------------------------------------------------------------------------


def run_around(settings: Settings) -> Found:
    """Reading, tokenizing, planning, scoring and writing, against the engine alone."""
    path, out = jsonl(settings.around_rows), cache() / "around-out.jsonl"
    scorer = load_scorer("demo", "float32", batches=BatchPolicy(tokens=4096, prefetch=True))

    def whole() -> None:
        _score_file(scorer, path, out)

    def bare() -> None:
        for batch in batches:
            scorer.backend.score(batch, Requested())

    with Watch(scorer) as watch:
        whole()
    batches = watch.batches
    times = Times()
    for number in range(settings.rounds):
        times.round(number, {"whole": whole, "bare": bare})
    out.unlink()
    ratios = [w / b for w, b in zip(times["whole"], times["bare"], strict=True)]
    medians = [statistics.median(times[name]) for name in ("whole", "bare")]
    return Found(
        [
            Figure(
                "around",
                f"built-in model, {settings.around_rows} rows of about 20 tokens: whole run / "
                "engine alone",
                statistics.median(ratios),
                goals.AROUND,
                at_most=True,
                ratios=ratios,
                note=f"medians {medians[0]:.1f} s and {medians[1]:.1f} s; eager; "
                f"{len(batches)} batches of {watch.mean_tokens} tokens; written without texts and "
                "tokens" + _proxy(settings.around_rows, 100_000),
            )
        ]
    )


def _score_file(scorer: Any, path: Path, out: Path) -> None:
    """As `seqloss score FILE --jsonl --no-tokens --no-text -o OUT` does it once it is loaded."""
    stats = ReadStats()
    choice = OutputPlan(format=FORMATS["jsonl"], path=out, force=True, text=False, tokens=False)
    names = [str(path)]
    inputs = Inputs(read_inputs(names, ReadOptions(), stats), stats, names, None)
    command = Command(score_task(scorer, "score", Requested()), score_rows, TableWriter)
    command.run(inputs, choice, None)


# -- a corpus through the program --------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A whole run of the program."""

    seconds: float
    peak: float
    """Bytes at the most."""
    early: float | None
    """Of these, by the time that the fewer of the rows that are compared were written."""


def run_corpus(settings: Settings) -> Found:
    """Whole processes: peak memory and time as the corpus grows."""
    counts = settings.corpus_rows
    few, many = counts[min(1, len(counts) - 2)], counts[-1]
    start_up = min(_process(16).seconds for _ in range(2))
    measured = {n: _fastest(n, 2 if n <= few else 1, few) for n in counts}
    each = {n: (process.seconds - start_up) / n for n, process in measured.items()}
    found = Found(_time_figures(each), tables=[_table(measured, each, start_up)])
    found.figures.append(_growth(measured[many], few, many))
    fed = {n: _tokens_fed(n) for n in counts}
    off = max(abs(tokens * counts[0] - fed[counts[0]] * n) for n, tokens in fed.items())
    name = "forwarded tokens, off a straight line by"
    note = ", ".join(f"{tokens} of {n} rows" for n, tokens in fed.items())
    found.figures.append(Figure("corpus", name, off, 0.0, True, unit="tokens", note=note))
    return found


def _growth(last: Process, few: int, many: int) -> Figure:
    name = f"peak memory, from {few} to {many} rows"
    goal = goals.CORPUS_GROWTH_MB if many >= 1_000_000 else None
    note = "" if goal else "; the goal, 50 MB, is for a million rows: `--full`"
    if last.early is None:
        return Figure("corpus", name, None, goal, note="it ended before that could be seen" + note)
    note = (
        f"of one process, {last.early / MB:.0f} MB by the time that {few} rows were written: the "
        f"peak of the same rows differs between processes, by where the C library finds room{note}"
    )
    return Figure("corpus", name, (last.peak - last.early) / MB, goal, True, unit="MB", note=note)


def _fastest(n_rows: int, repeats: int, early_rows: int) -> Process:
    runs = [_process(n_rows, early_rows) for _ in range(repeats)]
    return min(runs, key=lambda process: process.seconds)


def _time_figures(each: dict[int, float]) -> list[Figure]:
    counts = list(each)
    return [
        Figure(
            "corpus",
            f"time per row at {more} rows / at {fewer}, start-up taken off",
            each[more] / each[fewer],
            goals.ROW_GROWTH if fewer == counts[1] else None,
            at_most=True,
            ratios=[each[more] / each[fewer]],
            note="" if fewer == counts[1] else "the goal is for 100 times to 10 times",
        )
        for fewer, more in pairwise(counts[1:])  # of so few as the first the start is nearly all
    ]


def _proxy(rows: int, goal: int) -> str:
    return "" if rows == goal else f"; the goal is for {goal} rows: `--full`"


def _table(measured: dict[int, Process], each: dict[int, float], base: float) -> Any:
    rows = [
        [
            n,
            f"{process.seconds:.1f}",
            f"{1e6 * each[n]:.0f}",
            f"{1e6 * process.seconds / n:.0f}",
            f"{process.peak / MB:.0f}",
        ]
        for n, process in measured.items()
    ]
    columns = ["rows", "seconds", "µs a row", "µs a row, start-up counted", "peak, MB"]
    return table("corpus", f"`seqloss score` of short rows; start-up {base:.1f} s", columns, rows)


def _process(n_rows: int, early_rows: int = 0) -> Process:
    """The program on a file of so many rows."""
    path, out = jsonl(n_rows), cache() / "corpus-out.jsonl"
    command = [sys.executable, "-m", "seqloss_cli", "score", str(path), "--model", "demo"]
    command += ["--jsonl", "--no-tokens", "--no-text", "--threads", "2", "-o", str(out), "--force"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    early = _peak_when_written(process.pid, out, early_rows) if n_rows > early_rows > 0 else None
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    out.unlink()
    return Process(seconds, 1024.0 * used.ru_maxrss, early)


def _peak_when_written(pid: int, out: Path, n_rows: int) -> float | None:
    """Bytes at the most of a process, once it has written so many rows; None if it is gone."""
    partial = Path(f"{out}.partial")
    n_lines = n_bytes = 0
    while n_lines <= n_rows:  # the first line is the run's
        time.sleep(0.2)
        status = Path(f"/proc/{pid}/status").read_text()
        if "VmHWM" not in status:  # it ended, and waits for us
            return None
        if partial.exists():
            with partial.open("rb") as file:
                file.seek(n_bytes)
                added = file.read()
            n_lines, n_bytes = n_lines + added.count(b"\n"), n_bytes + len(added)
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024.0 * int(line.split()[1])


def _tokens_fed(n_rows: int) -> int:
    """Tokens that are handed to the engine, which is not asked to compute."""
    scorer = load_scorer("demo", "float32", batches=BatchPolicy(tokens=4096))
    fed = 0

    def score(batch: Any, requested: Requested) -> TokenScores:
        nonlocal fed
        fed += batch.n_fed
        return TokenScores(np.ones(len(batch.targets)))

    scorer.backend.score = score  # type: ignore[method-assign,assignment]
    for _ in scorer.score(read_inputs([str(jsonl(n_rows))], ReadOptions(), ReadStats())):
        pass
    return fed
