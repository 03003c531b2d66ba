"""Ray: the cluster, how many workers it has room for, and shards that go to them."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

from seqloss_cli.cli.failures import say
from seqloss_cli.cli.shard_worker import Call, ShardWorker
from seqloss_cli.core.errors import RunError, UsageError, load_extra

_LOCAL = {
    # No statistics go out, a machine that is busy may take its time to start, and the cluster
    # listens on loopback alone: of Ray's servers whoever reaches them can ask for anything.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""Variables of a cluster of this machine alone, where they are not set."""
_STORE_BYTES = 100 << 20
"""Memory of Ray's store on this machine: numbers of shards alone go through it."""
_WORKERS_HERE = 2
_CONNECT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The workers that the options ask for; None is for what the cluster has."""

    workers: int | None
    threads: int | None
    gpus: float | None
    """GPUs of each worker."""
    uses_gpus: bool
    """Losses are computed by workers, on whatever device is there."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster."""

    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers of a run."""

    workers: int
    cpus: int
    """CPUs that each takes of the cluster; its threads, where a model runs on them."""
    gpus: float
    threads: int | None
    """Threads of torch in each; None leaves them to torch."""


def pool_here(wanted: Wanted, n_cores: int, n_gpus: int) -> Pool:
    """Return the workers of this machine alone. Raises UsageError for GPUs that it has not."""
    gpus = _gpus_of(wanted, n_gpus)
    if gpus > n_gpus:
        raise UsageError(
            f"--gpus-per-worker {gpus:g}: this machine has {n_gpus} GPUs; --ray-address names a "
            "cluster"
        )
    n = wanted.workers or (int(n_gpus / gpus) if gpus else min(_WORKERS_HERE, n_cores))
    if gpus * n > n_gpus:
        raise UsageError(
            f"--workers {n}: with {gpus:g} GPUs each they need {gpus * n:g}, and this machine has "
            f"{n_gpus}"
        )
    # As many threads as cores in all: more would take turns.
    threads = wanted.threads or (None if gpus or not wanted.uses_gpus else max(1, n_cores // n))
    return Pool(n, threads or 1, gpus, threads)


def pool_of(wanted: Wanted, nodes: Sequence[Node]) -> Pool:
    """Return the workers of a cluster: by default one for each of its GPUs, or else machines."""
    nodes = [node for node in nodes if node.cpus or node.gpus] or [Node(1, 0)]
    gpus = _gpus_of(wanted, max(node.gpus for node in nodes))
    if gpus:
        n = wanted.workers or sum(int(node.gpus / gpus) for node in nodes) or 1
        return Pool(n, wanted.threads or 1, gpus, wanted.threads)
    n = wanted.workers or len(nodes)
    threads = wanted.threads
    if threads is None and wanted.uses_gpus:
        # One CPU of each machine is left for reading.
        smallest = min(node.cpus for node in nodes) - 1
        threads = max(1, smallest // -(-n // len(nodes)))
    return Pool(n, threads or 1, 0, threads)


def _gpus_of(wanted: Wanted, n_there: int) -> float:
    if not wanted.uses_gpus:
        return wanted.gpus or 0
    return (1 if n_there else 0) if wanted.gpus is None else wanted.gpus


def n_fitting(pool: Pool, nodes: Sequence[Node]) -> int:
    """Return how many of the workers the cluster has room for as it is."""
    room = 0
    for node in nodes:
        fits = node.cpus // pool.cpus
        room += min(fits, int(node.gpus / pool.gpus)) if pool.gpus else fits
    return min(room, pool.workers)


class RayMessages(io.TextIOBase):
    """Takes the place of stdout, on which Ray tells of errors: results alone are to stand there.

    Why a worker ended is kept; what else Ray says is told as a note.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._causes = tell, dict[int, str]()
        self._told = set[str]()

    def write(self, text: str) -> int:
        """Take what Ray prints: a message begins with who says it, and lines of logs follow."""
        for line in _COLOURS.sub("", text).splitlines():
            if found := _WORKER_END.search(line):
                self._causes[int(found["pid"])] = found["why"]
            elif (said := _MESSAGE.match(line)) and not any(known in line for known in _KNOWN):
                words = " ".join(said[1].split())
                if words not in self._told:
                    self._told.add(words)
                    self._tell(f"note: Ray: {words:.300}")
        return len(text)

    def cause(self, pid: int) -> str:
        """Return why a process ended, in Ray's words; empty where it did not say."""
        return self._causes.get(pid, "")


