"""Every path of the engine on a GPU of shapes alone: a CUDA build of torch, no driver, no numbers.

Tensors know their shape, dtype and device; operators refuse what they would refuse on a GPU, and a
mixture of devices. `make test-fake-gpu` runs this in environments of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import modeling_utils

from helpers.architectures import ARCHITECTURES, PADDED, build
from helpers.builders import N_BYTE_IDS
from helpers.oracles import CONTEXT
from helpers.runs import random_rows
from seqloss_cli.backends.batching import plan_batches
from seqloss_cli.backends.torch import head
from seqloss_cli.backends.torch.forward import PATHS, ModelForward, RunPath, can_run_in_blocks
from seqloss_cli.backends.torch.path_selection import longest_unwindowed_row, possible_backbones
from seqloss_cli.core.backend import Batch, Requested, TokenScores
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy

pytestmark = pytest.mark.fake_gpu
EVERYTHING = Requested(ranks=True, entropy=True, varentropy=True, top_k=3)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # not made for shapes
    monkeypatch.setattr(torch.Tensor, "nonzero", first_place)
    monkeypatch.setattr(head, "to_host", shapes_of)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        yield


def first_place(tensor: Tensor, as_tuple: bool = False) -> Any:
    """What is not zero is a matter of numbers: one place, say."""
    places = torch.zeros(1, tensor.ndim, dtype=torch.long)
    return places.unbind(1) if as_tuple else places


def shapes_of(parts: Sequence[dict[str, Tensor]]) -> TokenScores:
    """All columns are on the device, in what dtype they are read; there are no numbers."""
    columns = {}
    for name in parts[0]:
        joined = torch.cat([part[name] for part in parts])
        assert joined.device.type == "cuda", name
        columns[name] = joined
    assert columns["losses"].dtype == torch.float64
    arrays = {name: np.zeros(tuple(each.shape)) for name, each in columns.items()}
    return TokenScores(arrays.pop("losses"), arrays)


def batches_of(forward: ModelForward, shared: int = 0) -> list[Batch]:
    from dataclasses import replace

    capabilities = replace(forward.capabilities, longest_shared=shared)
    policy = BatchPolicy(256, share_prefix=shared > 0)
    windows = WindowPolicy(CONTEXT, "test", CONTEXT)
    return list(plan_batches(random_rows(1, 6), windows, policy, capabilities))


def made(name: str, dtype: torch.dtype) -> Any:
    """A model on the device, whose weights are no numbers."""
    numbers = torch.tensor

    def tensor(data: Any, **kwargs: Any) -> Tensor:
        """Numbers on the device would need a driver."""
        return torch.full((), 0.0) if np.isscalar(data) else numbers(data, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.device("cuda"):
        # It asks a real tensor where it is; weights without numbers need no initial ones.
        ask = "get_torch_context_manager_or_global_device"
        patch.setattr(modeling_utils, ask, lambda: torch.device("meta"))
        patch.setattr(torch, "tensor", tensor)
        torch.set_default_dtype(dtype)  # fake parameters cannot be turned into others later
        try:
            return build(name)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_path(name: str, path: RunPath, dtype: torch.dtype) -> None:
    model = made(name, dtype)
    assert model.dtype == dtype
    assert model.device.type == "cuda"
    longest = longest_unwindowed_row(model, CONTEXT)
    if path == "packed" and name in PADDED:
        pytest.skip("its rows are padded")
    for in_blocks in {False, can_run_in_blocks(model)}:
        forward = ModelForward(model, longest)
        forward.use_path(path, possible_backbones(model)[0], in_blocks)
        for width in (None, N_BYTE_IDS // 3):
            forward.block_width = width
            for batch in batches_of(forward):
                scores = forward.score(batch, EVERYTHING)
                assert scores.losses.shape == (len(batch.targets),)
