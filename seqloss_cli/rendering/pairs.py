"""Pairs and chats for a terminal: the chain rule spelled out, and a table of turns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from seqloss_cli.conditional import (
    ChainRule,
    boundary_difference,
    chain_rule,
    log_prob_y,
    pointwise_mutual_information,
    turn_scores,
)
from seqloss_cli.escaping import escape
from seqloss_cli.metrics import Totals
from seqloss_cli.records import SequenceScore
from seqloss_cli.rendering.options import TableOptions
from seqloss_cli.rendering.theme import figures_table, loss_style, number

LINE_COLUMNS = (
    ("x", 6),
    ("y", 6),
    ("ln Pr(x)", 12),
    ("ln Pr(y|x)", 12),
    ("mean loss", 10),
)
"""Of a pair's line: tokens of prompt and response, and log-probabilities."""


def line_values(score: SequenceScore, totals: Totals, options: TableOptions) -> tuple[str, ...]:
    rule = chain_rule(score, totals)
    return (
        str(totals.n_prompt_tokens),
        str(totals.n_response_tokens),
        number(options.in_unit(rule.log_prob_x), 3),
        number(options.in_unit(rule.log_prob_y_given_x), 3),
        number(options.in_unit(totals.mean_loss)),
    )


def chain_rule_table(score: SequenceScore, totals: Totals, options: TableOptions) -> Table:
    """The three log-probabilities, how they make one another, and what else was asked for."""
    rule = chain_rule(score, totals)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value, note in _lines(score, totals, rule, options):
        grid.add_row(name, number(options.in_unit(value)), note)
    return grid


def _lines(
    score: SequenceScore, totals: Totals, rule: ChainRule, options: TableOptions
) -> Iterator[tuple[str, float | None, str]]:
    """Name, value in nats, and a note; the unit is one for all."""
    ln = "log2" if options.bits else "ln"
    seam = score.sequence.seam
    assert seam is not None
    why = f"; unknown, {seam.n_dropped} were cut" if seam.n_dropped else ""
    if score.sequence.one_stretch is None:
        why = "; unknown, more than one stretch counts"
    yield f"{ln} Pr(x)", rule.log_prob_x, f"prompt, {totals.n_prompt_tokens} tokens{why}"
    meeting = f", boundary {seam.boundary}" if seam.boundary else ""
    response = f"response, {totals.n_response_tokens} tokens{meeting}"
    yield f"{ln} Pr(y|x)", rule.log_prob_y_given_x, response
    parts = (rule.log_prob_x, rule.log_prob_y_given_x)
    summands = " + ".join(f"({number(options.in_unit(part))})" for part in parts)
    known = rule.log_prob_xy is not None
    yield f"{ln} Pr(x,y)", rule.log_prob_xy, f"= {summands}" if known else ""
    if options.pmi:
        alone = log_prob_y(score)
        yield f"{ln} Pr(y)", alone, "response after BOS alone"
        pmi = pointwise_mutual_information(rule.log_prob_y_given_x, alone)
        yield "pmi", pmi, f"{ln} Pr(y|x) - {ln} Pr(y)"
    mean = number(options.in_unit(totals.mean_loss))
    rates = f"mean {mean} per token, perplexity {number(totals.perplexity)}"
    yield "loss", totals.total_loss, f"of the response, {rates}"
    if totals.other_boundary is not None:
        apart = totals.other_boundary
        yield "loss, apart", apart.total_loss, f"{apart.n_scored} tokens, tokenized separately"
        yield "apart - joint", boundary_difference(totals), ""


def turn_table(score: SequenceScore, options: TableOptions) -> Table:
    """Role, tokens, and the loss of those that count."""
    table = figures_table("turns", ("turn",), ("role",), ("tokens", "scored", "loss", "mean loss"))
    for n, found in enumerate(turn_scores(score)):
        style = loss_style(found.mean_loss)
        table.add_row(
            Text(str(n), style="dim"),
            Text(escape(found.turn.role)),
            Text(str(found.turn.end - found.turn.start)),
            Text(str(found.n_scored)),
            Text(number(options.in_unit(found.loss)), style=style),
            Text(number(options.in_unit(found.mean_loss)), style=style),
        )
    return table
