"""Open a checkpoint as a backend: load it, choose its path, its batches, and whether to compile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from seqloss_cli.core.backend import Backend, Batch, OpenedModel, Requested, TokenScores
from seqloss_cli.core.errors import RunError
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, SpeedPolicy
from seqloss_cli.models.checkpoint import Checkpoint, load_checkpoint, window_policy

if TYPE_CHECKING:
    from seqloss_cli.backends.torch.backend import TorchBackend


def open_model(
    choice: ModelChoice,
    context: int | None,
    stride: int | None,
    batches: BatchPolicy,
    speed: SpeedPolicy,
) -> OpenedModel:
    """Load a checkpoint, once for each device.

    Raises RunError when it cannot be loaded, and UsageError when options do not fit it.
    """
    checkpoint = load_checkpoint(choice, speed.devices)
    windows = window_policy(checkpoint, context, stride)
    return OpenedModel(
        start=partial(_start, checkpoint, windows.context, batches, speed),
        tokenizer=checkpoint.tokenizer,
        tokenizer_name=checkpoint.tokenizer_name,
        bos_id=checkpoint.bos_id,
        eos_id=checkpoint.eos_id,
        n_ids=checkpoint.n_ids,
        windows=windows,
        warnings=checkpoint.warnings,
    )


def _start(
    checkpoint: Checkpoint, context: int, batches: BatchPolicy, speed: SpeedPolicy
) -> tuple[Backend, BatchPolicy]:
    """Find out how a model can be run. Raises RunError where compiling is demanded and fails."""
    # Only now: these import transformers, which reads HF_HUB_OFFLINE and USE_HUB_KERNELS as it is
    # imported, and whose packages warn on stderr until loading has silenced them.
    from seqloss_cli.backends.torch.backend import TorchBackend
    from seqloss_cli.backends.torch.batch_budget import choose_batch_tokens

    backends = [
        TorchBackend(model, context, share_prefix=batches.share_prefix, checkpoint=checkpoint)
        for model in (checkpoint.model, *checkpoint.copies)
    ]
    _compile(backends, speed)
    if batches.auto:
        budget = min(choose_batch_tokens(backend, context) for backend in backends)
        batches = replace(batches, tokens=budget, auto=False)
    return MultiDeviceBackend(backends) if len(backends) > 1 else backends[0], batches


def _compile(backends: Sequence[TorchBackend], speed: SpeedPolicy) -> None:
    """Compile all or none. Raises RunError when it is demanded and fails."""
    from seqloss_cli.backends.torch.batch_budget import compiling_pays

    first = backends[0]
    if speed.compile == "off" or (
        speed.compile == "auto"
        and not (first.path == "packed" and compiling_pays(first.model, speed.work_bytes))
    ):
        return
    try:
        for backend in backends:
            backend.compile()
    except RunError as error:
        if speed.compile == "on":
            raise
        for backend in backends:
            backend.stop_compiled()
        first.warnings.append(f"not compiled: {error}")


class MultiDeviceBackend:
    """Copies of a model on several devices as one backend. Each batch goes to whichever is free;
    as many threads may ask as there are devices."""

    def __init__(self, backends: Sequence[TorchBackend]) -> None:
        """Raises RunError when the model does not run the same way on all of them."""
        ways = {(backend.path, backend.capabilities) for backend in backends}
        if len(ways) > 1:
            paths = ", ".join(backend.path for backend in backends)
            raise RunError(
                f"the model runs in different ways on the devices ({paths}): --devices 1"
            )
        self._backends = backends
        self._free: SimpleQueue[Backend] = SimpleQueue()
        for backend in backends:
            self._free.put(backend)
        self.warnings = list(dict.fromkeys(w for backend in backends for w in backend.warnings))
        self.capabilities = replace(backends[0].capabilities, at_once=len(backends))

    @property
    def n_too_large(self) -> int:
        """Batches that did not fit in memory."""
        return sum(backend.n_too_large for backend in self._backends)

    def vocab_size(self) -> int:
        """Return how many logits the model has."""
        return self._backends[0].vocab_size()

    def describe(self) -> dict[str, Any]:
        """Return its part of the run record: that of the first device, and how many there are."""
        return {**self._backends[0].describe(), "devices": len(self._backends)}

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target of the batch, as `TorchBackend.score`."""
        backend = self._free.get()
        try:
            return backend.score(batch, requested)
        finally:
            self._free.put(backend)
