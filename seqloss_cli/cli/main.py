"""The `seqloss` program."""

from __future__ import annotations

import inspect
import sys

import typer
from rich.markup import escape

from seqloss_cli.cli import (
    compare,
    cond,
    diverge,
    mask,
    objective,
    plot,
    rank,
    report,
    score,
    summarize,
)
from seqloss_cli.cli.failures import close_stdout_quietly, report_bug, say

app = typer.Typer(
    name="seqloss",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _help_of(command: object, examples: tuple[str, ...] = ()) -> str:
    """The docstring, its paragraphs for the terminal to wrap, and examples, a line each."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)
    if not examples:
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


app.callback(help=_help_of(seqloss))(seqloss)
for command, examples in (
    (score.score, score.EXAMPLES),
    (cond.cond, cond.EXAMPLES),
    (rank.rank, rank.EXAMPLES),
    (diverge.diverge, diverge.EXAMPLES),
    (mask.mask, mask.EXAMPLES),
    (summarize.summarize, summarize.EXAMPLES),
    (compare.compare, compare.EXAMPLES),
    (objective.objective, objective.EXAMPLES),
    (plot.plot, plot.EXAMPLES),
    (report.report, report.EXAMPLES),
):
    app.command(help=_help_of(command, examples))(command)


def main() -> None:
    """Run the program. Commands see to their own errors; what escapes from parsing is a bug."""
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
