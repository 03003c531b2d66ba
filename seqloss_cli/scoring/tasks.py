"""Tasks: the results that each command makes of its inputs, and their sums.

None knows of displays, files or formats. A task gives a result or a rejection for each input, in
order, and the sums of a result. Inputs that an earlier run finished are not scored: they are handed
over as far as they can be told without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.records import Entry, Item, Rejected, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics import divergence as d
from seqloss_cli.metrics.accuracy import RankTotals, rank_totals
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
Unscored = TypeVar("Unscored")
"""An input that is only read again: as far as it can be told without scoring."""


@dataclass(frozen=True, slots=True)
class FinishedInputs(Generic[Unscored]):
    """The first `n` inputs, which an earlier run finished, and who is told of each of them."""

    n: int
    on_input: Callable[[Unscored], None]


@dataclass(frozen=True, slots=True)
class Task(Generic[Result, Sums, Unscored]):
    """The computation of a command: results of inputs, and sums of results."""

    run: RunInfo
    """The run's record, without what is read and what rows hold."""
    source: Scorer | PairTokens
    """The tokenizer alone where no model is run."""
    results: Callable[
        [Iterable[Item], OnProgress, FinishedInputs[Unscored]], Iterator[Result | Rejected]
    ]
    """A result or a rejection for each input that no earlier run finished."""
    totals: Callable[[Result], Sums]
    """The sums of one result."""
    zero: Sums
    """The sums of no result."""
    on_result: Callable[[Result, Sums], object] = lambda result, sums: None
    """Told of each result with its sums, in order."""

    @property
    def tokenization(self) -> Tokenization:
        """The policies that make sequences of samples."""
        return self.source.tokenization

    def count_halved(self) -> int:
        """Count the batches that did not fit in memory so far."""
        return self.source.backend.n_too_large if isinstance(self.source, Scorer) else 0


ScoreTask = Task[SequenceScore, Totals, Entry]


def score_task(scorer: Scorer, command: str, requested: Requested) -> ScoreTask:
    """Return the losses of texts, or of pairs where the scorer is one of pairs.

    Raises UsageError for what the backend cannot give.
    """
    # Not only when the first text is scored: by then a file is open, and its torn end cut off.
    scorer.require_possible(requested)
    return Task(
        scorer.run_info(command),
        scorer,
        lambda items, on_progress, finished: scorer.score(
            items, requested, on_progress, finished.n, finished.on_input
        ),
        totals_of,
        Totals(),
    )


def rank_task(
    scorer: Scorer, without_prompt: bool
) -> Task[Ranking, RankTotals, Question | Rejected]:
    """Return the order of responses; `without_prompt` scores them without their prompts, too."""

    def results(
        items: Iterable[Item], on_progress: OnProgress, finished: FinishedInputs[Any]
    ) -> Iterator[Ranking | Rejected]:
        queue = RankingQueue(items, without_prompt, finished.n, finished.on_input)

        def n_finished_pairs() -> int:
            # Known only once the finished questions were read.
            return queue.n_finished_pairs

        scored = scorer.score(queue.pairs(), None, on_progress, n_finished_pairs, queue.finish)
        return queue.rankings(scored)

    return Task(scorer.run_info("rank"), scorer, results, rank_totals, RankTotals())


def models_task(
    scorer: TeacherScorer, documents: Sequence[d.DocumentSums], draft_length: int = 0
) -> Task[d.ModelsScore, d.ModelsTotals, Entry]:
    """Return how far several models are from their teacher; each has `documents` of its own."""

    def totals(result: d.ModelsScore) -> d.ModelsTotals:
        parts = tuple(d.divergence_totals(each, draft_length) for each in result.scores)
        unspelled = {k: n for k, n in parts[0].flags.items() if k == "unspelled_text"}
        return d.ModelsTotals(parts, unspelled)

    def on_result(result: d.ModelsScore, sums: d.ModelsTotals) -> None:
        for own, score, part in zip(documents, result.scores, sums.parts, strict=True):
            own.add(part, score.counted_values())

    return Task(
        scorer.run_info("diverge"),
        scorer.scorer,
        lambda items, on_progress, finished: scorer.diverge_each(items, on_progress),
        totals,
        d.ModelsTotals(tuple(d.DivergenceTotals() for _ in documents)),
        on_result,
    )


def diverge_task(
    scorer: TeacherScorer,
    documents: d.DocumentSums,
    on_score: Callable[[SequenceScore], None] | None,
    draft_length: int = 0,
) -> Task[d.DivergenceScore, d.DivergenceTotals, Entry]:
    """Return how far the model is from its teacher; what intervals need goes to `documents`.

    Drafts of `draft_length` tokens are summed up, too.
    """

    def on_result(diverged: d.DivergenceScore, sums: d.DivergenceTotals) -> None:
        documents.add(sums, diverged.counted_values())
        if on_score is not None:
            on_score(diverged.score)

    return Task(
        scorer.run_info("diverge"),
        scorer.scorer,
        lambda items, on_progress, finished: scorer.diverge(
            items, on_progress, finished.n, finished.on_input
        ),
        lambda diverged: d.divergence_totals(diverged, draft_length),
        d.DivergenceTotals(),
        on_result,
    )


def mask_task(
    source: Scorer | PairTokens, trainer: TrlTrainer | None, find_labels: FindLabels | None
) -> Task[Mask, MaskTotals, Mask | Rejected]:
    """Return which tokens a training loss falls on, with losses where `source` is a scorer.

    They are compared with a trainer's labels, and with those of a file, where there are such.
    """
    make = mask_maker(source.tokenization.vocabulary, trainer, find_labels)

    def results(
        items: Iterable[Item], on_progress: OnProgress, finished: FinishedInputs[Mask | Rejected]
    ) -> Iterator[Mask | Rejected]:
        def on_finished(entry: Entry) -> None:
            # In full: all of a row but its losses follows from the input, and is compared.
            finished.on_input(make(entry))

        if isinstance(source, Scorer):
            yield from map(make, source.score(items, None, on_progress, finished.n, on_finished))
            return
        for number, entry in enumerate(source.sequences(items)):
            if number < finished.n:
                on_finished(entry)
            else:
                yield make(entry)

    return Task(source.run_info("mask"), source, results, mask_totals, MaskTotals())
