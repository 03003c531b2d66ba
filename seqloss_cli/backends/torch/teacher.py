"""Compare a model with a teacher: two models as one backend, or a model and a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqloss_cli.backends.teacher_files import TeacherFile
from seqloss_cli.backends.torch.backend import TorchBackend, identity_of
from seqloss_cli.backends.torch.divergence import diverge, diverge_from_saved
from seqloss_cli.backends.torch.forward import ModelForward
from seqloss_cli.core.backend import (
    Backend,
    Batch,
    Capabilities,
    ComparedModel,
    Requested,
    TokenScores,
)
from seqloss_cli.core.columns import DIVERGENCES
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import ModelChoice, WindowPolicy
from seqloss_cli.models.checkpoint import Checkpoint, load_checkpoint, window_policy


class StudentTeacherBackend:
    """A model and its teacher as one backend: the student's losses, and the divergences."""

    def __init__(
        self, student: TorchBackend, teacher: TorchBackend | None, vocab_size: int, top_k: int = 0
    ) -> None:
        """The first `vocab_size` ids of both vocabularies count. With `top_k`, scores hold what a
        file keeps of the teacher, too. Without a `teacher`, batches come with what a file knows."""
        self._student, self._teacher = student, teacher
        self._vocab_size, self._top_k = vocab_size, top_k
        self.warnings: list[str] = []
        """Messages on the teacher: those on the student came when it was loaded."""
        models = [student, *([] if teacher is None else [teacher])]
        # No prefix is shared: both models must take the same batch, and their caches may differ.
        self.capabilities = Capabilities(
            one_row=any(model.capabilities.one_row for model in models),
            longest_packed=min(model.capabilities.longest_packed for model in models),
            quantities=frozenset([DIVERGENCES.name]),
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
        return self._student.describe()

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target, as `TorchBackend.score`; the columns are those of `DIVERGENCES`."""
        teacher = self._teacher
        if teacher is None:
            return self._student.run(batch, lambda student: self._from_saved(batch, student))
        return self._student.run(
            batch,
            lambda student: teacher.run(batch, lambda other: self._both(batch, student, other)),
        )

    def _both(self, batch: Batch, student: ModelForward, teacher: ModelForward) -> TokenScores:
        logits, targets_M = student.logits(batch), student.on_device(batch.targets)
        return diverge(logits, teacher.logits(batch), targets_M, self._vocab_size, self._top_k)

    def _from_saved(self, batch: Batch, student: ModelForward) -> TokenScores:
        assert batch.saved is not None
        logits, targets_M = student.logits(batch), student.on_device(batch.targets)
        return diverge_from_saved(logits, targets_M, batch.saved, self._vocab_size)


def with_teacher(
    student: Backend, choice: ModelChoice, windows: WindowPolicy, top_k: int
) -> ComparedModel:
    """Load a teacher beside a student. With `top_k`, what a file keeps of it is computed, too.

    Raises UsageError when their vocabularies differ, or the teacher takes less than --context.
    """
    student = _local(student)
    own = student.checkpoint
    assert own is not None
    checkpoint = load_checkpoint(choice)
    _require_same_ids(own, checkpoint)
    windows = _fitting(windows, checkpoint)
    teacher = TorchBackend(checkpoint.model, windows.context)
    if student.compiled:
        try:
            teacher.compile()
        except RunError as error:
            teacher.warnings.append(f"not compiled: {error}")
    widths = student.vocab_size(), teacher.vocab_size()
    vocab_size = _common_vocab_size(own, choice, widths, top_k)
    if top_k > vocab_size:
        raise UsageError(f"--teacher-top-k {top_k}: there are {vocab_size} words")
    backend = StudentTeacherBackend(student, teacher, vocab_size, top_k)
    messages = (*teacher.warnings, *checkpoint.warnings)
    backend.warnings += [f"teacher: {each}" for each in messages]
    record = {
        **identity_of(checkpoint),
        "path": teacher.path,
        "n_words": vocab_size,
        "n_logits": widths[1],
        "n_logits_student": widths[0],
        "saved_as": None,
        "top_k": None,
    }
    return ComparedModel(backend, windows, record, n_ids=vocab_size)


def with_saved_teacher(
    student: Backend, path: Path, windows: WindowPolicy, described: Mapping[str, Any]
) -> ComparedModel:
    """Compare a student with a teacher that is known from a file.

    `described` is what a file of this run would say of its tokens and windows. Raises UsageError
    where the file is of others, or of more ids than the student has logits.
    """
    student = _local(student)
    file = TeacherFile(path)
    file.require_fits(described, student.vocab_size())
    backend = StudentTeacherBackend(student, None, file.vocab_size)
    return ComparedModel(backend, windows, file.record(), attach=file.attach)


def _local(student: Backend) -> TorchBackend:
    """The student, whose whole distributions are at hand. Raises UsageError for another one."""
    if not isinstance(student, TorchBackend):
        raise UsageError("--teacher: this backend gives no whole distributions to compare")
    return student


def _common_vocab_size(
    student: Checkpoint, choice: ModelChoice, widths: tuple[int, int], top_k: int
) -> int:
    """The ids that both have logits for: heads may be padded to different widths."""
    if widths[0] == widths[1]:
        return widths[0]
    if top_k:
        raise UsageError(
            f"--save-teacher: the heads are {widths[0]} and {widths[1]} wide; save it beside a "
            "model of its own width"
        )
    vocab_size = 1 + max(map(int, student.tokenizer.get_vocab().values()))
    if vocab_size > min(widths):
        raise UsageError(
            f"--teacher {choice.name}: the tokenizer has {vocab_size} ids, the models' heads "
            f"{widths[0]} and {widths[1]}: they have no common vocabulary"
        )
    return vocab_size


def _require_same_ids(student: Checkpoint, teacher: Checkpoint) -> None:
    """Each id stands for the same token in both; raises UsageError naming one that does not."""
    ours, theirs = (each.tokenizer.get_vocab() for each in (student, teacher))
    if ours == theirs:
        return
    names = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
    first = names[0]
    raise UsageError(
        f"--teacher {teacher.name}: its vocabulary is not that of {student.name}: {len(names)} "
        f"tokens differ, such as {first!r:.40} ({theirs.get(first)} and {ours.get(first)}); "
        "divergence needs one vocabulary. `seqloss compare` compares models per byte"
    )


def _fitting(windows: WindowPolicy, teacher: Checkpoint) -> WindowPolicy:
    """Windows that the teacher takes, too."""
    longest = teacher.max_context
    if longest is None or longest >= windows.context:
        return windows
    if windows.context_source == "--context":
        raise UsageError(
            f"--context {windows.context} is more than the teacher takes "
            f"({teacher.max_context_key}: {longest})"
        )
    fitting = window_policy(teacher, None, None)
    source = f"{fitting.context_source} of the teacher"
    return WindowPolicy(longest, source, min(windows.stride, fitting.stride))
