"""Find the extremes of many rows in one pass: for lists, and for pages with room for some."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from seqloss_cli.analysis.joining import bytes_of_text
from seqloss_cli.core.byte_spans import TokenBytes, named_bytes, spelled_bytes
from seqloss_cli.core.records import Floats, SequenceScore, TokenSequence
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses

NEAR = 32
"""Characters of text shown before and after a token of a list."""


@dataclass(frozen=True, slots=True)
class SequenceExtreme:
    """A sequence among those of the highest or lowest mean loss; losses in nats."""

    id: str
    """The input's id."""
    source: str
    """File that it was read from."""
    line: int | None
    """Its line; None of a text as a whole."""
    n_scored: int
    """Tokens that have a loss."""
    total_loss: float
    """Nats."""
    mean_loss: float
    """Nats per token."""


@dataclass(frozen=True, slots=True)
class TokenExtreme:
    """A token among those of the highest or lowest loss."""

    id: str
    """The input's id."""
    source: str
    """File that it was read from."""
    line: int | None
    """Its line; None of a text as a whole."""
    position: int
    """The token's place, from 0."""
    token: str | None
    """Its text; None where it is not known."""
    loss: float
    """Nats."""
    before: str | None = None
    """Text before it; None where none is known."""
    within: str | None = None
    """The whole characters that it is in part of; None where it is of whole ones."""
    after: str | None = None
    """Text after it; None where none is known."""


class Largest:
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

    def add_highest(self, keys: Floats, make: Callable[[int], Any]) -> None:
        """Keep what is made of the highest of keys, shape n, any unit; -inf does not count."""
        # no more of one row than are kept of all rows
        for place in highest(keys, self._size):
            key = float(keys[place])
            if key == -math.inf or not self.takes(key):
                break
            self.add(key, make(place))

    def items(self) -> list[Any]:
        """Return the items, those of the highest keys first."""
        return [item for _, _, item in sorted(self._heap, key=lambda e: e[:2], reverse=True)]


class Extremes:
    """Collects the extremes of rows.

    Infinite losses are not among them: their positions stand in `inf_losses` of the rows.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        kinds = ("worst_sequences", "best_sequences", "worst_tokens", "best_tokens")
        self._tops = {kind: Largest(size) for kind in kinds}

    def add_sequence(self, row: ResultRow) -> None:
        """Consider the row's mean loss, if it has one."""
        mean, total = row.totals.mean_loss, row.totals.total_loss
        if mean is None or total is None:
            return
        item = SequenceExtreme(*_where(row), row.totals.n_scored, total, mean)
        self._tops["worst_sequences"].add(mean, item)
        self._tops["best_sequences"].add(-mean, item)

    def add_tokens(self, row: ResultRow, tokens: TokenLosses) -> None:
        """Consider the row's tokens that count."""
        if not self._size:
            return
        known = tokens.counted & np.isfinite(tokens.losses)

        def make(position: int) -> TokenExtreme:
            text, loss = token_text(row, position), float(tokens.losses[position])
            return TokenExtreme(*_where(row), position, text, loss, *text_near(row, position))

        for kind, sign in (("worst_tokens", 1.0), ("best_tokens", -1.0)):
            keys = np.where(known, sign * tokens.losses, -math.inf)
            self._tops[kind].add_highest(keys, make)

    def items(self) -> dict[str, list[Any]]:
        """Return the extremes of each kind, the furthest first."""
        return {kind: top.items() for kind, top in self._tops.items()}


class WorstTokens:
    """Collects the tokens of the highest losses of scores just made; infinite ones are the worst.

    Their names are those that `token_texts` gives to the tokens of a sequence.
    """

    def __init__(self, size: int, token_texts: Callable[[TokenSequence], list[str]]) -> None:
        self._top, self._token_texts = Largest(size), token_texts

    def add(self, score: SequenceScore) -> None:
        """Consider the tokens of a score that count."""
        sequence, losses = score.sequence, score.losses
        names: list[str] = []

        def make(position: int) -> TokenExtreme:
            names[:] = names or self._token_texts(sequence)
            sample, loss = sequence.sample, float(losses[position])
            near = _near(TokenBytes.of(sequence), names, position)
            where = (sample.id, sample.source, sample.line)
            return TokenExtreme(*where, position, names[position], loss, *near)

        self._top.add_highest(np.where(score.counted, losses, -math.inf), make)

    def items(self) -> list[TokenExtreme]:
        """Return them, the highest loss first."""
        return self._top.items()


def highest(values: Floats, size: int) -> list[int]:
    """Return the places of the `size` highest of values, highest first; of equals the first.

    Values have shape n, and any unit.
    """
    # numpy's default sort may swap equal values, and with them the rows of a list
    places: list[int] = np.argsort(-values, kind="stable")[:size].tolist()
    return places


