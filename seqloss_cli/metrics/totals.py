"""Sums of losses and the rates made from them.

Sums are exact: a float64 is a whole number of units of 2^-1074, and whole numbers add without
rounding, in any order. So `Totals(a) + Totals(b) == Totals(a + b)`, to the last bit. Rates are
computed at the edge, from the sums.

Units: nats, unless a name says bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.records import SequenceScore

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Sums = TypeVar("Sums", bound="DataclassInstance")
_UNIT = 1 << 1074  # the smallest positive float64 is 1 / _UNIT


def to_units(value: float) -> int:
    """A finite float64 as a whole number of units of 2^-1074."""
    numerator, denominator = value.as_integer_ratio()
    return numerator * (_UNIT // denominator)


def from_units(units: int) -> float:
    """The float64 nearest to an exact sum (Python rounds a quotient of whole numbers correctly)."""
    return units / _UNIT


def exp_or_none(value: float | None) -> float | None:
    """e^value; None where it would overflow or the value is not known."""
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
"""Counts of `Totals` that are not known without a text."""
RATES = (
    "total_loss",
    "mean_loss",
    "log_prob",
    "perplexity",
    "bits_per_byte",
    "bits_per_char",
    "word_perplexity",
)
"""Sums and rates of `Totals`, as they are written."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over one sequence or many; `+` joins two sets of sequences."""

    n_sequences: int = 0
    n_sequences_scored: int = 0
    """Sequences with at least one scored token: the means over sequences are over these."""
    n_tokens: int = 0
    n_scored: int = 0
    n_bytes: int = 0
    n_scored_bytes: int = 0
    n_chars: int = 0
    n_scored_chars: int = 0
    n_words: int = 0
    n_without_text: int = 0
    """Sequences given as ids: with any of them, rates per byte, character and word are unknown."""
    n_unscored_text_tokens: int = 0
    """Tokens that cover text and were to count, and have no loss."""
    n_infinite: int = 0
    """Infinite losses; with any of them the sums are not numbers."""
    loss_units: int = 0
    """Exact sum of the sequences' total losses, in units of 2^-1074 nats."""
    mean_loss_units: int = 0
    """Exact sum of the sequences' mean losses, in the same units."""
    n_pairs: int = 0
    """Sequences with a prompt and a response, chats included."""
    n_response_tokens: int = 0
    """Of those; their other tokens are the prompts'."""
    n_pair_tokens: int = 0
    flags: Mapping[str, int] = field(default_factory=dict)
    """Name of a flag to how often it was raised."""
    boundaries: Mapping[str, int] = field(default_factory=dict)
    """Pairs whose texts meet in each of the ways."""
    response_only: Totals | None = None
    """The responses without their prompts, where that was asked for (rule 14)."""
    separate_tokenization: Totals | None = None
    """The same pairs under the boundary policy that they are compared with."""

    def __add__(self, other: Totals) -> Totals:
        return added(self, other)

    @property
    def n_prompt_tokens(self) -> int:
        return self.n_pair_tokens - self.n_response_tokens

    @property
    def total_loss(self) -> float | None:
        """Sum over the scored tokens, nats; over sequences, the pre-training objective."""
        return self._of(self.loss_units)

    @property
    def log_prob(self) -> float | None:
        return None if self.total_loss is None else 0.0 - self.total_loss  # never -0.0

    @property
    def mean_loss(self) -> float | None:
        """Token-weighted (micro) mean, nats per token."""
        return None if self.total_loss is None else self.total_loss / self.n_scored

    @property
    def perplexity(self) -> float | None:
        return exp_or_none(self.mean_loss)

    @property
    def mean_sequence_loss(self) -> float | None:
        """Nats per sequence."""
        total = self.total_loss
        return None if total is None else total / self.n_sequences_scored

    @property
    def mean_of_mean_losses(self) -> float | None:
        """Macro mean, nats per token."""
        total = self._of(self.mean_loss_units)
        return None if total is None else total / self.n_sequences_scored

    @property
    def bits_per_byte(self) -> float | None:
        return self._bits_per(self.n_scored_bytes)

    @property
    def bits_per_char(self) -> float | None:
        return self._bits_per(self.n_scored_chars)

    @property
    def word_loss(self) -> float | None:
        """Nats per word of the text; None when a text token has no loss that counts."""
        if self.total_loss is None or self.n_without_text or self.n_unscored_text_tokens:
            return None
        return self.total_loss / self.n_words if self.n_words else None

    @property
    def word_perplexity(self) -> float | None:
        return exp_or_none(self.word_loss)

    def _of(self, units: int) -> float | None:
        return None if self.n_infinite or not self.n_scored else from_units(units)

    def _bits_per(self, count: int) -> float | None:
        if self.total_loss is None or self.n_without_text or not count:
            return None
        return self.total_loss / (math.log(2) * count)


