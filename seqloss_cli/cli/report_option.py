"""`--report FILE` of the commands that score: a web page of what they wrote."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from seqloss_cli.cli.commands import OutputSettings
from seqloss_cli.cli.options import given
from seqloss_cli.cli.results_io import refuse_outputs
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import DEFAULT_MODEL, ModelChoice

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice


def refuse_page(
    context: typer.Context, choice: OutputChoice, others: Mapping[str, Path | None] | None = None
) -> None:
    """Raises UsageError, before a model is loaded, for a page that could not be written.

    `others` are files of the command, by flag, whose place it would take.
    """
    path = given(context, OutputSettings).report
    if path is None:
        return
    refuse_outputs(path, choice.force, context.params.get("files") or ())
    for flag, other in {"-o": choice.path, **(others or {})}.items():
        if other is not None and other.absolute() == path.absolute():
            raise UsageError(f"--report {path} and {flag} are one file")


@contextmanager
def page_after(
    context: typer.Context, choice: OutputChoice, what: str = "Losses under"
) -> Iterator[OutputChoice]:
    """Make the page once the block is done; yields the output to be written for that.

    The page is made of -o's file where that holds all, else of rows that are written a second
    time; its title then begins with `what`.
    """
    path = given(context, OutputSettings).report
    if path is None:
        yield choice
        return
    with tempfile.TemporaryDirectory(prefix="seqloss-") as folder:
        format = choice.format
        # Rows of -o will do where they can be read back: they are written once then.
        read_back = format is not None and format.read is not None and not choice.summary
        rows = choice.path if read_back else None
        called = "" if rows is None else str(rows)
        if rows is None:
            rows = Path(folder) / "results.jsonl"
            choice = replace(choice, beside=rows)
        code = 0
        try:
            yield choice
        # Some inputs were rejected: the page is made of the others, and the exit code stays.
        except typer.Exit as stop:
            code = stop.exit_code
        title = None if called else f"{what} {given(context, ModelChoice).name or DEFAULT_MODEL}"
        _write(rows, called, path, choice.force, title)
        if code:
            raise typer.Exit(code)


def _write(rows: Path, called: str, path: Path, force: bool, title: str | None) -> None:
    from seqloss_cli.cli.pages import write_page
    from seqloss_cli.display.html.page import PageOptions

    write_page([str(rows)], path, force, PageOptions(title), called=[called or "the results"])
