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

LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time: 64 MiB in float32, whatever the vocabulary."""


@dataclass(frozen=True, slots=True)
class HeadTensors:
    """`TokenScores` still on the device, for a part of the positions."""

    losses: Tensor
    ranks: Tensor | None
    entropies: Tensor | None
    top_ids: Tensor | None
    top_log_probs: Tensor | None


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
    top_ids = top_log_probs = None
    if wants.top_k:
        top_logits, top_ids = top_logits_of(logits_MV, wants.top_k)
        top_log_probs = 0.0 - (log_sum_M1 + (max_M1.double() - top_logits.double()))
    return HeadTensors(
        losses=losses_M1[:, 0],
        ranks=1 + (logits_MV > target_M1).sum(dim=1) if wants.ranks else None,
        entropies=_entropies(shifted_MV, weights_MV, sum_M1) if wants.entropy else None,
        top_ids=top_ids,
        top_log_probs=top_log_probs,
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
