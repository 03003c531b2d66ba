"""Prompts with responses, and chats, as token sequences whose loss mask is on the responses.

Rules 8, 9, 13 and 14 of docs/numbers.md: the boundary of prompt and response, the cut of a
prompt that is too long, and the ids that stand for the response alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
)
from seqloss_cli.core.run_record import recorded
from seqloss_cli.tokenization.chat_templates import ChatTemplate
from seqloss_cli.tokenization.chat_tokens import chat_sequence, without_bos
from seqloss_cli.tokenization.chats import RenderedChat, render_chat
from seqloss_cli.tokenization.tokenizer import Encoded, Tokenization, ids_of, or_rejection


@dataclass(frozen=True, slots=True)
class _Plan:
    """The texts that a sample needs the ids of, and what makes its sequence of them."""

    texts: list[str]
    make: Callable[[Encoded], TokenSequence]


@dataclass(frozen=True, slots=True)
class _PairTokens:
    """A pair's tokens, without BOS and EOS, N of them."""

    ids: list[int]
    token_bytes: TokenBytes
    first: int
    """First token of the response; N where it has none."""
    n_prompt_bytes: int
    flags: Flags

    def boundary(self, prompt_ids: list[int]) -> Boundary:
        """Tells how prompt and response meet; `prompt_ids` are the prompt's alone (rule 9)."""
        if self.first < len(self.ids) and self.token_bytes.starts[self.first] < self.n_prompt_bytes:
            return "merged"
        return "clean" if self.ids[: self.first] == prompt_ids else "differs"


class PairTokenization:
    """Tokenizes samples that are pairs or chats.

    `longest` is the most tokens of a sequence, None where there is no limit.
    """

    def __init__(self, tokenization: Tokenization, policy: PairPolicy, longest: int | None) -> None:
        self._tokenization, self.policy, self._longest = tokenization, policy, longest
        self.template = ChatTemplate(
            tokenization.vocabulary.tokenizer, policy.chat_template, policy.template_date
        )

    def described(self) -> dict[str, Any]:
        """The policies, for the run's record."""
        policy = self.policy
        date = self.template.date
        return {
            **recorded(policy, "separator", "truncate", "marginal", "pmi"),
            "scored_turns": policy.turns,
            "end_of_turn": policy.end_of_turn,
            "chat_template_sha256": self.template.sha256,
            **({} if date is None else {"template_date": date}),
        }

    def tokenize(self, samples: Sequence[Sample]) -> list[TokenSequence | Rejected]:
        """One result for each sample, in order; a sample that cannot be tokenized is rejected."""
        plans = [or_rejection(sample, partial(self._plan, sample)) for sample in samples]
        made = [plan for plan in plans if not isinstance(plan, Rejected)]
        encoded = self._tokenization.encode_all(text for plan in made for text in plan.texts)
        return [
            plan
            if isinstance(plan, Rejected)
            else or_rejection(sample, partial(plan.make, encoded))
            for sample, plan in zip(samples, plans, strict=True)
        ]

    def _plan(self, sample: Sample) -> _Plan:
        policy, pair = self.policy, sample.pair
        if sample.chat is not None:
            control = self._tokenization.vocabulary.control_text
            chat = render_chat(self.template, sample.chat, control, policy)
            if policy.boundary != "joint":
                raise RowError(
                    "boundary_with_chat",
                    f"--boundary {policy.boundary} is for plain pairs; a chat is one text",
                )
            return _Plan([chat.text], partial(self._chat_sequence, sample, chat))
        if pair is None:
            raise RowError("no_pair", "has neither a prompt with a response nor messages")
        apart = [] if policy.boundary == "joint" else [pair.separator + pair.response]
        texts = [pair.text, pair.prompt, *apart]
        return _Plan(texts, partial(self._pair_sequence, sample, pair))

    def _chat_sequence(self, sample: Sample, chat: RenderedChat, encoded: Encoded) -> TokenSequence:
        ids = ids_of(encoded, chat.text)
        return self._finished(chat_sequence(self._tokenization, sample, chat, ids, self.policy))

    def _pair_sequence(self, sample: Sample, pair: Pair, encoded: Encoded) -> TokenSequence:
        """The sequence by the boundary policy, and with `compare` the other one beside it."""
        joint, prompt_ids = self._joint(pair, encoded), ids_of(encoded, pair.prompt)
        response = pair.separator + pair.response
        # The joint tokens tell how the texts meet, whichever policy runs.
        boundary = PromptBoundary(
            joint.boundary(prompt_ids), not pair.prompt, len(response.split()), self.policy.marginal
        )
        found = list[TokenSequence]()
        if self.policy.boundary != "separate":
            if joint.ids == prompt_ids and self._tokenization.encode([response]) == [[]]:
                raise RowError("no_response_token", "the response has no token of its own")
            found.append(self._finished(self._masked(sample, pair, joint, boundary)))
        if self.policy.boundary != "joint":
            separate = self._separate(pair, encoded)
            found.append(self._finished(self._masked(sample, pair, separate, boundary)))
        return found[0] if len(found) == 1 else _compared(*found)

    def _joint(self, pair: Pair, encoded: Encoded) -> _PairTokens:
        ids = ids_of(encoded, pair.text)
        token_bytes, flags = self._tokenization.token_bytes(pair.text, ids)
        n_prompt_bytes = len(pair.prompt.encode())
        # A token that crosses the boundary is the response's (rule 9).
        first = token_bytes.first_reaching(n_prompt_bytes)
        return _PairTokens(ids, token_bytes, first, n_prompt_bytes, flags)

    def _separate(self, pair: Pair, encoded: Encoded) -> _PairTokens:
        response = pair.separator + pair.response
        prompt_ids, response_ids = ids_of(encoded, pair.prompt), ids_of(encoded, response)
        before, prompt_flags = self._tokenization.token_bytes(pair.prompt, prompt_ids)
        after, response_flags = self._tokenization.token_bytes(response, response_ids)
        ids, flags = prompt_ids + response_ids, _summed(prompt_flags, response_flags)
        return _PairTokens(ids, before + after, len(prompt_ids), len(before.text), flags)

    def _masked(
        self, sample: Sample, pair: Pair, tokens: _PairTokens, boundary: PromptBoundary
    ) -> TokenSequence:
        """The sequence of a pair, with the loss mask on the response."""
        if tokens.first == len(tokens.ids):
            raise RowError("no_response_token", "the response has no token of its own")
        mask = np.arange(len(tokens.ids)) >= tokens.first
        flags = {**sample.flags, **tokens.flags}
        sequence = self._tokenization.add_bos_and_eos(
            sample, pair.text, tokens.ids, tokens.token_bytes, mask, flags
        )
        if sequence.bos == "text" and tokens.first == 0 and len(tokens.ids) == 1:
            raise RowError("no_response_token", "the response is nothing but BOS")
        return replace(without_bos(sequence), prompt_boundary=boundary)

    def _finished(self, sequence: TokenSequence) -> TokenSequence:
        sequence = self._fitted(sequence)
        if self.policy.pmi:
            sequence = replace(sequence, response_only=_response_only(sequence))
        if not self.policy.marginal:
            sequence = replace(sequence, score_mask=sequence.loss_mask)
        return sequence

    def _fitted(self, sequence: TokenSequence) -> TokenSequence:
        """The sequence, cut at the start of its prompt if it is too long and may be (rule 8).

        Raises RowError for one that is still too long: a response is never cut.
        """
        excess = 0 if self._longest is None else sequence.n_tokens - self._longest
        if excess <= 0:
            return sequence
        assert sequence.prompt_boundary is not None
        much = f"has {sequence.n_tokens} tokens, {excess} more than the context takes"
        if self.policy.truncate == "error":
            raise RowError("too_long", f"{much}; --truncate left cuts its prompt")
        # One token stays before the response: BOS, or without one a token for it to follow.
        cut = slice(1, 1 + excess) if sequence.begins_with_bos else slice(0, excess)
        if int(np.argmax(sequence.loss_mask)) - 1 < excess:
            raise RowError(
                "response_too_long",
                f"{much}: the response is never cut, nor the one token before it",
            )
        token_bytes = TokenBytes.of(sequence)
        assert token_bytes is not None
        turns = tuple(
            replace(turn, start=_moved(turn.start, cut), end=_moved(turn.end, cut))
            for turn in sequence.prompt_boundary.turns
        )
        return replace(
            sequence,
            token_ids=np.delete(sequence.token_ids, cut),
            # The first token, which is never scored, stands for the bytes of those that were cut.
            byte_offsets=token_bytes.drop(cut).offsets,
            loss_mask=np.delete(sequence.loss_mask, cut),
            score_mask=np.delete(sequence.score_mask, cut),
            flags={**sequence.flags, "truncated_left": excess},
            prompt_boundary=replace(sequence.prompt_boundary, n_dropped=excess, turns=turns),
        )


