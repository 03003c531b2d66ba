"""Rankings: the order of several responses by a model, and whether the best is a right one.

Each response y of a prompt x has a log-probability ln Pr(y | x), scores made from it, and under
each score a place. The first of equal scores goes before the others; lengths are those of the
response alone, without the separator. Units: nats.

`acc`, `acc_norm`, `acc_bytes` and `acc_mutual_info` are defined as in EleutherAI's
lm-evaluation-harness: whether the best choice by sum, per character, per byte, or by the difference
from its log-probability without the prompt is a right one.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import (
    Choices,
    Entry,
    Floats,
    Item,
    Outcome,
    Pair,
    Rejected,
    Sample,
    SequenceScore,
    TokenSequence,
    rejection,
)
from seqloss_cli.metrics.totals import score_flags
from seqloss_cli.tokenization.chats import pair_as_chat

MEANINGS = {
    "sum": "ln Pr(y|x), separator included",
    "token": "sum / tokens of y",
    "byte": "sum / bytes of y",
    "char": "sum / characters of y",
    "pmi": "sum - ln Pr(y), of the ids that y has after x",
    "mutual_information": "sum - ln Pr(y), separator and y tokenized alone",
}
"""Score to its definition, for the run's record."""
SCORES = tuple(MEANINGS)
NEED_PMI = ("pmi", "mutual_information")
"""Scores that need the responses without their prompt, too: those of --pmi."""
ACCURACIES = {
    "acc": "sum",
    "acc_norm": "char",
    "acc_bytes": "byte",
    "acc_tokens": "token",
    "acc_pmi": "pmi",
    "acc_mutual_info": "mutual_information",
}
"""Accuracy to the score whose best choice it compares with the answer."""
ScorePairs = Callable[[Iterable[Item]], Iterator[Outcome]]
"""Gives an outcome for each of the pairs that it is handed, in order."""


@dataclass(frozen=True, slots=True)
class ChoiceFigures:
    """Log-probabilities and lengths of a response. Infinite log-probabilities are -inf here."""

    log_prob: float
    """ln Pr(y | x), nats, separator included."""
    n_tokens: int
    """Tokens that cover some of the response, and EOS where it is scored."""
    n_bytes: int
    n_chars: int
    unspelled_bytes: int = 0
    """Bytes that no token stands for: with any of them no score is per byte or per character."""
    without_prompt: bool = False
    """The log-probabilities below were asked for."""
    log_prob_y: float | None = None
    """Without the prompt, nats: of the ids that the response has after it (rule 14)."""
    log_prob_alone: float | None = None
    """Without the prompt, nats: of separator and response tokenized by themselves."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """Scores that were asked for."""
        return tuple(n for n in SCORES if self.without_prompt or n not in NEED_PMI)

    def score_by(self, name: str) -> float | None:
        """Return the score of that name, nats or nats per unit; None where it is not known."""
        if name in NEED_PMI:
            other = self.log_prob_y if name == "pmi" else self.log_prob_alone
            # -inf - -inf is no number: of two impossible texts neither is the likelier.
            if other is None or (math.isinf(self.log_prob) and math.isinf(other)):
                return None
            return self.log_prob - other
        lengths = {"sum": 1, "token": self.n_tokens, "byte": self.n_bytes, "char": self.n_chars}
        if name in ("byte", "char") and self.unspelled_bytes:
            return None
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
    """Score to the places of the choices, best first, equals in the order of the row. Scores that
    are not known of every choice are left out."""
    tied: tuple[str, ...]
    """Scores under which another choice is as good as the best."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """Scores that were asked for."""
        return self.scored[0].score_names

    @property
    def probabilities(self) -> Floats | None:
        """Shape C: probability of each of the C choices; None where all are impossible."""
        return choice_probabilities(self.scored)

    @property
    def correct(self) -> dict[str, bool | None] | None:
        """Accuracy to whether the best choice is a right one, as `correctness` gives it."""
        return correctness(self.orders, self.score_names, self.choices.answers)

    @property
    def flags(self) -> dict[str, int | bool]:
        """Flag to the number of choices that have it."""
        return {**Counter(name for choice in self.scored for name in score_flags(choice.score))}


def rank(
    items: Iterable[Item], score: ScorePairs, without_prompt: bool = False
) -> Iterator[Ranking | Rejected]:
    """Yield a ranking or a rejection for each item, in order; see `RankingQueue`."""
    queue = RankingQueue(items, without_prompt)
    return queue.rankings(score(queue.pairs()))


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its choices, tokenized and not scored."""

    sample: Sample
    entries: tuple[Entry, ...]
    """Entries of its pairs, in the order of `RankingQueue.pairs`."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens of prompts and choices together, as in `RankTotals`."""
        assert self.sample.choices is not None
        responses = self.sample.choices.responses
        lengths = {
            text: 0 if isinstance(entry, Rejected) else entry.n_tokens
            for text, entry in zip(dict.fromkeys(responses), self.entries, strict=False)
        }
        return sum(lengths[text] for text in responses)


