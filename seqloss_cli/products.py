"""Matrix products of a model on a CPU by oneDNN, where torch's own way is slower.

torch gives float32 products to MKL, which keeps its widest instructions for Intel's processors; on
one of AMD's with AVX-512, oneDNN took 0.6 to 0.95 of the time for weights of a model's size. In
bfloat16 torch goes to oneDNN itself, but adds a bias, and applies an activation, in further passes.
One operator does all of it, the one that torch's compiler uses. What it computes is tried on a few
rows of each kind of layer; one that gives other numbers is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_LEAST_WEIGHTS = 100_000
"""Smaller float32 products are no faster."""
_ACTIVATED = (
    ("c_fc", "act"),
    ("fc_in", "act"),
    ("dense_h_to_4h", "act"),
    ("fc1", "activation_fn"),
    ("gate_proj", "act_fn"),
)
"""How transformers names a layer of an MLP and the activation that its result goes to at once."""
_POST_OPS = {
    "GELUActivation": ("gelu", "none"),
    "GELUTanh": ("gelu", "tanh"),
    "SiLU": ("swish", ""),
    "SiLUActivation": ("swish", ""),
    "ReLU": ("relu", ""),
}
"""oneDNN's names of activations, and its kinds of them."""
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_CPU_INFO = Path("/proc/cpuinfo")


def use_onednn(model: nn.Module) -> int:
    """Have the layers for which it is faster computed so, whatever is set to them later: adapters
    must be on the model before. Returns how many there are."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    chosen = {layer for layer in model.modules() if _is_faster(layer)}
    for kind in _kinds(chosen):
        if not _agree(kind[0], partial(_forward, kind[0], "none", "")):
            chosen -= set(kind)
    for layer in chosen:
        layer.forward = partial(_forward, layer, "none", "")
    _fuse_activations(model, chosen)
    return len(chosen)


def product_of(layer: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The function of hidden states, weight and bias that the layer computes."""
    if getattr(vars(layer).get("forward"), "func", None) is _forward:
        return lambda x, weight, bias: _product(x, weight, bias, "none", "")
    return nn.functional.linear


def _is_faster(layer: nn.Module) -> bool:
    if type(layer) not in (nn.Linear, Conv1D):  # subclasses, such as adapters, do more
        return False
    weight: Any = layer.weight
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:  # quantised
        return False
    if weight.device.type != "cpu":
        return False
    if weight.dtype == torch.float32:
        return weight.numel() >= _LEAST_WEIGHTS and _mkl_is_slow()
    return weight.dtype == torch.bfloat16 and layer.bias is not None and _has_bfloat16()


@cache
def _mkl_is_slow() -> bool:
    """Where it was measured: other processors keep what torch chooses."""
    there = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    amd = _CPU_INFO.is_file() and "AuthenticAMD" in _CPU_INFO.read_text()
    return bool(there and wide and amd)


@cache
def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _kinds(layers: set[nn.Module]) -> list[list[nn.Module]]:
    found: dict[Any, list[nn.Module]] = {}
    for layer in layers:
        found.setdefault(_kind(layer), []).append(layer)
    return list(found.values())


def _kind(layer: Any) -> tuple[Any, ...]:
    return type(layer), layer.weight.shape, layer.weight.dtype, layer.bias is None


def _fuse_activations(model: nn.Module, chosen: set[nn.Module]) -> None:
    """Where an activation follows one of the layers in an MLP, the layer computes it, too."""
    trusted: dict[Any, bool] = {}  # by kind of MLP: one of each is tried
    for mlp in list(model.modules()):
        for layer_name, act_name in _ACTIVATED:
            layer, act = getattr(mlp, layer_name, None), getattr(mlp, act_name, None)
            post_op = _post_op(act)
            if post_op is None or layer not in chosen:
                continue
            kind = type(mlp), layer_name, post_op, _kind(layer)
            before = None if kind in trusted else _tried(mlp, layer)
            setattr(mlp, act_name, nn.Identity())
            layer.forward = partial(_forward, layer, *post_op)
            if kind not in trusted:
                trusted[kind] = before is not None and _near(_tried(mlp, layer), before)
            if not trusted[kind]:
                setattr(mlp, act_name, act)
                layer.forward = partial(_forward, layer, "none", "")


def _post_op(act: Any) -> tuple[str, str] | None:
    if type(act) is nn.GELU:
        return "gelu", act.approximate
    return _POST_OPS.get(type(act).__name__)


@torch.inference_mode()
def _tried(mlp: nn.Module, layer: Any) -> Tensor | None:
    """What an MLP makes of a few rows; None for what is no function of hidden states alone."""
    try:
        found = mlp(_rows_for(layer)[None])
    except Exception:  # a whole layer, which wants more
        return None
    return found if isinstance(found, Tensor) else None


@torch.inference_mode()
def _agree(layer: Any, forward: Callable[[Tensor], Tensor]) -> bool:
    rows = _rows_for(layer)
    try:
        found = forward(rows[None])[0]
    except RuntimeError:  # not on this processor
        return False
    return _near(found, layer(rows[None])[0])


def _rows_for(layer: Any, n_rows: int = 3) -> Tensor:
    """The same for each layer of a shape, without touching the generator that users seed."""
    width = layer.weight.shape[0 if _is_transposed(layer) else 1]
    rows = torch.arange(n_rows * width, dtype=torch.float64).mul_(0.7).sin_()
    return rows.view(n_rows, width).to(layer.weight.dtype)


def _near(found: Tensor | None, expected: Tensor) -> bool:
    """Up to the rounding of sums; what is not a number or infinite must be so in both."""
    if found is None or found.shape != expected.shape:
        return False
    scale = float(expected.double().abs().nan_to_num(0, 0, 0).max())
    atol = _TOLERANCE[expected.dtype] * (scale or 1.0)
    return torch.allclose(found.double(), expected.double(), rtol=0, atol=atol, equal_nan=True)


def _is_transposed(layer: Any) -> bool:
    """transformers' Conv1D keeps its weight as inputs x outputs."""
    return type(layer) is Conv1D


def _forward(layer: Any, kind: str, how: str, x: Tensor) -> Tensor:
    weight = layer.weight.t() if _is_transposed(layer) else layer.weight
    # torch's compiler wants weights that were packed for a number of rows, here as many as come.
    product = _product_opaquely if torch.compiler.is_compiling() else _product
    return product(x, weight, layer.bias, kind, how)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, kind: str, how: str) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], how)
    return found


@torch.library.custom_op("seqloss::product", mutates_args=())
def _product_opaquely(
    x: Tensor, weight: Tensor, bias: Tensor | None, kind: str, how: str
) -> Tensor:
    return _product(x, weight, bias, kind, how)


@_product_opaquely.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, kind: str, how: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
