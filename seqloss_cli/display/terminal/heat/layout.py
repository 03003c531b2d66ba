"""A text set in lines of a terminal: as written, nothing raw, no character cut in two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Literal, NamedTuple

from seqloss_cli.core.escaping import escape
from seqloss_cli.display.terminal.heat.clusters import (
    cells_of,
    is_blank,
    joins,
    parts_of,
    stands_alone,
)
from seqloss_cli.display.terminal.heat.inked import Inked
from seqloss_cli.display.terminal.heat.signs import Signs, can_show

_TAB = 8


class Glyph(NamedTuple):
    """What is never cut: a character with the marks that sit on it, or an escape."""

    text: str
    token: int
    kind: Literal["base", "other", "tab", "end"]
    """Only a base takes marks; an end ends the line."""


class Run(NamedTuple):
    """Glyphs of one token that stand side by side."""

    text: str
    cells: int
    token: int


Line = list[Run]


def glyphs(
    ink: Inked, tokens: range, signs: Signs, show_white_space: bool, encoding: str
) -> Iterator[Glyph]:
    """What a terminal of that encoding is sent for these tokens."""
    base, shared = "", range(0)
    characters = chain(ink.characters(tokens), [("", range(0))])
    for (char, owners), (after, _) in pairwise(characters):
        plain = "!" <= char <= "~"  # most are
        if base and not plain and joins(base, char, after) and can_show(char, encoding):
            base, shared = base + char, range(min(shared.start, owners.start), owners.stop)
            continue
        if base:
            yield Glyph(base, ink.owner(shared), "base")
        base = ""
        if plain or (char != " " and stands_alone(char) and can_show(char, encoding)):
            base, shared = char, owners
        elif is_blank(char) and not show_white_space and can_show(char, encoding):
            yield Glyph(char, ink.owner(owners), "other")
        else:
            yield _special(char, ink.owner(owners), signs, show_white_space)
    if base:
        yield Glyph(base, ink.owner(shared), "base")


def _special(char: str, token: int, signs: Signs, show_white_space: bool) -> Glyph:
    """White space, and whatever has no cell of its own or would move the cursor."""
    sign = signs.white_space(char) if show_white_space else None
    if char == "\n":
        return Glyph(sign or " ", token, "end")
    if char == "\t":
        return Glyph(sign or " ", token, "tab")
    if char == " ":
        return Glyph(sign or " ", token, "other")
    escaped = escape(char)
    if escaped == char:  # printable, but of no width here, or not in the terminal's encoding
        escaped = char.encode("unicode_escape").decode()
    return Glyph(sign or escaped, token, "other")


def lines(set_glyphs: Iterable[Glyph], width: int) -> Iterator[Line]:
    """Lines of at most `width` cells, and one more for the end of a line of the text."""
    line, column = Line(), 0
    for glyph in set_glyphs:
        if glyph.kind == "end":
            _put(line, glyph.text, 1, glyph.token)
            yield line
            line, column = [], 0
            continue
        for text in _fitting(glyph, column, width):
            cells = cells_of(text)
            if column and column + cells > width:
                yield line
                line, column = [], 0
            _put(line, text, cells, glyph.token)
            column += cells
    if line:
        yield line


def _fitting(glyph: Glyph, column: int, width: int) -> Iterable[str]:
    """A glyph as it stands at a column; one that is wider than a line in parts."""
    if glyph.kind == "tab":
        cells = _TAB - column % _TAB
        return [glyph.text.ljust(max(1, min(cells, width - column)))]
    if cells_of(glyph.text) <= width:
        return (glyph.text,)
    return parts_of(glyph.text) if glyph.kind == "base" else glyph.text


def _put(line: Line, text: str, cells: int, token: int) -> None:
    if line and line[-1].token == token:
        text, cells = line[-1].text + text, line[-1].cells + cells
        line.pop()
    line.append(Run(text, cells, token))
