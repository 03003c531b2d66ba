"""Parse JSONL rows of a prompt and the responses that are to be ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import orjson

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Choices
from seqloss_cli.inputs.rows import (
    CONTEXT,
    TEMPLATE,
    Content,
    as_messages,
    checked_text,
    encodable,
    missing_field,
    refuse_separator,
    template_fields,
    unused,
)
from seqloss_cli.tokenization.chat_templates import METADATA, WEIGHTS, content_text


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
        flag = "--prompt-field; --no-prompt takes rows without one"
        raise missing_field(row, fields.prompt, flag)
    for field in fields.choices:
        if field not in row:
            raise missing_field(row, field, "--choices-field")
    values, labels = _choice_values(row, fields)
    prompt: Any = "" if fields.prompt is None else row[fields.prompt]
    messages: Sequence[Mapping[str, Any]] = ()
    if of_messages := isinstance(prompt, list) or any(isinstance(v, list) for v in values):
        refuse_separator(fields.separator)
        messages, values = _conversation(prompt, values)
        prompt = _told(messages)
    if as_chat := of_messages or fields.chat:
        used |= {*TEMPLATE}
    elif not isinstance(prompt, str):
        raise RowError("wrong_type", f"field {fields.prompt!r} is not a string")
    _require_two(values)
    answer = row.get(fields.answer) if fields.fixed_answer is None else fields.fixed_answer
    choices = Choices(
        prompt,
        tuple(values),
        fields.separator,
        _answers(answer, values, labels, fields.answer),
        as_chat,
        messages,
        template_fields(row, used) if as_chat else {},
    )
    return {"choices": checked_choices(choices)} | unused(row, used, CONTEXT), used


def _choice_values(row: dict[str, Any], fields: ChoiceFields) -> tuple[list[Any], list[Any]]:
    """The choices, each a text or messages, and the names that answers may call them by."""
    first = fields.choices[0]
    value, labels = row[first], []
    if len(fields.choices) > 1:
        value, labels = [row[field] for field in fields.choices], [*fields.choices]
    # ARC and its like: {"text": […], "label": ["A", …]}.
    elif isinstance(value, dict) and isinstance(label := value.get("label"), list):
        value, labels = value.get("text"), label
    elif isinstance(value, dict) and "text" not in value:  # {"A": "a text", …}
        value, labels = [*value.values()], [*value]
    if isinstance(value, list):  # a message alone is a list of one
        value = [[each] if isinstance(each, dict) and "role" in each else each for each in value]
    named = ", ".join(map(repr, fields.choices))
    if not isinstance(value, list) or not all(isinstance(each, str | list) for each in value):
        kind = "is not a list of" if len(fields.choices) == 1 else "are not all"
        raise RowError("wrong_type", f"field {named} {kind} strings, or of messages")
    if labels and len(labels) != len(value):
        message = f"field {named} has {len(labels)} labels of {len(value)} texts"
        raise RowError("wrong_type", message)
    return value, labels


def _conversation(
    prompt: str | list[Any], values: list[Any]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The messages before the choices, and each choice's text: of TRL's rows, whose prompt may
    stand at the beginning of each choice."""
    chats = [as_messages(value, "assistant", f"choice {n}") for n, value in enumerate(values)]
    n_shared = 0
    most = min(map(len, chats), default=1) - 1
    while n_shared < most and all(chat[n_shared] == chats[0][n_shared] for chat in chats):
        n_shared += 1
    shared = chats[0][:n_shared] if chats else []
    before = as_messages(prompt, "user", "the prompt") if prompt else []
    own = [message for message in before if message not in shared]
    if own and shared and (own != before or isinstance(prompt, str)):
        raise RowError("ambiguous", "its choices begin with messages that its prompt has in part")
    if not (own or shared):
        raise RowError("missing_field", "its choices are messages, and none stands before them")
    texts = []
    for n, chat in enumerate(chats):
        answer = chat[n_shared]
        if len(chat) != n_shared + 1 or answer["role"] != "assistant" or answer.get("tool_calls"):
            raise RowError("wrong_type", f"choice {n} is more than one message of the assistant's")
        keys = [key for key, value in answer.items() if value and key not in ("role", "content")]
        if more := [key for key in keys if not (METADATA.search(key) or WEIGHTS.search(key))]:
            message = f"choice {n} has {more[0]!r:.40}: choices are ranked by contents alone"
            raise RowError("wrong_type", message)
        texts.append(content_text(answer))
    return [*own, *shared], texts


def _told(messages: Sequence[Mapping[str, Any]]) -> str:
    """A prompt of messages in one text: the user's, where it is the only one, else as JSON."""
    first = messages[0]
    if len(messages) == 1 and first["role"] == "user" and isinstance(first.get("content"), str):
        return str(first["content"])
    return orjson.dumps(messages).decode()


def checked_choices(choices: Choices) -> Choices:
    """The choices. Raises RowError for fewer than two, and for texts that have no encoding."""
    _require_two(choices.responses)
    encodable(choices.prompt, "the prompt")
    encodable(choices.separator, "the separator")
    for n, response in enumerate(choices.responses):
        checked_text(response, f"choice {n}")
    return choices


def _require_two(responses: Sequence[object]) -> None:
    """Raises RowError for fewer than two."""
    if (n := len(responses)) < 2:
        raise RowError("too_few_choices", f"has {n} choice{'s' * (n != 1)}; two are needed")


def _answers(
    value: Any, responses: list[str], labels: list[Any], field: str
) -> tuple[int, ...] | None:
    """Places of the right responses; None where the row names none."""
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if not values:
        raise RowError("bad_answer", f"field {field!r} is an empty list")
    if len(values) == len(responses):
        # One for each choice, as TruthfulQA has them: [1, 0, 0] is not the places 1, 0 and 0.
        if all(type(each) is bool for each in values) and any(values):
            return tuple(n for n, is_right in enumerate(values) if is_right)
        if all(type(each) is int and each in (0, 1) for each in values):
            raise RowError(
                "bad_answer",
                f"field {field!r} is {value!r:.60}: places, or whether each choice is right? Give "
                "the places, or true and false for each",
            )
    return tuple(_answer(each, responses, labels, field) for each in values)


def _answer(value: Any, responses: list[str], labels: list[Any], field: str) -> int:
    # Not isinstance: `true` would be place 1.
    if type(value) is int and (value in labels or 0 <= value < len(responses)):
        place = labels.index(value) if value in labels else value
        # Labels "1", "2" and "3", and the answer 2: the second or the third?
        if str(value) in labels and labels.index(str(value)) != place:
            raise RowError(
                "bad_answer",
                f"field {field!r} is {value}: that is the label of a choice and the place of "
                "another; give the label as it is written, or the text",
            )
        return place
    if isinstance(value, str):
        places = {responses.index(value)} if value in responses else set()
        # isdigit takes superscripts, which int refuses; int refuses thousands of digits.
        is_number = value.isascii() and value.isdigit() and len(value) < 10
        if value in labels:
            places.add(labels.index(value))
        elif is_number and int(value) < len(responses):
            # Winogrande's `option1` is its answer "1".
            ends = [str(label)[-1:] for label in labels]
            if labels and ends == [*ascii_uppercase[: len(ends)]]:  # as SIQA, which counts from 1
                raise RowError(
                    "bad_answer",
                    f"field {field!r} is {value!r}, and the choices are called by letters: counted "
                    "from 0 or from 1? Give a number for a place, from 0",
                )
            if value in ends and ends.index(value) != int(value):
                places.add(ends.index(value))
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
