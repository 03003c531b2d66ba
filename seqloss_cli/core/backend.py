"""The contract between the pipeline and a backend: batches of windows go in, scores come back.

Shape letters: B rows of a batch, N their tokens, S tokens of a row's suffixes, M targets, V ids of
a vocabulary, K alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.columns import COLUMNS, WORD_BOUNDARIES, TokenColumn
from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import Bools, Entry, Floats, Ints, SavedTeacherRows


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens of a sequence that one forward pass is fed, and the targets that it scores."""

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
        """Number of tokens fed, BOS included."""
        return self.end - self.start + self.bos_first

    def context_length(self, target: int) -> int:
        """Return the number of tokens, BOS included, that `target` can see."""
        return target - self.start + self.bos_first


@dataclass(frozen=True, slots=True)
class Suffixes:
    """Continuations of each row of a batch, its prefix, side by side: each sees the prefix and
    itself, not the others."""

    input_ids: Ints
    """Shape B x S."""
    position_ids: Ints
    """Shape B x S: each suffix goes on where its prefix ends."""
    numbers: Ints
    """Shape B x S: the number of the suffix that a token belongs to, from 0 in each row; -1 is
    padding."""


@dataclass(frozen=True, slots=True)
class WindowTargets:
    """The places of one window's targets among the scores of a batch."""

    sequence: int
    """Index of the sequence in the read-ahead block."""
    window: Window
    targets: Ints
    """Positions in the sequence, ascending; shape of `score_places`."""
    score_places: slice | Ints
    """Places among the batch's M, one for each target; parts with a common prefix share its scores.
    The shape is that of `targets`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of one or several sequences, its rows.

    Hidden states are counted row by row, N in all, then S of each row in the first `suffixes`, ….
    """

    input_ids: Ints
    """Shape N: the tokens of a row after those of the one before."""
    lengths: Ints
    """Shape B: tokens of each row, which add up to N."""
    source_positions: Ints
    """Shape M: the hidden state that predicts each target."""
    targets: Ints
    """Shape M: ids."""
    parts: tuple[WindowTargets, ...]
    suffixes: tuple[Suffixes, ...] = ()
    """Fed one after another."""
    # Rows of M targets, not of sequences: a batch that does not fit is halved with them.
    teacher_rows: SavedTeacherRows | None = None
    """A file's knowledge of a teacher at each of the M targets."""

    @property
    def n_fed(self) -> int:
        """Tokens fed, the padding of suffixes counted."""
        return self.input_ids.size + sum(each.input_ids.size for each in self.suffixes)


def padded(rows: Sequence[Ints], width: int, padding: int = 0) -> Ints:
    """Return ids of shape B x width: each row followed by padding."""
    array = np.full((len(rows), width), padding, dtype=np.int64)
    for b, row in enumerate(rows):
        array[b, : len(row)] = row
    return array


BEGINS, STARTS_UNSPACED, WORD_THEN_SPACE = 0, 1, 2
"""Columns of word boundaries: the text goes on with white space or ends, goes on without white
space or ends, and the next token is the target's with white space after it."""


@dataclass(frozen=True, slots=True)
class WordBoundaryIds:
    """The ids of a vocabulary, V of them, that tell where words begin and end."""

    leading_space: Bools
    """Shape V: the token begins with white space."""
    # A control token ends the word before it, though it has no white space.
    ends_text: Bools
    """Shape V: a control token, which ends a text."""
    members: NDArray[np.float32]
    """Shape V x 2: 1 for the ids that `BEGINS` and `STARTS_UNSPACED` are the probabilities of. An
    id without a token is in neither."""
    word_then_space_ids: Ints
    """Ids, ascending, of the L tokens with white space after something else; shape L."""
    bare_word_ids: Ints
    """Shape L: the id that spells the text before that white space; -1 if none does."""


