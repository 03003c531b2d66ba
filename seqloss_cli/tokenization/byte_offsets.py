"""Find the bytes of the source text that each token covers (docs/numbers.md, rule 10).

The strings of a vocabulary spell bytes: GPT-2's byte-level alphabet maps one character to one byte,
SentencePiece writes a space as `▁` and a lone byte as `<0xF0>`. Where the tokens of a sequence
spell its text, offsets are exact. Where they do not, the tokenizer changed or dropped characters;
then its own offsets are used, and the caller flags the row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes, char_edges

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Spelling = Callable[[str], bytes]
"""From a token's string in the vocabulary to the bytes that it stands for."""


# GPT-2's printable stand-ins for bytes: printable Latin-1 for itself, the others from U+0100 up.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTABLE)
_ALPHABET = {chr(byte): byte for byte in _PRINTABLE}
_ALPHABET |= {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}


def spell_byte_level(token: str) -> bytes:
    """The bytes of a token of byte-level BPE, as GPT-2's."""
    try:
        return bytes(_ALPHABET[char] for char in token)
    except KeyError:  # a word added to the vocabulary as plain text
        return token.encode()


def spell_sentencepiece(token: str) -> bytes:
    """The bytes of a token of SentencePiece, as Llama's."""
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode()


def spell_plain(token: str) -> bytes:
    """The bytes of a token that stands for its own characters."""
    return token.encode(errors="replace")


SPELLINGS: tuple[Spelling, ...] = (spell_byte_level, spell_sentencepiece, spell_plain)


def spelling_of(parts: Mapping[str, Any]) -> Spelling:
    """The spelling of a `tokenizers.Tokenizer`, serialized as `parts`."""
    steps = [parts.get(name) or {} for name in ("decoder", "pre_tokenizer", "normalizer")]
    written = json.dumps(steps, ensure_ascii=False)
    if '"ByteLevel"' in written:
        return spell_byte_level
    if "▁" in written or '"Metaspace"' in written:
        return spell_sentencepiece
    return spell_plain


def bytes_by_spelling(
    tokens: Sequence[bytes], source: bytes, heads: Collection[int] = (0,)
) -> TokenBytes | None:
    """Bytes of tokens that spell the source; None when they do not.

    A space that the tokenizer put in covers no byte of the source. `heads` are the tokens before
    which it may put one in: the first, and those that follow a special token.
    """
    if b"".join(tokens) == source:
        return TokenBytes.join(tokens, source)
    stripped = [t.removeprefix(b" ") if n in heads else t for n, t in enumerate(tokens)]
    if b"".join(stripped) == source:
        return TokenBytes.join(stripped, source)
    return _with_some_spaces_inserted(tokens, source)


def _with_some_spaces_inserted(tokens: Sequence[bytes], source: bytes) -> TokenBytes | None:
    """The slow way, for tokenizers that put a space in at some places and not at others."""
    pieces, cursor = list[bytes](), 0
    for token in tokens:
        if not source.startswith(token, cursor):
            token = token.removeprefix(b" ")
            if not source.startswith(token, cursor):
                return None
        cursor += len(token)
        pieces.append(token)
    return TokenBytes.join(pieces, source) if cursor == len(source) else None


def bytes_by_chars(spans: Sequence[tuple[int, int]], source: bytes) -> TokenBytes:
    """Bytes of tokens by a tokenizer's own character spans [start, end), one per token.

    Gaps between two tokens go to the later one, what lies after the last token to that.
    """
    edges = char_edges(source)
    # Starts are never used: byte-level post-processors trim the leading space off a span by
    # default, so that ` fox` at 3 begins at 4. Some tokenizers' spans also overlap or step back.
    ends = np.array([0, *(end for _, end in spans)], dtype=np.int64)
    offsets = edges[np.maximum.accumulate(ends)]
    offsets[-1] = edges[-1] if len(spans) else 0
    return TokenBytes(source, offsets)
