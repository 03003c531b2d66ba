"""Prompts with responses, and chats, as token sequences whose mask is on what was responded.

Rules 8, 9, 13 and 14 of the numbers contract: where the seam lies, what is cut from a prompt that
is too long, and which ids stand for the response alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.policies import PairPolicy
from seqloss_cli.core.records import (
    Boundary,
    Flags,
    Pair,
    PromptBoundary,
    Rejected,
    Sample,
    TokenSequence,
    rejection,
)
from seqloss_cli.tokenization.chat_templates import ChatTemplate
from seqloss_cli.tokenization.chat_tokens import chat_sequence, without_bos
from seqloss_cli.tokenization.chats import RenderedChat, render_chat
from seqloss_cli.tokenization.tokenizer import Tokenization

Encoded = Mapping[str, list[int] | RowError]


class PairTokenization:
    """Tokenizes samples that are pairs or chats.

    `longest` is the most tokens of a sequence, None where there is no limit.
    """

    def __init__(self, tokenization: Tokenization, policy: PairPolicy, longest: int | None) -> None:
        self._tokenization, self.policy, self._longest = tokenization, policy, longest
        self._template = ChatTemplate(tokenization.vocabulary.tokenizer, policy.chat_template)

    def described(self) -> dict[str, Any]:
        """The policies, for the run's record."""
        policy = self.policy
        return {
            "separator": policy.separator,
            "truncate": policy.truncate,
            "marginal": policy.marginal,
            "pmi": policy.pmi,
            "scored_turns": policy.turns,
            "end_of_turn": policy.end_of_turn,
            "chat_template_sha256": self._template.sha256,
        }

    def tokenize(self, samples: Sequence[Sample]) -> list[TokenSequence | Rejected]:
        """One result for each sample, in order; a sample that cannot be tokenized is rejected."""
        rendered = [self._rendered(sample) for sample in samples]
        texts: dict[str, None] = {}
        for sample, chat in zip(samples, rendered, strict=True):
            texts |= dict.fromkeys(self._texts_of(sample, chat))
        encoded = dict(zip(texts, self._tokenization.encode(list(texts)), strict=True))
        results: list[TokenSequence | Rejected] = []
        for sample, chat in zip(samples, rendered, strict=True):
            try:
                results.append(self._sequence(sample, chat, encoded))
            except RowError as error:
                results.append(rejection(sample, error.reason, error.message))
        return results

    def _rendered(self, sample: Sample) -> RenderedChat | RowError | None:
        control, policy = self._tokenization.vocabulary.special_text, self.policy
        try:
            if sample.chat is None:
                return None
            return render_chat(
                self._template, sample.chat, control, policy.turns, policy.end_of_turn
            )
        except RowError as error:
            return error

    def _texts_of(self, sample: Sample, chat: RenderedChat | RowError | None) -> list[str]:
        """What is to be encoded for a sample."""
        if isinstance(chat, RenderedChat):
            return [chat.text]
        if isinstance(chat, RowError) or sample.pair is None:
            return []
        pair = sample.pair
        apart = [] if self.policy.boundary == "joint" else [pair.separator + pair.response]
        return [pair.text, pair.prompt, *apart]

    def _sequence(
        self, sample: Sample, chat: RenderedChat | RowError | None, encoded: Encoded
    ) -> TokenSequence:
        policy = self.policy
        if isinstance(chat, RowError):
            raise chat
        if chat is not None:
            if policy.boundary != "joint":
                raise RowError(
                    "boundary_with_chat",
                    f"--boundary {policy.boundary} is for plain pairs; a chat is one text",
                )
            ids = _ids(encoded, chat.text)
            return self._finished(
                chat_sequence(self._tokenization, sample, chat, ids, policy.turns)
            )
        if sample.pair is None:
            raise RowError("no_pair", "has neither a prompt with a response nor messages")
        tokenized = self._pair_sequences(sample, sample.pair, encoded)
        if policy.boundary == "compare":
            joint = self._finished(tokenized["joint"]())
            return _compared(joint, self._finished(tokenized["separate"]()))
        return self._finished(tokenized[policy.boundary]())

    # -- pairs ------------------------------------------------------------------------------

    def _pair_sequences(
        self, sample: Sample, pair: Pair, encoded: Encoded
    ) -> dict[str, Callable[[], TokenSequence]]:
        """What each boundary policy makes of a pair; the joint tokens tell how its texts meet."""
        response, n_prompt_bytes = pair.separator + pair.response, len(pair.prompt.encode())
        ids, prompt_ids = _ids(encoded, pair.text), _ids(encoded, pair.prompt)
        covered, flags = self._tokenization.cover(pair.text, ids)
        # A token that crosses the boundary is the response's (rule 9).
        first = covered.first_reaching(n_prompt_bytes)
        boundary = PromptBoundary(
            _how_they_meet(ids, prompt_ids, covered, n_prompt_bytes),
            not n_prompt_bytes,
            len(response.split()),
        )

        def joint() -> TokenSequence:
            if ids == prompt_ids and self._tokenization.encode([response]) == [[]]:
                raise RowError("no_response_token", "the response has no token of its own")
            return self._pair_sequence(sample, pair, ids, covered, first, flags, boundary)

        def separate() -> TokenSequence:
            response_ids = _ids(encoded, response)
            before, prompt_flags = self._tokenization.cover(pair.prompt, prompt_ids)
            after, response_flags = self._tokenization.cover(response, response_ids)
            return self._pair_sequence(
                sample,
                pair,
                prompt_ids + response_ids,
                before + after,
                len(prompt_ids),
                _summed(prompt_flags, response_flags),
                boundary,
            )

        return {"joint": joint, "separate": separate}

    def _pair_sequence(
        self,
        sample: Sample,
        pair: Pair,
        ids: list[int],
        covered: TokenBytes,
        first: int,
        flags: Flags,
        prompt_boundary: PromptBoundary,
    ) -> TokenSequence:
        """`first` is the first of the ids that belongs to the response."""
        if first == len(ids):
            raise RowError("no_response_token", "the response has no token of its own")
        mask = np.arange(len(ids)) >= first
        flags = {**sample.flags, **flags}
        sequence = self._tokenization.between(sample, pair.text, ids, covered, mask, flags)
        if sequence.bos == "text" and first == 0 and len(ids) == 1:
            raise RowError("no_response_token", "the response is nothing but BOS")
        return replace(without_bos(sequence), prompt_boundary=prompt_boundary)

    # -- length, and what else is scored ------------------------------------------------------

    def _finished(self, sequence: TokenSequence) -> TokenSequence:
        sequence = self._fitted(sequence)
        if self.policy.pmi:
            sequence = replace(sequence, response_only=_response_only(sequence))
        if not self.policy.marginal:
            assert sequence.prompt_boundary is not None
            prompt_boundary = replace(sequence.prompt_boundary, prompt_scored=False)
            sequence = replace(
                sequence, score_mask=sequence.loss_mask, prompt_boundary=prompt_boundary
            )
        return sequence

    def _fitted(self, sequence: TokenSequence) -> TokenSequence:
        """Rule 8: what is too long is rejected, or cut at the start of its prompt."""
        excess = 0 if self._longest is None else sequence.n_tokens - self._longest
        if excess <= 0:
            return sequence
        assert sequence.prompt_boundary is not None
        much = f"has {sequence.n_tokens} tokens, {excess} more than the context takes"
        if self.policy.truncate == "error":
            raise RowError("too_long", f"{much}; --truncate left cuts its prompt")
        kept_before = 1  # BOS; without one, something for the response to follow
        first = int(np.argmax(sequence.loss_mask))
        cut = slice(kept_before, kept_before + excess)
        if not sequence.begins_with_bos:
            cut = slice(0, excess)
        if first - kept_before < excess:
            raise RowError(
                "response_too_long",
                f"{much}: the response is never cut, nor the one token before it",
            )
        covered = TokenBytes.of(sequence)
        assert covered is not None
        turns = tuple(
            replace(turn, start=_moved(turn.start, cut), end=_moved(turn.end, cut))
            for turn in sequence.prompt_boundary.turns
        )
        return replace(
            sequence,
            token_ids=np.delete(sequence.token_ids, cut),
            # The first token, which is never scored, stands for the bytes of those that were cut.
            byte_offsets=covered.drop(cut).offsets,
            loss_mask=np.delete(sequence.loss_mask, cut),
            score_mask=np.delete(sequence.score_mask, cut),
            flags={**sequence.flags, "truncated_left": excess},
            prompt_boundary=replace(sequence.prompt_boundary, n_dropped=excess, turns=turns),
        )


