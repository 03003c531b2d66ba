"""The figures of a prompt x and a response y: conditional, marginal, joint, and turns of chats.

Units: nats. The chain rule is ln Pr(x, y) = ln Pr(x) + ln Pr(y | x), so the joint is never above
the marginal; figures that say otherwise are refused, wherever they come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Bools, SequenceScore, Turn
from seqloss_cli.metrics.totals import Totals

_ROUNDING = 1e-9  # relative: a joint may have been added up by others


@dataclass(frozen=True, slots=True)
class ChainRule:
    """Three log-probabilities, any of which may be unknown.

    Raises RowError (`impossible`) for what no distribution can have: one above 0, a joint above
    its marginal or its conditional, or a joint that is not their sum.
    """

    log_prob_x: float | None
    """Marginal ln Pr(x)."""
    log_prob_y_given_x: float | None
    """Conditional ln Pr(y | x)."""
    log_prob_xy: float | None
    """Joint ln Pr(x, y)."""

    def __post_init__(self) -> None:
        x, y, xy = self.log_prob_x, self.log_prob_y_given_x, self.log_prob_xy
        for name, value in (("log_prob_x", x), ("log_prob_y_given_x", y), ("log_prob_xy", xy)):
            if value is not None and not value <= 0:
                raise RowError("impossible", f"{name} is {value}: no probability is above 1")
        for name, part in (("log_prob_x", x), ("log_prob_y_given_x", y)):
            if part is not None and xy is not None and xy > part + _slack(xy):
                raise RowError("impossible", f"log_prob_xy {xy} is above {name} {part}")
        if x is not None and y is not None and xy is not None and abs(x + y - xy) > _slack(xy):
            raise RowError(
                "impossible", f"log_prob_xy {xy} is not log_prob_x {x} + log_prob_y_given_x {y}"
            )

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> ChainRule:
        """The figures of a row that was written before, refused if they cannot be."""
        values = {}
        for name in cls.__slots__:
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise RowError("wrong_type", f"field {name!r} is not a number")
            values[name] = value
        return cls(**values)


def _slack(value: float) -> float:
    return _ROUNDING * max(1.0, abs(value))


@dataclass(frozen=True, slots=True)
class TurnScore:
    turn: Turn
    n_scored: int
    loss: float | None
    """Sum over the turn's tokens that count; None where none does or one is infinite."""

    @property
    def mean_loss(self) -> float | None:
        return None if self.loss is None else self.loss / self.n_scored


def chain_rule(score: SequenceScore, totals: Totals) -> ChainRule:
    """Rules 1, 8 and 13, of a sequence and its totals: the marginal is null when a prompt that is
    not empty has no scored token or was cut, when prompts are not scored, and when more than one
    stretch of a chat is; the joint with it."""
    sequence, prompt_boundary = score.sequence, score.sequence.prompt_boundary
    assert prompt_boundary is not None
    conditional, marginal = totals.log_prob, None
    response = sequence.one_stretch
    if (
        response
        and prompt_boundary.n_spans == 1
        and prompt_boundary.prompt_scored
        and not prompt_boundary.n_dropped
    ):
        prompt = score.scored & (np.arange(sequence.n_tokens) < response[0])
        loss = 0.0 if prompt_boundary.empty_prompt else _sum(score, prompt)
        marginal = None if loss is None else 0.0 - loss
    joint = None if marginal is None or conditional is None else marginal + conditional
    return ChainRule(marginal, conditional, joint)


def log_prob_y(totals: Totals) -> float | None:
    """ln Pr(y) of exactly the responses' ids after BOS (rule 14); None where one has no BOS."""
    alone = totals.response_only
    return None if alone is None or alone.n_sequences < totals.n_pairs else alone.log_prob


def pointwise_mutual_information(totals: Totals) -> float | None:
    """ln Pr(y | x) - ln Pr(y), nats (rule 14)."""
    given, alone = totals.log_prob, log_prob_y(totals)
    return None if given is None or alone is None else given - alone


def boundary_difference(totals: Totals) -> float | None:
    """Loss of the responses with their parts tokenized apart, minus the joint tokenization's."""
    if totals.separate_tokenization is None:
        return None
    joint, separate = totals.total_loss, totals.separate_tokenization.total_loss
    return None if joint is None or separate is None else separate - joint


def turn_scores(score: SequenceScore) -> list[TurnScore]:
    """Of each message of a chat, in order."""
    prompt_boundary, found = score.sequence.prompt_boundary, []
    for turn in () if prompt_boundary is None else prompt_boundary.turns:
        inside = np.zeros(score.sequence.n_tokens, dtype=bool)
        inside[turn.start : turn.end] = True
        counted = inside & score.counted
        found.append(TurnScore(turn, int(counted.sum()), _sum(score, counted)))
    return found


def _sum(score: SequenceScore, places: Bools) -> float | None:
    """None where there is nothing to add, or an infinite loss is among it."""
    losses = score.losses[places]
    return math.fsum(losses.tolist()) if len(losses) and np.isfinite(losses).all() else None
