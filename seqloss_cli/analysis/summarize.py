"""Summarize rows of results: sums, means with intervals, quantiles and extremes.

Also by group and by position in the sequence. Of each document a few numbers are kept, on disk once
there are many, so that files of any size can be read; of tokens a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seqloss_cli.analysis.extremes import Extremes
from seqloss_cli.analysis.membership import RESAMPLES, Membership, MembershipScores
from seqloss_cli.core.records import Floats
from seqloss_cli.inputs.duplicates import DuplicateIds, Table
from seqloss_cli.metrics import intervals, resampling
from seqloss_cli.metrics.series import Derived, Series, as_array
from seqloss_cli.metrics.totals import NATS_PER_BIT, Totals
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BLOCK_RESAMPLES = 2000
MOST_SORTED = 1_000_000
"""Documents of which quantiles are taken; of more a uniform sample is."""


@dataclass(frozen=True, slots=True)
class SummaryOptions:
    """The settings of `summarize`."""

    by: str | None = None
    """Field of a row, or of its meta, that makes groups."""
    cluster: str | None = None
    """Field whose values rows share that were not drawn independently."""
    n_extremes: int = 10
    bootstrap: int = 0
    """Number of resamples; 0 takes the linearised standard error."""
    block: int | None = None
    """Tokens of a block of one long text; by default the square root of its length."""
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """The figures of one group of rows."""

    value: Any
    """Value of the field that rows are grouped by; None for all rows."""
    totals: Totals
    estimates: dict[str, intervals.Estimate]
    """By the names of docs/numbers.md, in nats, bits or none."""
    quantiles: dict[float, intervals.Estimate]
    """Quantiles of the documents' mean losses, nats per token, by share."""
    notes: list[str]

    def estimate(self, name: str) -> intervals.Estimate:
        """Return a figure of the totals; sums are known where an interval is not."""
        return self.estimates.get(name) or intervals.unknown(getattr(self.totals, name), 0, "")


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of all rows."""

    whole: GroupSummary
    groups: list[GroupSummary]
    token_quantiles: dict[float, float]
    """Quantiles of finite losses of tokens, nats, by share."""
    n_tokens_seen: int
    """Scored tokens whose losses the files hold."""
    token_losses: Floats
    """Losses that the quantiles are of, shape n, nats: a uniform sample of very many."""
    positions: list[PositionLoss]
    extremes: dict[str, list[Any]]
    """`SequenceExtreme` and `TokenExtreme` records, by the keys of `summarize --json`."""
    n_duplicates: int
    """Rows whose id and text came before."""
    n_without_by: int
    """Rows that lack the field of groups, or of clusters."""
    n_without_cluster: int
    membership: Membership | None = None
    """None where nobody asked for it."""


@dataclass(slots=True)
class GroupLosses:
    """Losses (nats), scored tokens and bytes of each document: of a group, or of a checkpoint."""

    totals: Totals = field(default_factory=Totals)
    losses: Series = field(default_factory=Series)
    n_scored: Series = field(default_factory=Series)
    n_bytes: Series = field(default_factory=Series)
    """NaN of a document with bytes that no token stands for: no rate per byte is made of it."""
    clusters: Series = field(default_factory=Series)

    def add(self, row: ResultRow, cluster: int) -> None:
        """Add a row; one where nothing is scored counts in the totals only."""
        self.totals += row.totals
        if row.totals.n_scored:
            self.add_losses(row.totals, cluster)

    def add_losses(self, sums: Totals, cluster: int) -> None:
        """Add the losses of a row with something scored, and leave the totals as they are."""
        # rows without a total hold an infinite loss: something is scored in them
        self.losses.append(math.inf if sums.total_loss is None else sums.total_loss)
        self.n_scored.append(sums.n_scored)
        self.n_bytes.append(math.nan if sums.unspelled_bytes else sums.n_scored_bytes)
        self.clusters.append(cluster)

    def mean(self, clustered: bool, confidence: float, why_unknown: str) -> intervals.Estimate:
        """Return the mean loss in nats per token, with its interval over documents or clusters."""
        if not self.is_known:
            return intervals.unknown(None, len(self.losses), why_unknown)
        if not clustered:
            return intervals.ratio_estimate(self.losses, self.n_scored, None, confidence)
        clusters = intervals.numbered_anew(self.clusters)
        return intervals.ratio_estimate(self.losses, self.n_scored, clusters, confidence)

    @property
    def is_known(self) -> bool:
        """There are losses, and none of them is infinite: it would make sums unknown (rule 3)."""
        finite = (bool(np.isfinite(each).all()) for each in self.losses.chunks())
        return len(self.losses) > 0 and all(finite)


class Clusters:
    """Numbers the values of the field that rows share which were not drawn independently."""

    def __init__(self, field: str | None) -> None:
        self._field = field
        self._numbers = Table[int]()
        self._n = self.n_without = 0

    def number(self, row: ResultRow) -> int:
        """Return the number of the row's cluster; 0 where no field is named."""
        return self.number_of(row.field(self._field)) if self._field else 0

    def number_of(self, value: Any) -> int:
        """Return the number of the cluster of a row whose field has that value."""
        if not self._field:
            return 0
        # by type, too: 1, 1.0 and True are equal, but not one value of a field
        key = (type(value).__name__, value)
        number = None if value is None else self._numbers.get(key)
        if number is not None:
            return number
        if value is None:  # a cluster of its own
            self.n_without += 1
        else:
            self._numbers.put(key, self._n)
        self._n += 1
        return self._n - 1


