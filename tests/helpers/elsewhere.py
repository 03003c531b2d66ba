"""A file system in memory, as fsspec has it, whose requests fail as they are told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from seqloss_cli.inputs import remote


class FlakyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """In memory; each method fails, or cuts what it gives, as often as `faults` says."""

    protocol = "flaky"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    cachable = False
    faults: Counter[str] = Counter()
    """Method, or `short`, to how often it fails from now on."""
    ranges: list[int] = []
    """Bytes of each range that was given."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))

    def _fail(self, method: str) -> None:
        if self.faults[method] > 0:
            self.faults[method] -= 1
            raise OSError(f"{method}: connection reset")

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        self._fail("cat_file")
        data = bytes(super().cat_file(path, start=start, end=end, **kwargs))
        if self.faults["short"] > 0:
            self.faults["short"] -= 1
            data = data[: len(data) // 2]
        self.ranges.append(len(data))
        return data

    def info(self, path: str, **kwargs: Any) -> Any:
        self._fail("info")
        return super().info(path, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        if self.faults["half"] > 0:
            self.faults["half"] -= 1
            self.pipe_file(rpath, Path(lpath).read_bytes()[:20])
            raise OSError("half: connection reset")
        self._fail("put_file")
        super().put_file(lpath, rpath, **kwargs)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        self._fail("pipe_file")
        for kind, error in (("refused", PermissionError), ("missing", FileNotFoundError)):
            if self.faults[kind] > 0:
                self.faults[kind] -= 1
                raise error(f"{kind}: {path}")
        super().pipe_file(path, value, **kwargs)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self._fail("mv")
        super().mv(path1, path2, **kwargs)


@contextmanager
def flaky() -> Iterator[FlakyFileSystem]:
    """While it lasts, `flaky://` is such a file system, which is empty, and no attempt waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "WAITS", (0.0, 0.0))
        fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
        FlakyFileSystem.store.clear()
        FlakyFileSystem.pseudo_dirs[:] = [""]
        FlakyFileSystem.faults.clear()
        FlakyFileSystem.ranges.clear()
        yield FlakyFileSystem()
