"""A scorer whose model is held to gold distributions: a teacher's, a file's, or smoothed ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from seqloss_cli.backends.teacher_files import TeacherFile
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.teacher import SavedTeacher, StudentTeacherBackend, load_teacher
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.core.records import Item, Rejected
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.divergence import (
    SMOOTHING_REQUEST,
    TEACHER_REQUEST,
    DivergenceScore,
    smoothing_divergences,
    teacher_divergences,
    with_divergences,
)
from seqloss_cli.scoring.pipeline import OnProgress, ignore_progress
from seqloss_cli.scoring.scorer import Scorer


class TeacherScorer:
    """Made by one of its class methods. `warnings` holds what should be said on stderr.

    The scorer that it takes is used up: its model is run together with the teacher's from then on.
    """

    def __init__(self, scorer: Scorer, gold: str, requested: Requested, of: Any) -> None:
        self.scorer, self._gold, self._wants, self._of = scorer, gold, requested, of
        self.teacher: dict[str, Any] | None = None
        self.warnings: list[str] = []

    @classmethod
    def with_teacher(cls, scorer: Scorer, choice: ModelChoice, top_k: int = 0) -> TeacherScorer:
        """Loads the teacher beside the model. With `top_k` what is to be saved of it is kept.

        Raises UsageError where the two have other vocabularies.
        """
        assert isinstance(scorer.backend, TorchBackend)
        taught, windows, record = load_teacher(
            choice, scorer.checkpoint, scorer.backend, scorer.windows, top_k
        )
        if top_k > record["n_words"]:
            raise UsageError(f"--teacher-top-k {top_k}: there are {record['n_words']} words")
        n_ids = min(scorer.tokenization.n_ids, record["n_words"])
        scorer.backend, scorer.windows, scorer.tokenization.n_ids = taught, windows, n_ids
        found = cls(scorer, "teacher", TEACHER_REQUEST, teacher_divergences)
        found.teacher, found.warnings = record, taught.warnings
        return found

    @classmethod
    def with_saved_teacher(cls, scorer: Scorer, path: Path) -> TeacherScorer:
        """Raises UsageError where the file is of other tokens or windows."""
        assert isinstance(scorer.backend, TorchBackend)
        saved = SavedTeacher(TeacherFile(path))
        saved.require_fits(described_windows(scorer.run_info()), scorer.backend.vocabulary())
        scorer.prepare = saved.attach
        scorer.backend = StudentTeacherBackend(scorer.backend, None, saved.n_words)
        found = cls(scorer, "saved teacher", TEACHER_REQUEST, teacher_divergences)
        found.teacher = saved.record()
        return found

    @classmethod
    def with_smoothing(cls, scorer: Scorer, smoothing: float) -> TeacherScorer:
        """Gold is (1 - `smoothing`) one-hot + `smoothing` spread over all words."""
        if not 0 <= smoothing < 1:
            raise UsageError(f"--label-smoothing takes a number from 0 to below 1, not {smoothing}")
        assert isinstance(scorer.backend, TorchBackend)
        n_words = scorer.backend.vocabulary()
        if smoothing and not smoothing / n_words:
            raise UsageError(f"--label-smoothing {smoothing} is too little to be spread")
        of = partial(smoothing_divergences, smoothing=smoothing, vocab_size=n_words)
        return cls(scorer, f"one-hot, label smoothing {smoothing:g}", SMOOTHING_REQUEST, of)

    @property
    def knows_in_part(self) -> bool:
        """Gold is known from a file that holds some of its words."""
        teacher = self.teacher
        return bool(teacher and teacher["saved_as"] and teacher["top_k"] < teacher["n_words"])

    def diverge(
        self, items: Iterable[Item], on_progress: OnProgress = ignore_progress
    ) -> Iterator[DivergenceScore | Rejected]:
        """Divergences or a rejection for each item, in order."""
        return with_divergences(self.scorer.score(items, self._wants, on_progress), self._of)

    def run_info(self, command: str = "api") -> RunInfo:
        return replace(self.scorer.run_info(command), gold=self._gold, teacher=self.teacher)

    def file_header(self, top_k: int) -> dict[str, Any]:
        """What a file of this teacher begins with."""
        assert self.teacher is not None
        return {**self.teacher, **described_windows(self.run_info()), "top_k": top_k}


def described_windows(run: RunInfo) -> dict[str, Any]:
    """What must agree for a teacher's file to be of the same distributions."""
    names = (
        "tokenizer_sha256",
        "context",
        "stride",
        "bos",
        "bos_token_id",
        "eos",
        "special_tokens",
    )
    return {name: getattr(run, name) for name in names}
