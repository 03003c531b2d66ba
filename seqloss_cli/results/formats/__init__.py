"""The formats of results for machines; each streams. Only rejected rows may wait for the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from seqloss_cli.core.records import Rejected
    from seqloss_cli.core.run_record import RunInfo

Result = TypeVar("Result", contravariant=True)
Sums = TypeVar("Sums", contravariant=True)


class Writer(Protocol[Result, Sums]):
    """`begin`, then `sequence` and `reject` in input order, then `end`.

    A `Result` comes with its own sums; `end` is given those of all.
    """

    def begin(self, run: RunInfo) -> None: ...
    def sequence(self, result: Result, sums: Sums) -> None: ...
    def reject(self, rejected: Rejected) -> None: ...
    def end(self, sums: Sums, n_rejected: int, n_empty_lines: int) -> None: ...
