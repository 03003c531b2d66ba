"""The tokens of the highest losses, and the stretches that two models differ on most, over all rows
that are read: also of texts that a page has no room for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seqloss_cli.analysis.aligning import AlignedLosses
from seqloss_cli.analysis.extremes import Top, highest, token_text
from seqloss_cli.core.byte_spans import is_edge, spans_of
from seqloss_cli.display.html.charts import Cell
from seqloss_cli.display.html.page import Place, surroundings
from seqloss_cli.display.html.panes import visible
from seqloss_cli.display.html.shown import Shown
from seqloss_cli.results.schema.scores import ResultRow

_LONGEST = 48
"""Characters of a stretch in a list."""


@dataclass(frozen=True, slots=True)
class Worst:
    order: int
    """Of the row among those of its file."""
    id: str
    number: int
    """Of the token in its sequence, or of the stretch among those of its text."""
    where: str
    """The same, in words."""
    token: str
    before: str
    after: str
    values: tuple[float, ...]
    """Nats: the loss; or that of A, that of B, and B - A."""
    place: tuple[int, int] = (0, 0)
    """Bytes from, to, of a stretch."""


class WorstTokens:
    def __init__(self, size: int) -> None:
        self._size, self._top = size, Top(size)

    def add(self, row: ResultRow, item: Shown) -> None:
        """Infinite losses are the worst."""
        if row.tokens is None or not self._size:
            return
        losses = np.where(row.tokens.counted, row.tokens.losses, -1.0)
        for place in highest(losses, self._size):
            loss = float(losses[place])
            if loss < 0 or not self._top.takes(loss):
                break
            before, after = _around(item, place)
            name = visible(token_text(row, place) or "") or f"token {place}"
            where = f"token {place:,}"
            self._top.add(
                loss, Worst(item.order, item.id, place, where, name, before, after, (loss,))
            )

    def items(self) -> list[Worst]:
        return list(self._top.items())


def _around(item: Shown, place: int) -> tuple[str, str]:
    """The text before and after the characters that a token is of."""
    if item.why_plain:
        return "", ""
    first, last = place, place + 1
    while first and not is_edge(item.text, item.offsets[first]):
        first -= 1
    while not is_edge(item.text, item.offsets[last]):
        last += 1
    return surroundings(item.text, item.offsets[first], item.offsets[last])


class WorstStretches:
    def __init__(self, size: int) -> None:
        self._size, self._top = size, Top(size)

    def add(self, item: Shown, aligned: AlignedLosses) -> None:
        sizes = np.array([abs(value or 0.0) for value in aligned.differences])
        for number in highest(sizes, self._size):
            size = float(sizes[number])
            if not size or not self._top.takes(size):
                break
            self._top.add(size, _stretch(item, aligned, number))

    def items(self) -> list[Worst]:
        return list(self._top.items())


def _stretch(item: Shown, aligned: AlignedLosses, number: int) -> Worst:
    start, end = aligned.spans[number][2:]
    values = (aligned.losses_a[number], aligned.losses_b[number], aligned.differences[number])
    text = visible(item.text[start:end].decode()) or "·"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    before, after = surroundings(item.text, start, end)
    known = tuple(value for value in values if value is not None)
    where = f"byte {start:,}"
    return Worst(item.order, item.id, number, where, text, before, after, known, (start, end))


def anchors_of(
    items: Sequence[Shown], worst: Sequence[Worst]
) -> tuple[list[set[int]], dict[tuple[int, int], str]]:
    """Which spans of each text are linked to, and the anchors of tokens by their row and place."""
    marked, anchors = [], dict[tuple[int, int], str]()
    for n, item in enumerate(items):
        spans = _spans_with(item, worst)
        marked.append(set(spans.values()))
        for position, span in spans.items():
            anchors[item.order, position] = f"t{n}-0-{span}"
    return marked, anchors


def _spans_with(item: Shown, worst: Sequence[Worst]) -> dict[int, int]:
    """For each of these tokens that the page shows the number of its span."""
    numbers = [each.number for each in worst if each.order == item.order]
    if item.why_plain or not numbers:
        return {}
    firsts = [first for first, *_ in spans_of(item.text, item.offsets)]
    return {n: bisect_right(firsts, n) - 1 for n in numbers if n < item.size}


def place_of(worst: Worst, anchors: Mapping[tuple[int, int], str], step: str) -> Place:
    """A link where the page has an anchor for it; else it says where it stands."""
    href = anchors.get((worst.order, worst.number), "")
    return Place(
        href=href,
        sequence=worst.id,
        token=worst.token,
        before=visible(worst.before),
        after=visible(worst.after),
        cells=list(map(Cell, worst.values)),
        step=step,
        where="" if href else worst.where,
    )
