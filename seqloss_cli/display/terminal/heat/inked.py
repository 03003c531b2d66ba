"""The tokens of a text with a value each, and which of them each character belongs to."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from seqloss_cli.core.byte_spans import show_bytes
from seqloss_cli.core.escaping import escape

_LONE_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")
Weight = Callable[[float], float]
"""Of the values of tokens that share a character, the one that weighs most is shown."""


@dataclass(frozen=True, slots=True)
class Inked:
    """Tokens that make up a text, and what they are coloured by. Lists run parallel."""

    pieces: Sequence[bytes]
    """The bytes of the text that each token covers."""
    named: frozenset[int]
    """Tokens that are shown by name, since they cover nothing or no text is known: BOS, EOS."""
    values: Sequence[float | None]
    """None where a token is not to be coloured."""
    weight: Weight = float
    noun: str = "token"
    """What a reader is told that they are; tokens of other models together make up pieces."""

    @property
    def n_hidden(self) -> int:
        """Tokens with a value that cover no text and have no name to be shown by."""
        pairs = zip(self.pieces, self.values, strict=True)
        return sum(value is not None and not piece for piece, value in pairs)

    def characters(self, tokens: range) -> Iterator[tuple[str, range]]:
        """Each character of these tokens, and the tokens that share it."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="seqloss_bytes")
        first, waiting = tokens.start, False
        for t in tokens:
            if t in self.named:
                for char in decoder.decode(b"", True):
                    yield char, range(first, t)
                for char in escape(self.pieces[t].decode()):
                    yield char, range(t, t + 1)
                waiting = False
                continue
            if not waiting:
                first = t
            for n, char in enumerate(text := decoder.decode(self.pieces[t])):
                yield char, range(t if n else first, t + 1)
            waiting = bool(decoder.getstate()[0])
            if text:
                first = t
        for char in decoder.decode(b"", True):
            yield char, range(first, tokens.stop)

    def owner(self, tokens: range) -> int:
        """Of tokens that share a character, the one whose value is shown."""
        if len(tokens) == 1:
            return tokens.start
        known = [t for t in tokens if self.values[t] is not None]
        return max(known, key=self._weight_of) if known else tokens.start

    def begins_character(self, token: int) -> bool:
        """Whether a text can be cut before this token."""
        piece = self.pieces[token]
        return token in self.named or not piece or piece[0] & 0xC0 != 0x80

    def _weight_of(self, token: int) -> float:
        value = self.values[token]
        assert value is not None
        return self.weight(value)


def inked(
    texts: Sequence[str],
    edges: Sequence[int] | None,
    values: Sequence[float | None],
    weight: Weight = float,
) -> Inked:
    """From the texts of tokens, as tables show them, and the bytes that tokens cover, if known."""
    pieces, named = list[bytes](), set[int]()
    for t, text in enumerate(texts):
        piece = None if edges is None else _covered(text, edges[t + 1] - edges[t])
        if piece is None:
            named.add(t)
        pieces.append(text.encode(errors="backslashreplace") if piece is None else piece)
    return Inked(pieces, frozenset(named), values, weight)


def _covered(text: str, n_bytes: int) -> bytes | None:
    """The bytes that a token covers; None where its text is a name. Bytes that are no whole
    character stand in texts as `<0xF0>`."""
    raw = text.encode(errors="replace")
    if len(raw) != n_bytes:
        raw = _LONE_BYTE.sub(lambda found: bytes([int(found[1], 16)]), raw)
    return raw if len(raw) == n_bytes and show_bytes(raw) == text else None
