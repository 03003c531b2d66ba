"""Products by oneDNN: the numbers of torch's own for every architecture, and layers left alone that
do more than a product, or for which it gives other numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architectures import ARCHITECTURES, build
from test_engine_paths import LONGEST, NEEDS_COMPILER, assert_true, random_rows, scores_by
from torch import nn
from transformers.pytorch_utils import Conv1D

from seqloss_cli import products
from seqloss_cli.config import BatchPolicy
from seqloss_cli.engine import Engine
from seqloss_cli.products import product_of, use_onednn

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch was built without oneDNN"
)


@pytest.fixture(autouse=True)
def _any_size_on_any_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(products, "_LEAST_WEIGHTS", 0)
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Mlp(nn.Module):
    def __init__(self, act: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.c_fc, self.act, self.c_proj = nn.Linear(width, 12), act, nn.Linear(12, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c_proj(self.act(self.c_fc(x)))
        return out


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# -- one layer --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    n_rows=st.integers(1, 40),
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
    used = use_onednn(nn.Sequential(layer))
    assert used == (dtype == torch.float32 or layer.bias is not None)
    x = _random(1, n_rows, wide).to(dtype)
    weight = layer.weight.double() if transposed else layer.weight.double().t()
    terms = [x.double() @ weight] + ([] if layer.bias is None else [layer.bias.double()])
    size = x.double().abs() @ weight.abs() + 1.0
    epsilon = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    with torch.inference_mode():
        error = layer(x).double() - sum(terms)
    assert bool((error.abs() <= epsilon * size).all())


def test_a_part_of_the_head_is_computed_as_the_layer_is() -> None:
    changed, plain = nn.Linear(8, 6), nn.Linear(8, 6)
    assert use_onednn(nn.Sequential(changed)) == 1
    assert product_of(plain) is nn.functional.linear
    assert product_of(changed) is not nn.functional.linear
    x = _random(5, 8)
    with torch.inference_mode():
        part = product_of(changed)(x, changed.weight[2:4], changed.bias[2:4])
        torch.testing.assert_close(part, changed(x)[:, 2:4])
        torch.testing.assert_close(
            part, nn.functional.linear(x, changed.weight, changed.bias)[:, 2:4]
        )


def test_a_copy_computes_with_its_own_weights() -> None:
    layer = nn.Linear(8, 6)
    use_onednn(nn.Sequential(layer))
    other = copy.deepcopy(layer)
    with torch.inference_mode():
        other.weight.zero_()
        assert torch.equal(other(_random(3, 8)), other.bias.expand(3, 6))
        assert not torch.equal(layer(_random(3, 8)), layer.bias.expand(3, 6))


# -- what is left as it is --------------------------------------------------------------------


class _Adapted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_layers_that_do_more_and_other_dtypes_are_left() -> None:
    quantised = nn.Linear(8, 6)
    quantised.weight = nn.Parameter(_Packed(quantised.weight.data), requires_grad=False)
    left = [_Adapted(8, 6), nn.Linear(8, 6).double(), nn.Linear(8, 6).half(), quantised]
    left += [nn.Linear(8, 6, bias=False).bfloat16(), nn.Embedding(8, 6)]
    assert use_onednn(nn.Sequential(*left)) == 0
    assert not any("forward" in vars(layer) for layer in left)


class _Packed(torch.Tensor):
    """As quantisation libraries make of a weight."""


def test_float32_is_left_where_mkl_is_fast_and_where_weights_are_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_LEAST_WEIGHTS", 49)
    small, large = nn.Linear(8, 6), nn.Linear(7, 7)
    assert use_onednn(nn.Sequential(small, large)) == 1
    assert "forward" in vars(large)
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: False)
    assert use_onednn(nn.Sequential(nn.Linear(7, 7))) == 0


def test_a_layer_for_which_other_numbers_come_out_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    right = products._product

    def wrong(x: Any, weight: Any, *others: Any) -> Any:
        found = right(x, weight, *others)
        return found * 1.001 if len(weight) == 6 else found

    monkeypatch.setattr(products, "_product", wrong)
    bad, good = nn.Linear(8, 6), nn.Linear(8, 7)
    assert use_onednn(nn.Sequential(bad, good)) == 1
    assert "forward" not in vars(bad)
    assert "forward" in vars(good)


def test_a_processor_that_refuses_leaves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> Any:
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(products, "_product", refuses)
    assert use_onednn(nn.Sequential(nn.Linear(8, 6))) == 0


# -- activations ------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ReLU()])
def test_an_activation_is_computed_by_the_layer_before_it(act: nn.Module) -> None:
    mlp = _Mlp(act).requires_grad_(False)
    x = 3 * _random(1, 9, 8)
    before = mlp(x)
    assert use_onednn(mlp) == 2
    assert type(mlp.act) is nn.Identity
    torch.testing.assert_close(mlp(x), before, rtol=1e-5, atol=1e-6)


def test_an_activation_that_is_not_applied_at_once_stays() -> None:
    class Late(_Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.c_proj(self.c_fc(x)))

    class Wants(_Mlp):
        def forward(self, x: torch.Tensor, more: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x) + more

    for mlp in (Late(nn.ReLU()), Wants(nn.ReLU()), _Mlp(nn.Tanh())):
        acts, x = mlp.act, _random(1, 9, 8)
        more = [torch.ones(())] if isinstance(mlp, Wants) else []
        before = mlp(x, *more)
        assert use_onednn(mlp) == 2
        assert mlp.act is acts
        with torch.inference_mode():
            torch.testing.assert_close(mlp(x, *more), before, rtol=1e-5, atol=1e-6)


# -- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_keeps_its_numbers(name: str) -> None:
    model, rows = build(name), random_rows(3, 8)
    before = scores_by(Engine(model, LONGEST), rows, BatchPolicy())
    assert use_onednn(model) > 0
    after = scores_by(Engine(model, LONGEST), rows, BatchPolicy())
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a.losses, b.losses, rtol=0, atol=1e-4)


@NEEDS_COMPILER
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_compiled_layers_call_it_for_any_number_of_rows(name: str) -> None:
    model = build(name)
    exact = copy.deepcopy(model).double()
    use_onednn(model)
    engine = Engine(model, LONGEST)
    engine.compile()
    for seed in (4, 5):
        for score in scores_by(engine, random_rows(seed, 6), BatchPolicy()):
            assert_true(exact, score)


def test_common_beginnings_are_shared_as_before() -> None:
    model = build("gpt2")
    exact = copy.deepcopy(model).double()
    use_onednn(model)
    engine = Engine(model, LONGEST, share_prefix=True)
    assert engine.abilities.longest_shared
    rows = [row for row in random_rows(6, 4) for _ in range(3)]
    for score in scores_by(engine, rows, BatchPolicy(share_prefix=True)):
        assert_true(exact, score)
