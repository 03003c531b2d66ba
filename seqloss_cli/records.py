"""The records that flow through the pipeline: frozen, no behaviour beyond small properties.

Shape letters: N tokens of one sequence, B rows of a batch, T positions of a row, K alternatives.
Arrays run parallel per sequence; there is never an object per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Flags = Mapping[str, int | bool]
BosOrigin = Literal["tokenizer", "prepended", "text", "none"]
EosOrigin = Literal["appended", "text", "none"]

IGNORED = -100
"""The label of a position that is not scored, as trainers write it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One input as it was read: a text, or token ids that stand in for one."""

    id: str
    source: str
    """The path as given, `<stdin>` or `<text>`."""
    line: int | None = None
    """1-based, in inputs of one sample a line."""
    text: str | None = None
    input_ids: Ints | None = None
    """Shape N, instead of `text`."""
    labels: Ints | None = None
    """Shape N, with `input_ids`: the id where the loss counts, -100 elsewhere, unshifted."""
    meta: Mapping[str, Any] | None = None
    """The row's other fields, when they are to be carried through."""
    flags: Flags = field(default_factory=dict)
    end: int = 0
    """How far into its source this sample reaches, in bytes as stored; for progress only."""
    n_bytes_read: int = 0
    """Bytes that were read for it, other fields of a row included: they bound the read-ahead."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that could not be scored."""

    id: str
    source: str
    line: int | None
    reason: str
    """A word that scripts can match, such as `bad_json`."""
    message: str
    """The same for people."""
    end: int = 0
    n_bytes_read: int = 0
    """Both as in `Sample`."""


Item = Sample | Rejected
"""What reading gives."""


def rejection(sample: Sample, reason: str, message: str) -> Rejected:
    """A sample that was read and cannot be scored."""
    return Rejected(
        sample.id, sample.source, sample.line, reason, message, sample.end, sample.n_bytes_read
    )


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A sample as the model will see it."""

    sample: Sample
    token_ids: Ints
    """Shape N, with BOS and EOS."""
    byte_offsets: Ints | None
    """Shape N + 1: token t covers bytes [t, t + 1) of the UTF-8 text. None without a text."""
    loss_mask: Bools
    """Shape N: where a loss counts, if there is one."""
    bos: BosOrigin
    eos: EosOrigin
    flags: Flags

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def begins_with_bos(self) -> bool:
        return self.bos != "none"


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward pass is fed of a sequence, and which targets it scores."""

    start: int
    """First token fed (after BOS, when `bos_first`)."""
    end: int
    """Tokens [start, end) are fed; `end` is also the last target."""
    score_from: int
    """Targets score_from … end are scored here and nowhere else."""
    bos_first: bool
    """The sequence's BOS, x_0, is fed before them."""

    @property
    def n_fed(self) -> int:
        return self.end - self.start + self.bos_first

    def context_length(self, target: int) -> int:
        """Number of tokens, BOS included, that `target` can see."""
        return target - self.start + self.bos_first


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of one or several sequences, padded on the right."""

    input_ids: Ints
    """Shape B x T; padding is 0, which no earlier position can see."""
    targets: Ints
    """Shape B x T: the id that position t predicts, -100 where nothing is scored."""
    lengths: Ints
    """Shape B: tokens before the padding."""
    rows: tuple[tuple[int, Window], ...]
    """For each row the index of its sequence in the read-ahead block, and its window."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What to compute at a position beside its loss."""

    ranks: bool = False
    entropy: bool = False
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Figures of M scored positions, in the order of a batch's targets that are not -100."""

    losses: Floats
    """Shape M, nats, >= 0, infinite where the probability is zero, NaN where the model's is."""
    ranks: Ints | None = None
    """Shape M: 1 + the number of logits strictly greater than the target's."""
    entropies: Floats | None = None
    """Shape M, nats."""
    top_ids: Ints | None = None
    """Shape M x K, best first, ties by id."""
    top_log_probs: Floats | None = None
    """Shape M x K, nats, <= 0."""


class Backend(Protocol):
    """Whatever turns token ids into losses: a local model, a server, a fake in the tests."""

    def score(self, batch: Batch, wants: Wants) -> TokenScores:
        """Score every target of the batch that is not -100, row by row."""
        ...


@dataclass(frozen=True, slots=True)
class SequenceScore:
    """A sequence with its losses. Where `scored` is false, the other arrays mean nothing."""

    sequence: TokenSequence
    losses: Floats
    """Shape N, nats."""
    scored: Bools
    """Shape N: the token has a loss."""
    context_lengths: Ints
    """Shape N: tokens that the target could see."""
    ranks: Ints | None = None
    entropies: Floats | None = None
    top_ids: Ints | None = None
    """Shape N x K."""
    top_log_probs: Floats | None = None

    @property
    def counted(self) -> Bools:
        """Where a loss exists and counts: totals, means and rates are over exactly these."""
        return self.scored & self.sequence.loss_mask


Outcome = SequenceScore | Rejected


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a run did: rule 12 of the numbers contract. Field names are the keys in JSON."""

    command: str
    started_at: str
    """UTC, ISO 8601."""
    model: str
    revision: str | None
    weights_sha256: str
    tokenizer: str
    tokenizer_sha256: str
    dtype: str
    device: str
    threads: int
    bos: str
    """The policy; what was done stands in each sequence."""
    bos_token_id: int | None
    bos_token: str | None
    eos: bool
    eos_token_id: int | None
    special_tokens: str
    context: int
    context_source: str
    stride: int
    boundary: str | None
    """Of prompt and response; None where there is no such seam."""
    batch_tokens: int
    path: str
    """`batched`, `single` or `plain`: how the model was run."""
    gold: str
    """The distribution that losses are taken against."""
    versions: Mapping[str, str]
