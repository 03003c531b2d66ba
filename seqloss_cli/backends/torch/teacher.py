"""A model and its teacher as one backend: two models, or a model and a file."""

from __future__ import annotations

from functools import partial
from typing import Any

from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.divergence import (
    BLOCK_SIZE_GUESS,
    diverge,
    diverge_from_saved,
)
from seqloss_cli.backends.torch.forward import ModelForward
from seqloss_cli.core.backend import Batch, Capabilities, Requested, TokenScores
from seqloss_cli.core.columns import DIVERGENCES, SAVED_TEACHER


class StudentTeacherBackend:
    """A model and its teacher as one backend: the student's losses, and the divergences."""

    def __init__(
        self,
        student: TorchBackend,
        teacher: TorchBackend | None,
        vocab_size: int,
        top_k: int = 0,
        overlap_k: int = 1,
    ) -> None:
        """The first `vocab_size` ids of both vocabularies count. With `top_k`, scores hold what a
        file keeps of the teacher, too. Without a `teacher`, batches come with what a file knows.
        `overlap_k` is how many of the most probable ids are compared."""
        self._student, self._teacher = student, teacher
        self._vocab_size, self._top_k, self._overlap_k = vocab_size, top_k, overlap_k
        self.warnings: list[str] = []
        """Messages on the teacher: those on the student came when it was loaded."""
        models = [student, *([] if teacher is None else [teacher])]
        # No prefix is shared: both models must take the same batch, and their caches may differ.
        self.capabilities = Capabilities(
            one_row_per_batch=any(model.capabilities.one_row_per_batch for model in models),
            longest_packed=min(model.capabilities.longest_packed for model in models),
            quantities=frozenset([DIVERGENCES.name, *([SAVED_TEACHER.name] if top_k else [])]),
        )

    @property
    def n_too_large(self) -> int:
        """Batches that did not fit in memory."""
        return self._student.n_too_large + (self._teacher.n_too_large if self._teacher else 0)

    def vocab_size(self) -> int:
        """Return how many ids of the vocabulary are compared."""
        return self._vocab_size

    def describe(self) -> dict[str, Any]:
        """Return the student's part of the run record: the teacher has a part of its own."""
        found = self._student.describe()
        return found | {"guesses": found["guesses"] and (*found["guesses"], BLOCK_SIZE_GUESS)}

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target, as `TorchBackend.score`; the columns are those of `DIVERGENCES`."""
        return self._student.run_guarded(batch, partial(self._compare, batch))

    def _compare(self, batch: Batch, student: ModelForward) -> TokenScores:
        logits, targets_M = student.logits(batch), student.on_device(batch.targets)
        if self._teacher is None:
            assert batch.teacher_rows is not None
            return diverge_from_saved(
                logits, targets_M, batch.teacher_rows, self._vocab_size, self._overlap_k
            )
        sizes = self._vocab_size, self._top_k, self._overlap_k
        return self._teacher.run_guarded(
            batch, lambda teacher: diverge(logits, teacher.logits(batch), targets_M, *sizes)
        )
