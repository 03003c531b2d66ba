"""Assemble the scores of a sequence from those of its windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.backend import Requested, TokenScores, WindowTargets
from seqloss_cli.core.columns import WORD_BOUNDARIES
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Bools, Ints, Outcome, SequenceScore, TokenSequence, rejection

_DTYPES = {"whole": np.dtype(np.int64), "real": np.dtype(np.float64)}


class ScoreAssembler:
    """The losses and columns of one sequence while its windows come in."""

    def __init__(self, sequence: TokenSequence, requested: Requested) -> None:
        n = sequence.n_tokens
        self._sequence = sequence
        self._losses = np.zeros(n)
        self._scored = np.zeros(n, dtype=bool)
        self._context_lengths = np.zeros(n, dtype=np.int64)
        # A sequence without a single target has these, too: its row holds nulls, not no key.
        self._columns: dict[str, NDArray[Any]] = {
            column.name: np.zeros(n, dtype=_DTYPES[column.kind])
            for column in requested.columns
            if column.kind in _DTYPES
        }
        self._given: frozenset[str] | None = None
        """Names of the arrays that the first window has: those of all."""
        self._of_loss: list[NDArray[Any]] = []
        """Internal columns of shape N, float64, of which losses are made."""
        self._failure: RowError | None = None
        self._boundaries: NDArray[Any] | None = None
        if requested.word_boundary_ids is not None:
            self._boundaries = np.full((n + 1, 3), np.nan)
            self._columns[WORD_BOUNDARIES.name] = self._boundaries

    def take(self, part: WindowTargets, scores: TokenScores) -> None:
        """Store the scores of one window's targets, whose columns are those that were requested.

        Raises RuntimeError where optional arrays are not those of the windows before.
        """
        targets, places = part.targets, part.score_places
        self._failure = self._failure or scores.failure
        if self._given is None:
            # A copy: the view of keys would keep the whole batch's arrays in memory.
            self._given = frozenset(scores.columns)
        elif self._given != scores.columns.keys():
            # Zeros would stand at the targets of the windows without it, as if they were figures.
            raise RuntimeError("the backend gave other arrays for one window of a text")
        if self._boundaries is not None:
            self._boundaries[targets] = scores.columns[WORD_BOUNDARIES.name][places]
        if targets[-1] == len(self._losses):
            # The end of the text: of what follows the last token, word boundaries are all there is.
            targets, places = targets[:-1], _all_but_the_last(places)
        assert not self._scored[targets].any(), "every target is scored exactly once"
        self._losses[targets] = scores.losses[places]
        self._scored[targets] = True
        self._context_lengths[targets] = part.window.context_length(0) + targets
        for name, values in scores.columns.items():
            column = self._columns.get(name)
            if column is None:
                column = self._add(name, values)
            if column is not self._boundaries:
                column[targets] = values[places]

    def _add(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Make the array of a column that is as wide as the first scores say."""
        column = np.zeros((len(self._losses), *values.shape[1:]), dtype=values.dtype)
        if column.ndim == 1 and column.dtype == np.float64:
            self._of_loss.append(column)
        self._columns[name] = column
        return column

    def outcome(self) -> Outcome:
        """Return the sequence's score, or its rejection where what a loss is made of is NaN, or the
        backend gave none."""
        mask = self._sequence.score_mask
        assert (self._scored[1:] == mask[1:]).all(), "each target is scored once"
        if (failure := self._failure) is not None:
            return rejection(self._sequence.sample, failure.reason, failure.message)
        broken = self._broken()
        if broken.any():
            who = "the model or its teacher" if "kls" in self._columns else "the model"
            return rejection(
                self._sequence.sample,
                "nan_loss",
                f"{who} gives NaN at {int(broken.sum())} tokens, first at token "
                f"{int(np.argmax(broken))}; another --dtype may mend it",
            )
        lengths, columns = self._context_lengths, self._columns
        return SequenceScore(self._sequence, self._losses, self._scored, lengths, columns)

    def _broken(self) -> Bools:
        """Return a mask of tokens at which a loss is NaN; what follows the last counts there."""
        broken: Bools = np.isnan(self._losses)
        for values in self._of_loss:
            broken |= np.isnan(values)
        if self._boundaries is not None and self._sequence.scores_text_end:
            broken[-1] |= np.isnan(self._boundaries[-1, 0])
        return broken


def _all_but_the_last(places: slice | Ints) -> slice | Ints:
    return slice(places.start, places.stop - 1) if isinstance(places, slice) else places[:-1]