def _how_they_meet(
    joint: list[int], prompt: list[int], covered: TokenBytes, n_prompt_bytes: int
) -> Boundary:
    """How prompt and response meet in the joint tokenization, whichever policy runs (rule 9)."""
    first = covered.first_reaching(n_prompt_bytes)
    if first < len(joint) and covered.starts[first] < n_prompt_bytes:
        return "merged"
    return "clean" if joint[:first] == prompt else "differs"


def _compared(joint: TokenSequence, separate: TokenSequence) -> TokenSequence:
    """Both ways to tokenize a pair; a cut of the other one is said, too."""
    flags, cut = dict(joint.flags), separate.flags.get("truncated_left")
    if cut is not None:
        flags["separate_truncated_left"] = cut
    return replace(joint, flags=flags, separate_tokenization=replace(separate, response_only=None))


def _response_only(sequence: TokenSequence) -> TokenSequence | None:
    """Rule 14: exactly the response's ids, after BOS. None without one, and for chats of which
    more than one stretch is scored."""
    ids, response = sequence.token_ids, sequence.one_stretch
    assert sequence.prompt_boundary is not None
    if not sequence.begins_with_bos or response is None or sequence.prompt_boundary.n_spans != 1:
        return None
    alone = np.concatenate([ids[:1], ids[slice(*response)]])
    counts = np.arange(len(alone)) > 0
    return replace(
        sequence, text=None, token_ids=alone, byte_offsets=None, loss_mask=counts,
        score_mask=counts, prompt_boundary=None, flags={},
    )  # fmt: skip


def _moved(position: int, cut: slice) -> int:
    """A token's place once the tokens of `cut` are gone."""
    return position - len(range(cut.start, min(position, cut.stop)))


def _ids(encoded: Encoded, text: str) -> list[int]:
    ids = encoded[text]
    if isinstance(ids, RowError):
        raise ids
    return ids


def _summed(a: Flags, b: Flags) -> Flags:
    """Flags of two texts: counts are added."""
    return {
        name: True if (a.get(name) or b.get(name)) is True else a.get(name, 0) + b.get(name, 0)
        for name in {**a, **b}
    }
