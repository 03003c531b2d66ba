"""Open a checkpoint as a backend: load it, choose its path, its batches, and whether to compile;
and open a teacher beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from seqloss_cli.backends.teacher_files import TeacherFile
from seqloss_cli.core.backend import (
    Backend,
    Batch,
    OpenedModel,
    Requested,
    StudentWithTeacher,
    TokenScores,
)
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, SpeedPolicy, WindowPolicy
from seqloss_cli.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    refuse_checkpoint,
    window_policy,
)
from seqloss_cli.models.parts import device_of_parts, refuse_settings

if TYPE_CHECKING:
    from seqloss_cli.backends.torch.backend import TorchBackend


def open_model(
    choice: ModelChoice,
    context: int | None,
    stride: int | None,
    batches: BatchPolicy,
    speed: SpeedPolicy,
) -> OpenedModel:
    """Load a checkpoint, once for each device.

    Raises RunError when it cannot be loaded, and UsageError when options do not fit it.
    """
    checkpoint = _load(choice, speed)
    windows = window_policy(checkpoint, context, stride)
    start = partial(_start, checkpoint, windows.context, batches, speed)
    return OpenedModel(checkpoint, windows, start)


def _load(choice: ModelChoice, speed: SpeedPolicy) -> Checkpoint:
    """Load a checkpoint, whole or in parts. Raises UsageError where it cannot be cut in parts."""
    n_parts = speed.tensor_parallel
    if n_parts == 1:
        return load_checkpoint(choice, speed.devices)
    refuse_settings(choice, speed)
    device_type = device_of_parts(choice, n_parts)
    from seqloss_cli.backends.torch.processes import lead_processes

    refuse_checkpoint(choice, n_parts)
    leader = lead_processes(n_parts, device_type)
    choice = replace(choice, threads=choice.threads or leader.threads)
    return leader.load(
        (choice, n_parts),
        lambda: load_checkpoint(choice, n_parts=n_parts),
        lambda checkpoint: checkpoint.model,
    )


def _start(
    checkpoint: Checkpoint, context: int, batches: BatchPolicy, speed: SpeedPolicy
) -> tuple[Backend, BatchPolicy]:
    """Find out how a model can be run. Raises RunError where compiling is demanded and fails."""
    # Only now: these import transformers, which reads HF_HUB_OFFLINE and USE_HUB_KERNELS as it is
    # imported, and whose packages warn on stderr until loading has silenced them.
    from seqloss_cli.backends.torch.backend import TorchBackend
    from seqloss_cli.backends.torch.batch_budget import choose_batch_tokens

    backends = [
        TorchBackend(model, context, share_prefix=batches.share_prefix, checkpoint=checkpoint)
        for model in (checkpoint.model, *checkpoint.copies)
    ]
    _compile(backends, speed)
    if batches.auto:
        budget = min(choose_batch_tokens(backend, context) for backend in backends)
        batches = replace(batches, tokens=budget, auto=False)
    return MultiDeviceBackend(backends) if len(backends) > 1 else backends[0], batches


def _compile(backends: Sequence[TorchBackend], speed: SpeedPolicy) -> None:
    """Compile all or none. Raises RunError when it is demanded and fails."""
    from seqloss_cli.backends.torch.batch_budget import compiling_pays

    first = backends[0]
    if (
        speed.compile == "off"
        or first.n_parts > 1
        or (
            speed.compile == "auto"
            and not (first.path == "packed" and compiling_pays(first.model, speed.work_bytes))
        )
    ):
        return
    try:
        for backend in backends:
            backend.compile()
    except RunError as error:
        if speed.compile == "on":
            raise
        for backend in backends:
            backend.stop_compiled()
        first.warnings.append(f"not compiled: {error}")


def open_teacher(
    student: Backend,
    teacher: ModelChoice | TeacherFile,
    windows: WindowPolicy,
    top_k: int,
    overlap_k: int = 1,
    others: Sequence[Backend] = (),
) -> StudentWithTeacher:
    """Put a teacher, or a file that knows one, beside a student. With `top_k`, what a file keeps of
    the teacher is computed, too; the `overlap_k` most probable ids are compared, or as many as are
    known. `others` are more students, which share the teacher's passes.

    Raises UsageError when their vocabularies differ, or the teacher takes less than --context.
    """
    from seqloss_cli.backends.torch.backend import TorchBackend
    from seqloss_cli.backends.torch.teacher import StudentTeacherBackend

    students = [each for each in (student, *others) if isinstance(each, TorchBackend)]
    if not isinstance(student, TorchBackend) or len(students) <= len(others):
        raise UsageError("--teacher: this backend gives no whole distributions to compare")
    if student.n_parts > 1:
        raise UsageError(
            f"--tensor-parallel {student.n_parts}: each process has a part of the distributions "
            "that --teacher compares; leave one of them out"
        )
    if isinstance(teacher, TeacherFile):
        overlap_k = min(overlap_k, int(teacher.header["top_k"]), teacher.vocab_size)
        more = [(each, teacher.vocab_size) for each in students[1:]]
        backend = StudentTeacherBackend(student, None, teacher.vocab_size, 0, overlap_k, more)
        return StudentWithTeacher(
            backend, windows, teacher.record(), None, overlap_k, teacher.attach
        )
    return _beside_model(students, teacher, windows, top_k, overlap_k)


def _beside_model(
    students: Sequence[TorchBackend],
    choice: ModelChoice,
    windows: WindowPolicy,
    top_k: int,
    overlap_k: int,
) -> StudentWithTeacher:
    from seqloss_cli.backends.torch.backend import TorchBackend, identity_of
    from seqloss_cli.backends.torch.teacher import StudentTeacherBackend

    student, checkpoint = students[0], load_checkpoint(choice)
    for each in students:
        _require_same_ids(_checkpoint_of(each), checkpoint)
    windows = _windows_for_both(windows, checkpoint)
    model = TorchBackend(checkpoint.model, windows.context)
    if student.compiled:
        try:
            model.compile()
        except RunError as error:
            model.warnings.append(f"not compiled: {error}")
    widths = student.vocab_size(), model.vocab_size()
    vocab_sizes = [
        _common_vocab_size(_checkpoint_of(each), choice, (each.vocab_size(), widths[1]), top_k)
        for each in students
    ]
    vocab_size = vocab_sizes[0]
    if top_k > vocab_size:
        raise UsageError(f"--teacher-top-k {top_k}: there are {vocab_size} words")
    overlap_k = min(overlap_k, *vocab_sizes)
    more = list(zip(students[1:], vocab_sizes[1:], strict=True))
    backend = StudentTeacherBackend(student, model, vocab_size, top_k, overlap_k, more)
    backend.warnings += [f"teacher: {each}" for each in (*model.warnings, *checkpoint.warnings)]
    record = {
        **identity_of(checkpoint),
        "path": model.path,
        "n_words": vocab_size,
        "n_logits": widths[1],
        "n_logits_student": widths[0],
        "saved_as": None,
        "top_k": None,
    }
    return StudentWithTeacher(backend, windows, record, min(vocab_sizes), overlap_k)


def _checkpoint_of(student: TorchBackend) -> Checkpoint:
    assert student.checkpoint is not None
    return student.checkpoint


def _common_vocab_size(
    student: Checkpoint, choice: ModelChoice, widths: tuple[int, int], top_k: int
) -> int:
    """Return the ids that both have logits for: heads may be padded to different widths."""
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
    """Raises UsageError naming a token that does not have the same id in both."""
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


def _windows_for_both(windows: WindowPolicy, teacher: Checkpoint) -> WindowPolicy:
    """Return windows that the teacher takes, too."""
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


class MultiDeviceBackend:
    """Copies of a model on several devices as one backend. Each batch goes to whichever is free;
    as many threads may ask as there are devices."""

    def __init__(self, backends: Sequence[TorchBackend]) -> None:
        """Raises RunError when the model does not run the same way on all of them."""
        ways = {(backend.path, backend.capabilities) for backend in backends}
        if len(ways) > 1:
            paths = ", ".join(backend.path for backend in backends)
            raise RunError(
                f"the model runs in different ways on the devices ({paths}): --devices 1"
            )
        self._backends = backends
        self._free: SimpleQueue[Backend] = SimpleQueue()
        for backend in backends:
            self._free.put(backend)
        self.warnings = list(dict.fromkeys(w for backend in backends for w in backend.warnings))
        self.capabilities = replace(backends[0].capabilities, n_concurrent_batches=len(backends))

    @property
    def n_too_large(self) -> int:
        """Batches that did not fit in memory."""
        return sum(backend.n_too_large for backend in self._backends)

    def vocab_size(self) -> int:
        """Return how many logits the model has."""
        return self._backends[0].vocab_size()

    def describe(self) -> dict[str, Any]:
        """Return its part of the run record: that of the first device, and how many there are."""
        return {**self._backends[0].describe(), "devices": len(self._backends)}

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target of the batch, as `TorchBackend.score`."""
        backend = self._free.get()
        try:
            return backend.score(batch, requested)
        finally:
            self._free.put(backend)
