"""Texts coloured by the losses of their tokens, the legend that says how to read them, and figures.

Where colours can be shown, a token's background is that of its step on the fixed scale. Elsewhere
a line that begins with `^` stands under each line of text, with the number of each token's step
under its first cell; the text's own lines begin with two blanks, so that either can be picked out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter

from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from seqloss_cli.analysis.histograms import count_by_step
from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import SequenceScore, TokenSequence
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal import palette
from seqloss_cli.display.terminal.formatting import HeatOptions, TableOptions, Unit
from seqloss_cli.display.terminal.token_text import Line, TokenText, break_lines, glyphs
from seqloss_cli.display.terminal.writer import ScoreWriter
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.schema.scores import TokenLosses

FOLDS = fmt.FoldRule(head=400, tail=200, around_boundary=150)
_TEXT_LINE, _MARK_LINE = "  ", "^ "
_LONGEST_BAR, _SHORTEST_BAR = 40, 4
_LEAST_WIDTH = 5
"""Cells for a margin, a wide character and the end of a line: a narrower terminal breaks lines."""


@dataclass(frozen=True)
class DrawnLines:
    """Lines that are made for the console that they are printed on, and not wrapped again."""

    draw: Callable[[Console], Iterable[Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.draw(console):
            # rich drops the style of a Text that has no spans; assembled, it is a span.
            yield from Text.assemble(line).render(console, end="\n")


class Drawing:
    """Draws on one console, on one scale. Every text comes out in lines that fit."""

    def __init__(
        self,
        console: Console,
        options: HeatOptions,
        unit: Unit,
        scale: palette.Scale = palette.LOSSES,
    ) -> None:
        self._console, self._options, self._unit, self.scale = console, options, unit, scale
        self._palette = palette.Palette(console, scale, options.theme)
        self._charset = palette.charset_of(console)
        self._width = max(console.width, _LEAST_WIDTH)
        self._margin = len(_TEXT_LINE) if self._palette.marks else 0

    def show(self, lines: Iterable[Text]) -> None:
        """Print on its console, where nothing is cropped."""
        # rich measures lines anew before it prints, and silently cuts what it takes for too long.
        self._console.print(DrawnLines(lambda _: lines), crop=False)

    def legend(
        self, what: str = "loss", dim: str = "not scored", noun: str = "token"
    ) -> Iterator[Text]:
        """Yield the steps with their bounds, and what else a reader has to know; `dim` says which
        tokens have no value."""
        if self.scale is palette.COUNTS and self._palette.marks:
            yield from self.prose(
                "In a line that begins with ^, + stands under the first cell of each token above "
                f"that counts, - of one that is {dim}; text without such a line is all {dim}."
            )
        elif self._palette.marks:
            yield from self.prose(f"Steps of {what} in {self._unit} per {noun}:")
            steps = enumerate(self.scale.labels(self._unit))
            yield from self._in_lines([(f"{n}: {label}", Style.null()) for n, label in steps])
            yield from self.prose(
                f"A line that begins with ^ gives the step of each {noun} in the line above, under "
                f"its first cell there; - is {dim}."
            )
        else:
            labels = ["counts"]
            if self.scale is not palette.COUNTS:
                labels = self.scale.labels(self._unit)
                yield from self.prose(f"Background: {what} in {self._unit} per {noun}")
            styles = self._palette.styles
            swatches = [(f" {each} ", style) for each, style in zip(labels, styles, strict=True)]
            yield from self._in_lines(swatches)
            theme = f"{self._options.theme} terminal ({self._options.theme_note})"
            apart = "underlined: the second of two neighbours"
            apart += "" if self.scale is palette.COUNTS else " of one step"
            yield from self.prose(f"dim: {dim}; {apart}; colours for a {theme}")
        if self._options.white_space:
            blank, tab, line_end = map(self._charset.white_space.__getitem__, " \t\n")
            yield from self.prose(
                f"{blank} blank, {tab} tab, {line_end} end of line; other blanks by number"
            )

    def prose(self, words: str, style: str | Style = palette.DIM) -> Iterator[Text]:
        """Yield words of our own, wrapped."""
        yield from self._wrapped(Text(words, style=style))

    def _wrapped(self, text: Text) -> Iterator[Text]:
        for line in text.wrap(self._console, self._width):
            line.rstrip()
            yield line

    def _fitting(self, line: Text) -> Iterator[Text]:
        # Wrapping also strips blanks, which a swatch or a bar that fits must keep.
        yield from self._wrapped(line) if line.cell_len > self._width else [line]

    def _in_lines(self, parts: Sequence[tuple[str, Style]]) -> Iterator[Text]:
        line = Text()
        for words, style in parts:
            if line and len(line) + 2 + len(words) > self._width:
                yield from self._fitting(line)
                line = Text()
            line.append("  " if line else "")
            line.append(words, style=style)
        yield from self._fitting(line)

    def text(
        self, text: TokenText, all_tokens: bool, prompt_boundary: int | None = None
    ) -> Iterator[Text]:
        """Yield the lines of a text, and notes of what is left out of a long one."""
        n, start = len(text.pieces), 0
        folds = [] if all_tokens else FOLDS.folds(n, prompt_boundary)
        for fold in (*folds, range(n, n)):
            # Tokens of bytes share characters: a fold begins and ends between characters.
            first, last = text.whole_from(fold.start), text.whole_from(fold.stop)
            yield from self._part(text, range(start, first))
            if fold:
                note = f"{count_of(last - first, text.noun)} folded; --all-tokens shows them"
                yield from self.prose(f"{self._charset.fold} {note}")
            start = last
        if text.n_hidden:
            noun, where = f"scored {text.noun}", "in the figures only"
            if self.scale is palette.COUNTS:
                noun, where = text.noun, "not shown, but counted"
            yield from self.prose(f"{count_of(text.n_hidden, noun)} of no text: {where}")

    def _part(self, text: TokenText, tokens: range) -> Iterator[Text]:
        white_space, encoding = self._options.white_space, self._console.encoding
        found = glyphs(text, tokens, self._charset, white_space, encoding)
        # One cell less than there are: a terminal that has filled its last cell may wrap.
        second = self._second_neighbours(text, tokens)
        for line in break_lines(found, self._width - self._margin - 1):
            yield self._line(text, line, second)
            if self._palette.marks:
                marks = self._marks(text, line)
                # Under a line of a prompt there would be dashes alone.
                if marks.strip("- "):
                    yield Text(_MARK_LINE + marks.rstrip())

    def _second_neighbours(self, text: TokenText, tokens: range) -> set[int]:
        """Return every second token of those side by side that are of one step."""
        found, before, step = set[int](), -1, None
        for t in (t for t in tokens if text.pieces[t]):
            own = self._palette.step(text.values[t])
            if own is not None and own == step and before not in found:
                found.add(t)
            before, step = t, own
        return found

    def _line(self, text: TokenText, line: Line, second: Container[int]) -> Text:
        drawn = Text(_TEXT_LINE[: self._margin])
        styled = (
            (part.text, self._palette.style(text.values[part.token], part.token in second))
            for part in line
        )
        # Neighbours of one step are one span, or each token would bring its escape codes.
        for style, parts in groupby(styled, key=itemgetter(1)):
            drawn.append("".join(words for words, _ in parts), style=style)
        return drawn

    def _marks(self, text: TokenText, line: Line) -> str:
        """A mark under the first cell that each token has in this line."""
        marks = (self._palette.mark(text.values[part.token]).ljust(part.cells) for part in line)
        return "".join(marks)

    def by_position(
        self, values: Sequence[float | None], what: str = "loss", noun: str = "token"
    ) -> Iterator[Text]:
        """Yield a sparkline of values (nats) and how it is to be read. Ends without known values
        are left out."""
        known = [t for t, value in enumerate(values) if value is not None]
        if not known:
            return
        first, last = known[0], known[-1]
        a_cell = math.ceil((last + 1 - first) / self._width)
        each = f", up to {a_cell} in a cell" if a_cell > 1 else ""
        low, high = self._charset.levels[0], self._charset.levels[-1]
        full = f"{high} {self._unit.of(palette.FULL_LOSS):.3g} {self._unit} or more"
        places = f"{what} by position ({noun}s {first} to {last}"
        yield from self.prose(f"{places}{each}; {low} 0, {full})")
        yield Text(palette.sparkline(values[first : last + 1], self._width, self._charset))

    def counts(self, values: Iterable[float | None]) -> list[int]:
        """Count the known values (nats) of each step of the scale."""
        return count_by_step(values, self.scale.edges)

    def histogram(self, counts: Sequence[int]) -> Iterator[Text]:
        """Yield a bar for each step of the scale, with its count and share. Where there is no room
        for both beside each other, the figures stand under the label."""
        total, most = sum(counts), max(counts)
        if not total:
            return
        labels = self.scale.labels(self._unit)
        if self._palette.marks:
            labels = [f"{n} {label}" for n, label in enumerate(labels)]
        # Labels are of digits and letters: characters are cells here.
        wide = max(map(len, labels)) + 2
        figures = [f"{count:>{len(f'{most:,}')},} {100 * count / total:5.1f} %" for count in counts]
        room = min(self._width - wide - len(figures[0]) - 2, _LONGEST_BAR)
        for n, (label, count, figure) in enumerate(zip(labels, counts, figures, strict=True)):
            style = Style.null() if self._palette.marks else self._palette.styles[n]
            if room < -1:
                yield from self._fitting(Text(f" {label} ", style))
                yield from self._fitting(Text(figure.rjust(min(self._width, wide))))
                continue
            bar = ""
            if room >= _SHORTEST_BAR:
                bar = palette.bar_of(count / most, room, self._charset).ljust(room)
            label = f" {label} ".ljust(wide)
            drawn = (bar, self._palette.bar_style(n))
            yield from self._fitting(Text.assemble((label, style), " ", drawn, f" {figure}"))


class HeatWriter(ScoreWriter):
    """Writes scores to a terminal: the first texts in colours, the others a line each."""

    def __init__(self, console: Console, options: TableOptions) -> None:
        super().__init__(console, options)
        self._drawing = Drawing(console, options.heat or HeatOptions(), options.unit)
        self._counts = self._drawing.counts(())

    def begin(self, run: RunInfo) -> None:
        """Print the legend."""
        super().begin(run)
        if not self._options.summary:
            dim = "not scored" if run.pairs is None else "not scored, or a prompt"
            self._drawing.show([*self._drawing.legend(dim=dim), Text()])

    def sequence(self, score: SequenceScore, totals: Totals) -> None:
        """Print one result, and count its tokens for the figures of all."""
        super().sequence(score, totals)
        if self._options.summary:
            return
        # Lines count as well as texts: the figures at the end are of all of them.
        counts = self._drawing.counts(counted_losses(score))
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)]

    def _begin_lines(self, score: SequenceScore, totals: Totals) -> None:
        others = "the others are a line each; --all-tokens shows them."
        self._drawing.show(self._drawing.prose(f"After {self._most_whole} texts {others}"))
        super()._begin_lines(score, totals)

    def _before_totals(self) -> None:
        super()._before_totals()
        if self._n_shown > 1:
            title = f"tokens by loss, {self._n_shown:,} sequences"
            self._drawing.show(self._drawing.prose(title, "bold"))
            self._drawing.show(self._drawing.histogram(self._counts))
            self._console.print()

    def _show_tokens(self, score: SequenceScore, totals: Totals) -> None:
        unit = self._options.unit
        mean = f"mean {unit.text(totals.mean_loss)} {unit}"
        scored = f"{count_of(totals.n_tokens, 'token')}, {totals.n_scored:,} scored, {mean}"
        self._drawing.show(self._drawing.prose(f"{escape(score.sample.id)}  ({scored})", "bold"))
        show_heat(self._drawing, score, self._options)


def show_heat(drawing: Drawing, score: SequenceScore, options: TableOptions) -> None:
    """Print the text of one sequence, its losses by position, and how many are of each step."""
    values = counted_losses(score)
    show_text(drawing, score.sequence, values, options)
    figures = (drawing.by_position(values), drawing.histogram(drawing.counts(values)))
    drawing.show([Text(), *chain.from_iterable(figures)])


def show_text(
    drawing: Drawing, sequence: TokenSequence, values: Sequence[float | None], options: TableOptions
) -> None:
    """Print the text of one sequence, coloured by a value (nats) for each of its N tokens."""
    stretch = sequence.counted_span if sequence.prompt_boundary else None
    covered = TokenBytes.of(sequence)
    pieces = None if covered is None else covered.pieces()
    text = TokenText.of(options.token_texts(sequence), pieces, values)
    drawing.show(drawing.text(text, options.all_tokens, None if stretch is None else stretch[0]))


def counted_losses(score: SequenceScore | TokenLosses) -> list[float | None]:
    """Return N losses in nats, of a score just made or a row read back; None for tokens that do not
    count."""
    pairs = zip(score.losses.tolist(), score.counted.tolist(), strict=True)
    return [loss if counts else None for loss, counts in pairs]
