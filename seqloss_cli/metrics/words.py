"""Losses of words and of regions of a text, plain and corrected (docs/numbers.md, rule 16).

A word owns the tokens whose first non-white-space byte lies in it. A token that is white space
alone goes to the next word; after the last word it goes to the last. BOS and EOS belong to no word.
Regions, as studies of reading compare them, own tokens in this way, too: regions that cover a text
add up to its loss, but for EOS. A token that reaches into a second word or region counts on the
first.

**Corrected losses** count the probability that a word ends, instead of that it begins. Where pieces
mark the beginning of a word (`Ġcat`, `▁cat`), the tokens of `cat` do not tell that the word is
over: it may go on as `cats`. They do tell that the word before it was. So the losses of a word
count the end of the word before and not its own, and probabilities of possible words sum to more
than 1. Two papers move the end to where it belongs: Pimentel and Meister (How to Compute the
Probability of a Word, EMNLP 2024), and Oh and Schuler (Leading Whitespaces of Language Models'
Subword Vocabulary Pose a Confound for Calculating Word Probabilities, EMNLP 2024):

    Pr(w | before) = Pr(t_1 … t_k | before) E(after w) / E(before w)

E is the probability that the word before a position is over: that of all pieces which begin with
white space, and of control tokens, which end a text. A corrected loss is, in nats,

    loss(t_1) + … + loss(t_k) - ln E(after w) + ln E(before w)

so the corrected losses of neighbours sum to the plain ones, but for the two E at the ends.

- **The beginning of a text.** After BOS no word has to be over. Where the first word begins without
  white space, E(before) is the probability of the pieces without white space in front, and of the
  end: the first word is one of those pieces. Where it begins with white space (or the tokenizer
  puts some in front), it is the E of any word.
- **The end of a text.** E(after) is of the distribution after the last token: that one is fed, too,
  if no EOS is scored after it. White space after the last word is no part of the corrected loss.
- **Pieces with white space after something** (a full stop with a line break, as in the vocabularies
  of Llama 3 or Qwen) end a word, too. Of a word whose last piece is t_k (`cat`), these are the
  pieces v that spell t_k and then white space (`cat` with a line break):

      E(after w) = Pr(white space or end | … t_k) + Σ_v Pr(v | …) / Pr(t_k | …)

  A word whose own last token is such a v is not corrected, nor is the one after it: the probability
  of an end after t_k alone is not known. A piece v whose part before the white space is no piece
  of its own can follow no t_k, and is in no sum.
- **Not corrected** (None) is also a word without a loss, one that shares a token with another, and
  one with a control token inside. So is a word beside white space that no piece begins with whole,
  such as a no-break space in single bytes.

Exact as far as a text has one tokenization; that of other ways to cut a word into pieces is in no
loss here. Rounding may bring a loss below 0 by about 1e-7; nothing is clamped.

Shapes: N tokens, W words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from seqloss_cli.core.backend import BEGINS, STARTS_UNSPACED, WORD_THEN_SPACE, WordBoundaryIds
from seqloss_cli.core.byte_spans import TokenBytes, word_spans
from seqloss_cli.core.records import Bools, Floats, Ints, Region, SequenceScore
from seqloss_cli.metrics.totals import exact_sum

CORRECTION_SOURCE = "Pimentel & Meister 2024"
"""Source of the corrected losses, for the run's record."""


@dataclass(frozen=True, slots=True)
class WordLosses:
    """Losses of a text's W words, in nats."""

    words: list[str]
    losses: list[float | None]
    """None where a token of the word has no loss, or the word owns no token."""
    byte_offsets: Ints
    """Shape W x 2: bytes [start, end) of each word."""
    n_shared_tokens: int
    """Tokens that reach into a second word."""
    corrected: list[float | None] | None = None
    """Corrected losses, where asked for; None where a word's edges cannot be told."""

    @property
    def flags(self) -> dict[str, int | bool]:
        """Flag to the number of tokens or words that raise it."""
        pairs = zip(self.losses, self.corrected or self.losses, strict=True)
        n_uncorrected = sum(plain is not None and moved is None for plain, moved in pairs)
        counts = {"shared_token": self.n_shared_tokens, "uncorrected_word": n_uncorrected}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class RegionLosses:
    """Losses of a text's regions, in nats; a region's entries stand at the same place in each."""

    regions: tuple[Region, ...]
    texts: list[str]
    n_tokens: list[int]
    losses: list[float | None]
    """None where a token of the region has no loss, or the region owns no token."""
    shared: list[bool]
    """The region begins within a token that counts for what stands before the region."""
    corrected: list[float | None] | None = None
    """Sums of corrected losses of words, where asked for; None for a region that cuts a word."""

    @property
    def means(self) -> list[float | None]:
        """Mean loss of each region, nats per token."""
        pairs = zip(self.losses, self.n_tokens, strict=True)
        return [None if loss is None else loss / n for loss, n in pairs]

    @property
    def flags(self) -> dict[str, int | bool]:
        """Flag to the number of regions that raise it."""
        return {"shared_region_token": sum(self.shared)} if any(self.shared) else {}


