"""Figures, texts and tables as a terminal shows them, and the options of a person who looks.

Nothing from outside reaches a terminal unescaped: rich passes ESC, C1 and bidi controls through.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, Protocol

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.text import Text

from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.escaping import WHITE_SPACE, escape
from seqloss_cli.core.records import Flags, Rejections, TokenSequence
from seqloss_cli.display import scales
from seqloss_cli.display.scales import KL_EDGES, LOSS_EDGES, Theme, step_of
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.totals import NATS_PER_BIT

# A style for each step of `scales`. Blue to orange, with weight and underline beside the hue, tells
# the steps apart for those who do not see hues.
_STYLES = ("dim", "", "", "cyan", "yellow", "bold bright_red", "bold bright_red")


@dataclass(frozen=True, slots=True)
class Unit:
    """Nats, or bits where `bits` is set; `f"{unit}"` is its name."""

    bits: bool = False

    def __str__(self) -> str:
        return "bits" if self.bits else "nats"

    def of(self, nats: float | None, power: int = 1) -> float | None:
        """Convert a figure in a power of nats to the same power of the unit; None stays None."""
        # A variance in nats² has the factor of its unit twice.
        return nats / NATS_PER_BIT**power if self.bits and nats is not None else nats

    def text(self, nats: float | None, digits: int = 4) -> str:
        """Convert and format a figure in nats."""
        return number(self.of(nats), digits)

    def decimals(self, nats: Iterable[float | None]) -> int:
        """Return the decimals that a column of totals in nats has."""
        return scales.decimals([self.of(each) for each in nats], 3)

    def figure(self, nats: float | None, per: str = "") -> str:
        """Convert and format a figure in nats, with the unit and what it is `per`."""
        return "-" if nats is None else f"{self.text(nats)} {self} {per}".rstrip()

    def interval(self, estimate: Estimate | None) -> str:
        """`[low, high]` of an estimate in nats; nothing where it has none."""
        return interval(estimate, self)


@dataclass(frozen=True, slots=True)
class HeatOptions:
    """Looks of coloured texts."""

    theme: Theme = "dark"
    theme_note: str = "--theme light for a light one"
    """Words for the legend: why this theme, or how to ask for the other."""
    white_space: bool = False
    """Blanks, tabs and line ends are made visible."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Content and units of tables, and the names of tokens in them."""

    token_texts: Callable[[TokenSequence], list[str]]
    """Gives a text for each token of a sequence."""
    name_token: Callable[[int], str]
    """Gives the text of a token id: for alternatives, which no source spells."""
    bits: bool = False
    """Show losses in bits."""
    all_tokens: bool = False
    """Fold nothing, and show every result whole."""
    summary: bool = False
    """Totals only."""
    words: bool = False
    """Losses of words, too."""
    word_boundary_ids: WordBoundaryIds | None = None
    """With `words`: corrected losses, too."""
    pmi: bool = False
    """Pointwise mutual information of pairs, which the scores must hold."""
    heat: HeatOptions | None = None
    """Texts are coloured by the losses of their tokens, instead of tables of tokens."""
    strict: bool = False
    """The first rejected input ends the run: totals are of the inputs before it."""

    @property
    def unit(self) -> Unit:
        """The unit of losses."""
        return Unit(self.bits)


class FoldRule(NamedTuple):
    """Numbers of tokens or rows of something long that stay."""

    head: int
    tail: int
    around_boundary: int
    """On either side of a prompt boundary."""

    def folds(self, n: int, prompt_boundary: int | None) -> list[range]:
        """Return the ranges of n that are left out, and whose place a note takes."""
        # Never a single one: its note would take as much room.
        if n <= self.head + self.tail + 1:
            return []
        start, stop = self.head, n - self.tail
        if prompt_boundary is None:
            return [range(start, stop)]
        before = range(start, min(stop, max(start, prompt_boundary - self.around_boundary)))
        after = range(max(start, min(stop, prompt_boundary + self.around_boundary)), stop)
        return [fold for fold in (before, after) if len(fold) > 1]


