"""A rendered chat as a token sequence whose mask is on the scored turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.policies import TurnChoice
from seqloss_cli.core.records import Ints, PromptBoundary, Sample, TokenSequence, Turn
from seqloss_cli.tokenization.chats import RenderedChat
from seqloss_cli.tokenization.tokenizer import Tokenization


def chat_sequence(
    tokenization: Tokenization,
    sample: Sample,
    chat: RenderedChat,
    ids: list[int],
    turns: TurnChoice,
) -> TokenSequence:
    """`ids` are those of the rendered text, and nothing around it.

    A token counts where it covers part of a scored span; those that reach over a span's edge are
    counted in the flag `span_merged`. Raises RowError for a mask that cannot be meant.
    """
    assert sample.chat is not None
    if tokenization.policy.eos:
        raise RowError(
            "eos_with_chat", "--eos is for plain pairs; a chat's template ends its turns"
        )
    covered, flags = tokenization.cover(chat.text, ids)
    flags = {**sample.flags, **flags}
    edges = covered.char_edges()
    mask = np.zeros(len(ids), dtype=bool)
    n_merged = 0
    for start, end in (edges[list(span)].tolist() for span in chat.scored):
        inside = covered.covering(start, end)
        mask[inside] = True
        crosses = (covered.starts[inside] < start) | (covered.ends[inside] > end)
        n_merged += int(crosses.sum())
    if n_merged:
        flags["span_merged"] = n_merged
    for name, count in (
        ("content_changed", chat.n_changed),
        ("tools_not_rendered", chat.n_not_rendered),
        ("no_end_of_turn", chat.n_open),
    ):
        if count:
            flags[name] = count
    sequence = tokenization.between(sample, chat.text, ids, covered, mask, flags)
    _check_bos(sequence, tokenization.eos_id)
    sequence = without_bos(sequence)
    _check_mask(sequence, chat, turns)
    ends, control = edges[list(chat.turn_ends)], tokenization.vocabulary.special_text
    return replace(
        sequence,
        prompt_boundary=_chat_boundary(sample.chat.messages, sequence, chat, ends, control),
    )


def _check_bos(sequence: TokenSequence, eos_id: int | None) -> None:
    """Exactly one: a second may stand beside it, or behind what a template writes before it."""
    bos, *others = sequence.token_ids.tolist()
    ends_turns = bos == eos_id
    twice = others[:1] == [bos] or (bos in others and sequence.bos != "text" and not ends_turns)
    if sequence.begins_with_bos and twice:
        raise RowError(
            "double_bos",
            "the rendered chat has two BOS: the chat template adds one to one that is there, "
            "or writes something before it (--bos never)",
        )


def _check_mask(sequence: TokenSequence, chat: RenderedChat, turns: TurnChoice) -> None:
    text_tokens = sequence.loss_mask[int(sequence.begins_with_bos) :]
    if not text_tokens.any():
        raise RowError(
            "all_masked",
            f"no token of it counts: the scored turns are empty in {chat.text!r:.200}",
        )
    if turns != "all" and text_tokens.all():
        raise RowError(
            "nothing_masked",
            f"every token of it counts, from {chat.text!r:.60} on: the chat template writes "
            "nothing before the response (--score all takes it)",
        )


def _chat_boundary(
    messages: Sequence[Mapping[str, str]],
    sequence: TokenSequence,
    chat: RenderedChat,
    end_bytes: Ints,
    control: re.Pattern[str],
) -> PromptBoundary:
    covered = TokenBytes.of(sequence)
    assert covered is not None
    ends = [*np.searchsorted(covered.starts, end_bytes[:-1]).tolist(), sequence.n_tokens]
    roles = (message["role"] for message in messages)
    turns = tuple(
        Turn(role, start, end) for role, start, end in zip(roles, [0, *ends], ends, strict=False)
    )
    spans = (control.sub(" ", chat.text[start:end]) for start, end in chat.scored)
    return PromptBoundary(
        boundary=None,
        empty_prompt=chat.scored[0][0] == 0,
        n_words=sum(len(span.split()) for span in spans),
        n_spans=len(chat.scored),
        turns=turns,
    )


def without_bos(sequence: TokenSequence) -> TokenSequence:
    """BOS is the prompt's, wherever it was written."""
    mask = sequence.loss_mask.copy()
    mask[: int(sequence.begins_with_bos)] = False
    return replace(sequence, loss_mask=mask)
