"""Processes that torchrun started: which of them this one is, and how the others wait for it.

Nothing heavy is imported at the top: the command line asks before it reads its words.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

_MARK = "TORCHELASTIC_RUN_ID"
_NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate")
_BEGIN, _END = "seqloss/begin", b"end"
_POLL = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a process among those of one model."""

    rank: int
    size: int
    local_rank: int
    """Its number on this machine, which is that of its GPU."""


def place_of_torchrun() -> Place | None:
    """Return the place that torchrun gave to this process; None where another program started it.

    Variables alone do not tell: schedulers set some of them, and programs that torchrun started
    hand all of them on to the programs that they start themselves.
    """
    values = {name: os.environ.get(name, "") for name in (_MARK, *_NEEDED)}
    if not all(values.values()) or not _is_launcher(os.getppid()):
        return None
    numbers = [values[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(number.isdigit() for number in numbers):
        return None
    return Place(*map(int, numbers))


def _is_launcher(pid: int) -> bool:
    """Return whether a process is torchrun; True where the system does not tell."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self/cmdline").exists()
    names = {os.path.basename(word.decode("utf-8", "replace")) for word in words}  # noqa: PTH119
    return not names.isdisjoint((*_LAUNCHERS, "run.py", "launch.py"))


class Meeting:
    """The first process of torchrun, which may or may not need the others."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._store: Any = None

    def begin(self, device_type: str) -> Any:
        """Have the others follow; returns the store by which all meet."""
        self._store = _store()
        self._store.set(_BEGIN, device_type)
        return self._store

    def end(self) -> None:
        """Let the others end, where they were not needed."""
        if self._store is None:
            with suppress(Exception):
                _store().set(_BEGIN, _END)


def join() -> Place | None:
    """Return the place of a process that is to follow the first one of torchrun; None in every
    other, of which the first one waits to be needed."""
    global meeting
    place = place_of_torchrun()
    if place is None or place.size == 1:
        return None
    if place.rank:
        return place
    meeting = Meeting(place)
    # The default of --tensor-parallel: commands see it as they see any other value.
    os.environ["SEQLOSS_TENSOR_PARALLEL"] = str(place.size)
    return None


def called() -> tuple[Any, str] | None:
    """Wait until the first process needs the others: the store by which all meet, and the type of
    their devices. None where it ends without them."""
    store = _store()
    while True:
        try:
            store.wait([_BEGIN], _POLL)
            break
        except RuntimeError as error:
            # The first process may read and refuse for long, but its end closes the store.
            if "imeout" not in str(error):
                return None
    device_type = store.get(_BEGIN)
    return None if device_type == _END else (store, device_type.decode())


meeting: Meeting | None = None
"""Set in the first of the processes that torchrun started."""


def _store() -> Any:
    import torch.distributed as dist

    # Whether torchrun or the first process keeps the store, torch knows.
    store, _, _ = next(iter(dist.rendezvous("env://")))  # type: ignore[attr-defined]
    return store
