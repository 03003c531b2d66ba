"""Log-probabilities of a prompt x and a response y: conditional, marginal, joint; turns of chats.

Units: nats. The chain rule of probability is ln Pr(x, y) = ln Pr(x) + ln Pr(y | x), so the joint
is never above the marginal (docs/numbers.md, section 1). Figures that say otherwise are refused,
wherever they come from. Rules 8, 13 and 14 say which are None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import SequenceScore, Turn
from seqloss_cli.metrics.totals import Totals, exact_sum

_ROUNDING = 1e-9
"""Relative slack of a joint, which others may have summed in another order."""


@dataclass(frozen=True, slots=True)
class ChainRule:
    """Three log-probabilities, nats, any of which may be unknown.

    Raises RowError (`impossible`) for figures that no distribution has: one above 0, a joint above
    its marginal or its conditional, or a joint that is not their sum.
    """

    log_prob_x: float | None
    """Marginal ln Pr(x), nats; None where it is infinite or nothing is scored."""
    log_prob_y_given_x: float | None
    """Conditional ln Pr(y | x), nats; None where it is infinite or nothing is scored."""
    log_prob_xy: float | None
    """Joint ln Pr(x, y), nats; None where it is infinite or a part of it is unknown."""

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
        """Read the figures of a row that was written before; RowError if they are impossible."""
        values = {}
        for name in cls.__slots__:
            value = row.get(name)
            # A bool is an int to Python.
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise RowError("wrong_type", f"field {name!r} is not a number")
            values[name] = value
        return cls(**values)


def _slack(value: float) -> float:
    return _ROUNDING * max(1.0, abs(value))


@dataclass(frozen=True, slots=True)
class TurnScore:
    """The loss of one message of a chat."""

    turn: Turn
    n_scored: int
    loss: float | None
    """Sum over the turn's counted tokens, nats; None where there is none or one is infinite."""

    @property
    def mean_loss(self) -> float | None:
        """Mean over the turn's counted tokens, nats per token."""
        return None if self.loss is None else self.loss / self.n_scored


def chain_rule(score: SequenceScore, totals: Totals) -> ChainRule:
    """Return the log-probabilities of a scored pair or chat, nats, from its losses and totals.

    Marginal and joint are None when a prompt that is not empty has no scored token, or was cut.
    They also are when prompts are not scored, and when a chat has more than one scored stretch.
    """
    sequence, boundary = score.sequence, score.sequence.prompt_boundary
    assert boundary is not None
    conditional, marginal = totals.log_prob, None
    response = sequence.counted_span
    whole = boundary.n_spans == 1 and not boundary.n_dropped
    if response and whole and boundary.prompt_scored:
        prompt = score.scored & (np.arange(sequence.n_tokens) < response[0])
        # An empty prompt is certain; one without a scored token is unknown (rule 13).
        loss = 0.0 if boundary.empty_prompt else exact_sum(score.losses[prompt].tolist())
        marginal = None if loss is None else 0.0 - loss  # -loss would be -0.0 for 0
    # The sum of the two as they are written, not of all losses: a reader can check it to the bit.
    joint = None if marginal is None or conditional is None else marginal + conditional
    return ChainRule(marginal, conditional, joint)


def log_prob_y(totals: Totals) -> float | None:
    """Return ln Pr(y), nats, of exactly the responses' ids after BOS; None where one has no BOS."""
    response = totals.response_only
    # Of a set of pairs the sum would be of fewer pairs than ln Pr(y | x).
    if response is None or response.n_sequences < totals.n_pairs:
        return None
    return response.log_prob


def pointwise_mutual_information(totals: Totals) -> float | None:
    """Return ln Pr(y | x) - ln Pr(y), nats (Church & Hanks 1990)."""
    given, unconditional = totals.log_prob, log_prob_y(totals)
    return None if given is None or unconditional is None else given - unconditional


def instruction_following_difficulty(totals: Totals) -> float | None:
    """Return the responses' mean loss after their prompts over that without: ids of rule 14.

    Source: Li et al., From Quantity to Quality, 2024. None where the denominator is 0 or unknown.
    """
    given, alone = totals.mean_loss, totals.response_only
    if given is None or log_prob_y(totals) is None or alone is None or not alone.mean_loss:
        return None
    return given / alone.mean_loss


def boundary_difference(totals: Totals) -> float | None:
    """Return the responses' loss under separate minus that under joint tokenization, nats."""
    if totals.separate_tokenization is None:
        return None
    joint, separate = totals.total_loss, totals.separate_tokenization.total_loss
    return None if joint is None or separate is None else separate - joint


def turn_scores(score: SequenceScore) -> list[TurnScore]:
    """Return the loss of each message of a chat, in order; none for a sequence that is no chat."""
    boundary, counted, found = score.sequence.prompt_boundary, score.counted, []
    for turn in () if boundary is None else boundary.turns:
        tokens = slice(turn.start, turn.end)
        losses = score.losses[tokens][counted[tokens]].tolist()
        found.append(TurnScore(turn, len(losses), exact_sum(losses)))
    return found
