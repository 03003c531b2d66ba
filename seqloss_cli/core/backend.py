"""What goes to a backend and comes back: windows of sequences in batches, and their scores.

Shape letters: B rows of a batch, N their tokens, R tokens of a row's branches, M targets,
K top ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.columns import COLUMNS, WORD_BOUNDARIES, TokenColumn
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import Bools, Entry, Floats, Ints, SavedTeacherRows


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
class Suffixes:
    """What some sequences go on with after a row of the batch, their trunk, side by side: each sees
    the trunk and itself, not the others."""

    input_ids: Ints
    """Shape B x R."""
    position_ids: Ints
    """Shape B x R: each branch goes on where its trunk ends."""
    numbers: Ints
    """Shape B x R: which branch of the row a token belongs to, from 0; -1 is padding."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which of a batch's scores are those of a sequence's targets."""

    sequence: int
    """Its index in the read-ahead block."""
    window: Window
    targets: Ints
    """Positions in the sequence, ascending."""
    scores: slice | Ints
    """Where they stand among the batch's M; parts that share a trunk share its scores."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of one or several sequences, their rows.

    Hidden states are counted row by row, N in all, then R of each row in the first `suffixes`, ….
    """

    input_ids: Ints
    """Shape N: the tokens of a row after those of the one before."""
    lengths: Ints
    """Shape B: tokens of each row, which add up to N."""
    sources: Ints
    """Shape M: the hidden state that predicts each target."""
    targets: Ints
    """Shape M: ids."""
    parts: tuple[Part, ...]
    suffixes: tuple[Suffixes, ...] = ()
    """Fed one after another."""
    saved: SavedTeacherRows | None = None
    """What a file knows of a teacher at each of the M targets."""

    @property
    def n_fed(self) -> int:
        """Tokens fed, the padding of branches counted."""
        return self.input_ids.size + sum(branch.input_ids.size for branch in self.suffixes)


def padded(rows: Sequence[Ints], width: int, padding: int = 0) -> Ints:
    """Shape B x width: each row followed by padding."""
    array = np.full((len(rows), width), padding, dtype=np.int64)
    for b, row in enumerate(rows):
        array[b, : len(row)] = row
    return array


BEGINS, UNSPACED, LONGER = 0, 1, 2
"""Columns of word boundaries: the text goes on with white space or ends, goes on without white
space or ends, and the next token is the target's with white space after it."""


@dataclass(frozen=True, slots=True)
class WordBoundaryIds:
    """The ids of a vocabulary, V of them, that tell where words begin and end."""

    leading_space: Bools
    """Shape V: the token begins with white space."""
    ends_text: Bools
    """Shape V: a control token, which ends a text."""
    members: NDArray[np.float32]
    """Shape V x 2: 1 for the ids that `BEGINS` and `UNSPACED` are the probabilities of. An id
    without a token is in neither."""
    longer: Ints
    """Ids, ascending, of tokens with white space after something else."""
    stems: Ints
    """For each of these the id that spells the text before that white space; -1 if none does."""


@dataclass(frozen=True, slots=True, init=False)
class Requested:
    """The quantities to compute at each target beside its loss.

    `Requested(ranks=True, varentropy=True)`: keywords are the options of `COLUMNS`; the first three
    may be given by position.
    """

    columns: tuple[TokenColumn, ...]
    """Those that no output shows, which a command needs, then others in the order of `COLUMNS`."""
    top_k: int
    """Alternatives at each target."""
    word_boundary_ids: WordBoundaryIds | None = field(compare=False)
    """Ids whose probabilities the log-probabilities of word boundaries add up."""

    def __init__(
        self,
        ranks: bool = False,
        entropy: bool = False,
        top_k: int = 0,
        *,
        word_boundary_ids: WordBoundaryIds | None = None,
        internal: Iterable[TokenColumn] = (),
        **others: bool,
    ) -> None:
        """Raises TypeError for a keyword that is no option of a column."""
        asked: dict[str, Any] = {"ranks": ranks, "entropy": entropy, "top_k": top_k, **others}
        if unknown := asked.keys() - {column.option for column in COLUMNS}:
            raise TypeError(f"no quantity is asked for by {', '.join(sorted(unknown))}")
        columns = [column for column in COLUMNS if asked.get(column.option)]
        columns += [WORD_BOUNDARIES] if word_boundary_ids is not None else []
        object.__setattr__(self, "columns", (*internal, *columns))
        object.__setattr__(self, "top_k", top_k)
        object.__setattr__(self, "word_boundary_ids", word_boundary_ids)

    def asks_for(self, name: str) -> bool:
        """Whether the column of this name is to be computed."""
        return any(column.name == name for column in self.columns)

    def with_word_boundaries(self, ids: WordBoundaryIds) -> Requested:
        """The same request, and the log-probabilities of word boundaries."""
        return Requested(**self._settings(), word_boundary_ids=ids, internal=self._internal())

    def described(self) -> dict[str, Any]:
        """What a run record says of it: by option, true or false, or the number of alternatives."""
        settings = self._settings()
        return {
            column.option: settings.get(column.option, False)
            for column in COLUMNS
            if column.is_standard or column in self.columns
        }

    def _settings(self) -> dict[str, Any]:
        settings = {column.option: True for column in self.columns if column in COLUMNS}
        return settings | {"top_k": self.top_k}

    def _internal(self) -> list[TokenColumn]:
        return [c for c in self.columns if c not in COLUMNS and c is not WORD_BOUNDARIES]


