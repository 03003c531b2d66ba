"""Files of other file systems, by fsspec: read by ranges of bytes, with retries, and written whole.

Reading holds one range at a time. Writing puts a finished file in its place: object stores show it
when all of it is there, elsewhere it is put beside and renamed.
"""

from __future__ import annotations

import inspect
import io
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from seqloss_cli.core.errors import UsageError, load_extra
from seqloss_cli.core.urls import is_of_hub, shown_name

T = TypeVar("T")
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts."""
LONGEST = 30.0
"""Seconds after which no other attempt is made: some packages make several of their own in one."""
BLOCK = 4 << 20
"""Bytes of a range."""


class LastingError(OSError):
    """An error that no second attempt mends."""


_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(LastingError, UsageError),
)
"""Errors that no second attempt mends."""
_OF_NAMES = ("ValueError", "NotImplementedError", "HfUriError", "HFValidationError")
"""Errors of packages where the name itself is wrong. Subclasses may be of a cut answer."""
_GOOGLE = ("gs", "gcs")
_STORES = ("s3", "s3a", *_GOOGLE, "hf", "az", "abfs", "abfss", "oci", "oss", "tos")
"""File systems that show a file only when all of it was put (a commit of a hub, too)."""
_UNTRIED = ("az", "abfs", "abfss", "oci", "oss", "tos")
"""File systems where an attempt to write might leave something: none was there to be tried."""
_READ_ONLY = ("http", "https", "github", "git", "zip", "tar")


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the name of its file there. Raises UsageError where
    nothing is installed that knows it."""
    scheme = url.partition("://")[0]
    fsspec = load_extra("remote", f"{scheme}://", "fsspec", "fsspec.core")
    google = scheme.lower() in _GOOGLE
    try:
        system, path = fsspec.core.url_to_fs(url, **(_google_options() if google else {}))
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{shown_name(url)}: {scheme}:// cannot be opened ({error}): pip install "
            "'seqloss[remote]' brings S3, Google Cloud Storage and HTTP"
        ) from error
    return system, path


@cache
def _google_options() -> dict[str, Any]:
    """Return what gcsfs is to be opened with, where nobody said it by variables or files of fsspec.

    Without credentials it asks the metadata server over and over, and then the kind of each bucket
    by another protocol, which an emulator does not speak. Raises UsageError for a file of
    credentials that is named and is none.
    """
    from fsspec.config import conf

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints what it raises, too
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    if any("token" in conf.get(each, {}) for each in _GOOGLE):
        return {}
    if not os.environ.get("STORAGE_EMULATOR_HOST"):
        try:
            import google.auth
            import google.auth.exceptions
        except ImportError:
            return {}
        if Path("~/.gcs_tokens").expanduser().exists():
            return {}
        try:
            google.auth.default()
            return {}
        except google.auth.exceptions.DefaultCredentialsError as error:
            if file := os.environ.get(variable := "GOOGLE_APPLICATION_CREDENTIALS"):
                why = " ".join(str(error).split())
                raise UsageError(f"{variable}={file} cannot be used: {why:.300}") from error
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return {"token": "anon"}


def retried(call: Callable[[], T], url: str = "") -> T:
    """Return what a call does, made again after errors that may pass.

    Raises OSError; PermissionError, with what helps, where a server does not allow it.
    """
    begun = time.monotonic()
    for n, wait in enumerate((*WAITS, None), 1):
        try:
            return call()
        except Exception as error:
            hidden = _hidden_cause(error)
            if isinstance(error, _FINAL) and hidden is None:
                raise
            told = hidden or error
            what = " ".join(str(told).split()) or type(told).__name__
            if (lasting := _lasting(told, f"{what:.200}", url)) is not None:
                raise lasting from error
            if wait is None or time.monotonic() - begun > LONGEST:
                after = f" (after {n} attempts)" if n > 1 else ""
                raise OSError(f"{what:.200}{after}") from error
            time.sleep(wait)
    raise AssertionError


