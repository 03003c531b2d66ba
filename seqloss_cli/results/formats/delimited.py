"""CSV and TSV for spreadsheets and data frames: a header, then a line for each input, token, word
or region.

Neither the run nor the totals are in them, nor what is nested. UTF-8, lines end with a line feed,
unknown cells are empty, floats read back as the same float64. Texts that a spreadsheet would take
for a formula get a ' in front.
"""

from __future__ import annotations

import csv
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from seqloss_cli.core.columns import cell_columns
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejected, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.metrics.words import region_losses, word_losses
from seqloss_cli.results.formats.json import json_bytes
from seqloss_cli.results.writing.columns import Kind, columns_of
from seqloss_cli.results.writing.rows import (
    Row,
    RowOptions,
    numbers_or_null,
    region_rows,
    rejected_row,
    sequence_row,
)

Cell = str | int | float | None
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ROW_END = "\r\n"  # so that the csv module quotes texts that hold either of the two
_APART = ("n_scored", "loss", "mean_loss", "log_prob_y_given_x")
_ENDS = ("start", "end", "reason")
_CELLS = (Kind.text, Kind.whole, Kind.real)


class SequenceLines:
    """A line for each input: counts, sums and rates."""

    def __init__(self, sink: BinaryIO, options: RowOptions, delimiter: str) -> None:
        self._lines = _Lines(sink, delimiter)
        self._options = replace(options, tokens=False, words=False, regions=False)

    def begin(self, run: RunInfo) -> None:
        self._names = [
            name
            for column, kind in columns_of(self._options, run).items()
            for name in _names_of(column, kind)
        ]
        self._lines.write([self._names])

    def sequence(self, result: SequenceScore, sums: Totals) -> None:
        self._write(sequence_row(result, sums, self._options))

    def reject(self, rejected: Rejected) -> None:
        self._write(rejected_row(rejected))

    def end(self, sums: Totals, n_rejected: int, n_empty_lines: int) -> None:
        """The totals are no line."""

    def _write(self, row: Row) -> None:
        self._lines.write([[_cell_of(row, name) for name in self._names]])


class TokenLines:
    """A line for each token; a rejected input has one with its reason."""

    def __init__(self, sink: BinaryIO, options: RowOptions, delimiter: str) -> None:
        self._lines = _Lines(sink, delimiter)
        self._options = options

    def begin(self, run: RunInfo) -> None:
        asked = self._options
        self._names = ["id", "line", "position", "token_id", "token"]
        self._names += ["part"] * (run.pairs is not None)
        self._names += ["loss", "scored", "loss_mask", "start", "end"]
        self._names += [column.csv for column in cell_columns(asked.columns)]
        self._names += ["context_length"] * asked.context_lengths + ["reason"]
        self._lines.write([self._names])

    def sequence(self, result: SequenceScore, sums: Totals) -> None:
        known = _token_cells(result, self._options)
        nothing: list[Cell] = [None] * result.sequence.n_tokens
        self._lines.write(zip(*(known.get(name, nothing) for name in self._names), strict=True))

    def reject(self, rejected: Rejected) -> None:
        row = rejected_row(rejected)
        self._lines.write([[row.get(name) for name in self._names]])

    def end(self, sums: Totals, n_rejected: int, n_empty_lines: int) -> None:
        """The totals are no line."""


class _PartLines(ABC):
    """A line for each part of a text; a rejected input has one with its reason."""

    def __init__(self, sink: BinaryIO, options: RowOptions, delimiter: str) -> None:
        self._lines, self._options = _Lines(sink, delimiter), options
        self._names = self._columns()

    def begin(self, run: RunInfo) -> None:
        self._lines.write([self._names])

    def sequence(self, result: SequenceScore, sums: Totals) -> None:
        sample = result.sequence.sample
        for row in self._rows(result):
            row |= {"id": sample.id, "line": sample.line, "bits": _bits(row["loss"])}
            self._write(row)

    def reject(self, rejected: Rejected) -> None:
        self._write(rejected_row(rejected))

    def end(self, sums: Totals, n_rejected: int, n_empty_lines: int) -> None:  # noqa: B027
        """The totals are no line."""

    def _write(self, row: Row) -> None:
        self._lines.write([[row.get(name) for name in self._names]])

    @abstractmethod
    def _columns(self) -> list[str]: ...

    @abstractmethod
    def _rows(self, score: SequenceScore) -> Iterator[Row]: ...


