"""Score documents of results for membership, and hold the scores to labels where there are some.

Of each document a few numbers are kept, on disk once there are many. Field names of the records are
keys of JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Bools, Floats
from seqloss_cli.inputs.duplicates import Table
from seqloss_cli.metrics import membership as m
from seqloss_cli.metrics.intervals import FEW_UNITS, Estimate, numbered_anew, ratio_estimate
from seqloss_cli.metrics.series import Derived, Series, as_array
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


_Chooses = Callable[[Floats], Bools]
"""Tells of labels, shape n, which are meant."""
_Scores = dict[str, float | str]
"""Name of a score to its value, or to the word for why there is none."""


class _Half(NamedTuple):
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
        self._values = {name: Series() for name in m.SCORES}
        self._whys = {name: Series() for name in m.SCORES}
        self._reasons = [""]
        self._members, self._clusters = Series(), Series()
        """1 of a member, 0 of another, -1 where that is not known; and numbers of clusters."""
        self._halves, self._ids = Table[_Half](), Table[str]() if keeps_ids else None
        self.n_rows = self.n_without_pair_field = 0

    @property
    def n_without_label(self) -> int:
        """Return how many documents lack the field of labels; 0 where none was named."""
        return 0 if self._options.label is None else self._count(-1)

    def _count(self, label: int) -> int:
        return sum(int((each == label).sum()) for each in self._members.chunks())

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
            self._halves.put(key, _Half(document, *own))
            return None
        if first.is_joined:
            raise UsageError(
                f"--pair {field}: {value!r:.60} is the value of a third row, {row.place}; it joins "
                "two, a text and its lower case"
            )
        self._halves.put(key, first._replace(is_joined=True))
        return first

    def _set(self, document: int, row: ResultRow, scores: _Scores, cluster: int) -> None:
        """Set what is known of a document, a new one or one that is there."""
        field = self._options.label
        label = None if field is None else _label(row, field)
        self._members[document] = -1 if label is None else int(label)
        self._clusters[document] = cluster
        if self._ids is not None:
            self._ids.put(document, row.id)
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
        documents = zip(self._members, *self._values.values(), strict=True)
        for number, (member, *values) in enumerate(documents if self._ids else ()):
            row: dict[str, Any] = {"id": self._ids.get(number) if self._ids else None}
            if self._options.label is not None:
                row["member"] = None if member < 0 else bool(member)
            known = zip(m.SCORES, values, strict=True)
            yield row | {n: None if math.isnan(value) else value for n, value in known}

    def summary(
        self, n_resamples: int, seed: int, clustered: bool, confidence: float
    ) -> Membership:
        """Return the figures of all documents."""
        options, is_labelled = self._options, self._options.label is not None
        scores = {
            name: self._summed(name, n_resamples, seed, clustered, confidence) for name in m.SCORES
        }
        n_of = {label: self._count(label) for label in (1, 0, -1)}
        return Membership(
            min_k_percent=options.min_k,
            pair=options.pair,
            label=options.label,
            n_documents=len(self._members),
            n_members=n_of[1] if is_labelled else None,
            n_non_members=n_of[0] if is_labelled else None,
            n_unlabelled=n_of[-1] if is_labelled else None,
            n_without_pair=None
            if options.pair is None
            else scores["lower_ratio"].n_null.get("no_pair", 0),
            scores=scores,
            notes=_few(n_of[1], n_of[0]) if is_labelled else [],
        )

    def _summed(
        self, name: str, n: int, seed: int, clustered: bool, confidence: float
    ) -> ScoreSummary:
        values = self._values[name]

        def mean(is_chosen: _Chooses) -> Estimate:
            chosen = partial(self._chosen, name, is_chosen)
            numbers = numbered_anew(chosen(self._clusters)) if clustered else None
            ones = Derived(np.ones_like, chosen(values))
            return ratio_estimate(chosen(values), ones, numbers, confidence, signed=True)

        counts = np.zeros(len(self._reasons), np.int64)
        for why in Derived(lambda why, own: why[np.isnan(own)], self._whys[name], values).chunks():
            counts += np.bincount(why.astype(np.int64), minlength=len(counts))
        is_lower = name in m.LOWER_IS_MEMBER
        found = ScoreSummary(
            member_is="lower" if is_lower else "higher",
            n=len(values) - int(counts.sum()),
            n_null={why: k for why, k in zip(self._reasons, counts.tolist(), strict=True) if k},
            mean=mean(lambda labels: labels >= -1),
            mean_of_members=None,
            mean_of_non_members=None,
            auroc=None,
            tpr_at_fpr=None,
        )
        if self._options.label is None:
            return found
        scores, is_member, clusters = self._judged(name)
        numbers = numbered_anew(clusters) if clustered else None
        separated = m.separation(scores, is_member, n, seed, numbers, confidence)
        return replace(
            found,
            mean_of_members=mean(lambda labels: labels == 1),
            mean_of_non_members=mean(lambda labels: labels == 0),
            auroc=separated.auroc,
            tpr_at_fpr={f"{x:g}": rate for x, rate in separated.true_positive_rates.items()},
        )

    def _chosen(self, name: str, is_chosen: _Chooses, numbers: Series) -> Derived:
        """Return the numbers of the documents that have a score, and labels of that kind."""
        return Derived(
            lambda own, score, labels: own[~np.isnan(score) & is_chosen(labels)],
            numbers,
            self._values[name],
            self._members,
        )

    def _judged(self, name: str) -> list[Floats]:
        """Return scores of documents with a label, higher for members, who these are, and their
        clusters."""
        columns = self._values[name], self._members, self._clusters
        scores, members, clusters = (
            as_array(self._chosen(name, lambda labels: labels >= 0, each)) for each in columns
        )
        return [as_array(Derived(partial(m.turned, name), scores)), members, clusters]

    def plot(self, n_resamples: int, seed: int, clustered: bool, confidence: float) -> RocPlot:
        """Return the curve of each score that both classes have; without labels there is none."""
        series = []
        found = self.summary(n_resamples, seed, clustered, confidence)
        for name, score in found.scores.items():
            scores, is_member, _ = self._judged(name)
            if score.auroc is None or is_member.all() or not is_member.any():
                continue
            rates = m.roc_curve(scores, is_member)
            series.append(RocSeries(name, score.auroc, *map(_thinned, rates)))
        counts = found.n_members or 0, found.n_non_members or 0, found.n_unlabelled or 0
        return RocPlot(*counts, series)


def _few(n_members: int, n_others: int) -> list[str]:
    """Return a note where there are few documents of a class."""
    n_of = {"members": n_members, "non-members": n_others}
    few = [f"{n} {name}" for name, n in n_of.items() if n < FEW_UNITS]
    return [f"few documents ({', '.join(few)}): the intervals may be too narrow"] if few else []


def _thinned(rates: Floats) -> list[float]:
    """Return rates at thresholds, shape thresholds: all, or those at places that grow evenly."""
    places = np.arange(len(rates))
    if len(rates) > _MOST_POINTS:
        places = np.unique(np.geomspace(1, len(rates), _MOST_POINTS).round().astype(np.int64) - 1)
    thinned: list[float] = rates[places].tolist()
    return thinned


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
