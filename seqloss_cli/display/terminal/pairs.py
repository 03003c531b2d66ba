"""Pairs and chats for a terminal: the chain rule spelled out, and a table of turns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.display.terminal.options import TableOptions
from seqloss_cli.display.terminal.theme import figures_table, loss_style, many, number
from seqloss_cli.metrics.chain_rule import (
    ChainRule,
    boundary_difference,
    chain_rule,
    log_prob_y,
    pointwise_mutual_information,
    turn_scores,
)
from seqloss_cli.metrics.totals import Totals


def line_columns(options: TableOptions, totals: Totals) -> tuple[tuple[str, int], ...]:
    """Name and width of the columns of a pair's line."""
    columns = [("x", 6), ("y", 6), ("ln Pr(x)", 12), ("ln Pr(y|x)", 12), ("mean loss", 10)]
    columns += [("pmi", 10)] * options.pmi
    columns += [("apart-joint", 12)] * (totals.separate_tokenization is not None)
    return tuple(columns)


def line_values(score: SequenceScore, totals: Totals, options: TableOptions) -> tuple[str, ...]:
    """Tokens of prompt and response, log-probabilities, and what else was asked for."""
    rule = chain_rule(score, totals)
    values = [
        str(totals.n_prompt_tokens),
        str(totals.n_response_tokens),
        number(options.in_unit(rule.log_prob_x), 3),
        number(options.in_unit(rule.log_prob_y_given_x), 3),
        number(options.in_unit(totals.mean_loss)),
    ]
    if options.pmi:
        values.append(number(options.in_unit(pointwise_mutual_information(totals)), 3))
    if totals.separate_tokenization is not None:
        values.append(number(options.in_unit(boundary_difference(totals)), 3))
    return tuple(values)


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
    prompt_boundary = score.sequence.prompt_boundary
    assert prompt_boundary is not None
    prompt = f"prompt, {many(totals.n_prompt_tokens, 'token')}{_why_unknown(score, rule)}"
    yield f"{ln} Pr(x)", rule.log_prob_x, "empty prompt" if prompt_boundary.empty_prompt else prompt
    meeting = f", boundary {prompt_boundary.boundary}" if prompt_boundary.boundary else ""
    response = f"response, {many(totals.n_response_tokens, 'token')}{meeting}"
    yield f"{ln} Pr(y|x)", rule.log_prob_y_given_x, response
    parts = (rule.log_prob_x, rule.log_prob_y_given_x)
    summands = " + ".join(f"({number(options.in_unit(part))})" for part in parts)
    known = rule.log_prob_xy is not None
    yield f"{ln} Pr(x,y)", rule.log_prob_xy, f"= {summands}" if known else ""
    if options.pmi:
        yield f"{ln} Pr(y)", log_prob_y(totals), "response after BOS alone"
        pmi = pointwise_mutual_information(totals)
        yield "pmi", pmi, f"{ln} Pr(y|x) - {ln} Pr(y)"
    mean = number(options.in_unit(totals.mean_loss))
    rates = f"mean {mean} per token, perplexity {number(totals.perplexity)}"
    yield "loss", totals.total_loss, rates if totals.n_scored else "nothing is scored"
    if totals.separate_tokenization is not None:
        apart = totals.separate_tokenization
        yield "loss, apart", apart.total_loss, f"{many(apart.n_scored, 'token')} tokenized apart"
        yield "apart - joint", boundary_difference(totals), ""


def _why_unknown(score: SequenceScore, rule: ChainRule) -> str:
    """Of a marginal: rules 8 and 13."""
    prompt_boundary = score.sequence.prompt_boundary
    assert prompt_boundary is not None
    if rule.log_prob_x is not None:
        return ""
    if not prompt_boundary.prompt_scored:
        return ", not scored"
    if prompt_boundary.n_dropped:
        return f"; unknown, {prompt_boundary.n_dropped} were cut"
    if prompt_boundary.n_spans != 1:
        return "; unknown, more than one stretch counts"
    return "; unknown, none has a finite loss"


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
