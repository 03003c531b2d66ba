"""Which of several responses a model prefers.

Each choice y of a prompt x has a log-probability ln Pr(y | x), scores made from it, and under each
score a place. The first of equal scores goes before the others; lengths are those of the choice
alone, without the separator. Units: nats.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.records import (
    Choices,
    Floats,
    Item,
    Outcome,
    Pair,
    Rejected,
    Sample,
    SequenceScore,
    rejection,
)
from seqloss_cli.metrics.totals import score_flags
from seqloss_cli.tokenization.chats import chat_of_pair

SCORES = ("sum", "token", "byte", "char", "pmi", "mutual_information")
"""ln Pr(y|x); the same per token, byte and character of y; ln Pr(y|x) - ln Pr(y), with the ids that
y has after x; and that with the ids that separator and y have alone."""
MEANINGS = {
    "sum": "ln Pr(y|x), separator included",
    "token": "sum / tokens of y",
    "byte": "sum / bytes of y",
    "char": "sum / characters of y",
    "pmi": "sum - ln Pr(y), of the ids that y has after x",
    "mutual_information": "sum - ln Pr(y), separator and y tokenized alone",
}
"""Score to its definition, for the run's record."""
Score = Callable[[Iterable[Item]], Iterator[Outcome]]


@dataclass(frozen=True, slots=True)
class ChoiceFigures:
    """What the scores of a response are made from. Infinite log-probabilities are -inf here."""

    log_prob: float
    n_tokens: int
    """Those that cover some of the response, and EOS where it is scored."""
    n_bytes: int
    n_chars: int
    with_alone: bool = False
    """Whether what follows was asked for."""
    log_prob_y: float | None = None
    """Without the prompt: the ids as they are after it."""
    log_prob_alone: float | None = None
    """Without the prompt: separator and response tokenized by themselves."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """Scores that were asked for."""
        return SCORES if self.with_alone else SCORES[:-2]

    def score_by(self, name: str) -> float | None:
        """None where it is not known."""
        if name == "pmi":
            return _difference(self.log_prob, self.log_prob_y)
        if name == "mutual_information":
            return _difference(self.log_prob, self.log_prob_alone)
        lengths = {"sum": 1, "token": self.n_tokens, "byte": self.n_bytes, "char": self.n_chars}
        return self.log_prob / lengths[name] if lengths[name] else None


@dataclass(frozen=True, slots=True)
class ScoredChoice(ChoiceFigures):
    """A response with its figures."""

    score: SequenceScore = field(kw_only=True)
    """Shared by choices that are the same text."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The choices of a row, in the order in which they came."""

    sample: Sample
    choices: Choices
    scored: tuple[ScoredChoice, ...]
    orders: Mapping[str, tuple[int, ...]]
    """Score to the places of the choices, best first, equals in the order of the row; scores that
    are not known of every choice are left out."""
    tied: tuple[str, ...]
    """Scores under which another choice is as good as the best."""

    @property
    def score_names(self) -> tuple[str, ...]:
        return self.scored[0].score_names

    @property
    def probabilities(self) -> Floats | None:
        return probabilities_of(self.scored)


def probabilities_of(choices: Sequence[ChoiceFigures]) -> Floats | None:
    """Softmax of their log-probabilities; None where all are impossible."""
    logs = np.array([choice.log_prob for choice in choices])
    if logs.max() == -np.inf:
        return None
    weights = np.exp(logs - logs.max())
    shares: Floats = weights / weights.sum()
    return shares


def rank(
    items: Iterable[Item], score: Score, with_alone: bool = False
) -> Iterator[Ranking | Rejected]:
    """A ranking or a rejection for each item, in order. `score` gives an outcome for each of the
    pairs that it is handed; `with_alone` hands it the responses without prompts, too.

    What rejects one choice rejects its row: an order of the others would be of another question.
    """
    waiting: deque[tuple[Item, int]] = deque()

    def pairs() -> Iterator[Item]:
        for item in items:
            parts = [item] if isinstance(item, Rejected) else as_pairs(item, with_alone)
            waiting.append((item, len(parts)))
            yield from parts

    outcomes = score(pairs())
    for first in outcomes:
        item, n = waiting.popleft()
        parts = [first, *islice(outcomes, n - 1)]
        yield item if isinstance(item, Rejected) else _ranked(item, parts, with_alone)


def as_pairs(sample: Sample, with_alone: bool = False) -> list[Item]:
    """A pair for each different response, then if asked for the same with an empty prompt (where
    that is not the prompt)."""
    assert sample.choices is not None
    choices = sample.choices
    prompts = [choices.prompt, ""] if with_alone and choices.prompt else [choices.prompt]
    return [
        _pair_sample(sample, Pair(prompt, response, choices.separator))
        for prompt in prompts
        for response in dict.fromkeys(choices.responses)
    ]


