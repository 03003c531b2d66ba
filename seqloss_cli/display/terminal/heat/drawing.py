"""A text with its tokens coloured by what they lost, and the legend that says how to read it.

Where colours can be shown, a token's background is that of its step on the fixed scale. Elsewhere
a line that begins with `^` stands under each line of text, with the number of each token's step
under its first cell; the text's own lines begin with two blanks, so that either can be picked out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from seqloss_cli.display.terminal.folding import Shown, folded
from seqloss_cli.display.terminal.heat.figures import by_position, count_steps, histogram
from seqloss_cli.display.terminal.heat.inked import Inked
from seqloss_cli.display.terminal.heat.layout import Line, glyphs, lines
from seqloss_cli.display.terminal.heat.palette import COUNTS, DIM, LOSSES, Palette, Scale
from seqloss_cli.display.terminal.heat.signs import signs_of
from seqloss_cli.display.terminal.options import HeatOptions
from seqloss_cli.display.terminal.theme import NATS_PER_BIT, many

TOKENS = Shown(head=400, tail=200, around_seam=150)
_TEXT_LINE, _MARK_LINE = "  ", "^ "
_LEAST_WIDTH = 5
"""Of what is drawn: margin, a wide character, end of line. Narrower terminals break lines again."""


class Drawn:
    """Lines that are made for the console that they are printed on, and not wrapped again."""

    def __init__(self, draw: Callable[[Console], Iterable[Text]]) -> None:
        self._draw = draw

    def lines(self, console: Console) -> Iterator[Text]:
        """As they are before a console would crop them."""
        yield from self._draw(console)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines(console):
            yield from Text.assemble(line).render(console, end="\n")  # with its own style


class Drawing:
    """Draws on one console, on one scale. Every text comes out in lines that fit."""

    def __init__(
        self, console: Console, options: HeatOptions, bits: bool, scale: Scale = LOSSES
    ) -> None:
        self._console, self._options, self.scale = console, options, scale
        self._palette = Palette(console, scale, options.theme)
        self._signs = signs_of(console)
        self._unit, self._factor = ("bits", 1 / NATS_PER_BIT) if bits else ("nats", 1.0)
        self._width = max(console.width, _LEAST_WIDTH)
        self._gutter = len(_TEXT_LINE) if self._palette.marks else 0

    def show(self, lines: Iterable[Text]) -> None:
        """On its console, where nothing is cropped."""
        self._console.print(Drawn(lambda _: lines), crop=False)

    # -- what it means -----------------------------------------------------------------------

    def legend(
        self, what: str = "loss", dim: str = "not scored", noun: str = "token"
    ) -> Iterator[Text]:
        """The steps with their bounds, and what else a reader has to know."""
        labels = self.scale.labels(self._factor)
        if self._palette.marks:
            yield from self.prose(f"Steps of {what} in {self._unit} per {noun}:")
            yield from self._in_lines([(f"{n}: {label}", "") for n, label in enumerate(labels)])
            yield from self.prose(
                f"A line that begins with ^ gives the step of each {noun} in the line above, under "
                f"its first cell there; - is {dim}."
            )
        else:
            yield from self.prose(f"Background: {what} in {self._unit} per {noun}")
            styles = self._palette.styles
            swatches = [(f" {each} ", style) for each, style in zip(labels, styles, strict=True)]
            yield from self._in_lines(swatches)
            yield from self._about_colours(dim)
        yield from self._about_white_space()

    def legend_of_counts(self) -> Iterator[Text]:
        """For a text whose tokens count or are masked, and of which no losses are known."""
        if self._palette.marks:
            yield from self.prose(
                "In a line that begins with ^, + stands under the first cell of each token above "
                "that counts, - of one that is masked; text without such a line is all masked."
            )
        else:
            yield from self._in_lines([(" counts ", self._palette.styles[0])])
            yield from self._about_colours("masked")
        yield from self._about_white_space()

    def _about_colours(self, dim: str) -> Iterator[Text]:
        theme = f"{self._options.theme} terminal ({self._options.theme_note})"
        yield from self.prose(f"dim: {dim}; colours for a {theme}")

    def _about_white_space(self) -> Iterator[Text]:
        if self._options.white_space:
            signs = self._signs
            yield from self.prose(
                f"{signs.blank} blank, {signs.tab} tab, {signs.line_end} end of line; "
                "other blanks by number"
            )

    def prose(self, words: str) -> Iterator[Text]:
        yield from self.wrapped(Text(words, style=DIM))

    def title(self, words: str) -> Iterator[Text]:
        yield from self.wrapped(Text(words, style="bold"))

    def wrapped(self, text: Text) -> Iterator[Text]:
        for line in text.wrap(self._console, self._width):
            line.rstrip()
            yield line

    def _in_lines(self, parts: Sequence[tuple[str, object]]) -> Iterator[Text]:
        line = Text()
        for words, style in parts:
            if line and len(line) + 2 + len(words) > self._width:
                yield from self.wrapped(line) if len(line) > self._width else [line]
                line = Text()
            line.append("  " if line else "")
            line.append(words, style=style)  # type: ignore[arg-type]
        yield from self.wrapped(line) if len(line) > self._width else [line]

    # -- the text ----------------------------------------------------------------------------

    def text(
        self, ink: Inked, all_tokens: bool, prompt_boundary: int | None = None
    ) -> Iterator[Text]:
        """As written, and what is left out of a long one."""
        n, start = len(ink.pieces), 0
        folds = [] if all_tokens else folded(n, TOKENS, prompt_boundary)
        for fold in (*folds, range(n, n)):
            first, last = _whole(ink, fold.start), _whole(ink, fold.stop)
            yield from self._part(ink, range(start, first))
            if fold:
                note = f"{many(last - first, ink.noun)} folded; --all-tokens shows them"
                yield from self.prose(f"{self._signs.fold} {note}")
            start = last
        if ink.n_hidden:
            yield from self.prose(self._hidden(ink))

    def _hidden(self, ink: Inked) -> str:
        if self.scale is COUNTS:
            return f"{many(ink.n_hidden, ink.noun)} of no text: not shown, but counted"
        return f"{many(ink.n_hidden, f'scored {ink.noun}')} of no text: in the figures only"

    def _part(self, ink: Inked, tokens: range) -> Iterator[Text]:
        white_space, encoding = self._options.white_space, self._console.encoding
        found = glyphs(ink, tokens, self._signs, white_space, encoding)
        for line in lines(found, self._width - self._gutter - 1):
            yield self._line(ink, line)
            if self._palette.marks:
                marks = self._marks(ink, line)
                if marks.strip("- "):  # of a prompt there is nothing to say
                    yield Text(_MARK_LINE + marks.rstrip())

    def _line(self, ink: Inked, line: Line) -> Text:
        text = Text(_TEXT_LINE[: self._gutter])
        styled = ((run.text, self._palette.style(ink.values[run.token])) for run in line)
        for style, runs in groupby(styled, key=itemgetter(1)):
            text.append("".join(words for words, _ in runs), style=style)
        return text

    def _marks(self, ink: Inked, line: Line) -> str:
        """A mark under the first cell that each token has in this line."""
        marks = (self._palette.mark(ink.values[run.token]).ljust(run.cells) for run in line)
        return "".join(marks)

    # -- figures -----------------------------------------------------------------------------

    def figures(self, values: Sequence[float | None]) -> Iterator[Text]:
        """Loss by position, and how many tokens are of each step."""
        yield from self.by_position(values)
        yield from self.histogram(self.counts(values))

    def by_position(
        self, values: Sequence[float | None], what: str = "loss", noun: str = "token"
    ) -> Iterator[Text]:
        what = f"{what} by position ({noun}s"
        title, line = by_position(values, self._width, self._signs, self._unit, self._factor, what)
        if line:
            yield from self.prose(title)
            yield Text(line)

    def counts(self, values: Iterable[float | None]) -> list[int]:
        return count_steps(values, self.scale.edges)

    def histogram(self, counts: Sequence[int]) -> Iterator[Text]:
        for line in histogram(counts, self._palette, self._width, self._signs, self._factor):
            yield from self.wrapped(line) if line.cell_len > self._width else [line]


def _whole(ink: Inked, token: int) -> int:
    """The next token, from this one on, before which no character is cut in two."""
    while token < len(ink.pieces) and not ink.begins_character(token):
        token += 1
    return token
