"""Keys that rows of several commands have: of one tokenized input, and of each of its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from seqloss_cli.core.records import IGNORED, Rejected, TokenSequence
from seqloss_cli.results.schema import (
    ABSENT,
    Fields,
    Key,
    Kind,
    Row,
    RowOptions,
    flags_cell,
    ints,
    json_cell,
    rejected_row,
    row_of,
    with_text,
    with_tokens,
)

FOUND_BY_SCORING = ("nan_loss",)
"""Reasons for which a row is rejected that reading and tokenizing take."""


class SequenceView(Protocol):
    """What these keys are made of."""

    @property
    def sequence(self) -> TokenSequence: ...

    @property
    def options(self) -> RowOptions: ...


@dataclass(frozen=True, slots=True)
class InputView:
    """A view of an input that is not scored."""

    sequence: TokenSequence
    options: RowOptions


def sha256(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def labels(view: SequenceView) -> list[int]:
    """Return the id of each token that counts, unshifted, and -100 of the others."""
    sequence = view.sequence
    found: list[int] = np.where(sequence.loss_mask, sequence.token_ids, IGNORED).tolist()
    return found


def expected_row(entry: TokenSequence | Rejected, row: Fields, options: RowOptions) -> Row:
    """Return what a row of this input holds; of keys that can be left out, those that `row` has."""
    if isinstance(entry, Rejected):
        return expected_rejection(entry)
    sample = entry.sample
    if row.get("reason") in FOUND_BY_SCORING:
        return {"type": "rejected", "id": sample.id, "source": sample.source, "line": sample.line}
    view = InputView(entry, options)
    found = {key.name: key.value(view) for key in _OF_INPUTS if key.name in row}
    return {
        "type": "sequence",
        **row_of(IDENTITY, view),
        "n_tokens": entry.n_tokens,
        "n_scored": int((entry.score_mask & entry.loss_mask)[1:].sum()),
        **{name: None if value is ABSENT else value for name, value in found.items()},
    }


def expected_rejection(rejected: Rejected) -> Row:
    """Return what a row of this rejected input holds; its message may be worded anew."""
    own = rejected_row(rejected)
    return {"type": "rejected"} | {k: own[k] for k in ("id", "source", "line", "reason")}


def meta_key(value: Callable[[Any], Any]) -> Key:
    """Return the key of the fields that are carried through from an input's row."""
    return Key("meta", Kind.nested, value, cells={"": json_cell}, checked=True)


def flags_key(value: Callable[[Any], Any]) -> Key:
    """Return the key of a row's flags."""
    return Key("flags", Kind.nested, value, cells={"": flags_cell})


def sample_keys(sample_of: Callable[[Any], Any]) -> tuple[Key, ...]:
    """Return the keys that say where an input was read."""
    return (
        Key("id", Kind.text, lambda v: sample_of(v).id, checked=True),
        Key("source", Kind.text, lambda v: sample_of(v).source, checked=True),
        Key("line", Kind.whole, lambda v: sample_of(v).line, checked=True),
    )


def _text_sha256(view: SequenceView) -> str | None:
    text = view.sequence.text
    return None if text is None else sha256(text)


def _ids_sha256(view: SequenceView) -> Any:
    """Return what stands in for a text's hash: of the ids, and of which of them count."""
    sequence = view.sequence
    if sequence.text is not None:
        return ABSENT
    parts = (sequence.token_ids.astype("<i8"), sequence.loss_mask.astype("u1"))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _prompt(view: SequenceView) -> Any:
    pair = view.sequence.sample.pair
    return ABSENT if pair is None else pair.prompt


def _response(view: SequenceView) -> Any:
    pair = view.sequence.sample.pair
    return ABSENT if pair is None else pair.response


def _separator(view: SequenceView) -> Any:
    pair = view.sequence.sample.pair
    return pair.separator if pair is not None and pair.separator else ABSENT


