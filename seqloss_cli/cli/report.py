"""`seqloss report`: results as a web page in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import reports as r
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.reports import PageOptions

EXAMPLES = (
    "seqloss report results.jsonl -o report.html",
    "seqloss report a.jsonl b.jsonl -o differences.html",
    "seqloss score README.md --ranks --entropy --top-k 5 --report report.html --summary",
)


@o.with_options(
    {
        "output": (
            Annotated[
                Path | None,
                o.option(o.OUTPUT, "--output", "Write the page to FILE (.html).", aliases=("-o",)),
            ],
            None,
        ),
        "force": o.OUTPUT_OPTIONS["force"],
        "title": (
            Annotated[str | None, o.option(o.SHOW, "--title", "Of the page.")],
            None,
        ),
        "worst": (
            Annotated[int, o.option(o.SHOW, "--worst", "How many tokens are listed.", min=0)],
            25,
        ),
        "by": (
            Annotated[
                list[str] | None,
                typer.Option(
                    "--by",
                    help="Also by the values of this field or meta field; may be given again.",
                    rich_help_panel=o.SHOW,
                    show_default=False,
                ),
            ],
            None,
        ),
        "seed": (
            Annotated[
                int, o.option(o.SHOW, "--seed", "Of the sample that a long page shows.", min=0)
            ],
            0,
        ),
        "allow_different": r.REPORT_OPTIONS["allow_different"],
        "config": o.OTHER_OPTIONS["config"],
        "debug": o.OTHER_OPTIONS["debug"],
    }
)
def report(ctx: typer.Context, results: r.Files) -> None:
    """A web page of results: texts coloured by loss, charts, tables. One file, no network.

    Of two results files it shows both models side by side, and their differences.
    """
    with command_errors(ctx):
        from seqloss_cli.reports import PageOptions

        values = ctx.params
        path: Path | None = values["output"]
        if path is None:
            raise UsageError("-o FILE.html says where the page goes")
        if len(results) > 2:
            raise UsageError("a page is of one results file, or of two that it compares")
        r.refuse_outputs(path, values["force"], results)
        options = PageOptions(
            values["title"], values["worst"], tuple(values["by"] or ()), values["seed"]
        )
        if write_page(results, path, values["force"], options, values["allow_different"]):
            raise typer.Exit(REJECTED)


def write_page(
    names: list[str],
    path: Path,
    force: bool,
    options: PageOptions,
    allow_different: bool = False,
    shown: list[str] | None = None,
) -> int:
    """How many rows of the results could not be used. `shown` are the names of the files in
    messages and on the page."""
    from seqloss_cli.reports import gather, page_bytes, page_of
    from seqloss_cli.writing import open_sink

    called = shown or names
    files = [r.open_one(*each, bulky=True) for each in zip(names, called, strict=True)]
    reading = r.Reading(files)
    found = gather(reading.rows(files[0]), options)
    n_rows = found.summary.whole.totals.n_sequences
    for name, groups in found.groups.items():
        n_without = sum(g.totals.n_sequences for g in groups if g.value is None)
        r.require_field("--by", name, n_without, n_rows)
    made = page_bytes(page_of(files[0], found, options, reading.n_unusable))
    with open_sink(path, force, warn=say) as sink:
        sink.write(made)
    say(f"wrote {path}: {len(made):,} bytes")
    return reading.n_unusable
