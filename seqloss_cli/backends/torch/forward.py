"""Run a torch model: the ids of a batch in, the scores of its targets out, by a given path.

Shape letters: B rows, N their tokens, T those of the longest, M scored positions, R of them at a
time, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqloss_cli.backends.torch.attention import PACKED, packed
from seqloss_cli.backends.torch.head import score_in_blocks, score_positions
from seqloss_cli.backends.torch.softmax import QUANTITIES
from seqloss_cli.core.backend import Batch, Capabilities, Requested, Suffixes, TokenScores, padded
from seqloss_cli.core.records import Ints
from seqloss_cli.models.onednn import OneDnnLinear, needs_row_padding, product_of, rows_to_pad

RunPath = Literal["packed", "batched", "single", "plain"]
_HALF = (torch.float16, torch.bfloat16)
PATHS: tuple[RunPath, ...] = ("packed", "batched", "single", "plain")


@dataclass(frozen=True, slots=True)
class _BackboneOutput:
    """What a backbone returns, as far as a head looks at it: hidden states, nothing else."""

    last_hidden_state: Tensor

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return


@dataclass(frozen=True, slots=True)
class Logits:
    """The logits of a batch's M targets, computed when they are asked for."""

    of: Callable[[slice, slice | None], Tensor]
    """For a slice of the targets, R x B: of a slice of the vocabulary, or of all of it."""
    vocabulary: int
    in_blocks: bool
    """Whether a part of the vocabulary can be asked for."""


