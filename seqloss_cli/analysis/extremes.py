"""The sequences and tokens with the highest and the lowest losses."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.results.schema.scores import ResultRow, TokenLosses


@dataclass(frozen=True, slots=True)
class SequenceExtreme:
    id: str
    source: str
    line: int | None
    n_scored: int
    total_loss: float
    mean_loss: float


@dataclass(frozen=True, slots=True)
class TokenExtreme:
    id: str
    source: str
    line: int | None
    position: int
    token: str | None
    loss: float


class Top:
    """The `size` items of the highest keys; of equal ones those that came first."""

    def __init__(self, size: int) -> None:
        self._size, self._n = size, 0
        self._heap: list[tuple[float, int, Any]] = []

    def takes(self, key: float) -> bool:
        return bool(self._size) and (len(self._heap) < self._size or key > self._heap[0][0])

    def add(self, key: float, item: Any) -> None:
        self._n -= 1
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (key, self._n, item))
        elif self._size and key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (key, self._n, item))

    def items(self) -> list[Any]:
        return [item for _, _, item in sorted(self._heap, key=lambda e: e[:2], reverse=True)]


class Extremes:
    """Infinite losses are not among them: they stand in `inf_losses` of their rows."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._worst, self._best = Top(size), Top(size)
        self._worst_tokens, self._best_tokens = Top(size), Top(size)

    def add_sequence(self, row: ResultRow) -> None:
        mean, total = row.totals.mean_loss, row.totals.total_loss
        if mean is None or total is None:
            return
        if self._worst.takes(mean) or self._best.takes(-mean):
            where = _where(row)
            item = SequenceExtreme(*where, row.totals.n_scored, total, mean)
            self._worst.add(mean, item)
            self._best.add(-mean, item)

    def add_tokens(self, row: ResultRow, tokens: TokenLosses) -> None:
        places = np.flatnonzero(tokens.counted & np.isfinite(tokens.losses))
        if not len(places) or not self._size:
            return
        for top, sign in ((self._worst_tokens, 1.0), (self._best_tokens, -1.0)):
            for place in highest(sign * tokens.losses[places], self._size):
                position = int(places[place])
                key = sign * float(tokens.losses[position])
                if top.takes(key):
                    loss = float(tokens.losses[position])
                    top.add(key, TokenExtreme(*_where(row), position, token(row, position), loss))

    def worst_sequences(self) -> list[SequenceExtreme]:
        return self._worst.items()

    def best_sequences(self) -> list[SequenceExtreme]:
        return self._best.items()

    def worst_tokens(self) -> list[TokenExtreme]:
        return self._worst_tokens.items()

    def best_tokens(self) -> list[TokenExtreme]:
        return self._best_tokens.items()


def highest(values: Any, size: int) -> Iterator[int]:
    """Places of the highest values, highest first, of equal ones the first."""
    order = np.argsort(-values, kind="stable")[:size]
    yield from order.tolist()


def token(row: ResultRow, position: int) -> str | None:
    tokens = row.fields.get("tokens")
    return tokens[position] if tokens else None


def _where(row: ResultRow) -> tuple[str, str, int | None]:
    return row.id, str(row.fields.get("source")), row.fields.get("line")
