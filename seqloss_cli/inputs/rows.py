"""Parse JSONL rows: a text, ids with labels, a pair, or a chat."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from seqloss_cli.core.errors import RowError, did_you_mean
from seqloss_cli.core.records import IGNORED, Chat, Ints, Pair, WrittenNumber
from seqloss_cli.tokenization.chat_templates import MEDIA
from seqloss_cli.tokenization.chats import check_message, pair_as_chat

_MOST_NAMES = 10
_MASK = re.compile(
    r"^(completion|assistant|response|loss|answer|action|target|labels?|step_loss)_masks?$"
)
"""Lists of 0 and 1 beside ids that say which tokens count: TRL's, transformers', others'."""
_NO_LOSS = ("attention_mask", "special_tokens_mask")
"""Masks that say something else."""
_PACKED = ("seq_idx", "seq_ids", "sequence_ids", "segment_ids", "document_ids", "doc_ids")
"""A number for each token that says which sequence of a packed row it is of."""
_ANY_MASK = re.compile(r"(^|_)masks?$")
_WEIGHT = re.compile(r"(^|_)(mask|weight)s?$|^labels$|^prompt_len", re.IGNORECASE)
"""Names of fields that say which tokens count, or how much."""
_IDS = re.compile(r"(token|tokens|input|prompt|response|completion|output)_ids$")
"""Names of ids that a text has already."""
_CHATS = ("messages", "prompt")
_IDENTITIES = ("id", "item", "condition")
_OTHER_NAMES = {
    "text": ("content", "document", "sentence", "body"),
    "prompt": ("question", "instruction", "query", "input", "context"),
    "response": ("completion", "answer", "output", "target", "chosen"),
    "choices": ("options", "endings", "responses", "completions"),
}
"""Names that data sets give these fields."""
_LONG = 20
"""Digits of the longest whole number of 64 bits."""
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
        content["meta"] = _meta(raw, {"id", *used})
    return content if own_id is None else content | {"id": own_id}


def refuse_document(text: str) -> None:
    """Raises RowError for the content of a `.json` file that is made of rows, and no text."""
    value, first = _json_or_none(text), _json_or_none(text.lstrip().partition("\n")[0])
    if isinstance(value, list):
        raise _document("a JSON array", ".[]")
    if isinstance(first, dict):
        raise RowError("json_document", "is JSON lines, and not a text: --jsonl-input reads rows")
    for key, rows in value.items() if isinstance(value, dict) else ():
        if _is_list_of_objects(rows) and rows:
            raise _document(f"a JSON object with rows in {key!r:.40}", f".[{json.dumps(key)}][]")


def refuse_document_line(raw: bytes, first: bytes | None = None) -> None:
    """Raises RowError where rows of a line are read, and a JSON document of several lines begins:
    for its first line, or its second after the `first`."""
    value, start = _json_or_none(raw), raw.split()[:1]
    is_array = start == [b"["] or raw.lstrip().startswith(b"[{")
    if first is None:
        if (_is_list_of_objects(value) and value) or (value is None and is_array):
            raise _document("a JSON array", ".[]")
    # A brace alone may be a broken row, too: a document goes on with the name of a field.
    elif first.strip() == b"{" and raw.lstrip().startswith(b'"'):
        raise _document("JSON over several lines", ".")


def _document(what: str, query: str) -> RowError:
    message = f"is {what}, and not a row in each line: `jq -c '{query}' FILE` writes these"
    return RowError("json_document", message)


