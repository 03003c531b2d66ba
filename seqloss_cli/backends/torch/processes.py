"""Processes that have a part of one model each: how they start, follow the first one, and end.

The first process leads: it alone reads, decides, writes and speaks. It tells the others what to
compute, does so itself, and hears from each how it went. Every wait has an end: where a process is
gone, or is not in step, the first one says so and ends the run.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from seqloss_cli.backends.torch import torchrun
from seqloss_cli.backends.torch.torchrun import Place
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.models.model_loading import is_out_of_memory

T = TypeVar("T")
COLLECTIVE_SECONDS = 600
"""Seconds that one sum over processes may take: the others compute a layer in the meantime."""
ANSWER_SECONDS = 60
"""Seconds until a process is out of step that does not say how its part of a batch went."""
START_SECONDS = 300
"""Seconds that the others may take to start."""
_GRACE_SECONDS = 20
_FOREVER = timedelta(days=3650)
_TAIL = 2000
_FOLLOWING = "seqloss_cli.backends.torch.following"
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_OF_OTHER_LAUNCHERS = ("TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_", "SLURM_")


class Processes:
    """The processes of one model, as one of them sees them."""

    def __init__(self, place: Place, store: Any, device_type: str) -> None:
        self.place, self.threads = place, max(1, torch.get_num_threads())
        if device_type == "cuda":
            torch.cuda.set_device(place.local_rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=COLLECTIVE_SECONDS),
        )
        # Apart from the sums of the model: a process that gave up in the middle of a batch must not
        # take part in a sum with what it wants to say. On CPUs, where a peer's end shows at once.
        self._commands = dist.new_group(backend="gloo", timeout=_FOREVER)
        self._answers = dist.new_group(backend="gloo", timeout=timedelta(seconds=ANSWER_SECONDS))

    def gather(self, own: Tensor) -> Sequence[Tensor]:
        """Return M x W tensors of all processes, in order, for that of this one."""
        found = [torch.empty_like(own) for _ in range(self.place.size)]
        dist.all_gather(found, own.contiguous())
        return found

    def receive(self) -> Any:
        """Wait for what the first process tells."""
        command = [None]
        dist.broadcast_object_list(command, src=0, group=self._commands)
        return command[0]

    def answer(self, error: Exception | None, slow: bool) -> list[tuple[str, str]]:
        """Exchange how it went: for each process a kind of error, or nothing, and its text."""
        found: list[Any] = [None] * self.place.size
        group = self._commands if slow else self._answers
        dist.all_gather_object(found, self.kind_of(error), group=group)
        return found

    @staticmethod
    def kind_of(error: Exception | None) -> tuple[str, str]:
        """Return what other processes are told of an error."""
        kind = "" if error is None else "memory" if is_out_of_memory(error) else "error"
        return kind, " ".join(str(error or "").split())[:500]

    def leave(self) -> None:
        """End what processes have in common, in each of them."""
        with suppress(Exception):
            dist.destroy_process_group()


class Leader(Processes):
    """The first process, which tells the others what to do."""

    def __init__(
        self,
        place: Place,
        store: Any,
        device_type: str,
        others: Sequence[subprocess.Popen[bytes]] = (),
        folder: Path | None = None,
    ) -> None:
        """`others` are those that this one started, whose last words are in the folder."""
        super().__init__(place, store, device_type)
        if others and "OMP_NUM_THREADS" not in os.environ:
            self.threads = max(1, self.threads // place.size)
        self._others, self._folder = others, folder
        self._lock = threading.RLock()
        self.is_in_step, self._ended = True, False
        self._waits = False
        self._parts: list[tuple[weakref.ref[Any], int]] = []
        self._gone: list[int] = []
        """Parts whose model is no longer in this process, and is to go from the others."""
        self._n_parts = 0
        for rank, process in enumerate(others, start=1):
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def load(self, command: Any, load: Callable[[], T], model_of: Callable[[T], Any]) -> T:
        """Have every process load its part of a model."""
        self._n_parts += 1
        number = self._n_parts
        found = self.lead(("load", number, *command), load, slow=True)
        model = model_of(found)
        self._parts.append((weakref.ref(model), number))
        weakref.finalize(model, self._gone.append, number)
        return found

    def part_of(self, model: Any) -> int | None:
        """Return the number of the parts of a model; None where it is whole in this process."""
        return next((number for of, number in self._parts if of() is model), None)

    def lead(self, command: Any, compute: Callable[[], T], slow: bool = False) -> T:
        """Have the others do what the command says while this process computes its part.

        Raises the error of any: memory that did not suffice in one did not in all. RunError where a
        process is gone or out of step.
        """
        with self._lock:
            self._require_in_step()
            self.is_in_step, self._waits = False, True
            gone, self._gone[:] = tuple(self._gone), []
            error = found = None
            try:
                self._tell(("drop", gone), command) if gone else self._tell(command)
                try:
                    found = compute()
                except Exception as own:
                    error = own
                answers = self.answer(error, slow)
            except RuntimeError as lost:
                raise self._lost(error or lost) from (error or lost)
            finally:
                self._waits = False
            self.is_in_step = True
        _raise_first(error, answers)
        return found  # type: ignore[return-value]

    def _tell(self, *commands: Any) -> None:
        for command in commands:
            dist.broadcast_object_list([command], src=0, group=self._commands)

    def _require_in_step(self) -> None:
        if not self.is_in_step:
            raise self._lost(None)

    def _lost(self, error: Exception | None) -> RunError:
        """Return what to say where the others cannot be led any more."""
        # What ended a connection has ended, or is about to.
        deadline = time.monotonic() + 5
        while self._others and error is not None and time.monotonic() < deadline:
            if any(process.poll() is not None for process in self._others):
                break
            time.sleep(0.05)
        for rank, process in enumerate(self._others, start=1):
            if process.poll() is not None:
                return RunError(self._how_it_ended(rank, process.returncode))
        if error is not None and is_out_of_memory(error):
            return RunError(
                "out of memory in one of the processes of --tensor-parallel, and not in the "
                "others, which cannot go on without it: lower --batch-tokens"
            )
        why = f" ({' '.join(str(error).split())[:200]})" if error is not None else ""
        return RunError(
            f"the {self.place.size} processes of --tensor-parallel are out of step{why}: one of "
            "them has ended, or hangs"
        )

    def _how_it_ended(self, rank: int, code: int) -> str:
        how = f"exit code {code}"
        if code < 0:
            with suppress(ValueError):
                how = signal.Signals(-code).name
            how += ", as the system ends what takes too much memory" if code == -9 else ""
        last = ""
        if self._folder is not None and (log := _log(self._folder, rank)).is_file():
            last = _last_words(log, "; its last words: ")
        return f"process {rank} of --tensor-parallel {self.place.size} ended ({how}){last}"

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """End this process where another one ended, and this one waits for it without an end."""
        process.wait()
        time.sleep(_GRACE_SECONDS)
        # Sums on CPUs fail at once. Those on GPUs wait, in code that nothing else interrupts.
        if self._waits and not self._ended:
            sys.stderr.write(f"seqloss: error: {self._how_it_ended(rank, process.returncode)}\n")
            sys.stderr.flush()
            os._exit(1)

    def close(self) -> None:
        """End the other processes."""
        if self._ended:
            return
        self._ended = True
        if self.is_in_step:
            with suppress(Exception):
                self._tell(("end",))
                self.leave()
        for process in self._others:
            # The others end with their standard input, whatever they do.
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        for process in self._others:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _raise_first(own: Exception | None, answers: Sequence[tuple[str, str]]) -> None:
    """Raise the error of a batch, if there is one in any process."""
    lacking = [(rank, text) for rank, (kind, text) in enumerate(answers) if kind == "memory"]
    if lacking and (own is None or not is_out_of_memory(own)):
        rank, text = lacking[0]
        raise torch.OutOfMemoryError(f"process {rank}: {text}") from own
    if own is not None:
        raise own
    for rank, (kind, text) in enumerate(answers):
        if kind:
            raise RunError(f"process {rank} of {len(answers)}: {text}")


# -- processes that the first one starts ----------------------------------------------------------


def start_others(n: int, device_type: str) -> Leader:
    """Start the other processes on this machine, and lead them.

    They meet by a file in a folder of this user's own, and speak over the loopback interface.
    """
    if dist.is_initialized():
        raise UsageError(
            "--tensor-parallel: this process uses torch.distributed already, for something else"
        )
    folder = Path(tempfile.mkdtemp(prefix="seqloss-"))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, _LOOPBACK)
    others = [_start(rank, n, device_type, folder) for rank in range(1, n)]
    try:
        _wait_until_ready(others, folder)
        store = file_store(folder, n)
        leader = Leader(Place(0, n, 0), store, device_type, others, folder)
    except BaseException:
        for process in others:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return leader


def file_store(folder: Path, n: int) -> Any:
    """Return what `n` processes meet by: a file, so that nothing listens."""
    return dist.FileStore(str(folder / "store"), n)  # type: ignore[attr-defined]


def _start(rank: int, n: int, device_type: str, folder: Path) -> subprocess.Popen[bytes]:
    code = f"from {_FOLLOWING} import follow_parent; follow_parent()"
    words = [str(rank), str(n), device_type, str(folder)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OF_OTHER_LAUNCHERS)
    }
    # transformers takes the number of the GPU from there.
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n)}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")])
    )
    with _log(folder, rank).open("wb") as log:
        # -P, or files of the working directory would be imported in the place of packages.
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, *words],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )


def _log(folder: Path, rank: int) -> Path:
    return folder / f"process-{rank}.log"


def _last_words(log: Path, before: str) -> str:
    """Return the last line of a log, behind something else; nothing where there is none."""
    # Lines of tracebacks are indented.
    lines = log.read_bytes()[-_TAIL:].decode("utf-8", "replace").splitlines()
    lines = [line for line in lines if line[:1].strip()]
    return before + lines[-1] if lines else ""


def _wait_until_ready(others: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    missing = dict(enumerate(others, start=1))
    while missing:
        for rank, process in list(missing.items()):
            if (folder / f"ready-{rank}").exists():
                del missing[rank]
            elif process.poll() is not None or time.monotonic() > deadline:
                last = _last_words(_log(folder, rank), ": ")
                raise RunError(f"process {rank} of --tensor-parallel did not start{last}")
        time.sleep(0.02)


# -- the processes of this run --------------------------------------------------------------------

_current: Leader | None = None


def current() -> Leader | None:
    """Return the leader of this process, if there are others."""
    return _current


def lead_processes(n: int, device_type: str) -> Leader:
    """Return what leads `n` processes: those that torchrun started, or new ones.

    Raises UsageError where torchrun started another number.
    """
    global _current
    meeting = torchrun.meeting
    if meeting is not None and meeting.place.size != n:
        raise UsageError(f"--tensor-parallel {n}: torchrun started {meeting.place.size} processes")
    if _current is not None and (_current.place.size != n or not _current.is_in_step):
        if meeting is not None:
            raise RunError("the processes of torchrun are out of step: start them anew")
        _current.close()
        _current.leave()
        _current = None
    if _current is None and meeting is not None:
        _current = Leader(meeting.place, meeting.begin(device_type), device_type)
    elif _current is None:
        _current = start_others(n, device_type)
    atexit.register(_current.close)
    return _current
