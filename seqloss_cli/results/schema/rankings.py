"""Rows of `seqloss rank`, written and read back: scores, orders and verdicts are checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Rejected
from seqloss_cli.metrics.accuracy import RankTotals, row_counts
from seqloss_cli.metrics.ranking import (
    SCORES,
    ChoiceFigures,
    Question,
    Ranking,
    choice_probabilities,
    correctness,
    orders_by_score,
)
from seqloss_cli.metrics.totals import Totals, to_units
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import ROUNDING, Fields, Row, RowKind, RowOptions, Rows
from seqloss_cli.results.schema.ranking_keys import (
    CHOICE_KEYS,
    RANK_KEYS,
    RANK_LEVELS,
    RankingView,
    rank_totals_row,
)
from seqloss_cli.results.schema.scores import ResultRow, token_losses
from seqloss_cli.results.schema.sequences import expected_rejection

_FOUND_BY_SCORING = ("nan_loss", "first_token_unscored")
"""Reasons for which a question is rejected once its choices are scored."""


def ranking_rows(options: RowOptions) -> Rows[Ranking, RankTotals, Question | Rejected]:
    """Return the rows of a run of `rank`."""
    return s.rows(
        options,
        RANK_KEYS,
        RANK_LEVELS,
        lambda ranking, sums: RankingView(ranking, options),
        rank_totals_row,
        _expected_row,
        _kept_totals,
    )


@dataclass(frozen=True, slots=True)
class RankedChoice:
    """A choice as a results file of `rank` tells of it."""

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
    """The row as it was written, but for the choices."""
    choices: tuple[RankedChoice, ...]
    orders: Mapping[str, tuple[int, ...]]
    answers: tuple[int, ...] | None
    right: Mapping[str, bool | None] | None
    """Accuracy to whether the best choice is a right one."""
    counts: RankTotals

    @property
    def score_names(self) -> tuple[str, ...]:
        """Return the scores that were asked for."""
        return self.choices[0].figures.score_names

    def scores(self, name: str) -> list[float] | None:
        """Return the score of each choice; None where it is not known of all."""
        if name not in self.orders:
            return None
        found = [choice.figures.score_by(name) for choice in self.choices]
        return [score for score in found if score is not None]


def read_ranking(fields: Fields, place: str) -> RankedRow:
    """Return a row with its choices.

    Raises RowError for a field that is missing or of a wrong type, and for impossible figures:
    scores, orders or verdicts that do not follow from the log-probabilities.
    """
    s.check_types(RANK_KEYS, fields)
    written = _filled(fields, "choices")
    if not all(isinstance(each, Mapping) for each in written):
        raise RowError("wrong_type", "field 'choices' holds what is no object")
    known = s.typed(fields, "orders", Mapping)
    choices = tuple(_choice(each, known, f"{place}, choice {n}") for n, each in enumerate(written))
    figures = [choice.figures for choice in choices]
    if len({each.without_prompt for each in figures}) > 1:
        raise RowError("impossible", "only some of its choices have a pmi")
    # All that follows from the log-probabilities is made again: nobody can edit a verdict alone.
    orders, tied = orders_by_score({name: [f.score_by(name) for f in figures] for name in SCORES})
    _check(fields, "orders", {name: [*order] for name, order in orders.items()})
    _check(fields, "tied", [*tied])
    answers = _answers(fields, len(choices))
    right = correctness(orders, figures[0].score_names, answers)
    _check(fields, "correct", right)
    _check_probabilities(choices)
    kinds = [s.typed(each, "boundary", str | None) for each in written]
    counts = row_counts(right, answers, orders, tied, kinds, s.flags_of(fields))
    kept = {name: value for name, value in fields.items() if name != "choices"}
    return RankedRow(kept, choices, orders, answers, right, counts)


def _choice(fields: Fields, orders: Mapping[str, Any], place: str) -> RankedChoice:
    flags, written = s.flags_of(fields), s.typed(fields, "scores", Mapping, " of a choice")
    log_prob = s.figure(fields, "log_prob")
    if log_prob is None and "inf_loss" not in flags:
        raise RowError("impossible", "a choice has no log_prob, and no flag inf_loss that says why")
    if log_prob is not None and log_prob > ROUNDING:
        raise RowError("impossible", f"a choice's log_prob is {log_prob}: above that of certainty")
    figures = ChoiceFigures(
        log_prob=-math.inf if log_prob is None else log_prob,
        n_tokens=s.count(fields, "n_tokens"),
        n_bytes=s.count(fields, "n_bytes"),
        n_chars=s.count(fields, "n_chars"),
        without_prompt="pmi" in written,
        log_prob_y=_alone_of(fields, "log_prob_y", "pmi" in orders),
        log_prob_alone=_alone_of(fields, "log_prob_alone", "mutual_information" in orders),
    )
    for name in figures.score_names:
        _check_score(s.figure(written, name), figures.score_by(name), name)
    response, row = s.typed(fields, "response", str | None), _tokens_of(fields, figures, place)
    return RankedChoice(figures, s.number(fields, "probability"), response, flags, row)


def _alone_of(fields: Fields, key: str, known: bool) -> float | None:
    """Return a log-probability, nats; null is infinite where the row has an order by it."""
    value = s.number(fields, key)
    return -math.inf if value is None and known else value


def _check_score(written: float | None, found: float | None, name: str) -> None:
    # Written as null, as is a score that is not known: which of them it is, the flags say.
    if found is not None and math.isinf(found):
        found = None
    if (written is None) != (found is None) or not s.is_near(written or 0.0, found or 0.0):
        raise RowError("impossible", f"a choice's score by {name} is {written}, not {found}")


def _tokens_of(fields: Fields, figures: ChoiceFigures, place: str) -> ResultRow:
    written = fields.get("token_losses")
    if written is None:
        return ResultRow(place, {"id": place}, Totals(), None)
    if not isinstance(written, list):
        raise RowError("wrong_type", "field 'token_losses' of a choice is no array")
    s.check_arrays(CHOICE_KEYS, fields, len(written))
    tokens = token_losses(fields, len(written))
    assert tokens is not None
    total = math.fsum(tokens.losses[tokens.counted].tolist())
    # Equal first: two infinities differ by NaN.
    if total != -figures.log_prob and not s.is_near(total, -figures.log_prob):
        raise RowError("impossible", f"a choice's tokens sum to {total}: not minus its log_prob")
    # A text of its own: no hash of a whole one fits the stretch.
    kept: dict[str, Any] = {"id": place, "text_sha256": ""}
    kept |= {name: fields.get(name) for name in ("text", "tokens", "token_ids", "byte_offsets")}
    return ResultRow(place, s.with_arrays(kept), Totals(), tokens)


def _answers(fields: Fields, n_choices: int) -> tuple[int, ...] | None:
    if fields.get("answers") is None:
        return None
    written = _filled(fields, "answers")
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
        if (written is None) != (chance is None) or not s.is_near(written or 0.0, chance or 0.0):
            raise RowError("impossible", f"a choice's probability is {written}, not {chance}")


def _filled(fields: Fields, name: str) -> list[Any]:
    """Return a field that is a list with something in it."""
    written: list[Any] = s.typed(fields, name, list)
    if not written:
        raise RowError("wrong_type", f"field {name!r} cannot be []")
    return written


RANKING_KINDS = {
    "rank": RowKind(read_ranking, "n_choices", lambda row: to_units(float(len(row.choices))))
}


def _expected_row(entry: Question | Rejected, row: Fields) -> Row:
    """Return what the row of a question holds, as far as it can be told without scores."""
    if isinstance(entry, Rejected):
        return expected_rejection(entry)
    sample, choices = entry.sample, entry.sample.choices
    assert choices is not None
    found: Row = {"id": sample.id, "source": sample.source, "line": sample.line}
    refused = next((each for each in entry.entries if isinstance(each, Rejected)), None)
    if row.get("reason") in _FOUND_BY_SCORING:
        return {"type": "rejected", **found}
    if refused is not None:
        return {"type": "rejected", **found, "reason": refused.reason}
    own: list[Row] = [{"response": r, "n_bytes": len(r.encode())} for r in choices.responses]
    written = row.get("choices") or ()
    # With the figures that are there, which `sums_of` checks as any that are read back.
    if len(written) == len(own):
        own = [each | mine for each, mine in zip(written, own, strict=True)]
    return {
        "type": "sequence",
        **found,
        "prompt": choices.prompt,
        "separator": choices.separator or None,
        "meta": sample.meta,
        "answers": choices.answers and [*choices.answers],
        "choices": own,
    }


def _kept_totals(row: Fields, place: str, entry: Question | Rejected) -> RankTotals:
    """Return the counts of a row; how many tokens its choices have, the inputs tell again."""
    assert isinstance(entry, Question)
    return replace(read_ranking(row, place).counts, n_tokens=entry.n_tokens)
