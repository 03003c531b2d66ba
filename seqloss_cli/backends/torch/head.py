"""From logits to losses and other quantities: of some positions and, where the head can, of a block
of the vocabulary at a time.

Shape letters: M positions, V vocabulary, B ids of a block, K alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqloss_cli.backends.torch.quantities import Gather, quantities_of
from seqloss_cli.backends.torch.softmax import StreamingSoftmax
from seqloss_cli.core.backend import Requested, TokenScores

LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time where whole rows of them are needed: 64 MiB in float32, whatever the
vocabulary."""
BLOCK_ROWS, BLOCK_LOGITS, LEAST_WIDTH = 1024, 1 << 20, 1024
"""Positions and logits of a block of the vocabulary, and its least width in ids: small enough for
what is made of them to stay near the cores, large enough for matrix products to run at their rate.
Blocks of 16 MiB are 3 % faster at best, but what the C library makes room for then grows by tens of
MB."""
GPU_BLOCK_ROWS, GPU_BLOCK_LOGITS = 2048, 1 << 24
"""Rows and logits of a block on a GPU, which must keep all of its cores busy (chosen, not
measured)."""


def rows_at_once(vocab_size: int) -> int:
    """Return how many positions may have their whole rows of logits in memory at a time."""
    return max(1, LOGITS_AT_ONCE // vocab_size)


@dataclass(frozen=True, slots=True)
class LazyLogits:
    """The logits of a batch's M targets, computed when they are asked for."""

    compute: Callable[[slice, slice | None], Tensor]
    """Gives R x B logits: for a slice of the targets those of a slice of the ids, or of all. They
    may be overwritten."""
    vocab_size: int
    in_blocks: bool
    """True where a part of the vocabulary can be asked for."""
    own: slice | None = None
    """The ids whose logits this process computes, where others compute the rest, in the order of
    their ids; None of all."""
    gather: Gather | None = None
    """Gathers what each of these processes made of its ids."""


def score_logits(
    logits: LazyLogits, targets_M: Tensor, requested: Requested, width: int | None = None
) -> TokenScores:
    """Score M targets (ids, shape M), some rows of logits at a time; losses in nats.

    Where the vocabulary can be asked for in blocks, logits of all ids never exist at once, unless
    ranks are asked for: then for fewer rows at a time. `width` is that of a block, where it is not
    to be chosen here.
    """
    if not len(targets_M):
        raise ValueError("a batch without a target has nothing to score")
    parts, step = [], _rows_at_a_time(logits, targets_M, requested)
    for start in range(0, len(targets_M), step):
        rows = slice(start, min(start + step, len(targets_M)))
        softmax = StreamingSoftmax(targets_M[rows], quantities_of(requested, targets_M[rows]))
        if logits.in_blocks:
            own = logits.own or slice(0, logits.vocab_size)
            for ids in vocab_blocks(own, width or _width(rows, targets_M)):
                softmax.add(logits.compute(rows, ids), ids.start)
            if logits.gather is not None:
                softmax.join(logits.gather)
        else:
            softmax.add(logits.compute(rows, None), 0)
        parts.append(softmax.result())
    return to_host(parts)


def _rows_at_a_time(logits: LazyLogits, targets_M: Tensor, requested: Requested) -> int:
    most = rows_at_once(logits.vocab_size)
    if not logits.in_blocks:
        return most
    step = GPU_BLOCK_ROWS if targets_M.is_cuda else BLOCK_ROWS
    # Ranks keep all logits of a row until its target's is known.
    return min(step, most) if requested.asks_for("ranks") else step


def _width(rows: slice, targets_M: Tensor) -> int:
    """Ids of a block for these rows, on the device of the targets."""
    n_rows: int = rows.stop - rows.start
    return max(LEAST_WIDTH, (GPU_BLOCK_LOGITS if targets_M.is_cuda else BLOCK_LOGITS) // n_rows)


def vocab_blocks(ids: slice, width: int) -> Iterator[slice]:
    """Yield ids in blocks of so many; the last one may be smaller."""
    for first in range(ids.start, ids.stop, width):
        yield slice(first, min(first + width, ids.stop))


def to_host(parts: Sequence[Mapping[str, Tensor]]) -> TokenScores:
    """Join the parts, `losses` and other columns (M or M x K each) by name, in the memory of the
    CPU."""
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    # All columns come in one transfer, as bytes: each transfer would wait for the device.
    as_bytes = [c.reshape(len(c), -1).view(torch.uint8) for c in joined.values()]
    widths = [column.shape[1] for column in as_bytes]
    cut = np.split(torch.cat(as_bytes, dim=1).cpu().numpy(), np.cumsum(widths)[:-1], axis=1)
    arrays: dict[str, NDArray[Any]] = {}
    for (name, column), part in zip(joined.items(), cut, strict=True):
        dtype = column.new_empty(0, device="cpu").numpy().dtype
        arrays[name] = np.ascontiguousarray(part).view(dtype).reshape(column.shape)
    return TokenScores(arrays.pop("losses"), arrays)
