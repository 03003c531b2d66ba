"""A document of two models made ready to be coloured by B - A: by tokens where both have the same
ones, else by the smallest pieces of text at whose ends both have a token's end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seqloss_cli.analysis.aligning import Covered, align
from seqloss_cli.analysis.compare import DocumentRows
from seqloss_cli.display.terminal.heat.inked import Inked, inked
from seqloss_cli.results.schema.scores import ResultRow

_WITHOUT_TOKENS = "not coloured: a file was written without tokens (leave out --no-tokens)"
_WITHOUT_BYTES = (
    "not coloured: tokens do not spell the bytes that they cover, as where a text is cut"
)
_OTHER_BYTES = "not coloured: the tokens of the two files spell other bytes"


@dataclass(frozen=True, slots=True)
class Both:
    """Lists run parallel to the pieces of the ink."""

    ink: Inked
    """Its values are B - A, nats."""
    a: Sequence[float | None]
    """Losses that count, nats."""
    b: Sequence[float | None]
    about: str = ""
    """What a reader has to know of this document."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A document that cannot be coloured."""

    why: str


def by_tokens(document: DocumentRows) -> Both | Plain:
    """Both models have the same tokens."""
    a, b = losses_of(document.a), losses_of(document.b)
    texts, edges = document.a.fields.get("tokens"), document.a.fields.get("byte_offsets")
    if a is None or b is None or texts is None:
        return Plain(_WITHOUT_TOKENS)
    both = zip(a, b, strict=True)
    values = [None if x is None or y is None else y - x for x, y in both]
    ink = inked(texts, None if edges is None else edges.tolist(), values, weight=abs)
    return Both(ink, a, b)


def by_pieces(document: DocumentRows) -> Both | Plain:
    """The models have tokens of their own, of the same text."""
    a, b = _spelled(document.a), _spelled(document.b)
    if isinstance(a, Plain):
        return a
    if isinstance(b, Plain):
        return b
    if a.text != b.text:
        return Plain(_OTHER_BYTES)
    aligned = align(a.text, a.covered, b.covered)
    pieces = [a.text[start:end] for _, _, start, end in aligned.spans]
    ink = Inked(pieces, frozenset(), aligned.difference, weight=abs, noun="piece")
    about = f"{aligned.n_merged} of its {len(pieces)} pieces are several tokens of a model"
    return Both(ink, aligned.first, aligned.second, about)


@dataclass(frozen=True, slots=True)
class _Spelled:
    """A text as the tokens of one model spell it."""

    text: bytes
    covered: Covered


def _spelled(row: ResultRow) -> _Spelled | Plain:
    losses, texts = losses_of(row), row.fields.get("tokens")
    offsets = row.fields.get("byte_offsets")
    if losses is None or texts is None or offsets is None:
        return Plain(_WITHOUT_TOKENS)
    edges = offsets.tolist()
    ink = inked(texts, edges, losses)
    if edges[0] or any(edges[t] != edges[t + 1] for t in ink.named):
        return Plain(_WITHOUT_BYTES)
    text = b"".join(piece for t, piece in enumerate(ink.pieces) if t not in ink.named)
    return _Spelled(text, Covered(edges, losses))


def losses_of(row: ResultRow) -> list[float | None] | None:
    """Those that count; None where the row was written without its tokens."""
    if row.tokens is None:
        return None
    pairs = zip(row.tokens.losses.tolist(), row.tokens.counted.tolist(), strict=True)
    return [loss if counts else None for loss, counts in pairs]
