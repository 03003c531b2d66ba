"""Texts coloured by the losses of their tokens, and small figures of them, for a terminal."""

from seqloss_cli.display.terminal.heat.palette import choose_theme
from seqloss_cli.display.terminal.heat.writer import HeatWriter

__all__ = ["HeatWriter", "choose_theme"]
