"""Align two models' losses on the bytes of one text, whatever its tokens are.

Whoever shows a difference within a text uses it: the web page and the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes, TokenSpan


@dataclass(frozen=True, slots=True)
class LossesOnBytes:
    """The losses of a model's N tokens, and the bytes of the text that they cover."""

    token_bytes: TokenBytes
    losses: Sequence[float | None]
    """(N) nats; None where a token does not count."""


@dataclass(frozen=True, slots=True)
class AlignedLosses:
    """The M smallest stretches of a text at whose ends both models have the end of a token."""

    spans: list[TokenSpan]
    """Tokens of A and bytes of each stretch, (M)."""
    losses_a: list[float | None]
    """Losses of A, (M) nats; None where no token of the stretch counts."""
    losses_b: list[float | None]
    differences: list[float | None]
    """B - A, (M) nats; None where not both count there, or one is infinite."""
    n_merged: int
    """Stretches that several tokens of A, or of B, cover together."""


def align(a: LossesOnBytes, b: LossesOnBytes) -> AlignedLosses:
    """Return the losses of both models on the stretches of their common text.

    Tokens of no bytes are told apart only where both models have the same tokens.
    """
    tokens_a, tokens_b = a.token_bytes, b.token_bytes
    if np.array_equal(tokens_a.offsets, tokens_b.offsets):
        spans = spans_b = tokens_a.char_spans()
    else:
        # a stretch that ends within a character could be neither shown nor copied as text
        uncut = tokens_a.offsets[tokens_a.breaks_no_char()]
        edges = np.intersect1d(uncut, tokens_b.offsets).tolist()
        spans, spans_b = (_between(each.offsets.tolist(), edges) for each in (tokens_a, tokens_b))
    losses_a = [sum_of_known(a.losses[span[0] : span[1]]) for span in spans]
    losses_b = [sum_of_known(b.losses[span[0] : span[1]]) for span in spans_b]
    # of two infinite losses the difference is NaN, of one it is infinite: neither can be drawn
    differences = [
        None if x is None or y is None or not math.isfinite(y - x) else y - x
        for x, y in zip(losses_a, losses_b, strict=True)
    ]
    counts = zip(_n_covering(tokens_a, spans), _n_covering(tokens_b, spans_b), strict=True)
    return AlignedLosses(
        spans, losses_a, losses_b, differences, n_merged=sum(max(pair) > 1 for pair in counts)
    )


def _between(offsets: Sequence[int], edges: Sequence[int]) -> list[TokenSpan]:
    """Return the tokens that cover what lies between neighbouring edges.

    Tokens of no bytes go with the token after them, at the end of the text with the one before.
    """
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


def _n_covering(tokens: TokenBytes, spans: Sequence[TokenSpan]) -> Iterator[int]:
    """Yield for each span how many of its tokens cover any bytes."""
    covers = (tokens.widths > 0).tolist()
    for first, last, _, _ in spans:
        yield sum(covers[first:last])


def sum_of_known(losses: Sequence[float | None]) -> float | None:
    """Return the sum of the losses that are known, in nats; None, and not 0, where none is."""
    known = [loss for loss in losses if loss is not None]
    return math.fsum(known) if known else None
