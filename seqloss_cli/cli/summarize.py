"""`seqloss summarize`: what results come to, and how sure that is."""

from __future__ import annotations

from typing import Annotated

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import reports as r
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.core.errors import UsageError

EXAMPLES = (
    "seqloss summarize results.jsonl",
    "seqloss summarize results.jsonl --by source --worst 20 --json",
    "seqloss summarize shard-*.jsonl --cluster document --bootstrap 2000",
)


@o.with_options(
    {
        "by": (
            Annotated[
                str | None,
                o.option(o.INPUT, "--by", "Also by the values of this field or meta field."),
            ],
            None,
        ),
    },
    r.STATISTICS_OPTIONS,
    {
        "bootstrap": (
            Annotated[
                int,
                o.option(
                    r.STATISTICS, "--bootstrap", "Resamples, in place of the standard error.", min=0
                ),
            ],
            0,
        ),
        "block": (
            Annotated[
                int | None,
                o.option(
                    r.STATISTICS, "--block", "Tokens of a block where there is one text.", min=1
                ),
            ],
            None,
        ),
    },
    r.REPORT_OPTIONS,
)
def summarize(ctx: typer.Context, results: r.Files) -> None:
    """Totals, means, quantiles and extremes of results, without a model.

    Each mean has an interval: documents are what was drawn at random, tokens never. One long text
    is resampled in blocks. The totals are those that the run itself printed.
    """
    with command_errors(ctx):
        from seqloss_cli.analysis.json_summaries import summary_json
        from seqloss_cli.analysis.summarize import SummaryOptions
        from seqloss_cli.analysis.summarize import summarize as summed
        from seqloss_cli.display.terminal import Unit
        from seqloss_cli.display.terminal.summaries import summary_view
        from seqloss_cli.results.runs import run_differences

        r.check_output(ctx, results)
        values = ctx.params
        options = SummaryOptions(
            by=values["by"],
            cluster=values["cluster"],
            n_extremes=values["worst"],
            bootstrap=values["bootstrap"],
            block=values["block"],
            seed=values["seed"],
            confidence=values["confidence"],
        )
        reading = r.Reading([r.open_one(name) for name in results])
        files = reading.files
        if 0 < options.bootstrap < r.LEAST_RESAMPLES:
            raise UsageError(f"--bootstrap takes 0, or {r.LEAST_RESAMPLES} and more")
        shown = {file.name: run_differences(files[0].run, file.run) for file in files[1:]}
        if not values["allow_different"]:
            r.require_same(files, lambda file: shown[file.name], "a summary is of one run")
        r.say_differences(files, shown)
        summary = summed(reading.all_rows(), options)
        n_rows = summary.whole.totals.n_sequences
        r.require_field("--by", options.by, summary.n_without_by, n_rows)
        r.require_field("--cluster", options.cluster, summary.n_without_cluster, n_rows)
        if options.block and summary.whole.totals.n_sequences_scored != 1:
            say("warning: --block is for one text; the intervals are over documents")
        if summary.n_duplicates:
            say(f"warning: {summary.n_duplicates} rows came before, with the same id and text")
        n_rejected = sum(file.n_rejected for file in files)
        unit = Unit(values["unit"] == "bits")
        r.write_report(
            ctx,
            summary_json(summary, files, options, reading.n_unusable, shown),
            lambda: summary_view(summary, options, unit, n_rejected),
        )
        if reading.n_unusable:
            raise typer.Exit(REJECTED)
