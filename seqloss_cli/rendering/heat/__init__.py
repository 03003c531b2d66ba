"""Texts coloured by the losses of their tokens, and small figures of them, for a terminal."""

from seqloss_cli.rendering.heat.palette import choose_theme
from seqloss_cli.rendering.heat.writer import HeatWriter

__all__ = ["HeatWriter", "choose_theme"]
