"""Which bytes of the source text each token covers (rule 10 of the numbers contract).

A vocabulary piece spells bytes: GPT-2's byte-level alphabet maps one character to one byte,
SentencePiece writes a space as `▁` and a lone byte as `<0xF0>`. Where the pieces of a sequence
spell its text, offsets are exact. Where they do not, the tokenizer changed or dropped characters;
then its own offsets are used, and the caller flags the row.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from seqloss_cli.core.byte_spans import char_end_bytes
from seqloss_cli.core.records import Ints

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Spelling = Callable[[str], bytes]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 for itself, the others from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + n): byte for n, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_level_alphabet()


def spell_byte_level(piece: str) -> bytes:
    try:
        return bytes(_ALPHABET[char] for char in piece)
    except KeyError:  # a word added to the vocabulary as plain text
        return piece.encode()


def spell_sentencepiece(piece: str) -> bytes:
    if match := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return piece.replace("▁", " ").encode()


def spell_plain(piece: str) -> bytes:
    return piece.encode(errors="replace")


def spelling_of(parts: Mapping[str, Any]) -> Spelling:
    """How the pieces of a `tokenizers.Tokenizer`, serialized as `parts`, spell bytes."""
    steps = [parts.get(name) or {} for name in ("decoder", "pre_tokenizer", "normalizer")]
    written = json.dumps(steps, ensure_ascii=False)
    if '"ByteLevel"' in written:
        return spell_byte_level
    if "▁" in written or '"Metaspace"' in written:
        return spell_sentencepiece
    return spell_plain


def offsets_from_spelling(
    pieces: Sequence[bytes], source: bytes, heads: Collection[int] = (0,)
) -> Ints | None:
    """Byte offsets, shape len(pieces) + 1, when the pieces spell the source; None when they do not.

    A space that the tokenizer put in covers no byte of the source. `heads` are the pieces before
    which it may put one in: the first, and those that follow a special token.
    """
    if b"".join(pieces) != source:
        stripped = [p.removeprefix(b" ") if n in heads else p for n, p in enumerate(pieces)]
        if b"".join(stripped) != source:
            return _offsets_with_some_spaces_inserted(pieces, source)
        pieces = stripped
    widths = np.fromiter((len(piece) for piece in pieces), dtype=np.int64, count=len(pieces))
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(widths)])


def _offsets_with_some_spaces_inserted(pieces: Sequence[bytes], source: bytes) -> Ints | None:
    """The slow way, for tokenizers that put a space in at some places and not at others."""
    offsets, cursor = [0], 0
    for piece in pieces:
        if not source.startswith(piece, cursor):
            piece = piece.removeprefix(b" ")
            if not source.startswith(piece, cursor):
                return None
        cursor += len(piece)
        offsets.append(cursor)
    return np.array(offsets, dtype=np.int64) if cursor == len(source) else None


def offsets_from_chars(spans: Sequence[tuple[int, int]], text: str) -> Ints:
    """Byte offsets from a tokenizer's own character spans, one per token.

    What lies between two tokens goes to the later one, what lies after the last to the last: so
    offsets that leave out a leading space give it back to its token.
    """
    byte_at = np.concatenate([[0], char_end_bytes(text)])
    ends = np.array([0, *(end for _, end in spans)], dtype=np.int64)
    offsets = byte_at[np.maximum.accumulate(ends)]
    offsets[-1] = byte_at[-1] if len(spans) else 0
    return np.asarray(offsets, dtype=np.int64)


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("seqloss_bytes", _spell_out)


def show_bytes(raw: bytes) -> str:
    """Text of the bytes; those that are part of a character only, as `<0xF0>`."""
    return raw.decode(errors="seqloss_bytes")
