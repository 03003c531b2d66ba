"""Which rows of several files a plot is of."""

from __future__ import annotations

from dataclasses import dataclass, field

from seqloss_cli.analysis.joining import JoinReport


@dataclass(frozen=True, slots=True)
class RowsTaken:
    """How many rows of several files a plot is of, and how many it is not of."""

    n_joined: int
    """That all files have."""
    n_used: int
    left_out: dict[str, int]
    """Of those that all have, by reason."""
    n_alone: list[int]
    """Of each file, those that some other lacks."""

    @property
    def n_missing(self) -> int:
        return sum(self.left_out.values()) + sum(self.n_alone)


@dataclass(slots=True)
class Together:
    """Which rows of several files could be taken together."""

    joined: JoinReport = field(default_factory=JoinReport)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Ids by reason."""
    n_without_cluster: int = 0
    """Rows that lack the field in every file."""

    def taken(self, n_used: int) -> RowsTaken:
        left_out = {reason: len(ids) for reason, ids in self.left_out.items()}
        n_alone = [len(ids) for ids in self.joined.alone]
        return RowsTaken(self.joined.n_joined, n_used, left_out, n_alone)
