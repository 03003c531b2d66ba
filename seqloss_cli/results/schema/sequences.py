"""Keys that rows of several commands have: of one tokenized input, and of each of its tokens.

They are made of a view with `sequence` and `options`; `s` are the declarations of keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core import records as r
from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import ABSENT, Fields, Key, Row, RowOptions


@dataclass
class SequenceView:
    """A sequence and what was made of it: keys take their values from here."""

    options: RowOptions
    sequence: r.TokenSequence
    score: r.SequenceScore | None = None
    """None where it is not scored."""
    sums: Any = None
    """The sequence's own."""
    result: Any = None
    """More than its score, of commands that make more."""
    sample: r.Sample = field(init=False)

    def __post_init__(self) -> None:
        self.sample = self.sequence.sample


def of_input(entry: r.TokenSequence, row: Fields, options: RowOptions) -> Row:
    """Return what a row of this input holds; of keys that can be left out, those that `row` has."""
    view = SequenceView(options, entry)
    # Of the keys that are there: --no-text and the like are compared with the run line.
    there = [key for key in _OF_INPUTS if key.name in row]
    return {
        **s.row_of(IDENTITY, view),
        "n_tokens": entry.n_tokens,
        # Nothing stands before the first token, so it never has a loss.
        "n_scored": int((entry.score_mask & entry.loss_mask)[1:].sum()),
        # Where this input would have no such key: null, which differs from what is there.
        **s.row_with_nulls(there, view),
    }


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _ids_sha256(view: Any) -> Any:
    """Return what stands in for a text's hash: of the ids, and of which of them count."""
    sequence: r.TokenSequence = view.sequence
    if sequence.text is not None:
        return ABSENT
    # Of one width and byte order on every machine, or a file could be resumed on some only.
    parts = (sequence.token_ids.astype("<i8"), sequence.loss_mask.astype("u1"))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _of_pair(name: str) -> Callable[[Any], Any]:
    # None, where there is no pair, has none of its attributes either.
    return lambda view: getattr(view.sample.pair, name, ABSENT)


def _text(view: Any) -> Any:
    """Return the text where it is not just prompt and response: of a chat the rendered template."""
    sample = view.sample
    return view.sequence.text if sample.pair is None or sample.chat is not None else ABSENT


def _mask(view: Any) -> list[int] | None:
    return s.ints(view.sequence.loss_mask)


def _labels(view: Any) -> Any:
    """Return the id of each token that counts, unshifted, and -100 of the others."""
    sequence: r.TokenSequence = view.sequence
    return np.where(sequence.loss_mask, sequence.token_ids, r.IGNORED).tolist()


