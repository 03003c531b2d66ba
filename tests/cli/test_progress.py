"""What is said while a run goes on, and at its end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.program import ROOT, document, in_process
from seqloss_cli import Sample
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.progress import (
    STATUS,
    Pace,
    ProgressBar,
    StatusLine,
    Wait,
    first_sign,
    waiting,
)
from seqloss_cli.cli.run import Command, TeeWriter


class Terminal(StringIO):
    """A stream that says it is a terminal, and what stands on it."""

    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        lines, place = [""], 0
        for part in re.findall(r"\x1b\[[?\d]*[A-Za-z]|.", self.getvalue(), re.DOTALL):
            if part == "\n":
                lines.append("")
            if part in "\r\n":
                place = 0
            elif part == "\x1b[2K":
                lines[-1] = ""
            elif not part.startswith("\x1b"):
                lines[-1] = lines[-1][:place].ljust(place) + part + lines[-1][place + 1 :]
                place += 1
        return lines


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    # Drawn by calls alone: nothing depends on when a thread runs.
    monkeypatch.setattr(StatusLine, "_tick", lambda line: None)
    # Not sys itself, whose streams pytest takes again when a test begins.
    fake = SimpleNamespace(stderr=made, stdout=sys.stdout, stdin=None)
    monkeypatch.setattr("seqloss_cli.cli.progress.sys", fake)
    monkeypatch.setattr(
        "seqloss_cli.cli.failures.typer.echo", lambda text, err: print(text, file=made)
    )
    return made


# -- the line -------------------------------------------------------------------------------------


def test_the_line_goes_while_a_message_is_written_and_at_the_end(terminal: Terminal) -> None:
    STATUS.show(lambda width: "half of it")
    say("a warning")
    assert terminal.shown() == ["seqloss: a warning", "half of it"]
    STATUS.clear()
    say("done")
    assert terminal.shown() == ["seqloss: a warning", "seqloss: done", ""]


@pytest.mark.parametrize("name", ["dumb", ""])
def test_what_cannot_draw_a_line_anew_gets_none(
    name: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", name)
    with waiting("loading", "demo"), ProgressBar([]):
        say("a warning")
    assert terminal.getvalue() == "seqloss: a warning\n"


def test_a_pipe_gets_none(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("loading", "demo"), ProgressBar([]):
        say("a warning")
    assert capsys.readouterr().err == "seqloss: a warning\n"


def test_results_on_the_same_terminal_take_the_place_of_the_bar(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqloss_cli.cli.progress.sys.stdout", terminal)
    with ProgressBar([], 5, prints=True) as bar:
        with bar.hidden():
            terminal.write("a table\n")
        bar.on_input(Sample("a", "a"))
        with bar.hidden():
            terminal.write("another\n")
        assert terminal.shown()[:2] == ["a table", "another"]
        assert "1 of 5 inputs" in terminal.shown()[2]
    assert terminal.shown() == ["a table", "another", ""]


@pytest.mark.parametrize("what", [(), ("--view", "heat"), ("--jsonl",)])
def test_no_writer_writes_across_the_bar(
    what: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line, results, rejected inputs and totals: the bar is away at each of them."""
    hidden, seen = [0], list[str]()

    @contextmanager
    def away(bar: ProgressBar) -> Iterator[None]:
        hidden[0] += 1
        yield
        hidden[0] -= 1

    class Watched(TeeWriter[Any, Any]):
        def _see(self, name: str, *words: Any) -> None:
            assert hidden[0], name
            seen.append(name)
            getattr(super(), name)(*words)

        def begin(self, *words: Any) -> None:
            self._see("begin", *words)

        def sequence(self, *words: Any) -> None:
            self._see("sequence", *words)

        def reject(self, *words: Any) -> None:
            self._see("reject", *words)

        def end(self, *words: Any) -> None:
            self._see("end", *words)

    def stop(bar: ProgressBar) -> None:
        hidden[0] += 1  # until the run is over

    own = Command._writer
    monkeypatch.setattr(Command, "_writer", lambda *words: Watched(own(*words)))
    monkeypatch.setattr(ProgressBar, "hidden", away)
    monkeypatch.setattr(ProgressBar, "stop", stop)
    done = in_process("score", "-m", "demo", bad_rows(tmp_path / "rows.jsonl", 1, 0), *what)
    assert done.exit_code == 3, done.stderr
    assert seen == ["begin", "sequence", "reject", "sequence", "end"]