class RankingQueue:
    """Takes items apart into pairs that are scored, and puts rankings together of the scores.

    With `without_prompt` they are scored without their prompts, too. A rejected pair rejects its
    row: an order of the other choices would answer another question.

    The first `n_finished` items were ranked by an earlier run: `on_finished` is told of them, once
    `finish` was told of all their pairs.
    """

    def __init__(
        self,
        items: Iterable[Item],
        without_prompt: bool = False,
        n_finished: int = 0,
        on_finished: Callable[[Question | Rejected], None] = lambda question: None,
    ) -> None:
        self._items, self._without_prompt = items, without_prompt
        self._n_finished, self._on_finished = n_finished, on_finished
        # Scoring reads ahead, so items wait here until the outcomes of all their pairs are there.
        self._waiting: deque[tuple[Item, int]] = deque()
        self._entries: list[TokenSequence | Rejected] = []
        self.n_finished_pairs = 0
        """Pairs of finished items, as far as they were read."""

    def pairs(self) -> Iterator[Item]:
        """Yield the pairs of each item; a rejected one is its own."""
        for number, item in enumerate(self._items):
            parts: list[Item] = [item]
            if not isinstance(item, Rejected):
                parts = [*_as_pairs(item, self._without_prompt)]
            self._waiting.append((item, len(parts)))
            # Before the pairs are handed on: whoever scores them asks how many are finished.
            self.n_finished_pairs += len(parts) * (number < self._n_finished)
            yield from parts

    def finish(self, entry: TokenSequence | Rejected) -> None:
        """Take the next pair of a finished item."""
        self._entries.append(entry)
        item, n = self._waiting[0]
        if len(self._entries) == n:
            self._waiting.popleft()
            entries, self._entries = tuple(self._entries), []
            self._on_finished(item if isinstance(item, Rejected) else Question(item, entries))

    def rankings(self, outcomes: Iterator[Outcome]) -> Iterator[Ranking | Rejected]:
        """Yield a ranking or a rejection for each item that is not finished, in order."""
        for first in outcomes:
            item, n = self._waiting.popleft()
            parts = [first, *islice(outcomes, n - 1)]
            if isinstance(item, Rejected):
                yield item
            else:
                yield _ranking(item, parts, self._without_prompt)


def choice_probabilities(choices: Sequence[ChoiceFigures]) -> Floats | None:
    """Return probabilities, shape C: the softmax of C choices; None where all are impossible."""
    logs = np.array([choice.log_prob for choice in choices])
    if logs.max() == -np.inf:
        return None
    # The probability of a long text is 0 in a float64: only differences are exponentiated.
    weights = np.exp(logs - logs.max())
    shares: Floats = weights / weights.sum()
    return shares


