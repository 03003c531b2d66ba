"""What the program asks of a backend: what one cannot give is refused, never filled in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import losses_only
from helpers.builders import byte_tokenizer
from helpers.losses_only import LossesOnly
from seqloss_cli import ModelChoice, RunError, Sample, Scorer, SequenceScore, UsageError, Wants
from seqloss_cli.backends import opening
from seqloss_cli.core.backend import (
    Backend,
    Capabilities,
    Requested,
    StudentWithTeacher,
    TokenScores,
)
from seqloss_cli.core.columns import (
    COLUMNS,
    DIVERGENCES,
    MEAN_LOG_PROB,
    SAVED_TEACHER,
    WORD_BOUNDARIES,
)
from seqloss_cli.core.policies import BatchPolicy, PairPolicy, TokenPolicy, WindowPolicy
from seqloss_cli.core.records import Pair, Rejected
from seqloss_cli.scoring.pipeline import score_samples
from seqloss_cli.scoring.teacher_scorer import TeacherScorer
from seqloss_cli.tokenization.tokenizer import Tokenization

INTERNAL = (WORD_BOUNDARIES, MEAN_LOG_PROB, DIVERGENCES, SAVED_TEACHER)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the backend in the place of the only one: the one line where backends are named."""
    monkeypatch.setitem(opening.BACKENDS, "torch", "helpers.losses_only")


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Scorer:
    monkeypatch.setitem(opening.BACKENDS, "made up", "helpers.losses_only")
    return Scorer(ModelChoice(backend="made up"))


def test_a_backend_of_losses_only_is_one_module(scorer: Scorer) -> None:
    backend: Backend = LossesOnly()  # mypy sees that it has all that is asked of one
    assert not backend.capabilities.quantities
    (outcome,) = scorer.score([Sample("a", "a", text="abc")])
    assert isinstance(outcome, SequenceScore)
    assert outcome.losses[1:].tolist() == outcome.sequence.token_ids[1:].tolist()
    assert not outcome.columns
    assert scorer.warnings == ["a made-up backend"]
    run = scorer.run_info("score")
    assert (run.model, run.path, run.dtype, run.batch_tokens) == ("made up", "remote", None, 4096)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_what_it_cannot_give_is_refused_before_anything_is_read(
    scorer: Scorer, column: Any
) -> None:
    def unread() -> Any:
        raise AssertionError("nothing is read")
        yield

    with pytest.raises(UsageError, match=column.flag) as caught:
        scorer.score(unread(), Requested(**{column.option: 1}))
    assert "losses only" in str(caught.value)


@pytest.mark.parametrize("column", INTERNAL, ids=lambda column: column.name)
def test_so_is_what_no_output_shows(scorer: Scorer, column: Any) -> None:
    with pytest.raises(UsageError, match=column.flag):
        scorer.score([], Requested(internal=(column,)))


def test_smoothing_and_teachers_are_refused(scorer: Scorer) -> None:
    smoothed = TeacherScorer.with_smoothing(scorer, 0.1)
    with pytest.raises(UsageError, match="--label-smoothing"):
        smoothed.diverge([])
    with pytest.raises(UsageError, match="--teacher"):
        TeacherScorer.with_teacher(scorer, ModelChoice())


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize(
    ("windows", "n_ids", "reason"),
    [
        (WindowPolicy(64, "test", 32), 40, "id_out_of_range"),
        (WindowPolicy(4, "test", 2), 258, "too_long"),
    ],
)
def test_pairs_beside_a_teacher_are_of_ids_and_lengths_that_it_takes(
    windows: WindowPolicy, n_ids: int, reason: str
) -> None:
    scorer = Scorer(ModelChoice(backend="made up"), pairs=PairPolicy())
    samples = [Sample("a", "a", pair=Pair("aaa", "zzz"))]
    compared = StudentWithTeacher(LossesOnly(), windows, {}, n_ids)
    (refused,) = scorer.with_teacher(compared).score(samples)
    assert isinstance(refused, Rejected)
    assert refused.reason == reason
    (scored,) = scorer.score(samples)
    assert isinstance(scored, SequenceScore)


