"""Parse rows of log-probabilities that engines and trainers wrote, whatever shape they have.

Ids stand in lists; values in lists of numbers, vLLM's dicts, SGLang's triples or OpenAI's objects.
A list of values is as long as the ids, one shorter (the first token has none), or as long as the
response. Shape letters: N tokens of a row, P of its prompt, R of its response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Bools, Chat, Floats, Recording
from seqloss_cli.inputs.rows import (
    Content,
    RecordingFields,
    messages_of,
    missing_field,
    string_field,
    whole_numbers,
)

_PROMPTS = ("prompt_ids", "prompt_token_ids", "prompts")
_RESPONSES = (
    *("response_ids", "completion_ids", "responses", "output_ids", "output_token_ids"),
    *("response_token_ids", "completion_token_ids"),
)
_MASKS = ("loss_mask", "response_mask", "completion_mask", "assistant_masks")
_SAMPLER = ("rollout_log_probs", "sampling_per_token_logps", "sampling_logprobs")
_TRAINER = ("old_log_probs", "old_per_token_logps", "per_token_logps", "log_probs")
_ENGINE = ("logprobs", "token_logprobs", "response_logprobs", "output_token_logprobs")
_PROMPT_VALUES = ("prompt_logprobs", "input_token_logprobs")
FIELDS = (*_ENGINE, *_SAMPLER, *_TRAINER, *_PROMPT_VALUES)
"""Fields that hold log-probabilities, by the names that engines and trainers give them."""
_TOGETHER = {"logprobs": "prompt_logprobs", "output_token_logprobs": "input_token_logprobs"}
"""Fields of one engine's answer: the response's values, and its prompt's."""
_AS_ID = b"token_id:"
"""Begins the text of a token where vLLM writes ids as texts."""


@dataclass(frozen=True, slots=True)
class _Values:
    """The values of one field."""

    log_probs: list[float | None]
    ids: list[int] | None = None
    """Beside them, where the field holds ids, too."""
    pieces: list[bytes] | None = None
    """The tokens' bytes, where it holds these."""
    n_prompt_chars: list[int] | None = None
    """Characters of prompt and answer before each token (`echo`)."""


def recording_content(row: dict[str, Any], fields: RecordingFields) -> Content:
    """The ids of a row with its recording, and the fields that were used. Raises RowError."""
    whole, used = _unwrapped(row)
    names = _names_of_values(whole, fields.field)
    prompt, response, own = _ids(whole)
    parts = {
        name: _values_of(name, whole[name], _ids_for(name, prompt, response, own)) for name in names
    }
    used |= {*names, *_PROMPTS, *_RESPONSES, *_MASKS, "input_ids", "token_ids", "attention_mask"}
    used |= {"prompt_mask", "prompt", "messages"}
    before = next((parts[name] for name in names if name in _PROMPT_VALUES), None)
    after = next((parts[name] for name in names if name not in _PROMPT_VALUES), None)
    if before is not None and prompt is None and own is None:
        prompt = before.ids
    if after is not None and response is None and _is_answer(own, after):
        prompt, own, response = (own if prompt is None else prompt), None, after.ids
        if response is None:
            return _of_pieces(whole, prompt, after), used
    ids = own if own is not None else [*(prompt or ()), *(response or ())]
    if not ids:
        known = "; ids are read from 'input_ids', or 'prompt_ids' and 'response_ids'"
        raise missing_field(whole, "input_ids", f"--field{known}")
    n_prompt = None if prompt is None or response is None else len(prompt)
    log_probs = _aligned(names, before, after, len(ids), n_prompt)
    sampled = _sampled(whole, len(ids), n_prompt)
    return _trimmed(whole, np.array(ids, dtype=np.int64), log_probs, sampled, n_prompt), used


def _is_answer(own: list[int] | None, values: _Values) -> bool:
    """Return whether values bring their own tokens, which are not the row's ids."""
    if values.ids is None and values.pieces is None:
        return False
    if own is None or len(values.log_probs) not in (len(own), len(own) - 1):
        return True
    if values.ids is not None:
        return own[len(own) - len(values.ids) :] != values.ids
    # OpenAI's `content` is an answer's; completions may have the prompt in theirs.
    return values.n_prompt_chars is None


