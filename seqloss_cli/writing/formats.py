"""The document formats. Each writer streams: nothing but rejected rows waits for the end."""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict
from typing import Any, BinaryIO, Protocol

import orjson

from seqloss_cli.metrics import Totals
from seqloss_cli.records import Rejected, RunInfo, SequenceScore
from seqloss_cli.spans import char_end_bytes
from seqloss_cli.writing.rows import (
    RowOptions,
    numbers_or_null,
    rejected_row,
    sequence_row,
    top_log_probs,
    totals_row,
)

SCHEMA_VERSION = 1
_SPOOLED_IN_MEMORY = 1 << 20
_TERMINAL_CONTROLS = re.compile(  # DEL and C1, bidirectional controls, line separators
    "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


class Writer(Protocol):
    """`begin`, then `sequence` and `reject` in input order, then `end`."""

    def begin(self, run: RunInfo) -> None: ...
    def sequence(self, score: SequenceScore, totals: Totals) -> None: ...
    def reject(self, rejected: Rejected) -> None: ...
    def end(self, totals: Totals, n_rejected: int, n_empty_lines: int) -> None: ...


def _json(value: Any) -> bytes:
    """Compact UTF-8; floats in the shortest form that reads back as the same float64.

    Characters that a terminal would act on are escaped: JSON itself only asks for those below
    U+0020.
    """
    raw = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if raw.isascii() and b"\x7f" not in raw:
        return raw
    return _TERMINAL_CONTROLS.sub(lambda m: f"\\u{ord(m[0]):04x}", raw.decode()).encode()


class JsonlWriter:
    """A line `run`, a line for each input as soon as it is ready, a line `totals`."""

    def __init__(self, sink: BinaryIO, options: RowOptions) -> None:
        self._sink, self._options = sink, options

    def begin(self, run: RunInfo) -> None:
        self._line("run", {"schema_version": SCHEMA_VERSION, **asdict(run)})

    def sequence(self, score: SequenceScore, totals: Totals) -> None:
        if self._options.summary:
            return
        self._line("sequence", sequence_row(score, totals, self._options))

    def reject(self, rejected: Rejected) -> None:
        self._line("rejected", rejected_row(rejected))

    def end(self, totals: Totals, n_rejected: int, n_empty_lines: int) -> None:
        self._line("totals", totals_row(totals, n_rejected, n_empty_lines))

    def _line(self, kind: str, fields: dict[str, Any]) -> None:
        self._sink.write(_json({"type": kind, **fields}) + b"\n")
        if kind != "totals":
            self._sink.flush()


class _Document:
    """One JSON object with a long array in it, and rejected rows after that."""

    def __init__(self, sink: BinaryIO, options: RowOptions) -> None:
        self._sink, self._options = sink, options
        self._separator = b""
        self._rejected = tempfile.SpooledTemporaryFile(_SPOOLED_IN_MEMORY)  # noqa: SIM115

    def reject(self, rejected: Rejected) -> None:
        comma = b",\n" if self._rejected.tell() else b""
        self._rejected.write(comma + _json(rejected_row(rejected)))

    def _element(self, value: Any) -> None:
        self._sink.write(self._separator + _json(value))
        self._separator = b",\n"

    def _write_rejected(self) -> None:
        self._rejected.seek(0)
        while chunk := self._rejected.read(1 << 16):
            self._sink.write(chunk)
        self._rejected.close()


class JsonWriter(_Document):
    """`{"schema_version", "run", "sequences", "rejected", "totals"}`."""

    def begin(self, run: RunInfo) -> None:
        self._sink.write(
            b'{"schema_version":%d,"run":%s,\n"sequences":[' % (SCHEMA_VERSION, _json(asdict(run)))
        )

    def sequence(self, score: SequenceScore, totals: Totals) -> None:
        if self._options.summary:
            return
        self._element(sequence_row(score, totals, self._options))

    def end(self, totals: Totals, n_rejected: int, n_empty_lines: int) -> None:
        self._sink.write(b'],\n"rejected":[')
        self._write_rejected()
        closing = _json(totals_row(totals, n_rejected, n_empty_lines))
        self._sink.write(b'],\n"totals":' + closing + b"}\n")


class OpenAIWriter(_Document):
    """The legacy completions object with `logprobs`, a choice for each sequence.

    Log-probabilities in nats; `text_offset` in characters; `top_logprobs` is null unless --top-k
    asked for it. `seqloss` holds the run, rejected inputs and totals.
    """

    def begin(self, run: RunInfo) -> None:
        self._run, self._index = _json(asdict(run)), 0
        self._sink.write(b'{"object":"text_completion","model":%s,\n"choices":[' % _json(run.model))

    def sequence(self, score: SequenceScore, totals: Totals) -> None:
        if self._options.summary:
            return
        tokens = self._options.token_texts(score.sequence)
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

    def end(self, totals: Totals, n_rejected: int, n_empty_lines: int) -> None:
        closing = _json(totals_row(totals, n_rejected, n_empty_lines))
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
