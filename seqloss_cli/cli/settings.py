"""From the options of a command to the records of a run: the same for every command that has
them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import typer

from seqloss_cli.cli.commands import OtherSettings, OutputSettings, ShowSettings
from seqloss_cli.cli.conflicts import refuse_conflicts
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.options import given, is_from, is_typed
from seqloss_cli.cli.output import (
    TABLE,
    OutputChoice,
    heat_options,
    require_possible,
    require_resumable,
    settings_of_earlier,
)
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import (
    DEFAULT_MODEL,
    BatchPolicy,
    ModelChoice,
    PairPolicy,
    SpeedPolicy,
    TokenPolicy,
    WindowChoice,
)
from seqloss_cli.inputs.reading import COMPRESSED
from seqloss_cli.results.formats import FORMATS, LEVELS, Format, extensions
from seqloss_cli.results.sinks import refuse_to_overwrite
from seqloss_cli.scoring.scorer import Scorer


def load_scorer(
    context: typer.Context, pairs: PairPolicy | None = None, model: str | None = None
) -> Scorer:
    """The model (or `model`) and policies that the options name; its warnings are reported."""
    values, windows = context.params, given(context, WindowChoice)
    batches, speed = _measured_before(context)
    # mask --loss has pairs and no option for their prefixes: they are shared there.
    share_prefix = pairs is not None and not values.get("no_share_prefix", False)
    names = None if values.get("limit") else values.get("files") or values.get("data")
    scorer = Scorer(
        model_choice(context, model),
        given(context, TokenPolicy),
        windows.context,
        windows.stride,
        replace(batches, share_prefix=share_prefix, prefetch=True),
        pairs,
        replace(speed, work_bytes=_work_bytes(names)),
    )
    say_warnings(scorer.warnings)
    return scorer


def _measured_before(context: typer.Context) -> tuple[BatchPolicy, SpeedPolicy]:
    """The policies that `auto` may settle by measuring."""
    # A second measurement may come out otherwise, and numbers would differ in their last digits
    # within one file: with --resume, what the earlier run settled on stays.
    batches, speed = given(context, BatchPolicy), given(context, SpeedPolicy)
    output = given(context, OutputSettings)
    earlier = settings_of_earlier(output.output) if output.resume else {}
    tokens, compiled = earlier.get("batch_tokens"), earlier.get("compiled")
    if isinstance(tokens, int) and (batches.auto or not is_typed(context, "batch_tokens")):
        batches = replace(batches, tokens=tokens, auto=False)
    if isinstance(compiled, bool) and speed.compile == "auto":
        speed = replace(speed, compile="on" if compiled else "off")
    return batches, speed


def _work_bytes(names: Sequence[str] | None) -> int | None:
    """Size of the inputs, where all are files that are not compressed."""
    # A name may be too long for the system: pathlib's own tests would raise OSError then.
    if not names or any(n.endswith(COMPRESSED) or not os.path.isfile(n) for n in names):  # noqa: PTH113
        return None
    return sum(os.path.getsize(name) for name in names)  # noqa: PTH202


def say_warnings(warnings: Iterable[str]) -> None:
    """Report each on stderr."""
    for warning in warnings:
        say(f"warning: {warning}")


def model_choice(context: typer.Context, name: str | None = None) -> ModelChoice:
    """The checkpoint `name`, or the one that the options name; reported when they name none."""
    choice = given(context, ModelChoice)
    if name:
        return replace(choice, name=name)
    if not _names_model(context):
        say(f"no --model, SEQLOSS_MODEL or configuration: the built-in '{DEFAULT_MODEL}' model")
        return replace(choice, name=DEFAULT_MODEL)
    return choice


def _names_model(context: typer.Context) -> bool:
    # `--model ''`, as scripts write it for an empty variable, names none.
    return bool(context.params["model"]) and not is_from(context, "model", "DEFAULT")


def tokenizer_choice(context: typer.Context) -> ModelChoice | None:
    """The checkpoint of --tokenizer alone, for commands that need no model; None without it."""
    choice = given(context, ModelChoice)
    if _names_model(context) or not choice.tokenizer:
        return None
    # No weights are loaded: options of their own, such as --revision, are not the tokenizer's.
    return ModelChoice(
        name=choice.tokenizer,
        trust_remote_code=choice.trust_remote_code,
        offline=choice.offline,
    )


def requested(context: typer.Context) -> Requested:
    """The quantities that the options ask for at each token."""
    return Requested(**{column.option: context.params[column.option] for column in COLUMNS})


def output_choice(context: typer.Context) -> OutputChoice:
    """The output that the options ask for. Raises UsageError, before a model is loaded, for
    contents that the format has no place for and for a file that is taken."""
    values, output = context.params, given(context, OutputSettings)
    show = given(context, ShowSettings)
    format = format_choice(context, output)
    name = TABLE if format is None else format.name
    refuse_conflicts(context, writes=name)
    command = str(context.command.name)
    choice = OutputChoice(
        command=command,
        format=format,
        path=output.output,
        force=output.force,
        text=output.text,
        # rank alone has --tokens: its rows hold no losses of tokens unless they are asked for.
        tokens=values.get("tokens", output.tokens),
        words=show.words,
        context_lengths=output.context_lengths,
        bits=show.unit == "bits",
        all_tokens=show.all_tokens,
        summary=show.summary,
        strict=given(context, OtherSettings).strict,
        pmi=given(context, PairPolicy).pmi,
        level=str(values.get("level") or LEVELS[command][0]),
        columns=tuple(column for column in COLUMNS if values.get(column.option)),
        resume=output.resume,
        word_correction=show.word_correction,
        regions=values.get("regions") is not None,
        heat=heat_options(context, f"is for the terminal, and {name} is not" if format else None),
    )
    require_possible(choice, level_given=is_typed(context, "level"))
    if choice.resume:
        require_resumable(choice)
    elif choice.path is not None:
        resumable = "resume" in values and format is not None and format.resumable
        refuse_to_overwrite(choice.path, choice.force, resumable)
    return choice


def format_choice(context: typer.Context, settings: OutputSettings) -> Format | None:
    """Return the format that --json, --jsonl or --format ask for, else the one of -o's extension.

    None is for what a person is shown. The command line goes before a variable, and that before a
    file. Raises UsageError when flags contradict each other or the extension says nothing.
    """
    output = settings.output
    known = extensions()
    # -o x.csv on the command line is stronger than a variable that asks for JSON.
    for level in ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP"):
        asked = {
            str(settings.format) if name == "format" else name
            for name in ("json", "jsonl", "format")
            if getattr(settings, name) and is_from(context, name, level)
        }
        if len(asked) > 1:
            raise UsageError("choose one of --json, --jsonl and --format")
        if asked:
            return FORMATS.get(asked.pop())
        if is_from(context, "output", level) and output and output.suffix in known:
            return known[output.suffix]
    if output is None:
        return None
    raise UsageError(
        f"-o {output}: its extension names no format; use {', '.join(known)}, or "
        "say --json, --jsonl or --format"
    )
