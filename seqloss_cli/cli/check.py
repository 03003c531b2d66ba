"""`seqloss check`: whether recorded log-probabilities are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import REJECTED, say
from seqloss_cli.cli.report import write_with_page
from seqloss_cli.cli.results_io import check_places
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import INPUT, STATISTICS, argument, command_record, option

if TYPE_CHECKING:
    from seqloss_cli.cli.settings import OutputPlan
    from seqloss_cli.inputs.rows import RecordingFields
    from seqloss_cli.inputs.side_files import RecordingFile


@command_record
class CheckArguments:
    """Recordings, and what they are held to."""

    PANEL = INPUT

    files: list[str] | None = argument(
        "[RECORDED|-]", "Rows of ids with log-probabilities: JSONL, Parquet, Arrow; .gz, .zst."
    )
    field: str | None = option(None, "The field with the log-probabilities, where there are more.")
    against: str | None = option(
        None, "Another recording in the place of a model: RECORDED is the sampler's.",
        metavar="FILE",
    )  # fmt: skip
    against_field: str | None = option(None, "The field of --against; else that of --field.")
    threshold: float = option(
        0.05, "|Δ| beyond which a token counts as different.", panel=STATISTICS,
        metavar="NATS", min=0,
    )  # fmt: skip
    fail_above: float | None = option(
        None, "Exit with 3 if more of the tokens are beyond it.", panel=STATISTICS,
        metavar="SHARE", min=0, max=1,
    )  # fmt: skip


@o.with_options(
    o.only(CheckArguments, "files", "field", "against", "against_field"),
    o.only(p.Reading, "keep_meta", "limit", "max_bytes", *p.ROWS_ELSEWHERE),
    o.only(i.PairArguments, "chat_template"),
    p.ModelChoice,
    o.only(p.TokenPolicy, "bos", "bos_token"),
    p.WindowChoice,
    o.only(p.BatchPolicy, "tokens"),
    p.SpeedPolicy,
    o.only(CheckArguments, "threshold", "fail_above"),
    o.only(o.ShowSettings, "unit", "all_tokens", "summary"),
    o.only(o.ShowSettings, "view", view="heat: the texts, each token's background by its Δ."),
    o.only(o.ShowSettings, "theme", "show_whitespace"),
    o.only(o.OutputSettings, "json", "jsonl", "format"),
    o.only(o.OutputSettings, "level", level="What a line of CSV or TSV is: sequence or token."),
    o.only(o.OutputSettings, "output", "force", "tokens", "resume", "report"),
    o.CONFIG,
    o.OtherSettings,
)
def check(ctx: typer.Context) -> None:
    """Check recorded log-probabilities: how far they are from exact ones, and what is wrong.

    Rows are what engines and trainers write: ids with lists of values, vLLM's dicts, SGLang's
    triples, OpenAI's objects. The same ids are scored; faults are named where they explain what
    differs.

    Examples:
        seqloss check samples/rollouts.jsonl --field old_log_probs
        seqloss check samples/rollouts.jsonl --field rollout_log_probs --summary
        seqloss check samples/rollouts.jsonl --field old_log_probs --fail-above 0.01
        seqloss check samples/rollouts.jsonl --field old_log_probs --shard 0/2 --json

    """
    from hashlib import sha256

    from seqloss_cli.cli.run import Command
    from seqloss_cli.cli.settings import output_choice
    from seqloss_cli.core.run_record import recorded
    from seqloss_cli.display.terminal.checks import CheckTableWriter, check_answer
    from seqloss_cli.inputs.rows import RecordingFields
    from seqloss_cli.results.schema.checks import check_rows

    own, choice = o.given(ctx, CheckArguments), output_choice(ctx)
    check_places(ctx, "report")
    fields = RecordingFields(own.field)
    theirs = RecordingFields(own.against_field or own.field)
    names = i.input_names(ctx, own.files, "pipe rows in")
    other = None if own.against is None else _other(ctx, own.against, names, theirs)
    inputs = _with_size(i.file_inputs(ctx, names, fields), own.against)
    template = i.pair_policy(ctx).chat_template
    task, checking = _task(ctx, own, other, template)
    command: Command[Any, Any, Any] = Command(
        task,
        lambda options: check_rows(options, checking),
        lambda console, options: CheckTableWriter(console, options, checking, own.against),
        check_answer(checking.diagnosis),
    )
    rows = recorded(choice, "tokens", "summary") | recorded(
        own, "threshold", "against", "against_field"
    )
    if template is not None:
        rows["chat_template_sha256"] = sha256(template.encode()).hexdigest()

    def write(choice: OutputPlan) -> int:
        written = command.run(inputs, choice, rows)
        if other is not None:
            reading = o.given(ctx, p.Reading)
            is_limited = reading.limit is not None or reading.shard is not None
            i.say_unused(other, other.source, is_limited)
        return REJECTED if _fails(own, written.totals) else written.exit_code

    title = None if own.against is None else f"Recorded, against {own.against}"
    write_with_page(ctx, choice, write, "Recorded log-probabilities and", title)


def _task(
    ctx: typer.Context, own: CheckArguments, other: RecordingFile | None, template: str | None
) -> Any:
    """Return the task of a model, or of another recording, and what it gathers."""
    from seqloss_cli.cli.settings import load_scorer
    from seqloss_cli.scoring.recordings import against_task, check_task

    if other is not None:
        return against_task(other.find_row, own.threshold)
    return check_task(load_scorer(ctx), own.threshold, template)


def _other(
    ctx: typer.Context, name: str, names: list[str], fields: RecordingFields
) -> RecordingFile:
    """Return the rows of --against. Raises UsageError for a file that cannot be read."""
    from seqloss_cli.inputs.first_look import first_look
    from seqloss_cli.inputs.reading import ReadOptions, ReadStats, read_one
    from seqloss_cli.inputs.side_files import RecordingFile

    if i.STDIN in (name, *names) and [name, *names].count(i.STDIN) > 1:
        raise UsageError("'-' (stdin) can be read once only")
    if name in names and fields.field in (None, o.given(ctx, CheckArguments).field):
        raise UsageError(f"--against {name}: is the recording itself; see --against-field")
    if name != i.STDIN and not Path(name).exists():
        raise UsageError(f"--against {name}: no such file")
    reading = o.given(ctx, p.Reading)
    options = ReadOptions(max_bytes=reading.max_bytes, pairs=fields)
    first_look([name], options)
    # Each reading has statistics of its own: an id of the second is not one that came before.
    items = lambda: read_one(name, options, ReadStats())  # noqa: E731
    return RecordingFile(name, items, is_part=reading.shard is not None)


def _with_size(inputs: i.Inputs, against: str | None) -> i.Inputs:
    """Return inputs whose record of a shard has the size of --against, so that `merge` sees a file
    that changed."""
    from seqloss_cli.inputs.streams import stored_size

    shard = (inputs.reading or {}).get("shard")
    if shard is None or against is None:
        return inputs
    with_size = {**shard, "against_bytes": stored_size(against)}
    reading = {**(inputs.reading or {}), "shard": with_size}
    return replace(inputs, reading=reading)


def _fails(own: CheckArguments, totals: Any) -> bool:
    """Return whether --fail-above says so, and say why."""
    if own.fail_above is None:
        return False
    share = totals.share_beyond
    if share is None:
        say("--fail-above: no token was compared")
        return True
    if share > own.fail_above:
        beyond = f"{totals.n_beyond:,} of {totals.n_compared:,} tokens ({share:.2%})"
        say(f"{beyond} are beyond {own.threshold:g} nats (--fail-above {own.fail_above:g})")
        return True
    return False
