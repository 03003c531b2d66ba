"""Options of the command line: each is declared at a field of a record, whose value it sets.

    PANEL = POLICIES
    eos: bool = option(False, "Append the end-of-sequence token and score it.")

Flag (`--eos`, or `--no-eos` where the default is True), SEQLOSS_* variable, choices (of a
`Literal`), bounds, default, help and panel follow from such a field. So do the checks of a value
from Python. Nothing of a command line is imported: `cli/options.py` makes parameters of these
fields.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from seqloss_cli.core.errors import UsageError

T = TypeVar("T")
INPUT, CHATS, REFERENCE, MODEL = "Input", "Chats", "Gold distributions", "Model"
POLICIES, SPEED, STATISTICS, SHOW = "Policies", "Speed", "Statistics", "What to show"
PAPER, OUTPUT, OTHER, SERVER, CLUSTER = "Paper", "Output", "Other", "Server", "Cluster"
"""The panels of `--help`."""
A_MODEL = "a directory, a .gguf file, a hub name or 'demo'"
"""The meaning of a string that shells complete as a model."""


class Argument(NamedTuple):
    """A field is given by position: the declaration of an argument."""

    metavar: str
    help: str
    required: bool


class Option(NamedTuple):
    """A field is given by name: the declaration of an option."""

    help: str
    flag: str = ""
    """Its long name, where that is not the field's. `--no-x` at a field that is not called `no_x`
    turns that field off."""
    panel: str = ""
    """The panel of its help, where that is not its record's."""
    short: str = ""
    kind: Any = None
    """Its type on the command line, where that is not the field's."""
    metavar: str | None = None
    min: int | float | None = None
    max: int | float | None = None
    takes: str = "a name"
    """A string's meaning, for the message about another value."""
    show_default: bool = True


def command_record(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that only the command line fills."""
    # Nothing compares or prints such a record. Code for that would double the time that its class
    # takes to be made, and some twenty are made whenever the program starts.
    return dataclass(frozen=True, slots=True, eq=False, repr=False)(cls)


def option(default: T, help: str, **others: Any) -> T:
    """A field of a dataclass that an option fills; `others` are other fields of `Option`."""
    # It stands for its default until `dataclass` replaces it.
    made: T = field(default=default, metadata={"declaration": Option(help, **others)})
    return made


def argument(metavar: str, help: str, required: bool = False) -> Any:
    """A field of a dataclass that is given by position; None where it is not given."""
    return field(default=None, metadata={"declaration": Argument(metavar, help, required)})


class OptionField(NamedTuple):
    """A field of a record that the command line fills."""

    name: str
    parameter: str
    """Name among the parameters of a command: `no_text` of `--no-text`."""
    declaration: Option | Argument
    kind: Any
    """Its type without `| None`."""
    optional: bool
    default: Any

    @property
    def is_negative(self) -> bool:
        """The flag turns the field off."""
        return self.parameter.startswith("no_") and not self.name.startswith("no_")

    @property
    def variable(self) -> str | None:
        """The environment variable of its default; what may be given several times has none."""
        return None if get_origin(self.kind) is list else f"SEQLOSS_{self.parameter.upper()}"


_KNOWN: dict[type, tuple[OptionField, ...]] = {}


def option_fields(cls: type) -> tuple[OptionField, ...]:
    """The fields of a dataclass that the command line fills, in order."""
    if cls not in _KNOWN:
        declared = [each for each in fields(cls) if "declaration" in each.metadata]
        # Types are strings where a module asks for that; to evaluate others would take time, too.
        hints = {each.name: each.type for each in declared}
        if any(isinstance(hint, str) for hint in hints.values()):
            hints = get_type_hints(cls)
        _KNOWN[cls] = tuple(_option_field(cls, each, hints[each.name]) for each in declared)
    return _KNOWN[cls]


def _option_field(cls: Any, each: Field[Any], kind: Any) -> OptionField:
    declaration = each.metadata["declaration"]
    # `Literal[…] | None` is a Union of typing, `str | None` one of types.
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    (plain,) = (one for one in kinds if one is not NoneType)
    parameter = each.name
    if isinstance(declaration, Option):
        switched_off = "no-" if each.default is True else ""
        flag = declaration.flag or f"--{switched_off}{each.name.replace('_', '-')}"
        declaration = declaration._replace(flag=flag, panel=declaration.panel or cls.PANEL)
        # --model of one model is not that of several, which has its field's name.
        if get_origin(plain) is not list:
            parameter = flag.removeprefix("--").replace("-", "_")
    return OptionField(each.name, parameter, declaration, plain, len(kinds) > 1, each.default)


def values_of(record: Any) -> dict[str, Any]:
    """The fields of a record, by name."""
    return {each.name: getattr(record, each.name) for each in fields(record)}


def check_values(record: Any) -> None:
    """Raises UsageError for a value that the option of its field could not have."""
    for each in option_fields(type(record)):
        value = getattr(record, each.name)
        if isinstance(each.declaration, Option) and not (value is None and each.optional):
            _check_value(each.declaration, each.kind, value)


def _check_value(option: Option, kind: Any, value: Any) -> None:
    flag = option.flag
    if kind is bool and not isinstance(value, bool):
        raise UsageError(f"{flag} is true or false, not {value!r}")
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise UsageError(f"{flag} takes one of {', '.join(get_args(kind))}, not {value!r}")
    if kind is int:
        require_whole(flag, value, 1 if option.min is None else int(option.min))
    if kind is str and not isinstance(value, str):
        raise UsageError(f"{flag} takes {option.takes}, not {value!r}")


def require_whole(flag: str, value: Any, least: int) -> None:
    """Raises UsageError unless `value` is a whole number of at least `least`."""
    # True and False are ints to Python: `threads=True` would be one thread.
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{flag} takes a whole number of at least {least}, not {value!r}")
