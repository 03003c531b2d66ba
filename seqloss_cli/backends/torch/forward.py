"""Run a torch model: the ids of a batch in, the scores of its targets out, by a given path.

Shape letters: B rows, N their tokens, T those of the longest, M scored positions, R of them at a
time, D hidden, V vocabulary; in masks S tokens of a row's suffixes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqloss_cli.backends.torch.attention import PACKED, packed
from seqloss_cli.backends.torch.head import LazyLogits, score_logits
from seqloss_cli.backends.torch.quantities import QUANTITIES
from seqloss_cli.core.backend import Batch, Capabilities, Requested, Suffixes, TokenScores, padded
from seqloss_cli.core.records import Ints
from seqloss_cli.models.onednn import OneDnnLinear, needs_row_padding, product_of, rows_to_pad

RunPath = Literal["packed", "batched", "single", "plain"]
_HALF = (torch.float16, torch.bfloat16)
PATHS: tuple[RunPath, ...] = ("packed", "batched", "single", "plain")


@dataclass(frozen=True, slots=True)
class _BackboneOutput:
    """The hidden states of a backbone in the place of all that it returns."""

    last_hidden_state: Tensor

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        # Heads also look for caches, attentions, router logits …: all are absent, not missing.
        if name.startswith("__"):
            raise AttributeError(name)
        return


def cache_keyword(backbone: nn.Module) -> str:
    """Return the name under which a model takes its cache: transformers 5.24 renamed it, and warns
    of the other on stderr until it is gone."""
    taken = inspect.signature(backbone.forward).parameters
    return "cache" if "cache" in taken and "past_key_values" not in taken else "past_key_values"


class ModelForward:
    """A transformers causal LM and the way it is run."""

    n_parts = 1
    """Processes that have a part of the model each."""

    def __init__(self, model: Any, longest_packed: int) -> None:
        """Rows longer than `longest_packed` tokens are padded on the packed path, too."""
        self.model, self.longest_packed = model, longest_packed
        self.block_width: int | None = None
        """Ids of a block of the vocabulary; None leaves it to the head."""
        self.compiled: Sequence[tuple[nn.Module, Callable[..., Any]]] = ()
        """Layers of the backbone with compiled forwards, used for packed rows."""
        rotary = [each for each in model.modules() if hasattr(each, "max_seq_len_cached")]
        self._rotary = [(x, dict(vars(x)), dict(x.named_buffers(recurse=False))) for x in rotary]
        """Rotary embeddings, each with its attributes and buffers before any forward."""
        self.use_path("plain", None)

    def use_path(self, path: RunPath, backbone: Any, in_blocks: bool = False) -> None:
        """Run the model by this path from now on. `backbone` is the module that turns ids into
        hidden states. With `in_blocks` the head is run for a block of the vocabulary at a time."""
        self.path, self.backbone, self.in_blocks = path, backbone, in_blocks
        self._vocab_size: int | None = None  # as wide as the first logits turn out to be
        self._rounds_rows = backbone is not None and needs_row_padding(backbone)

    @property
    def capabilities(self) -> Capabilities:
        """The batches that this path takes, none of them with suffixes, and all quantities."""
        together = self.path in ("packed", "batched")
        longest = self.longest_packed if self.path == "packed" else 0
        return Capabilities(not together, longest, quantities=frozenset(QUANTITIES))

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score the M targets of a batch."""
        logits, targets_M = self.logits(batch), self.on_device(batch.targets)
        return score_logits(logits, targets_M, requested, self.block_width)

    def vocab_size(self, batch: Batch) -> int:
        """Return how many logits the model has, which a batch shows."""
        return self.logits(batch).vocab_size

    def logits(self, batch: Batch) -> LazyLogits:
        """Run the backbone on a batch; the head runs when the logits are asked for."""
        assert len(batch.lengths) == 1 or not self.capabilities.one_row_per_batch
        self._forget_lengths()
        if self.path == "plain":
            ids_1N = self.on_device(batch.input_ids)[None]
            logits_NV = self.model(input_ids=ids_1N, use_cache=False).logits[0]
            logits_MV = logits_NV[self.on_device(batch.source_positions)]
            return LazyLogits(lambda rows, _: logits_MV[rows], logits_MV.shape[1], False)
        hidden_MD = self._hidden(batch)
        if self._vocab_size is None:
            self._vocab_size = self._width(hidden_MD[:1])
        return LazyLogits(
            lambda rows, ids: self._logits_of(hidden_MD[rows], ids),
            self._vocab_size,
            self.in_blocks,
        )

    def _forget_lengths(self) -> None:
        """Have rotary embeddings know nothing of the rows before."""
        # Dynamic ones keep the factors of the longest row so far for each that comes after it and
        # is beyond the original length: losses would depend on the order of rows.
        for module, attributes, buffers in self._rotary:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.update(buffers)

    def _width(self, hidden_1D: Tensor) -> int:
        """Return the number of logits that the head gives."""
        # One for each row of its matrix, where it is run in blocks; were it not so, the last block
        # would have another width, which is an error.
        if self.in_blocks:
            return int(self.model.get_output_embeddings().weight.shape[0])
        return int(self._logits_of(hidden_1D).shape[1])

    def _hidden(self, batch: Batch) -> Tensor:
        """Compute the hidden states that predict the targets, M x D."""
        packs = self.path == "packed" and batch.lengths.max() <= self.longest_packed
        if packs and not batch.suffixes:
            return self._packed(batch)[self.on_device(batch.source_positions)]
        return self._padded(batch)[self.on_device(_sources_in_padded(batch))]

    def _packed(self, batch: Batch) -> Tensor:
        """Compute all hidden states, N x D, without padding but for a row at the end where N is
        rounded up."""
        lengths, ids_N = batch.lengths.tolist(), batch.input_ids
        positions_N = np.concatenate([np.arange(length) for length in lengths])
        if self._rounds_rows and (missing := rows_to_pad(len(ids_N))):
            lengths = [*lengths, missing]
            ids_N, positions_N = (np.pad(x_N, (0, missing)) for x_N in (ids_N, positions_N))
        with self._attending_packed(), ExitStack() as stack, packed(lengths) as packing:
            # Not for good: forwards with caches or masks are other code, and would be compiled
            # again.
            for layer, forward in self.compiled:
                stack.enter_context(replaced_forward(layer, forward))
            # Rows are isolated only where positions restart, no mask is given and no cache is used;
            # otherwise losses are wrong by whole nats, without a warning.
            hidden_1ND: Tensor = self.backbone(
                input_ids=self.on_device(ids_N)[None],
                position_ids=self.on_device(positions_N)[None],
                use_cache=False,
            )[0]
        if not packing.n_calls:
            raise ValueError("it does not look attention up by name")
        return hidden_1ND[0]

    def _padded(self, batch: Batch) -> Tensor:
        """Compute the hidden states of all B T positions, padding on the right, then those of the
        suffixes, D each."""
        assert self.backbone is not None
        width = int(batch.lengths.max())
        rows = np.split(batch.input_ids, np.cumsum(batch.lengths)[:-1])
        ids_BT = self.on_device(padded(rows, width))
        if not batch.suffixes:
            # On the right padding needs no mask: causal attention never sees it, and stays on the
            # fast path that a mask would leave. No cache: some take padding for tokens.
            hidden_BTD: Tensor = self.backbone(input_ids=ids_BT, use_cache=False)[0]
            return hidden_BTD.flatten(0, 1)
        from transformers import DynamicCache

        cache = DynamicCache()
        kept = {cache_keyword(self.backbone): cache}
        hidden = [self.backbone(input_ids=ids_BT, use_cache=True, **kept)[0]]
        lengths_B = self.on_device(batch.lengths)
        for suffixes in batch.suffixes:
            hidden.append(
                self.backbone(
                    input_ids=self.on_device(suffixes.input_ids),
                    position_ids=self.on_device(suffixes.position_ids),
                    attention_mask=self._mask(lengths_B, width, suffixes),
                    use_cache=True,
                    **kept,
                )[0]
            )
            # The prefixes' keys stay; a cache that was repeated for each suffix would copy them.
            cache.crop(-suffixes.input_ids.shape[1])
        return torch.cat([hidden_BRD.flatten(0, 1) for hidden_BRD in hidden])

    @contextmanager
    def _attending_packed(self) -> Iterator[None]:
        """Have the model call our attention for a while; it is left as it was found."""
        config = self.model.config.get_text_config()
        own = config._attn_implementation
        self.model.set_attn_implementation(PACKED)
        try:
            yield
        finally:
            self.model.set_attn_implementation(own)

    def _mask(self, lengths_B: Tensor, width: int, suffixes: Suffixes) -> Tensor:
        """Make a mask B x 1 x S x (T + S), 0 where a token of a suffix sees: the prefix, and what
        comes before it in its own suffix."""
        numbers_BS = self.on_device(suffixes.numbers)
        n_rows, n_tokens = numbers_BS.shape
        device = lengths_B.device
        # Padding sees the prefix, too: an empty row of a mask would make its softmax NaN.
        prefix_BT = torch.arange(width, device=device) < lengths_B[:, None]
        same_BSS = numbers_BS[:, :, None] == numbers_BS[:, None, :]
        own_BSS = same_BSS & (numbers_BS >= 0)[:, None, :]
        own_BSS &= torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=device).tril()
        sees = torch.cat([prefix_BT[:, None].expand(n_rows, n_tokens, width), own_BSS], dim=2)
        mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=device)
        return mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)[:, None]

    def _logits_of(self, hidden_RD: Tensor, ids: slice | None = None) -> Tensor:
        """Run the model's own forward with its backbone replaced: R x V, or R x B of some ids."""
        # Not the output layer alone: soft caps, scales and biases may stand behind it (Gemma 2,
        # Cohere, Granite, Falcon-H1), and losses without them are off by tenths of a nat.
        assert self.backbone is not None
        output = _BackboneOutput(hidden_RD[None])
        with replaced_forward(self.backbone, lambda *args, **kwargs: output), self._only(ids):
            ids_1R = torch.zeros(1, len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
            logits: Tensor = self.model(input_ids=ids_1R, use_cache=False).logits[0]
        if ids is not None and logits.shape[1] != ids.stop - ids.start:
            raise ValueError("the head computes other words than its output layer was asked for")
        return logits

    def _only(self, ids: slice | None) -> AbstractContextManager[None]:
        """Have the output layer compute the logits of some ids only, for a while."""
        if ids is None:
            return nullcontext()
        layer = self.model.get_output_embeddings()
        weight, bias = self._rows_of_head(ids)
        # Half-precision logits carry an error of about 0.03: a GPU can leave them unrounded.
        on_gpu = weight.is_cuda and weight.dtype in _HALF
        product = _float32_product if on_gpu else product_of(layer)
        return replaced_forward(layer, lambda hidden: product(hidden, weight, bias))

    def _rows_of_head(self, ids: slice) -> tuple[Tensor, Tensor | None]:
        """Return the weights, B x D, and biases, B, of the output layer for some ids."""
        layer = self.model.get_output_embeddings()
        return layer.weight[ids], None if layer.bias is None else layer.bias[ids]

    def on_device(self, array: Ints) -> Tensor:
        """Copy an array to the device of the model; the shape stays."""
        tensor, device = torch.from_numpy(array), self.model.device
        if device.type == "cuda":
            # Pinned, so that the copy does not wait for the work before it.
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)


