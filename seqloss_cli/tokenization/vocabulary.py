"""A Hugging Face tokenizer, asked for a text's own tokens and for the bytes that tokens stand for.

Fast tokenizers (those of the `tokenizers` library) and Python ones behave alike from here up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.byte_spans import TokenBytes, show_bytes
from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.tokenization import byte_offsets

_MOST_IDS = 1 << 32
"""Ids are below this: the tokenizers library takes no others."""
_IN_BRACKETS = re.compile(r"[<\[{|]\S+[>\]}|]")


class Vocabulary:
    """A tokenizer's ids and the bytes that each stands for.

    `tokenizer` is what `AutoTokenizer` returns; `special_as_text` takes special tokens in a text
    for ordinary characters.
    """

    def __init__(self, tokenizer: Any, special_as_text: bool) -> None:
        self.tokenizer = tokenizer
        self._special_as_text = special_as_text
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        # Where the parts of `tokenizers` are close to what the model was trained with, but not it.
        self._exact = getattr(tokenizer, "sentencepiece_ids", None)
        if self._fast is not None:
            # A tokenizer.json can hold settings that would cut texts, or pad them, silently.
            self._fast.no_truncation()
            self._fast.no_padding()
        serialized = self._serialized()
        self.sha256 = hashlib.sha256(serialized.encode()).hexdigest()
        """Hash of the tokenizer's serialized form."""
        parts = {} if self._fast is None else json.loads(serialized)
        self._spellings = byte_offsets.SPELLINGS
        if parts:
            self._spellings = (byte_offsets.spelling_of(parts),)
        self.special = _special_tokens(tokenizer)
        """Ids of special tokens and the text that stands for each."""
        self._literal = self._literal_tokens()
        self.unk_id = self._unknown_id(parts.get("model", {}))
        self.control = {token_id for token_id in self.special if token_id != self.unk_id}
        """Ids of special tokens but the unknown one: they begin and end texts and turns."""
        self.control_text = any_of(self.special[token_id] for token_id in self.control)
        """Matches a control token in a text."""
        self.bos_id, self.eos_id = self._named_id("bos"), self._named_id("eos")
        self.prefix_ids = self._prefix_ids()
        self._bytes_of = lru_cache(maxsize=1 << 18)(self._spell_id)
        if self._fast is not None:
            # Last of all: whenever transformers encodes, as just above, it sets this back.
            self._fast.encode_special_tokens = special_as_text

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text's own tokens: none is put around them.

        Rendered chat templates already hold a BOS; a text gets one by the policy of the run.
        """
        if self._exact is not None:
            return [self._exact.encode(text) for text in texts]
        if self._fast is not None:
            # Offsets would take about 150 bytes of memory for each byte of text.
            encodings = self._fast.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        split = self._special_as_text
        return [
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split)
            for text in texts
        ]

    def token_bytes(self, text: str, ids: list[int]) -> tuple[TokenBytes, bool]:
        """The bytes that each of a text's tokens covers, and whether the tokens spell the text.

        A tokenizer that changes or drops characters has tokens that do not. Raises RowError where
        they do not and the tokenizer gives no offsets of its own.
        """
        source = text.encode()
        heads = {0} | {n for n, token_id in enumerate(ids, start=1) if token_id in self.special}
        for spell in self._spellings:
            tokens = [self._bytes_of(token_id, spell) for token_id in ids]
            spelled = byte_offsets.bytes_by_spelling(tokens, source, heads)
            if spelled is not None:
                return spelled, True
        if self._fast is None:
            raise RowError(
                "bytes_unknown",
                f"the tokens of {type(self.tokenizer).__name__} do not spell the text, and it "
                "gives no offsets; name a fast tokenizer with --tokenizer",
            )
        return self._changed_texts.token_bytes(text, ids, self._bytes_of), False

    @cached_property
    def _changed_texts(self) -> byte_offsets.ChangedTexts:
        return byte_offsets.ChangedTexts(self._fast, self.unk_id, self._exact)

    def name_token(self, token_id: int) -> str:
        """The text of an id: special tokens by name, parts of characters as `<0xF0>`."""
        # Not the tokenizer's decode, which makes U+FFFD of parts of characters; and batch_decode
        # joins a list of ids into one string since transformers 5.
        return self.special.get(token_id) or show_bytes(self._bytes_of(token_id))

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that an id stands for; of special tokens those of the name."""
        name = self.special.get(token_id)
        return name.encode() if name else self._bytes_of(token_id)

    def spelled_ids(self, n_ids: int) -> list[bytes | None]:
        """The bytes of each id below `n_ids`; None for control tokens and ids without a token.

        Of several spellings, it is the one in which most tokens begin with white space.
        """
        stop = n_ids if self._fast is not None else min(n_ids, len(self.tokenizer))
        known = [i for i in range(stop) if i not in self.control and self.written(i) is not None]
        ways = [{i: self._bytes_of(i, spell) for i in known} for spell in self._spellings]
        best = max(ways, key=lambda way: sum(token[:1].isspace() for token in way.values()))
        return [best.get(i) for i in range(n_ids)]

    def is_control(self, token_id: int) -> bool:
        """Tell whether an id is a special token, or an added one in brackets: no word of a text."""
        if token_id in self.special:
            return token_id in self.control
        token = getattr(self.tokenizer, "added_tokens_decoder", {}).get(token_id)
        return token is not None and is_in_brackets(token.content)

    def id_of(self, token: str) -> int | None:
        """The id of a token's string; None where the vocabulary has no such token."""
        look_up = self.tokenizer.get_vocab().get if self._fast is None else self._fast.token_to_id
        found: int | None = look_up(token)
        return found

    def _named_id(self, kind: str) -> int | None:
        """Return the id of the tokenizer's own BOS or EOS."""
        found: int | None = getattr(self.tokenizer, f"{kind}_token_id")
        # transformers gives the id of the unknown token for a name that the vocabulary lacks.
        names = getattr(self.tokenizer, f"{kind}_token"), self.tokenizer.unk_token
        return None if found == self.tokenizer.unk_token_id and names[0] != names[1] else found

    def _serialized(self) -> str:
        if self._fast is not None:
            return str(self._fast.to_str())
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return json.dumps([type(self.tokenizer).__name__, vocabulary])

    def _spell_id(self, token_id: int, spell: byte_offsets.Spelling | None = None) -> bytes:
        if name := self._literal.get(token_id):
            return name.encode()
        token = self.written(token_id)
        # Heads are often wider than the vocabulary, to a multiple that suits the hardware.
        if token is None:
            return f"<id {token_id}>".encode()
        return (spell or self._spellings[0])(token)

    def written(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it; None where it has none."""
        if not 0 <= token_id < _MOST_IDS:  # labels of others hold such ids
            return None
        slow, fast = self.tokenizer, self._fast
        look_up = slow.convert_ids_to_tokens if fast is None else fast.id_to_token
        token: str | None = look_up(token_id)
        return token

    def _literal_tokens(self) -> dict[int, str]:
        """Tokens that stand for their own text.

        These are the special ones, and in byte-level vocabularies every added one: its letters are
        no stand-ins for bytes.
        """
        if self._spellings[0] is not byte_offsets.spell_byte_level:
            return self.special
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {i: token.content for i, token in added.items()} | self.special

    def _unknown_id(self, model: Mapping[str, Any]) -> int | None:
        """The id of the unknown token; `model` is that part of the serialized tokenizer."""
        if self._fast is not None:
            # GPT-2 calls its end-of-text token "unknown", where every byte has a token.
            if self._spellings[0] is byte_offsets.spell_byte_level:
                name = model.get("unk_token")
                is_whole = byte_offsets.holds_every_byte(model.get("vocab", ()))
                return None if is_whole or name is None else self.id_of(name)
            if (unk_id := model.get("unk_id")) is not None:
                return int(unk_id)
            if name := model.get("unk_token"):
                return self.id_of(name)
        unknown: int | None = self.tokenizer.unk_token_id
        return unknown

    def _prefix_ids(self) -> list[int]:
        """Ids that the tokenizer itself adds in front of a text: none, a BOS, or more."""
        # Asked of a text, not read in settings: classes and post-processors add in many ways.
        bare = self.tokenizer.encode("a", add_special_tokens=False)
        full = self.tokenizer.encode("a", add_special_tokens=True)
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        return list(full[: starts[0]]) if starts else []


def is_in_brackets(token: str) -> bool:
    """Tell whether a token is spelled as control tokens are: `<|end|>`, `[BOS]`."""
    return _IN_BRACKETS.fullmatch(token) is not None


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids of special tokens and the text that stands for each."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False)
    return dict(named) | {i: token.content for i, token in added.items() if token.special}


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Make a pattern that matches each of some names; of none it matches nothing."""
    # Longest first: `|` takes the first that matches, and <|im_end|> may begin another name.
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


_LEAST_MARKED = 0.1
"""Share of the tokens with letters that begin with white space where words' starts are marked."""
_MOST_BROKEN = 0.01
"""Share of the tokens with letters that go on with white space, where ends of words are seen."""
_WORD_THEN_SPACE = re.compile(r"(\s*\S+)\s")


def word_boundary_ids(tokens: Sequence[bytes | None], ends: Collection[int]) -> WordBoundaryIds:
    """Ids that begin a word, end a text, or hold the end of a word inside.

    `tokens` are the bytes of the ids (None where they have none), `ends` the ids that end a text.
    White space is what `str.isspace` says, as for words (rule 16). Raises UsageError where tokens
    do not mark where words begin.
    """
    texts = [None if t is None else t.decode(errors="surrogateescape") for t in tokens]
    spaced = np.array([text is not None and text[:1].isspace() for text in texts], dtype=bool)
    found = {
        n: m[1] for n, text in enumerate(texts) if text and (m := _WORD_THEN_SPACE.match(text))
    }
    _require_marked(texts, found)
    ending = np.zeros(len(tokens), dtype=bool)
    ending[list(ends)] = True
    spelled = np.array([text is not None for text in texts], dtype=bool)
    members = np.stack([spaced | ending, (spelled & ~spaced) | ending], axis=1)
    # Backwards: of two ids with the same text the lower one counts.
    ids = {text: n for n, text in reversed([*enumerate(texts)]) if text is not None}
    return WordBoundaryIds(
        leading_space=spaced,
        ends_text=ending,
        members=members.astype(np.float32),
        word_then_space_ids=np.array([*found], dtype=np.int64),
        bare_word_ids=np.array([ids.get(stem, -1) for stem in found.values()], dtype=np.int64),
    )


def _require_marked(texts: Sequence[str | None], found: Mapping[int, str]) -> None:
    """Raises UsageError where tokens do not begin with the space before a word, or hold its end."""
    lettered = [text for text in texts if text and any(map(str.isalpha, text))]
    broken = [texts[n] or "" for n, stem in found.items() if any(map(str.isalnum, stem))]
    if len(broken) > _MOST_BROKEN * len(lettered):
        raise UsageError(
            f"--word-correction: {len(broken)} of this tokenizer's pieces go on with white space "
            f"after a word, such as {broken[0]!r}, so that a word's last token does not tell "
            "where it ends; leave the flag out"
        )
    n_marked = sum(text[0].isspace() for text in lettered)
    if n_marked <= _LEAST_MARKED * len(lettered):
        raise UsageError(
            "--word-correction: this tokenizer's pieces do not mark where a word begins "
            f"({n_marked} of {len(lettered)} pieces with letters begin with white space), "
            "so there is no probability of a word's start to move; leave the flag out"
        )
