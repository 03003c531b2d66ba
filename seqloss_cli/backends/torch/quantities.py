"""Quantities that are summed as a softmax goes through the vocabulary, one class for each.

A softmax shows each block of logits to all of its quantities: first as logits (`take_logits`), then
as weights exp(z - max), max being the greatest logit so far (`take_weights`). Sums of weights from
earlier blocks shrink by `scale` when a block brings a greater logit.

Shape letters: M positions, V vocabulary, B ids of a block, K alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from seqloss_cli.core.backend import Requested, WordBoundaryIds
from seqloss_cli.core.columns import N_TOP_LOGITS, TEMPERATURES

_EXACT_AT_ONCE = 1 << 20
"""Logits that are taken in float64 at a time: 8 MiB."""
_NO_ID = 1 << 50
"""Stands in a state where there are fewer ids than alternatives; float64 holds it exactly."""
Gather = Callable[[Tensor], Sequence[Tensor]]
"""Gives M x W of every part of the vocabulary, in the order of their ids, for that of this one."""


@dataclass(frozen=True, slots=True)
class Block:
    """Logits of B neighbouring ids at M positions, and how earlier sums change by them."""

    first: int
    """The first id."""
    logits: Tensor
    """M x B, float32 or float64. They are gone after `take_logits`: weights take their place."""
    base: Tensor
    """M x 1: the greatest logit so far, with this block; 0 where all are -inf."""
    drop: Tensor
    """M x 1, float64: the greatest logit before this block less that with it, <= 0."""
    scale: Tensor
    """M x 1, float64: exp(drop); 0 before the first block."""
    sum_before: Tensor
    """M x 1, float64: Σ exp(z - max) of the blocks before, with their own max."""

    def places_of(self, ids_MK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns of ids (M x K) in this block, and a mask of those that are in it."""
        place_MK = ids_MK - self.first
        width = self.logits.shape[1]
        return place_MK.clamp(0, width - 1), (place_MK >= 0) & (place_MK < width)


