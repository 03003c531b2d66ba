"""CSV and TSV for spreadsheets and data frames: a header, then a line for each input or its parts.

Neither the run nor the totals are in them, nor what is nested. UTF-8, lines end with a line feed,
unknown cells are empty, floats read back as the same float64. Texts that a spreadsheet would take
for a formula get a ' in front.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejected, Rejections
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.results.schema import ABSENT, REJECTED, Cell, Key, Row, Rows, rejected_row, row_of

# Of texts only: a number that begins with - is none.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# For the csv module, which then quotes texts that hold either of the two; files get a line feed.
_ROW_END = "\r\n"


class LineWriter:
    """Writes a line for each input, or each part of it; a rejected one gets its reason."""

    def __init__(
        self, level: str, delimiter: str, sink: BinaryIO, rows: Rows[Any, Any, Any]
    ) -> None:
        """`level` is one of `rows.levels`; any other makes a line of each row."""
        self._view, self._parts = rows.view, rows.levels.get(level)
        # newline="": line feeds inside texts stay what they are on every system.
        self._sink, self._buffer = sink, io.StringIO(newline="")
        self._writer = csv.writer(self._buffer, delimiter=delimiter, lineterminator=_ROW_END)
        # A terminal would act on what is in a text; a file holds it as it is.
        self._shown = escape if sink.isatty() else str
        # By name: the later of two keys of one name (`response` of mask) wins, as in JSON.
        keys = {key.name: key for key in rows.keys if key.row_cells()}
        self._keys = list(keys.values())
        self._ends = [*self._keys, *REJECTED]
        self._names = [key.name + suffix for key in self._ends for suffix in key.row_cells()]
        if self._parts is not None:
            self._keys = [key for key in rows.keys if key.name in ("id", "line")]
            self._names = ["id", "line", *(key.name for key in self._parts), "reason"]

    def begin(self, run: RunInfo) -> None:
        """Write the header."""
        self._write([self._names])

    def sequence(self, result: Any, sums: Any) -> None:
        """Write the lines of a result."""
        view = self._view(result, sums)
        row = row_of(self._keys, view)
        if self._parts is not None:
            return self._write(_part_lines((row["id"], row["line"]), self._parts, view))
        return self._write([self._cells(row)])

    def reject(self, rejected: Rejected) -> None:
        """Write a line with the reason."""
        row = rejected_row(rejected)
        whole = self._parts is None
        self._write([self._cells(row) if whole else [row.get(n) for n in self._names]])

    def end(self, sums: Any, rejected: Rejections, n_empty_lines: int) -> None:
        """Write nothing: the totals are no line."""

    def _cells(self, row: Row) -> list[Cell]:
        values = [(row.get(key.name), key.row_cells().values()) for key in self._ends]
        return [None if value is None else cell(value) for value, cells in values for cell in cells]

    def _write(self, rows: Iterable[Sequence[Cell]]) -> None:
        for row in rows:
            self._writer.writerow([self._safe(c) if isinstance(c, str) else c for c in row])
            line = self._buffer.getvalue().removesuffix(_ROW_END) + "\n"
            self._sink.write(line.encode())
            self._buffer.seek(0)
            self._buffer.truncate()
        # A run that is killed leaves whole lines.
        self._sink.flush()

    def _safe(self, text: str) -> str:
        return self._shown("'" + text if text.startswith(_FORMULA) else text)


def _part_lines(
    head: tuple[Cell, Cell], parts: Sequence[Key], view: Any
) -> Iterator[Sequence[Cell]]:
    """Yield a line for each part, or a bare one where the first column is None: no parts are known.

    A column that is not known is empty in all lines.
    """
    first, *others = (key.value(view) for key in parts)
    # Words of ids without a text; a text without words has an empty column, and no line.
    if first is None:
        yield (*head, *[None] * (len(parts) + 1))
        return
    nothing = [None] * len(first)
    columns = [first, *(nothing if each is None or each is ABSENT else each for each in others)]
    for cells in zip(*columns, strict=True):
        yield (*head, *cells, None)