def _text(view: SequenceView) -> Any:
    """Return the text where it is not just prompt and response: of a chat the rendered template."""
    sample = view.sequence.sample
    return view.sequence.text if sample.pair is None or sample.chat is not None else ABSENT


def _meta(view: SequenceView) -> Any:
    meta = view.sequence.sample.meta
    return ABSENT if meta is None else meta


def _if_masked(value: Callable[[SequenceView], Any]) -> Callable[[SequenceView], Any]:
    """Return the value where not all of the tokens count by what the input says, else ABSENT."""

    def found(view: SequenceView) -> Any:
        sequence = view.sequence
        is_masked = sequence.sample.labels is not None or sequence.prompt_boundary is not None
        return value(view) if is_masked else ABSENT

    return found


def _response_sha256(view: SequenceView) -> str | None:
    pair = view.sequence.sample.pair
    return None if pair is None else sha256(pair.response)


def of_pairs(options: RowOptions) -> bool:
    """Return whether the inputs are pairs or chats."""
    return options.run.pairs is not None


def _with_pair_texts(options: RowOptions) -> bool:
    return options.text and of_pairs(options)


IDENTITY = (
    *sample_keys(lambda v: v.sequence.sample),
    Key("text_sha256", Kind.text, _text_sha256, checked=True),
    Key("ids_sha256", Kind.text, _ids_sha256, checked=True),
)
"""Which input a row is of."""
TEXTS = (
    Key("prompt", Kind.text, _prompt, _with_pair_texts, bulky=True),
    Key("response", Kind.text, _response, _with_pair_texts, bulky=True),
    Key("separator", Kind.text, _separator, _with_pair_texts),
    Key("text", Kind.text, _text, with_text, bulky=True),
)
META = meta_key(_meta)
ENDS = (
    Key("bos", Kind.text, lambda v: v.sequence.bos),
    Key("eos", Kind.text, lambda v: v.sequence.eos),
)
RESPONSE_SHA256 = Key("response_sha256", Kind.text, _response_sha256, of_pairs, checked=True)
N_RESPONSE_TOKENS = Key(
    "n_response_tokens", Kind.whole, lambda v: int(v.sequence.loss_mask.sum()), of_pairs
)
TOKEN_IDS = Key(
    "token_ids", Kind.wholes, lambda v: ints(v.sequence.token_ids), with_tokens, length=0
)
TOKENS = Key(
    "tokens", Kind.texts, lambda v: v.options.token_texts(v.sequence), with_tokens, length=0
)
BYTE_OFFSETS = Key(
    "byte_offsets", Kind.wholes, lambda v: ints(v.sequence.byte_offsets), with_tokens, length=1
)
MASK_OF_TOKENS = Key("loss_mask", Kind.wholes, lambda v: ints(v.sequence.loss_mask))
"""1 where a token counts: of every sequence, as CSV has it."""
LOSS_MASK = Key(
    "loss_mask",
    Kind.wholes,
    _if_masked(MASK_OF_TOKENS.value),
    with_tokens,
    length=0,
    bulky=True,
)
LABELS = Key("labels", Kind.wholes, _if_masked(labels), with_tokens, bulky=True)
_OF_INPUTS = (*TEXTS, META, RESPONSE_SHA256, N_RESPONSE_TOKENS, TOKEN_IDS, LOSS_MASK)


# -- columns of lines that are a token each ---------------------------------------------------


def _edges(of: slice) -> Callable[[SequenceView], Any]:
    def found(view: SequenceView) -> Any:
        offsets = view.sequence.byte_offsets
        return ABSENT if offsets is None else ints(offsets[of])

    return found


POSITION = Key("position", Kind.wholes, lambda v: range(v.sequence.n_tokens))
PART = Key(
    "part",
    Kind.texts,
    lambda v: ["y" if counts else "x" for counts in v.sequence.loss_mask],
    of_pairs,
)
STARTS_AND_ENDS = (
    Key("start", Kind.wholes, _edges(slice(None, -1))),
    Key("end", Kind.wholes, _edges(slice(1, None))),
)
