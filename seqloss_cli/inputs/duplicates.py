"""Find ids that come twice, in eight to thirty-two bytes an id."""

from __future__ import annotations

from mmap import mmap

_SMALLEST, _CAPACITY = 1 << 13, 4_000_000
_BITS = (1 << 64) - 1


class DuplicateIds:
    """Remembers a 64-bit hash of each id, up to a fixed number of them, and then `is_full`.

    Two of a million different ids share a hash with a chance of one in forty million. The table is
    one block of memory with open addressing; a set would take ten times as much.
    """

    def __init__(self) -> None:
        self._table = _new_table(_SMALLEST)
        self._n = 0

    @property
    def is_full(self) -> bool:
        """No more ids are remembered."""
        return self._n >= _CAPACITY

    def seen_before(self, identity: str) -> bool:
        """Remembers the id, and tells whether it was seen before."""
        # Python salts the hashes of strings for each process: nobody can make ids that collide.
        key = hash(identity) & _BITS or 1  # 0 marks a free place
        place = self._find(key)
        if self._table[place]:
            return True
        self._table[place] = key
        self._n += 1
        if 2 * self._n > len(self._table):
            self._grow()
        return False

    def _find(self, key: int) -> int:
        """The place where the key is, or would be."""
        table = self._table
        last = len(table) - 1
        place = key & last
        while table[place] not in (0, key):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        keys = self._table
        self._table = _new_table(2 * len(keys))
        for key in keys:
            if key:
                self._table[self._find(key)] = key


def _new_table(size: int) -> memoryview:
    """A table of 64-bit numbers, 0 where a place is free."""
    # A mapping of its own: the system has it back when a larger one takes its place, where the
    # heap would keep a hole.
    return memoryview(mmap(-1, 8 * size)).cast("Q")
