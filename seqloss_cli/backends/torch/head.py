"""From logits to losses and other quantities: of some positions and, where the head can, of a block
of the vocabulary at a time.

Shape letters: M positions, V vocabulary, B ids of a block, K alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqloss_cli.backends.torch.quantities import quantities_of
from seqloss_cli.backends.torch.softmax import HeadTensors, StreamingSoftmax, score_logits
from seqloss_cli.core.backend import Requested, TokenScores

LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time where whole rows of them are needed: 64 MiB in float32, whatever the
vocabulary."""
BLOCK_ROWS, BLOCK_LOGITS, LEAST_WIDTH = 1024, 1 << 20, 1024
"""Positions and logits of a block of the vocabulary, and its least width in ids: small enough for
what is made of them to stay near the cores, large enough for matrix products to run at their rate.
Blocks of 16 MiB are 3 % faster at best, but what the C library makes room for then grows by tens of
MB."""
_GPU_BLOCK_ROWS, _GPU_BLOCK_LOGITS = 2048, 1 << 24
"""The same on a GPU, where a block must keep all of its cores busy (chosen, not measured)."""


def rows_at_once(vocab_size: int) -> int:
    """Return how many positions may have their whole rows of logits in memory at a time."""
    return max(1, LOGITS_AT_ONCE // vocab_size)


def score_positions(
    logits_of: Callable[[slice], Tensor],
    targets_M: Tensor,
    vocab_size: int,
    requested: Requested,
) -> TokenScores:
    """Score M positions; `logits_of` gives the logits, R x V, of a slice of them. Losses in nats.

    No more than `LOGITS_AT_ONCE` logits are asked for at a time (one position at least).
    """
    step = rows_at_once(vocab_size)
    parts = []
    for start in range(0, len(targets_M), step):
        rows = slice(start, start + step)
        parts.append(score_logits(logits_of(rows), targets_M[rows], requested))
    return to_host(parts)


def score_in_blocks(
    logits_of: Callable[[slice, slice], Tensor],
    targets_M: Tensor,
    vocab_size: int,
    requested: Requested,
    width: int | None = None,
) -> TokenScores:
    """Score M positions, a block of the vocabulary at a time; losses in nats.

    `logits_of` gives the logits, R x B, of a slice of the positions and of the ids. Those of all
    ids never exist at once, unless ranks are asked for: then for fewer positions at a time. `width`
    is that of a block, where it is not to be chosen here.
    """
    n_rows = _GPU_BLOCK_ROWS if targets_M.is_cuda else BLOCK_ROWS
    if requested.asks_for("ranks"):
        n_rows = min(n_rows, rows_at_once(vocab_size))
    parts = []
    for start in range(0, len(targets_M), n_rows):
        rows = slice(start, min(start + n_rows, len(targets_M)))
        softmax = StreamingSoftmax(targets_M[rows], quantities_of(requested, targets_M[rows]))
        for ids in vocab_blocks(vocab_size, width or _width(rows, targets_M)):
            softmax.add(logits_of(rows, ids), ids.start)
        parts.append(softmax.result())
    return to_host(parts)


def _width(rows: slice, targets_M: Tensor) -> int:
    """Ids of a block for these rows, on the device of the targets."""
    n_rows: int = rows.stop - rows.start
    return max(LEAST_WIDTH, (_GPU_BLOCK_LOGITS if targets_M.is_cuda else BLOCK_LOGITS) // n_rows)


def vocab_blocks(vocab_size: int, width: int) -> Iterator[slice]:
    """Yield the vocabulary in blocks of so many ids; the last one may be smaller."""
    for first in range(0, vocab_size, width):
        yield slice(first, min(first + width, vocab_size))


def to_host(parts: list[HeadTensors]) -> TokenScores:
    """Join the parts, in their order, as arrays in the memory of the CPU."""
    if not parts:
        raise ValueError("a batch without a target has nothing to score")
    columns = {name: [part.columns[name] for part in parts] for name in parts[0].columns}
    found = on_host({"losses": [part.losses for part in parts], **columns})
    return TokenScores(found.pop("losses"), found)


def on_host(columns: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    """Return one array of each column, M or M x K, joined from its parts."""
    joined = {name: torch.cat(list(parts)) for name, parts in columns.items()}
    # All columns come in one transfer, as bytes: each transfer would wait for the device.
    as_bytes = [c.reshape(len(c), -1).view(torch.uint8) for c in joined.values()]
    widths = [column.shape[1] for column in as_bytes]
    cut = np.split(torch.cat(as_bytes, dim=1).cpu().numpy(), np.cumsum(widths)[:-1], axis=1)
    arrays = {}
    for (name, column), part in zip(joined.items(), cut, strict=True):
        dtype = column.new_empty(0, device="cpu").numpy().dtype
        arrays[name] = np.ascontiguousarray(part).view(dtype).reshape(column.shape)
    return arrays
