"""The document formats. Each writer streams: nothing but rejected rows waits for the end."""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict
from typing import Any, BinaryIO, Generic

import orjson

from seqloss_cli.core.records import SCHEMA_VERSION, Rejected
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.results.schema import Result, RowMakers, Sums
from seqloss_cli.results.writing.rows import (
    rejected_row,
)

_SPOOLED_IN_MEMORY = 1 << 20
_TERMINAL_CONTROLS = re.compile(  # DEL and C1, bidirectional controls, line separators
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def json_bytes(value: Any) -> bytes:
    """Compact UTF-8; floats in the shortest form that reads back as the same float64.

    Characters that a terminal would act on are escaped: JSON itself only asks for those below
    U+0020.
    """
    raw = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if raw.isascii() and b"\x7f" not in raw:
        return raw
    return _TERMINAL_CONTROLS.sub(lambda m: f"\\u{ord(m[0]):04x}", raw.decode()).encode()


class JsonlWriter(Generic[Result, Sums]):
    """A line `run`, a line for each input as soon as it is ready, a line `totals`."""

    def __init__(self, sink: BinaryIO, rows: RowMakers[Result, Sums]) -> None:
        self._sink, self._rows = sink, rows

    def begin(self, run: RunInfo) -> None:
        self._line("run", {"schema_version": SCHEMA_VERSION, **asdict(run)})

    def sequence(self, result: Result, sums: Sums) -> None:
        if not self._rows.summary:
            self._line("sequence", self._rows.of_sequence(result, sums))

    def reject(self, rejected: Rejected) -> None:
        self._line("rejected", rejected_row(rejected))

    def end(self, sums: Sums, n_rejected: int, n_empty_lines: int) -> None:
        self._line("totals", self._rows.of_totals(sums, n_rejected, n_empty_lines))

    def _line(self, kind: str, fields: dict[str, Any]) -> None:
        self._sink.write(json_bytes({"type": kind, **fields}) + b"\n")
        if kind != "totals":
            self._sink.flush()


class Document:
    """One JSON object with a long array in it, and rejected rows after that."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._separator = b""
        self._rejected = tempfile.SpooledTemporaryFile(_SPOOLED_IN_MEMORY)  # noqa: SIM115

    def reject(self, rejected: Rejected) -> None:
        comma = b",\n" if self._rejected.tell() else b""
        self._rejected.write(comma + json_bytes(rejected_row(rejected)))

    def _element(self, value: Any) -> None:
        self._sink.write(self._separator + json_bytes(value))
        self._separator = b",\n"

    def _write_rejected(self) -> None:
        self._rejected.seek(0)
        while chunk := self._rejected.read(1 << 16):
            self._sink.write(chunk)
        self._rejected.close()


class JsonWriter(Document, Generic[Result, Sums]):
    """`{"schema_version", "run", "sequences", "rejected", "totals"}`."""

    def __init__(self, sink: BinaryIO, rows: RowMakers[Result, Sums]) -> None:
        super().__init__(sink)
        self._rows = rows

    def begin(self, run: RunInfo) -> None:
        self._sink.write(
            b'{"schema_version":%d,"run":%s,\n"sequences":['
            % (SCHEMA_VERSION, json_bytes(asdict(run)))
        )

    def sequence(self, result: Result, sums: Sums) -> None:
        if not self._rows.summary:
            self._element(self._rows.of_sequence(result, sums))

    def end(self, sums: Sums, n_rejected: int, n_empty_lines: int) -> None:
        self._sink.write(b'],\n"rejected":[')
        self._write_rejected()
        closing = json_bytes(self._rows.of_totals(sums, n_rejected, n_empty_lines))
        self._sink.write(b'],\n"totals":' + closing + b"}\n")
