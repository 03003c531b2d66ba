"""How far a model's distributions are from gold ones: cross-entropy, entropy, KL divergence.

With gold q and model p at a position, over the words v (Cover & Thomas, Elements of Information
Theory, 2006, chapter 2): H(q, p) = -Σ q ln p, H(q) = -Σ q ln q, and KL(q ‖ p) = H(q, p) - H(q) =
Σ q (ln q - ln p). KL is computed as a sum of differences of logits, not as a difference of
entropies, and in float64: of a model and itself it is exactly 0, and what int8 costs is not lost in
rounding. Units: nats.

Shape letters: M positions, R of them at a time, B words of a block, K ids that a file knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from seqloss_cli.backends.torch.forward import Logits
from seqloss_cli.backends.torch.head import on_host, rows_at_once, vocab_blocks
from seqloss_cli.backends.torch.softmax import StreamingSoftmax
from seqloss_cli.core.backend import Requested, TokenScores
from seqloss_cli.core.records import SavedTeacherRows

BLOCK_ROWS, BLOCK_LOGITS, LEAST_WIDTH = 1024, 1 << 20, 512
"""As the head's, of fewer words at least: there are two models, and everything is in float64."""
Block = Callable[[slice], Tensor]
"""The logits of some words at the rows in hand, in float64."""


def diverge(
    student: Logits, teacher: Logits, targets_M: Tensor, n_words: int, top_k: int = 0
) -> TokenScores:
    """The student's losses at M positions, and by name what `teacher_divergences` reads; with
    `top_k` also what a file keeps of the teacher, and the KL that would be known from it.

    Words from `n_words` on are left out of both distributions, which are normalised without them.
    """
    parts = []
    for rows in _chunks(len(targets_M), student, teacher):
        running = _Both(targets_M[rows], top_k)
        of_student, of_teacher = _block(student, rows), _block(teacher, rows)
        for words in _words(rows, n_words):
            running.add(of_student(words), of_teacher(words), words.start)
        found = running.result()
        cuts = (("student_cut", student, of_student), ("teacher_cut", teacher, of_teacher))
        if student.vocabulary != n_words or teacher.vocabulary != n_words:
            for name, logits, block in cuts:
                found[name] = _cut_share(block, rows, n_words, logits.vocabulary, targets_M.device)
        if top_k:
            theirs = _asked(of_teacher, rows, n_words, found["top_ids"])
            ours = _asked(of_student, rows, n_words, found["top_ids"])
            found |= {name: theirs[name] for name in ("rest_log_prob", "rest_own")}
            found["kls_in_part"], _ = kl_bounds(theirs, ours)
        parts.append(found)
    return _joined(parts)


def diverge_from_saved(
    student: Logits, targets_M: Tensor, saved: SavedTeacherRows, n_words: int
) -> TokenScores:
    """The same with a teacher of which a file knows something at each of the M positions."""
    device, parts = targets_M.device, []
    on_device = {
        name: torch.from_numpy(getattr(saved, name)).to(device)
        for name in ("top_ids", "top_log_probs", "rest_log_prob", "rest_own")
    }
    for rows in _chunks(len(targets_M), student):
        block, of = _block(student, rows), {name: each[rows] for name, each in on_device.items()}
        ids_RK = of["top_ids"].long()
        running, favourite = StreamingSoftmax(targets_M[rows], Requested()), _Favourite(ids_RK)
        for words in _words(rows, n_words):
            logits_RB = block(words)
            favourite.see(logits_RB, words.start)
            running.add(logits_RB, words.start)
        theirs = {**of, "log_probs": of["top_log_probs"]}
        at_least, at_most = kl_bounds(theirs, _asked(block, rows, n_words, ids_RK))
        found: dict[str, Tensor] = {
            "student_losses": running.result().losses,
            "kls": at_least,
            "kls_at_most": at_most,
            "same_top1": favourite.ids[:, 0] == ids_RK[:, 0],
        }
        if student.vocabulary != n_words:
            cut = _cut_share(block, rows, n_words, student.vocabulary, device)
            found["student_cut"] = cut
        parts.append(found)
    scores = _joined(parts)
    known = {"teacher_losses": saved.losses, "teacher_entropies": saved.entropies}
    return TokenScores(scores.losses, {**scores.columns, **known})


