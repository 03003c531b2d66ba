"""Options and inputs of the command that takes prompts with several responses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import pairs as p
from seqloss_cli.cli.inputs import STDIN, input_names, text_of
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.core.records import Rejected, Sample
    from seqloss_cli.inputs import ReadOptions, ReadStats

CHOICE_INPUTS: o.Group = {
    "files": (
        Annotated[
            list[str] | None,
            typer.Argument(metavar="[FILES…|-]", help="JSONL rows; .gz, .zst."),
        ],
        None,
    ),
    "prompt": p.PAIR_INPUTS["prompt"],
    "response": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--response",
                help="A response: a text, @FILE or - (stdin); twice or more.",
                rich_help_panel=o.INPUT,
                show_default=False,
            ),
        ],
        None,
    ),
    "prompt_field": p.PAIR_INPUTS["prompt_field"],
    "no_prompt": (
        Annotated[bool, o.flag(o.INPUT, "--no-prompt", "Rows have no prompt: minimal pairs.")],
        False,
    ),
    "choices_field": (
        Annotated[
            str,
            o.option(
                o.INPUT, "--choices-field", "Field with the list; or a,b: a response in each."
            ),
        ],
        "choices",
    ),
    "answer_field": (
        Annotated[
            str,
            o.option(o.INPUT, "--answer-field", "Field with the right one: its place, from 0."),
        ],
        "answer",
    ),
    "answer": (
        Annotated[
            int | None,
            o.option(o.INPUT, "--answer", "The right one, the same for all rows.", min=0),
        ],
        None,
    ),
    "separator": p.PAIR_INPUTS["separator"],
    **o.INPUT_OPTIONS,
}


def refuse_fields(context: typer.Context) -> None:
    """Raises UsageError for names of fields where there are none."""
    values = context.params
    of_rows = ("choices_field", "answer_field", "prompt_field")
    given = [name for name in of_rows if _is_given(context, name)]
    if given and values["prompt"] is not None:
        raise UsageError(f"--{given[0].replace('_', '-')} is for rows of FILES, not --prompt")
    if "prompt_field" in given and values["no_prompt"]:
        raise UsageError("--no-prompt and --prompt-field exclude each other")
    if "answer_field" in given and values["answer"] is not None:
        raise UsageError("--answer is the same for all rows; --answer-field is each row's own")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def choice_names(context: typer.Context) -> list[str]:
    """The names of input files; none when the choices stand on the command line."""
    values = context.params
    responses, prompt = values["response"] or [], values["prompt"]
    if prompt is None and not responses:
        return input_names(values["files"], "give --prompt and --response twice or more")
    if prompt is None or len(responses) < 2:
        raise UsageError(
            "--prompt goes with two or more --response; an empty prompt is --prompt ''"
        )
    if values["files"]:
        raise UsageError("--prompt and --response exclude FILES")
    if [prompt, *responses].count(STDIN) > 1:
        raise UsageError("'-' (stdin) can be read once only")
    return []


def choice_items(
    context: typer.Context, names: list[str], stats: ReadStats
) -> Iterable[Sample | Rejected]:
    """Samples of the files, or the one row of the command line."""
    from seqloss_cli.core.records import Choices
    from seqloss_cli.inputs import choices_sample, read_inputs

    values = context.params
    if names:
        return read_inputs(names, choice_reading(context), stats)
    responses = tuple(text_of("--response", each) for each in values["response"])
    answers = None if values["answer"] is None else (values["answer"],)
    prompt = text_of("--prompt", values["prompt"])
    choices = Choices(prompt, responses, values["separator"], answers, values["chat"])
    return [choices_sample(choices, max_bytes=values["max_bytes"])]


def choice_reading(context: typer.Context) -> ReadOptions:
    """How rows are read."""
    from seqloss_cli.cli.choices import choose_reading
    from seqloss_cli.inputs import ChoiceFields

    values = context.params
    fields = ChoiceFields(
        prompt=None if values["no_prompt"] else values["prompt_field"],
        choices=tuple(values["choices_field"].split(",")),
        answer=values["answer_field"],
        fixed_answer=values["answer"],
        separator=values["separator"],
        chat=values["chat"],
    )
    return choose_reading(context, pairs=fields)
