"""Softmax over a vocabulary that is seen in blocks, or at once.

Everything is computed in float32 or better, whatever the model's dtype, and the target's logit is
taken from the same product as the normaliser: so a loss is never below zero, without clamping.

Shape letters: M positions, V vocabulary, B words of a block, K alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqloss_cli.backends.torch.word_boundaries import BoundaryIds
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import COLUMNS, MEAN_LOG_PROB, WORD_BOUNDARIES


@dataclass(frozen=True, slots=True)
class HeadTensors:
    """`TokenScores` still on the device, for a part of the positions."""

    losses: Tensor
    columns: dict[str, Tensor]


QUANTITIES = frozenset(column.name for column in (*COLUMNS, WORD_BOUNDARIES, MEAN_LOG_PROB))
"""Names of the columns that are computed here."""


class StreamingSoftmax:
    """What is kept of the blocks that were seen: greatest logit, sums relative to it, and the best.

    With s = Σ exp(z - max) and u = Σ exp(z - max) (z - max) over the words so far, a greater max'
    turns them into s e^d and e^d (u + d s), d = max - max' (Milakov & Gimelshein 2018).
    """

    def __init__(
        self, targets_M: Tensor, requested: Requested, asked_MK: Tensor | None = None
    ) -> None:
        self._targets_M1, self._asked_MK = targets_M[:, None], asked_MK
        self._top_k = requested.top_k
        self._wants_ranks = requested.asks_for("ranks")
        self._wants_entropies = requested.asks_for("entropies")
        self._wants_mean = requested.asks_for("mean_log_prob")
        shape, device = self._targets_M1.shape, targets_M.device
        self._max_M1 = torch.full(shape, -torch.inf, device=device)
        self._target_M1 = torch.zeros(shape, device=device)
        self._sum_M1 = torch.zeros(shape, dtype=torch.float64, device=device)
        self._spread_M1 = torch.zeros_like(self._sum_M1)
        self._marked: BoundaryIds | None = None
        if requested.word_boundary_ids is not None:
            self._marked = BoundaryIds(requested.word_boundary_ids, device)
        self._marked_M3 = torch.zeros(len(targets_M), 3, dtype=torch.float64, device=device)
        self._top: tuple[Tensor, Tensor] | None = None  # logits and ids
        self._blocks: list[Tensor] = []  # kept until the target's logit is known, for its rank
        self._total_M1, self._n_words = torch.zeros_like(self._sum_M1), 0
        if asked_MK is not None:
            self._asked_logits_MK = torch.full(asked_MK.shape, -torch.inf, device=device)
            self._rest_M1 = torch.zeros_like(self._sum_M1)
            self._rest_spread_M1 = torch.zeros_like(self._sum_M1)
            self._min_M1 = torch.full(shape, torch.inf, device=device)

    @property
    def weight_sum(self) -> Tensor:
        """Σ exp(z - max) of the words so far, M x 1."""
        return self._sum_M1

    @property
    def greatest(self) -> Tensor:
        """Their greatest logit, M x 1."""
        return self._max_M1.double()

    def add(self, logits_MB: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Logits of the words from `first` on; they are overwritten. Gives exp(z - max) of these,
        and by what factor earlier sums of such weights shrink."""
        if self._wants_ranks:
            self._blocks.append(logits_MB)
            logits_MB = logits_MB.clone()
        if logits_MB.dtype != torch.float64:
            logits_MB = logits_MB.float()
        width = logits_MB.shape[1]
        place_M1 = self._targets_M1 - first
        inside_M1 = (place_M1 >= 0) & (place_M1 < width)
        here_M1 = logits_MB.gather(1, place_M1.clamp(0, width - 1))
        self._target_M1 = torch.where(inside_M1, here_M1, self._target_M1)
        if self._top_k:
            self._keep_best(logits_MB, first)
        if self._asked_MK is not None:
            self._keep_asked(logits_MB, first)
        if self._wants_mean:
            self._total_M1 += logits_MB.sum(dim=1, keepdim=True, dtype=torch.float64)
            self._n_words += width
        greatest_M1 = torch.maximum(self._max_M1, logits_MB.amax(dim=1, keepdim=True))
        base_M1 = greatest_M1.masked_fill(greatest_M1 == -torch.inf, 0.0)  # nothing possible yet
        drop_M1 = (self._max_M1 - base_M1).double()
        scale_M1 = drop_M1.exp()
        shifted_MB = logits_MB.sub_(base_M1)
        if self._marked is not None:
            here_M3 = self._marked.sums(shifted_MB, first, self._targets_M1)
            self._marked_M3 = scale_M1 * self._marked_M3 + here_M3
        if self._wants_entropies:
            weights_MB = shifted_MB.exp()
            products_MB = torch.where(weights_MB > 0, weights_MB * shifted_MB, 0.0)
            moved_M1 = torch.where(scale_M1 > 0, self._spread_M1 + drop_M1 * self._sum_M1, 0.0)
            self._spread_M1 = scale_M1 * moved_M1 + products_MB.sum(dim=1, keepdim=True)
        else:
            weights_MB = shifted_MB.exp_()
        self._sum_M1 = scale_M1 * self._sum_M1 + weights_MB.sum(dim=1, keepdim=True)
        self._max_M1 = greatest_M1
        if self._asked_MK is not None:
            self._add_rest(weights_MB, scale_M1, drop_M1, first)
        return weights_MB, scale_M1

    def _keep_asked(self, logits_MB: Tensor, first: int) -> None:
        """The logits of asked ids in this block, and the least of all so far."""
        assert self._asked_MK is not None
        width = logits_MB.shape[1]
        place_MK = self._asked_MK - first
        inside_MK = (place_MK >= 0) & (place_MK < width)
        here_MK = logits_MB.gather(1, place_MK.clamp(0, width - 1))
        self._asked_logits_MK = torch.where(inside_MK, here_MK, self._asked_logits_MK)
        self._min_M1 = torch.minimum(self._min_M1, logits_MB.amin(dim=1, keepdim=True))

    def _add_rest(self, weights_MB: Tensor, scale_M1: Tensor, drop_M1: Tensor, first: int) -> None:
        """The weights of ids that were not asked for: added up by themselves, since a difference of
        sums would lose a small rest. The weights are overwritten."""
        assert self._asked_MK is not None
        place_MK = self._asked_MK - first
        rows, columns = ((place_MK >= 0) & (place_MK < weights_MB.shape[1])).nonzero(as_tuple=True)
        weights_MB[rows, place_MK[rows, columns]] = 0.0
        moved_M1 = self._rest_spread_M1 + drop_M1 * self._rest_M1
        moved_M1 = torch.where(scale_M1 > 0, scale_M1 * moved_M1, 0.0)
        self._rest_spread_M1 = moved_M1 + torch.xlogy(weights_MB, weights_MB).sum(1, keepdim=True)
        self._rest_M1 = scale_M1 * self._rest_M1 + weights_MB.sum(dim=1, keepdim=True)

    def _keep_best(self, logits_MB: Tensor, first: int) -> None:
        k, width = self._top_k, logits_MB.shape[1]
        values, ids = top_logits_of(logits_MB, min(k, width))
        ids = ids + first
        if self._top is not None:  # earlier words stand first, so a stable sort keeps ties by id
            values = torch.cat([self._top[0], values], dim=1)
            values, order = values.sort(dim=1, descending=True, stable=True)
            ids = torch.cat([self._top[1], ids], dim=1).gather(1, order)
        self._top = values[:, :k], ids[:, :k]

    def result(self) -> HeadTensors:
        log_sum_M1, max_M1 = self._sum_M1.log(), self.greatest
        columns: dict[str, Tensor] = {}
        if self._wants_ranks:
            columns["ranks"] = self._ranks()
        if self._wants_entropies:
            columns["entropies"] = (log_sum_M1 - self._spread_M1 / self._sum_M1)[:, 0]
        if self._top is not None:
            top_logits, columns["top_ids"] = self._top
            columns["top_log_probs"] = 0.0 - (log_sum_M1 + (max_M1 - top_logits.double()))
        if self._marked is not None:
            columns["word_boundary_log_probs"] = self._marked_M3.log() - log_sum_M1
        if self._wants_mean:
            whole_M1 = log_sum_M1 + max_M1
            columns["mean_log_prob"] = (self._total_M1 / self._n_words - whole_M1)[:, 0]
        return HeadTensors((log_sum_M1 + (max_M1 - self._target_M1.double()))[:, 0], columns)

    def asked(self) -> dict[str, Tensor]:
        """Of the ids that were asked for, M x K; of all others, M: their probability, Σ p ln p over
        them, and the least log-probability of any id."""
        log_sum_M1 = self._sum_M1.log()
        whole_M1 = log_sum_M1 + self.greatest
        own_M1 = (self._rest_spread_M1 - log_sum_M1 * self._rest_M1) / self._sum_M1
        return {
            "log_probs": self._asked_logits_MK.double() - whole_M1,
            "rest_log_prob": (self._rest_M1.log() - log_sum_M1)[:, 0],
            "rest_own": own_M1[:, 0],
            "least_log_prob": (self._min_M1.double() - whole_M1)[:, 0],
        }

    def _ranks(self) -> Tensor:
        above = [(block > self._target_M1).sum(dim=1) for block in self._blocks]
        return 1 + torch.stack(above).sum(dim=0)


def score_logits(logits_MV: Tensor, targets_M: Tensor, requested: Requested) -> HeadTensors:
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
    columns: dict[str, Tensor] = {}
    if requested.asks_for("ranks"):
        columns["ranks"] = 1 + (logits_MV > target_M1).sum(dim=1)
    if requested.asks_for("entropies"):
        columns["entropies"] = _entropies(shifted_MV, weights_MV, sum_M1)
    if requested.top_k:
        top_logits, columns["top_ids"] = top_logits_of(logits_MV, requested.top_k)
        columns["top_log_probs"] = 0.0 - (log_sum_M1 + (max_M1.double() - top_logits.double()))
    if requested.word_boundary_ids is not None:
        marked = BoundaryIds(requested.word_boundary_ids, logits_MV.device)
        sums_M3 = marked.sums(shifted_MV, 0, targets_M[:, None])
        columns["word_boundary_log_probs"] = sums_M3.log() - log_sum_M1
    return HeadTensors(losses_M1[:, 0], columns)


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
