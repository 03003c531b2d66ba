"""`seqloss score`: the losses of whole texts."""

from __future__ import annotations

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli.commands import CONFIG, OtherSettings, with_options
from seqloss_cli.cli.failures import command_errors
from seqloss_cli.cli.options import only, quantities
from seqloss_cli.core.policies import (
    BatchPolicy,
    ModelChoice,
    Reading,
    SpeedPolicy,
    TokenPolicy,
    WindowChoice,
)
from seqloss_cli.core.presentation import OutputSettings, ShowSettings

EXAMPLES = (
    "seqloss score README.md",
    'seqloss score --text "The cat sat on the mat." --top-k 3 --ranks',
    "seqloss score samples/sentences.jsonl --regions samples/regions.jsonl",
    "cat corpus.jsonl | seqloss score --jsonl-input --json --no-tokens | jq .totals",
)


@with_options(
    only(i.TextArguments, "files", "text"),
    Reading,
    only(i.TextArguments, "regions"),
    ModelChoice,
    TokenPolicy,
    WindowChoice,
    only(BatchPolicy, "tokens"),
    SpeedPolicy,
    quantities(),
    ShowSettings,
    OutputSettings,
    CONFIG,
    OtherSettings,
)
def score(ctx: typer.Context) -> None:
    """Score texts: the loss of every token, and totals.

    Reads files, stdin (-) or --text. A plain file is one text; .jsonl and .ndjson are one row a
    line. Long texts are scored in windows: nothing is cut, every token is scored once.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.output import run_to_end
        from seqloss_cli.cli.report_option import page_after, refuse_page
        from seqloss_cli.cli.settings import load_scorer, output_choice, requested
        from seqloss_cli.inputs import ReadStats

        choice, inputs, stats = output_choice(ctx), i.text_inputs(ctx), ReadStats()
        refuse_page(ctx, choice)
        regions = i.region_file(ctx)
        scorer, read = load_scorer(ctx), inputs.described()
        items = inputs.items(stats)
        if regions is not None:
            items, read = regions.attach(items), {**read, **regions.described()}
        with page_after(ctx, choice) as choice:
            run_to_end(scorer, items, stats, inputs.names, requested(ctx), choice, "score", read)
