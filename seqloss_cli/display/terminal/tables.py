"""Tables of tokens, words, regions and turns; the chain rule of a pair spelled out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from seqloss_cli.core.columns import COLUMNS, TokenColumn, cell_columns
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import PromptBoundary, SequenceScore
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import TableOptions, Unit
from seqloss_cli.metrics import chain_rule
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.metrics.words import RegionLosses, WordLosses

_FOLDS = fmt.FoldRule(head=24, tail=16, around_boundary=4)


def token_table(score: SequenceScore, options: TableOptions) -> Table:
    """Return position, token, id, loss, probability, cumulative loss of each token, and every
    quantity of `core.columns` that the score has.

    Columns of figures keep their width; on a narrow terminal tokens and alternatives wrap.
    """
    sequence = score.sequence
    title = f"{escape(sequence.sample.id)}  (losses in {options.unit})"
    positions = ("pos", *(("part",) if sequence.prompt_boundary else ()))
    figures = ["id", "loss", "prob", "sum"]
    figures += [column.header for column in _cell_columns_of(score)]
    table = fmt.figures_table(title, positions, ("token",), figures)
    if score.top_ids is not None:
        names = [column.header for column in COLUMNS if column.kind == "alternatives"]
        table.add_column(*names, overflow="fold")
    stretch = sequence.counted_span if sequence.prompt_boundary else None
    boundary = None if stretch is None else stretch[0]
    n_tokens, folds = sequence.n_tokens, _folds(sequence.n_tokens, options, boundary)
    rows = _token_rows(score, options, folds)
    return with_rows(table, rows, n_tokens, options, "tokens", boundary)


def with_rows(
    table: Table,
    rows: Iterable[list[Text]],
    n_rows: int,
    options: TableOptions,
    what: str,
    boundary: int | None = None,
) -> Table:
    """Return the table with its rows, or the first and last of many, and those around a prompt
    boundary. `rows` yields `n_rows` of them, and none that is folded stays in memory."""
    folds = _folds(n_rows, options, boundary)
    if folds:
        n_folded = sum(map(len, folds))
        table.caption = Text(f"{n_folded} {what} folded; --all-tokens shows them")
    # The note stands in the first column that wraps: others would grow by its width.
    first_text = next(n for n, column in enumerate(table.columns) if not column.no_wrap)
    for n, row in enumerate(rows):
        for fold in folds:
            if n == fold.start:
                gap = [""] * (first_text - 1)
                table.add_row("⋮", *gap, Text(f"({len(fold)} more)", style="dim"))
        if not any(n in fold for fold in folds):
            table.add_row(*row)
    return table


def _folds(n: int, options: TableOptions, boundary: int | None) -> list[range]:
    return [] if options.all_tokens else _FOLDS.folds(n, boundary)


def _token_rows(
    score: SequenceScore, options: TableOptions, folds: Sequence[range]
) -> Iterator[list[Text]]:
    """A row for each token; an empty one for those in a fold, which are not shown."""
    sequence, unit = score.sequence, options.unit
    ids, columns = sequence.token_ids.tolist(), _cell_columns_of(score)
    # Rounded at each token: the last one need not equal the total, which is exact (rule 1). Where
    # nothing counts, the arrays may hold anything.
    counted = score.counted
    cumulative = np.cumsum(np.where(counted, score.losses, 0.0)).tolist()
    for t, text in enumerate(options.token_texts(sequence)):
        if any(t in fold for fold in folds):
            yield []
            continue
        loss = float(score.losses[t]) if score.scored[t] else None
        counts = bool(counted[t])
        style = fmt.loss_style(loss, sequence.prompt_boundary is not None) if counts else "dim"
        row = [Text(str(t), style="dim")]
        if sequence.prompt_boundary is not None:
            row.append(Text(*("y", "") if sequence.loss_mask[t] else ("x", "dim")))
        row += [
            Text(fmt.visible(text), style=style),
            Text(str(ids[t]), style="dim"),
            Text(unit.text(loss), style=style),
            Text(fmt.probability(loss), style=style),
            Text(unit.text(cumulative[t], 3) if counts else "-"),
        ]
        row += [
            Text("-" if loss is None else _cell(column, score.columns[column.name][t], unit))
            for column in columns
        ]
        if score.top_ids is not None:
            row.append(_alternatives(score, t, options))
        yield row


def _cell_columns_of(score: SequenceScore) -> list[TokenColumn]:
    """The columns of one number a token that the score has."""
    return [column for column in cell_columns() if column.name in score.columns]


def _cell(column: TokenColumn, value: Any, unit: Unit) -> str:
    """A number of the column, in the unit of the table."""
    if column.kind == "whole":
        return str(value)
    return fmt.number(unit.of(float(value), column.power), 3)


def _alternatives(score: SequenceScore, t: int, options: TableOptions) -> Text:
    if not score.scored[t] or score.top_ids is None or score.top_log_probs is None:
        return Text("-")
    pairs = zip(score.top_ids[t].tolist(), score.top_log_probs[t].tolist(), strict=True)
    shown = (f"{fmt.probability(-p)} {fmt.visible(options.name_token(i))}" for i, p in pairs)
    return Text("  ".join(shown))


def region_table(found: RegionLosses, options: TableOptions) -> Table:
    """Return name, text, tokens and losses of each region."""
    columns = {"loss": found.losses, "mean": found.means} | _corrected(found)
    figures = ("tokens", *columns)
    table = fmt.figures_table(f"regions, {options.unit}", (), ("region", "text"), figures)
    parts = zip(found.regions, found.texts, found.n_tokens, *columns.values(), strict=True)
    rows = (
        [
            Text(escape(region.name), style="dim"),
            Text(fmt.visible(text), style=fmt.loss_style(mean)),
            Text(str(n), style="dim"),
            *_coloured((loss, mean, *corrected), mean, options.unit),
        ]
        for region, text, n, loss, mean, *corrected in parts
    )
    return with_rows(table, rows, len(found.regions), options, "regions")


def _corrected(found: RegionLosses | WordLosses) -> dict[str, list[float | None]]:
    return {} if found.corrected is None else {"corrected": found.corrected}


def word_table(found: WordLosses, options: TableOptions) -> Table:
    """Return bytes, text and losses of each word."""
    columns = {"loss": found.losses} | _corrected(found)
    table = fmt.figures_table(f"words, {options.unit}", ("bytes",), ("word",), columns)
    parts = zip(found.words, found.byte_offsets.tolist(), *columns.values(), strict=True)
    rows = (
        [
            Text(f"{start}–{end}", style="dim"),
            Text(fmt.visible(word), style=fmt.loss_style(loss)),
            *_coloured((loss, *corrected), loss, options.unit),
        ]
        for word, (start, end), loss, *corrected in parts
    )
    return with_rows(table, rows, len(found.words), options, "words")


def _coloured(figures: Iterable[float | None], loss: float | None, unit: Unit) -> Iterator[Text]:
    """Figures in nats, all in the colour of a loss."""
    return (Text(unit.text(nats), style=fmt.loss_style(loss)) for nats in figures)


LineColumn = tuple[str, int, str]
"""A figure of a result that is shown in one line: its name, its width in cells, and what it is."""


def pair_line(score: SequenceScore, totals: Totals, options: TableOptions) -> list[LineColumn]:
    """Return tokens of prompt and response, log-probabilities, and what else was asked for."""
    rule, unit = chain_rule.chain_rule(score, totals), options.unit
    columns = [
        ("x", 6, str(totals.n_prompt_tokens)),
        ("y", 6, str(totals.n_response_tokens)),
        ("ln Pr(x)", 12, unit.text(rule.log_prob_x, 3)),
        ("ln Pr(y|x)", 12, unit.text(rule.log_prob_y_given_x, 3)),
        ("mean loss", 10, unit.text(totals.mean_loss)),
    ]
    if options.pmi:
        pmi = chain_rule.pointwise_mutual_information(totals)
        columns.append(("pmi", 10, unit.text(pmi, 3)))
    if totals.separate_tokenization is not None:
        difference = unit.text(chain_rule.boundary_difference(totals), 3)
        columns.append(("apart-joint", 12, difference))
    return columns


def chain_rule_table(score: SequenceScore, totals: Totals, options: TableOptions) -> Table:
    """Return the three log-probabilities, how they make one another, and what else was asked
    for."""
    unit = options.unit
    rows = _chain_rule_rows(score, totals, chain_rule.chain_rule(score, totals), options)
    return fmt.figures_grid((name, unit.text(nats), note) for name, nats, note in rows)


def _chain_rule_rows(
    score: SequenceScore, totals: Totals, rule: chain_rule.ChainRule, options: TableOptions
) -> Iterator[tuple[str, float | None, str]]:
    """Name, value in nats, and a note; the unit is one for all."""
    unit, boundary = options.unit, score.sequence.prompt_boundary
    assert boundary is not None
    ln = "log2" if options.bits else "ln"
    prompt = (
        f"prompt, {fmt.count_of(totals.n_prompt_tokens, 'token')}{_why_unknown(boundary, rule)}"
    )
    yield f"{ln} Pr(x)", rule.log_prob_x, "empty prompt" if boundary.empty_prompt else prompt
    meeting = f", boundary {boundary.boundary}" if boundary.boundary else ""
    response = f"response, {fmt.count_of(totals.n_response_tokens, 'token')}{meeting}"
    yield f"{ln} Pr(y|x)", rule.log_prob_y_given_x, response
    parts = (rule.log_prob_x, rule.log_prob_y_given_x)
    summands = " + ".join(f"({unit.text(part)})" for part in parts)
    known = rule.log_prob_xy is not None
    yield f"{ln} Pr(x,y)", rule.log_prob_xy, f"= {summands}" if known else ""
    if options.pmi:
        yield f"{ln} Pr(y)", chain_rule.log_prob_y(totals), "response after BOS alone"
        pmi = chain_rule.pointwise_mutual_information(totals)
        yield "pmi", pmi, f"{ln} Pr(y|x) - {ln} Pr(y)"
    mean = unit.text(totals.mean_loss)
    rates = f"mean {mean} per token, perplexity {fmt.number(totals.perplexity)}"
    yield "loss", totals.total_loss, rates if totals.n_scored else "nothing is scored"
    if (apart := totals.separate_tokenization) is not None:
        tokens = fmt.count_of(apart.n_scored, "token")
        yield "loss, apart", apart.total_loss, f"{tokens} tokenized apart"
        yield "apart - joint", chain_rule.boundary_difference(totals), ""


def _why_unknown(boundary: PromptBoundary, rule: chain_rule.ChainRule) -> str:
    """Why a marginal is null (rules 8 and 13)."""
    if rule.log_prob_x is not None:
        return ""
    if not boundary.prompt_scored:
        return ", not scored"
    if boundary.n_dropped:
        return f"; unknown, {boundary.n_dropped} were cut"
    if boundary.n_spans != 1:
        return "; unknown, more than one stretch counts"
    return "; unknown, none has a finite loss"


def turn_table(score: SequenceScore, options: TableOptions) -> Table:
    """Return role, tokens, and the loss of the tokens that count, of each turn of a chat."""
    table = fmt.figures_table(
        "turns", ("turn",), ("role",), ("tokens", "scored", "loss", "mean loss")
    )
    for n, found in enumerate(chain_rule.turn_scores(score)):
        style = fmt.loss_style(found.mean_loss)
        table.add_row(
            Text(str(n), style="dim"),
            Text(escape(found.turn.role)),
            Text(str(found.turn.end - found.turn.start)),
            Text(str(found.n_scored)),
            Text(options.unit.text(found.loss), style=style),
            Text(options.unit.text(found.mean_loss), style=style),
        )
    return table
