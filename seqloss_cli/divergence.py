"""How far a model's distributions are from gold ones: cross-entropy, entropy, KL divergence.

With gold q and model p at a position, over the words v (Cover & Thomas, Elements of Information
Theory, 2006, chapter 2): H(q, p) = -Σ q ln p, H(q) = -Σ q ln q, and KL(q ‖ p) = H(q, p) - H(q) =
Σ q (ln q - ln p). KL is computed as a sum of differences of logits, not as a difference of
entropies: of a model and itself it is exactly 0. Units: nats.

Shape letters: M positions, R of them at a time, B words of a block, K ids that a file knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqloss_cli.backend import TokenScores, Wants
from seqloss_cli.head import BLOCK_ROWS, joined_on_host, rows_at_once, word_blocks
from seqloss_cli.records import Bools, Floats, SavedGold, SequenceScore
from seqloss_cli.running import Logits
from seqloss_cli.softmax import Running

Figures = dict[str, NDArray[Any]]


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
        """H(gold, model) = H(gold) + KL(gold ‖ model)."""
        return self.gold_entropies + self.kls

    @property
    def delta_p(self) -> Floats:
        """How much more probable the text's own token is to the model than to gold."""
        return np.exp(-self.student_losses) - np.exp(-self.gold_losses)


# -- two models at once -------------------------------------------------------------------------


def diverge(
    student: Logits, teacher: Logits, targets_M: Tensor, n_words: int, top_k: int = 0
) -> TokenScores:
    """The student's losses at M positions, and by name in `further` what `of_teacher` reads; with
    `top_k` the teacher's best ids and their log-probabilities, too.

    Words from `n_words` on are left out of both distributions, which are normalised without them.
    No more logits exist at a time than the heads of both models compute for a loss.
    """
    n_rows = BLOCK_ROWS
    for logits in (student, teacher):
        if not logits.in_blocks:
            n_rows = min(n_rows, rows_at_once(logits.vocabulary))
    parts = []
    for start in range(0, len(targets_M), n_rows):
        rows = slice(start, min(start + n_rows, len(targets_M)))
        running = _Both(targets_M[rows], top_k)
        blocks = (_blocks(logits, rows) for logits in (student, teacher))
        of_student, of_teacher = blocks
        for words in word_blocks(rows, n_words):
            running.add(of_student(words), of_teacher(words), words.start)
        running.cut(student, of_student, teacher, of_teacher, rows, n_words)
        parts.append(running.result())
    joined = {name: joined_on_host([part[name] for part in parts]) for name in parts[0]}
    return TokenScores(joined.pop("student_losses"), further=joined)


def _blocks(logits: Logits, rows: slice) -> Callable[[slice], Tensor]:
    """What computes the logits of some words at these rows, in float32 or better."""
    if logits.in_blocks:
        return lambda words: _wide(logits.of(rows, words))
    whole = logits.of(rows, None)
    return lambda words: _wide(whole[:, words]).clone()


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _Both:
    """Two models' running sums over the blocks that were seen."""

    def __init__(self, targets_R: Tensor, top_k: int) -> None:
        self._student = Running(targets_R, Wants())
        self._teacher = Running(targets_R, Wants(entropy=True, top_k=top_k))
        shape, device = (len(targets_R), 1), targets_R.device
        self._gap_R1 = torch.zeros(shape, dtype=torch.float64, device=device)
        """Σ w (z_teacher - z_student), with the teacher's weights w = exp(z - max)."""
        self._favourites = [_Favourite(shape, device), _Favourite(shape, device)]
        self._targets_R, self._top_k = targets_R, top_k
        self._cuts: dict[str, Tensor] = {}

    def add(self, student_RB: Tensor, teacher_RB: Tensor, first: int) -> None:
        """Logits of the words from `first` on; they are overwritten."""
        gaps_RB = teacher_RB - student_RB
        self._favourites[0].see(student_RB, first)
        self._favourites[1].see(teacher_RB, first)
        self._student.add(student_RB, first)
        weights_RB, scale_R1 = self._teacher.add(teacher_RB, first)
        # a word that is impossible to the teacher adds nothing, whatever the student's logit
        products_RB = torch.where(weights_RB > 0, gaps_RB.mul_(weights_RB), 0.0)
        here_R1 = products_RB.sum(dim=1, keepdim=True, dtype=torch.float64)
        self._gap_R1 = scale_R1 * self._gap_R1 + here_R1

    def cut(
        self,
        student: Logits,
        of_student: Callable[[slice], Tensor],
        teacher: Logits,
        of_teacher: Callable[[slice], Tensor],
        rows: slice,
        n_words: int,
    ) -> None:
        """The shares of the words that are left out, where there are any."""
        if student.vocabulary == teacher.vocabulary == n_words:
            return
        of = (self._student, student, of_student), (self._teacher, teacher, of_teacher)
        for name, (kept, logits, block) in zip(("student_cut", "teacher_cut"), of, strict=True):
            rest = Running(self._targets_R, Wants())
            for words in word_blocks(rows, logits.vocabulary - n_words):
                place = slice(n_words + words.start, n_words + words.stop)
                rest.add(block(place), place.start)
            apart = _log_sum(kept) - _log_sum(rest)
            self._cuts[name] = torch.sigmoid(-apart)[:, 0]

    def result(self) -> dict[str, Tensor | None]:
        student, teacher = self._student, self._teacher
        logs_R1 = student.weight_sum.log() - teacher.weight_sum.log()
        kls_R1 = logs_R1 + (student.greatest - teacher.greatest)
        kls_R1 = kls_R1 + self._gap_R1 / teacher.weight_sum
        of_student, of_teacher = student.result(), teacher.result()
        ours, theirs = self._favourites
        found: dict[str, Tensor | None] = {
            "student_losses": of_student.losses,
            "teacher_losses": of_teacher.losses,
            "teacher_entropies": of_teacher.entropies,
            "kls": kls_R1[:, 0],
            "same_top1": (ours.ids == theirs.ids)[:, 0],
            **self._cuts,
        }
        if self._top_k:
            found |= {"top_ids": of_teacher.top_ids, "top_log_probs": of_teacher.top_log_probs}
        return found


