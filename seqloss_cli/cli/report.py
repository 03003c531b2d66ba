"""`seqloss report`: results as a web page in one file."""

from __future__ import annotations

import typer

from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.commands import CONFIG, OtherSettings, OutputSettings, with_options
from seqloss_cli.cli.failures import REJECTED
from seqloss_cli.cli.options import given, only
from seqloss_cli.cli.results_io import refuse_outputs
from seqloss_cli.core.options import SHOW, command_record, option

EXAMPLES = (
    "seqloss report results.jsonl -o report.html",
    "seqloss report a.jsonl b.jsonl -o differences.html",
    "seqloss report divergences.jsonl -o divergences.html",
    "seqloss report rankings.jsonl -o rankings.html",
    "seqloss score README.md --ranks --entropy --top-k 5 --report report.html --summary",
)


@command_record
class PageSettings:
    """The contents of a page."""

    PANEL = SHOW

    title: str | None = option(None, "Of the page.")
    worst: int = option(25, "How many tokens are listed.", min=0)
    by: list[str] | None = option(
        None, "Also by the values of this field or meta field; may be given again."
    )
    seed: int = option(0, "Of the sample that a long page shows.", min=0)


@with_options(
    only(r.ResultsArguments, "results"),
    only(OutputSettings, "output", "force", output="Write the page to FILE (.html)."),
    PageSettings,
    only(r.ResultsArguments, "allow_different"),
    CONFIG,
    only(OtherSettings, "debug"),
)
def report(ctx: typer.Context) -> None:
    """A web page of results: texts coloured by loss, charts, tables. One file, no network.

    Of two results files it shows both models side by side, and their differences; of what diverge
    wrote, texts coloured by KL; of what rank wrote, questions with their choices.
    """
    from seqloss_cli.cli.pages import write_page
    from seqloss_cli.display.html.page import PageOptions

    arguments, page = given(ctx, r.ResultsArguments), given(ctx, PageSettings)
    output = given(ctx, OutputSettings)
    assert output.output is not None  # the table of conflicts refuses a page without a place
    refuse_outputs(output.output, output.force, arguments.results)
    options = PageOptions(page.title, page.worst, tuple(page.by or ()), page.seed)
    if write_page(
        arguments.results, output.output, output.force, options, arguments.allow_different
    ):
        raise typer.Exit(REJECTED)
