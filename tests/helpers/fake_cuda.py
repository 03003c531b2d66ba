"""A GPU that is none: tensors say that they are on it, and compute on the CPU.

Operators that CPUs do not have are equal ones here, and refuse what the installed torch would.
Modes of torch are each thread's own, so every thread enters one.
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FREE_BYTES = 1 << 30
_IS_CUDA, _DEVICE = Tensor.is_cuda.__get__, Tensor.device.__get__  # type: ignore[attr-defined]


def varlen_of_2_11(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int,
    max_k: int, *, return_aux: Any = None, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> None:  # fmt: skip
    """What torch 2.11 takes, which wants as many heads of keys as of queries."""


def varlen_of_2_10(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int,
    max_k: int, is_causal: bool = False, return_aux: Any = None,
) -> None:  # fmt: skip
    """What torch 2.10 takes, whose scale is always that of the heads' size."""


class FakeCuda(TorchFunctionMode):
    """Every tensor is on cuda:0, and `used` counts what only a GPU has."""

    def __init__(self, used: Counter[str]) -> None:
        self.used = used

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == _IS_CUDA:
            return not args[0].is_meta
        if func == _DEVICE:
            return args[0].device if args[0].is_meta else CUDA
        if func is Tensor.pin_memory:
            self.used["pin_memory"] += 1
            return args[0].clone()
        if func is torch.mm and "out_dtype" in kwargs:
            assert torch.ops.aten.mm.dtype is not None
            self.used["mm"] += 1
            assert args[0].dtype == args[1].dtype != kwargs["out_dtype"]
            return torch.mm(*(factor.to(kwargs["out_dtype"]) for factor in args))
        if func is torch.histc and not args[0].is_floating_point():  # CPUs count floats only
            return torch.histc(args[0].float(), *args[1:], **kwargs)
        return func(*map(_on_cpu, args), **{name: _on_cpu(each) for name, each in kwargs.items()})


def _on_cpu(value: Any) -> Any:
    is_cuda = isinstance(value, torch.device) and value.type == "cuda"
    return CPU if is_cuda or (isinstance(value, str) and value.startswith("cuda")) else value


def flash_attention(like: Callable[..., Any], used: Counter[str]) -> Callable[..., Tensor]:
    """Attention of rows one after another by plain products, called as `like` may be called."""
    parameters = inspect.signature(like)

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        bound = parameters.bind(*args, **kwargs)  # TypeError for what it does not take
        bound.apply_defaults()
        given = bound.arguments
        used["varlen_attn"] += 1
        used.update(name for name in kwargs if name in ("enable_gqa", "num_splits"))
        q, k, v = (given[name] for name in ("query", "key", "value"))
        assert q.dtype in (torch.float16, torch.bfloat16)
        assert given["cu_seq_q"].dtype == torch.int32
        assert all(each.is_contiguous() for each in (q, k, v))
        assert given.get("is_causal") or given["window_size"] == (-1, 0)
        assert q.shape[1] == k.shape[1] or given.get("enable_gqa")
        edges = given["cu_seq_q"].tolist()
        assert edges[-1] == len(q)
        assert given["max_q"] == max(b - a for a, b in pairwise(edges))
        rows = [
            scaled_dot_product_attention(
                *(x[a:b].transpose(0, 1)[None] for x in (q, k, v)),
                is_causal=True, scale=given.get("scale"), enable_gqa=True,
            )[0].transpose(0, 1)
            for a, b in pairwise(edges)
        ]  # fmt: skip
        return torch.cat(rows)

    attend.__signature__ = parameters  # type: ignore[attr-defined]
    return attend


@contextmanager
def fake_cuda(
    monkeypatch: pytest.MonkeyPatch,
    n_devices: int = 1,
    like: Callable[..., Any] = varlen.varlen_attn,
) -> Iterator[Counter[str]]:
    """Have torch believe in so many GPUs, with a `varlen_attn` that is called as `like`."""
    used: Counter[str] = Counter()

    def free(device: Any = None) -> tuple[int, int]:
        used["mem_get_info"] += 1
        return FREE_BYTES, 2 * FREE_BYTES

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", flash_attention(like, used))
    run = threading.Thread.run

    def run_faked(thread: threading.Thread) -> None:
        with FakeCuda(used):
            run(thread)

    monkeypatch.setattr(threading.Thread, "run", run_faked)
    with FakeCuda(used):
        yield used
