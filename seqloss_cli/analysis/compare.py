"""Tell whether one model's losses are lower than another's on the same inputs, and where.

Differences are taken row by row and summed over documents: what makes a text hard for both models
drops out. With one tokenizer they are per token; across tokenizers per byte of the text (rule 15).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from seqloss_cli.analysis.extremes import Largest, highest, text_near, token_text
from seqloss_cli.analysis.joining import JoinReport, cluster_of, join_usable, n_units
from seqloss_cli.analysis.summarize import Clusters, GroupLosses
from seqloss_cli.core.records import Floats
from seqloss_cli.metrics import resampling
from seqloss_cli.metrics.intervals import (
    Estimate,
    exact_total,
    interval_notes,
    ratio_estimate,
    sum_clusters,
    unknown,
)
from seqloss_cli.metrics.series import Derived, Numbers, chunks_of, zeros
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses

Unit = Literal["token", "byte"]
_FLIPS = 9_999
TIE = 1e-5
"""Nats per token or byte: a smaller difference is a tie, and never significant.

Runs of one model differ by less than that between batches and machines, and with enough documents
a paired test would find even so little.
"""


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """The settings of `compare`."""

    n_extremes: int = 10
    bootstrap: int = 2000
    seed: int = 0
    cluster: str | None = None
    confidence: float = 0.95
    """Confidence of the intervals. A difference is significant when the adjusted p is below 1 less
    this, the interval leaves out 0, and it is larger than `TIE`."""


@dataclass(frozen=True, slots=True)
class DocumentDifference:
    """A document on which two models differ; losses in nats per token (or byte) of it."""

    id: str
    """The input's id."""
    line: int | None
    """Its line; None of a text as a whole."""
    difference: float
    """B - A, nats per unit."""
    first: float
    """Loss of A, nats per unit."""
    second: float
    """Loss of B, nats per unit."""


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """A token on which two models differ; losses in nats."""

    id: str
    """The input's id."""
    line: int | None
    """Its line; None of a text as a whole."""
    position: int
    """The token's place, from 0."""
    token: str | None
    """Its text; None where it is not known."""
    difference: float
    """B - A, nats."""
    first: float
    """Loss of A, nats."""
    second: float
    """Loss of B, nats."""
    before: str | None = None
    """Text before it; None where none is known."""
    within: str | None = None
    """The whole characters that it is in part of; None where it is of whole ones."""
    after: str | None = None
    """Text after it; None where none is known."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A: differences are B - A, so that a negative one means that B is lower."""

    first: int
    """Place of A among the files."""
    second: int
    unit: Unit
    n_documents: int
    """Documents that are compared."""
    n_units: int
    """Scored tokens or bytes of the rows that are compared."""
    totals: Sequence[float | None]
    """Losses of A and of B, nats; None where no row can be compared."""
    means: Sequence[Estimate]
    """Losses of A and of B, nats per token or byte."""
    difference: Estimate
    """Nats per unit: total difference over total units, with the linearised interval."""
    bootstrap: Estimate
    """The difference with the interval of the bootstrap."""
    test: resampling.SignFlip
    p_adjusted: float
    """p by Holm's method where several pairs are compared."""
    n_lower: int
    """Documents on which B is lower by more than a tie."""
    n_tied: int
    """Documents on which they are tied."""
    n_higher: int
    """Documents on which B is higher by more than a tie."""
    correlation: float | None
    """Pearson's, of the documents' losses per unit."""
    is_significant: bool
    """More than noise, and more than a tie."""
    documents: list[DocumentDifference]
    """Documents with the largest differences."""
    tokens: list[TokenDifference]
    """Tokens with the largest differences."""
    notes: list[str]
    """Reasons to doubt a figure."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Every comparison of several files, and which rows of these are in none."""

    pairs: list[Comparison]
    joined: JoinReport


