"""Tables of tokens and words, one line for each of many sequences, and the totals panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from seqloss_cli.escaping import escape
from seqloss_cli.metrics import Totals, score_flags, totals_of
from seqloss_cli.records import Rejected, RunInfo, SequenceScore, TokenSequence
from seqloss_cli.rendering.theme import (
    NATS_PER_BIT,
    loss_style,
    number,
    probability,
    visible,
)
from seqloss_cli.words import word_losses

MOST_TABLES = 10
"""More sequences than this are shown a line each."""
_HEAD_ROWS, _TAIL_ROWS = 24, 16
_LINE_COLUMNS = (("tokens", 8), ("scored", 8), ("total loss", 12), ("mean", 9), ("bits/byte", 10))
_LEAST_ID_WIDTH = 12


@dataclass(frozen=True, slots=True)
class TableOptions:
    token_texts: Callable[[TokenSequence], list[str]]
    name_token: Callable[[int], str]
    bits: bool = False
    """Show losses in bits."""
    all_tokens: bool = False
    summary: bool = False
    """Totals only."""
    words: bool = False

    @property
    def unit(self) -> str:
        return "bits" if self.bits else "nats"

    def in_unit(self, nats: float | None) -> float | None:
        return nats / NATS_PER_BIT if self.bits and nats is not None else nats


class TableWriter:
    """A `Writer` for a terminal (the same calls as the writers of JSON)."""

    def __init__(self, console: Console, options: TableOptions) -> None:
        self._console, self._options = console, options
        self._waiting: list[SequenceScore] = []
        self._as_lines = False

    def begin(self, run: RunInfo) -> None:
        self._run = run

    def sequence(self, score: SequenceScore) -> None:
        if self._options.summary:
            return
        if self._as_lines:
            self._line(score)
        elif self._options.all_tokens:
            self._show_tables(score)
        else:
            self._waiting.append(score)
            if len(self._waiting) > MOST_TABLES:
                self._as_lines = True
                self._line_header()
                self._show_waiting(self._line)

    def reject(self, rejected: Rejected) -> None:
        """Rejected inputs are named on stderr as they come, and counted in the panel."""

    def end(self, totals: Totals, n_rejected: int, n_empty_lines: int) -> None:
        self._show_waiting(self._show_tables)
        panel = totals_panel(totals, n_rejected, n_empty_lines, self._run, self._options)
        self._console.print(panel)

    def _show_waiting(self, show: Callable[[SequenceScore], None]) -> None:
        for score in self._waiting:
            show(score)
        self._waiting.clear()

    def _show_tables(self, score: SequenceScore) -> None:
        self._console.print(token_table(score, self._options))
        if self._options.words and (table := word_table(score, self._options)):
            self._console.print(table)
        if flags := score_flags(score):
            self._console.print(Text("flags: " + _flags(flags), style="yellow"))
        self._console.print()

    def _line_header(self) -> None:
        header = "".join(f"{name:>{width}}" for name, width in _LINE_COLUMNS)
        self._print_line("sequence", header, "", "bold")

    def _line(self, score: SequenceScore) -> None:
        totals, options = totals_of(score), self._options
        values = (
            str(totals.n_tokens),
            str(totals.n_scored),
            number(options.in_unit(totals.total_loss), 3),
            number(options.in_unit(totals.mean_loss)),
            number(totals.bits_per_byte),
        )
        sizes = (width for _, width in _LINE_COLUMNS)
        figures = "".join(f"{value:>{width}}" for value, width in zip(values, sizes, strict=True))
        flags = score_flags(score)
        self._print_line(
            escape(score.sequence.sample.id),
            figures,
            _flags(flags) if flags else "",
            loss_style(totals.mean_loss),
        )

    def _print_line(self, name: str, figures: str, flags: str, style: str) -> None:
        width = max(_LEAST_ID_WIDTH, self._console.width - len(figures))
        if cell_len(name) > width:
            name = "…" + name[-(width - 1) :]
        text = Text(set_cell_size(name, width))
        text.append(figures, style=style)
        if flags:
            text.append(f"\n  {flags}", style="yellow")
        self._console.print(text, soft_wrap=True)


def token_table(score: SequenceScore, options: TableOptions) -> Table:
    """Position, token, id, loss, probability, cumulative loss, and what was asked for.

    Columns of figures keep their width; on a narrow terminal tokens and alternatives wrap.
    """
    table = _table(f"{escape(score.sequence.sample.id)}  (losses in {options.unit})")
    _add_figures(table, "pos")
    table.add_column("token", overflow="fold")
    _add_figures(table, "id", "loss", "prob", "sum")
    if score.ranks is not None:
        _add_figures(table, "rank")
    if score.entropies is not None:
        _add_figures(table, "entropy")
    if score.top_ids is not None:
        table.add_column("alternatives", overflow="fold")
    rows = _token_rows(score, options)
    _add_rows(table, rows, len(score.losses), options, "tokens")
    return table


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )


def _add_figures(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _add_rows(
    table: Table, rows: Iterator[list[Text]], n_rows: int, options: TableOptions, what: str
) -> None:
    """All rows, or the first and the last of many."""
    folded = _folded(n_rows, options)
    for n, row in enumerate(rows):
        if n == folded.start:
            table.add_row("⋮", Text(f"({len(folded)} {what} folded: --all-tokens)", style="dim"))
        if n not in folded:
            table.add_row(*row)


def _folded(n_tokens: int, options: TableOptions) -> range:
    """Positions that a long table leaves out (`--all-tokens` shows them)."""
    if options.all_tokens or n_tokens <= _HEAD_ROWS + _TAIL_ROWS + 1:
        return range(-1, -1)
    return range(_HEAD_ROWS, n_tokens - _TAIL_ROWS)


def _token_rows(score: SequenceScore, options: TableOptions) -> Iterator[list[Text]]:
    texts = options.token_texts(score.sequence)
    ids = score.sequence.token_ids.tolist()
    cumulative = np.cumsum(np.where(score.counted, score.losses, 0.0)).tolist()
    for t, text in enumerate(texts):
        loss = float(score.losses[t]) if score.scored[t] else None
        counts = bool(score.counted[t])
        style = loss_style(loss) if counts else "dim"
        row = [
            Text(str(t), style="dim"),
            Text(visible(text), style=style),
            Text(str(ids[t]), style="dim"),
            Text(number(options.in_unit(loss)), style=style),
            Text(probability(loss), style=style),
            Text(number(options.in_unit(cumulative[t]), 3) if counts else "-"),
        ]
        if score.ranks is not None:
            row.append(Text("-" if loss is None else str(score.ranks[t])))
        if score.entropies is not None:
            known = None if loss is None else float(score.entropies[t])
            row.append(Text(number(options.in_unit(known), 3)))
        if score.top_ids is not None:
            row.append(_alternatives(score, t, options))
        yield row


def _alternatives(score: SequenceScore, t: int, options: TableOptions) -> Text:
    if not score.scored[t] or score.top_ids is None or score.top_log_probs is None:
        return Text("-")
    pairs = zip(score.top_ids[t].tolist(), score.top_log_probs[t].tolist(), strict=True)
    shown = (f"{visible(options.name_token(i))}({probability(-p)})" for i, p in pairs)
    return Text("  ".join(shown))


def word_table(score: SequenceScore, options: TableOptions) -> Table | None:
    """Losses of words; None for a sequence without a text."""
    found = word_losses(score)
    if found is None:
        return None
    table = _table(f"words, {options.unit}")
    _add_figures(table, "bytes")
    table.add_column("word", overflow="fold")
    _add_figures(table, "loss")
    rows = (
        [
            Text(f"{start}–{end}", style="dim"),
            Text(visible(word), style=loss_style(loss)),
            Text(number(options.in_unit(loss)), style=loss_style(loss)),
        ]
        for word, loss, (start, end) in zip(
            found.words, found.losses, found.byte_offsets.tolist(), strict=True
        )
    )
    _add_rows(table, rows, len(found.words), options, "words")
    if found.n_shared_tokens:
        table.caption = Text(f"shared_token: {found.n_shared_tokens}")
    return table


def totals_panel(
    totals: Totals, n_rejected: int, n_empty_lines: int, run: RunInfo, options: TableOptions
) -> Panel:
    """What was counted, what it sums to, and what the run did."""
    unit = options.unit
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    rows: list[tuple[str, str]] = []
    if totals.n_sequences != 1 or n_rejected:
        rows.append(("sequences", f"{totals.n_sequences}, rejected {n_rejected}"))
    if n_empty_lines:
        rows.append(("empty lines", str(n_empty_lines)))
    rows += [
        ("tokens", f"{totals.n_tokens}, scored {totals.n_scored}"),
        ("total loss", f"{number(options.in_unit(totals.total_loss))} {unit}"),
        ("mean loss", f"{number(options.in_unit(totals.mean_loss))} {unit} per token"),
        ("perplexity", number(totals.perplexity)),
        *_text_rates(totals),
    ]
    if totals.n_sequences > 1:
        rows += [
            (
                "mean sequence loss",
                f"{number(options.in_unit(totals.mean_sequence_loss))} {unit} per sequence",
            ),
            (
                "mean of mean losses",
                f"{number(options.in_unit(totals.mean_of_mean_losses))} {unit} per token",
            ),
        ]
    if totals.flags:
        rows.append(("flags", _flags(totals.flags)))
    rows += _policies(run)
    for name, value in rows:
        grid.add_row(name, escape(value))
    return Panel(grid, title="totals", title_align="left", expand=False)


def _text_rates(totals: Totals) -> list[tuple[str, str]]:
    if totals.n_without_text:
        return [("rates of text", f"- ({totals.n_without_text} sequences are ids without a text)")]
    words = f"{number(totals.word_perplexity)} over {totals.n_words} words"
    if totals.n_unscored_text_tokens:
        words = f"- ({totals.n_unscored_text_tokens} tokens of the text are unscored)"
    return [
        ("bits per byte", f"{number(totals.bits_per_byte)} over {totals.n_scored_bytes} bytes"),
        ("bits per char", f"{number(totals.bits_per_char)} over {totals.n_scored_chars} chars"),
        ("word perplexity", words),
    ]


def _policies(run: RunInfo) -> list[tuple[str, str]]:
    revision = f" at {run.revision[:12]}" if run.revision else ""
    bos = f"{run.bos} ({run.bos_token})" if run.bos_token else f"{run.bos} (model has none)"
    return [
        ("model", f"{run.model}{revision}, {run.dtype} on {run.device}, {run.path}"),
        ("window", f"context {run.context} ({run.context_source}), stride {run.stride}"),
        ("policies", f"BOS {bos}, EOS {'scored' if run.eos else 'no'}, special tokens "
                     f"{run.special_tokens}"),
    ]  # fmt: skip


def _flags(flags: object) -> str:
    assert isinstance(flags, dict)
    return ", ".join(name if count is True else f"{name} {count}" for name, count in flags.items())
