"""Open an input, decompress it, and cut it into lines of bounded length."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from seqloss_cli.core.errors import RowError

STDIN = "-"
BOM = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_CHUNK = 1 << 16
_COMPRESSED_CHUNK = 256  # zstd may make megabytes of it, and cannot be told to stop


@contextmanager
def open_input(name: str) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The decompressed bytes of a file or of stdin (`-`), and how far the stored file was read.

    Raises RowError when it cannot be opened, and when reading it fails half-way.
    """
    try:
        if name == STDIN:
            if sys.stdin is None:
                raise RowError("unreadable", "stdin is closed")
            stdin = _own_stdin()
            yield _decompressed(stdin, _suffix_by_magic(stdin)), lambda: 0
            return
        path = Path(name)
        with path.open("rb") as stored:
            position = stored.tell if stored.seekable() else lambda: 0
            yield _decompressed(stored, path.suffix), position
    except IsADirectoryError:
        raise RowError("directory", "is a directory; name the files in it") from None
    except FileNotFoundError:
        raise RowError("no_such_file", "no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise RowError("unreadable", f"cannot be read: {_reason(error)}") from error


def _own_stdin() -> BinaryIO:
    """stdin by a buffer of our own: a thread that waits in Python's own keeps it locked, which the
    end of the process does not survive."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except (OSError, AttributeError):  # no file, as in tests
        return sys.stdin.buffer


def _suffix_by_magic(stream: BinaryIO) -> str:
    """stdin has no name to go by; no UTF-8 text begins like these."""
    peek = getattr(stream, "peek", None)
    beginning = peek(4)[:4] if peek else b""
    return next((suffix for magic, suffix in _MAGIC.items() if beginning.startswith(magic)), "")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _decompressed(stored: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stored))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdStream(stored), _CHUNK))
    return stored


class _ZstdStream(io.RawIOBase):
    """All frames of a zstd file; a cut one is an error, as in gzip."""

    def __init__(self, stored: BinaryIO) -> None:
        import zstandard

        self._stored = stored
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame = self._new_frame()
        self._begun = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame, self._begun = self._new_frame(), False
            else:
                rest = b""
            compressed = rest or self._stored.read(_COMPRESSED_CHUNK)
            if not compressed:
                if self._begun:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            self._begun = True
            try:
                self._ready = memoryview(self._frame.decompress(compressed))
            except self._error as error:
                raise OSError(str(error)) from error
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def bounded_lines(stream: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """Lines without their ends (LF or CRLF); None for one of more than `max_bytes` bytes."""
    while line := stream.readline(max_bytes + 2):
        whole = line.endswith(b"\n")
        content = line[:-1].removesuffix(b"\r") if whole else line
        if len(content) <= max_bytes and (whole or len(line) < max_bytes + 2):
            yield content
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(_CHUNK)
        yield None
