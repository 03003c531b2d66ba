"""The signs that pictures are made of, and plain ones for terminals that lack them."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console


@dataclass(frozen=True, slots=True)
class Signs:
    levels: str
    """Of a sparkline, lowest first."""
    bars: str
    """Parts of a bar's last cell, thinnest first; the last one is a full cell."""
    blank: str
    tab: str
    line_end: str
    carriage_return: str
    fold: str

    def white_space(self, char: str) -> str | None:
        """How white space is made visible; None for what is none."""
        return {
            " ": self.blank,
            "\t": self.tab,
            "\n": self.line_end,
            "\r": self.carriage_return,
        }.get(char)


FULL = Signs("▁▂▃▄▅▆▇█", "▏▎▍▌▋▊▉█", "·", "→", "↵", "␍", "⋮")
PLAIN = Signs("_.:-=+*#", "#", "_", ">", "$", "\\r", ":")


def can_show(text: str, encoding: str) -> bool:
    """Whether a terminal with that encoding can be sent the text."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def signs_of(console: Console) -> Signs:
    needed = FULL.levels + FULL.bars + "·→↵␍⋮"
    return FULL if can_show(needed, console.encoding) else PLAIN
