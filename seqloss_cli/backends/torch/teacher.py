"""Models and their teacher as one backend: two models, a model and a file, or more models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.divergence import (
    BLOCK_SIZE_GUESS,
    diverge_each,
    diverge_from_saved,
)
from seqloss_cli.backends.torch.forward import ModelForward
from seqloss_cli.backends.torch.head import LazyLogits
from seqloss_cli.core.backend import Batch, Capabilities, Requested, TokenScores
from seqloss_cli.core.columns import DIVERGENCES, SAVED_TEACHER


class StudentTeacherBackend:
    """Models and their teacher as one backend: the students' losses, and the divergences."""

    def __init__(
        self,
        student: TorchBackend,
        teacher: TorchBackend | None,
        vocab_size: int,
        top_k: int = 0,
        overlap_k: int = 1,
        others: Sequence[tuple[TorchBackend, int]] = (),
    ) -> None:
        """The first `vocab_size` ids of both vocabularies count. With `top_k`, scores hold what a
        file keeps of the teacher, too. Without a `teacher`, batches come with what a file knows.
        `overlap_k` is how many of the most probable ids are compared. `others` are more students,
        each with the ids that count of it: all share one pass of the teacher."""
        self._student, self._teacher = student, teacher
        self._vocab_size, self._top_k, self._overlap_k = vocab_size, top_k, overlap_k
        self._students = ((student, vocab_size), *others)
        self.warnings: list[str] = []
        """Messages on the teacher: those on the student came when it was loaded."""
        models = [*(each for each, _ in self._students), *([] if teacher is None else [teacher])]
        # No prefix is shared: both models must take the same batch, and their caches may differ.
        self.capabilities = Capabilities(
            one_row_per_batch=any(model.capabilities.one_row_per_batch for model in models),
            longest_packed=min(model.capabilities.longest_packed for model in models),
            quantities=frozenset([DIVERGENCES.name, *([SAVED_TEACHER.name] if top_k else [])]),
        )

    @property
    def n_too_large(self) -> int:
        """Batches that did not fit in memory."""
        students = sum(each.n_too_large for each, _ in self._students)
        return students + (self._teacher.n_too_large if self._teacher else 0)

    def vocab_size(self) -> int:
        """Return how many ids of the vocabulary are compared."""
        return self._vocab_size

    def describe(self) -> dict[str, Any]:
        """Return the student's part of the run record: the teacher has a part of its own."""
        found = self._student.describe()
        return found | {"guesses": found["guesses"] and (*found["guesses"], BLOCK_SIZE_GUESS)}

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target, as `TorchBackend.score`; the columns are those of `DIVERGENCES`.

        Of several students they have a column for each, shape M x S, and NaN where one lacks it.
        """
        return self._scored(batch, ())

    def _scored(self, batch: Batch, logits: tuple[LazyLogits, ...]) -> TokenScores:
        """Run the students whose logits are not there yet, then compare all with the teacher."""
        if len(logits) < len(self._students):
            student, _ = self._students[len(logits)]
            return student.run_guarded(
                batch, lambda forward: self._scored(batch, (*logits, forward.logits(batch)))
            )
        found = self._compare(batch, self._student.model_forward, logits)
        return found[0] if len(found) == 1 else _side_by_side(found)

    def _compare(
        self, batch: Batch, forward: ModelForward, logits: tuple[LazyLogits, ...]
    ) -> list[TokenScores]:
        targets_M = forward.on_device(batch.targets)
        sizes = [vocab_size for _, vocab_size in self._students]
        students = list(zip(logits, sizes, strict=True))
        if self._teacher is None:
            assert batch.teacher_rows is not None
            saved = batch.teacher_rows
            return [
                diverge_from_saved(student, targets_M, saved, vocab_size, self._overlap_k)
                for student, vocab_size in students
            ]
        return self._teacher.run_guarded(
            batch,
            lambda teacher: diverge_each(
                students, teacher.logits(batch), targets_M, self._top_k, self._overlap_k
            ),
        )


def _side_by_side(found: Sequence[TokenScores]) -> TokenScores:
    """Return scores of S students as one: arrays of shape M x S; losses of the first, shape M.

    A loss is NaN where a figure of any student is, so that the text is rejected for all of them:
    means would be of other tokens else.
    """
    nothing = np.full(len(found[0].losses), np.nan)
    names = dict.fromkeys(name for each in found for name in each.columns)
    arrays = {
        name: np.stack([each.columns.get(name, nothing) for each in found], axis=1)
        for name in names
    }
    own = [values for each in found for values in (each.losses, *each.columns.values())]
    broken = np.any([np.isnan(values) for values in own], axis=0)
    losses = np.stack([each.losses for each in found], axis=1)
    return TokenScores(np.where(broken, np.nan, losses[:, 0]), {**arrays, "student_losses": losses})
