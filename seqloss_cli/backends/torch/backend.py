"""A local torch model as a `Backend`: ids in, losses out, by the fastest path that is exact."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import torch

from seqloss_cli.backends.torch.forward import ModelForward, RunPath, compiled_forwards
from seqloss_cli.backends.torch.path_selection import (
    PathSelector,
    probe_batches,
    probe_ids,
    probe_of,
)
from seqloss_cli.core.backend import Batch, Requested, TokenScores
from seqloss_cli.core.errors import OutOfMemoryError, RunError, SeqlossError
from seqloss_cli.core.policies import BatchPolicy
from seqloss_cli.core.run_record import WEIGHTS
from seqloss_cli.models.checkpoint import Checkpoint
from seqloss_cli.models.model_loading import is_out_of_memory
from seqloss_cli.models.quantization import quantization_name

T = TypeVar("T")
_IDENTITY = (*WEIGHTS, "dtype")
_PACKAGES = ("torchao", "bitsandbytes", "gguf")
"""Packages that compute with weights of their own kind."""
GUESSES = ("head.block_size", "compile.saving", "prefetch")
"""Settings for GPUs that were chosen without one: `make gpu-check` measures them."""


def identity_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return which weights a checkpoint holds, as run records say it."""
    return {"model": checkpoint.name} | {name: getattr(checkpoint, name) for name in _IDENTITY}


