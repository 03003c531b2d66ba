"""Rows of `seqloss rank`, written and read back: choices with their scores, orders, verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Rejected, TokenSequence
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.accuracy import RankTotals, accuracies, row_counts
from seqloss_cli.metrics.ranking import (
    SCORES,
    ChoiceFigures,
    Question,
    Ranking,
    ScoredChoice,
    choice_probabilities,
    correctness,
    orders_by_score,
)
from seqloss_cli.metrics.totals import Totals, score_flags, to_units
from seqloss_cli.results.schema import (
    ABSENT,
    ROUNDING,
    Fields,
    Key,
    Kind,
    Row,
    RowKind,
    RowOptions,
    Rows,
    always,
    check_arrays,
    check_places,
    check_types,
    count,
    figure,
    finite,
    flags_cell,
    flags_of,
    ints,
    json_bytes,
    json_cell,
    number,
    numbers_or_null,
    possible,
    row_of,
    with_text,
    with_tokens,
)
from seqloss_cli.results.schema.scores import ResultRow, token_losses
from seqloss_cli.results.schema.sequences import (
    expected_rejection,
    flags_key,
    meta_key,
    sample_keys,
)

_FOUND_BY_SCORING = ("nan_loss", "first_token_unscored")
"""Reasons for which a question is rejected once its choices are scored."""


# -- written ------------------------------------------------------------------------------------


@dataclass
class ChoiceView:
    """A choice with its probability among the others, and what its row makes of its score."""

    choice: ScoredChoice
    probability: float | None
    options: RowOptions

    @property
    def sequence(self) -> TokenSequence:
        """Return the sequence of prompt and choice."""
        return self.choice.score.sequence

    @cached_property
    def stretch(self) -> slice:
        """Return the tokens from the first that counts to the last, in whole characters."""
        counted, covered = np.flatnonzero(self.choice.score.counted), TokenBytes.of(self.sequence)
        first, last = (int(counted[0]), int(counted[-1]) + 1) if len(counted) else (0, 0)
        return slice(*(first, last) if covered is None else covered.snap(first, last))

    @cached_property
    def covered(self) -> TokenBytes | None:
        """Return the bytes of the stretch's tokens; None without a text."""
        covered, some = TokenBytes.of(self.sequence), self.stretch
        return None if covered is None else covered.part(some.start, some.stop)

    def token_losses(self) -> list[float | None]:
        """Return the losses of the stretch in nats, null where they do not count."""
        score, some = self.choice.score, self.stretch
        return numbers_or_null(score.losses[some], score.counted[some])

    def infinite(self) -> list[int]:
        """Return the places of infinite losses in the stretch; ABSENT without any."""
        score, some = self.choice.score, self.stretch
        places = np.flatnonzero(np.isinf(score.losses[some]) & score.counted[some])
        return places.tolist() or ABSENT


@dataclass
class RankingView:
    """A ranking with the objects of its choices."""

    ranking: Ranking
    options: RowOptions

    @cached_property
    def choices(self) -> list[Row]:
        """Return an object for each choice, in the order of the input."""
        chances, keys = self.ranking.probabilities, possible(self.options, CHOICE_KEYS)
        return [
            row_of(
                keys, ChoiceView(each, None if chances is None else float(chances[n]), self.options)
            )
            for n, each in enumerate(self.ranking.scored)
        ]


def ranking_rows(options: RowOptions) -> Rows[Ranking, RankTotals, Question | Rejected]:
    """Return the rows of a run of `rank`."""
    return Rows(
        options,
        possible(options, RANK_KEYS),
        {name: possible(options, columns) for name, columns in RANK_LEVELS.items()},
        lambda ranking, sums: RankingView(ranking, options),
        rank_totals_row,
        _expected_row,
        _kept_totals,
    )


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


def _with_pmi(options: RowOptions) -> bool:
    return options.pmi


def _of_choice(name: str, kind: Kind) -> Key:
    return Key(name, kind, lambda v: getattr(v.choice, name))


def _alone(name: str) -> Key:
    return Key(name, Kind.real, lambda v: finite(getattr(v.choice, name)), _with_pmi)


