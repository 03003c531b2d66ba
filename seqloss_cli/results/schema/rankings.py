"""Rows of `seqloss rank`, written and read back: scores, orders and verdicts are checked.

`s` are the declarations of keys, `q` the keys that rows of several commands have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Bools, Boundary, Floats, Rejected, Rejections, SequenceScore
from seqloss_cli.metrics import ranking as r
from seqloss_cli.metrics.accuracy import RankTotals, accuracies, row_counts
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.totals import Totals, score_flags, to_units
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import sequences as q
from seqloss_cli.results.schema.scores import ResultRow, token_losses


@dataclass
class ChoiceView(q.SequenceView):
    """A choice with its probability among the others, and what its row makes of its score."""

    score: SequenceScore
    place: int = 0
    probability: float | None = None

    @cached_property
    def stretch(self) -> slice:
        """Return the tokens from the first that counts to the last, in whole characters."""
        counted = np.flatnonzero(self.score.counted)
        token_bytes = TokenBytes.of(self.sequence)
        first, last = (int(counted[0]), int(counted[-1]) + 1) if len(counted) else (0, 0)
        # A choice may begin inside a character whose bytes several tokens share.
        return slice(*(first, last) if token_bytes is None else token_bytes.snap(first, last))

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """Return the bytes of the stretch's tokens; None without a text."""
        token_bytes, some = TokenBytes.of(self.sequence), self.stretch
        return token_bytes and token_bytes.part(some.start, some.stop)

    @property
    def losses(self) -> tuple[Floats, Bools]:
        """Return the losses of the stretch's n tokens, nats, and which count: shape n each."""
        return self.score.losses[self.stretch], self.score.counted[self.stretch]


class RankingView:
    """A ranking with views of its choices, and their objects."""

    def __init__(self, ranking: r.Ranking, options: s.RowOptions, keys: Sequence[s.Key]) -> None:
        """`keys` are those that choices of the run can have."""
        self.ranking, self.sample, self._keys = ranking, ranking.sample, keys
        chances = _chances(ranking.scored)
        self.views = [
            ChoiceView(options, each.score.sequence, each.score, None, each, place, chances[place])
            for place, each in enumerate(ranking.scored)
        ]

    @cached_property
    def choices(self) -> list[s.Row]:
        """Return an object for each choice, in the order of the input."""
        return [s.row_of(self._keys, view) for view in self.views]


def _chances(choices: Sequence[r.ChoiceFigures]) -> list[float | None]:
    """Return the probability of each choice; None where all of them are impossible."""
    found = r.choice_probabilities(choices)
    return [None] * len(choices) if found is None else found.tolist()


def rank_totals_row(totals: RankTotals, rejected: Rejections, n_empty_lines: int) -> s.Row:
    """Return the totals of a run."""
    return s.row_of(RANK_TOTALS, s.TotalsView(totals, rejected, n_empty_lines))


def _n_tied(view: s.TotalsView) -> s.Row:
    totals: RankTotals = view.sums
    return {n: totals.n_tied.get(n, 0) for n in r.SCORES if n in totals.n_ordered}


def _of_totals(name: str, of: Any = int) -> s.Key:
    declare = s.whole if of is int else s.nested
    return declare(name, f"sums.{name}", of=of, about=(RankTotals, name))


RANK_TOTALS = (
    s.whole("n_sequences", "sums.n_rows", about="Rows that were ranked."),
    *s.UNSCORED,
    *map(_of_totals, ("n_choices", "n_tokens")),
    _of_totals("boundaries", dict[str, int]),
    _of_totals("n_with_answer"),
    s.nested(
        "accuracies",
        lambda v: {name: asdict(each) for name, each in accuracies(v.sums).items()},
        of=dict[str, Estimate],
        about="Share of rows whose best choice is among the answers, by accuracy.",
    ),
    s.real("chance", "sums.chance", about=(RankTotals, "chance")),
    s.nested("n_tied", _n_tied, of=dict[str, int], about=(RankTotals, "n_tied")),
    _of_totals("n_ordered", dict[str, int]),
    q.flags_key("sums.flags"),
)
"""Keys of the totals."""


def _finite(name: str, view: ChoiceView) -> float | None:
    return s.finite(getattr(view.result, name))


