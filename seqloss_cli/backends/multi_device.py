"""Several engines with the same model, each on a device of its own, as one backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from queue import SimpleQueue

from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.backend import Batch, Capabilities, Requested, TokenScores
from seqloss_cli.core.errors import RunError


class MultiDeviceBackend:
    """Gives each batch to whichever engine is free; may be asked by as many threads as it has
    engines."""

    def __init__(self, backends: Sequence[TorchBackend]) -> None:
        """Raises RunError when the model does not run the same way on all of them."""
        ways = {(backend.path, backend.capabilities) for backend in backends}
        if len(ways) > 1:
            paths = ", ".join(backend.path for backend in backends)
            raise RunError(
                f"the model runs in different ways on the devices ({paths}): --devices 1"
            )
        self._engines = backends
        self._free: SimpleQueue[TorchBackend] = SimpleQueue()
        for backend in backends:
            self._free.put(backend)
        first = backends[0]
        self.path, self.compiled = first.path, first.compiled
        self.warnings = list(dict.fromkeys(w for backend in backends for w in backend.warnings))
        self.capabilities: Capabilities = replace(first.capabilities, at_once=len(backends))

    @property
    def n_too_large(self) -> int:
        """Batches that did not fit in memory."""
        return sum(backend.n_too_large for backend in self._engines)

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """As `TorchBackend.score`."""
        backend = self._free.get()
        try:
            return backend.score(batch, requested)
        finally:
            self._free.put(backend)
