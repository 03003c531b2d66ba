"""A progress bar on stderr: for work longer than a second, and only on a terminal."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_PATIENCE = 1.0  # seconds


class ProgressBar:
    """Told of tokens and of inputs as they are done; shows itself when it is worth it.

    `total_bytes` is the size of all inputs as stored; None when it is not known: then there is a
    count and a rate, but no time left.
    """

    def __init__(self, total_bytes: int | None) -> None:
        self._console = Console(stderr=True)
        self._shares_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._total_bytes = total_bytes
        self._started = time.monotonic()
        self._tokens = self._inputs = 0
        self._bytes_before = self._bytes_here = 0
        self._source: str | None = None
        self._progress = Progress(*self._columns(), console=self._console, transient=True)
        self._task: TaskID | None = None
        self._shown = False

    def on_tokens(self, n_tokens: int) -> None:
        self._tokens += n_tokens
        elapsed = time.monotonic() - self._started
        if not self._console.is_terminal or elapsed < _PATIENCE:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=self._total_bytes)
        if not self._shown:
            self._progress.start()
            self._shown = True
        self._progress.update(
            self._task,
            completed=self._bytes_before + self._bytes_here,
            description=f"{self._inputs} inputs, {self._tokens / elapsed:,.0f} tokens/s",
        )

    def on_input(self, source: str, end: int) -> None:
        """An input is done that reaches to byte `end` of its source."""
        if source != self._source:
            if self._source is not None:
                self._bytes_before += _size(self._source)
            self._source = source
        self._bytes_here = end
        self._inputs += 1

    def make_way(self) -> None:
        """Before results are printed: on the terminal of stdout the bar goes, and comes back."""
        if self._shares_terminal:
            self.stop()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._shown:
            self._progress.stop()
            self._shown = False

    def _columns(self) -> list[ProgressColumn]:
        count = TextColumn("{task.description}")
        if not self._total_bytes:
            return [count]
        return [count, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]


def _size(source: str) -> int:
    return os.path.getsize(source) if os.path.isfile(source) else 0  # noqa: PTH202, PTH113
