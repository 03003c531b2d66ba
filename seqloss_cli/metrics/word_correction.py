"""Losses of words with the probability that they end, instead of that they begin (rule 16).

Where pieces mark the beginning of a word (`Ġcat`, `▁cat`), the tokens of `cat` do not tell that the
word is over (it may go on as `cats`), and they do tell that the word before it was: so the losses
of a word count the end of the word before and not its own. Probabilities of the words that may come
then sum to more than 1. Pimentel and Meister (How to Compute the Probability of a Word, EMNLP 2024)
and Oh and Schuler (Leading Whitespaces of Language Models' Subword Vocabulary Pose a Confound for
Calculating Word Probabilities, EMNLP 2024) move it to where it belongs:

    Pr(w | before) = Pr(t_1 … t_k | before) E(after w) / E(before w)

E is the probability that the word before a position is over: that of all pieces which begin with
white space, and of control tokens, which end a text. A corrected loss is, in nats,

    loss(t_1) + … + loss(t_k) - ln E(after w) + ln E(before w)

so the corrected losses of neighbours sum to the plain ones, but for the two E at the ends.

- **The beginning of a text.** After BOS no word has to be over. Where the first word begins without
  white space, E(before) is the probability of pieces that do so, and of the end: the first word is
  one among those. Where it begins with white space (or the tokenizer puts some in front), it is the
  E of any word.
- **The end of a text.** E(after) is of the distribution after the last token: that one is fed, too,
  if no EOS is scored after it. White space after the last word is no part of the corrected loss.
- **Pieces with white space after something** (a full stop with a line break, as in the vocabularies
  of Llama 3 or Qwen) end a word, too: with v over those that spell t_k and white space,

      E(after w) = Pr(white space or end | … t_k) + Σ_v Pr(v | …) / Pr(t_k | …)

  A word whose own last token is such a v is not corrected, nor is the one after it: what would have
  come after the bare t_k is not known. Where the part before the white space is no single piece,
  no word's last token is it, and v adds to none.
- **Not corrected** (None) is also a word without a loss, one that shares a token with another, one
  with a control token inside, and one beside white space that no piece begins with whole, such as a
  no-break space in single bytes.

Exact as far as a text has one tokenization; that of other ways to cut a word into pieces is in no
loss here. Rounding may bring a loss below 0 by about 1e-7; nothing is clamped.
"""

from __future__ import annotations

import math

import numpy as np

from seqloss_cli.core.backend import BEGINS, LONGER, UNSPACED, WordMarks
from seqloss_cli.core.byte_spans import TokenBytes, word_spans
from seqloss_cli.core.records import Bools, Floats, SequenceScore

SOURCE = "Pimentel & Meister 2024"


def corrected_losses(score: SequenceScore, marks: WordMarks) -> list[float | None]:
    """Of each word, nats."""
    sequence = score.sequence
    covered = TokenBytes.of(sequence)
    assert sequence.text is not None
    assert covered is not None
    own, spans = sequence.text_tokens, word_spans(sequence.text)
    owners, words = covered.words_of_tokens(spans)[own], np.arange(len(spans))
    text = _Text(score, covered, marks)
    starts = own.start + np.searchsorted(owners, words, side="left")
    stops = own.start + np.searchsorted(owners, words, side="right")
    places = zip(starts.tolist(), stops.tolist(), spans.tolist(), strict=True)
    return [text.corrected(start, stop, *span) for start, stop, span in places]


class _Text:
    """A scored text. Unknown log-probabilities are NaN."""

    def __init__(self, score: SequenceScore, covered: TokenBytes, marks: WordMarks) -> None:
        sequence = score.sequence
        self._first, self._has_bos = sequence.text_tokens.start, sequence.begins_with_bos
        self._n = sequence.n_tokens
        self._start_bytes, self._end_bytes = covered.starts, covered.ends
        self._losses: Floats = np.where(score.scored, score.losses, np.nan)
        self._boundaries: Floats = score.columns["word_boundary_log_probs"]
        ids = sequence.token_ids
        self._spaced: Bools = marks.spaced[ids]
        self._ends: Bools = marks.ends[ids]
        self._longer: Bools = np.isin(ids, marks.longer)
        self._is_stem: Bools = np.isin(ids, marks.stems)

    def corrected(self, start: int, stop: int, first_byte: int, end_byte: int) -> float | None:
        """Of the word in bytes [first_byte, end_byte), which owns tokens [start, stop)."""
        while stop > start and self._start_bytes[stop - 1] >= end_byte:
            stop -= 1  # white space after the last word
        if start == stop or self._ends[start:stop].any() or self._longer[start:stop].any():
            return None
        begun = start + int(np.argmax(self._end_bytes[start:stop] > first_byte))
        if self._spaced[begun + 1 : stop].any():
            return None  # to the model another word begins inside: texts that were put together
        losses = self._losses[start:stop].tolist()
        known = [*losses, self._before(start, first_byte), -self._after(stop)]
        return math.fsum(known) if all(map(math.isfinite, known)) else None

    def _before(self, start: int, first_byte: int) -> float:
        """ln of the probability that the word before is over."""
        if self._spaced[start]:
            return (
                float(self._boundaries[start, BEGINS])
                if start == self._first
                else self._after(start)
            )
        is_first = start == self._first and self._has_bos and self._start_bytes[start] == first_byte
        return float(self._boundaries[start, UNSPACED]) if is_first else math.nan

    def _after(self, stop: int) -> float:
        """ln of the probability that the word whose last token is `stop` - 1 is over."""
        if stop < self._n and not (self._spaced[stop] or self._ends[stop]):
            return math.nan
        last = stop - 1
        if self._longer[last]:
            return math.nan
        begins = float(self._boundaries[stop, BEGINS])
        if not self._is_stem[last]:
            return begins
        return float(np.logaddexp(begins, self._boundaries[last, LONGER] + self._losses[last]))