def _compared(joint: TokenSequence, separate: TokenSequence) -> TokenSequence:
    """Both ways to tokenize a pair; a cut of the other one is flagged, too."""
    flags, cut = dict(joint.flags), separate.flags.get("truncated_left")
    if cut is not None:
        flags["separate_truncated_left"] = cut
    return replace(joint, flags=flags, separate_tokenization=replace(separate, response_only=None))


def _response_only(sequence: TokenSequence) -> TokenSequence | None:
    """The response's ids after BOS, without the prompt (rule 14).

    None without a BOS, and for chats of which more than one stretch is scored.
    """
    ids, response = sequence.token_ids, sequence.counted_span
    assert sequence.prompt_boundary is not None
    if not sequence.begins_with_bos or response is None or sequence.prompt_boundary.n_spans != 1:
        return None
    # The very ids that it has after its prompt: tokenized alone, the response may have others.
    ids = np.concatenate([ids[:1], ids[slice(*response)]])
    mask = np.arange(len(ids)) > 0
    return replace(
        sequence, text=None, token_ids=ids, byte_offsets=None, loss_mask=mask, score_mask=mask,
        prompt_boundary=None, flags={},
    )  # fmt: skip


def _moved(position: int, cut: slice) -> int:
    """The place of a token once the tokens of `cut` are gone."""
    return position - len(range(cut.start, min(position, cut.stop)))


def _summed(a: Flags, b: Flags) -> Flags:
    """The flags of two texts together: counts are added."""
    return {
        name: True if (a.get(name) or b.get(name)) is True else a.get(name, 0) + b.get(name, 0)
        for name in {**a, **b}
    }
