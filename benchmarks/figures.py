"""What is measured, as records: figures with their goals, checks of numbers, and tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Side = Callable[[], Any]


@dataclass
class Figure:
    """One goal, or one figure beside it. `value` is what is held against the goal."""

    section: str
    name: str
    value: float | None
    goal: float | None = None
    at_most: bool = False
    ratios: list[float] = field(default_factory=list)
    """Of each round."""
    unit: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.goal is None or self.value is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met, "rounds": len(self.ratios)}


@dataclass
class Check:
    """Whether two sides give the same numbers."""

    section: str
    name: str
    worst: float
    """The largest difference of a log-probability, nats per token."""
    tolerance: float
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"agrees": self.worst <= self.tolerance}


@dataclass
class Found:
    """What a part of the benchmark hands back."""

    figures: list[Figure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    """Each with a title, columns and rows."""

    def as_json(self) -> dict[str, Any]:
        return {
            "figures": [figure.as_json() for figure in self.figures],
            "checks": [check.as_json() for check in self.checks],
            "tables": self.tables,
        }


TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Nats per token: sums of float32 logs; bfloat16 rounds every hidden state to eight bits."""


def table(section: str, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    return {
        "section": section,
        "title": title,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }


def ratio_figure(
    section: str,
    name: str,
    theirs: Sequence[float],
    ours: Sequence[float],
    goal: float | None,
    of_sums: bool = False,
    note: str = "",
) -> Figure:
    """How many times as fast. With `of_sums`, for rounds of unlike work, the median of the rounds'
    ratios and the ratio of the summed times are both there, and the lower one counts."""
    ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
    value = statistics.median(ratios)
    if of_sums:
        whole = sum(theirs) / sum(ours)
        note = f"median {value:.2f}, of summed times {whole:.2f}. {note}".strip()
        value = min(value, whole)
    seconds = f"medians {statistics.median(theirs):.2f} s and {statistics.median(ours):.2f} s"
    return Figure(section, name, value, goal, ratios=ratios, note=f"{seconds}. {note}".strip())


def difference(ours: Sequence[float], theirs: Sequence[float], n_tokens: Sequence[int]) -> float:
    """The largest one, per token of its row."""
    rows = zip(ours, theirs, n_tokens, strict=True)
    return max(abs(a - b) / n for a, b, n in rows)


def timed(side: Side) -> tuple[float, Any]:
    started = time.perf_counter()
    result = side()
    return time.perf_counter() - started, result


class Times:
    """Seconds of each side, round by round; every other round takes them in reverse."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def round(self, number: int, sides: dict[str, Side]) -> None:
        names = list(sides)
        for name in names[::-1] if number % 2 else names:
            self.seconds.setdefault(name, []).append(timed(sides[name])[0])

    def __getitem__(self, name: str) -> list[float]:
        return self.seconds[name]

    def ratio(self, theirs: str, ours: str) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(self[theirs], self[ours], strict=True)
        return statistics.median(t / o for t, o in pairs)
