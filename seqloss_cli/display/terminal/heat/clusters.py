"""Which characters stand together as one: marks on letters, families of pictures, joined letters.

Invisible characters are kept only where a text needs them to look as it does: between pictures and
after letters that are joined or kept apart. Anywhere else they could hide a text, as could those
that tag a flag; they are spelled out.
"""

from __future__ import annotations

import re
import unicodedata

from rich.cells import cell_len

_JOINER, _NON_JOINER = "\u200d", "\u200c"
_VOWELS_AND_FINALS = ("\u1161", "\u11ff")
"""Parts of Korean syllables that are set upon the consonant before them."""
_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
"""Of skin."""
_PICTURES = (
    ("\u2190", "\u21ff"),
    ("\u2600", "\u27bf"),
    ("\u2b00", "\u2bff"),
    ("\U0001f300", "\U0001faff"),
)
_JOINED_LETTERS = ("\u0600", "\u0dff")
"""Arabic and its relatives, and the scripts of India."""
_PARTS = re.compile(f"[^{_JOINER}{_TONES}]+{_JOINER}?|[{_TONES}]{_JOINER}?|{_JOINER}")


def stands_alone(char: str) -> bool:
    """Has cells of its own, and marks may follow."""
    return char.isprintable() and cell_len(char) > 0


def is_blank(char: str) -> bool:
    """One that is no plain blank: a no-break space, the wide one of Chinese and Japanese texts."""
    return char != " " and unicodedata.category(char) == "Zs" and cell_len(char) > 0


def joins(base: str, char: str, after: str) -> bool:
    """Whether a character is of one piece with those before it; `after` is the next one, if any."""
    if char in (_JOINER, _NON_JOINER):
        between = char == _JOINER and _ends_in_picture(base) and _is_picture(after)
        return between or _ends_in_joined_letter(base)
    if _is_picture(char) and base.endswith(_JOINER) and _ends_in_picture(base[:-1]):
        return True
    if char in _TONES and _ends_in_picture(base):
        return True
    first, last = _VOWELS_AND_FINALS
    is_mark = unicodedata.category(char).startswith("M") or char in _TONES
    return not cell_len(char) and char.isprintable() and (is_mark or first <= char <= last)


def cells_of(text: str) -> int:
    """The cells of pictures that are joined are counted apart, as of a terminal that does not join
    them: on one that does, a line is shorter than it could be, but none is too long."""
    if len(text) == 1:
        return 1 if text <= "~" else cell_len(text)
    return sum(map(cell_len, parts_of(text)))


def parts_of(text: str) -> list[str]:
    """Each with the joiner after it."""
    return _PARTS.findall(text)


def _is_picture(char: str) -> bool:
    return any(first <= char <= last for first, last in _PICTURES)


def _ends_in_picture(base: str) -> bool:
    return _is_picture(base.rstrip("\ufe0f" + _TONES)[-1:])


def _ends_in_joined_letter(base: str) -> bool:
    first, last = _JOINED_LETTERS
    return first <= base[-1] <= last and unicodedata.category(base[-1])[0] in "LM"
