"""Sums of losses, and the rates made from them (docs/numbers.md, section 1 and rule 1).

Sums are exact. A finite float64 is a whole number of units of 2^-1074, the smallest positive one,
and whole numbers of Python add without rounding, in any order: `Totals(a) + Totals(b)` equals
`Totals(a + b)`, to the last bit. Names that end in `_units` hold such sums. Within a sequence
`math.fsum` rounds once, to the float64 that is written; rates are computed at the edge, from sums.

Units: nats, unless a name says bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from operator import attrgetter
from typing import Any, Self, TypeVar

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.records import SequenceScore

Sums = TypeVar("Sums", bound="SumRecord")
NATS_PER_BIT = math.log(2)
_UNITS = 1 << 1074
"""Units of 1 nat."""


def to_units(value: float) -> int:
    """Return a finite float64 as a whole number of units of 2^-1074; exact."""
    numerator, denominator = value.as_integer_ratio()
    return numerator * (_UNITS // denominator)


def from_units(units: int) -> float:
    """Return the float64 nearest to an exact sum."""
    return units / _UNITS  # Python rounds a quotient of whole numbers correctly


def exact_sum(values: Sequence[float]) -> float | None:
    """Return the sum, rounded once; None for no value, or one that is infinite or NaN (unknown)."""
    return math.fsum(values) if values and all(map(math.isfinite, values)) else None


def exp_or_none(value: float | None) -> float | None:
    """Return e^value; None where it would overflow or the value is not known."""
    if value is None:
        return None
    try:
        return math.exp(value)
    except OverflowError:
        return None


TEXT_COUNTS = (
    "n_bytes",
    "n_scored_bytes",
    "n_chars",
    "n_scored_chars",
    "n_words",
    "n_unscored_text_tokens",
)
"""Counts of `Totals` that only a text gives."""
RATES = (
    "total_loss",
    "mean_loss",
    "log_prob",
    "perplexity",
    "bits_per_byte",
    "bits_per_char",
    "word_perplexity",
)
"""Sums and rates of `Totals`, in the order in which they are written."""

_OF_TEXT_RATES = ("n_scored", "n_infinite", "loss_units", *TEXT_COUNTS)


@dataclass(frozen=True, slots=True)
class SumRecord:
    """Sums over one sequence or many; `+` joins two sets of sequences, field by field."""

    def __add__(self, other: Self) -> Self:
        # All fields, in order, since this record has none itself.
        names: tuple[str, ...] = type(self).__slots__
        fields_of = _getter(names)
        # Once for each row, and nearly all fields are whole numbers: a call for each would be felt.
        return type(self)(*[
            a + b if a.__class__ is int and b.__class__ is int else _add(a, b)
            for a, b in zip(fields_of(self), fields_of(other), strict=True)
        ])  # fmt: skip


_getter = cache(lambda names: attrgetter(*names))


def _add(a: Any, b: Any) -> Any:
    """Add two sums, two records of sums, or two counts by name."""
    if not b or not a:
        return a or b
    if isinstance(a, Mapping):
        counts = Counter(a)
        counts.update(b)
        return dict(counts)
    return a + b


@dataclass(frozen=True, slots=True)
class Totals(SumRecord):
    """Counts and exact sums of losses, and the rates made from them."""

    n_sequences: int = 0
    """Sequences: inputs that were not rejected."""
    n_sequences_scored: int = 0
    """Sequences with at least one scored token; means over sequences are over these."""
    n_tokens: int = 0
    """Tokens that the model saw, BOS and EOS included."""
    n_scored: int = 0
    """Tokens that have a loss and count."""
    n_bytes: int = 0
    """Bytes of the text in UTF-8."""
    n_scored_bytes: int = 0
    """Bytes that scored tokens cover."""
    n_chars: int = 0
    """Code points of the text."""
    n_scored_chars: int = 0
    """Code points whose last byte a scored token covers."""
    n_words: int = 0
    """Words of `text.split()`; of pairs and chats those of the response."""
    n_without_text: int = 0
    """Sequences given as ids: with any of them, rates per byte, character and word are unknown."""
    n_unscored_text_tokens: int = 0
    """Tokens of text that were to count and have no loss: with any, word rates are unknown."""
    unspelled_bytes: int = 0
    """Bytes of text that no token stands for."""
    n_infinite: int = 0
    """Infinite losses; with any of them the sums are None (rule 3)."""
    loss_units: int = 0
    """Exact sum of the sequences' total losses, in units of 2^-1074 nats."""
    mean_loss_units: int = 0
    """Exact sum of the sequences' mean losses, in the same units."""
    n_pairs: int = 0
    """Sequences with a prompt and a response, chats included."""
    n_response_tokens: int = 0
    """Tokens of the pairs' responses, EOS included."""
    n_pair_tokens: int = 0
    """Tokens of pairs, prompts and responses together."""
    flags: Mapping[str, int] = field(default_factory=dict)
    """Name of a flag to how often it was raised."""
    boundaries: Mapping[str, int] = field(default_factory=dict)
    """Kind of prompt boundary (rule 9) to the number of pairs that have it."""
    response_only: Totals | None = None
    """The responses without their prompts, where that was asked for (rule 14)."""
    separate_tokenization: Totals | None = None
    """Totals of the same pairs, each part tokenized as a text of its own (rule 9)."""
    unspelled: Totals | None = None
    """The part of these sums that is of sequences with unspelled bytes: no rate per byte, character
    or word is made of it (rule 10)."""

    @property
    def n_unspelled_sequences(self) -> int:
        """Sequences with bytes that no token stands for."""
        return 0 if self.unspelled is None else self.unspelled.n_sequences

    def with_unspelled(self) -> Totals:
        """Return the sums of one sequence, set apart if it has unspelled bytes."""
        return replace(self, unspelled=self) if self.unspelled_bytes else self

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of the pairs' prompts, BOS included."""
        return self.n_pair_tokens - self.n_response_tokens

    @property
    def total_loss(self) -> float | None:
        """Sum over the scored tokens, nats; over a data set, the pre-training objective."""
        return self._sum(self.loss_units)

    @property
    def log_prob(self) -> float | None:
        """Log-probability of the scored tokens, nats, <= 0."""
        # 0 - 0 is 0, and -0 would be written as -0.0.
        return None if self.total_loss is None else 0.0 - self.total_loss

    @property
    def mean_loss(self) -> float | None:
        """Mean over tokens (micro average), nats per token."""
        return None if self.total_loss is None else self.total_loss / self.n_scored

    @property
    def perplexity(self) -> float | None:
        """e to the mean loss (Jelinek et al. 1977); None where it overflows."""
        return exp_or_none(self.mean_loss)

    @property
    def mean_sequence_loss(self) -> float | None:
        """Mean of the sequences' total losses, nats per sequence."""
        total = self.total_loss
        return None if total is None else total / self.n_sequences_scored

    @property
    def mean_of_mean_losses(self) -> float | None:
        """Mean of the sequences' mean losses (macro average), nats per token."""
        total = self._sum(self.mean_loss_units)
        return None if total is None else total / self.n_sequences_scored

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte of the source text that the scored tokens cover (rule 10); None
        without a text."""
        return self._bits_per("n_scored_bytes")

    @property
    def bits_per_char(self) -> float | None:
        """Bits per code point whose last byte lies in a scored token; None without a text."""
        return self._bits_per("n_scored_chars")

    @property
    def word_loss(self) -> float | None:
        """Mean over words, nats per word; None when a text token has no loss that counts."""
        rest = self.spelled
        if rest.total_loss is None or rest.n_without_text or rest.n_unscored_text_tokens:
            return None
        return rest.total_loss / rest.n_words if rest.n_words else None

    @property
    def word_perplexity(self) -> float | None:
        """e to the loss per word of `text.split()`; None without a text, and where it overflows."""
        return exp_or_none(self.word_loss)

    def _sum(self, units: int) -> float | None:
        return None if self.n_infinite or not self.n_scored else from_units(units)

    @property
    def spelled(self) -> Totals:
        """Sums of the sequences without unspelled bytes, as far as rates of text need them."""
        apart = self.unspelled
        if apart is None:
            return self
        rest = {n: getattr(self, n) - getattr(apart, n) for n in _OF_TEXT_RATES}
        return replace(self, unspelled=None, **rest)

    def _bits_per(self, unit: str) -> float | None:
        rest = self.spelled
        count: int = getattr(rest, unit)
        if rest.total_loss is None or rest.n_without_text or not count:
            return None
        return rest.total_loss / (NATS_PER_BIT * count)


def totals_of(score: SequenceScore) -> Totals:
    """Return the sums of one sequence, over its counted tokens."""
    counted = score.counted
    losses = score.losses[counted]
    # An infinite loss counts among the scored, and makes the sums None (rule 3).
    n_infinite = int(np.isinf(losses).sum())
    n_scored = len(losses)
    total = math.fsum(losses.tolist()) if n_scored and not n_infinite else 0.0
    return Totals(
        n_sequences=1,
        n_sequences_scored=int(n_scored > 0),
        n_tokens=len(counted),
        n_scored=n_scored,
        n_infinite=n_infinite,
        loss_units=to_units(total),
        mean_loss_units=to_units(total / n_scored) if n_scored else 0,
        flags={name: int(count) for name, count in score_flags(score).items()},
        **_text_counts(score),
        **_pair_counts(score),
    ).with_unspelled()


def score_flags(score: SequenceScore) -> dict[str, int | bool]:
    """Return the sequence's flags, and those that only its losses can tell (rule 3)."""
    flags = dict(score.sequence.flags)
    # Counted, not summed: this runs twice a row, and of short arrays a sum takes twice as long.
    if infinite := int(np.count_nonzero(np.isinf(score.losses) & score.scored)):
        flags["inf_loss"] = infinite
    if not np.count_nonzero(score.counted):
        flags["nothing_scored"] = True
    return flags