def kl_bounds(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Between what KL(teacher ‖ student) lies, of the teacher's best ids and what both say of all
    others (`StreamingSoftmax.asked`).

    With P and Q the teacher's and the student's probability of the others: the sum over the known
    ids plus P ln (P / Q) is the divergence of the two coarser distributions, which is never above
    that of the finer ones (Cover & Thomas 2006, section 2.7); and the others' part is at most their
    Σ q ln q less P times the student's least log-probability. Where the known ids are all there
    are, both are the divergence itself.
    """
    known = theirs["log_probs"].exp()
    gaps = torch.where(known > 0, theirs["log_probs"] - ours["log_probs"], 0.0)
    inside = (known * gaps).sum(dim=1)
    others = theirs["rest_log_prob"].exp()
    apart = torch.where(others > 0, theirs["rest_log_prob"] - ours["rest_log_prob"], 0.0)
    at_least = inside + others * apart
    least = torch.where(others > 0, ours["least_log_prob"], 0.0)
    return at_least, torch.maximum(at_least, inside + theirs["rest_own"] - others * least)


def _joined(parts: list[dict[str, Tensor]]) -> TokenScores:
    joined = on_host({name: [part[name] for part in parts] for name in parts[0]})
    return TokenScores(joined.pop("student_losses"), joined)


def _chunks(n_rows: int, *models: Logits) -> Iterator[slice]:
    """The positions, as many at a time as all models can take."""
    step = min([BLOCK_ROWS, *(rows_at_once(m.vocabulary) for m in models if not m.in_blocks)])
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _words(rows: slice, n_words: int) -> Iterator[slice]:
    """The vocabulary in blocks."""
    width = max(LEAST_WIDTH, BLOCK_LOGITS // (rows.stop - rows.start))
    return vocab_blocks(n_words, width)


def _block(logits: Logits, rows: slice) -> Block:
    """What computes the logits of some words at these rows."""
    if logits.in_blocks:
        return lambda words: _own(logits.of(rows, words))
    whole = logits.of(rows, None)
    return lambda words: _own(whole[:, words])


def _own(logits: Tensor) -> Tensor:
    """In float64, and free to be overwritten."""
    return logits.clone() if logits.dtype == torch.float64 else logits.double()


def _asked(block: Block, rows: slice, n_words: int, ids_RK: Tensor) -> dict[str, Tensor]:
    """What a model says of some ids, and of all others together."""
    running = StreamingSoftmax(ids_RK[:, 0], Requested(), ids_RK.long())
    for words in _words(rows, n_words):
        running.add(block(words), words.start)
    return running.asked()


def _cut_share(
    block: Block, rows: slice, n_words: int, vocabulary: int, device: torch.device
) -> Tensor:
    """The probability of the words that are left out."""
    nowhere_R = torch.zeros(rows.stop - rows.start, dtype=torch.long, device=device)
    kept, rest = StreamingSoftmax(nowhere_R, Requested()), StreamingSoftmax(nowhere_R, Requested())
    for words in _words(rows, n_words):
        kept.add(block(words), words.start)
    for words in _words(rows, vocabulary - n_words):
        place = slice(n_words + words.start, n_words + words.stop)
        rest.add(block(place), place.start)
    return torch.sigmoid(_log_sum(rest) - _log_sum(kept))[:, 0]


def _log_sum(running: StreamingSoftmax) -> Tensor:
    return running.weight_sum.log() + running.greatest


class _Both:
    """Two models' running sums over the blocks that were seen."""

    def __init__(self, targets_R: Tensor, top_k: int) -> None:
        self._student = StreamingSoftmax(targets_R, Requested())
        self._teacher = StreamingSoftmax(targets_R, Requested(entropy=True, top_k=top_k))
        self._gap_R1 = torch.zeros_like(targets_R[:, None], dtype=torch.float64)
        """Σ w (z_teacher - z_student), with the teacher's weights w = exp(z - max)."""
        self._favourites = _Favourite(targets_R[:, None]), _Favourite(targets_R[:, None])
        self._top_k = top_k

    def add(self, student_RB: Tensor, teacher_RB: Tensor, first: int) -> None:
        """Logits of the words from `first` on; they are overwritten."""
        gaps_RB = teacher_RB - student_RB
        self._favourites[0].see(student_RB, first)
        self._favourites[1].see(teacher_RB, first)
        self._student.add(student_RB, first)
        weights_RB, scale_R1 = self._teacher.add(teacher_RB, first)
        # a word that is impossible to the teacher adds nothing, whatever the student's logit
        products_RB = torch.where(weights_RB > 0, gaps_RB.mul_(weights_RB), 0.0)
        moved_R1 = torch.where(scale_R1 > 0, scale_R1 * self._gap_R1, 0.0)
        self._gap_R1 = moved_R1 + products_RB.sum(dim=1, keepdim=True)

    def result(self) -> dict[str, Tensor]:
        student, teacher = self._student, self._teacher
        logs_R1 = student.weight_sum.log() - teacher.weight_sum.log()
        kls_R1 = logs_R1 + (student.greatest - teacher.greatest)
        kls_R1 = kls_R1 + self._gap_R1 / teacher.weight_sum
        of_teacher = teacher.result()
        ours, theirs = self._favourites
        found = {
            "student_losses": student.result().losses,
            "teacher_losses": of_teacher.losses,
            "teacher_entropies": of_teacher.columns["entropies"],
            "kls": kls_R1[:, 0],
            "same_top1": (ours.ids == theirs.ids)[:, 0],
        }
        if self._top_k:
            found["top_ids"] = of_teacher.columns["top_ids"].int()
            found["top_log_probs"] = of_teacher.columns["top_log_probs"]
        return found


class _Favourite:
    """The word with the greatest logit so far, of equals the first."""

    def __init__(self, like_RK: Tensor) -> None:
        self.ids = torch.zeros_like(like_RK[:, :1], dtype=torch.long)
        self._best_R1 = torch.full_like(self.ids, -torch.inf, dtype=torch.float64)

    def see(self, logits_RB: Tensor, first: int) -> None:
        values_R1, places_R1 = logits_RB.max(dim=1, keepdim=True)
        better_R1 = values_R1 > self._best_R1
        self.ids = torch.where(better_R1, places_R1 + first, self.ids)
        self._best_R1 = torch.where(better_R1, values_R1, self._best_R1)
