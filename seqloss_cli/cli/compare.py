"""`seqloss compare`: whether one model's losses are lower than another's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from seqloss_cli.cli import in_turn as t
from seqloss_cli.cli import options as o
from seqloss_cli.cli import reports as r
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.comparisons import Comparisons, JoinReport
    from seqloss_cli.results import Difference, ResultsFile

EXAMPLES = (
    "seqloss compare a.jsonl b.jsonl",
    "seqloss compare --model samples/checkpoints/step-600 --model demo --data README.md --lines",
    "seqloss compare base.jsonl tuned.jsonl quantised.parquet --cluster source --json",
)


@o.with_options(
    t.MODELS,
    t.TURN_OPTIONS,
    r.STATISTICS_OPTIONS,
    {
        "bootstrap": (
            Annotated[int, o.option(r.STATISTICS, "--bootstrap", "Resamples.", min=1)],
            2000,
        ),
    },
    r.REPORT_OPTIONS,
)
def compare(
    ctx: typer.Context,
    results: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RESULTS…]", help="Two or more: .jsonl, .json, .parquet."),
    ] = None,
) -> None:
    """Compare models on the same inputs: results files, or models that are scored in turn.

    Rows are joined on their text. With one tokenizer differences are per token, across tokenizers
    per byte; documents are what was drawn at random.
    """
    with command_errors(ctx):
        r.wants_json(ctx)
        models = ctx.params["models"] or []
        if models and results:
            raise UsageError("name either RESULTS files, or --model A --model B with --data FILE")
        if models:
            if len(models) < 2:
                raise UsageError("--model: name two or more to compare")
            with t.scored_in_turn(ctx, models) as (names, n_rejected):
                files = [r.open_one(*each) for each in zip(names, models, strict=True)]
                _compare(ctx, files, n_rejected)
            return
        if not results or len(results) < 2:
            raise UsageError("name two or more RESULTS files, or --model A --model B --data FILE")
        _compare(ctx, [r.open_one(name) for name in results], 0)


def _compare(ctx: typer.Context, files: list[ResultsFile], n_rejected: int) -> None:
    from seqloss_cli.comparisons import CompareOptions
    from seqloss_cli.comparisons import compare as compared
    from seqloss_cli.rendering.comparisons import comparison_view
    from seqloss_cli.results import NUMERICS, POLICIES, TOKENIZER, run_differences
    from seqloss_cli.writing.reports import comparison_report

    values = ctx.params
    options = CompareOptions(
        values["worst"],
        values["bootstrap"],
        values["seed"],
        values["cluster"],
        values["confidence"],
    )
    reading = r.Reading(files)
    if not values["allow_different"]:
        r.require_same(
            files,
            lambda file: run_differences(files[0].run, file.run, POLICIES),
            "their losses are not of the same tokens",
        )
    shown = {
        file.name: run_differences(files[0].run, file.run, (*POLICIES, *TOKENIZER, *NUMERICS))
        for file in files[1:]
    }
    _say_differences(files, shown)
    same = not any(run_differences(files[0].run, f.run, TOKENIZER) for f in files[1:])
    found = compared([reading.rows(file) for file in files], same, options)
    say_what_was_left_out(found, found.joined, files)
    report = comparison_report(found, files, shown)
    labels = labels_of(files)
    r.write_report(ctx, report, lambda: comparison_view(found, labels, values["unit"] == "bits"))
    if reading.n_unusable or n_rejected:
        raise typer.Exit(REJECTED)


def labels_of(files: list[ResultsFile]) -> list[str]:
    """Models by name where that tells them apart, else the files."""
    models = [str(file.run.get("model")) for file in files]
    if len(set(models)) == len(files):
        return models
    names = [file.name for file in files]
    return names if len(set(names)) == len(files) else [chr(65 + n) for n in range(len(files))]


def _say_differences(files: list[ResultsFile], shown: dict[str, list[Difference]]) -> None:
    for name, differences in shown.items():
        for difference in differences:
            say(f"note: {name} against {files[0].name}: {difference}")


def say_what_was_left_out(found: Comparisons, joined: JoinReport, files: list[ResultsFile]) -> None:
    for file, ids in zip(files, joined.alone, strict=True):
        if ids:
            few = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
            say(f"warning: {file.name}: {len(ids)} rows have no partner: {few}")
    for reason, count in found.left_out.items():
        say(f"warning: {count} rows are left out: {reason} (first {found.left_out_ids[0]})")
    if joined.n_joined_by_order:
        say(f"note: {joined.n_joined_by_order} rows of one text under other ids, taken in order")
