"""Options of commands: of the records that declare them, with the records that most commands share.

`with_options` makes parameters of fields, and `given` makes records of what a command was given.
`--config` makes a file's values the defaults.
"""

# No `from __future__ import annotations`: as in `core/policies.py`.

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import typer

from seqloss_cli.cli.failures import command_errors, say, what_it_takes
from seqloss_cli.cli.progress import first_sign
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import did_you_mean
from seqloss_cli.core.options import (
    A_MODEL,
    OTHER,
    OUTPUT,
    SHOW,
    Argument,
    Option,
    OptionField,
    command_record,
    option,
    option_fields,
)
from seqloss_cli.results.formats import FORMATS, LEVELS, extensions

if TYPE_CHECKING:  # the names follow from the formats, which a type checker cannot read
    FormatName = str
    LevelName = str
else:
    FormatName = Literal[("table", *FORMATS)]
    LevelName = Literal[tuple(dict.fromkeys(name for each in LEVELS.values() for name in each))]
View = Literal["table", "heat"]
ThemeChoice = Literal["auto", "light", "dark"]
UnitName = Literal["nats", "bits"]
LOCAL_FILE = Path("seqloss.yaml")
Group = Mapping[str, tuple[Any, Any]]
"""Name of a parameter to its annotation and default."""
Record = TypeVar("Record")
SEVERAL = (("diverge", "model"),)
"""Command and option of one value that the command line may give again, and nothing else."""
MODELS = "seqloss.models"
"""Key of a context to the values of that option."""
ENGINE_OF_FILE = "seqloss.engine_of_file"
"""Key of a context to the file that names a server, for a command that takes none."""


def only(cls: type, *names: str, **texts: str) -> Group:
    """The options of some of a record's fields (without `names`, of all), with `texts` in place of
    their own help."""
    fields = {field.name: field for field in option_fields(cls)}
    chosen = [fields[name] for name in names or fields]
    return {field.parameter: _parameter(field, texts.get(field.name)) for field in chosen}


def quantities() -> Group:
    """The options that ask for the columns of `core/columns.py`."""
    made = {}
    for column in COLUMNS:
        kind, least = (int, 0) if column.kind == "alternatives" else (bool, None)
        declaration = Option(column.help, column.flag, SHOW, min=least)
        field = OptionField(column.option, column.option, declaration, kind, False, kind())
        made[column.option] = _parameter(field)
    return made


def without(cls: type, name: str) -> Group:
    """The options of all fields of a record but one."""
    return only(cls, *(field.name for field in option_fields(cls) if field.name != name))


# One for each command that has it, some 350, would take longer to be made than all else here.
@functools.cache
def _parameter(field: OptionField, text: str | None = None) -> tuple[Any, Any]:
    """Its annotation and its default, which holds the rest of what typer is to know."""
    about, kind, default = field.declaration, field.kind, field.default
    if isinstance(about, Argument):
        given_by = ... if about.required else None
        held: Any = typer.Argument(given_by, metavar=about.metavar, help=about.help)
    else:
        # The record reads the text itself: `--batch-tokens auto` is no number.
        if about.kind is not None:
            kind, default = about.kind, about.kind(default)
        held = _typer_option(about, False if field.is_negative else default, field, text)
    return kind | None if field.optional else kind, held


def _typer_option(option: Option, default: Any, field: OptionField, text: str | None) -> Any:
    said = text or option.help
    if option.show_default and default not in (None, "", False):
        said += f" [default: {default}]"
    return typer.Option(
        default,
        *filter(None, (option.flag, option.short)),
        envvar=field.variable,
        show_envvar=False,
        help=said,
        rich_help_panel=option.panel,
        metavar=_metavar(option, field.kind),
        min=option.min,
        max=option.max,
        autocompletion=model_names if option.takes == A_MODEL else None,
    )


def _metavar(option: Option, kind: Any) -> str | None:
    """Return a short word for the value of an option; None of a switch, which takes none."""
    (kind,) = get_args(kind) if get_origin(kind) is list else (kind,)
    if option.metavar or kind is bool:
        return option.metavar
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "N", float: "X", Path: "FILE"}.get(kind) or option.flag.rpartition("-")[2].upper()


def model_names(incomplete: str) -> list[str]:
    """Return what a shell offers for a model: `demo`, directories and .gguf files."""
    folder, prefix = os.path.split(incomplete)
    found = _models_in(folder, prefix)
    # Of one folder alone a shell would take that it is the end: with those in it, it goes on.
    if len(found) == 1 and found[0].endswith("/"):
        found += _models_in(found[0], "")
    return [name for name in ("demo",) if name.startswith(incomplete)] + found


def _models_in(folder: str, prefix: str) -> list[str]:
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        name = os.path.join(folder, entry.name)  # noqa: PTH118
        hidden = entry.name.startswith(".") and not prefix.startswith(".")
        if hidden or not entry.name.startswith(prefix):
            continue
        if entry.is_dir():
            # A checkpoint is whole: what else is a folder has models in it, perhaps.
            is_model = os.path.isfile(os.path.join(name, "config.json"))  # noqa: PTH113, PTH118
            found.append(name if is_model else f"{name}/")
        elif name.endswith(".gguf"):
            found.append(name)
    return found


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
            from seqloss_cli.cli.conflicts import (
                idle_engine,
                refuse_conflicts,
                refuse_idle_processes,
                refuse_repeated_results,
                refuse_shared_files,
                refuse_unknown_variables,
            )

            with command_errors(ctx), first_sign(ctx.params):
                refuse_unknown_variables(ctx)
                refuse_idle_processes(ctx)
                refuse_conflicts(ctx)
                refuse_shared_files(ctx)
                refuse_repeated_results(ctx)
                if (note := idle_engine(ctx, ctx.meta.get(ENGINE_OF_FILE))) is not None:
                    say(f"note: {note}")
                command(ctx)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        # typer would evaluate these, three times a command: the signature has all of the types
        run.__annotations__ = {}
        return run

    return decorate


