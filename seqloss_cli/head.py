"""From logits to losses, ranks, entropies and alternatives.

Everything is computed in float32 or better, whatever the model's dtype, and the target's logit is
taken from the same product as the normaliser: so a loss is never below zero, without clamping.

Shape letters: M positions, V vocabulary, K alternatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqloss_cli.backend import TokenScores, Wants
from seqloss_cli.boundaries import MarkedIds

LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time where whole rows of them are needed: 64 MiB in float32, whatever the
vocabulary."""
BLOCK_ROWS, BLOCK_LOGITS, LEAST_WIDTH = 2048, 1 << 22, 1024
"""Positions, logits, and words at least of a block of the vocabulary: small enough for what is made
of them to stay near the cores, large enough for matrix products to run at their rate."""


@dataclass(frozen=True, slots=True)
class HeadTensors:
    """`TokenScores` still on the device, for a part of the positions."""

    losses: Tensor
    ranks: Tensor | None
    entropies: Tensor | None
    top_ids: Tensor | None
    top_log_probs: Tensor | None
    boundaries: Tensor | None


def rows_at_once(vocabulary: int) -> int:
    return max(1, LOGITS_AT_ONCE // vocabulary)


def score_positions(
    logits_of: Callable[[slice], Tensor], targets_M: Tensor, vocabulary: int, wants: Wants
) -> TokenScores:
    """Scores of M positions; `logits_of` gives the logits, R x V, of a slice of them.

    No more than `LOGITS_AT_ONCE` logits are asked for at a time (one position at least).
    """
    step = rows_at_once(vocabulary)
    parts = []
    for start in range(0, len(targets_M), step):
        rows = slice(start, start + step)
        parts.append(score_logits(logits_of(rows), targets_M[rows], wants))
    return _to_host(parts)


def score_in_blocks(
    logits_of: Callable[[slice, slice], Tensor],
    targets_M: Tensor,
    vocabulary: int,
    wants: Wants,
    width: int | None = None,
) -> TokenScores:
    """The same a block of the vocabulary at a time; `logits_of` gives the logits of some positions
    and some words. The logits of all words never exist at once, unless ranks are wanted: then for
    fewer positions at a time.

    `width` is that of a block, where it is not to be chosen here.
    """
    n_rows = min(BLOCK_ROWS, rows_at_once(vocabulary)) if wants.ranks else BLOCK_ROWS
    parts = []
    for start in range(0, len(targets_M), n_rows):
        rows = slice(start, min(start + n_rows, len(targets_M)))
        running = _Running(targets_M[rows], wants)
        step = width or max(LEAST_WIDTH, BLOCK_LOGITS // (rows.stop - start))
        for first in range(0, vocabulary, step):
            words = slice(first, min(first + step, vocabulary))
            running.add(logits_of(rows, words), first)
        parts.append(running.result())
    return _to_host(parts)


class _Running:
    """What is kept of the blocks that were seen: greatest logit, sums relative to it, and the best.

    With s = Σ exp(z - max) and u = Σ exp(z - max) (z - max) over the words so far, a greater max'
    turns them into s e^d and e^d (u + d s), d = max - max' (Milakov & Gimelshein 2018).
    """

    def __init__(self, targets_M: Tensor, wants: Wants) -> None:
        self._targets_M1, self._wants = targets_M[:, None], wants
        shape, device = self._targets_M1.shape, targets_M.device
        self._max_M1 = torch.full(shape, -torch.inf, device=device)
        self._target_M1 = torch.zeros(shape, device=device)
        self._sum_M1 = torch.zeros(shape, dtype=torch.float64, device=device)
        self._spread_M1 = torch.zeros_like(self._sum_M1)
        self._marked = None if wants.marks is None else MarkedIds(wants.marks, device)
        self._marked_M3 = torch.zeros(len(targets_M), 3, dtype=torch.float64, device=device)
        self._top: tuple[Tensor, Tensor] | None = None  # logits and ids
        self._blocks: list[Tensor] = []  # kept until the target's logit is known, for its rank

    def add(self, logits_MB: Tensor, first: int) -> None:
        """Logits of the words from `first` on; they are overwritten."""
        if self._wants.ranks:
            self._blocks.append(logits_MB)
            logits_MB = logits_MB.clone()
        if logits_MB.dtype != torch.float64:
            logits_MB = logits_MB.float()
        width = logits_MB.shape[1]
        place_M1 = self._targets_M1 - first
        inside_M1 = (place_M1 >= 0) & (place_M1 < width)
        here_M1 = logits_MB.gather(1, place_M1.clamp(0, width - 1))
        self._target_M1 = torch.where(inside_M1, here_M1, self._target_M1)
        if self._wants.top_k:
            self._keep_best(logits_MB, first)
        greatest_M1 = torch.maximum(self._max_M1, logits_MB.amax(dim=1, keepdim=True))
        base_M1 = greatest_M1.masked_fill(greatest_M1 == -torch.inf, 0.0)  # nothing possible yet
        drop_M1 = (self._max_M1 - base_M1).double()
        scale_M1 = drop_M1.exp()
        shifted_MB = logits_MB.sub_(base_M1)
        if self._marked is not None:
            here_M3 = self._marked.sums(shifted_MB, first, self._targets_M1)
            self._marked_M3 = scale_M1 * self._marked_M3 + here_M3
        if self._wants.entropy:
            weights_MB = shifted_MB.exp()
            products_MB = torch.where(weights_MB > 0, weights_MB * shifted_MB, 0.0)
            moved_M1 = torch.where(scale_M1 > 0, self._spread_M1 + drop_M1 * self._sum_M1, 0.0)
            self._spread_M1 = scale_M1 * moved_M1 + products_MB.sum(dim=1, keepdim=True)
        else:
            weights_MB = shifted_MB.exp_()
        self._sum_M1 = scale_M1 * self._sum_M1 + weights_MB.sum(dim=1, keepdim=True)
        self._max_M1 = greatest_M1

    def _keep_best(self, logits_MB: Tensor, first: int) -> None:
        k, width = self._wants.top_k, logits_MB.shape[1]
        values, ids = top_logits_of(logits_MB, min(k, width))
        ids = ids + first
        if self._top is not None:  # earlier words stand first, so a stable sort keeps ties by id
            values = torch.cat([self._top[0], values], dim=1)
            values, order = values.sort(dim=1, descending=True, stable=True)
            ids = torch.cat([self._top[1], ids], dim=1).gather(1, order)
        self._top = values[:, :k], ids[:, :k]

    def result(self) -> HeadTensors:
        log_sum_M1, max_M1 = self._sum_M1.log(), self._max_M1.double()
        top_ids = top_log_probs = None
        if self._top is not None:
            top_logits, top_ids = self._top
            top_log_probs = 0.0 - (log_sum_M1 + (max_M1 - top_logits.double()))
        spread_M1 = self._spread_M1 / self._sum_M1
        return HeadTensors(
            losses=(log_sum_M1 + (max_M1 - self._target_M1.double()))[:, 0],
            ranks=self._ranks() if self._wants.ranks else None,
            entropies=(log_sum_M1 - spread_M1)[:, 0] if self._wants.entropy else None,
            top_ids=top_ids,
            top_log_probs=top_log_probs,
            boundaries=None if self._marked is None else self._marked_M3.log() - log_sum_M1,
        )

    def _ranks(self) -> Tensor:
        above = [(block > self._target_M1).sum(dim=1) for block in self._blocks]
        return 1 + torch.stack(above).sum(dim=0)


def score_logits(logits_MV: Tensor, targets_M: Tensor, wants: Wants) -> HeadTensors:
    """Cross-entropy with the one-hot gold on `targets_M`: ln Σ_v exp(z_v) - z_target, in nats.

    Written as ln Σ exp(z_v - max) + (max - z_target): both terms are >= 0 in floating point too,
    since one summand is exactly 1. A NaN logit makes the loss NaN, a target at -inf infinite.
    """
    if logits_MV.dtype != torch.float64:
        logits_MV = logits_MV.float()
    target_M1 = logits_MV.gather(1, targets_M[:, None])
    max_M1 = logits_MV.max(dim=1, keepdim=True).values
    shifted_MV = logits_MV - max_M1
    weights_MV = shifted_MV.exp()
    sum_M1 = weights_MV.sum(dim=1, keepdim=True)
    log_sum_M1 = sum_M1.double().log()
    losses_M1 = log_sum_M1 + (max_M1.double() - target_M1.double())
    top_ids = top_log_probs = boundaries = None
    if wants.marks is not None:
        marked = MarkedIds(wants.marks, logits_MV.device)
        boundaries = marked.sums(shifted_MV, 0, targets_M[:, None]).log() - log_sum_M1
    if wants.top_k:
        top_logits, top_ids = top_logits_of(logits_MV, wants.top_k)
        top_log_probs = 0.0 - (log_sum_M1 + (max_M1.double() - top_logits.double()))
    return HeadTensors(
        losses=losses_M1[:, 0],
        ranks=1 + (logits_MV > target_M1).sum(dim=1) if wants.ranks else None,
        entropies=_entropies(shifted_MV, weights_MV, sum_M1) if wants.entropy else None,
        top_ids=top_ids,
        top_log_probs=top_log_probs,
        boundaries=boundaries,
    )


def _entropies(shifted_MV: Tensor, weights_MV: Tensor, sum_M1: Tensor) -> Tensor:
    """-Σ p ln p = ln s - Σ w (z - max) / s; a word of probability zero adds nothing."""
    products_MV = torch.where(weights_MV > 0, weights_MV * shifted_MV, 0.0)
    spread_M = products_MV.sum(dim=1).double() / sum_M1[:, 0].double()
    return sum_M1[:, 0].double().log() - spread_M


def top_logits_of(logits_MV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest logits and their ids, best first, ties by id.

    `torch.topk` leaves the order of ties open; only where a tie straddles the k-th place does a
    row need the full, stable sort.
    """
    values, ids = logits_MV.topk(k, dim=1)
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    tied = ((logits_MV >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(tied):
        ranked, ranked_ids = logits_MV[tied].sort(dim=1, descending=True, stable=True)
        values[tied], ids[tied] = ranked[:, :k], ranked_ids[:, :k]
    return values, ids


def _to_host(parts: list[HeadTensors]) -> TokenScores:
    def joined(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        return None if columns[0] is None else torch.cat(columns).cpu().numpy()

    if not parts:
        raise ValueError("a batch without a target has nothing to score")
    return TokenScores(**{name: joined(name) for name in HeadTensors.__slots__})
