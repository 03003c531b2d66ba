"""`seqloss objective`: which parameters make the total loss over a data set least.

Models are scored one after another here, for `compare`, too: one is in memory at a time.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.conflicts import names_models
from seqloss_cli.cli.failures import REJECTED, RejectionReport, say
from seqloss_cli.cli.inputs import file_inputs
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import A_MODEL, INPUT, MODEL, argument, command_record, option

if TYPE_CHECKING:
    from seqloss_cli.results.files import ResultsFile
    from seqloss_cli.results.schema.scores import ResultRow


@command_record
class ModelArguments:
    """Several models that are scored, and the data."""

    PANEL = MODEL

    checkpoints: list[str] = argument(
        "CHECKPOINT|RESULTS",
        "Directories or hub names; without --data results of score: .jsonl, .json, .parquet.",
        required=True,
    )
    models: list[str] | None = option(
        None, "To be scored with --data; name each.", flag="--model", short="-m", takes=A_MODEL
    )
    data: list[str] | None = option(
        None, "Texts or JSONL to score; may be given again.", panel=INPUT, metavar="FILE"
    )


SCORING_OPTIONS: o.Group = {
    **o.only(ModelArguments, "data"),
    **o.only(
        p.Reading,
        *("lines", "jsonl", "text_field", "keep_meta", "limit", "max_bytes"),
        jsonl="Data is JSONL, whatever its name.",
        text_field="Field of a JSONL row with the text.",
    ),
    **o.without(p.ModelChoice, "name"),
    **o.without(p.EngineChoice, "url"),
    **o.only(p.TokenPolicy),
    **o.only(p.WindowChoice),
    **o.only(p.BatchPolicy, "tokens"),
    **o.only(p.SpeedPolicy),
}


@o.with_options(
    o.only(ModelArguments, "checkpoints"),
    SCORING_OPTIONS,
    r.INTERVALS,
    o.only(r.StatisticsSettings, "bootstrap", "n_extremes"),
    o.only(o.ShowSettings, "unit"),
    r.SUMMARY_OUTPUT,
    o.CONFIG,
    o.only(o.OtherSettings, "debug"),
)
def objective(ctx: typer.Context) -> None:
    """The pre-training objective as a question: which checkpoint makes the total loss least.

    Scores the data with each in turn, or reads results of each; shows the curve over training
    steps, and says whether the lead of the best one is more than noise.

    Examples:
        seqloss objective samples/checkpoints/step-* demo --data README.md --lines
        seqloss objective run/checkpoint-* --data held-out.jsonl --limit 500 --json
        seqloss objective a.jsonl b.jsonl

    """
    own = o.given(ctx, ModelArguments)
    r.check_output(ctx)
    if not own.data:
        _find(ctx, own.checkpoints, own.checkpoints)
        return
    _refuse_results(own.checkpoints)
    with score_models(ctx, own.checkpoints) as scored:
        _find(ctx, scored.paths, own.checkpoints, scored)


def _refuse_results(names: Sequence[str]) -> None:
    """Raises UsageError for results files among checkpoints that are to be scored."""
    for name in names:
        if not names_models([name]):
            raise UsageError(
                f"{name} is a file, and no CHECKPOINT; the best of RESULTS is found without --data"
            )


@dataclass(frozen=True, slots=True)
class Scored:
    """Results of models that were scored here."""

    paths: list[str]
    n_rejected: int
    """Inputs that were rejected, of all models."""
    inputs: list[str]
    """Names of the data, as the run's record has them."""


