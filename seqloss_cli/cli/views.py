"""How results look in a terminal: tables, or texts coloured by the losses of their tokens."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import say
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.display.terminal import HeatOptions


class View(StrEnum):
    table = "table"
    heat = "heat"


class Theme(StrEnum):
    auto = "auto"
    light = "light"
    dark = "dark"


VIEW_OPTIONS: o.Group = {
    "view": (
        Annotated[
            View,
            o.option(o.SHOW, "--view", "heat: the texts, each token's background by its loss."),
        ],
        View.table,
    ),
    "theme": (
        Annotated[
            Theme,
            o.option(o.SHOW, "--theme", "Of the terminal, for heat; auto: COLORFGBG, else dark."),
        ],
        Theme.auto,
    ),
    "show_whitespace": (
        Annotated[
            bool,
            o.flag(o.SHOW, "--show-whitespace", "Blanks, tabs and line ends made visible in heat."),
        ],
        False,
    ),
}


def choose_heat(context: typer.Context, obstacle: str | None) -> HeatOptions | None:
    """None for tables. `obstacle` is why a text cannot be coloured here, if it cannot.

    Raises UsageError where heat was asked for on the command line and cannot be; where a variable
    or a file asks for it, that is said and tables are taken.
    """
    from seqloss_cli.display.terminal import HeatOptions, choose_theme

    values = context.params
    if values.get("view") != View.heat:
        for name in ("theme", "show_whitespace"):
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise UsageError(f"--{name.replace('_', '-')} goes with --view heat")
        return None
    if obstacle is not None:
        source = context.get_parameter_source("view")
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--view heat {obstacle}")
        say(f"note: --view heat {obstacle}; left out")
        return None
    if left := [column.flag for column in COLUMNS if values.get(column.option)]:
        say(f"note: --view heat shows losses only; {', '.join(left)}: in tables and JSON")
    theme, note = choose_theme(str(values["theme"]), os.environ.get("COLORFGBG"))
    return HeatOptions(theme, note, values["show_whitespace"])
