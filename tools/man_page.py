"""Write man pages of the program's own help: of seqloss, and of each command (`make man`)."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer

from seqloss_cli.cli.main import app, examples_of

EXIT_CODES = (
    (0, "Done."),
    (1, "The run failed."),
    (2, "Wrong flags or configuration."),
    (3, "Done, but some inputs were rejected, or labels or log-probabilities differ."),
    (70, "A bug."),
    (130, "Interrupted."),
)


def roff(text: str) -> str:
    """Text as roff takes it: a backslash, a minus, and a dot or quote at a line's start."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(
        f"\\&{line}" if line.startswith(".") else line for line in escaped.splitlines()
    )


def head(name: str, described: str) -> Iterator[str]:
    # Of a build that is to be the same twice, its own date.
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    day = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    yield f'.TH {roff(name.upper())} 1 "{day}" "seqloss {version("seqloss")}" "User Commands"'
    yield ".SH NAME"
    yield f"{roff(name)} \\- {roff(described.rstrip('.'))}"


def paragraphs(text: str) -> Iterator[str]:
    for n, each in enumerate(text.split("\n\n")):
        if n:
            yield ".PP"
        yield roff(" ".join(each.split()))


def entry(parameter: Any) -> Iterator[str]:
    """The names of an option with what it takes, and its help."""
    names = sorted((*parameter.opts, *parameter.secondary_opts), key=len)
    takes = "" if getattr(parameter, "is_flag", False) else parameter.metavar or ""
    yield ".TP"
    yield f"\\fB{roff(', '.join(names))}\\fR" + (f" \\fI{roff(takes)}\\fR" if takes else "")
    yield roff(" ".join((parameter.help or "").split())) or "\\&"


def command_page(name: str, command: Any, context: Any) -> str:
    whole = inspect.getdoc(command.callback) or command.help or ""
    described, _, _ = whole.partition("\n\nExamples:\n")
    first, _, rest = described.partition("\n\n")
    lines = [*head(f"seqloss-{name}", first), ".SH SYNOPSIS"]
    params = command.get_params(context)
    arguments = [each for each in params if each.param_type_name == "argument"]
    places = " ".join(f"\\fI{roff(each.metavar or each.name)}\\fR ..." for each in arguments)
    lines.append(f"\\fBseqloss {roff(name)}\\fR [\\fIoptions\\fR] {places}".rstrip())
    lines += [".SH DESCRIPTION", *paragraphs(first if not rest else f"{first}\n\n{rest}")]
    panels: dict[str, list[Any]] = {}
    for each in params:
        if each.param_type_name == "option":
            panels.setdefault(getattr(each, "rich_help_panel", None) or "Other", []).append(each)
    lines.append(".SH OPTIONS")
    for title, members in panels.items():
        lines.append(f".SS {roff(title)}")
        for each in members:
            lines += entry(each)
    if examples := examples_of(command.callback):
        lines += [".SH EXAMPLES", ".EX", *map(roff, examples), ".EE"]
    return "\n".join([*lines, ".SH SEE ALSO", ".BR seqloss (1)", ""])


def program_page(group: Any, context: Any) -> str:
    described, _, more = (group.help or "").partition("\n\n")
    lines = [*head("seqloss", described), ".SH SYNOPSIS"]
    lines += ["\\fBseqloss\\fR \\fIcommand\\fR [\\fIoptions\\fR]", ".SH DESCRIPTION"]
    # The codes stand in a section of their own.
    told = more.partition("\n\nExit codes:")[0]
    lines += [*paragraphs(f"{described}\n\n{told}"), ".SH COMMANDS"]
    for name in group.list_commands(context):
        first = (group.get_command(context, name).help or "").partition("\n")[0]
        lines += [".TP", f"\\fB{roff(name)}\\fR", roff(first)]
    lines.append(".SH OPTIONS")
    for each in group.get_params(context):
        lines += entry(each)
    lines.append(".SH EXIT STATUS")
    for code, meaning in EXIT_CODES:
        lines += [".TP", str(code), roff(meaning)]
    names = [f".BR seqloss\\-{name} (1)" for name in group.list_commands(context)]
    seen = " ,\n".join(names[:-1]) + f" ,\n{names[-1]}"
    return "\n".join([*lines, ".SH SEE ALSO", seen, ""])


def pages() -> dict[str, str]:
    """File name of each page to its text."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="seqloss")
    found = {"seqloss.1": program_page(group, context)}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = typer.Context(command, info_name=name, parent=context)
        found[f"seqloss-{name}.1"] = command_page(name, command, inner)
    return found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/man")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(pages())} pages in {folder}")


if __name__ == "__main__":
    main()
