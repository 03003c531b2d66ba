"""Attention of rows that stand one after another without padding: each sees itself, causally.

transformers calls attention by a name; the function of this name finds the rows in a context that
is set around the forward. It raises where a model wants more than causality (soft caps, sinks,
biases), and such a model is fed padded rows instead.

Shape letters: N tokens of all rows, H heads, D their size; L tokens of each of R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from itertools import groupby
from math import isclose
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "seqloss_packed"
"""The name of the function in a model's configuration."""
_NEUTRAL = {
    *("dropout", "position_ids", "sliding_window", "use_cache", "cache_position", "training"),
    *("output_attentions", "output_hidden_states", "return_dict", "logits_to_keep"),
}
"""Arguments that change nothing here: rows are no longer than a window that slides. Any other one
(soft caps, sinks, biases, blocks of keys) may change the attention."""


@dataclass
class Packing:
    """The places of the rows among the N tokens."""

    lengths: Sequence[int]
    """Tokens of each row, which add up to N."""
    n_calls: int = 0
    """Calls of attention so far: none by a model that does not look it up by name."""
    _edges: Tensor | None = None

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Rows of one length that are neighbours: their first token, R and L. One kernel each."""
        found, start = [], 0
        for length, rows in groupby(self.lengths):
            n_rows = len(list(rows))
            found.append((start, n_rows, length))
            start += n_rows * length
        return found

    def edges(self, device: torch.device) -> Tensor:
        """Return the first token of each row, and N: shape rows + 1, int32."""
        # Copied to the device once, for all layers.
        if self._edges is None:
            edges = torch.tensor([0, *self.lengths]).cumsum(0, dtype=torch.int32)
            self._edges = edges.to(device)
        return self._edges


_current: ContextVar[Packing] = ContextVar("packing")


@contextmanager
def packed(lengths: Sequence[int]) -> Iterator[Packing]:
    """Have attention called by the name `PACKED` be that of rows of these lengths, for a while."""
    packing = Packing(lengths)
    token = _current.set(packing)
    try:
        yield packing
    finally:
        _current.reset(token)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Query, key and value 1 x H x N x D (key and value may have fewer heads); 1 x N x H x D."""
    asked = [n for n, value in others.items() if value is not None and n not in _NEUTRAL]
    if attention_mask is not None or is_causal is False or asked:
        raise ValueError(f"attention with {asked or 'a mask'} cannot be packed")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Compiled code calls an operator that the compiler does not look into: rows differ at each
    # call, and it would compile again for each.
    attend = _attend_opaquely if torch.compiler.is_compiling() else _attend
    return attend(query, key, value, float(scale)), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    packing = _current.get()
    packing.n_calls += 1
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _attend_varlen(query, key, value, scale, packing)
    grouped = query.shape[1] != key.shape[1]
    out_NHD = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    for start, n_rows, length in packing.runs:
        span = slice(start, start + n_rows * length)
        q, k, v = (
            x[0, :, span]
            .view(x.shape[1], n_rows, length, x.shape[3])
            .transpose(0, 1)  # R x H x L x D
            for x in (query, key, value)
        )
        # No mask, or the kernel would leave its fast path for causal attention.
        seen_RHLD = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
        out_NHD[span].view(n_rows, length, *out_NHD.shape[1:]).copy_(seen_RHLD.transpose(1, 2))
    return out_NHD[None]


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, scale: float, packing: Packing
) -> Tensor:
    """Attend in all rows by one flash kernel, which exists for half precision on a GPU only."""
    from torch.nn.attention.varlen import varlen_attn

    edges, longest = packing.edges(query.device), max(packing.lengths)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    n_sharing, known = q.shape[1] // k.shape[1], _options_of(varlen_attn)
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0)}
    if "scale" not in known:  # torch 2.10
        options = {"is_causal": True}
        if not isclose(scale, query.shape[-1] ** -0.5, rel_tol=1e-6):
            raise ValueError("attention with a scale of its own cannot be packed by this torch")
    if n_sharing > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif n_sharing > 1:  # before torch 2.13 it wants as many heads of keys as of queries
        k, v = (x.repeat_interleave(n_sharing, dim=1) for x in (k, v))
    if "num_splits" in known:
        options["num_splits"] = 1  # or a row's rounding depends on the longest row beside it
    seen_NHD = varlen_attn(q, k, v, edges, edges, longest, longest, **options)
    assert isinstance(seen_NHD, Tensor)
    return seen_NHD[None]


@cache
def _options_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters, which differ between versions of torch."""
    return frozenset(signature(function).parameters)


@torch.library.custom_op("seqloss::attend", mutates_args=())
def _attend_opaquely(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return _attend(query, key, value, scale)


@_attend_opaquely.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


AttentionInterface.register(PACKED, _attention)
