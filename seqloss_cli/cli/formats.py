"""What each output format can hold: what it cannot is refused before a model is loaded."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from seqloss_cli.cli.failures import say
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.extras import load_pyarrow

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice


class Format(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    openai = "openai"
    parquet = "parquet"
    csv = "csv"
    tsv = "tsv"


class Level(StrEnum):
    sequence = "sequence"
    token = "token"
    word = "word"
    region = "region"


BY_EXTENSION = {
    f".{format.value}": format
    for format in (Format.json, Format.jsonl, Format.parquet, Format.csv, Format.tsv)
}
DELIMITERS = {Format.csv: ",", Format.tsv: "\t"}


def require_possible(choice: OutputChoice, level_given: bool) -> None:
    """Raises UsageError for what the format has no place for, or when its package is missing."""
    if choice.word_correction and not choice.words:
        raise UsageError("--word-correction corrects the losses of words: give --words, too")
    if choice.format is Format.openai and not choice.tokens:
        raise UsageError("--format openai is made of tokens; leave --no-tokens out")
    for flag, asked in (("--regions", choice.regions), ("--words", choice.words)):
        if choice.format is Format.openai and asked:
            raise UsageError(f"--format openai has no place for {flag}; --json has")
    for flag, asked in (
        ("--regions", choice.regions),
        ("--word-correction", choice.word_correction),
    ):
        if choice.summary and asked:
            raise UsageError(f"--summary shows totals, which {flag} has none of; leave one out")
    if choice.format is Format.parquet:
        if choice.path is None:
            raise UsageError("--format parquet is no text: it needs -o FILE")
        load_pyarrow()
    if choice.format in DELIMITERS:
        _require_columns(choice)
    elif level_given:
        raise UsageError("--level says what a line of --format csv or tsv is")


def _require_columns(choice: OutputChoice) -> None:
    name = choice.format.value
    if choice.summary:
        raise UsageError(f"{name} has lines of inputs and no totals; --summary goes with --json")
    for column in choice.columns:
        if not column.csv:
            raise UsageError(f"{name} has no place for {column.flag}; --jsonl has")
    _require_parts(choice, name)
    if choice.level is Level.token:
        if not choice.tokens:
            raise UsageError("--level token is made of tokens; leave --no-tokens out")
        return
    for flag, asked in (
        *((column.flag, True) for column in choice.columns),
        ("--context-lengths", choice.context_lengths),
    ):
        if asked:
            raise UsageError(f"{name} has a place for {flag} with --level token only")


def _require_parts(choice: OutputChoice, name: str) -> None:
    """Words and regions have lines of their own; a region may have the corrected loss of words."""
    if choice.regions != (choice.level is Level.region):
        raise UsageError(f"--regions and --level region go together in {name}: give both or none")
    if choice.level is Level.word and not choice.words:
        raise UsageError("--level word is made of words: give --words, too")
    in_region = choice.level is Level.region and choice.word_correction
    if choice.words and choice.level is not Level.word and not in_region:
        raise UsageError(
            f"{name} has no place for --words at this level: give --level word (or --level region "
            "with --word-correction), or --jsonl"
        )


def say_what_is_left_out(choice: OutputChoice) -> None:
    """A line on stderr where the format holds less than a run gives."""
    if choice.format in DELIMITERS:
        say(f"{choice.format.value} holds neither the run nor the totals; --jsonl holds both")
