"""Names of `intervals` and `resampling` where modules still import them from here."""

from seqloss_cli.metrics.intervals import (
    FEW_UNITS,
    Estimate,
    interval_notes,
    proportion_estimate,
    quantile_estimate,
    ratio_estimate,
    share_estimate,
    unknown,
)
from seqloss_cli.metrics.resampling import (
    Reservoir,
    SignFlip,
    UnitGaps,
    block_bootstrap,
    bootstrap_ratio,
    cluster_quantiles,
    default_block,
    holm,
    mean_gap_estimate,
    sign_flip_test,
)

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
