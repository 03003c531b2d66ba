"""Where a command's inputs come from: files, stdin, or values on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from seqloss_cli.cli.failures import say
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    import typer

    from seqloss_cli.inputs import RegionFile

STDIN = "-"


def input_names(files: list[str] | None, otherwise: str) -> list[str]:
    """The files, or stdin when something is piped in. Raises UsageError when there is nothing."""
    if files:
        if files.count(STDIN) > 1:
            raise UsageError("'-' (stdin) can be read once only")
        return files
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(f"nothing to score: name FILES, pipe a file in, or {otherwise}")
    return [STDIN]


def text_of(flag: str, value: str) -> str:
    """A text as it stands, of a file (`@FILE`) or of stdin (`-`); `@@` stands for one `@`.

    Nothing is cut off: a file's last line break is part of the text. Raises UsageError when the
    file cannot be read as UTF-8.
    """
    if value.startswith("@@"):
        return value[1:]
    if value != STDIN and not value.startswith("@"):
        return value
    if value != STDIN:
        return file_text(flag, Path(value[1:]))
    if sys.stdin is None:
        raise UsageError(f"{flag} -: stdin is closed")
    return _decoded(f"{flag} -", sys.stdin.buffer.read())


def file_text(flag: str, path: Path) -> str:
    """What a file holds. Raises UsageError when it cannot be read as UTF-8."""
    try:
        return _decoded(f"{flag} {path}", path.read_bytes())
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}") from error


def _decoded(where: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: is not UTF-8 at byte {error.start}") from error


def choose_regions(context: typer.Context) -> RegionFile | None:
    """The file of --regions, if there is one; once the run is over, what of it was not used is
    said. Raises UsageError when there is no such file."""
    from seqloss_cli.inputs import RegionFile

    values = context.params
    if values["regions"] is None:
        return None
    file = RegionFile(values["regions"], values["max_bytes"])
    context.call_on_close(lambda: _say_unused(file, bool(values["limit"])))
    return file


def _say_unused(file: RegionFile, limited: bool) -> None:
    """Of a run that came to the end of its inputs."""
    if not file.all_asked:
        return
    if (unused := file.count_unused()) and not limited:
        say(f"warning: {unused} rows of {file.source} belong to no input")
    for message in file.unmatched:
        say(f"warning: {message}")
