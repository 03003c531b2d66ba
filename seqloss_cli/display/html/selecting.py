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
_EIGHTHS = {"worst": 3, "peaks": 1, "sample": 4}
"""Of the room: for sequences by their losses, by that of their worst token, and drawn."""


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
    """Of the items, those with the highest losses, or with tokens of the highest; 0 where all are
    shown."""
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


def _part(limits: Limits, eighths: int) -> Limits:
    return Limits(max(1, limits.tokens * eighths // 8), max(1, limits.sequences * eighths // 8))


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
        self._all: list[Item] | None = []
        self._only: Item | None = None
        self._n_tokens = self._n_seen = 0
        self._pools = {name: _Pool[Item](_part(limits, part)) for name, part in _EIGHTHS.items()}
        self._random = random.Random(seed)

    def add(self, item: Item, badness: float, peak: float) -> None:
        """`peak` is the badness of its worst token."""
        order, size = self._n_seen, self._size_of(item)
        self._n_seen += 1
        self._n_tokens += size
        self._only = item if self._n_seen == 1 else None
        if self._all is not None:
            self._all.append(item)
            if self._n_tokens > self._limits.tokens or self._n_seen > self._limits.sequences:
                self._all = None
        keys = {"worst": badness, "peaks": peak, "sample": self._random.random()}
        for name, key in keys.items():
            most = _part(self._limits, _EIGHTHS["worst" if name == "worst" else "peaks"]).tokens
            part = self._cut(item, most)
            self._pools[name].add(key, order, self._size_of(part), part)

    def chosen(self) -> Chosen[Item]:
        if self._all is not None:
            return Chosen(self._all, self._n_seen, 0, 0)
        if self._only is not None:  # nothing else wants the room
            return Chosen([self._cut(self._only, self._limits.tokens)], 1, 1, 0)
        worst = {**self._pools["peaks"].items(), **self._pools["worst"].items()}
        found = {**self._pools["sample"].items(), **worst}
        items = [found[order] for order in sorted(found)]
        return Chosen(items, self._n_seen, len(worst), len(found) - len(worst))
