"""Summaries of results files for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from seqloss_cli.analysis import summarize
from seqloss_cli.analysis.extremes import SequenceExtreme, TokenExtreme, WorstTokens
from seqloss_cli.analysis.membership import Membership
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejected, Rejections, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import Column, FiguresTable, Unit
from seqloss_cli.metrics.intervals import FEW_UNITS, LOG_SCALE, Estimate
from seqloss_cli.metrics.totals import Totals, corpus_flags

_FIGURES = {
    "total_loss": ("total loss", "in all"),
    "mean_loss": ("mean loss", "per token"),
    "perplexity": ("perplexity", ""),
    "bits_per_byte": ("bits per byte", ""),
    "mean_sequence_loss": ("mean sequence loss", "per sequence"),
    "mean_of_mean_losses": ("mean of mean losses", "per token"),
}
_WITHOUT_UNIT = ("perplexity", "bits_per_byte")


def summary_view(
    summary: summarize.Summary, options: summarize.SummaryOptions, unit: Unit, rejected: Rejections
) -> Iterator[RenderableType]:
    """Yield the totals, groups, quantiles, positions and extremes of a summary."""
    if not summary.whole.totals.n_sequences:
        why = f": {fmt.rejected_text(rejected)}" if rejected else ""
        yield Text(f"There are no rows to sum up{why}.")
        return
    rows = _figures(summary.whole, options, unit, rejected)
    yield fmt.figures_panel("summary", rows)
    if summary.groups:
        yield _groups(summary.groups, options, unit)
    yield _quantiles(summary, unit)
    if summary.membership is not None:
        yield _membership(summary.membership)
    if summary.positions:
        yield _positions(summary.positions, unit)
    # One sequence is both the worst and the best.
    if summary.whole.totals.n_sequences > 1:
        for kind in ("worst_sequences", "best_sequences"):
            yield from _sequences(kind.replace("_", " "), summary.extremes[kind], unit)
    for kind in ("worst_tokens", "best_tokens"):
        if entries := summary.extremes[kind]:
            yield _tokens(kind.replace("_", " "), entries, unit)


def _figures(
    group: summarize.GroupSummary,
    options: summarize.SummaryOptions,
    unit: Unit,
    rejected: Rejections,
) -> Iterator[tuple[str, str, str | Text]]:
    totals, mean = group.totals, group.estimates.get("mean_loss")
    yield "sequences", f"{totals.n_sequences:,}", fmt.rejected_text(rejected) if rejected else ""
    yield "scored tokens", f"{totals.n_scored:,}", f"of {totals.n_tokens:,}"
    for name, (label, per) in _FIGURES.items():
        found = group.estimate(name)
        if name in _WITHOUT_UNIT:
            yield label, fmt.value_of(found), fmt.interval(found)
        else:
            between = f"{unit.interval(found)} {unit} {per}".lstrip()
            yield label, fmt.value_of(found, unit), between
    if totals.word_perplexity is not None:
        words = f"over {count_of(totals.spelled.n_words, 'word')}"
        yield "word perplexity", fmt.number(totals.word_perplexity), words
    if n := totals.n_unspelled_sequences:
        unspelled = f"in {count_of(n, 'sequence')}, which no rate of text is made of"
        yield "unspelled bytes", f"{totals.unspelled_bytes:,}", unspelled
    if flags := corpus_flags(totals):
        yield "flags", "", fmt.counts_text(flags)
    if mean is not None:
        share = f"{100 * options.confidence:g}%"
        yield "intervals", share if mean.low is not None else "-", mean.method
    for note in group.notes:
        yield "", "", Text(note, style="yellow")


def _groups(
    groups: Sequence[summarize.GroupSummary], options: summarize.SummaryOptions, unit: Unit
) -> RenderableType:
    columns = [Column("value", least=12), Column("sequences", spare=3), Column("scored", spare=4)]
    columns += [Column("total loss", spare=2), Column("mean"), Column("interval", spare=1)]
    columns += [Column("bits/byte", spare=5)]
    table = FiguresTable(f"by {escape(str(options.by))}, {unit}", columns)
    digits = unit.decimals(group.totals.total_loss for group in groups)
    for group in groups:
        totals = group.totals
        table.add_row(
            Text(escape("(none)" if group.value is None else str(group.value))),
            f"{totals.n_sequences:,}",
            f"{totals.n_scored:,}",
            unit.text(totals.total_loss, digits),
            _coloured(totals.mean_loss, unit),
            unit.interval(group.estimate("mean_loss")),
            fmt.number(totals.bits_per_byte),
        )
    means = [group.estimate("mean_loss") for group in groups]
    known = [mean for mean in means if mean.low is not None]
    lines = _without_interval(means)
    if few := sum(mean.n < FEW_UNITS for mean in known):
        lines += [f"{count_of(few, 'group')} of few documents: intervals may be too narrow"]
    table.notes = lines
    return table


def _without_interval(estimates: Sequence[Estimate]) -> list[str]:
    """Return why figures have no interval, each reason once."""
    reasons = (e.method for e in estimates if e.low is None and e.value is not None)
    # The number of units, at the end, differs from figure to figure.
    once = dict.fromkeys(reason.split(" (")[0] for reason in reasons if reason)
    return [reason.replace("no interval:", "where there is no interval:") for reason in once]


def _quantiles(summary: summarize.Summary, unit: Unit) -> RenderableType:
    documents, tokens = summary.whole.quantiles, summary.token_quantiles
    columns = map(Column, ("share", "sequences' means", "interval", "tokens"))
    table = FiguresTable(f"quantiles of loss, {unit} per token", columns)
    # Sequences were drawn at random, and have intervals; tokens never were.
    for share in summarize.QUANTILES:
        estimate = documents.get(share)
        value = None if estimate is None else estimate.value
        row = (unit.text(value), unit.interval(estimate), unit.text(tokens.get(share)))
        table.add_row(f"{share:.0%}", *row)
    lines = _without_interval(list(documents.values()))
    if not tokens:
        lines += ["no token losses in the file (--no-tokens)"]
    elif (drawn := len(summary.token_losses)) < (seen := summary.n_tokens_seen):
        lines += [f"tokens: a uniform sample of {drawn:,} of {seen:,}, no interval"]
    table.notes = lines
    return table


def _positions(positions: Sequence[summarize.PositionLoss], unit: Unit) -> RenderableType:
    title = f"loss by position in the sequence, {unit} per token"
    documents = "documents"
    if any("cluster" in bin.mean_loss.method for bin in positions):
        documents = "clusters"
    columns = [Column("positions"), Column("scored", spare=3), Column("mean")]
    columns += [Column("interval", spare=1), Column(documents, spare=2)]
    table = FiguresTable(title, columns)
    for bin in positions:
        span = str(bin.first) if bin.first == bin.last else f"{bin.first}–{bin.last}"
        mean = bin.mean_loss
        value = _coloured(mean.value, unit)
        table.add_row(span, f"{bin.n_scored:,}", value, unit.interval(mean), f"{mean.n:,}")
    means = [bin.mean_loss for bin in positions]
    lines = _without_interval(means)
    if any(mean.low is not None for mean in means):
        lines = [f"intervals: linearised ratio, {LOG_SCALE}", *lines]
    table.notes = lines
    return table


_WHY_NULL = {
    "no_text": "the file has no text of it (--no-text; of chats none is known)",
    "no_tokens": "no losses of tokens in the file (--no-tokens)",
    "no_varentropies": "score with --entropy --varentropy",
    "nan_entropy": "an entropy is not a number",
    "no_variance": "a token's distribution has no variance",
    "no_pair": "no lower-case version (--pair FIELD)",
    "pair_differs": "neither of two texts is the other in lower case",
    "inf_loss": "an infinite loss",
    "zero_loss": "the loss is 0",
}


def _membership(found: Membership) -> FiguresTable:
    """Return the scores, and how well they tell members from others."""
    columns = [Column("score"), Column("documents", spare=3), Column("mean", spare=2)]
    is_judged = found.label is not None
    if is_judged:
        columns += [Column("AUROC"), Column("interval", spare=1)]
        columns += [Column("TPR at 1 %"), Column("TPR at 0.1 %")]
    table = FiguresTable("membership", columns)
    for name, score in found.scores.items():
        row = [name, f"{score.n:,}", fmt.value_of(score.mean)]
        if score.auroc is not None and score.tpr_at_fpr is not None:
            row += [fmt.value_of(score.auroc), fmt.interval(score.auroc)]
            row += [
                f"{fmt.value_of(rate)} {fmt.interval(rate)}".rstrip()
                for rate in score.tpr_at_fpr.values()
            ]
        table.add_row(*row)
    table.notes = list(_of_membership(found))
    return table


def _of_membership(found: Membership) -> Iterator[str]:
    lower = [name for name, score in found.scores.items() if score.member_is == "lower"]
    yield (
        f"min_k of the least likely {found.min_k_percent:g} % of tokens; {' and '.join(lower)} are "
        "lower for members, other scores higher"
    )
    if found.label is not None:
        unlabelled = f", {found.n_unlabelled:,} without a label" if found.n_unlabelled else ""
        yield f"{found.n_members:,} members, {found.n_non_members:,} non-members{unlabelled}"
        estimates = [
            each for score in found.scores.values() if score.auroc is not None
            for each in (score.auroc, *(score.tpr_at_fpr or {}).values())
        ]  # fmt: skip
        yield from dict.fromkeys(
            each.method for each in estimates if each.low is None and each.method
        )
        known = [each.method for each in estimates if each.low is not None]
        yield from (*known[:1], *found.notes)
    for name, score in found.scores.items():
        for reason, n in score.n_null.items():
            yield f"{name}: none of {count_of(n, 'document')}: {_WHY_NULL[reason]}"


def _sequences(
    title: str, entries: Sequence[SequenceExtreme], unit: Unit
) -> Iterator[RenderableType]:
    columns = [Column("sequence", least=12), Column("scored", spare=2)]
    columns += [Column("total loss", spare=1), Column("mean")]
    table = FiguresTable(f"{title}, {unit}", columns)
    digits = unit.decimals(entry.total_loss for entry in entries)
    for entry in entries:
        total, mean = unit.text(entry.total_loss, digits), _coloured(entry.mean_loss, unit)
        table.add_row(Text(escape(entry.id)), f"{entry.n_scored:,}", total, mean)
    if entries:
        yield table


def _tokens(title: str, entries: Sequence[TokenExtreme], unit: Unit) -> FiguresTable:
    columns = [Column("loss"), Column("token in its text", least=24)]
    parts = fmt.parts_of_characters(entries)
    columns += [*parts.columns, Column("sequence", least=12), Column("pos", spare=1)]
    table = FiguresTable(f"{title}, {unit}", columns)
    for entry in entries:
        token = fmt.in_its_text(entry, fmt.loss_style(entry.loss))
        cells = (*parts.cells(entry), escape(entry.id), str(entry.position))
        table.add_row(_coloured(entry.loss, unit), token, *cells)
    return table


class WorstTokensWriter:
    """Lists the tokens of the highest losses of a run, each with its text around, at its end."""

    def __init__(self, console: Console, options: fmt.TableOptions, size: int) -> None:
        self._console, self._unit = console, options.unit
        self._worst = WorstTokens(size, options.token_texts)

    def begin(self, run: RunInfo) -> None:
        """Do nothing: all is shown at the end."""

    def sequence(self, score: SequenceScore, totals: Totals) -> None:
        """Consider the tokens of a result."""
        self._worst.add(score)

    def reject(self, rejected: Rejected) -> None:
        """Do nothing: it has no tokens."""

    def end(self, totals: Totals, rejected: Rejections, n_empty_lines: int) -> None:
        """Print the list."""
        if entries := self._worst.items():
            self._console.print()
            self._console.print(_tokens("worst tokens", entries, self._unit))


def _coloured(nats: float | None, unit: Unit) -> Text:
    return Text(unit.text(nats), style=fmt.loss_style(nats))
