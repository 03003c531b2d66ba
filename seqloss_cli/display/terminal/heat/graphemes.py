"""Graphemes of a terminal: characters that stand together as one, and the cells that they take.

Widths are rich's. Invisible characters stay only where a text needs them to look as it does:
between pictures, and after letters that are joined or kept apart. Anywhere else they could hide a
text, as could those that tag a flag: there each is a grapheme of its own, which `stands` refuses.
"""

from __future__ import annotations

from collections.abc import Iterator

import regex
from rich.cells import cell_len

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
_JOINERS = str.maketrans("", "", "\u200c\u200d")


def graphemes(text: str) -> Iterator[str]:
    """The graphemes of a text, which together are the text."""
    return (found[0] for found in _GRAPHEME.finditer(text))


def stands(grapheme: str) -> bool:
    """True where it has cells of its own and nothing in it that a terminal would act on."""
    if len(grapheme) == 1 and "!" <= grapheme <= "~":
        return True
    return grapheme.translate(_JOINERS).isprintable() and cell_len(grapheme) > 0


def cells_of(grapheme: str) -> int:
    """The cells of one grapheme.

    A line is the sum of its graphemes, never measured as a whole: rich counts no cell for what
    follows a joiner, which is right of pictures and wrong of letters.
    """
    return cell_len(grapheme)
