"""Tables of tokens, words, regions and turns; the chain rule of a pair spelled out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.text import Text

from seqloss_cli.core.columns import COLUMNS, TokenColumn, cell_columns
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import PromptBoundary, SequenceScore
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import (
    Column,
    FiguresGrid,
    FiguresTable,
    TableOptions,
    Unit,
)
from seqloss_cli.metrics import chain_rule
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.metrics.words import RegionLosses, WordLosses

_FOLDS = fmt.FoldRule(head=24, tail=16, around_boundary=4)


def token_table(score: SequenceScore, options: TableOptions) -> FiguresTable:
    """Return position, token, id, loss, probability, cumulative loss of each token, and every
    quantity of `core.columns` that the score has."""
    sequence = score.sequence
    title = f"{escape(sequence.sample.id)}  (losses in {options.unit})"
    part = [Column("part")] if sequence.prompt_boundary else []
    columns = [Column("pos"), *part, Column("token", least=8), Column("id", spare=4)]
    columns += [Column("loss"), Column("prob", spare=2), Column("sum", spare=3)]
    # What was asked for goes last.
    columns += [Column(column.header, spare=1) for column in _cell_columns_of(score)]
    if score.top_ids is not None:
        names = [column.header for column in COLUMNS if column.kind == "alternatives"]
        columns += [Column(name, least=12, spare=1) for name in names]
    table = FiguresTable(title, columns)
    stretch = sequence.counted_span if sequence.prompt_boundary else None
    boundary = None if stretch is None else stretch[0]
    n_tokens, folds = sequence.n_tokens, _folds(sequence.n_tokens, options, boundary)
    rows = _token_rows(score, options, folds)
    return with_rows(table, rows, n_tokens, options, "tokens", boundary)


def with_rows(
    table: FiguresTable,
    rows: Iterable[list[Text]],
    n_rows: int,
    options: TableOptions,
    what: str,
    boundary: int | None = None,
) -> FiguresTable:
    """Return the table with its rows, or the first and last of many, and those around a prompt
    boundary. `rows` yields `n_rows` of them, and none that is folded stays in memory."""
    folds = _folds(n_rows, options, boundary)
    if folds:
        n_folded = sum(map(len, folds))
        table.notes.append(f"{n_folded:,} {what} folded; --all-tokens shows them")
    # The note stands in the first column that wraps: others would grow by its width.
    first_text = next(n for n, column in enumerate(table.columns) if column.least)
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
        return f"{value:,}"
    return fmt.number(unit.of(float(value), column.power), 3)


def _alternatives(score: SequenceScore, t: int, options: TableOptions) -> Text:
    if not score.scored[t] or score.top_ids is None or score.top_log_probs is None:
        return Text("-")
    pairs = zip(score.top_ids[t].tolist(), score.top_log_probs[t].tolist(), strict=True)
    shown = (f"{fmt.probability(-p)} {fmt.visible(options.name_token(i))}" for i, p in pairs)
    return Text("  ".join(shown))


def region_table(found: RegionLosses, options: TableOptions) -> FiguresTable:
    """Return name, text, tokens and losses of each region."""
    columns = {"loss": found.losses, "mean": found.means} | _corrected(found)
    texts = (Column("region", least=8), Column("text", least=8, spare=1))
    figures = (Column("tokens", spare=2), *map(Column, columns))
    table = FiguresTable(f"regions, {options.unit}", (*texts, *figures))
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


def word_table(found: WordLosses, options: TableOptions) -> FiguresTable:
    """Return bytes, text and losses of each word."""
    columns = {"loss": found.losses} | _corrected(found)
    words = (Column("bytes", spare=1), Column("word", least=8))
    table = FiguresTable(f"words, {options.unit}", (*words, *map(Column, columns)))
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


def chain_rule_table(score: SequenceScore, totals: Totals, options: TableOptions) -> FiguresGrid:
    """Return the three log-probabilities, how they make one another, and what else was asked
    for."""
    unit = options.unit
    rows = _chain_rule_rows(score, totals, chain_rule.chain_rule(score, totals), options)
    return FiguresGrid((name, unit.figure(nats), note) for name, nats, note in rows)


def _chain_rule_rows(
    score: SequenceScore, totals: Totals, rule: chain_rule.ChainRule, options: TableOptions
) -> Iterator[tuple[str, float | None, str]]:
    """Name, value in nats, and a note; the unit is one for all."""
    unit, boundary = options.unit, score.sequence.prompt_boundary
    assert boundary is not None
    ln = "log2" if options.bits else "ln"
    prompt = f"prompt, {count_of(totals.n_prompt_tokens, 'token')}{_why_unknown(boundary, rule)}"
    yield f"{ln} Pr(x)", rule.log_prob_x, "empty prompt" if boundary.empty_prompt else prompt
    meeting = f", boundary {boundary.boundary}" if boundary.boundary else ""
    response = f"response, {count_of(totals.n_response_tokens, 'token')}{meeting}"
    yield f"{ln} Pr(y|x)", rule.log_prob_y_given_x, response
    parts = (rule.log_prob_x, rule.log_prob_y_given_x)
    summands = " + ".join(f"({unit.text(part)})" for part in parts)
    known = rule.log_prob_xy is not None
    yield f"{ln} Pr(x,y)", rule.log_prob_xy, f"= {summands}" if known else ""
    if options.pmi:
        yield f"{ln} Pr(y)", chain_rule.log_prob_y(totals), "response after BOS alone"
        pmi = chain_rule.pointwise_mutual_information(totals)
        yield "pmi", pmi, f"{ln} Pr(y|x) - {ln} Pr(y){fmt.more_probable(pmi)}"
    mean = unit.figure(totals.mean_loss, "per token")
    rates = f"mean {mean}, perplexity {fmt.number(totals.perplexity)}"
    yield "loss", totals.total_loss, rates if totals.n_scored else "nothing is scored"
    if (apart := totals.separate_tokenization) is not None:
        tokens = count_of(apart.n_scored, "token")
        yield "loss, apart", apart.total_loss, f"{tokens} tokenized apart"
        difference = chain_rule.boundary_difference(totals)
        yield "apart - joint", difference, f"apart it is {fmt.way(difference, 'the same')}"


def _why_unknown(boundary: PromptBoundary, rule: chain_rule.ChainRule) -> str:
    """Why a marginal is null (rules 8 and 13)."""
    if rule.log_prob_x is not None:
        return ""
    if not boundary.prompt_scored:
        return ", not scored"
    if boundary.n_dropped:
        return f"; unknown, {boundary.n_dropped:,} were cut"
    if boundary.n_spans != 1:
        return "; unknown, more than one stretch counts"
    return "; unknown, none has a finite loss"


def turn_table(score: SequenceScore, options: TableOptions) -> FiguresTable:
    """Return role, tokens, and the loss of the tokens that count, of each turn of a chat."""
    columns = [Column("turn"), Column("role", least=8), Column("tokens", spare=2)]
    columns += [Column("scored", spare=1), Column("loss"), Column("mean loss")]
    table = FiguresTable(f"turns, {options.unit}", columns)
    for n, found in enumerate(chain_rule.turn_scores(score)):
        style = fmt.loss_style(found.mean_loss)
        table.add_row(
            Text(str(n), style="dim"),
            Text(escape(found.turn.role)),
            Text(f"{found.turn.end - found.turn.start:,}"),
            Text(f"{found.n_scored:,}"),
            Text(options.unit.text(found.loss), style=style),
            Text(options.unit.text(found.mean_loss), style=style),
        )
    return table
