"""A rendered chat as a token sequence whose loss mask is on the scored turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.policies import PairPolicy, TurnChoice
from seqloss_cli.core.records import Bools, Ints, PromptBoundary, Sample, TokenSequence, Turn
from seqloss_cli.tokenization.chats import RenderedChat
from seqloss_cli.tokenization.tokenizer import Tokenization


def chat_sequence(
    tokenization: Tokenization,
    sample: Sample,
    chat: RenderedChat,
    ids: list[int],
    policy: PairPolicy,
) -> TokenSequence:
    """The sequence of a rendered chat; `ids` are those of its text, and nothing around it.

    A token counts where it covers part of a scored span; those that reach over a span's edge are
    counted in the flag `span_merged`. Raises RowError where all tokens count, or none.
    """
    if tokenization.policy.eos:
        raise RowError(
            "eos_with_chat", "--eos is for plain pairs; a chat's template ends its turns"
        )
    token_bytes, flags = tokenization.token_bytes(chat.text, ids)
    char_edges = token_bytes.char_edges()
    # Every scored span may be empty: then this is an array without rows.
    spans = char_edges[np.array(chat.scored, dtype=np.int64).reshape(-1, 2)]
    mask, n_merged = _loss_mask(token_bytes, spans)
    counts = {"span_merged": n_merged, **chat.counts}
    flags = {**sample.flags, **flags, **{name: count for name, count in counts.items() if count}}
    sequence = tokenization.add_bos_and_eos(sample, chat.text, ids, token_bytes, mask, flags)
    _check_bos(sequence, tokenization.eos_id)
    sequence = without_bos(sequence)
    _check_mask(sequence, chat, policy.turns)
    control = tokenization.vocabulary.control_text
    words = (control.sub(" ", chat.text[start:end]).split() for start, end in chat.scored)
    boundary = PromptBoundary(
        boundary=None,
        empty_prompt=chat.scored[0][0] == 0,
        n_words=sum(map(len, words)),
        n_spans=len(chat.scored),
        prompt_scored=policy.marginal,
        turns=_turns(sequence, char_edges, chat),
    )
    return replace(sequence, prompt_boundary=boundary)


def without_bos(sequence: TokenSequence) -> TokenSequence:
    """The sequence with BOS out of the loss mask: it is the prompt's, wherever it was written."""
    mask = sequence.loss_mask.copy()
    mask[: int(sequence.begins_with_bos)] = False
    return replace(sequence, loss_mask=mask)


def _loss_mask(token_bytes: TokenBytes, spans: Ints) -> tuple[Bools, int]:
    """The tokens that count, shape N, and how many of them reach over an edge of the spans.

    `spans` are bytes [start, end) of the text, a row each.
    """
    # By the bytes of the rendered text. The mask of apply_chat_template is all zeros, with only a
    # warning, where a template lacks `{% generation %}`, and marks the whole sequence where the
    # first marked span has one token.
    mask, n_merged = np.zeros(token_bytes.n_tokens, dtype=bool), 0
    for start, end in spans.tolist():
        inside = token_bytes.covering(start, end)
        mask[inside] = True
        crosses = (token_bytes.starts[inside] < start) | (token_bytes.ends[inside] > end)
        n_merged += int(crosses.sum())
    return mask, n_merged


def _check_bos(sequence: TokenSequence, eos_id: int | None) -> None:
    """Raises RowError for a second BOS, beside the first or behind text of the template."""
    bos, *others = sequence.token_ids.tolist()
    # GPT-2's BOS is its EOS, too: templates may well write it after each turn.
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


def _turns(sequence: TokenSequence, char_edges: Ints, chat: RenderedChat) -> tuple[Turn, ...]:
    """The tokens of each message; the last one's reach to the end of the sequence.

    `char_edges` are the bytes at which characters of the text begin.
    """
    assert sequence.byte_offsets is not None
    end_bytes = char_edges[[*chat.turn_ends[:-1]]]
    ends = [*np.searchsorted(sequence.byte_offsets[:-1], end_bytes).tolist(), sequence.n_tokens]
    return tuple(map(Turn, chat.roles, [0, *ends], ends))
