"""Compare a scorer's model with a reference: a teacher, a teacher's file, or smoothed labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from seqloss_cli.backends.opening import open_teacher
from seqloss_cli.backends.teacher_files import TeacherFile
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import DIVERGENCES, SAVED_TEACHER
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import DEFAULT_OVERLAP_K, ModelChoice
from seqloss_cli.core.records import Entry, Item, Outcome, Rejected, SequenceScore
from seqloss_cli.core.run_record import TOKEN_POLICIES, WEIGHTS, RunInfo, recorded
from seqloss_cli.metrics import divergence
from seqloss_cli.scoring.pipeline import OnProgress, ignore_finished, ignore_progress
from seqloss_cli.scoring.scorer import Scorer

_SAME = ("tokenizer_sha256", "context", "stride", *TOKEN_POLICIES)
"""Fields of run records that agree where distributions are of the same tokens."""


@dataclass
class TeacherScorer:
    """A model that is held to a reference distribution. Made by one of its class methods."""

    scorer: Scorer
    reference: str
    """Its name in the run record."""
    requested: Requested
    divergences_of: Callable[[SequenceScore], divergence.Divergences]
    teacher: Mapping[str, Any] | None = None
    """The teacher's part of the run record, where there is one."""
    warnings: Sequence[str] = ()
    """Messages for stderr on the teacher."""
    overlap_k: int = 0
    """Most probable ids of both that are compared; 0 without a teacher."""
    models: Sequence[Mapping[str, Any]] = ()
    """Records of several models that share the teacher's passes: the scorer's own is the first."""

    @classmethod
    def with_teacher(
        cls,
        scorer: Scorer,
        choice: ModelChoice,
        top_k: int = 0,
        overlap_k: int = DEFAULT_OVERLAP_K,
        models: Mapping[str, Scorer] | None = None,
    ) -> TeacherScorer:
        """Load the teacher beside the model. With `top_k` what is to be saved of it is kept;
        `overlap_k` is how many of the most probable ids of both are compared. `models`, by their
        names, of which `scorer` is the first, share the teacher's passes in `diverge_each`.

        Raises UsageError where two of them have other vocabularies or, of the models, windows.
        """
        return cls._beside(scorer, choice, "teacher", top_k, overlap_k, models)

    @classmethod
    def with_saved_teacher(
        cls,
        scorer: Scorer,
        path: Path,
        overlap_k: int = DEFAULT_OVERLAP_K,
        models: Mapping[str, Scorer] | None = None,
    ) -> TeacherScorer:
        """Raises UsageError where the file is of other tokens or windows, or of more ids than a
        model has logits; `models` are as in `with_teacher`."""
        file = TeacherFile(path)
        for each in (models or {"": scorer}).values():
            file.require_fits(described_windows(each.run_info()), each.backend.vocab_size())
        return cls._beside(scorer, file, "saved teacher", overlap_k=overlap_k, models=models)

    @classmethod
    def _beside(
        cls,
        scorer: Scorer,
        teacher: ModelChoice | TeacherFile,
        reference: str,
        top_k: int = 0,
        overlap_k: int = DEFAULT_OVERLAP_K,
        models: Mapping[str, Scorer] | None = None,
    ) -> TeacherScorer:
        others = {name: each for name, each in (models or {}).items() if each is not scorer}
        for name, other in others.items():
            _require_same_tokens(scorer, other, name)
        compared = open_teacher(
            scorer.backend_name,
            scorer.backend,
            teacher,
            scorer.windows,
            top_k,
            overlap_k,
            [other.backend for other in others.values()],
        )
        requested = (
            Requested(internal=(DIVERGENCES, SAVED_TEACHER))
            if top_k
            else divergence.TEACHER_REQUEST
        )
        found, warnings = scorer.with_teacher(compared), compared.backend.warnings
        return cls(
            found,
            reference,
            requested,
            divergence.teacher_divergences,
            compared.record,
            warnings,
            compared.overlap_k,
            [_record_of(name, each) for name, each in models.items()] if models else (),
        )

    @classmethod
    def with_smoothing(cls, scorer: Scorer, smoothing: float) -> TeacherScorer:
        """Take (1 - `smoothing`) one-hot + `smoothing` spread over all ids as the reference."""
        if not 0 <= smoothing < 1:
            raise UsageError(f"--label-smoothing takes a number from 0 to below 1, not {smoothing}")
        vocab_size = scorer.backend.vocab_size()
        if smoothing and not smoothing / vocab_size:
            raise UsageError(f"--label-smoothing {smoothing} is too little to be spread")
        divergences_of = partial(
            divergence.smoothing_divergences, smoothing=smoothing, vocab_size=vocab_size
        )
        reference = f"one-hot, label smoothing {smoothing:g}"
        return cls(scorer, reference, divergence.SMOOTHING_REQUEST, divergences_of)

    @property
    def knows_in_part(self) -> bool:
        """True where the teacher is known from a file that holds some of its ids only."""
        teacher = self.teacher
        return bool(teacher and teacher["saved_as"] and teacher["top_k"] < teacher["n_words"])

    def diverge(
        self,
        items: Iterable[Item],
        on_progress: OnProgress = ignore_progress,
        n_finished: int = 0,
        on_finished: Callable[[Entry], None] = ignore_finished,
    ) -> Iterator[divergence.DivergenceScore | Rejected]:
        """Yield divergences or a rejection for each item, in order; arguments as in `score`."""
        # Not by `yield`: what the backend cannot give is refused here, not at the first row.
        scores = self.scorer.score(items, self.requested, on_progress, n_finished, on_finished)
        return (self._measured(outcome) for outcome in scores)

    def diverge_each(
        self,
        items: Iterable[Item],
        on_progress: OnProgress = ignore_progress,
    ) -> Iterator[divergence.ModelsScore | Rejected]:
        """Yield for each item the divergences of all `models`, or a rejection, in order."""
        scores = self.scorer.score(items, self.requested, on_progress)
        return (self._each_measured(outcome) for outcome in scores)

    def _each_measured(self, outcome: Outcome) -> divergence.ModelsScore | Rejected:
        if isinstance(outcome, Rejected):
            return outcome
        scores = divergence.score_of_each(outcome, len(self.models))
        found = [divergence.DivergenceScore(each, self.divergences_of(each)) for each in scores]
        names = [record["name"] for record in self.models]
        return divergence.ModelsScore(
            tuple(replace(each, model=name) for each, name in zip(found, names, strict=True))
        )

    def _measured(self, outcome: Outcome) -> divergence.DivergenceScore | Rejected:
        if isinstance(outcome, Rejected):
            return outcome
        return divergence.DivergenceScore(outcome, self.divergences_of(outcome))

    def run_info(self, command: str = "api") -> RunInfo:
        """Return the run record, with the reference."""
        found = self.scorer.run_info(command)
        models = self.models or None
        return replace(found, gold=self.reference, teacher=self.teacher, models=models)

    def file_header(self, top_k: int) -> dict[str, Any]:
        """Return the first line of a file of this teacher."""
        assert self.teacher is not None
        return {**self.teacher, **described_windows(self.run_info()), "top_k": top_k}


def _record_of(name: str, scorer: Scorer) -> dict[str, Any]:
    """Return a model's part of the run record, under the name of its rows."""
    return {"name": name, **recorded(scorer.run_info(), "model", *WEIGHTS, "dtype", "path")}


def _require_same_tokens(first: Scorer, other: Scorer, name: str) -> None:
    """Raises UsageError where the models would not see the same tokens in the same windows."""
    own, its = (described_windows(each.run_info()) for each in (first, other))
    if own == its:
        return
    key = next(key for key in own if own[key] != its[key])
    mends = {
        "tokenizer_sha256": "--tokenizer NAME gives all of them one",
        "context": "--context N gives all of them one",
        "stride": "--stride N gives all of them one",
    }
    raise UsageError(
        f"--model {name}: its {key} is {its[key]}, and that of the first model {own[key]}: "
        f"models beside one teacher see the same tokens; {mends.get(key, 'run it alone')}"
    )


def described_windows(run: RunInfo) -> dict[str, Any]:
    """Return what must agree for a teacher's file to be of the same distributions."""
    return recorded(run, *_SAME)
