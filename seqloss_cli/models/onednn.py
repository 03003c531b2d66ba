"""Faster layers with the same numbers: fused activations, and oneDNN's matrix products on a CPU.

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
"""Hidden states (… x I), weight (O x I) and bias (O) to the layer's result (… x O)."""
LEAST_WEIGHTS = 100_000
"""Smaller float32 products are no faster."""
_FEW_ROWS, _MANY_ROWS = 16, 64
"""Numbers of rows are rounded up to multiples of the first, above 64 rows of the second."""
_TANH_GELU = ("NewGELUActivation", "FastGELUActivation")
"""transformers' names for x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) written out in seven passes
(Hendrycks & Gimpel, Gaussian Error Linear Units, 2016)."""
GELU_MLPS = {
    "GPT2MLP": ("c_fc", "act"),
    "GPTBigCodeMLP": ("c_fc", "act"),
    "GPTJMLP": ("fc_in", "act"),
    "GPTNeoMLP": ("c_fc", "act"),
    "GPTNeoXMLP": ("dense_h_to_4h", "act"),
    "PhiMLP": ("fc1", "activation_fn"),
}
"""MLPs of transformers that apply the activation to one layer's result, and to nothing else."""
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_CPU_INFO = Path("/proc/cpuinfo")


class _OneDnnLayer:
    """A layer that oneDNN computes."""

    # Layers get another class, not another forward of their own: torch compiles one code for all
    # layers of a class, and would compile one for each layer otherwise.
    gelu: str | None
    """The kind of GELU that is applied to the result."""
    made_for: torch.dtype

    def _by_onednn(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, plain: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Compute the layer; by `plain` with gradients, or if the model was cast or moved since."""
        compiles = torch.compiler.is_compiling()
        changed = weight.dtype != self.made_for or weight.device.type != "cpu"
        # torch's compiler joins bfloat16 products with what comes after them, and rounds less.
        ours = not (compiles and weight.dtype == torch.bfloat16)
        if changed or x.dtype != weight.dtype or torch.is_grad_enabled() or not ours:
            found = plain(x)
            return found if self.gelu is None else gelu(found, approximate=self.gelu)
        # Seen through, the compiler would pack the weights for one number of rows.
        return (_product_opaquely if compiles else onednn_product)(x, weight, bias, self.gelu)


class OneDnnLinear(_OneDnnLayer, nn.Linear):
    """A linear layer that oneDNN computes."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer, shape … x O, of hidden states of shape … x I."""
        return self._by_onednn(input, self.weight, self.bias, super().forward)


class OneDnnConv1D(_OneDnnLayer, Conv1D):  # type: ignore[misc]
    """A layer of GPT-2's kind that oneDNN computes; its weight is kept as I x O."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer, shape … x O, of hidden states of shape … x I."""
        return self._by_onednn(x, self.weight.t(), self.bias, super().forward)


_CLASSES: dict[type, type] = {nn.Linear: OneDnnLinear, Conv1D: OneDnnConv1D}


def fuse_activations(model: nn.Module) -> int:
    """Replace activations that are written out by torch's own kernel; returns how many there were.

    It computes them in one pass, and rounds once where half precision would round seven times.
    """
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in _TANH_GELU
    ]
    for parent, name in found:
        setattr(parent, name, nn.GELU(approximate="tanh"))
    return len(found)


