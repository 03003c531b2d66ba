"""Names of inputs: patterns and directories become the files that they stand for, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from pathlib import Path

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.urls import bare_name, is_url, shown_name
from seqloss_cli.inputs.options import ROWS, suffix_of
from seqloss_cli.inputs.streams import STDIN

_READ = (*ROWS, ".txt")
"""Extensions of the files that are read where a directory is named."""
_SIGNS = "*?["


def expanded(names: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    """Return the files that names stand for; `tell` hears of files that are left out.

    Raises UsageError for a pattern that no file fits, and for a directory without a file to read.
    """
    return [file for name in names for file in _files_of(name, tell)]


def _files_of(name: str, tell: Callable[[str], None]) -> Iterator[str]:
    found = _from_elsewhere(name) if is_url(name) else _from_here(name)
    if found is None:
        yield name
        return
    is_pattern = any(sign in bare_name(name) for sign in _SIGNS)
    if is_pattern:
        if not found:
            raise UsageError(f"{shown_name(name)}: no file fits the pattern")
        yield from found
        return
    hidden = len(name.rstrip("/")) + 1
    own = [each for each in found if not any(p.startswith(".") for p in each[hidden:].split("/"))]
    files = [each for each in own if suffix_of(each) in _READ]
    if not files:
        known = ", ".join(_READ)
        raise UsageError(f"{shown_name(name)} is a directory without a file to read ({known})")
    if left := [each for each in own if each not in {*files}]:
        tell(
            f"note: {shown_name(name)}: {len(left)} files of other kinds are left out, first "
            f"{shown_name(left[0])}"
        )
    yield from files


def _from_here(name: str) -> list[str] | None:
    """Return the files of a pattern or a directory; None for any other name."""
    # A name may be too long for the system: pathlib's own tests would raise OSError.
    if name in ("", STDIN) or os.path.isfile(name):  # noqa: PTH113
        return None
    if os.path.isdir(name):  # noqa: PTH112
        # A model's directory is refused with words of its own.
        if (Path(name) / "config.json").is_file():
            return None
        walked = os.walk(name)
        return sorted(os.path.join(at, each) for at, _, files in walked for each in files)  # noqa: PTH118
    if os.path.lexists(name) or not any(sign in name for sign in _SIGNS):
        return None
    return sorted(each for each in glob(name, recursive=True) if os.path.isfile(each))  # noqa: PTH113, PTH207


def _from_elsewhere(name: str) -> list[str] | None:
    from seqloss_cli.inputs.remote import expanded_url

    if name.partition("://")[0].lower() in ("http", "https"):
        return None
    try:
        return expanded_url(name)
    except OSError as error:
        raise UsageError(f"{shown_name(name)}: {error}") from error
