"""What a person asked to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from seqloss_cli.core.backend import WordMarks
from seqloss_cli.core.records import TokenSequence
from seqloss_cli.display.scales import Theme
from seqloss_cli.display.terminal.theme import NATS_PER_BIT


@dataclass(frozen=True, slots=True)
class HeatOptions:
    """How coloured texts look."""

    theme: Theme = "dark"
    theme_note: str = "--theme light for a light one"
    """What is to be said of the choice."""
    white_space: bool = False
    """Blanks, tabs and line ends are made visible."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    token_texts: Callable[[TokenSequence], list[str]]
    name_token: Callable[[int], str]
    bits: bool = False
    """Show losses in bits."""
    all_tokens: bool = False
    summary: bool = False
    """Totals only."""
    words: bool = False
    marks: WordMarks | None = None
    """With `words`: corrected losses, too."""
    pmi: bool = False
    heat: HeatOptions | None = None
    """Texts are coloured by the losses of their tokens, instead of tables of tokens."""

    @property
    def unit(self) -> str:
        return "bits" if self.bits else "nats"

    def in_unit(self, nats: float | None, power: int = 1) -> float | None:
        """A figure in a power of nats, in the same power of bits where bits are shown."""
        return nats / NATS_PER_BIT**power if self.bits and nats is not None else nats
