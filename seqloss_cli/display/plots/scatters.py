"""A against B: a point for each document, or for each token, that both have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from seqloss_cli.analysis.compare import TIE
from seqloss_cli.analysis.joining import join, not_comparable
from seqloss_cli.core.records import Floats
from seqloss_cli.display.plots.histograms import counted_losses
from seqloss_cli.display.plots.measures import Measure
from seqloss_cli.display.plots.together import RowsTaken, Together
from seqloss_cli.metrics.statistics import Reservoir
from seqloss_cli.results.schema.scores import ResultRow

Of = Literal["document", "token"]
_MOST_POINTS = 20_000


@dataclass(frozen=True, slots=True)
class ScatterPlot:
    kind: ClassVar[str] = "scatter"
    unit: str
    """Of both axes: nats or bits, per token or byte."""
    labels: tuple[str, str]
    of: Of
    """What a point is."""
    first: list[float]
    second: list[float]
    """Of the points; beyond 20,000 a uniform sample of them."""
    n: int
    """Documents or tokens that the counts are of."""
    n_lower: int
    """On which B is lower by more than a tie."""
    n_tied: int
    n_higher: int
    rows: RowsTaken


class _Points:
    def __init__(self, seed: int) -> None:
        # one seed: both draw the same places
        self._first, self._second = (Reservoir(_MOST_POINTS, seed) for _ in range(2))
        self.n = self.n_lower = self.n_higher = self.n_rows = 0

    def add(self, first: Floats, second: Floats) -> None:
        """In nats per token or byte."""
        self._first.add(first)
        self._second.add(second)
        self.n_rows += 1
        self.n += len(first)
        self.n_lower += int((second - first < -TIE).sum())
        self.n_higher += int((second - first > TIE).sum())

    def plot(
        self, unit: str, nats: float, labels: Sequence[str], of: Of, together: Together
    ) -> ScatterPlot:
        return ScatterPlot(
            unit=unit,
            labels=(labels[0], labels[1]),
            of=of,
            first=(self._first.values() / nats).tolist(),
            second=(self._second.values() / nats).tolist(),
            n=self.n,
            n_lower=self.n_lower,
            n_tied=self.n - self.n_lower - self.n_higher,
            n_higher=self.n_higher,
            rows=together.taken(self.n_rows),
        )


def scatter_plot(
    files: Sequence[Iterable[ResultRow]],
    labels: Sequence[str],
    same_tokenizer: bool,
    measure: Measure,
    of: Of,
    seed: int,
) -> tuple[ScatterPlot, Together]:
    """Of documents per token, across tokenizers per byte; of tokens with one tokenizer only."""
    assert same_tokenizer or of == "document"
    together, points = Together(), _Points(seed)
    for rows in join(files, together.joined):
        if reason := not_comparable(rows, same_tokenizer):
            together.left_out.setdefault(reason, []).append(rows[0].id)
            continue
        a, b = rows
        if of == "token":
            points.add(counted_losses(a), counted_losses(b))
            continue
        n = a.totals.n_scored if same_tokenizer else a.totals.n_scored_bytes
        losses = [np.array([(row.totals.total_loss or 0.0) / n]) for row in rows]
        points.add(*losses)
    per = "token" if same_tokenizer else "byte"
    unit = measure.unit if of == "token" else f"{measure.unit} per {per}"
    return points.plot(unit, measure.nats, labels, of, together), together
