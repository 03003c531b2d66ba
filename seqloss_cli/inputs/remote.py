"""Files of other file systems, by fsspec: read by ranges of bytes, with retries, and written whole.

Reading holds one range at a time. Writing puts a finished file in its place: object stores show it
when all of it is there, elsewhere it is put beside and renamed.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from seqloss_cli.core.errors import UsageError, load_extra
from seqloss_cli.core.urls import shown_name

T = TypeVar("T")
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts."""
BLOCK = 4 << 20
"""Bytes of a range."""


class LastingError(OSError):
    """An error that no second attempt mends."""


_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(LastingError, UsageError),
)
"""Errors that no second attempt mends."""
_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "tos")
"""File systems that show a file only when all of it was put."""
_UNTRIED = ("hf", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "tos")
"""File systems where an attempt to write would leave something (a commit), or might: none of these
was there to be tried."""
_READ_ONLY = ("http", "https", "github", "git", "zip", "tar")


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the name of its file there. Raises UsageError where
    nothing is installed that knows it."""
    scheme = url.partition("://")[0]
    fsspec = load_extra("remote", f"{scheme}://", "fsspec", "fsspec.core")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{shown_name(url)}: {scheme}:// cannot be opened ({error}): pip install "
            "'seqloss[remote]' brings S3, Google Cloud Storage and HTTP"
        ) from error
    return system, path


def retried(call: Callable[[], T]) -> T:
    """Return what a call does, made again after errors that may pass. Raises OSError."""
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:
            hidden = _hidden_cause(error)
            if isinstance(error, _FINAL) and hidden is None:
                raise
            told = hidden or error
            what = " ".join(str(told).split()) or type(told).__name__
            if getattr(hidden, "status", None) in (401, 403):
                raise LastingError(f"{what:.200}") from error
            if wait is None:
                raise OSError(f"{what:.200} (after {len(WAITS) + 1} attempts)") from error
            time.sleep(wait)
    raise AssertionError


def _hidden_cause(error: BaseException) -> BaseException | None:
    """Return what went wrong over HTTP, of which fsspec only says that there is no file."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not type(cause).__module__.startswith("aiohttp"):
        return None
    return None if getattr(cause, "status", None) in (404, 410) else cause


class RemoteFile(io.RawIOBase):
    """A file elsewhere, read by ranges: each a request of its own, made again where it fails."""

    def __init__(self, url: str) -> None:
        """Raises OSError where there is none, or one of no known size."""
        self._system, self._path = file_system(url)
        self._about = self._info()
        if self._about.get("type") == "directory":
            raise IsADirectoryError
        if (size := self._about.get("size")) is None:
            raise LastingError(f"has no size: `curl -L {shown_name(url)} | seqloss … -` reads it")
        self.size: int = size
        self._position = 0

    def _info(self) -> dict[str, Any]:
        # A file that was written anew is another one, which a cached listing would not tell.
        with suppress(Exception):
            self._system.invalidate_cache()
        found: dict[str, Any] = retried(lambda: self._system.info(self._path))
        return found

    def readable(self) -> bool:
        """Return True: it is read only."""
        return True

    def seekable(self) -> bool:
        """Return True: any range can be asked for."""
        return True

    def tell(self) -> int:
        """Return the byte that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; nothing is asked for."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer by one request. Raises OSError where the file changed meanwhile."""
        first, end = self._position, min(self._position + len(buffer), self.size)
        if first >= end:
            return 0
        data = retried(lambda: self._range(first, end))
        buffer[: len(data)] = data
        self._position = end
        return len(data)

    def _range(self, first: int, end: int) -> bytes:
        try:
            data = bytes(self._system.cat_file(self._path, start=first, end=end))
        except _FINAL:
            raise
        except Exception:
            self.require_unchanged()
            raise
        if len(data) > end - first:
            raise LastingError("cannot be read in parts, as its server knows no ranges of bytes")
        if len(data) < end - first:
            self.require_unchanged()
            raise OSError(f"{len(data)} bytes came of {end - first} that were asked for")
        return data

    def require_unchanged(self) -> None:
        """Raise OSError where the file is another one than when it was opened."""
        try:
            about = self._info()
        except FileNotFoundError:
            raise LastingError("was removed while it was read") from None
        for key in ("size", "ETag", "etag", "generation", "blob_id", "mtime", "LastModified"):
            if about.get(key) != self._about.get(key):
                raise LastingError("changed while it was read")


def open_remote(url: str) -> BinaryIO:
    """Open a file elsewhere; what is read next is read ahead by a range of bytes."""
    return cast(BinaryIO, io.BufferedReader(RemoteFile(url), BLOCK))


def remote_size(url: str) -> int | None:
    """Return the bytes of a file elsewhere; None where there is none."""
    system, path = file_system(url)
    with suppress(Exception):
        system.invalidate_cache()
    try:
        found: int | None = retried(lambda: system.info(path)).get("size")
    except FileNotFoundError:
        return None
    return found


def put_whole(file: Path, url: str) -> None:
    """Put a file elsewhere under its name, all of it or nothing. Raises OSError."""
    system, path = file_system(url)
    size = file.stat().st_size

    def put() -> None:
        place = path if url.partition("://")[0].lower() in _STORES else f"{path}.partial"
        system.put_file(str(file), place)
        with suppress(Exception):
            system.invalidate_cache()
        if (there := system.info(place).get("size")) != size:
            raise OSError(f"{there} bytes came there of {size}")
        if place != path:
            system.mv(place, path)

    retried(put)


def fetch_whole(url: str, file: Path) -> None:
    """Copy a file from elsewhere, by ranges. Raises OSError."""
    with open_remote(url) as stream, file.open("wb") as sink:
        while data := stream.read(BLOCK):
            sink.write(data)


def require_writable(url: str) -> None:
    """Raise UsageError for a file system that takes no files."""
    scheme = url.partition("://")[0].lower()
    if scheme in _READ_ONLY:
        raise UsageError(f"-o {shown_name(url)}: {scheme}:// cannot be written to")
    file_system(url)


def try_to_write(url: str) -> None:
    """Raise UsageError where no file can be put under a URL: there is no such bucket or directory,
    or it is not allowed. Nothing is left there. Raises OSError where a store cannot be asked."""
    system, path = file_system(url)
    scheme = url.partition("://")[0].lower()
    if scheme in _UNTRIED:
        return
    try:
        retried(lambda: _try(system, f"{path}.try", scheme in _STORES))
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"-o {shown_name(url)}: cannot be written to: {why:.200}") from error


def _try(system: Any, path: str, is_store: bool) -> None:
    if not is_store:
        system.pipe_file(path, b"")
        system.rm_file(path)
        return
    # An upload in parts that is begun, and given up: no object ever comes of it.
    upload = system.open(path, "wb", autocommit=False)
    upload.flush(force=True)
    upload.discard()


def expanded_url(url: str) -> list[str] | None:
    """Return the files of a pattern or a directory elsewhere, sorted; None for a file."""
    system, path = file_system(url)
    if any(sign in path for sign in "*?["):
        found = retried(lambda: system.glob(path))
    elif retried(lambda: system.isdir(path)) and not retried(lambda: system.isfile(path)):
        found = retried(lambda: system.find(path))
    else:
        return None
    return sorted(system.unstrip_protocol(each) for each in found)
