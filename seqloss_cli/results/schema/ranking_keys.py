"""Keys of rows of `seqloss rank` and of their choices, and the columns of lines made of these.

`s` are the declarations of keys, `q` the keys that rows of several commands have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.records import Rejected, TokenSequence
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.accuracy import RankTotals, accuracies
from seqloss_cli.metrics.ranking import SCORES, Ranking, ScoredChoice
from seqloss_cli.metrics.totals import score_flags
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import ABSENT, Key, Row, RowOptions
from seqloss_cli.results.schema import sequences as q


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
        counted = np.flatnonzero(self.choice.score.counted)
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
    def token_losses(self) -> list[float | None]:
        """Return the losses of the stretch in nats, null where they do not count."""
        score, some = self.choice.score, self.stretch
        return s.numbers_or_null(score.losses[some], score.counted[some])

    @property
    def inf_losses(self) -> list[int]:
        """Return the places of infinite losses in the stretch; ABSENT without any."""
        score, some = self.choice.score, self.stretch
        places = np.flatnonzero(np.isinf(score.losses[some]) & score.counted[some])
        return places.tolist() or ABSENT


@dataclass
class RankingView:
    """A ranking with the objects of its choices."""

    ranking: Ranking
    options: RowOptions

    @property
    def answers(self) -> tuple[int, ...] | None:
        """Return the right choices, where they are known."""
        return self.ranking.choices.answers

    @cached_property
    def choices(self) -> list[Row]:
        """Return an object for each choice, in the order of the input."""
        # Lines are made of the same objects, so that both say the same.
        options, keys = self.options, s.possible(self.options, CHOICE_KEYS)
        found = self.ranking.probabilities
        chances = [None] * len(self.ranking.scored) if found is None else found.tolist()
        pairs = zip(self.ranking.scored, chances, strict=True)
        return [s.row_of(keys, ChoiceView(each, chance, options)) for each, chance in pairs]


def rank_totals_row(totals: RankTotals, n_rejected: int, n_empty_lines: int) -> Row:
    """Return the totals of a run."""
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


CHOICE_KEYS = (
    s.text("response", "sequence.sample.pair.response", "text"),
    s.real("log_prob", lambda v: s.finite(v.choice.log_prob)),
    s.real("probability", "probability"),
    s.whole("n_tokens", "choice.n_tokens"),
    s.whole("n_bytes", "choice.n_bytes"),
    s.whole("n_chars", "choice.n_chars"),
    s.text("boundary", "sequence.prompt_boundary.boundary"),
    s.real("log_prob_y", lambda v: s.finite(v.choice.log_prob_y), "pmi"),
    s.real("log_prob_alone", lambda v: s.finite(v.choice.log_prob_alone), "pmi"),
    s.nested(
        "scores",
        lambda v: {name: s.finite(v.choice.score_by(name)) for name in v.choice.score_names},
    ),
    q.flags_key(lambda v: score_flags(v.choice.score)),
    s.wholes("token_ids", lambda v: s.ints(v.sequence.token_ids[v.stretch]), "tokens", length=0),
    s.texts("tokens", lambda v: v.options.token_texts(v.sequence)[v.stretch], "tokens", length=0),
    s.reals("token_losses", "token_losses", "tokens", length=0),
    s.wholes("inf_losses", "inf_losses", "tokens"),
    s.wholes(
        "byte_offsets",
        lambda v: v.token_bytes and s.ints(v.token_bytes.offsets),
        "tokens",
        length=1,
    ),
    s.text(
        "text",
        lambda v: v.token_bytes.text.decode() if v.token_bytes else ABSENT,
        lambda options: options.tokens and options.text,
    ),
)
"""Of a choice, in the order of its object."""
RANK_KEYS = (
    *q.sample_keys("ranking.sample"),
    s.text("prompt", "ranking.choices.prompt", "text"),
    s.text("separator", lambda v: v.ranking.choices.separator or ABSENT, "text"),
    q.meta_key("ranking.sample.meta"),
    s.nested("choices", "choices"),
    s.nested("orders", lambda v: {name: [*each] for name, each in v.ranking.orders.items()}),
    s.texts("tied", lambda v: [*v.ranking.tied]),
    s.wholes("answers", lambda v: v.answers and [*v.answers]),
    s.nested("correct", "ranking.correct"),
    q.flags_key("ranking.flags"),
)
"""Of a row, in the order of its JSON object."""


def _of_row(name: str, value: Callable[[Ranking], Any], when: str | None = None) -> Key:
    """Return a column that is the same for all choices of a row."""
    return s.texts(name, lambda v: [value(v.ranking)] * len(v.choices), when)


def _of_choices(name: str, when: str | None = None) -> Key:
    return s.reals(name, lambda v: [each.get(name) for each in v.choices], when)


def _score_columns(score: str) -> tuple[Key, Key]:
    """Return the columns of a score, and of the place that it gives a choice: 1 is the best."""

    def places(view: RankingView) -> list[int] | None:
        order = view.ranking.orders.get(score)
        return None if order is None else [1 + order.index(n) for n in range(len(order))]

    # The last two compare with the response scored without its prompt.
    when = "pmi" if score in SCORES[-2:] else None
    return (
        s.reals(f"score.{score}", lambda v: [each["scores"][score] for each in v.choices], when),
        s.wholes(f"order.{score}", places, when),
    )


def _of_tokens(name: str, value: Callable[[int, Row], Sequence[Any]]) -> Key:
    """Return a column of the tokens of all choices, from the number and the object of each."""
    return s.reals(
        name, lambda v: [cell for n, choice in enumerate(v.choices) for cell in value(n, choice)]
    )


def _edges(choice: Row, some: slice) -> Sequence[int | None]:
    offsets: list[int] | None = choice["byte_offsets"]
    return [None] * len(choice["tokens"]) if offsets is None else offsets[some]


RANK_LEVELS: Mapping[str, tuple[Key, ...]] = {
    "choice": (
        s.wholes("choice", lambda v: range(len(v.choices))),
        _of_row("source", lambda ranking: ranking.sample.source),
        _of_row("prompt", lambda ranking: ranking.choices.prompt, "text"),
        _of_row("separator", lambda ranking: ranking.choices.separator, "text"),
        _of_choices("response", "text"),
        s.wholes(
            "answer", lambda v: v.answers and [int(n in v.answers) for n in range(len(v.choices))]
        ),
        # From log_prob to boundary.
        *(_of_choices(key.name) for key in CHOICE_KEYS[1:7]),
        _of_choices("log_prob_y", "pmi"),
        _of_choices("log_prob_alone", "pmi"),
        *(key for score in SCORES for key in _score_columns(score)),
        s.texts("flags", lambda v: [s.flags_cell(each["flags"]) for each in v.choices]),
        _of_row("meta", lambda r: None if r.sample.meta is None else s.json_cell(r.sample.meta)),
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
"""Parts of a row that a line can be of, to their columns."""


class RankedRows:
    """Writes JSONL of the rows as they came, their choices best first: n-best lists re-ordered."""

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
        # Own keys last: other fields of the list are kept, its choices and answers are replaced.
        row: Row = {**(ranking.sample.meta or {}), "id": ranking.sample.id}
        row |= {
            "prompt": choices.prompt,
            "separator": choices.separator,
            "choices": [choices.responses[n] for n in order],
            "by": self.by,
            "scores": [s.finite(score) for score in scores],
            "places": [*order],
        }
        if choices.answers is not None:
            places = [order.index(n) for n in choices.answers]
            # A single one is a number, as in lists that have one: it may be ranked again.
            row["answer"] = places[0] if len(places) == 1 else places
        self._sink.write(s.json_bytes(row) + b"\n")
