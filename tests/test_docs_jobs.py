"""Pages of docs/ and the README: what they show of a command's output is what it prints.

`UPDATE_DOCS=1 pytest tests/test_docs_jobs.py` writes the outputs anew.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import commands_page
from helpers import shown
from helpers.program import ROOT
from seqloss_cli.cli import main

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_COMMANDS = [page for page in PAGES if shown.commands(page.read_text())]
WIDTHS = {"README": 80}
"""Columns of a terminal; elsewhere 100."""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory that looks like the repository's root, for writing to."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    (tmp_path / "LICENSE").symlink_to(ROOT / "LICENSE")
    return tmp_path


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_is_printed(page: Path, workplace: Path) -> None:
    text, outputs = page.read_text(), list[list[str]]()
    for command, _ in shown.commands(text):
        done = shown.shell(command, workplace, WIDTHS.get(page.stem, 100))
        assert done.exit_code == 0, (command, done.stderr)
        for name in re.findall(r"-o (\S+\.(?:svg|png|pdf|html))", command):
            assert (workplace / name).stat().st_size
        outputs.append([line.rstrip() for line in done.stdout.splitlines()])
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(text := shown.with_outputs(text, outputs))
    for (command, lines), output in zip(shown.commands(text), outputs, strict=True):
        assert not lines or shown.holds(output, lines), (command, output)


def test_the_first_page_and_pages_of_jobs_show_outputs() -> None:
    n_shown = {
        page.stem: sum(len(lines) > 3 for _, lines in shown.commands(page.read_text()))
        for page in PAGES
    }
    assert n_shown["README"] >= 3
    jobs = ("score", "checkpoints", "quantisation", "masks", "choices", "reading", "looking",
            "pipelines", "conditional", "divergence", "membership", "select", "check")  # fmt: skip
    assert [name for name in jobs if not n_shown[name]] == []


def test_lines_that_are_not_printed_are_found() -> None:
    assert shown.holds(["a", "b", "c"], ["a", "…", "c"])
    assert shown.holds(["a", "b", "c"], ["…", "b", "…"])
    assert not shown.holds(["a", "b", "c"], ["b", "…"])
    assert not shown.holds(["a", "b", "c"], ["a", "…", "d"])
    assert not shown.holds(["a", "b", "c"], ["a", "c", "…"])


def test_outputs_are_written_anew() -> None:
    text = (
        "A\n```console\n$ seqloss one\nold 1\n$ seqloss two\n…\nb 2\n…\n$ seqloss three\n```\nB\n"
    )
    made = shown.with_outputs(text, [["new 3"], ["a 1", "b 5", "c"], ["unseen"]])
    assert made == text.replace("old 1", "new 3").replace("b 2", "b 5")


# -- the site -------------------------------------------------------------------------------------


def test_every_page_is_in_the_sites_menu() -> None:
    listed = set(re.findall(r"(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {page.name for page in PAGES if page.parent.name == "docs"}
    assert listed == there | {"commands.md", "columns.md"}  # which `make docs` writes


def test_the_page_of_commands_has_every_command_and_option() -> None:
    made = commands_page.page()
    group = typer.main.get_command(main.app)
    for name, command in group.commands.items():
        _, _, section = made.partition(f"## seqloss {name}\n")
        for each in command.params:
            if each.param_type_name == "option" and not getattr(each, "hidden", False):
                assert f"`{each.opts[0]}" in section, (name, each)


def reasons_of(path: Path) -> Iterator[str]:
    """The reasons for which a module rejects inputs."""
    places = {"RowError": 0, "wrong": 0, "rejection": 1, "Rejected": 3}
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if name not in places:
            continue
        for argument in node.args[places[name] : places[name] + 1]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield f"server_{argument.value}" if name == "wrong" else argument.value


def test_every_reason_of_a_rejection_has_a_mend() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    known = set(re.findall(r"`(\w+)`", page))
    found = {each for path in (ROOT / "seqloss_cli").rglob("*.py") for each in reasons_of(path)}
    assert len(found) > 60
    assert sorted(found - known) == []
