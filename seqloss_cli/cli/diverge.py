"""`seqloss diverge`: how far a model is from a teacher, or from smoothed gold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli.commands import (
    CONFIG,
    OtherSettings,
    OutputSettings,
    ShowSettings,
    with_options,
)
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.options import given, only
from seqloss_cli.cli.results_io import refuse_second_output
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import REFERENCE, command_record, option

if TYPE_CHECKING:
    from seqloss_cli.backends.teacher_files import TeacherWriter
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.scoring.scorer import Scorer
    from seqloss_cli.scoring.teacher_scorer import TeacherScorer

EXAMPLES = (
    "seqloss diverge samples/text.txt -m samples/checkpoints/step-600 --teacher demo",
    "seqloss diverge README.md --lines --quantize int8 --teacher demo --summary",
    "seqloss diverge samples/texts.jsonl --label-smoothing 0.1 --json",
    "seqloss diverge README.md -m samples/checkpoints/step-600 --teacher demo --report page.html",
)


@command_record
class ReferenceSettings:
    """The distributions that the model is measured against: a teacher's, or smoothed labels."""

    PANEL = REFERENCE

    teacher: str | None = option(None, "Checkpoint whose distributions are gold; or its FILE.")
    teacher_dtype: p.DtypeChoice | None = option(None, "The teacher's; else --dtype.")
    teacher_adapter: str | None = option(None, "Adapter that the teacher is to have.")
    teacher_revision: str | None = option(None, "Commit or tag of the teacher.")
    label_smoothing: float | None = option(None, "Gold: one-hot, E of it spread over all words.")
    save_teacher: Path | None = option(None, "Keep the teacher's best ids in FILE, for --teacher.")
    teacher_top_k: int = option(64, "How many of them, at each token.", min=1)

    def __post_init__(self) -> None:
        """Raises UsageError for a share of labels that is none."""
        smoothing = self.label_smoothing
        if smoothing is not None and not 0 <= smoothing < 1:
            raise UsageError(f"--label-smoothing takes a number from 0 to below 1, not {smoothing}")


@with_options(
    only(i.TextArguments, "files", "text"),
    p.Reading,
    ReferenceSettings,
    p.ModelChoice,
    p.TokenPolicy,
    p.WindowChoice,
    only(p.BatchPolicy, "tokens"),
    only(p.SpeedPolicy, "compile"),
    only(ShowSettings, "unit", "all_tokens", "summary"),
    only(OutputSettings, "json", "jsonl", "format"),
    only(OutputSettings, "level", level="What a line of CSV or TSV is: sequence or token."),
    only(OutputSettings, "output", "force", "text", "tokens", "resume", "report"),
    CONFIG,
    OtherSettings,
)
def diverge(ctx: typer.Context) -> None:
    """Measure how far a model is from a teacher: cross-entropy, KL, changed probabilities.

    Both see the same tokens, and whole distributions are compared, a block at a time: what a
    quantised, pruned or distilled model lost. One vocabulary is needed. Intervals: documents.
    """
    from seqloss_cli.cli.report_option import page_after
    from seqloss_cli.cli.settings import load_scorer, output_choice, say_warnings

    choice, inputs = output_choice(ctx), i.text_inputs(ctx)
    _refuse(ctx, choice)
    scorer = load_scorer(ctx)
    teacher = _teacher_scorer(ctx, scorer)
    say_warnings(teacher.warnings)
    with page_after(ctx, choice, "Divergences of") as choice:
        with _saving(ctx, teacher) as saved:
            exit_code = _diverge(choice, inputs, teacher, saved)
        if exit_code:  # once both files are whole
            raise typer.Exit(exit_code)


def _diverge(
    choice: OutputChoice, inputs: i.TextInputs, teacher: TeacherScorer, saved: TeacherWriter | None
) -> int:
    """Measure everything and write it; returns the exit code."""
    from seqloss_cli.cli.run import Command, Inputs, run
    from seqloss_cli.display.terminal.rank_and_diverge import DivergenceTableWriter
    from seqloss_cli.inputs.reading import ReadStats
    from seqloss_cli.metrics.divergence import DocumentSums
    from seqloss_cli.results.schema.divergences import divergence_rows
    from seqloss_cli.scoring.tasks import diverge_task

    stats, documents = ReadStats(), DocumentSums()

    def measured() -> dict[str, Any] | None:
        return None if saved is None else saved.measured()

    command = Command(
        diverge_task(teacher, documents, None if saved is None else saved.add),
        lambda options: divergence_rows(options, documents, measured, teacher.knows_in_part),
        lambda console, options: DivergenceTableWriter(console, options, documents, measured),
    )
    rows = {"text": choice.text, "tokens": choice.tokens, "summary": choice.summary}
    read = Inputs(inputs.items(stats), stats, inputs.names, inputs.described())
    return run(command, read, choice, rows).exit_code


def _refuse(ctx: typer.Context, choice: OutputChoice) -> None:
    """Raises UsageError for what this command cannot do, before anything is loaded."""
    from seqloss_cli.cli.report_option import refuse_page

    settings = given(ctx, ReferenceSettings)
    teacher, save = settings.teacher, settings.save_teacher
    others = {"--teacher": Path(teacher) if teacher else None, "--save-teacher": save}
    refuse_page(ctx, choice, others)
    refuse_second_output("--save-teacher", save, choice.path, choice.force)


def _teacher_scorer(ctx: typer.Context, scorer: Scorer) -> TeacherScorer:
    """The scorer with what the options measure it against."""
    from dataclasses import replace

    from seqloss_cli.backends.teacher_files import looks_saved
    from seqloss_cli.cli.settings import model_choice
    from seqloss_cli.scoring.teacher_scorer import TeacherScorer

    settings = given(ctx, ReferenceSettings)
    if settings.label_smoothing is not None:
        return TeacherScorer.with_smoothing(scorer, settings.label_smoothing)
    teacher = settings.teacher or ""
    if looks_saved(teacher):
        return TeacherScorer.with_saved_teacher(scorer, Path(teacher))
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
    return TeacherScorer.with_teacher(
        scorer, choice, settings.teacher_top_k if settings.save_teacher else 0
    )


@contextmanager
def _saving(ctx: typer.Context, teacher: TeacherScorer) -> Iterator[TeacherWriter | None]:
    """The file that the teacher is saved to, if that is asked for, and its measured error."""
    from seqloss_cli.backends.teacher_files import TeacherWriter
    from seqloss_cli.results.sinks import open_sink

    settings = given(ctx, ReferenceSettings)
    path, top_k = settings.save_teacher, settings.teacher_top_k
    if path is None:
        yield None
        return
    with open_sink(path, given(ctx, OutputSettings).force, warn=say) as sink:
        saved = TeacherWriter(sink, teacher.file_header(top_k), str(teacher.run_info().model))
        yield saved
        saved.end()
