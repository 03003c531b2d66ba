"""The errors that reach a user, each with its exit code. Anything else that escapes is a bug.

Packages that only some things need are loaded here, too, and missed in words that help.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of a file that Git LFS was to replace by its content."""
LFS_MESSAGE = "is a pointer of Git LFS, and not the file itself: `git lfs pull` fetches it"


class SeqlossError(Exception):
    """Ends the run with one message on stderr; the message says what, where, and what mends it."""

    exit_code = 1


class RunError(SeqlossError):
    """The run failed: a model that cannot load, a full disk, memory too small."""


class BatchError(RunError):
    """A batch of several rows cannot be scored as a whole; its halves may be."""


class OutOfMemoryError(BatchError):
    """A batch did not fit; a smaller one may."""


class UsageError(SeqlossError):
    """Wrong flags or configuration."""

    exit_code = 2


SERVER_REASON = "server_"
"""Beginning of the reasons that only a server's answer gives: no input tells of them."""


class RowError(SeqlossError):
    """One input is wrong. It becomes a `Rejected` record and costs only itself."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.row_id: str | None = None
        """The row's own id, when it was read before the row turned out to be wrong."""

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return RowError, (self.reason, self.message)


def did_you_mean(
    word: str, known: Iterable[str], shown: str = "{}", least_alike: float = 0.6
) -> str:
    """Return the end of a message about a word that is not known: the nearest of those that are,
    in the place of `{}`."""
    from difflib import get_close_matches

    nearest = get_close_matches(word, known, n=1, cutoff=least_alike)
    return f"; did you mean {shown.replace('{}', nearest[0])}?" if nearest else ""


def did_you_mean_file(path: Path) -> str:
    """Return the end of a message about a file that is not there: its nearest neighbour."""
    # Of a folder that is not there, too; other names are none that the system takes.
    with suppress(OSError, ValueError):
        names = [entry.name for entry in path.parent.iterdir()]
        return did_you_mean(path.name, names, str(path.parent / "{}"), least_alike=0.75)
    return ""


def load_extra(extra: str, what: str, *modules: str) -> ModuleType:
    """The first of the modules, all of them imported. Raises UsageError when one is not installed;
    `what` needs it, and `seqloss[extra]` brings it."""
    found = []
    for module in modules:
        try:
            found.append(import_module(module))
        except ImportError as error:
            package = module.partition(".")[0]
            raise UsageError(f"{what} needs {package}: pip install 'seqloss[{extra}]'") from error
    return found[0]


def load_pyarrow() -> ModuleType:
    """`pyarrow`, with `pyarrow.parquet` in it. Raises UsageError when it is not installed."""
    return load_extra("parquet", "Parquet", "pyarrow", "pyarrow.parquet")