@dataclass(frozen=True, slots=True)
class Sums:
    """A whole softmax at M positions, float64, each of shape M x 1; in nats where a logarithm."""

    log_sum: Tensor
    """ln Σ exp(z - max)."""
    greatest: Tensor
    """The greatest logit, max."""
    total: Tensor
    """Σ exp(z - max), at least 1."""
    target: Tensor
    """The target's logit, in the dtype of the logits."""

    @property
    def log_normaliser(self) -> Tensor:
        """ln Σ exp(z), M x 1, nats."""
        return self.log_sum + self.greatest


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the vocabulary among all, and how its sums change to the greatest logit of all."""

    state: Tensor
    """M x W, float64: what `Quantity.state` made there."""
    drop: Tensor
    """M x 1, float64: the greatest logit of the part less that of all, <= 0."""
    scale: Tensor
    """M x 1, float64: exp(drop)."""
    total: Tensor
    """M x 1, float64: Σ exp(z - max) of the part, with its own max."""


class Quantity:
    """A quantity at M positions while the vocabulary goes by. Subclasses do what they need."""

    needs_shifted = False
    """`take_weights` looks at z - max beside the weights, which otherwise take its memory."""

    def take_logits(self, block: Block) -> None:
        """Look at the logits of a block."""

    def take_weights(self, block: Block, shifted_MB: Tensor, weights_MB: Tensor) -> None:
        """Look at z - max and exp(z - max) of a block, M x B."""

    def state(self) -> Tensor | None:
        """Return the sums over the ids so far, M x W in float64; None where there are none."""
        return None

    def join(self, parts: Sequence[Part]) -> None:
        """Put the sums of all parts of the vocabulary in the place of this part's, in order."""

    def look_back(self, sums: Sums, gather: Gather) -> None:
        """Compare this part's logits with the whole softmax, whose sums have shape M x 1; `gather`
        does so with other parts."""

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return the arrays of the column by name, of shape M or M x K; none by default."""
        return {}


class Ranks(Quantity):
    """1 + the number of logits strictly greater than the target's."""

    def __init__(self, targets_M: Tensor, requested: Requested) -> None:
        # All logits are kept: the target's, which they are compared with, may be in the last block.
        self._blocks: list[Tensor] = []
        self._elsewhere_M1 = torch.zeros_like(targets_M[:, None])

    def take_logits(self, block: Block) -> None:
        """Keep the logits."""
        self._blocks.append(block.logits.clone())

    def look_back(self, sums: Sums, gather: Gather) -> None:
        """Count the logits of all parts above the target's, M x 1."""
        counts = gather(self._above(sums.target))
        self._blocks, self._elsewhere_M1 = [], torch.stack(list(counts)).sum(dim=0)

    def _above(self, target_M1: Tensor) -> Tensor:
        above_M1 = self._elsewhere_M1
        for block_MB in self._blocks:
            above_M1 = above_M1 + (block_MB > target_M1.to(block_MB.dtype)).sum(dim=1, keepdim=True)
        return above_M1

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return the ranks, shape M."""
        return {"ranks": 1 + self._above(sums.target)[:, 0]}


class Entropies(Quantity):
    """-Σ p ln p = ln s - Σ w (z - max) / s, nats; an id of probability zero adds nothing.

    With s = Σ w and u = Σ w (z - max) over the ids so far, a greater max' turns them into s e^d and
    e^d (u + d s), d = max - max' (Milakov & Gimelshein 2018).
    """

    needs_shifted = True

    def __init__(self, targets_M: Tensor, requested: Requested) -> None:
        self._spread_M1 = _zeros(targets_M)

    def take_weights(self, block: Block, shifted_MB: Tensor, weights_MB: Tensor) -> None:
        """Add up w (z - max), M x B."""
        # 0 · -inf is NaN: an impossible id has a weight of 0 and a shifted logit of -inf.
        products_MB = torch.where(weights_MB > 0, weights_MB * shifted_MB, 0.0)
        moved_M1 = self._spread_M1 + block.drop * block.sum_before
        moved_M1 = torch.where(block.scale > 0, moved_M1, 0.0)
        self._spread_M1 = block.scale * moved_M1 + products_MB.sum(dim=1, keepdim=True)

    def state(self) -> Tensor:
        """Return u, M x 1."""
        return self._spread_M1

    def join(self, parts: Sequence[Part]) -> None:
        """Add up e^d (u + d s) of the parts."""
        self._spread_M1 = torch.zeros_like(self._spread_M1)
        for part in parts:
            moved_M1 = part.scale * (part.state + part.drop * part.total)
            # A part without a possible id has d = -inf and s = 0, whose product is NaN.
            self._spread_M1 += torch.where(part.scale == 0, 0.0, moved_M1)

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return the entropies, shape M, nats."""
        return {"entropies": (sums.log_sum - self._spread_M1 / sums.total)[:, 0]}


