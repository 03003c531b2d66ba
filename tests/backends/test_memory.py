"""What a batch takes beside the weights, by torch's own accounting (helpers/memory.py)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from helpers.architectures import build
from helpers.memory import peak_of
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.path_selection import probe_batches, probe_ids, probe_of
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import BatchPolicy


def test_the_accounting_is_right() -> None:
    def work() -> Any:
        first = torch.zeros(1000, 1000)  # 4 MB
        second = first.double()  # 8 MB beside it
        del first
        return second.sum() + torch.zeros(500, 1000).sum()

    assert 12_000_000 <= peak_of(work) < 12_100_000


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral", "mamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twice_the_tokens_take_at_most_twice_the_memory(name: str, dtype: torch.dtype) -> None:
    """`--batch-tokens auto` goes on where that would fit. Rows are of one length."""
    backend = TorchBackend(build(name).to(dtype), 64)
    if backend.capabilities.one_row_per_batch:
        pytest.skip("no rows together")
    probe, peaks = probe_of(probe_ids(49, 258)), []
    for n_rows in (8, 16, 32, 64):
        (batch,) = probe_batches([probe] * n_rows, backend.capabilities, BatchPolicy(1 << 16))
        work = partial(backend.score, batch, Requested())
        work()
        peaks.append(peak_of(work))
    for one, two in pairwise(peaks):
        assert one < two <= 2.02 * one
