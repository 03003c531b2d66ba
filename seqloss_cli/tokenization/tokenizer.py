"""From a sample's text to the ids that the model sees, with BOS, EOS and bytes accounted for.

Rules 4, 5, 6, 10 and 13 of docs/numbers.md. The Hugging Face tokenizer is asked for the
text's own tokens only; BOS and EOS are put around them here, so that the output can report them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.policies import TokenPolicy
from seqloss_cli.core.records import (
    IGNORED,
    Bools,
    BosOrigin,
    EosOrigin,
    Flags,
    Ints,
    Rejected,
    Sample,
    TokenSequence,
    rejection,
)
from seqloss_cli.tokenization.vocabulary import Vocabulary, word_boundary_ids

Encoded = Mapping[str, list[int] | RowError]
"""Texts to the ids of their own tokens, or to why they have none."""
T = TypeVar("T")


def ids_of(encoded: Encoded, text: str) -> list[int]:
    """The ids of a text; raises its RowError."""
    ids = encoded[text]
    if isinstance(ids, RowError):
        raise ids
    return ids


def or_rejection(sample: Sample, make: Callable[[], T]) -> T | Rejected:
    """The thing made of a sample, or the sample's rejection by the RowError that it raises."""
    try:
        return make()
    except RowError as error:
        return rejection(sample, error.reason, error.message)