def _unwrapped(row: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The row with the fields of the answer that it wraps, and the names of the wrappers."""
    found, used = dict(row), set[str]()
    for name in ("choices", "outputs", "meta_info"):
        inner = row.get(name)
        if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner):
            if len(inner) > 1:
                raise RowError(
                    "several_answers",
                    f"has {len(inner)} {name}: a row is one sequence, so give each a row "
                    "(with the prompt's ids)",
                )
            inner = inner[0]
        if isinstance(inner, dict):
            found |= {k: v for k, v in inner.items() if v is not None}
            used.add(name)
    return found, used


def _names_of_values(row: dict[str, Any], asked: str | None) -> list[str]:
    """The fields that hold the values: one, or those of a prompt and its response."""
    if asked is not None:
        if row.get(asked) is None:
            raise missing_field(row, asked, "--field")
        return [asked]
    there = [name for name in FIELDS if isinstance(row.get(name), list | dict) and row[name]]
    for name, other in _TOGETHER.items():
        if [*there] in ([name, other], [other, name]):
            return [other, name]
    if not there:
        raise missing_field(row, "logprobs", "--field")
    if len(there) > 1:
        kinds = [f"{n} are the {_kind(n)}'s" for n in there if _kind(n)]
        told = f" ({', '.join(kinds)})" if kinds else ""
        named = ", ".join(map(repr, there))
        message = f"has log-probabilities in {named}{told}: --field chooses"
        raise RowError("several_fields", message)
    return there


def _kind(name: str) -> str:
    return "sampler" if name in _SAMPLER else "trainer" if name in _TRAINER else ""


def _ids(row: dict[str, Any]) -> tuple[list[int] | None, list[int] | None, list[int] | None]:
    """The ids of prompt, response and whole row, each None where the row has none."""
    prompt, response = _first(row, _PROMPTS), _first(row, _RESPONSES)
    own, tokens = _first(row, ("input_ids",)), _first(row, ("token_ids",))
    # A choice's `token_ids` are the response's where the prompt's stand beside them.
    if tokens is not None and response is None and (prompt is not None or own is not None):
        response = tokens
    elif tokens is not None and own is None:
        own = tokens
    if response is not None and own is not None:
        if prompt is None and own[len(own) - len(response) :] == response != own:
            prompt = own[: len(own) - len(response)]
        elif prompt is None:
            prompt, own = own, None
        elif own != [*prompt, *response]:
            raise RowError("ambiguous", "its input_ids are not those of prompt and response")
    elif prompt is not None and own is not None and own[: len(prompt)] == prompt:
        response = own[len(prompt) :] or None
    return prompt, response, own


def _first(row: dict[str, Any], names: Sequence[str]) -> list[int] | None:
    for name in names:
        value = row.get(name)
        # `prompts` and `responses` are texts in some data sets.
        if isinstance(value, list) and value and not isinstance(value[0], str | dict | list):
            found: list[int] = whole_numbers(value, name).tolist()
            return found
    return None


def _ids_for(
    name: str, prompt: list[int] | None, response: list[int] | None, own: list[int] | None
) -> list[list[int]]:
    """The lists of ids that a field's values may be of."""
    if name in _PROMPT_VALUES:
        lists: tuple[list[int] | None, ...] = (prompt, own)
    else:
        lists = (response, own, [*(prompt or ()), *(response or ())])
    return [each for each in lists if each]


def _values_of(name: str, value: Any, ids: list[list[int]]) -> _Values:
    """The values of a field of any shape."""
    if isinstance(value, dict) and isinstance(value.get("content"), list):
        return _openai(name, value["content"])
    if isinstance(value, dict) and isinstance(value.get("token_logprobs"), list):
        return _completions(value)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"field {name!r:.40} holds no log-probabilities")
    first = next((each for each in value if each is not None), None)
    if isinstance(first, dict) and "logprob" in first:
        return _openai(name, value)
    if isinstance(first, dict):
        return _dicts(name, value, ids)
    if isinstance(first, list):
        return _triples(name, value)
    return _Values([_number(name, each) for each in value])


def _number(name: str, value: Any) -> float | None:
    # JSON's `true` is an int to Python.
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise RowError("wrong_type", f"field {name!r:.40} holds {value!r:.40}, which is no number")


def _openai(name: str, content: list[Any]) -> _Values:
    """Values of OpenAI's `logprobs.content`: objects with `token`, `bytes` and `logprob`."""
    pieces, values = [], []
    for each in content:
        if not isinstance(each, dict) or not isinstance(each.get("token"), str):
            raise RowError("wrong_type", f"field {name!r:.40} holds an entry without a token")
        raw, text = each.get("bytes"), each["token"].encode()
        pieces.append(text if raw is None or text.startswith(_AS_ID) else _bytes(name, raw))
        values.append(_number(name, each.get("logprob")))
    return _with_ids(values, pieces)


