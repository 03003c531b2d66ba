"""Models held against each other on the same inputs, by their results."""

from seqloss_cli.comparisons.comparing import (
    TIE,
    CompareOptions,
    Comparison,
    Comparisons,
    SideTotals,
    compare,
)
from seqloss_cli.comparisons.joining import JoinReport, join, not_comparable, scored_apart
from seqloss_cli.comparisons.objectives import Objective, find_objective, training_step

__all__ = [
    "TIE",
    "CompareOptions",
    "Comparison",
    "Comparisons",
    "JoinReport",
    "Objective",
    "SideTotals",
    "compare",
    "find_objective",
    "join",
    "not_comparable",
    "scored_apart",
    "training_step",
]
