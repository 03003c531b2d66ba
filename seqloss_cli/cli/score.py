"""`seqloss score`: the losses of whole texts."""

from __future__ import annotations

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import texts as t
from seqloss_cli.cli.failures import command_errors
from seqloss_cli.cli.views import VIEW_OPTIONS

EXAMPLES = (
    "seqloss score README.md",
    'seqloss score --text "The cat sat on the mat." --top-k 3 --ranks',
    "seqloss score samples/sentences.jsonl --regions samples/regions.jsonl",
    "cat corpus.jsonl | seqloss score --jsonl-input --json --no-tokens | jq .totals",
)


@o.with_options(
    t.TEXT_INPUTS,
    o.REGIONS_OPTION,
    o.MODEL_OPTIONS,
    o.POLICY_OPTIONS,
    {"stride": (o.Stride, None)},
    o.SPEED_OPTIONS,
    o.SHOW_OPTIONS,
    VIEW_OPTIONS,
    o.OUTPUT_OPTIONS,
    o.RESUME_OPTION,
    o.PAGE_OPTION,
    o.OTHER_OPTIONS,
)
def score(ctx: typer.Context) -> None:
    """Score texts: the loss of every token, and totals.

    Reads files, stdin (-) or --text. A plain file is one text; .jsonl and .ndjson are one row a
    line. Long texts are scored in windows: nothing is cut, every token is scored once.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.choices import choose_output, choose_requested, load_scorer
        from seqloss_cli.cli.inputs import choose_regions
        from seqloss_cli.cli.output import run_to_end
        from seqloss_cli.cli.paging import page_after, refuse_page
        from seqloss_cli.inputs import ReadStats

        choice, inputs, stats = choose_output(ctx), t.text_inputs(ctx), ReadStats()
        refuse_page(ctx, choice)
        regions = choose_regions(ctx)
        scorer, read = load_scorer(ctx), inputs.described()
        items = inputs.items(stats)
        if regions is not None:
            items, read = regions.attach(items), {**read, **regions.described()}
        with page_after(ctx, choice) as choice:
            run_to_end(
                scorer, items, stats, inputs.names, choose_requested(ctx), choice, "score", read
            )
