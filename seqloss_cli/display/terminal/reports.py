"""Summaries of results for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from seqloss_cli.analysis.extremes import SequenceExtreme, TokenExtreme
from seqloss_cli.analysis.summarize import (
    QUANTILES,
    GroupSummary,
    PositionLoss,
    Summary,
    SummaryOptions,
)
from seqloss_cli.core.escaping import escape
from seqloss_cli.display.terminal.theme import (
    NATS_PER_BIT,
    figures_table,
    flags_text,
    loss_style,
    many,
    number,
    visible,
)
from seqloss_cli.metrics.statistics import Estimate
from seqloss_cli.metrics.totals import corpus_flags

_NAMES = {
    "total_loss": ("total loss", "in all"),
    "mean_loss": ("mean loss", "per token"),
    "perplexity": ("perplexity", ""),
    "bits_per_byte": ("bits per byte", ""),
    "mean_sequence_loss": ("mean sequence loss", "per sequence"),
    "mean_of_mean_losses": ("mean of mean losses", "per token"),
}
_WITHOUT_UNIT = ("perplexity", "bits_per_byte")


class Scale:
    """Nats as the unit that was asked for."""

    def __init__(self, bits: bool) -> None:
        self.unit, self._factor = ("bits", 1 / NATS_PER_BIT) if bits else ("nats", 1.0)

    def __call__(self, nats: float | None) -> float | None:
        return None if nats is None else nats * self._factor


def interval(estimate: Estimate, scale: Any = float) -> str:
    """`[low, high]`, or nothing."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(scale(estimate.low))}, {number(scale(estimate.high))}]"


def summary_view(
    summary: Summary, options: SummaryOptions, bits: bool, n_rejected: int
) -> Iterator[RenderableType]:
    scale = Scale(bits)
    yield _figures(summary.whole, options, scale, n_rejected)
    if summary.groups:
        yield _groups(summary.groups, options, scale)
    yield _quantiles(summary, scale)
    if summary.positions:
        yield _positions(summary.positions, scale)
    for title, entries in (
        ("worst sequences", summary.worst_sequences),
        ("best sequences", summary.best_sequences),
    ):
        if entries and summary.whole.totals.n_sequences > 1:
            yield _sequences(title, entries, scale)
    for title, tokens in (
        ("worst tokens", summary.worst_tokens),
        ("best tokens", summary.best_tokens),
    ):
        if tokens:
            yield _tokens(title, tokens, scale)


def _figures(
    group: GroupSummary, options: SummaryOptions, scale: Scale, n_rejected: int
) -> RenderableType:
    totals, share = group.totals, f"{100 * options.confidence:g}%"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    rejected = f"rejected {n_rejected}" if n_rejected else ""
    grid.add_row("sequences", str(totals.n_sequences), rejected)
    grid.add_row("scored tokens", str(totals.n_scored), f"of {totals.n_tokens}")
    exact = {"total_loss": totals.total_loss, "mean_loss": totals.mean_loss}
    for name, (shown, per) in _NAMES.items():
        estimate = group.estimates.get(name)
        value = exact.get(name, getattr(totals, name))
        unit = float if name in _WITHOUT_UNIT else scale
        what = per if name in _WITHOUT_UNIT else f"{scale.unit} {per}"
        between = interval(estimate, unit) if estimate else ""
        figure = "-" if value is None else number(unit(value))
        grid.add_row(shown, figure, " ".join(part for part in (between, what) if part))
    if totals.word_perplexity is not None:
        words = f"over {many(totals.n_words, 'word')}"
        grid.add_row("word perplexity", number(totals.word_perplexity), words)
    if flags := corpus_flags(totals):
        grid.add_row("flags", "", escape(flags_text(flags)))
    mean = group.estimates.get("mean_loss")
    if mean is not None:
        grid.add_row("intervals", share if mean.low is not None else "-", mean.method)
    for note in group.notes:
        grid.add_row("", "", Text(note, style="yellow"))
    return Panel(grid, title="summary", title_align="left", expand=False)


def _groups(
    groups: Sequence[GroupSummary], options: SummaryOptions, scale: Scale
) -> RenderableType:
    table = figures_table(
        f"by {escape(str(options.by))}, {scale.unit}",
        (),
        ("value",),
        ("sequences", "scored", "total loss", "mean", "interval", "bits/byte"),
    )
    for group in groups:
        totals, mean = group.totals, group.estimates.get("mean_loss")
        table.add_row(
            Text(escape("(none)" if group.value is None else str(group.value))),
            str(totals.n_sequences),
            str(totals.n_scored),
            number(scale(totals.total_loss), 3),
            Text(number(scale(totals.mean_loss)), style=loss_style(totals.mean_loss)),
            interval(mean, scale) if mean else "",
            number(totals.bits_per_byte),
        )
    if few := sum(bool(group.notes) for group in groups):
        table.caption = Text(f"{many(few, 'group')} of few documents: intervals may be too narrow")
    return table


def _quantiles(summary: Summary, scale: Scale) -> RenderableType:
    documents, tokens = summary.whole.quantiles, summary.token_quantiles
    table = figures_table(
        f"quantiles of loss, {scale.unit} per token",
        ("share",),
        (),
        ("sequences' means", "interval", "tokens"),
    )
    for share in QUANTILES:
        of_documents = documents.get(share)
        table.add_row(
            f"{share:.0%}",
            number(scale(of_documents.value)) if of_documents else "-",
            interval(of_documents, scale) if of_documents else "",
            number(scale(tokens.get(share))),
        )
    if not tokens:
        table.caption = Text("no token losses in the file (--no-tokens)")
    elif summary.n_tokens_drawn < summary.n_tokens_seen:
        drawn, seen = summary.n_tokens_drawn, summary.n_tokens_seen
        table.caption = Text(f"tokens: a uniform sample of {drawn} of {seen}, no interval")
    return table


def _positions(positions: Sequence[PositionLoss], scale: Scale) -> RenderableType:
    title = f"loss by position in the sequence, {scale.unit} per token"
    table = figures_table(title, ("positions",), (), ("scored", "mean", "interval", "documents"))
    for bin in positions:
        span = str(bin.first) if bin.first == bin.last else f"{bin.first}–{bin.last}"
        mean = bin.mean_loss
        value = Text(number(scale(mean.value)), style=loss_style(mean.value))
        table.add_row(span, str(bin.n_scored), value, interval(mean, scale), str(mean.n))
    if any("cluster" in bin.mean_loss.method for bin in positions):
        table.columns[-1].header = "clusters"
    table.caption = Text("intervals: linearised ratio")
    return table


def _sequences(title: str, entries: Sequence[SequenceExtreme], scale: Scale) -> RenderableType:
    table = figures_table(
        f"{title}, {scale.unit}", (), ("sequence",), ("scored", "total loss", "mean")
    )
    for entry in entries:
        table.add_row(
            Text(escape(entry.id)),
            str(entry.n_scored),
            number(scale(entry.total_loss), 3),
            Text(number(scale(entry.mean_loss)), style=loss_style(entry.mean_loss)),
        )
    return table


def _tokens(title: str, entries: Sequence[TokenExtreme], scale: Scale) -> RenderableType:
    table = figures_table(f"{title}, {scale.unit}", (), ("sequence", "token"), ("pos", "loss"))
    for entry in entries:
        table.add_row(
            Text(escape(entry.id)),
            Text("" if entry.token is None else visible(entry.token)),
            str(entry.position),
            Text(number(scale(entry.loss)), style=loss_style(entry.loss)),
        )
    return table