_OF_RESPONSE = {
    f"n_{unit}": f"{said} of the response, without the separator."
    for unit, said in (("tokens", "Tokens"), ("bytes", "Bytes"), ("chars", "Code points"))
}
_SOFTMAX = "Its probability among the choices; null where all of them are impossible."
_LENGTHS = ("n_tokens", "n_bytes", "n_chars")
_TOKEN_IDS = s.wholes(
    "token_ids",
    lambda v: s.ints(v.sequence.token_ids[v.stretch]),
    "tokens",
    length=0,
    about="Id of each token of the choice.",
)
_TOKENS = s.texts(
    "tokens",
    lambda v: v.options.token_texts(v.sequence)[v.stretch],
    "tokens",
    length=0,
    about="The text of each, for people.",
)
_TOKEN_LOSSES = s.reals(
    "token_losses",
    lambda v: s.numbers_or_null(*v.losses),
    "tokens",
    length=0,
    about="Loss of each token, nats; null where it does not count or is infinite.",
)
_FLAGS = q.flags_key(lambda v: score_flags(v.score))
_RESPONSE = s.text("response", "sample.pair.response", "text", about="The choice's text.")
_FIGURES = (
    s.real("log_prob", lambda v: s.finite(v.result.log_prob), about=(r.ChoiceFigures, "log_prob")),
    s.real("probability", "probability", about=_SOFTMAX),
    *(s.whole(name, f"result.{name}", about=_OF_RESPONSE[name]) for name in _LENGTHS),
    s.text(
        "boundary",
        "sequence.prompt_boundary.boundary",
        of=Boundary | None,
        about="How the tokens of prompt and choice meet (rule 9); null of chats.",
    ),
    *(
        s.real(name, partial(_finite, name), "pmi", about=(r.ChoiceFigures, name))
        for name in ("log_prob_y", "log_prob_alone")
    ),
)
CHOICE_KEYS = (
    _RESPONSE,
    *_FIGURES,
    s.nested(
        "scores",
        lambda v: {name: s.finite(v.result.score_by(name)) for name in v.result.score_names},
        of=dict[str, float | None],
        about="Name of each score to its value, nats or nats per unit.",
    ),
    s.whole(
        "unspelled_bytes",
        lambda v: v.result.unspelled_bytes or s.ABSENT,
        optional=True,
        about=(r.ChoiceFigures, "unspelled_bytes"),
    ),
    _FLAGS,
    _TOKEN_IDS,
    _TOKENS,
    _TOKEN_LOSSES,
    s.wholes(
        "inf_losses",
        lambda v: s.infinite_places(*v.losses),
        "tokens",
        optional=True,
        about="Tokens whose loss is infinite: null in its array.",
    ),
    s.wholes(
        "byte_offsets",
        lambda v: v.token_bytes and s.ints(v.token_bytes.offsets),
        "tokens",
        length=1,
        of=list[int] | None,
        about="Token t covers the bytes [t, t + 1) of this array in `text`; null of rows of ids.",
    ),
    s.text(
        "text",
        lambda v: v.token_bytes.text.decode() if v.token_bytes else s.ABSENT,
        "tokens text",
        optional=True,
        about="What these tokens cover.",
    ),
)
"""Keys of a choice, in the order of its object."""
_PROMPT = (
    s.text("prompt", "sample.choices.prompt", "text", about="The prompt of all choices."),
    s.text(
        "separator",
        lambda v: v.sample.choices.separator or s.ABSENT,
        "text",
        optional=True,
        about="Between prompt and choice.",
    ),
)
_ANSWERS = s.wholes(
    "answers",
    lambda v: v.sample.choices.answers and [*v.sample.choices.answers],
    of=list[int] | None,
    about="Numbers of the right choices, from 0; null where none is known.",
)
RANK_KEYS = (
    *q.SAMPLE,
    *_PROMPT,
    q.META,
    s.nested("choices", "choices", of=[CHOICE_KEYS], about="In the order of the input."),
    s.nested(
        "orders",
        lambda v: {name: [*each] for name, each in v.ranking.orders.items()},
        of=dict[str, list[int]],
        about="Score to the numbers of the choices, best first.",
    ),
    s.texts("tied", lambda v: [*v.ranking.tied], about="Scores whose best choice has an equal."),
    _ANSWERS,
    s.nested(
        "correct",
        "ranking.correct",
        of=dict[str, bool | None] | None,
        about="Accuracy to whether the best choice is among the answers; null where none is known.",
    ),
    q.flags_key("ranking.flags"),
)
"""Keys of a row, in the order of its JSON object."""


def _column(key: s.Key, values: Callable[[RankingView], Sequence[Any]]) -> s.Key:
    (cell,) = key.row_cells().values()
    unknown = (None, s.ABSENT)
    return replace(key, value=lambda v: [None if x in unknown else cell(x) for x in values(v)])


def _of_row(name: str) -> s.Key:
    """Return a column that is the same for all choices of a row."""
    key = next(key for key in RANK_KEYS if key.name == name)
    # A cell is made once for all choices: that of `meta` is JSON.
    one = _column(key, lambda v: [key.value(v)])
    return replace(one, value=lambda v: one.value(v) * len(v.views))


