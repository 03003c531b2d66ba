"""Labels that somebody's training pipeline wrote: rows of `input_ids` and `labels`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from seqloss_cli.conditional import ChainRule
from seqloss_cli.errors import RowError
from seqloss_cli.labels import Labels
from seqloss_cli.paths import shown_path
from seqloss_cli.reading.rows import own_id_of, parse_object, whole_numbers
from seqloss_cli.reading.streams import BOM, bounded_lines, open_input
from seqloss_cli.records import Rejected, Sample


@dataclass(frozen=True, slots=True)
class _LabelRow:
    line: int
    id: str | None
    labels: Labels | RowError


class LabelFile:
    """Finds the labels of each input: by `id` where the first row that can be read has one, else by
    order, a row for each input, the rejected ones too. Rows of results that are no sequence (the
    run, totals) are passed over.

    Rows that come before the one that is looked for by id are kept for later, in memory.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name, self._source = name, shown_path(name)
        self._rows = self._read(max_bytes)
        self._by_id: bool | None = None
        self._kept: dict[str, _LabelRow] = {}
        self._failed: RowError | None = None
        self.unmatched: list[str] = []
        """Rows that could not be read and, ids being looked for, belong to no input."""

    def find(self, item: Sample | Rejected) -> Labels | Rejected:
        """The labels of an input, or why there are none: asked once for each input, in order."""
        row = self._row(item.id)
        if row is None:
            error = self._failed or RowError("no_labels", f"{self._source} has no labels for it")
            return Rejected(item.id, item.source, item.line, error.reason, error.message)
        if not self._by_id and row.id not in (None, item.id):
            error = RowError("no_labels", f"holds the labels of {row.id!r:.60}, not of {item.id!r}")
            return Rejected(item.id, self._source, row.line, error.reason, error.message)
        if isinstance(row.labels, RowError):
            error = row.labels
            return Rejected(item.id, self._source, row.line, error.reason, error.message)
        return row.labels

    def count_unused(self) -> int:
        """Rows that belong to no input."""
        n_left = 0
        while self._next_row() is not None:
            n_left += 1
        return len(self._kept) + n_left

    def _row(self, identity: str) -> _LabelRow | None:
        if self._by_id and identity in self._kept:
            return self._kept.pop(identity)
        while (row := self._next_row()) is not None:
            if self._by_id is None and not isinstance(row.labels, RowError):
                self._by_id = row.id is not None
            if not self._by_id or row.id == identity:
                return row
            self._keep(row)
        return None

    def _keep(self, row: _LabelRow) -> None:
        if row.id is not None:
            self._kept[row.id] = row
        elif isinstance(row.labels, RowError):
            self.unmatched.append(f"{self._source}:{row.line}: {row.labels.message}")

    def _next_row(self) -> _LabelRow | None:
        try:
            return next(self._rows, None)
        except RowError as error:
            self._failed = RowError(error.reason, f"{self._source} {error.message}")
            return None

    def _read(self, max_bytes: int) -> Iterator[_LabelRow]:
        with open_input(self._name) as (stream, _):
            for line, raw in enumerate(bounded_lines(stream, max_bytes), start=1):
                if line == 1 and raw is not None:
                    raw = raw.removeprefix(BOM)
                if raw != b"" and (row := _label_row(line, raw, max_bytes)) is not None:
                    yield row


def _label_row(line: int, raw: bytes | None, max_bytes: int) -> _LabelRow | None:
    """None for a row of results that is no sequence."""
    own_id = None
    try:
        if raw is None:
            raise RowError("too_long", f"line is longer than --max-bytes {max_bytes}")
        row = parse_object(raw)
        if row.get("type", "sequence") != "sequence":
            return None
        own_id = own_id_of(row)
        ChainRule.read(row)  # a row of results is refused if its figures cannot be
        name = "input_ids" if "input_ids" in row else "token_ids"
        for field in (name, "labels"):
            if field not in row:
                wanted = "input_ids" if field == name else field
                raise RowError("missing_field", f"has no field {wanted!r}")
        labels = Labels(whole_numbers(row[name], name), whole_numbers(row["labels"], "labels"))
        if len(labels.input_ids) != len(labels.labels):
            raise RowError(
                "bad_labels",
                f"has {len(labels.labels)} labels for {len(labels.input_ids)} {name}",
            )
        if not len(labels.labels):
            raise RowError("empty", "has no labels")
        return _LabelRow(line, own_id, labels)
    except RowError as error:
        return _LabelRow(line, own_id, error)
