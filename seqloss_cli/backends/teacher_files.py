"""Save a teacher's distributions in part, so that it need not be loaded again, and read them.

JSONL: a line that names teacher, tokenizer and windows; for each sequence, by the SHA-256 of its
ids, lines of at most `CHUNK` scored tokens with the columns of `SavedTeacherRows` (base64 of
little-endian numbers); and a line with the error that the K ids make for the student that they were
saved beside.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from array import array
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from seqloss_cli.core.errors import RowError, RunError, UsageError
from seqloss_cli.core.records import (
    Bools,
    Entry,
    Ints,
    Rejected,
    SavedTeacher,
    SavedTeacherRows,
    SequenceScore,
    TokenSequence,
    rejection,
)
from seqloss_cli.core.run_record import WEIGHTS

KIND, VERSION = "seqloss teacher", 1
CHUNK = 2048
_COLUMNS = {
    "top_ids": ("<i4", "teacher_top_ids"),
    "top_log_probs": ("<f8", "teacher_top_log_probs"),
    "rest_log_prob": ("<f8", "teacher_rest_log_prob"),
    "rest_own": ("<f8", "teacher_rest_p_log_p"),
    "losses": ("<f8", "teacher_losses"),
    "entropies": ("<f8", "teacher_entropies"),
}
"""Key of a line to the type of its numbers and their name where they are computed; in the order of
the fields of `SavedTeacherRows`."""
_HEADER = {"top_k": int, "n_words": int}
_PREFIX = b'{"key":"'
_KEY_CHARS = slice(len(_PREFIX), len(_PREFIX) + 64)


def key_of(sequence: TokenSequence) -> str:
    """Return the SHA-256 of the ids and of the mask of those that are scored."""
    parts = (sequence.token_ids.astype("<i8"), _scored(sequence).astype("u1"))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _scored(sequence: TokenSequence) -> Bools:
    scored = sequence.score_mask.copy()
    scored[0] = False
    return scored


class TeacherWriter:
    """A file of a teacher that is written, a sequence at a time; and its error: KL by the K ids
    that are kept beside KL by whole distributions."""

    def __init__(self, sink: BinaryIO, header: Mapping[str, Any], student: str) -> None:
        """`student` is the name of the model that the error is measured with."""
        self._sink, self._student, self._top_k = sink, student, header["top_k"]
        self._kls: dict[str, list[float]] = {"kls": [], "kls_in_part": []}
        self._n_scored = 0
        self._line({"type": KIND, "version": VERSION, **header})

    def add(self, score: SequenceScore) -> None:
        """Write a sequence that was scored beside the teacher, and count its divergences."""
        places, sequence_key = np.flatnonzero(score.scored), key_of(score.sequence)
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            row: dict[str, Any] = {"key": sequence_key, "n": len(chunk)}
            for key, (dtype, name) in _COLUMNS.items():
                column = score.columns[name][chunk].astype(dtype)
                row[key] = base64.b64encode(np.ascontiguousarray(column).tobytes()).decode()
            self._line(row)
        counted = score.counted
        if counted.any():
            self._n_scored += int(counted.sum())
            for name, sums in self._kls.items():
                sums.append(math.fsum(score.columns[name][counted].tolist()))

    def measured(self) -> dict[str, Any]:
        """Return the student's mean KL per token in nats, whole and by what is saved."""
        whole, in_part = map(math.fsum, self._kls.values())
        sums = {"mean_kl": whole, "mean_kl_in_part": in_part, "error": whole - in_part}
        return {"model": self._student, "top_k": self._top_k, "n_scored": self._n_scored} | {
            name: value / self._n_scored if self._n_scored and math.isfinite(value) else None
            for name, value in sums.items()
        }

    def end(self) -> None:
        """Write the last line, with the measured error: a file without it was cut off."""
        self._line({"type": "end", "measured": self.measured()})

    def _line(self, row: Mapping[str, Any]) -> None:
        self._sink.write(orjson.dumps(row) + b"\n")