def _json_or_none(raw: str | bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises RowError for anything else."""
    try:
        # The standard library's json would take NaN and halves of surrogate pairs.
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        # Its own text would name line 1 of what is one line of a file.
        what = f"{error.msg} (column {error.colno})"
        if error.doc.startswith(("NaN", "Infinity"), error.pos):
            what += "; JSON has no such number: write null"
        raise RowError("bad_json", f"is not JSON: {what}") from None
    if not isinstance(row, dict):
        raise RowError("wrong_type", "is not a JSON object")
    for name in _IDENTITIES:
        # What is beyond 64 bits is a float to orjson: as text it keeps its digits.
        if isinstance(row.get(name), float):
            row[name] = _exact(raw, parse_int=str)[name]
    return row


def _meta(raw: bytes, used: set[str]) -> dict[str, Any]:
    """The fields of a row that are not used, numbers as they were written."""
    row = _exact(raw, parse_int=whole_number, parse_float=WrittenNumber)
    meta = {key: value for key, value in row.items() if key not in used}
    try:
        # With room for what it stands in where it is written.
        orjson.dumps([[[meta]]], default=float)
    except TypeError:
        raise RowError("too_deep", "is nested too deep to be written (--keep-meta)") from None
    return meta


def whole_number(digits: str) -> int | float:
    """A whole number of JSON; with its digits where no 64 bits hold it."""
    # The range of orjson, in both directions.
    if len(digits) > _LONG or digits == "-0" or not -(1 << 63) <= int(digits) < 1 << 64:
        return WrittenNumber(digits)
    return int(digits)


def _exact(raw: bytes, **hooks: Any) -> dict[str, Any]:
    """The object of a line that orjson takes, by the standard library with its hooks."""
    try:
        found: dict[str, Any] = json.loads(raw, **hooks)
    except RecursionError:
        raise RowError("too_deep", "is nested too deep") from None
    return found


def own_id_of(row: dict[str, Any]) -> str | None:
    """The row's `id` as text; None where it has none."""
    value = string_or_whole(row, "id")
    return None if value is None else str(value)


def missing_field(row: dict[str, Any], field: str, flag: str) -> RowError:
    """The error for a row without a field that `flag` could name."""
    names = ", ".join(f"{name!r:.40}" for name in sorted(row)[:_MOST_NAMES]) or "none"
    names += ", …" if len(row) > _MOST_NAMES else ""
    objects = {k: v[0] for k, v in row.items() if _is_list_of_objects(v) and v}
    chats = [k for k, v in objects.items() if k not in _CHATS and {"role", "from"}.intersection(v)]
    named = [name for name in _OTHER_NAMES.get(field, ()) if name in row]
    near = did_you_mean(field, named or row) or did_you_mean(field, named, least_alike=0.0)
    option, semicolon, more = flag.partition(";")
    advice = near.replace("mean ", f"mean {option} ") if near else f"; see {option}"
    advice += semicolon + more
    if chats:
        advice += f"; {chats[0]!r:.40} may be a chat, which is read from 'messages'"
    return RowError("missing_field", f"has no field {field!r} (its fields: {names}){advice}")


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
        text = checked_text(string_field(row, text_field))
        return {"text": text} | unused(row, {text_field}, MEDIA), {text_field}
    if "input_ids" not in row:
        hint = "; ids are read from 'input_ids'" * any(map(_IDS.search, row))
        raise missing_field(row, text_field, f"--text-field{hint}")
    ids = whole_numbers(row["input_ids"], "input_ids")
    if not len(ids):
        raise RowError("empty", "field 'input_ids' is empty")
    _refuse_packed(row, len(ids))
    fields = {"input_ids": ids}
    if (labels := masked(row, ids, _labels(row, ids))) is not None:
        fields["labels"] = labels
    used = {"input_ids", "labels", "attention_mask", *filter(_MASK.search, row)}
    return fields | unused(row, used), used


def masked(row: dict[str, Any], ids: Ints, labels: Ints | None) -> Ints | None:
    """The labels (without, the ids), shape N, where the row's masks are 1: where all of them are,
    as TRL has it. Without masks the labels as they are. Raises RowError for what is no mask."""
    for name, mask in row.items():
        if name in _NO_LOSS or mask is None or not _ANY_MASK.search(name):
            continue
        if not _MASK.search(name):
            why = "does 0 or 1 say that a token counts? Call it loss_mask, 1 where one does"
            raise RowError("bad_labels", f"has {name!r:.40}: {why}")
        is_mask = isinstance(mask, list) and len(mask) == len(ids)
        if not is_mask or any(each not in (0, 1) for each in mask):
            raise RowError("bad_labels", f"{name} is not a 0 or 1 for each of {len(ids)} input_ids")
        labels = np.where(np.array(mask) == 1, ids if labels is None else labels, IGNORED)
    return labels


def _refuse_packed(row: dict[str, Any], n: int) -> None:
    """Raises RowError for ids that are padded, or several sequences in one row."""
    attended = row.get("attention_mask")
    if attended is not None and attended != [1] * n:
        message = "its attention_mask is not 1 at each of its input_ids: leave padding out"
        raise RowError("padded", message)
    whole = {"seq_lengths": [n], "position_ids": [*range(n)], "cu_seqlens": [0, n]}
    for name in (*whole, *_PACKED):
        given = row.get(name)
        if isinstance(given, list) and given != whole.get(name, given[:1] * n):
            several = "of several sequences: give a row to each"
            raise RowError("packed_row", f"its {name} is {several}")


def _labels(row: dict[str, Any], ids: Ints) -> Ints | None:
    if "labels" not in row:
        return None
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
    return labels


@dataclass(frozen=True, slots=True)
class PairFields:
    """Fields of a row's prompt and response, and how a pair is made of them."""

    prompt: str = "prompt"
    response: str = "response"
    separator: str = ""
    chat: bool = False
    """Wrap them as one turn of the user and one of the assistant."""


@dataclass(frozen=True, slots=True)
class RecordingFields:
    """The field of a row with its log-probabilities."""

    field: str | None = None
    """None for the only one that there is, of those that engines and trainers write."""


TEMPLATE = ("tools", "chat_template_kwargs", "documents")
CONTEXT = (
    *("system", "system_prompt", "system_message", "system_instruction", "history", "context"),
    *("input", "instruction", "instructions", "prefix", "suffix", "passage", "functions", "files"),
    *("documents", "tools", "chat_template", "continue_final_message", "add_generation_prompt"),
    *("reasoning", "reasoning_content", "thinking", "enable_thinking", "reasoning_effort", *MEDIA),
)
"""Fields that data sets put beside a prompt, and that belong before the response or tell how it is
rendered."""


def pair_or_chat(row: dict[str, Any], fields: PairFields) -> Content:
    """A pair, or the messages of a row without a response; and the fields that were used."""
    prompt, response = row.get(fields.prompt), row.get(fields.response)
    if "messages" in row and fields.response not in row:
        return _chat_content(row, fields, messages_of(row["messages"], "field 'messages'"))
    for field, flag in ((fields.prompt, "--prompt-field"), (fields.response, "--response-field")):
        if field not in row:
            raise missing_field(row, field, flag)
    if "messages" in row:
        both = f"has both 'messages' and {fields.response!r}; give one of them"
        raise RowError("ambiguous", both)
    if isinstance(prompt, list) or isinstance(response, list):
        before = as_messages(prompt, "user", f"field {fields.prompt!r}")
        after = as_messages(response, "assistant", f"field {fields.response!r}")
        return _chat_content(row, fields, [*before, *after], len(before))
    texts = string_field(row, fields.prompt), string_field(row, fields.response)
    pair = Pair(*texts, fields.separator)
    used = {fields.prompt, fields.response, *(TEMPLATE if fields.chat else ())}
    template = template_fields(row, used) if fields.chat else {}
    return pair_content(pair, fields.chat, template) | unused(row, used, CONTEXT), used


def _chat_content(
    row: dict[str, Any], fields: PairFields, messages: list[dict[str, Any]], n_prompt: int = 0
) -> Content:
    """A chat of messages, the first of them a prompt's, as TRL has them."""
    refuse_separator(fields.separator)
    used = {fields.prompt, fields.response, *TEMPLATE} if n_prompt else {"messages", *TEMPLATE}
    chat = Chat(messages, n_prompt=n_prompt, **template_fields(row, used))
    # What is told of the prompt may stand in a field of its own, too.
    is_told = row.get(fields.prompt) in [message.get("content") for message in messages]
    context = CONTEXT if is_told else (*CONTEXT, fields.prompt)
    return {"chat": chat} | unused(row, used, context), used


def refuse_separator(separator: str) -> None:
    """Raises RowError for a separator where a chat's template separates."""
    if separator:
        raise RowError(
            "separator_with_chat", "--separator is for plain pairs; a chat's template separates"
        )


def unused(
    row: dict[str, Any], used: Collection[str], context: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The flags of a row, counts of its fields that are not used: of `context`, of weights and
    masks of tokens, of ids."""
    left = {k: v for k, v in row.items() if k not in used and (v or v in (False, 0))}
    counts = {
        "unused_context": sum(name in context for name in left),
        "unused_weights": sum(map(_is_weight, left, left.values())),
        "unused_ids": sum(isinstance(left[name], list) for name in filter(_IDS.search, left)),
    }
    flags = {name: n for name, n in counts.items() if n}
    return {"flags": flags} if flags else {}


def _is_weight(name: str, value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    # Of lengths 1 says as much as any other.
    says = [v for v in values if isinstance(v, int | float) and (v != 1 or name[0] == "p")]
    return bool(says) and name not in _NO_LOSS and _WEIGHT.search(name) is not None


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


def template_fields(row: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """Return what the template of a row's chat is given beside messages.

    Raises RowError for what no text stands for: pictures and the like.
    """
    for name in MEDIA:
        if row.get(name) and name not in used:
            raise RowError("unsupported_part", f"field {name!r} is no text: it cannot be scored")
    tools, kwargs = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str) and tools:  # as columns of one type have them
        tools = _json_or_none(tools)
        if tools is None:
            raise RowError("wrong_type", "field 'tools' is a string that is no JSON")
    for name, value in (("tools", tools), ("documents", row.get("documents"))):
        if value is not None and value != "" and not _is_list_of_objects(value):
            raise RowError("wrong_type", f"field {name!r} is not a list of objects")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise RowError("wrong_type", "field 'chat_template_kwargs' is not an object")
    documents = {"documents": row["documents"]} if row.get("documents") else {}
    return {"tools": tools or None, "template_kwargs": {**documents, **(kwargs or {})}}


def as_messages(value: object, role: str, where: str) -> list[dict[str, Any]]:
    """The messages of a field, or its text as one of a role."""
    if not isinstance(value, str | list):
        raise RowError("wrong_type", f"{where} is neither a text nor a list of messages")
    is_text = isinstance(value, str)
    return [{"role": role, "content": value}] if is_text else messages_of(value, where)


def messages_of(messages: object, where: str) -> list[dict[str, Any]]:
    """The messages of a field, checked."""
    if not _is_list_of_objects(messages):
        raise RowError("wrong_type", f"{where} is not a list of objects")
    assert isinstance(messages, list)
    if not messages:
        raise RowError("empty", f"{where} is empty")
    for n, message in enumerate(messages):
        check_message(n, message)
        if not isinstance(message.get("content"), str | list | None):
            raise RowError("wrong_type", f"the content of message {n} is no text")
    return messages


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