def _find(
    ctx: typer.Context, paths: list[str], names: list[str], scored: Scored | None = None
) -> None:
    """Find the best of some results, and write it; `names` are what they are called."""
    from seqloss_cli.analysis.json_summaries import objective_json
    from seqloss_cli.analysis.objective import find_objective
    from seqloss_cli.core.run_record import POLICIES
    from seqloss_cli.display.terminal.comparisons import objective_answers, objective_view
    from seqloss_cli.results.files import NUMERICS, TOKENIZER

    options, readers = r.comparison_options(ctx), list[r.ResultsReader]()

    def opened() -> list[ResultsFile]:
        return [r.open_one(*each) for each in zip(paths, names, strict=True)]

    def rows() -> list[Iterator[ResultRow]]:
        readers.append(r.ResultsReader(opened()))
        # They are read twice, and what was scored here was reported then.
        return readers[-1].each(quiet=scored is not None or len(readers) > 1)

    files = opened()
    if scored is None:
        why = "their totals are not of the same tokens"
        r.require_same(files, r.differences(files, POLICIES), why, mend="")
    same = not any(r.differences(files, TOKENIZER).values())
    if r.say_servers(files) or scored is None:
        # A server has a context of its own.
        r.say_differences(files, r.differences(files, NUMERICS))
    found = find_objective(rows, same, options)
    files, labels = readers[0].files, names if scored else r.labels_of(files)
    r.say_what_was_left_out(found.comparisons.joined, files)
    n_without, n_rows = found.comparisons.joined.n_without_cluster, found.totals[0].n_sequences
    r.require_field("--cluster", options.cluster or None, n_without, n_rows, readers[-1])
    for label, totals in zip(labels, found.totals, strict=True):
        if totals.n_infinite:
            say(f"warning: {label} gives an infinite loss: its total is unknown")
    unit = r.unit_of(ctx)
    inputs = scored.inputs if scored else [*(files[0].run.get("reading") or {}).get("inputs", ())]
    r.write_summary(
        ctx,
        objective_json(found, files, inputs, options),
        lambda: objective_view(found, labels, options.confidence, unit),
        objective_answers(found, labels, unit),
    )
    if found.best is None:
        say("warning: no row can be compared: there is no best checkpoint")
    if (scored and scored.n_rejected) or readers[0].n_unusable or found.best is None:
        raise typer.Exit(REJECTED)


@contextmanager
def score_models(context: typer.Context, models: Sequence[str]) -> Iterator[Scored]:
    """Score the data with each model: yields their results files, which are gone at the end."""
    from seqloss_cli.cli.settings import model_choice, refuse_windows
    from seqloss_cli.models.files import OF_MODEL, missing_hub, require_names

    names = o.given(context, ModelArguments).data or []
    # What is not there shows before the first model is loaded, and not hours later.
    flag = "CHECKPOINT" if "checkpoints" in context.params else "--model"
    for model in models:
        choice, flags = model_choice(context, model), (flag, *OF_MODEL[1:])
        require_names(choice, flags)
        missing_hub(choice, flags)
        refuse_windows(context, choice)
    inputs = (file_inputs(context, names).reading or {})["inputs"]
    with tempfile.TemporaryDirectory(prefix="seqloss-") as folder:
        paths, n_rejected, said = [], 0, set[str]()
        for number, model in enumerate(models):
            path = Path(folder) / f"{number}.jsonl"
            of = f"model {number + 1} of {len(models)}"
            n_rejected += _score_to(context, model, names, path, said, of)
            paths.append(str(path))
            # Memory may not hold two models: this one goes before the next is loaded.
            gc.collect()
        yield Scored(paths, n_rejected, inputs)


def _score_to(
    context: typer.Context, model: str, names: list[str], path: Path, said: set[str], of: str
) -> int:
    """Score one model; returns how many inputs were rejected. A message that is in `said` is not
    repeated: most rejections are the same for every model. `of` says which model it is."""
    from seqloss_cli.cli.progress import ProgressBar
    from seqloss_cli.cli.run import write_all
    from seqloss_cli.cli.settings import OutputPlan, load_scorer, row_options
    from seqloss_cli.core.backend import Requested
    from seqloss_cli.results.formats.json import JsonlWriter
    from seqloss_cli.results.schema.scores import score_rows
    from seqloss_cli.scoring.tasks import score_task

    def say_once(message: str) -> None:
        if message not in said:
            said.add(message)
            say(message)

    say(f"scoring with {model}")
    scorer, inputs = load_scorer(context, model=model), file_inputs(context, names)
    inputs = replace(inputs, items=scorer.verified(inputs.items))
    task = score_task(scorer, "score", Requested())
    # Texts are kept only for a page: they can be larger than all else in the file.
    with_texts = o.given(context, o.OutputSettings).report is not None
    choice = OutputPlan(format=None, text=with_texts)
    run = replace(task.run, reading=inputs.reading)
    options = row_options(scorer.tokenization, choice, run)
    with path.open("wb") as sink:
        writer = JsonlWriter(sink, score_rows(options))
        bar = ProgressBar(names, inputs.n_expected, of)
        written = write_all(task, inputs, run, writer, bar, report=RejectionReport(say_once))
    return written.n_rejected