class Summarizer:
    """`add` rows, then ask for the `summary`."""

    def __init__(self, options: SummaryOptions, membership: MembershipScores | None = None) -> None:
        """`membership` is given the rows, too."""
        self._options, self._membership = options, membership
        self._whole = GroupLosses()
        self._groups: dict[Any, GroupLosses] = {}
        self._clusters = Clusters(options.cluster)
        self._positions = PositionSums()
        self._tokens = resampling.Reservoir(seed=options.seed)
        self._extremes = Extremes(options.n_extremes)
        self._seen = DuplicateIds()
        self._n_duplicates = 0
        self._only: Floats | None = None  # token losses of the first document, while it is alone
        self._n_without_by = 0

    def add(self, row: ResultRow) -> None:
        """Add a row."""
        cluster = self._clusters.number(row)
        if row.totals.n_scored:
            # only one document is resampled by blocks; kept for all, losses would fill the memory
            is_first, tokens = not self._whole.losses, row.tokens
            self._only = tokens.losses[tokens.counted] if is_first and tokens else None
        self._whole.add(row, cluster)
        if self._options.by:
            value = row.field(self._options.by)
            self._n_without_by += value is None
            self._groups.setdefault((type(value).__name__, value), GroupLosses()).add(row, cluster)
        self._n_duplicates += self._seen.seen_before((row.id, row.fields.get("text_sha256")))
        self._extremes.add_sequence(row)
        if self._membership is not None:
            self._membership.add(row, cluster)
        if (tokens := row.tokens) is not None:
            self._positions.add(tokens, cluster)
            self._tokens.add(tokens.losses[tokens.counted])
            self._extremes.add_tokens(row, tokens)

    def summary(self) -> Summary:
        """Return the summary of the rows that were added."""
        drawn = self._tokens.values()
        finite, options, membership = drawn[np.isfinite(drawn)], self._options, None
        if self._membership is not None:
            membership = self._membership.summary(
                options.bootstrap or RESAMPLES,
                options.seed,
                bool(options.cluster),
                options.confidence,
            )
        return Summary(
            whole=self._summed(None, self._whole),
            groups=[self._summed(value, group) for (_, value), group in self._groups.items()],
            token_quantiles={q: float(np.quantile(finite, q)) for q in QUANTILES if len(finite)},
            n_tokens_seen=self._tokens.n_seen,
            token_losses=drawn,
            positions=self._positions.figures(
                bool(self._options.cluster), self._options.confidence
            ),
            extremes=self._extremes.items(),
            n_duplicates=self._n_duplicates,
            n_without_by=self._n_without_by,
            n_without_cluster=self._clusters.n_without,
            membership=membership,
        )

    def _summed(self, value: Any, group: GroupLosses) -> GroupSummary:
        known, n = group.is_known, len(group.losses)
        only = self._only if group is self._whole else None
        estimates = dict(_estimates(group, only, self._options)) if known else {}
        quantiles = {}
        if known and n > 1:
            # More of them would be sorted in memory: a uniform sample is, and it is said.
            sample = resampling.Reservoir(MOST_SORTED, self._options.seed)
            for losses, n_scored in zip(
                group.losses.chunks(), group.n_scored.chunks(), strict=True
            ):
                sample.add(losses / n_scored)
            means = sample.values()
            quantiles = {q: self._quantile(means, q, n) for q in QUANTILES}
        mean = estimates.get("mean_loss")
        notes = intervals.interval_notes(mean, n) if mean else []
        # of the exact sums (rule 1): a mean of floats could differ in its last bits
        values = {name: getattr(group.totals, name) for name in estimates}
        exact = {n: replace(e, value=values[n]) for n, e in estimates.items()}
        return GroupSummary(value, group.totals, exact, quantiles, notes)

    def _quantile(self, means: Floats, share: float, n: int) -> intervals.Estimate:
        """Return a quantile of mean losses of documents, nats per token: a sample of n at most."""
        if self._options.cluster:
            why = "no interval: order statistics know no clusters"
            found = intervals.unknown(float(np.quantile(means, share)), len(means), why)
        else:
            found = intervals.quantile_estimate(means, share, self._options.confidence)
        of_sample = f", of a uniform sample of {len(means):,}" if len(means) < n else ""
        return replace(found, method=found.method + of_sample)


