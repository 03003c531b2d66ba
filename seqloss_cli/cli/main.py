"""The `seqloss` program."""

from __future__ import annotations

import inspect
import os
import sys

import typer
from rich.markup import escape

from seqloss_cli.cli.compare import compare
from seqloss_cli.cli.diverge import diverge
from seqloss_cli.cli.failures import close_stdout_quietly, report_bug, say
from seqloss_cli.cli.mask import mask
from seqloss_cli.cli.objective import objective
from seqloss_cli.cli.plot import plot
from seqloss_cli.cli.rank import rank
from seqloss_cli.cli.report import report
from seqloss_cli.cli.score import cond, score
from seqloss_cli.cli.summarize import summarize

app = typer.Typer(
    name="seqloss",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def examples_of(command: object) -> list[str]:
    """Return the examples at the end of a command's docstring."""
    _, _, examples = (inspect.getdoc(command) or "").partition("\n\nExamples:\n")
    return [line.strip() for line in examples.splitlines()]


def _help_of(command: object) -> str:
    """The docstring, its paragraphs for the terminal to wrap, and examples, a line each."""
    described, _, _ = (inspect.getdoc(command) or "").partition("\n\nExamples:\n")
    text = "\n\n".join(paragraph.replace("\n", " ") for paragraph in described.split("\n\n"))
    if not (examples := examples_of(command)):
        return text
    shown = "\n".join(f"  {escape(example)}" for example in examples)
    return f"{text}\n\n\b\n[bold]Examples[/bold]\n{shown}"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"seqloss {version('seqloss')}")
        raise typer.Exit


def seqloss(
    show_version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Exact losses and likelihoods of causal language models.

    Losses are in nats unless said otherwise. Data goes to stdout, everything else to stderr.

    [bold]Configuration[/bold]: flag > SEQLOSS_* variable > --config FILE or ./seqloss.yaml (keys
    are the long option names) > default.

    [bold]Exit codes[/bold]: 0 done · 1 the run failed · 2 wrong flags or configuration · 3 some
    inputs were rejected · 70 a bug · 130 interrupted.
    """
    _forget_impossible_sizes()


def _forget_impossible_sizes() -> None:
    """Drop a width or height of the terminal that is none: 0 means that it is not known."""
    # rich would take COLUMNS=0 as it is and print nothing.
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        value = os.environ.get(name, "1")
        if not (value.isascii() and value.isdigit() and int(value[:9])):
            del os.environ[name]


app.callback(help=_help_of(seqloss))(seqloss)
for command in (
    score, cond, rank, diverge, mask, summarize, compare, objective, plot, report,
):  # fmt: skip
    app.command(help=_help_of(command))(command)


def main() -> None:
    """Run the program. Commands see to their own errors; what escapes from parsing is a bug."""
    _forget_impossible_sizes()  # here, too: --help is printed before the callback runs
    try:
        app()
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
