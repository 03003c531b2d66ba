"""From a sample's text to the ids that the model sees, with BOS, EOS and bytes accounted for.

Rules 4, 5, 6, 10 and 13 of the numbers contract. The Hugging Face tokenizer is asked for the
text's own tokens only; what stands around them is decided here, so that it can be said.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from seqloss_cli.config import TokenPolicy
from seqloss_cli.errors import RowError, UsageError
from seqloss_cli.pieces import (
    Spelling,
    offsets_from_chars,
    offsets_from_spelling,
    show_bytes,
    spell_byte_level,
    spell_plain,
    spell_sentencepiece,
    spelling_of,
)
from seqloss_cli.records import (
    IGNORED,
    BosOrigin,
    EosOrigin,
    Ints,
    Rejected,
    Sample,
    TokenSequence,
)

_SPELLINGS = (spell_byte_level, spell_sentencepiece, spell_plain)


class Tokenization:
    """A tokenizer and the policies of a run. `tokenizer` is what `AutoTokenizer` returns.

    `n_ids` is how many ids the model embeds; `model_bos` and `model_eos` come from its text
    configuration, for tokenizers that name none.
    """

    def __init__(
        self,
        tokenizer: Any,
        policy: TokenPolicy,
        n_ids: int,
        model_bos: int | None = None,
        model_eos: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.policy = policy
        self.n_ids = n_ids
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()
        serialized = self._serialized()
        self.sha256 = hashlib.sha256(serialized.encode()).hexdigest()
        """Of the tokenizer's serialized form."""
        parts = {} if self._fast is None else json.loads(serialized)
        self._spellings = [spelling_of(parts)] if parts else list(_SPELLINGS)
        self._special = _special_tokens(tokenizer)
        self._literal = self._literal_tokens()
        self._unk_id = self._unknown_id(parts.get("model", {}))
        self._special_text = _any_of(
            name for token_id, name in self._special.items() if token_id != self._unk_id
        )
        self.warnings: list[str] = []
        """For stderr."""
        self._added_bos = self._bos_that_the_tokenizer_adds()
        self.bos_id = self._resolve_bos(model_bos)
        self.eos_id = self._resolve_eos(model_eos)
        self._piece = lru_cache(maxsize=1 << 18)(self._spell_id)
        if self._fast is not None:  # last: the probes above, made by transformers, set it back
            self._fast.encode_special_tokens = policy.special_tokens == "text"

    # -- what tokens are called -------------------------------------------------------------

    def name_token(self, token_id: int) -> str:
        """What an id spells: special tokens by name, parts of characters as `<0xF0>`."""
        return self._special.get(token_id) or show_bytes(self._piece(token_id))

    def token_texts(self, sequence: TokenSequence) -> list[str]:
        """For each token the source text that it covers; BOS and EOS that were put in by name."""
        ids, offsets = sequence.token_ids.tolist(), sequence.byte_offsets
        if offsets is None:
            return [self.name_token(token_id) for token_id in ids]
        assert sequence.sample.text is not None
        source, edges = sequence.sample.text.encode(), offsets.tolist()
        texts = [show_bytes(source[start:end]) for start, end in pairwise(edges)]
        if sequence.bos in ("tokenizer", "prepended"):
            texts[0] = self.name_token(ids[0])
        if sequence.eos == "appended":
            texts[-1] = self.name_token(ids[-1])
        return texts

    # -- samples to sequences ---------------------------------------------------------------

    def tokenize(self, samples: Sequence[Sample]) -> list[TokenSequence | Rejected]:
        """One result for each sample, in order; a sample that cannot be tokenized is rejected."""
        texts = [sample.text for sample in samples if sample.text is not None]
        bare = iter(self._encode(texts))
        results: list[TokenSequence | Rejected] = []
        for sample in samples:
            text_ids = next(bare) if sample.text is not None else None
            try:
                results.append(self._sequence(sample, text_ids))
            except RowError as error:
                rejected = Rejected(
                    sample.id, sample.source, sample.line, error.reason, error.message, sample.end
                )
                results.append(rejected)
        return results

    def _sequence(self, sample: Sample, text_ids: list[int] | None) -> TokenSequence:
        flags = dict(sample.flags)
        if sample.text is None:
            assert sample.input_ids is not None
            ids, offsets = sample.input_ids.tolist(), None
            wants_bos = self.policy.bos == "always"  # ids are taken as they are
        else:
            assert text_ids is not None
            ids, wants_bos = text_ids, self.policy.bos != "never"
            offsets = self._offsets(sample.text, ids, flags)
            self._count_special_text(sample.text, ids, flags)
            if self._unk_id is not None and (unknown := ids.count(self._unk_id)):
                flags["unk_tokens"] = unknown
        if not ids:
            raise RowError("no_tokens", "the tokenizer makes no token of it")
        bos, eos = self._bos_origin(ids, wants_bos), self._eos_origin(ids)
        put_before = int(bos in ("tokenizer", "prepended"))
        put_after = int(eos == "appended")
        token_ids = np.array(
            [self.bos_id] * put_before + ids + [self.eos_id] * put_after, dtype=np.int64
        )
        self._check_range(token_ids)
        if offsets is not None:
            offsets = np.pad(offsets, (put_before, put_after), mode="edge")
        if bos == "none":
            flags["first_token_unscored"] = True
        mask = np.ones(len(ids), dtype=bool) if sample.labels is None else sample.labels != IGNORED
        loss_mask = np.pad(mask, (put_before, put_after), constant_values=(False, True))
        return TokenSequence(sample, token_ids, offsets, loss_mask, bos, eos, flags)

    def _bos_origin(self, ids: list[int], wants_bos: bool) -> BosOrigin:
        if self.bos_id is not None and ids[0] == self.bos_id:
            return "text"
        if not wants_bos or self.bos_id is None:
            return "none"
        return "tokenizer" if self._added_bos == self.bos_id else "prepended"

    def _eos_origin(self, ids: list[int]) -> EosOrigin:
        if self.eos_id is not None and ids[-1] == self.eos_id:
            return "text"
        return "appended" if self.policy.eos else "none"

    def _check_range(self, token_ids: Ints) -> None:
        bad = (token_ids < 0) | (token_ids >= self.n_ids)
        if bad.any():
            position = int(np.argmax(bad))
            raise RowError(
                "id_out_of_range",
                f"token {position} has id {token_ids[position]}, the model embeds ids 0 to "
                f"{self.n_ids - 1}",
            )

    def _count_special_text(self, text: str, ids: list[int], flags: dict[str, int | bool]) -> None:
        if self.policy.special_tokens == "parse":
            count = sum(i in self._special and i != self._unk_id for i in ids)
        else:
            count = len(self._special_text.findall(text))
        if count and self.policy.special_tokens == "error":
            match = self._special_text.search(text)
            assert match is not None
            raise RowError(
                "special_token_text",
                f"the text holds {match[0]!r} at character {match.start()}; --special-tokens parse "
                "or text takes it",
            )
        if count:
            flags["special_tokens"] = count

    # -- the tokenizer itself ---------------------------------------------------------------

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text's own tokens."""
        if self._fast is not None:
            encodings = self._fast.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        as_text = self.policy.special_tokens == "text"
        return [
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=as_text)
            for text in texts
        ]

    def _offsets(self, text: str, ids: list[int], flags: dict[str, int | bool]) -> Ints:
        source = text.encode()
        heads = {0} | {n for n, token_id in enumerate(ids, start=1) if token_id in self._special}
        for spell in self._spellings:
            pieces = [self._piece(token_id, spell) for token_id in ids]
            offsets = offsets_from_spelling(pieces, source, heads)
            if offsets is not None:
                return offsets
        if self._fast is None:
            raise RowError(
                "bytes_unknown",
                f"the tokens of {type(self.tokenizer).__name__} do not spell the text, and it "
                "gives no offsets; name a fast tokenizer with --tokenizer",
            )
        flags["lossy_tokenizer"] = True
        encoding = self._fast.encode(text, add_special_tokens=False)
        return offsets_from_chars(encoding.offsets, text)

    def _serialized(self) -> str:
        if self._fast is not None:
            written: str = self._fast.to_str()
            return written
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return json.dumps([type(self.tokenizer).__name__, vocabulary])

    def _spell_id(self, token_id: int, spell: Spelling | None = None) -> bytes:
        if name := self._literal.get(token_id):
            return name.encode()
        if self._fast is not None:
            piece = self._fast.id_to_token(token_id)
        else:
            piece = self.tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:  # the model's head is wider than the vocabulary
            return f"<id {token_id}>".encode()
        return (spell or self._spellings[0])(piece)

    def _literal_tokens(self) -> dict[int, str]:
        """Tokens that stand for their own text: special ones, and in byte-level vocabularies every
        added one (its letters are no stand-ins for bytes)."""
        if self._spellings[0] is not spell_byte_level:
            return self._special
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {i: token.content for i, token in added.items()} | self._special

    def _unknown_id(self, model: Mapping[str, Any]) -> int | None:
        """`model` is the part of that name of the serialized tokenizer."""
        if self._fast is not None:
            if self._spellings[0] is spell_byte_level:
                return None  # every byte has a piece; GPT-2 names its end-of-text "unknown"
            if (unk_id := model.get("unk_id")) is not None:
                return int(unk_id)
            if name := model.get("unk_token"):
                return self._id_of(name)
        unknown: int | None = self.tokenizer.unk_token_id
        return unknown

    def _id_of(self, token: str) -> int | None:
        if self._fast is not None:
            found: int | None = self._fast.token_to_id(token)
            return found
        listed: int | None = self.tokenizer.get_vocab().get(token)
        return listed

    def _bos_that_the_tokenizer_adds(self) -> int | None:
        probe = "a"
        bare = self.tokenizer.encode(probe, add_special_tokens=False)
        full = self.tokenizer.encode(probe, add_special_tokens=True)
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        before = full[: starts[0]] if starts else []
        if len(before) > 1 and self.policy.bos != "never" and self.policy.bos_token is None:
            raise UsageError(
                f"this tokenizer puts {len(before)} tokens before a text, which is no single BOS: "
                "choose one with --bos-token, or none with --bos never"
            )
        return before[0] if len(before) == 1 else None

    def _resolve_bos(self, model_bos: int | None) -> int | None:
        if self.policy.bos_token is not None:
            if self.policy.bos == "never":
                raise UsageError("--bos-token and --bos never exclude each other")
            return self._token_or_id(self.policy.bos_token)
        candidates = (self._added_bos, self._own_id("bos"), model_bos)
        found = next((candidate for candidate in candidates if candidate is not None), None)
        if found is None and self.policy.bos == "always":
            raise UsageError(
                "--bos always: neither the tokenizer nor the model names a BOS; name one with "
                "--bos-token (a token or an id, such as the end-of-text token)"
            )
        return found

    def _resolve_eos(self, model_eos: int | None) -> int | None:
        own = self._own_id("eos")
        found = model_eos if own is None else own
        if found is None and self.policy.eos:
            raise UsageError("--eos: neither the tokenizer nor the model names an EOS")
        return found

    def _own_id(self, kind: str) -> int | None:
        """The tokenizer's BOS or EOS; None, with a warning, where the model does not embed it."""
        token_id: int | None = getattr(self.tokenizer, f"{kind}_token_id")
        if token_id is None or token_id < self.n_ids:
            return token_id
        self.warnings.append(
            f"the tokenizer's {kind}_token_id {token_id} is none of the model's {self.n_ids} ids: "
            "left out"
        )
        return None

    def _token_or_id(self, written: str) -> int:
        by_name = {name: token_id for token_id, name in self._special.items()}.get(written)
        if by_name is None and written.isascii() and written.isdigit():
            by_name = int(written)
        if by_name is None:
            by_name = self._id_of(written)
        if by_name is None or by_name >= self.n_ids:
            raise UsageError(f"--bos-token: {written!r} is neither a token nor an id of this model")
        return by_name


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
