"""Rows of all requests, scored together, as many as wait, within the budget of tokens.

Rows do not see one another, so numbers do not depend on the company (rule 11).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np

from seqloss_cli.backends.batching import plan_batches, smaller_batches
from seqloss_cli.core.backend import Batch, Requested, TokenScores
from seqloss_cli.core.errors import OutOfMemoryError
from seqloss_cli.core.records import Floats, Ints, Sample, TokenSequence
from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.service.requests import RequestError, ServiceLimits


@dataclass(frozen=True, slots=True)
class RowScores:
    """Scores of a row of L tokens; the place after the last is for what would follow."""

    log_probs: Floats
    """Shape L + 1, nats; NaN at the first place and the last."""
    ranks: Ints
    """Shape L + 1; zeros where nobody asked for them."""
    top_ids: Ints
    """Shape (L + 1) x K."""
    top_log_probs: Floats
    """Shape (L + 1) x K, nats."""


@dataclass(slots=True, eq=False)
class Job:
    """A row that waits for its scores."""

    row: Ints
    """Ids, shape L."""
    first: int
    """The first position whose log-probability is asked for."""
    top_k: int
    ranks: bool
    """Ranks are asked for: they take a look at all probabilities more."""
    with_end: bool
    """The scores of whatever would follow the last token are asked for, too."""
    deadline: float
    """On the clock of `time.monotonic`."""
    answer: Future[RowScores] = field(default_factory=Future)


PAUSE, LONGEST_PAUSE = 0.005, 0.05
"""Seconds without a new row after which those that are there are scored, and the most of them."""


class RowQueue:
    """Rows of all requests, scored together by one thread: that which calls `run`, or one of its
    own after `start`."""

    def __init__(self, scorer: Scorer, limits: ServiceLimits) -> None:
        self._scorer, self._limits = scorer, limits
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed, self._ended = False, threading.Event()
        self.is_scoring = False
        self.n_tokens = 0
        """Tokens scored so far."""
        self._seconds = 0.0
        """Time that it took."""

    def __len__(self) -> int:
        """Return the number of rows that wait."""
        return len(self._waiting)

    def add(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for their turn. Raises RequestError where too many wait."""
        with self._changed:
            if self._closed:
                raise RequestError(503, "the server stops")
            if len(self._waiting) + len(jobs) > self._limits.longest_queue:
                raise RequestError(429, f"{len(self._waiting)} rows wait already")
            self._waiting.extend(jobs)
            self._changed.notify()

    def seconds_left(self) -> int:
        """Return in about how many seconds the rows that wait are scored: 1 to 60."""
        with self._changed:
            n_waiting = sum(len(job.row) for job in self._waiting)
        seconds = n_waiting * self._seconds / max(1, self.n_tokens)
        return min(60, max(1, ceil(seconds)))

    def close(self) -> None:
        """Take no more rows: what waits is scored, and `run` returns."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def wait(self) -> None:
        """Return once all is scored after `close`."""
        self._ended.wait()

    def start(self) -> None:
        """Score rows on a thread of its own."""
        threading.Thread(target=self.run, name="scoring", daemon=True).start()

    def run(self) -> None:
        """Score rows as they come, until `close`."""
        try:
            while jobs := self._next():
                self.is_scoring, begun = True, time.monotonic()
                self._answer(jobs)
                self._seconds += time.monotonic() - begun
                self.is_scoring = False
        finally:
            self._ended.set()

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Score jobs, and hand out results; of an error only the jobs that raise it are told."""
        try:
            found = self._score(jobs)
        except Exception as error:  # whoever waits is told, and the server goes on
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
                return
            for job in jobs:
                self._answer([job])
        else:
            for job, scores in zip(jobs, found, strict=True):
                job.answer.set_result(scores)

    def _next(self) -> list[Job]:
        """Return jobs of some batches' tokens, in the order in which they came; none at the end."""
        # Two batches' worth: as long as they are scored, answers and new rows are on their way.
        budget = 2 * self._scorer.batches.tokens
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                self._wait_for_company(budget)
                jobs = [self._waiting.popleft()]
                used = len(jobs[0].row)
                while self._waiting and used + len(self._waiting[0].row) <= budget:
                    jobs.append(self._waiting.popleft())
                    used += len(jobs[-1].row)
            # Nobody waits any more for a job that was cancelled, or is too late.
            now = time.monotonic()
            if kept := [job for job in jobs if _is_due(job, now)]:
                return kept

    def _wait_for_company(self, budget: int) -> None:
        """Return once no row has come for a moment: those of one client are on their way together,
        and rows of a batch take less time each, above all those that begin alike."""
        deadline, n = time.monotonic() + LONGEST_PAUSE, 0
        while len(self._waiting) > n and time.monotonic() < deadline and not self._closed:
            n = len(self._waiting)
            if sum(len(job.row) for job in self._waiting) >= budget:
                return
            self._changed.wait(PAUSE)

    def _score(self, jobs: Sequence[Job]) -> list[RowScores]:
        scorer, k = self._scorer, max(job.top_k for job in jobs)
        sequences = [_sequence(job) for job in jobs]
        scores = [_empty(len(job.row), k) for job in jobs]
        policy = replace(scorer.batches, share_prefix=True)
        requested = Requested(ranks=any(job.ranks for job in jobs), top_k=k)
        capabilities = scorer.backend.capabilities
        for planned in plan_batches(sequences, scorer.windows, policy, capabilities):
            for batch, found in self._halved(planned, sequences, requested):
                for part in batch.parts:
                    _take(scores[part.sequence], part.targets, found, part.score_places)
        self.n_tokens += sum(len(job.row) for job in jobs)
        return scores

    def _halved(
        self, batch: Batch, sequences: Sequence[TokenSequence], requested: Requested
    ) -> list[tuple[Batch, TokenScores]]:
        try:
            return [(batch, self._scorer.backend.score(batch, requested))]
        except OutOfMemoryError:
            halves = smaller_batches(batch, sequences)
            if not halves:
                raise
        return [each for half in halves for each in self._halved(half, sequences, requested)]


def _is_due(job: Job, now: float) -> bool:
    if not job.answer.set_running_or_notify_cancel():
        return False
    if now > job.deadline:
        job.answer.set_exception(RequestError(503, "waited too long: the server is busy"))
        return False
    return True


def _sequence(job: Job) -> TokenSequence:
    n = len(job.row)
    mask = np.arange(n) >= max(1, job.first)
    sample = Sample("", "", input_ids=job.row)
    return TokenSequence(
        sample, None, job.row, None, mask, mask, "none", "none", {}, scores_text_end=job.with_end
    )


def _empty(n: int, k: int) -> RowScores:
    return RowScores(
        np.full(n + 1, np.nan),
        np.zeros(n + 1, dtype=np.int64),
        np.zeros((n + 1, k), dtype=np.int64),
        np.zeros((n + 1, k)),
    )


def _take(row: RowScores, targets: Ints, found: TokenScores, places: Any) -> None:
    # 0.0 - x: of a probability of one it is 0, not -0.
    row.log_probs[targets] = 0.0 - found.losses[places]
    for name in ("ranks", "top_ids", "top_log_probs"):
        if name in found.columns:
            getattr(row, name)[targets] = found.columns[name][places]
