"""Loss over checkpoints: a point for each results file, over the rows that all of them have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import orjson

from seqloss_cli.comparisons import JoinReport, join, scored_apart, training_step
from seqloss_cli.errors import RowError, UsageError
from seqloss_cli.plots.measures import Measure, Metric, without_directories
from seqloss_cli.reading.streams import open_input
from seqloss_cli.results import ResultRow
from seqloss_cli.statistics import Estimate, unknown
from seqloss_cli.summaries import Summarizer, SummaryOptions


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
    notes: list[str]


@dataclass(slots=True)
class Together:
    """Which rows of several files could be taken together."""

    joined: JoinReport = field(default_factory=JoinReport)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Ids by reason."""
    n_without_cluster: int = 0


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
        if not rows[0].totals.n_scored:
            continue
        if reason := scored_apart(rows, same_tokenizer):
            together.left_out.setdefault(reason, []).append(rows[0].id)
            continue
        for summarizer, row in zip(sums, rows, strict=True):
            # tokens matter as long as there is one document, whose blocks are resampled
            summarizer.add(replace(row, tokens=None) if n_rows else row)
        n_rows += 1
    found = [each.summary() for each in sums]
    together.n_without_cluster = found[0].n_without_cluster
    nothing = unknown(None, n_rows, "an infinite loss, or nothing scored")
    estimates = [measure.of(each.whole.estimates.get(measure.metric, nothing)) for each in found]
    return made_curve(models, estimates, measure, n_rows, found[0].whole.notes), together


def made_curve(
    models: Sequence[str],
    estimates: Sequence[Estimate],
    measure: Measure,
    n_documents: int,
    notes: list[str],
) -> CurvePlot:
    steps = [training_step(model) for model in models]
    labels = without_directories(models)
    points = [CurvePoint(*each) for each in zip(models, labels, steps, estimates, strict=True)]
    by_step = None not in steps and len(set(steps)) == len(steps)
    if by_step:
        points.sort(key=lambda point: point.step or 0)
    return CurvePlot(measure.label, points, by_step, n_documents, notes)


# -- what `objective --json` wrote ---------------------------------------------------------------


def read_objective(name: str) -> Mapping[str, Any] | None:
    """The document, or None where the file holds something else."""
    try:
        with open_input(name) as (stream, _):
            if not stream.read(1).startswith(b"{"):
                return None
        with open_input(name) as (stream, _):
            document = orjson.loads(stream.read())
    except (RowError, orjson.JSONDecodeError):
        return None
    checkpoints = document.get("checkpoints")
    return document if isinstance(checkpoints, list) and checkpoints else None


def curve_of_objective(document: Mapping[str, Any], measure: Measure) -> CurvePlot:
    """Raises UsageError for a document that is not as `objective` writes it."""
    rows = document["checkpoints"]
    try:
        estimates = [measure.of(_estimate(row, measure.metric)) for row in rows]
        models = [str(row["model"]) for row in rows]
        return made_curve(models, estimates, measure, int(rows[0]["n_sequences"]), [])
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
