"""From logits to losses, ranks, entropies and alternatives: of some positions and, where the head
can, some words at a time.

Shape letters: M positions, V vocabulary, K alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqloss_cli.backends.torch.softmax import HeadTensors, StreamingSoftmax, score_logits
from seqloss_cli.core.backend import Requested, TokenScores

LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time where whole rows of them are needed: 64 MiB in float32, whatever the
vocabulary."""
BLOCK_ROWS, BLOCK_LOGITS, LEAST_WIDTH = 1024, 1 << 20, 1024
"""Positions, logits, and words at least of a block of the vocabulary: small enough for what is made
of them to stay near the cores, large enough for matrix products to run at their rate. Blocks of 16
MiB are 3 % faster at best, but what the C library makes room for then grows by tens of MB."""
_GPU_BLOCK_ROWS, _GPU_BLOCK_LOGITS = 2048, 1 << 24
"""The same on a GPU, where a block must keep all of its cores busy (chosen, not measured)."""


def rows_at_once(vocabulary: int) -> int:
    return max(1, LOGITS_AT_ONCE // vocabulary)


def score_positions(
    logits_of: Callable[[slice], Tensor],
    targets_M: Tensor,
    vocabulary: int,
    requested: Requested,
) -> TokenScores:
    """Scores of M positions; `logits_of` gives the logits, R x V, of a slice of them.

    No more than `LOGITS_AT_ONCE` logits are asked for at a time (one position at least).
    """
    step = rows_at_once(vocabulary)
    parts = []
    for start in range(0, len(targets_M), step):
        rows = slice(start, start + step)
        if not requested.asks_for("mean_log_prob"):
            parts.append(score_logits(logits_of(rows), targets_M[rows], requested))
            continue
        running = StreamingSoftmax(targets_M[rows], requested)
        running.add(logits_of(rows).clone(), 0)
        parts.append(running.result())
    return to_host(parts)


def score_in_blocks(
    logits_of: Callable[[slice, slice], Tensor],
    targets_M: Tensor,
    vocabulary: int,
    requested: Requested,
    width: int | None = None,
) -> TokenScores:
    """The same a block of the vocabulary at a time; `logits_of` gives the logits of some positions
    and some words. The logits of all words never exist at once, unless ranks are wanted: then for
    fewer positions at a time.

    `width` is that of a block, where it is not to be chosen here.
    """
    n_rows = _GPU_BLOCK_ROWS if targets_M.is_cuda else BLOCK_ROWS
    if requested.asks_for("ranks"):
        n_rows = min(n_rows, rows_at_once(vocabulary))
    parts = []
    for start in range(0, len(targets_M), n_rows):
        rows = slice(start, min(start + n_rows, len(targets_M)))
        running = StreamingSoftmax(targets_M[rows], requested)
        for words in vocab_blocks(vocabulary, width or _width(rows, targets_M)):
            running.add(logits_of(rows, words), words.start)
        parts.append(running.result())
    return to_host(parts)


def _width(rows: slice, targets_M: Tensor) -> int:
    """Words of a block for these rows, where the targets are."""
    n_rows: int = rows.stop - rows.start
    return max(LEAST_WIDTH, (_GPU_BLOCK_LOGITS if targets_M.is_cuda else BLOCK_LOGITS) // n_rows)


def vocab_blocks(vocabulary: int, width: int) -> Iterator[slice]:
    """The vocabulary in blocks of so many words; the last one may be smaller."""
    for first in range(0, vocabulary, width):
        yield slice(first, min(first + width, vocabulary))


def to_host(parts: list[HeadTensors]) -> TokenScores:
    """Of all parts, in their order."""
    if not parts:
        raise ValueError("a batch without a target has nothing to score")
    columns = {name: [part.columns[name] for part in parts] for name in parts[0].columns}
    found = on_host({"losses": [part.losses for part in parts], **columns})
    return TokenScores(found.pop("losses"), found)


def on_host(columns: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    """One array of each column, M or M x K, of its parts. All come in one transfer, as bytes:
    each transfer would wait for the device."""
    joined = {name: torch.cat(list(parts)) for name, parts in columns.items()}
    as_bytes = [c.reshape(len(c), -1).view(torch.uint8) for c in joined.values()]
    widths = [column.shape[1] for column in as_bytes]
    cut = np.split(torch.cat(as_bytes, dim=1).cpu().numpy(), np.cumsum(widths)[:-1], axis=1)
    arrays = {}
    for (name, column), part in zip(joined.items(), cut, strict=True):
        dtype = column.new_empty(0, device="cpu").numpy().dtype
        arrays[name] = np.ascontiguousarray(part).view(dtype).reshape(column.shape)
    return arrays