def use_onednn(model: nn.Module) -> int:
    """Have oneDNN compute the layers for which it is faster; returns how many there are.

    Adapters must be attached before. One of each kind of layer is tried on a few rows: where its
    numbers differ from torch's own, all of that kind stay as they are.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    chosen = 0
    for kind in _kinds(layer for layer in model.modules() if _is_faster(layer)):
        if _agrees(kind[0]):
            chosen += len(kind)
            for layer in kind:
                layer.__class__ = _CLASSES[type(layer)]
                layer.gelu, layer.made_for = None, layer.weight.dtype
    for mlp in model.modules():
        _fuse_gelu(mlp)
    return chosen


def needs_row_padding(backbone: Any) -> bool:
    """Return whether a number of rows that is no multiple of 64 costs the backbone a copy."""
    return any(isinstance(layer, _OneDnnLayer) for layer in backbone.modules())


def rows_to_pad(n_rows: int) -> int:
    """Return how many rows are missing to the next number that oneDNN writes code for."""
    return -n_rows % (_MANY_ROWS if n_rows > _MANY_ROWS else _FEW_ROWS)


def fastest_product(model: nn.Module) -> Product:
    """Return oneDNN's product where it computes any layer of the model, else torch's own."""
    layers = model.modules()
    return next((onednn_product for layer in layers if isinstance(layer, _OneDnnLayer)), linear)


def product_of(layer: Any) -> Product:
    """Return the function of hidden states, weight and bias that the layer computes."""
    if isinstance(layer, OneDnnLinear) and _can_multiply(layer.weight):
        return onednn_product
    return linear


def _is_faster(layer: nn.Module) -> bool:
    # Subclasses, such as adapters, do more than multiply; so may hooks and replaced forwards.
    if type(layer) not in _CLASSES or "forward" in vars(layer) or _is_hooked(layer):
        return False
    # Quantised weights are tensors of another class, and parametrised ones no parameters.
    weight: Any = layer.weight
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
        return False
    if weight.dtype == torch.float32:
        return _can_multiply(weight) and weight.numel() >= LEAST_WEIGHTS and mkl_is_slow()
    return _can_multiply(weight)


def _can_multiply(weight: Tensor) -> bool:
    if weight.device.type != "cpu":
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _has_bfloat16())


@cache
def mkl_is_slow() -> bool:
    """Return whether torch's own float32 products are slower than oneDNN's on this processor."""
    # True only where it was measured: other processors keep torch's choice.
    there = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    amd = _CPU_INFO.is_file() and "AuthenticAMD" in _CPU_INFO.read_text()
    return bool(there and wide and amd)


@cache
def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _kinds(layers: Iterable[nn.Module]) -> list[list[Any]]:
    """Group layers by type, shape and dtype."""
    found: dict[Any, list[Any]] = {}
    for layer in layers:
        weight: Any = layer.weight
        kind = type(layer), weight.shape, weight.dtype, layer.bias is None
        found.setdefault(kind, []).append(layer)
    return list(found.values())


def _fuse_gelu(mlp: nn.Module) -> None:
    """Have the layer of a known MLP compute the activation, too."""
    names = GELU_MLPS.get(type(mlp).__name__)
    if names is None or not type(mlp).__module__.startswith("transformers.models."):
        return
    layer, act = (getattr(mlp, name, None) for name in names)
    kind = _gelu_of(act)
    if isinstance(layer, _OneDnnLayer) and kind is not None and not _is_hooked(act):
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
    """Compare products on a few rows, up to the rounding of sums; NaN must be NaN in both."""
    weight = layer.weight.t() if type(layer) is Conv1D else layer.weight
    rows_NI = torch.arange(n_rows * weight.shape[1], dtype=torch.float64).mul_(0.7).sin_()
    rows_NI = rows_NI.view(n_rows, -1).to(weight.dtype)
    expected = layer(rows_NI).double()
    try:
        found = onednn_product(rows_NI, weight, layer.bias).double()
    except RuntimeError:  # not on this processor
        return False
    scale = float(expected.abs().nan_to_num(0, 0, 0).max()) or 1.0
    atol = _TOLERANCE[weight.dtype] * scale
    return torch.allclose(found, expected, rtol=0, atol=atol, equal_nan=True)


def onednn_product(
    x: Tensor, weight_OI: Tensor, bias: Tensor | None, approximate: str | None = None
) -> Tensor:
    """Return x · weightᵀ + bias, shape … x O, then GELU of that kind if any; x has shape … x I."""
    given_NI = rows_NI = x.reshape(-1, x.shape[-1])
    n_rows = len(given_NI)
    # Without padding, oneDNN keeps new code for every number of rows: 436 MB over 200 batches.
    if missing := rows_to_pad(n_rows):
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
    return onednn_product(x, weight_OI, bias, approximate)


@_product_opaquely.register_fake
def _(x: Tensor, weight_OI: Tensor, bias: Tensor | None, approximate: str | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight_OI.shape[0])
