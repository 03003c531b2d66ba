"""`--view`: tables, or texts coloured by the losses of their tokens."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from seqloss_cli.cli.failures import say
from seqloss_cli.cli.options import given, is_typed
from seqloss_cli.cli.presentation import ShowSettings
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.display.terminal import HeatOptions


def heat_options(context: typer.Context, obstacle: str | None) -> HeatOptions | None:
    """None for tables. `obstacle` is why a text cannot be coloured here, if it cannot.

    Raises UsageError where the command line asks for heat and there is an obstacle; where a
    variable or a file asks for it, that is reported and tables are taken.
    """
    from seqloss_cli.display.terminal import HeatOptions, choose_theme

    settings, values = given(context, ShowSettings), context.params
    if settings.view != "heat":
        return None
    if obstacle is not None:
        if is_typed(context, "view"):
            raise UsageError(f"--view heat {obstacle}")
        say(f"note: --view heat {obstacle}; left out")
        return None
    if left := [column.flag for column in COLUMNS if values.get(column.option)]:
        say(f"note: --view heat shows losses only; {', '.join(left)}: in tables and JSON")
    theme, note = choose_theme(settings.theme, os.environ.get("COLORFGBG"))
    return HeatOptions(theme, note, settings.show_whitespace)
