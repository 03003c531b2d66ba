"""Parse JSONL rows: a text, ids with labels, a pair, or a chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import IGNORED, Chat, Ints, Pair
from seqloss_cli.tokenization.chats import check_message, pair_as_chat

_MOST_NAMES = 10
Content = tuple[dict[str, Any], set[str]]
"""Fields of the `Sample` that a row makes, and the names of the row's fields that were used."""


def parse_row(
    raw: bytes, content_of: Callable[[dict[str, Any]], Content], keep_meta: bool
) -> dict[str, Any]:
    """The fields of the `Sample` that a line makes, by `content_of` its row. Raises RowError."""
    row = parse_object(raw)
    own_id = own_id_of(row)
    try:
        content, used = content_of(row)
    except RowError as error:
        # The rejection is found by the row's own id, which was read before the row was refused.
        error.row_id = own_id
        raise
    if keep_meta:
        content["meta"] = {key: value for key, value in row.items() if key not in {"id", *used}}
    return content if own_id is None else content | {"id": own_id}


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises RowError for anything else."""
    try:
        # The standard library's json would take NaN and halves of surrogate pairs.
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RowError("bad_json", f"is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RowError("wrong_type", "is not a JSON object")
    return row


def own_id_of(row: dict[str, Any]) -> str | None:
    """The row's `id` as text; None where it has none."""
    value = string_or_whole(row, "id")
    return None if value is None else str(value)


def missing_field(row: dict[str, Any], field: str, flag: str) -> RowError:
    """The error for a row without a field that `flag` could name."""
    names = ", ".join(f"{name!r:.40}" for name in sorted(row)[:_MOST_NAMES]) or "none"
    names += ", …" if len(row) > _MOST_NAMES else ""
    return RowError("missing_field", f"has no field {field!r} (its fields: {names}); see {flag}")


def string_field(row: dict[str, Any], field: str) -> str:
    """The value of a field that must be a string."""
    value = row[field]
    if not isinstance(value, str):
        raise RowError("wrong_type", f"field {field!r} is not a string")
    return value


def string_or_whole(row: Mapping[str, Any], field: str) -> str | int | None:
    """The value of a field that must be a string, a whole number, or absent."""
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise RowError("wrong_type", f"field {field!r} is neither a string nor a whole number")
    return value


def whole_numbers(value: object, name: str) -> Ints:
    """A list of N whole numbers as an array of shape N."""
    # orjson makes floats of numbers beyond 64 bits, and `true` is an int to isinstance.
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        raise RowError("wrong_type", f"field {name!r} is not a list of whole numbers")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError:
        raise RowError("wrong_type", f"field {name!r} holds a number beyond 64 bits") from None


def checked_text(text: str, what: str = "") -> str:
    """The text, if it holds something that can be encoded."""
    if not text:
        raise RowError("empty", f"{what} is empty" if what else "holds no text")
    return encodable(text, what)


def encodable(text: str, what: str = "") -> str:
    """The text, if it can be encoded: JSON's escapes and shells let half a character through."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"{what} holds" if what else "holds"
        raise RowError(
            "lone_surrogate", f"{where} half of a character at position {error.start}"
        ) from None
    return text


def text_or_ids(row: dict[str, Any], text_field: str) -> Content:
    """The sample's text, or its ids and labels; and the fields that were used."""
    if text_field in row and "input_ids" in row:
        raise RowError("ambiguous", f"has both {text_field!r} and 'input_ids'; give one of them")
    if text_field in row:
        return {"text": checked_text(string_field(row, text_field))}, {text_field}
    if "input_ids" not in row:
        raise missing_field(row, text_field, "--text-field")
    ids = whole_numbers(row["input_ids"], "input_ids")
    if not len(ids):
        raise RowError("empty", "field 'input_ids' is empty")
    fields = {"input_ids": ids} | _labels(row, ids)
    return fields, set(fields)


def _labels(row: dict[str, Any], ids: Ints) -> dict[str, Ints]:
    if "labels" not in row:
        return {}
    labels = whole_numbers(row["labels"], "labels")
    if len(labels) != len(ids):
        raise RowError("bad_labels", f"has {len(labels)} labels for {len(ids)} input_ids")
    wrong = (labels != IGNORED) & (labels != ids)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise RowError(
            "bad_labels",
            f"labels[{at}] is {labels[at]}, neither -100 nor input_ids[{at}] = {ids[at]} (labels "
            "are not shifted)",
        )
    return {"labels": labels}


@dataclass(frozen=True, slots=True)
class PairFields:
    """Fields of a row's prompt and response, and how a pair is made of them."""

    prompt: str = "prompt"
    response: str = "response"
    separator: str = ""
    chat: bool = False
    """Wrap them as one turn of the user and one of the assistant."""


_TEMPLATE = ("tools", "chat_template_kwargs")


def pair_or_chat(row: dict[str, Any], fields: PairFields) -> Content:
    """A pair, or the messages of a row without a response; and the fields that were used."""
    if "messages" in row and fields.response not in row:
        if fields.separator:
            raise RowError(
                "separator_with_chat", "--separator is for plain pairs; a chat's template separates"
            )
        template = _template_fields(row)
        return {"chat": Chat(_messages(row["messages"]), **template)}, {"messages", *_TEMPLATE}
    for field, flag in ((fields.prompt, "--prompt-field"), (fields.response, "--response-field")):
        if field not in row:
            raise missing_field(row, field, flag)
    if "messages" in row:
        raise RowError(
            "ambiguous", f"has both 'messages' and {fields.response!r}; give one of them"
        )
    pair = Pair(
        string_field(row, fields.prompt), string_field(row, fields.response), fields.separator
    )
    template = _template_fields(row) if fields.chat else {}
    used = {fields.prompt, fields.response, *(_TEMPLATE if fields.chat else ())}
    return pair_content(pair, fields.chat, template), used


def pair_content(
    pair: Pair, as_chat: bool, template: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A pair, checked; with `as_chat` also the chat that it makes. Prompts may be empty."""
    encodable(pair.prompt, "the prompt")
    encodable(pair.separator, "the separator")
    checked_text(pair.response, "the response")
    if not as_chat:
        return {"pair": pair}
    return {"pair": pair, "chat": pair_as_chat(pair, **(template or {}))}


def _template_fields(row: dict[str, Any]) -> dict[str, Any]:
    tools, kwargs = row.get("tools"), row.get("chat_template_kwargs")
    if tools is not None and not _is_list_of_objects(tools):
        raise RowError("wrong_type", "field 'tools' is not a list of objects")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise RowError("wrong_type", "field 'chat_template_kwargs' is not an object")
    return {"tools": tools or None, "template_kwargs": kwargs or {}}


def _messages(messages: object) -> list[dict[str, Any]]:
    if not _is_list_of_objects(messages):
        raise RowError("wrong_type", "field 'messages' is not a list of objects")
    assert isinstance(messages, list)
    if not messages:
        raise RowError("empty", "field 'messages' is empty")
    for n, message in enumerate(messages):
        check_message(n, message)
        if not isinstance(message.get("content"), str | list | None):
            raise RowError("wrong_type", f"the content of message {n} is no text")
    return messages


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
