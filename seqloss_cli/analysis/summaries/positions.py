"""Loss by position in the sequence: positions 1, 2-3, 4-7, … with an interval over documents."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import numpy as np

from seqloss_cli.metrics.statistics import Estimate, ratio_estimate, unknown
from seqloss_cli.results.schema.scores import TokenLosses

_BINS = 63


@dataclass(frozen=True, slots=True)
class PositionLoss:
    first: int
    """Position in the sequence of the model's tokens; BOS, where there is one, stands at 0."""
    last: int
    n_scored: int
    mean_loss: Estimate
    """Nats per token, over documents that reach so far."""


class PositionSums:
    """The sums of each document in bins that double: three numbers a document and bin."""

    def __init__(self) -> None:
        self._losses = [array("d") for _ in range(_BINS)]
        self._counts = [array("d") for _ in range(_BINS)]
        self._clusters = [array("q") for _ in range(_BINS)]

    def add(self, tokens: TokenLosses, cluster: int = 0) -> None:
        places = np.flatnonzero(tokens.counted)
        places = places[places > 0]
        bins = np.frexp(places.astype(np.float64))[1] - 1
        losses, counts = np.bincount(bins, weights=tokens.losses[places]), np.bincount(bins)
        for n in np.flatnonzero(counts).tolist():
            self._losses[n].append(float(losses[n]))
            self._counts[n].append(float(counts[n]))
            self._clusters[n].append(cluster)

    def figures(self, clustered: object = None, confidence: float = 0.95) -> list[PositionLoss]:
        found = []
        for n in range(_BINS):
            if not self._counts[n]:
                continue
            y, m = np.array(self._losses[n]), np.array(self._counts[n])
            if np.isfinite(y).all():
                numbers = np.unique(np.array(self._clusters[n]), return_inverse=True)[1]
                mean = ratio_estimate(y, m, numbers if clustered else None, confidence)
            else:
                mean = unknown(None, len(y), "an infinite loss")
            found.append(PositionLoss(1 << n, (2 << n) - 1, int(math.fsum(m)), mean))
        return found