_MESSAGE = re.compile(r"(\([a-z].*)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WORKER_END = re.compile(r"Worker PID: (?P<pid>\d+)\b.*?Worker exit detail: (?P<why>[^(]{1,200}?)"
                         r"(?=\.?\s+Some common causes|\.\s*$|\()")  # fmt: skip
_KNOWN = ("so the task will be retried", "Worker exit type")


def require_ray() -> None:
    """Raise UsageError where Ray is not installed."""
    load_extra("ray", "--distribute ray", "ray", "ray.data")


@contextmanager
def connected(
    address: str | None, wanted: Wanted, debug: bool
) -> Iterator[tuple[Pool, list[Node], RayMessages]]:
    """Join a cluster, or make one of this machine's cores; yields the workers that it is to have,
    its machines, and what Ray says. Raises RunError where that fails."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        for name, value in _LOCAL.items():
            os.environ.setdefault(name, value)
    if not debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    require_ray()
    import ray

    messages = RayMessages(say)
    try:
        with redirect_stdout(messages):
            pool, nodes = _joined(address, wanted, debug)
            yield pool, nodes, messages
    except (ray.exceptions.RayError, ConnectionError, TimeoutError, ValueError) as error:
        raise RunError(f"Ray ({address or 'here'}): {_first_lines(error)}") from error
    finally:
        with suppress(Exception):
            ray.shutdown()


def _joined(address: str | None, wanted: Wanted, debug: bool) -> tuple[Pool, list[Node]]:
    import ray

    level = logging.INFO if debug else logging.CRITICAL
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": level}
    with nullcontext() if debug else _native_words_hidden():
        if address is not None:
            _require_answer(address)
            ray.init(address, **options)
            nodes = _nodes(ray.nodes())
            return pool_of(wanted, nodes), nodes
        pool = pool_here(wanted, len(os.sched_getaffinity(0)), _n_gpus_here())
        # Two more CPUs than workers take, though they are not there: one is Ray's for reading, and
        # with none left a run that goes on would wait for ever.
        n_cpus = pool.workers * pool.cpus + 2
        ray.init(
            "local",
            num_cpus=n_cpus,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            **options,
        )
        return pool, []


def _require_answer(address: str) -> None:
    """Raise ConnectionError where nothing answers: Ray itself would try for many minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():  # `auto`, which Ray finds by itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error.strerror or error})") from error


@contextmanager
def _native_words_hidden() -> Iterator[None]:
    """Hide what the library itself writes to stderr while it starts; ours goes there still."""
    stream = sys.stderr
    stream.flush()
    try:
        own = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        with os.fdopen(os.dup(own), "w", encoding=stream.encoding, errors="replace") as shown:
            sys.stderr = shown
            try:
                yield
            finally:
                sys.stderr = stream
    finally:
        os.dup2(own, 2)
        os.close(own)


def _n_gpus_here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _nodes(found: Sequence[Mapping[str, Any]]) -> list[Node]:
    alive = [each.get("Resources", {}) for each in found if each.get("Alive")]
    return [Node(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in alive]


def answers(call: Call, shards: Sequence[int], pool: Pool) -> Iterator[Mapping[str, Any]]:
    """Have workers score the shards; yields what came of each, as it is done.

    A shard whose worker is lost goes to another one. Raises RunError where Ray gives up.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    # A worker may be lost while it starts, too, as often as later.
    context.max_consecutive_actor_init_deaths = 3 * pool.workers
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows = ray.data.from_items([{"shard": n} for n in shards], override_num_blocks=len(shards))
    workers = min(pool.workers, len(shards))
    results = rows.map_batches(
        ShardWorker,
        fn_constructor_args=(call,),
        batch_size=1,
        # One shard at a time: a second would wait behind a slow one while others are idle.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    for row in results.iter_rows():
        yield json.loads(row["answer"])


def _first_lines(error: BaseException) -> str:
    """Return what went wrong: Ray's errors end with their cause, behind a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines) == 1 else f"{lines[0]:.200} … {lines[-1]:.400}"
