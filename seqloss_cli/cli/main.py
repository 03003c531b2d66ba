"""The `seqloss` program: its commands, and what `-h` and `--help` print of them."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from seqloss_cli.cli.check import check
from seqloss_cli.cli.compare import compare
from seqloss_cli.cli.diverge import diverge
from seqloss_cli.cli.failures import ALONE, close_stdout_quietly, own_words, report_bug, say
from seqloss_cli.cli.mask import mask
from seqloss_cli.cli.merge import merge
from seqloss_cli.cli.objective import objective
from seqloss_cli.cli.options import MODELS, SEVERAL
from seqloss_cli.cli.plot import plot
from seqloss_cli.cli.rank import rank
from seqloss_cli.cli.report import report
from seqloss_cli.cli.schema import schema
from seqloss_cli.cli.score import cond, score
from seqloss_cli.cli.select import select
from seqloss_cli.cli.serve import serve
from seqloss_cli.cli.summarize import summarize
from seqloss_cli.core.errors import did_you_mean
from seqloss_cli.core.urls import shown_name

if TYPE_CHECKING:
    from rich.text import Text

_FIRST = (
    "text", "prompt", "response", "model", "models", "teacher", "data", "kind", "where", "sample",
    "by", "inputs", "check", "field", "against", "threshold", "fail_above", "like", "separator",
    "no_prompt", "lines", "chat_template", "score", "pmi", "loss", "worst",
    "top_k", "output", "report", "json", "summary", "membership", "view", "unit", "metric",
    "tokens", "output_ranked", "title", "allow_different", "confidence", "cluster", "ranks",
    "resume", "limit", "missing", "force", "format", "level", "config", "host", "port", "context",
    "dtype", "device", "batch_tokens",
)  # fmt: skip
"""Parameters that people need first, in this order: `-h` shows the first ten that a command has."""
_N_FIRST = 10
_WIDEST, _HELP_COLUMN = 100, 26
_SHORT_HELP = "seqloss_cli.short_help"
_LONGEST_VALUE = 40
"""Characters of a value that a message shows."""


class HelpfulCommand(TyperCommand):
    """A command whose help fits 80 columns: `-h` has what is needed first, `--help` all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note which of the two was asked for: they are names of one option. Then read the options.

        Raises BadParameter for one with two values, of which the parser would take the last.
        """
        ctx.meta[_SHORT_HELP] = "-h" in args
        # A shell that completes a line is told of no error; it has none to show.
        if not ctx.resilient_parsing:
            self._refuse_repeated(ctx, list(args))
        return super().parse_args(ctx, args)

    def _refuse_repeated(self, ctx: Any, args: list[str]) -> None:
        parser, single = self.make_parser(ctx), []
        for each in self.params:
            if isinstance(each, TyperOption) and not (each.is_flag or each.multiple):
                single.append(each)
                parser.add_option(each, each.opts, each.name, action="append", nargs=each.nargs)
        given, _, _ = parser.parse_args(args)
        for each in single:
            if len(values := given.get(each.name, ())) > 1 and not given.get("help"):
                if (self.name, each.name) in SEVERAL:
                    ctx.meta[MODELS] = values
                    continue
                raise typer.BadParameter(_repeated(each.opts[0], values, ctx), ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what stands behind the command's name, here and in messages."""
        arguments = (each for each in self.params if each.param_type_name == "argument")
        return ["[OPTIONS]", *(f"{each.metavar}…" for each in arguments)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of this command."""
        formatter.write(_in_lines(_command_help(self, ctx)))


class HelpfulGroup(TyperGroup):
    """The program, whose help names its commands."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read what stands before the command."""
        with own_words():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the command and what stands behind it, and run it."""
        with own_words():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first word names."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = did_you_mean(name, self.list_commands(ctx))
            if Path(name).is_file():
                near = f": it is a file; score {name} gives its losses"
            raise typer.BadParameter(f"there is no command {name!r}{near}", ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the program."""
        formatter.write(_in_lines(_program_help(self, ctx)))


app = typer.Typer(
    name="seqloss",
    cls=HelpfulGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def examples_of(command: object) -> list[str]:
    """Return the examples at the end of a command's docstring."""
    _, _, examples = (inspect.getdoc(command) or "").partition("\n\nExamples:\n")
    return [line.strip() for line in examples.splitlines()]


def _repeated(flag: str, values: list[str], ctx: Any) -> str:
    """Return the message about an option that takes one value and was given several."""
    commands = ctx.find_root().command.commands.items()
    taking_several = [
        name
        for name, command in commands
        if any(
            flag in each.opts and (getattr(each, "multiple", False) or (name, each.name) in SEVERAL)
            for each in command.params
        )
    ]
    shown = ", ".join(repr(shown_name(value[:_LONGEST_VALUE])) for value in values)
    others = f"; {' and '.join(taking_several)} can take several" if taking_several else ""
    return (
        f"{flag} takes one value, and is given {len(values)}: {shown}; leave all but one out, or "
        f"run {ctx.command.name} once for each{others}"
    )


def _in_lines(lines: Iterable[str | Text]) -> str:
    """Return the lines with the colours that stdout can show."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for line in lines:
            # An example, say, is never wrapped: it is to be copied.
            console.print(line, soft_wrap=True)
    return captured.get()


def _program_help(group: Any, ctx: Any) -> Iterator[str | Text]:
    described, _, more = (group.help or "").partition("\n\n")
    yield f"Usage: {ctx.command_path} COMMAND [OPTIONS] …"
    yield ""
    yield from _wrapped(described)
    commands = [(name, group.get_command(ctx, name)) for name in group.list_commands(ctx)]
    yield from _section("Commands", [(name, _first_line(each)) for name, each in commands])
    yield from _section("Options", map(_entry, group.get_params(ctx)))
    for paragraph in more.split("\n\n"):
        yield ""
        yield from _wrapped(paragraph)
    yield ""
    yield f"{ctx.command_path} COMMAND -h shows the options needed first, --help all."


def _command_help(command: Any, ctx: Any) -> Iterator[str | Text]:
    described, _, examples = (command.help or "").partition("\n\nExamples:\n")
    params = command.get_params(ctx)
    arguments = [each for each in params if each.param_type_name == "argument"]
    yield f"Usage: {' '.join([ctx.command_path, *command.collect_usage_pieces(ctx)])}"
    for paragraph in described.split("\n\n"):
        yield ""
        yield from _wrapped(paragraph)
    if examples:
        yield ""
        yield _bold("Examples")
        yield from (f"  {line.strip()}" for line in examples.strip().splitlines())
    options = [each for each in params if each.param_type_name == "option"]
    by_name = {each.name: each for each in options}
    first = [by_name[name] for name in _FIRST if name in by_name][:_N_FIRST]
    panels: dict[str, list[Any]] = {}
    for each in options:
        if each not in first:
            panels.setdefault(getattr(each, "rich_help_panel", None) or "Other", []).append(each)
    yield from _section("Arguments", map(_entry, arguments))
    yield from _section("Options needed first" if panels else "Options", map(_entry, first))
    if ctx.meta.get(_SHORT_HELP):
        yield ""
        yield f"{ctx.command_path} --help shows all {len(options)} options."
        return
    for name, members in panels.items():
        yield from _section(name, map(_entry, members))


def _first_line(command: Any) -> str:
    return str(command.help or "").split("\n", 1)[0]


def _entry(parameter: Any) -> tuple[str, str]:
    """Return the names of a parameter with what it takes, and its help."""
    metavar = "" if getattr(parameter, "is_flag", False) else parameter.metavar or ""
    if parameter.param_type_name == "argument":
        return metavar, parameter.help or ""
    # The names of --help come in any order.
    names = sorted(parameter.opts, key=len, reverse=True)
    return f"{', '.join(names)} {metavar}".rstrip(), parameter.help or ""


def _section(title: str, entries: Iterable[tuple[str, str]]) -> Iterator[str | Text]:
    """Yield a title, and entries in two columns."""
    from rich.text import Text

    rows = list(entries)
    if not rows:
        return
    yield ""
    yield _bold(title)
    for names, described in rows:
        lines = _wrapped(described, _HELP_COLUMN)
        # Names that reach into the second column, choices above all, have a line of their own.
        if len(names) + 4 > _HELP_COLUMN:
            yield Text(f"  {names}", "cyan")
        else:
            yield Text.assemble((f"  {names}".ljust(_HELP_COLUMN), "cyan"), next(lines, ""))
        yield from (" " * _HELP_COLUMN + line for line in lines)


def _bold(words: str) -> Text:
    from rich.text import Text

    return Text(words, "bold")


def _wrapped(text: str, indent: int = 0) -> Iterator[str]:
    """Yield a paragraph in lines of the terminal, less an indent that they stand behind."""
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size().columns, _WIDEST)
    room = max(20, width - indent)
    yield from textwrap.wrap(" ".join(text.split()), room, break_on_hyphens=False)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"seqloss {version('seqloss')}")
        raise typer.Exit


def seqloss(
    show_version: bool = typer.Option(
        False, "--version", "-V", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Exact losses and likelihoods of causal language models.

    Losses are in nats unless said otherwise. Data goes to stdout, everything else to stderr.

    Configuration: flag > SEQLOSS_* variable > --config FILE or ./seqloss.yaml (keys are the long
    option names) > default.

    Exit codes: 0 done, 1 the run failed, 2 wrong flags or configuration, 3 some inputs were
    rejected, 70 a bug, 130 interrupted.
    """
    _forget_impossible_sizes()


def _forget_impossible_sizes() -> None:
    """Drop a width or height of the terminal that is none: 0 means that it is not known."""
    # rich would take COLUMNS=0 as it is and print nothing.
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        value = os.environ.get(name, "1")
        if not (value.isascii() and value.isdigit() and int(value[:9])):
            del os.environ[name]


app.callback(help=inspect.getdoc(seqloss))(seqloss)
for command in (
    score, cond, rank, diverge, mask, check, merge, summarize, compare, objective, plot, report,
    select, schema, serve,
):  # fmt: skip
    app.command(cls=HelpfulCommand, help=inspect.getdoc(command))(command)


def main() -> None:
    """Run the program. Commands see to their own errors; what escapes from parsing is a bug."""
    _forget_impossible_sizes()  # here, too: --help is printed before the callback runs
    with _among_others() as is_first:
        if is_first:
            _run()


@contextmanager
def _among_others() -> Iterator[bool]:
    """Yield False in a process that torchrun started to follow the first one, once it has."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield True
        return
    from seqloss_cli.backends.torch import torchrun

    try:
        if (place := torchrun.join()) is not None:
            from seqloss_cli.backends.torch.following import follow_torchrun

            follow_torchrun(place)
        yield place is None
    finally:
        if torchrun.meeting is not None:
            torchrun.meeting.end()


def _run() -> None:
    try:
        app(obj=ALONE)
    except SystemExit as stop:
        # Where help goes to a pipe that was closed, typer and rich would exit with 1.
        if isinstance(stop.__context__, BrokenPipeError):
            sys.exit(0)
        raise
    except OSError as error:  # while help is printed
        say(f"error: {error.strerror or error}")
        close_stdout_quietly()
        sys.exit(1)
    except Exception as error:
        sys.exit(report_bug(error, debug="--debug" in sys.argv))
    finally:
        # Else the interpreter looks for garbage among all that torch made before it ends: a second.
        # Bindings of Triton 3.9 list whatever is left then on stderr, as leaked.
        if "triton" not in sys.modules:
            gc.freeze()
