"""Rows of `seqloss rank`: choices with their scores, orders, and how often the best was right."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import BinaryIO

import numpy as np

from seqloss_cli.core.byte_spans import is_edge
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.metrics.accuracy import RankTotals, accuracies, judged
from seqloss_cli.metrics.ranking import SCORES, Ranking, ScoredChoice, flags_of
from seqloss_cli.metrics.totals import score_flags
from seqloss_cli.results.writing.formats import RowMakers, json_bytes
from seqloss_cli.results.writing.pairs import Row
from seqloss_cli.results.writing.rows import RowOptions, numbers_or_null


def ranking_rows(options: RowOptions) -> RowMakers[Ranking, RankTotals]:
    return RowMakers(
        lambda ranking, sums: ranking_row(ranking, options), rank_totals_row, options.summary
    )


def ranking_row(ranking: Ranking, options: RowOptions) -> Row:
    sample, choices = ranking.sample, ranking.choices
    row: Row = {"id": sample.id, "source": sample.source, "line": sample.line}
    if options.text:
        row["prompt"] = choices.prompt
        if choices.separator:
            row["separator"] = choices.separator
    if sample.meta is not None:
        row["meta"] = sample.meta
    chances = ranking.probabilities
    row["choices"] = [
        _choice(choice, None if chances is None else float(chances[n]), options)
        for n, choice in enumerate(ranking.scored)
    ]
    row["orders"] = {name: [*order] for name, order in ranking.orders.items()}
    row["tied"] = [*ranking.tied]
    row["answers"] = None if choices.answers is None else [*choices.answers]
    row["correct"] = judged(ranking)
    row["flags"] = flags_of(ranking)
    return row


def _choice(choice: ScoredChoice, probability: float | None, options: RowOptions) -> Row:
    score = choice.score
    prompt_boundary, pair = score.sequence.prompt_boundary, score.sequence.sample.pair
    assert prompt_boundary is not None
    assert pair is not None
    row: Row = {"response": pair.response} if options.text else {}
    row |= {
        "log_prob": finite(choice.log_prob),
        "probability": probability,
        "n_tokens": choice.n_tokens,
        "n_bytes": choice.n_bytes,
        "n_chars": choice.n_chars,
        "boundary": prompt_boundary.boundary,
    }
    if choice.with_alone:
        row["log_prob_y"] = finite(choice.log_prob_y)
        row["log_prob_alone"] = finite(choice.log_prob_alone)
    row["scores"] = {name: finite(choice.score_by(name)) for name in choice.score_names}
    row["flags"] = score_flags(score)
    return row | (_tokens(score, options) if options.tokens else {})


def _tokens(score: SequenceScore, options: RowOptions) -> Row:
    """From the first token that counts to the last: `token_losses` are of these, null where they
    do not count; `byte_offsets` are places in `text`, the stretch that they cover."""
    sequence, counted = score.sequence, np.flatnonzero(score.counted)
    first, last = (int(counted[0]), int(counted[-1]) + 1) if len(counted) else (0, 0)
    raw, offsets = (sequence.text or "").encode(), sequence.byte_offsets
    if offsets is not None:
        while first > 0 and not is_edge(raw, int(offsets[first])):
            first -= 1
        while last < sequence.n_tokens and not is_edge(raw, int(offsets[last])):
            last += 1
    losses, counts = score.losses[first:last], score.counted[first:last]
    row: Row = {
        "token_ids": sequence.token_ids[first:last].tolist(),
        "tokens": options.token_texts(sequence)[first:last],
        "token_losses": numbers_or_null(losses, counts),
    }
    if infinite := np.flatnonzero(np.isinf(losses) & counts).tolist():
        row["inf_losses"] = infinite
    if offsets is None:
        return row | {"byte_offsets": None}
    row["byte_offsets"] = (offsets[first : last + 1] - offsets[first]).tolist()
    if options.text:
        row["text"] = raw[offsets[first] : offsets[last]].decode()
    return row


def finite(value: float | None) -> float | None:
    """Null for what JSON cannot say: the flag `inf_loss` tells it."""
    return None if value is None or math.isinf(value) else value


def rank_totals_row(totals: RankTotals, n_rejected: int, n_empty_lines: int) -> Row:
    return {
        "n_sequences": totals.n_rows,
        "n_rejected": n_rejected,
        "n_empty_lines": n_empty_lines,
        "n_choices": totals.n_choices,
        "n_tokens": totals.n_tokens,
        "boundaries": totals.boundaries,
        "n_with_answer": totals.n_with_answer,
        "accuracies": {name: asdict(each) for name, each in accuracies(totals).items()},
        "chance": totals.chance,
        "n_tied": {name: totals.n_tied.get(name, 0) for name in SCORES if name in totals.n_ordered},
        "n_ordered": totals.n_ordered,
        "flags": totals.flags,
    }


class RankedRows:
    """JSONL of the rows as they came, their choices best first: n-best lists re-ordered."""

    def __init__(self, sink: BinaryIO, by: str) -> None:
        self._sink, self.by = sink, by
        self.n_unordered = 0
        """Rows without such an order: they are left as they are, their scores null."""

    def write(self, ranking: Ranking) -> None:
        known, choices = self.by in ranking.orders, ranking.choices
        self.n_unordered += not known
        order = ranking.orders[self.by] if known else tuple(range(len(ranking.scored)))
        scores = [ranking.scored[n].score_by(self.by) if known else None for n in order]
        row: Row = {**(ranking.sample.meta or {}), "id": ranking.sample.id}
        row |= {
            "prompt": choices.prompt,
            "separator": choices.separator,
            "choices": [choices.responses[n] for n in order],
            "by": self.by,
            "scores": [finite(score) for score in scores],
            "places": [*order],
        }
        if choices.answers is not None:
            places = [order.index(n) for n in choices.answers]
            row["answer"] = places[0] if len(places) == 1 else places
        self._sink.write(json_bytes(row) + b"\n")
