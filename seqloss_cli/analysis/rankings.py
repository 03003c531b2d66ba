"""Tell how sure a model is of right and of wrong answers: margins, leads and probabilities.

A score (`by`) orders the choices of a question; the first of equal choices is the preferred one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from seqloss_cli.core.records import Floats
from seqloss_cli.metrics.accuracy import RankTotals
from seqloss_cli.metrics.intervals import Estimate, ratio_estimate
from seqloss_cli.metrics.ranking import SCORES
from seqloss_cli.metrics.resampling import Reservoir
from seqloss_cli.results.schema.rankings import RankedRow


def main_score(run: Mapping[str, Any]) -> str:
    """Return the score that `--by` of the run asked for."""
    rows = run.get("rows")
    by = rows.get("by") if isinstance(rows, Mapping) else None
    return by if by in SCORES else "sum"


def verdict_of(row: RankedRow, by: str) -> str:
    """Return `right`, `wrong` or `no order`; nothing where no answer is known."""
    if row.answers is None:
        return ""
    if by not in row.orders:
        return "no order"
    return "right" if row.orders[by][0] in row.answers else "wrong"


def margin_of(row: RankedRow, by: str) -> float | None:
    """Return the best score of a right choice less that of a wrong one, in nats.

    None where either is not known.
    """
    scores = row.scores(by)
    if scores is None or row.answers is None:
        return None
    right = [score for n, score in enumerate(scores) if n in row.answers]
    wrong = [score for n, score in enumerate(scores) if n not in row.answers]
    return _less(max(right), max(wrong)) if wrong else None


def lead_of(row: RankedRow, by: str) -> float | None:
    """Return the best score less the second, in nats; None where there is no second."""
    scores = row.scores(by)
    if scores is None or len(scores) < 2:
        return None
    first, second = row.orders[by][:2]
    return _less(scores[first], scores[second])


def probability_of_right(row: RankedRow) -> float | None:
    """Return the probability of its right choices together; None where one is not known."""
    if row.answers is None:
        return None
    found = [row.choices[n].probability for n in sorted(set(row.answers))]
    known = [probability for probability in found if probability is not None]
    # rounding can carry the sum of all choices beyond 1
    return min(1.0, math.fsum(known)) if len(known) == len(found) else None


def _less(a: float, b: float) -> float | None:
    # two impossible choices: -inf less -inf is no margin
    return None if math.isnan(a - b) else a - b


@dataclass(frozen=True, slots=True)
class RankingFigures:
    """The sums of a results file's questions; arrays beyond a million are samples."""

    totals: RankTotals
    margins: Floats
    """(questions with an answer) nats; negative, or -0.0, where a wrong choice is preferred."""
    probabilities: Floats
    """(questions with an answer) of their right choices, with the sign of the margin."""
    leads: Floats
    """(questions) nats."""
    best_probabilities: Floats
    """(questions without an answer) of the preferred choices."""

    def mean_probability(self) -> Estimate:
        """Return the mean probability of right choices."""
        found = ratio_estimate(np.abs(self.probabilities), np.ones(len(self.probabilities)))
        if found.low is None or found.high is None:
            return found
        # Student's interval may leave what probabilities can be
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


class RankingSums:
    """`add` rows as they come, then ask for the `figures`."""

    def __init__(self, by: str, seed: int) -> None:
        self._by, self._totals = by, RankTotals()
        self._kept = {name: Reservoir(seed=seed) for name in ("margin", "right", "lead", "best")}

    def add(self, row: RankedRow) -> None:
        """Add a question."""
        self._totals = self._totals + row.counts
        for name, value in self._known(row).items():
            if value is not None:
                self._kept[name].add(np.array([value]))

    def _known(self, row: RankedRow) -> dict[str, float | None]:
        by, found = self._by, {"lead": lead_of(row, self._by)}
        if by not in row.orders:
            return found
        if row.answers is None:
            return found | {"best": row.choices[row.orders[by][0]].probability}
        sign = 1.0 if verdict_of(row, by) == "right" else -1.0
        values = {"margin": margin_of(row, by), "right": probability_of_right(row)}
        return found | {
            name: None if value is None else math.copysign(value, sign)
            for name, value in values.items()
        }

    def figures(self) -> RankingFigures:
        """Return totals and samples of all rows that were added."""
        return RankingFigures(self._totals, *(each.values() for each in self._kept.values()))
