"""From the parsed options of a command to the records of a run: the same for every command that
has the options of `cli/options.py`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from seqloss_cli.cli.enums import Format, Level
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.formats import BY_EXTENSION, require_possible
from seqloss_cli.cli.output import OutputChoice
from seqloss_cli.cli.resuming import require_resumable, settings_of_earlier
from seqloss_cli.cli.views import choose_heat
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
)
from seqloss_cli.inputs import COMPRESSED, ReadOptions
from seqloss_cli.results.sinks import refuse_to_overwrite
from seqloss_cli.scoring.scorer import Scorer


def load_scorer(
    context: typer.Context, pairs: PairPolicy | None = None, model: str | None = None
) -> Scorer:
    """The model (or `model`) and policies that the options name; says on stderr what a user should
    know."""
    values = context.params
    shares = pairs is not None and not values.get("no_share_prefix", False)
    measured = _measured_settings(context)
    scorer = Scorer(
        choose_model(context, model),
        choose_tokens(context),
        context=values["context"],
        stride=values.get("stride"),
        batches=replace(
            choose_batches(measured["batch_tokens"]), share_prefix=shares, prefetch=True
        ),
        pairs=pairs,
        speed=SpeedPolicy(
            measured["compile"],  # type: ignore[arg-type]
            None if values.get("limit") else _work_bytes(values.get("files") or values.get("data")),
            values.get("devices", 1),
        ),
    )
    say_warnings(scorer.warnings)
    return scorer


def _measured_settings(context: typer.Context) -> dict[str, str]:
    """What `auto` may settle by measuring: with --resume as the earlier run did, since a second
    measurement may come out otherwise."""
    values = context.params
    settings = {name: str(values[name]) for name in ("batch_tokens", "compile")}
    earlier = settings_of_earlier(values["output"]) if values.get("resume") else {}
    tokens, compiled = earlier.get("batch_tokens"), earlier.get("compiled")
    asked_for = _is_from(context, "batch_tokens", "COMMANDLINE")
    if isinstance(tokens, int) and not (asked_for and settings["batch_tokens"] != "auto"):
        settings["batch_tokens"] = str(tokens)
    if isinstance(compiled, bool) and settings["compile"] == "auto":
        settings["compile"] = "on" if compiled else "off"
    return settings


def choose_batches(written: str) -> BatchPolicy:
    """Raises UsageError for what is neither a whole number nor `auto`."""
    if written == "auto":
        return BatchPolicy(auto=True)
    if not (written.isascii() and written.isdigit()) or int(written) < 1:
        raise UsageError(f"--batch-tokens takes a whole number of at least 1, or auto: {written!r}")
    return BatchPolicy(int(written))


def _work_bytes(names: Sequence[str] | None) -> int | None:
    """Size of the inputs, where all are files that are not compressed."""
    if not names or any(n.endswith(COMPRESSED) or not os.path.isfile(n) for n in names):  # noqa: PTH113 - a name may be too long for Path
        return None
    return sum(os.path.getsize(name) for name in names)  # noqa: PTH202


def say_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}")


def choose_model(context: typer.Context, name: str | None = None) -> ModelChoice:
    """The checkpoint `name`, or that the options name; says so when they name none."""
    values = context.params
    name = name or values["model"]
    if not name:
        say(f"no --model, SEQLOSS_MODEL or configuration: the built-in '{DEFAULT_MODEL}' model")
    return ModelChoice(
        name=name or DEFAULT_MODEL,
        revision=values["revision"],
        tokenizer=values["tokenizer"],
        adapter=values["adapter"],
        quantize=values["quantize"] and str(values["quantize"]),  # type: ignore[arg-type]
        dtype=str(values["dtype"]),  # type: ignore[arg-type]  # typer knows the choices
        device=values["device"],
        threads=values["threads"],
        allow_pickle=values["allow_pickle"],
        trust_remote_code=values["trust_remote_code"],
        offline=values["offline"],
    )


def choose_tokenizer(context: typer.Context) -> ModelChoice | None:
    """The checkpoint of --tokenizer alone, for commands that need no model; None without it."""
    values = context.params
    if values["model"] or not values["tokenizer"]:
        return None
    return ModelChoice(
        name=values["tokenizer"],
        trust_remote_code=values["trust_remote_code"],
        offline=values["offline"],
    )


def choose_tokens(context: typer.Context) -> TokenPolicy:
    values = context.params
    return TokenPolicy(
        bos=str(values["bos"]),  # type: ignore[arg-type]
        bos_token=values["bos_token"],
        eos=values["eos"],
        special_tokens=str(values["special_tokens"]),  # type: ignore[arg-type]
    )


def choose_requested(context: typer.Context) -> Requested:
    """The quantities that the options name."""
    return Requested(**{column.option: context.params[column.option] for column in COLUMNS})


def choose_reading(context: typer.Context, **own: Any) -> ReadOptions:
    """The options of every command that reads, and those of one command."""
    values = context.params
    shared = {name: values[name] for name in ("keep_meta", "limit", "max_bytes")}
    return ReadOptions(**shared, **own)


def choose_output(context: typer.Context) -> OutputChoice:
    """Where results go and what they hold; refuses, before a model is loaded, what cannot be."""
    values = context.params
    path: Path | None = values["output"]
    format = choose_format(context, path)
    choice = OutputChoice(
        format=format,
        path=path,
        force=values["force"],
        text=not values["no_text"],
        tokens=values.get("tokens", not values.get("no_tokens", False)),
        words=values.get("words", False),
        context_lengths=values.get("context_lengths", False),
        bits=values["unit"] == "bits",
        all_tokens=values["all_tokens"],
        summary=values["summary"],
        strict=values["strict"],
        pmi=values.get("pmi", False),
        level=Level(values.get("level", Level.sequence)),
        columns=tuple(column for column in COLUMNS if values.get(column.option)),
        resume=values.get("resume", False),
        word_correction=values.get("word_correction", False),
        regions=values.get("regions") is not None,
        heat=choose_heat(context, _no_heat(format)),
    )
    require_possible(choice, level_given=_is_from(context, "level", "COMMANDLINE"))
    if choice.resume:
        require_resumable(choice)
    elif path is not None:
        resumable = "resume" in values and choice.format is Format.jsonl
        refuse_to_overwrite(path, choice.force, resumable)
    return choice


def _no_heat(format: Format) -> str | None:
    """Why texts cannot be coloured, if they cannot."""
    return None if format is Format.table else f"is for the terminal, and {format.value} is not"


def choose_format(context: typer.Context, output: Path | None) -> Format:
    """The format that --json, --jsonl or --format ask for, else the one that the extension of -o
    names, else tables. What the command line says goes before a variable, and that before a file.

    Raises UsageError when flags contradict each other or the extension says nothing.
    """
    for level in ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP"):
        asked = _asked_at(context, level)
        if len(asked) > 1:
            raise UsageError("choose one of --json, --jsonl and --format")
        if asked:
            return asked.pop()
        if _is_from(context, "output", level) and output and output.suffix in BY_EXTENSION:
            return BY_EXTENSION[output.suffix]
    if output is None:
        return Format.table
    raise UsageError(
        f"-o {output}: its extension names no format; use {', '.join(BY_EXTENSION)}, or "
        "say --json, --jsonl or --format"
    )


def _asked_at(context: typer.Context, level: str) -> set[Format]:
    values = {name: context.params[name] for name in ("json", "jsonl", "format")}
    return {
        Format(value if name == "format" else name)
        for name, value in values.items()
        if value and _is_from(context, name, level)
    }


def _is_from(context: typer.Context, name: str, level: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == level
