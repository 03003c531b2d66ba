"""A text of tokens set in lines of a terminal: as written, nothing raw, no character cut in two.

Widths of characters are rich's. Invisible characters stay only where a text needs them to look as
it does: between pictures, and after letters that are joined or kept apart. Anywhere else they could
hide a text, as could those that tag a flag: there they are spelled out.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple

import regex
from rich.cells import cell_len

from seqloss_cli.core.byte_spans import show_bytes
from seqloss_cli.core.escaping import escape
from seqloss_cli.display.terminal.palette import Charset, can_encode

_TAB = 8
Weight = Callable[[float], float]
"""Gives the weight of a value. If tokens share a character, the value that weighs most is shown."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """N tokens that make up a text, and the values that they are coloured by, in parallel lists."""

    pieces: Sequence[bytes]
    """The bytes of the text that each token covers; the name of one that is shown by name."""
    named: frozenset[int]
    """Tokens that are shown by name, since they cover nothing or no text is known: BOS, EOS."""
    values: Sequence[float | None]
    """Nats; None where a token is not to be coloured."""
    weight: Weight = float
    noun: str = "token"
    """A word for one of them in notes; tokens of two models together make up pieces."""

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        covered: Sequence[bytes] | None,
        values: Sequence[float | None],
        weight: Weight = float,
    ) -> TokenText:
        """From the texts of tokens, as tables show them, and the bytes that they cover, if known.

        A token is shown by name where its text is not that of its bytes.
        """
        pieces, named = list[bytes](), set[int]()
        for t, text in enumerate(texts):
            if covered is None or show_bytes(covered[t]) != text:
                named.add(t)
                # Names of a file may hold lone surrogates, which UTF-8 has no bytes for.
                pieces.append(text.encode(errors="backslashreplace"))
            else:
                pieces.append(covered[t])
        return cls(pieces, frozenset(named), values, weight)

    @property
    def n_hidden(self) -> int:
        """Number of tokens with a value that cover no text and have no name to be shown by."""
        pairs = zip(self.pieces, self.values, strict=True)
        return sum(value is not None and not piece for piece, value in pairs)

    def characters(self, tokens: range) -> Iterator[tuple[str, range]]:
        """Yield each character of these tokens, and the tokens that share it."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="seqloss_bytes")
        first, waiting = tokens.start, False
        for t in tokens:
            if t in self.named:
                # What waits for its last bytes will not get them: a name stands between.
                for char in decoder.decode(b"", True):
                    yield char, range(first, t)
                for char in escape(self.pieces[t].decode()):
                    yield char, range(t, t + 1)
                waiting = False
                continue
            if not waiting:
                first = t
            for n, char in enumerate(text := decoder.decode(self.pieces[t])):
                yield char, range(t if n else first, t + 1)
            waiting = bool(decoder.getstate()[0])
            if text:
                first = t
        for char in decoder.decode(b"", True):
            yield char, range(first, tokens.stop)

    def owner(self, tokens: range) -> int:
        """Return which of the tokens that share a character shows its value."""
        if len(tokens) == 1:
            return tokens.start
        known = {t: value for t in tokens if (value := self.values[t]) is not None}
        return max(known, key=lambda t: self.weight(known[t]), default=tokens.start)

    def whole_from(self, token: int) -> int:
        """Return the first token, from this one on, before which no character is cut in two."""
        while token < len(self.pieces) and not self._begins_character(token):
            token += 1
        return token

    def _begins_character(self, token: int) -> bool:
        piece = self.pieces[token]
        return token in self.named or not piece or piece[0] & 0xC0 != 0x80


# regex's own `\X` would join an invisible character to whatever it follows, and keep it there.
# Marks and, upon consonants, Korean vowels and finals have no cells of their own.
_MARKS = r"[\p{M}\u1161-\u11FF]*"
_PICTURE = r"\p{Extended_Pictographic}[\uFE0F\p{Emoji_Modifier}]*"
_GRAPHEME = regex.compile(
    r"\p{Regional_Indicator}{2}"  # a flag
    rf"|{_PICTURE}(?:\u200D{_PICTURE})*{_MARKS}"
    # Arabic and its relatives, and the scripts of India
    rf"|[[\u0600-\u0DFF]&&\p{{L}}]{_MARKS}(?:[\u200C\u200D]\p{{M}}{_MARKS})*[\u200C\u200D]?"
    rf"|[^\p{{C}}\p{{Z}}\p{{M}}]{_MARKS}"
    r"|.",
    regex.VERSION1 | regex.DOTALL,
)
_NO_JOINERS = str.maketrans("", "", "\u200c\u200d")


def _stands(grapheme: str) -> bool:
    """True where it has cells of its own and nothing in it that a terminal would act on."""
    if len(grapheme) == 1 and "!" <= grapheme <= "~":  # most are
        return True
    return (
        grapheme != " " and grapheme.translate(_NO_JOINERS).isprintable() and cell_len(grapheme) > 0
    )


Kind = Literal["text", "blank", "tab", "end"]
_BLANKS: Mapping[str, Kind] = {" ": "blank", "\t": "tab", "\n": "end"}


