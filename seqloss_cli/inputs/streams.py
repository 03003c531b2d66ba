"""Open an input, decompress it, and cut it into lines of bounded length."""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from seqloss_cli.core.errors import LFS_MESSAGE, LFS_POINTER, RowError
from seqloss_cli.core.escaping import shown_path
from seqloss_cli.core.urls import bare_name, is_url

STDIN = "-"
BOM = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_KINDS = {
    b"\x1f\x8b": "gzip under another name: call it FILE.gz",
    b"\x28\xb5\x2f\xfd": "zstd under another name: call it FILE.zst",
    b"BZh91AY&SY": "bzip2: unpack it, `bunzip2 FILE`",
    b"\xfd7zXZ\0": "xz: unpack it, `unxz FILE`",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "Parquet: as FILE.parquet its rows are read, without --lines and --jsonl-input",
    b"ARROW1\0\0": "Arrow: as FILE.arrow its rows are read, without --lines and --jsonl-input",
    b"%PDF-": "a PDF: extract its text",
    b"\x89PNG\r\n": "a PNG picture: binary data",
    b"\xff\xd8\xff": "a JPEG picture: binary data",
    b"GGUF": "a GGUF model: --model FILE takes it",
}
"""Beginnings of files that are no text, with what they are."""
_TABLES = {b"PAR1": (".parquet",), b"ARROW1\0\0": (".arrow", ".feather")}
"""Beginnings of files that are in their place under such a name."""
_LOOK = 64
_CHUNK = 1 << 16
# Small: zstd may make megabytes of one chunk, and there is no way to tell it to stop.
_COMPRESSED_CHUNK = 256


@contextmanager
def open_input(name: str, in_lines: bool = False) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The decompressed bytes of a file or of stdin (`-`), and how far the stored file was read.

    `in_lines`: a table is refused under its own name, too.
    Raises RowError when opening fails, and when reading fails half-way.
    """
    try:
        if name == STDIN:
            if sys.stdin is None:
                raise RowError("unreadable", "stdin is closed")
            stdin = _own_stdin()
            yield _checked(_decompressed(stdin, _suffix_by_magic(stdin)), "FILE"), lambda: 0
            return
        suffix = Path(bare_name(name)).suffix.lower()
        with open_stored(name) as stored:
            # A named pipe has no position.
            position = stored.tell if stored.seekable() else lambda: 0
            stream = _decompressed(stored, suffix)
            yield _checked(stream, name, "" if in_lines else suffix), position
            if is_url(name):
                # Ranges of bytes are requests of their own: some may be of a newer file.
                cast(Any, stored).raw.require_unchanged()
    except IsADirectoryError:
        raise RowError("directory", "is a directory; name the files in it") from None
    except FileNotFoundError:
        raise RowError("no_such_file", "no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RowError("unreadable", f"cannot be read: {reason}") from error


def open_stored(name: str) -> BinaryIO:
    """Open a file as it is stored, here or elsewhere."""
    if is_url(name):
        from seqloss_cli.inputs.remote import open_remote

        return open_remote(name)
    return Path(name).open("rb")


def stored_size(name: str) -> int | None:
    """Return the bytes of a file, as stored; 0 where none is there, None where it has no size."""
    if is_url(name):
        from seqloss_cli.inputs.remote import remote_size

        return remote_size(name) or 0
    path = Path(name)
    with suppress(OSError, ValueError):
        if name == STDIN or (path.exists() and not path.is_file()):
            return None
        return path.stat().st_size
    return 0


def _own_stdin() -> BinaryIO:
    """The bytes of stdin, by a buffer of our own."""
    try:
        # Python's own buffer stays locked while a thread waits in it for input, and the
        # interpreter aborts at its end when it finds the lock held.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except (OSError, AttributeError):  # no file, as in tests
        return sys.stdin.buffer


def _suffix_by_magic(stream: BinaryIO) -> str:
    """The suffix that stdin, which has no name, would have: no UTF-8 text begins like these."""
    peek = getattr(stream, "peek", None)
    beginning = peek(4)[:4] if peek else b""
    return next((suffix for magic, suffix in _MAGIC.items() if beginning.startswith(magic)), "")


def _decompressed(stored: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stored))
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdStream(stored), _CHUNK))
    return stored


def _checked(stream: BinaryIO, name: str, suffix: str = "") -> BinaryIO:
    """The stream, if it does not begin as what is only in the place of a text, or of a table whose
    name has that suffix.

    Raises RowError with what makes a text of it.
    """
    peek = getattr(stream, "peek", None)
    beginning = peek(_LOOK)[:_LOOK] if peek else b""
    if beginning.startswith(LFS_POINTER):
        raise RowError("lfs_pointer", LFS_MESSAGE)
    if (encoding := wide_encoding(beginning)) is not None:
        raise RowError(
            "utf_16",
            f"is {encoding}, and not UTF-8: `iconv -f {encoding} -t UTF-8 {shown_path(name)}` "
            "converts it",
        )
    for magic, kind in _KINDS.items():
        if beginning.startswith(magic) and suffix not in _TABLES.get(magic, ()):
            raise RowError("binary_data", f"is {kind}")
    return stream


def wide_encoding(beginning: bytes) -> str | None:
    """UTF-16 or UTF-32, by the byte-order mark, or by NULs beside ASCII; None for others."""
    if beginning.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    pairs = beginning[: len(beginning) // 2 * 2]
    if len(pairs) >= 4:
        for name, ascii, nuls in (("LE", 0, 1), ("BE", 1, 0)):
            if not any(pairs[nuls::2]) and all(pairs[ascii::2]) and pairs[ascii::2].isascii():
                return f"UTF-16{name}"
    return None


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
            compressed = b""
            if self._frame.eof:
                compressed = self._frame.unused_data
                self._frame, self._begun = self._new_frame(), False
            compressed = compressed or self._stored.read(_COMPRESSED_CHUNK)
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


def bounded_lines(
    stream: BinaryIO, max_bytes: int, stop: int | None = None
) -> Iterator[bytes | None]:
    """Lines without their ends (LF or CRLF); None for one of more than `max_bytes` bytes.

    With `stop` those that begin before that byte of the stream.
    """
    # Two more than a line may have, for CRLF. Iterating over the stream would hold a line of any
    # length in memory, and str.splitlines would also cut at the U+2028 that a text may hold.
    while (stop is None or stream.tell() < stop) and (line := stream.readline(max_bytes + 2)):
        whole = line.endswith(b"\n")
        content = line[:-1].removesuffix(b"\r") if whole else line
        if len(content) <= max_bytes and (whole or len(line) < max_bytes + 2):
            yield content
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(_CHUNK)
        yield None
