"""What is measured on an axis, in which unit, and how the axis says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from seqloss_cli.metrics.statistics import Estimate

Metric = Literal["mean_loss", "bits_per_byte", "perplexity"]
NATS_PER_BIT = math.log(2)


@dataclass(frozen=True, slots=True)
class Measure:
    metric: Metric = "mean_loss"
    bits: bool = False
    """Of losses; rates have units of their own."""

    @property
    def nats(self) -> float:
        """In one unit of loss."""
        return NATS_PER_BIT if self.bits else 1.0

    @property
    def unit(self) -> str:
        return "bits" if self.bits else "nats"

    @property
    def label(self) -> str:
        if self.metric == "mean_loss":
            return f"Mean loss ({self.unit} per token)"
        return "Perplexity (per token)" if self.metric == "perplexity" else "Loss (bits per byte)"

    def of(self, estimate: Estimate) -> Estimate:
        """An estimate of the metric, in nats if it is a loss, in the unit of the axis."""
        return estimate.times(1 / self.nats) if self.metric == "mean_loss" else estimate


def without_directories(names: Sequence[str]) -> list[str]:
    """Where what is left tells them apart."""
    last = [PurePath(name).name or name for name in names]
    return last if len(set(last)) == len(names) else list(names)
