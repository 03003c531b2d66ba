"""Find the bytes of the source text that each token covers (docs/numbers.md, rule 10).

The strings of a vocabulary spell bytes: GPT-2's byte-level alphabet maps one character to one byte,
SentencePiece writes a space as `▁` and a lone byte as `<0xF0>`. Where the tokens of a sequence
spell its text, offsets are exact. Where they do not, the tokenizer changed or dropped characters;
then its own offsets are used, and the caller flags the row.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import regex

from seqloss_cli.core.byte_spans import TokenBytes, char_edges
from seqloss_cli.core.records import Bools, Ints

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Spelling = Callable[[str], bytes]
"""From a token's string in the vocabulary to the bytes that it stands for."""
SpellId = Callable[[int], bytes]
"""From an id to these."""


# GPT-2's printable stand-ins for bytes: printable Latin-1 for itself, the others from U+0100 up.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTABLE)
_ALPHABET = {chr(byte): byte for byte in _PRINTABLE}
_ALPHABET |= {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}


def holds_every_byte(vocabulary: Collection[str]) -> bool:
    """True where byte-level BPE has a token for each byte: no text is unknown to it."""
    return _ALPHABET.keys() <= {*vocabulary}


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


# -- texts that a tokenizer changes ---------------------------------------------------------------

_GRAPHEME = regex.compile(r"\X")
_DROPPED = "<dropped character>"


