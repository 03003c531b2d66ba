"""Cut inputs into N parts that as many runs read, each by itself: the same rows, whoever runs them.

Files whose rows can be found are laid end to end, and each shard has a stretch of their bytes: of
lines those that begin in it, of Parquet row groups or rows. Of all others, which can only be read
from the beginning, shard I has the records whose number leaves I when divided by N.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.urls import shown_name
from seqloss_cli.inputs.options import PARQUET, Kind, ReadOptions, is_packed, suffix_of
from seqloss_cli.inputs.streams import stored_size

VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "SKYPILOT_NODE_RANK")
"""Variables in which a scheduler tells a task its number."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """One of N parts of the inputs."""

    index: int
    """From 0."""
    of: int

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str]) -> Shard:
        """Return what `I/N` or `auto/N` says. Raises UsageError for any other text."""
        index, slash, of = text.partition("/")
        named = f"--shard {text}"
        if not (slash and _is_number(of) and int(of) and (index == "auto" or _is_number(index))):
            raise UsageError(f"{named}: give I/N, such as 0/8 to 7/8, or auto/N")
        if index == "auto":
            variable, index = _scheduled(named, environ)
            named += f" ({variable}={index})"
        if int(index) >= int(of):
            raise UsageError(
                f"{named}: there is no shard {index} of {of}; they are 0 to {int(of) - 1}"
            )
        return cls(int(index), int(of))


def _is_number(text: str) -> bool:
    # int() alone would take digits of other scripts, blanks and underscores, too.
    return text.isascii() and text.isdigit() and len(text) < 10


def _scheduled(named: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable with a task's number, and the number."""
    found = {name: environ[name] for name in VARIABLES if environ.get(name)}
    if not found:
        raise UsageError(f"{named}: none of {', '.join(VARIABLES)} is set; give the number itself")
    if len({*found.values()}) > 1:
        said = ", ".join(f"{name}={value}" for name, value in found.items())
        raise UsageError(f"{named}: {said} disagree; give the number itself")
    variable, index = next(iter(found.items()))
    if not _is_number(index):
        raise UsageError(f"{named}: {variable}={index!r:.40} is no number of a task")
    return variable, index


@dataclass(frozen=True, slots=True)
class Part:
    """The part of one input that a shard reads; by default all of it."""

    start: int = 0
    stop: int | None = None
    """Bytes of the file, as stored, in which its rows begin; None is the end of the file."""
    index: int = 0
    step: int = 1
    """Records whose number, from 0, leaves `index` when divided by `step`."""
    owns_file: bool = True
    """It tells of the file as a whole: that it is empty, say."""
    size: int = 0
    fair: tuple[int, int] = (1, 1)
    """Bytes of all files that are cut, and the number of shards: their quotient is a fair share."""

    def has(self, number: int) -> bool:
        """Return whether it has a record, counted from 1, of those between its ends."""
        return self.step == 1 or (number - 1) % self.step == self.index

    def go_to_start(self, stream: BinaryIO) -> int:
        """Go to the first line that begins in it; returns how many lines are before that one."""
        n_lines, left, last = 0, self.start, b"\n"
        # Counted, not parsed: at the speed of the disk.
        while left and (chunk := stream.read(min(left, _CHUNK))):
            n_lines += chunk.count(b"\n")
            left -= len(chunk)
            last = chunk[-1:]
        while last != b"\n" and (rest := stream.readline(_CHUNK)):
            last = rest[-1:]
            n_lines += last == b"\n"
        return n_lines

    def rows_of(self, groups: Sequence[tuple[int, int]]) -> Iterator[tuple[int, range]]:
        """Yield row groups with the rows of each that it has, counted from 0 in the whole file.

        `groups` are the rows and bytes of each. Whole groups where none is larger than a fair
        share, else rows.
        """
        n_rows, n_bytes = (sum(each) for each in zip(*groups, strict=True)) if groups else (0, 0)
        stop, (all_bytes, n_shards) = self.size if self.stop is None else self.stop, self.fair
        by_group = all(n * self.size * n_shards <= all_bytes * n_bytes for _, n in groups)
        first, end = 0, n_rows
        if self.stop is not None and not by_group:
            first, end = (-(-at * n_rows // self.size) for at in (self.start, stop))
        row = byte = 0
        for number, (n, weight) in enumerate(groups):
            own = range(max(row, first), min(row + n, end))
            if self.stop is not None and by_group:
                begins = self.size * byte // max(n_bytes, 1)
                own = own if self.start <= begins < stop else range(0)
            if own:
                yield number, own
            row, byte = row + n, byte + weight


WHOLE = Part()


class Cuts:
    """The parts of all inputs that one shard reads, or the whole of each where there is none."""

    def __init__(
        self, names: Sequence[str], options: ReadOptions, shard: Shard | None = None
    ) -> None:
        """Raises UsageError for a file that is named twice: its rows could not be told apart."""
        self.shard, self._kinds = shard, {name: options.kind_of(name) for name in names}
        self._starts: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self.n_bytes = 0
        """Bytes of the files that are cut by bytes."""
        self._all_sizes: list[int | None] = []
        if shard is None:
            return
        for name in names:
            if name in self._starts:
                raise UsageError(f"--shard: {shown_name(name)} is named twice")
            size = None if self._kinds[name] is Kind.dataset else stored_size(name)
            self._all_sizes.append(size)
            self._starts[name] = self.n_bytes
            if size is not None and self._is_cut_by_bytes(name):
                self._sizes[name] = size
                self.n_bytes += size

    def part_of(self, name: str) -> Part | None:
        """Return the part of an input; None where nothing of it is the shard's."""
        if self.shard is None:
            return WHOLE
        index, of = self.shard.index, self.shard.of
        if (size := self._sizes.get(name)) is None:
            return Part(index=index, step=of, owns_file=index == 0)
        first, end = (self.n_bytes * n // of for n in (index, index + 1))
        begins = self._starts[name]
        # Behind the last byte empty files may stand.
        owns = first <= begins < end or (begins >= self.n_bytes and index == of - 1)
        start, stop = max(first - begins, 0), min(end - begins, size)
        if not owns and (stop <= start or self._kinds[name] is Kind.text):
            return None
        fair = (self.n_bytes, of)
        return Part(start, max(start, stop), owns_file=owns, size=size, fair=fair)

    @property
    def span(self) -> tuple[int, int] | None:
        """Return the bytes of the shard, where all inputs are cut by bytes."""
        if self.shard is None or len(self._sizes) < len(self._kinds):
            return None
        index, of = self.shard.index, self.shard.of
        return self.n_bytes * index // of, self.n_bytes * (index + 1) // of

    def described(self) -> dict[str, Any]:
        """Return what the run's record tells of the shard: cuts follow from these.

        Sizes of all files show that one changed, however it is cut.
        """
        if self.shard is None:
            return {}
        cut = {"index": self.shard.index, "of": self.shard.of, "input_bytes": self._all_sizes}
        return {"shard": cut}

    def _is_cut_by_bytes(self, name: str) -> bool:
        kind = self._kinds[name]
        if kind is Kind.lines:
            return not is_packed(name)
        is_parquet = kind is Kind.table and suffix_of(name) in PARQUET
        return kind is Kind.text or is_parquet