class Tokenization:
    """A tokenizer and the policies of a run.

    `tokenizer` is what `AutoTokenizer` returns. `n_ids` is how many ids the model embeds.
    `model_bos` and `model_eos` are ids that its configuration names, best first, for tokenizers
    that name none: those that are control tokens count.
    Raises UsageError when a policy asks for a token that neither has.
    """

    def __init__(
        self,
        tokenizer: Any,
        policy: TokenPolicy,
        n_ids: int,
        model_bos: Sequence[int] = (),
        model_eos: Sequence[int] = (),
    ) -> None:
        self.policy = policy
        self.n_ids = n_ids
        self.vocabulary = Vocabulary(tokenizer, policy.special_tokens == "text")
        self.name_token = self.vocabulary.name_token
        self.sha256 = self.vocabulary.sha256
        self.warnings: list[str] = []
        """Messages for stderr."""
        self.bos_id = self._resolve_bos(model_bos)
        self.eos_id = self._resolve_eos(model_eos)

    def token_texts(self, sequence: TokenSequence) -> list[str]:
        """For each token the source text that it covers, or its name where it was put in."""
        ids, token_bytes = sequence.token_ids.tolist(), TokenBytes.of(sequence)
        if token_bytes is None:
            return [self.name_token(token_id) for token_id in ids]
        texts = token_bytes.texts()
        cut = sequence.prompt_boundary is not None and sequence.prompt_boundary.n_dropped
        # Of a prompt that was cut, the first token covers all that is gone: no text of its own.
        if cut or sequence.bos in ("tokenizer", "prepended"):
            texts[0] = self.name_token(ids[0])
        if sequence.eos == "appended":
            texts[-1] = self.name_token(ids[-1])
        return texts

    def word_boundary_ids(self) -> WordBoundaryIds:
        """The ids that begin words and end texts, among the `n_ids` that the model embeds.

        Raises UsageError where tokens do not mark where words begin.
        """
        candidates = (*self.vocabulary.control, self.eos_id)
        ends = {i for i in candidates if i is not None and i < self.n_ids}
        return word_boundary_ids(self.vocabulary.spelled_ids(self.n_ids), ends)

    def tokenize(self, samples: Sequence[Sample]) -> list[TokenSequence | Rejected]:
        """One result for each sample, in order; a sample that cannot be tokenized is rejected."""
        encoded = self.encode_all(sample.text for sample in samples if sample.text is not None)
        return [
            or_rejection(sample, partial(self._sequence, sample, encoded)) for sample in samples
        ]

    def encode_all(self, texts: Iterable[str]) -> Encoded:
        """Ids of each text's own tokens, of equal texts once."""
        different = list(dict.fromkeys(texts))
        return dict(zip(different, self.encode(different), strict=True))

    def encode(self, texts: list[str]) -> list[list[int] | RowError]:
        """Ids of each text's own tokens; where a tokenizer gives up on one, the others go on."""
        try:
            return [*self.vocabulary.encode(texts)]
        except MemoryError:
            raise
        # The tokenizers library raises nothing more exact, and names no text of the batch.
        except Exception as error:
            if len(texts) == 1:
                return [RowError("tokenizer_error", f"the tokenizer cannot take it: {error}")]
            return [result for text in texts for result in self.encode([text])]

    def token_bytes(self, text: str, ids: list[int]) -> tuple[TokenBytes, dict[str, int | bool]]:
        """The bytes that each of the text's own tokens covers, and flags about them.

        Raises RowError when bytes are unknown, or the text holds tokens that the policy refuses.
        """
        token_bytes, spelled = self.vocabulary.token_bytes(text, ids)
        flags: dict[str, int | bool] = {} if spelled else {"lossy_tokenizer": True}
        if len(token_bytes.unspelled):
            flags["unspelled_text"] = True
        flags |= self._special_text_flags(text, ids)
        unk_id = self.vocabulary.unk_id
        if unk_id is not None and (unknown := ids.count(unk_id)):
            flags["unk_tokens"] = unknown
        return token_bytes, flags

    def add_bos_and_eos(
        self,
        sample: Sample,
        text: str | None,
        ids: list[int],
        token_bytes: TokenBytes | None,
        mask: Bools,
        flags: Flags,
    ) -> TokenSequence:
        """Return the sequence of T ids with the BOS and EOS that the policy puts around them.

        `mask`, shape T, says where their loss counts. `text` and `token_bytes` are None
        for a row of ids. Raises RowError for ids that the model does not embed.
        """
        if not ids:
            raise RowError("no_tokens", "the tokenizer makes no token of it")
        # Rows of ids are taken as they are, unless a BOS is demanded.
        wants_bos = self.policy.bos == "always" if text is None else self.policy.bos != "never"
        bos = self._bos_origin(ids, wants_bos)
        # A text of one token that is BOS and EOS at once, as GPT-2's, begins with it.
        eos = self._eos_origin(ids[1:] if bos == "text" else ids)
        n_before, n_after = int(bos in ("tokenizer", "prepended")), int(eos == "appended")
        token_ids = np.array(
            [self.bos_id] * n_before + ids + [self.eos_id] * n_after, dtype=np.int64
        )
        self._check_range(token_ids)
        if bos == "none":
            flags = {**flags, "first_token_unscored": True}
        scored = np.ones(len(token_ids), dtype=bool)
        loss_mask = np.concatenate([~scored[:n_before], mask, scored[:n_after]])
        sequence = TokenSequence(sample, text, token_ids, None, loss_mask, scored, bos, eos, flags)
        if token_bytes is None:
            return sequence
        token_bytes = token_bytes.surround(n_before, n_after)
        return replace(sequence, byte_offsets=token_bytes.offsets, unspelled=token_bytes.unspelled)

    def _sequence(self, sample: Sample, encoded: Encoded) -> TokenSequence:
        flags = dict(sample.flags)
        if sample.text is None:
            assert sample.input_ids is not None
            ids, token_bytes = sample.input_ids.tolist(), None
        else:
            ids = ids_of(encoded, sample.text)
            token_bytes, more = self.token_bytes(sample.text, ids)
            flags |= more
        mask = np.ones(len(ids), dtype=bool) if sample.labels is None else sample.labels != IGNORED
        return self.add_bos_and_eos(sample, sample.text, ids, token_bytes, mask, flags)

    def _bos_origin(self, ids: list[int], wants_bos: bool) -> BosOrigin:
        if self.bos_id is not None and ids[0] == self.bos_id:
            return "text"
        if not wants_bos or self.bos_id is None:
            return "none"
        return "tokenizer" if self.vocabulary.prefix_ids == [self.bos_id] else "prepended"

    def _eos_origin(self, ids: list[int]) -> EosOrigin:
        if ids and ids[-1] == self.eos_id:
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

    def _special_text_flags(self, text: str, ids: list[int]) -> dict[str, int]:
        """The flag `special_tokens` when the text holds some; RowError when it must not."""
        vocabulary = self.vocabulary
        if self.policy.special_tokens == "parse":
            count = sum(i in vocabulary.control for i in ids)
        else:
            count = len(vocabulary.control_text.findall(text))
        if count and self.policy.special_tokens == "error":
            match = next(vocabulary.control_text.finditer(text))
            raise RowError(
                "special_token_text",
                f"the text holds {match[0]!r} at character {match.start()}; --special-tokens parse "
                "or text takes it",
            )
        return {"special_tokens": count} if count else {}

    def _resolve_bos(self, model_bos: Sequence[int]) -> int | None:
        if self.policy.bos_token is not None:
            if self.policy.bos == "never":
                raise UsageError("--bos-token and --bos never exclude each other")
            return self._token_or_id("--bos-token", self.policy.bos_token)
        before = self.vocabulary.prefix_ids
        if len(before) > 1 and self.policy.bos != "never":
            raise UsageError(
                f"this tokenizer puts {len(before)} tokens before a text, which is no single BOS: "
                "choose one with --bos-token, or none with --bos never"
            )
        found = before[0] if before else self._embedded("bos", self.vocabulary.bos_id)
        if found is None:
            found = self._control_id("bos", model_bos)
        if found is None and self.policy.bos == "always":
            raise UsageError(
                "--bos always: neither the tokenizer nor the model names a BOS; name one with "
                "--bos-token (a token or an id, such as the end-of-text token)"
            )
        return found

    def _resolve_eos(self, model_eos: Sequence[int]) -> int | None:
        if self.policy.eos_token is not None:
            return self._token_or_id("--eos-token", self.policy.eos_token)
        found = self._embedded("eos", self.vocabulary.eos_id)
        if found is None:
            found = self._control_id("eos", model_eos)
        if found is None and self.policy.eos:
            raise UsageError(
                "--eos: neither the tokenizer nor the model names an EOS; name one with "
                "--eos-token (a token or an id)"
            )
        return found

    def _embedded(self, kind: str, token_id: int | None) -> int | None:
        """The tokenizer's BOS or EOS; None, with a warning, where the model does not embed it."""
        if token_id is None or token_id < self.n_ids:
            return token_id
        self.warnings.append(
            f"the tokenizer's {kind}_token_id {token_id} is none of the model's {self.n_ids} ids: "
            "left out"
        )
        return None

    def _control_id(self, kind: str, ids: Sequence[int]) -> int | None:
        """The first of the configuration's ids that is a control token; None, with a warning, where
        all are words: defaults of a configuration point at any id of a vocabulary."""
        found = next((i for i in ids if self.vocabulary.is_control(i)), None)
        if ids and found is None:
            self.warnings.append(
                f"the configuration's {kind}_token_id {ids[0]} is {self.name_token(ids[0])!r}, no "
                f"control token of the tokenizer: left out (--{kind}-token names one)"
            )
        return found

    def _token_or_id(self, flag: str, written: str) -> int:
        by_name = {name: i for i, name in self.vocabulary.special.items()}.get(written)
        if by_name is None and written.isascii() and written.isdigit():
            by_name = int(written)
        if by_name is None:
            by_name = self.vocabulary.id_of(written)
        if by_name is None or by_name >= self.n_ids:
            raise UsageError(f"{flag}: {written!r} is neither a token nor an id of this model")
        return by_name
