"""Counts over ranked rows, and accuracies: how often the preferred choice is a right one.

Definitions of the accuracies, by name, stand in `ranking.ACCURACIES`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from seqloss_cli.metrics.intervals import Estimate, proportion_estimate
from seqloss_cli.metrics.ranking import ACCURACIES, Ranking
from seqloss_cli.metrics.totals import SumRecord


@dataclass(frozen=True, slots=True)
class RankTotals(SumRecord):
    """Counts over rows."""

    n_rows: int = 0
    n_choices: int = 0
    """Choices of these rows."""
    n_tokens: int = 0
    """Tokens of prompts and choices together, of a prompt as often as it has choices."""
    n_with_answer: int = 0
    """Rows with an answer."""
    n_compared: Mapping[str, int] = field(default_factory=dict)
    """Accuracy to the rows whose best choice could be compared with an answer."""
    n_correct: Mapping[str, int] = field(default_factory=dict)
    n_ordered: Mapping[str, int] = field(default_factory=dict)
    """Score to the rows that have an order under it."""
    n_tied: Mapping[str, int] = field(default_factory=dict)
    """Score to the rows whose best choice has an equal."""
    guesses: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Number of right choices and of all, to the rows with a right answer that have them."""
    flags: Mapping[str, int] = field(default_factory=dict)
    boundaries: Mapping[str, int] = field(default_factory=dict)
    """Kind of prompt boundary to the choices that have it."""

    @property
    def chance(self) -> float | None:
        """The accuracy to expect of a guess, as a share; None without answers."""
        if not self.n_with_answer:
            return None
        # Rows differ in how many choices they have: chance is a mean over rows, not one quotient.
        right = math.fsum(n * right / among for (right, among), n in self.guesses.items())
        return right / self.n_with_answer


def rank_totals(ranking: Ranking) -> RankTotals:
    """Return the counts of one row."""
    sequences = [choice.score.sequence for choice in ranking.scored]
    met = [s.prompt_boundary for s in sequences]
    kinds = [None if boundary is None else boundary.boundary for boundary in met]
    counts = row_counts(
        ranking.correct, ranking.choices.answers, ranking.orders, ranking.tied, kinds, ranking.flags
    )
    return replace(counts, n_tokens=sum(s.n_tokens for s in sequences))


def row_counts(
    correct: Mapping[str, bool | None] | None,
    answers: Collection[int] | None,
    orders: Iterable[str],
    tied: Iterable[str],
    boundaries: Sequence[str | None],
    flags: Iterable[str],
) -> RankTotals:
    """Return the counts of one row, without its tokens; `boundaries` has an entry per choice."""
    known = {name: right for name, right in (correct or {}).items() if right is not None}
    n_choices = len(boundaries)
    return RankTotals(
        n_rows=1,
        n_choices=n_choices,
        n_with_answer=int(answers is not None),
        n_compared=dict.fromkeys(known, 1),
        n_correct={name: int(right) for name, right in known.items()},
        n_ordered=dict.fromkeys(orders, 1),
        n_tied=dict.fromkeys(tied, 1),
        guesses={} if answers is None else {(len(set(answers)), n_choices): 1},
        flags=dict.fromkeys(flags, 1),
        boundaries={kind: boundaries.count(kind) for kind in boundaries if kind is not None},
    )


def accuracies(totals: RankTotals) -> dict[str, Estimate]:
    """Return the share of right best choices, with intervals, for each accuracy that is known."""
    return {
        name: proportion_estimate(totals.n_correct.get(name, 0), totals.n_compared[name])
        for name in ACCURACIES
        if name in totals.n_compared
    }
