"""`--config FILE` or `./seqloss.yaml`: defaults for options, by their long names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from seqloss_cli.cli.failures import say
from seqloss_cli.core.escaping import escape

LOCAL_FILE = Path("seqloss.yaml")


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Option callback (eager): make the file's values the defaults of this command.

    Raises BadParameter (exit code 2) naming file and key for a key that no command has and for a
    value that its option does not take.
    """
    if path is None and LOCAL_FILE.is_file():
        path = LOCAL_FILE
        say(f"defaults from ./{path}")
    if path is None:
        return None
    values = _read(path)
    parameters = {
        name: p
        for p in context.command.params
        # `model:` of a file is for the commands that take one; it is not to be compared.
        if not getattr(p, "multiple", False)
        for name in _long_names(p)
    }
    # A file cannot name another one.
    del parameters["config"]
    known_elsewhere = _names_of_all_commands(context)
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        if key in parameters:
            _check(context, path, key, value, parameters[key])
            defaults[str(parameters[key].name)] = value
        # One file serves all commands; a key that none of them has is a slip.
        elif key not in known_elsewhere:
            raise _bad(path, f"unknown key {key!r}")
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _bad(path, f"is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise _bad(path, "must be a mapping from option names to values")
    return values


def _check(context: typer.Context, path: Path, key: str, value: Any, parameter: Any) -> None:
    """Raises BadParameter for a value that the option does not take."""
    # Later, when typer takes the default, its message would not name the file.
    if isinstance(value, list | dict):
        raise _bad(path, f"{key}: takes a single value")
    try:
        parameter.process_value(context, value)
    except typer.BadParameter as error:
        raise _bad(path, f"{key}: {error.message}") from error


def _bad(path: Path, what: str) -> typer.BadParameter:
    return typer.BadParameter(escape(f"{path}: {what}"))


def _long_names(parameter: Any) -> list[str]:
    return [option[2:] for option in parameter.opts if option.startswith("--")]


def _names_of_all_commands(context: typer.Context) -> set[str]:
    group: Any = context.find_root().command
    commands = getattr(group, "commands", {}).values()
    names = {name for command in commands for p in command.params for name in _long_names(p)}
    return names - {"config"}
