"""Matrix products of a model on a CPU by oneDNN, where torch's own way is slower.

torch gives float32 products to MKL, which keeps its widest instructions for Intel's processors; on
one of AMD's with AVX-512, oneDNN took 0.6 to 0.95 of the time for weights of a model's size. In
bfloat16 torch goes to oneDNN itself, but adds a bias, and applies an activation, in further passes.
One operator does all of it, the one that torch's compiler uses.

oneDNN writes code for each number of rows, and keeps it (0.7 MB for each shape of weights): numbers
of rows are rounded up, so that memory does not grow with a corpus.

Shape letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from transformers.pytorch_utils import Conv1D

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_LEAST_WEIGHTS = 100_000
"""Smaller float32 products are no faster."""
_FEW_ROWS, _MANY_ROWS = 16, 64
"""What numbers of rows are multiples of, from 64 rows on of the second."""
_GELU_MLPS = {
    "GPT2MLP": ("c_fc", "act"),
    "GPTBigCodeMLP": ("c_fc", "act"),
    "GPTJMLP": ("fc_in", "act"),
    "GPTNeoMLP": ("c_fc", "act"),
    "GPTNeoXMLP": ("dense_h_to_4h", "act"),
    "PhiMLP": ("fc1", "activation_fn"),
}
"""MLPs of transformers in which an activation goes over a layer's result, and over nothing else."""
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_CPU_INFO = Path("/proc/cpuinfo")