def overflow_flags(totals: Totals) -> dict[str, int | bool]:
    """Return the flag `overflow` when a perplexity is beyond a float64, and so None."""
    losses = (totals.mean_loss, totals.word_loss)
    overflows = any(loss is not None and exp_or_none(loss) is None for loss in losses)
    return {"overflow": True} if overflows else {}


def corpus_flags(totals: Totals) -> dict[str, int | bool]:
    """Return the flags of all sequences, and those that only the corpus has."""
    nothing = {} if totals.n_sequences else {"nothing_scored": True}
    return {**totals.flags, **nothing, **overflow_flags(totals)}


def _text_counts(score: SequenceScore) -> dict[str, Any]:
    sequence, counted = score.sequence, score.counted
    text, boundary, token_bytes = sequence.text, sequence.prompt_boundary, TokenBytes.of(sequence)
    if text is None or token_bytes is None:
        return {"n_without_text": 1}
    widths = token_bytes.widths
    return {
        "n_bytes": int(token_bytes.offsets[-1]),
        "n_scored_bytes": int(widths[counted].sum()),
        "n_chars": len(text),
        # A character counts where its last byte does: several tokens may share one.
        "n_scored_chars": int(counted[token_bytes.tokens_of_chars()].sum()),
        "n_words": len(text.split()) if boundary is None else boundary.n_words,
        # BOS and EOS cover no byte, and are no part of a word.
        "unspelled_bytes": len(token_bytes.unspelled),
        "n_unscored_text_tokens": int(((widths > 0) & sequence.loss_mask & ~counted).sum()),
    }


def _pair_counts(score: SequenceScore) -> dict[str, Any]:
    sequence, boundary = score.sequence, score.sequence.prompt_boundary
    if boundary is None:
        return {}
    # Sums of other sequences of the same sample, never added to its own.
    response, separate = score.response_only, score.separate_tokenization
    return {
        "n_pairs": 1,
        "n_response_tokens": int(sequence.loss_mask.sum()),
        "n_pair_tokens": sequence.n_tokens,
        "boundaries": {} if boundary.boundary is None else {boundary.boundary: 1},
        "response_only": None if response is None else totals_of(response),
        "separate_tokenization": None if separate is None else totals_of(separate),
    }
