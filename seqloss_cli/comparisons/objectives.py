"""The pre-training objective as a question: which parameters make the total loss over a data set
least, and is their lead more than noise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seqloss_cli.comparisons.comparing import CompareOptions, Comparison, Comparisons, compare
from seqloss_cli.comparisons.joining import JoinReport, join, not_comparable
from seqloss_cli.metrics import Totals
from seqloss_cli.results import ResultRow

Rows = Callable[[], Sequence[Iterable[ResultRow]]]
"""Opens the results of every checkpoint, from the start."""
_STEP = re.compile(
    r"(?:^|[^a-z])(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d+)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Objective:
    totals: list[Totals]
    """Of each checkpoint, over the rows that all of them have and that can be compared."""
    best: int | None
    """Place of the one with the least total loss; None where no row can be compared."""
    comparisons: Comparisons
    """Of every other one (A) with the best (B)."""

    @property
    def lead(self) -> Comparison | None:
        """The best against the one that comes nearest."""
        if self.best is None or not self.comparisons.pairs:
            return None
        return min(self.comparisons.pairs, key=lambda pair: pair.a.total_loss)


def find_objective(open_rows: Rows, same_tokenizer: bool, options: CompareOptions) -> Objective:
    """Reads the results twice: for the totals, and against the best one."""
    files = open_rows()
    totals = [Totals() for _ in files]
    for rows in join(files, JoinReport()):
        if not not_comparable(rows, same_tokenizer):
            totals = [sums + row.totals for sums, row in zip(totals, rows, strict=True)]
    losses = [sums.total_loss for sums in totals]
    known = [n for n, loss in enumerate(losses) if loss is not None]
    best = min(known, key=lambda n: losses[n] or 0.0) if known else None
    against = best if best is not None else 0
    return Objective(totals, best, compare(open_rows(), same_tokenizer, options, against))


def training_step(name: str) -> int | None:
    """Of a checkpoint: what its trainer_state.json says, else the number in its name."""
    state = Path(name) / "trainer_state.json"
    try:
        step = json.loads(state.read_text())["global_step"]
        return step if isinstance(step, int) else None
    except (OSError, ValueError, KeyError, TypeError):
        found = _STEP.findall(name)
        return int(found[-1]) if found else None