def described_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a run record says of a checkpoint, and versions of the packages it needs."""
    kind = (checkpoint.quantization or "").split(" ")[0].lower()
    needed = {"peft": bool(checkpoint.adapter), **{name: name == kind for name in _PACKAGES}}
    versions = {name: version(name) for name, is_needed in needed.items() if is_needed}
    return {**identity_of(checkpoint), "device": checkpoint.device, "versions": versions}


def prefetch_helps(device_type: str) -> bool:
    """Return whether a model on this device leaves cores to a thread beside it."""
    # On a CPU its products take all cores, and wait for each other when one is taken.
    return device_type != "cpu"


class TorchBackend:
    """A transformers causal LM. `warnings` names what it had to fall back to, and why."""

    n_parts = 1
    """Processes that have a part of the model each."""

    def __init__(
        self,
        model: Any,
        max_tokens: int,
        path: RunPath | None = None,
        share_prefix: bool = False,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """`max_tokens` is the most tokens that the model may be fed; `path` skips the choice.
        Whether common prefixes can be shared is found out if `share_prefix` asks for it. The run
        record tells of the `checkpoint` that the model comes from.

        Raises RunError when the model is not causal: its losses would see their own targets.
        """
        self.model, self.checkpoint = model, checkpoint
        self.selector = PathSelector(model, max_tokens)
        self.model_forward = self.selector.model_forward
        self.n_parts = self.model_forward.n_parts
        self.warnings = self.selector.warnings
        self.n_too_large = 0
        """Batches that did not fit in memory."""
        # A forward keeps what it was last fed for its attention: batches of two threads would mix.
        self._turn = threading.RLock()
        if path is None:
            self._at_load(lambda: self.selector.choose_path(min(12, max_tokens)))
        elif path != "plain":
            self.model_forward.use_path(path, self.selector.backbones[0])
        self.capabilities = replace(
            self.model_forward.capabilities, prefetch_helps=prefetch_helps(model.device.type)
        )
        if share_prefix and not self.capabilities.one_row_per_batch:
            longest_shared = self._at_load(self.selector.choose_longest_shared)
            self.capabilities = replace(self.capabilities, longest_shared=longest_shared)

    @property
    def path(self) -> RunPath:
        """The way the model is run."""
        return self.model_forward.path

    @property
    def compiled(self) -> bool:
        """True where packed rows go through compiled layers."""
        return bool(self.model_forward.compiled)

    @torch.inference_mode()
    def compile(self) -> None:
        """Compile the layers, which takes a while, and check that losses stay the same.

        Raises RunError where they do not, or compiling fails; then nothing is changed.
        """
        name = type(self.model).__name__
        if self.path != "packed":
            raise RunError(f"{name} is run one way only, which cannot be compiled: --compile off")
        ids = probe_ids(min(24, self.selector.longest) + 1, self.selector.n_ids)
        probes = [probe_of(ids), probe_of(ids[: len(ids) // 2 + 1])]
        expected = np.concatenate(self.selector.losses(probes))
        try:
            self.model_forward.compiled = compiled_forwards(self.model_forward.backbone)
            if not self.selector.equal(np.concatenate(self.selector.losses(probes)), expected):
                raise RunError(f"{name} gives other losses when it is compiled: --compile off")
        except Exception as error:  # no compiler, no headers, an operator it does not know, …
            self.stop_compiled()
            if isinstance(error, RunError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{name} cannot be compiled here ({type(error).__name__}: {reason}): --compile off "
                "does without"
            ) from error

    def stop_compiled(self) -> None:
        """Run the layers uncompiled again."""
        self.model_forward.compiled = ()

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target of the batch.

        Raises OutOfMemoryError when memory does not suffice, naming what helps.
        """
        return self.run_guarded(batch, lambda forward: forward.score(batch, requested))

    @torch.inference_mode()
    def run_guarded(self, batch: Batch, compute: Callable[[ModelForward], T]) -> T:
        """Compute scores of a batch from its forward, one thread at a time; raises as `score`
        does."""
        try:
            with self._turn:
                return compute(self.model_forward)
        except (RuntimeError, MemoryError, IndexError) as error:
            rows, width = len(batch.lengths), int(batch.lengths.max())
            if re.search("index .*out of (range|bounds)", str(error)):
                raise RunError(
                    f"{type(self.model).__name__} cannot be fed {width} tokens, though its "
                    f"configuration says so ({error}): lower --context"
                ) from error
            if not is_out_of_memory(error):
                raise
            self.n_too_large += 1
            width += sum(suffixes.input_ids.shape[1] for suffixes in batch.suffixes)
            raise OutOfMemoryError(
                f"out of memory in a batch of {rows} rows of {width} tokens: lower --batch-tokens"
                + (", or --context, or choose --dtype bfloat16" if rows == 1 else "")
                + (", or give --no-share-prefix" if batch.suffixes else "")
            ) from error

    @torch.inference_mode()
    def vocab_size(self) -> int:
        """Return how many logits the model has."""
        probe = probe_of(probe_ids(2, self.selector.n_ids))
        (batch,) = probe_batches([probe], self.model_forward.capabilities, BatchPolicy())
        return self.model_forward.vocab_size(batch)

    def describe(self) -> dict[str, Any]:
        """Return its part of the run record: which checkpoint, and how it is run."""
        found = {} if self.checkpoint is None else described_checkpoint(self.checkpoint)
        return found | {
            "threads": torch.get_num_threads(),
            "path": self.path,
            "compiled": self.compiled,
            "devices": 1,
            "tensor_parallel": self.n_parts if self.n_parts > 1 else None,
            "guesses": GUESSES if found.get("device", "").startswith("cuda") else None,
        }

    @torch.inference_mode()
    def _at_load(self, check: Callable[[], T]) -> T:
        name = type(self.model).__name__
        try:
            return check()
        except SeqlossError:
            raise
        except Exception as error:  # quantised layers that miss a part fail in many ways
            if is_out_of_memory(error):
                raise RunError(
                    f"out of memory in the first forward of {name}: choose a smaller --dtype or "
                    "another --device"
                ) from error
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if (kind := quantization_name(self.model.config)) is not None:
                raise RunError(
                    f"{name} cannot be run as it is quantised ({kind}: {reason})"
                ) from error
            if isinstance(error, TypeError | ValueError | AttributeError | LookupError):
                # A model for images may refuse to run without one, each in words of its own.
                raise RunError(
                    f"{name} cannot be fed token ids alone ({reason}), so it gives no distribution "
                    "of a text's next token"
                ) from error
            if not isinstance(error, RuntimeError | MemoryError):
                raise
            raise RunError(
                f"{name} cannot be run in {self.model.dtype} ({reason}); try another --dtype"
            ) from error
