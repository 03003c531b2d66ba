"""Options of inputs, and the samples that they name: of files, of stdin, or of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqloss_cli.cli.failures import say
from seqloss_cli.cli.options import given
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import CHATS, INPUT, argument, command_record, option
from seqloss_cli.core.policies import PairPolicy, Reading

if TYPE_CHECKING:
    import typer

    from seqloss_cli.core.records import Rejected, Sample
    from seqloss_cli.inputs.choices import ChoiceFields
    from seqloss_cli.inputs.reading import ReadOptions, ReadStats
    from seqloss_cli.inputs.rows import PairFields
    from seqloss_cli.inputs.side_files import RegionFile, SideFile

STDIN = "-"


@command_record
class TextArguments:
    """Files of texts or one text, and regions of them."""

    PANEL = INPUT

    files: list[str] | None = argument("[FILES…|-]", "Texts or JSONL; .gz, .zst.")
    text: str | None = option(None, "Score this text.")
    regions: str | None = option(
        None, "JSONL with regions of each text: spans of characters, or strings.", metavar="FILE"
    )


@command_record
class PairArguments:
    """Files of prompts with responses or one pair, and how they are made a chat."""

    PANEL = INPUT

    files: list[str] | None = argument("[FILES…|-]", "JSONL rows; .gz, .zst.")
    prompt: str | None = option(None, "The prompt: a text, @FILE or - (stdin).")
    response: str | None = option(None, "The response: a text, @FILE or - (stdin).")
    prompt_field: str = option("prompt", "Field of a row with the prompt.")
    response_field: str = option("response", "Field of a row with the response.")
    chat: bool = option(
        False, "Wrap prompt and response as a turn of user and assistant.", panel=CHATS
    )
    chat_template: Path | None = option(
        None, "Jinja file in place of the tokenizer's template.", panel=CHATS
    )


@command_record
class ChoiceArguments:
    """Several responses to a prompt, and which one is right."""

    PANEL = INPUT

    response: list[str] | None = option(
        None, "A response: a text, @FILE or - (stdin); twice or more."
    )
    no_prompt: bool = option(False, "Rows have no prompt: minimal pairs.")
    choices_field: str = option("choices", "Field with the list; or a,b: a response in each.")
    answer_field: str = option("answer", "Field with the right one: its place, from 0.")
    answer: int | None = option(None, "The right one, the same for all rows.", min=0)


# -- texts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextInputs:
    """Texts of files or of the command line, and how they are read."""

    names: list[str]
    """Files; none for a text of the command line."""
    reading: ReadOptions
    text: str | None

    def items(self, stats: ReadStats) -> Iterable[Sample | Rejected]:
        """Samples, in input order."""
        from seqloss_cli.inputs.reading import read_inputs, text_sample

        if self.text is not None:
            return [text_sample(self.text, max_bytes=self.reading.max_bytes)]
        return read_inputs(self.names, self.reading, stats)

    def described(self) -> Mapping[str, Any]:
        """For the run's record."""
        from seqloss_cli.inputs.reading import described

        return described(["<text>"] if self.text is not None else self.names, self.reading)


def text_inputs(context: typer.Context) -> TextInputs:
    """The files or the text that the options name. Raises UsageError when there is nothing."""
    arguments = given(context, TextArguments)
    names = [] if arguments.text is not None else input_names(arguments.files, "give --text")
    return TextInputs(names, read_options(context), arguments.text)


def input_names(files: list[str] | None, otherwise: str) -> list[str]:
    """The files, or stdin when something is piped in. Raises UsageError when there is nothing."""
    if files:
        if files.count(STDIN) > 1:
            raise UsageError("'-' (stdin) can be read once only")
        return files
    # On a terminal nothing is piped in: to wait for what is typed would look like a hang.
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(f"nothing to score: name FILES, pipe a file in, or {otherwise}")
    return [STDIN]


def read_options(
    context: typer.Context, pairs: PairFields | ChoiceFields | None = None
) -> ReadOptions:
    """The way inputs are read: as texts, or as rows with the fields of `pairs`."""
    from seqloss_cli.inputs.reading import ReadOptions

    return ReadOptions(**asdict(given(context, Reading)), pairs=pairs)


# -- pairs and chats -----------------------------------------------------------------------------


def pair_policy(context: typer.Context) -> PairPolicy:
    """The policies for pairs and chats. Raises UsageError when a template cannot be read."""
    path = given(context, PairArguments).chat_template
    template = None if path is None else file_text("--chat-template", path)
    return replace(given(context, PairPolicy), chat_template=template)


def pair_names(context: typer.Context) -> list[str]:
    """The names of input files; none when the pair stands on the command line."""
    arguments = given(context, PairArguments)
    # An empty text is a prompt, too: only None says that there is none.
    if arguments.prompt is None:
        return input_names(arguments.files, "give --prompt and --response")
    if [arguments.prompt, arguments.response] == [STDIN, STDIN]:
        raise UsageError("'-' (stdin) can be read once only")
    return []


def pair_items(
    context: typer.Context, names: list[str], stats: ReadStats
) -> Iterable[Sample | Rejected]:
    """Samples of the files, or the one pair of the command line."""
    from seqloss_cli.core.records import Pair
    from seqloss_cli.inputs.reading import pair_sample, read_inputs

    if names:
        return read_inputs(names, pair_reading(context), stats)
    arguments, reading = given(context, PairArguments), given(context, Reading)
    prompt = text_of("--prompt", arguments.prompt or "")
    response = text_of("--response", arguments.response or "")
    pair = Pair(prompt, response, given(context, PairPolicy).separator)
    return [pair_sample(pair, "<pair>", arguments.chat, reading.max_bytes)]


def pair_reading(context: typer.Context) -> ReadOptions:
    """The way rows of pairs are read."""
    from seqloss_cli.inputs.rows import PairFields

    arguments, separator = given(context, PairArguments), given(context, PairPolicy).separator
    fields = PairFields(arguments.prompt_field, arguments.response_field, separator, arguments.chat)
    return read_options(context, fields)


# -- several responses to a prompt ---------------------------------------------------------------


def choice_names(context: typer.Context) -> list[str]:
    """The names of input files; none when the choices stand on the command line."""
    arguments = given(context, PairArguments)
    if arguments.prompt is None:
        return input_names(arguments.files, "give --prompt and --response twice or more")
    responses = given(context, ChoiceArguments).response or []
    if [arguments.prompt, *responses].count(STDIN) > 1:
        raise UsageError("'-' (stdin) can be read once only")
    return []


def choice_items(
    context: typer.Context, names: list[str], stats: ReadStats
) -> Iterable[Sample | Rejected]:
    """Samples of the files, or the one row of the command line."""
    from seqloss_cli.core.records import Choices
    from seqloss_cli.inputs.reading import choices_sample, read_inputs

    if names:
        return read_inputs(names, choice_reading(context), stats)
    arguments, pairs = given(context, ChoiceArguments), given(context, PairArguments)
    responses = tuple(text_of("--response", each) for each in arguments.response or ())
    answers = None if arguments.answer is None else (arguments.answer,)
    prompt = text_of("--prompt", pairs.prompt or "")
    separator = given(context, PairPolicy).separator
    choices = Choices(prompt, responses, separator, answers, pairs.chat)
    return [choices_sample(choices, max_bytes=given(context, Reading).max_bytes)]


def choice_reading(context: typer.Context) -> ReadOptions:
    """The way rows of choices are read."""
    from seqloss_cli.inputs.choices import ChoiceFields

    arguments, pairs = given(context, ChoiceArguments), given(context, PairArguments)
    fields = ChoiceFields(
        prompt=None if arguments.no_prompt else pairs.prompt_field,
        choices=tuple(arguments.choices_field.split(",")),
        answer=arguments.answer_field,
        fixed_answer=arguments.answer,
        separator=given(context, PairPolicy).separator,
        chat=pairs.chat,
    )
    return read_options(context, fields)


# -- texts of the command line -------------------------------------------------------------------


def text_of(flag: str, value: str) -> str:
    """A text as it stands, of a file (`@FILE`) or of stdin (`-`); `@@` stands for one `@`.

    Nothing is cut off: a file's last line break is part of the text. Raises UsageError when the
    file cannot be read as UTF-8.
    """
    if value.startswith("@@"):
        return value[1:]
    if value != STDIN and not value.startswith("@"):
        return value
    if value != STDIN:
        return file_text(flag, Path(value[1:]))
    if sys.stdin is None:
        raise UsageError(f"{flag} -: stdin is closed")
    # Bytes: Python's text mode would make one byte of \r\n, and other tokens.
    return _decoded(f"{flag} -", sys.stdin.buffer.read())


def file_text(flag: str, path: Path) -> str:
    """The text of a file. Raises UsageError when it cannot be read as UTF-8."""
    try:
        return _decoded(f"{flag} {path}", path.read_bytes())
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}") from error


def _decoded(where: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: is not UTF-8 at byte {error.start}") from error


# -- regions -------------------------------------------------------------------------------------


def region_file(context: typer.Context) -> RegionFile | None:
    """The file of --regions, if there is one; when the command ends, its unused rows are reported.

    Raises UsageError when there is no such file.
    """
    from seqloss_cli.inputs.side_files import RegionFile

    name, reading = given(context, TextArguments).regions, given(context, Reading)
    if name is None:
        return None
    file = RegionFile(name, reading.max_bytes)
    # Only a run that met every input knows which rows belong to none.
    context.call_on_close(
        lambda: say_unused(file, file.source, bool(reading.limit)) if file.all_asked else None
    )
    return file


def say_unused(file: SideFile[Any], name: str, limited: bool = False) -> None:
    """Report the rows of a file beside the inputs that belong to none of them."""
    # With --limit most rows have no input, which is no mistake.
    if (unused := file.count_unused()) and not limited:
        say(f"warning: {unused} rows of {name} belong to no input")
    for message in file.unmatched:
        say(f"warning: {message}")
