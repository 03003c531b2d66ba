"""A process that has a part of a model, and does what the first process tells it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seqloss_cli.backends.torch.processes import Processes, file_store
from seqloss_cli.backends.torch.torchrun import Place, called
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.models.checkpoint import load_part

# Only once a model was loaded: transformers reads variables as it is imported.
if TYPE_CHECKING:
    from seqloss_cli.backends.torch.tensor_parallel import PartForward, Way


class Follower:
    """The parts of models in a process that follows the first one."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._forwards: dict[int, tuple[PartForward, list[Any]]] = {}
        self._ways: dict[int, int] = {}
        self._requested: dict[int, Requested] = {}

    def drop(self, parts: tuple[int, ...]) -> None:
        """Forget parts of models that the first process has no more."""
        for part in parts:
            self._forwards.pop(part, None)
            self._ways.pop(part, None)
            self._requested.pop(part, None)

    @torch.inference_mode()
    def do(self, name: str, part: int, *arguments: Any) -> None:
        """Load a part, or compute it for a batch."""
        if name == "load":
            self._load(part, *arguments)
            return
        way, batch, *others = arguments
        forward = self._forward(part, way)
        if name == "vocab_size":
            forward.vocab_size(batch)
            return
        (new,) = others
        if new is not None:
            self._requested[part] = new
        forward.score(batch, self._requested[part])

    def _load(self, part: int, choice: ModelChoice, n_parts: int) -> None:
        model = load_part(choice, n_parts)
        from seqloss_cli.backends.torch.forward import possible_backbones
        from seqloss_cli.backends.torch.tensor_parallel import PartForward

        forward = PartForward(model, 0, self._processes)
        self._forwards[part] = forward, possible_backbones(model)

    def _forward(self, part: int, way: Way) -> PartForward:
        forward, backbones = self._forwards[part]
        if self._ways.get(part) != way.number:
            backbone = None if way.backbone is None else backbones[way.backbone]
            forward.use_path(way.path, backbone, way.in_blocks)
            self._ways[part] = way.number
        forward.longest_packed, forward.block_width = way.longest_packed, way.block_width
        return forward


def follow(processes: Processes) -> None:
    """Do what the first process tells, until it says that this is the end."""
    follower = Follower(processes)
    while (command := processes.receive())[0] != "end":
        if command[0] == "drop":
            follower.drop(command[1])
            continue
        error: Exception | None = None
        try:
            follower.do(*command)
        except Exception as own:
            error = own
        try:
            processes.answer(error, slow=command[0] == "load")
        except RuntimeError as lost:
            # The first process reads the last line where this one has ended.
            sys.exit(" ".join(str(error or lost).split()))
    processes.leave()


def follow_parent() -> None:
    """Be one of the processes that another one started; ends with it."""
    rank, n, device_type, folder = *map(int, sys.argv[1:3]), sys.argv[3], Path(sys.argv[4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first one
    threading.Thread(target=_end_with_stdin, args=(folder,), daemon=True).start()
    (folder / f"ready-{rank}").touch()
    store = file_store(folder, n)
    follow(Processes(Place(rank, n, rank), store, device_type))


def follow_torchrun(place: Place) -> None:
    """Be one of the processes that torchrun started beside the first one; ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (found := called()) is not None:
        store, device_type = found
        with suppress(RuntimeError):  # the first process is gone, and has said why
            follow(Processes(place, store, device_type))


def _end_with_stdin(folder: Path) -> None:
    sys.stdin.buffer.read()
    # Where the first process was killed, nobody else removes it.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
