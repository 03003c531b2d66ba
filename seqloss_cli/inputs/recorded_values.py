"""The values of one field of a recording, whatever engine wrote them.

Numbers, vLLM's dicts of ids, SGLang's triples, OpenAI's objects, those of completions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from seqloss_cli.core.errors import RowError

_AS_ID = b"token_id:"
"""Begins the text of a token where vLLM writes ids as texts."""
_GREATEST = 3.5e38
"""Beyond a float32, nats: no engine means it, and sums of such values overflow."""


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one field."""

    log_probs: list[float | None]
    ids: list[int] | None = None
    """Beside them, where the field holds ids, too."""
    pieces: list[bytes] | None = None
    """The tokens' bytes, where it holds these."""
    n_prompt_chars: list[int] | None = None
    """Characters of prompt and answer before each token (`echo`)."""


def values_of(name: str, value: Any, ids: list[list[int]]) -> Values:
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
    if isinstance(first, list) and first and isinstance(first[0], list):
        return _dicts(name, [each and _dict_of_pairs(name, each) for each in value], ids)
    if isinstance(first, list):
        return _triples(name, value)
    return Values([_number(name, each) for each in value])


def _number(name: str, value: Any) -> float | None:
    """A value; infinite for any that is written as NaN or infinity, which `_trimmed` counts."""
    if value is None:
        return None
    if isinstance(value, str) and value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return math.inf
    # JSON's `true` is an int to Python.
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RowError("wrong_type", f"field {name!r:.40} holds {value!r:.40}, which is no number")
    if abs(value) > _GREATEST:
        what = f"{value:.3g}, beyond what a float32 holds"
        raise RowError("wrong_type", f"field {name!r:.40} holds {what}")
    return float(value)


def _dict_of_pairs(name: str, pairs: Any) -> dict[str, Any]:
    """The dict of a map of Arrow, which tables hold as pairs of key and value."""
    try:
        return {str(key): value for key, value in pairs}
    except (TypeError, ValueError):
        raise RowError("wrong_type", f"field {name!r:.40} holds what is no dict of ids") from None


def _openai(name: str, content: list[Any]) -> Values:
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


def _completions(value: Mapping[str, Any]) -> Values:
    """Values of the completions' object: `tokens`, `token_logprobs`, `text_offset`."""
    values = [_number("token_logprobs", each) for each in value["token_logprobs"]]
    tokens, starts = value.get("tokens"), value.get("text_offset")
    if not isinstance(tokens, list) or len(tokens) != len(values):
        return Values(values)
    if not all(isinstance(each, str) for each in tokens):
        raise RowError("wrong_type", "field 'tokens' holds what is no text")
    is_known = isinstance(starts, list) and len(starts) == len(tokens)
    found = _with_ids(values, [each.encode() for each in tokens])
    return replace(found, n_prompt_chars=starts if is_known else None)


def _with_ids(values: list[float | None], pieces: list[bytes]) -> Values:
    """Values of tokens whose texts are `token_id:N`, or that are known by their bytes."""
    if pieces and all(piece.startswith(_AS_ID) for piece in pieces):
        try:
            return Values(values, [int(piece.removeprefix(_AS_ID)) for piece in pieces])
        except ValueError:
            raise RowError("wrong_type", "a token is called token_id: and has no id") from None
    return Values(values, None, pieces)


def _dicts(name: str, value: list[Any], ids: list[list[int]]) -> Values:
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
        return Values(values)
    # Every other token's probability is given the first one, which has no value and so no id here.
    if any(each is None for each in found):
        at = next(n for n, each in enumerate(found) if each is None)
        what = f"field {name!r:.40} holds no id of token {at}, which those after it depend on"
        raise RowError("missing_field", f"{what}: give the row's ids, too ('prompt_token_ids')")
    return Values(values, [each for each in found if each is not None])


def _triples(name: str, value: list[Any]) -> Values:
    """Values of SGLang's triples: log-probability, id, text."""
    for each in value:
        if not isinstance(each, list) or len(each) < 2 or type(each[1]) is not int:
            what = "is no log-probability with an id"
            raise RowError("wrong_type", f"field {name!r:.40} holds {each!r:.40}, which {what}")
    return Values([_number(name, each[0]) for each in value], [each[1] for each in value])
