"""A worker of a distributed run: it holds the model, and scores one shard after another."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from seqloss_cli.cli.failures import say
from seqloss_cli.cli.settings import HELD, output_choice
from seqloss_cli.core.errors import RunError, SeqlossError, UsageError
from seqloss_cli.core.urls import url_of
from seqloss_cli.results.resume import recorded_run
from seqloss_cli.results.shard_folders import ShardFolder, note_try, tries_of, tries_path
from seqloss_cli.results.shards import totals_at_end
from seqloss_cli.results.sinks import BusyFileError, local_path, partial_path

if TYPE_CHECKING:
    import typer

    from seqloss_cli.cli.settings import OutputPlan

Body = Callable[["typer.Context", "OutputPlan"], int]
"""Scores what a command was given and writes it; returns the exit code."""
MOST_TRIES = 5
"""Workers that one shard may take with it before the run gives it up."""
_WAITS, _SECONDS = 60, 1.0
"""For a process that has a shard's file still: it is of a run or a node that just ended."""
_SPEED = ("device", "threads", "batch_tokens", "path", "compiled", "devices", "share_prefix")
_KEY = "SEQLOSS_API_KEY"


@dataclass(frozen=True)
class Call:
    """A command that workers are to run: picklable, so that it can go to other machines."""

    body: Body
    command: str
    params: Mapping[str, Any]
    """Values of all parameters, whatever gave them."""
    sources: Mapping[str, Any]
    """The origin of each of them: the command line, a variable, a file or its default."""
    flags: Mapping[str, str]
    folder: ShardFolder
    n_shards: int
    run: str
    """Tells this run of the driver from an earlier one."""
    directory: str = field(default_factory=os.getcwd)
    """Names of files are relative to it."""
    seqloss: str = field(default_factory=lambda: version("seqloss"))
    key: str | None = field(default_factory=lambda: os.environ.get(_KEY), repr=False)

    def context(
        self, index: int, meta: dict[str, Any], closers: list[Callable[[], object]]
    ) -> typer.Context:
        """Return the context of the command for one shard, as if it had been given `--shard`;
        `closers` take what is to be called at its end."""
        own = {
            "shard": f"{index}/{self.n_shards}",
            "output": Path(self.folder.shard(index, self.n_shards)),
            "resume": True,
        }
        others = {"json": False, "jsonl": False, "format": None, "force": False, "report": None}
        others["output_ranked"] = None
        params = {k: {**others, **own}.get(k, v) for k, v in self.params.items()}
        # Of the enumeration whose members are here: its module is the parser's own affair.
        typed = type(next(iter(self.sources.values()))).COMMANDLINE
        sources = {**self.sources, **dict.fromkeys(own, typed)}
        command = SimpleNamespace(
            name=self.command,
            params=[SimpleNamespace(name=k, opts=[flag]) for k, flag in self.flags.items()],
        )
        # A stand-in: the parser made its values already, and there is no command line here.
        made = SimpleNamespace(
            params=params,
            command=command,
            meta=meta,
            obj=None,
            get_parameter_source=sources.get,
            call_on_close=closers.append,
        )
        return cast("typer.Context", made)


