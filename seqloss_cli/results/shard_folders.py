"""A directory of shards that several processes write, and the plan of its run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RowError, RunError, UsageError
from seqloss_cli.core.urls import is_url, shown_name, url_of
from seqloss_cli.inputs.streams import open_stored
from seqloss_cli.results.shards import totals_at_end
from seqloss_cli.results.sinks import partial_path

_PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """The place of the shards of one run."""

    place: str
    """A directory, or a URL of one."""

    @classmethod
    def of(cls, place: Path) -> ShardFolder:
        """Return the folder of a path or a URL that came as one."""
        return cls(url_of(place) or os.fspath(place))

    @property
    def shown(self) -> str:
        """Return its name for messages."""
        return shown_name(self.place)

    def shard(self, index: int, of: int) -> str:
        """Return the name of a shard's file."""
        return self._inside(f"{index:05d}-of-{of:05d}.jsonl")

    def read_plan(self) -> Mapping[str, Any] | None:
        """Return the plan of the run whose shards are here; None where there is none.

        Raises UsageError for what is no plan.
        """
        name = self._inside(_PLAN)
        try:
            with open_stored(name) as stream:
                plan = json.loads(stream.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UsageError(f"{shown_name(name)} cannot be read: {error}") from error
        if not isinstance(plan, dict) or not isinstance(plan.get("shards"), int):
            raise UsageError(f"{shown_name(name)} is no plan of shards")
        return plan

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan, all of it or nothing. Raises RunError where that fails."""
        name = self._inside(_PLAN)
        text = json.dumps(plan, indent=1, ensure_ascii=False) + "\n"
        try:
            if is_url(self.place):
                from seqloss_cli.inputs.remote import put_whole

                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder, _PLAN)
                    file.write_text(text)
                    put_whole(file, name)
                return
            Path(self.place).mkdir(parents=True, exist_ok=True)
            partial = partial_path(Path(name))
            partial.write_text(text)
            partial.replace(name)
        except OSError as error:
            raise RunError(f"{shown_name(name)} cannot be written: {error}") from error

    def whole(self, of: int) -> dict[int, int]:
        """Return the shards whose files are whole, and how many rows each has."""
        found = {}
        for index in range(of):
            with suppress(FileNotFoundError, RowError):
                if (totals := totals_at_end(self.shard(index, of))) is not None:
                    found[index] = int(totals["n_sequences"]) + int(totals["n_rejected"])
        return found

    def has_rows(self, of: int) -> bool:
        """Return whether a shard is whole, or begun here."""
        if is_url(self.place):
            return bool(self.whole(of))
        names = [Path(self.shard(index, of)) for index in range(of)]
        return any(each.exists() or partial_path(each).exists() for each in names)

    def clear(self, of: int) -> None:
        """Remove the shards and the plan, and a directory that is empty then; without shards do
        nothing."""
        if not of:
            return
        names = [self.shard(index, of) for index in range(of)]
        if is_url(self.place):
            from seqloss_cli.inputs.remote import file_system

            system, _ = file_system(self.place)
            for name in (*names, self._inside(_PLAN)):
                with suppress(FileNotFoundError):
                    system.rm_file(file_system(name)[1])
            return
        # The plan last: without it nothing tells what the shards are of.
        for path in (*map(Path, names), Path(self._inside(_PLAN))):
            for each in (path, partial_path(path), tries_path(path)):
                each.unlink(missing_ok=True)
        with suppress(OSError):
            Path(self.place).rmdir()

    def _inside(self, name: str) -> str:
        return f"{self.place.rstrip('/')}/{name}"


def tries_path(path: Path) -> Path:
    """Return the file beside a shard that tells which processes began it."""
    return Path(f"{path}.tries")


def tries_of(path: Path, run: str) -> list[dict[str, Any]]:
    """Return the processes that began a shard in this run of the driver, in order."""
    return [each for each in _lines(tries_path(path)) if each.get("run") == run]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with suppress(ValueError):  # of a process that ended while it wrote
                yield json.loads(line)


def note_try(path: Path, run: str, host: str) -> None:
    """Write down that this process begins a shard."""
    with tries_path(path).open("a") as stream:
        stream.write(json.dumps({"run": run, "host": host, "pid": os.getpid()}) + "\n")


def require_same_plan(there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    """Raise UsageError with every difference between the plan of `what` and that of this run."""
    differences = [
        f"{key.replace('_', ' ')} {there.get(key)!r:.80} there and {here[key]!r:.80} here"
        for key in ("command", "inputs", "input_bytes")
        if there.get(key) != here[key]
    ]
    given, own = there.get("options") or {}, here["options"]
    differences += [
        f"{flag} {given.get(flag, 'not given')} there and {own.get(flag, 'not given')} here"
        for flag in sorted({**given, **own})
        if given.get(flag) != own.get(flag)
    ]
    if differences:
        raise UsageError(
            f"--resume: {what} is of another run: {'; '.join(differences)}. Give what was given "
            "then, or --force to begin anew"
        )
