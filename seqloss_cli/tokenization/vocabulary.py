"""A Hugging Face tokenizer, asked for nothing but a text's own tokens and what they spell.

Fast tokenizers (those of the `tokenizers` library) and Python ones behave alike from here up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from seqloss_cli.core.byte_spans import TokenBytes, show_bytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.tokenization.byte_offsets import (
    Spelling,
    bytes_by_chars,
    bytes_by_spelling,
    spell_byte_level,
    spell_plain,
    spell_sentencepiece,
    spelling_of,
)

_MOST_IDS = 1 << 32  # what the tokenizers library takes
_SPELLINGS = (spell_byte_level, spell_sentencepiece, spell_plain)


class Vocabulary:
    """`tokenizer` is what `AutoTokenizer` returns; `special_as_text` takes control tokens in a text
    for ordinary characters."""

    def __init__(self, tokenizer: Any, special_as_text: bool) -> None:
        self.tokenizer = tokenizer
        self._special_as_text = special_as_text
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()
        serialized = self._serialized()
        self.sha256 = hashlib.sha256(serialized.encode()).hexdigest()
        """Of the tokenizer's serialized form."""
        parts = {} if self._fast is None else json.loads(serialized)
        self._spellings = [spelling_of(parts)] if parts else list(_SPELLINGS)
        self.special = _special_tokens(tokenizer)
        """Ids of control tokens and the text that stands for each."""
        self._literal = self._literal_tokens()
        self.unk_id = self._unknown_id(parts.get("model", {}))
        self.special_text = _any_of(
            name for token_id, name in self.special.items() if token_id != self.unk_id
        )
        """Matches a control token in a text."""
        self.control = {i for i in self.special if i != self.unk_id}
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.put_before = self._tokens_put_before_a_text()
        self._piece = lru_cache(maxsize=1 << 18)(self._spell_id)
        if self._fast is not None:  # last: the probe above, made by transformers, sets it back
            self._fast.encode_special_tokens = special_as_text

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text's own tokens: none is put around them."""
        if self._fast is not None:
            encodings = self._fast.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        split = self._special_as_text
        return [
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split)
            for text in texts
        ]

    def token_bytes(self, text: str, ids: list[int]) -> tuple[TokenBytes, bool]:
        """The bytes that each of a text's tokens covers, and whether the tokens spell the text (a
        tokenizer that changes or drops characters does not).

        Raises RowError where they do not and the tokenizer gives no offsets of its own.
        """
        source = text.encode()
        heads = {0} | {n for n, token_id in enumerate(ids, start=1) if token_id in self.special}
        for spell in self._spellings:
            pieces = [self._piece(token_id, spell) for token_id in ids]
            spelled = bytes_by_spelling(pieces, source, heads)
            if spelled is not None:
                return spelled, True
        if self._fast is None:
            raise RowError(
                "bytes_unknown",
                f"the tokens of {type(self.tokenizer).__name__} do not spell the text, and it "
                "gives no offsets; name a fast tokenizer with --tokenizer",
            )
        encoding = self._fast.encode(text, add_special_tokens=False)
        return bytes_by_chars(encoding.offsets, source), False

    def name_token(self, token_id: int) -> str:
        """What an id spells: special tokens by name, parts of characters as `<0xF0>`."""
        return self.special.get(token_id) or show_bytes(self._piece(token_id))

    def pieces(self, n_ids: int) -> list[bytes | None]:
        """What each id below `n_ids` spells, by the spelling in which most begin with white space;
        None for control tokens and for ids without a piece."""
        stop = n_ids if self._fast is not None else min(n_ids, len(self.tokenizer))
        known = [i for i in range(stop) if i not in self.control and self._listed(i) is not None]
        ways = [{i: self._piece(i, spell) for i in known} for spell in self._spellings]
        best = max(ways, key=lambda way: sum(piece[:1].isspace() for piece in way.values()))
        return [best.get(i) for i in range(n_ids)]

    def id_of(self, token: str) -> int | None:
        if self._fast is not None:
            found: int | None = self._fast.token_to_id(token)
            return found
        listed: int | None = self.tokenizer.get_vocab().get(token)
        return listed

    def _serialized(self) -> str:
        if self._fast is not None:
            written: str = self._fast.to_str()
            return written
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return json.dumps([type(self.tokenizer).__name__, vocabulary])

    def _spell_id(self, token_id: int, spell: Spelling | None = None) -> bytes:
        if name := self._literal.get(token_id):
            return name.encode()
        piece = self._listed(token_id)
        if piece is None:  # the model's head is wider than the vocabulary
            return f"<id {token_id}>".encode()
        return (spell or self._spellings[0])(piece)

    def _listed(self, token_id: int) -> str | None:
        """The piece as the vocabulary has it."""
        if not 0 <= token_id < _MOST_IDS:  # labels of others hold such ids
            return None
        if self._fast is not None:
            piece: str | None = self._fast.id_to_token(token_id)
        else:
            piece = self.tokenizer.convert_ids_to_tokens(token_id)
        return piece

    def _literal_tokens(self) -> dict[int, str]:
        """Tokens that stand for their own text: special ones, and in byte-level vocabularies every
        added one (its letters are no stand-ins for bytes)."""
        if self._spellings[0] is not spell_byte_level:
            return self.special
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {i: token.content for i, token in added.items()} | self.special

    def _unknown_id(self, model: Mapping[str, Any]) -> int | None:
        """`model` is the part of that name of the serialized tokenizer."""
        if self._fast is not None:
            if self._spellings[0] is spell_byte_level:
                return None  # every byte has a piece; GPT-2 names its end-of-text "unknown"
            if (unk_id := model.get("unk_id")) is not None:
                return int(unk_id)
            if name := model.get("unk_token"):
                return self.id_of(name)
        unknown: int | None = self.tokenizer.unk_token_id
        return unknown

    def _tokens_put_before_a_text(self) -> list[int]:
        """What the tokenizer itself adds in front: nothing, a BOS, or something longer."""
        bare = self.tokenizer.encode("a", add_special_tokens=False)
        full = self.tokenizer.encode("a", add_special_tokens=True)
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        return list(full[: starts[0]]) if starts else []


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids of control tokens and the text that stands for each."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token_id: token.content for token_id, token in added.items() if token.special}
    for token_id, name in zip(
        tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False
    ):
        special.setdefault(token_id, name)
    return special


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
