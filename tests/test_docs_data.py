"""docs/data.md and docs/shards.md: their commands are there, and have the options shown."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer

from helpers.program import ROOT
from seqloss_cli.cli.main import app
from seqloss_cli.inputs.options import ReadOptions
from seqloss_cli.inputs.shards import VARIABLES

PROGRAM: Any = typer.main.get_command(app)


def commands(page: str) -> list[list[str]]:
    """The commands in the blocks of a page, in words; a line may go on."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    joined = re.sub(r"\s*\\\n\s+|\n\s+(?=-o )", " ", blocks)
    found = re.findall(r"seqloss ([a-z]+ [^\n\")]*)", joined)
    return [shlex.split(each, posix=False) for each in found]


@pytest.mark.parametrize(("page", "at_least"), [("data", 6), ("shards", 8), ("ray", 2)])
def test_commands_of_the_page_have_these_options(page: str, at_least: int) -> None:
    found = commands(page)
    assert len(found) >= at_least
    for name, *words in found:
        flags = {flag for each in PROGRAM.commands[name].params for flag in each.opts}
        assert {word for word in words if re.fullmatch("-{1,2}[a-z-]+", word)} <= flags, words
    assert any("--shard" in words for words in found) == (page == "shards")


def test_variables_and_extensions_of_the_pages_are_those_of_the_program() -> None:
    shards, data = ((ROOT / "docs" / f"{page}.md").read_text() for page in ("shards", "data"))
    assert all(f"`{name}`" in shards for name in VARIABLES)
    kinds = dict(re.findall(r"^\| `(\.\w+)`.* \| (a row|the same)", data, re.MULTILINE))
    assert set(kinds) == {".jsonl", ".parquet", ".arrow", ".csv"}
    assert all(ReadOptions().kind_of(f"a{suffix}") != "text" for suffix in kinds)
