"""A command of the program: its options, and what comes before and after its body."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from seqloss_cli.cli.configuration import use_config
from seqloss_cli.cli.failures import command_errors
from seqloss_cli.cli.options import Group, only
from seqloss_cli.core.options import OTHER, option, record

CONFIG: Group = {
    "config": (
        Path | None,
        typer.Option(
            None,
            "--config",
            envvar="SEQLOSS_CONFIG",
            show_envvar=False,
            # first of all: its file gives the defaults of the others
            is_eager=True,
            callback=use_config,
            help="YAML file of option values; ./seqloss.yaml by default.",
            rich_help_panel=OTHER,
            show_default=False,
        ),
    ),
}


@record
class OtherSettings:
    """The consequences of errors."""

    strict: bool = option(False, "--strict", OTHER, "Stop at the first rejected input.")
    debug: bool = option(False, "--debug", OTHER, "Show tracebacks.")


def with_options(*groups: type | Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of records, or of some of their fields, in this order. It reads
    them from its context with `given`."""

    # Bodies import what they use: numpy and torch take seconds that `--help` is not to take.
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared: dict[str, Any] = {"ctx": (typer.Context, inspect.Parameter.empty)}
        for group in groups:
            declared |= only(group) if isinstance(group, type) else group
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(name, keyword, annotation=annotation, default=default)
            for name, (annotation, default) in declared.items()
        ]

        @functools.wraps(command)
        def run(ctx: typer.Context, **_: Any) -> None:
            from seqloss_cli.cli.conflicts import refuse_conflicts

            with command_errors(ctx):
                refuse_conflicts(ctx)
                command(ctx)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        # typer would evaluate these, three times a command: the signature has all of the types
        run.__annotations__ = {}
        return run

    return decorate
