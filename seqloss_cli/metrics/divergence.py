"""The divergences of a sequence's tokens from gold: of a teacher, or of smoothed one-hot gold.

Units: nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import DIVERGENCES, MEAN_LOG_PROB
from seqloss_cli.core.records import Bools, Floats, SequenceScore

SMOOTHING_REQUEST = Requested(top_k=1, internal=(MEAN_LOG_PROB,))
TEACHER_REQUEST = Requested(internal=(DIVERGENCES,))


@dataclass(frozen=True, slots=True)
class Divergences:
    """Of the N tokens of a sequence; nats. Where a token has no loss they mean nothing."""

    kls: Floats
    """KL(gold ‖ model)."""
    gold_entropies: Floats
    student_losses: Floats
    """The model's loss on the text's own token."""
    gold_losses: Floats
    """The gold distribution's."""
    same_top1: Bools
    """Both have the same favourite, of equals the one with the least id."""
    kls_at_most: Floats | None = None
    """Where gold is known in part: KL lies between `kls` and these."""
    student_cut: Floats | None = None
    """Where the heads are of different widths: how much probability the model gave to ids that are
    left out."""
    gold_cut: Floats | None = None

    @property
    def cross_entropies(self) -> Floats:
        """H(gold, model) = H(gold) + KL(gold ‖ model); where gold is known in part, at least."""
        return self.gold_entropies + self.kls

    @property
    def cross_entropies_at_most(self) -> Floats | None:
        return None if self.kls_at_most is None else self.gold_entropies + self.kls_at_most

    @property
    def delta_p(self) -> Floats:
        """How much more probable the text's own token is to the model than to gold."""
        return np.exp(-self.student_losses) - np.exp(-self.gold_losses)


def of_teacher(score: SequenceScore) -> Divergences:
    """Of a sequence that was scored by `diverge` or `diverge_from_saved`."""
    found, nothing = score.columns, np.zeros(len(score.losses))
    return Divergences(
        kls=found.get("kls", nothing),
        gold_entropies=found.get("teacher_entropies", nothing),
        student_losses=score.losses,
        gold_losses=found.get("teacher_losses", nothing),
        same_top1=found.get("same_top1", nothing > 0),
        kls_at_most=found.get("kls_at_most"),
        student_cut=found.get("student_cut"),
        gold_cut=found.get("teacher_cut"),
    )


def of_smoothing(score: SequenceScore, smoothing: float, n_words: int) -> Divergences:
    """Compute divergences from gold (1 - E) one-hot + E / V over the model's V ids.

    The sequence was scored with `SMOOTHING_REQUEST`. Source: Szegedy et al., Rethinking the
    Inception Architecture, 2016, section 7.

    With E = 0 the cross-entropy is the loss itself.
    """
    n, spread = len(score.losses), smoothing / n_words
    own = 1 - smoothing + spread
    entropy, cross = 0.0, score.losses
    if smoothing:
        entropy = -(own * math.log(own) + (n_words - 1) * spread * math.log(spread))
        mean = score.columns.get("mean_log_prob", np.zeros(n))
        cross = (1 - smoothing) * score.losses - smoothing * mean
    top_ids = score.top_ids
    favourites = np.full(n, -1) if top_ids is None else top_ids[:, 0]
    return Divergences(
        kls=cross - entropy,
        gold_entropies=np.full(n, entropy),
        student_losses=score.losses,
        gold_losses=np.full(n, 0.0 - math.log(own)),
        same_top1=favourites == score.sequence.token_ids,
    )