class ModelForward:
    """A transformers causal LM and the way it is run."""

    def __init__(self, model: Any, longest_packed: int) -> None:
        """Longer rows than `longest_packed` are padded on the packed path, too."""
        self.model, self.longest_packed = model, longest_packed
        self.block_width: int | None = None
        """Words of a block; None leaves it to the head."""
        self.compiled: CompiledLayers | None = None
        """The backbone's, used for packed rows."""
        self.use_path("plain", None)

    def use_path(self, path: RunPath, backbone: Any, in_blocks: bool = False) -> None:
        """`backbone` is the module that turns ids into hidden states. `in_blocks`: the head is run
        for a block of the vocabulary at a time, where that is enough."""
        self.path, self.backbone, self.in_blocks = path, backbone, in_blocks
        self._vocabulary: int | None = None  # as wide as the first logits turn out to be
        self._rounds_rows = backbone is not None and needs_row_padding(backbone)

    @property
    def capabilities(self) -> Capabilities:
        """What batches are taken by this path; nothing is said of sharing."""
        together = self.path in ("packed", "batched")
        longest = self.longest_packed if self.path == "packed" else 0
        return Capabilities(not together, longest, quantities=QUANTITIES)

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        logits, targets_M = self.logits(batch), self.on_device(batch.targets)
        if logits.in_blocks:
            return score_in_blocks(
                logits.of, targets_M, logits.vocabulary, requested, self.block_width
            )
        return score_positions(
            lambda rows: logits.of(rows, None), targets_M, logits.vocabulary, requested
        )

    def logits(self, batch: Batch) -> Logits:
        """Of all targets; the backbone is run at once, the head when it is asked for something."""
        assert len(batch.lengths) == 1 or not self.capabilities.one_row
        if self.path == "plain":
            ids_1N = self.on_device(batch.input_ids)[None]
            logits_NV = self.model(input_ids=ids_1N, use_cache=False).logits[0]
            logits_MV = logits_NV[self.on_device(batch.sources)]
            return Logits(lambda rows, _: logits_MV[rows], logits_MV.shape[1], False)
        hidden_MD = self._hidden(batch)
        if self._vocabulary is None:
            self._vocabulary = self._width(hidden_MD[:1])
        return Logits(
            lambda rows, words: self._logits_of(hidden_MD[rows], words),
            self._vocabulary,
            self.in_blocks,
        )

    def _width(self, hidden_1D: Tensor) -> int:
        """How many logits there are. A head that is run in blocks has one for each row of its
        matrix, or its last block would be found out."""
        if self.in_blocks:
            return int(self.model.get_output_embeddings().weight.shape[0])
        return int(self._logits_of(hidden_1D).shape[1])

    def _hidden(self, batch: Batch) -> Tensor:
        """The hidden states that predict the targets, M x D."""
        packs = self.path == "packed" and batch.lengths.max() <= self.longest_packed
        if packs and not batch.suffixes:
            return self._packed(batch)[self.on_device(batch.sources)]
        return self._padded(batch)[self.on_device(_sources_in_padded(batch))]

    def _packed(self, batch: Batch) -> Tensor:
        """Of all tokens, N x D, without padding but for a row at the end where N is rounded up."""
        lengths, ids_N = batch.lengths.tolist(), batch.input_ids
        positions_N = np.concatenate([np.arange(length) for length in lengths])
        if self._rounds_rows and (missing := rows_to_pad(len(ids_N))):
            lengths = [*lengths, missing]
            ids_N, positions_N = (np.pad(x_N, (0, missing)) for x_N in (ids_N, positions_N))
        compiled = self.compiled.on() if self.compiled else nullcontext()
        with self._attending_packed(), compiled, packed(lengths) as packing:
            hidden_1ND: Tensor = self.backbone(
                input_ids=self.on_device(ids_N)[None],
                position_ids=self.on_device(positions_N)[None],
                use_cache=False,
            )[0]
        if not packing.n_calls:
            raise ValueError("it does not look attention up by name")
        return hidden_1ND[0]

    def _padded(self, batch: Batch) -> Tensor:
        """Of all positions, B T (padding on the right), then those of the branches."""
        assert self.backbone is not None
        width = int(batch.lengths.max())
        rows = np.split(batch.input_ids, np.cumsum(batch.lengths)[:-1])
        ids_BT = self.on_device(padded(rows, width))
        if not batch.suffixes:
            hidden_BTD: Tensor = self.backbone(input_ids=ids_BT, use_cache=False)[0]
            return hidden_BTD.flatten(0, 1)
        from transformers import DynamicCache

        cache = DynamicCache()
        hidden = [self.backbone(input_ids=ids_BT, past_key_values=cache, use_cache=True)[0]]
        lengths_B = self.on_device(batch.lengths)
        for suffixes in batch.suffixes:
            hidden.append(
                self.backbone(
                    input_ids=self.on_device(suffixes.input_ids),
                    position_ids=self.on_device(suffixes.position_ids),
                    attention_mask=self._mask(lengths_B, width, suffixes),
                    past_key_values=cache,
                    use_cache=True,
                )[0]
            )
            cache.crop(-suffixes.input_ids.shape[1])
        return torch.cat([hidden_BRD.flatten(0, 1) for hidden_BRD in hidden])

    @contextmanager
    def _attending_packed(self) -> Iterator[None]:
        """While it lasts, the model calls our attention; it is left as it was found."""
        config = self.model.config.get_text_config()
        own = config._attn_implementation
        self.model.set_attn_implementation(PACKED)
        try:
            yield
        finally:
            self.model.set_attn_implementation(own)

    def _mask(self, lengths_B: Tensor, width: int, suffixes: Suffixes) -> Tensor:
        """B x 1 x R x (T + R), 0 where a token of a branch sees: its trunk, and what comes before
        it in its own branch. Padding sees the trunk, so that no row of the mask is empty."""
        numbers_BR = self.on_device(suffixes.numbers)
        n_rows, n_branch = numbers_BR.shape
        device = lengths_B.device
        trunk_BT = torch.arange(width, device=device) < lengths_B[:, None]
        same_BRR = numbers_BR[:, :, None] == numbers_BR[:, None, :]
        own_BRR = same_BRR & (numbers_BR >= 0)[:, None, :]
        own_BRR &= torch.ones(n_branch, n_branch, dtype=torch.bool, device=device).tril()
        sees = torch.cat([trunk_BT[:, None].expand(n_rows, n_branch, width), own_BRR], dim=2)
        mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=device)
        return mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)[:, None]

    def _logits_of(self, hidden_RD: Tensor, words: slice | None = None) -> Tensor:
        """The model's own forward with its backbone replaced: soft caps, scales and biases that
        stand between hidden states and logits are applied, whatever they are."""
        assert self.backbone is not None
        output = _BackboneOutput(hidden_RD[None])
        with computing(self.backbone, lambda *args, **kwargs: output), self._only(words):
            ids_1R = torch.zeros(1, len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
            logits: Tensor = self.model(input_ids=ids_1R, use_cache=False).logits[0]
        if words is not None and logits.shape[1] != words.stop - words.start:
            raise ValueError("the head computes other words than its output layer was asked for")
        return logits

    def _only(self, words: slice | None) -> AbstractContextManager[None]:
        """While it lasts, the output layer computes some words only."""
        if words is None:
            return nullcontext()
        layer = self.model.get_output_embeddings()
        weight, bias = layer.weight[words], None if layer.bias is None else layer.bias[words]
        on_gpu = weight.is_cuda and weight.dtype in _HALF
        product = _float32_product if on_gpu else product_of(layer)
        return computing(layer, lambda hidden: product(hidden, weight, bias))

    def on_device(self, array: Ints) -> Tensor:
        """Where the model is."""
        tensor, device = torch.from_numpy(array), self.model.device
        if device.type == "cuda":  # pinned, so that the copy does not wait for the work before it
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)


def _sources_in_padded(batch: Batch) -> Ints:
    """Where the hidden states of `batch.sources` are when its rows are padded."""
    n_rows, n_tokens, width = len(batch.lengths), batch.input_ids.size, int(batch.lengths.max())
    padding = width - batch.lengths
    before_N = np.repeat(np.cumsum(padding) - padding, batch.lengths)  # padding of earlier rows
    moved_by = np.append(before_N, n_rows * width - n_tokens)
    places: Ints = batch.sources + moved_by[np.minimum(batch.sources, n_tokens)]
    return places


def _float32_product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear`, of half-precision factors, rounded to float32 only; there for GPUs alone."""
    product = torch.mm(hidden.flatten(0, -2), weight.t(), out_dtype=torch.float32)
    product = product.view(*hidden.shape[:-1], len(weight))
    return product if bias is None else product + bias


def can_run_in_blocks(model: Any) -> bool:
    """Whether the output layer is a plain matrix, of which some rows can be taken."""
    return type(model.get_output_embeddings()) in (torch.nn.Linear, OneDnnLinear)


# -- compiled layers -------------------------------------------------------------------------------


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
