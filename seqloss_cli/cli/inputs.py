"""Options of inputs, and the samples that they name: of files, of stdin, or of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqloss_cli.cli.failures import say, say_first
from seqloss_cli.cli.options import given
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import CHATS, INPUT, argument, command_record, option
from seqloss_cli.core.policies import DEFAULT_MODEL, ModelChoice, PairPolicy, Reading
from seqloss_cli.core.urls import is_of_hub

if TYPE_CHECKING:
    import typer

    from seqloss_cli.core.records import Rejected, Sample
    from seqloss_cli.inputs.choices import ChoiceFields
    from seqloss_cli.inputs.reading import ReadStats
    from seqloss_cli.inputs.rows import PairFields, RecordingFields
    from seqloss_cli.inputs.side_files import SideFile

STDIN = "-"


@command_record
class TextArguments:
    """Files of texts or one text, and regions of them."""

    PANEL = INPUT

    files: list[str] | None = argument(
        "[FILE|-]", "Texts; rows of JSONL, Parquet, Arrow, CSV; .gz, .zst."
    )
    text: str | None = option(None, "Score this text.")
    regions: str | None = option(
        None, "JSONL with regions of each text: spans of characters, or strings.", metavar="FILE"
    )


@command_record
class PairArguments:
    """Files of prompts with responses or one pair, and how they are made a chat."""

    PANEL = INPUT

    files: list[str] | None = argument("[FILE|-]", "Rows of JSONL, Parquet, Arrow, CSV; .gz, .zst.")
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


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a run, and how they are read."""

    items: Iterable[Sample | Rejected]
    stats: ReadStats
    """Filled while items are read."""
    names: Sequence[str]
    """Files, as the progress bar shows them."""
    reading: Mapping[str, Any] | None
    """The way items are read, for the run's record."""
    n_expected: int | None
    """The most inputs that come, where that is known."""
    span: tuple[int, int] | None = None
    """The bytes of all files end to end that are read, where it is a part of them."""


def text_inputs(context: typer.Context) -> Inputs:
    """The files or the text that the options name. Raises UsageError when there is nothing."""
    from seqloss_cli.inputs.reading import text_sample

    files, text = given(context, TextArguments).files, given(context, TextArguments).text
    if text is None:
        return file_inputs(context, input_names(context, files, "give --text"))
    sample = text_sample(text, max_bytes=given(context, Reading).max_bytes)
    return file_inputs(context, [], sample=sample)


def file_inputs(
    context: typer.Context,
    names: list[str],
    fields: PairFields | ChoiceFields | RecordingFields | None = None,
    sample: Sample | Rejected | None = None,
) -> Inputs:
    """The samples of files, or the one of the command line, with the regions of --regions.

    With `fields`, inputs are rows that have them. Raises UsageError when there is no such file of
    regions; when the command ends, its unused rows are reported.
    """
    from seqloss_cli.core.records import Rejected
    from seqloss_cli.inputs import reading as r
    from seqloss_cli.inputs.first_look import first_look
    from seqloss_cli.inputs.names import expanded
    from seqloss_cli.inputs.options import Kind, described
    from seqloss_cli.inputs.shards import Cuts, Shard

    options, stats = r.ReadOptions(**asdict(given(context, Reading)), pairs=fields), r.ReadStats()
    asks_hub = options.dataset is not None or any(map(is_of_hub, names))
    if asks_hub and given(context, ModelChoice).offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the package reads it when it is imported
    names = expanded(names, say) if options.dataset is None else [options.dataset_name]
    # Before a model is loaded, which takes seconds, and before any output is begun.
    if isinstance(sample, Rejected):
        is_text = given(context, TextArguments).text is not None
        flags = "--text" if is_text else "--prompt and --response"
        raise UsageError(f"{flags}: {sample.message}")
    shard = Shard.parse(options.shard, os.environ) if options.shard else None
    cuts = Cuts(names, options, shard)
    _require_template(context, first_look(names, options) if sample is None else [sample])
    if sample is None:
        items: Iterable[Sample | Rejected] = r.read_inputs(names, options, stats, cuts)
    else:
        items = [sample]
        stats.note_seams(sample)
    reading = described(names if sample is None else [sample.source], options) | cuts.described()
    is_one = sample is not None or (len(names) == 1 and options.kind_of(names[0]) is Kind.text)
    n_expected = 1 if is_one else options.limit
    regions = given(context, TextArguments).regions
    if regions is None:
        return Inputs(items, stats, names, reading, n_expected, cuts.span)
    from seqloss_cli.inputs.side_files import RegionFile

    file = RegionFile(regions, options.max_bytes, is_part=shard is not None)
    is_limited = options.limit is not None or shard is not None
    # Only a run that met every input knows which rows belong to none.
    context.call_on_close(
        lambda: say_unused(file, file.source, is_limited) if file.all_asked else None
    )
    reading |= file.described()
    return Inputs(file.attach(items), stats, names, reading, n_expected, cuts.span)


def _require_template(context: typer.Context, first: Iterable[Sample | Rejected]) -> None:
    """Raises UsageError where the first rows are chats, and the model has no chat template."""
    from seqloss_cli.core.records import Rejected
    from seqloss_cli.models.files import checkpoint_path, lacks_chat_template

    own, model = given(context, PairArguments), given(context, ModelChoice)
    samples = [each for each in first if not isinstance(each, Rejected)]
    if own.chat_template is not None or not samples or not all(map(_is_chat, samples)):
        return
    name = model.tokenizer or model.name or DEFAULT_MODEL
    if lacks_chat_template(checkpoint_path(name)):
        what = "chats need a chat template, and the tokenizer of"
        raise UsageError(f"{what} {name} has none; --chat-template FILE names one")


