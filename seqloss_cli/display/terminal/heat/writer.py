"""Scored texts as they come, coloured by the losses of their tokens; then figures, then totals."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import SequenceScore, TokenSequence
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.heat.drawing import Drawing
from seqloss_cli.display.terminal.heat.inked import inked
from seqloss_cli.display.terminal.options import HeatOptions, TableOptions
from seqloss_cli.display.terminal.theme import many, number
from seqloss_cli.display.terminal.writer import MOST_TABLES, TableWriter
from seqloss_cli.metrics.totals import Totals

NOT_COUNTED = "not scored, or a prompt"


class HeatWriter(TableWriter):
    """A `Writer` for a terminal: the first texts in colours, the others a line each."""

    def __init__(self, console: Console, options: TableOptions) -> None:
        super().__init__(console, options)
        self._drawing = Drawing(console, options.heat or HeatOptions(), options.bits)
        self._counts = self._drawing.counts(())
        self._n_shown = 0

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        if not self._options.summary:
            dim = "not scored" if run.pairs is None else NOT_COUNTED
            self._drawing.show([*self._drawing.legend(dim=dim), Text()])

    def sequence(self, score: SequenceScore, totals: Totals) -> None:
        if self._options.summary:
            return
        counts = self._drawing.counts(values_of(score))
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)]
        self._n_shown += 1
        if self._n_shown <= MOST_TABLES or self._options.all_tokens:
            self._show_tables(score, totals)
            return
        if self._n_shown == MOST_TABLES + 1:
            note = f"After {MOST_TABLES} texts the others are a line each; --all-tokens shows them."
            self._drawing.show(self._drawing.prose(note))
        self._line(score, totals)

    def end(self, totals: Totals, n_rejected: int, n_empty_lines: int) -> None:
        if self._n_shown > 1:
            if self._as_lines:
                self._console.print()
            title = f"tokens by loss, {self._n_shown} sequences"
            self._drawing.show(self._drawing.title(title))
            self._drawing.show(self._drawing.histogram(self._counts))
            self._as_lines = True  # a blank line is due
        super().end(totals, n_rejected, n_empty_lines)

    def _show_tokens(self, score: SequenceScore, totals: Totals) -> None:
        options = self._options
        mean = f"mean {number(options.in_unit(totals.mean_loss))} {options.unit}"
        scored = f"{many(totals.n_tokens, 'token')}, {totals.n_scored} scored, {mean}"
        self._drawing.show(self._drawing.title(f"{escape(score.sample.id)}  ({scored})"))
        show_heat(self._drawing, score, options)


def show_heat(drawing: Drawing, score: SequenceScore, options: TableOptions) -> None:
    """The text of one sequence and its figures."""
    values = values_of(score)
    show_text(drawing, score.sequence, values, options)
    drawing.show([Text(), *drawing.figures(values)])


def show_text(
    drawing: Drawing,
    sequence: TokenSequence,
    values: Sequence[float | None],
    options: TableOptions,
) -> None:
    """Of one sequence, coloured by a value for each token."""
    place = sequence.one_stretch if sequence.prompt_boundary else None
    prompt_boundary = None if place is None else place[0]
    offsets = sequence.byte_offsets
    ink = inked(
        options.token_texts(sequence), None if offsets is None else offsets.tolist(), values
    )
    drawing.show(drawing.text(ink, options.all_tokens, prompt_boundary))


def values_of(score: SequenceScore) -> list[float | None]:
    """The losses that count."""
    pairs = zip(score.losses.tolist(), score.counted.tolist(), strict=True)
    return [loss if counts else None for loss, counts in pairs]
