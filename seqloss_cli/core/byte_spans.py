"""The bytes of a text, and the bytes, characters and words that its tokens cover (rules 10, 16).

`TokenBytes` is the one place for arithmetic on byte offsets: a token's bytes, the token that holds
a character, a cut that breaks no character. `tokenization/byte_offsets.py` finds the offsets. Bytes
come from the source text, never from the texts that tables show for tokens.

Shapes: N tokens, C characters (code points), W words, U bytes that no token stands for.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.records import Bools, Ints, TokenSequence

_WORD = re.compile(r"\S+")
TokenSpan = tuple[int, int, int, int]
"""Tokens [first, last) and the bytes [start, end) that they cover."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenBytes:
    """A text in UTF-8 and the byte offsets of the tokens that cover it.

    Several tokens may share a character, and a token may cover no byte: BOS, EOS, and a space that
    the tokenizer put in.
    """

    text: bytes
    offsets: Ints
    """Shape N + 1, never decreasing: token t covers bytes [offsets[t], offsets[t + 1])."""
    unspelled: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Shape U: places of the bytes that no token stands for, ascending."""

    @classmethod
    def of(cls, sequence: TokenSequence) -> TokenBytes | None:
        """The bytes of a sequence's tokens; None for a sequence of ids without a text."""
        if sequence.text is None or sequence.byte_offsets is None:
            return None
        return cls(sequence.text.encode(), sequence.byte_offsets, sequence.unspelled)

    @classmethod
    def join(cls, pieces: Sequence[bytes], text: bytes | None = None) -> TokenBytes:
        """The text that the pieces make one after another, a token each; `text` if it is known."""
        offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), out=offsets[1:])
        return cls(b"".join(pieces) if text is None else text, offsets)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, N."""
        return len(self.offsets) - 1

    @property
    def starts(self) -> Ints:
        """Shape N: the first byte of each token, or where it stands if it covers none."""
        return self.offsets[:-1]

    @property
    def ends(self) -> Ints:
        """Shape N: one past the last byte of each token."""
        return self.offsets[1:]

    @property
    def widths(self) -> Ints:
        """Shape N: bytes that each token covers."""
        return np.diff(self.offsets)

    @property
    def is_valid(self) -> bool:
        """Offsets never decrease and end where the text does; those of a file may not."""
        return bool((self.widths >= 0).all()) and int(self.offsets[-1]) == len(self.text)

    def pieces(self) -> list[bytes]:
        """The bytes that each token covers, which need not be whole characters."""
        # Python integers: a slice with those of numpy takes three times as long.
        return [self.text[a:b] for a, b in pairwise(self.offsets.tolist())]

    def texts(self) -> list[str]:
        """For each token the text that it covers, parts of characters as `<0xF0>`."""
        return [show_bytes(piece) for piece in self.pieces()]

    def first_reaching(self, place: int) -> int:
        """The first token that begins at a byte or after it, or crosses it; N where none does."""
        before = (self.starts < place) & (self.ends <= place)
        return int(before.sum())  # offsets never decrease: these are the first ones

    def covering(self, start: int, end: int) -> slice:
        """Tokens that cover a byte of [start, end), or cover nothing and stand before one."""
        first = self.first_reaching(start)
        return slice(first, max(first, int(np.searchsorted(self.starts, end))))

    def within(self, start: int, end: int) -> Bools:
        """Shape N: tokens that cover bytes of [start, end) and no other ones."""
        return (self.starts >= start) & (self.ends <= end) & (self.widths > 0)

    def char_edges(self) -> Ints:
        """Shape C + 1: the byte at which each character begins, and the end of the text."""
        return char_edges(self.text)

    def tokens_of_chars(self) -> Ints:
        """Shape C: the token that covers the last byte of each character."""
        # The first token whose end lies beyond a byte covers it: those of no bytes never do.
        return np.searchsorted(self.ends, self.char_edges()[1:] - 1, side="right")

    def chars_of_tokens(self) -> Ints:
        """Shape N: the character in which the first byte of each token lies."""
        return np.searchsorted(self.char_edges()[1:], self.starts, side="right")

    def breaks_no_char(self) -> Bools:
        """Shape N + 1: no character is cut in two at the offset."""
        # One byte more: nothing is cut at the end of the text either.
        return _begins_char(np.frombuffer(self.text + b"\0", dtype=np.uint8)[self.offsets])

    def snap(self, first: int, last: int) -> tuple[int, int]:
        """Tokens [first, last), grown at either end until no character is cut; token numbers."""
        uncut = np.flatnonzero(self.breaks_no_char())
        before = uncut[uncut <= first]
        after = uncut[uncut >= last]
        return int(before[-1]) if len(before) else 0, int(after[0]) if len(after) else self.n_tokens

    def around(self, start: int, end: int, n: int) -> tuple[str, str]:
        """The text before and after the bytes [start, end), at most n characters of each, from a
        blank on where one is near the cut; no character that is in part of these bytes."""
        text = self.text
        while 0 < start < len(text) and text[start] & 0xC0 == 0x80:
            start -= 1
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end += 1
        # A character has at most four bytes: with one more, part of one at a far end is beyond n.
        room = 4 * (n + 1)
        before = show_bytes(text[max(0, start - room) : start])
        return _last(before, n), _last(show_bytes(text[end : end + room])[::-1], n)[::-1]

    def near(self, token: int, n: int) -> tuple[str, str | None, str]:
        """Return what is `around` a token, and between it the whole characters that the token is in
        part of; None where it is of whole characters, or of none."""
        first, last = self.snap(token, token + 1)
        start, end = self.offsets[[first, last]].tolist()
        before, after = self.around(start, end, n)
        is_part = [start, end] != self.offsets[token : token + 2].tolist()
        return before, show_bytes(self.text[start:end]) if is_part else None, after

    def char_spans(self) -> list[TokenSpan]:
        """The smallest runs of tokens at whose ends no character is cut."""
        lasts = 1 + np.flatnonzero(self.breaks_no_char()[1:])
        runs = pairwise([0, *lasts.tolist()])
        offsets = self.offsets.tolist()
        return [(first, last, offsets[first], offsets[last]) for first, last in runs]

    def words_of_tokens(self, words: Ints) -> Ints:
        """Shape N: for each token the word that owns it (rule 16), by `words` of shape W x 2.

        It is the first word that ends after the token's first byte: the word that holds the byte,
        or where that is white space the next word; after the last word, the last.
        """
        if not len(words):
            return np.empty(0, dtype=np.int64)
        owners = np.searchsorted(words[:, 1], self.starts, side="right")
        return np.minimum(owners, len(words) - 1)

    def part(self, first: int, last: int) -> TokenBytes:
        """Tokens [first, last) and what they cover, as a text of its own."""
        start, end = self.offsets[[first, last]].tolist()
        return TokenBytes(self.text[start:end], self.offsets[first : last + 1] - start)

    def head(self, n_tokens: int) -> TokenBytes:
        """The first tokens and their text, with what stands in front of them."""
        return TokenBytes(self.text[: self.offsets[n_tokens]], self.offsets[: n_tokens + 1])

    def shift(self, before: bytes) -> TokenBytes:
        """The tokens in a text with `before` in front, which none of them covers."""
        n = len(before)
        return TokenBytes(before + self.text, self.offsets + n, self.unspelled + n)

    def __add__(self, other: TokenBytes) -> TokenBytes:
        """The tokens of this text, then those of the other."""
        after = other.shift(self.text)
        # A text without tokens (white space, to some tokenizers) goes to the token that follows.
        offsets = np.concatenate([self.offsets, after.offsets[1:]])
        return TokenBytes(after.text, offsets, np.append(self.unspelled, after.unspelled))

    def surround(self, n_before: int, n_after: int) -> TokenBytes:
        """With that many tokens of no bytes, such as BOS and EOS, before and after."""
        first, last = self.offsets[:1], self.offsets[-1:]
        edges = first.repeat(n_before), self.offsets, last.repeat(n_after)
        return replace(self, offsets=np.concatenate(edges))

    def drop(self, tokens: slice) -> TokenBytes:
        """Without some tokens: the one before them, or else the one after, covers their bytes."""
        offsets = np.delete(self.offsets, tokens)
        offsets[0] = self.offsets[0]
        return replace(self, offsets=offsets)


def char_edges(text: bytes) -> Ints:
    """Shape C + 1: the byte at which each character of UTF-8 begins, and the end of the text."""
    if text.isascii():
        return np.arange(len(text) + 1, dtype=np.int64)
    begins = np.flatnonzero(_begins_char(np.frombuffer(text, dtype=np.uint8)))
    return np.append(begins, len(text))


def word_spans(text: str) -> Ints:
    """Shape W x 2: bytes [start, end) of each word, a maximal run of non-white-space."""
    chars = [match.span() for match in _WORD.finditer(text)]
    spans = np.array(chars, dtype=np.int64).reshape(-1, 2)
    # Python's white space (`\s`, as `str.split`) is more than that of ASCII: no search in bytes.
    return spans if text.isascii() else char_edges(text.encode())[spans]


def _begins_char(raw: NDArray[np.uint8]) -> Bools:
    """Bytes that begin a character: all but UTF-8's continuation bytes, 10xxxxxx."""
    found: Bools = raw & 0xC0 != 0x80
    return found


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("seqloss_bytes", _spell_out)