def _bytes(name: str, raw: Any) -> bytes:
    try:
        return bytes(raw)
    except (TypeError, ValueError):
        raise RowError("wrong_type", f"field {name!r:.40}: bytes are no bytes") from None


def _completions(value: Mapping[str, Any]) -> _Values:
    """Values of the completions' object: `tokens`, `token_logprobs`, `text_offset`."""
    values = [_number("token_logprobs", each) for each in value["token_logprobs"]]
    tokens, starts = value.get("tokens"), value.get("text_offset")
    if not isinstance(tokens, list) or len(tokens) != len(values):
        return _Values(values)
    if not all(isinstance(each, str) for each in tokens):
        raise RowError("wrong_type", "field 'tokens' holds what is no text")
    is_known = isinstance(starts, list) and len(starts) == len(tokens)
    found = _with_ids(values, [each.encode() for each in tokens])
    return replace(found, n_prompt_chars=starts if is_known else None)


def _with_ids(values: list[float | None], pieces: list[bytes]) -> _Values:
    """Values of tokens whose texts are `token_id:N`, or that are known by their bytes."""
    if pieces and all(piece.startswith(_AS_ID) for piece in pieces):
        try:
            return _Values(values, [int(piece.removeprefix(_AS_ID)) for piece in pieces])
        except ValueError:
            raise RowError("wrong_type", "a token is called token_id: and has no id") from None
    return _Values(values, None, pieces)


def _dicts(name: str, value: list[Any], ids: list[list[int]]) -> _Values:
    """Values of vLLM's dicts, one for each token: an id to its log-probability."""
    known = next((each for each in ids if len(each) in (len(value), len(value) + 1)), None)
    behind = 0 if known is None else len(known) - len(value)
    values: list[float | None] = []
    found: list[int | None] = []
    for n, each in enumerate(value):
        if each is None:
            values.append(None)
            found.append(None if known is None else known[n + behind])
            continue
        if not isinstance(each, dict) or not each:
            raise RowError("wrong_type", f"field {name!r:.40} holds at {n} what is no dict of ids")
        key = next(iter(each)) if known is None else str(known[n + behind])
        if known is None and len(each) > 1:
            what = f"{name!r:.40} gives {len(each)} ids at {n}, and the row does not say which"
            raise RowError("missing_field", f"{what} one came: give its ids, too")
        if key not in each:
            raise RowError("other_ids", f"{name!r:.40} has at {n} no value of the row's id {key}")
        entry = each[key]
        values.append(_number(name, entry.get("logprob") if isinstance(entry, dict) else entry))
        found.append(int(key) if key.isascii() and key.isdigit() else None)
    if known is not None:
        return _Values(values)
    # Of a first token without a value no id is known either: what is known begins after it.
    start = 1 if found and found[0] is None else 0
    if any(each is None for each in found[start:]):
        raise RowError("missing_field", f"field {name!r:.40} holds no ids of all its tokens")
    return _Values(values[start:], [each for each in found[start:] if each is not None])


def _triples(name: str, value: list[Any]) -> _Values:
    """Values of SGLang's triples: log-probability, id, text."""
    for each in value:
        if not isinstance(each, list) or len(each) < 2 or type(each[1]) is not int:
            what = "is no log-probability with an id"
            raise RowError("wrong_type", f"field {name!r:.40} holds {each!r:.40}, which {what}")
    return _Values([_number(name, each[0]) for each in value], [each[1] for each in value])


def _aligned(
    names: list[str], before: _Values | None, after: _Values | None, n: int, n_prompt: int | None
) -> Floats:
    """The values at the tokens that they are of, shape N; NaN where there are none."""
    found = np.full(n, np.nan)
    if before is not None:
        most = n if n_prompt is None or after is None else n_prompt
        values = _floats(before.log_probs)
        if len(values) not in (most, most - 1):
            raise _wrong_length(names[0], len(values), most, None)
        found[most - len(values) : most] = values
    if after is None:
        return found
    values = _floats(after.log_probs)
    n_response = None if n_prompt is None else n - n_prompt
    if len(values) not in (n, n - 1, n_response):
        raise _wrong_length(names[-1], len(values), n, n_response)
    known = found[n - len(values) :]
    known[:] = np.where(np.isnan(values), known, values)
    return found


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array(values, dtype=np.float64)


