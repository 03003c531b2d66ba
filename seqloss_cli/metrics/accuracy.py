"""Whether the choice that a model prefers is the right one, and how often.

`acc`, `acc_norm`, `acc_bytes` and `acc_mutual_info` are defined as in EleutherAI's
lm-evaluation-harness: the best choice by sum, per character, per byte, and by the difference from
the choice without the prompt; the first of equals is the best.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from seqloss_cli.metrics.ranking import Ranking, flags_of
from seqloss_cli.metrics.statistics import Estimate, proportion_estimate
from seqloss_cli.metrics.totals import added

ACCURACIES = {
    "acc": "sum",
    "acc_norm": "char",
    "acc_bytes": "byte",
    "acc_tokens": "token",
    "acc_pmi": "pmi",
    "acc_mutual_info": "mutual_information",
}
"""Name of a figure to the score whose best choice it judges."""


@dataclass(frozen=True, slots=True)
class RankTotals:
    """Counts over rows; `+` joins two sets of rows."""

    n_rows: int = 0
    n_choices: int = 0
    n_tokens: int = 0
    """Of prompts and choices together, a prompt as often as it has choices."""
    n_with_answer: int = 0
    n_judged: Mapping[str, int] = field(default_factory=dict)
    """Accuracy to the rows whose best choice was judged right or wrong."""
    n_correct: Mapping[str, int] = field(default_factory=dict)
    n_ordered: Mapping[str, int] = field(default_factory=dict)
    """Score to the rows that have an order under it."""
    n_tied: Mapping[str, int] = field(default_factory=dict)
    """Score to the rows whose best choice has an equal."""
    guesses: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Number of right choices and of all, to the rows with a right answer that have them."""
    flags: Mapping[str, int] = field(default_factory=dict)
    boundaries: Mapping[str, int] = field(default_factory=dict)
    """Choices that meet their prompts in each of the ways."""

    def __add__(self, other: RankTotals) -> RankTotals:
        return added(self, other)

    @property
    def chance(self) -> float | None:
        """The accuracy to expect of a guess."""
        if not self.n_with_answer:
            return None
        right = math.fsum(n * right / among for (right, among), n in self.guesses.items())
        return right / self.n_with_answer


def judged(ranking: Ranking) -> dict[str, bool | None] | None:
    """Accuracy to whether the best choice is a right one, of the scores that were asked for;
    None where the order, or the right answer, is not known."""
    return judged_orders(ranking.orders, ranking.score_names, ranking.choices.answers)


def judged_orders(
    orders: Mapping[str, Sequence[int]],
    score_names: Collection[str],
    answers: Collection[int] | None,
) -> dict[str, bool | None] | None:
    """The same of orders by score."""
    if answers is None:
        return None
    best: dict[str, int | None] = {
        name: orders[score][0] if score in orders else None
        for name, score in ACCURACIES.items()
        if score in score_names
    }
    return {name: None if n is None else n in answers for name, n in best.items()}


def rank_totals(ranking: Ranking) -> RankTotals:
    """The counts of one row."""
    scores = [choice.score for choice in ranking.scored]
    seams = [
        s.sequence.prompt_boundary.boundary
        for s in scores
        if s.sequence.prompt_boundary is not None
    ]
    counts = counts_of(
        judged(ranking), ranking.choices.answers, ranking.orders, ranking.tied, seams,
        flags_of(ranking),
    )  # fmt: skip
    return replace(counts, n_tokens=sum(s.sequence.n_tokens for s in scores))


def counts_of(
    judged: Mapping[str, bool | None] | None,
    answers: Collection[int] | None,
    orders: Iterable[str],
    tied: Iterable[str],
    seams: Sequence[str | None],
    flags: Iterable[str],
) -> RankTotals:
    """Of one row, without its tokens; `seams` are how each choice meets the prompt."""
    known = {name: right for name, right in (judged or {}).items() if right is not None}
    return RankTotals(
        n_rows=1,
        n_choices=len(seams),
        n_with_answer=int(answers is not None),
        n_judged=dict.fromkeys(known, 1),
        n_correct={name: int(right) for name, right in known.items()},
        n_ordered=dict.fromkeys(orders, 1),
        n_tied=dict.fromkeys(tied, 1),
        guesses={} if answers is None else {(len(set(answers)), len(seams)): 1},
        flags=dict.fromkeys(flags, 1),
        boundaries={kind: seams.count(kind) for kind in seams if kind is not None},
    )


def accuracies(totals: RankTotals) -> dict[str, Estimate]:
    """Of those that could be judged."""
    return {
        name: proportion_estimate(totals.n_correct.get(name, 0), totals.n_judged[name])
        for name in ACCURACIES
        if name in totals.n_judged
    }
