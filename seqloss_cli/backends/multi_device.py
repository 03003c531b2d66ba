"""Several engines with the same model, each on a device of its own, as one backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from queue import SimpleQueue

from seqloss_cli.backends.torch.backend import Engine
from seqloss_cli.core.backend import Abilities, Batch, TokenScores, Wants
from seqloss_cli.core.errors import RunError


class Fleet:
    """Gives each batch to whichever engine is free; may be asked by as many threads as it has
    engines."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        """Raises RunError when the model does not run the same way on all of them."""
        ways = {(engine.path, engine.abilities) for engine in engines}
        if len(ways) > 1:
            paths = ", ".join(engine.path for engine in engines)
            raise RunError(
                f"the model runs in different ways on the devices ({paths}): --devices 1"
            )
        self._engines = engines
        self._free: SimpleQueue[Engine] = SimpleQueue()
        for engine in engines:
            self._free.put(engine)
        first = engines[0]
        self.path, self.compiled = first.path, first.compiled
        self.warnings = list(dict.fromkeys(w for engine in engines for w in engine.warnings))
        self.abilities: Abilities = replace(first.abilities, at_once=len(engines))

    @property
    def n_too_large(self) -> int:
        """Batches that did not fit in memory."""
        return sum(engine.n_too_large for engine in self._engines)

    def score(self, batch: Batch, wants: Wants) -> TokenScores:
        """As `Engine.score`."""
        engine = self._free.get()
        try:
            return engine.score(batch, wants)
        finally:
            self._free.put(engine)
