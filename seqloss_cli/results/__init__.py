"""Results files as data: what the commands that score wrote, read back and checked."""

from seqloss_cli.results.diverged import DIVERGENCE_KINDS, DivergenceRow
from seqloss_cli.results.files import (
    NoResultsError,
    ResultsFile,
    ResultsOf,
    RowKind,
    loss_kinds,
    open_any,
    open_results,
)
from seqloss_cli.results.ranked import RANKING_KINDS, RankedChoice, RankedRow
from seqloss_cli.results.rows import ResultRow, TokenLosses, Top1, totals_of_row
from seqloss_cli.results.runs import NUMERICS, POLICIES, TOKENIZER, Difference, run_differences

__all__ = [
    "DIVERGENCE_KINDS",
    "NUMERICS",
    "POLICIES",
    "RANKING_KINDS",
    "TOKENIZER",
    "Difference",
    "DivergenceRow",
    "NoResultsError",
    "RankedChoice",
    "RankedRow",
    "ResultRow",
    "ResultsFile",
    "ResultsOf",
    "RowKind",
    "TokenLosses",
    "Top1",
    "loss_kinds",
    "open_any",
    "open_results",
    "run_differences",
    "totals_of_row",
]