def compare(
    files: Sequence[Iterable[ResultRow]],
    same_tokenizer: bool,
    options: CompareOptions,
    against: int | None = None,
) -> Comparisons:
    """Compare every two of the files on the rows that all have and that can be compared.

    With `against`, the number of a file, each other file (A) is compared with that one (B) only.
    """
    report, clusters = JoinReport(), Clusters(options.cluster)
    chosen = list(combinations(range(len(files)), 2))
    if against is not None:
        chosen = [(n, against) for n in range(len(files)) if n != against]
    sums = [GroupLosses() for _ in files]
    pairs = [_Pair(*numbers, sums, same_tokenizer, options) for numbers in chosen]
    for rows in join_usable(files, report, same_tokenizer):
        cluster = clusters.number_of(cluster_of(rows, options.cluster))
        for each, row in zip(sums, rows, strict=True):
            each.add_losses(row.totals, cluster)
        for pair in pairs:
            pair.add(rows[pair.first], rows[pair.second])
    report.n_without_cluster = clusters.n_without
    # Holm multiplies the least p by the number of pairs: more flips, else it could not be small
    tests = [pair.test(_FLIPS * max(1, len(pairs))) for pair in pairs]
    adjusted = resampling.holm([test.p for test in tests])
    tested = zip(pairs, tests, adjusted, strict=True)
    return Comparisons([pair.comparison(test, p) for pair, test, p in tested], report)


def _difference(a: ResultRow, b: ResultRow, same_tokenizer: bool) -> DocumentDifference:
    """Return what two comparable rows of one document differ by."""
    first, second, units = a.totals.total_loss, b.totals.total_loss, n_units(a, same_tokenizer)
    assert first is not None
    assert second is not None
    line, difference = a.fields.get("line"), (second - first) / units
    return DocumentDifference(a.id, line, difference, first / units, second / units)


class _Pair:
    """Two of the files, as rows are joined: what their losses differ by, and where most."""

    def __init__(
        self,
        first: int,
        second: int,
        sums: Sequence[GroupLosses],
        same_tokenizer: bool,
        options: CompareOptions,
    ) -> None:
        """`sums` holds those of every file; rows come here once they are in them."""
        self.first, self.second = first, second
        self._a, self._b = sums[first], sums[second]
        self._same_tokenizer, self._options = same_tokenizer, options
        self._documents, self._tokens = Largest(options.n_extremes), Largest(options.n_extremes)
        self._notes: list[str] = []
        # B - A of its tokens, (tokens) nats, while there is one document
        self._only: Floats | None = None

    def add(self, a: ResultRow, b: ResultRow) -> None:
        if not self._same_tokenizer and (a.tokens is None or b.tokens is None):
            self._notes = [
                "written without tokens: how many bytes are scored is compared, not which"
            ]
        found = _difference(a, b, self._same_tokenizer)
        self._documents.add(abs(found.difference), found)
        self._only = None
        if self._same_tokenizer and a.tokens is not None and b.tokens is not None:
            self._add_tokens(a, a.tokens, b.tokens)

    def _add_tokens(self, row: ResultRow, a: TokenLosses, b: TokenLosses) -> None:
        if len(self._a.losses) == 1:
            self._only = b.losses[b.counted] - a.losses[a.counted]
        # an infinite loss has no place here: such rows are not comparable
        differences = np.where(a.counted & b.counted, b.losses - a.losses, 0.0)
        for place in highest(np.abs(differences), self._options.n_extremes):
            size = float(abs(differences[place]))
            if self._tokens.takes(size) and size > 0:
                first, second = float(a.losses[place]), float(b.losses[place])
                text, line = token_text(row, place), row.fields.get("line")
                losses = (second - first, first, second)
                near = text_near(row, place)
                found = TokenDifference(row.id, line, place, text, *losses, *near)
                self._tokens.add(size, found)

    def test(self, n_flips: int) -> resampling.SignFlip:
        """Test the differences of documents, or of clusters of them."""
        differences = Derived(np.subtract, self._b.losses, self._a.losses)
        of_units = sum_clusters(differences, self._clusters)
        return resampling.sign_flip_test(of_units, n_flips, self._options.seed)

    @property
    def _clusters(self) -> Numbers | None:
        return self._a.clusters if self._options.cluster else None

    def comparison(self, test: resampling.SignFlip, p_adjusted: float) -> Comparison:
        options, by_token = self._options, self._same_tokenizer
        a, b, clusters = self._a.losses, self._b.losses, self._clusters
        units, d = self._a.n_scored if by_token else self._a.n_bytes, Derived(np.subtract, b, a)
        n_lower, n_tied, n_higher = _signs(d, units)
        totals: Sequence[float | None] = [exact_total(y) for y in (a, b)]
        if not len(a):
            difference = bootstrap = unknown(None, 0, "no rows to compare")
            totals, means = (None, None), [difference, difference]
        else:
            difference, *means = (
                ratio_estimate(y, units, clusters, options.confidence, signed=y is d)
                for y in (d, a, b)
            )
            bootstrap = resampling.bootstrap_ratio(
                d, units, options.bootstrap, options.seed, clusters, options.confidence
            )
        if len(a) == 1 and self._only is not None:
            block = resampling.default_block(len(self._only))
            difference = bootstrap = resampling.block_bootstrap(
                self._only, block, options.bootstrap, options.seed, options.confidence
            )
        return Comparison(
            first=self.first,
            second=self.second,
            unit="token" if by_token else "byte",
            n_documents=len(a),
            n_units=int(exact_total(units)),
            totals=totals,
            means=means,
            difference=difference,
            bootstrap=bootstrap,
            test=test,
            p_adjusted=p_adjusted,
            n_lower=n_lower,
            n_tied=n_tied,
            n_higher=n_higher,
            correlation=_correlation([Derived(np.divide, y, units) for y in (a, b)], len(a)),
            is_significant=_is_significant(difference, p_adjusted, 1 - options.confidence, len(a)),
            documents=self._documents.items(),
            tokens=self._tokens.items(),
            notes=[*interval_notes(difference, len(a)), *self._notes],
        )