def _estimates(
    group: GroupLosses, only: Floats | None, options: SummaryOptions
) -> Iterator[tuple[str, intervals.Estimate]]:
    """Yield losses and rates with their intervals, by name.

    `only` holds the token losses of a single document, (n) nats: its interval is over blocks.
    """
    y, m = group.losses, group.n_scored
    ones, n_docs = Derived(np.ones_like, y), len(y)
    if n_docs == 1 and only is not None:
        mean = _of_one_text(only, options)
    else:
        mean = _ratio(y, m, group, options)
    yield "mean_loss", mean
    yield "perplexity", mean.exp()
    if group.totals.bits_per_byte is not None:
        per_byte = Derived(lambda n_bytes: NATS_PER_BIT * n_bytes, group.n_bytes)
        if n_docs == 1:  # the interval over blocks, in another unit
            yield "bits_per_byte", mean.times(float(as_array(m)[0] / as_array(per_byte)[0]))
        else:
            yield "bits_per_byte", _ratio(y, per_byte, group, options)
    each = _ratio(y, ones, group, options)
    yield "total_loss", each.times(n_docs)
    yield "mean_sequence_loss", each
    yield "mean_of_mean_losses", _ratio(Derived(np.divide, y, m), ones, group, options)


def _ratio(
    y: Series | Derived, m: Series | Derived, group: GroupLosses, options: SummaryOptions
) -> intervals.Estimate:
    """Return Σ y / Σ m over the documents whose m is known."""
    own = Derived(lambda y, m: y[~np.isnan(m)], y, m)
    weights = Derived(lambda m: m[~np.isnan(m)], m)
    clusters = None
    if options.cluster:
        known = Derived(lambda n, m: n[~np.isnan(m)], group.clusters, m)
        clusters = intervals.numbered_anew(known)
    if options.bootstrap:
        return resampling.bootstrap_ratio(
            own, weights, options.bootstrap, options.seed, clusters, options.confidence
        )
    return intervals.ratio_estimate(own, weights, clusters, options.confidence)


def _of_one_text(losses: Floats, options: SummaryOptions) -> intervals.Estimate:
    block = options.block or resampling.default_block(len(losses))
    resamples = options.bootstrap or _BLOCK_RESAMPLES
    if not np.isfinite(losses).all():
        return intervals.unknown(None, 1, "no interval: an infinite loss")
    return resampling.block_bootstrap(losses, block, resamples, options.seed, options.confidence)


def summarize(
    rows: Iterable[ResultRow],
    options: SummaryOptions,
    membership: MembershipScores | None = None,
) -> Summary:
    """Return the summary of the rows, which are read once; `membership` is given them, too."""
    summarizer = Summarizer(options, membership)
    for row in rows:
        summarizer.add(row)
    return summarizer.summary()


_BINS = 63


@dataclass(frozen=True, slots=True)
class PositionLoss:
    """Mean loss at the positions `first` to `last`."""

    first: int
    """Position in the sequence that the model saw; BOS, where there is one, stands at 0."""
    last: int
    """The last position."""
    n_scored: int
    """Tokens that have a loss."""
    mean_loss: intervals.Estimate
    """Nats per token, over documents that reach so far."""


class PositionSums:
    """Sums of each document in bins of positions that double: 1, 2-3, 4-7 and so on."""

    def __init__(self) -> None:
        self._bins = [GroupLosses() for _ in range(_BINS)]

    def add(self, tokens: TokenLosses, cluster: int = 0) -> None:
        """Add a document."""
        places = np.flatnonzero(tokens.counted)
        places = places[places > 0]
        # the exponent of a float64 is exact, where log2 of 2**k - 1 can round up to k
        bins = np.frexp(places.astype(np.float64))[1] - 1
        losses, counts = np.bincount(bins, weights=tokens.losses[places]), np.bincount(bins)
        for n in np.flatnonzero(counts).tolist():
            self._bins[n].losses.append(float(losses[n]))
            self._bins[n].n_scored.append(float(counts[n]))
            self._bins[n].clusters.append(cluster)

    def figures(self, clustered: bool, confidence: float) -> list[PositionLoss]:
        """Return the bins that some document reaches, in nats per token."""
        return [
            PositionLoss(
                1 << n, (2 << n) - 1, int(intervals.exact_total(sums.n_scored)),
                sums.mean(clustered, confidence, "an infinite loss"),
            )
            for n, sums in enumerate(self._bins)
            if sums.n_scored
        ]  # fmt: skip