def test_nothing_is_drawn_where_inputs_are_typed(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqloss_cli.cli.progress.sys.stdin", terminal)
    with first_sign({"files": ["-"]}), ProgressBar(["-"]):
        assert terminal.getvalue() == ""
    with first_sign({"files": ["a.txt"]}), ProgressBar(["a.txt"]):
        assert terminal.getvalue() != ""


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"model": "x/y", "files": None}, "loading x/y"),
        ({"model": None, "text": "a"}, "loading demo"),
        ({"results": ["a.jsonl", "b.jsonl"]}, "reading a.jsonl"),
        ({"results": [], "models": ["m", "n"], "data": ["d"]}, "loading m"),
        ({"checkpoints": ["c", "d"]}, "loading c"),
    ],
)
def test_the_first_sign_names_what_is_loaded(
    values: dict[str, Any], shown: str, terminal: Terminal
) -> None:
    with first_sign(values):
        assert shown in terminal.shown()[-1]
    assert terminal.shown() == [""]


def test_the_first_sign_comes_before_anything_heavy_is_imported() -> None:
    code = """
import sys
import seqloss_cli.cli.options as options
def sign(values):
    print(*sorted({"torch", "transformers", "numpy", "rich", "tokenizers"} & set(sys.modules)))
    sys.exit()
options.first_sign = sign
sys.argv = ["seqloss", "score", "--text", "a"]
from seqloss_cli.cli.main import main
main()
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"


@given(st.text(max_size=200), st.integers(40, 240), st.integers(0, 10**6))
def test_a_name_that_is_too_long_keeps_its_end(name: str, width: int, n: int) -> None:
    wait = Wait("loading", name + "/end")
    wait.n_done = n
    line = wait.line(width)
    assert len(line) <= width
    assert line.isprintable()
    assert "/end" in line
    assert f"{n:,} rows" in line or not n


# -- the bar --------------------------------------------------------------------------------------


def test_progress_moves_within_a_block(tmp_path: Path) -> None:
    """Two files of 100 bytes; half of the first block's targets is done, then all."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"x" * 100)
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    first, last = (Sample(name, name, text="x", end=100) for name in names)
    bar = ProgressBar(names)
    assert bar.done == 0
    bar.on_progress(50, 0.5, last, 2)
    assert bar.done == 0.5
    assert "1 inputs" in bar.line(80)
    bar.on_progress(50, 1.0, last, 2)
    assert "2 inputs" in bar.line(80)
    bar.on_input(first)
    bar.on_input(last)
    assert bar.done == 1
    assert "2 inputs" in bar.line(80)


def test_progress_of_one_text_is_that_of_its_tokens() -> None:
    """A text of unknown length, from a pipe or a flag, moves by its windows."""
    bar = ProgressBar([], 1)
    bar.on_progress(3000, 0.25, Sample("<text>", "<text>", text="x"), 1)
    assert bar.done == 0.25
    assert "3,000 tokens" in bar.line(80)