def _is_chat(sample: Sample) -> bool:
    return sample.chat is not None or (sample.choices is not None and sample.choices.as_chat)


def pair_inputs(context: typer.Context) -> Inputs:
    """The files of pairs and chats, or the one pair of the command line."""
    from seqloss_cli.core.records import Pair
    from seqloss_cli.inputs.reading import pair_sample
    from seqloss_cli.inputs.rows import PairFields

    own, separator = given(context, PairArguments), given(context, PairPolicy).separator
    fields = PairFields(own.prompt_field, own.response_field, separator, own.chat)
    # An empty text is a prompt, too: only None says that there is none.
    if own.prompt is None:
        names = input_names(context, own.files, "give --prompt and --response")
        return file_inputs(context, names, fields)
    prompt, response = _texts_of(own.prompt, own.response or "")
    pair, max_bytes = Pair(prompt, response, separator), given(context, Reading).max_bytes
    return file_inputs(context, [], fields, pair_sample(pair, "<pair>", own.chat, max_bytes))


def choice_inputs(context: typer.Context) -> Inputs:
    """The files of prompts with several responses, or the one prompt of the command line."""
    from seqloss_cli.core.records import Choices
    from seqloss_cli.inputs.choices import ChoiceFields
    from seqloss_cli.inputs.reading import choices_sample

    own, pairs = given(context, ChoiceArguments), given(context, PairArguments)
    separator = given(context, PairPolicy).separator
    fields = ChoiceFields(
        prompt=None if own.no_prompt else pairs.prompt_field,
        choices=tuple(own.choices_field.split(",")),
        answer=own.answer_field,
        fixed_answer=own.answer,
        separator=separator,
        chat=pairs.chat,
    )
    if pairs.prompt is None:
        names = input_names(context, pairs.files, "give --prompt and --response twice or more")
        return file_inputs(context, names, fields)
    prompt, *responses = _texts_of(pairs.prompt, *(own.response or ()))
    answers = None if own.answer is None else (own.answer,)
    choices = Choices(prompt, tuple(responses), separator, answers, pairs.chat)
    sample = choices_sample(choices, max_bytes=given(context, Reading).max_bytes)
    return file_inputs(context, [], fields, sample)


def input_names(context: typer.Context, files: list[str] | None, otherwise: str) -> list[str]:
    """The files, the data set, or stdin when something is piped in. Raises UsageError when there is
    nothing."""
    if given(context, Reading).dataset is not None:
        return []
    if files:
        _read_stdin_once(files)
        return files
    # On a terminal nothing is piped in: to wait for what is typed would look like a hang.
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(f"nothing to score: name files, pipe a file in, or {otherwise}")
    return [STDIN]


def _read_stdin_once(names: Sequence[str]) -> None:
    if names.count(STDIN) > 1:
        raise UsageError("'-' (stdin) can be read once only")


def pair_policy(context: typer.Context) -> PairPolicy:
    """The policies for pairs and chats. Raises UsageError when a template cannot be read."""
    from seqloss_cli.cli.settings import earlier_run

    path, policy = given(context, PairArguments).chat_template, given(context, PairPolicy)
    template = None if path is None else _file_text("--chat-template", path)
    # With --resume a template is told the time that it was told before.
    earlier = (earlier_run(context).get("pairs") or {}).get("template_date")
    date = policy.template_date or earlier
    return replace(policy, chat_template=template, template_date=date)


def _texts_of(prompt: str, *responses: str) -> list[str]:
    """The texts of --prompt and each --response, of which one may be on stdin."""
    _read_stdin_once((prompt, *responses))
    return [
        _text_of("--response" if n else "--prompt", text)
        for n, text in enumerate((prompt, *responses))
    ]


def _text_of(flag: str, value: str) -> str:
    """A text as it stands, of a file (`@FILE`) or of stdin (`-`); `@@` stands for one `@`.

    Nothing is cut off: a file's last line break is part of the text. Raises UsageError when the
    file cannot be read as UTF-8.
    """
    if value.startswith("@@"):
        return value[1:]
    if value != STDIN and not value.startswith("@"):
        return value
    if value != STDIN:
        return _file_text(flag, Path(value[1:]))
    if sys.stdin is None:
        raise UsageError(f"{flag} -: stdin is closed")
    # Bytes: Python's text mode would make one byte of \r\n, and other tokens.
    return _decoded(f"{flag} -", sys.stdin.buffer.read())


def _file_text(flag: str, path: Path) -> str:
    """The text of a file. Raises UsageError when it cannot be read as UTF-8."""
    try:
        return _decoded(f"{flag} {path}", path.read_bytes())
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}") from error


def _decoded(where: str, raw: bytes) -> str:
    from seqloss_cli.inputs.streams import BOM, wide_encoding

    if (encoding := wide_encoding(raw[:64])) is not None:
        raise UsageError(f"{where}: is {encoding}, and not UTF-8")
    if raw.startswith(BOM):
        say(f"note: {where}: the byte-order mark at its beginning is left out")
    try:
        return raw.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: is not UTF-8 at byte {error.start}") from error


def say_unused(file: SideFile[Any], name: str, limited: bool = False) -> None:
    """Report the rows of a file beside the inputs that belong to none of them."""
    # With --limit and --shard most rows have no input, which is no mistake.
    if (unused := file.count_unused()) and not limited:
        say(f"warning: {unused} rows of {name} belong to no input")
    say_first("warning", file.unmatched)
