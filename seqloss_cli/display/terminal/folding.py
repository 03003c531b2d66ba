"""What of something long is left out: not its ends, and not where a response begins."""

from __future__ import annotations

from typing import NamedTuple


class Shown(NamedTuple):
    """How many tokens or rows of something long are shown."""

    head: int
    tail: int
    around_seam: int
    """On either side."""


def folded(n: int, shown: Shown, prompt_boundary: int | None) -> list[range]:
    """What is left out of n; never a single one, in whose place a note would stand."""
    if n <= shown.head + shown.tail + 1:
        return []
    start, stop = shown.head, n - shown.tail
    if prompt_boundary is None:
        return [range(start, stop)]
    before = range(start, min(stop, max(start, prompt_boundary - shown.around_seam)))
    after = range(max(start, min(stop, prompt_boundary + shown.around_seam)), stop)
    return [fold for fold in (before, after) if len(fold) > 1]