def show_bytes(raw: bytes) -> str:
    """Text of the bytes; bytes that are no whole character as `<0xF0>`."""
    return raw.decode(errors="seqloss_bytes")


_LONE_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


def spelled_bytes(texts: Sequence[str], offsets: Ints) -> list[bytes]:
    """Return the bytes that N tokens of a row cover, told by their texts; none for a text that is a
    name. `offsets` has shape N + 1, in bytes of the text, which a row may lack."""
    widths = np.diff(offsets).tolist()
    return [_spelled(text, width) for text, width in zip(texts, widths, strict=True)]


def _spelled(text: str, width: int) -> bytes:
    raw = text.encode(errors="replace")
    # A source may spell out "<0xF0>" itself: only where the width says so does it stand for a byte.
    if len(raw) != width:
        raw = named_bytes(text)
    return raw if len(raw) == width and show_bytes(raw) == text else b""


def named_bytes(text: str) -> bytes:
    """Return the bytes of a token's text, `<0xF0>` being a byte."""
    raw = text.encode(errors="replace")
    return _LONE_BYTE.sub(lambda found: bytes([int(found[1], 16)]), raw)


def _last(text: str, n: int) -> str:
    """Return the last n characters, without the word that is cut if a blank is near."""
    kept = text[-n:] if n else ""
    if kept == text or text[-n - 1].isspace() or kept[:1].isspace():
        return kept
    word = _WORD.match(kept)
    return kept[word.end() :] if word and word.end() <= n // 2 else kept
