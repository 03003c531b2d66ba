"""Assemble the scores of a sequence from those of its windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.backend import Part, Requested, TokenScores
from seqloss_cli.core.columns import WORD_BOUNDARIES
from seqloss_cli.core.records import Bools, Ints, Outcome, SequenceScore, TokenSequence, rejection

_DTYPES = {"whole": np.int64, "real": np.float64}


class ScoreAssembler:
    """The losses and columns of one sequence while its windows come in."""

    def __init__(self, sequence: TokenSequence, requested: Requested) -> None:
        n = sequence.n_tokens
        self._sequence = sequence
        self._asked = [name for column in requested.columns for name in column.array_names]
        self._losses = np.zeros(n)
        self._scored = np.zeros(n, dtype=bool)
        self._context_lengths = np.zeros(n, dtype=np.int64)
        # A sequence without a single target has these, too: its row holds nulls, not no key.
        self._columns: dict[str, NDArray[Any]] = {
            column.name: np.zeros(n, dtype=_DTYPES[column.kind])
            for column in requested.columns
            if column.kind in _DTYPES
        }
        if WORD_BOUNDARIES in requested.columns:
            self._columns[WORD_BOUNDARIES.name] = np.full((n + 1, 3), np.nan)

    def take(self, part: Part, scores: TokenScores) -> None:
        """Store the scores of one window's targets.

        Raises RuntimeError where a backend left out a column that it was asked for: zeros in its
        place would be written as if they were figures.
        """
        for name in self._asked:
            if name not in scores.columns:
                raise RuntimeError(f"the backend gave no {name}")
        targets, places = part.targets, part.scores
        if (ends := self._columns.get(WORD_BOUNDARIES.name)) is not None:
            ends[targets] = scores.columns[WORD_BOUNDARIES.name][places]
        if targets[-1] == len(self._losses):
            # The end of the text: of what follows the last token, word boundaries are all there is.
            targets, places = targets[:-1], _all_but_the_last(places)
        assert not self._scored[targets].any(), "every target is scored exactly once"
        self._losses[targets] = scores.losses[places]
        self._scored[targets] = True
        self._context_lengths[targets] = part.window.context_length(0) + targets
        for name, values in scores.columns.items():
            if name == WORD_BOUNDARIES.name:
                continue
            if name not in self._columns:  # as wide as the first scores say
                shape = (len(self._losses), *values.shape[1:])
                self._columns[name] = np.zeros(shape, dtype=values.dtype)
            self._columns[name][targets] = values[places]

    def outcome(self) -> Outcome:
        """Return the sequence's score, or its rejection where anything that was computed is NaN."""
        mask = self._sequence.score_mask
        assert (self._scored[1:] == mask[1:]).all(), "each target is scored once"
        broken = self._broken()
        if broken.any():
            who = "the model or its teacher" if "kls" in self._columns else "the model"
            return rejection(
                self._sequence.sample,
                "nan_loss",
                f"{who} gives NaN at {int(broken.sum())} tokens, first at token "
                f"{int(np.argmax(broken))}; another --dtype may mend it",
            )
        return SequenceScore(
            sequence=self._sequence,
            losses=self._losses,
            scored=self._scored,
            context_lengths=self._context_lengths,
            columns=self._columns,
        )

    def _broken(self) -> Bools:
        """Shape N: the loss or a column is NaN. What follows the last token counts there."""
        n = len(self._losses)
        broken: Bools = np.isnan(self._losses)
        for values in self._columns.values():
            if values.dtype != np.float64:
                continue
            is_nan = np.isnan(values) if values.ndim == 1 else np.isnan(values).any(axis=1)
            broken |= is_nan[:n] & self._scored
            if len(values) > n and self._sequence.end_scored:
                broken[-1] |= is_nan[n]
        return broken


def _all_but_the_last(places: slice | Ints) -> slice | Ints:
    return slice(places.start, places.stop - 1) if isinstance(places, slice) else places[:-1]
