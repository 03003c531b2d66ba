"""Open the model of a run, and its teacher: the one place where a backend is chosen.

Modules of backends are imported when they are asked for: what one of them needs (torch) takes a
second to import, and may not be installed beside another.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from seqloss_cli.backends.teacher_files import TeacherFile
from seqloss_cli.core.backend import Backend, OpenedModel, StudentWithTeacher
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, SpeedPolicy, WindowPolicy

BACKENDS = {
    "torch": "seqloss_cli.backends.torch.opening",
    "server": "seqloss_cli.backends.server.opening",
}
"""Name of a backend to its module, which has `open_model` with the arguments of `open_backend`;
and `open_teacher` (student, teacher, windows, top_k, overlap_k) if it can compare whole
distributions."""


def open_backend(
    choice: ModelChoice,
    context: int | None,
    stride: int | None,
    batches: BatchPolicy,
    speed: SpeedPolicy,
) -> OpenedModel:
    """Load a model, which is not yet made ready to score.

    Raises RunError when it cannot be loaded, UsageError when options do not fit it.
    """
    opened: OpenedModel = _module(choice.backend).open_model(
        choice, context, stride, batches, speed
    )
    return opened


def open_teacher(
    name: str,
    student: Backend,
    teacher: ModelChoice | TeacherFile,
    windows: WindowPolicy,
    top_k: int = 0,
    overlap_k: int = 1,
    others: Sequence[Backend] = (),
) -> StudentWithTeacher:
    """Put a teacher, or a file that knows one, beside a student that the backend of this name runs.
    With `top_k`, what a file keeps of the teacher is computed, too; `overlap_k` is how many of the
    most probable ids are compared. `others` are more students, which share its passes.

    Raises UsageError when their vocabularies differ, or the teacher takes less than --context.
    """
    module = _module(name)
    if isinstance(teacher, ModelChoice) and teacher.backend != name:
        raise UsageError(f"--teacher: it must be run by {name}, as the model that it is held to")
    if not hasattr(module, "open_teacher"):
        raise UsageError("--teacher: this backend gives no whole distributions to compare")
    more = {"others": others} if others else {}
    compared: StudentWithTeacher = module.open_teacher(
        student, teacher, windows, top_k, overlap_k, **more
    )
    return compared


def _module(name: str) -> Any:
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}: {', '.join(BACKENDS)}")
    return import_module(BACKENDS[name])
