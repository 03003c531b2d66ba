"""Results files as data: what `score`, `cond` and `diverge` wrote, read back and checked."""

from seqloss_cli.results.diverged import DIVERGENCE_KINDS, DivergedRow
from seqloss_cli.results.files import (
    NoResultsError,
    ResultsFile,
    ResultsOf,
    RowKind,
    loss_kinds,
    open_any,
    open_results,
)
from seqloss_cli.results.rows import Favourites, ResultRow, TokenLosses, totals_of_row
from seqloss_cli.results.runs import NUMERICS, POLICIES, TOKENIZER, Difference, run_differences

__all__ = [
    "DIVERGENCE_KINDS",
    "NUMERICS",
    "POLICIES",
    "TOKENIZER",
    "Difference",
    "DivergedRow",
    "Favourites",
    "NoResultsError",
    "ResultRow",
    "ResultsFile",
    "ResultsOf",
    "RowKind",
    "TokenLosses",
    "loss_kinds",
    "open_any",
    "open_results",
    "run_differences",
    "totals_of_row",
]
