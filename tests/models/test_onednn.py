"""Products by oneDNN: the numbers of torch's own for every architecture, and layers left alone that
do more than a product, or for which it gives other numbers."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from helpers.architectures import ARCHITECTURES, build
from helpers.oracles import assert_true
from helpers.runs import LONGEST, NEEDS_COMPILER, random_rows, scores_by
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.forward import compiled_forwards, replaced_forward
from seqloss_cli.core.policies import BatchPolicy
from seqloss_cli.models import onednn
from seqloss_cli.models.onednn import (
    OneDnnConv1D,
    OneDnnLinear,
    fuse_activations,
    product_of,
    use_onednn,
)

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def _any_size_on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(onednn, "mkl_is_slow", lambda: True)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _is_changed(layer: nn.Module) -> bool:
    return isinstance(layer, OneDnnLinear | OneDnnConv1D)


# -- one layer --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    n_rows=st.integers(0, 150),
    wide=st.integers(1, 70),
    out=st.integers(1, 70),
    bias=st.booleans(),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_layer_gives_the_product_in_float64_rounded(
    n_rows: int, wide: int, out: int, bias: bool, transposed: bool, dtype: torch.dtype
) -> None:
    layer: Any = Conv1D(out, wide) if transposed else nn.Linear(wide, out, bias=bias)
    layer = layer.to(dtype).requires_grad_(False)
    if layer.bias is not None:
        layer.bias.copy_(_random(out))
    assert use_onednn(nn.Sequential(layer)) == 1
    x = _random(1, n_rows, wide).to(dtype)
    weight = layer.weight.double() if transposed else layer.weight.double().t()
    bias_O = 0.0 if layer.bias is None else layer.bias.double()
    size = x.double().abs() @ weight.abs() + 1.0
    epsilon = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    with torch.inference_mode():
        error = layer(x).double() - (x.double() @ weight + bias_O)
    assert error.shape == (1, n_rows, out)
    assert bool((error.abs() <= epsilon * size).all())


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_inputs_of_any_strides_and_by_name(kind: Any) -> None:
    layer = nn.Linear(8, 6) if kind is nn.Linear else Conv1D(6, 8)
    plain = copy.deepcopy(layer)
    assert use_onednn(nn.Sequential(layer)) == 1
    x = _random(4, 5, 2, 8)
    with torch.inference_mode():
        for each in (x, x.transpose(0, 2).contiguous(), x[::2, 1:], x[:1].expand(3, 5, 2, 8)):
            torch.testing.assert_close(layer(each), plain(each.contiguous()), rtol=1e-5, atol=1e-6)
        name = "input" if kind is nn.Linear else "x"
        torch.testing.assert_close(layer(**{name: x}), plain(x), rtol=1e-5, atol=1e-6)


def test_a_part_of_the_head_is_computed_as_the_layer_is() -> None:
    changed, plain = nn.Linear(8, 6), nn.Linear(8, 6)
    assert use_onednn(nn.Sequential(changed)) == 1
    assert product_of(plain) is nn.functional.linear
    assert product_of(changed) is not nn.functional.linear
    x = _random(5, 8)
    with torch.inference_mode():
        part = product_of(changed)(x, changed.weight[2:4], changed.bias[2:4])
        torch.testing.assert_close(part, changed(x)[:, 2:4])
        whole = nn.functional.linear(x, changed.weight, changed.bias)
        torch.testing.assert_close(part, whole[:, 2:4])


def test_a_copy_computes_with_its_own_weights() -> None:
    layer = nn.Linear(8, 6)
    use_onednn(nn.Sequential(layer))
    other = copy.deepcopy(layer)
    with torch.inference_mode():
        other.weight.zero_()
        assert torch.equal(other(_random(3, 8)), other.bias.expand(3, 6))
        assert not torch.equal(layer(_random(3, 8)), layer.bias.expand(3, 6))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_parametrised_weight_is_the_one_that_counts(kind: str) -> None:
    """As PEFT sets one for the time of a forward; it changes the class of the layer."""
    layer: Any = nn.Linear(8, 8) if kind == "linear" else Conv1D(8, 8)
    plain = copy.deepcopy(layer)
    use_onednn(nn.Sequential(layer))

    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    x = _random(3, 8)
    parametrize.register_parametrization(layer, "weight", Doubled())
    plain.weight.data.mul_(2)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-6)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert _is_changed(layer)


def test_gradients_and_other_dtypes_are_computed_as_before() -> None:
    layer, plain = nn.Linear(8, 6), nn.Linear(8, 6)
    plain.load_state_dict(layer.state_dict())
    use_onednn(nn.Sequential(layer))
    found, expected = _random(3, 8).requires_grad_(), _random(3, 8).requires_grad_()
    layer(found).sum().backward()
    plain(expected).sum().backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, expected.grad)
    with torch.inference_mode():
        x = _random(3, 8).double()
        assert torch.equal(layer.double()(x), plain.double()(x))


# -- rows -------------------------------------------------------------------------------------


def test_code_is_written_for_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps what it wrote: a long run would never get the memory of each number back."""
    rounded = [n + onednn.rows_to_pad(n) for n in range(5000)]
    assert all(n <= more < n + 64 for n, more in enumerate(rounded))
    assert len(set(rounded)) == 1 + 4 + (4992 - 64) // 64 + 1
    seen, operator = set[int](), torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn,
        "_linear_pointwise",
        lambda x, *more: seen.add(len(x)) or operator(x, *more),
    )
    layer = nn.Linear(8, 6)
    use_onednn(nn.Sequential(layer))
    with torch.inference_mode():
        for n_rows in range(1, 200):
            assert layer(_random(n_rows, 8)).shape == (n_rows, 6)
    assert seen == {16, 32, 48, 64, 128, 192, 256}


