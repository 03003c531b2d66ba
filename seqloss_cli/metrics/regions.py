"""Losses of regions of a text, which studies of reading compare.

A region owns the tokens whose first non-white-space byte lies in it, as words do (rule 16); a token
of white space only goes to where the next word begins, one after the last word to that. So regions
that cover a text add up to its total loss, but for EOS, which is in none. A token that reaches into
a second region counts on the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from seqloss_cli.core.backend import WordMarks
from seqloss_cli.core.byte_spans import TokenBytes, word_spans
from seqloss_cli.core.records import Ints, Region, SequenceScore
from seqloss_cli.metrics.word_correction import corrected_losses


@dataclass(frozen=True, slots=True)
class RegionLosses:
    """A region's entries stand at the same place in each."""

    regions: tuple[Region, ...]
    texts: list[str]
    n_tokens: list[int]
    losses: list[float | None]
    """Nats; None where a token of the region has no loss, or the region owns no token."""
    shared: list[bool]
    """The region begins within a token that counts before it."""
    corrected: list[float | None] | None = None
    """Nats, where asked for: of the words, if the region is made of whole ones and each has one."""

    @property
    def means(self) -> list[float | None]:
        """Nats per token."""
        pairs = zip(self.losses, self.n_tokens, strict=True)
        return [None if loss is None else loss / n for loss, n in pairs]

    @property
    def flags(self) -> dict[str, int | bool]:
        return {"shared_region_token": sum(self.shared)} if any(self.shared) else {}


def region_losses(score: SequenceScore, marks: WordMarks | None = None) -> RegionLosses | None:
    """With `marks` sums of corrected losses, too. None for a sequence without regions."""
    sequence, asked = score.sequence, score.sequence.sample.regions
    text, covered = sequence.text, TokenBytes.of(sequence)
    if asked is None or text is None or covered is None:
        return None
    own, char_edges = sequence.text_tokens, covered.char_edges()
    starts, ends, words = covered.starts[own], covered.ends[own], word_spans(text)
    anchors = _anchors(starts, words)
    found = RegionLosses(asked.regions, [], [], [], [], None if marks is None else [])
    corrected = None if marks is None else corrected_losses(score, marks)
    for region in asked.regions:
        start, end = char_edges[[region.start, region.end]].tolist()
        some = slice(*np.searchsorted(anchors, [start, end], side="left").tolist())
        begins = int(_anchors(np.array([start]), words)[0])
        holder = int(np.searchsorted(ends, begins, side="right"))
        is_cut = begins < starts[0]  # tokens of a prompt's start that were dropped
        found.texts.append(text[region.start : region.end])
        found.n_tokens.append(some.stop - some.start)
        tokens = slice(own.start + some.start, own.start + some.stop)
        found.losses.append(None if is_cut else _sum_or_none(score, tokens))
        shares = start <= begins < end and holder < len(anchors) and anchors[holder] < start
        found.shared.append(bool(shares))
        if found.corrected is not None and corrected is not None:
            found.corrected.append(_sum_of_words(corrected, words, start, end))
    return found


def _sum_of_words(corrected: list[float | None], words: Ints, start: int, end: int) -> float | None:
    """Of the words in bytes [start, end); None if one of them is cut."""
    first = int(np.searchsorted(words[:, 1], start, side="right"))
    last = int(np.searchsorted(words[:, 0], end, side="left"))
    some = corrected[first:last]
    if first >= last or words[first, 0] < start or words[last - 1, 1] > end or None in some:
        return None
    return math.fsum(loss for loss in some if loss is not None)


def _anchors(starts: Ints, words: Ints) -> Ints:
    """The first non-white-space byte at or after each; after the last word that one's last byte."""
    if not len(words):
        return starts
    owners = np.searchsorted(words[:, 1], starts, side="right")
    after = owners == len(words)
    owners = np.minimum(owners, len(words) - 1)
    anchors: Ints = np.where(after, words[-1, 1] - 1, np.maximum(starts, words[owners, 0]))
    return anchors


def _sum_or_none(score: SequenceScore, tokens: slice) -> float | None:
    losses = score.losses[tokens]
    if not len(losses) or not score.scored[tokens].all() or not np.isfinite(losses).all():
        return None
    return math.fsum(losses.tolist())