def loss_style(loss: float | None, beside_masked: bool = False) -> str:
    """Return a rich style for a loss in nats; `beside_masked`, where dim means masked, low ones are
    green instead."""
    # By nats whatever the unit that is shown: steps are fixed, so that outputs can be compared.
    style = "dim" if loss is None else _STYLES[step_of(loss, LOSS_EDGES)]
    return "green" if beside_masked and loss is not None and style == "dim" else style


def kl_style(kl: float | None) -> str:
    """Return a rich style for a divergence in nats."""
    return "dim" if kl is None else _STYLES[step_of(kl, KL_EDGES)]


def visible(text: str) -> str:
    """Return a token's text with its white space shown, and nothing a terminal would act on."""
    # Signs first: `escape` spells a line break as `\n`.
    return "".join(WHITE_SPACE.get(char) or escape(char) for char in text)


class InText(Protocol):
    """A token with the text around it."""

    @property
    def token(self) -> str | None:
        """Its name."""

    @property
    def before(self) -> str | None:
        """The text before it."""

    @property
    def within(self) -> str | None:
        """The whole characters that it is in part of; None where it is of whole ones."""

    @property
    def after(self) -> str | None:
        """The text after it."""


def in_its_text(found: InText, style: str = "bold") -> Text:
    """Return a token, or the characters that it is in part of, in brackets, as colours may not be
    shown, with the text around."""
    # Blanks of that text stay blanks, so that lines break at words.
    around = (
        "".join(c if c == " " else visible(c) for c in text or "")
        for text in (found.before, found.after)
    )
    token = visible(found.within or found.token or "")
    return Text.assemble(next(around), (f"⟦{token}⟧", style), next(around))


def number(value: float | None, digits: int = 4) -> str:
    """Format as `scales.number` does. `-` is null."""
    return "-" if value is None else scales.number(value, digits)


def signed(value: float | None, digits: int = 4) -> str:
    """Format a difference: as `number`, with its sign in any case."""
    return number(value, digits) if value is None or value < 0 else f"+{number(value, digits)}"


def way(difference: float | None, unless: str = "") -> str:
    """Return `higher` or `lower`, the way that a difference points; `unless` it is 0 or unknown."""
    return "higher" if difference and difference > 0 else "lower" if difference else unless


def more_probable(pmi: float | None) -> str:
    """Say in words which way a pointwise mutual information points; nothing of 0 or none."""
    more = "more" if pmi and pmi > 0 else "less"
    return f": the prompt makes it {more} probable" if pmi else ""


