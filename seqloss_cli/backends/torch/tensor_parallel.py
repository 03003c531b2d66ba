"""The forward of a model of which each process has a part: its slices of the layers, and of the
vocabulary.

transformers cuts the layers and sums over processes within them. The head is run for the ids of
each process alone; what a softmax makes of them is put together in `softmax.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor

from seqloss_cli.backends.torch.forward import ModelForward, RunPath, possible_backbones
from seqloss_cli.backends.torch.head import LazyLogits
from seqloss_cli.backends.torch.processes import Leader, Processes, current
from seqloss_cli.core.backend import Batch, Requested, TokenScores


@dataclass(frozen=True, slots=True)
class Way:
    """The way a model is run, as the first process tells the others."""

    number: int
    """Another one begins anew, though all else be the same."""
    path: RunPath
    backbone: int | None
    """Its place among those that are possible."""
    in_blocks: bool
    longest_packed: int
    block_width: int | None


class PartForward(ModelForward):
    """A part of a model, run in step with the others."""

    def __init__(self, model: Any, longest_packed: int, processes: Processes) -> None:
        """`longest_packed` is as in `ModelForward`."""
        super().__init__(model, longest_packed)
        self._processes, self.n_parts = processes, processes.place.size

    def logits(self, batch: Batch) -> LazyLogits:
        """Run this part of the backbone on a batch; of the head, the ids of this process."""
        logits = super().logits(batch)
        if not logits.in_blocks:  # the model itself puts the logits of all processes together
            return logits
        own = own_ids(self.model, self._processes.place.rank, self._processes.place.size)
        return replace(logits, own=own, gather=self._processes.gather)

    def _rows_of_head(self, ids: slice) -> tuple[Tensor, Tensor | None]:
        layer = self.model.get_output_embeddings()
        place = self._processes.place
        own = own_ids(self.model, place.rank, place.size)
        bias = None if layer.bias is None else _local_rows(layer.bias, ids, own)
        return _local_rows(layer.weight, ids, own), bias


class LeadingForward(PartForward):
    """The part of the first process, which tells the others of every batch."""

    _numbers = count(1)

    def __init__(self, model: Any, longest_packed: int, leader: Leader, part: int) -> None:
        """`part` is the number by which the others know the model."""
        self._leader, self._part = leader, part
        self._requested: Requested | None = None
        self._backbones = possible_backbones(model)
        super().__init__(model, longest_packed, leader)

    def use_path(self, path: RunPath, backbone: Any, in_blocks: bool = False) -> None:
        """Run all parts of the model by this path from now on."""
        self._number = next(self._numbers)
        super().use_path(path, backbone, in_blocks)

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score the M targets of a batch, in all processes."""
        # The request may hold arrays as long as the vocabulary: it is told once.
        new = None if requested is self._requested else requested
        self._requested = None
        command = ("score", self._part, self._way(), _for_others(batch), new)
        own = partial(super().score, batch, requested)
        found = self._leader.lead(command, own)
        self._requested = requested
        return found

    def vocab_size(self, batch: Batch) -> int:
        """Return how many logits the model has, which a batch shows."""
        command = ("vocab_size", self._part, self._way(), _for_others(batch))
        return self._leader.lead(command, partial(super().vocab_size, batch))

    def _way(self) -> Way:
        places = [n for n, each in enumerate(self._backbones) if each is self.backbone]
        return Way(
            self._number,
            self.path,
            places[0] if places else None,
            self.in_blocks,
            self.longest_packed,
            self.block_width,
        )


def forward_of(model: Any, longest_packed: int) -> ModelForward:
    """Return the forward of a model, be it whole in this process or in parts."""
    leader = current()
    part = None if leader is None else leader.part_of(model)
    if leader is None or part is None:
        return ModelForward(model, longest_packed)
    return LeadingForward(model, longest_packed, leader, part)


def _for_others(batch: Batch) -> Batch:
    return replace(batch, parts=(), teacher_rows=None)


def own_ids(model: Any, rank: int, size: int) -> slice:
    """Return the ids whose logits a process computes: those of its rows of the head, where it has
    some only; else its share of them."""
    weight = model.get_output_embeddings().weight
    n_ids = int(weight.shape[0])
    if not hasattr(weight, "placements"):
        return slice(n_ids * rank // size, n_ids * (rank + 1) // size)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, start = compute_local_shape_and_global_offset(
        weight.shape, weight.device_mesh, weight.placements
    )
    first = min(start[0], n_ids)
    return slice(first, first + shape[0])


def _local_rows(parameter: Any, ids: slice, own: slice) -> Tensor:
    """Return rows of a parameter of the head, some or all of which are in this process."""
    if not hasattr(parameter, "placements"):
        rows: Tensor = parameter[ids]
        return rows
    local: Tensor = parameter.to_local()
    return local[ids.start - own.start : ids.stop - own.start]