CHOICE_KEYS = (
    Key("response", Kind.text, lambda v: v.sequence.sample.pair.response, with_text),
    Key("log_prob", Kind.real, lambda v: finite(v.choice.log_prob)),
    Key("probability", Kind.real, lambda v: v.probability),
    *(_of_choice(name, Kind.whole) for name in ("n_tokens", "n_bytes", "n_chars")),
    Key("boundary", Kind.text, lambda v: v.sequence.prompt_boundary.boundary),
    _alone("log_prob_y"),
    _alone("log_prob_alone"),
    Key(
        "scores",
        Kind.nested,
        lambda v: {name: finite(v.choice.score_by(name)) for name in v.choice.score_names},
    ),
    flags_key(lambda v: score_flags(v.choice.score)),
    Key(
        "token_ids",
        Kind.wholes,
        lambda v: ints(v.sequence.token_ids[v.stretch]),
        with_tokens,
        length=0,
    ),
    Key(
        "tokens",
        Kind.texts,
        lambda v: v.options.token_texts(v.sequence)[v.stretch],
        with_tokens,
        length=0,
    ),
    Key("token_losses", Kind.reals, lambda v: v.token_losses(), with_tokens, length=0),
    Key("inf_losses", Kind.wholes, lambda v: v.infinite(), with_tokens),
    Key(
        "byte_offsets",
        Kind.wholes,
        lambda v: v.covered and v.covered.offsets.tolist(),
        with_tokens,
        length=1,
    ),
    Key(
        "text",
        Kind.text,
        lambda v: v.covered.text.decode() if v.covered else ABSENT,
        lambda o: o.tokens and o.text,
    ),
)
"""Of a choice, in the order of its object."""
RANK_KEYS = (
    *sample_keys(lambda v: v.ranking.sample),
    Key("prompt", Kind.text, lambda v: v.ranking.choices.prompt, with_text),
    Key("separator", Kind.text, lambda v: v.ranking.choices.separator or ABSENT, with_text),
    meta_key(lambda v: ABSENT if v.ranking.sample.meta is None else v.ranking.sample.meta),
    Key("choices", Kind.nested, lambda v: v.choices),
    Key("orders", Kind.nested, lambda v: {k: [*each] for k, each in v.ranking.orders.items()}),
    Key("tied", Kind.texts, lambda v: [*v.ranking.tied]),
    Key(
        "answers", Kind.wholes, lambda v: v.ranking.choices.answers and [*v.ranking.choices.answers]
    ),
    Key("correct", Kind.nested, lambda v: v.ranking.correct),
    flags_key(lambda v: v.ranking.flags),
)
"""Of a row, in the order of its JSON object."""


# -- columns of lines that are a choice, or a token of one ----------------------------------


def _for_each(name: str, value: Callable[[Ranking], Any], when: Any = always) -> Key:
    """Return a column that is the same for all choices of a row."""
    return Key(name, Kind.texts, lambda v: [value(v.ranking)] * len(v.ranking.scored), when)


def _column(name: str, when: Any = always) -> Key:
    return Key(name, Kind.reals, lambda v: [each.get(name) for each in v.choices], when)


def _score_columns(score: str) -> tuple[Key, Key]:
    """Return the columns of a score, and of the place that it gives a choice: 1 is the best."""

    def places(view: RankingView) -> list[int] | None:
        order = view.ranking.orders.get(score)
        return None if order is None else [1 + order.index(n) for n in range(len(order))]

    when = _with_pmi if score in SCORES[-2:] else always
    return (
        Key(f"score.{score}", Kind.reals, lambda v: [c["scores"][score] for c in v.choices], when),
        Key(f"order.{score}", Kind.wholes, places, when),
    )


def _right(view: RankingView) -> list[int] | None:
    answers = view.ranking.choices.answers
    return None if answers is None else [int(n in answers) for n in range(len(view.choices))]


def _of_tokens(name: str, value: Callable[[int, Row], Sequence[Any]]) -> Key:
    """Return a column of the tokens of all choices, from the number and the object of each."""
    return Key(
        name,
        Kind.reals,
        lambda v: [cell for n, choice in enumerate(v.choices) for cell in value(n, choice)],
    )


def _edges(choice: Row, some: slice) -> Sequence[int | None]:
    offsets = choice["byte_offsets"]
    return [None] * len(choice["tokens"]) if offsets is None else offsets[some]