Wants = Requested
"""The public name of `Requested`, which scripts import from the package."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Losses and other quantities of a batch's M targets, in their order."""

    losses: Floats
    """Shape M, nats, >= 0, infinite where the probability is zero, NaN where the model's is."""
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """The arrays of every column that was asked for, by name: M in the first dimension. Ranks are
    1 + the number of logits strictly greater than the target's; `top_ids` and `top_log_probs` are
    M x K, best first, ties by id; `word_boundary_log_probs` M x 3 (`BEGINS`, `UNSPACED`, `LONGER`).
    Probabilities and entropies are in nats."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What batches a backend takes."""

    one_row: bool = False
    """Rows must come one at a time: others in a batch would change their numbers."""
    longest_packed: int = 0
    """The longest row, in tokens, that is fed beside others without padding; 0 where none is."""
    longest_shared: int = 0
    """The longest sequence, in fed tokens, that can share its beginning; 0 where none can."""
    at_once: int = 1
    """How many batches it can score at the same time."""
    quantities: frozenset[str] = frozenset()
    """Names of the columns that it can give beside losses."""
    prefetch_helps: bool = False
    """It leaves cores to a thread that reads and tokenizes ahead."""


def require_quantities(capabilities: Capabilities, requested: Requested) -> None:
    """Raises UsageError, naming the flag, for a quantity that the backend cannot give."""
    for column in requested.columns:
        if column.name not in capabilities.quantities:
            known = ", ".join(sorted(capabilities.quantities)) or "losses only"
            raise UsageError(
                f"{column.flag}: this model is run by a backend that gives no {column.name} "
                f"(it gives {known}); leave it out"
            )


class Backend(Protocol):
    """Whatever turns token ids into losses: a local model, a server, a fake in the tests."""

    @property
    def capabilities(self) -> Capabilities:
        """What batches it takes, and what it can give."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """What a user should know of how the model is run: for stderr."""
        ...

    @property
    def n_too_large(self) -> int:
        """Batches so far that did not fit in memory."""
        ...

    def vocab_size(self) -> int:
        """Return the number of token ids that its distributions are over."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return its part of the run record: fields of `RunInfo` (`model`, `dtype`, `path`, …), and
        as `versions` those of the packages that only this model needs."""
        ...

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target of the batch. Raises OutOfMemoryError when it does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A backend that is ready to score, and what tokenization and batching must know of it."""

    backend: Backend
    tokenizer: Any
    """A tokenizer of transformers."""
    tokenizer_name: str
    bos_id: int | None
    eos_id: int | None
    """Control tokens that the model's configuration names."""
    n_ids: int
    """Ids that the model embeds: the least one that it cannot be fed."""
    windows: WindowPolicy
    batches: BatchPolicy
    """With the budget that was settled on."""
    warnings: tuple[str, ...] = ()
    """What a user should know of the checkpoint."""


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A model beside its teacher, ready to score both as one backend."""

    backend: Backend
    windows: WindowPolicy
    """Windows that both take."""
    record: Mapping[str, Any]
    """What the run record says of the teacher."""
    n_ids: int | None = None
    """Ids that both have logits for; None where the model's own vocabulary counts."""
    attach: Callable[[Sequence[Entry]], list[Entry]] | None = None
    """Adds to each sequence what a file knows of the teacher, or rejects it."""
