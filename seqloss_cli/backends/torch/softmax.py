"""Softmax over a vocabulary that is seen in blocks, or at once.

Everything is computed in float32 or better, whatever the model's dtype, and the target's logit is
taken from the same product as the normaliser (rule 2): so a loss is never below zero, without
clamping.

Shape letters: M positions, V vocabulary, B ids of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqloss_cli.backends.torch.quantities import Block, Gather, Part, Quantity, Sums


class StreamingSoftmax:
    """The greatest logit and the sum of exp(z - max) over the blocks so far, at M positions; and
    the quantities that are to be computed by the way."""

    def __init__(self, targets_M: Tensor, quantities: Sequence[Quantity] = ()) -> None:
        """`targets_M` are ids, shape M."""
        self._targets_M1, self._quantities = targets_M[:, None], quantities
        shape, device = self._targets_M1.shape, targets_M.device
        self._max_M1 = torch.full(shape, -torch.inf, device=device)
        self._target_M1 = torch.zeros(shape, device=device)
        self._sum_M1 = torch.zeros(shape, dtype=torch.float64, device=device)

    @property
    def sums(self) -> Sums:
        """The sums over the blocks so far, each M x 1."""
        log_sum_M1 = self._sum_M1.log()
        return Sums(log_sum_M1, self._max_M1.double(), self._sum_M1, self._target_M1)

    def add(self, logits_MB: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Take in the logits (M x B) of the ids from `first` on; they are overwritten.

        Returns exp(z - max) of these, M x B, and by what factor earlier sums of such weights
        shrink, M x 1.
        """
        if logits_MB.dtype != torch.float64:
            logits_MB = logits_MB.float()  # half precision errs by up to 0.06 nats in a softmax
        greatest_M1 = torch.maximum(self._max_M1, logits_MB.amax(dim=1, keepdim=True))
        # Where all logits so far are -inf, -inf less -inf would be NaN: nothing is possible yet.
        base_M1 = greatest_M1.masked_fill(greatest_M1 == -torch.inf, 0.0)
        drop_M1 = (self._max_M1 - base_M1).double()
        block = Block(first, logits_MB, base_M1, drop_M1, drop_M1.exp(), self._sum_M1)
        place_M1, inside_M1 = block.places_of(self._targets_M1)
        here_M1 = logits_MB.gather(1, place_M1)
        self._target_M1 = torch.where(inside_M1, here_M1, self._target_M1)
        for quantity in self._quantities:
            quantity.take_logits(block)
        shifted_MB = logits_MB.sub_(base_M1)
        keep = any(quantity.needs_shifted for quantity in self._quantities)
        weights_MB = shifted_MB.exp() if keep else shifted_MB.exp_()
        self._sum_M1 = block.scale * self._sum_M1 + weights_MB.sum(dim=1, keepdim=True)
        self._max_M1 = greatest_M1
        for quantity in self._quantities:
            quantity.take_weights(block, shifted_MB, weights_MB)
        return weights_MB, block.scale

    def join(self, gather: Gather) -> None:
        """Put the sums over all parts of a vocabulary in the place of those over this one, in each
        of the processes that have a part.

        Every process does the same with the same numbers, so that all have them to the last bit.
        """
        states = [quantity.state() for quantity in self._quantities]
        widths = [0 if state is None else state.shape[1] for state in states]
        # Of a target in another part this one has 0.
        own = [self._max_M1.double(), self._sum_M1, self._target_M1.double()]
        gathered = gather(torch.cat([*own, *(s for s in states if s is not None)], dim=1))
        maxima, totals, targets, *others = zip(
            *(torch.split(part, [1, 1, 1, *widths], dim=1) for part in gathered), strict=True
        )
        greatest_M1 = torch.stack(maxima).amax(dim=0)
        base_M1 = greatest_M1.masked_fill(greatest_M1 == -torch.inf, 0.0)
        drops = [max_M1 - base_M1 for max_M1 in maxima]
        scales = [drop_M1.exp() for drop_M1 in drops]
        scaled = [scale * total for scale, total in zip(scales, totals, strict=True)]
        self._sum_M1 = torch.stack(scaled).sum(dim=0)
        self._target_M1 = torch.stack(targets).sum(dim=0)
        self._max_M1 = greatest_M1
        for quantity, of_parts in zip(self._quantities, others, strict=True):
            parts = zip(of_parts, drops, scales, totals, strict=True)
            quantity.join([Part(*each) for each in parts])
        for quantity in self._quantities:
            quantity.look_back(self.sums, gather)

    def result(self) -> dict[str, Tensor]:
        """Return `losses`, ln Σ_v exp(z_v) - z_target of the targets (shape M, nats, float64), and
        the columns of the quantities (M or M x K) by name.

        Written as ln Σ exp(z_v - max) + (max - z_target): both terms are >= 0 in floating point,
        too, since one summand is exactly 1. A NaN logit makes the loss NaN, a target at -inf
        infinite.
        """
        sums = self.sums
        losses_M1 = sums.log_sum + (sums.greatest - sums.target.double())
        found = {"losses": losses_M1[:, 0]}
        for quantity in self._quantities:
            found |= quantity.result(sums)
        return found