RANK_LEVELS: Mapping[str, tuple[Key, ...]] = {
    "choice": (
        Key("choice", Kind.wholes, lambda v: range(len(v.choices))),
        _for_each("source", lambda ranking: ranking.sample.source),
        _for_each("prompt", lambda ranking: ranking.choices.prompt, with_text),
        _for_each("separator", lambda ranking: ranking.choices.separator, with_text),
        _column("response", with_text),
        Key("answer", Kind.wholes, _right),
        *(_column(key.name) for key in CHOICE_KEYS[1:6]),
        _column("boundary"),
        _column("log_prob_y", _with_pmi),
        _column("log_prob_alone", _with_pmi),
        *(key for score in SCORES for key in _score_columns(score)),
        Key("flags", Kind.texts, lambda v: [flags_cell(each["flags"]) for each in v.choices]),
        _for_each("meta", lambda r: None if r.sample.meta is None else json_cell(r.sample.meta)),
    ),
    "token": (
        _of_tokens("choice", lambda n, choice: [n] * len(choice["tokens"])),
        _of_tokens("position", lambda n, choice: range(len(choice["tokens"]))),
        _of_tokens("token_id", lambda n, choice: choice["token_ids"]),
        _of_tokens("token", lambda n, choice: choice["tokens"]),
        _of_tokens("loss", lambda n, choice: choice["token_losses"]),
        _of_tokens("start", lambda n, choice: _edges(choice, slice(None, -1))),
        _of_tokens("end", lambda n, choice: _edges(choice, slice(1, None))),
    ),
}
"""What a line can be, to its columns."""


class RankedRows:
    """JSONL of the rows as they came, their choices best first: n-best lists re-ordered."""

    def __init__(self, sink: BinaryIO, by: str) -> None:
        self._sink, self.by = sink, by
        self.n_unordered = 0
        """Rows without such an order: they are left as they are, their scores null."""

    def begin(self, run: RunInfo) -> None:
        """Write nothing: there are rows only."""

    def reject(self, rejected: Rejected) -> None:
        """Write nothing: what is rejected has no order."""

    def end(self, sums: RankTotals, n_rejected: int, n_empty_lines: int) -> None:
        """Write nothing: there are rows only."""

    def sequence(self, ranking: Ranking, sums: RankTotals) -> None:
        """Write a row with its choices in order."""
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


# -- read back ----------------------------------------------------------------------------------


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
    check_types(RANK_KEYS, fields)
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
        log_prob_y=_alone_of(fields, "log_prob_y", "pmi" in orders),
        log_prob_alone=_alone_of(fields, "log_prob_alone", "mutual_information" in orders),
    )
    for name in figures.score_names:
        _check_score(figure(written, name), figures.score_by(name), name)
    response = fields.get("response")
    if not isinstance(response, str | None):
        raise RowError("wrong_type", f"field 'response' cannot be {response!r:.40}")
    row = _tokens_of(fields, figures, place)
    return RankedChoice(figures, number(fields, "probability"), response, flags, row)


def _alone_of(fields: Fields, key: str, known: bool) -> float | None:
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
    check_arrays(CHOICE_KEYS, fields, len(written))
    check_places(fields, "inf_losses", len(written))
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


# -- kept by --resume ---------------------------------------------------------------------------


def _expected_row(entry: Question | Rejected, row: Fields) -> Row:
    """Return what the row of a question holds, as far as it can be told without scores."""
    if isinstance(entry, Rejected):
        return expected_rejection(entry)
    sample = entry.sample
    found: Row = {"id": sample.id, "source": sample.source, "line": sample.line}
    if row.get("reason") in _FOUND_BY_SCORING:
        return {"type": "rejected", **found}
    refused = next((each for each in entry.entries if isinstance(each, Rejected)), None)
    if refused is not None:
        return {"type": "rejected", **found, "reason": refused.reason}
    choices = sample.choices
    assert choices is not None
    written = row.get("choices")
    own = [{"response": text, "n_bytes": len(text.encode())} for text in choices.responses]
    if isinstance(written, list) and len(written) == len(own):
        own = [
            each | mine if isinstance(each, dict) else mine
            for each, mine in zip(written, own, strict=True)
        ]
    return {
        "type": "sequence",
        **found,
        "prompt": choices.prompt,
        "separator": choices.separator or None,
        "meta": sample.meta,
        "answers": None if choices.answers is None else [*choices.answers],
        "choices": own,
    }


def _kept_totals(row: Fields, place: str, entry: Question | Rejected) -> RankTotals:
    """Return the counts of a row; how many tokens its choices have, the inputs tell again."""
    assert isinstance(entry, Question)
    return replace(read_ranking(row, place).counts, n_tokens=entry.n_tokens)