class Glyph(NamedTuple):
    """A grapheme as it is written, or the escape that is shown in its place; never cut."""

    text: str
    token: int
    kind: Kind = "text"
    """An end ends the line."""


def glyphs(
    text: TokenText, tokens: range, charset: Charset, show_white_space: bool, encoding: str
) -> Iterator[Glyph]:
    """Yield what a terminal of that encoding is sent for these tokens."""
    characters = [*text.characters(tokens)]
    encodable = _encodable("".join(char for char, _ in characters), encoding)
    end = 0
    for found in _GRAPHEME.finditer(encodable):
        start, end = found.span()
        if _stands(found[0]):
            # Tokens of bytes may meet within a grapheme, or within a character of it: all share it.
            owners = range(characters[start][1].start, characters[end - 1][1].stop)
            yield Glyph(found[0], text.owner(owners))
            continue
        for (char, owners), kept in zip(characters[start:end], found[0], strict=True):
            if kept == char and _stays(char, show_white_space):
                yield Glyph(char, text.owner(owners))
            else:
                yield _special(char, text.owner(owners), charset, show_white_space)


def _encodable(text: str, encoding: str) -> str:
    """The text with NUL, which no mark can sit on, in place of what the encoding lacks."""
    if can_encode(text, encoding):
        return text
    return "".join(char if can_encode(char, encoding) else "\0" for char in text)


def _stays(char: str, show_white_space: bool) -> bool:
    """True for a character that is shown as it is where its grapheme is not: one with cells, and
    blanks that are no plain one, such as the wide one of Chinese, unless they are to be seen."""
    if unicodedata.category(char) == "Zs":
        return char != " " and not show_white_space and cell_len(char) > 0
    return _stands(char)


def _special(char: str, token: int, charset: Charset, show_white_space: bool) -> Glyph:
    """White space, and whatever has no cell of its own or would move the cursor."""
    sign = charset.white_space.get(char) if show_white_space else None
    if char in _BLANKS:
        return Glyph(sign or " ", token, _BLANKS[char])
    escaped = escape(char)
    if escaped == char:  # printable, but of no width here, or not in the terminal's encoding
        escaped = char.encode("unicode_escape").decode()
    return Glyph(sign or escaped, token)


class LinePart(NamedTuple):
    """Glyphs of one token that stand side by side."""

    text: str
    cells: int
    token: int


Line = list[LinePart]


def break_lines(glyphs: Iterable[Glyph], width: int) -> Iterator[Line]:
    """Yield lines of at most `width` cells, and one more for the end of a line of the text, or for
    the blank before a word that has no room.

    Lines are broken after blanks, and beside wide characters; a word that is longer than a line is
    broken anywhere. The width is 2 at least: no grapheme takes more.
    """
    # Of `line` the parts before `kept` end where a break may stand.
    line, column, kept = Line(), 0, 0
    for glyph, following in zip_longest(found := [*glyphs], found[1:]):
        if glyph.kind == "end":
            yield _joined([*line, LinePart(glyph.text, 1, glyph.token)])
            line, column, kept = [], 0, 0
            continue
        for text in _fitting(glyph, column, width):
            # Each is measured alone: in a whole line rich counts no cell for what follows a joiner,
            # which is right of pictures and wrong of letters.
            cells = cell_len(text)
            if kept < len(line) and _may_part(line[-1].text, text, glyph.kind):
                kept = len(line)
            hangs = glyph.kind in ("blank", "tab") and column == width and cells == 1
            while column + cells > width and line and not (hangs and _goes_on(following)):
                kept = kept or len(line)
                yield _joined(line[:kept])
                line, kept = line[kept:], 0
                column = sum(part.cells for part in line)
            line.append(LinePart(text, cells, glyph.token))
            column += cells
        if glyph.kind != "text":
            kept = len(line)
    if line:
        yield _joined(line)


def _goes_on(following: Glyph | None) -> bool:
    """True where neither an end of a line, which needs the last cell, nor more blanks follow."""
    return following is not None and following.kind == "text"


def _may_part(before: str, after: str, kind: Kind) -> bool:
    """True beside a wide character, as Chinese is written; not before what closes or ends."""
    if kind != "text" or max(cell_len(before), cell_len(after)) < 2:
        return False
    closes, opens = unicodedata.category(after[0]), unicodedata.category(before[-1])
    return closes not in ("Pe", "Pf", "Po", "Lm", "Mn") and opens not in ("Ps", "Pi")


def _fitting(glyph: Glyph, column: int, width: int) -> Iterable[str]:
    """A glyph as it stands at a column; an escape that is wider than a line in characters."""
    if glyph.kind == "tab":
        cells = _TAB - column % _TAB
        # To the next stop, or to the end of the line: no tab goes on in the next line.
        return [glyph.text.ljust(max(1, min(cells, width - column)))]
    return (glyph.text,) if cell_len(glyph.text) <= width else glyph.text


def _joined(parts: Iterable[LinePart]) -> Line:
    """Return the parts with those of one token, side by side, as one."""
    line = Line()
    for text, cells, token in parts:
        if line and line[-1].token == token:
            before = line.pop()
            text, cells = before.text + text, before.cells + cells
        line.append(LinePart(text, cells, token))
    return line
