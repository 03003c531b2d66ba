"""Every path of the engine on a GPU of shapes alone: a CUDA build of torch, no driver, no numbers.

Tensors know their shape, dtype and device; operators refuse what they would refuse on a GPU, and a
mixture of devices. `make test-fake-gpu` runs this in environments of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import modeling_utils
from transformers.integrations import moe

from helpers.architectures import ARCHITECTURES, PADDED, build
from helpers.builders import N_BYTE_IDS
from helpers.oracles import CONTEXT
from helpers.runs import random_rows, sequence_of
from seqloss_cli.backends.batching import plan_batches
from seqloss_cli.backends.torch import batch_budget, divergence, head
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.forward import PATHS, ModelForward, RunPath, can_run_in_blocks
from seqloss_cli.backends.torch.path_selection import longest_unwindowed_row, possible_backbones
from seqloss_cli.backends.torch.teacher import StudentTeacherBackend
from seqloss_cli.core.backend import Batch, Capabilities, Requested, TokenScores, WordBoundaryIds
from seqloss_cli.core.columns import MEAN_LOG_PROB
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import SavedTeacherRows, TokenSequence

pytestmark = pytest.mark.fake_gpu
NONE = np.zeros(N_BYTE_IDS, dtype=bool)
BOUNDARIES = WordBoundaryIds(
    NONE, NONE, np.ones((N_BYTE_IDS, 2), np.float32), np.arange(40, 90), np.arange(50)
)
EVERYTHING = Requested(
    ranks=True, entropy=True, varentropy=True, top_k=3, word_boundary_ids=BOUNDARIES,
    internal=[MEAN_LOG_PROB],
)  # fmt: skip
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICE = torch.device("cuda", 1)
"""Not the first: what is made where torch makes things by default is on another device."""
ROWS_AT_ONCE, WIDTH = 48, N_BYTE_IDS // 3
"""Of a block of the head: a batch has more positions, and the vocabulary more ids."""


EVERYTHING_GIVES = {
    *("ranks", "entropies", "varentropies", "top_ids", "top_log_probs", "mean_log_prob"),
    "word_boundary_log_probs",
}
UNSHARED = {"bloom", "falcon-h1", "mamba", "rwkv"}
"""Whose caches are none of keys and values: numbers tell, if shapes do not."""


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # not made for shapes
    monkeypatch.setattr(torch, "tensor", partial(tensor_of, torch.tensor))
    monkeypatch.setattr(torch.Tensor, "nonzero", first_place)
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 0.0)
    for module in (head, divergence):
        monkeypatch.setattr(module, "to_host", shapes_of)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1 << 33, 1 << 34))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 0)
    # Shapes of it are known of bfloat16 only; GPUs have it in all dtypes (GroupedBlas.cpp).
    monkeypatch.setattr(moe, "_can_use_grouped_mm", lambda x, *_: x.dtype == torch.bfloat16)
    # More than one block of positions, and of ids.
    monkeypatch.setattr(head, "GPU_BLOCK_ROWS", ROWS_AT_ONCE)
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", ROWS_AT_ONCE * N_BYTE_IDS)
    monkeypatch.setattr(divergence, "BLOCK_ROWS", ROWS_AT_ONCE)
    monkeypatch.setattr(divergence, "LEAST_WIDTH", WIDTH)
    monkeypatch.setattr(divergence, "BLOCK_LOGITS", 1)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        yield


def tensor_of(make: Callable[..., Tensor], data: Any, device: Any = None, **options: Any) -> Tensor:
    """Numbers that go to the device would need a driver: a tensor of their shape."""
    with torch.device("cpu"):
        numbers = make(data, **options)
    device = torch.device(device or torch.get_default_device())
    if device.type == "cpu":
        return numbers
    return torch.empty(numbers.shape, dtype=numbers.dtype, device=device)


def first_place(tensor: Tensor, as_tuple: bool = False) -> Any:
    """What is not zero is a matter of numbers: one place, say."""
    places = torch.zeros(1, tensor.ndim, dtype=torch.long, device=tensor.device)
    return places.unbind(1) if as_tuple else places


def shapes_of(parts: Sequence[dict[str, Tensor]]) -> TokenScores:
    """All columns are on the device, in what dtype they are read; there are no numbers."""
    columns = {}
    for name in parts[0]:
        joined = torch.cat([part[name] for part in parts])
        assert joined.device == DEVICE, name
        columns[name] = joined
    assert columns["losses"].dtype == torch.float64
    arrays = {name: np.zeros(tuple(each.shape)) for name, each in columns.items()}
    return TokenScores(arrays.pop("losses"), arrays)


def batches_of(
    capabilities: Capabilities, rows: list[TokenSequence] | None = None, tokens: int = 256
) -> list[Batch]:
    policy = BatchPolicy(tokens, share_prefix=capabilities.longest_shared > 0)
    windows = WindowPolicy(CONTEXT, "test", CONTEXT)
    return list(plan_batches(rows or random_rows(1, 6), windows, policy, capabilities))


def made(name: str, dtype: torch.dtype, **config: Any) -> Any:
    """A model on the device, whose weights are no numbers."""
    with pytest.MonkeyPatch.context() as patch, DEVICE:
        # It asks a real tensor where it is; weights without numbers need no initial ones.
        ask = "get_torch_context_manager_or_global_device"
        patch.setattr(modeling_utils, ask, lambda: torch.device("meta"))
        torch.set_default_dtype(dtype)  # fake parameters cannot be turned into others later
        try:
            model = build(name, **config)
        finally:
            torch.set_default_dtype(torch.float32)
    assert model.dtype == dtype
    assert model.device == DEVICE
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_path(name: str, path: RunPath, dtype: torch.dtype) -> None:
    model = made(name, dtype)
    longest = longest_unwindowed_row(model, CONTEXT)
    if path == "packed" and name in PADDED:
        pytest.skip("its rows are padded")
    ways = [(False, None), (True, None), (True, WIDTH)]
    for in_blocks, width in ways if can_run_in_blocks(model) else ways[:1]:
        forward = ModelForward(model, longest)
        forward.use_path(path, possible_backbones(model)[0], in_blocks)
        forward.block_width = width
        for batch in batches_of(forward.capabilities):
            scores = forward.score(batch, EVERYTHING)
            assert scores.losses.shape == (len(batch.targets),)
            assert set(scores.columns) == EVERYTHING_GIVES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_probes_and_common_prompts(name: str, dtype: torch.dtype) -> None:
    """Losses are all alike here: the first path that raises nothing is chosen."""
    wide = {"sliding_window": CONTEXT} if name in ("gemma2", "phi3") else {}
    backend = TorchBackend(made(name, dtype, **wide), CONTEXT, share_prefix=True)
    if name not in PADDED:
        assert (backend.path, backend.warnings) == ("packed", [])
    shared = backend.capabilities.longest_shared
    assert shared == CONTEXT or name in UNSHARED
    prompts = [list(range(2 + n, 22 + n)) for n in (0, 30)]
    rows = [sequence_of([*ids, *range(40, 40 + n)], True) for ids in prompts for n in range(2, 9)]
    batches = batches_of(backend.capabilities, rows)
    assert any(batch.suffixes for batch in batches) == bool(shared)
    for batch in batches:
        assert backend.score(batch, EVERYTHING).losses.shape == (len(batch.targets),)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "mixtral", "bloom"])
def test_budgets(name: str, dtype: torch.dtype) -> None:
    backend = TorchBackend(made(name, dtype), CONTEXT)
    assert batch_budget.choose_batch_tokens(backend, CONTEXT) in batch_budget._BUDGETS
    assert batch_budget.compiling_pays(backend.model, 1 << 50)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_teacher_beside_the_student(name: str, dtype: torch.dtype) -> None:
    student = TorchBackend(made(name, dtype), CONTEXT)
    teacher = TorchBackend(made("llama", torch.bfloat16), CONTEXT)
    for vocab_size in (N_BYTE_IDS, N_BYTE_IDS - 9):
        both = StudentTeacherBackend(student, teacher, vocab_size, top_k=3)
        from_file = StudentTeacherBackend(student, None, vocab_size)
        for batch in batches_of(both.capabilities):
            m = len(batch.targets)
            scores = both.score(batch, Requested())
            assert scores.losses.shape == scores.columns["kls"].shape == (m,)
            assert scores.columns["teacher_top_ids"].shape == (m, 3)
            assert ("student_cut" in scores.columns) == (vocab_size < N_BYTE_IDS)
            saved = SavedTeacherRows(
                np.zeros((m, 3), np.int32), np.zeros((m, 3)), *np.zeros((4, m))
            )
            known = from_file.score(replace(batch, teacher_rows=saved), Requested())
            assert known.columns["kls_at_most"].shape == (m,)
