"""`seqloss diverge`: how far a model is from a teacher, or from smoothed gold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli.commands import CONFIG, OtherSettings, with_options
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.cli.formats import Format
from seqloss_cli.cli.options import given, only
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import REFERENCE, option, record
from seqloss_cli.core.policies import (
    BatchPolicy,
    DtypeChoice,
    ModelChoice,
    Reading,
    SpeedPolicy,
    TokenPolicy,
    WindowChoice,
)
from seqloss_cli.core.presentation import OutputSettings, ShowSettings

if TYPE_CHECKING:
    from seqloss_cli.backends.teacher_files import SavedSums
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.core.records import Rejected
    from seqloss_cli.metrics.divergence import DivergenceScore, DivergenceTotals, Documents
    from seqloss_cli.results.formats import Writer
    from seqloss_cli.results.schema import RowMakers
    from seqloss_cli.results.writing.rows import RowOptions
    from seqloss_cli.scoring.teacher_scorer import TeacherScorer

EXAMPLES = (
    "seqloss diverge samples/text.txt -m samples/checkpoints/step-600 --teacher demo",
    "seqloss diverge README.md --lines --quantize int8 --teacher demo --summary",
    "seqloss diverge samples/texts.jsonl --label-smoothing 0.1 --json",
    "seqloss diverge README.md -m samples/checkpoints/step-600 --teacher demo --report page.html",
)


@record
class ReferenceSettings:
    """The distributions that the model is measured against: a teacher's, or smoothed labels."""

    teacher: str | None = option(
        None, "--teacher", REFERENCE, "Checkpoint whose distributions are gold; or its FILE."
    )
    teacher_dtype: DtypeChoice | None = option(
        None, "--teacher-dtype", REFERENCE, "The teacher's; else --dtype."
    )
    teacher_adapter: str | None = option(
        None, "--teacher-adapter", REFERENCE, "Adapter that the teacher is to have."
    )
    teacher_revision: str | None = option(
        None, "--teacher-revision", REFERENCE, "Commit or tag of the teacher."
    )
    label_smoothing: float | None = option(
        None, "--label-smoothing", REFERENCE, "Gold: one-hot, E of it spread over all words."
    )
    save_teacher: Path | None = option(
        None, "--save-teacher", REFERENCE, "Keep the teacher's best ids in FILE, for --teacher."
    )
    teacher_top_k: int = option(
        64, "--teacher-top-k", REFERENCE, "How many of them, at each token.", min=1
    )

    def __post_init__(self) -> None:
        """Raises UsageError for a share of labels that is none."""
        smoothing = self.label_smoothing
        if smoothing is not None and not 0 <= smoothing < 1:
            raise UsageError(f"--label-smoothing takes a number from 0 to below 1, not {smoothing}")


@with_options(
    only(i.TextArguments, "files", "text"),
    Reading,
    ReferenceSettings,
    ModelChoice,
    TokenPolicy,
    WindowChoice,
    only(BatchPolicy, "tokens"),
    only(SpeedPolicy, "compile"),
    only(ShowSettings, "unit", "all_tokens", "summary"),
    only(OutputSettings, "json", "jsonl", "format", "output", "force", "text", "tokens", "report"),
    CONFIG,
    OtherSettings,
)
def diverge(ctx: typer.Context) -> None:
    """Measure how far a model is from a teacher: cross-entropy, KL, changed probabilities.

    Both see the same tokens, and whole distributions are compared, a block at a time: what a
    quantised, pruned or distilled model lost. One vocabulary is needed. Intervals: documents.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.report_option import page_after
        from seqloss_cli.cli.settings import load_scorer, output_choice, say_warnings

        choice, inputs = output_choice(ctx), i.text_inputs(ctx)
        _refuse(ctx, choice)
        scorer = load_scorer(ctx)
        gold = _gold(ctx, scorer)
        say_warnings(gold.warnings)
        with page_after(ctx, choice, "Divergences of") as choice:
            with _saving(ctx, gold) as saved:
                n_rejected = _diverge(ctx, choice, inputs, gold, saved)
            if n_rejected:  # once both files are whole
                raise typer.Exit(REJECTED)


def _diverge(
    ctx: typer.Context,
    choice: OutputChoice,
    inputs: i.TextInputs,
    gold: TeacherScorer,
    saved: SavedSums | None,
) -> int:
    """How many inputs were rejected."""
    from dataclasses import replace

    from seqloss_cli.cli.output import Work, say_what_did_not_fit, say_what_was_written, write_all
    from seqloss_cli.cli.progress import ProgressBar
    from seqloss_cli.cli.writers import also_beside
    from seqloss_cli.inputs import ReadStats
    from seqloss_cli.metrics.divergence import DivergenceTotals, Documents, divergence_totals
    from seqloss_cli.results.sinks import open_sink

    stats, documents, bar = ReadStats(), Documents(), ProgressBar(inputs.names)

    def sums_of(diverged: DivergenceScore) -> DivergenceTotals:
        totals = divergence_totals(diverged)
        documents.add(totals, diverged.counted_values())
        if saved is not None:
            saved.add(diverged.score)
        return totals

    found: Iterator[DivergenceScore | Rejected] = gold.diverge(inputs.items(stats), bar.on_progress)
    rows = {"text": choice.text, "tokens": choice.tokens, "summary": choice.summary}
    run = replace(gold.run_info("diverge"), reading=inputs.described(), rows=rows)
    tokenization, rows_of = gold.scorer.tokenization, _rows_of(gold, documents, saved)
    with open_sink(choice.path, choice.force, warn=say) as sink:
        own = _writer(sink, choice, gold, documents, saved)
        with also_beside(own, choice, tokenization, rows_of) as writer:
            work = Work(found, sums_of, DivergenceTotals(), run, writer)
            written = write_all(work, stats, bar, choice)
    say_what_was_written(written, stats, choice)
    say_what_did_not_fit(gold.scorer)
    return written.n_rejected


def _refuse(ctx: typer.Context, choice: OutputChoice) -> None:
    """Raises UsageError for what this command cannot do, before anything is loaded."""
    from seqloss_cli.cli.report_option import refuse_page
    from seqloss_cli.results.sinks import refuse_to_overwrite

    values = ctx.params
    refuse_page(ctx, choice)
    _refuse_page_over(values["report"], values["teacher"], values["save_teacher"])
    save = given(ctx, ReferenceSettings).save_teacher
    if choice.format not in (Format.table, Format.json, Format.jsonl):
        raise UsageError(f"diverge does not write {choice.format.value}, but --json and --jsonl")
    if save is None:
        return
    if choice.path is not None and save.absolute() == choice.path.absolute():
        raise UsageError("--save-teacher and -o name the same file")
    refuse_to_overwrite(save, choice.force)


def _refuse_page_over(page: Path | None, teacher: str | None, save: Path | None) -> None:
    """Raises UsageError where the page would take the place of the teacher's file."""
    files = {"--teacher": Path(teacher) if teacher else None, "--save-teacher": save}
    for flag, path in files.items():
        if page is not None and path is not None and page.absolute() == path.absolute():
            raise UsageError(f"--report {page} and {flag} are one file")


