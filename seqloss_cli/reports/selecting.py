"""Which sequences a page shows: all, or where there are too many the worst and a random sample."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

MOST_TOKENS = 60_000
MOST_SEQUENCES = 2_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Of what a page shows as text, and of the rows of its table."""

    tokens: int = MOST_TOKENS
    sequences: int = MOST_SEQUENCES


@dataclass(frozen=True, slots=True)
class Chosen(Generic[Item]):
    items: list[Item]
    """In the order in which they came."""
    n_seen: int
    n_worst: int
    """Of the items, those with the highest losses; 0 where all are shown."""
    n_sampled: int
    """Of the others, drawn uniformly."""


class _Pool(Generic[Item]):
    """The items of the highest keys, as many as fit; what is left out once stays out, so that it
    does not depend on the order in which items come."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._n_tokens, self._floor = limits, 0, -math.inf
        self._heap: list[tuple[float, int, int, Item]] = []

    def add(self, key: float, order: int, size: int, item: Item) -> None:
        if key <= self._floor:
            return
        heapq.heappush(self._heap, (key, -order, size, item))
        self._n_tokens += size
        while len(self._heap) > 1 and (
            self._n_tokens > self._limits.tokens or len(self._heap) > self._limits.sequences
        ):
            lowest, _, freed, _ = heapq.heappop(self._heap)
            self._floor = max(self._floor, lowest)
            self._n_tokens -= freed

    def items(self) -> dict[int, Item]:
        return {-order: item for _, order, _, item in self._heap}


class Selection(Generic[Item]):
    """`add` items as they come, then ask which were `chosen`. Memory is that of what is shown."""

    def __init__(
        self,
        limits: Limits,
        seed: int,
        size_of: Callable[[Item], int],
        cut: Callable[[Item, int], Item],
    ) -> None:
        self._limits, self._size_of, self._cut = limits, size_of, cut
        half = Limits(limits.tokens // 2, max(1, limits.sequences // 2))
        self._all: list[Item] | None = []
        self._only: Item | None = None
        self._n_tokens = self._n_seen = 0
        self._worst, self._sample = _Pool[Item](half), _Pool[Item](half)
        self._random = random.Random(seed)

    def add(self, item: Item, badness: float) -> None:
        order, size = self._n_seen, self._size_of(item)
        self._n_seen += 1
        self._n_tokens += size
        self._only = item if self._n_seen == 1 else None
        if self._all is not None:
            self._all.append(item)
            if self._n_tokens > self._limits.tokens or self._n_seen > self._limits.sequences:
                self._all = None
        most = max(1, self._limits.tokens // 2)
        part = self._cut(item, most)
        self._worst.add(badness, order, self._size_of(part), part)
        part = self._cut(item, max(1, most // 4))
        self._sample.add(self._random.random(), order, self._size_of(part), part)

    def chosen(self) -> Chosen[Item]:
        if self._all is not None:
            return Chosen(self._all, self._n_seen, 0, 0)
        if self._only is not None:  # nothing else wants the room
            return Chosen([self._cut(self._only, self._limits.tokens)], 1, 1, 0)
        worst = self._worst.items()
        found = {**self._sample.items(), **worst}
        items = [found[order] for order in sorted(found)]
        return Chosen(items, self._n_seen, len(worst), len(found) - len(worst))
