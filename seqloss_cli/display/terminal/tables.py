"""Tables of tokens, words and regions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from seqloss_cli.core.columns import TokenColumn, cell_columns
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.display.terminal.folding import Shown, folded
from seqloss_cli.display.terminal.options import TableOptions
from seqloss_cli.display.terminal.theme import (
    figures_table,
    loss_style,
    number,
    probability,
    visible,
)
from seqloss_cli.metrics.regions import RegionLosses
from seqloss_cli.metrics.words import WordLosses

_ROWS = Shown(head=24, tail=16, around_seam=4)


def token_table(score: SequenceScore, options: TableOptions) -> Table:
    """Position, token, id, loss, probability, cumulative loss, and what was asked for.

    Columns of figures keep their width; on a narrow terminal tokens and alternatives wrap.
    """
    title = f"{escape(score.sequence.sample.id)}  (losses in {options.unit})"
    positions = ("pos", *(("part",) if score.sequence.prompt_boundary else ()))
    figures = ["id", "loss", "prob", "sum"]
    figures += [column.header for column in _cell_columns_of(score)]
    table = figures_table(title, positions, ("token",), figures)
    if score.top_ids is not None:
        table.add_column("alternatives", overflow="fold")
    rows = _token_rows(score, options)
    stretch = score.sequence.one_stretch if score.sequence.prompt_boundary else None
    prompt_boundary = None if stretch is None else stretch[0]
    add_rows(table, rows, len(score.losses), options, "tokens", prompt_boundary)
    return table


def add_rows(
    table: Table,
    rows: Iterator[list[Text]],
    n_rows: int,
    options: TableOptions,
    what: str,
    prompt_boundary: int | None = None,
) -> None:
    """All rows, or the first and the last of many, and those around a seam."""
    folds = [] if options.all_tokens else folded(n_rows, _ROWS, prompt_boundary)
    n_folded = sum(map(len, folds))
    if folds:
        table.caption = Text(f"{n_folded} {what} folded; --all-tokens shows them")
    for n, row in enumerate(rows):
        for fold in folds:
            if n == fold.start:
                gap = [""] * (_text_column(table) - 1)
                table.add_row("⋮", *gap, Text(f"({len(fold)} more)", style="dim"))
        if not any(n in fold for fold in folds):
            table.add_row(*row)


def _text_column(table: Table) -> int:
    """The first column that wraps."""
    return next(n for n, column in enumerate(table.columns) if not column.no_wrap)


def _token_rows(score: SequenceScore, options: TableOptions) -> Iterator[list[Text]]:
    texts = options.token_texts(score.sequence)
    ids = score.sequence.token_ids.tolist()
    columns = _cell_columns_of(score)
    cumulative = np.cumsum(np.where(score.counted, score.losses, 0.0)).tolist()
    for t, text in enumerate(texts):
        loss = float(score.losses[t]) if score.scored[t] else None
        counts = bool(score.counted[t])
        style = loss_style(loss, score.sequence.prompt_boundary is not None) if counts else "dim"
        row = [Text(str(t), style="dim")]
        if score.sequence.prompt_boundary is not None:
            row.append(Text(*("y", "") if score.sequence.loss_mask[t] else ("x", "dim")))
        row += [
            Text(visible(text), style=style),
            Text(str(ids[t]), style="dim"),
            Text(number(options.in_unit(loss)), style=style),
            Text(probability(loss), style=style),
            Text(number(options.in_unit(cumulative[t]), 3) if counts else "-"),
        ]
        row += [
            Text("-" if loss is None else _cell(column, score.columns[column.name][t], options))
            for column in columns
        ]
        if score.top_ids is not None:
            row.append(_alternatives(score, t, options))
        yield row


def _cell_columns_of(score: SequenceScore) -> list[TokenColumn]:
    """The columns of one number a token that the score has."""
    return [column for column in cell_columns() if column.name in score.columns]


def _cell(column: TokenColumn, value: Any, options: TableOptions) -> str:
    """A number of the column, in the unit of the table."""
    if column.kind == "whole":
        return str(value)
    return number(options.in_unit(float(value), column.power), 3)


def _alternatives(score: SequenceScore, t: int, options: TableOptions) -> Text:
    if not score.scored[t] or score.top_ids is None or score.top_log_probs is None:
        return Text("-")
    pairs = zip(score.top_ids[t].tolist(), score.top_log_probs[t].tolist(), strict=True)
    shown = (f"{probability(-p)} {visible(options.name_token(i))}" for i, p in pairs)
    return Text("  ".join(shown))


def region_table(found: RegionLosses, options: TableOptions) -> Table:
    """Name, text, tokens and loss of each region."""
    figures = ("tokens", "loss", "mean", *(["corrected"] if found.corrected is not None else []))
    table = figures_table(f"regions, {options.unit}", (), ("region", "text"), figures)
    columns = [found.losses, found.means]
    if found.corrected is not None:
        columns.append(found.corrected)
    rows = (
        [
            Text(escape(region.name), style="dim"),
            Text(visible(text), style=loss_style(values[1])),
            Text(str(n), style="dim"),
            *(Text(number(options.in_unit(x)), style=loss_style(values[1])) for x in values),
        ]
        for region, text, n, *values in zip(
            found.regions, found.texts, found.n_tokens, *columns, strict=True
        )
    )
    add_rows(table, rows, len(found.regions), options, "regions")
    return table


def word_table(found: WordLosses, options: TableOptions) -> Table:
    """Bytes, text and loss of each word."""
    figures = ("loss",) if found.corrected is None else ("loss", "corrected")
    table = figures_table(f"words, {options.unit}", ("bytes",), ("word",), figures)
    columns = (found.losses,) if found.corrected is None else (found.losses, found.corrected)
    rows = (
        [
            Text(f"{start}–{end}", style="dim"),
            Text(visible(word), style=loss_style(losses[0])),
            *(Text(number(options.in_unit(x)), style=loss_style(losses[0])) for x in losses),
        ]
        for word, (start, end), *losses in zip(
            found.words, found.byte_offsets.tolist(), *columns, strict=True
        )
    )
    add_rows(table, rows, len(found.words), options, "words")
    return table
