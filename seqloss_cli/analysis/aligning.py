"""Two models' losses on the bytes of one text, whatever its tokens are.

Used by whatever shows a difference within a text: the web page and the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from seqloss_cli.core.byte_spans import TokenSpan, is_edge, spans_of


@dataclass(frozen=True, slots=True)
class Covered:
    """The tokens of one model, N of them."""

    offsets: Sequence[int]
    """Where in the bytes of the text they begin and end, N + 1."""
    losses: Sequence[float | None]
    """Nats; None where one does not count."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """The smallest stretches at whose ends both models have a token's end."""

    spans: list[TokenSpan]
    """Of A."""
    other: list[TokenSpan]
    """Of B, over the same bytes."""
    first: list[float | None]
    """Loss of A, nats."""
    second: list[float | None]
    difference: list[float | None]
    """B - A; None where not both count there, or one is infinite."""
    n_merged: int
    """Stretches that several tokens of A, or of B, cover together."""


def align(text: bytes, a: Covered, b: Covered) -> Aligned:
    """Tokens of no bytes are told apart only where both have the same tokens."""
    if a.offsets == b.offsets:
        spans = other = spans_of(text, a.offsets)
    else:
        edges = sorted(set(a.offsets) & set(b.offsets))
        edges = [edge for edge in edges if is_edge(text, edge)]
        spans, other = _between(a.offsets, edges), _between(b.offsets, edges)
    first = [summed(a.losses[span[0] : span[1]]) for span in spans]
    second = [summed(b.losses[span[0] : span[1]]) for span in other]
    differences = [
        None if x is None or y is None or not math.isfinite(y - x) else y - x
        for x, y in zip(first, second, strict=True)
    ]
    many = zip(_covering(a.offsets, spans), _covering(b.offsets, other), strict=True)
    n_merged = sum(max(pair) > 1 for pair in many)
    return Aligned(spans, other, first, second, differences, n_merged)


def _between(offsets: Sequence[int], edges: Sequence[int]) -> list[TokenSpan]:
    """Tokens that cover what lies between neighbouring edges; those of no bytes go with what comes
    after them, at the end with what came before."""
    found, first = list[TokenSpan](), 0
    for start, end in pairwise(edges):
        last = first
        while last < len(offsets) - 1 and (offsets[last + 1] < end or offsets[last] < end):
            last += 1
        found.append((first, last, start, end))
        first = last
    if found and first < len(offsets) - 1:
        found[-1] = (found[-1][0], len(offsets) - 1, *found[-1][2:])
    return found


def _covering(offsets: Sequence[int], spans: Sequence[TokenSpan]) -> Iterator[int]:
    """How many tokens of each span cover any bytes."""
    for first, last, _, _ in spans:
        yield sum(offsets[t] < offsets[t + 1] for t in range(first, last))


def summed(losses: Sequence[float | None]) -> float | None:
    """Of the tokens that are scored; None where none is."""
    known = [loss for loss in losses if loss is not None]
    return math.fsum(known) if known else None
