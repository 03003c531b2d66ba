"""The document formats. Each writer streams: nothing but rejected rows waits for the end."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import orjson

from seqloss_cli.core.byte_spans import char_end_bytes
from seqloss_cli.core.records import SCHEMA_VERSION, Rejected, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.writing.rows import (
    Row,
    RowOptions,
    numbers_or_null,
    rejected_row,
    sequence_row,
    top_log_probs,
    totals_row,
)

_SPOOLED_IN_MEMORY = 1 << 20
_TERMINAL_CONTROLS = re.compile(  # DEL and C1, bidirectional controls, line separators
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


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


@dataclass(frozen=True, slots=True)
class RowMakers(Generic[Result, Sums]):
    """How results and sums become JSON objects."""

    of_sequence: Callable[[Result, Sums], Row]
    of_totals: Callable[[Sums, int, int], Row]
    """Of the sums, and the numbers of rejected inputs and empty lines."""
    summary: bool = False
    """Leave the sequences out."""


def score_rows(options: RowOptions) -> RowMakers[SequenceScore, Totals]:
    return RowMakers(
        lambda score, totals: sequence_row(score, totals, options), totals_row, options.summary
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


class _Document:
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


class JsonWriter(_Document, Generic[Result, Sums]):
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


class OpenAIWriter(_Document):
    """The legacy completions object with `logprobs`, a choice for each sequence.

    Log-probabilities in nats; `text_offset` in characters; `top_logprobs` is null unless --top-k
    asked for it. `seqloss` holds the run, rejected inputs and totals.
    """

    def __init__(self, sink: BinaryIO, options: RowOptions) -> None:
        super().__init__(sink)
        self._options = options

    def begin(self, run: RunInfo) -> None:
        self._run, self._index = json_bytes(asdict(run)), 0
        self._sink.write(
            b'{"object":"text_completion","model":%s,\n"choices":[' % json_bytes(run.model)
        )

    def sequence(self, result: SequenceScore, sums: Totals) -> None:
        if self._options.summary:
            return
        score, tokens = result, self._options.token_texts(result.sequence)
        top = None
        if score.top_ids is not None:
            top = [
                None if row is None else {entry["token"]: entry["log_prob"] for entry in row}
                for row in top_log_probs(score, self._options.name_token)
            ]
        choice = {
            "index": self._index,
            "id": score.sequence.sample.id,
            "text": score.sequence.text if self._options.text else None,
            "finish_reason": "length",
            "logprobs": {
                "tokens": tokens,
                "token_logprobs": numbers_or_null(0.0 - score.losses, score.scored),
                "top_logprobs": top,
                "text_offset": _char_offsets(score),
            },
        }
        self._index += 1
        self._element(choice)

    def end(self, sums: Totals, n_rejected: int, n_empty_lines: int) -> None:
        closing = json_bytes(totals_row(sums, n_rejected, n_empty_lines))
        self._sink.write(b'],\n"seqloss":{"run":' + self._run + b',"rejected":[')
        self._write_rejected()
        self._sink.write(b'],"totals":' + closing + b"}}\n")


def _char_offsets(score: SequenceScore) -> list[int] | None:
    """For each token the character in which its first byte lies."""
    text, offsets = score.sequence.text, score.sequence.byte_offsets
    if text is None or offsets is None:
        return None
    starts = char_end_bytes(text).searchsorted(offsets[:-1], side="right")
    return [int(start) for start in starts]