class ChangedTexts:
    """Finds the bytes of tokens where their tokenizer changes a text, or drops parts of it.

    The tokenizer's own offsets tell the characters that a token was made of. The token has the rest
    of their graphemes, too. `tokenizer` is of the `tokenizers` library, `unk_id` its unknown token;
    `exact`, where there is one, gives ids and characters in its place.

    Shapes: N tokens of a text, B bytes.
    """

    def __init__(self, tokenizer: Any, unk_id: int | None, exact: Any = None) -> None:
        self._exact = exact
        parts = json.loads(tokenizer.to_str())
        # Post-processors trim white space off the offsets, by default.
        parts["post_processor"], model = None, parts["model"]
        self._dropped_id: int | None = None
        if model["type"] == "BPE" and model["unk_token"] is None:
            # It drops what it has no token for, and counts its offsets wrong from there on: here
            # such a character has a token.
            added = {token["content"]: token["id"] for token in parts["added_tokens"]}
            # Those that the model does not know would be numbered anew.
            vocabulary = model["vocab"] = added | model["vocab"]
            unk_id = self._dropped_id = max(vocabulary.values(), default=-1) + 1
            vocabulary[_DROPPED] = unk_id
            model["unk_token"], model["fuse_unk"] = _DROPPED, False
        self._unk_id = unk_id
        self._tokenizer = type(tokenizer).from_str(json.dumps(parts))
        self._tokenizer.encode_special_tokens = tokenizer.encode_special_tokens
        self._unk_token = None if unk_id is None else self._tokenizer.id_to_token(unk_id)
        self._is_dropped = lru_cache(maxsize=1 << 16)(self._never_reaches_the_model)

    def token_bytes(self, text: str, ids: Sequence[int], spell: SpellId) -> TokenBytes:
        """The bytes of the text's own tokens; `spell` gives those that an id stands for."""
        source = text.encode()
        edges, breaks = char_edges(source), [0, *(m.end() for m in _GRAPHEME.finditer(text))]
        unspelled = self._dropped_bytes(text, breaks, edges, whole=not ids)
        if not ids:
            return TokenBytes(source, edges[:1], np.flatnonzero(unspelled))
        found, spans = self._encoded(text, np.flatnonzero(~unspelled[edges[:-1]]))
        starts, ends = in_order(spans)
        offsets = edges[np.append(0, self._last_chars(text, starts, ends, breaks))]
        # A token that only ends with a part of a grapheme reaches into it, if its bytes allow.
        into = 1 + np.flatnonzero((starts[:-1] < starts[1:]) & (starts[1:] < ends[:-1]))
        grapheme_ends = np.array(breaks)[np.searchsorted(breaks, starts[into], side="right")]
        offsets[into] += edges[grapheme_ends] > offsets[into] + 1
        offsets = np.maximum.accumulate(offsets)
        # The unknown token may also be written out in a text.
        tokens = [
            None if i == self._unk_id and text[a:b].strip() != self._unk_token else spell(i)
            for i, a, b in zip(found, starts.tolist(), ends.tolist(), strict=True)
        ]
        # Runs of tokens that share characters, each with the one before it.
        firsts = np.flatnonzero(np.append(True, starts[1:] >= ends[:-1]))
        runs = zip(firsts.tolist(), np.append(firsts[1:], len(tokens)).tolist(), strict=True)
        for first, last in runs:
            if last - first > 1 or tokens[first] is None:
                begin = max(int(offsets[first]), int(edges[starts[first]]))
                run = slice(begin, int(offsets[last]))
                cut = _cut(tokens[first:last], source[run], unspelled[run])
                inner = offsets[first + 1 : last] if cut is None else begin + cut[:-1]
                # A blank that was put in covers no byte, nor those that were dropped before it.
                offsets[first + 1 : last] = np.where(inner == begin, offsets[first], inner)
        offsets = self._without_dropped(offsets, found, ids, spell)
        return TokenBytes(source, offsets, np.flatnonzero(unspelled))

    def _encoded(self, text: str, kept: Ints) -> tuple[list[int], Ints]:
        """Ids of the text, and the characters that each was made of, shape N x 2.

        `kept` are the characters that reach the model.
        """
        if self._exact is not None:
            ids, spans = self._exact.encode_spans(text)
            return ids, spans
        whole = self._tokenizer.encode(text, add_special_tokens=False)
        if len(kept) < len(text):
            # SentencePiece's normalizers count wrong behind what they drop at the beginning.
            part = "".join(text[n] for n in kept.tolist())
            found = self._tokenizer.encode(part, add_special_tokens=False)
            if found.ids == whole.ids:
                starts, ends = np.array(found.offsets, dtype=np.int64).T
                begins = np.append(kept, len(text))[starts]
                ends = np.where(starts < ends, kept[ends - 1] + 1, begins)
                return found.ids, np.stack([begins, ends], axis=1)
        return whole.ids, np.array(whole.offsets, dtype=np.int64)

    def _last_chars(self, text: str, starts: Ints, ends: Ints, breaks: list[int]) -> Ints:
        """Shape N: one past the last character of each token."""
        # Of characters that tokens share the last of them has all: an earlier one, which would be
        # left with none behind them, would stand in what follows.
        next_starts = np.append(starts[1:], len(text))
        found: Ints = np.minimum(ends, next_starts)
        for token in np.flatnonzero(ends[:-1] < starts[1:]).tolist():
            first = token  # of the tokens that share characters with it
            while first and ends[first - 1] > starts[first]:
                first -= 1
            begin = int(found[first - 1]) if first else 0
            gap = int(ends[token]), int(starts[token + 1])
            found[token] = self._end_in_gap(text, breaks, begin, *gap)
        found[-1] = len(text)
        return found

    def _end_in_gap(self, text: str, breaks: list[int], begin: int, start: int, stop: int) -> int:
        """One past the last character of the token before a gap; what it spells begins at `begin`.

        Of the gap, characters [start, stop), it has the rest of its last grapheme, and graphemes
        that were made one with it. What else is in the gap is the next token's.
        """
        place = bisect_left(breaks, start)
        while breaks[place] < stop and self._are_made_one(
            text[begin : breaks[place]], text[breaks[place] : breaks[place + 1]]
        ):
            place += 1
        return min(breaks[place], stop)

    def _are_made_one(self, before: str, grapheme: str) -> bool:
        if grapheme.isspace():
            return before[-1:].isspace()
        return not self._normalized(before + grapheme).startswith(self._normalized(before))

    def _dropped_bytes(self, text: str, breaks: list[int], edges: Ints, whole: bool) -> Bools:
        """Shape B: bytes of graphemes that never reach the model, or all; no white space.

        Where that is left out, at a text's ends and between words, edges of tokens stand for it.
        """
        found = np.zeros(edges[-1], dtype=bool)
        for start, end in pairwise(breaks):
            grapheme = text[start:end]
            if not grapheme.isspace() and (whole or self._is_dropped(grapheme)):
                found[edges[start] : edges[end]] = True
        return found

    def _never_reaches_the_model(self, grapheme: str) -> bool:
        return self._for_the_model(f"a{grapheme}a") == self._for_the_model("aa")

    def _for_the_model(self, text: str) -> str:
        text, split = self._normalized(text), self._tokenizer.pre_tokenizer
        return (
            text if split is None else "".join(piece for piece, _ in split.pre_tokenize_str(text))
        )

    def _normalized(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def _without_dropped(
        self, offsets: Ints, found: list[int], ids: Sequence[int], spell: SpellId
    ) -> Ints:
        """The offsets of `ids`, of those of `found`, which tokens for dropped characters are among.

        The bytes of these are the next token's, those at the end the last one's.
        """
        kept = [token_id for token_id in found if token_id != self._dropped_id]
        own: Ints = np.append(0, offsets[1:][np.array(found) != self._dropped_id])
        if kept != [*ids]:
            # A token may be made of characters on both sides of a dropped one.
            ours, theirs = (np.cumsum([0, *map(len, map(spell, some))]) for some in (kept, ids))
            ends = np.minimum(np.searchsorted(ours, theirs), len(kept))
            own = np.maximum(own[ends] - (ours[ends] - theirs), own[np.maximum(ends - 1, 0)])
        own[-1] = offsets[-1]
        return own


def in_order(spans: Ints) -> tuple[Ints, Ints]:
    """Starts and ends of spans, shape N x 2, neither of which ever steps back."""
    # Some tokenizers' spans overlap or step back; one that covers nothing may stand anywhere.
    ends = np.maximum.accumulate(spans[:, 1])
    starts = np.where(spans[:, 0] < spans[:, 1], spans[:, 0], ends)
    return np.minimum.accumulate(starts[::-1])[::-1], ends


def _cut(tokens: Sequence[bytes | None], part: bytes, unspelled: Bools) -> Ints | None:
    """Ends of the tokens in a part of the text; None where they do not spell it.

    Unknown tokens are None: each stands in for a byte, or else for what the others do not spell.
    Those bytes of the part are marked in `unspelled`.
    """
    ends, n_put_in = [0], sum(1 if t is None else len(t) for t in tokens) - len(part)
    for token in tokens:
        skipped = int(n_put_in > 0 and token is not None and token.startswith(b" "))
        n_put_in -= skipped
        if token is not None and not part.startswith(token[skipped:], ends[-1]):
            break
        ends.append(ends[-1] + (1 if token is None else len(token) - skipped))
    ends = ends[1:]
    if len(ends) < len(tokens) or ends[-1] != len(part):
        unspelled[:] |= None in tokens
        return None
    unspelled[[end - 1 for end, token in zip(ends, tokens, strict=True) if token is None]] = True
    return np.array(ends)