@command_record
class ShowSettings:
    """Tables and coloured texts in the terminal."""

    PANEL = SHOW

    words: bool = option(False, "Losses of words, too.")
    word_correction: bool = option(
        False, "With --words: corrected losses, too, which count a word's own end."
    )
    unit: UnitName = option("nats", "Unit of losses in tables; JSON stays in nats.")
    all_tokens: bool = option(False, "Tables without folding, for any number of sequences.")
    summary: bool = option(False, "Totals only.")
    worst: int = option(0, "The N tokens of the highest loss, with the text around.", min=0)
    view: View = option("table", "heat: the texts, each token's background by its loss.")
    theme: ThemeChoice = option("auto", "Of the terminal, for heat; auto: COLORFGBG, else dark.")
    show_whitespace: bool = option(False, "Blanks, tabs and line ends made visible in heat.")


@command_record
class OutputSettings:
    """The file and format of results, and the contents of their rows."""

    PANEL = OUTPUT

    json: bool = option(False, "One JSON document.")
    jsonl: bool = option(False, "A JSON line for each input as it is ready.")
    format: FormatName | None = option(None, "openai: the completions logprobs object.")
    level: LevelName = option(
        "sequence",
        "What a line of CSV or TSV is: sequence, token, word or region.",
        metavar="LEVEL",
    )
    output: Path | None = option(
        None,
        f"Write to FILE ({', '.join(extensions())}); FILE.partial until it is whole.",
        short="-o",
    )
    force: bool = option(False, "Write over FILE or its FILE.partial.")
    text: bool = option(True, "Leave the texts out of JSON.")
    tokens: bool = option(True, "Leave the per-token arrays out of JSON.")
    context_lengths: bool = option(False, "How many tokens each target could see, in JSON.")
    resume: bool = option(False, "Go on with the JSONL in FILE.partial.")
    report: Path | None = option(None, "Also write a web page of the results to FILE (.html).")


@command_record
class OtherSettings:
    """The consequences of errors."""

    PANEL = OTHER

    strict: bool = option(False, "Stop at the first rejected input.")
    debug: bool = option(False, "Show tracebacks.")


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
        # `score:` with options below it looks like a section, of which there are none.
        if isinstance(value, dict):
            raise _bad(
                path,
                f"{key}: is no section; options stand side by side, and serve each command that "
                "has them (--config FILE takes another file)",
            )
        if key in parameters:
            _check(context, path, key, value, parameters[key])
            defaults[str(parameters[key].name)] = value
        # One file serves all commands; a key that none of them has is a slip.
        elif key not in known_elsewhere:
            raise _bad(path, f"unknown key {key!r}{did_you_mean(key, known_elsewhere)}")
        elif key == "engine" and value:
            context.meta[ENGINE_OF_FILE] = f"{key} of {path}"
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _read(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Takes each key once: the last of two would win without a word."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise _bad(path, f"{twice}: is there twice")
        return dict(loader.construct_mapping(node, deep=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        # As bytes: YAML tells UTF-16 by its mark, and drops that of UTF-8.
        values = yaml.load(path.read_bytes(), Loader)
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from error
    # ValueError: of dates that are none, and of bytes that are no text.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad(path, f"is not YAML: {_yaml_problem(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise _bad(path, "must be a mapping from option names to values")
    return values


def _check(context: typer.Context, path: Path, key: str, value: Any, parameter: Any) -> None:
    """Raises BadParameter for a value that the option does not take."""
    # Later, when typer takes the default, its message would not name the file.
    if isinstance(value, list):
        raise _bad(path, f"{key}: takes a single value")
    # To YAML 1.1 `no` and `on` are truths, and dates are no text: typer would take `False`.
    is_read_otherwise = isinstance(value, bool) or not isinstance(value, str | int | None)
    hint = f" (YAML reads it as {value}; put it in quotes)" if is_read_otherwise else ""
    try:
        taken = parameter.process_value(context, value)
    except typer.BadParameter as error:
        raise _bad(path, f"{key} {what_it_takes(error)}{hint}") from error
    if hint and isinstance(taken, str | Path):
        raise _bad(path, f"{key}: takes a text{hint}")


def _bad(path: Path, what: str) -> typer.BadParameter:
    flag = "" if path == LOCAL_FILE else "--config "
    return typer.BadParameter(f"{flag}{path}: {what}")


def _yaml_problem(error: Exception) -> str:
    """Tell what is wrong, and where, without the library's own view of the file."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})"


def _long_names(parameter: Any) -> list[str]:
    return [option[2:] for option in parameter.opts if option.startswith("--")]


def _names_of_all_commands(context: typer.Context) -> set[str]:
    group: Any = context.find_root().command
    commands = getattr(group, "commands", {}).values()
    names = {name for command in commands for p in command.params for name in _long_names(p)}
    return names - {"config"}


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
            metavar="FILE",
            help="YAML file of option values; ./seqloss.yaml by default.",
            rich_help_panel=OTHER,
            show_default=False,
        ),
    ),
}
