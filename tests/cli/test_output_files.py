"""No file that is read is written over, whatever it is called; no two outputs share a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.program import in_process

NAMES: dict[str, Callable[[Path], Path]] = {
    "itself": lambda path: path,
    "dots": lambda path: path.parent / "." / "sub" / ".." / path.name,
    "link": lambda path: _made(path, "link.jsonl", os.symlink),
    "hard link": lambda path: _made(path, "hard.jsonl", os.link),
}


def _made(path: Path, name: str, link: Callable[[Path, Path], None]) -> Path:
    link(path, path.parent / name)
    return path.parent / name


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "precious": 1}\n')
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [["--force"], ["--resume"], []])
def test_an_input_is_never_written_over(data: Path, name: str, more: list[str]) -> None:
    before = data.read_bytes()
    done = in_process("score", data, "-o", NAMES[name](data), *more)
    assert done.exit_code == 2
    assert "is one of the inputs" in done.stderr
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ("score", "{other}", "--regions", "{data}", "-o", "{data}"),
        ("score", "{other}", "--config", "{data}", "-o", "{data}"),
        ("score", "{data}", "--report", "{data}"),
        ("score", "{data}.partial", "-o", "{data}"),
        ("mask", "{other}", "--check", "{data}", "-o", "{data}"),
        ("cond", "{other}", "--chat-template", "{data}", "-o", "{data}"),
        ("cond", "--prompt", "@{data}", "--response", "a", "-o", "{data}"),
        ("rank", "{data}", "--output-ranked", "{data}"),
        ("diverge", "{other}", "--teacher", "{data}", "-o", "{data}"),
        ("diverge", "{data}", "--teacher", "demo", "--save-teacher", "{data}"),
        ("score", "{other}", "-m", "{folder}", "--json", "-o", "{folder}/tokenizer.json"),
        ("score", "{other}", "--tokenizer", "{folder}", "--json", "-o", "{folder}/tokenizer.json"),
        ("summarize", "{data}", "--json", "-o", "{data}"),
        ("compare", "{data}", "{other}", "--report", "{data}"),
        ("compare", "-m", "demo", "-m", "{folder}", "--data", "{data}", "--json", "-o", "{data}"),
        ("objective", "demo", "{folder}", "--data", "{data}", "--json", "-o", "{data}"),
        ("plot", "{data}", "--kind", "histogram", "-o", "{data}"),
        ("report", "{data}", "-o", "{data}"),
    ],
)
def test_whatever_is_read_is_kept(data: Path, words: tuple[str, ...]) -> None:
    if "config" in " ".join(words):
        data.write_text("{}\n")
    other = data.parent / "other.jsonl"
    other.write_text('{"text": "a"}\n')
    for name in ("tokenizer.json", "data.jsonl.partial"):
        (data.parent / name).write_text("{}")
    files = {path: path.read_bytes() for path in data.parent.iterdir() if path.is_file()}
    named = {"data": data, "other": other, "folder": data.parent}
    done = in_process(*(word.format(**named) for word in words), "--force")
    assert done.exit_code == 2, done.stderr
    assert "is one of the inputs" in done.stderr
    assert {path: path.read_bytes() for path in files} == files


def test_an_input_that_is_not_there_is_not_made_by_the_output(data: Path) -> None:
    done = in_process("score", data.parent / "x.jsonl.partial", "-o", data.parent / "x.jsonl")
    assert done.exit_code == 2
    assert "is one of the inputs" in done.stderr


def test_stdin_is_an_input(data: Path) -> None:
    words = [sys.executable, "-m", "seqloss_cli", "score", "--force", "-o", str(data)]
    with data.open("rb") as stdin:
        done = subprocess.run(words, stdin=stdin, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"is one of the inputs (stdin)" in done.stderr
    with data.open("ab") as stdout:
        words = [sys.executable, "-m", "seqloss_cli", "score", str(data), "--jsonl"]
        done = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert b"stdout is one of the inputs" in done.stderr
    assert b"precious" in data.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("score", "--report", "{a}", "-o", "{b}", "--json"), "--report {a} and -o are one file"),
        (("rank", "-o", "{a}", "--jsonl", "--output-ranked", "{b}.partial"), "are one file"),
        (("rank", "-o", "{a}", "--jsonl", "--output-ranked", "{b}"), "are one file"),
    ],
)
def test_outputs_are_files_of_their_own(data: Path, words: tuple[str, ...], said: str) -> None:
    named = {"a": data.parent / "a.html", "b": data.parent / "sub" / ".." / "a.html"}
    done = in_process(words[0], data, *(word.format(**named) for word in words[1:]))
    assert done.exit_code == 2
    assert said.format(**named) in done.stderr


def test_results_beside_a_model_are_written_over_with_force(tmp_path: Path) -> None:
    for name in ("out.json", "README.md"):
        (tmp_path / name).write_text("a")
    output = tmp_path / "out.json"
    done = in_process("score", tmp_path / "README.md", "-m", tmp_path, "-o", output, "--force")
    assert "no config.json" in done.stderr
