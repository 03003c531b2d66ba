"""Ids that come twice, values by key, items that wait for others: on disk where there are many."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from itertools import islice
from mmap import mmap
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.errors import RunError

if TYPE_CHECKING:
    from sqlite3 import Connection

MOST_IN_MEMORY = 1 << 20
_OWN_SIZE = 64
"""Tokens that take the memory of an item without any, about."""
MOST_KEYS, MOST_WAITING = 1 << 16, 1 << 20
"""Keys of a table in memory; and the size, in tokens, of all that waits there."""
_SMALLEST = 1 << 13
_BITS = (1 << 64) - 1
_CACHE_KIB = 1 << 15
Value = TypeVar("Value")


class DuplicateIds:
    """Remembers a 64-bit hash of each id, however many come, in at most 50 MB of memory.

    Two of n different ids share a hash with a chance of n² / 2^65: one in 40 million of a million,
    one in 370,000 of ten million. In memory the table is one block with open addressing, eight to
    thirty-two bytes an id; a set would take ten times as much. On disk it takes about as much.
    """

    def __init__(self, most_in_memory: int = MOST_IN_MEMORY) -> None:
        self._most, self._table = most_in_memory, _new_table(_SMALLEST)
        self._n = 0
        self._on_disk: _Disk | None = None

    def seen_before(self, identity: Hashable) -> bool:
        """Remember the id, and tell whether it was seen before.

        Raises RunError when the directory for temporary files has no room left.
        """
        # Python salts the hashes of strings for each process: nobody can make ids that collide.
        key = hash(identity) & _BITS or 1  # 0 marks a free place
        if self._on_disk is not None:
            return not self._on_disk.add(key)
        place = self._find(key)
        if self._table[place]:
            return True
        self._table[place] = key
        self._n += 1
        if self._n >= self._most:
            self._on_disk, self._table = _Disk(np.asarray(self._table)), _new_table(1)
        elif 2 * self._n > len(self._table):
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


class _Disk:
    """Keys in a database that SQLite keeps in a file without a name: it goes with the process."""

    def __init__(self, table: NDArray[np.uint64]) -> None:
        """Begin with a table, shape of its places, 0 where one is free. Raises RunError."""
        # In SQLite's order, of signed numbers: a page is written once.
        keys = np.sort(table[table != 0].view(np.int64))
        self._n = len(keys)
        with _failures_told(self._task):
            self._database = _temporary_database()
            self._database.execute("CREATE TABLE seen (key INTEGER PRIMARY KEY)")
            rows = ((int(key),) for key in keys)
            self._database.executemany("INSERT INTO seen VALUES (?)", rows)

    @property
    def _task(self) -> str:
        return f"ids that come twice cannot be found after {self._n:,} ids"

    def add(self, key: int) -> bool:
        """Add a key, and return whether it is new. Raises RunError."""
        with _failures_told(self._task):
            insert = "INSERT OR IGNORE INTO seen VALUES (?)"
            is_new = self._database.execute(insert, (_signed(key),)).rowcount > 0
        self._n += is_new
        return is_new


class Table(Generic[Value]):
    """Remembers values by keys: the first `MOST_KEYS` in memory, the others in a table on disk.

    Keys are told apart by their `repr`.
    """

    def __init__(self) -> None:
        self._memory: dict[Any, Value] = {}
        self._database: Connection | None = None
        self._n = 0

    def get(self, key: Any) -> Value | None:
        """Return what is known by the key; None where nothing is. Raises RunError."""
        if self._database is None or key in self._memory:
            return self._memory.get(key)
        with _failures_told(self._task):
            query = "SELECT value FROM known WHERE key = ?"
            found = self._database.execute(query, (repr(key),)).fetchone()
        return None if found is None else pickle.loads(found[0])

    @property
    def _task(self) -> str:
        return f"no more than {len(self._memory) + self._n:,} keys can be kept"

    def put(self, key: Any, value: Value) -> None:
        """Remember this of the key, in the place of what was known.

        Raises RunError when the directory for temporary files has no room left.
        """
        if key in self._memory or len(self._memory) < MOST_KEYS:
            self._memory[key] = value
            return
        with _failures_told(self._task):
            if self._database is None:
                self._database = _temporary_database()
                # Keys come together more often than at random: a fourth of the memory is enough.
                self._database.execute(f"PRAGMA cache_size=-{_CACHE_KIB // 4}")
                self._database.execute("CREATE TABLE known (key PRIMARY KEY, value) WITHOUT ROWID")
            insert = "INSERT OR REPLACE INTO known VALUES (?, ?)"
            self._database.execute(insert, (repr(key), pickle.dumps(value)))
        self._n += 1


class Waiting(Generic[Value]):
    """Holds items that wait for others, by a key and then by an id, in the order of their coming.

    All go to the disk once they are larger than `MOST_WAITING`.
    """

    def __init__(self) -> None:
        self._memory: dict[str, dict[str, deque[tuple[Value, int]]]] = {}
        self._database: Connection | None = None
        self._size = self._n = self._n_ever = 0

    def __len__(self) -> int:
        return self._n

    def add(self, key: str, identity: str, item: Value, size: int) -> None:
        """Let an item of `size` tokens wait. Raises RunError when the directory for temporary files
        has no room."""
        self._n += 1
        if self._database is not None:
            self._insert(key, identity, item)
            return
        self._memory.setdefault(key, {}).setdefault(identity, deque()).append((item, size))
        self._size += _OWN_SIZE + size
        if self._size > MOST_WAITING:
            self._database = _temporary_database()
            columns = "number INTEGER PRIMARY KEY, key, id, born, since, item"
            self._query(f"CREATE TABLE waiting ({columns})")
            self._query("CREATE INDEX places ON waiting (key, id)")
            for key, by_id in self._memory.items():
                for identity, items in by_id.items():
                    for item, _ in items:
                        self._insert(key, identity, item)
            self._memory = {}

    def _insert(self, key: str, identity: str, item: Value) -> None:
        self._n_ever += 1
        # Since when the key waits, and since when its id, without a gap: the order of a dict.
        self._query(
            "INSERT INTO waiting VALUES (?1, ?2, ?3,"
            " COALESCE((SELECT born FROM waiting WHERE key = ?2 LIMIT 1), ?1),"
            " COALESCE((SELECT since FROM waiting WHERE key = ?2 AND id = ?3 LIMIT 1), ?1), ?4)",
            *(self._n_ever, key, _encoded(identity), pickle.dumps(item)),
        )

    def has(self, key: str, identity: str | None = None) -> bool:
        """Tell whether an item of the key waits, or one of the key and the id."""
        if self._database is None:
            return key in self._memory and (identity is None or identity in self._memory[key])
        return self._first(key, identity) is not None

    def take(self, key: str, identity: str | None = None) -> Value:
        """Remove and return the item with that id, else one of the id that came first."""
        self._n -= 1
        if self._database is not None:
            number, stored = self._first(key, identity)
            self._query("DELETE FROM waiting WHERE number = ?", number)
            found: Value = pickle.loads(stored)
            return found
        by_id = self._memory[key]
        identity = next(iter(by_id)) if identity is None else identity
        item, size = by_id[identity].popleft()
        self._size -= _OWN_SIZE + size
        if not by_id[identity]:
            del by_id[identity]
        if not by_id:
            del self._memory[key]
        return item

    def all_keys(self) -> Iterator[str]:
        """Yield the keys in the order of their coming; their items may be taken meanwhile."""
        if self._database is None:
            yield from list(self._memory)
        else:
            # Sorted by a column without an index: all are read before the first is given.
            query = "SELECT key, MIN(born) AS first FROM waiting GROUP BY key ORDER BY first"
            yield from (key for key, _ in self._query(query))

    def ids(self, most: int) -> list[str]:
        """Return the ids of the first items."""
        if self._database is None:
            each = (i for by_id in self._memory.values() for i, own in by_id.items() for _ in own)
            return list(islice(each, most))
        query = "SELECT id FROM waiting ORDER BY born, since, number LIMIT ?"
        return [_decoded(identity) for (identity,) in self._query(query, most)]

    def _first(self, key: str, identity: str | None) -> Any:
        """Return number and item; None where there is none."""
        of_id = "" if identity is None else "AND id = ?"
        values = [key] if identity is None else [key, _encoded(identity)]
        query = f"SELECT number, item FROM waiting WHERE key = ? {of_id} ORDER BY since, number"
        return self._query(f"{query} LIMIT 1", *values).fetchone()

    def _query(self, query: str, *values: Any) -> Any:
        assert self._database is not None
        with _failures_told(f"no more than {self._n:,} rows can wait for their partners"):
            return self._database.execute(query, values)


def _encoded(identity: str) -> bytes:
    # SQLite takes no half of a surrogate pair.
    return identity.encode("utf-8", "surrogatepass")


def _decoded(identity: bytes) -> str:
    return identity.decode("utf-8", "surrogatepass")


@contextmanager
def _failures_told(failure: str) -> Iterator[None]:
    from sqlite3 import Error

    try:
        yield
    except Error as error:
        place = os.environ.get("SQLITE_TMPDIR") or tempfile.gettempdir()
        raise RunError(
            f"{failure}: {error}; their table is a file in the directory for temporary files "
            f"({place}): TMPDIR names one with room, 30 bytes an id"
        ) from error


def _temporary_database() -> Connection:
    import sqlite3

    # An empty name is a file that is unlinked as soon as it is open. Read on a thread of its own.
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    # Nothing of it outlives the process, so nothing is to be made safe.
    for pragma in ("temp_store=FILE", "journal_mode=OFF", "synchronous=OFF"):
        database.execute(f"PRAGMA {pragma}")
    database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    database.execute("BEGIN")
    return database


def _signed(key: int) -> int:
    """Return a key as SQLite has whole numbers: from -2^63."""
    return key - (key >> 63 << 64)
