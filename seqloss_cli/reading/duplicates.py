"""Find ids that come twice, in eight bytes an id."""

from __future__ import annotations

import numpy as np

_RECENT = 8192
_CAPACITY = 4_000_000


class DuplicateIds:
    """Remembers a 64-bit hash of each id, up to a fixed number of them, and then `is_full`.

    Two of a million different ids share a hash with a chance of one in ten million.
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.int64)
        self._recent: set[int] = set()

    @property
    def is_full(self) -> bool:
        return len(self._sorted) >= _CAPACITY

    def seen_before(self, identity: str) -> bool:
        """Whether it was seen; it has been from now on."""
        key = hash(identity)
        if key in self._recent:
            return True
        at = int(np.searchsorted(self._sorted, key))
        if at < len(self._sorted) and self._sorted[at] == key:
            return True
        self._recent.add(key)
        if len(self._recent) >= _RECENT:
            fresh = np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))
            self._sorted = np.union1d(self._sorted, fresh)
            self._recent.clear()
        return False