def _of_choices(key: s.Key) -> s.Key:
    return _column(key, lambda v: [each.get(key.name) for each in v.choices])


_ORDER = "Its place by that score, 1 the best; null where a choice has no such score."


def _score_columns(score: str) -> tuple[s.Key, s.Key]:
    """Return the columns of a score, and of the place that it gives a choice: 1 is the best."""

    def places(view: RankingView) -> list[int] | None:
        order = view.ranking.orders.get(score)
        return None if order is None else [1 + order.index(n) for n in range(len(order))]

    # The last two compare with the response scored without its prompt.
    when = "pmi" if score in r.NEED_PMI else ""
    return (
        s.reals(
            f"score.{score}",
            lambda v: [each["scores"][score] for each in v.choices],
            when,
            about=f"{r.MEANINGS[score]}, nats.",
        ),
        s.wholes(f"order.{score}", places, when, about=_ORDER),
    )


def _is_answer(view: RankingView) -> list[int] | None:
    answers = view.ranking.choices.answers
    return None if answers is None else [int(n in answers) for n in range(len(view.views))]


def _of_tokens(
    name: str,
    value: Callable[[Any], Sequence[Any] | None],
    declare: Callable[..., s.Key] = s.wholes,
    about: str = "",
) -> s.Key:
    """Return a column of the tokens of all choices, from the view of each; None is unknown."""

    def cells(view: RankingView) -> list[Any]:
        return [x for v in view.views for x in value(v) or [None] * len(v.losses[0])]

    return declare(name, cells, about=about)


_CHOICE = "Number of the choice in its row, from 0."
RANK_LEVELS: Mapping[str, tuple[s.Key, ...]] = {
    "choice": (
        s.wholes("choice", lambda v: range(len(v.choices)), about=_CHOICE),
        *map(_of_row, ("source", "prompt", "separator")),
        _of_choices(_RESPONSE),
        s.wholes(
            "answer", _is_answer, about="1 where it is right, else 0; null where none is known."
        ),
        *map(_of_choices, _FIGURES),
        *(key for score in r.SCORES for key in _score_columns(score)),
        _of_choices(_FLAGS),
        _of_row("meta"),
    ),
    "token": (
        _of_tokens("choice", lambda v: [v.place] * len(v.losses[0]), about=_CHOICE),
        _of_tokens("position", lambda v: range(len(v.losses[0])), about="Its place, from 0."),
        _of_tokens("token_id", _TOKEN_IDS.value, about="Its id."),
        _of_tokens("token", _TOKENS.value, s.texts, "Its text, for people."),
        _of_tokens("loss", _TOKEN_LOSSES.value, s.reals, str(_TOKEN_LOSSES.about)),
        _of_tokens(
            "start",
            lambda v: v.token_bytes and v.token_bytes.starts.tolist(),
            about="First byte in the text of the choice's tokens; null of rows of ids.",
        ),
        _of_tokens(
            "end",
            lambda v: v.token_bytes and v.token_bytes.ends.tolist(),
            about="The byte after its last; null of rows of ids.",
        ),
    ),
}
"""Parts of a row that a line can be of, to their columns."""


def ranking_rows(options: s.RowOptions) -> s.Rows[r.Ranking, RankTotals, r.Question | Rejected]:
    """Return the rows of a run of `rank`."""
    choice_keys = s.possible(options, CHOICE_KEYS)
    return s.Rows(
        options,
        RANK_KEYS,
        RANK_LEVELS,
        lambda ranking, sums: RankingView(ranking, options, choice_keys),
        rank_totals_row,
        _of_input,
        _kept_totals,
        ("nan_loss", "first_token_unscored"),
    )


@dataclass(frozen=True, slots=True)
class RankedChoice:
    """A choice as a results file of `rank` tells of it."""

    figures: r.ChoiceFigures
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

    fields: s.Fields
    """The row as it was written, but for the choices."""
    choices: tuple[RankedChoice, ...]
    orders: Mapping[str, tuple[int, ...]]
    answers: tuple[int, ...] | None
    right: Mapping[str, bool | None] | None
    """Accuracy to whether the best choice is a right one."""
    counts: RankTotals

    def scores(self, name: str) -> list[float] | None:
        """Return the score of each choice; None where it is not known of all."""
        if name not in self.orders:
            return None
        found = [choice.figures.score_by(name) for choice in self.choices]
        return [score for score in found if score is not None]


