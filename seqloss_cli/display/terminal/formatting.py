"""Figures, texts and tables as a terminal shows them, and the options of a person who looks.

Nothing from outside reaches a terminal unescaped: rich passes ESC, C1 and bidi controls through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.escaping import WHITE_SPACE, escape
from seqloss_cli.core.records import Flags, TokenSequence
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


def number(value: float | None, digits: int = 4) -> str:
    """Format with fixed digits; `-` for null; large and tiny ones in powers of ten."""
    if value is None:
        return "-"
    # So put that an infinite figure goes the same way, and is written `inf`.
    if value != 0 and not 10**-digits <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return f"{value:.{digits}f}"


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
    text = number if unit is None else unit.text
    return f"[{text(estimate.low)}, {text(estimate.high)}]"


def count_of(n: int, noun: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def counts_text(counts: Flags) -> str:
    """`name` or `name count` of each flag or kind."""
    return ", ".join(name if n is True else f"{name} {n}" for name, n in counts.items())


def figures_table(
    title: str, before: Iterable[str], texts: Iterable[str], figures: Iterable[str]
) -> Table:
    """Return an empty table whose columns of figures keep their width: on a narrow terminal, texts
    wrap."""
    # no_wrap: a number that is broken in two reads as two numbers. rich would break it where a
    # table is too wide, as it would any text.
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption_justify="left",
    )
    for name in before:
        table.add_column(name, justify="right", no_wrap=True)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def figures_grid(rows: Iterable[Sequence[str | Text]]) -> Table:
    """Return a grid of rows: a name, a figure where rows have three parts, and a note."""
    grid = Table.grid(padding=(0, 2))
    for n, row in enumerate(rows):
        if n == 0:  # columns follow from the first row
            grid.add_column(style="bold", no_wrap=True)
            if len(row) == 3:
                grid.add_column(justify="right", no_wrap=True)
            grid.add_column(overflow="fold")
        # Names of models, flags of tokenizers and notes of trainers come from outside, too.
        grid.add_row(*(part if isinstance(part, Text) else escape(part) for part in row))
    return grid


def figures_panel(title: str, rows: Iterable[Sequence[str | Text]]) -> Panel:
    """Return such a grid in a box, with its title."""
    return Panel(figures_grid(rows), title=title, title_align="left", expand=False)
