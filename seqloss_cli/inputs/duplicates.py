"""Find ids that come twice, in eight to thirty-two bytes an id."""

from __future__ import annotations

from mmap import mmap

_SMALLEST, _CAPACITY = 1 << 13, 4_000_000
_BITS = (1 << 64) - 1


class DuplicateIds:
    """Remembers a 64-bit hash of each id, up to a fixed number of them, and then `is_full`.

    Two of a million different ids share a hash with a chance of one in forty million. The table is
    one block of memory (a set would take ten times as much), open to its next free place.
    """

    def __init__(self) -> None:
        self._table = _table(_SMALLEST)
        self._n = 0

    @property
    def is_full(self) -> bool:
        return self._n >= _CAPACITY

    def seen_before(self, identity: str) -> bool:
        """Whether it was seen; it has been from now on."""
        key = hash(identity) & _BITS or 1
        place = self._place(key)
        if self._table[place]:
            return True
        self._table[place] = key
        self._n += 1
        if 2 * self._n > len(self._table):
            self._grow()
        return False

    def _place(self, key: int) -> int:
        """Where the key is, or would be."""
        table = self._table
        last = len(table) - 1
        place = key & last
        while table[place] not in (0, key):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        keys = self._table
        self._table = _table(2 * len(keys))
        for key in keys:
            if key:
                self._table[self._place(key)] = key


def _table(size: int) -> memoryview:
    """Of 64-bit numbers, 0 where a place is free. A mapping of its own: the system has it back when
    a larger one takes its place, where the heap would keep a hole."""
    return memoryview(mmap(-1, 8 * size)).cast("Q")
