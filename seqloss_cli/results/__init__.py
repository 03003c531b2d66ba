"""Results files as data: what `score` and `cond` wrote, read back and checked."""

from seqloss_cli.results.files import NoResultsError, ResultsFile, open_results
from seqloss_cli.results.rows import Favourites, ResultRow, TokenLosses, totals_of_row
from seqloss_cli.results.runs import NUMERICS, POLICIES, TOKENIZER, Difference, run_differences

__all__ = [
    "NUMERICS",
    "POLICIES",
    "TOKENIZER",
    "Difference",
    "Favourites",
    "NoResultsError",
    "ResultRow",
    "ResultsFile",
    "TokenLosses",
    "open_results",
    "run_differences",
    "totals_of_row",
]