def _if_masked(value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the value where not all of the tokens count by what the input says, else ABSENT."""

    def found(view: Any) -> Any:
        # Of plain texts all tokens count: the keys would double the row and say nothing.
        masked_by = (view.sample.labels, view.sequence.prompt_boundary)
        is_masked = any(each is not None for each in masked_by)
        return value(view) if is_masked else ABSENT

    return found


def _edges(name: str) -> Callable[[Any], Any]:
    def found(view: Any) -> Any:
        token_bytes = TokenBytes.of(view.sequence)
        return token_bytes and s.ints(getattr(token_bytes, name))

    return found


def token_array(
    name: str,
    values: Callable[[Any], NDArray[Any] | None],
    when: str = "tokens",
    declare: Callable[..., Key] = s.reals,
    **settings: Any,
) -> Key:
    """Return the key of an array of shape N, null where a token is not scored or it is infinite.

    `values` takes it of the view; rows of which it is None have no such key.
    """

    def value(view: Any) -> Any:
        found = values(view)
        return ABSENT if found is None else s.numbers_or_null(found, view.score.scored)

    number = int if declare is s.wholes else bool if declare is s.bools else float
    of = list[number | None]  # type: ignore[valid-type]
    return declare(name, value, when, **{"of": of, "optional": True} | settings)


def infinite_key(name: str, values: Callable[[Any], r.Floats], **settings: Any) -> Key:
    """Return the key of the scored tokens where an array, shape N in nats, is infinite."""

    def places(view: Any) -> Any:
        return s.infinite_places(values(view), view.score.scored)

    about = "Tokens whose figure is infinite: null in its array."
    return s.wholes(name, places, optional=True, about=about, **settings)


def flags_key(value: str | Callable[[Any], Any]) -> Key:
    """Return the key of a row's flags."""
    return s.nested(
        "flags", value, cells={"": s.flags_cell}, of=dict[str, int | bool],
        about="Name of each flag that was raised to how often, or true where it is not counted.",
    )  # fmt: skip


TURN = (
    s.text("role", "turn.role", about="Who speaks, such as `user`."),
    s.whole("start", "turn.start", about="The message's first token."),
    s.whole("end", "turn.end", about="The token after its last."),
    s.whole("n_tokens", lambda v: v.turn.end - v.turn.start, about="Tokens of the message."),
)
"""Keys of each message of a chat, of a view with its `turn`."""
SAMPLE = (
    s.text("id", "sample.id", checked=True, about="The input's own id, else SOURCE:LINE."),
    s.text("source", "sample.source", checked=True, about="Where the input was read."),
    s.whole(
        "line",
        "sample.line",
        checked=True,
        of=int | None,
        about="Its line, or number of row; null of a text as a whole.",
    ),
)
"""Keys of the place where an input was read."""
IDENTITY = (
    *SAMPLE,
    s.text(
        "text_sha256",
        lambda v: _sha256(v.sequence.text),
        checked=True,
        of=str | None,
        about="SHA-256 of the text; null of rows of ids.",
    ),
    s.text(
        "ids_sha256",
        _ids_sha256,
        checked=True,
        optional=True,
        about="Of rows of ids, in its place: SHA-256 of the ids and of which of them count.",
    ),
)
"""Keys that tell the inputs of rows apart."""
TEXTS = (
    s.text(
        "prompt", _of_pair("prompt"), "text pairs", bulky=True, optional=True, about="The prompt."
    ),
    s.text(
        "response",
        _of_pair("response"),
        "text pairs",
        bulky=True,
        optional=True,
        about="The response.",
    ),
    s.text(
        "separator",
        lambda v: _of_pair("separator")(v) or ABSENT,
        "text pairs",
        optional=True,
        about="Between prompt and response.",
    ),
    s.text(
        "text",
        _text,
        "text",
        bulky=True,
        of=str | None,
        optional=True,
        about="The text; of a chat the rendered template; null of rows of ids.",
    ),
)
META = s.nested(
    "meta",
    lambda v: ABSENT if v.sample.meta is None else v.sample.meta,
    cells={"": lambda meta: s.json_bytes(meta).decode()},
    checked=True,
    of=dict[str, Any],
    optional=True,
    about="With --keep-meta: the other fields of the input's row.",
)
"""Fields that are carried through from an input's row."""
BOS_AND_EOS = (
    s.text("bos", "sequence.bos", about="Whether BOS stands in front, and who put it there."),
    s.text("eos", "sequence.eos", about="The same of EOS at the end."),
)
RESPONSE_SHA256 = s.text(
    "response_sha256",
    lambda v: v.sample.pair and _sha256(v.sample.pair.response),
    "pairs",
    checked=True,
    of=str | None,
    about="SHA-256 of the response; null of chats.",
)
N_RESPONSE_TOKENS = s.whole(
    "n_response_tokens", lambda v: int(v.sequence.loss_mask.sum()), "pairs",
    about="Tokens that count as the response; EOS is its.",
)  # fmt: skip
N_TOKENS = s.whole(
    "n_tokens", "sums.n_tokens", about="Tokens that the model saw, BOS and EOS included."
)
N_SCORED = s.whole(
    "n_scored", "sums.n_scored",
    about="Tokens that have a loss and count; sums, means and rates are over exactly these.",
)  # fmt: skip
SIZES = (N_TOKENS, N_SCORED)
FIRST_KEYS = (*IDENTITY, *TEXTS, META, *BOS_AND_EOS)
"""The first keys of every row of a sequence."""
TOKEN_IDS = s.wholes(
    "token_ids",
    lambda v: v.sequence.token_ids.tolist(),
    "tokens",
    length=0,
    about="Id of each token.",
)
_TEXTS_OF_TOKENS = s.texts(
    "tokens", lambda v: v.options.token_texts(v.sequence), "tokens", length=0,
    about="The text of each token, for people: bytes that are no character are escaped.",
)  # fmt: skip
TOKENS = (TOKEN_IDS, _TEXTS_OF_TOKENS)
BYTE_OFFSETS = s.wholes(
    "byte_offsets", lambda v: s.ints(v.sequence.byte_offsets), "tokens", length=1,
    of=list[int] | None,
    about="Token t covers the bytes [t, t + 1) of this array; null of rows of ids.",
)  # fmt: skip
LOSS_MASK = s.wholes(
    "loss_mask", _if_masked(_mask), "tokens", length=0, bulky=True, optional=True,
    about="1 where the loss counts; not there where all tokens count.",
)  # fmt: skip
LABELS = s.wholes(
    "labels", _if_masked(_labels), "tokens", bulky=True, optional=True,
    about="The id of each token that counts, unshifted, and -100 of the others.",
)  # fmt: skip
MASKS = (BYTE_OFFSETS, LOSS_MASK, LABELS)
_OF_INPUTS = (*TEXTS, META, RESPONSE_SHA256, N_RESPONSE_TOKENS, TOKEN_IDS, LOSS_MASK)

# Columns of lines that are a token each.
TOKEN = (
    s.wholes("position", lambda v: range(v.sequence.n_tokens), about="The token's place, from 0."),
    s.as_column(TOKEN_IDS, "token_id"),
    s.as_column(_TEXTS_OF_TOKENS, "token"),
)
PAIR_PART = s.texts(
    "part",
    lambda v: ["y" if n else "x" for n in v.sequence.loss_mask],
    "pairs",
    about="`x` of the prompt, `y` of the response.",
)
EDGES = (
    s.wholes("start", _edges("starts"), about="First byte in the text; null of rows of ids."),
    s.wholes("end", _edges("ends"), about="The byte after its last; null of rows of ids."),
)
SCORED = (
    s.wholes("scored", lambda v: s.ints(v.score.scored), about="1 where it has a loss, else 0."),
    # 1 where a token counts: of every sequence, where JSON has it of some.
    s.wholes("loss_mask", _mask, about="1 where the loss counts, else 0."),
    *EDGES,
)
