"""Numbers of documents, one after another: the first in memory, and on disk once there are many."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.errors import RunError
from seqloss_cli.core.records import Floats

CHUNK = 1 << 17
"""Numbers of a series that are in memory at most: 1 MB."""


@contextmanager
def _failures_told(n: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"sums of {n:,} documents do not fit into the directory for temporary files "
            f"({tempfile.gettempdir()}): {error.strerror}; TMPDIR names another one"
        ) from error


def _new_file() -> BinaryIO:
    # Without a name: it goes with the process.
    return tempfile.TemporaryFile(prefix="seqloss-")


def zeros(n: int, kind: type[Any] = np.float64) -> NDArray[Any]:
    """Return zeros, shape n, without a unit: in memory, or a map of a file where there are many.

    Raises RunError when the directory for temporary files has no room.
    """
    if n <= CHUNK:
        return np.zeros(n, kind)
    with _failures_told(n), _new_file() as file:
        # Written: a place of a map that has no room on the disk ends the process by a signal.
        for start in range(0, n, CHUNK):
            file.write(np.zeros(min(CHUNK, n - start), kind).data)
        file.flush()
        return np.frombuffer(mmap(file.fileno(), 0), kind)


class Series:
    """Float64s that are added one by one and read in chunks."""

    def __init__(self) -> None:
        self._last = array("d")
        self._file: BinaryIO | None = None
        self._n_on_disk = 0

    def __len__(self) -> int:
        return self._n_on_disk + len(self._last)

    def append(self, value: float) -> None:
        """Add a number. Raises RunError when the directory for temporary files has no room."""
        self._last.append(value)
        if len(self._last) >= CHUNK:
            self._write()
            self._n_on_disk += len(self._last)
            self._last = array("d")

    def __setitem__(self, n: int, value: float) -> None:
        """Set a number, or add one at the end."""
        if n < self._n_on_disk:
            assert self._file is not None
            self._file.seek(8 * n)
            self._file.write(array("d", [value]))
        elif n < len(self):
            self._last[n - self._n_on_disk] = value
        else:
            self.append(value)

    def __iter__(self) -> Iterator[float]:
        for each in self.chunks():
            yield from each.tolist()

    def _write(self) -> None:
        with _failures_told(len(self)):
            self._file = self._file or _new_file()
            self._file.seek(8 * self._n_on_disk)
            self._file.write(self._last)
            self._file.flush()

    def chunks(self) -> Iterator[Floats]:
        """Yield the numbers in order, any unit, in chunks of shape n, at most `CHUNK`."""
        for start in range(0, self._n_on_disk, CHUNK):
            assert self._file is not None
            self._file.seek(8 * start)
            yield np.frombuffer(self._file.read(8 * CHUNK))
        if self._last:
            yield np.array(self._last)

    def array(self) -> Floats:
        """Return the numbers, shape n, any unit: where there are many, a map of their file."""
        if not self._n_on_disk:
            return np.array(self._last)
        # Those in memory are written, and stay there: chunks of parallel series end together.
        self._write()
        assert self._file is not None
        return np.frombuffer(mmap(self._file.fileno(), 8 * len(self), access=ACCESS_READ))


class Derived:
    """Numbers made of others that run parallel, as they are read."""

    def __init__(self, make: Callable[..., Floats], *series: Numbers) -> None:
        """`make` takes a chunk of each."""
        self._make, self._series = make, series

    def __len__(self) -> int:
        return sum(map(len, self.chunks()))

    def chunks(self) -> Iterator[Floats]:
        """Yield the numbers in order, any unit, in chunks of shape n."""
        for parts in zip(*map(chunks_of, self._series), strict=True):
            yield self._make(*parts)


Numbers = NDArray[Any] | Series | Derived
"""Numbers of documents, shape D."""


def chunks_of(numbers: Numbers) -> Iterator[NDArray[Any]]:
    """Yield numbers of any unit, in order, in chunks of shape n: of an array, shape D, views."""
    if isinstance(numbers, np.ndarray):
        yield from (numbers[at : at + CHUNK] for at in range(0, len(numbers), CHUNK))
    else:
        yield from numbers.chunks()


def as_array(numbers: Numbers) -> NDArray[Any]:
    """Return all of the numbers, shape D, any unit: where there are many, a map of a file.

    What numpy makes of one is what it makes of an array in memory, to the last bit.
    """
    if isinstance(numbers, np.ndarray):
        return numbers
    if isinstance(numbers, Series):
        return numbers.array()
    found = zeros(len(numbers))
    place = 0
    for each in numbers.chunks():
        found[place : place + len(each)] = each
        place += len(each)
    return found
