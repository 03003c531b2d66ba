"""Compile the layers of a backbone: one layer's code, shared by all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


class CompiledLayers:
    """The layers of a backbone with a compiled forward, which they have only while `on()` lasts:
    forwards with caches or masks are other code, and would be compiled again.

    Raises ValueError when the backbone has no list of layers. What the compiler itself cannot do
    shows at the first forward.
    """

    def __init__(self, backbone: nn.Module) -> None:
        layers = _layers_of(backbone)
        forwards: dict[type, Any] = {
            kind: torch.compile(kind.forward, dynamic=True) for kind in {type(x) for x in layers}
        }
        self._forwards = [(layer, partial(forwards[type(layer)], layer)) for layer in layers]

    @contextmanager
    def on(self) -> Iterator[None]:
        with ExitStack() as stack:
            for layer, forward in self._forwards:
                stack.enter_context(computing(layer, forward))
            yield


def _layers_of(backbone: nn.Module) -> list[nn.Module]:
    """The longest list of modules: the layers that hidden states go through one after another."""
    lists = [list(m) for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ValueError(f"{type(backbone).__name__} has no list of layers")
    return max(lists, key=len)


@contextmanager
def computing(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, calling the module calls `forward`."""
    replaced = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced
