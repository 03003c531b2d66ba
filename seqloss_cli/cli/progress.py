"""A progress bar on stderr: for work longer than a second, and only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_PATIENCE = 1.0  # seconds


class ProgressBar:
    """Told of tokens and of inputs as they are done; shows itself when it is worth it."""

    def __init__(self, total_bytes: int | None, n_inputs: int | None = None) -> None:
        self._console = Console(stderr=True)
        self._total_bytes = total_bytes
        self._started = time.monotonic()
        self._tokens = self._inputs = 0
        self._bytes_before = self._bytes_here = 0
        self._source: str | None = None
        self._progress: Progress | None = None

    def on_tokens(self, n_tokens: int) -> None:
        self._tokens += n_tokens
        self._update()

    def on_input(self, source: str, end: int) -> None:
        """An input is done that reaches to byte `end` of its source."""
        if source != self._source:
            if self._source is not None:
                self._bytes_before += _size(self._source)
            self._source = source
        self._bytes_here = end
        self._inputs += 1
        self._update()

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _update(self) -> None:
        elapsed = time.monotonic() - self._started
        if self._progress is None:
            if not self._console.is_terminal or elapsed < _PATIENCE:
                return
            self._progress = self._bar()
            self._task = self._progress.add_task("", total=self._total_bytes)
            self._progress.start()
        self._progress.update(
            self._task,
            completed=self._bytes_before + self._bytes_here,
            description=f"{self._inputs} inputs, {self._tokens / elapsed:,.0f} tokens/s",
        )

    def _bar(self) -> Progress:
        columns = [TextColumn("{task.description}")]
        if self._total_bytes:
            timed = [BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
            return Progress(*columns, *timed, console=self._console, transient=True)
        return Progress(*columns, console=self._console, transient=True)


@contextmanager
def progress_bar(total_bytes: int | None) -> Iterator[ProgressBar]:
    bar = ProgressBar(total_bytes)
    try:
        yield bar
    finally:
        bar.stop()


def _size(source: str) -> int:
    path = Path(source)
    return path.stat().st_size if path.is_file() else 0
