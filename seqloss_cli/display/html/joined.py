"""Rows of two results files that are of one input, as a page shows them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from seqloss_cli.analysis.aligning import AlignedLosses, align
from seqloss_cli.analysis.joining import JoinReport, join, why_not_comparable
from seqloss_cli.analysis.summarize import Summarizer, Summary, SummaryOptions
from seqloss_cli.core.byte_spans import is_edge
from seqloss_cli.core.records import Floats
from seqloss_cli.display.html.page import PageOptions
from seqloss_cli.display.html.selecting import Chosen, Selection
from seqloss_cli.display.html.shown import Shown, cut, shown
from seqloss_cli.display.html.worst import Worst, WorstStretches
from seqloss_cli.metrics.resampling import Reservoir
from seqloss_cli.results.schema.scores import ResultRow

_PANES = 3


@dataclass(frozen=True, slots=True)
class ShownPair:
    """One input under both models."""

    a: Shown
    b: Shown
    n_units: int
    """Scored tokens, or bytes where the tokenizers differ."""

    @property
    def size(self) -> int:
        return self.a.size + self.b.size + max(self.a.size, self.b.size)

    @property
    def has_text(self) -> bool:
        return not self.a.why_plain and not self.b.why_plain and self.a.text == self.b.text

    @property
    def same_tokens(self) -> bool:
        return self.a.offsets == self.b.offsets

    def aligned(self) -> AlignedLosses:
        return align(self.a.covered(), self.b.covered())

    def per_unit(self) -> list[float]:
        """Losses of A and B, and B - A."""
        a, b = self.a.totals.total_loss, self.b.totals.total_loss
        assert a is not None
        assert b is not None
        return [a / self.n_units, b / self.n_units, (b - a) / self.n_units]


@dataclass(frozen=True, slots=True)
class GatheredPair:
    summaries: list[Summary]
    """Of the rows that are compared."""
    losses: list[Floats]
    differences: Floats
    """B - A of the stretches that both models see alike, in all texts; or of a sample."""
    n_differences: int
    worst: list[Worst]
    """Of those the largest, in all texts."""
    chosen: Chosen[ShownPair]


def gather_pair(
    files: Sequence[Iterable[ResultRow]], same_tokenizer: bool, options: PageOptions
) -> GatheredPair:
    """Joined, and left out, as `compare` does."""
    asked = SummaryOptions(
        n_extremes=0, seed=options.seed, cluster=options.cluster, confidence=options.confidence
    )
    sums = [Summarizer(asked) for _ in files]
    losses = [Reservoir(seed=options.seed) for _ in files]
    differences, worst = Reservoir(seed=options.seed), WorstStretches(options.n_worst)
    selection = Selection[ShownPair](options.limits, options.seed, lambda p: p.size, cut_pair)
    for order, rows in enumerate(join(files, JoinReport())):
        if why_not_comparable(rows, same_tokenizer):
            continue
        for row, summarizer, reservoir in zip(rows, sums, losses, strict=True):
            summarizer.add(row)
            if row.tokens is not None:
                reservoir.add(row.tokens.losses[row.tokens.counted])
        totals = rows[0].totals
        n_units = totals.n_scored if same_tokenizer else totals.n_scored_bytes
        pair = ShownPair(shown(rows[0], order), shown(rows[1], order), n_units)
        peak = 0.0
        if pair.has_text:
            aligned = pair.aligned()
            known = np.array([d for d in aligned.differences if d is not None])
            peak = float(np.abs(known).max(initial=0.0))
            differences.add(known)
            worst.add(pair.a, aligned)
        selection.add(pair, abs(pair.per_unit()[2]), peak)
    return GatheredPair(
        [summarizer.summary() for summarizer in sums],
        [each.values() for each in losses],
        differences.values(),
        differences.n_seen,
        worst.items(),
        selection.chosen(),
    )


def cut_pair(pair: ShownPair, n_tokens: int) -> ShownPair:
    """Both at the same byte, so that the three panes have at most about so many tokens."""
    if pair.size <= n_tokens or not pair.has_text:
        return pair
    most = max(1, n_tokens // _PANES)
    ends = [side.offsets[min(most, side.size)] for side in (pair.a, pair.b)]
    common = set(pair.a.offsets) & set(pair.b.offsets)
    place = max(
        (e for e in common if e <= min(ends) and is_edge(pair.a.text, e)), default=pair.a.offsets[0]
    )
    a, b = (cut(side, max(1, bisect_right(side.offsets, place) - 1)) for side in (pair.a, pair.b))
    return ShownPair(a, b, pair.n_units)