class _ByOneDnn:
    """A layer's forward by oneDNN. The class of a layer is changed, not the layer: torch compiles
    one code for all layers of a class."""

    gelu: str | None
    """The kind of GELU that is applied to the result."""
    made_for: torch.dtype

    def _by_onednn(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, plain: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """As `plain` where gradients are asked for, or the model was cast or moved since."""
        compiles = torch.compiler.is_compiling()
        changed = weight.dtype != self.made_for or weight.device.type != "cpu"
        # torch's compiler joins bfloat16 products with what comes after them, and rounds less.
        ours = not (compiles and weight.dtype == torch.bfloat16)
        if changed or x.dtype != weight.dtype or torch.is_grad_enabled() or not ours:
            found = plain(x)
            return found if self.gelu is None else gelu(found, approximate=self.gelu)
        # It would want weights that were packed for one number of rows.
        return (_product_opaquely if compiles else _product)(x, weight, bias, self.gelu)


class OneDnnLinear(_ByOneDnn, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return self._by_onednn(input, self.weight, self.bias, super().forward)


class OneDnnConv1D(_ByOneDnn, Conv1D):  # type: ignore[misc]
    """transformers' Conv1D keeps its weight as I x O."""

    def forward(self, x: Tensor) -> Tensor:
        return self._by_onednn(x, self.weight.t(), self.bias, super().forward)


_CLASSES: dict[type, type] = {nn.Linear: OneDnnLinear, Conv1D: OneDnnConv1D}


def use_onednn(model: nn.Module) -> int:
    """Have the layers for which it is faster computed so; adapters must be on the model before.
    Returns how many there are. One of each kind of layer is tried on a few rows: where it gives
    other numbers than torch's own, all of that kind stay as they are."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    chosen = 0
    for kind in _kinds(layer for layer in model.modules() if _is_faster(layer)):
        if _agrees(kind[0]):
            chosen += len(kind)
            for layer in kind:
                _change(layer)
    for mlp in model.modules():
        _fuse_gelu(mlp)
    return chosen


def rounds_rows(backbone: Any) -> bool:
    """Whether a number of rows that is no multiple of `_MANY_ROWS` costs the backbone a copy."""
    return any(isinstance(layer, _ByOneDnn) for layer in backbone.modules())


def rows_missing(n_rows: int) -> int:
    """To the next number of rows that code is written for."""
    return -n_rows % (_MANY_ROWS if n_rows > _MANY_ROWS else _FEW_ROWS)


def fastest_product(model: nn.Module) -> Product:
    """That of any layer whose products are oneDNN's, else torch's own."""
    return next((_product for layer in model.modules() if isinstance(layer, _ByOneDnn)), linear)


def product_of(layer: Any) -> Product:
    """The function of hidden states, weight and bias that the layer computes."""
    if isinstance(layer, OneDnnLinear) and _can(layer.weight):
        return _product
    return linear


def _change(layer: Any) -> None:
    layer.__class__ = _CLASSES[type(layer)]
    layer.gelu, layer.made_for = None, layer.weight.dtype


def _is_faster(layer: nn.Module) -> bool:
    if type(layer) not in _CLASSES:  # subclasses, such as adapters, do more
        return False
    if "forward" in vars(layer) or _is_hooked(layer):
        return False
    weight: Any = layer.weight
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:  # quantised
        return False
    if weight.dtype == torch.float32:
        return _can(weight) and weight.numel() >= _LEAST_WEIGHTS and _mkl_is_slow()
    return _can(weight)


def _can(weight: Tensor) -> bool:
    if weight.device.type != "cpu":
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _has_bfloat16())


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


def _kinds(layers: Iterable[nn.Module]) -> list[list[Any]]:
    """Layers of one type, shape and dtype."""
    found: dict[Any, list[Any]] = {}
    for layer in layers:
        weight: Any = layer.weight
        kind = type(layer), weight.shape, weight.dtype, layer.bias is None
        found.setdefault(kind, []).append(layer)
    return list(found.values())


def _fuse_gelu(mlp: nn.Module) -> None:
    """Where an MLP is known, its layer computes the activation, too."""
    names = _GELU_MLPS.get(type(mlp).__name__)
    if names is None or not type(mlp).__module__.startswith("transformers.models."):
        return
    layer, act = (getattr(mlp, name, None) for name in names)
    kind = _gelu_of(act)
    if isinstance(layer, _ByOneDnn) and kind is not None and not _is_hooked(act):
        layer.gelu = kind
        setattr(mlp, names[1], nn.Identity())


def _gelu_of(act: Any) -> str | None:
    if type(act) is nn.GELU:
        return act.approximate
    return {"GELUActivation": "none", "GELUTanh": "tanh"}.get(type(act).__name__)


def _is_hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@torch.inference_mode()
def _agrees(layer: Any, n_rows: int = 3) -> bool:
    """Up to the rounding of sums; what is not a number must be so in both."""
    weight = layer.weight.t() if type(layer) is Conv1D else layer.weight
    rows_NI = torch.arange(n_rows * weight.shape[1], dtype=torch.float64).mul_(0.7).sin_()
    rows_NI = rows_NI.view(n_rows, -1).to(weight.dtype)
    expected = layer(rows_NI).double()
    try:
        found = _product(rows_NI, weight, layer.bias).double()
    except RuntimeError:  # not on this processor
        return False
    scale = float(expected.abs().nan_to_num(0, 0, 0).max()) or 1.0
    atol = _TOLERANCE[weight.dtype] * scale
    return torch.allclose(found, expected, rtol=0, atol=atol, equal_nan=True)


def _product(
    x: Tensor, weight_OI: Tensor, bias: Tensor | None, approximate: str | None = None
) -> Tensor:
    """x · weightᵀ + bias, then GELU of that kind if any; x is of any number of dimensions."""
    given_NI = rows_NI = x.reshape(-1, x.shape[-1])
    n_rows = len(given_NI)
    if missing := rows_missing(n_rows):
        rows_NI = x.new_empty(n_rows + missing, x.shape[-1])
        rows_NI[:n_rows].copy_(given_NI)
        rows_NI[n_rows:].zero_()
    kind, how = ("none", "") if approximate is None else ("gelu", approximate)
    found_NO: Tensor = torch.ops.mkldnn._linear_pointwise(rows_NI, weight_OI, bias, kind, [], how)
    return found_NO[:n_rows].view(*x.shape[:-1], len(weight_OI))


@torch.library.custom_op("seqloss::product", mutates_args=())
def _product_opaquely(
    x: Tensor, weight_OI: Tensor, bias: Tensor | None, approximate: str | None
) -> Tensor:
    return _product(x, weight_OI, bias, approximate)


@_product_opaquely.register_fake
def _(x: Tensor, weight_OI: Tensor, bias: Tensor | None, approximate: str | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight_OI.shape[0])
