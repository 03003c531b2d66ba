"""Rates of plain matrix products at a model's own shapes, and how many FLOP a model's products are.

A multiply and an add count as two.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from seqloss_cli.models.model_loading import keep_freed_memory

Shape = tuple[int, int]
"""Of a layer: what goes in and what comes out."""


class Shapes:
    """The linear layers of a model: those of its decoder, by shape, and the head."""

    @classmethod
    def of(cls, folder: Path) -> Shapes:
        """Those of a checkpoint."""
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            return cls(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)))

    def __init__(self, model: Any) -> None:
        head = model.get_output_embeddings()
        self.head: Shape = (head.in_features, head.out_features)
        self.layers: Counter[Shape] = Counter()
        for module in model.modules():
            kind = type(module).__name__
            if kind == "Linear" and module is not head:
                self.layers[module.in_features, module.out_features] += 1
            elif kind == "Conv1D":
                self.layers[module.weight.shape[0], module.weight.shape[1]] += 1

    def flop(self, n_fed: int, n_scored: int) -> float:
        """Of all products of `n_fed` tokens through the layers and `n_scored` through the head."""
        layers = sum(i * o * count for (i, o), count in self.layers.items())
        return 2.0 * (n_fed * layers + n_scored * self.head[0] * self.head[1])


class PlainRate:
    """`F.linear` at each of the shapes, with as many rows as a batch has tokens."""

    def __init__(
        self, shapes: Shapes, n_rows: int, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        self.shapes = shapes
        self._counts = shapes.layers + Counter([shapes.head])
        self._operands = {
            (i, o): (
                torch.randn(n_rows, i, device=device).to(dtype),
                torch.randn(o, i, device=device).to(dtype),
            )
            for i, o in self._counts
        }
        self._n_rows = n_rows
        self.measure()  # warms up

    def measure(self) -> tuple[float, dict[str, float]]:
        """The FLOP-weighted harmonic mean, and each shape's rate, in FLOP/s.

        Freed memory is kept, as while ours runs: else it is largely the mapping of results that is
        timed.
        """
        keep_freed_memory()
        seconds = total = 0.0
        rates = {}
        for (i, o), count in self._counts.items():
            flop = 2.0 * self._n_rows * i * o
            each = _seconds_of_linear(*self._operands[i, o])
            rates[f"{i}x{o}"] = flop / each
            total += count * flop
            seconds += count * each
        return total / seconds, rates


def _seconds_of_linear(x: torch.Tensor, weight: torch.Tensor, least: float = 0.1) -> float:
    n_calls = 0
    _wait_for(x)
    started = time.perf_counter()
    with torch.inference_mode():
        while True:
            linear(x, weight)
            _wait_for(x)
            n_calls += 1
            seconds = time.perf_counter() - started
            if seconds >= least:
                return seconds / n_calls


def _wait_for(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def best_square(dtype: torch.dtype) -> tuple[float, int]:
    """The best plain product of square matrices: FLOP/s, and their side."""
    best = (0.0, 0)
    for side in (1024, 2048, 3072, 4096):
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        _seconds_of_linear(a, b, 0.02)
        for _ in range(3):
            best = max(best, (2.0 * side**3 / _seconds_of_linear(a, b), side))
    return best
