"""Results as they come: a table each for a few sequences, a line each for many, then the totals."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len, set_cell_size, split_graphemes
from rich.console import Console
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejected, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.options import TableOptions
from seqloss_cli.display.terminal.pairs import (
    chain_rule_table,
    line_columns,
    line_values,
    turn_table,
)
from seqloss_cli.display.terminal.panel import totals_panel
from seqloss_cli.display.terminal.tables import region_table, token_table, word_table
from seqloss_cli.display.terminal.theme import flags_text, loss_style, number
from seqloss_cli.metrics.regions import region_losses
from seqloss_cli.metrics.totals import Totals, overflow_flags, score_flags
from seqloss_cli.metrics.words import word_losses

MOST_TABLES = 10
"""More sequences than this are shown a line each."""
Columns = tuple[tuple[str, int], ...]
"""Name and width of each."""
_LINE_COLUMNS: Columns = (
    ("tokens", 8),
    ("scored", 8),
    ("total loss", 12),
    ("mean", 9),
    ("bits/byte", 10),
)
_LEAST_ID_WIDTH, _MOST_ID_WIDTH = 12, 60


class TableWriter:
    """A `Writer` for a terminal (the same calls as the writers of JSON)."""

    def __init__(self, console: Console, options: TableOptions) -> None:
        self._console, self._options = console, options
        self._waiting: list[tuple[SequenceScore, Totals]] = []
        self._as_lines = False

    def begin(self, run: RunInfo) -> None:
        self._run = run

    def sequence(self, score: SequenceScore, totals: Totals) -> None:
        if self._options.summary:
            return
        if self._as_lines:
            self._line(score, totals)
        elif self._options.all_tokens:
            self._show_tables(score, totals)
        else:
            self._waiting.append((score, totals))
            if len(self._waiting) > MOST_TABLES:
                self._show_waiting(self._line)

    def reject(self, rejected: Rejected) -> None:
        """Rejected inputs are named on stderr as they come, and counted in the panel."""

    def end(self, totals: Totals, n_rejected: int, n_empty_lines: int) -> None:
        self._show_waiting(self._show_tables)
        if self._as_lines:
            self._console.print()
        panel = totals_panel(totals, n_rejected, n_empty_lines, self._run, self._options)
        self._console.print(panel)

    def _show_waiting(self, show: Callable[[SequenceScore, Totals], None]) -> None:
        for score, totals in self._waiting:
            show(score, totals)
        self._waiting.clear()

    def _show_tables(self, score: SequenceScore, totals: Totals) -> None:
        self._show_tokens(score, totals)
        flags = score_flags(score) | overflow_flags(totals)
        if (prompt_boundary := score.sequence.prompt_boundary) is not None:
            if prompt_boundary.turns:
                self._console.print()
                self._console.print(turn_table(score, self._options))
            self._console.print()
            self._console.print(chain_rule_table(score, totals, self._options))
        if self._options.words and (found := word_losses(score, self._options.marks)):
            self._console.print()
            self._console.print(word_table(found, self._options))
            flags |= found.flags
        if (regions := region_losses(score, self._options.marks)) is not None:
            self._console.print()
            self._console.print(region_table(regions, self._options))
            flags |= regions.flags
        if flags:
            self._console.print(Text("flags: " + flags_text(flags), style="yellow"))
        self._console.print()

    def _show_tokens(self, score: SequenceScore, totals: Totals) -> None:
        self._console.print(token_table(score, self._options))

    def _line_header(self, columns: Columns) -> None:
        header = "".join(f"{name:>{width}}" for name, width in columns)
        self._print_line("sequence", header, "", "bold")

    def _line(self, score: SequenceScore, totals: Totals) -> None:
        options, prompt_boundary = self._options, score.sequence.prompt_boundary
        values: tuple[str, ...] = (
            str(totals.n_tokens),
            str(totals.n_scored),
            number(options.in_unit(totals.total_loss), 3),
            number(options.in_unit(totals.mean_loss)),
            number(totals.bits_per_byte),
        )
        flags, columns = score_flags(score) | overflow_flags(totals), _LINE_COLUMNS
        if prompt_boundary is not None:
            columns = line_columns(options, totals)
            values = line_values(score, totals, options)
            if prompt_boundary.boundary != "clean" and prompt_boundary.boundary is not None:
                flags[f"boundary {prompt_boundary.boundary}"] = True
        if not self._as_lines:
            self._as_lines = True
            self._line_header(columns)
        sizes = (width for _, width in columns)
        figures = "".join(f"{value:>{width}}" for value, width in zip(values, sizes, strict=True))
        self._print_line(
            escape(score.sequence.sample.id),
            figures,
            flags_text(flags) if flags else "",
            loss_style(totals.mean_loss),
        )

    def _print_line(self, name: str, figures: str, flags: str, style: str) -> None:
        room = self._console.width - len(figures)
        width = min(max(_LEAST_ID_WIDTH, room), _MOST_ID_WIDTH)
        if cell_len(name) > width:
            name = "…" + _last_cells(name, width - 1)
        text = Text(set_cell_size(name, width))
        text.append(figures, style=style)
        if flags:
            text.append(f"\n  {flags}", style="yellow")
        self._console.print(text, soft_wrap=True)


def _last_cells(text: str, width: int) -> str:
    """The end of a text: whole graphemes, at most `width` terminal cells of them."""
    spans, cells = split_graphemes(text)
    for start, _, n in spans:
        if cells <= width:
            return text[start:]
        cells -= n
    return ""