def _sources_in_padded(batch: Batch) -> Ints:
    """Return where the M hidden states of `batch.source_positions` are once rows are padded."""
    n_rows, n_tokens, width = len(batch.lengths), batch.input_ids.size, int(batch.lengths.max())
    padding = width - batch.lengths
    before_N = np.repeat(np.cumsum(padding) - padding, batch.lengths)  # padding of earlier rows
    moved_by = np.append(before_N, n_rows * width - n_tokens)
    places: Ints = batch.source_positions + moved_by[np.minimum(batch.source_positions, n_tokens)]
    return places


def _float32_product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply half-precision factors as `linear` does, rounding to float32 only.

    R x B of R x D and B x D. CPUs have no such product.
    """
    product = torch.mm(hidden.flatten(0, -2), weight.t(), out_dtype=torch.float32)
    product = product.view(*hidden.shape[:-1], len(weight))
    return product if bias is None else product + bias


def can_run_in_blocks(model: Any) -> bool:
    """Return whether the output layer is a plain matrix, of which some rows can be taken."""
    layer = model.get_output_embeddings()
    if type(layer) not in (torch.nn.Linear, OneDnnLinear):
        return False
    # Of processes that share a model each may have some columns of all rows.
    return all(each.is_shard(0) for each in getattr(layer.weight, "placements", ()))


def possible_backbones(model: Any) -> list[Any]:
    """Return the modules that may turn ids into hidden states; trying finds the one that does."""
    found = []
    for candidate in (model.get_decoder(), model.base_model):
        if candidate is not None and candidate is not model and candidate not in found:
            found.append(candidate)
    return found


def compiled_forwards(backbone: nn.Module) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """Return the layers of a backbone, each with a compiled forward: one code for all of a class.

    Raises ValueError when the backbone has no list of layers. A failure of the compiler itself
    shows at the first forward.
    """
    layers = _layers_of(backbone)
    forwards: dict[type, Any] = {
        kind: torch.compile(kind.forward, dynamic=True) for kind in {type(x) for x in layers}
    }
    return [(layer, partial(forwards[type(layer)], layer)) for layer in layers]


def _layers_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the layers that hidden states go through in turn: the longest list of modules."""
    lists = [list(m) for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ValueError(f"{type(backbone).__name__} has no list of layers")
    return max(lists, key=len)


@contextmanager
def replaced_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Have calls of the module call `forward` for a while."""
    replaced = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced
