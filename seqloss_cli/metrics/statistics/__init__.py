"""How sure a figure is. The unit that is drawn at random is a document (or a cluster of them, or a
block of one long text), never a token: tokens of a text are not independent."""

from seqloss_cli.metrics.statistics.estimates import (
    FEW_UNITS,
    Estimate,
    block_bootstrap,
    bootstrap_ratio,
    cluster_quantiles,
    default_block,
    interval_notes,
    proportion_estimate,
    quantile_estimate,
    ratio_estimate,
    share_estimate,
    unknown,
)
from seqloss_cli.metrics.statistics.gaps import UnitGaps, mean_gap_estimate
from seqloss_cli.metrics.statistics.permutation import SignFlip, holm, sign_flip_test
from seqloss_cli.metrics.statistics.reservoir import Reservoir

__all__ = [
    "FEW_UNITS",
    "Estimate",
    "Reservoir",
    "SignFlip",
    "UnitGaps",
    "block_bootstrap",
    "bootstrap_ratio",
    "cluster_quantiles",
    "default_block",
    "holm",
    "interval_notes",
    "mean_gap_estimate",
    "proportion_estimate",
    "quantile_estimate",
    "ratio_estimate",
    "share_estimate",
    "sign_flip_test",
    "unknown",
]
