"""Score documents of results for membership, and hold the scores to labels where there are some.

Of each document a few numbers are kept. Field names of the records are keys of JSON.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Bools, Floats, Ints
from seqloss_cli.metrics import membership as m
from seqloss_cli.metrics.intervals import FEW_UNITS, Estimate, ratio_estimate
from seqloss_cli.results.schema.scores import ResultRow

RESAMPLES = 1000
"""Resamples where `--bootstrap` names no number."""
_MOST_POINTS = 1000
_MEMBER = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True)
class MembershipOptions:
    """The settings of scores of membership."""

    min_k: float = 20.0
    """Percentage of a text's tokens, the least likely, that `min_k` is of."""
    pair: str | None = None
    """Field that a text and its lower-case version share."""
    label: str | None = None
    """Field that says which documents are members."""


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """A score over documents."""

    member_is: str
    """`higher` or `lower`: the side of members."""
    n: int
    """Documents that have it."""
    n_null: dict[str, int]
    """Documents without it, by the reason."""
    mean: Estimate
    mean_of_members: Estimate | None
    """Mean score of members; None without labels."""
    mean_of_non_members: Estimate | None
    """Mean score of others; None without labels."""
    auroc: Estimate | None
    """Area under the curve of the score, turned so that higher means member; None without
    labels."""
    tpr_at_fpr: dict[str, Estimate] | None
    """True positive rates by false positive rates; None without labels."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Scores of membership of all documents."""

    min_k_percent: float
    """--min-k, percent."""
    pair: str | None
    """--pair: the field of pairs; None without it."""
    label: str | None
    """--label: the field of labels; None without it."""
    n_documents: int
    """Sequences with a scored token; of a pair the text as it was."""
    n_members: int | None
    """Documents labelled 1; None without labels."""
    n_non_members: int | None
    """Documents labelled 0; None without labels."""
    n_unlabelled: int | None
    """Documents without the field of labels; None where none was named."""
    n_without_pair: int | None
    """Documents that no other shares the field of pairs with; None without pairs."""
    scores: dict[str, ScoreSummary]
    """Name of a score to what it comes to."""
    notes: list[str]
    """Reasons to doubt a figure."""


@dataclass(frozen=True, slots=True)
class RocSeries:
    """The curve of a score."""

    label: str
    """Name of the score."""
    auroc: Estimate
    """Area under the curve."""
    false_positive_rates: list[float]
    """At falling thresholds."""
    true_positive_rates: list[float]
    """At the same thresholds; of very many a part, the most of them where rates are low."""


@dataclass(frozen=True, slots=True)
class RocPlot:
    """True against false positive rates of scores of membership."""

    kind: ClassVar[str] = "roc"
    n_members: int
    """Documents labelled 1."""
    n_non_members: int
    """Documents labelled 0."""
    n_unlabelled: int
    """Documents without the field of labels."""
    series: list[RocSeries]
    """One for each score."""


_Scores = dict[str, float | str]
"""Name of a score to its value, or to the word for why there is none."""


@dataclass(frozen=True, slots=True)
class _Half:
    """The first row of a pair, as far as it is needed to know the second."""

    document: int
    text: int
    """Hash of the text."""
    lower: int
    """Hash of the text in lower case."""
    mean_loss: float | str
    is_joined: bool = False


