"""Tell how sure a model is, and how often it is right: reliability diagrams, ranked choices.

At each scored token the model's top-1 has a probability (its confidence), and is either the text's
token or not. In bins of confidence the accuracy, the share of tokens where it is, stands beside the
mean confidence. The expected calibration error is the mean of the gaps between them, weighted by
tokens. See Guo, Pleiss, Sun & Weinberger, On Calibration of Modern Neural Networks (2017).

Bins are of equal width, or of equal mass: these are cut at quantiles of the confidences, and equal
confidences share a bin, so that no bin depends on the order of rows.

A score (`by`) orders the choices of a question; the first of equal choices is the preferred one.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from seqloss_cli.analysis.summarize import Clusters
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Floats
from seqloss_cli.metrics.accuracy import RankTotals
from seqloss_cli.metrics.intervals import (
    Estimate,
    numbered_anew,
    probability_estimate,
    share_estimate,
)
from seqloss_cli.metrics.ranking import SCORES
from seqloss_cli.metrics.resampling import CalibrationGaps, Reservoir, calibration_error_estimate
from seqloss_cli.results.schema.rankings import RankedRow
from seqloss_cli.results.schema.scores import ResultRow

_RESAMPLES = 2000
_Document = tuple[Floats, Floats, int]
"""Confidences and correct ones of n tokens, (n) each; the document or cluster that is drawn."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """The settings of a reliability diagram."""

    n_bins: int = 15
    by_mass: bool = False
    """Bins of about as many tokens, else of equal width."""
    cluster: str | None = None
    """Field of rows that were not drawn independently."""
    seed: int = 0
    confidence: float = 0.95
    """Confidence of the intervals."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Tokens whose top-1 has a probability above `low`, and at most `high`."""

    low: float
    """A probability; exclusive, but for the first bin."""
    high: float
    """A probability; inclusive."""
    n_tokens: int
    """Tokens of the bin."""
    confidence: float | None
    """Mean probability of the top-1; None in an empty bin."""
    accuracy: Estimate | None
    """Share of tokens that are the top-1, over documents; None in an empty bin."""


@dataclass(frozen=True, slots=True)
class CalibrationSeries:
    """The bins of a results file, and what they come to."""

    label: str
    """Name of the file."""
    expected_calibration_error: Estimate
    """Biased upward: chance alone makes gaps, too."""
    resampling_bias: float | None
    """Distance of resamples above the error, on average, a share; its own bias is about that, or
    more. None without an interval."""
    accuracy: float | None
    """Share of all tokens that are the top-1; None where nothing is scored."""
    confidence: float | None
    """Mean probability of the top-1."""
    n_tokens: int
    """Tokens of the bins."""
    bins: list[CalibrationBin]
    """The bins, from the least probability on."""


@dataclass(frozen=True, slots=True)
class CalibrationPlot:
    """A reliability diagram of several results files."""

    kind: ClassVar[str] = "calibration"
    bins_by: str
    """`width` or `mass`."""
    series: list[CalibrationSeries]
    """One for each file."""
    n_without_cluster: int
    """Rows without the field of --cluster."""


def calibration_plot(
    files: Sequence[Iterable[ResultRow]], labels: Sequence[str], options: CalibrationOptions
) -> CalibrationPlot:
    """Return a series for each file; raises UsageError where rows have no alternatives."""
    series, n_without = [], 0
    for label, rows in zip(labels, files, strict=True):
        # numbered for each file: its intervals know of its own documents only
        clusters = Clusters(options.cluster)
        documents: Iterable[_Document] = _documents(rows, clusters, bool(options.cluster))
        edges = np.arange(options.n_bins + 1) / options.n_bins
        if options.by_mass:
            # bins of equal mass are not known before the last token: all are kept
            documents = list(documents)
            confidences = [np.empty(0), *(each for each, _, _ in documents)]
            edges = edges_of_mass(np.concatenate(confidences), options.n_bins)
        sums = _BinSums(edges)
        for document in documents:
            sums.add(*document)
        series.append(sums.series(label, options))
        n_without += clusters.n_without
    return CalibrationPlot("mass" if options.by_mass else "width", series, n_without)


