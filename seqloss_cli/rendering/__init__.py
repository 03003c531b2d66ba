"""Results for people, in a terminal. Every text from outside is escaped before it is shown."""

from seqloss_cli.rendering.divergences import DivergenceTableWriter
from seqloss_cli.rendering.heat import HeatWriter
from seqloss_cli.rendering.masks import MaskTableWriter
from seqloss_cli.rendering.options import HeatOptions, TableOptions
from seqloss_cli.rendering.rankings import RankTableWriter
from seqloss_cli.rendering.writer import TableWriter

__all__ = [
    "DivergenceTableWriter",
    "HeatOptions",
    "HeatWriter",
    "MaskTableWriter",
    "RankTableWriter",
    "TableOptions",
    "TableWriter",
]
