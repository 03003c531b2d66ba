"""Models held against each other on the same inputs, by their results."""

from seqloss_cli.analysis.comparisons.aligning import Aligned, Covered, align, summed
from seqloss_cli.analysis.comparisons.comparing import (
    TIE,
    CompareOptions,
    Comparison,
    Comparisons,
    SideTotals,
    compare,
)
from seqloss_cli.analysis.comparisons.documents import DocumentRows, documents_of
from seqloss_cli.analysis.comparisons.joining import (
    Joined,
    JoinReport,
    cluster_of,
    join,
    not_comparable,
    scored_apart,
)
from seqloss_cli.analysis.comparisons.objectives import Objective, find_objective, training_step

__all__ = [
    "TIE",
    "Aligned",
    "CompareOptions",
    "Comparison",
    "Comparisons",
    "Covered",
    "DocumentRows",
    "JoinReport",
    "Joined",
    "Objective",
    "SideTotals",
    "align",
    "cluster_of",
    "compare",
    "documents_of",
    "find_objective",
    "join",
    "not_comparable",
    "scored_apart",
    "summed",
    "training_step",
]