def test_a_limit_is_a_number_of_inputs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 1000)
    bar = ProgressBar([str(path)], 4)
    bar.on_input(Sample("a", str(path), text="x", end=10))
    bar.on_input(Sample("b", str(path), text="x", end=20), rejected=True)
    assert bar.done == 0.5
    assert "2 of 4 inputs, 1 rejected" in bar.line(80)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the only entry, for all that is in the module."""
    seconds = [1000.0]
    fake = SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr("seqloss_cli.cli.progress.time", fake)
    return seconds


def test_time_left_is_not_that_of_rows_of_an_earlier_run(clock: list[float]) -> None:
    bar, x = ProgressBar([], 100), Sample("a", "a", text="x")
    for _ in range(90):
        bar.on_kept(x)
    for _ in range(5):
        clock[0] += 4
        bar.on_progress(100, 1.0, x, 1)
        bar.on_input(x)
    assert "25 tokens/s" in bar.line(80)
    assert "0:00:20 left" in bar.line(80)


def test_inputs_count_with_the_share_of_their_block(clock: list[float]) -> None:
    """Of 600 inputs in blocks of 1, 2, 4, … the count grows at each step, as the share does."""
    bar, x, n_before, seen = ProgressBar([], 600), Sample("a", "a", text="x"), 0, list[int]()
    for n in (1, 2, 4, 8, 585):
        for step in range(1, 10):
            clock[0] += 0.5
            bar.on_progress(n, step / 9, x, n)
            seen.append(int(bar.n_done))
            assert n_before <= bar.n_done <= n_before + n
            assert bar.done == bar.n_done / 600
        for _ in range(n):
            bar.on_input(x)
        n_before += n
        assert bar.n_done == n_before
    assert seen == sorted(seen)
    assert len(set(seen[-9:])) == 9


def test_a_rate_is_that_of_the_last_steps(clock: list[float]) -> None:
    """A slow first step is forgotten, and nothing decays while a step is under way."""
    bar, x = ProgressBar([], 1), Sample("a", "a", text="x")
    clock[0] += 30
    bar.on_progress(10, 0.001, x, 1)
    assert "left" not in bar.line(80), "one step tells nothing of the others"
    for step in range(1, 101):
        clock[0] += 1
        bar.on_progress(500, 0.001 + 0.009 * step, x, 1)
        assert ("left" in bar.line(80)) == (step >= 3)
        if step >= 3:
            assert " 500 tokens/s" in bar.line(80)
    assert "0:00:11 left" in bar.line(80)
    clock[0] += 5
    assert " 500 tokens/s" in bar.line(80)
    assert "0:00:06 left" in bar.line(80)
    clock[0] += 600
    assert "0:00:00 left" in bar.line(80)


def test_a_pace_holds_few_marks(clock: list[float]) -> None:
    pace = Pace()
    for n in range(20_000):
        clock[0] += 0.001
        pace.add(n, n / 20_000)
    assert len(pace._marks) < 200
    assert pace.rate == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize("seconds", [59, 200])
def test_pipes_get_a_plain_line_a_minute(
    seconds: int, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    x = Sample("a", "a", text="x")
    with first_sign({"text": "a"}), ProgressBar([], 256) as bar:
        for _ in range(seconds):
            clock[0] += 1
            bar.on_progress(7, 1.0, x, 1)
            bar.on_input(x)
    said = capsys.readouterr().err.splitlines()
    lines = [f"seqloss: {n} of 256 inputs, {100 * n // 256} %, 7 tokens/s" for n in (60, 120, 180)]
    left = [f"0:0{m}:{s} left" for m, s in ((3, 16), (2, 16), (1, 16))]
    assert said == ([f"{a}, {b}" for a, b in zip(lines, left, strict=True)] if seconds > 59 else [])


def test_a_plain_line_of_an_unknown_length_has_its_time(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    x = Sample("a", "a", text="x")
    with first_sign({"text": "a"}), ProgressBar([], of="model 1 of 2") as bar:
        clock[0] += 61
        bar.on_input(x, rejected=True)
    said = capsys.readouterr().err
    assert said == "seqloss: model 1 of 2, 1 inputs, 1 rejected, 0:01:01\n"


def test_terminals_get_no_plain_lines(terminal: Terminal, clock: list[float]) -> None:
    with first_sign({"text": "a"}), ProgressBar([], 10) as bar:
        clock[0] += 100
        bar.on_progress(7, 1.0, Sample("a", "a", text="x"), 1)
    assert terminal.shown() == [""]


@given(
    st.integers(10, 240),
    st.integers(0, 10**8),
    st.integers(0, 10**10),
    st.none() | st.integers(1, 10**8),
    st.sampled_from(["", "model 12 of 20"]),
)
def test_a_bar_fits_its_terminal(
    width: int, n_inputs: int, n_tokens: int, expected: int | None, of: str
) -> None:
    bar = ProgressBar([], expected, of)
    bar._n_inputs, bar._n_tokens, bar._n_rejected = n_inputs, n_tokens, n_inputs // 2
    bar._pace.add(n_tokens, bar.done or 0.0)
    line = bar.line(width)
    if expected is not None:
        assert len(line) <= width
        assert f"{int(100 * (bar.done or 0))} %" in line
    if width >= 120:
        assert "tokens" in line or not n_tokens


def test_a_run_shows_what_it_loads_and_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list[str]()
    monkeypatch.setattr("seqloss_cli.cli.settings.draws", lambda: True)
    monkeypatch.setattr(StatusLine, "show", lambda self, line: lines.append(line(80)))
    left = list[tuple[int, int]]()
    monkeypatch.setattr(
        ProgressBar, "stop", lambda bar: left.append((bar._n_inputs, bar._n_rejected))
    )
    rows = ['{"text": "a b"}', '{"no": 1}', '{"text": "c d e"}']
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    done = in_process("score", "-m", "demo", path, "-o", tmp_path / "a.jsonl")
    assert re.search(r"seqloss: loaded demo in \d+\.\d s\n", done.stderr)
    assert [line[2:14] for line in lines[:2]] == ["loading demo"] * 2
    assert "0 % 0 inputs" in lines[-1]
    assert left[0] == (3, 1)


# -- many of a kind, and the answer at the end ----------------------------------------------------


def bad_rows(path: Path, n_bad: int, n_without: int) -> Path:
    rows = ['{"text": "a b"}', *["{"] * n_bad, *['{"no": 1}'] * n_without, '{"text": "c"}']
    path.write_text("\n".join(rows))
    return path


def test_the_first_five_of_each_reason_are_named_then_counted(tmp_path: Path) -> None:
    rows, out = bad_rows(tmp_path / "rows.jsonl", 9, 6), tmp_path / "out.jsonl"
    done = in_process("score", "-m", "demo", rows, "-o", out)
    said = done.stderr.splitlines()
    named = [re.search(r":(\d+): .*\((\w+)\)", line) for line in said]
    assert [(m[2], int(m[1])) for m in named if m] == [
        *(("bad_json", n) for n in range(2, 7)),
        *(("missing_field", n) for n in range(11, 16)),
    ]
    assert said[10:12] == [
        f"seqloss: rejected 4 more (bad_json): 9 in all; {out} names each",
        f"seqloss: rejected 1 more (missing_field): 6 in all; {out} names each",
    ]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(line["type"] == "rejected" for line in lines) == 15
    assert lines[-1]["n_rejected"] == 15
    assert lines[-1]["rejections"] == {"bad_json": 9, "missing_field": 6}
    read = document(in_process("summarize", out, "--json"))
    assert read["totals"]["rejections"] == {"bad_json": 9, "missing_field": 6}


@pytest.mark.parametrize("command", [("score",), ("compare", "-m", "demo", "-m", "demo", "--data")])
def test_rejections_stand_in_the_panel_by_reason(command: tuple[str, ...], tmp_path: Path) -> None:
    """`compare` scores two models, and says each thing once."""
    rows = bad_rows(tmp_path / "rows.jsonl", 7, 1)
    done = in_process(*command, rows, COLUMNS="100")
    assert done.exit_code == 3
    assert done.stderr.count("(bad_json)") == 6
    assert done.stderr.count("rejected 2 more (bad_json): 7 in all") == 1
    if command == ("score",):
        assert "2, rejected 8 (bad_json 7, missing_field 1)" in done.stdout
        assert "7 in all; --jsonl names each" in done.stderr


def test_totals_without_rejections_have_no_such_key(tmp_path: Path) -> None:
    totals = document(in_process("score", "-m", "demo", "--text", "a b", "--json"))["totals"]
    assert totals["n_rejected"] == 0
    assert "rejections" not in totals


def test_rows_that_cannot_be_read_back_are_named_five_times(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    in_process("score", "-m", "demo", "--text", "a b", "-o", path)
    run, row, _ = path.read_text().splitlines()
    path.write_text("\n".join([run, row, *['{"type": "what"}'] * 8]))
    said = in_process("summarize", path).stderr
    assert said.count("rejected ") == 6
    assert "rejected 3 more (bad_row): 8 in all\n" in said


ANSWERS = {
    "score -m demo samples/texts.jsonl -o a.jsonl": r"mean loss \d\.\d+ nats per token, "
    r"perplexity [\d,.]+, 44 tokens scored, in \d+\.\d s: a\.jsonl",
    "cond -m demo samples/pairs.jsonl --unit bits -o a.csv": r"mean loss \d\.\d+ bits per token, "
    r"perplexity .*, 35 tokens scored, in \d+\.\d s: a\.csv",
    "rank -m demo samples/choices.jsonl --separator _ -o a.json": r"acc \d\.\d+, acc_norm .* of "
    r"5 rows, in \d+\.\d s: a\.json",
    "diverge -m demo samples/text.txt --label-smoothing 0.1 -o a.json": r"mean KL \d\.\d+ nats "
    r"per token, same favourite \d\.\d+, 94 tokens scored, in \d+\.\d s: a\.json",
    "mask -m demo samples/pairs.jsonl -o a.json": r"35 of 52 tokens count, in \d+\.\d s: a\.json",
    "summarize r.jsonl -o a.json": r"mean loss .* nats per token, .*, \d+ tokens scored: a\.json",
    "compare r.jsonl s.jsonl -o a.txt": r"no difference shown: samples/checkpoints/step-600's loss "
    r"is lower than demo's by .* nats per token; .*: a\.txt",
    "plot r.jsonl -o a.svg": r"wrote a\.svg: histogram: demo",
}


@pytest.mark.parametrize("command", ANSWERS)
def test_a_run_into_a_file_ends_with_an_answer(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    if "r.jsonl" in command:
        in_process("score", "-m", "demo", "samples/texts.jsonl", "-o", "r.jsonl")
    if "s.jsonl" in command:
        model = "samples/checkpoints/step-600"
        in_process("score", "-m", model, "samples/texts.jsonl", "-o", "s.jsonl")
    done = in_process(*(word.replace("_", " ") for word in command.split()))
    assert re.fullmatch(f"seqloss: {ANSWERS[command]}", done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("name", ["s.jsonl", "s.json", "s.parquet"])
def test_a_file_of_totals_says_so_when_written_and_when_read(name: str, tmp_path: Path) -> None:
    rows, out = bad_rows(tmp_path / "rows.jsonl", 0, 0), tmp_path / name
    done = in_process("score", "-m", "demo", rows, "-o", out, "--summary")
    wrote = f"seqloss: wrote {out}: totals of 2 sequences, 0 rejected (--summary: no rows)"
    assert done.stderr.splitlines()[-2] == wrote
    for command in ("summarize", "report", "compare"):
        others = [out] if command != "compare" else [out, out]
        read = in_process(command, *others, *(("-o", "x.html") if command == "report" else ()))
        assert read.exit_code == 2, (command, read.stderr)
    read = in_process("summarize", out)
    assert read.exit_code == 2
    assert f"{out}: was written with --summary: it holds no rows" in read.stderr
    assert "rows_missing" not in read.stderr


def test_an_interrupted_summary_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    rows, out = bad_rows(tmp_path / "rows.jsonl", 0, 0), tmp_path / "s.jsonl"
    partial = Path(f"{out}.partial")
    run = ("score", "-m", "demo", rows, "-o", out)
    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "on_input", interrupt)
        done = in_process(*run, "--summary")
        assert done.exit_code == 130
        assert "interrupted; nothing is kept of it: --summary writes totals alone" in done.stderr
        assert not partial.exists()
        assert "what was finished is in" in in_process(*run).stderr
        assert partial.exists()
    # One that was killed stays: each message names what goes on from there.
    partial.write_text(partial.read_text().replace('"summary":false', '"summary":true'))
    said = in_process(*run, "--summary").stderr
    assert f"{partial} exists; --force writes over it" in said
    said = in_process(*run, "--resume").stderr
    assert "was written with --summary: it holds no rows to go on with; --force" in said
    assert "rows.summary" not in said
    assert in_process(*run, "--summary", "--force").exit_code == 0
    assert "it holds no rows to go on with; --force" in in_process(*run, "--resume").stderr


@pytest.mark.parametrize("command", ["score", "mask"])
def test_totals_of_a_run_that_strict_stopped_say_so(command: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"text": "a b"} if command == "score" else {"prompt": "a", "response": " b"}
    path.write_text(f"{json.dumps(good)}\n{{\n{json.dumps(good)}\n")
    title = "totals up to the first rejected input, where --strict stopped"
    stopped = in_process(command, "-m", "demo", path, "--strict", COLUMNS="80")
    assert title in stopped.stdout
    whole = in_process(command, "-m", "demo", path, COLUMNS="80")
    assert "─ totals ─" in whole.stdout
    assert title not in whole.stdout


def test_a_file_without_rows_is_said_to_have_none(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n{\n')
    in_process("score", "-m", "demo", tmp_path / "rows.jsonl", "-o", out)
    shown = in_process("summarize", out).stdout
    assert shown == "There are no rows to sum up: rejected 2 (empty 1, bad_json 1).\n"


def test_a_run_that_scored_nothing_says_so(tmp_path: Path) -> None:
    rows, out = bad_rows(tmp_path / "rows.jsonl", 2, 0), tmp_path / "out.jsonl"
    rows.write_text(2 * '{"text": ""}\n')
    done = in_process("score", "-m", "demo", rows, "-o", out)
    assert done.stderr.splitlines()[-1].startswith("seqloss: nothing was scored, in ")


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
    (tmp_path / "none.jsonl").write_text('{"text": ""}\n')
    done = in_process("score", "--model", "demo", tmp_path / "none.jsonl", "--json")
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
    # Triton would list all that is left as leaked.
    command[-1] = code.replace("gc, sys\n", "gc, sys\nsys.modules['triton'] = sys\n")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"
