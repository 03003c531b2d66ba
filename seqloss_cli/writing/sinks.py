"""Where output bytes go: stdout, or a file that exists under its name only when it is whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from seqloss_cli.errors import RunError, UsageError
from seqloss_cli.paths import partial_path


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Raises UsageError when the file or its partial one exists, unless `force` is given, and when
    it could not be written at all."""
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: there is no directory {path.parent}")
    if path.exists() and not path.is_file():
        raise UsageError(f"-o {path} is no regular file; leave -o out to write to stdout")
    for existing in (path, partial_path(path)):
        if existing.exists() and not force:
            raise UsageError(f"{existing} exists; --force writes over it")


@contextmanager
def open_sink(path: Path | None, force: bool) -> Iterator[BinaryIO]:
    """Stdout, or `FILE.partial`, renamed to FILE when the block ends without an exception.

    Raises UsageError when one of the two exists and `force` is not given, RunError when writing
    fails (a full disk). After an error the partial file stays, so that its rows can be used.
    """
    if path is None:
        if sys.stdout is None:
            raise RunError("stdout is closed; -o FILE writes to a file")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    refuse_to_overwrite(path, force)
    partial = partial_path(path)
    try:
        with partial.open("wb" if force else "xb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        _rename(partial, path, force)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise RunError(f"{partial} cannot be written: {error.strerror}") from error


def _rename(partial: Path, path: Path, force: bool) -> None:
    """Without `force` a file that came while we worked is left alone."""
    if force:
        partial.replace(path)
        return
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        raise RunError(f"{path} came into being meanwhile; the results are in {partial}") from None
    except OSError:  # a file system without hard links
        partial.replace(path)
    else:
        partial.unlink()
