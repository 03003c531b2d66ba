"""`seqloss diverge`: how far a model is from a teacher, or from smoothed labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli import options as o
from seqloss_cli.cli.conflicts import names_no_model, refuse_conflicts
from seqloss_cli.cli.failures import exit_with, say
from seqloss_cli.cli.report import write_with_page
from seqloss_cli.cli.results_io import check_places, open_second
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import A_MODEL, REFERENCE, command_record, option
from seqloss_cli.core.policies import DEFAULT_OVERLAP_K
from seqloss_cli.models.files import missing_hub, require_names

if TYPE_CHECKING:
    from seqloss_cli.cli.settings import OutputPlan
    from seqloss_cli.metrics.divergence import ModelsScore, ModelsTotals
    from seqloss_cli.results.formats import Writer
    from seqloss_cli.scoring.scorer import Scorer
    from seqloss_cli.scoring.teacher_scorer import TeacherScorer

_OF_TEACHER = ("--teacher", "--tokenizer", "--teacher-adapter")
"""Flags of a teacher and its adapter, for messages; it has its own tokenizer."""


@command_record
class ReferenceSettings:
    """The distributions that the model is measured against: a teacher's, or smoothed labels."""

    PANEL = REFERENCE

    teacher: str | None = option(
        None, "Checkpoint whose distributions are gold; or its FILE.", takes=A_MODEL
    )
    teacher_dtype: p.DtypeChoice | None = option(None, "The teacher's; else --dtype.")
    teacher_adapter: str | None = option(None, "Adapter that the teacher is to have.")
    teacher_revision: str | None = option(None, "Commit or tag of the teacher.")
    label_smoothing: float | None = option(None, "Gold: one-hot, E of it spread over all words.")
    save_teacher: Path | None = option(None, "Keep the teacher's best ids in FILE, for --teacher.")
    teacher_top_k: int = option(64, "How many of them, at each token.", min=1)

    draft_length: int | None = option(
        None, "Tokens that are accepted of drafts of N by the model.", min=1, max=1000
    )
    overlap_k: int = option(DEFAULT_OVERLAP_K, "Most probable ids of both to compare.", min=1)

    def __post_init__(self) -> None:
        """Raises UsageError for a share of labels that is none."""
        smoothing = self.label_smoothing
        if smoothing is not None and not 0 <= smoothing < 1:
            raise UsageError(f"--label-smoothing takes a number from 0 to below 1, not {smoothing}")


_SEVERAL_MODELS = {
    "name": "Directory, .gguf, hub name or 'demo'; also NAME#int8, #DTYPE; may be given again."
}


@o.with_options(
    o.only(i.TextArguments, "files", "text"),
    p.Reading,
    ReferenceSettings,
    o.only(p.ModelChoice, **_SEVERAL_MODELS),
    p.TokenPolicy,
    p.WindowChoice,
    o.only(p.BatchPolicy, "tokens"),
    o.only(p.SpeedPolicy, "compile"),
    o.only(o.ShowSettings, "unit", "all_tokens", "summary"),
    o.only(o.OutputSettings, "json", "jsonl", "format"),
    o.only(o.OutputSettings, "level", level="What a line of CSV or TSV is: sequence or token."),
    o.only(o.OutputSettings, "output", "force", "text", "tokens", "resume", "report"),
    o.CONFIG,
    o.OtherSettings,
)
def diverge(ctx: typer.Context) -> None:
    """Measure how far a model is from a teacher: cross-entropy, KL, acceptance of drafts.

    Both see the same tokens, and whole distributions are compared, a block at a time: what a
    quantised, pruned or distilled model lost. One vocabulary is needed. Intervals: documents.

    Examples:
        seqloss diverge LICENSE -m samples/checkpoints/step-600 --teacher demo
        seqloss diverge README.md --lines --quantize int8 --teacher demo --summary
        seqloss diverge samples/texts.jsonl --label-smoothing 0.1 --json
        seqloss diverge README.md --quantize int8 --teacher demo --report page.html
        seqloss diverge LICENSE --quantize int8 --teacher demo --draft-length 4
        seqloss diverge LICENSE -m 'demo#int8' -m 'demo#bfloat16' --teacher demo

    """
    from seqloss_cli.cli.settings import output_choice, say_warnings

    models = ctx.meta.get(o.MODELS, [])
    refuse_conflicts(ctx, n_models=len(models))
    choice = output_choice(ctx)
    own = o.given(ctx, ReferenceSettings)
    # What is not there shows before a model is loaded.
    if own.teacher is not None and not names_no_model(own.teacher):
        choice_of_teacher = replace(
            o.given(ctx, p.ModelChoice),
            name=own.teacher,
            tokenizer=None,
            revision=own.teacher_revision,
            adapter=own.teacher_adapter,
        )
        require_names(choice_of_teacher, _OF_TEACHER)
        missing_hub(choice_of_teacher, _OF_TEACHER)
    check_places(ctx, "report", "save_teacher")
    inputs = i.text_inputs(ctx)
    scorers = _scorers(ctx, models)
    teacher = _teacher_scorer(ctx, scorers)
    say_warnings(teacher.warnings)
    if 0 < teacher.overlap_k < own.overlap_k:
        say(f"note: the {teacher.overlap_k} most probable ids are compared: no more are known")
    if models:
        exit_with(_diverge_each(ctx, choice, inputs, teacher))
        return
    write_with_page(
        ctx, choice, lambda choice: _diverge(ctx, choice, inputs, teacher), "Divergences of"
    )