def orders_by_score(
    scores: Mapping[str, Sequence[float | None]],
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Order choices by each score, given by name for all of them; see `Ranking.orders`, `tied`."""
    orders, tied = {}, []
    for name, found in scores.items():
        known = [score for score in found if score is not None]
        if len(known) < len(found):
            continue
        # The place breaks ties: the first of equals goes before the others.
        orders[name] = tuple(sorted(range(len(known)), key=lambda n: (-known[n], n)))
        if known.count(max(known)) > 1:
            tied.append(name)
    return orders, tuple(tied)


def correctness(
    orders: Mapping[str, Sequence[int]],
    score_names: Collection[str],
    answers: Collection[int] | None,
) -> dict[str, bool | None] | None:
    """Map accuracies, of the scores that were asked for, to whether the best choice is right.

    None in place of an order that is not known; None for all without answers.
    """
    if answers is None:
        return None
    return {
        name: orders[score][0] in answers if score in orders else None
        for name, score in ACCURACIES.items()
        if score in score_names
    }


def _as_pairs(sample: Sample, without_prompt: bool) -> Iterator[Sample]:
    """Yield a pair of each different response, then if asked for the same with an empty prompt."""
    choices = sample.choices
    assert choices is not None
    prompts = [choices.prompt, ""] if without_prompt and choices.prompt else [choices.prompt]
    for prompt in prompts:
        for response in dict.fromkeys(choices.responses):
            pair = Pair(prompt, response, choices.separator)
            # Without its prompt: after a turn of the user that is empty.
            messages = choices.messages if prompt else ()
            chat = pair_as_chat(pair, messages, **choices.template) if choices.as_chat else None
            # Of the pair, not of the row: the read-ahead is to be bounded by what is scored.
            n_bytes = len(pair.text.encode())
            yield replace(
                sample, choices=None, meta=None, pair=pair, chat=chat, n_bytes_read=n_bytes
            )


def _ranking(sample: Sample, outcomes: list[Outcome], without_prompt: bool) -> Ranking | Rejected:
    choices = sample.choices
    assert choices is not None
    places = {text: n for n, text in enumerate(dict.fromkeys(choices.responses))}
    # A choice that comes twice is scored once: outcomes are of the different texts, in order.
    found: list[SequenceScore] = []
    for text, outcome in zip([*places] * 2, outcomes, strict=False):
        try:
            # Without its prompt it may lack a loss: scores by that are not known then (rule 14).
            found.append(_require_score(outcome, may_lack=len(found) >= len(places)))
        except RowError as error:
            n = choices.responses.index(text)
            return rejection(sample, error.reason, f"choice {n}: {error.message}")
    bare = found[-len(places) :]  # where the prompt is empty, the very same scores
    scored = tuple(
        _scored(found[n], bare[n] if without_prompt else None, choices.separator)
        for n in (places[text] for text in choices.responses)
    )
    scores = {name: [choice.score_by(name) for choice in scored] for name in SCORES}
    return Ranking(sample, choices, scored, *orders_by_score(scores))


def _require_score(outcome: Outcome, may_lack: bool) -> SequenceScore:
    """Return the score; RowError without one, or for a choice that lacks a loss and must not."""
    if isinstance(outcome, Rejected):
        raise RowError(outcome.reason, outcome.message)
    if not may_lack and _lacks_a_token(outcome):
        why = (
            "the server gives none for a token right after BOS: a prompt before it mends it"
            if outcome.sequence.begins_with_bos
            else "neither a prompt nor a BOS stands before it: --bos-token names a token to take "
            "for BOS"
        )
        raise RowError("first_token_unscored", f"its first token has no loss, since {why}")
    return outcome


def _lacks_a_token(score: SequenceScore) -> bool:
    """Tell whether a token that is to count has no loss."""
    return bool((score.sequence.loss_mask & ~score.scored).any())


def _scored(score: SequenceScore, bare: SequenceScore | None, separator: str) -> ScoredChoice:
    pair, response_only = score.sequence.sample.pair, score.response_only
    assert pair is not None
    return ScoredChoice(
        score=score,
        log_prob=_log_prob(score),
        n_tokens=_count_tokens(score, len(pair.prompt.encode()), len(separator.encode())),
        n_bytes=len(pair.response.encode()),
        n_chars=len(pair.response),
        unspelled_bytes=_count_unspelled(score, len(pair.prompt.encode())),
        without_prompt=bare is not None,
        log_prob_y=None if response_only is None else _log_prob(response_only),
        log_prob_alone=None if bare is None or _lacks_a_token(bare) else _log_prob(bare),
    )


def _log_prob(score: SequenceScore) -> float:
    """Sum what counts, nats, exactly; -inf where a token is impossible."""
    return 0.0 - math.fsum(score.losses[score.counted].tolist())


def _count_unspelled(score: SequenceScore, n_prompt_bytes: int) -> int:
    """Count the bytes of separator and response that no token stands for; of a chat, those that the
    tokens that count cover."""
    places, token_bytes = score.sequence.unspelled, TokenBytes.of(score.sequence)
    if score.sequence.sample.chat is None or token_bytes is None:
        return int((places >= n_prompt_bytes).sum())
    return int(score.counted[np.searchsorted(token_bytes.ends, places, side="right")].sum())


def _count_tokens(score: SequenceScore, n_prompt_bytes: int, n_separator_bytes: int) -> int:
    """Count tokens of the response, without those that cover separator bytes and nothing else."""
    token_bytes = TokenBytes.of(score.sequence)
    if score.sequence.sample.chat is not None or token_bytes is None:
        return int(score.counted.sum())
    separates = token_bytes.within(n_prompt_bytes, n_prompt_bytes + n_separator_bytes)
    return int((score.counted & ~separates).sum())