def _documents(
    rows: Iterable[ResultRow], clusters: Clusters, by_cluster: bool
) -> Iterator[_Document]:
    for number, row in enumerate(rows):
        cluster = clusters.number(row)
        if row.totals.n_scored:
            confidences, correct = _top1_of(row)
            yield confidences, correct, cluster if by_cluster else number


def _top1_of(row: ResultRow) -> tuple[Floats, Floats]:
    """Return the top-1's probability at each scored token, and 1.0 where it is that token."""
    if row.top1 is None or row.tokens is None:
        raise UsageError(
            f"{row.place} has no alternatives: calibration needs results that were made with "
            "--top-k 1 or more (and without --no-tokens)"
        )
    counted = row.tokens.counted
    correct = row.top1.ids == row.fields["token_ids"]
    return row.top1.probabilities[counted], correct[counted].astype(np.float64)


def edges_of_mass(confidences: Floats, n_bins: int) -> Floats:
    """Return the edges of bins that hold about as many of n confidences each, from 0 to 1.

    Both are probabilities, shapes n and bins + 1.

    Fewer bins than asked for come of many equal confidences.
    """
    ordered, n = np.sort(confidences), len(confidences)
    if not n:
        return np.array([0.0, 1.0])
    # rounded up, so that bins differ by one token at most whatever n is
    last_of_each = -(-np.arange(1, n_bins) * n // n_bins) - 1
    # an edge that two bins share is one edge, and the last bin must hold something
    inner = np.unique(ordered[np.maximum(last_of_each, 0)])
    return np.concatenate([[0.0], inner[(inner > 0) & (inner < ordered[-1])], [1.0]])


class _BinSums:
    """Tokens, confidences and correct ones of each document in each bin that it has tokens in."""

    def __init__(self, edges: Floats) -> None:
        self._edges, self._n_bins = edges, len(edges) - 1
        # an array of the standard library grows in place; bin, unit and three sums in turn
        self._parts = array("d")

    def add(self, confidences: Floats, correct: Floats, unit: int) -> None:
        """Add the n tokens of a document, both arrays (n); `unit` is what is drawn at random."""
        # a confidence at an edge is of the bin below it; the outer bins hold 0 and 1
        places = np.searchsorted(self._edges[1:-1], confidences, side="left")
        each_token = (np.ones_like(confidences), confidences, correct)
        sums = np.array([np.bincount(places, values, self._n_bins) for values in each_token])
        filled = np.flatnonzero(sums[0])
        units = np.full(len(filled), unit)
        self._parts.extend(np.stack([filled, units, *sums[:, filled]], axis=1).ravel().tolist())

    def series(self, label: str, options: CalibrationOptions) -> CalibrationSeries:
        parts = np.array(self._parts).reshape(-1, 5).T
        numbers, (n, confidence, correct) = parts[0].astype(np.int64), parts[2:]
        # units without a scored token are in no bin: no resample may draw them
        units = numbered_anew(parts[1])
        gaps = CalibrationGaps(units, numbers, correct - confidence, n)
        unit = "cluster" if options.cluster else "document"
        error, bias = calibration_error_estimate(
            gaps, _RESAMPLES, options.seed, unit, options.confidence
        )
        total, edges = math.fsum(n.tolist()), pairwise(self._edges.tolist())
        return CalibrationSeries(
            label=label,
            expected_calibration_error=error,
            resampling_bias=bias,
            accuracy=math.fsum(correct.tolist()) / total if total else None,
            confidence=math.fsum(confidence.tolist()) / total if total else None,
            n_tokens=int(total),
            bins=[_bin(*ends, parts[1:, numbers == k], options) for k, ends in enumerate(edges)],
        )


def _bin(low: float, high: float, parts: Floats, options: CalibrationOptions) -> CalibrationBin:
    """Return a bin; `parts` are units, tokens, confidences and correct ones, (4, parts)."""
    if not parts.size:
        return CalibrationBin(low, high, 0, None, None)
    n, confidences, correct = parts[1:]
    # without clusters each part is a document of its own, and needs no number
    units = numbered_anew(parts[0]) if options.cluster else None
    accuracy = share_estimate(correct, n, units, options.confidence)
    total = math.fsum(n.tolist())
    confidence = math.fsum(confidences.tolist()) / total
    return CalibrationBin(low, high, int(total), confidence, accuracy)


def main_score(run: Mapping[str, Any]) -> str:
    """Return the score that `--by` of the run asked for."""
    rows = run.get("rows")
    by = rows.get("by") if isinstance(rows, Mapping) else None
    return by if by in SCORES else "sum"


def verdict_of(row: RankedRow, by: str) -> str:
    """Return `right`, `wrong` or `no order`; nothing where no answer is known."""
    if row.answers is None:
        return ""
    if by not in row.orders:
        return "no order"
    return "right" if row.orders[by][0] in row.answers else "wrong"


def margin_of(row: RankedRow, by: str) -> float | None:
    """Return the best score of a right choice less that of a wrong one, in nats.

    None where either is not known.
    """
    scores = row.scores(by)
    if scores is None or row.answers is None:
        return None
    right = [score for n, score in enumerate(scores) if n in row.answers]
    wrong = [score for n, score in enumerate(scores) if n not in row.answers]
    return _less(max(right), max(wrong)) if wrong else None


def lead_of(row: RankedRow, by: str) -> float | None:
    """Return the best score less the second, in nats; None where there is no second."""
    scores = row.scores(by)
    if scores is None or len(scores) < 2:
        return None
    first, second = row.orders[by][:2]
    return _less(scores[first], scores[second])


def probability_of_right(row: RankedRow) -> float | None:
    """Return the probability of its right choices together; None where one is not known."""
    if row.answers is None:
        return None
    found = [row.choices[n].probability for n in sorted(set(row.answers))]
    known = [probability for probability in found if probability is not None]
    # rounding can carry the sum of all choices beyond 1
    return min(1.0, math.fsum(known)) if len(known) == len(found) else None


def _less(a: float, b: float) -> float | None:
    # two impossible choices: -inf less -inf is no margin
    return None if math.isnan(a - b) else a - b


class RankingSums:
    """The sums of a results file's questions, and figures of each; beyond a million of a sample."""

    def __init__(self, by: str, seed: int) -> None:
        self.totals = RankTotals()
        self._by, self._kept = by, defaultdict[str, Reservoir](lambda: Reservoir(seed=seed))

    def add(self, row: RankedRow) -> None:
        """Add a question."""
        self.totals += row.counts
        for name, value in self._known(row).items():
            if value is not None:
                self._kept[name].add(np.array([value]))

    def _known(self, row: RankedRow) -> dict[str, float | None]:
        by, found = self._by, {"lead": lead_of(row, self._by)}
        if by not in row.orders:
            return found
        if row.answers is None:
            return found | {"best": row.choices[row.orders[by][0]].probability}
        sign = 1.0 if verdict_of(row, by) == "right" else -1.0
        values = {"margin": margin_of(row, by), "right": probability_of_right(row)}
        return found | {
            name: None if value is None else math.copysign(value, sign)
            for name, value in values.items()
        }

    def values(self, name: str) -> Floats:
        """Return a figure of the questions that have it, shape questions.

        `margin` (nats) and `right`, the probability of right choices, are negative or -0.0 where a
        wrong choice is preferred; `lead` is the best choice before the second, nats; `best` is the
        probability of the preferred choice where no answer is known.
        """
        return self._kept[name].values()

    def mean_probability(self) -> Estimate:
        """Return the mean probability of right choices."""
        return probability_estimate(np.abs(self.values("right")))
