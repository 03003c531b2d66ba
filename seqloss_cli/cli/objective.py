"""`seqloss objective`: which parameters make the total loss over a data set least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.commands import CONFIG, OtherSettings, ShowSettings, with_options
from seqloss_cli.cli.failures import REJECTED, say
from seqloss_cli.cli.options import given, only
from seqloss_cli.cli.score_models import SCORING_OPTIONS, ModelArguments, score_models

if TYPE_CHECKING:
    from seqloss_cli.results.files import ResultsFile

EXAMPLES = (
    "seqloss objective samples/checkpoints/step-* demo --data README.md --lines",
    "seqloss objective run/checkpoint-* --data held-out.jsonl --limit 500 --json",
)


@with_options(
    only(ModelArguments, "checkpoints"),
    SCORING_OPTIONS,
    r.INTERVALS,
    only(r.StatisticsSettings, "bootstrap"),
    only(r.StatisticsSettings, "worst"),
    only(ShowSettings, "unit"),
    r.SUMMARY_OUTPUT,
    CONFIG,
    only(OtherSettings, "debug"),
)
def objective(ctx: typer.Context) -> None:
    """The pre-training objective as a question: which checkpoint makes the total loss least.

    Scores the data with each in turn, shows the curve over training steps, and says whether the
    lead of the best one is more than noise.
    """
    checkpoints = given(ctx, ModelArguments).checkpoints
    r.check_output(ctx)
    with score_models(ctx, checkpoints) as (names, n_rejected):
        _find(ctx, names, checkpoints, n_rejected)


def _find(ctx: typer.Context, names: list[str], models: list[str], n_rejected: int) -> None:
    from seqloss_cli.analysis.json_summaries import objective_json
    from seqloss_cli.analysis.objective import find_objective
    from seqloss_cli.display.terminal.comparisons import objective_view
    from seqloss_cli.display.terminal.formatting import Unit
    from seqloss_cli.results.files import TOKENIZER, run_differences

    options = r.comparison_options(ctx)

    def open_all() -> list[ResultsFile]:
        return [r.open_one(*each) for each in zip(names, models, strict=True)]

    reader = r.ResultsReader(open_all())
    files = reader.files
    same = not any(run_differences(files[0].run, f.run, TOKENIZER) for f in files[1:])
    # Quiet: the rows are read more than once, and were reported when they were scored.
    found = find_objective(
        lambda: [reader.rows(file, quiet=True) for file in open_all()], same, options
    )
    r.say_what_was_left_out(found.comparisons.joined, files)
    if options.cluster:
        n_rows, n_without = found.totals[0].n_sequences, found.comparisons.joined.n_without_cluster
        r.require_field("--cluster", options.cluster, n_without, n_rows)
    for model, totals in zip(models, found.totals, strict=True):
        if totals.n_infinite:
            say(f"warning: {model} gives an infinite loss: its total is unknown")
    unit = Unit(given(ctx, ShowSettings).unit == "bits")
    data = given(ctx, ModelArguments).data or []
    r.write_summary(
        ctx, objective_json(found, files, data, options),
        lambda: objective_view(found, models, options.confidence, unit),
    )  # fmt: skip
    if found.best is None:
        say("warning: no row can be compared: there is no best checkpoint")
    if n_rejected or found.best is None:
        raise typer.Exit(REJECTED)