class MembershipScores:
    """`add` rows, then ask for the `summary`, the `curves` or the `rows`."""

    def __init__(self, options: MembershipOptions, keeps_ids: bool = False) -> None:
        """With `keeps_ids` the `rows` name their documents."""
        self._options = options
        self._values = {name: array("d") for name in m.SCORES}
        self._whys = {name: array("b") for name in m.SCORES}
        self._reasons = [""]
        self._members, self._clusters = array("b"), array("q")
        self._halves: dict[Any, _Half] = {}
        self._ids: list[str] | None = [] if keeps_ids else None
        self.n_rows = self.n_without_label = self.n_without_pair_field = 0

    def add(self, row: ResultRow, cluster: int = 0) -> None:
        """Add a row; one where nothing is scored is no document.

        Raises UsageError for a label that is neither, for a pair without its texts, and for a third
        row of a pair.
        """
        if not row.totals.n_scored:
            return
        self.n_rows += 1
        text = scored_text(row)
        scores = document_scores(row, self._options.min_k, text)
        first = self._first_of_pair(row, text, scores)
        if first is None:
            self._set(len(self._members), row, scores, cluster)
            return
        assert text is not None
        lower, mean_loss = hash(text.lower()), scores["mean_loss"]
        if lower != first.lower or hash(text) != lower != first.text:
            self._put(first.document, "lower_ratio", "pair_differs")
            self._set(len(self._members), row, scores | {"lower_ratio": "pair_differs"}, cluster)
        elif hash(text) == lower:
            # Of two equal texts, both in lower case, the first stands for the text as it was.
            self._put(first.document, "lower_ratio", _ratio(mean_loss, first.mean_loss))
        else:
            ratio = _ratio(first.mean_loss, mean_loss)
            self._set(first.document, row, scores | {"lower_ratio": ratio}, cluster)

    def _first_of_pair(self, row: ResultRow, text: str | None, scores: _Scores) -> _Half | None:
        field = self._options.pair
        if field is None:
            return None
        value = row.field(field)
        if value is None:
            self.n_without_pair_field += 1
            return None
        if text is None:
            raise UsageError(
                f"--pair {field}: {row.place} has no text, which tells the lower-case one of two: "
                "score again without --no-text"
            )
        key, document = (type(value).__name__, value), len(self._members)
        first = self._halves.get(key)
        if first is None:
            own = hash(text), hash(text.lower()), scores["mean_loss"]
            self._halves[key] = _Half(document, *own)
            return None
        if first.is_joined:
            raise UsageError(
                f"--pair {field}: {value!r:.60} is the value of a third row, {row.place}; it joins "
                "two, a text and its lower case"
            )
        self._halves[key] = replace(first, is_joined=True)
        return first

    def _set(self, document: int, row: ResultRow, scores: _Scores, cluster: int) -> None:
        """Set what is known of a document, a new one or one that is there."""
        field = self._options.label
        label = None if field is None else _label(row, field)
        member = -1 if label is None else int(label)
        self.n_without_label += field is not None and label is None
        if document == len(self._members):
            self._members.append(member)
            self._clusters.append(cluster)
            for name in m.SCORES:
                self._values[name].append(math.nan)
                self._whys[name].append(0)
            if self._ids is not None:
                self._ids.append(row.id)
        else:
            self.n_without_label -= field is not None and self._members[document] < 0
            self._members[document], self._clusters[document] = member, cluster
            if self._ids is not None:
                self._ids[document] = row.id
        for name, score in ({"lower_ratio": "no_pair"} | scores).items():
            self._put(document, name, score)

    def _put(self, document: int, name: str, score: float | str) -> None:
        value, why = (math.nan, score) if isinstance(score, str) else (score, "")
        if why not in self._reasons:
            self._reasons.append(why)
        self._values[name][document] = value
        self._whys[name][document] = self._reasons.index(why)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the scores of each document, by the keys of JSON."""
        for number, id in enumerate(self._ids or ()):
            row: dict[str, Any] = {"id": id}
            if self._options.label is not None:
                member = self._members[number]
                row["member"] = None if member < 0 else bool(member)
            values = {name: self._values[name][number] for name in m.SCORES}
            yield row | {n: None if math.isnan(value) else value for n, value in values.items()}

    def summary(
        self, n_resamples: int, seed: int, clustered: bool, confidence: float
    ) -> Membership:
        """Return the figures of all documents."""
        labels, options = np.array(self._members), self._options
        scores = {
            name: self._summed(name, labels, n_resamples, seed, clustered, confidence)
            for name in m.SCORES
        }
        is_labelled = options.label is not None
        return Membership(
            min_k_percent=options.min_k,
            pair=options.pair,
            label=options.label,
            n_documents=len(labels),
            n_members=int((labels == 1).sum()) if is_labelled else None,
            n_non_members=int((labels == 0).sum()) if is_labelled else None,
            n_unlabelled=int((labels < 0).sum()) if is_labelled else None,
            n_without_pair=None
            if options.pair is None
            else scores["lower_ratio"].n_null.get("no_pair", 0),
            scores=scores,
            notes=_few(labels) if is_labelled else [],
        )

    def _summed(
        self, name: str, labels: Ints, n: int, seed: int, clustered: bool, confidence: float
    ) -> ScoreSummary:
        values, why = np.array(self._values[name]), np.array(self._whys[name])
        clusters = np.array(self._clusters) if clustered else None
        known = ~np.isnan(values)

        def mean(chosen: Bools) -> Estimate:
            numbers = None if clusters is None else _numbered_anew(clusters[chosen])
            ones = np.ones(int(chosen.sum()))
            return ratio_estimate(values[chosen], ones, numbers, confidence, signed=True)

        counts = np.bincount(why[~known], minlength=len(self._reasons)).tolist()
        is_lower = name in m.LOWER_IS_MEMBER
        found = ScoreSummary(
            member_is="lower" if is_lower else "higher",
            n=int(known.sum()),
            n_null={reason: k for reason, k in zip(self._reasons, counts, strict=True) if k},
            mean=mean(known),
            mean_of_members=None,
            mean_of_non_members=None,
            auroc=None,
            tpr_at_fpr=None,
        )
        if self._options.label is None:
            return found
        judged = known & (labels >= 0)
        numbers = None if clusters is None else _numbered_anew(clusters[judged])
        scores, is_member = m.turned(name, values[judged]), labels[judged] == 1
        separated = m.separation(scores, is_member, n, seed, numbers, confidence)
        return replace(
            found,
            mean_of_members=mean(known & (labels == 1)),
            mean_of_non_members=mean(known & (labels == 0)),
            auroc=separated.auroc,
            tpr_at_fpr={f"{x:g}": rate for x, rate in separated.true_positive_rates.items()},
        )

    def plot(self, n_resamples: int, seed: int, clustered: bool, confidence: float) -> RocPlot:
        """Return the curve of each score that both classes have; without labels there is none."""
        labels, series = np.array(self._members), []
        found = self.summary(n_resamples, seed, clustered, confidence)
        for name, score in found.scores.items():
            values = np.array(self._values[name])
            judged = ~np.isnan(values) & (labels >= 0)
            is_member = labels[judged] == 1
            if score.auroc is None or is_member.all() or not is_member.any():
                continue
            rates = m.roc_curve(m.turned(name, values[judged]), is_member)
            series.append(RocSeries(name, score.auroc, *map(_thinned, rates)))
        counts = found.n_members or 0, found.n_non_members or 0, found.n_unlabelled or 0
        return RocPlot(*counts, series)


def _few(labels: Ints) -> list[str]:
    """Return a note where there are few of a class, by the labels of D documents, shape D."""
    n_of = {"members": int((labels == 1).sum()), "non-members": int((labels == 0).sum())}
    few = [f"{n} {name}" for name, n in n_of.items() if n < FEW_UNITS]
    return [f"few documents ({', '.join(few)}): the intervals may be too narrow"] if few else []


def _thinned(rates: Floats) -> list[float]:
    """Return rates at thresholds, shape thresholds: all, or those at places that grow evenly."""
    places = np.arange(len(rates))
    if len(rates) > _MOST_POINTS:
        places = np.unique(np.geomspace(1, len(rates), _MOST_POINTS).round().astype(np.int64) - 1)
    thinned: list[float] = rates[places].tolist()
    return thinned


def _numbered_anew(clusters: Ints) -> Ints:
    return np.unique(clusters, return_inverse=True)[1]


def document_scores(row: ResultRow, min_k: float, text: str | None) -> _Scores:
    """Return all scores of a row but `lower_ratio`; `text` is the one that was scored."""
    total = row.totals.total_loss
    if total is None:
        return dict.fromkeys(m.SCORES[:-1], "inf_loss")
    mean = total / row.totals.n_scored
    n_bytes = None if text is None else m.compressed_bytes(text)
    return {
        "mean_loss": mean,
        "zlib_ratio": "no_text" if n_bytes is None else mean / n_bytes,
        **_scores_of_tokens(row, min_k),
    }


def _scores_of_tokens(row: ResultRow, min_k: float) -> _Scores:
    tokens = row.tokens
    if tokens is None:
        return {"min_k": "no_tokens", "min_k_plus_plus": "no_tokens"}
    losses = tokens.losses[tokens.counted]
    found: _Scores = {"min_k": m.least_mean(-losses, min_k)}
    columns = [row.fields.get(name) for name in ("entropies", "varentropies")]
    if any(column is None for column in columns):
        return found | {"min_k_plus_plus": "no_varentropies"}
    # None becomes NaN: a figure of a token that is not scored, or that is infinite.
    arrays = [np.array(column, dtype=np.float64)[tokens.counted] for column in columns]
    if not np.isfinite(arrays).all():
        return found | {"min_k_plus_plus": "nan_entropy"}
    scores = m.standardised(losses, *arrays)
    plus = "no_variance" if scores is None else m.least_mean(scores, min_k)
    return found | {"min_k_plus_plus": plus}


def scored_text(row: ResultRow) -> str | None:
    """Return the text that a row's losses are of; None where the file does not hold it.

    Of a pair it is the response with its separator. Of a chat it is not known: the scored turns are
    parts of the rendered text.
    """
    fields: Mapping[str, Any] = row.fields
    text, response = fields.get("text"), fields.get("response")
    if fields.get("n_response_tokens") is None:
        return text if isinstance(text, str) else None
    if text is not None or not isinstance(response, str):
        return None
    return str(fields.get("separator") or "") + response


def _ratio(lower: float | str, original: float | str) -> float | str:
    if isinstance(lower, str) or isinstance(original, str):
        return "inf_loss"
    return lower / original if original else "zero_loss"


def _label(row: ResultRow, field: str) -> bool | None:
    """Return whether a row says that it is a member; None where it says nothing."""
    value = row.field(field)
    if value is None:
        return None
    named = _MEMBER.get(str(value).lower()) if isinstance(value, str | bool) else None
    if isinstance(value, int | float) and value in (0, 1):
        named = bool(value)
    if named is None:
        raise UsageError(
            f"--label {field}: {row.place} says {value!r:.60}, which is neither 1 or true (a "
            "member) nor 0 or false"
        )
    return named
