"""From the options that records declare to the parameters of a command, and back to records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import typer

from seqloss_cli.core.columns import COLUMNS, TokenColumn
from seqloss_cli.core.options import SHOW, Argument, Option, OptionField, option_fields

Group = Mapping[str, tuple[Any, Any]]
"""Name of a parameter to its annotation and default."""
Record = TypeVar("Record")


def only(cls: type, *names: str, **texts: str) -> Group:
    """The options of some of a record's fields (without `names`, of all), with `texts` in place of
    their own help."""
    fields = {field.name: field for field in option_fields(cls)}
    chosen = [fields[name] for name in names or fields]
    return {
        field.parameter: _parameter(field, texts[field.name])
        if field.name in texts
        else _shared_parameter(cls, field)
        for field in chosen
    }


_SHARED: dict[tuple[type, str], tuple[Any, Any]] = {}


def _shared_parameter(cls: type, field: OptionField) -> tuple[Any, Any]:
    """A parameter that all commands share."""
    # One for each of them, some 350, would take longer to be made than all else in this room.
    key = cls, field.name
    if key not in _SHARED:
        _SHARED[key] = _parameter(field)
    return _SHARED[key]


def quantities() -> Group:
    """The options that ask for the columns of `core/columns.py`."""
    return {column.option: _parameter(_column_field(column)) for column in COLUMNS}


def _column_field(column: TokenColumn) -> OptionField:
    kind, least = (int, 0) if column.kind == "alternatives" else (bool, None)
    declaration = Option(column.help, column.flag, SHOW, min=least)
    return OptionField(column.option, column.option, declaration, kind, False, kind())


def without(cls: type, name: str) -> Group:
    """The options of all fields of a record but one."""
    return only(cls, *(field.name for field in option_fields(cls) if field.name != name))


def _parameter(field: OptionField, text: str | None = None) -> tuple[Any, Any]:
    """Its annotation and its default, which holds the rest of what typer is to know."""
    declaration, kind, default = field.declaration, field.kind, field.default
    if isinstance(declaration, Argument):
        about: Any = typer.Argument(
            ... if declaration.required else None,
            metavar=declaration.metavar,
            help=declaration.help,
        )
    else:
        # The record reads the text itself: `--batch-tokens auto` is no number.
        if declaration.kind is not None:
            kind, default = declaration.kind, declaration.kind(default)
        about = _typer_option(declaration, False if field.is_negative else default, field, text)
    return kind | None if field.optional else kind, about


def _typer_option(option: Option, default: Any, field: OptionField, text: str | None) -> Any:
    return typer.Option(
        default,
        option.flag,
        *([option.short] if option.short else []),
        envvar=field.variable,
        show_envvar=False,
        help=text or option.help,
        rich_help_panel=option.panel,
        metavar=option.metavar,
        min=option.min,
        max=option.max,
        show_default=option.show_default,
    )


def given(context: typer.Context, cls: type[Record]) -> Record:
    """A record of what a command was given; fields that it has no option for keep their defaults.

    Raises UsageError for a value that its record does not take.
    """
    values = context.params
    fields = [field for field in option_fields(cls) if field.parameter in values]
    return cls(
        **{
            field.name: not values[field.parameter]
            if field.is_negative
            else values[field.parameter]
            for field in fields
        }
    )


def is_typed(context: typer.Context, parameter: str) -> bool:
    """The command line itself gives the option, not a variable, a file or its default."""
    return is_from(context, parameter, "COMMANDLINE")


def is_from(context: typer.Context, parameter: str, level: str) -> bool:
    """`level` (of click's ParameterSource) is what gave the option its value."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == level
