"""seqloss: exact losses and likelihoods of causal language models.

The documented Python API: `score`, `cond`, `rank`, `diverge`, `Scorer` and the records. Importing
this package loads neither torch nor transformers; using it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqloss_cli.core.errors import RunError, SeqlossError, UsageError
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, PairPolicy, TokenPolicy

if TYPE_CHECKING:
    from seqloss_cli.api import cond, diverge, rank, score
    from seqloss_cli.core.backend import Wants
    from seqloss_cli.core.records import Chat, Choices, Pair, Rejected, Sample, SequenceScore
    from seqloss_cli.metrics.chain_rule import ChainRule, chain_rule
    from seqloss_cli.metrics.divergence import divergence_totals
    from seqloss_cli.metrics.totals import Totals, totals_of
    from seqloss_cli.scoring.scorer import Scorer

__all__ = [
    "BatchPolicy",
    "ChainRule",
    "Chat",
    "Choices",
    "ModelChoice",
    "Pair",
    "PairPolicy",
    "Rejected",
    "RunError",
    "Sample",
    "Scorer",
    "SeqlossError",
    "SequenceScore",
    "TokenPolicy",
    "Totals",
    "UsageError",
    "Wants",
    "chain_rule",
    "cond",
    "diverge",
    "divergence_totals",
    "rank",
    "score",
    "totals_of",
]

_HOMES = {
    "api": ("cond", "diverge", "rank", "score"),
    "core.backend": ("Wants",),
    "core.records": ("Chat", "Choices", "Pair", "Rejected", "Sample", "SequenceScore"),
    "metrics.chain_rule": ("ChainRule", "chain_rule"),
    "metrics.divergence": ("divergence_totals",),
    "metrics.totals": ("Totals", "totals_of"),
    "scoring.scorer": ("Scorer",),
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `seqloss --help` stays quick."""
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
