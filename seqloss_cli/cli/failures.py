"""The ends of a command: messages on stderr and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EPIPE
from typing import TYPE_CHECKING, Any

import typer
from typer.exceptions import TyperException

from seqloss_cli.cli.progress import STATUS
from seqloss_cli.core.errors import SeqlossError, UsageError, did_you_mean
from seqloss_cli.core.escaping import escape
from seqloss_cli.results.sinks import local_path, named, partial_path

if TYPE_CHECKING:
    from seqloss_cli.core.records import Rejected

BUG, INTERRUPTED, REJECTED = 70, 130, 3
_MOST_NAMED = 5
"""Messages of one kind that are written: more would push all else off the terminal."""
ALONE = object()
"""The context's object where a command has a process of its own, which ends with it."""


class StrictStopError(SeqlossError):
    """--strict met a rejected input."""

    exit_code = REJECTED


def say(message: str) -> None:
    """Write a line on stderr that is safe for a terminal."""
    with STATUS.hidden():
        typer.echo(f"seqloss: {escape(message)}", err=True)


def exit_with(code: int) -> None:
    """End the command with an exit code; 0 is the end that comes by itself."""
    if code:
        raise typer.Exit(code)


class RejectionReport:
    """Names on stderr the first inputs that are rejected for each reason, and counts all."""

    def __init__(self, tell: Callable[[str], None] = say, elsewhere: str = "") -> None:
        """`elsewhere` says where each of them is named."""
        self._tell, self._elsewhere = tell, f"; {elsewhere}" if elsewhere else ""
        self.counts: Counter[str] = Counter()

    def add(self, rejected: Rejected) -> None:
        """Take the next one."""
        self.counts[rejected.reason] += 1
        if self.counts[rejected.reason] > _MOST_NAMED:
            return
        line = "" if rejected.line is None else f":{rejected.line}"
        place = f"{rejected.source}{line}"
        self._tell(f"rejected {place}: {rejected.message} ({rejected.reason})")

    def end(self) -> None:
        """Report those that were not named."""
        for reason, n in self.counts.items():
            if (n_more := n - _MOST_NAMED) > 0:
                self._tell(f"rejected {n_more:,} more ({reason}): {n:,} in all{self._elsewhere}")


def say_first(kind: str, messages: Sequence[str]) -> None:
    """Write the first messages of a kind (`warning`, `note`) on stderr, and how many more."""
    for message in messages[:_MOST_NAMED]:
        say(f"{kind}: {message}")
    if (n_more := len(messages) - _MOST_NAMED) > 0:
        say(f"{kind}: {n_more:,} more like the last: {len(messages):,} in all")


@contextmanager
def command_errors(context: typer.Context) -> Iterator[None]:
    """Turn a command's exceptions into one message on stderr and an exit code."""
    debug: bool = context.params["debug"]
    try:
        yield
        # A full disk or a closed pipe shows here, and not while Python exits, with a traceback.
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        output = local_path(context.params.get("output"))
        partial = None if output is None else partial_path(output)
        kept = ""
        if output is not None and context.params.get("summary"):
            kept = "; nothing is kept of it: --summary writes totals alone, when all is done"
        elif partial is not None and partial.exists():
            kept = f"; what was finished is in {named(partial)}"
        say(f"interrupted{kept}")
        raise typer.Exit(INTERRUPTED) from None
    except SeqlossError as error:
        _traceback(debug)
        say(f"error: {error}")
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        # Whoever reads stdout has enough: typer would exit with 1, a pipeline of `head` expects 0.
        if error.errno == EPIPE:
            close_stdout_quietly()
            raise typer.Exit(0) from None
        _traceback(debug)
        say(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        close_stdout_quietly()
        raise typer.Exit(1) from None
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        raise typer.Exit(report_bug(error, debug)) from None


@contextmanager
def own_words() -> Iterator[None]:
    """Turn the errors of the library that reads the command line into one message of ours."""
    try:
        yield
    except TyperException as error:
        # That is no error, but nothing else prints the help that it holds.
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message().rstrip(), err=True)
            raise typer.Exit(error.exit_code) from None
        context = getattr(error, "ctx", None)
        seen = f" ({context.command_path} -h)" if context is not None else ""
        say(f"error: {_usage_message(error, context)}{seen}")
        raise typer.Exit(error.exit_code if context is None else UsageError.exit_code) from None


def _usage_message(error: Any, context: Any) -> str:
    parameter, option = getattr(error, "param", None), getattr(error, "option_name", None)
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return f"there is no option {option}{_other_option(str(option), context)}"
    if kind == "MissingParameter" and parameter is not None:
        return f"{parameter.metavar or parameter.name} is missing: {parameter.help}"
    if kind == "BadOptionUsage":
        has_value = "does not take" in error.message
        return f"{option} {'is a switch, and takes no value' if has_value else 'needs a value'}"
    if parameter is None or parameter.name == "config":
        return str(error.message)
    flag, where = parameter.opts[0], ""
    if context is not None and parameter.param_type_name == "option":
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "ENVIRONMENT":
            where = f" (of the variable {parameter.envvar})"
    return f"{flag}{where} {what_it_takes(error)}"


def what_it_takes(error: Any) -> str:
    """Return what an option takes, and the value that it was given instead."""
    problems = getattr(error.__cause__, "errors", None)
    if problems is None or error.param is None:
        return str(error.message)
    value, about = problems()[0]["input"], error.param.type_descriptor
    if about.choices:
        choices = [str(each) for each in about.choices]
        near = did_you_mean(str(value), choices)
        return f"takes one of {', '.join(choices)}, not {value!r}{near}"
    least, most = about.parameter_info.min, about.parameter_info.max
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    takes = kinds.get(about.annotation, "another value")
    if least is not None and most is not None:
        takes += f" from {least} to {most}"
    elif least is not None:
        takes += f" of at least {least}"
    elif most is not None:
        takes += f" of at most {most}"
    return f"takes {takes}, not {value!r}"


def _other_option(option: str, context: Any) -> str:
    """Return the end of a message about an option that a command has not: the nearest that it
    has, or the other commands that have it."""
    own = [name for parameter in context.command.params for name in parameter.opts]
    commands = getattr(context.find_root().command, "commands", {})
    others = [
        name
        for name, command in commands.items()
        if any(option in parameter.opts for parameter in command.params)
    ]
    if others:
        way = _WAYS.get((str(context.command.name), option), "")
        return f": it is one of {', '.join(others)}{way}"
    return did_you_mean(option, own)


_BY_SHARDS = (
    "; score the data with each model by `seqloss score FILE -m MODEL --shard I/N -o I.jsonl`, "
    "join its shards by `seqloss merge`, and compare what comes of it: `seqloss {} A.jsonl B.jsonl`"
)
_WAYS = {(name, "--shard"): _BY_SHARDS.format(name) for name in ("compare", "objective")}
"""Command and an option that it has not, to what does the same."""


def report_bug(error: Exception, debug: bool) -> int:
    """Write a short notice (with `debug` the traceback, too); returns the exit code."""
    _traceback(debug)
    hint = "" if debug else "; --debug shows where"
    say(f"bug: {type(error).__name__}: {error}{hint}; please report it")
    return BUG


def _traceback(debug: bool) -> None:
    if debug:
        typer.echo(escape(traceback.format_exc()).replace("\\n", "\n"), err=True)


def close_stdout_quietly() -> None:
    """Discard what stdout still holds."""
    # Its reader is gone or its disk is full: Python would try again at exit, and fail loudly.
    if sys.stdout is None:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
