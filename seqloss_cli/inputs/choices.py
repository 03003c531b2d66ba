"""Parse JSONL rows of a prompt and the responses that are to be ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Choices
from seqloss_cli.inputs.rows import Content, checked_text, encodable, missing_field, string_field


@dataclass(frozen=True, slots=True)
class ChoiceFields:
    """Fields of a row's prompt, responses and right answer, and how choices are made of them."""

    prompt: str | None = "prompt"
    """None where rows have none: their prompts are empty."""
    choices: tuple[str, ...] = ("choices",)
    """A list; with several names, each a response of its own."""
    answer: str = "answer"
    """Its place among them from 0, its text, or a list of these; a row may be without."""
    fixed_answer: int | None = None
    """One for all rows, in place of the field."""
    separator: str = ""
    chat: bool = False


def choice_content(row: dict[str, Any], fields: ChoiceFields) -> Content:
    """A prompt with several responses, and the fields that were used."""
    used = {*fields.choices, fields.answer, *([] if fields.prompt is None else [fields.prompt])}
    if fields.prompt is not None and fields.prompt not in row:
        raise missing_field(
            row, fields.prompt, "--prompt-field; --no-prompt takes rows without one"
        )
    for field in fields.choices:
        if field not in row:
            raise missing_field(row, field, "--choices-field")
    if len(fields.choices) > 1:
        responses = [string_field(row, field) for field in fields.choices]
    else:
        responses = row[fields.choices[0]]
        if not isinstance(responses, list) or not all(isinstance(r, str) for r in responses):
            raise RowError("wrong_type", f"field {fields.choices[0]!r} is not a list of strings")
    answer = row.get(fields.answer) if fields.fixed_answer is None else fields.fixed_answer
    choices = Choices(
        "" if fields.prompt is None else string_field(row, fields.prompt),
        tuple(responses),
        fields.separator,
        _answers(answer, responses, fields.answer),
        fields.chat,
    )
    return {"choices": checked_choices(choices)}, used


def checked_choices(choices: Choices) -> Choices:
    """The choices. Raises RowError for fewer than two, and for texts that have no encoding."""
    if len(choices.responses) < 2:
        raise RowError("too_few_choices", f"has {len(choices.responses)} choices; two are needed")
    encodable(choices.prompt, "the prompt")
    encodable(choices.separator, "the separator")
    for n, response in enumerate(choices.responses):
        checked_text(response, f"choice {n}")
    return choices


def _answers(value: Any, responses: list[str], field: str) -> tuple[int, ...] | None:
    """Places of the right responses; None where the row names none."""
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if not values:
        raise RowError("bad_answer", f"field {field!r} is an empty list")
    return tuple(_answer(each, responses, field) for each in values)


def _answer(value: Any, responses: list[str], field: str) -> int:
    # Not isinstance: `true` would be place 1.
    if type(value) is int and 0 <= value < len(responses):
        return value
    if isinstance(value, str):
        places = {responses.index(value)} if value in responses else set()
        # isdigit takes superscripts, which int refuses; int refuses thousands of digits.
        short = value.isascii() and value.isdigit() and len(value) < 10
        if short and int(value) < len(responses):
            places.add(int(value))
        if len(places) > 1:
            raise RowError(
                "bad_answer",
                f"field {field!r} is {value!r}: that is a choice and the place of another; give a "
                "number for a place",
            )
        if places:
            return places.pop()
    raise RowError(
        "bad_answer",
        f"the answer ({field!r}) is {value!r:.60}, neither the place of one of {len(responses)} "
        "choices, counted from 0, nor the text of one",
    )
