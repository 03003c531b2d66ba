"""`seqloss score`: the losses of whole texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import command_errors
from seqloss_cli.cli.inputs import input_names
from seqloss_cli.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.reading import ReadOptions, ReadStats
    from seqloss_cli.records import Rejected, Sample

EXAMPLES = (
    "seqloss score README.md",
    'seqloss score --text "The cat sat on the mat." --top-k 3 --ranks',
    "seqloss score samples/sentences.jsonl --regions samples/regions.jsonl",
    "cat corpus.jsonl | seqloss score --jsonl-input --json --no-tokens | jq .totals",
)


@o.with_options(
    o.INPUT_OPTIONS,
    o.REGIONS_OPTION,
    o.MODEL_OPTIONS,
    o.POLICY_OPTIONS,
    {"stride": (o.Stride, None)},
    o.SPEED_OPTIONS,
    o.SHOW_OPTIONS,
    o.OUTPUT_OPTIONS,
    o.RESUME_OPTION,
    o.OTHER_OPTIONS,
)
def score(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILES…|-]", help="Texts or JSONL; .gz, .zst.")
    ] = None,
    text: Annotated[
        str | None, o.option(o.INPUT, "--text", "Score this text.", show_default=False)
    ] = None,
    lines: Annotated[bool, o.flag(o.INPUT, "--lines", "Each non-empty line is a text.")] = False,
    jsonl_input: Annotated[
        bool, o.flag(o.INPUT, "--jsonl-input", "Inputs are JSONL, whatever they are called.")
    ] = False,
    text_field: Annotated[
        str, o.option(o.INPUT, "--text-field", "Field of a JSONL row that holds the text.")
    ] = "text",
) -> None:
    """Score texts: the loss of every token, and totals.

    Reads files, stdin (-) or --text. A plain file is one text; .jsonl and .ndjson are one row a
    line. Long texts are scored in windows: nothing is cut, every token is scored once.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.choices import choose_output, choose_reading, choose_wants, load_scorer
        from seqloss_cli.cli.inputs import choose_regions
        from seqloss_cli.cli.output import run_to_end
        from seqloss_cli.reading import ReadStats, described

        choice = choose_output(ctx)
        names = [] if text is not None else input_names(files, "give --text")
        if text is not None and files:
            raise UsageError("--text and FILES exclude each other")
        if text is not None and (lines or jsonl_input):
            raise UsageError(
                "--text is one text; --lines and --jsonl-input are for FILES and stdin"
            )
        if lines and jsonl_input:
            raise UsageError("choose one of --lines and --jsonl-input")
        regions = choose_regions(ctx)
        scorer = load_scorer(ctx)
        stats = ReadStats()
        reading = choose_reading(ctx, lines=lines, jsonl=jsonl_input, text_field=text_field)
        items = _items(names, text, reading, stats)
        read = described(["<text>"] if text is not None else names, reading)
        if regions is not None:
            items, read = regions.attach(items), read | regions.described()
        run_to_end(scorer, items, stats, names, choose_wants(ctx), choice, "score", read)


def _items(
    names: list[str], text: str | None, reading: ReadOptions, stats: ReadStats
) -> Iterator[Sample | Rejected] | Iterable[Sample | Rejected]:
    from seqloss_cli.reading import read_inputs, text_sample

    if text is not None:
        return [text_sample(text, max_bytes=reading.max_bytes)]
    return read_inputs(names, reading, stats)