def added(a: Sums, b: Sums) -> Sums:
    """Two records of sums, field by field."""
    return type(a)(*[_joined(getattr(a, name), getattr(b, name)) for name in _names(type(a))])


@cache
def _names(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


def _joined(a: Any, b: Any) -> Any:
    """Two sums added, two counts by name added; what one side lacks is the other's."""
    if not b or not a:  # most fields of most rows: 0, None or no names
        return a or b
    if isinstance(a, int):
        return a + b
    if isinstance(a, Mapping):
        counts = Counter(a)
        counts.update(b)
        return dict(counts)
    return a + b


def totals_of(score: SequenceScore) -> Totals:
    """The sums of one sequence."""
    counted = score.counted
    losses = score.losses[counted]
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
    )


def score_flags(score: SequenceScore) -> dict[str, int | bool]:
    """The sequence's flags with those that only its losses can tell."""
    flags = dict(score.sequence.flags)
    if infinite := int(np.isinf(score.losses[score.scored]).sum()):
        flags["inf_loss"] = infinite
    if not score.counted.any():
        flags["nothing_scored"] = True
    return flags


def overflow_flags(totals: Totals) -> dict[str, int | bool]:
    """`overflow` when a perplexity is beyond what a float64 holds, and so null."""
    overflows = (totals.mean_loss is not None and totals.perplexity is None) or (
        totals.word_loss is not None and totals.word_perplexity is None
    )
    return {"overflow": True} if overflows else {}


def corpus_flags(totals: Totals) -> dict[str, int | bool]:
    """Flags of all sequences, and those that only the corpus has."""
    nothing = {} if totals.n_sequences else {"nothing_scored": True}
    return {**totals.flags, **nothing, **overflow_flags(totals)}


def _text_counts(score: SequenceScore) -> dict[str, Any]:
    text, prompt_boundary = score.sequence.text, score.sequence.prompt_boundary
    covered = TokenBytes.of(score.sequence)
    if text is None or covered is None:
        return {"n_without_text": 1}
    widths, counted = covered.widths, score.counted
    # A character counts where its last byte does.
    chars_counted = counted[covered.tokens_of_chars()]
    return {
        "n_bytes": int(covered.offsets[-1]),
        "n_scored_bytes": int(widths[counted].sum()),
        "n_chars": len(text),
        "n_scored_chars": int(chars_counted.sum()),
        "n_words": len(text.split()) if prompt_boundary is None else prompt_boundary.n_words,
        "n_unscored_text_tokens": int(((widths > 0) & score.sequence.loss_mask & ~counted).sum()),
    }


def _pair_counts(score: SequenceScore) -> dict[str, Any]:
    prompt_boundary = score.sequence.prompt_boundary
    if prompt_boundary is None:
        return {}
    return {
        "n_pairs": 1,
        "n_response_tokens": int(score.sequence.loss_mask.sum()),
        "n_pair_tokens": score.sequence.n_tokens,
        "boundaries": {} if prompt_boundary.boundary is None else {prompt_boundary.boundary: 1},
        "response_only": totals_of(score.response_only) if score.response_only else None,
        "separate_tokenization": totals_of(score.separate_tokenization)
        if score.separate_tokenization
        else None,
    }
