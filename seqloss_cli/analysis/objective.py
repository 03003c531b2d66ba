"""The pre-training objective as a question: which parameters make the total loss over a data set
least, and is their lead more than noise."""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqloss_cli.analysis.compare import CompareOptions, Comparison, Comparisons, compare
from seqloss_cli.analysis.joining import Joined, JoinReport, cluster_of, join, scored_apart
from seqloss_cli.metrics.statistics import Estimate, ratio_estimate, unknown
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.schema.scores import ResultRow

Rows = Callable[[], Sequence[Iterable[ResultRow]]]
"""Opens the results of every checkpoint, from the start."""
_STEP = re.compile(
    r"(?:^|[^a-z])(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d+)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Objective:
    totals: list[Totals]
    """Of each checkpoint, over the rows that all of them have and of which they score the same."""
    means: list[Estimate]
    """Their mean losses with intervals."""
    best: int | None
    """Place of the one with the least total loss; None where no total is known."""
    comparisons: Comparisons
    """Of every other one (A) with the best (B)."""

    @property
    def lead(self) -> Comparison | None:
        """The best against the one that comes nearest."""
        known = [pair for pair in self.comparisons.pairs if self.totals[pair.first].total_loss]
        if self.best is None or not known:
            return None
        return min(known, key=lambda pair: self.totals[pair.first].total_loss or 0.0)


class _Curve:
    """The sums of each checkpoint."""

    def __init__(self, n: int) -> None:
        self.totals = [Totals() for _ in range(n)]
        self._losses = [array("d") for _ in range(n)]
        self._counts = [array("d") for _ in range(n)]
        self._clusters: dict[Any, int] = {}
        self._of_rows = array("q")

    def add(self, rows: Joined, cluster: Any) -> None:
        for n, row in enumerate(rows):
            self.totals[n] += row.totals
            total = row.totals.total_loss
            self._losses[n].append(math.inf if total is None else total)
            self._counts[n].append(row.totals.n_scored)
        self._of_rows.append(self._clusters.setdefault(cluster, len(self._clusters)))

    def mean(self, n: int, options: CompareOptions) -> Estimate:
        y, m = np.array(self._losses[n]), np.array(self._counts[n])
        if self.totals[n].total_loss is None:
            return unknown(None, len(y), "an infinite loss, or nothing scored")
        clusters = np.array(self._of_rows) if options.cluster else None
        return ratio_estimate(y, m, clusters, options.confidence)


def find_objective(open_rows: Rows, same_tokenizer: bool, options: CompareOptions) -> Objective:
    """Reads the results twice: for the totals, and against the best one.

    A checkpoint with an infinite loss has no total (rule 3) and is not the best.
    """
    files = open_rows()
    curve = _Curve(len(files))
    for number, rows in enumerate(join(files, JoinReport())):
        if rows[0].totals.n_scored and not scored_apart(rows, same_tokenizer):
            cluster = cluster_of(rows, options.cluster)
            curve.add(rows, number if cluster is None else (type(cluster).__name__, cluster))
    losses = [sums.total_loss for sums in curve.totals]
    known = [n for n, loss in enumerate(losses) if loss is not None]
    best = min(known, key=lambda n: losses[n] or 0.0) if known else None
    found = compare(open_rows(), same_tokenizer, options, best or 0)
    means = [curve.mean(n, options) for n in range(len(files))]
    return Objective(curve.totals, means, best, found)


def training_step(name: str) -> int | None:
    """Of a checkpoint: what its trainer_state.json says, else the number in its name."""
    state = Path(name) / "trainer_state.json"
    try:
        step = json.loads(state.read_text())["global_step"]
        return step if isinstance(step, int) else None
    except (OSError, ValueError, KeyError, TypeError):
        found = _STEP.findall(name)
        return int(found[-1]) if found else None
