"""Choose rows of results, or of the inputs that they came from: by a condition, a sample, buckets.

Rows are read one at a time and written as they were. Of a sample the numbers of its rows are kept,
of inputs 64 bits of each chosen row.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from seqloss_cli.analysis.conditions import Condition, ConditionError, Path
from seqloss_cli.core.errors import UsageError, did_you_mean
from seqloss_cli.core.records import Floats, Item, Rejected, Sample
from seqloss_cli.results.schema import Fields, Kind, RowKind, json_bytes
from seqloss_cli.results.schema.score_keys import SCORE_KEYS
from seqloss_cli.results.schema.scores import ResultRow, totals_of_row

BUCKET = "bucket"
"""The key that rows get, and the column of conditions: 1 is the bucket of the lowest values."""
_META, _FLAGS = "meta", "flags"
_PLAIN = {key.name: key for key in SCORE_KEYS if key.kind in (Kind.text, Kind.whole, Kind.real)}
"""Columns of rows that hold one value."""
_OBJECTS = ("separate",)
_SOMETIMES = ("n_inf_losses_y", "separate", "separate_minus_joint")
"""Keys that rows may have though the first has none."""


def select_kinds() -> dict[str, RowKind[ResultRow]]:
    """Return how rows are read to be chosen among: their sums are checked, their arrays are not."""
    kind = RowKind(
        lambda record, place: ResultRow(place, record, totals_of_row(record), None),
        "total_loss",
        lambda row: None if row.totals.n_infinite else row.totals.loss_units,
    )
    return {"score": kind, "cond": kind}


Chosen = tuple[int, int | None]
"""The key of a row's input, and its bucket."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The number of rows that are drawn of each group."""

    n: int
    by: Path | None
    """Column of groups; None for one group of all."""
    seed: int


@dataclass(frozen=True, slots=True)
class Buckets:
    """Cuts of a column at the quantiles of a reference set."""

    by: Path
    cuts: Floats
    """Ascending, one fewer than there are buckets; in the unit of the column. Shape N."""

    def of(self, value: Any) -> int | None:
        """Return the bucket of a value, from 1; one at a cut is in the bucket below it."""
        if value is None:
            return None
        return 1 + int(np.searchsorted(self.cuts, value, side="left"))


@dataclass(slots=True)
class Counts:
    """Rows by what became of them."""

    n_rows: int = 0
    n_held: int = 0
    """Rows of which the condition holds."""
    n_null_rows: int = 0
    """Rows in which a comparison met null."""
    nulls: Counter[str] = field(default_factory=Counter)
    """Columns that were null in these."""
    n_without_bucket: int = 0
    n_without_group: int = 0
    groups: Counter[Any] = field(default_factory=Counter)
    """Rows of each group that the condition holds of."""


