"""`seqloss score`, `seqloss cond`: the losses of whole texts, and of responses given prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from seqloss_cli.cli import distribute as d
from seqloss_cli.cli import inputs as i
from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import exit_with
from seqloss_cli.cli.report import write_with_page
from seqloss_cli.cli.results_io import check_places
from seqloss_cli.core import policies as p

if TYPE_CHECKING:
    from rich.console import Console

    from seqloss_cli.cli.settings import OutputPlan
    from seqloss_cli.core.records import SequenceScore
    from seqloss_cli.display.terminal.formatting import TableOptions
    from seqloss_cli.metrics.totals import Totals
    from seqloss_cli.results.formats import Writer


@o.with_options(
    o.only(i.TextArguments, "files", "text"),
    p.Reading,
    o.only(i.TextArguments, "regions"),
    p.ModelChoice,
    p.EngineChoice,
    p.TokenPolicy,
    p.WindowChoice,
    o.only(p.BatchPolicy, "tokens"),
    p.SpeedPolicy,
    d.DistributeSettings,
    o.quantities(),
    o.ShowSettings,
    o.OutputSettings,
    o.CONFIG,
    o.OtherSettings,
)
def score(ctx: typer.Context) -> None:
    """Score texts: the loss of every token, and totals.

    Reads files, stdin (-) or --text. A plain file is one text; .jsonl and .ndjson are one row a
    line. Long texts are scored in windows: nothing is cut, every token is scored once.

    Examples:
        seqloss score README.md
        seqloss score --text "The cat sat on the mat." --top-k 3 --ranks
        seqloss score README.md --lines --summary --worst 10
        seqloss score samples/sentences.jsonl --regions samples/regions.jsonl
        cat corpus.jsonl | seqloss score --jsonl-input --json --no-tokens | jq .totals

    """
    _run(ctx, score_texts, i.text_inputs)


@o.with_options(
    o.only(i.PairArguments, "files", "prompt", "response", "prompt_field", "response_field"),
    o.only(p.PairPolicy, "separator"),
    o.only(p.Reading, "keep_meta", "limit", "max_bytes", *p.ROWS_ELSEWHERE),
    o.only(i.TextArguments, "regions"),
    o.only(i.PairArguments, "chat", "chat_template"),
    o.only(p.PairPolicy, "turns", "end_of_turn", "template_date"),
    p.ModelChoice,
    p.EngineChoice,
    p.TokenPolicy,
    o.only(p.WindowChoice, "context"),
    o.only(p.PairPolicy, "boundary", "truncate", "pmi", "marginal"),
    o.only(p.BatchPolicy, "share_prefix", "tokens"),
    p.SpeedPolicy,
    d.DistributeSettings,
    o.quantities(),
    o.ShowSettings,
    o.OutputSettings,
    o.CONFIG,
    o.OtherSettings,
)
def cond(ctx: typer.Context) -> None:
    """Score responses given their prompts: ln Pr(y|x), ln Pr(x) and the joint.

    Rows have a prompt and a response, or the messages of a chat. One pass over both gives the
    losses of all tokens; only the response's count. A common beginning is computed once.

    Examples:
        seqloss cond --prompt "The list is" --response " sorted in place."
        seqloss cond samples/pairs.jsonl --boundary compare --pmi
        seqloss cond samples/chats.jsonl --chat-template samples/chat.jinja --json

    """
    _run(ctx, score_pairs, i.pair_inputs)


def _run(
    ctx: typer.Context,
    body: Callable[[typer.Context, OutputPlan], int],
    inputs_of: Callable[[typer.Context], i.Inputs],
) -> None:
    """Score what the command was given, here or by workers, and write it."""
    from seqloss_cli.cli.settings import output_choice

    choice = output_choice(ctx)
    check_places(ctx, "report")
    if d.is_asked(ctx):
        exit_with(d.distribute(ctx, choice, body, inputs_of))
    else:
        write_with_page(ctx, choice, lambda choice: body(ctx, choice))


def score_texts(ctx: typer.Context, choice: OutputPlan) -> int:
    """Score texts and write them; returns the exit code."""
    return _score(ctx, choice, None, i.text_inputs)


def score_pairs(ctx: typer.Context, choice: OutputPlan) -> int:
    """Score responses given their prompts, and write them; returns the exit code."""
    return _score(ctx, choice, i.pair_policy(ctx), i.pair_inputs)


def _score(
    ctx: typer.Context,
    choice: OutputPlan,
    pairs: p.PairPolicy | None,
    inputs_of: Callable[[typer.Context], i.Inputs],
) -> int:
    from seqloss_cli.cli import settings
    from seqloss_cli.cli.run import Command, TeeWriter
    from seqloss_cli.core.run_record import recorded
    from seqloss_cli.display.terminal.heat import HeatWriter
    from seqloss_cli.display.terminal.summaries import WorstTokensWriter
    from seqloss_cli.display.terminal.writer import TableWriter, loss_answer
    from seqloss_cli.metrics.words import CORRECTION_SOURCE
    from seqloss_cli.results.schema.scores import score_rows
    from seqloss_cli.scoring.tasks import score_task

    inputs, scorer = inputs_of(ctx), settings.load_scorer(ctx, pairs)
    inputs = replace(inputs, items=scorer.verified(inputs.items))
    asked = settings.requested(ctx)
    names = ("text", "tokens", "words", "context_lengths", "pmi", "summary")
    described = recorded(choice, *names) | asked.described()
    if choice.word_correction:
        asked = asked.with_word_boundaries(scorer.tokenization.word_boundary_ids())
        described |= {"word_correction": True, "word_correction_source": CORRECTION_SOURCE}
    task = score_task(scorer, choice.command, asked)
    ids = asked.word_boundary_ids

    def table(console: Console, options: TableOptions) -> Writer[SequenceScore, Totals]:
        own = (TableWriter if choice.heat is None else HeatWriter)(console, options)
        if not choice.worst:
            return own
        return TeeWriter(own, WorstTokensWriter(console, options, choice.worst))

    more: list[Writer[SequenceScore, Totals]] = []
    if choice.worst and choice.format is not None:
        # The rows go to a file: stdout is free.
        stdout = settings.console(None, sys.stdout.buffer)
        options = settings.table_options(task.tokenization, choice, ids)
        more.append(WorstTokensWriter(stdout, options, choice.worst))
    command = Command(task, score_rows, table, loss_answer, ids)
    return command.run(inputs, choice, described, more).exit_code
