"""Numbers of documents, one after another: the first in memory, and on disk once there are many."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from seqloss_cli.core.errors import RunError
from seqloss_cli.core.records import Floats

CHUNK = 1 << 17
"""Numbers of a series that are in memory at most: 1 MB."""


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

    def _write(self) -> None:
        try:
            if self._file is None:
                # Without a name: it goes with the process.
                self._file = tempfile.TemporaryFile(prefix="seqloss-")  # noqa: SIM115
            self._file.seek(0, 2)
            self._file.write(self._last)
            self._file.flush()
        except OSError as error:
            with suppress(OSError):
                if self._file is not None:
                    self._file.close()
            raise RunError(
                f"sums of {len(self):,} documents do not fit into the directory for temporary "
                f"files ({tempfile.gettempdir()}): {error.strerror}; TMPDIR names another one"
            ) from error
        self._n_on_disk += len(self._last)
        self._last = array("d")

    def chunks(self) -> Iterator[Floats]:
        """Yield the numbers in order, any unit, in chunks of shape n, at most `CHUNK`."""
        for start in range(0, self._n_on_disk, CHUNK):
            assert self._file is not None
            self._file.seek(8 * start)
            yield np.frombuffer(self._file.read(8 * CHUNK))
        if self._last:
            yield np.array(self._last)


class Derived:
    """Numbers made of those of series that run parallel, as they are read."""

    def __init__(self, make: Callable[..., Floats], *series: Series | Derived) -> None:
        """`make` takes a chunk of each."""
        self._make, self._series = make, series

    def __len__(self) -> int:
        return sum(map(len, self.chunks()))

    def chunks(self) -> Iterator[Floats]:
        """Yield the numbers in order, any unit, in chunks of shape n."""
        for parts in zip(*(each.chunks() for each in self._series), strict=True):
            yield self._make(*parts)


Numbers = Floats | Series | Derived
"""Float64s of documents, shape D."""


def chunks_of(numbers: Numbers) -> Iterator[Floats]:
    """Yield numbers of any unit, in order: an array, shape D, as it is, others in chunks."""
    if isinstance(numbers, np.ndarray):
        yield numbers
    else:
        yield from numbers.chunks()


def as_array(numbers: Numbers) -> Floats:
    """Return all of the numbers, shape D, any unit, in memory."""
    return np.concatenate([np.empty(0), *chunks_of(numbers)])