def probability(loss: float | None) -> str:
    """Format exp(-loss), of a loss in nats; `-` for null."""
    if loss is None:
        return "-"
    value = math.exp(-loss)
    # 0 is what an infinite loss gives, and one beyond 745 nats: no power of ten tells it better.
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def interval(estimate: Estimate | None, unit: Unit | None = None) -> str:
    """`[low, high]` of an estimate, in a unit if it has one; nothing where it has no interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    digits = digits_of(estimate, unit)
    low, high = (number(_in(unit, end), digits) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def digits_of(estimate: Estimate, unit: Unit | None = None) -> int:
    """Return the decimals of an estimate: value and interval have as many."""
    ends = (estimate.value, estimate.low, estimate.high)
    return scales.decimals([_in(unit, end) for end in ends], 4)


def value_of(estimate: Estimate, unit: Unit | None = None) -> str:
    """Format the value of an estimate, as its interval is, in a unit if it has one."""
    return number(_in(unit, estimate.value), digits_of(estimate, unit))


def _in(unit: Unit | None, figure: float | None) -> float | None:
    return figure if unit is None else unit.of(figure)


def counts_text(counts: Flags) -> str:
    """`name` or `name count` of each flag or kind."""
    return ", ".join(name if n is True else f"{name} {n:,}" for name, n in counts.items())


def rejected_text(rejected: Rejections) -> str:
    """`rejected` with the number of inputs, and that for each reason."""
    reasons = ", ".join(rejected) if len(rejected) < 2 else counts_text(rejected)
    return f"rejected {sum(rejected.values()):,}" + (f" ({reasons})" if reasons else "")


class Column(NamedTuple):
    """A column of a table, and what becomes of it where there is little room."""

    name: str
    least: int = 0
    """Least cells of a text, which wraps; 0 of figures: one in two lines reads as two figures."""
    spare: int = 0
    """0 for a column that stays. Of the others, that of the highest number is left out first."""


class PartsOfCharacters(NamedTuple):
    """A column that names the tokens whose characters stand in the brackets."""

    columns: list[Column]

    def cells(self, found: InText) -> list[str]:
        """Return its cell, if there is the column: empty for a token of whole characters."""
        return [visible(found.token or "") if found.within else ""] * len(self.columns)


def parts_of_characters(entries: Iterable[InText]) -> PartsOfCharacters:
    """Return the column where one of the tokens is a part of a character, else none."""
    return PartsOfCharacters([Column("token")] * any(each.within for each in entries))


def fit(columns: Sequence[Column], natural: Sequence[int], room: int, gap: int) -> dict[int, int]:
    """Return the columns that fit, by number, and their widths in cells; `natural` are those
    without wrapping. Columns stand `gap` cells apart.

    No text is narrower than its least width as long as columns can be left out for it.
    """
    cells = zip(columns, natural, strict=True)
    widths = {n: min(width, column.least or width) for n, (column, width) in enumerate(cells)}

    def free() -> int:
        return room - sum(widths.values()) - gap * (len(widths) - 1)

    while free() < 0 and (spare := [n for n in widths if columns[n].spare]):
        del widths[max(spare, key=lambda n: (columns[n].spare, n))]
    # On a terminal of few cells texts have to give way; no character takes more than two.
    while free() < 0 and (wide := [n for n in widths if columns[n].least and widths[n] > 2]):
        widths[max(wide, key=widths.__getitem__)] -= 1
    while free() > 0 and (short := [n for n in widths if widths[n] < natural[n]]):
        widths[min(short, key=widths.__getitem__)] += 1
    return widths


def left_out(columns: Sequence[Column], widths: Mapping[int, int]) -> str:
    """Return a note that names the columns that did not fit; nothing where all did."""
    names = [column.name for n, column in enumerate(columns) if n not in widths]
    return f"no room here for {', '.join(names)}" if names else ""


_RIGHT_TO_LEFT = {"R", "AL", "AN"}
_LEFT_TO_RIGHT_MARK = "\u200e"


def in_cells(text: Text, width: int, justify: JustifyMethod = "left") -> Text:
    """Return a text of at most `width` cells, filled up to them, after which figures stay in their
    order."""
    blanks = " " * (width - text.cell_len)
    # Terminals that set Hebrew and Arabic from right to left take along the figures behind them,
    # into other columns. The mark keeps them apart: the only invisible character of our own.
    turns = any(unicodedata.bidirectional(char) in _RIGHT_TO_LEFT for char in text.plain)
    mark = _LEFT_TO_RIGHT_MARK if turns else ""
    return Text.assemble(blanks, text, mark) if justify == "right" else text + mark + blanks


class FiguresTable:
    """A table whose columns fit the terminal: texts wrap, and columns that do not fit are named
    below. Every table is one."""

    _GAP = 2

    def __init__(self, title: str, columns: Iterable[Column]) -> None:
        self.title, self.columns = title, list(columns)
        self.rows: list[list[Text]] = []
        self.notes: list[str] = []
        """Remarks that stand below the table; empty ones do not."""

    def add_row(self, *cells: str | Text) -> None:
        """Add a row, with a cell for each of the first columns."""
        self.rows.append([Text(cell) if isinstance(cell, str) else cell for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, table and notes, as wide as the terminal at most."""
        natural = [cell_len(column.name) for column in self.columns]
        for row in self.rows:
            for n, cell in enumerate(row):
                natural[n] = max(natural[n], cell.cell_len)
        widths = fit(self.columns, natural, options.max_width, self._GAP)
        yield Text(self.title, style="bold")
        header = [Text(column.name, style="bold") for column in self.columns]
        yield from self._lines(console, header, widths)
        total = sum(widths.values()) + self._GAP * (len(widths) - 1)
        yield Text(("-" if options.ascii_only else "─") * min(total, options.max_width))
        for row in self.rows:
            yield from self._lines(console, row, widths)
        notes = filter(None, [*self.notes, left_out(self.columns, widths)])
        if text := "; ".join(notes):
            yield Text(text, style="dim italic")

    def _lines(
        self, console: Console, row: Sequence[Text], widths: Mapping[int, int]
    ) -> Iterator[Text]:
        """The lines of a row: as many as its longest text needs."""
        cells = []
        for n, width in widths.items():
            cell = row[n] if n < len(row) else Text()
            whole = cell.cell_len <= width
            cells.append([cell] if whole else list(cell.wrap(console, width, overflow="fold")))
        for parts in zip_longest(*cells, fillvalue=Text()):
            line = Text()
            for (n, width), part in zip(widths.items(), parts, strict=True):
                justify: JustifyMethod = "left" if self.columns[n].least else "right"
                line += " " * self._GAP if line else ""
                line += in_cells(part, width, justify)
            line.rstrip()
            yield line


