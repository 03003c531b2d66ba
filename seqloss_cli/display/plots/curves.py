"""Loss over checkpoints: a point for each results file, over the rows that all of them have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from seqloss_cli.analysis.joining import Joined, cluster_of, join, scored_apart
from seqloss_cli.analysis.objective import training_step
from seqloss_cli.analysis.summarize import Summarizer, SummaryOptions
from seqloss_cli.core.errors import UsageError
from seqloss_cli.display.plots.measures import Measure, Metric, without_directories
from seqloss_cli.display.plots.together import RowsTaken, Together
from seqloss_cli.metrics.statistics import Estimate, unknown
from seqloss_cli.results.schema.scores import ResultRow


@dataclass(frozen=True, slots=True)
class CurvePoint:
    model: str
    label: str
    step: int | None
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class CurvePlot:
    kind: ClassVar[str] = "curve"
    axis: str
    points: list[CurvePoint]
    """By training step where all of them have one of their own, else as they were given."""
    by_step: bool
    n_documents: int
    rows: RowsTaken | None
    """None of a report of `objective`, which tells of them itself."""
    notes: list[str]


def curve_plot(
    files: Sequence[Iterable[ResultRow]],
    models: Sequence[str],
    same_tokenizer: bool,
    measure: Measure,
    options: SummaryOptions,
) -> tuple[CurvePlot, Together]:
    together = Together()
    sums = [Summarizer(options) for _ in files]
    n_rows = 0
    for rows in join(files, together.joined):
        if reason := _useless(rows, same_tokenizer):
            together.left_out.setdefault(reason, []).append(rows[0].id)
            continue
        for summarizer, row in zip(sums, _in_one_cluster(rows, options.cluster), strict=True):
            # tokens matter as long as there is one document, whose blocks are resampled
            summarizer.add(replace(row, tokens=None) if n_rows else row)
        n_rows += 1
    found = [each.summary() for each in sums]
    together.n_without_cluster = found[0].n_without_cluster
    nothing = unknown(None, n_rows, "an infinite loss, or nothing scored")
    estimates = [measure.of(each.whole.estimates.get(measure.metric, nothing)) for each in found]
    steps = [training_step(model) for model in models]
    curve = made_curve(models, steps, estimates, measure, n_rows, together.taken(n_rows))
    return replace(curve, notes=found[0].whole.notes), together


def _useless(rows: Joined, same_tokenizer: bool) -> str | None:
    if not any(row.totals.n_scored for row in rows):
        return "nothing scored"
    return scored_apart(rows, same_tokenizer)


def _in_one_cluster(rows: Joined, cluster: str | None) -> Joined:
    """What only some files say of it holds for all."""
    if cluster is None:
        return rows
    value = cluster_of(rows, cluster)
    return tuple(replace(row, fields={**row.fields, cluster: value}) for row in rows)


def made_curve(
    models: Sequence[str],
    steps: Sequence[int | None],
    estimates: Sequence[Estimate],
    measure: Measure,
    n_documents: int,
    rows: RowsTaken | None = None,
) -> CurvePlot:
    labels = without_directories(models)
    points = [CurvePoint(*each) for each in zip(models, labels, steps, estimates, strict=True)]
    by_step = None not in steps and len(set(steps)) == len(steps)
    if by_step:
        points.sort(key=lambda point: point.step or 0)
    return CurvePlot(measure.label, points, by_step, n_documents, rows, [])


# -- what `objective --json` wrote ---------------------------------------------------------------


def is_objective(document: Mapping[str, Any]) -> bool:
    checkpoints = document.get("checkpoints")
    return isinstance(checkpoints, list) and bool(checkpoints)


def curve_of_objective(document: Mapping[str, Any], measure: Measure) -> CurvePlot:
    """Raises UsageError for a document that is not as `objective` writes it."""
    rows = document["checkpoints"]
    try:
        estimates = [measure.of(_estimate(row, measure.metric)) for row in rows]
        models = [str(row["model"]) for row in rows]
        steps = [None if row["step"] is None else int(row["step"]) for row in rows]
        return made_curve(models, steps, estimates, measure, int(rows[0]["n_sequences"]))
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise UsageError(f"this is no report of seqloss objective --json: {error!r}") from error


def _estimate(row: Mapping[str, Any], metric: Metric) -> Estimate:
    ends = [row["mean_loss"], row["mean_loss_low"], row["mean_loss_high"]]
    value, low, high = (None if end is None else float(end) for end in ends)
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