def token_text(row: ResultRow, position: int) -> str | None:
    """Return a token as its row shows it; None where the row was written without tokens."""
    tokens = row.fields.get("tokens")
    return tokens[position] if tokens else None


def text_near(row: ResultRow, position: int) -> tuple[str | None, str | None, str | None]:
    """Return the text before a token, the characters that it is in part of, and the text after it;
    of the names of tokens where the row was read, or written, without its text."""
    found, names = bytes_of_text(row), row.fields.get("tokens")
    offsets = row.fields.get("byte_offsets")
    # a file may have been edited: offsets that do not fit would show other text
    if (found is None or not found.is_valid) and names and offsets is not None:
        known = zip(names, spelled_bytes(names, offsets), np.diff(offsets), strict=True)
        found = TokenBytes.join(
            [spelled or (named_bytes(name) if width else b"") for name, spelled, width in known]
        )
    return _near(found if found and found.is_valid else None, names, position)


def _near(
    token_bytes: TokenBytes | None, names: Sequence[str] | None, position: int
) -> tuple[str | None, str | None, str | None]:
    if token_bytes is None and not names:
        return None, None, None
    # a text shows a character whole, though its tokens be named by their bytes
    return (token_bytes or TokenBytes.join([*map(named_bytes, names or ())])).near(position, NEAR)


def _where(row: ResultRow) -> tuple[str, str, int | None]:
    return row.id, str(row.fields.get("source")), row.fields.get("line")


class Sized(Protocol):
    """A thing that a page shows, in whole or in part."""

    @property
    def size(self) -> int:
        """Return how many tokens it has."""

    def cut(self, most: int, /) -> Self:
        """Return it with about so many tokens at most."""


Item = TypeVar("Item", bound=Sized)
MOST_TOKENS = 60_000
MOST_SEQUENCES = 2_000
_EIGHTHS = {"worst": 3, "peaks": 1, "sample": 4}
"""Parts of the room: for sequences by their losses, by those of their worst tokens, and drawn."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a page shows as text, and in its table."""

    tokens: int = MOST_TOKENS
    sequences: int = MOST_SEQUENCES

    def part(self, eighths: int) -> Limits:
        """Return so many eighths of the room, at least one of each."""
        return Limits(max(1, self.tokens * eighths // 8), max(1, self.sequences * eighths // 8))


@dataclass(frozen=True, slots=True)
class Chosen(Generic[Item]):
    """The items that a page shows."""

    items: list[Item]
    """In the order in which they came."""
    n_seen: int
    n_worst: int
    """Items of the highest losses, or with tokens of the highest; 0 where all are shown."""
    n_sampled: int
    """The others, drawn uniformly."""


class _Pool(Generic[Item]):
    """The items of the highest keys, as many as fit.

    What is left out once stays out: else which items are kept would depend on their order.
    """

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
    """Selects all items, or where they are too many the worst and a random sample.

    `add` items as they come, then ask which were `chosen`. Memory is that of what is shown.
    """

    def __init__(self, limits: Limits, seed: int) -> None:
        self._limits = limits
        self._all: list[Item] | None = []
        self._only: Item | None = None
        self._n_tokens = self._n_seen = 0
        self._pools = {name: _Pool[Item](limits.part(part)) for name, part in _EIGHTHS.items()}
        self._random = random.Random(seed)

    def add(self, item: Item, badness: float, peak: float) -> None:
        """Add an item; `peak` is the badness of its worst token."""
        order, size = self._n_seen, item.size
        self._n_seen += 1
        self._n_tokens += size
        self._only = item if self._n_seen == 1 else None
        if self._all is not None:
            self._all.append(item)
            if self._n_tokens > self._limits.tokens or self._n_seen > self._limits.sequences:
                self._all = None
        # drawn for every item, kept or not: else the sample would depend on the other pools
        keys = {"worst": badness, "peaks": peak, "sample": self._random.random()}
        for name, key in keys.items():
            # one long text must not take all the room of the others
            most = self._limits.part(_EIGHTHS["worst" if name == "worst" else "peaks"]).tokens
            part = item.cut(most)
            self._pools[name].add(key, order, part.size, part)

    def chosen(self) -> Chosen[Item]:
        """Return what is shown of the items that were added."""
        if self._all is not None:
            return Chosen(self._all, self._n_seen, 0, 0)
        if self._only is not None:  # nothing else wants the room
            return Chosen([self._only.cut(self._limits.tokens)], 1, 1, 0)
        worst = {**self._pools["peaks"].items(), **self._pools["worst"].items()}
        found = {**self._pools["sample"].items(), **worst}
        items = [found[order] for order in sorted(found)]
        return Chosen(items, self._n_seen, len(worst), len(found) - len(worst))
