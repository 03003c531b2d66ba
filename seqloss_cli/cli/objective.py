"""`seqloss objective`: which parameters make the total loss over a data set least.

Models are scored one after another here, for `compare`, too: one is in memory at a time.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.failures import REJECTED, RejectionReport, say
from seqloss_cli.cli.inputs import file_inputs
from seqloss_cli.core import policies as p
from seqloss_cli.core.options import A_MODEL, INPUT, MODEL, argument, command_record, option


@command_record
class ModelArguments:
    """Several models that are scored, and the data."""

    PANEL = MODEL

    checkpoints: list[str] = argument("CHECKPOINT", "Directories or hub names.", required=True)
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

    Scores the data with each in turn, shows the curve over training steps, and says whether the
    lead of the best one is more than noise.

    Examples:
        seqloss objective samples/checkpoints/step-* demo --data README.md --lines
        seqloss objective run/checkpoint-* --data held-out.jsonl --limit 500 --json

    """
    checkpoints = o.given(ctx, ModelArguments).checkpoints
    r.check_output(ctx)
    with score_models(ctx, checkpoints) as (names, n_rejected):
        _find(ctx, names, checkpoints, n_rejected)


def _find(ctx: typer.Context, names: list[str], models: list[str], n_rejected: int) -> None:
    from seqloss_cli.analysis.json_summaries import objective_json
    from seqloss_cli.analysis.objective import find_objective
    from seqloss_cli.display.terminal.comparisons import objective_answers, objective_view
    from seqloss_cli.results.files import NUMERICS, TOKENIZER

    options, data = r.comparison_options(ctx), o.given(ctx, ModelArguments).data or []

    readers = list[r.ResultsReader]()

    def reader() -> r.ResultsReader:
        files = [r.open_one(*each) for each in zip(names, models, strict=True)]
        readers.append(r.ResultsReader(files))
        return readers[-1]

    files = reader().files
    same = not any(r.differences(files, TOKENIZER).values())
    if r.say_servers(files):
        # A server has a context of its own.
        r.say_differences(files, r.differences(files, NUMERICS))
    # Quiet: the rows are read more than once, and were reported when they were scored.
    found = find_objective(lambda: reader().each(quiet=True), same, options)
    r.say_what_was_left_out(found.comparisons.joined, files)
    n_without, n_rows = found.comparisons.joined.n_without_cluster, found.totals[0].n_sequences
    r.require_field("--cluster", options.cluster or None, n_without, n_rows, readers[-1])
    for model, totals in zip(models, found.totals, strict=True):
        if totals.n_infinite:
            say(f"warning: {model} gives an infinite loss: its total is unknown")
    unit = r.unit_of(ctx)
    r.write_summary(
        ctx,
        objective_json(found, files, data, options),
        lambda: objective_view(found, models, options.confidence, unit),
        objective_answers(found, models, unit),
    )
    if found.best is None:
        say("warning: no row can be compared: there is no best checkpoint")
    if n_rejected or found.best is None:
        raise typer.Exit(REJECTED)


@contextmanager
def score_models(context: typer.Context, models: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """Score the data with each model: yields their results files, which are gone at the end, and
    how many inputs were rejected."""
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
    file_inputs(context, names)
    with tempfile.TemporaryDirectory(prefix="seqloss-") as folder:
        paths, n_rejected, said = [], 0, set[str]()
        for number, model in enumerate(models):
            path = Path(folder) / f"{number}.jsonl"
            of = f"model {number + 1} of {len(models)}"
            n_rejected += _score_to(context, model, names, path, said, of)
            paths.append(str(path))
            # Memory may not hold two models: this one goes before the next is loaded.
            gc.collect()
        yield paths, n_rejected


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
    options = row_options(scorer.tokenization, choice, task.run)
    with path.open("wb") as sink:
        writer = JsonlWriter(sink, score_rows(options))
        bar = ProgressBar(names, inputs.n_expected, of)
        written = write_all(task, inputs, task.run, writer, bar, report=RejectionReport(say_once))
    return written.n_rejected