@dataclass(frozen=True, slots=True, init=False)
class Requested:
    """The quantities to compute at each target beside its loss.

    `Requested(ranks=True, varentropy=True)`: keywords are the options of `COLUMNS`; the first three
    may be given by position.
    """

    columns: tuple[TokenColumn, ...]
    """Internal columns, which a command needs for its own figures; then those of `COLUMNS` in their
    order; then word boundaries."""
    top_k: int
    """Alternatives at each target."""
    word_boundary_ids: WordBoundaryIds | None = field(compare=False)
    """Ids whose probabilities the log-probabilities of word boundaries add up."""

    # The order of the first three is public: scripts write `Wants(True, False, 5)`.
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

    def require_arrays(self, columns: Iterable[str]) -> None:
        """Raise RuntimeError where a backend's arrays are not those that it was asked for."""
        # Zeros in the place of one that was left out would be written as if they were figures.
        given = set(columns)
        for column in self.columns:
            if missing := [name for name in column.array_names if name not in given]:
                raise RuntimeError(f"the backend gave no {missing[0]}")
            given.difference_update(column.array_names, column.optional_arrays)
        if given:
            raise RuntimeError(f"the backend gave {given.pop()}, which nobody asked for")

    def asks_for(self, name: str) -> bool:
        """Return whether the column of this name is to be computed."""
        return any(column.name == name for column in self.columns)

    def with_word_boundaries(self, ids: WordBoundaryIds) -> Requested:
        """Return a request for the log-probabilities of word boundaries, too."""
        found = copy(self)
        object.__setattr__(found, "columns", (*self.columns, WORD_BOUNDARIES))
        object.__setattr__(found, "word_boundary_ids", ids)
        return found

    def described(self) -> dict[str, Any]:
        """Return its part of a run record: by option true, false, or a number of alternatives."""
        return {
            column.option: self.top_k if column.option == "top_k" else column in self.columns
            for column in COLUMNS
            if column.is_standard or column in self.columns
        }


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
    M x K, best first, ties by id; `word_boundary_log_probs` M x 3 (`BEGINS`,
    `STARTS_UNSPACED`, `WORD_THEN_SPACE`). Log-probabilities and entropies are in nats."""
    failure: RowError | None = None
    """Why there are no scores: a server answered what cannot be believed. Losses are NaN then, and
    the columns zero; the batch is of one row, whose sample is rejected."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The batches that a backend takes, and the quantities that it gives."""

    # States of recurrent models, rotary factors by length and scales of rounded activations.
    one_row_per_batch: bool = False
    """Rows must come one at a time: others in a batch would change their numbers."""
    # Rows beyond a sliding window are padded: the attention of packed rows knows no windows.
    longest_packed: int = 0
    """The longest row, in tokens, that is fed beside others without padding; 0 where none is."""
    longest_shared: int = 0
    """The longest sequence, in fed tokens, that can share its prefix; 0 where none can."""
    tokens_as_they_come: int = 0
    """Tokens that it takes at a time, row after row in the order of the input, since it puts them
    together itself, as servers do; 1: row by row; 0 where it does not."""
    confirm: Callable[[], None] | None = None
    """Called when rows were scored, before they are handed out. Raises RunError where it is no
    longer sure that all of them are of the model that the run began with."""
    n_concurrent_batches: int = 1
    """Batches that it can score at the same time."""
    quantities: frozenset[str] = frozenset()
    """Names of the columns that it can give beside losses."""
    scores_after_bos: bool = True
    """It gives losses of the token right after BOS."""
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
        """The batches that it takes, and the quantities that it gives."""

    @property
    def warnings(self) -> Sequence[str]:
        """Messages for stderr on how the model is run."""

    @property
    def n_too_large(self) -> int:
        """Batches so far that did not fit in memory."""

    def vocab_size(self) -> int:
        """Return the number of token ids that its distributions are over."""

    def describe(self) -> Mapping[str, Any]:
        """Return its part of the run record: fields of `RunInfo` (`model`, `dtype`, `path`, …), and
        as `versions` those of the packages that only this model needs."""

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target of the batch. Raises OutOfMemoryError when it does not fit, BatchError
        where its halves are to be scored instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTokenizer:
    """A tokenizer in memory, with what the model's configuration says of ids and lengths."""

    tokenizer: Any
    tokenizer_name: str
    bos_ids: tuple[int, ...] = ()
    """From the model's text configuration, as it lists them."""
    eos_ids: tuple[int, ...] = ()
    n_ids: int
    """Number of ids that the model embeds; without a model, of its configuration."""
    max_context: int | None = None
    """The longest sequence that the configuration names, in tokens."""
    max_context_key: str | None = None
    """The key of the configuration that names it."""
    configuration_sha256: str | None = None
    """Hash of the model's configuration as it was loaded; None without a model."""
    warnings: tuple[str, ...]
    """For stderr: nothing here changes silently."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that is loaded, with its tokenizer and windows."""

    loaded: LoadedTokenizer
    windows: WindowPolicy
    start: Callable[[], tuple[Backend, BatchPolicy]]
    """Finds out how the model can be run, which may take minutes: a backend that is ready to score,
    and the batches with the budget that was settled on."""


@dataclass(frozen=True, slots=True)
class StudentWithTeacher:
    """A model beside its teacher, ready to score both as one backend."""

    backend: Backend
    windows: WindowPolicy
    """Windows that both take."""
    record: Mapping[str, Any]
    """The teacher's part of the run record."""
    n_ids: int | None = None
    """Ids that both have logits for; None where the model's own vocabulary counts."""
    overlap_k: int = 1
    """Most probable ids of both that are compared: as many as were asked for, or as are known."""
    attach_teacher_rows: Callable[[Entry], Entry] | None = None
    """Adds to a sequence what a file knows of the teacher, or rejects it."""
