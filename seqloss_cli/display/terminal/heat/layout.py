"""A text set in lines of a terminal: as written, nothing raw, no character cut in two."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from seqloss_cli.core.escaping import escape
from seqloss_cli.display.terminal.heat.graphemes import cells_of, graphemes, stands
from seqloss_cli.display.terminal.heat.inked import Inked
from seqloss_cli.display.terminal.heat.signs import Signs, can_show

_TAB = 8


class Glyph(NamedTuple):
    """A grapheme as it is written, or the escape that is shown in its place; never cut."""

    text: str
    token: int
    kind: Literal["text", "tab", "end"] = "text"
    """An end ends the line."""


class Run(NamedTuple):
    """Glyphs of one token that stand side by side."""

    text: str
    cells: int
    token: int


Line = list[Run]


def glyphs(
    ink: Inked, tokens: range, signs: Signs, show_white_space: bool, encoding: str
) -> Iterator[Glyph]:
    """Yield what a terminal of that encoding is sent for these tokens."""
    characters = [*ink.characters(tokens)]
    text = _encodable("".join(char for char, _ in characters), encoding)
    end = 0
    for grapheme in graphemes(text):
        start, end = end, end + len(grapheme)
        if grapheme != " " and stands(grapheme):
            owners = range(characters[start][1].start, characters[end - 1][1].stop)
            yield Glyph(grapheme, ink.owner(owners))
            continue
        for n in range(start, end):
            char, token = characters[n][0], ink.owner(characters[n][1])
            if text[n] == char and _stays(char, show_white_space):
                yield Glyph(char, token)
            else:
                yield _special(char, token, signs, show_white_space)


def _encodable(text: str, encoding: str) -> str:
    """The text with NUL, which no mark can sit on, in place of what the encoding lacks."""
    if can_show(text, encoding):
        return text
    return "".join(char if can_show(char, encoding) else "\0" for char in text)


def _stays(char: str, show_white_space: bool) -> bool:
    """True for a character that is shown as it is where its grapheme is not: one with cells, and
    blanks that are no plain one, such as the wide one of Chinese, unless they are to be seen."""
    if unicodedata.category(char) == "Zs":
        return char != " " and not show_white_space and cells_of(char) > 0
    return stands(char)


def _special(char: str, token: int, signs: Signs, show_white_space: bool) -> Glyph:
    """White space, and whatever has no cell of its own or would move the cursor."""
    sign = signs.white_space(char) if show_white_space else None
    if char == "\n":
        return Glyph(sign or " ", token, "end")
    if char == "\t":
        return Glyph(sign or " ", token, "tab")
    if char == " ":
        return Glyph(sign or " ", token)
    escaped = escape(char)
    if escaped == char:  # printable, but of no width here, or not in the terminal's encoding
        escaped = char.encode("unicode_escape").decode()
    return Glyph(sign or escaped, token)


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
    """A glyph as it stands at a column; an escape that is wider than a line in characters."""
    if glyph.kind == "tab":
        cells = _TAB - column % _TAB
        return [glyph.text.ljust(max(1, min(cells, width - column)))]
    return (glyph.text,) if cells_of(glyph.text) <= width else glyph.text


def _put(line: Line, text: str, cells: int, token: int) -> None:
    if line and line[-1].token == token:
        text, cells = line[-1].text + text, line[-1].cells + cells
        line.pop()
    line.append(Run(text, cells, token))
