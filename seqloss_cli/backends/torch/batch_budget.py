"""Guess what a run may cost on this machine: to choose a setting, never a number."""

from __future__ import annotations

import time
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.path_selection import probe_batches, probe_ids, probe_of
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.errors import OutOfMemoryError
from seqloss_cli.core.policies import DEFAULT_BATCH_TOKENS, BatchPolicy
from seqloss_cli.models.onednn import fastest_product

_BYTES_PER_TOKEN = 4
_COMPILE_SECONDS, _COMPILE_SAVES = 20.0, {"cpu": 0.03, "cuda": 0.15}
"""Seconds that compiling takes, and the share of the work that it saves: on CPUs 0 to 4 % were
measured; on GPUs it is a guess. A small saving is not worth the 100 MB of memory that it takes."""
_BUDGETS = tuple(1 << n for n in range(10, 17))
_WORTHWHILE, _LONG_ENOUGH = 1.05, 1.0
"""A larger batch must be faster by this factor; no probe is made after one of so many seconds."""
# Half: the probe knows nothing of the longest row, nor of other processes.
_MEMORY_SHARE = 0.5
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def compiling_pays(model: Any, work_bytes: int | None) -> bool:
    """Return whether compiled layers would save more than compiling takes, of a text of so many
    bytes; False where that is not known (stdin, compressed files)."""
    head = model.get_output_embeddings()
    if not work_bytes or head is None:
        return False
    flop = 2 * (model.num_parameters(exclude_embeddings=True) + head.weight.numel())
    seconds = work_bytes / _BYTES_PER_TOKEN * flop / product_rate(model)
    saved = seconds * _COMPILE_SAVES.get(model.device.type, 0.0)
    return bool(saved > _COMPILE_SECONDS)


def product_rate(model: Any, n_rows: int = 512, repeats: int = 8) -> float:
    """Measure the FLOP per second of products as wide as the model's hidden states."""
    # The best of some: the first ones after loading, and other processes, only make it slower
    # (seen: a tenth).
    width = model.get_output_embeddings().weight.shape[1]
    a = torch.zeros(n_rows, width, dtype=model.dtype, device=model.device)
    b = torch.zeros(4 * width, width, dtype=model.dtype, device=model.device)
    seconds, product = [], fastest_product(model)
    with torch.inference_mode():
        for _ in range(repeats):
            start = time.perf_counter()
            # `item` waits for the device, which `product` does not.
            product(a, b, None).sum().item()
            seconds.append(time.perf_counter() - start)
    return 2 * n_rows * b.numel() / min(seconds)


def choose_batch_tokens(backend: TorchBackend, context: int) -> int:
    """Return the smallest budget in tokens beyond which batches get no faster, as far as half of
    the free memory allows. Where a probe takes long, or rows come one at a time, the default.

    On a GPU the memory that each probe takes is measured: twice the tokens take at most twice as
    much, since both the layers and a block of logits take so much a token, and more beside it.
    """
    if backend.capabilities.one_row_per_batch:
        return DEFAULT_BATCH_TOKENS
    free = _MEMORY_SHARE * free_memory(backend.model)
    if backend.model.device.type == "cpu":
        free /= backend.n_parts  # the processes of all parts share it
    allowed = max(int(free) // token_bytes(backend.model), 1)
    best_rate, best = 0.0, min(DEFAULT_BATCH_TOKENS, allowed)
    n_too_large = backend.n_too_large
    for tokens in takewhile(lambda n: n <= allowed, _BUDGETS):
        try:
            seconds = probe_seconds(backend, tokens, min(context, 256))
        except OutOfMemoryError:
            backend.n_too_large = n_too_large  # a probe is no batch of the run
            return min(best, tokens // 2)
        if seconds > _LONG_ENOUGH:
            return max(best, min(DEFAULT_BATCH_TOKENS, allowed))
        if tokens / seconds < _WORTHWHILE * best_rate:
            break
        best_rate, best = tokens / seconds, tokens
        if (peak := _peak_bytes(backend.model)) is not None and 2 * peak > free:
            break
    return best


def free_memory(model: Any) -> int:
    """Return the bytes that are free where the model is."""
    if model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(model.device)[0])
    found = []
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if _MEMINFO.is_file():
        lines = (line.split() for line in _MEMINFO.read_text().splitlines())
        found += [1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"]
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        found.append(int(limit.read_text()) - int(used.read_text()))
    # A container may have less than the machine: its limit is in no other place.
    return min(found, default=1 << 32)  # elsewhere: as if 4 GiB were free


def _peak_bytes(model: Any) -> int | None:
    """Return the most bytes beyond the weights that were in use since the last probe began; None
    where the device does not count them."""
    if model.device.type != "cuda":
        return None
    # Of a model in parts the weights in this process alone.
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(int(getattr(each, "_local_tensor", each).nbytes) for each in tensors)
    return int(torch.cuda.max_memory_allocated(model.device)) - weights


def token_bytes(model: Any) -> int:
    """Estimate the bytes that a token takes while a layer is computed."""
    config = model.config.get_text_config()
    hidden = config.hidden_size
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    return int(model.dtype.itemsize * (8 * hidden + 4 * wide))


def probe_seconds(backend: TorchBackend, tokens: int, row: int) -> float:
    """Measure the second forward of a batch of `tokens` ids: the first one also makes buffers."""
    n_ids = int(backend.model.get_input_embeddings().num_embeddings)
    probe = probe_of(probe_ids(row + 1, n_ids))
    rows = [probe] * max(1, tokens // row)
    policy = BatchPolicy(tokens=max(tokens, row))
    (batch, *_) = probe_batches(rows, backend.capabilities, policy)
    if backend.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(backend.model.device)
    backend.score(batch, Requested())
    start = time.perf_counter()
    backend.score(batch, Requested())
    return time.perf_counter() - start