def test_a_teacher_is_opened_by_the_backend_of_the_student(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_teacher(student: Any, *asked: Any) -> StudentWithTeacher:
        return StudentWithTeacher(student, WindowPolicy(8, "made up", 4), {"asked": asked})

    choice = ModelChoice("large", backend="made up")
    # Not even imported: it may not be installed beside another.
    monkeypatch.setitem(sys.modules, "seqloss_cli.backends.torch.teacher", None)
    with pytest.raises(UsageError, match="--teacher"):
        TeacherScorer.with_teacher(scorer, choice)
    with pytest.raises(UsageError, match="--teacher"):
        TeacherScorer.with_teacher(scorer, ModelChoice("large"))
    monkeypatch.setattr(losses_only, "open_teacher", open_teacher, raising=False)
    found = TeacherScorer.with_teacher(scorer, choice, 3)
    assert found.teacher == {"asked": (choice, scorer.windows, 3, 10)}
    knows_no_rest = Capabilities(quantities=frozenset([DIVERGENCES.name]))
    monkeypatch.setattr(LossesOnly, "capabilities", knows_no_rest)
    with pytest.raises(UsageError, match="--save-teacher"):
        found.diverge([])


@pytest.mark.usefixtures("named")
def test_the_command_line_names_the_flag(run_cli: Any, tmp_path: Path) -> None:
    plain = run_cli("score", "--text", "abc", "--json", "--model", "any")
    assert plain.exit_code == 0, plain.stderr
    document = json.loads(plain.stdout)
    assert document["run"]["model"] == "made up"
    (row,) = document["sequences"]
    assert row["token_losses"][1:] == row["token_ids"][1:]
    assert "ranks" not in row
    out = tmp_path / "out.jsonl"
    refused = run_cli("score", "--text", "abc", "--ranks", "--model", "any", "-o", str(out))
    assert refused.exit_code == 2
    assert "--ranks" in refused.stderr
    assert not out.exists()


def test_a_token_that_is_none_is_refused_before_the_model_is_tried_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*arguments: Any, **others: Any) -> None:
        raise AssertionError("probes and compilers take seconds to minutes")

    monkeypatch.setattr("seqloss_cli.backends.torch.backend.TorchBackend.__init__", start)
    for policy in (TokenPolicy(bos_token="no such token"), TokenPolicy(bos_token="999999")):
        with pytest.raises(UsageError, match="--bos-token"):
            Scorer(ModelChoice(), policy)


def test_an_unknown_backend_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="torch"):
        Scorer(ModelChoice(backend="none"))


def test_a_column_that_was_promised_and_left_out_is_a_bug_and_no_zero() -> None:
    class Forgetful(LossesOnly):
        capabilities = Capabilities(quantities=frozenset(["ranks", "entropies"]))

        def score(self, batch: Any, requested: Requested) -> TokenScores:
            scores = super().score(batch, requested)
            return TokenScores(scores.losses, {"ranks": np.ones(len(scores.losses), dtype=int)})

    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(), 258, None, None)
    with pytest.raises(RuntimeError, match="entropies") as caught:
        list(
            score_samples(
                [Sample("a", "a", text="abc")],
                tokenization.tokenize,
                Forgetful(),
                WindowPolicy(64, "test", 32),
                Requested(ranks=True, entropy=True),
                BatchPolicy(),
            )
        )
    assert not isinstance(caught.value, RunError)


def test_what_is_asked_for_is_made_as_scripts_make_it() -> None:
    assert Wants(True, False, 3) == Requested(ranks=True, top_k=3)
    assert [column.name for column in Wants(True, True, 2).columns] == [
        "ranks",
        "entropies",
        "top_logprobs",
    ]
    assert Wants().described() == {"ranks": False, "entropy": False, "top_k": 0}
    with pytest.raises(TypeError, match="rnks"):
        Wants(rnks=True)
