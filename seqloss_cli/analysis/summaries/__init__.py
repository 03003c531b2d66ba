"""What the rows of results files come to, without a model."""

from seqloss_cli.analysis.summaries.extremes import (
    SequenceExtreme,
    TokenExtreme,
    Top,
    highest,
    token,
)
from seqloss_cli.analysis.summaries.positions import PositionLoss
from seqloss_cli.analysis.summaries.summarizing import (
    QUANTILES,
    Clusters,
    GroupSummary,
    Summarizer,
    Summary,
    SummaryOptions,
    summarize,
)

__all__ = [
    "QUANTILES",
    "Clusters",
    "GroupSummary",
    "PositionLoss",
    "SequenceExtreme",
    "Summarizer",
    "Summary",
    "SummaryOptions",
    "TokenExtreme",
    "Top",
    "highest",
    "summarize",
    "token",
]
