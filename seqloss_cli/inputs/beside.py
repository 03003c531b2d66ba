"""Rows of another file that belong to the inputs, such as their labels or regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.paths import shown_path
from seqloss_cli.core.records import Rejected, Sample
from seqloss_cli.inputs.rows import own_id_of, parse_object
from seqloss_cli.inputs.streams import BOM, bounded_lines, open_input

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BesideRow(Generic[T]):
    line: int
    id: str | None
    content: T | RowError


class RowsBeside(Generic[T]):
    """Finds the row of each input: by `id` where the first row that can be read has one, else by
    order, a row for each input, the rejected ones too. Rows of which `parse` makes None are passed
    over.

    Rows that come before the one that is looked for by id are kept for later, in memory.
    """

    def __init__(
        self, name: str, max_bytes: int, what: str, parse: Callable[[dict[str, Any]], T | None]
    ) -> None:
        """`what` the rows are, for messages, such as `labels`. `parse` raises RowError."""
        self._name, self.source, self._what, self._parse = name, shown_path(name), what, parse
        self._rows = self._read(max_bytes)
        self._by_id: bool | None = None
        self._kept: dict[str, list[BesideRow[T]]] = {}
        self._failed: RowError | None = None
        self.unmatched: list[str] = []
        """Rows that could not be read and, ids being looked for, belong to no input."""

    def find_row(self, item: Sample | Rejected) -> BesideRow[T] | Rejected:
        """The row of an input, or why there is none: asked once for each input, in order."""
        row, missing = self._row(item.id), f"no_{self._what}"
        if row is None:
            error = self._failed or RowError(missing, f"{self.source} has no {self._what} for it")
            return Rejected(item.id, item.source, item.line, error.reason, error.message)
        if not self._by_id and row.id not in (None, item.id):
            message = f"holds the {self._what} of {row.id!r:.60}, not of {item.id!r}"
            return Rejected(item.id, self.source, row.line, missing, message)
        if isinstance(row.content, RowError):
            error = row.content
            return Rejected(item.id, self.source, row.line, error.reason, error.message)
        return row

    def count_unused(self) -> int:
        """Rows that belong to no input."""
        n_left = 0
        while self._next_row() is not None:
            n_left += 1
        return sum(map(len, self._kept.values())) + n_left

    def _row(self, identity: str) -> BesideRow[T] | None:
        if self._by_id and self._kept.get(identity):
            return self._kept[identity].pop(0)
        while (row := self._next_row()) is not None:
            if self._by_id is None and not isinstance(row.content, RowError):
                self._by_id = row.id is not None
            if not self._by_id or row.id == identity:
                return row
            self._keep(row)
        return None

    def _keep(self, row: BesideRow[T]) -> None:
        if row.id is not None:
            self._kept.setdefault(row.id, []).append(row)
            return
        why = "has no id, while the first row has one"
        if isinstance(row.content, RowError):
            why = row.content.message
        self.unmatched.append(f"{self.source}:{row.line}: {why}")

    def _next_row(self) -> BesideRow[T] | None:
        try:
            return next(self._rows, None)
        except RowError as error:
            self._failed = RowError(error.reason, f"{self.source} {error.message}")
            return None

    def _read(self, max_bytes: int) -> Iterator[BesideRow[T]]:
        with open_input(self._name) as (stream, _):
            for line, raw in enumerate(bounded_lines(stream, max_bytes), start=1):
                if line == 1 and raw is not None:
                    raw = raw.removeprefix(BOM)
                if raw != b"" and (row := self._parsed(line, raw, max_bytes)) is not None:
                    yield row

    def _parsed(self, line: int, raw: bytes | None, max_bytes: int) -> BesideRow[T] | None:
        own_id = None
        try:
            if raw is None:
                raise RowError("too_long", f"line is longer than --max-bytes {max_bytes}")
            row = parse_object(raw)
            own_id = own_id_of(row)
            content = self._parse(row)
            return None if content is None else BesideRow(line, own_id, content)
        except RowError as error:
            return BesideRow(line, own_id, error)
