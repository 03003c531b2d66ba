"""Where output bytes go: stdout, or a file that exists under its name only when it is whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from seqloss_cli.errors import RunError, UsageError


@contextmanager
def open_sink(path: Path | None, force: bool) -> Iterator[BinaryIO]:
    """Stdout, or `FILE.partial`, renamed to FILE when the block ends without an exception.

    Raises UsageError when one of the two exists and `force` is not given, RunError when writing
    fails (a full disk). After an error the partial file stays, so that its rows can be used.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = partial_path(path)
    for existing in (path, partial):
        if existing.exists() and not force:
            raise UsageError(f"{existing} exists; --force writes over it")
    try:
        with partial.open("wb" if force else "xb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(path)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise RunError(f"{partial} cannot be written: {error.strerror}") from error


def partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