class Chooser:
    """Judges rows by a condition. Raises UsageError for columns that rows have not."""

    def __init__(
        self, condition: Condition | None, buckets: Buckets | None, sampling: Sampling | None
    ) -> None:
        self._condition, self.buckets, self.sampling = condition, buckets, sampling
        self.counts = Counts()
        self._columns = dict[Path, str]()
        if buckets is not None:
            self._columns[buckets.by] = "--bucket-by"
        if sampling is not None and sampling.by is not None:
            self._columns[sampling.by] = "--by"
        self._columns |= dict.fromkeys(condition.columns if condition else (), "--where")
        self._unseen = {path for path in self._columns if path[0] in (_META, _FLAGS)}
        self._heaps: dict[Any, list[tuple[float, int, Chosen]]] = {}
        self._generator = np.random.default_rng(sampling.seed if sampling else 0)

    def bucket_of(self, row: ResultRow) -> int | None:
        """Return the row's bucket; None without buckets, or where its value is null."""
        buckets = self.buckets
        if buckets is None:
            return None
        return buckets.of(number_at(row, buckets.by, "--bucket-by"))

    def holds(self, row: ResultRow) -> bool:
        """Count a row, and return whether the condition holds of it."""
        counts, fields = self.counts, row.fields
        if not counts.n_rows:
            self._check(row)
        counts.n_rows += 1
        self._unseen = {path for path in self._unseen if not _has(fields, path)}
        bucket = self.bucket_of(row)
        counts.n_without_bucket += self.buckets is not None and bucket is None
        if self._condition is not None and not self._asked(self._condition, row, bucket):
            return False
        counts.n_held += 1
        return True

    def _asked(self, condition: Condition, row: ResultRow, bucket: int | None) -> bool:
        def value_of(path: Path) -> Any:
            own = path == (BUCKET,) and self.buckets is not None
            return bucket if own else value_at(row.fields, path)

        try:
            held = condition.holds(value_of)
        except ConditionError as error:
            raise UsageError(f"--where: {row.place}: {error}") from None
        if condition.met_null:
            self.counts.n_null_rows += 1
            self.counts.nulls.update(
                ".".join(path) for path in condition.columns if value_of(path) is None
            )
        return held

    def draw(self, row: ResultRow, chosen: Chosen = (0, None)) -> None:
        """Let a row of which the condition holds take part in the draw; `chosen` tells of it."""
        sampling, number = self.sampling, self.counts.n_rows - 1
        assert sampling is not None
        value: Any = None
        if sampling.by is not None:
            value = self._group_of(row, sampling.by)
            self.counts.n_without_group += value is None
        # By type, too: 1, 1.0 and True are equal, but not one value of a column.
        group = (type(value).__name__, value)
        self.counts.groups[group] += 1
        heap = self._heaps.setdefault(group, [])
        # The n rows with the least random numbers; the heap has the greatest of them on top.
        entry = (-float(self._generator.random()), number, chosen)
        if len(heap) < sampling.n:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)

    def _group_of(self, row: ResultRow, by: Path) -> Any:
        own = by == (BUCKET,) and self.buckets is not None
        value = self.bucket_of(row) if own else value_at(row.fields, by)
        return json_bytes(value).decode() if isinstance(value, list | dict) else value

    def drawn(self) -> tuple[set[int], list[Chosen]]:
        """Return the numbers of the rows that were drawn, and what was told of them."""
        entries = [entry for heap in self._heaps.values() for entry in heap]
        return {number for _, number, _ in entries}, [chosen for _, _, chosen in entries]

    def require_seen(self, drops_fields: bool) -> None:
        """Raise UsageError where no row had a field of `meta` that was named."""
        unseen = [path for path in self._unseen if path[0] == _META]
        for path in sorted(unseen) if self.counts.n_rows else ():
            kept = "; those of the inputs need --keep-meta" if drops_fields else ""
            raise UsageError(f"{self._columns[path]}: no row has {'.'.join(path)}{kept}")

    @property
    def unseen_flags(self) -> list[str]:
        """Flags that were named and that no row has: each is 0 everywhere."""
        return sorted(".".join(path) for path in self._unseen if path[0] == _FLAGS)

    def _check(self, row: ResultRow) -> None:
        """Raise UsageError for a column that rows of this run have not."""
        for path, flag in self._columns.items():
            name, own = ".".join(path), path[0]
            if path == (BUCKET,) and self.buckets is not None and flag != "--bucket-by":
                continue
            if path == (BUCKET,) and BUCKET in row.fields:  # of an earlier selection
                continue
            known = own in _PLAIN or own in (_META, _FLAGS, *_OBJECTS)
            is_there = own in row.fields or own in _SOMETIMES or own in (_META, _FLAGS)
            if known and not _PLAIN.get(own, _ALWAYS).when:
                is_there = True
            whole = (len(path) == 1 and own in _PLAIN) or (len(path) > 1 and own not in _PLAIN)
            if not (known and is_there and whole):
                raise _unknown(flag, name, row)


_ALWAYS = _PLAIN["id"]


def _unknown(flag: str, name: str, row: ResultRow) -> UsageError:
    columns = [each for each in row.fields if each in _PLAIN]
    meta = row.fields.get(_META)
    fields = [f"{_META}.{each}" for each in meta] if isinstance(meta, Mapping) else []
    near = [f"{_META}.{name}"] if f"{_META}.{name}" in fields else [*columns, *fields]
    return UsageError(
        f"{flag}: {row.place.rpartition(':')[0]} has no column {name!r}{did_you_mean(name, near)}; "
        f"columns: {', '.join([*columns, *fields, f'{_FLAGS}.NAME'])}"
    )


def column_path(name: str) -> Path:
    """Return the path of a column that an option names: `meta.lang`, `n_tokens`."""
    own, dot, inner = name.partition(".")
    return (own, inner) if dot else (own,)


def value_at(fields: Fields, path: Path) -> Any:
    """Return the value of a column, None where the row has none; of flags the count."""
    value: Any = fields
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return 0 if value is None and path[0] == _FLAGS else value


def _has(fields: Fields, path: Path) -> bool:
    value: Any = fields
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def number_at(row: ResultRow, path: Path, flag: str) -> float | None:
    """Return the number of a column. Raises UsageError for a value that is none."""
    value = value_at(row.fields, path)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise UsageError(f"{flag} {'.'.join(path)}: {row.place} has {value!r:.60}, and no number")
    return value


