"""Parse rows of log-probabilities that engines and trainers wrote, whatever shape they have.

Ids stand in lists; values in lists of numbers, vLLM's dicts, SGLang's triples or OpenAI's objects.
A list of values is as long as the ids, one shorter (the first token has none), or as long as the
response. Shape letters: N tokens of a row, P of its prompt, R of its response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Bools, Chat, Floats, Recording
from seqloss_cli.inputs.recorded_values import Values, values_of
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


def recording_content(row: dict[str, Any], fields: RecordingFields) -> Content:
    """The ids of a row with its recording, and the fields that were used. Raises RowError."""
    whole, used = _unwrapped(row)
    names = _names_of_values(whole, fields.field)
    prompt, response, own = _ids(whole, is_answer=bool(used & {"choices", "outputs"}))
    parts = {
        name: values_of(name, whole[name], _ids_for(name, prompt, response, own)) for name in names
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
        if prompt is None and _is_echo(after):
            own, response = response, None
    ids = own if own is not None else [*(prompt or ()), *(response or ())]
    if not ids:
        known = "; ids are read from 'input_ids', or 'prompt_ids' and 'response_ids'"
        raise missing_field(whole, "input_ids", f"--field{known}")
    n_prompt = None if prompt is None or response is None else len(prompt)
    is_alone = own is None and prompt is None
    if is_alone:
        n_prompt = 0
        if after is not None and len(after.log_probs) != len(ids):
            raise _wrong_length(names[-1], len(after.log_probs), len(ids), len(ids))
    log_probs = _aligned(names, before, after, len(ids), n_prompt)
    sampled = _sampled(whole, len(ids), n_prompt)
    found = _trimmed(whole, np.array(ids, dtype=np.int64), log_probs, sampled, n_prompt)
    return (_with_prompt(whole, found) if is_alone else found), used


def _is_answer(own: list[int] | None, values: Values) -> bool:
    """Return whether values bring their own tokens, which are not the row's ids."""
    if values.ids is None and values.pieces is None:
        return False
    if own is None or len(values.log_probs) not in (len(own), len(own) - 1):
        return True
    if values.ids is not None:
        return own[len(own) - len(values.ids) :] != values.ids
    # OpenAI's `content` is an answer's; completions may have the prompt in theirs.
    return values.n_prompt_chars is None


def _is_echo(values: Values) -> bool:
    """Return whether an answer begins with its prompt: the first of all tokens has no value."""
    return values.log_probs[0] is None


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


def _ids(
    row: dict[str, Any], is_answer: bool
) -> tuple[list[int] | None, list[int] | None, list[int] | None]:
    """The ids of prompt, response and whole row, each None where the row has none."""
    prompt, response = _first(row, _PROMPTS), _first(row, _RESPONSES)
    own, tokens = _first(row, ("input_ids",)), _first(row, ("token_ids",))
    # A choice's `token_ids` are the response's, and others where a prompt stands beside them.
    is_answer = is_answer or prompt is not None or own is not None or _text_prompt(row)
    if tokens is not None and response is None and is_answer:
        response = tokens
    elif tokens is not None and own is None:
        own = tokens
    if own is None and prompt is None and any(row.get(name) == [] for name in _PROMPTS):
        prompt = []
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


def _text_prompt(row: dict[str, Any]) -> bool:
    """Return whether the prompt is a text, or turns of a chat."""
    return isinstance(row.get("prompt"), str) or isinstance(row.get("messages"), list)


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


def _aligned(
    names: list[str], before: Values | None, after: Values | None, n: int, n_prompt: int | None
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
    if row.get("prompt_mask") is not None and n_prompt is not None:
        kept[:n_prompt] &= _mask(row, "prompt_mask", (n_prompt,))
    if row.get("attention_mask") is not None:
        lengths = (n, None if n_prompt is None else n - n_prompt)
        own = _mask(row, "attention_mask", lengths)
        kept[n - len(own) :] &= own
    # A mask ends in zeros where the row is padded: with one id, again and again. Where another
    # mask says what is padding, these are of a tool; and one alone may be an EOS that has a value.
    elif sampled is not None and any(row.get(name) is not None for name in _MASKS):
        behind = len([*takewhile(lambda one: not one, sampled[::-1])])
        is_value = behind == 1 and np.isfinite(log_probs[-1]) and log_probs[-1] != 0
        if 0 < behind < n and len({*ids[n - behind :].tolist()}) == 1 and not is_value:
            kept[n - behind :] = False
    if not kept.any():
        raise RowError("empty", "its masks leave no token")
    before = None if n_prompt is None else int(kept[:n_prompt].sum())
    values = log_probs[kept]
    if not np.isfinite(values).any():
        raise RowError("nothing_recorded", "holds no log-probability that is finite")
    counts = {
        "padding_dropped": int((~kept).sum()),
        "recorded_not_finite": int(np.isinf(values).sum()),
    }
    flags = {name: count for name, count in counts.items() if count}
    values = np.where(np.isinf(values), np.nan, values)
    recording = Recording(values, None if sampled is None else sampled[kept], before)
    return {"input_ids": ids[kept], "recording": recording} | ({"flags": flags} if flags else {})


def _of_pieces(row: dict[str, Any], prompt: list[int] | None, values: Values) -> dict[str, Any]:
    """The fields of a sample whose tokens are known by their bytes: ids are found later."""
    pieces = tuple(values.pieces or ())
    if not pieces:
        raise RowError("empty", "has no tokens")
    sampled: Bools | None = np.ones(len(pieces), dtype=bool)
    fields: dict[str, Any] = {}
    starts, text, n_prompt = values.n_prompt_chars, row.get("prompt"), 0
    if prompt is not None:
        fields["input_ids"] = np.array(prompt, dtype=np.int64)
    elif isinstance(text, str) and starts and starts[0] == 0 and _begins(pieces, text):
        sampled = np.array(starts) >= len(text)
        n_prompt = int((~sampled).sum())
    elif _text_prompt(row) or not _is_echo(values):
        fields |= _prompt_of(row)
    else:
        sampled = None
    log_probs = _floats(values.log_probs)
    if n_infinite := int(np.isinf(log_probs).sum()):
        fields["flags"] = {"recorded_not_finite": n_infinite}
    log_probs = np.where(np.isinf(log_probs), np.nan, log_probs)
    return fields | {"recording": Recording(log_probs, sampled, n_prompt, pieces)}


def _begins(pieces: Sequence[bytes], text: str) -> bool:
    return b"".join(pieces).startswith(text.encode())


def _prompt_of(row: dict[str, Any]) -> dict[str, Any]:
    """The field of a sample with its prompt, a text or a chat. Raises RowError without one."""
    if isinstance(row.get("messages"), list):
        messages = messages_of(row["messages"], "field 'messages'")
        return {"chat": Chat(messages, row.get("tools") or None, n_prompt=len(messages))}
    if isinstance(row.get("prompt"), str):
        return {"text": string_field(row, "prompt")}
    what = "has a response, whose probabilities are given a prompt, and no prompt"
    raise RowError("missing_field", f"{what}: give its ids ('prompt_ids', [] if it is empty)")


def _with_prompt(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The fields of a sample whose response alone has ids."""
    recording = replace(found["recording"], pieces=tuple(found.pop("input_ids").tolist()))
    return {**found, **_prompt_of(row), "recording": recording}
