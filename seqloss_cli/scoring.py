"""The pipeline from samples to scores, in input order, in bounded memory.

Samples are read ahead in blocks, tokenized, cut into windows, batched by length, scored, and put
together again. A block's cut depends on the samples alone, so a run can be repeated exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from seqloss_cli.batching import plan_batches
from seqloss_cli.config import WindowPolicy
from seqloss_cli.records import (
    Backend,
    Batch,
    Item,
    Outcome,
    Rejected,
    Sample,
    SequenceScore,
    TokenScores,
    TokenSequence,
    Wants,
    Window,
    rejection,
)

FIRST_BLOCK_ROWS, LARGEST_BLOCK_ROWS = 1, 1024
BLOCK_BYTES = 1 << 20
OnProgress = Callable[[int, float, Item], None]
Tokenize = Callable[[Sequence[Sample]], list[TokenSequence | Rejected]]


def ignore_progress(n_tokens: int, share: float, last: Item) -> None:
    """Nobody watches."""


def score_samples(
    items: Iterable[Item],
    tokenize: Tokenize,
    backend: Backend,
    windows: WindowPolicy,
    wants: Wants,
    batch_tokens: int,
    on_progress: OnProgress = ignore_progress,
) -> Iterator[Outcome]:
    """A score or a rejection for each item, in order. `on_progress` hears of tokens as they are
    scored: how many, the share of the block that is done, and the block's last item."""
    for block in read_ahead(items):
        sequences = iter(tokenize([item for item in block if isinstance(item, Sample)]))
        tokenized = [next(sequences) if isinstance(item, Sample) else item for item in block]
        good = [entry for entry in tokenized if isinstance(entry, TokenSequence)]
        collected = [_Collected(sequence, wants) for sequence in good]
        n_targets, n_done = sum(max(0, sequence.n_tokens - 1) for sequence in good), 0
        for batch in plan_batches(good, windows, batch_tokens):
            scores = backend.score(batch, wants)
            _distribute(batch, scores, collected)
            n_done += len(scores.losses)
            on_progress(len(scores.losses), n_done / n_targets, block[-1])
        finished = iter(collected)
        for entry in tokenized:
            yield next(finished).outcome() if isinstance(entry, TokenSequence) else entry


def read_ahead(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Blocks cut by the row's position (small ones first, so that first results come soon) or
    after a mebibyte of text."""
    block: list[Item] = []
    rows, size = FIRST_BLOCK_ROWS, 0
    for item in items:
        block.append(item)
        size += _size(item)
        if len(block) >= rows or size >= BLOCK_BYTES:
            yield block
            block, size, rows = [], 0, min(2 * rows, LARGEST_BLOCK_ROWS)
    if block:
        yield block


def _size(item: Item) -> int:
    if item.n_bytes_read or isinstance(item, Rejected):
        return item.n_bytes_read
    return 4 * len(item.input_ids) if item.input_ids is not None else len(item.text or "")


class _Collected:
    """The scores of one sequence while its windows come in."""

    def __init__(self, sequence: TokenSequence, wants: Wants) -> None:
        n = sequence.n_tokens
        self.sequence = sequence
        self.losses = np.zeros(n)
        self.scored = np.zeros(n, dtype=bool)
        self.context_lengths = np.zeros(n, dtype=np.int64)
        self.ranks = np.zeros(n, dtype=np.int64) if wants.ranks else None
        self.entropies = np.zeros(n) if wants.entropy else None
        self.top_ids: np.ndarray | None = None  # as wide as the first scores say
        self.top_log_probs: np.ndarray | None = None

    def take(self, window: Window, scores: TokenScores, part: slice) -> None:
        """The window's targets are `part` of a batch's scores."""
        targets = slice(window.score_from, window.end + 1)
        assert not self.scored[targets].any(), "every target is scored exactly once"
        self.losses[targets] = scores.losses[part]
        self.scored[targets] = True
        positions = np.arange(window.score_from, window.end + 1)
        self.context_lengths[targets] = window.context_length(0) + positions
        if self.ranks is not None and scores.ranks is not None:
            self.ranks[targets] = scores.ranks[part]
        if self.entropies is not None and scores.entropies is not None:
            self.entropies[targets] = scores.entropies[part]
        if scores.top_ids is not None and scores.top_log_probs is not None:
            if self.top_ids is None or self.top_log_probs is None:
                shape = (len(self.losses), scores.top_ids.shape[1])
                self.top_ids, self.top_log_probs = np.zeros(shape, dtype=np.int64), np.zeros(shape)
            self.top_ids[targets] = scores.top_ids[part]
            self.top_log_probs[targets] = scores.top_log_probs[part]

    def outcome(self) -> Outcome:
        assert self.scored[1:].all(), "every target is scored exactly once"
        broken = np.isnan(self.losses)
        if broken.any():
            return rejection(
                self.sequence.sample,
                "nan_loss",
                f"the model gives NaN at {int(broken.sum())} tokens, first at token "
                f"{int(np.argmax(broken))}; another --dtype may mend it",
            )
        return SequenceScore(
            sequence=self.sequence,
            losses=self.losses,
            scored=self.scored,
            context_lengths=self.context_lengths,
            ranks=self.ranks,
            entropies=self.entropies,
            top_ids=self.top_ids,
            top_log_probs=self.top_log_probs,
        )


def _distribute(batch: Batch, scores: TokenScores, collected: list[_Collected]) -> None:
    start = 0
    for index, window in batch.rows:
        stop = start + window.end + 1 - window.score_from
        collected[index].take(window, scores, slice(start, stop))
        start = stop
    assert start == len(scores.losses)
