"""A progress bar on stderr: for work longer than a second, and only on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

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

from seqloss_cli.core.escaping import shown_path
from seqloss_cli.core.records import Rejected, Sample

_PATIENCE = 1.0  # seconds


class ProgressBar:
    """Told of tokens and of inputs as they are done; shows itself when it is worth it.

    With input files whose sizes are known there is a time left, else only a count and a rate.
    """

    def __init__(self, names: Sequence[str]) -> None:
        # stdout is for results: a bar there would be among them.
        self._console = Console(stderr=True)
        self._shares_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._starts, self._total_bytes = _starts(names)
        self._started = time.monotonic()
        self._tokens = self._inputs = 0
        self._bytes_done = 0
        self._progress = Progress(*self._columns(), console=self._console, transient=True)
        self._task: TaskID | None = None
        self._shown = False

    def on_progress(self, n_tokens: int, share: float, last: Sample | Rejected) -> None:
        """Tokens were scored: a `share` of the block of inputs that ends with `last` is done."""
        self._tokens += n_tokens
        elapsed = time.monotonic() - self._started
        # A log would keep every state of the bar, and a short run is over before it is read.
        if not self._console.is_terminal or elapsed < _PATIENCE:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=self._total_bytes)
        if not self._shown:
            self._progress.start()
            self._shown = True
        prefetch = self._position(last) - self._bytes_done
        self._progress.update(
            self._task,
            completed=self._bytes_done + share * prefetch,
            description=f"{self._inputs} inputs, {self._tokens / elapsed:,.0f} tokens/s",
        )

    def on_input(self, item: Sample | Rejected) -> None:
        """An input is done."""
        self._bytes_done = self._position(item)
        self._inputs += 1

    def _position(self, item: Sample | Rejected) -> int:
        return self._starts.get(item.source, 0) + item.end

    def make_way(self) -> None:
        """Before results are printed: on the terminal of stdout the bar goes, and comes back."""
        if self._shares_terminal:
            self.stop()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away; the next progress brings it back."""
        if self._shown:
            self._progress.stop()
            self._shown = False

    def _columns(self) -> list[ProgressColumn]:
        count = TextColumn("{task.description}")
        if not self._total_bytes:
            return [count]
        return [count, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]


def _starts(names: Sequence[str]) -> tuple[dict[str, int], int | None]:
    """The place of each file when all are laid end to end, and their size; None if unknown."""
    starts, total = {}, 0
    for name in names:
        # A name may be too long for the system: pathlib's own test would raise OSError.
        if not os.path.isfile(name):  # noqa: PTH113
            return {}, None
        starts[shown_path(name)] = total
        total += os.path.getsize(name)  # noqa: PTH202
    return starts, total or None