def _is_significant(difference: Estimate, p: float, alpha: float, n: int) -> bool:
    """Tell whether a difference is more than noise and more than a tie.

    One document has no test over documents: the interval over its blocks decides alone.
    """
    if difference.low is None or difference.high is None or difference.value is None:
        return False
    if abs(difference.value) <= TIE:
        return False
    return not difference.low <= 0 <= difference.high and (p < alpha or n == 1)


def _signs(differences: Numbers, units: Numbers) -> tuple[int, ...]:
    """Return how many differences of documents, shape D, nats, are below 0, ties, and above 0."""
    found: tuple[int, ...] = 0, 0, 0
    for own, weights in zip(chunks_of(differences), chunks_of(units), strict=True):
        # per unit, so that a long document is no difference for its length alone
        ties = np.abs(own) <= TIE * weights
        each = (own < 0) & ~ties, ties, (own > 0) & ~ties
        found = tuple(n + int(some.sum()) for n, some in zip(found, each, strict=True))
    return found


def _correlation(losses: Sequence[Numbers], n: int) -> float | None:
    """Return Pearson's correlation of losses of n documents, two of shape n, nats per unit."""
    # as `numpy.corrcoef` has it to the last bit, which holds all of them in memory several times
    both = zeros(2 * n).reshape(2, n)
    for row, own in zip(both, losses, strict=True):
        for part, values in zip(chunks_of(row), chunks_of(own), strict=True):
            part[:] = values
        mean = row.mean() if n else 0.0
        for part in chunks_of(row):
            part -= mean
    products = np.dot(both, both.T)
    # where all documents have one loss, there is nothing to divide by
    if n < 2 or not (np.diag(products) > 0).all():
        return None
    products *= np.true_divide(1, n - 1)
    errors = np.sqrt(np.diag(products))
    return float(np.clip((products / errors[:, None] / errors[None, :])[0, 1], -1, 1))


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """A document of a comparison, with its row in each of the two files."""

    difference: DocumentDifference
    a: ResultRow
    b: ResultRow


def documents_of(
    files: Sequence[Iterable[ResultRow]], found: Comparisons, same_tokenizer: bool
) -> list[list[DocumentRows]]:
    """Return for each pair of the comparison its documents, in the order in which it lists them.

    The files that were compared are read a second time, in the same order: during the comparison
    only figures are kept.
    """
    rows: list[dict[DocumentDifference, DocumentRows]] = [{} for _ in found.pairs]
    for joined in join_usable(files, JoinReport(), same_tokenizer):
        for pair, taken in zip(found.pairs, rows, strict=True):
            a, b = joined[pair.first], joined[pair.second]
            # rows may share an id and a line: the losses tell them apart
            document = _difference(a, b, same_tokenizer)
            if document in pair.documents and document not in taken:
                taken[document] = DocumentRows(document, a, b)
    return [
        [taken[document] for document in pair.documents if document in taken]
        for pair, taken in zip(found.pairs, rows, strict=True)
    ]
