"""Cut a sequence into windows, each target scored in one of them: integers only.

Rule 7 of docs/numbers.md. Window 1 scores targets 1 … min(C, n - 1). Let u be the first target that
a later window has to score. It scores u … e, e = min(u + S - 1, n - 1), and feeds the C tokens that
end at e - 1. Where the sequence began with BOS, these are BOS and the C - 1 tokens that end there.
x_{n-1} is never fed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from seqloss_cli.core.backend import Window


def plan_windows(n_tokens: int, context: int, stride: int, has_bos: bool) -> Iterator[Window]:
    """Yield the windows of a sequence: every target 1 … n_tokens - 1 is scored exactly once.

    `context` is the most tokens one forward pass is fed, `stride` (1 … context) the most targets
    that a window after the first scores.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride must be from 1 to the context {context}, not {stride}")
    last = n_tokens - 1
    end = min(context, last)
    if end < 1:
        return
    yield Window(start=0, end=end, score_from=1, bos_first=False)
    while end < last:
        first, end = end + 1, min(end + stride, last)
        # BOS takes a place of the context: losses without it are those of a text that begins in
        # the middle, which the model may never have seen.
        start = end - context + has_bos
        yield Window(start=start, end=end, score_from=first, bos_first=has_bos)


def with_end(
    windows: Iterable[Window], n_tokens: int, context: int, has_bos: bool
) -> Iterator[Window]:
    """Yield the windows with one target more, `n_tokens`: whatever follows x_{n-1}, which is fed
    for that alone.

    The last window takes it in if it has room for one more token, else it gets a window that feeds
    the last tokens. No other target sees more or less than without it.
    """
    last: Window | None = None
    for window in windows:
        if last is not None:
            yield last
        last = window
    if last is not None and last.n_fed < context:
        yield replace(last, end=n_tokens)
        return
    if last is not None:
        yield last
    is_cut = n_tokens > context
    start = n_tokens - context + has_bos if is_cut else 0
    yield Window(start=start, end=n_tokens, score_from=n_tokens, bos_first=has_bos and is_cut)
