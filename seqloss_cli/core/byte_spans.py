"""Characters, words and bytes of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from seqloss_cli.core.records import Ints

_WORD = re.compile(r"\S+")
TokenSpan = tuple[int, int, int, int]
"""Tokens from, to; bytes from, to."""


def char_end_bytes(text: str) -> Ints:
    """For each code point of the text, the byte of its UTF-8 form at which it ends."""
    if text.isascii():
        return np.arange(1, len(text) + 1, dtype=np.int64)
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points > 0x7F) + (code_points > 0x7FF).astype(np.int64)
    widths += code_points > 0xFFFF
    return np.cumsum(widths, dtype=np.int64)


def word_bytes(text: str) -> Ints:
    """Bytes [start, end) of each maximal run of non-white-space, shape words x 2."""
    chars = [match.span() for match in _WORD.finditer(text)]
    byte_at = np.concatenate([[0], char_end_bytes(text)])
    return np.asarray(byte_at[np.array(chars, dtype=np.int64).reshape(-1, 2)], dtype=np.int64)


def word_owners(spans: Ints, starts: Ints) -> Ints:
    """For each token, by its first byte, the first word that ends after it: it is the word which
    holds that byte, and where the byte is white space the next word, or the last."""
    if not len(spans):
        return np.empty(0, dtype=np.int64)
    owners = np.searchsorted(spans[:, 1], starts, side="right")
    return np.minimum(owners, len(spans) - 1)


def is_edge(text: bytes, place: int) -> bool:
    """A character of the UTF-8 text begins or ends here."""
    return place >= len(text) or text[place] & 0xC0 != 0x80


def spans_of(text: bytes, offsets: Sequence[int]) -> list[TokenSpan]:
    """Smallest runs of tokens at whose ends a character ends, too."""
    found, first = list[TokenSpan](), 0
    for last in range(1, len(offsets)):
        if is_edge(text, offsets[last]):
            found.append((first, last, offsets[first], offsets[last]))
            first = last
    return found
