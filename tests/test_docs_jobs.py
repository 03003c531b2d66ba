"""Pages of docs/ on single jobs: what they show of a command's output is what it prints."""

from __future__ import annotations

import re
import shlex
from contextlib import chdir
from pathlib import Path

import pytest

from helpers.program import ROOT, in_process

PAGES = ("divergence", "membership", "select")
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
LEFT_OUT = "…"
"""A line of a page that stands for any number of lines."""


def commands(page: str) -> list[tuple[str, list[str]]]:
    """Each command of a page, and the lines that are shown of its output."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


def printed(command: str, folder: Path) -> str:
    name, *words = shlex.split(command)
    assert name == "seqloss"
    with chdir(folder):
        done = in_process(*words, COLUMNS="100")
    assert done.exit_code == 0, done.stderr
    return done.stdout


def holds(output: list[str], shown: list[str]) -> bool:
    """Whether the lines are those of the output, but for what is left out."""
    parts: list[list[str]] = [[]]
    for line in shown:
        if line == LEFT_OUT:
            parts.append([])
        else:
            parts[-1].append(line)
    start = 0
    for n, part in enumerate(parts):
        places = [k for k in range(start, len(output) + 1) if output[k : k + len(part)] == part]
        places = [k for k in places if n or k == 0]
        if n == len(parts) - 1:
            places = [k for k in places if k + len(part) == len(output)]
        if not places:
            return False
        start = places[0] + len(part)
    return True


def test_lines_that_are_not_printed_are_found() -> None:
    assert holds(["a", "b", "c"], ["a", "…", "c"])
    assert holds(["a", "b", "c"], ["…", "b", "…"])
    assert not holds(["a", "b", "c"], ["b", "…"])
    assert not holds(["a", "b", "c"], ["a", "…", "d"])
    assert not holds(["a", "b", "c"], ["a", "c", "…"])


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_what_is_printed(page: str, tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    shown = commands(page)
    assert sum(len(lines) > 3 for _, lines in shown) >= 1
    for command, lines in shown:
        output = [line.rstrip() for line in printed(command, tmp_path).splitlines()]
        assert not lines or holds(output, lines), (command, output)
