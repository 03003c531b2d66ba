"""Find the sequences and tokens with the highest and the lowest losses, in one pass."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.records import Floats
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses


@dataclass(frozen=True, slots=True)
class SequenceExtreme:
    """A sequence among those of the highest or lowest mean loss; losses in nats."""

    id: str
    source: str
    line: int | None
    n_scored: int
    total_loss: float
    mean_loss: float


@dataclass(frozen=True, slots=True)
class TokenExtreme:
    """A token among those of the highest or lowest loss."""

    id: str
    source: str
    line: int | None
    position: int
    token: str | None
    loss: float
    """Nats."""


class Top:
    """Keeps the `size` items of the highest keys; of equal keys the items that came first."""

    def __init__(self, size: int) -> None:
        self._size, self._n = size, 0
        self._heap: list[tuple[float, int, Any]] = []

    def takes(self, key: float) -> bool:
        """Tell whether an item of this key would be kept: then it is worth making."""
        return bool(self._size) and (len(self._heap) < self._size or key > self._heap[0][0])

    def add(self, key: float, item: Any) -> None:
        """Keep the item if its key is high enough."""
        # the falling number decides between equal keys: items need not be comparable
        self._n -= 1
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (key, self._n, item))
        elif self._size and key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (key, self._n, item))

    def items(self) -> list[Any]:
        """Return the items, those of the highest keys first."""
        return [item for _, _, item in sorted(self._heap, key=lambda e: e[:2], reverse=True)]


class Extremes:
    """Collects the extremes of rows.

    Infinite losses are not among them: their positions stand in `inf_losses` of the rows.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._worst, self._best = Top(size), Top(size)
        self._worst_tokens, self._best_tokens = Top(size), Top(size)

    def add_sequence(self, row: ResultRow) -> None:
        """Consider the row's mean loss, if it has one."""
        mean, total = row.totals.mean_loss, row.totals.total_loss
        if mean is None or total is None:
            return
        if self._worst.takes(mean) or self._best.takes(-mean):
            where = _where(row)
            item = SequenceExtreme(*where, row.totals.n_scored, total, mean)
            self._worst.add(mean, item)
            self._best.add(-mean, item)

    def add_tokens(self, row: ResultRow, tokens: TokenLosses) -> None:
        """Consider the row's tokens that count."""
        places = np.flatnonzero(tokens.counted & np.isfinite(tokens.losses))
        if not len(places) or not self._size:
            return
        for top, sign in ((self._worst_tokens, 1.0), (self._best_tokens, -1.0)):
            for place in highest(sign * tokens.losses[places], self._size):
                position = int(places[place])
                key = sign * float(tokens.losses[position])
                if top.takes(key):
                    loss = float(tokens.losses[position])
                    top.add(
                        key, TokenExtreme(*_where(row), position, token_text(row, position), loss)
                    )

    def worst_sequences(self) -> list[SequenceExtreme]:
        """Return those of the highest mean losses, the highest first."""
        return self._worst.items()

    def best_sequences(self) -> list[SequenceExtreme]:
        """Return those of the lowest mean losses, the lowest first."""
        return self._best.items()

    def worst_tokens(self) -> list[TokenExtreme]:
        """Return those of the highest losses, the highest first."""
        return self._worst_tokens.items()

    def best_tokens(self) -> list[TokenExtreme]:
        """Return those of the lowest losses, the lowest first."""
        return self._best_tokens.items()


def highest(values: Floats, size: int) -> list[int]:
    """Return the places of the `size` highest of n values, highest first; of equals the first."""
    places: list[int] = np.argsort(-values, kind="stable")[:size].tolist()
    return places


def token_text(row: ResultRow, position: int) -> str | None:
    """Return a token as its row shows it; None where the row was written without tokens."""
    tokens = row.fields.get("tokens")
    return tokens[position] if tokens else None


def _where(row: ResultRow) -> tuple[str, str, int | None]:
    return row.id, str(row.fields.get("source")), row.fields.get("line")