def _pair_sample(sample: Sample, pair: Pair) -> Sample:
    """`n_bytes_read` is the pair's, so that the read-ahead is bounded by what is scored."""
    assert sample.choices is not None
    n_bytes = len(pair.text.encode())
    chat = chat_of_pair(pair) if sample.choices.as_chat else None
    return replace(sample, choices=None, meta=None, pair=pair, chat=chat, n_bytes_read=n_bytes)


def _ranked(sample: Sample, outcomes: list[Outcome], with_alone: bool) -> Ranking | Rejected:
    choices = sample.choices
    assert choices is not None
    places = {text: n for n, text in enumerate(dict.fromkeys(choices.responses))}
    found: list[SequenceScore] = []
    for number, (outcome, text) in enumerate(zip(outcomes, [*places] * 2, strict=False)):
        wrong = _why_not(outcome, alone=number >= len(places))
        if wrong is not None:
            reason, message = wrong
            n = choices.responses.index(text)
            return rejection(sample, reason, f"choice {n}: {message}")
        assert isinstance(outcome, SequenceScore)
        found.append(outcome)
    alone = found[-len(places) :]
    scored = [
        _scored(found[n], alone[n] if with_alone else None, choices.separator)
        for n in (places[text] for text in choices.responses)
    ]
    return _ordered(sample, choices, tuple(scored))


def _why_not(outcome: Outcome, alone: bool) -> tuple[str, str] | None:
    """Reason and message of a choice that has no log-probability. Alone it may have none: then what
    is made of that is not known (rule 14)."""
    if isinstance(outcome, Rejected):
        return outcome.reason, outcome.message
    if not alone and _lacks_a_token(outcome):
        return "first_token_unscored", (
            "its first token has no loss, since neither a prompt nor a BOS stands before it: "
            "--bos-token names a token to take for BOS"
        )
    return None


def _lacks_a_token(score: SequenceScore) -> bool:
    """A token that is to count has no loss."""
    return bool((score.sequence.loss_mask & ~score.scored).any())


def _scored(score: SequenceScore, alone: SequenceScore | None, separator: str) -> ScoredChoice:
    pair = score.sequence.sample.pair
    assert pair is not None
    return ScoredChoice(
        score=score,
        log_prob=log_prob_of(score),
        n_tokens=_count_tokens(score, len(pair.prompt.encode()), len(separator.encode())),
        n_bytes=len(pair.response.encode()),
        n_chars=len(pair.response),
        with_alone=alone is not None,
        log_prob_y=None if score.response_only is None else log_prob_of(score.response_only),
        log_prob_alone=None if alone is None or _lacks_a_token(alone) else log_prob_of(alone),
    )


def log_prob_of(score: SequenceScore) -> float:
    """Of what counts, -inf where a token is impossible."""
    return 0.0 - math.fsum(score.losses[score.counted].tolist())


def _count_tokens(score: SequenceScore, n_prompt_bytes: int, n_separator_bytes: int) -> int:
    """Tokens that count, without those that cover some of the separator and nothing else."""
    covered = TokenBytes.of(score.sequence)
    if score.sequence.sample.chat is not None or covered is None:
        return int(score.counted.sum())
    separates = covered.within(n_prompt_bytes, n_prompt_bytes + n_separator_bytes)
    return int((score.counted & ~separates).sum())


def _ordered(sample: Sample, choices: Choices, scored: tuple[ScoredChoice, ...]) -> Ranking:
    scores = {name: [choice.score_by(name) for choice in scored] for name in SCORES}
    orders, tied = orders_of(scores)
    return Ranking(sample, choices, scored, orders, tied)


def orders_of(
    scores: Mapping[str, Sequence[float | None]],
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Of the choices' scores by name: the places, best first, equals in the order of the row, of
    scores that are known of every choice; and the names of those that have two best."""
    orders, tied = {}, []
    for name, found in scores.items():
        known = [score for score in found if score is not None]
        if len(known) < len(found):
            continue
        orders[name] = tuple(sorted(range(len(known)), key=lambda n: (-known[n], n)))
        if known.count(max(known)) > 1:
            tied.append(name)
    return orders, tuple(tied)


def flags_of(ranking: Ranking) -> dict[str, int | bool]:
    """Those of the choices together: how many of them have each."""
    flags: dict[str, int | bool] = {}
    for choice in ranking.scored:
        for name in score_flags(choice.score):
            flags[name] = flags.get(name, 0) + 1
    return flags


def _difference(a: float, b: float | None) -> float | None:
    """None where either is not known, or both are infinite."""
    if b is None or (math.isinf(a) and math.isinf(b)):
        return None
    return a - b