def _gold(ctx: typer.Context, scorer: Any) -> TeacherScorer:
    """What the options take for gold."""
    from dataclasses import replace

    from seqloss_cli.backends.teacher_files import looks_saved
    from seqloss_cli.cli.settings import model_choice
    from seqloss_cli.scoring.teacher_scorer import TeacherScorer

    values = ctx.params
    if values["label_smoothing"] is not None:
        return TeacherScorer.with_smoothing(scorer, values["label_smoothing"])
    if looks_saved(values["teacher"]):
        return TeacherScorer.with_saved_teacher(scorer, Path(values["teacher"]))
    choice = model_choice(ctx, values["teacher"])  # what is said of the model is not of it, too
    choice = replace(
        choice,
        revision=values["teacher_revision"],
        adapter=values["teacher_adapter"],
        tokenizer=None,  # its own: that of both is what is compared
        quantize=None,
    )
    if values["teacher_dtype"] is not None:
        dtype: Any = str(values["teacher_dtype"])
        choice = replace(choice, dtype=dtype)
    top_k = values["teacher_top_k"] if values["save_teacher"] else 0
    return TeacherScorer.with_teacher(scorer, choice, top_k)


@contextmanager
def _saving(ctx: typer.Context, gold: TeacherScorer) -> Iterator[SavedSums | None]:
    """The file that the teacher is saved to, if that is asked for, and its measured error."""
    from seqloss_cli.backends.teacher_files import SavedSums, TeacherWriter
    from seqloss_cli.results.sinks import open_sink

    path: Path | None = ctx.params["save_teacher"]
    if path is None:
        yield None
        return
    top_k = ctx.params["teacher_top_k"]
    with open_sink(path, ctx.params["force"], warn=say) as sink:
        writer = TeacherWriter(sink, gold.file_header(top_k))
        saved = SavedSums(writer, str(gold.run_info().model), top_k)
        yield saved
        writer.end(saved.measured())


def _measured(saved: SavedSums | None) -> dict[str, Any] | None:
    """The error of the file that is saved by the way, if one is."""
    return None if saved is None else saved.measured()


def _rows_of(
    gold: TeacherScorer, documents: Documents, saved: SavedSums | None
) -> Callable[[RowOptions], RowMakers[DivergenceScore, DivergenceTotals]]:
    from seqloss_cli.results.schema.divergences import divergence_rows

    measured = partial(_measured, saved)
    return lambda options: divergence_rows(options, documents, measured, gold.knows_in_part)


def _writer(
    sink: BinaryIO,
    choice: OutputChoice,
    gold: TeacherScorer,
    documents: Documents,
    saved: SavedSums | None,
) -> Writer[DivergenceScore, DivergenceTotals]:
    from seqloss_cli.cli.writers import JSON_WRITERS, console, row_options, table_options
    from seqloss_cli.display.terminal import DivergenceTableWriter

    tokenization = gold.scorer.tokenization
    if choice.format is Format.table:
        options = table_options(tokenization, choice)
        measured = partial(_measured, saved)
        return DivergenceTableWriter(console(choice.path, sink), options, documents, measured)
    rows = _rows_of(gold, documents, saved)(row_options(tokenization, choice))
    writer: Writer[DivergenceScore, DivergenceTotals] = JSON_WRITERS[choice.format](sink, rows)
    return writer
