"""Ask which parameters make the total loss over a data set least, and draw loss over checkpoints.

The pre-training objective is that total. Checkpoints are compared over the rows that all of them
have; a curve has a point for each results file, or for each checkpoint of what `objective` wrote.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from seqloss_cli.analysis import joining
from seqloss_cli.analysis.compare import CompareOptions, Comparison, Comparisons, compare
from seqloss_cli.analysis.plot_data import Measure, Metric, without_directories
from seqloss_cli.analysis.summarize import Clusters, GroupLosses, Summarizer, SummaryOptions
from seqloss_cli.core.errors import UsageError
from seqloss_cli.metrics.intervals import Estimate, unknown
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.schema.scores import ResultRow

OpenRows = Callable[[], Sequence[Iterable[ResultRow]]]
"""Opens the results of every checkpoint, from the start."""
_STEP = re.compile(
    r"(?:^|[^a-z])(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d+)", re.IGNORECASE
)
_NO_TOTAL = "an infinite loss, or nothing scored"


@dataclass(frozen=True, slots=True)
class Objective:
    """The totals of several checkpoints over the rows that all of them score alike."""

    totals: list[Totals]
    """For each checkpoint."""
    means: list[Estimate]
    """Their mean losses, in nats per token."""
    best: int | None
    """Number of the checkpoint with the least total loss; None where no total is known."""
    comparisons: Comparisons
    """Every other checkpoint (A) with the best (B)."""

    @property
    def lead(self) -> Comparison | None:
        """Return the comparison of the best checkpoint with the one that comes nearest."""
        known = [pair for pair in self.comparisons.pairs if self.totals[pair.first].total_loss]
        if self.best is None or not known:
            return None
        return min(known, key=lambda pair: self.totals[pair.first].total_loss or 0.0)


def find_objective(open_rows: OpenRows, same_tokenizer: bool, options: CompareOptions) -> Objective:
    """Return totals and the best checkpoint; the results are read twice.

    A checkpoint with an infinite loss has no total (rule 3), and is never the best.
    """
    files = open_rows()
    sums, clusters = [GroupLosses() for _ in files], Clusters(options.cluster)
    # rows with an infinite loss stay: they make the total of a checkpoint unknown (rule 3)
    for rows in joining.join_usable(files, joining.JoinReport(), same_tokenizer, _why_useless):
        cluster = clusters.number_of(joining.cluster_of(rows, options.cluster))
        for checkpoint, row in zip(sums, rows, strict=True):
            checkpoint.add(row, cluster)
    totals = [each.totals for each in sums]
    losses = [each.total_loss for each in totals]
    known = [n for n, loss in enumerate(losses) if loss is not None]
    best = min(known, key=lambda n: losses[n] or 0.0) if known else None
    found = compare(open_rows(), same_tokenizer, options, best or 0)
    by_cluster, confidence = bool(options.cluster), options.confidence
    means = [each.mean(by_cluster, confidence, _NO_TOTAL) for each in sums]
    return Objective(totals, means, best, found)


def _why_useless(rows: joining.JoinedRows, same_tokenizer: bool) -> str | None:
    """Return why rows are of no use to totals; unlike for a comparison, infinite losses are."""
    if not any(row.totals.n_scored for row in rows):
        return "nothing scored"
    return joining.why_scored_differently(rows, same_tokenizer)


def training_step(name: str) -> int | None:
    """Return the step of a checkpoint: of its trainer_state.json, else the number in its name."""
    state = Path(name) / "trainer_state.json"
    try:
        step = json.loads(state.read_text())["global_step"]
        # a folder that a trainer wrote may be called anything: its record comes before its name
        return step if isinstance(step, int) else None
    except (OSError, ValueError, KeyError, TypeError):
        found = _STEP.findall(name)
        return int(found[-1]) if found else None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A checkpoint on a curve."""

    model: str
    """Name of the checkpoint."""
    label: str
    """Name on the axis."""
    step: int | None
    """Training step; None where its name tells none."""
    estimate: Estimate
    """In the unit of the axis."""


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """Loss over checkpoints."""

    kind: ClassVar[str] = "curve"
    axis: str
    """Name and unit of the axis."""
    points: list[CurvePoint]
    """By training step where each checkpoint has one of its own, else as they were given."""
    by_step: bool
    """True where the axis is the training step."""
    n_documents: int
    """Documents of every checkpoint."""
    rows: joining.RowsUsed | None
    """Rows that the points are of; None for what `objective` wrote, which tells of them itself."""
    notes: list[str]
    """Reasons to doubt an interval."""


