"""Open the model of a run, and its teacher: the one place where a backend is chosen.

Modules of backends are imported when they are asked for: what one of them needs (torch) takes a
second to import, and may not be installed beside another.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from seqloss_cli.core.backend import Backend, ComparedModel, OpenedModel
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, SpeedPolicy, WindowPolicy

BACKENDS = {
    "torch": "seqloss_cli.backends.torch.opening",
}
"""Name of a backend to its module, which has `open_model` with the arguments of `open_backend`."""


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
    if choice.backend not in BACKENDS:
        raise UsageError(f"there is no backend {choice.backend!r}: {', '.join(BACKENDS)}")
    module = import_module(BACKENDS[choice.backend])
    opened: OpenedModel = module.open_model(choice, context, stride, batches, speed)
    return opened


def open_teacher(
    student: Backend, choice: ModelChoice, windows: WindowPolicy, top_k: int = 0
) -> ComparedModel:
    """Load a teacher beside a model. With `top_k`, what a file keeps of it is computed, too.

    Raises UsageError when their vocabularies differ, or the teacher takes less than --context.
    """
    from seqloss_cli.backends.torch.teacher import with_teacher

    return with_teacher(student, choice, windows, top_k)


def open_saved_teacher(
    student: Backend, path: Path, windows: WindowPolicy, described: Mapping[str, Any]
) -> ComparedModel:
    """Read a teacher from a file. `described` are the tokens and windows of this run, in the names
    of the file's header.

    Raises UsageError where the file is of other tokens or windows.
    """
    from seqloss_cli.backends.torch.teacher import with_saved_teacher

    return with_saved_teacher(student, path, windows, described)