class FiguresGrid:
    """Rows of a name, a figure where they have three parts, and a note: beside them, or where that
    would be too narrow to be read, below."""

    _GAP, _LEAST_NOTE = 2, 14

    def __init__(self, rows: Iterable[Sequence[str | Text]]) -> None:
        # Names of models, flags of tokenizers and notes of trainers come from outside, too.
        self._rows = [
            [part if isinstance(part, Text) else Text(escape(part)) for part in row] for row in rows
        ]
        columns = zip(*self._rows, strict=True)
        self._widths = [max(part.cell_len for part in parts) for parts in columns]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width without wrapping, or that of the terminal if it is less."""
        natural = sum(self._widths) + self._GAP * (len(self._widths) - 1)
        width = max(1, min(natural, options.max_width))
        return Measurement(width, width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        if not self._rows:
            return
        *before, note_width = self._widths
        indent = sum(before) + self._GAP * len(before)
        is_beside = options.max_width - indent >= min(note_width, self._LEAST_NOTE)
        if not is_beside:
            indent = self._GAP
        room = max(2, options.max_width - indent)
        for name, *figures, note in self._rows:
            bold = name.copy()
            bold.stylize("bold")
            head = in_cells(bold, before[0])
            for figure, width in zip(figures, before[1:], strict=True):
                head = head + " " * self._GAP + in_cells(figure, width, "right")
            lines = list(note.wrap(console, room, overflow="fold")) if note else []
            yield head + " " * self._GAP + lines.pop(0) if is_beside and lines else head
            for line in lines:
                yield Text(" " * indent) + line


def figures_panel(title: str, rows: Iterable[Sequence[str | Text]]) -> Panel:
    """Return such a grid in a box, with its title."""
    return Panel(FiguresGrid(rows), title=title, title_align="left", expand=False)


def key_of(names: Sequence[str]) -> FiguresGrid:
    """Return the names of models with the letters that stand for them in tables and sentences."""
    return FiguresGrid((letter(n), name) for n, name in enumerate(names))


def letter(n: int) -> str:
    """Return A, B, … Z, A2, B2, … for model n, from 0 on."""
    return chr(65 + n % 26) + (str(n // 26 + 1) if n >= 26 else "")