def read_ranking(fields: s.Fields, place: str) -> RankedRow:
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
    orders, tied = r.orders_by_score(
        {name: [f.score_by(name) for f in figures] for name in r.SCORES}
    )
    _check(fields, "orders", {name: [*order] for name, order in orders.items()})
    _check(fields, "tied", [*tied])
    answers = _answers(fields, len(choices))
    right = r.correctness(orders, figures[0].score_names, answers)
    _check(fields, "correct", right)
    for choice, chance in zip(choices, _chances(figures), strict=True):
        _check_figure("probability", choice.probability, chance)
    kinds = [s.typed(each, "boundary", str | None) for each in written]
    counts = row_counts(right, answers, orders, tied, kinds, s.flags_of(fields))
    kept = {name: value for name, value in fields.items() if name != "choices"}
    return RankedRow(kept, choices, orders, answers, right, counts)


def _choice(fields: s.Fields, orders: Mapping[str, Any], place: str) -> RankedChoice:
    flags, written = s.flags_of(fields), s.typed(fields, "scores", Mapping, " of a choice")
    log_prob = s.figure(fields, "log_prob")
    if log_prob is None and "inf_loss" not in flags:
        raise RowError("impossible", "a choice has no log_prob, and no flag inf_loss that says why")
    if log_prob is not None and log_prob > s.ROUNDING:
        raise RowError("impossible", f"a choice's log_prob is {log_prob}: above that of certainty")
    figures = r.ChoiceFigures(
        log_prob=-math.inf if log_prob is None else log_prob,
        **{name: s.count(fields, name) for name in _LENGTHS},
        unspelled_bytes=s.count({"unspelled_bytes": 0, **fields}, "unspelled_bytes"),
        without_prompt="pmi" in written,
        log_prob_y=_alone_of(fields, "log_prob_y", "pmi" in orders),
        log_prob_alone=_alone_of(fields, "log_prob_alone", "mutual_information" in orders),
    )
    for name in figures.score_names:
        _check_figure(f"score by {name}", s.figure(written, name), figures.score_by(name))
    response, row = s.typed(fields, "response", str | None), _tokens_of(fields, figures, place)
    return RankedChoice(figures, s.number(fields, "probability"), response, flags, row)


def _alone_of(fields: s.Fields, key: str, known: bool) -> float | None:
    """Return a log-probability, nats; null is infinite where the row has an order by it."""
    value = s.number(fields, key)
    return -math.inf if value is None and known else value


def _check_figure(name: str, written: float | None, found: float | None) -> None:
    # Written as null, as is a score that is not known: which of them it is, the flags say.
    found = s.finite(found)
    if (written is None) != (found is None) or not s.is_near(written or 0.0, found or 0.0):
        raise RowError("impossible", f"a choice's {name} is {written}, not {found}")


def _tokens_of(fields: s.Fields, figures: r.ChoiceFigures, place: str) -> ResultRow:
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


def _answers(fields: s.Fields, n_choices: int) -> tuple[int, ...] | None:
    if fields.get("answers") is None:
        return None
    written = _filled(fields, "answers")
    for n in written:
        if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < n_choices:
            raise RowError("impossible", f"there is no choice {n!r:.40} to be right")
    return tuple(written)


def _check(fields: s.Fields, name: str, found: Any) -> None:
    if fields.get(name) != found:
        raise RowError("impossible", f"field {name!r} is not what its scores and answers make it")


def _filled(fields: s.Fields, name: str) -> list[Any]:
    """Return a field that is a list with something in it."""
    written: list[Any] = s.typed(fields, name, list)
    if not written:
        raise RowError("wrong_type", f"field {name!r} cannot be []")
    return written


RANKING_KINDS = {
    "rank": s.RowKind(read_ranking, "n_choices", lambda row: to_units(float(len(row.choices))))
}


def _of_input(entry: r.Question, row: s.Fields) -> s.Row:
    """Return what the row of a question holds, as far as it can be told without scores."""
    assert entry.sample.choices is not None
    refused = next((each for each in entry.entries if isinstance(each, Rejected)), None)
    if refused is not None:
        return {"type": "rejected", **s.row_of(q.SAMPLE, entry), "reason": refused.reason}
    responses = entry.sample.choices.responses
    own: list[s.Row] = [{"response": y, "n_bytes": len(y.encode())} for y in responses]
    written = row.get("choices") or ()
    # With the figures that are there, which `sums_of` checks as any that are read back.
    if len(written) == len(own):
        own = [each | mine for each, mine in zip(written, own, strict=True)]
    found = s.row_with_nulls((*q.SAMPLE, *_PROMPT, q.META, _ANSWERS), entry)
    return {**found, "choices": own}


def _kept_totals(row: s.Fields, place: str, entry: r.Question | Rejected) -> RankTotals:
    """Return the counts of a row; how many tokens its choices have, the inputs tell again."""
    assert isinstance(entry, r.Question)
    return replace(read_ranking(row, place).counts, n_tokens=entry.n_tokens)
