"""Options and inputs of the commands that take texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.inputs import input_names
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.core.records import Rejected, Sample
    from seqloss_cli.inputs import ReadOptions, ReadStats

TEXT_INPUTS: o.Group = {
    "files": (
        Annotated[
            list[str] | None,
            typer.Argument(metavar="[FILES…|-]", help="Texts or JSONL; .gz, .zst."),
        ],
        None,
    ),
    "text": (
        Annotated[str | None, o.option(o.INPUT, "--text", "Score this text.", show_default=False)],
        None,
    ),
    "lines": (Annotated[bool, o.flag(o.INPUT, "--lines", "Each non-empty line is a text.")], False),
    "jsonl_input": (
        Annotated[
            bool, o.flag(o.INPUT, "--jsonl-input", "Inputs are JSONL, whatever they are called.")
        ],
        False,
    ),
    "text_field": (
        Annotated[
            str, o.option(o.INPUT, "--text-field", "Field of a JSONL row that holds the text.")
        ],
        "text",
    ),
    **o.INPUT_OPTIONS,
}


@dataclass(frozen=True, slots=True)
class TextInputs:
    names: list[str]
    """Of files; none for a text of the command line."""
    reading: ReadOptions
    text: str | None

    def items(self, stats: ReadStats) -> Iterable[Sample | Rejected]:
        from seqloss_cli.inputs import read_inputs, text_sample

        if self.text is not None:
            return [text_sample(self.text, max_bytes=self.reading.max_bytes)]
        return read_inputs(self.names, self.reading, stats)

    def described(self) -> Mapping[str, Any]:
        """For the run's record."""
        from seqloss_cli.inputs import described

        return described(["<text>"] if self.text is not None else self.names, self.reading)


def text_inputs(context: typer.Context) -> TextInputs:
    """What the options name. Raises UsageError when they exclude each other."""
    from seqloss_cli.cli.choices import choose_reading

    values = context.params
    text, files = values["text"], values["files"]
    lines, jsonl = values["lines"], values["jsonl_input"]
    names = [] if text is not None else input_names(files, "give --text")
    if text is not None and files:
        raise UsageError("--text and FILES exclude each other")
    if text is not None and (lines or jsonl):
        raise UsageError("--text is one text; --lines and --jsonl-input are for FILES and stdin")
    if lines and jsonl:
        raise UsageError("choose one of --lines and --jsonl-input")
    reading = choose_reading(context, lines=lines, jsonl=jsonl, text_field=values["text_field"])
    return TextInputs(names, reading, text)