class TeacherFile:
    """A file of a teacher: `header`, `measured`, and an index of its lines.

    Raises UsageError for another kind of file, and for one that was cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The next texts are looked up on another thread while rows of a batch are read: between
        # seek and read of one the other would move the place, and rows be another text's.
        self._lock = Lock()
        # Of each line 16 bytes are kept, a part of its key and its place: the file itself may be
        # larger than the memory, and is read where it is asked for.
        keys, places, last = array("Q"), array("Q"), b""
        try:
            self._file = path.open("rb")
            self.header = self._header(self._file.readline())
            place = self._file.tell()
            for last in self._file:
                if last.startswith(_PREFIX):
                    keys.append(_short(last[_KEY_CHARS]))
                    places.append(place)
                place += len(last)
            end = orjson.loads(last)
        except (OSError, ValueError) as error:
            raise UsageError(f"--teacher {path}: cannot be read: {error}") from error
        if not isinstance(end, dict) or end.get("type") != "end" or "measured" not in end:
            raise UsageError(f"--teacher {path}: is not whole: its end is missing")
        self.measured: dict[str, Any] = end["measured"]
        order = np.argsort(np.asarray(keys), kind="stable")
        self._keys, self._places = np.asarray(keys)[order], np.asarray(places)[order]

    def _header(self, line: bytes) -> dict[str, Any]:
        found = orjson.loads(line)
        if not isinstance(found, dict) or found.get("type") != KIND:
            raise UsageError(f"--teacher {self.path}: is neither a model nor a saved teacher")
        if found.get("version") != VERSION:
            raise UsageError(f"--teacher {self.path}: was written by a newer seqloss")
        if not all(isinstance(found.get(name), kind) for name, kind in _HEADER.items()):
            raise UsageError(f"--teacher {self.path}: its first line is damaged")
        return found

    def rows_of(self, sequence: TokenSequence) -> SavedTeacher:
        """Return the sequence's part of the file, of which one line is in memory at a time.

        Raises RowError where there is none.
        """
        key, scored = key_of(sequence), _scored(sequence)
        n_scored = int(scored.sum())
        n_lines = -(-n_scored // CHUNK)
        start = int(np.searchsorted(self._keys, _short(key.encode())))
        # A text that was saved twice has its lines twice: the first are taken.
        places = self._places[start : start + n_lines].tolist()
        # 64 bits of a key may be those of another sequence: the whole key decides.
        if len(places) < n_lines or (places and self._key_at(places[0]) != key.encode()):
            raise RowError("not_in_teacher", f"{self.path} knows nothing of this text's tokens")
        numbers = np.cumsum(scored) - 1

        @lru_cache(maxsize=1)
        def line(number: int) -> SavedTeacherRows:
            return self.line_at(places[number], min(CHUNK, n_scored - number * CHUNK))

        def at(targets: Ints) -> SavedTeacherRows:
            lines, rows = np.divmod(numbers[targets], CHUNK)
            return SavedTeacherRows.join(
                line(number).take(rows[lines == number]) for number in np.unique(lines).tolist()
            )

        return at

    @property
    def vocab_size(self) -> int:
        """Ids that the teacher has logits for."""
        return int(self.header["n_words"])

    def require_fits(self, described: Mapping[str, Any], n_logits: int) -> None:
        """Raises UsageError where the file is of other tokens, windows or ids; `described` is what
        a file of this run would say of the first two."""
        for name, value in described.items():
            if self.header.get(name) != value:
                flag = "" if name == "tokenizer_sha256" else f" (--{name.replace('_', '-')})"
                raise UsageError(
                    f"--teacher {self.path}: its {name} is {self.header.get(name)!r:.20}, "
                    f"this run's {value!r:.20}{flag}"
                )
        if n_logits < self.vocab_size:
            raise UsageError(
                f"--teacher {self.path} is of {self.vocab_size} words, this model has {n_logits} "
                "logits: name the teacher itself"
            )

    def attach(self, entry: Entry) -> Entry:
        """Return a sequence with what the file knows of it; rejected where that is nothing."""
        if isinstance(entry, Rejected):
            return entry
        try:
            return replace(entry, saved=self.rows_of(entry))
        except RowError as error:
            return rejection(entry.sample, error.reason, error.message)

    def record(self) -> dict[str, Any]:
        """Return what the run record says of the teacher."""
        names = ("model", *WEIGHTS, "dtype", "path")
        found = {name: self.header.get(name) for name in names}
        found |= {name: self.header[name] for name in ("n_words", "top_k")}
        return found | {"saved_as": str(self.path), "measured": self.measured}

    def _key_at(self, place: int) -> bytes:
        with self._lock:
            self._file.seek(place)
            return self._file.read(_KEY_CHARS.stop)[_KEY_CHARS]

    def line_at(self, place: int, n_least: int) -> SavedTeacherRows:
        """Return the columns of a line. Raises RunError where they are damaged."""
        with self._lock:
            self._file.seek(place)
            line = self._file.readline()
        try:
            row = orjson.loads(line)
            columns = [self._column(row, key, dtype) for key, (dtype, _) in _COLUMNS.items()]
            assert {len(column) for column in columns} == {row["n"]}
            assert row["n"] >= n_least
        except (ValueError, KeyError, TypeError, AssertionError, binascii.Error) as error:
            raise RunError(f"--teacher {self.path}: is damaged at byte {place}") from error
        return SavedTeacherRows(*columns)

    def _column(self, row: Mapping[str, Any], key: str, dtype: str) -> NDArray[Any]:
        values = np.frombuffer(base64.b64decode(row[key], validate=True), dtype=dtype)
        return values.reshape(-1, int(self.header["top_k"])) if key.startswith("top_") else values


def _short(key: bytes) -> int:
    """Return 64 bits of a key."""
    return int(key[:16], 16)


def looks_saved(name: str) -> bool:
    """Return whether a teacher's name is that of a file, not of a model."""
    try:
        return Path(name).is_file() and not name.lower().endswith(".gguf")
    except OSError:  # longer than a name may be
        return False