def word_losses(
    score: SequenceScore, boundary_ids: WordBoundaryIds | None = None
) -> WordLosses | None:
    """Return losses of words, or None for a sequence of ids without a text.

    With `boundary_ids`, corrected losses are there, too.
    """
    text, token_bytes = score.sequence.text, TokenBytes.of(score.sequence)
    if text is None or token_bytes is None:
        return None
    # White space is the same to `str.split` and to the spans: words and spans run parallel.
    spans, own = word_spans(text), score.sequence.text_tokens
    owners, losses = token_bytes.words_of_tokens(spans)[own], _losses(score).tolist()
    tokens, shared = _tokens_of_words(owners, own.start, len(spans)), 0
    if len(owners):
        next_starts = np.append(spans[1:, 0], np.iinfo(np.int64).max)
        shared = int((token_bytes.ends[own] > next_starts[owners]).sum())
    return WordLosses(
        words=text.split(),
        losses=[exact_sum(losses[a:b]) for a, b in tokens],
        byte_offsets=spans,
        n_shared_tokens=shared,
        corrected=None
        if boundary_ids is None
        else _Correction(score, token_bytes, boundary_ids).losses(tokens, spans),
    )


def region_losses(
    score: SequenceScore, boundary_ids: WordBoundaryIds | None = None
) -> RegionLosses | None:
    """Return losses of the sample's regions, or None for a sample that has none.

    With `boundary_ids`, corrected losses are there, too.
    """
    sequence, asked = score.sequence, score.sequence.sample.regions
    text, token_bytes = sequence.text, TokenBytes.of(sequence)
    if asked is None or text is None or token_bytes is None:
        return None
    own, losses = sequence.text_tokens, _losses(score).tolist()
    starts, ends = token_bytes.starts[own], token_bytes.ends[own]
    spans, char_edges = word_spans(text), token_bytes.char_edges()
    anchors, corrected = _anchors(starts, spans), None
    if boundary_ids is not None:
        tokens = _tokens_of_words(token_bytes.words_of_tokens(spans)[own], own.start, len(spans))
        corrected = _Correction(score, token_bytes, boundary_ids).losses(tokens, spans)
    found = RegionLosses(asked.regions, [], [], [], [], None if corrected is None else [])
    for region in asked.regions:
        start, end = char_edges[[region.start, region.end]].tolist()
        first, stop = np.searchsorted(anchors, [start, end], side="left").tolist()
        begins = int(_anchors(np.array([start]), spans)[0])
        holder = int(np.searchsorted(ends, begins, side="right"))
        # Tokens may have been dropped from a prompt's start: what is left is no whole region.
        is_cut = begins < starts[0]
        found.texts.append(text[region.start : region.end])
        found.n_tokens.append(stop - first)
        owned = slice(own.start + first, own.start + stop)
        found.losses.append(None if is_cut else exact_sum(losses[owned]))
        # The token that holds the region's first letter counts where its own first letter lies.
        shares = start <= begins < end and holder < len(anchors) and anchors[holder] < start
        found.shared.append(bool(shares))
        if found.corrected is not None and corrected is not None:
            found.corrected.append(_sum_of_words(corrected, spans, start, end))
    return found


def _losses(score: SequenceScore) -> Floats:
    """Shape N, nats: NaN where a token has no loss, which makes a sum that holds it None."""
    return np.where(score.scored, score.losses, np.nan)