class Varentropies(Quantity):
    """Σ p (ln p + H)², the variance of -ln p under the model's own distribution, nats².

    It is the variance of the logits, which differ from ln p by a constant. Sums are about the mean
    of the ids so far, which a further block moves (Chan, Golub & LeVeque 1983): only squares are
    added, so nothing cancels, and a uniform distribution has exactly 0.
    """

    def __init__(self, targets_M: Tensor, requested: Requested) -> None:
        self._base_M1, self._sum_M1 = _zeros(targets_M), _zeros(targets_M)
        self._mean_M1, self._squares_M1 = _zeros(targets_M), _zeros(targets_M)

    def take_logits(self, block: Block) -> None:
        """Add the sums of the block, in parts, to those so far."""
        base_M1 = block.base.double()
        # Not by the block's own `scale` and weights, which float32 rounds by up to 1e-6 where the
        # logits are far below the greatest: there a peaked distribution has all of its variance.
        drop_M1 = torch.where(self._sum_M1 > 0, self._base_M1 - base_M1, 0.0)
        self._mean_M1, self._base_M1 = self._mean_M1 + drop_M1, base_M1
        self._sum_M1, self._squares_M1 = (
            drop_M1.exp() * sums_M1 for sums_M1 in (self._sum_M1, self._squares_M1)
        )
        width = max(1, _EXACT_AT_ONCE // len(base_M1))
        for logits_MB in torch.split(block.logits, width, dim=1):
            self._add(logits_MB.double() - base_M1)

    def _add(self, shifted_MB: Tensor) -> None:
        weights_MB = shifted_MB.exp()
        shifted_MB.masked_fill_(weights_MB == 0, 0.0)  # 0 · -inf is NaN
        sum_M1 = weights_MB.sum(dim=1, keepdim=True)
        mean_M1 = (weights_MB * shifted_MB).sum(dim=1, keepdim=True) / sum_M1
        mean_M1 = torch.where(sum_M1 == 0, 0.0, mean_M1)  # a block of impossible ids has none
        squares_M1 = (weights_MB * (shifted_MB - mean_M1).square_()).sum(dim=1, keepdim=True)
        self._add_sums(sum_M1, mean_M1, squares_M1)

    def _add_sums(self, sum_M1: Tensor, mean_M1: Tensor, squares_M1: Tensor) -> None:
        """Take in the sums of other ids, with the base of those so far."""
        total_M1, gap_M1 = self._sum_M1 + sum_M1, mean_M1 - self._mean_M1
        share_M1 = torch.where(total_M1 == 0, 0.0, sum_M1 / total_M1)
        self._squares_M1 += squares_M1 + gap_M1.square() * self._sum_M1 * share_M1
        self._mean_M1, self._sum_M1 = self._mean_M1 + gap_M1 * share_M1, total_M1

    def state(self) -> Tensor:
        """Return base, sum, mean and squares, M x 4."""
        return torch.cat([self._base_M1, self._sum_M1, self._mean_M1, self._squares_M1], dim=1)

    def join(self, parts: Sequence[Part]) -> None:
        """Move the parts to one base, and add them up as blocks are."""
        states = [torch.split(part.state, 1, dim=1) for part in parts]
        possible = [torch.where(own[1] > 0, own[0], -torch.inf) for own in states]
        base_M1 = torch.stack(possible).amax(dim=0)
        for each in (self._sum_M1, self._mean_M1, self._squares_M1):
            each.zero_()
        for own_base_M1, sum_M1, mean_M1, squares_M1 in states:
            drop_M1 = torch.where(sum_M1 > 0, own_base_M1 - base_M1, 0.0)
            shrunk_M1 = drop_M1.exp()
            self._add_sums(shrunk_M1 * sum_M1, mean_M1 + drop_M1, shrunk_M1 * squares_M1)

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return the variances, shape M, nats²."""
        return {"varentropies": (self._squares_M1 / self._sum_M1)[:, 0]}


class Alternatives(Quantity):
    """The K most probable ids and their log-probabilities (nats), best first, ties by id."""

    def __init__(self, targets_M: Tensor, requested: Requested) -> None:
        self._k = requested.top_k
        self._ids_MK = targets_M.new_empty(len(targets_M), 0)
        self._logits_MK = torch.empty_like(self._ids_MK, dtype=torch.float32)

    def take_logits(self, block: Block) -> None:
        """Keep the best of the block and of the ids so far."""
        values, ids = top_logits_of(block.logits, min(self._k, block.logits.shape[1]))
        # Earlier ids stand first, so a stable sort keeps ties by id.
        values = torch.cat([self._logits_MK, values], dim=1)
        values, order = values.sort(dim=1, descending=True, stable=True)
        ids = torch.cat([self._ids_MK, ids + block.first], dim=1).gather(1, order)
        self._logits_MK, self._ids_MK = values[:, : self._k], ids[:, : self._k]

    def state(self) -> Tensor:
        """Return K logits and their ids, M x 2 K; what is missing is -inf, of no id."""
        missing = self._k - self._ids_MK.shape[1]
        logits_MK = pad(self._logits_MK.double(), (0, missing), value=-torch.inf)
        return torch.cat([logits_MK, pad(self._ids_MK.double(), (0, missing), value=_NO_ID)], 1)

    def join(self, parts: Sequence[Part]) -> None:
        """Keep the best of all parts."""
        logits, ids = (
            torch.cat([part.state[:, some] for part in parts], dim=1)
            for some in (slice(self._k), slice(self._k, None))
        )
        # By ids first, so that what is missing stands after impossible ids.
        ids, order = ids.sort(dim=1)
        logits, best = logits.gather(1, order).sort(dim=1, descending=True, stable=True)
        self._logits_MK = logits[:, : self._k]
        self._ids_MK = ids.gather(1, best)[:, : self._k].long()

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return the ids and their log-probabilities, M x K each, nats."""
        # In the order of the loss's own terms, so that the target's is its loss to the last bit.
        losses_MK = sums.log_sum + (sums.greatest - self._logits_MK.double())
        return {"top_ids": self._ids_MK, "top_log_probs": 0.0 - losses_MK}


class LogitShape(Quantity):
    """ln Σ exp(z), ln Σ exp(z / T) at each of `TEMPERATURES`, and the K greatest logits; nats."""

    needs_shifted = True

    def __init__(self, targets_M: Tensor, requested: Requested) -> None:
        n, device = len(targets_M), targets_M.device
        self._top_MK = torch.empty(n, 0, device=device)
        self._sums_MQ = torch.zeros(n, len(TEMPERATURES), dtype=torch.float64, device=device)
        self._temperatures = torch.tensor(TEMPERATURES, dtype=torch.float64, device=device)

    def take_logits(self, block: Block) -> None:
        """Keep the greatest logits of the block and of those so far."""
        best = block.logits.topk(min(N_TOP_LOGITS, block.logits.shape[1]), dim=1).values
        both = torch.cat([self._top_MK, best], dim=1)
        self._top_MK = both.topk(min(N_TOP_LOGITS, both.shape[1]), dim=1).values

    def take_weights(self, block: Block, shifted_MB: Tensor, weights_MB: Tensor) -> None:
        """Add up exp((z - max) / T) of the block, M x B, at each temperature."""
        self._sums_MQ *= (block.drop / self._temperatures).exp()
        for n, temperature in enumerate(TEMPERATURES):
            weights = (shifted_MB / temperature).exp_()
            self._sums_MQ[:, n] += weights.sum(dim=1, dtype=torch.float64)

    def state(self) -> Tensor:
        """Return the sums, the greatest logits, and their number, shape M x (Q + K + 1)."""
        n_kept = self._top_MK.shape[1]
        top_MK = pad(self._top_MK.double(), (0, N_TOP_LOGITS - n_kept), value=-torch.inf)
        return pad(torch.cat([self._sums_MQ, top_MK], dim=1), (0, 1), value=n_kept)

    def join(self, parts: Sequence[Part]) -> None:
        """Add up the sums, and keep the greatest logits of all."""
        n = len(TEMPERATURES)
        scaled = [part.state[:, :n] * (part.drop / self._temperatures).exp() for part in parts]
        self._sums_MQ = torch.stack(scaled).sum(dim=0)
        tops = torch.cat([part.state[:, n:-1] for part in parts], dim=1)
        n_kept = sum(int(part.state[0, -1]) for part in parts)
        self._top_MK = tops.topk(min(N_TOP_LOGITS, n_kept), dim=1).values

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return the sums, shapes M and M x Q, and the logits, M x K, greatest first."""
        return {
            "log_normalisers": sums.log_normaliser[:, 0],
            "tempered_log_sums": self._sums_MQ.log() + sums.greatest / self._temperatures,
            "top_logits": self._top_MK,
        }


class MeanLogProb(Quantity):
    """The mean of ln p over all ids of the vocabulary, each alike; nats."""

    def __init__(self, targets_M: Tensor, requested: Requested) -> None:
        self._total_M1, self._vocab_size = _zeros(targets_M), 0

    def take_logits(self, block: Block) -> None:
        """Add up the logits."""
        self._total_M1 += block.logits.sum(dim=1, keepdim=True, dtype=torch.float64)
        self._vocab_size += block.logits.shape[1]

    def state(self) -> Tensor:
        """Return the sum of the logits and their number, M x 2."""
        return pad(self._total_M1, (0, 1), value=self._vocab_size)

    def join(self, parts: Sequence[Part]) -> None:
        """Add up sums and numbers."""
        added_M2 = torch.stack([part.state for part in parts]).sum(dim=0)
        self._total_M1, self._vocab_size = added_M2[:, :1], int(added_M2[0, 1])

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return the means, shape M, nats."""
        mean_M1 = self._total_M1 / self._vocab_size
        return {"mean_log_prob": (mean_M1 - sums.log_normaliser)[:, 0]}


class WordBoundaries(Quantity):
    """Log-probabilities of `BEGINS`, `STARTS_UNSPACED` and `WORD_THEN_SPACE`, M x 3, nats.

    Summed in float64, so that a boundary of probability 1e-300 has one, too.
    """

    needs_shifted = True

    def __init__(self, targets_M: Tensor, requested: Requested) -> None:
        boundary_ids = requested.word_boundary_ids
        assert isinstance(boundary_ids, WordBoundaryIds)
        device = targets_M.device
        self._targets_M1 = targets_M[:, None]
        self._members_V2 = torch.from_numpy(boundary_ids.members).to(device, torch.float64)
        self._space_ids_on_host = boundary_ids.word_then_space_ids
        self._space_ids = torch.from_numpy(boundary_ids.word_then_space_ids).to(device)
        self._bare_ids = torch.from_numpy(boundary_ids.bare_word_ids).to(device)
        self._sums_M3 = torch.zeros(len(targets_M), 3, dtype=torch.float64, device=device)

    def take_weights(self, block: Block, shifted_MB: Tensor, weights_MB: Tensor) -> None:
        """Add up the weights of the ids of each boundary, from M x B logits less their max."""
        # A copy, since `double` gives back float64 logits themselves, which others look at, too.
        exact_MB, first = shifted_MB.to(torch.float64, copy=True).exp_(), block.first
        last = first + exact_MB.shape[1]
        members_B2 = self._members_V2[first:last]
        # Ids beyond the tokenizer's vocabulary (heads are padded) have no piece and are in no sum.
        sums_M2 = exact_MB[:, : len(members_B2)] @ members_B2
        here = slice(*np.searchsorted(self._space_ids_on_host, [first, last]).tolist())
        spaced_ML = exact_MB[:, self._space_ids[here] - first]
        own_ML = spaced_ML * (self._bare_ids[here] == self._targets_M1)
        sums_M3 = torch.cat([sums_M2, own_ML.sum(dim=1, keepdim=True)], dim=1)
        self._sums_M3 = block.scale * self._sums_M3 + sums_M3

    def state(self) -> Tensor:
        """Return the sums, M x 3."""
        return self._sums_M3

    def join(self, parts: Sequence[Part]) -> None:
        """Add up the sums."""
        self._sums_M3 = torch.stack([part.scale * part.state for part in parts]).sum(dim=0)

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return the log-probabilities, M x 3, nats."""
        return {"word_boundary_log_probs": self._sums_M3.log() - sums.log_sum}


class KnownIds(Quantity):
    """Probabilities of K given ids at each position, and of all others together.

    It overwrites the weights, so it is the last quantity of a softmax.
    """

    def __init__(self, ids_MK: Tensor) -> None:
        self._ids_MK = ids_MK
        self._logits_MK = torch.full(ids_MK.shape, -torch.inf, device=ids_MK.device)
        self._min_M1 = torch.full_like(self._logits_MK[:, :1], torch.inf)
        self._rest_M1 = _zeros(ids_MK)
        self._rest_spread_M1 = _zeros(ids_MK)

    def take_logits(self, block: Block) -> None:
        """Keep the logits of the given ids, and the least of all."""
        place_MK, inside_MK = block.places_of(self._ids_MK)
        here_MK = block.logits.gather(1, place_MK)
        self._logits_MK = torch.where(inside_MK, here_MK, self._logits_MK)
        self._min_M1 = torch.minimum(self._min_M1, block.logits.amin(dim=1, keepdim=True))

    def take_weights(self, block: Block, shifted_MB: Tensor, weights_MB: Tensor) -> None:
        """Add up the weights of the others, M x B; those of the given ids become 0."""
        # The others are added up by themselves: 1 - Σ p of the given ids would lose a small rest.
        place_MK, inside_MK = block.places_of(self._ids_MK)
        rows, columns = inside_MK.nonzero(as_tuple=True)
        weights_MB[rows, place_MK[rows, columns]] = 0.0
        moved_M1 = self._rest_spread_M1 + block.drop * self._rest_M1
        moved_M1 = torch.where(block.scale > 0, block.scale * moved_M1, 0.0)
        self._rest_spread_M1 = moved_M1 + torch.xlogy(weights_MB, weights_MB).sum(1, keepdim=True)
        self._rest_M1 = block.scale * self._rest_M1 + weights_MB.sum(dim=1, keepdim=True)

    def result(self, sums: Sums) -> dict[str, Tensor]:
        """Return `log_probs` (M x K), and of the others (shape M) `rest_log_prob`,
        `rest_p_log_p` = Σ p ln p, and `least_log_prob`, the least log-probability of any id.
        In nats."""
        own_M1 = (self._rest_spread_M1 - sums.log_sum * self._rest_M1) / sums.total
        return {
            "log_probs": self._logits_MK.double() - sums.log_normaliser,
            "rest_log_prob": (self._rest_M1.log() - sums.log_sum)[:, 0],
            "rest_p_log_p": own_M1[:, 0],
            "least_log_prob": (self._min_M1.double() - sums.log_normaliser)[:, 0],
        }


class Top1(Quantity):
    """The most probable id at each position, of equals the first. It gives no column."""

    def __init__(self, targets_M: Tensor) -> None:
        self.ids_M1 = torch.zeros_like(targets_M[:, None])
        self._best_M1 = torch.full_like(self.ids_M1, -torch.inf, dtype=torch.float64)

    def take_logits(self, block: Block) -> None:
        """Keep the best id so far."""
        values_M1, places_M1 = block.logits.max(dim=1, keepdim=True)
        better_M1 = values_M1 > self._best_M1
        self.ids_M1 = torch.where(better_M1, places_M1 + block.first, self.ids_M1)
        self._best_M1 = torch.where(better_M1, values_M1, self._best_M1)


QUANTITIES = {
    "ranks": Ranks,
    "entropies": Entropies,
    "varentropies": Varentropies,
    "top_logprobs": Alternatives,
    "mean_log_prob": MeanLogProb,
    "logit_shape": LogitShape,
    "word_boundary_log_probs": WordBoundaries,
}
"""Name of a column to what computes it."""


def quantities_of(requested: Requested, targets_M: Tensor) -> list[Quantity]:
    """Return what computes the columns that are asked for, at targets of shape M."""
    return [QUANTITIES[column.name](targets_M, requested) for column in requested.columns]


def top_logits_of(logits_MV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k greatest logits and their ids, both M x k, best first, ties by id."""
    # torch.topk leaves the order of ties open. Only where one crosses the k-th place does a row
    # need the full, stable sort.
    values, ids = logits_MV.topk(k, dim=1)
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    tied = ((logits_MV >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(tied):
        ranked, ranked_ids = logits_MV[tied].sort(dim=1, descending=True, stable=True)
        values[tied], ids[tied] = ranked[:, :k], ranked_ids[:, :k]
    return values, ids


def _zeros(like_M: Tensor) -> Tensor:
    """M x 1, float64: a float32 sum over blocks would lose what a later block adds."""
    return torch.zeros(len(like_M), 1, dtype=torch.float64, device=like_M.device)
