"""Results for people, in a terminal. Every text from outside is escaped before it is shown."""

from seqloss_cli.display.terminal.divergences import DivergenceTableWriter
from seqloss_cli.display.terminal.formatting import HeatOptions, TableOptions, Unit
from seqloss_cli.display.terminal.heat import HeatWriter
from seqloss_cli.display.terminal.masks import MaskTableWriter
from seqloss_cli.display.terminal.palette import choose_theme
from seqloss_cli.display.terminal.rankings import RankTableWriter
from seqloss_cli.display.terminal.writer import TableWriter

__all__ = [
    "DivergenceTableWriter",
    "HeatOptions",
    "HeatWriter",
    "MaskTableWriter",
    "RankTableWriter",
    "TableOptions",
    "TableWriter",
    "Unit",
    "choose_theme",
]
