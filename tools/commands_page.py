"""Write docs/commands.md from the program's own options: `python tools/commands_page.py`."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import typer.main

from seqloss_cli.cli import main as program

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"
INTRODUCTION = """# Commands and options

Made from the program's own help by `python tools/commands_page.py`. Options may be set by a
variable or a file, too ([Configuration](configuration.md)).
"""


def page() -> str:
    """Return the page: each command with its words, examples and options."""
    group: Any = typer.main.get_command(program.app)
    parts = [INTRODUCTION]
    for name, command in group.commands.items():
        if not command.hidden:
            parts += _command(name, command)
    return "\n".join(parts)


def _command(name: str, command: Any) -> list[str]:
    text = inspect.cleandoc(command.help or "")
    words, _, examples = text.partition("Examples:")
    lines = [f"## seqloss {name}", "", words.strip(), ""]
    if examples.strip():
        lines += ["```", textwrap.dedent(examples.strip("\n")).strip(), "```", ""]
    by_panel: dict[str, list[Any]] = {}
    for each in command.params:
        if not getattr(each, "hidden", False):
            panel = getattr(each, "rich_help_panel", None)
            by_panel.setdefault(panel or "Arguments", []).append(each)
    for panel, options in by_panel.items():
        lines += [f"**{panel}**", "", "| | |", "|---|---|"]
        lines += [f"| {_names(each)} | {_said(each)} |" for each in options]
        lines.append("")
    return lines


def _names(each: Any) -> str:
    if each.param_type_name == "argument":
        return f"`{each.metavar or each.name.upper()}`".replace("|", "\\|")
    metavar = "" if each.is_flag else f" {each.metavar or each.type.name.upper()}"
    return ", ".join(f"`{name}{metavar}`" for name in each.opts).replace("|", "\\|")


def _said(each: Any) -> str:
    text = " ".join((each.help or "").split())
    return re.sub(r"(?<!`)(--[\w-]+)", r"`\1`", text).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
