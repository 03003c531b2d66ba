"""Which ids of a vocabulary begin a word, end a text, or hold the end of a word inside.

White space is what `str.isspace` says, as for words (rule 16 of the numbers contract).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from seqloss_cli.core.backend import WordMarks
from seqloss_cli.core.errors import UsageError

_LEAST_MARKED = 0.1
"""Share of the pieces with letters that begin with white space where words' starts are marked."""
_MOST_BROKEN = 0.01
"""Share of the pieces with letters that go on with white space, where ends of words are seen."""
_WORD_THEN_SPACE = re.compile(r"(\s*\S+)\s")


@dataclass(frozen=True, slots=True)
class _Counts:
    lettered: int
    """Pieces with a letter."""
    marked: int
    """Of those, the ones that begin with white space."""
    broken: int
    """Pieces with white space after a letter or digit."""
    example: str
    """One of the last."""


def word_marks(pieces: Sequence[bytes | None], ends: Collection[int]) -> WordMarks:
    """`pieces` are what the ids spell (None where nothing), `ends` the ids that end a text.

    Raises UsageError where the pieces do not mark where words begin.
    """
    texts = [None if p is None else p.decode(errors="surrogateescape") for p in pieces]
    spaced = np.array([text is not None and text[:1].isspace() for text in texts], dtype=bool)
    found = {
        n: m[1] for n, text in enumerate(texts) if text and (m := _WORD_THEN_SPACE.match(text))
    }
    _require_marked(_counts(texts, found))
    ending = np.zeros(len(pieces), dtype=bool)
    ending[list(ends)] = True
    spelled = np.array([text is not None for text in texts], dtype=bool)
    members = np.stack([spaced | ending, (spelled & ~spaced) | ending], axis=1)
    ids = {text: n for n, text in reversed([*enumerate(texts)]) if text is not None}
    return WordMarks(
        spaced=spaced,
        ends=ending,
        members=members.astype(np.float32),
        longer=np.array([*found], dtype=np.int64),
        stems=np.array([ids.get(stem, -1) for stem in found.values()], dtype=np.int64),
    )


def _counts(texts: Sequence[str | None], found: dict[int, str]) -> _Counts:
    lettered = [text for text in texts if text and any(map(str.isalpha, text))]
    broken = [n for n, stem in found.items() if any(map(str.isalnum, stem))]
    return _Counts(
        len(lettered),
        sum(text[0].isspace() for text in lettered),
        len(broken),
        texts[broken[0]] or "" if broken else "",
    )


def _require_marked(counts: _Counts) -> None:
    if counts.broken > _MOST_BROKEN * counts.lettered:
        raise UsageError(
            f"--word-correction: {counts.broken} of this tokenizer's pieces go on with white space "
            f"after a word, such as {counts.example!r}, so that a word's last token does not tell "
            "where it ends; leave the flag out"
        )
    if counts.marked <= _LEAST_MARKED * counts.lettered:
        raise UsageError(
            "--word-correction: this tokenizer's pieces do not mark where a word begins "
            f"({counts.marked} of {counts.lettered} pieces with letters begin with white space), "
            "so there is no probability of a word's start to move; leave the flag out"
        )
