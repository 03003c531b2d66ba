"""The errors that reach a user, each with its exit code. Anything else that escapes is a bug."""

from __future__ import annotations


class SeqlossError(Exception):
    """Ends the run with one message on stderr; the message says what, where, and what mends it."""

    exit_code = 1


class RunError(SeqlossError):
    """The run failed: a model that cannot load, a full disk, memory too small."""


class OutOfMemoryError(RunError):
    """A batch did not fit; a smaller one may."""


class UsageError(SeqlossError):
    """Wrong flags or configuration."""

    exit_code = 2


class RowError(SeqlossError):
    """One input is wrong. It becomes a `Rejected` record and costs only itself."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.row_id: str | None = None
        """The row's own id, when it was read before the row turned out to be wrong."""
