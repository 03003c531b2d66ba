"""Losses of words (rule 16 of the numbers contract).

A word owns the tokens whose first non-white-space byte lies in it. A token of white space only
goes to the next word, one after the last word to the last. BOS and EOS belong to no word. Corrected
losses stand beside these: see `word_correction.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from seqloss_cli.core.backend import WordMarks
from seqloss_cli.core.byte_spans import TokenBytes, word_spans
from seqloss_cli.core.records import Ints, SequenceScore
from seqloss_cli.metrics.word_correction import corrected_losses


@dataclass(frozen=True, slots=True)
class WordLosses:
    words: list[str]
    losses: list[float | None]
    """Nats; None where a token of the word has no loss, or the word owns no token."""
    byte_offsets: Ints
    """Shape words x 2: bytes [start, end) of each."""
    n_shared_tokens: int
    """Tokens that reach into a second word; they count on the first."""

    corrected: list[float | None] | None = None
    """Nats, where asked for; None where the word's beginning or end cannot be told."""

    @property
    def flags(self) -> dict[str, int | bool]:
        pairs = zip(self.losses, self.corrected or self.losses, strict=True)
        n_uncorrected = sum(plain is not None and moved is None for plain, moved in pairs)
        counts = {"shared_token": self.n_shared_tokens, "uncorrected_word": n_uncorrected}
        return {name: count for name, count in counts.items() if count}


def word_losses(score: SequenceScore, marks: WordMarks | None = None) -> WordLosses | None:
    """With `marks` corrected ones, too. None for a sequence without a text."""
    sequence = score.sequence
    text, covered = sequence.text, TokenBytes.of(sequence)
    if text is None or covered is None:
        return None
    own, spans = sequence.text_tokens, word_spans(text)
    owners = covered.words_of_tokens(spans)[own]
    parts: list[list[float | None]] = [[] for _ in spans]
    for token, owner in enumerate(owners.tolist(), start=own.start):
        parts[owner].append(float(score.losses[token]) if score.scored[token] else None)
    return WordLosses(
        words=text.split(),
        losses=[_sum_or_none(part) for part in parts],
        byte_offsets=spans,
        n_shared_tokens=_count_shared(spans, covered.ends[own], owners),
        corrected=corrected_losses(score, marks) if marks else None,
    )


def _count_shared(spans: Ints, ends: Ints, owners: Ints) -> int:
    next_starts = np.append(spans[1:, 0], np.iinfo(np.int64).max)
    return int((ends > next_starts[owners]).sum()) if len(owners) else 0


def _sum_or_none(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    if not parts or len(known) < len(parts) or any(map(math.isinf, known)):
        return None
    return math.fsum(known)
