"""The output of a run: what is refused, and the options of rows, tables and coloured texts."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import typer
from rich.console import Console

from seqloss_cli.cli.commands import ShowSettings
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.options import given, is_typed
from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.formatting import HeatOptions, TableOptions
from seqloss_cli.display.terminal.palette import choose_theme
from seqloss_cli.results import RowChoice
from seqloss_cli.results.formats import FORMATS, Format
from seqloss_cli.results.resume import recorded_run
from seqloss_cli.results.schema import RowOptions
from seqloss_cli.results.sinks import earlier_output
from seqloss_cli.tokenization.tokenizer import Tokenization

TABLE = "table"
_FILE_WIDTH = 120
"""Columns of tables that go to a file: no terminal says how wide they may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChoice(RowChoice):
    """The place, format and contents of results, as the options of a command ask for them."""

    format: Format | None
    """None for tables, or coloured texts."""
    force: bool = False
    bits: bool = False
    all_tokens: bool = False
    strict: bool = False
    resume: bool = False
    heat: HeatOptions | None = None
    """Texts in colours, in place of tables."""
    beside: Path | None = None
    """A second file of the rows, JSONL with texts and tokens: for a page of them."""

    @property
    def format_name(self) -> str:
        """Return the name of the format, `table` for what is shown to people."""
        return TABLE if self.format is None else self.format.name


def require_possible(choice: OutputChoice, level_given: bool) -> None:
    """Raise UsageError for what the format has no place for, or when its package is missing."""
    if choice.word_correction and not choice.words:
        raise UsageError("--word-correction corrects the losses of words: give --words, too")
    for flag, asked in (
        ("--regions", choice.regions),
        ("--word-correction", choice.word_correction),
    ):
        if choice.summary and asked:
            raise UsageError(f"--summary shows totals, which {flag} has none of; leave one out")
    format = choice.format
    # A package last: installing it would not help what the format cannot hold.
    if format is not None:
        if (conflict := next(format.conflicts(choice), None)) is not None:
            raise UsageError(conflict)
        format.require_package()
    if level_given and not (format is not None and format.has_levels):
        names = " or ".join(each.name for each in FORMATS.values() if each.has_levels)
        raise UsageError(f"--level says what a line of --format {names} is")


def require_resumable(choice: OutputChoice) -> None:
    """Raise UsageError for what --resume cannot continue, before a model is loaded."""
    if choice.path is None:
        raise UsageError("--resume goes on with a file: give -o FILE.jsonl")
    if choice.force:
        raise UsageError("--resume keeps what --force writes over: choose one of them")
    if choice.format is None or not choice.format.resumable:
        raise UsageError(
            f"--resume goes on line by line, which {choice.format_name} does not have: give "
            "-o FILE.jsonl or --jsonl"
        )
    if choice.summary:
        raise UsageError("--resume needs the rows in the file: leave --summary out")
    earlier_output(choice.path)


def settings_of_earlier(path: Path | None) -> Mapping[str, Any]:
    """Return the run line of what an earlier run left; nothing where there is none."""
    left = None if path is None else earlier_output(path)
    return {} if left is None else recorded_run(left) or {}


def heat_options(context: typer.Context, obstacle: str | None) -> HeatOptions | None:
    """The look of coloured texts; None for tables. `obstacle` is why a text cannot be coloured.

    Raises UsageError where the command line asks for heat and there is an obstacle; where a
    variable or a file asks for it, that is reported and tables are taken.
    """
    settings, values = given(context, ShowSettings), context.params
    if settings.view != "heat":
        return None
    if obstacle is not None:
        if is_typed(context, "view"):
            raise UsageError(f"--view heat {obstacle}")
        say(f"note: --view heat {obstacle}; left out")
        return None
    if left := [column.flag for column in COLUMNS if values.get(column.option)]:
        say(f"note: --view heat shows losses only; {', '.join(left)}: in tables and JSON")
    theme, note = choose_theme(settings.theme, os.environ.get("COLORFGBG"))
    return HeatOptions(theme, note, settings.show_whitespace)


def row_options(
    tokenization: Tokenization,
    run: RunInfo,
    choice: OutputChoice,
    word_boundary_ids: WordBoundaryIds | None = None,
) -> RowOptions:
    """Return what the rows of a run hold."""
    return RowOptions(
        **{field.name: getattr(choice, field.name) for field in fields(RowChoice)},
        run=run,
        token_texts=tokenization.token_texts,
        name_token=tokenization.name_token,
        word_boundary_ids=word_boundary_ids,
    )


def table_options(
    tokenization: Tokenization,
    choice: OutputChoice,
    word_boundary_ids: WordBoundaryIds | None = None,
) -> TableOptions:
    """Return what the tables of a run show."""
    return TableOptions(
        tokenization.token_texts,
        tokenization.name_token,
        bits=choice.bits,
        all_tokens=choice.all_tokens,
        summary=choice.summary,
        words=choice.words,
        word_boundary_ids=word_boundary_ids,
        pmi=choice.pmi,
        heat=choice.heat,
    )


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the error go on to where exit codes are decided: rich would exit with 1 here."""
        # Called while rich handles it, so there is an error to be raised again.
        raise


def console(path: Path | None, sink: BinaryIO) -> Console:
    """Return a console that writes to stdout, or to the sink of a file."""
    if path is not None:
        text = io.TextIOWrapper(sink, encoding="utf-8", write_through=True)
        return _Console(file=text, width=_FILE_WIDTH, markup=False, highlight=False, emoji=False)
    # A terminal of ASCII is to show \u2026, and not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return _Console(markup=False, highlight=False, emoji=False)