def _wrong_length(name: str, n_values: int, n: int, n_response: int | None) -> RowError:
    of_response = "" if n_response is None else f", {n_response} of them of the response"
    why = "as many, one fewer (the first has none), or the response's are read"
    if n_response is not None and n_values == n_response - 1:
        why += "; is the value of the last token, EOS, missing?"
    message = f"{name!r:.40} has {n_values} values for {n} ids{of_response}: {why}"
    return RowError("wrong_length", message)


def _sampled(row: dict[str, Any], n: int, n_prompt: int | None) -> Bools | None:
    """The tokens that were sampled, shape N, as a mask says, or else the response's."""
    n_response = None if n_prompt is None else n - n_prompt
    sampled = None
    if n_prompt is not None:
        sampled = np.arange(n) >= n_prompt
    for name in _MASKS:
        if row.get(name) is None:
            continue
        own = _mask(row, name, (n, n_response))
        wide = np.concatenate([np.zeros(n - len(own), dtype=bool), own])
        sampled = wide if sampled is None else sampled & wide
    return sampled


def _mask(row: dict[str, Any], name: str, lengths: Sequence[int | None]) -> Bools:
    mask = row[name]
    if not isinstance(mask, list) or len(mask) not in lengths:
        known = " or ".join(str(each) for each in dict.fromkeys(lengths) if each is not None)
        raise RowError("bad_mask", f"{name!r:.40} is not a 0 or 1 for each of {known} ids")
    if any(each not in (0, 1) for each in mask):
        raise RowError("bad_mask", f"{name!r:.40} holds something other than 0 and 1")
    found: Bools = np.array(mask) == 1
    return found


def _trimmed(
    row: dict[str, Any], ids: Any, log_probs: Floats, sampled: Bools | None, n_prompt: int | None
) -> dict[str, Any]:
    """The fields of the sample, without the padding that masks name. Raises RowError where nothing
    is left."""
    n = len(ids)
    kept = np.ones(n, dtype=bool)
    if row.get("attention_mask") is not None:
        lengths = (n, None if n_prompt is None else n - n_prompt)
        own = _mask(row, "attention_mask", lengths)
        kept[n - len(own) :] = own
    if row.get("prompt_mask") is not None and n_prompt is not None:
        kept[:n_prompt] &= _mask(row, "prompt_mask", (n_prompt,))
    # A mask ends in zeros where the row is padded: with one id, again and again.
    if sampled is not None and any(row.get(name) is not None for name in _MASKS):
        behind = len([*takewhile(lambda one: not one, sampled[::-1])])
        if 0 < behind < n and len({*ids[n - behind :].tolist()}) == 1:
            kept[n - behind :] = False
    if not kept.any():
        raise RowError("empty", "its masks leave no token")
    before = None if n_prompt is None else int(kept[:n_prompt].sum())
    recording = Recording(log_probs[kept], None if sampled is None else sampled[kept], before)
    n_padding = int((~kept).sum())
    flags = {"flags": {"padding_dropped": n_padding}} if n_padding else {}
    if not np.isfinite(recording.log_probs).any():
        raise RowError("nothing_recorded", "holds no log-probability, nulls only")
    return {"input_ids": ids[kept], "recording": recording} | flags


def _of_pieces(row: dict[str, Any], prompt: list[int] | None, values: _Values) -> dict[str, Any]:
    """The fields of a sample whose tokens are known by their bytes: ids are found later."""
    pieces = tuple(values.pieces or ())
    if not pieces:
        raise RowError("empty", "has no tokens")
    sampled = np.ones(len(pieces), dtype=bool)
    fields: dict[str, Any] = {}
    starts, text = values.n_prompt_chars, row.get("prompt")
    if prompt is not None:
        fields["input_ids"] = np.array(prompt, dtype=np.int64)
    elif isinstance(row.get("messages"), list):
        messages = messages_of(row["messages"], "field 'messages'")
        fields["chat"] = Chat(messages, row.get("tools") or None, n_prompt=len(messages))
    elif isinstance(text, str):
        # With `echo` the prompt's tokens are among those of the answer.
        if starts and starts[0] == 0 and b"".join(pieces).startswith(text.encode()):
            sampled = np.array(starts) >= len(text)
        else:
            fields["text"] = string_field(row, "prompt")
    n_prompt = int((~sampled).sum())
    recording = Recording(_floats(values.log_probs), sampled, n_prompt, pieces)
    return fields | {"recording": recording}