def test_packed_rows_are_rounded_up_before_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each layer would copy what goes into it."""
    model, n_rows = build("llama"), list[int]()
    plain = build("llama")
    use_onednn(model)
    backend, other = TorchBackend(model, LONGEST), TorchBackend(plain, LONGEST)
    assert backend.path == other.path == "packed"
    layer = model.get_decoder().layers[0].mlp.up_proj
    layer.register_forward_pre_hook(lambda _, inputs: n_rows.append(inputs[0].shape[1]))
    rows = random_rows(8, 7)
    found = scores_by(backend, rows, BatchPolicy())
    assert n_rows
    assert all(onednn.rows_to_pad(n) == 0 for n in n_rows)
    assert sum(n_rows) > sum(row.n_tokens - 1 for row in rows)
    for a, b in zip(found, scores_by(other, rows, BatchPolicy()), strict=True):
        np.testing.assert_allclose(a.losses, b.losses, rtol=0, atol=1e-4)


# -- what is left as it is --------------------------------------------------------------------


class _Adapted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class _Packed(torch.Tensor):
    """As quantisation libraries make of a weight."""


def test_layers_that_do_more_and_other_dtypes_are_left() -> None:
    quantised, wrapped, hooked = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 6)
    quantised.weight = nn.Parameter(_Packed(quantised.weight.data), requires_grad=False)
    wrapped.forward = lambda x: x  # type: ignore[method-assign] # as accelerate does it
    hooked.register_forward_hook(lambda *_: None)
    left = [_Adapted(8, 6), nn.Linear(8, 6).double(), nn.Linear(8, 6).half(), nn.Embedding(8, 6)]
    left += [quantised, wrapped, hooked]
    assert use_onednn(nn.Sequential(*left)) == 0
    assert not any(_is_changed(layer) for layer in left)


def test_float32_is_left_where_mkl_is_fast_and_where_weights_are_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onednn, "LEAST_WEIGHTS", 49)
    small, large = nn.Linear(8, 6), nn.Linear(7, 7)
    assert use_onednn(nn.Sequential(small, large)) == 1
    assert _is_changed(large)
    monkeypatch.setattr(onednn, "mkl_is_slow", lambda: False)
    assert use_onednn(nn.Sequential(nn.Linear(7, 7))) == 0


def test_a_layer_for_which_other_numbers_come_out_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    right = onednn.onednn_product

    def wrong(x: Any, weight: Any, *others: Any) -> Any:
        found = right(x, weight, *others)
        return found * 1.001 if len(weight) == 6 else found

    monkeypatch.setattr(onednn, "onednn_product", wrong)
    bad, good = nn.Linear(8, 6), nn.Linear(8, 7)
    assert use_onednn(nn.Sequential(bad, good)) == 1
    assert not _is_changed(bad)
    assert _is_changed(good)


def test_a_processor_that_refuses_leaves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Any:
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(onednn, "onednn_product", refuses)
    assert use_onednn(nn.Sequential(nn.Linear(8, 6))) == 0


# -- activations ------------------------------------------------------------------------------


def _mlps(model: Any) -> list[Any]:
    names = onednn.GELU_MLPS
    return [module for module in model.modules() if type(module).__name__ in names]


PLACES = {
    "GPT2MLP": ("gpt2", "GPT2Config"),
    "GPTBigCodeMLP": ("gpt_bigcode", "GPTBigCodeConfig"),
    "GPTJMLP": ("gptj", "GPTJConfig"),
    "GPTNeoMLP": ("gpt_neo", "GPTNeoConfig"),
    "GPTNeoXMLP": ("gpt_neox", "GPTNeoXConfig"),
    "PhiMLP": ("phi", "PhiConfig"),
}


def _known_mlp(name: str) -> Any:
    folder, config_name = PLACES[name]
    config = getattr(import_module(f"transformers.models.{folder}"), config_name)(
        hidden_size=16, intermediate_size=24, num_attention_heads=4
    )
    made = getattr(import_module(f"transformers.models.{folder}.modeling_{folder}"), name)
    sized = "intermediate_size" in signature(made).parameters
    return made(*([24] if sized else []), config=config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(onednn.GELU_MLPS))
def test_the_known_mlps_compute_what_they_did(name: str, dtype: torch.dtype) -> None:
    """Over values that a GELU bends, and with gradients, too."""
    mlp = _known_mlp(name).to(dtype)
    fuse_activations(mlp)
    plain = copy.deepcopy(mlp)
    assert use_onednn(mlp) == 2
    assert type(getattr(mlp, onednn.GELU_MLPS[name][1])) is nn.Identity
    x = 4 * _random(1, 40, 16).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(mlp(x), plain(x), rtol=tolerance, atol=tolerance)
    with torch.inference_mode():
        torch.testing.assert_close(mlp(x), plain(x), rtol=tolerance, atol=tolerance)


def test_other_mlps_keep_their_activation() -> None:
    class GPT2MLP(nn.Module):
        """Of somebody else."""

        def __init__(self) -> None:
            super().__init__()
            self.c_fc, self.act = nn.Linear(8, 6), nn.GELU()

    mlp = GPT2MLP()
    assert use_onednn(mlp) == 1
    assert type(mlp.act) is nn.GELU


# -- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_keeps_its_numbers(name: str) -> None:
    model, rows = build(name), random_rows(3, 8)
    fuse_activations(model)
    before = scores_by(TorchBackend(model, LONGEST), rows, BatchPolicy())
    assert use_onednn(model) > 0
    assert all(type(mlp.act) is nn.Identity for mlp in _mlps(model))
    after = scores_by(TorchBackend(model, LONGEST), rows, BatchPolicy())
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a.losses, b.losses, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_all_layers_share_one_compiled_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else torch gives up after eight of them, and runs the others as they are."""
    n_graphs, compile_ = 0, torch.compile

    def count(graph: Any, _: Any) -> Any:
        nonlocal n_graphs
        n_graphs += 1
        return graph

    monkeypatch.setattr(torch, "compile", lambda f, **given: compile_(f, backend=count, **given))
    torch._dynamo.reset()
    model = build(name, **{"n_layer" if name == "gpt2" else "num_hidden_layers": 10})
    assert use_onednn(model) > 0
    with torch.inference_mode(), ExitStack() as stack:
        for layer, forward in compiled_forwards(model.get_decoder()):
            stack.enter_context(replaced_forward(layer, forward))
        for n_tokens in (5, 9, 17):
            model.get_decoder()(input_ids=torch.arange(n_tokens)[None], use_cache=False)
    assert n_graphs == 1


@NEEDS_COMPILER
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_compiled_layers_call_it_for_any_number_of_rows(name: str) -> None:
    model = build(name)
    exact = copy.deepcopy(model).double()
    use_onednn(model)
    backend = TorchBackend(model, LONGEST)
    backend.compile()
    for seed in (4, 5):
        for score in scores_by(backend, random_rows(seed, 6), BatchPolicy()):
            assert_true(exact, score)


def test_common_beginnings_are_shared_as_before() -> None:
    model = build("gpt2")
    exact = copy.deepcopy(model).double()
    use_onednn(model)
    backend = TorchBackend(model, LONGEST, share_prefix=True)
    assert backend.capabilities.longest_shared
    rows = [row for row in random_rows(6, 4) for _ in range(3)]
    for score in scores_by(backend, rows, BatchPolicy(share_prefix=True)):
        assert_true(exact, score)
