"""`seqloss score`: the losses of whole texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli.commands import (
    CONFIG,
    OtherSettings,
    OutputSettings,
    ShowSettings,
    with_options,
)
from seqloss_cli.cli.options import only, quantities
from seqloss_cli.core import policies as p

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.cli.run import Inputs
    from seqloss_cli.scoring.scorer import Scorer

EXAMPLES = (
    "seqloss score README.md",
    'seqloss score --text "The cat sat on the mat." --top-k 3 --ranks',
    "seqloss score samples/sentences.jsonl --regions samples/regions.jsonl",
    "cat corpus.jsonl | seqloss score --jsonl-input --json --no-tokens | jq .totals",
)


@with_options(
    only(i.TextArguments, "files", "text"),
    p.Reading,
    only(i.TextArguments, "regions"),
    p.ModelChoice,
    p.TokenPolicy,
    p.WindowChoice,
    only(p.BatchPolicy, "tokens"),
    p.SpeedPolicy,
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
    from seqloss_cli.cli.report_option import page_after, refuse_page
    from seqloss_cli.cli.run import Inputs
    from seqloss_cli.cli.settings import load_scorer, output_choice
    from seqloss_cli.inputs.reading import ReadStats

    choice, inputs, stats = output_choice(ctx), i.text_inputs(ctx), ReadStats()
    refuse_page(ctx, choice)
    regions = i.region_file(ctx)
    scorer, reading = load_scorer(ctx), inputs.described()
    items = inputs.items(stats)
    if regions is not None:
        items, reading = regions.attach(items), {**reading, **regions.described()}
    with page_after(ctx, choice) as choice:
        write_scores(ctx, scorer, Inputs(items, stats, inputs.names, reading), choice)


def write_scores(ctx: typer.Context, scorer: Scorer, inputs: Inputs, choice: OutputChoice) -> None:
    """Score texts or pairs and write them; exits with 3 if something was rejected."""
    from seqloss_cli.cli.run import Command, run
    from seqloss_cli.cli.settings import requested
    from seqloss_cli.display.terminal.heat import HeatWriter
    from seqloss_cli.display.terminal.writer import TableWriter
    from seqloss_cli.metrics.words import CORRECTION_SOURCE
    from seqloss_cli.results.schema.scores import score_rows
    from seqloss_cli.scoring.tasks import score_task

    asked = requested(ctx)
    names = ("text", "tokens", "words", "context_lengths", "pmi", "summary")
    described = {name: getattr(choice, name) for name in names} | asked.described()
    if choice.word_correction:
        asked = asked.with_word_boundaries(scorer.tokenization.word_boundary_ids())
        described |= {"word_correction": True, "word_correction_source": CORRECTION_SOURCE}
    task = score_task(scorer, choice.command, asked)
    table = TableWriter if choice.heat is None else HeatWriter
    command = Command(task, score_rows, table, asked.word_boundary_ids)
    written = run(command, inputs, choice, described)
    if written.exit_code:
        raise typer.Exit(written.exit_code)
