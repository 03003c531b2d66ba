"""Rows of `seqloss rank`, written and read back: choices with their scores, orders, verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.metrics.accuracy import RankTotals, accuracies, row_counts
from seqloss_cli.metrics.ranking import (
    SCORES,
    ChoiceFigures,
    Ranking,
    ScoredChoice,
    choice_probabilities,
    correctness,
    orders_by_score,
)
from seqloss_cli.metrics.totals import Totals, score_flags, to_units
from seqloss_cli.results.formats.json import json_bytes
from seqloss_cli.results.schema import (
    ROUNDING,
    Fields,
    RowKind,
    RowMakers,
    check_arrays,
    check_identity,
    count,
    figure,
    flags_of,
    number,
)
from seqloss_cli.results.schema.scores import ResultRow, token_losses
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
        _choice_row(choice, None if chances is None else float(chances[n]), options)
        for n, choice in enumerate(ranking.scored)
    ]
    row["orders"] = {name: [*order] for name, order in ranking.orders.items()}
    row["tied"] = [*ranking.tied]
    row["answers"] = None if choices.answers is None else [*choices.answers]
    row["correct"] = ranking.correct
    row["flags"] = ranking.flags
    return row


def _choice_row(choice: ScoredChoice, probability: float | None, options: RowOptions) -> Row:
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
    if choice.with_unprompted:
        row["log_prob_y"] = finite(choice.log_prob_y)
        row["log_prob_alone"] = finite(choice.log_prob_alone)
    row["scores"] = {name: finite(choice.score_by(name)) for name in choice.score_names}
    row["flags"] = score_flags(score)
    return row | (_token_arrays(score, options) if options.tokens else {})


def _token_arrays(score: SequenceScore, options: RowOptions) -> Row:
    """From the first token that counts to the last: `token_losses` are of these, null where they
    do not count; `byte_offsets` are places in `text`, the stretch that they cover."""
    sequence, counted = score.sequence, np.flatnonzero(score.counted)
    first, last = (int(counted[0]), int(counted[-1]) + 1) if len(counted) else (0, 0)
    covered = TokenBytes.of(sequence)
    if covered is not None:
        first, last = covered.snap(first, last)
    losses, counts = score.losses[first:last], score.counted[first:last]
    row: Row = {
        "token_ids": sequence.token_ids[first:last].tolist(),
        "tokens": options.token_texts(sequence)[first:last],
        "token_losses": numbers_or_null(losses, counts),
    }
    if infinite := np.flatnonzero(np.isinf(losses) & counts).tolist():
        row["inf_losses"] = infinite
    if covered is None:
        return row | {"byte_offsets": None}
    stretch = covered.part(first, last)
    row["byte_offsets"] = stretch.offsets.tolist()
    if options.text:
        row["text"] = stretch.text.decode()
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


@dataclass(frozen=True, slots=True)
class RankedChoice:
    figures: ChoiceFigures
    probability: float | None
    """Among the choices; None where all of them are impossible."""
    response: str | None
    """None where the row was written without texts."""
    flags: Mapping[str, int]
    row: ResultRow
    """Its tokens, if they were written, and the stretch of text that they cover."""


@dataclass(frozen=True, slots=True)
class RankedRow:
    """A question as a results file of `rank` tells of it."""

    fields: Fields
    """As they were written, but for the choices."""
    choices: tuple[RankedChoice, ...]
    orders: Mapping[str, tuple[int, ...]]
    answers: tuple[int, ...] | None
    right: Mapping[str, bool | None] | None
    """Accuracy to whether the best choice is a right one."""
    counts: RankTotals

    @property
    def score_names(self) -> tuple[str, ...]:
        return self.choices[0].figures.score_names

    def scores(self, name: str) -> list[float] | None:
        """Of the choices, where it is known of each."""
        if name not in self.orders:
            return None
        found = [choice.figures.score_by(name) for choice in self.choices]
        return [score for score in found if score is not None]


def read_ranking(fields: Fields, place: str) -> RankedRow:
    """Raises RowError for a field that is missing or of a wrong type, and for figures that cannot
    be: scores, orders or verdicts that do not follow from the log-probabilities."""
    check_identity(fields)
    written = fields.get("choices")
    if not isinstance(written, list) or not written:
        raise RowError("wrong_type", f"field 'choices' cannot be {written!r:.40}")
    if not all(isinstance(each, Mapping) for each in written):
        raise RowError("wrong_type", "field 'choices' holds what is no object")
    known = fields.get("orders")
    if not isinstance(known, Mapping):
        raise RowError("wrong_type", f"field 'orders' cannot be {known!r:.40}")
    choices = tuple(_choice(each, known, f"{place}, choice {n}") for n, each in enumerate(written))
    figures = [choice.figures for choice in choices]
    if len({each.with_unprompted for each in figures}) > 1:
        raise RowError("impossible", "only some of its choices have a pmi")
    orders, tied = orders_by_score({name: [f.score_by(name) for f in figures] for name in SCORES})
    _check(fields, "orders", {name: [*order] for name, order in orders.items()})
    _check(fields, "tied", [*tied])
    answers = _answers(fields, len(choices))
    right = correctness(orders, figures[0].score_names, answers)
    _check(fields, "correct", right)
    _check_probabilities(choices)
    seams = [_boundary(each) for each in written]
    counts = row_counts(right, answers, orders, tied, seams, flags_of(fields))
    kept = {name: value for name, value in fields.items() if name != "choices"}
    return RankedRow(kept, choices, orders, answers, right, counts)


def _choice(fields: Fields, orders: Mapping[str, Any], place: str) -> RankedChoice:
    flags, written = flags_of(fields), fields.get("scores")
    if not isinstance(written, Mapping):
        raise RowError("wrong_type", f"field 'scores' of a choice cannot be {written!r:.40}")
    log_prob = figure(fields, "log_prob")
    if log_prob is None and "inf_loss" not in flags:
        raise RowError("impossible", "a choice has no log_prob, and no flag inf_loss that says why")
    if log_prob is not None and log_prob > ROUNDING:
        raise RowError("impossible", f"a choice's log_prob is {log_prob}: above that of certainty")
    figures = ChoiceFigures(
        log_prob=-math.inf if log_prob is None else log_prob,
        n_tokens=count(fields, "n_tokens"),
        n_bytes=count(fields, "n_bytes"),
        n_chars=count(fields, "n_chars"),
        with_unprompted="pmi" in written,
        log_prob_y=_alone(fields, "log_prob_y", "pmi" in orders),
        log_prob_alone=_alone(fields, "log_prob_alone", "mutual_information" in orders),
    )
    for name in figures.score_names:
        _check_score(figure(written, name), figures.score_by(name), name)
    response = fields.get("response")
    if not isinstance(response, str | None):
        raise RowError("wrong_type", f"field 'response' cannot be {response!r:.40}")
    row = _tokens_of(fields, figures, place)
    return RankedChoice(figures, number(fields, "probability"), response, flags, row)


def _alone(fields: Fields, key: str, known: bool) -> float | None:
    """Null is what is not known, or (where the row has an order by it) what is infinite."""
    value = number(fields, key)
    return -math.inf if value is None and known else value


def _check_score(written: float | None, found: float | None, name: str) -> None:
    if found is not None and math.isinf(found):
        found = None
    if (written is None) != (found is None) or not _are_near(written or 0.0, found or 0.0):
        raise RowError("impossible", f"a choice's score by {name} is {written}, not {found}")


def _are_near(a: float, b: float) -> bool:
    return abs(a - b) <= ROUNDING * max(1.0, abs(b))


def _tokens_of(fields: Fields, figures: ChoiceFigures, place: str) -> ResultRow:
    written = fields.get("token_losses")
    if written is None:
        return ResultRow(place, {"id": place}, Totals(), None)
    if not isinstance(written, list):
        raise RowError("wrong_type", "field 'token_losses' of a choice is no array")
    check_arrays(fields, len(written))
    tokens = token_losses(fields, len(written))
    assert tokens is not None
    total = math.fsum(tokens.losses[tokens.counted].tolist())
    if total != -figures.log_prob and not _are_near(total, -figures.log_prob):
        raise RowError("impossible", f"a choice's tokens sum to {total}: not minus its log_prob")
    kept: dict[str, Any] = {"id": place, "text_sha256": ""}  # the stretch is a text of its own
    kept |= {name: fields.get(name) for name in ("text", "tokens", "token_ids", "byte_offsets")}
    for name in ("token_ids", "byte_offsets"):
        if kept[name] is not None:
            kept[name] = np.array(kept[name], dtype=np.int64)
    return ResultRow(place, kept, Totals(), tokens)


def _answers(fields: Fields, n_choices: int) -> tuple[int, ...] | None:
    written = fields.get("answers")
    if written is None:
        return None
    if not isinstance(written, list) or not written:
        raise RowError("wrong_type", f"field 'answers' cannot be {written!r:.40}")
    for n in written:
        if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < n_choices:
            raise RowError("impossible", f"there is no choice {n!r:.40} to be right")
    return tuple(written)


def _check(fields: Fields, name: str, found: Any) -> None:
    if fields.get(name) != found:
        raise RowError("impossible", f"field {name!r} is not what its scores and answers make it")


def _check_probabilities(choices: Sequence[RankedChoice]) -> None:
    found = choice_probabilities([choice.figures for choice in choices])
    expected = [None] * len(choices) if found is None else found.tolist()
    for choice, chance in zip(choices, expected, strict=True):
        written = choice.probability
        if (written is None) != (chance is None) or not _are_near(written or 0.0, chance or 0.0):
            raise RowError("impossible", f"a choice's probability is {written}, not {chance}")


def _boundary(fields: Fields) -> str | None:
    boundary = fields.get("boundary")
    if not isinstance(boundary, str | None):
        raise RowError("wrong_type", f"field 'boundary' cannot be {boundary!r:.40}")
    return boundary


def _n_choices(row: RankedRow) -> int:
    return to_units(float(len(row.choices)))


RANKING_KINDS = {"rank": RowKind(read_ranking, "n_choices", _n_choices)}