def _diverge(
    ctx: typer.Context, choice: OutputPlan, inputs: i.Inputs, teacher: TeacherScorer
) -> int:
    """Measure everything and write it, and the teacher if asked for; returns the exit code."""
    from seqloss_cli.backends.teacher_files import TeacherWriter
    from seqloss_cli.cli.run import Command
    from seqloss_cli.display.terminal.rank_and_diverge import (
        DivergenceTableWriter,
        divergence_answer,
    )
    from seqloss_cli.metrics.divergence import DocumentSums
    from seqloss_cli.results.schema.divergences import divergence_rows
    from seqloss_cli.scoring.tasks import diverge_task

    own, documents, saved = o.given(ctx, ReferenceSettings), DocumentSums(), None
    choice, rows = _with_drafts(choice, own)
    with open_second(ctx, own.save_teacher) as sink:
        if sink is not None:
            header = teacher.file_header(own.teacher_top_k)
            saved = TeacherWriter(sink, header, str(teacher.run_info().model))
        measured = (lambda: None) if saved is None else saved.measured
        command = Command(
            diverge_task(
                teacher, documents, None if saved is None else saved.add, choice.draft_length
            ),
            lambda options: divergence_rows(options, documents, measured, teacher.knows_in_part),
            lambda console, options: DivergenceTableWriter(
                console, options, documents, measured, choice.draft_length, teacher.overlap_k
            ),
            divergence_answer,
        )
        written = command.run(inputs, choice, rows)
        if saved is not None:
            saved.end()
    return written.exit_code


def _with_drafts(choice: OutputPlan, own: ReferenceSettings) -> tuple[OutputPlan, dict[str, Any]]:
    """The plan with the drafts that are asked for, and what the run's record says of rows."""
    from seqloss_cli.core.run_record import recorded

    choice = replace(choice, draft_length=own.draft_length or 0)
    rows = recorded(choice, "text", "tokens", "summary")
    # Only where they were given: records of older files do not have them.
    rows |= {"draft_length": own.draft_length} if own.draft_length else {}
    rows |= {"overlap_k": own.overlap_k} if own.overlap_k != DEFAULT_OVERLAP_K else {}
    return choice, rows


class _RowOfEach:
    """A writer of results that are of several models: it hands on a row for each."""

    def __init__(self, writer: Writer[Any, Any]) -> None:
        self._writer = writer
        self.begin, self.reject, self.end = writer.begin, writer.reject, writer.end

    def sequence(self, result: ModelsScore, sums: ModelsTotals) -> None:
        """Write the rows of an input."""
        for score, own in zip(result.scores, sums.parts, strict=True):
            self._writer.sequence(score, own)


def _diverge_each(
    ctx: typer.Context, choice: OutputPlan, inputs: i.Inputs, teacher: TeacherScorer
) -> int:
    """Measure all models and write them; returns the exit code."""
    from seqloss_cli.cli.run import Command
    from seqloss_cli.display.terminal.diverged_models import ModelsTableWriter, models_answer
    from seqloss_cli.metrics.divergence import DocumentSums
    from seqloss_cli.results.schema.diverged_models import models_rows
    from seqloss_cli.scoring.tasks import models_task

    choice, rows = _with_drafts(choice, o.given(ctx, ReferenceSettings))
    documents = [DocumentSums() for _ in teacher.models]
    command = Command(
        models_task(teacher, documents, choice.draft_length),
        lambda options: models_rows(options, documents, teacher.knows_in_part),
        lambda console, options: ModelsTableWriter(
            console, options, documents, choice.draft_length
        ),
        models_answer,
        as_rows=_RowOfEach,
    )
    return command.run(inputs, choice, rows).exit_code


def _scorers(ctx: typer.Context, models: list[str]) -> dict[str, Scorer]:
    """The models by their names: all in memory. Without several, the one that options name."""
    from seqloss_cli.cli.settings import load_scorer, model_choice

    if not models:
        return {"": load_scorer(ctx)}
    if twice := next((name for name in models if models.count(name) > 1), None):
        raise UsageError(f"--model {twice} is named twice: it does not differ from itself")
    # What is not there shows before the first is loaded.
    for name in models:
        require_names(model_choice(ctx, name))
        missing_hub(model_choice(ctx, name))
    return {name: load_scorer(ctx, model=name) for name in models}


def _teacher_scorer(ctx: typer.Context, scorers: dict[str, Scorer]) -> TeacherScorer:
    """The first scorer, and others, with what the options measure them against."""
    from seqloss_cli.backends.teacher_files import looks_saved
    from seqloss_cli.cli.settings import loading, model_choice
    from seqloss_cli.scoring.teacher_scorer import TeacherScorer

    settings, scorer = o.given(ctx, ReferenceSettings), next(iter(scorers.values()))
    several = scorers if len(scorers) > 1 else None
    if settings.label_smoothing is not None:
        return TeacherScorer.with_smoothing(scorer, settings.label_smoothing)
    teacher = settings.teacher or ""
    if looks_saved(teacher):
        return TeacherScorer.with_saved_teacher(scorer, Path(teacher), settings.overlap_k, several)
    choice = model_choice(ctx, teacher)
    # Options of the model are not the teacher's: it has its own tokenizer, which is compared.
    choice = replace(
        choice,
        revision=settings.teacher_revision,
        adapter=settings.teacher_adapter,
        tokenizer=None,
        quantize=None,
        dtype=settings.teacher_dtype or choice.dtype,
    )
    top_k = settings.teacher_top_k if settings.save_teacher else 0
    with loading(teacher):
        return TeacherScorer.with_teacher(scorer, choice, top_k, settings.overlap_k, several)
