"""Tell whether one model's losses are lower than another's on the same inputs, and where.

Differences are taken row by row and summed over documents: what makes a text hard for both models
drops out. With one tokenizer they are per token; across tokenizers per byte of the text (rule 15).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from seqloss_cli.analysis.extremes import Top, highest, token_text
from seqloss_cli.analysis.joining import JoinReport, cluster_of, join_usable, n_units
from seqloss_cli.analysis.summarize import Clusters
from seqloss_cli.core.records import Floats
from seqloss_cli.metrics import resampling
from seqloss_cli.metrics.intervals import Estimate, interval_notes, ratio_estimate, unknown
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
    line: int | None
    difference: float
    """B - A."""
    first: float
    """Loss of A."""
    second: float


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """A token on which two models differ; losses in nats."""

    id: str
    line: int | None
    position: int
    token: str | None
    difference: float
    """B - A."""
    first: float
    """Loss of A."""
    second: float


@dataclass(frozen=True, slots=True)
class SideTotals:
    """One model's losses over the rows that are compared."""

    total_loss: float | None
    """Nats; None where no row can be compared."""
    per_unit: Estimate
    """Nats per token or byte."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A: differences are B - A, so that a negative one means that B is lower."""

    first: int
    """Place of A among the files."""
    second: int
    unit: Unit
    n_documents: int
    n_units: int
    """Scored tokens or bytes of the rows that are compared."""
    a: SideTotals
    b: SideTotals
    difference: Estimate
    """Nats per unit: total difference over total units, with the linearised interval."""
    bootstrap: Estimate
    """The difference with the interval of the bootstrap."""
    test: resampling.SignFlip
    p_adjusted: float
    """By Holm's method where several pairs are compared."""
    n_lower: int
    """Documents on which B is lower by more than a tie."""
    n_tied: int
    n_higher: int
    correlation: float | None
    """Pearson's, of the documents' losses per unit."""
    is_significant: bool
    """More than noise, and more than a tie."""
    documents: list[DocumentDifference]
    """Documents with the largest differences."""
    tokens: list[TokenDifference]
    """Tokens with the largest differences."""
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Every comparison of several files, and which rows of these are in none."""

    pairs: list[Comparison]
    joined: JoinReport


@dataclass(slots=True)
class _PairSums:
    """Losses of two files, document by document, as rows are joined."""

    same_tokenizer: bool
    options: CompareOptions
    # arrays of the standard library grow in place, 8 bytes a document
    a: array[float] = field(default_factory=lambda: array("d"))
    b: array[float] = field(default_factory=lambda: array("d"))
    units: array[float] = field(default_factory=lambda: array("d"))
    clusters: array[int] = field(default_factory=lambda: array("q"))
    only: Floats | None = None
    """B - A of its tokens, (tokens) nats, while there is one document."""
    notes: list[str] = field(default_factory=list)
    documents: Top = field(init=False)
    tokens: Top = field(init=False)

    def __post_init__(self) -> None:
        self.documents, self.tokens = Top(self.options.n_extremes), Top(self.options.n_extremes)

    def add(self, a: ResultRow, b: ResultRow, cluster: int) -> None:
        # rows without a total are never joined: 0.0 only satisfies the type checker
        self.a.append(a.totals.total_loss or 0.0)
        self.b.append(b.totals.total_loss or 0.0)
        self.units.append(n_units(a, self.same_tokenizer))
        self.clusters.append(cluster)
        if not self.same_tokenizer and (a.tokens is None or b.tokens is None):
            self.notes = [
                "written without tokens: how many bytes are scored is compared, not which"
            ]
        found = _difference(a, b, self.same_tokenizer)
        self.documents.add(abs(found.difference), found)
        self.only = None
        if self.same_tokenizer and a.tokens is not None and b.tokens is not None:
            self._add_tokens(a, a.tokens, b.tokens)

    def _add_tokens(self, row: ResultRow, a: TokenLosses, b: TokenLosses) -> None:
        if len(self.a) == 1:
            self.only = b.losses[b.counted] - a.losses[a.counted]
        # an infinite loss has no place here: such rows are not comparable
        differences = np.where(a.counted & b.counted, b.losses - a.losses, 0.0)
        for place in highest(np.abs(differences), self.options.n_extremes):
            size = float(abs(differences[place]))
            if self.tokens.takes(size) and size > 0:
                first, second = float(a.losses[place]), float(b.losses[place])
                text, line = token_text(row, place), row.fields.get("line")
                found = TokenDifference(row.id, line, place, text, second - first, first, second)
                self.tokens.add(size, found)


def compare(
    files: Sequence[Iterable[ResultRow]],
    same_tokenizer: bool,
    options: CompareOptions,
    against: int | None = None,
) -> Comparisons:
    """Compare every two of the files on the rows that all have and that can be compared.

    With `against`, the number of a file, each other file (A) is compared with that one (B) only.
    """
    report = JoinReport()
    chosen = list(combinations(range(len(files)), 2))
    if against is not None:
        chosen = [(n, against) for n in range(len(files)) if n != against]
    pairs = {pair: _PairSums(same_tokenizer, options) for pair in chosen}
    clusters = Clusters(options.cluster)
    for rows in join_usable(files, report, same_tokenizer):
        cluster = clusters.number_of(cluster_of(rows, options.cluster))
        for (first, second), collected in pairs.items():
            collected.add(rows[first], rows[second], cluster)
    report.n_without_cluster = clusters.n_without
    # Holm multiplies the least p by the number of pairs: more flips, else it could not be small
    n_flips = _FLIPS * max(1, len(pairs))
    tests = {pair: _test(collected, n_flips) for pair, collected in pairs.items()}
    adjusted = dict(zip(chosen, resampling.holm([tests[pair].p for pair in chosen]), strict=True))
    made = [_comparison(pair, pairs[pair], tests[pair], adjusted[pair]) for pair in chosen]
    return Comparisons(made, report)


def _difference(a: ResultRow, b: ResultRow, same_tokenizer: bool) -> DocumentDifference:
    """Return what two comparable rows of one document differ by."""
    first, second, units = a.totals.total_loss, b.totals.total_loss, n_units(a, same_tokenizer)
    assert first is not None
    assert second is not None
    line, difference = a.fields.get("line"), (second - first) / units
    return DocumentDifference(a.id, line, difference, first / units, second / units)


def _test(collected: _PairSums, n_flips: int) -> resampling.SignFlip:
    """Test the differences of documents, or of clusters of them."""
    differences = np.array(collected.b) - np.array(collected.a)
    if collected.options.cluster and len(differences):
        differences = np.bincount(collected.clusters, weights=differences)
    return resampling.sign_flip_test(differences, n_flips, collected.options.seed)


def _comparison(
    pair: tuple[int, int], collected: _PairSums, test: resampling.SignFlip, p_adjusted: float
) -> Comparison:
    options = collected.options
    a, b, units = (np.array(x) for x in (collected.a, collected.b, collected.units))
    clusters = np.array(collected.clusters) if options.cluster and len(a) else None
    d = b - a
    # per unit, so that a long document is no difference for its length alone
    ties = np.abs(d) <= TIE * units
    if not len(a):
        difference = bootstrap = unknown(None, 0, "no rows to compare")
        sides = [SideTotals(None, difference)] * 2
    else:
        difference = ratio_estimate(d, units, clusters, options.confidence)
        bootstrap = resampling.bootstrap_ratio(
            d, units, options.bootstrap, options.seed, clusters, options.confidence
        )
        sides = [
            SideTotals(
                math.fsum(y.tolist()), ratio_estimate(y, units, clusters, options.confidence)
            )
            for y in (a, b)
        ]
    if len(a) == 1 and collected.only is not None:
        block = resampling.default_block(len(collected.only))
        difference = bootstrap = resampling.block_bootstrap(
            collected.only, block, options.bootstrap, options.seed, options.confidence
        )
    return Comparison(
        first=pair[0],
        second=pair[1],
        unit="token" if collected.same_tokenizer else "byte",
        n_documents=len(a),
        n_units=int(units.sum()),
        a=sides[0],
        b=sides[1],
        difference=difference,
        bootstrap=bootstrap,
        test=test,
        p_adjusted=p_adjusted,
        n_lower=int(((d < 0) & ~ties).sum()),
        n_tied=int(ties.sum()),
        n_higher=int(((d > 0) & ~ties).sum()),
        correlation=_correlation(a / units, b / units) if len(a) > 1 else None,
        is_significant=_is_significant(difference, p_adjusted, 1 - options.confidence, len(a)),
        documents=collected.documents.items(),
        tokens=collected.tokens.items(),
        notes=[*interval_notes(difference, len(a)), *collected.notes],
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


def _correlation(a: Floats, b: Floats) -> float | None:
    # where all documents have one loss, numpy would divide by 0, and warn
    if not (a.std() > 0 and b.std() > 0):
        return None
    return float(np.corrcoef(a, b)[0, 1])


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