def buckets_of(rows: Iterable[ResultRow], by: Path, n: int) -> tuple[Buckets, int]:
    """Return n buckets of a column, cut at the quantiles of its values in rows; and the nulls.

    Raises UsageError where no row has a value.
    """
    values, n_null, probe = array("d"), 0, Chooser(None, Buckets(by, np.empty(0)), None)
    for row in rows:
        probe.holds(row)
        if (value := number_at(row, by, "--bucket-by")) is None:
            n_null += 1
        else:
            values.append(value)
    probe.require_seen(False)
    if not values:
        raise UsageError(f"--reference: no row has a value of {'.'.join(by)}")
    return Buckets(by, np.quantile(np.array(values), np.arange(1, n) / n)), n_null


def row_bytes(raw: bytes | None, fields: Fields, bucket: int | None, adds_bucket: bool) -> bytes:
    """Return the line of a row as it was written, with its bucket where that is added."""
    if raw is None or (adds_bucket and BUCKET in fields):
        raw = json_bytes({"type": "sequence", **{n: v for n, v in fields.items() if n != BUCKET}})
    return with_bucket(raw, bucket) if adds_bucket else raw


def with_bucket(line: bytes, bucket: int | None) -> bytes:
    """Return the line of an object with its bucket as the last key."""
    # Not parsed and written again: numbers keep the digits that they were written with.
    before = line.rstrip()[:-1].rstrip()
    comma = b"" if before.endswith(b"{") else b","
    return before + comma + b'"%s":%s}' % (BUCKET.encode(), json_bytes(bucket))


# -- inputs ----------------------------------------------------------------------------------------


def key_of_row(fields: Fields) -> tuple[int, bool]:
    """Return 64 bits of a row's id and hashes, and whether the text is among them."""
    # Of a chat the text is the template's, and of ids the hash is of tokens: inputs have neither.
    is_chat = fields.get("n_response_tokens") is not None and fields.get("boundary") is None
    text = None if is_chat else fields.get("text_sha256")
    return _key(_own_id(fields), text, fields.get("response_sha256")), text is not None


def key_of_sample(sample: Sample) -> int:
    """Return what `key_of_row` does of the row that an input has."""
    pair = sample.pair
    text = sample.text if pair is None else pair.text
    hashes = (
        _sha256(None if sample.chat is not None else text),
        _sha256(None if pair is None else pair.response),
    )
    return _key(_own_id({"id": sample.id, "source": sample.source, "line": sample.line}), *hashes)


def _own_id(fields: Fields) -> str:
    """Return an id, or the line alone where it was made of file and line: files are renamed."""
    made = f"{fields.get('source')}:{fields.get('line')}"
    return f"\0{fields.get('line')}" if fields["id"] == made else str(fields["id"])


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _key(*parts: str | None) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(b"\0" if part is None else b"\1" + part.encode() + b"\0")
    return int.from_bytes(digest.digest(), "little")


class ChosenInputs:
    """Inputs whose rows were chosen, as often as they were."""

    def __init__(self, chosen: Iterable[Chosen], adds_bucket: bool) -> None:
        """With `adds_bucket` each gets its bucket."""
        keys, buckets = array("Q"), array("i")
        for key, bucket in chosen:
            keys.append(key)
            buckets.append(bucket or 0)
        self._keys, first, self._left = np.unique(
            np.array(keys, dtype=np.uint64), return_index=True, return_counts=True
        )
        self._buckets, self._adds_bucket = np.array(buckets)[first], adds_bucket
        self.n_written = 0
        self.n_alike = 0
        """Inputs that a chosen row may have come from, too: their id and text are the same."""

    def lines(self, rows: Iterable[tuple[Item, bytes | None]]) -> Iterator[bytes]:
        """Yield the bytes of those of the rows that were chosen, in order.

        Raises UsageError for a file that cannot be read, and a row that has a bucket of its own.
        """
        for item, raw in rows:
            if isinstance(item, Rejected) and item.line is None:
                raise UsageError(f"--inputs {item.source}: {item.message}")
            if raw is None or isinstance(item, Rejected):
                continue
            if (place := self._taken(key_of_sample(item))) is None:
                continue
            self.n_written += 1
            if not self._adds_bucket:
                yield raw
                continue
            if BUCKET in orjson.loads(raw):
                raise UsageError(f"--buckets: {item.source}:{item.line} has a {BUCKET!r} already")
            yield with_bucket(raw, int(self._buckets[place]) or None)

    @property
    def n_missing(self) -> int:
        """Chosen rows that no input was found for."""
        return int(self._left.sum())

    def _taken(self, key: int) -> int | None:
        """Return the place of a key that is left, which is taken; None where there is none."""
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        if place == len(self._keys) or int(self._keys[place]) != key:
            return None
        if not self._left[place]:
            self.n_alike += 1
            return None
        self._left[place] -= 1
        return place