class ShardWorker:
    """Scores shards, each into its file; the model is loaded once, by the first of them."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._meta: dict[str, Any] = {HELD: {}}
        self._host, self._ready = socket.gethostname(), False

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Score the shards of a batch; returns an answer of each, as JSON."""
        return {"answer": [json.dumps(self.score(int(index))) for index in batch["shard"]]}

    def score(self, index: int) -> dict[str, Any]:
        """Score one shard; returns what came of it: whatever fails is told, and not raised."""
        began, answer = time.monotonic(), {"shard": index, "host": self._host, "pid": os.getpid()}
        with _messages() as messages:
            try:
                self._prepare()
                answer["lost"] = self._begin(index)
                self._run(index)
                answer["n_rows"] = self._n_rows(index)
            except SeqlossError as error:
                answer |= {"error": str(error), "exit_code": error.exit_code}
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                answer |= {"error": what, "exit_code": 1}
        answer["messages"] = messages
        return answer | {"seconds": time.monotonic() - began}

    def _prepare(self) -> None:
        """Stand where the driver does. Raises UsageError where this machine is no such place."""
        if self._ready:
            return
        if (own := version("seqloss")) != self._call.seqloss:
            raise UsageError(
                f"{self._host} has seqloss {own}, and the driver {self._call.seqloss}: install one "
                "version on all nodes"
            )
        try:
            os.chdir(self._call.directory)
        except OSError as error:
            raise UsageError(
                f"{self._host} has no directory {self._call.directory} ({error.strerror}): inputs, "
                "model and shards must have the same paths on all nodes"
            ) from error
        if url_of(self._call.folder.place) is None and not os.path.isdir(self._call.folder.place):  # noqa: PTH112
            raise UsageError(
                f"{self._host} does not see the shards' directory {self._call.folder.shown}: give "
                "--shard-dir a directory that all nodes share, or a URL"
            )
        if self._call.key is not None:
            os.environ.setdefault(_KEY, self._call.key)
        self._ready = True

    def _file(self, index: int) -> Path:
        """Return where a shard grows on this machine."""
        name = Path(self._call.folder.shard(index, self._call.n_shards))
        return cast(Path, local_path(name))

    def _begin(self, index: int) -> dict[str, Any] | None:
        """Write down who has the shard; returns who had it before and was lost, if one was.

        Raises RunError for a shard that ended all who had it.
        """
        file, run = self._file(index), self._call.run
        before = tries_of(file, run)
        if len(before) >= MOST_TRIES:
            last = before[-1]
            raise RunError(
                f"{len(before)} workers ended without a word while they scored it, the last "
                f"process {last['pid']} on {last['host']}. Where memory is short: fewer --workers, "
                f"a smaller --batch-tokens. What was finished is in {partial_path(file)}"
            )
        note_try(file, run, self._host)
        return before[-1] if before else None

    def _run(self, index: int) -> None:
        for n_left in range(_WAITS, -1, -1):
            try:
                self._attempt(index)
                break
            except BusyFileError:
                if not n_left:
                    raise
                time.sleep(_SECONDS)
        tries_path(self._file(index)).unlink(missing_ok=True)

    def _attempt(self, index: int) -> None:
        for is_last in (False, True):
            closers = list[Callable[[], object]]()
            context = self._call.context(index, self._meta, closers)
            try:
                self._call.body(context, output_choice(context))
                for close in closers:
                    close()
                return
            except BusyFileError:
                raise
            except UsageError:
                if is_last or not self._drop_foreign_rows(index):
                    raise

    def _drop_foreign_rows(self, index: int) -> bool:
        """Remove the rows of a shard that a machine of another kind began: they would differ in
        their last digits within one file. Returns whether there were any."""
        partial, scorer = partial_path(self._file(index)), self._meta[HELD].get("scorer")
        if scorer is None or not partial.exists():
            return False
        there, here = recorded_run(partial) or {}, scorer.run_info(self._call.command).as_json()
        if differing := [key for key in _SPEED if there.get(key) != here.get(key)]:
            what = ", ".join(
                f"{key} {there.get(key)} there, {here.get(key)} here" for key in differing
            )
            say(f"note: shard {index} is begun anew on {self._host}: {what}")
            partial.unlink()
        return bool(differing)

    def _n_rows(self, index: int) -> int:
        totals = totals_at_end(self._call.folder.shard(index, self._call.n_shards)) or {}
        return int(totals.get("n_sequences", 0)) + int(totals.get("n_rejected", 0))


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collect the warnings and notes that a command writes on stderr meanwhile."""
    found = list[str]()
    with redirect_stderr(io.StringIO()) as stream:
        try:
            yield found
        finally:
            for line in stream.getvalue().splitlines():
                text = line.removeprefix("seqloss: ")
                # The driver counts the ids of all shards.
                if text.startswith(("warning: ", "note: ")) and " came before" not in text:
                    found.append(text)