def _tokens_of_words(owners: Ints, first: int, n_words: int) -> list[tuple[int, int]]:
    """Return the tokens [start, stop) of each word; `owners` are of the tokens from `first` on."""
    # Owners never decrease along a text: the tokens of one word stand side by side.
    edges = first + np.searchsorted(owners, np.arange(n_words + 1))
    return list(pairwise(edges.tolist()))


def _anchors(starts: Ints, spans: Ints) -> Ints:
    """Return for each byte the first non-white-space byte from it on, or the last word's last."""
    if not len(spans):
        return starts
    owners = np.minimum(np.searchsorted(spans[:, 1], starts, side="right"), len(spans) - 1)
    anchors: Ints = np.clip(starts, spans[owners, 0], spans[-1, 1] - 1)
    return anchors


def _sum_of_words(corrected: list[float | None], spans: Ints, start: int, end: int) -> float | None:
    """Sum the losses of the words in bytes [start, end), nats; None if one of them is cut."""
    first = int(np.searchsorted(spans[:, 1], start, side="right"))
    last = int(np.searchsorted(spans[:, 0], end, side="left"))
    if first >= last or spans[first, 0] < start or spans[last - 1, 1] > end:
        return None
    return exact_sum([math.nan if loss is None else loss for loss in corrected[first:last]])


class _Correction:
    """A scored text with what is known of its words' edges. Unknown log-probabilities are NaN."""

    def __init__(
        self, score: SequenceScore, token_bytes: TokenBytes, boundary_ids: WordBoundaryIds
    ) -> None:
        sequence = score.sequence
        self._first, self._has_bos = sequence.text_tokens.start, sequence.begins_with_bos
        self._n = sequence.n_tokens
        self._start_bytes, self._end_bytes = token_bytes.starts, token_bytes.ends
        self._losses = _losses(score)
        self._boundaries: Floats = score.columns["word_boundary_log_probs"]
        ids = sequence.token_ids
        self._spaced: Bools = boundary_ids.leading_space[ids]
        self._ends: Bools = boundary_ids.ends_text[ids]
        self._ends_in_space: Bools = np.isin(ids, boundary_ids.word_then_space_ids)
        self._is_bare_word: Bools = np.isin(ids, boundary_ids.bare_word_ids)

    def losses(self, tokens: list[tuple[int, int]], spans: Ints) -> list[float | None]:
        """Correct each word, by its tokens and its bytes, shape W x 2."""
        words = zip(tokens, spans.tolist(), strict=True)
        return [self._loss(*owned, *span) for owned, span in words]

    def _loss(self, start: int, stop: int, first_byte: int, end_byte: int) -> float | None:
        """Correct the word in bytes [first_byte, end_byte), which owns tokens [start, stop)."""
        # White space after the last word belongs to it, and is no part of its corrected loss.
        while stop > start and self._start_bytes[stop - 1] >= end_byte:
            stop -= 1
        if start == stop or self._ends[start:stop].any() or self._ends_in_space[start:stop].any():
            return None
        # A response that follows its prompt without a space goes on with the prompt's word, though
        # its first piece may begin a word to the model.
        begun = start + int(np.argmax(self._end_bytes[start:stop] > first_byte))
        if self._spaced[begun + 1 : stop].any():
            return None
        losses = self._losses[start:stop].tolist()
        return exact_sum([*losses, self._before(start, first_byte), -self._after(stop)])

    def _before(self, start: int, first_byte: int) -> float:
        """Return ln of the probability that the word before is over."""
        if self._spaced[start]:
            begins_text = start == self._first
            return float(self._boundaries[start, BEGINS]) if begins_text else self._after(start)
        is_first = start == self._first and self._has_bos and self._start_bytes[start] == first_byte
        return float(self._boundaries[start, STARTS_UNSPACED]) if is_first else math.nan

    def _after(self, stop: int) -> float:
        """Return ln of the probability that the word whose last token is `stop` - 1 is over."""
        last = stop - 1
        goes_on = stop < self._n and not (self._spaced[stop] or self._ends[stop])
        if goes_on or self._ends_in_space[last]:
            return math.nan
        begins = float(self._boundaries[stop, BEGINS])
        if not self._is_bare_word[last]:
            return begins
        with_space = self._boundaries[last, WORD_THEN_SPACE] + self._losses[last]
        return float(np.logaddexp(begins, with_space))
