"""Files for output: one exists under its name only when it is whole; and stdout.

Until then it is FILE.partial, which one process at a time writes (where files can be locked). What
was flushed to it outlives a crash of that process, and but for the last seconds one of the machine.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.urls import shown_name, url_of

RENAMES_OPEN_FILES = sys.platform != "win32"
if sys.platform == "win32":
    import msvcrt

    _IS_TAKEN = PermissionError
    # Others cannot read what is locked on Windows: the lock is on a byte that the file never has.
    _FAR_AWAY = 1 << 62

    def _lock(descriptor: int) -> None:
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _FAR_AWAY, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, place, os.SEEK_SET)

else:
    import fcntl

    _IS_TAKEN = BlockingIOError

    def _lock(descriptor: int) -> None:
        # Not fcntl's record locks: a process loses those when it closes any descriptor of the file.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class BusyFileError(UsageError):
    """Another process writes the file, or just finished it."""


SYNC_SECONDS = 2.0
"""Seconds between two times that flushed lines are forced to the disk."""


def try_to_lock(descriptor: int) -> bool | None:
    """Return whether this process has the file: False if another has, None if unknown."""
    try:
        _lock(descriptor)
    except _IS_TAKEN:
        return False
    except OSError:
        # A file system without locks, as some network ones are: another may have it all the same.
        return None
    return True


def ignore_warning(message: str) -> None:
    """Do nothing: nobody wants to know."""


def refuse_to_overwrite(path: Path, force: bool, resumable: bool = False, flag: str = "-o") -> None:
    """Raise UsageError when the file or its partial one exists, unless `force` is given, and when
    it could not be written at all. `resumable`: --resume would go on with a partial one."""
    _refuse_odd_places(path, flag)
    partial = partial_path(path)
    for existing in (path, partial):
        if existing.exists() and not force:
            other = "--resume goes on with it, " if resumable and existing == partial else ""
            raise UsageError(f"{named(existing)} exists; {other}--force writes over it")


def earlier_output(path: Path) -> Path | None:
    """Return the file that --resume looks at: FILE.partial, else FILE, else none.

    Raises UsageError when both are there, or when FILE could not be written at all. One run leaves
    both only if it was stopped while it renamed the file: that renaming is brought to an end here.
    """
    _refuse_odd_places(path)
    # First: between its two steps a finished file has both names, and would be refused.
    _end_renaming(path)
    partial = partial_path(path)
    if not partial.exists():
        return path if path.exists() else None
    if path.exists():
        raise UsageError(
            f"both {named(path)} and {partial} exist; --resume goes on with the partial one once "
            "the other is away, --force writes over both"
        )
    return partial


def partial_path(path: Path) -> Path:
    """Return the name under which an output file grows until it is whole."""
    return Path(f"{path}.partial")


def local_path(output: Path | None) -> Path | None:
    """Return the file here that is written: of a URL one in the directory of temporary files."""
    url = None if output is None else url_of(output)
    if url is None or output is None:
        return output
    # By the whole URL: the same command finds what it left there.
    name = f"seqloss-{hashlib.sha256(url.encode()).hexdigest()[:12]}-{output.name}"
    path = Path(tempfile.gettempdir()) / name
    _URLS[path] = url
    return path


_URLS = dict[Path, str]()
"""Files here to the URLs that they go to."""


def named(path: Path) -> str:
    """Return a file as messages name it: of what goes elsewhere its URL, and where it is now."""
    url = _URLS.get(Path(str(path).removesuffix(".partial")))
    return str(path) if url is None else f"{shown_name(url)} (here {path})"


def place_of(output: Path) -> str:
    """Return an output as it is called once it is whole: by its URL, where it has one."""
    url = url_of(output)
    return str(output) if url is None else shown_name(url)


@contextmanager
def open_sink(
    path: Path | None,
    force: bool,
    resume: bool = False,
    warn: Callable[[str], None] = ignore_warning,
    keeps: bool = True,
) -> Iterator[BinaryIO]:
    """Open stdout, or `FILE.partial`, renamed to FILE when the block ends without an exception.

    With `resume` it holds what was left behind, and nothing is written before `cut` is called.
    `warn` hears of it when the file cannot be held against other processes.

    Raises UsageError when one of the two exist and neither is given, and when another process
    writes it; RunError when writing fails (a full disk). After an error the partial file stays, so
    that its rows can be used; without `keeps` it goes, as one that holds no rows.
    """
    if path is None:
        # Python has none where the shell closed it (`>&-`).
        if sys.stdout is None:
            raise RunError("stdout is closed; -o FILE writes to a file")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = partial_path(path)
    try:
        # Again, as before a model was loaded: others may have been here since.
        if not resume:
            refuse_to_overwrite(path, force)
            _end_renaming(path)
        elif earlier_output(path) == path:
            raise BusyFileError(
                f"{named(path)} came into being meanwhile; run the same command again"
            )
        with _locked(partial, new=not (force or resume), warn=warn) as sink:
            if force:
                # Only now that it is locked: O_TRUNC would have emptied a file that another writes.
                cut(sink, 0)
            try:
                yield sink
            except BaseException:
                if not keeps and sink.is_regular:
                    # Emptied: a file without a byte goes.
                    sink.truncate(0)
                    sink.seek(0)
                raise
            sink.flush()
            # Before the renaming: a loss of power could leave the name with nothing behind it.
            os.fsync(sink.fileno())
            # While it is locked: otherwise another process locks it, and has it renamed under its
            # hands. Windows cannot rename what is open.
            if RENAMES_OPEN_FILES:
                rename_partial(partial, path, force)
        if not RENAMES_OPEN_FILES:
            rename_partial(partial, path, force)
    except OSError as error:
        # Of stdout or stderr, written to meanwhile: no fault of this file.
        if isinstance(error, BrokenPipeError):
            raise
        raise RunError(f"{named(partial)} cannot be written: {error.strerror}") from error


def cut(sink: BinaryIO, length: int) -> None:
    """Keep the first bytes of what is there, and write after them."""
    if os.fstat(sink.fileno()).st_size != length:
        sink.truncate(length)
    sink.seek(length)


def _refuse_odd_places(path: Path, flag: str = "-o") -> None:
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no directory {path.parent}")
    if path.is_dir():  # of an empty name, too, which is that of this folder
        raise UsageError(f"{flag} {path} is a directory, or an empty name: name a file")
    if path.exists() and not path.is_file():
        advice = "; leave -o out to write to stdout" if flag == "-o" else ""
        raise UsageError(f"{flag} {path} is no regular file{advice}")


def _end_renaming(path: Path) -> None:
    """End a renaming between whose steps a machine stopped: both names are one file."""
    partial = partial_path(path)
    # Locked: another process may be between the two steps just now.
    if path.exists() and partial.exists() and path.samefile(partial):
        with _locked(partial):
            partial.unlink()


@contextmanager
def _locked(
    partial: Path, new: bool = False, warn: Callable[[str], None] = ignore_warning
) -> Iterator[_SyncedFile]:
    """Open the file as it is, made if it is not there, and hold it against other processes.

    Raises UsageError when another process writes it, or when it is there although `new`.
    """
    # O_EXCL: of two runs that both found the name free, one is refused here and not when it ends.
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(partial, flags | (os.O_EXCL if new else 0), 0o666)
    except FileExistsError:
        raise UsageError(
            f"{named(partial)} came into being: another process is writing it"
        ) from None
    with _SyncedFile(io.FileIO(descriptor, "wb")) as sink:
        if sink.is_regular:
            _hold(partial, descriptor, warn)
            _sync_names(partial)
        try:
            yield sink
        except BaseException:
            # A file without a byte would only ask for --force next time.
            if sink.is_empty:
                partial.unlink()
            raise


def _hold(partial: Path, descriptor: int, warn: Callable[[str], None]) -> None:
    """Raise UsageError when another process has the file, or had it and is done with it."""
    # Locked is not enough: between our opening and our lock another may have ended and renamed it.
    is_ours = try_to_lock(descriptor)
    if is_ours is False or not _names(partial, descriptor):
        raise BusyFileError(f"another process is writing {named(partial)}, or just finished it")
    if is_ours is None:
        warn(
            f"warning: {named(partial)} cannot be locked on this file system: make sure that no "
            "other seqloss writes it"
        )


def _names(path: Path, descriptor: int) -> bool:
    """Return whether the path still names the open file: who had it before may have renamed it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _sync_names(path: Path) -> None:
    """Force to the disk that a file was made, renamed or removed: its own fsync does not say so.

    Where a directory cannot be forced, or not be opened (Windows), there is nothing to be done.
    """
    with suppress(OSError):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _SyncedFile(io.BufferedWriter):
    """A file whose flushed bytes are forced to the disk within seconds.

    By a thread of its own: rows come in bursts, and after the last of one nothing may be written
    for minutes. What it cannot force is told by the next flush.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._is_unsynced = False
        self._failure: OSError | None = None
        super().__init__(raw)
        self.is_regular = stat.S_ISREG(os.fstat(raw.fileno()).st_mode)

    @property
    def is_empty(self) -> bool:
        return self.is_regular and self.tell() == 0 == os.fstat(self.fileno()).st_size

    def flush(self) -> None:
        super().flush()
        # Closing flushes once more, and must not begin a thread; pipes cannot be forced.
        if self._closing.is_set() or not self.is_regular:
            return
        if self._failure is not None:
            raise self._failure
        self._is_unsynced = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._sync, name="seqloss-sync", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            # Before the descriptor is free: the thread might force whatever is opened next.
            self._thread.join()
        super().close()

    def _sync(self) -> None:
        while not self._closing.wait(SYNC_SECONDS):
            if not self._is_unsynced:
                continue
            # Before it is forced: what is flushed meanwhile waits for the next time.
            self._is_unsynced = False
            try:
                os.fsync(self.fileno())
            except OSError as error:
                # The kernel tells of lost pages once: a second fsync would succeed.
                self._failure = error
                return


def rename_partial(partial: Path, path: Path, force: bool) -> None:
    """Rename the file; without `force` one that came meanwhile is left alone."""
    try:
        if force:
            partial.replace(path)
        else:
            _rename_to_free_name(partial, path)
    except FileExistsError:
        raise RunError(
            f"{named(path)} came into being meanwhile; the results are in {partial}"
        ) from None
    _sync_names(path)


def _rename_to_free_name(partial: Path, path: Path) -> None:
    """Raise FileExistsError when the name is taken: for certain where there are hard links (or on
    Windows), else as far as a look just before the renaming tells."""
    # Not `rename`, which replaces a file that came meanwhile without a word.
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links, as of memory cards.
        if os.path.lexists(path):
            raise FileExistsError from None
        partial.rename(path)
    else:
        partial.unlink()
