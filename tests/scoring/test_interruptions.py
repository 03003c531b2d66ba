"""What ends a run early: threads that fail or die, Ctrl-C, readers that go away.

It ends soon, says why in a line, and leaves whole results and no thread behind.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.builders import llama
from helpers.oracles import CONTEXT
from helpers.program import ROOT
from helpers.runs import Narrow, assert_all_free, scores_of
from seqloss_cli import RunError, Sample, SequenceScore
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.opening import MultiDeviceBackend
from seqloss_cli.cli.main import app
from seqloss_cli.core.backend import Requested
from seqloss_cli.scoring import prefetch
from seqloss_cli.tokenization.tokenizer import Tokenization

HANGS = 60.0
"""Seconds after which a thread is taken for one that never ends."""


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend(llama(), CONTEXT)


# -- the thread that reads and tokenizes ------------------------------------------------------


def alive() -> list[str]:
    """Our threads that do not end."""
    ours = [each for each in threading.enumerate() if each.name.startswith("seqloss")]
    for each in ours:
        each.join(HANGS)
    return [each.name for each in ours if each.is_alive()]


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Whatever happens inside, no thread of ours is there afterwards."""
    yield
    assert alive() == []


ERRORS = [ValueError("odd"), RunError("no disk"), KeyboardInterrupt(), SystemExit(4), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["reading", "making"])
@pytest.mark.parametrize("n_before", [0, 1, 5])
def test_an_error_on_the_thread_is_raised_in_its_place(
    error: BaseException, where: str, n_before: int
) -> None:
    def items() -> Iterator[int]:
        yield from range(n_before)
        if where == "reading":
            raise error
        yield from itertools.count(n_before)

    def make(item: int) -> int:
        if item >= n_before:
            raise error
        return -item

    found = []
    with no_thread_left(), pytest.raises(type(error)) as raised:
        found += [*_taken(prefetch.prefetch(items(), make), found)]
    assert raised.value is error
    assert found == [-n for n in range(n_before)]


def _taken(items: Iterator[Any], into: list[Any]) -> list[Any]:
    """All of them, put into a list as they come."""
    for item in items:
        into.append(item)
    return []


@pytest.mark.parametrize("error", ERRORS[:3], ids=lambda error: type(error).__name__)
def test_an_error_of_the_tokenizer_ends_the_scoring(
    backend: TorchBackend, error: BaseException
) -> None:
    def tokenize(samples: Any) -> Any:
        raise error

    with no_thread_left(), pytest.raises(type(error)):
        list(scores_of(backend, tokenize=tokenize))


@pytest.mark.parametrize("n_before", [0, 2])
def test_a_thread_that_dies_without_a_word(
    backend: TorchBackend, monkeypatch: pytest.MonkeyPatch, n_before: int
) -> None:
    def run(worker: Any) -> None:
        for item in itertools.islice(worker.items, n_before):
            worker.hand_over([worker.make(item)])

    monkeypatch.setattr(prefetch.PrefetchThread, "run", run)
    found: list[Any] = []
    with no_thread_left(), pytest.raises(RunError, match="died"):
        _taken(scores_of(backend), found)
    assert [outcome.sequence.sample.id for outcome in found] == ["0", "1", "2"][
        : 3 * (n_before > 0)
    ]


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (RunError("no disk"), 1, "error: no disk"),
        (ValueError("odd"), 70, "bug: ValueError: odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (None, 1, "died"),
    ],
)
def test_what_the_program_says_of_its_thread(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | None,
    exit_code: int,
    said: str,
) -> None:
    def tokenize(*_: Any) -> Any:
        assert error is not None
        raise error

    (tmp_path / "rows.txt").write_text("a text")
    monkeypatch.setattr(Tokenization, "tokenize", tokenize)
    if error is None:
        monkeypatch.setattr(prefetch.PrefetchThread, "run", lambda worker: None)
    monkeypatch.setattr("seqloss_cli.backends.torch.backend.prefetch_helps", lambda device: True)
    result = CliRunner().invoke(app, ["score", str(tmp_path / "rows.txt"), "--model", "demo"])
    assert result.exit_code == exit_code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert alive() == []


def counted(n: int, taken: list[int]) -> Iterator[int]:
    for number in range(n):
        taken.append(number)
        yield number


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_made_than_may_wait(most: int) -> None:
    """Beside those that wait, one is in the maker's hands."""
    taken: list[int] = []
    results = prefetch.prefetch(counted(100_000, taken), abs, most)
    for n_used in range(1, 8):
        assert next(results) == n_used - 1
        time.sleep(0.03)
        assert n_used <= len(taken) <= n_used + most + 1
    assert len(taken) == n_used + most + 1, "it does work ahead"
    with no_thread_left():
        results.close()  # type: ignore[attr-defined]
    assert len(taken) <= n_used + most + 2