def curve_of_results(
    files: Sequence[Iterable[ResultRow]],
    models: Sequence[str],
    same_tokenizer: bool,
    measure: Measure,
    options: SummaryOptions,
) -> tuple[CurvePlot, joining.JoinReport]:
    """Return a point for each results file, over the rows that all of them have."""
    report = joining.JoinReport()
    sums = [Summarizer(options) for _ in files]
    joined = joining.join_usable(files, report, same_tokenizer, _why_useless)
    for n, rows in enumerate(joined):
        for summarizer, row in zip(sums, _in_one_cluster(rows, options.cluster), strict=True):
            # tokens matter as long as there is one document, whose blocks are resampled
            summarizer.add(replace(row, tokens=None) if n else row)
    found = [each.summary() for each in sums]
    report.n_without_cluster = found[0].n_without_cluster
    used = report.used()
    nothing = unknown(None, used.n_used, _NO_TOTAL)
    estimates = [measure.of(each.whole.estimates.get(measure.metric, nothing)) for each in found]
    steps = [training_step(model) for model in models]
    curve = _curve(models, steps, estimates, measure, used.n_used)
    return replace(curve, rows=used, notes=found[0].whole.notes), report


def _in_one_cluster(rows: joining.JoinedRows, cluster: str | None) -> joining.JoinedRows:
    """Give the field to every row of an input: what only some files have holds for all."""
    if cluster is None:
        return rows
    value = joining.cluster_of(rows, cluster)
    return tuple(replace(row, fields={**row.fields, cluster: value}) for row in rows)


def _curve(
    models: Sequence[str],
    steps: Sequence[int | None],
    estimates: Sequence[Estimate],
    measure: Measure,
    n_documents: int,
) -> CurvePlot:
    labels = without_directories(models)
    points = [CurvePoint(*each) for each in zip(models, labels, steps, estimates, strict=True)]
    # one checkpoint without a step, or two with one, and there is no order by steps
    by_step = None not in steps and len(set(steps)) == len(steps)
    if by_step:
        points.sort(key=lambda point: point.step or 0)
    return CurvePlot(measure.label, points, by_step, n_documents, None, [])


def is_objective(document: Mapping[str, Any]) -> bool:
    """Tell whether a JSON document is one that `objective --json` writes."""
    checkpoints = document.get("checkpoints")
    return isinstance(checkpoints, list) and bool(checkpoints)


def curve_of_objective(document: Mapping[str, Any], measure: Measure) -> CurvePlot:
    """Return the curve of what `objective --json` wrote; raises UsageError for anything else."""
    rows = document["checkpoints"]
    try:
        estimates = [measure.of(_estimate(row, measure.metric)) for row in rows]
        models = [str(row["model"]) for row in rows]
        steps = [None if row["step"] is None else int(row["step"]) for row in rows]
        return _curve(models, steps, estimates, measure, int(rows[0]["n_sequences"]))
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise UsageError(f"this is no report of seqloss objective --json: {error!r}") from error


def _estimate(row: Mapping[str, Any], metric: Metric) -> Estimate:
    """Return the metric of a checkpoint's row; raises ValueError for impossible figures."""
    ends = [row["mean_loss"], row["mean_loss_low"], row["mean_loss_high"]]
    value, low, high = (None if end is None else float(end) for end in ends)
    # the document may be of anyone: nothing that is no loss is drawn
    for end in (value, low, high):
        if end is not None and not math.isfinite(end):
            raise ValueError(f"a mean loss of {end}")
    if value is not None and (value < 0 or (low or value) > value or (high or value) < value):
        raise ValueError(f"a mean loss of {value} between {low} and {high}")
    mean = Estimate(value, low, high, n=int(row["n_sequences"]), method=row["interval_method"])
    if metric == "perplexity":
        return mean.exp()
    if metric == "bits_per_byte":
        bits = row["bits_per_byte"]
        return unknown(
            None if bits is None else float(bits), mean.n, "no interval: the report has none"
        )
    return mean
