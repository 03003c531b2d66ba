"""`seqloss schema`: JSON Schema of what commands write."""

from __future__ import annotations

from typing import Literal, get_args

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.core.options import OUTPUT, argument, command_record, option

Described = Literal[
    "score", "cond", "rank", "diverge", "mask", "check", "merge", "select", "summarize", "compare",
    "objective", "plot",
]  # fmt: skip


@command_record
class SchemaArguments:
    """The output that is described."""

    PANEL = OUTPUT

    command: Described | None = argument(
        "COMMAND", f"One of {', '.join(get_args(Described))}; without it, all of them."
    )
    format: Literal["jsonl", "json", "parquet", "csv", "openai", "ranked", "scores"] | None = (
        option(None, "Format of the output; by default jsonl of rows, json of documents.")
    )
    level: Literal["sequence", "token", "word", "region", "choice"] | None = option(
        None, "What a line of CSV is, as after --level."
    )


@o.with_options(SchemaArguments, o.CONFIG, o.only(o.OtherSettings, "debug"))
def schema(ctx: typer.Context) -> None:
    """Print JSON Schema (2020-12) of what a command writes for machines.

    Of JSONL, Parquet and CSV the schema is of one line or row, of --json of the document. It is
    made of the declarations that rows are written by. Other keys are allowed: later versions may
    add some. `ranked` are lines of --output-ranked, `scores` of summarize --scores.

    Examples:
        seqloss schema score
        seqloss schema rank --format json > rank.schema.json
        seqloss schema cond --format csv --level token

    """
    import orjson

    from seqloss_cli.analysis.schemas import FORMATS, schema_of

    own = o.given(ctx, SchemaArguments)
    if own.command is None:
        found = {
            name: schema_of(name, own.format)
            for name, formats in FORMATS.items()
            if own.format in (None, *formats)
        }
    else:
        found = schema_of(own.command, own.format, own.level)
    typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