def test_a_consumer_that_stops_ends_the_thread(backend: TorchBackend) -> None:
    """Blocks of 1, 2, 4 and 8 rows: two are used, one waits, one is made, and no more than one is
    taken while the thread ends."""
    taken: list[int] = []
    samples = (Sample(str(n), "test", text="some text") for n in counted(100_000, taken))
    outcomes = scores_of(backend, samples)
    found = [next(outcomes) for _ in range(3)]
    assert all(isinstance(outcome, SequenceScore) for outcome in found)
    with no_thread_left():
        outcomes.close()  # type: ignore[attr-defined]
    assert len(taken) <= 1 + 2 + 4 + 8 + 16


def test_ctrl_c_while_a_fleet_is_at_work(backend: TorchBackend) -> None:
    """Of the batches of a block only those that were handed out already are finished."""

    class Slow(Narrow):
        def score(self, batch: Any, requested: Requested) -> Any:
            time.sleep(0.05)
            begun.append(len(batch.lengths))
            return super().score(batch, requested)

    def stop(n_tokens: int, share: float, last: Any, n_inputs: int) -> None:
        if len(last.id) > 1:  # a later, larger block
            raise KeyboardInterrupt

    begun: list[int] = []
    other = TorchBackend(copy.deepcopy(backend.model), CONTEXT)
    members: list[Narrow] = [Slow(backend, 10**9), Slow(other, 10**9)]
    fleet = MultiDeviceBackend(members)  # type: ignore[arg-type]
    samples = (Sample(str(n), "test", text="some text") for n in range(2000))
    with no_thread_left(), pytest.raises(KeyboardInterrupt):
        list(scores_of(fleet, samples, tokens=1, on_progress=stop))
    assert len(begun) <= 1 + 2 + 4 + 2 * 2 + 2
    assert_all_free(fleet, members)


# -- the program as a process -----------------------------------------------------------------

ARGUMENTS = ["score", "-", "--lines", "--model", "demo", "--device", "cpu"]
SLOW = """
import pathlib, sys
from seqloss_cli.cli.main import main
from seqloss_cli.backends.torch.forward import ModelForward
whole = ModelForward.score
def score(runner, batch, wants):
    if len(batch.lengths) == 4:
        pathlib.Path("slow").touch()
        while True:
            whole(runner, batch, wants)
    return whole(runner, batch, wants)
ModelForward.score = score
main()
"""
"""The program, but that a batch of four rows never ends."""


@contextmanager
def program(folder: Path, *flags: str, code: str | None = None) -> Iterator[Any]:
    """A process with pipes to and from it; killed if it is still there."""
    start = ["-c", code] if code else ["-m", "seqloss_cli"]
    process = subprocess.Popen(
        [sys.executable, *start, *ARGUMENTS, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr").open("wb"),
        bufsize=0,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()


def next_line(process: Any, seconds: float = 60) -> Any:
    """A line of JSON that the process writes in time."""
    raw, end = b"", time.monotonic() + seconds
    while not raw.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, end - time.monotonic()))
        assert ready, f"nothing came in {seconds} s after {raw!r}"
        read = os.read(process.stdout.fileno(), 1)
        assert read, "the end came before the end of a line"
        raw += read
    return json.loads(raw)


def test_the_first_result_comes_before_the_second_line_and_ctrl_c_ends_an_idle_run(
    tmp_path: Path,
) -> None:
    with program(tmp_path, "--jsonl") as process:
        assert next_line(process)["type"] == "run"
        for lines in (["a"], ["a second line", "b"]):  # as many as are read together at first
            for text in lines:
                process.stdin.write(text.encode() + b"\n")
            found = [next_line(process, 30) for _ in lines]
            assert [row["text"] for row in found] == lines
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stdout.read() == b""
    assert (tmp_path / "stderr").read_text() == "seqloss: interrupted\n"


def test_ctrl_c_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """Blocks of one and of two rows are finished, that of four is not."""
    with program(tmp_path, "-o", "out.jsonl", code=SLOW) as process:
        process.stdin.write(b"a row of text\n" * 40)
        end = time.monotonic() + 60
        while not (tmp_path / "slow").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    kept = (tmp_path / "out.jsonl.partial").read_bytes()
    assert kept.endswith(b"\n")
    rows = [json.loads(line) for line in kept.splitlines()]
    assert [row["type"] for row in rows] == ["run", "sequence", "sequence", "sequence"]
    assert not (tmp_path / "out.jsonl").exists()
    said = (tmp_path / "stderr").read_text().splitlines()
    (message,) = [line for line in said if line.startswith("seqloss: ")]
    assert message == "seqloss: interrupted; what was finished is in out.jsonl.partial"


def test_a_reader_that_goes_away_while_stdin_is_open(tmp_path: Path) -> None:
    with program(tmp_path, "--jsonl") as process:
        assert next_line(process)["type"] == "run"
        process.stdin.write(b"the first line\n")
        assert next_line(process)["text"] == "the first line"
        process.stdout.close()
        process.stdin.write(b"a row of text\n" * 2000)
        assert process.wait(timeout=20) == 0
    assert (tmp_path / "stderr").read_text() == ""