def _lasting(error: BaseException, what: str, url: str) -> OSError | None:
    """Return an error that says what no second attempt mends; None where one may."""
    status = _status(error)
    if status in (401, 403):
        return PermissionError(what.rstrip(".") + _help(url))
    if status == 404:
        return FileNotFoundError(what)
    if type(error).__name__ == "OfflineModeIsEnabled":
        return LastingError("--offline or HF_HUB_OFFLINE: the hub is not asked")
    refused = status in range(400, 500) and status not in (408, 429)
    return LastingError(what) if refused or type(error).__name__ in _OF_NAMES else None


def _status(error: BaseException) -> int | None:
    """Return the status of HTTP that an error of aiohttp, gcsfs or the hub's package tells."""
    if type(error) is OSError and str(error).startswith("Forbidden"):  # gcsfs
        return 403
    answer = getattr(error, "response", None)
    found = getattr(answer, "status_code", getattr(error, "status", getattr(error, "code", None)))
    return int(found) if isinstance(found, int | str) and str(found).isdecimal() else None


def _help(url: str) -> str:
    """Return what helps where a server does not let us in, if it is known."""
    scheme = url.partition("://")[0].lower()
    if is_of_hub(url):
        return "; HF_TOKEN, or `hf auth login`, says who asks"
    if scheme in _GOOGLE and _google_options():
        return (
            "; no credentials of Google Cloud are here: `gcloud auth application-default login`, "
            "or GOOGLE_APPLICATION_CREDENTIALS=FILE"
        )
    return ""


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
        self._url = url
        self._system, self._path = file_system(url)
        try:
            self._about = self._info()
        except FileNotFoundError as error:
            # Of the hub: no such repository or revision, or one that is not shown to us.
            if (cause := error.__cause__) and type(cause).__module__.startswith("huggingface_hub"):
                raise LastingError(f"{str(error).rstrip('.')}{_help(url)}") from error
            raise
        # The hub's package would read ahead, and each range twice.
        self._exact = {"cache_type": "none"} if is_of_hub(url) else {}
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
        found: dict[str, Any] = retried(lambda: self._system.info(self._path), self._url)
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
        data = retried(lambda: self._range(first, end), self._url)
        buffer[: len(data)] = data
        self._position = end
        return len(data)

    def _range(self, first: int, end: int) -> bytes:
        try:
            data = bytes(self._system.cat_file(self._path, start=first, end=end, **self._exact))
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
        found: int | None = retried(lambda: system.info(path), url).get("size")
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

    retried(put, url)


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
        retried(lambda: _try(system, path, scheme), url)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"-o {shown_name(url)}: cannot be written to: {why:.400}") from error


def _try(system: Any, path: str, scheme: str) -> None:
    if scheme == "hf":
        _ask_hub(system, path)
    elif scheme in _STORES:
        # An upload in parts that is begun, and given up: no object ever comes of it.
        upload = system.open(f"{path}.try", "wb", autocommit=False)
        upload.flush(force=True)
        try:
            upload.discard()
        except Exception:
            if scheme not in _GOOGLE:  # there one that is not given up ends after a week
                raise
    else:
        system.pipe_file(f"{path}.try", b"")
        system.rm_file(f"{path}.try")


def _ask_hub(system: Any, path: str) -> None:
    """Ask whether a repository of the hub is there, and takes commits of ours."""
    from huggingface_hub import HfApi

    place = system.resolve_path(path)
    if (name := getattr(place, "repo_id", None)) is None:  # a bucket
        return
    # Older packages ask only whether it is shown to us.
    write = {"write": True} if "write" in inspect.signature(HfApi.auth_check).parameters else {}
    HfApi(endpoint=system.endpoint).auth_check(name, repo_type=place.repo_type, **write)


def expanded_url(url: str) -> list[str] | None:
    """Return the files of a pattern or a directory elsewhere, sorted; None for a file."""
    system, path = file_system(url)
    if any(sign in path for sign in "*?["):
        found = retried(lambda: system.glob(path), url)
    else:
        try:
            about = retried(lambda: system.info(path), url)
        except (FileNotFoundError, PermissionError, LastingError):
            return None  # said where it is opened
        if about.get("type") != "directory":
            return None
        found = retried(lambda: system.find(path), url)
    return sorted(system.unstrip_protocol(each) for each in found)