class WordLines(_PartLines):
    """A line for each word; `start` and `end` in bytes. An input without a text has a bare one."""

    def _columns(self) -> list[str]:
        corrected = ["corrected_loss"] * (self._options.marks is not None)
        return ["id", "line", "position", "word", "loss", "bits", *corrected, *_ENDS]

    def _rows(self, score: SequenceScore) -> Iterator[Row]:
        found = word_losses(score, self._options.marks)
        if found is None:
            yield {"loss": None}
            return
        for n, (start, end) in enumerate(found.byte_offsets.tolist()):
            row: Row = {"position": n, "word": found.words[n], "loss": found.losses[n]}
            if found.corrected is not None:
                row["corrected_loss"] = found.corrected[n]
            yield row | {"start": start, "end": end}


class RegionLines(_PartLines):
    """A line for each region; `start` and `end` in characters."""

    def _columns(self) -> list[str]:
        names = ["id", "line", "item", "condition", "region", "name"]
        names += ["text"] * self._options.text + ["n_tokens", "loss", "bits", "mean_loss"]
        names += ["corrected_loss"] * (self._options.marks is not None)
        return [*names, "shared", *_ENDS]

    def _rows(self, score: SequenceScore) -> Iterator[Row]:
        found, asked = region_losses(score, self._options.marks), score.sequence.sample.regions
        assert found is not None
        assert asked is not None
        for n, row in enumerate(region_rows(found, self._options.text)):
            row |= {"item": asked.item, "condition": asked.condition, "region": n + 1}
            yield row | {"shared": int(found.shared[n])}


def _bits(nats: float | None) -> float | None:
    return None if nats is None else nats / math.log(2)


def _names_of(column: str, kind: Kind) -> Iterator[str]:
    """The columns that one of JSON becomes; none for what no cell can hold."""
    if column == "separate":
        yield from (f"separate.{name}" for name in _APART)
    elif column != "type" and (kind in _CELLS or column in ("flags", "meta")):
        yield column


def _cell_of(row: Row, name: str) -> Cell:
    parent, _, child = name.partition(".")
    value: Any = row.get(parent)
    if value is not None and child:
        value = value[child]
    elif value is not None and name == "flags":
        value = ";".join(_flag(*flag) for flag in value.items())
    elif value is not None and name == "meta":
        value = json_bytes(value).decode()
    cell: Cell = value  # _names_of leaves no others
    return cell


def _flag(name: str, value: int | bool) -> str:
    return name if value is True else f"{name}={value}"


def _token_cells(score: SequenceScore, options: RowOptions) -> Mapping[str, Sequence[Cell]]:
    """Of each column what stands in it for each token; empty where nothing was scored."""
    sequence, n = score.sequence, score.sequence.n_tokens
    cells: dict[str, Sequence[Cell]] = {
        "id": [sequence.sample.id] * n,
        "line": [sequence.sample.line] * n,
        "position": range(n),
        "token_id": sequence.token_ids.tolist(),
        "token": options.token_texts(sequence),
        "part": ["y" if counts else "x" for counts in sequence.loss_mask],
        "loss": numbers_or_null(score.losses, score.scored),
        "scored": score.scored.astype(int).tolist(),
        "loss_mask": sequence.loss_mask.astype(int).tolist(),
    }
    if (offsets := sequence.byte_offsets) is not None:
        cells |= {"start": offsets[:-1].tolist(), "end": offsets[1:].tolist()}
    cells["context_length"] = numbers_or_null(score.context_lengths, score.scored)
    for column in cell_columns(options.columns):
        cells[column.csv] = numbers_or_null(score.columns[column.name], score.scored)
    return cells


class _Lines:
    """Cells to bytes. Where a terminal shows them, texts are escaped; a file holds them as they
    are."""

    def __init__(self, sink: BinaryIO, delimiter: str) -> None:
        self._sink, self._buffer = sink, io.StringIO(newline="")
        self._writer = csv.writer(self._buffer, delimiter=delimiter, lineterminator=_ROW_END)
        self._shown = escape if sink.isatty() else str

    def write(self, rows: Iterable[Sequence[Cell]]) -> None:
        for row in rows:
            self._writer.writerow([self._safe(c) if isinstance(c, str) else c for c in row])
            line = self._buffer.getvalue().removesuffix(_ROW_END) + "\n"
            self._sink.write(line.encode())
            self._buffer.seek(0)
            self._buffer.truncate()
        self._sink.flush()

    def _safe(self, text: str) -> str:
        return self._shown("'" + text if text.startswith(_FORMULA) else text)
