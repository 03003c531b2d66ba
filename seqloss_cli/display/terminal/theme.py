"""Tables, colours by loss, visible white space, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Flags
from seqloss_cli.display.scales import KL_EDGES, LOSS_EDGES, step_of

NATS_PER_BIT = math.log(2)
_VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "→"}

# For each step of `scales`. Blue to orange, with weight and underline beside the hue, tells them
# apart without it.
_STYLES = ("dim", "", "", "cyan", "yellow", "bold bright_red", "bold bright_red")


def loss_style(loss: float | None, beside_masked: bool = False) -> str:
    """A rich style for a loss in nats; `beside_masked`, where dim means masked, low ones are green
    instead."""
    style = "dim" if loss is None else _STYLES[step_of(loss, LOSS_EDGES)]
    return "green" if beside_masked and loss is not None and style == "dim" else style


def kl_style(kl: float | None) -> str:
    """The same for a divergence in nats."""
    return "dim" if kl is None else _STYLES[step_of(kl, KL_EDGES)]


def visible(text: str) -> str:
    """The text of a token with its white space shown, and nothing a terminal would act on."""
    return "".join(_VISIBLE.get(char) or escape(char) for char in text)


def number(value: float | None, digits: int = 4) -> str:
    """Fixed digits; `-` for null; large and tiny ones in powers of ten."""
    if value is None:
        return "-"
    if value != 0 and not 10**-digits <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return f"{value:.{digits}f}"


def probability(loss: float | None) -> str:
    if loss is None:
        return "-"
    value = math.exp(-loss)
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def many(n: int, what: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def flags_text(flags: Flags) -> str:
    """`name` or `name count` of each flag."""
    return ", ".join(name if count is True else f"{name} {count}" for name, count in flags.items())


def figures_table(
    title: str, before: Iterable[str], texts: Iterable[str], figures: Iterable[str]
) -> Table:
    """A table whose columns of figures keep their width; on a narrow terminal texts wrap."""
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
