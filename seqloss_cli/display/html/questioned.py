"""The rows of a results file of `rank` as a page takes them: sums, and the questions it shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.records import Floats
from seqloss_cli.display.html.page import PageOptions
from seqloss_cli.display.html.questions import (
    ShownRow,
    chance_of_right,
    lead_of,
    margin_of,
    shown_row,
    verdict_of,
    without_texts,
)
from seqloss_cli.display.html.selecting import Chosen, Selection
from seqloss_cli.metrics.accuracy import RankTotals
from seqloss_cli.metrics.ranking import SCORES
from seqloss_cli.metrics.resampling import Reservoir
from seqloss_cli.results.schema.rankings import RankedRow

_UNSURE = -1e200
"""Questions without an answer come after those with one, the closest first."""


@dataclass(frozen=True, slots=True)
class GatheredRankings:
    """All that is known once the rows were read."""

    by: str
    totals: RankTotals
    margins: Floats
    """Of questions with an answer; below 0, or -0, where another choice is preferred."""
    chances: Floats
    """Of their right choices, with the sign of the margin."""
    leads: Floats
    """Of all questions."""
    best_chances: Floats
    chosen: Chosen[ShownRow]
    has_tokens: bool


def gather_rankings(
    rows: Iterable[RankedRow], run: Mapping[str, Any], options: PageOptions
) -> GatheredRankings:
    """One pass; what is kept of the rows is what the page shows."""
    by, totals, has_tokens = _main_score(run), RankTotals(), False
    kept = {name: Reservoir(seed=options.seed) for name in ("margin", "chance", "lead", "best")}
    selection = Selection(options.limits, options.seed, lambda item: item.size, without_texts)
    for order, row in enumerate(rows):
        totals = totals + row.counts
        has_tokens |= row.choices[0].row.tokens is not None
        for name, value in _figures_of(row, by).items():
            kept[name].add(np.array([value]))
        badness = _badness(row, by)
        selection.add(shown_row(row, order), badness, badness)
    margins, chances, leads, best = (each.values() for each in kept.values())
    return GatheredRankings(
        by, totals, margins, chances, leads, best, selection.chosen(), has_tokens
    )


def _main_score(run: Mapping[str, Any]) -> str:
    """What `--by` of the run asked for."""
    rows = run.get("rows")
    by = rows.get("by") if isinstance(rows, Mapping) else None
    return by if by in SCORES else "sum"


def _figures_of(row: RankedRow, by: str) -> dict[str, float]:
    """What charts are of, as far as it is known."""
    found, lead = dict[str, float](), lead_of(row, by)
    if lead is not None:
        found["lead"] = lead
    if row.answers is None:
        chance = row.choices[row.orders[by][0]].probability if by in row.orders else None
        return found if chance is None else found | {"best": chance}
    if by not in row.orders:
        return found
    sign = 1.0 if verdict_of(row, by) == "right" else -1.0
    margin, chance = margin_of(row, by), chance_of_right(row)
    if margin is not None:
        found["margin"] = math.copysign(margin, sign)
    if chance is not None:
        found["chance"] = math.copysign(chance, sign)
    return found


def _badness(row: RankedRow, by: str) -> float:
    if row.answers is None:
        return _UNSURE * (1 + (lead_of(row, by) or 0.0))
    return -(margin_of(row, by) or 0.0)
