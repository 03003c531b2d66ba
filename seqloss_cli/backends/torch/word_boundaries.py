"""Probabilities of words' boundaries, summed as the head goes through the vocabulary.

Shape letters: M positions, V vocabulary, B words of a block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqloss_cli.core.backend import WordBoundaryIds


class BoundaryIds:
    """The ids whose probabilities are summed, on a device."""

    def __init__(self, boundary_ids: WordBoundaryIds, device: torch.device) -> None:
        self._members_V2 = torch.from_numpy(boundary_ids.members).to(device, torch.float64)
        self._longer_on_host = boundary_ids.longer
        self._longer = torch.from_numpy(boundary_ids.longer).to(device)
        self._stems = torch.from_numpy(boundary_ids.stems).to(device)

    def sums(self, shifted_MB: Tensor, first: int, targets_M1: Tensor) -> Tensor:
        """Sums of exp(z - max) over the words from `first` on that `BEGINS`, `UNSPACED` and
        `LONGER` name, M x 3. Words beyond the vocabulary of the tokenizer are in none.

        In float64, so that a boundary of probability 1e-300 has one, too.
        """
        weights_MB = shifted_MB.double().exp_()
        last = first + weights_MB.shape[1]
        members_B2 = self._members_V2[first:last]
        sums_M2 = weights_MB[:, : len(members_B2)] @ members_B2
        here = slice(*np.searchsorted(self._longer_on_host, [first, last]).tolist())
        longer_ML = weights_MB[:, self._longer[here] - first]
        of_target_M1 = (longer_ML * (self._stems[here] == targets_M1)).sum(dim=1, keepdim=True)
        return torch.cat([sums_M2, of_target_M1], dim=1)
