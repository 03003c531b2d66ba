"""The process and the memory that a model runs in: what makes it faster without changing what is
computed, and what tells that there is too little."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_TANH_GELU = ("NewGELUActivation", "FastGELUActivation")
"""transformers' names for x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) written out in seven passes
(Hendrycks & Gimpel 2016)."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_MOST_KEPT = (1 << 31) - 1


def fuse_activations(model: Any) -> int:
    """Have activations that are written out computed in one pass by torch's own kernel, which also
    rounds once where half precision would round seven times. Returns how many there were."""
    from torch.nn import GELU

    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in _TANH_GELU
    ]
    for parent, name in found:
        setattr(parent, name, GELU(approximate="tanh"))
    return len(found)


def keep_freed_memory() -> bool:
    """Have the C library keep large blocks for the next batch, which it would hand back to the
    system and fetch again, page by page, for every layer. Returns whether it can (glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT))


def is_out_of_memory(error: Exception) -> bool:
    """torch has an exception for it on accelerators; on a CPU it is any RuntimeError."""
    import torch

    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
