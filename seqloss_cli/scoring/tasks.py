"""Tasks: what each command makes of its inputs. None knows of displays, files or formats.

A task gives a result or a rejection for each input, in order, and the sums of a result. Inputs that
an earlier run finished are not scored: they are handed over as far as they can be told without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.records import Item, Rejected, SequenceScore, TokenSequence
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.accuracy import RankTotals, rank_totals
from seqloss_cli.metrics.divergence import (
    DivergenceScore,
    DivergenceTotals,
    Documents,
    divergence_totals,
)
from seqloss_cli.metrics.masks import FindLabels, Mask, MaskTotals, mask_maker, mask_totals
from seqloss_cli.metrics.ranking import Question, Ranking, RankingQueue
from seqloss_cli.metrics.totals import Totals, totals_of
from seqloss_cli.scoring.pipeline import OnProgress
from seqloss_cli.scoring.scorer import PairTokens, Scorer
from seqloss_cli.scoring.teacher_scorer import TeacherScorer
from seqloss_cli.tokenization.tokenizer import Tokenization
from seqloss_cli.tokenization.trl import TrlTrainer

Result = TypeVar("Result")
Sums = TypeVar("Sums")
Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Earlier(Generic[Entry]):
    """The first `n` inputs, which an earlier run finished, and who is told of each of them."""

    n: int
    on_input: Callable[[Entry], None]


@dataclass(frozen=True, slots=True)
class Task(Generic[Result, Sums, Entry]):
    """The computation of a command: results of inputs, and sums of results."""

    run: RunInfo
    """The run's record, without what is read and what rows hold."""
    tokenization: Tokenization
    results: Callable[[Iterable[Item], OnProgress, Earlier[Entry]], Iterator[Result | Rejected]]
    """A result or a rejection for each input that no earlier run finished."""
    totals: Callable[[Result], Sums]
    """The sums of one result, asked for once, in order."""
    nothing: Sums
    """The sums of no result."""
    count_halved: Callable[[], int] = lambda: 0
    """Batches that did not fit in memory so far."""


ScoreTask = Task[SequenceScore, Totals, TokenSequence | Rejected]


def score_task(scorer: Scorer, command: str, requested: Requested) -> ScoreTask:
    """Return the losses of texts, or of pairs where the scorer is one of pairs."""
    return Task(
        scorer.run_info(command),
        scorer.tokenization,
        lambda items, on_progress, earlier: scorer.score(
            items, requested, on_progress, earlier.n, earlier.on_input
        ),
        totals_of,
        Totals(),
        lambda: scorer.backend.n_too_large,
    )


def rank_task(
    scorer: Scorer, with_unprompted: bool
) -> Task[Ranking, RankTotals, Question | Rejected]:
    """Return the order of responses; `with_unprompted` scores them without their prompts, too."""

    def results(
        items: Iterable[Item], on_progress: OnProgress, earlier: Earlier[Question | Rejected]
    ) -> Iterator[Ranking | Rejected]:
        queue = RankingQueue(items, with_unprompted, earlier.n, earlier.on_input)
        return queue.rankings(
            scorer.score(
                queue.pairs(), None, on_progress, lambda: queue.n_finished_pairs, queue.finish
            )
        )

    return Task(
        scorer.run_info("rank"),
        scorer.tokenization,
        results,
        rank_totals,
        RankTotals(),
        lambda: scorer.backend.n_too_large,
    )


def diverge_task(
    scorer: TeacherScorer, documents: Documents, on_score: Callable[[SequenceScore], None] | None
) -> Task[DivergenceScore, DivergenceTotals, TokenSequence | Rejected]:
    """Return how far the model is from its teacher; what intervals need goes to `documents`."""

    def totals(diverged: DivergenceScore) -> DivergenceTotals:
        found = divergence_totals(diverged)
        documents.add(found, diverged.counted_values())
        if on_score is not None:
            on_score(diverged.score)
        return found

    return Task(
        scorer.run_info("diverge"),
        scorer.scorer.tokenization,
        lambda items, on_progress, earlier: scorer.diverge(
            items, on_progress, earlier.n, earlier.on_input
        ),
        totals,
        DivergenceTotals(),
        lambda: scorer.scorer.backend.n_too_large,
    )


def mask_task(
    source: Scorer | PairTokens, trainer: TrlTrainer | None, find_labels: FindLabels | None
) -> Task[Mask, MaskTotals, Mask | Rejected]:
    """Return which tokens a training loss falls on, with losses where `source` is a scorer.

    They are compared with a trainer's labels, and with those of a file, where there are such.
    """
    make = mask_maker(source.tokenization.vocabulary, trainer, find_labels)

    def results(
        items: Iterable[Item], on_progress: OnProgress, earlier: Earlier[Mask | Rejected]
    ) -> Iterator[Mask | Rejected]:
        def on_finished(entry: TokenSequence | Rejected) -> None:
            earlier.on_input(make(entry))

        if isinstance(source, Scorer):
            yield from map(make, source.score(items, None, on_progress, earlier.n, on_finished))
            return
        for number, entry in enumerate(source.sequences(items)):
            if number < earlier.n:
                on_finished(entry)
            else:
                yield make(entry)

    n_halved = (lambda: source.backend.n_too_large) if isinstance(source, Scorer) else (lambda: 0)
    return Task(
        source.run_info("mask"), source.tokenization, results, mask_totals, MaskTotals(), n_halved
    )