def _log_sum(running: Running) -> Tensor:
    return running.weight_sum.log() + running.greatest


class _Favourite:
    """The word with the greatest logit so far, of equals the first."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self._best_R1 = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.ids = torch.zeros(shape, dtype=torch.long, device=device)

    def see(self, logits_RB: Tensor, first: int) -> None:
        values_R1, places_R1 = logits_RB.max(dim=1, keepdim=True)
        better_R1 = values_R1 > self._best_R1
        self.ids = torch.where(better_R1, places_R1 + first, self.ids)
        self._best_R1 = torch.where(better_R1, values_R1.double(), self._best_R1)


def of_teacher(score: SequenceScore) -> Divergences:
    """Of a sequence that `diverge` scored."""
    found = score.further
    return Divergences(
        kls=found["kls"],
        gold_entropies=found["teacher_entropies"],
        student_losses=score.losses,
        gold_losses=found["teacher_losses"],
        same_top1=found["same_top1"],
        student_cut=found.get("student_cut"),
        gold_cut=found.get("teacher_cut"),
    )


# -- a smoothed one-hot gold --------------------------------------------------------------------


def of_smoothing(score: SequenceScore, smoothing: float, n_words: int) -> Divergences:
    """Gold (1 - E) one-hot + E / V over the model's V words (Szegedy et al., Rethinking the
    Inception Architecture, 2016, section 7), of a sequence that was scored with `SMOOTHING_WANTS`.

    With E = 0 the cross-entropy is the loss itself.
    """
    assert score.top_ids is not None
    n, spread = len(score.losses), smoothing / n_words
    own = 1 - smoothing + spread
    entropy = 0.0
    if smoothing:
        entropy = -(own * math.log(own) + (n_words - 1) * spread * math.log(spread))
    cross = score.losses
    if smoothing:
        cross = (1 - smoothing) * score.losses - smoothing * score.further["mean_log_prob"]
    return Divergences(
        kls=cross - entropy,
        gold_entropies=np.full(n, entropy),
        student_losses=score.losses,
        gold_losses=np.full(n, -math.log(own)),
        same_top1=score.top_ids[:, 0] == score.sequence.token_ids,
    )


SMOOTHING_WANTS = Wants(top_k=1, mean_log_prob=True)


# -- a teacher that is known in part ------------------------------------------------------------


def of_saved(score: SequenceScore, n_words: int) -> Divergences:
    """Of a sequence that carries what a file knows of its teacher."""
    saved, found = score.sequence.saved, score.further
    assert saved is not None
    at_least, at_most = kl_bounds(
        saved,
        found["asked_log_probs"],
        found["rest_log_prob"],
        found["least_log_prob"],
        saved.top_ids.shape[1] >= n_words,
    )
    assert score.top_ids is not None
    return Divergences(
        kls=at_least,
        gold_entropies=saved.entropies,
        student_losses=score.losses,
        gold_losses=saved.losses,
        same_top1=saved.top_ids[:, 0] == score.top_ids[:, 0],
        kls_at_most=at_most,
    )


SAVED_WANTS = Wants(top_k=1)


def kl_bounds(
    saved: SavedGold, log_probs: Floats, rest: Floats, least: Floats, whole: bool
) -> tuple[Floats, Floats]:
    """Between what KL(teacher ‖ student) lies at each token, by the student's log-probabilities of
    the ids that are known (N x K), of all others together, and of the least probable of all.

    With P and Q the teacher's and the student's probability of the others: the sum over the known
    ids plus P ln (P / Q) is the divergence of the two coarser distributions, which is never above
    that of the finer ones (Cover & Thomas 2006, section 2.7); and the others' part is at most their
    Σ q ln q, which the teacher's entropy leaves over, less P times the least log-probability.
    `whole`: the known ids are all there are, and both are the divergence itself.
    """
    known = np.exp(saved.top_log_probs)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = np.where(known > 0, known * (saved.top_log_probs - log_probs), 0.0)
        inside = terms.sum(axis=1)
        if whole:
            return inside, inside
        own = np.where(known > 0, known * saved.top_log_probs, 0.0).sum(axis=1)
        others = np.maximum(1 - known.sum(axis=1), 0.0)  # a rounded sum may be above 1
        tail = np.where(others > 0, others * (np.log(others) - rest), 0.0)
        worst = np.where(others > 0, -saved.entropies - own - others * least, 0.0)
    at_least = inside + tail
    return at_least, np.maximum(at_least, inside + worst)
