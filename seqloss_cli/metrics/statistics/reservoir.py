"""A uniform sample of a stream, of bounded size."""

from __future__ import annotations

import numpy as np

from seqloss_cli.core.records import Floats


class Reservoir:
    """Every value as long as there are at most `size`; then those with the smallest of random
    keys, which is a uniform sample without replacement (Li 1994 names the family)."""

    def __init__(self, size: int = 1_000_000, seed: int = 0) -> None:
        self._size, self._generator = size, np.random.default_rng(seed)
        self._values: list[Floats] = []
        self._keys: list[Floats] = []
        self._n_held = self.n_seen = 0

    def add(self, values: Floats) -> None:
        if not len(values):
            return
        self._values.append(values)
        self._keys.append(self._generator.random(len(values)))
        self.n_seen += len(values)
        self._n_held += len(values)
        if self._n_held > 2 * self._size:
            self._shrink()

    def values(self) -> Floats:
        if self._n_held > self._size:
            self._shrink()
        return np.concatenate(self._values) if self._values else np.empty(0)

    def _shrink(self) -> None:
        values, keys = np.concatenate(self._values), np.concatenate(self._keys)
        kept = np.argpartition(keys, self._size)[: self._size]
        self._values, self._keys = [values[kept]], [keys[kept]]
        self._n_held = len(kept)
