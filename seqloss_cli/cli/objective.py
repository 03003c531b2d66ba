"""`seqloss objective`: which parameters make the total loss over a data set least."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from seqloss_cli.cli import in_turn as t
from seqloss_cli.cli import options as o
from seqloss_cli.cli import reports as r
from seqloss_cli.cli.compare import say_what_was_left_out
from seqloss_cli.cli.failures import REJECTED, command_errors, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from seqloss_cli.results.files import ResultsFile

EXAMPLES = (
    "seqloss objective samples/checkpoints/step-* demo --data README.md --lines",
    "seqloss objective run/checkpoint-* --data held-out.jsonl --limit 500 --json",
)


@o.with_options(
    t.TURN_OPTIONS,
    r.COMPARE_OPTIONS,
    {name: r.REPORT_OPTIONS[name] for name in r.REPORT_OPTIONS if name != "allow_different"},
)
def objective(
    ctx: typer.Context,
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT", help="Directories or hub names.")
    ],
) -> None:
    """The pre-training objective as a question: which checkpoint makes the total loss least.

    Scores the data with each in turn, shows the curve over training steps, and says whether the
    lead of the best one is more than noise.
    """
    with command_errors(ctx):
        r.check_output(ctx)
        with t.scored_in_turn(ctx, checkpoints) as (names, n_rejected):
            _find(ctx, names, checkpoints, n_rejected)


def _find(ctx: typer.Context, names: list[str], models: list[str], n_rejected: int) -> None:
    from seqloss_cli.analysis.json_summaries import objective_json
    from seqloss_cli.analysis.objective import find_objective, training_step
    from seqloss_cli.display.terminal import Unit
    from seqloss_cli.display.terminal.comparisons import comparison_sentence, objective_view
    from seqloss_cli.results.runs import TOKENIZER, run_differences

    values = ctx.params
    options = r.choose_comparison(ctx)

    def open_all() -> list[ResultsFile]:
        return [r.open_one(*each) for each in zip(names, models, strict=True)]

    reading = r.Reading(open_all())
    files = reading.files
    same = not any(run_differences(files[0].run, f.run, TOKENIZER) for f in files[1:])
    found = find_objective(
        lambda: [reading.rows(file, quiet=True) for file in open_all()], same, options
    )
    say_what_was_left_out(found.comparisons.joined, files)
    if options.cluster:
        n_rows, n_without = found.totals[0].n_sequences, found.comparisons.joined.n_without_cluster
        r.require_field("--cluster", options.cluster, n_without, n_rows)
    for model, totals in zip(models, found.totals, strict=True):
        if totals.n_infinite:
            say(f"warning: {model} gives an infinite loss: its total is unknown")
    unit = Unit(values["unit"] == "bits")

    def views() -> Iterator[RenderableType]:
        steps = [training_step(model) for model in models]
        yield from objective_view(
            models, steps, found.totals, found.means, found.best, options.confidence, unit
        )
        if found.lead is not None:
            yield comparison_sentence(found.lead, models, unit)

    r.write_report(ctx, objective_json(found, files, values["data"], options), views)
    if found.best is None:
        say("warning: no row can be compared: there is no best checkpoint")
    if n_rejected or found.best is None:
        raise typer.Exit(REJECTED)
