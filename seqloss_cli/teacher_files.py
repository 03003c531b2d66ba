"""What is kept of a teacher's distributions, so that it need not be loaded again.

JSONL: a line that says which teacher, tokenizer and windows; a line for each sequence, by the
SHA-256 of its ids, with the teacher's K most probable ids, their log-probabilities, its losses and
the entropies of its whole distributions (base64 of little-endian int32, float32, float64 and
float64); and a line with the error that the K ids make for the student they were saved beside.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from seqloss_cli.errors import RowError, UsageError
from seqloss_cli.records import Bools, SavedGold, SequenceScore, TokenSequence

KIND, VERSION = "seqloss teacher", 1
_DTYPES = {"top_ids": "<i4", "top_log_probs": "<f4", "losses": "<f8", "entropies": "<f8"}
_KEY = slice(8, 72)
"""Where a sequence's line has its key."""


def key_of(sequence: TokenSequence) -> str:
    """SHA-256 of the ids and of which of them are scored."""
    parts = (sequence.token_ids.astype("<i8"), _scored(sequence).astype("u1"))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _scored(sequence: TokenSequence) -> Bools:
    scored = sequence.wanted.copy()
    scored[0] = False
    return scored


class TeacherWriter:
    """Writes a file of a teacher, a sequence at a time."""

    def __init__(self, sink: BinaryIO, header: Mapping[str, Any]) -> None:
        self._sink = sink
        self._line({"type": KIND, "version": VERSION, **header})

    def write(self, score: SequenceScore) -> None:
        """A sequence that a teacher was asked about, with its best ids."""
        sequence, further = score.sequence, score.further
        scored = score.scored
        columns = {
            "top_ids": further["top_ids"],
            "top_log_probs": further["top_log_probs"],
            "losses": further["teacher_losses"],
            "entropies": further["teacher_entropies"],
        }
        row: dict[str, Any] = {"key": key_of(sequence), "n": int(scored.sum())}
        for name, dtype in _DTYPES.items():
            raw = np.ascontiguousarray(columns[name][scored].astype(dtype)).tobytes()
            row[name] = base64.b64encode(raw).decode()
        self._line(row)

    def end(self, measured: Mapping[str, Any]) -> None:
        self._line({"type": "end", "measured": measured})

    def _line(self, row: Mapping[str, Any]) -> None:
        self._sink.write(orjson.dumps(row) + b"\n")


class TeacherFile:
    """A file of a teacher that was read through once: `header`, `measured`, and where its rows are.

    Raises UsageError for what is no such file, or was cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, int] = {}
        last = b""
        try:
            self._file = path.open("rb")
            self.header = self._header(self._file.readline())
            place = self._file.tell()
            for last in self._file:
                if last.startswith(b'{"key":"'):
                    self._places[last[_KEY].decode()] = place
                place += len(last)
            end = orjson.loads(last)
        except (OSError, orjson.JSONDecodeError) as error:
            raise UsageError(f"--teacher {path}: cannot be read: {error}") from error
        if end.get("type") != "end":
            raise UsageError(f"--teacher {path}: is not whole: its end is missing")
        self.measured: dict[str, Any] = end["measured"]

    def _header(self, line: bytes) -> dict[str, Any]:
        found = orjson.loads(line)
        if not isinstance(found, dict) or found.get("type") != KIND:
            raise UsageError(f"--teacher {self.path}: is neither a model nor a saved teacher")
        if found.get("version") != VERSION:
            raise UsageError(f"--teacher {self.path}: was written by a newer seqloss")
        return found

    def with_saved(self, sequence: TokenSequence) -> SavedGold:
        """What the file knows of a sequence; raises RowError where that is nothing."""
        place = self._places.get(key_of(sequence))
        if place is None:
            raise RowError("not_in_teacher", f"{self.path} knows nothing of this text's tokens")
        self._file.seek(place)
        row, scored = orjson.loads(self._file.readline()), _scored(sequence)
        if row["n"] != scored.sum():
            raise RowError("not_in_teacher", f"{self.path} is damaged at this text")
        found = {name: self._column(row, name, scored) for name in _DTYPES}
        return SavedGold(
            top_ids=found["top_ids"].astype(np.int64),
            top_log_probs=found["top_log_probs"].astype(np.float64),
            losses=found["losses"],
            entropies=found["entropies"],
        )

    def _column(self, row: Mapping[str, Any], name: str, scored: Bools) -> NDArray[Any]:
        """Values at their tokens; elsewhere 0."""
        values = np.frombuffer(base64.b64decode(row[name]), dtype=_DTYPES[name])
        width = int(self.header["top_k"])
        if name.startswith("top_"):
            values = values.reshape(-1, width)
        column = np.zeros((len(scored), *values.shape[1:]), dtype=values.dtype)
        column[scored] = values
        return column


def looks_saved(name: str) -> bool:
    """Whether a teacher's name is that of a file, not of a model."""
    return Path(name).is_file() and not name.endswith(".gguf")


class SavedSums:
    """Writes sequences to a file as they are scored, and measures what is lost by it."""

    def __init__(self, writer: TeacherWriter, student: str, top_k: int) -> None:
        self._writer, self._student, self._top_k = writer, student, top_k
        self._whole, self._in_part, self._n = [0.0], [0.0], 0

    def add(self, score: SequenceScore) -> None:
        """A sequence that was scored beside its teacher."""
        self._writer.write(score)
        counted = score.counted
        self._n += int(counted.sum())
        for sums, name in ((self._whole, "kls"), (self._in_part, "kls_in_part")):
            sums.append(math.fsum(score.further[name][counted].tolist()))

    def measured(self) -> dict[str, Any]:
        """Mean KL per token of the student, whole and by what is saved."""
        whole, in_part = (math.fsum(sums) for sums in (self._whole, self._in_part))
        return {
            "model": self._student,
            "top_k": self._top_k,
            "n_scored": self._n,
            "mean_kl": _mean(whole, self._n),
            "mean_kl_in_part": _mean(in_part, self._n),
            "error": _mean(whole - in_part, self._n),
        }


def _mean(total: float, n: int) -> float | None:
    return total / n if n and math.isfinite(total) else None
