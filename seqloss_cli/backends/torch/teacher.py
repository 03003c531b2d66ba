"""Hold a scorer's model to gold distributions: a teacher's, a file's, or smoothed one-hot ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from seqloss_cli.backends.teacher_files import TeacherFile
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.divergence import diverge, diverge_from_saved
from seqloss_cli.backends.torch.forward import ModelForward
from seqloss_cli.core.backend import Batch, Capabilities, Requested, TokenScores
from seqloss_cli.core.columns import DIVERGENCES
from seqloss_cli.core.errors import RowError, RunError, UsageError
from seqloss_cli.core.policies import ModelChoice, WindowPolicy
from seqloss_cli.core.records import Rejected, TokenSequence, rejection
from seqloss_cli.models.checkpoint import Checkpoint, load_checkpoint, window_policy

Entry = TokenSequence | Rejected


class StudentTeacherBackend:
    """A model and its teacher as one backend: the student's losses, and the divergences."""

    def __init__(
        self, student: TorchBackend, teacher: TorchBackend | None, n_words: int, top_k: int = 0
    ) -> None:
        """`n_words` of both vocabularies count. With `top_k` what a file keeps of the teacher is
        given, too. Without a `teacher` batches come with what a file knows of it."""
        self._student, self._teacher = student, teacher
        self._n_words, self._top_k = n_words, top_k
        self.path, self.compiled = student.path, student.compiled
        self.warnings: list[str] = []
        """Of the teacher: those of the student were said when it was loaded."""
        given = frozenset([DIVERGENCES.name])
        self.capabilities = replace(student.capabilities, longest_shared=0, quantities=given)
        if teacher is not None:
            self.warnings += [f"teacher: {each}" for each in teacher.warnings]
            a, b = student.capabilities, teacher.capabilities
            self.capabilities = Capabilities(
                a.one_row or b.one_row,
                min(a.longest_packed, b.longest_packed),
                quantities=given,
            )

    @property
    def n_too_large(self) -> int:
        """Batches that did not fit in memory."""
        return self._student.n_too_large + (self._teacher.n_too_large if self._teacher else 0)

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target, as `TorchBackend.score`; the columns are those of `DIVERGENCES`."""
        teacher = self._teacher
        if teacher is None:
            return self._student.run(batch, lambda runner: self._from_saved(batch, runner))
        return self._student.run(
            batch,
            lambda runner: teacher.run(batch, lambda other: self._both(batch, runner, other)),
        )

    def _both(self, batch: Batch, student: ModelForward, teacher: ModelForward) -> TokenScores:
        logits, targets_M = student.logits(batch), student.on_device(batch.targets)
        return diverge(logits, teacher.logits(batch), targets_M, self._n_words, self._top_k)

    def _from_saved(self, batch: Batch, student: ModelForward) -> TokenScores:
        assert batch.saved is not None
        logits, targets_M = student.logits(batch), student.on_device(batch.targets)
        return diverge_from_saved(logits, targets_M, batch.saved, self._n_words)


def load_teacher(
    choice: ModelChoice,
    student: Checkpoint,
    backend: TorchBackend,
    windows: WindowPolicy,
    top_k: int,
) -> tuple[StudentTeacherBackend, WindowPolicy, dict[str, Any]]:
    """The two as one backend, the windows that fit both, and what the run's record says.

    Raises UsageError when their vocabularies differ, or the teacher takes less than --context.
    """
    checkpoint = load_checkpoint(choice)
    _require_same_ids(student, checkpoint)
    windows = _fitting(windows, checkpoint)
    teacher = TorchBackend(checkpoint.model, windows.context)
    if backend.compiled:
        try:
            teacher.compile()
        except RunError as error:
            teacher.warnings.append(f"not compiled: {error}")
    widths = backend.vocabulary(), teacher.vocabulary()
    n_words = widths[0]
    if widths[0] != widths[1]:
        if top_k:
            raise UsageError(
                f"--save-teacher: the heads are {widths[0]} and {widths[1]} wide; save it beside a "
                "model of its own width"
            )
        n_words = _n_tokenizer_ids(student)
        if n_words > min(widths):
            raise UsageError(
                f"--teacher {choice.name}: the tokenizer has {n_words} ids, the models' heads "
                f"{widths[0]} and {widths[1]}: they have no common vocabulary"
            )
    taught = StudentTeacherBackend(backend, teacher, n_words, top_k)
    taught.warnings += [f"teacher: {each}" for each in checkpoint.warnings]
    return taught, windows, teacher_record(checkpoint, teacher.path, widths, n_words)


def teacher_record(
    checkpoint: Checkpoint, path: str, widths: tuple[int, int], n_words: int
) -> dict[str, Any]:
    """Which teacher, and what of the vocabularies is compared."""
    return {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "weights_sha256": checkpoint.weights_sha256,
        "adapter": checkpoint.adapter,
        "quantization": checkpoint.quantization,
        "dtype": checkpoint.dtype,
        "path": path,
        "n_words": n_words,
        "n_logits": widths[1],
        "n_logits_student": widths[0],
        "saved_as": None,
        "top_k": None,
    }


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


def _n_tokenizer_ids(checkpoint: Checkpoint) -> int:
    return 1 + max(map(int, checkpoint.tokenizer.get_vocab().values()))


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


class SavedTeacher:
    """A teacher that is known from a file."""

    def __init__(self, file: TeacherFile) -> None:
        self.file, self.header = file, file.header
        self.n_words = int(file.header["n_words"])

    def require_fits(self, own: dict[str, Any], n_logits: int) -> None:
        """Raises UsageError where the file is of other tokens, windows or words; `own` is what a
        file of this run would say of the first two."""
        for name, value in own.items():
            if self.header.get(name) != value:
                flag = "" if name == "tokenizer_sha256" else f" (--{name.replace('_', '-')})"
                raise UsageError(
                    f"--teacher {self.file.path}: its {name} is {self.header.get(name)!r:.20}, "
                    f"this run's {value!r:.20}{flag}"
                )
        if n_logits < self.n_words:
            raise UsageError(
                f"--teacher {self.file.path} is of {self.n_words} words, this model has {n_logits} "
                "logits: name the teacher itself"
            )

    def attach(self, entries: Sequence[Entry]) -> list[Entry]:
        """Each sequence with what the file knows of it, or why it does not."""
        return [self._attached(entry) for entry in entries]

    def _attached(self, entry: Entry) -> Entry:
        if isinstance(entry, Rejected):
            return entry
        try:
            return replace(entry, saved=self.file.rows_of(entry))
        except RowError as error:
            return rejection(entry.sample, error.reason, error.message)

    def record(self) -> dict[str, Any]:
        """For the run's record."""
        names = ("model", "revision", "weights_sha256", "adapter", "quantization", "dtype", "path")
        found = {name: self.header.get(name) for name in names}
        found |= {name: self.header[name] for name in ("n_words", "top_k")}
        return found | {"saved_as": str(self.file.path), "measured": self.file.measured}
