"""One writer at a time: a lock on an open file, which ends with the process however that ends.

Not every file system has locks, so whoever asks is told of three answers, not of two.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    import msvcrt
    import os

    RENAMES_OPEN_FILES = False
    _FAR_AWAY = 1 << 62  # others cannot read what is locked, so it is no byte of the file

    def try_to_lock(descriptor: int) -> bool | None:
        """Whether this process now has the file: False where another one does, None where nobody
        can tell."""
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _FAR_AWAY, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        except OSError:  # a file system without locks
            return None
        finally:
            os.lseek(descriptor, place, os.SEEK_SET)
        return True

else:
    import fcntl

    RENAMES_OPEN_FILES = True

    def try_to_lock(descriptor: int) -> bool | None:
        """Whether this process now has the file: False where another one does, None where nobody
        can tell."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return None
        return True
