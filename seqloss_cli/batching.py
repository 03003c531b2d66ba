"""From the sequences of a read-ahead block to padded batches of similar length, and back.

Batches depend on the block's sequences and the budget alone. Numbers do not depend on them
(rule 11): padding stands on the right, where a causal model cannot see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from seqloss_cli.config import WindowPolicy
from seqloss_cli.records import IGNORED, Batch, Ints, TokenSequence, Window
from seqloss_cli.windows import plan_windows

Row = tuple[int, Window]


def plan_batches(
    sequences: Sequence[TokenSequence], policy: WindowPolicy, batch_tokens: int
) -> Iterator[Batch]:
    """Batches of at most `batch_tokens` tokens, padding counted (one window at least), longest
    first, so that a budget too large for the machine shows at once."""
    rows = [
        (index, window)
        for index, sequence in enumerate(sequences)
        for window in plan_windows(
            sequence.n_tokens, policy.context, policy.stride, sequence.begins_with_bos
        )
    ]
    rows.sort(key=lambda row: -row[1].n_fed)
    start = 0
    while start < len(rows):
        width = rows[start][1].n_fed
        stop = start + max(1, batch_tokens // width)
        yield _batch(sequences, rows[start:stop])
        start = stop


def _batch(sequences: Sequence[TokenSequence], rows: Sequence[Row]) -> Batch:
    lengths = np.array([window.n_fed for _, window in rows], dtype=np.int64)
    shape = (len(rows), int(lengths.max()))
    input_ids = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    for b, (index, window) in enumerate(rows):
        fed, wanted = _fed_and_wanted(sequences[index].token_ids, window)
        input_ids[b, : len(fed)] = fed
        targets[b, len(fed) - len(wanted) : len(fed)] = wanted
    return Batch(input_ids, targets, lengths, tuple(rows))


def _fed_and_wanted(token_ids: Ints, window: Window) -> tuple[Ints, Ints]:
    """The ids that a window feeds, and those that its last positions predict."""
    fed = token_ids[window.start : window.end]
    if window.bos_first:
        fed = np.concatenate([token_ids[:1], fed])
    return fed, token_ids[window.score_from : window.end + 1]
