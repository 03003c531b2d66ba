"""Measure how far a model's distributions are from a teacher's: cross-entropy, entropy, KL.

With the teacher's q and the model's p at a position, over the ids v (Cover & Thomas, Elements of
Information Theory, 2006, chapter 2): H(q, p) = -Σ q ln p, H(q) = -Σ q ln q, and KL(q ‖ p) =
H(q, p) - H(q) = Σ q (ln q - ln p). KL is computed as a sum of differences of logits, not as a
difference of entropies, and in float64: of a model and itself it is exactly 0, and what int8 costs
is not lost in rounding. Units: nats.

Shape letters: M positions, R of them at a time, B ids of a block, K ids that a file knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from seqloss_cli.backends.torch.head import LazyLogits, rows_at_once, to_host, vocab_blocks
from seqloss_cli.backends.torch.quantities import KnownIds, Quantity, Top1, quantities_of
from seqloss_cli.backends.torch.softmax import StreamingSoftmax
from seqloss_cli.core.backend import Requested, TokenScores
from seqloss_cli.core.records import SavedTeacherRows

BLOCK_ROWS, BLOCK_LOGITS, LEAST_WIDTH = 1024, 1 << 20, 512
"""Rows and logits of a block at most, as in `head`; ids at least, half of those in `head`, since
there are two models, in float64."""
BLOCK_SIZE_GUESS = "diverge.block_size"
"""The name of these sizes in the run record of a GPU, for which they were not chosen."""
Block = Callable[[slice], Tensor]
"""Computes the logits of some ids at the rows in hand, in float64."""


def diverge(
    student: LazyLogits, teacher: LazyLogits, targets_M: Tensor, vocab_size: int, top_k: int = 0
) -> TokenScores:
    """Score targets, ids of shape M, with the student; compare it with the teacher, in nats.

    Columns, shape M: `kls`, `teacher_losses`, `teacher_entropies`, `same_top1`. With `top_k` also
    the columns that a file keeps of the teacher, and the KL that would be known from them. Ids from
    `vocab_size` on are left out of both distributions, which are normalised without them.
    """
    parts = []
    for rows in _chunks(len(targets_M), student, teacher):
        both = _StudentAndTeacher(targets_M[rows], top_k)
        of_student, of_teacher = _block(student, rows), _block(teacher, rows)
        for ids in _id_blocks(len(targets_M[rows]), slice(0, vocab_size)):
            both.add(of_student(ids), of_teacher(ids), ids.start)
        found = both.result()
        cuts = (("student_cut", student, of_student), ("teacher_cut", teacher, of_teacher))
        if student.vocab_size != vocab_size or teacher.vocab_size != vocab_size:
            for name, logits, block in cuts:
                found[name] = _cut_share(block, targets_M[rows], vocab_size, logits.vocab_size)
        if top_k:
            by_teacher = _probabilities_of(of_teacher, found["teacher_top_ids"], vocab_size)
            by_student = _probabilities_of(of_student, found["teacher_top_ids"], vocab_size)
            rest = ("rest_log_prob", "rest_p_log_p")
            found |= {f"teacher_{name}": by_teacher[name] for name in rest}
            found["kls_in_part"], _ = kl_bounds(by_teacher, by_student)
        parts.append(found)
    return to_host(parts)


def diverge_from_saved(
    student: LazyLogits, targets_M: Tensor, saved: SavedTeacherRows, vocab_size: int
) -> TokenScores:
    """Score targets (shape M) with the student, and compare it with a file's knowledge of a teacher
    at each of them, in nats: `kls` is the least and `kls_at_most` the greatest possible KL."""
    parts = []
    on_device = {
        name: torch.from_numpy(getattr(saved, name)).to(targets_M.device)
        for name in ("top_ids", "top_log_probs", "rest_log_prob", "rest_p_log_p")
    }
    for rows in _chunks(len(targets_M), student):
        block, of = _block(student, rows), {name: each[rows] for name, each in on_device.items()}
        ids_RK = of["top_ids"].long()
        top1 = Top1(targets_M[rows])
        softmax = _softmax(block, targets_M[rows], slice(0, vocab_size), top1)
        by_teacher = {**of, "log_probs": of["top_log_probs"]}
        at_least, at_most = kl_bounds(by_teacher, _probabilities_of(block, ids_RK, vocab_size))
        found: dict[str, Tensor] = {
            "losses": softmax.result()["losses"],
            "kls": at_least,
            "kls_at_most": at_most,
            "same_top1": top1.ids_M1[:, 0] == ids_RK[:, 0],
        }
        if student.vocab_size != vocab_size:
            found["student_cut"] = _cut_share(
                block, targets_M[rows], vocab_size, student.vocab_size
            )
        parts.append(found)
    scores = to_host(parts)
    known = {"teacher_losses": saved.losses, "teacher_entropies": saved.entropies}
    return TokenScores(scores.losses, {**scores.columns, **known})


def kl_bounds(teacher: dict[str, Tensor], student: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest KL(teacher ‖ student), each of shape M, in nats.

    Both sides tell of the teacher's K best ids and of all others together, as `KnownIds` does. Of
    the others, P is the teacher's probability and Q the student's. The sum over the known ids plus
    P ln (P / Q) is the divergence of the two coarser distributions. It is never above that of the
    finer ones (Cover & Thomas 2006, section 2.7). The others' part is at most their Σ q ln q less P
    times the student's least log-probability. If all ids are known, both bounds are the divergence.
    """
    known = teacher["log_probs"].exp()
    gaps = torch.where(known > 0, teacher["log_probs"] - student["log_probs"], 0.0)
    inside = (known * gaps).sum(dim=1)
    others = teacher["rest_log_prob"].exp()
    apart = torch.where(others > 0, teacher["rest_log_prob"] - student["rest_log_prob"], 0.0)
    at_least = inside + others * apart
    least = torch.where(others > 0, student["least_log_prob"], 0.0)
    return at_least, torch.maximum(at_least, inside + teacher["rest_p_log_p"] - others * least)


def _chunks(n_rows: int, *models: LazyLogits) -> Iterator[slice]:
    """Yield the positions, as many at a time as all models can take."""
    step = min([BLOCK_ROWS, *(rows_at_once(m.vocab_size) for m in models if not m.in_blocks)])
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _id_blocks(n_rows: int, ids: slice) -> Iterator[slice]:
    """Yield the ids in blocks."""
    for block in vocab_blocks(ids.stop - ids.start, max(LEAST_WIDTH, BLOCK_LOGITS // n_rows)):
        yield slice(ids.start + block.start, ids.start + block.stop)


def _block(logits: LazyLogits, rows: slice) -> Block:
    """Return the function that computes the logits of some ids at these rows."""
    if logits.in_blocks:
        return lambda ids: _float64_copy(logits.compute(rows, ids))
    whole = logits.compute(rows, None)
    return lambda ids: _float64_copy(whole[:, ids])


def _float64_copy(logits: Tensor) -> Tensor:
    """In float64, and free to be overwritten: `double` gives float64 logits back uncopied."""
    return logits.clone() if logits.dtype == torch.float64 else logits.double()


def _softmax(block: Block, targets_R: Tensor, ids: slice, *asked: Quantity) -> StreamingSoftmax:
    """Return a model's softmax over some ids, with quantities that are computed by the way."""
    softmax = StreamingSoftmax(targets_R, asked)
    for some in _id_blocks(len(targets_R), ids):
        softmax.add(block(some), some.start)
    return softmax


def _probabilities_of(block: Block, ids_RK: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """Return a model's probabilities of some ids, and of all others together."""
    known = KnownIds(ids_RK.long())
    return known.result(_softmax(block, ids_RK[:, 0].long(), slice(0, vocab_size), known).sums)


def _cut_share(block: Block, targets_R: Tensor, vocab_size: int, n_logits: int) -> Tensor:
    """Return the probability of the ids from `vocab_size` on, shape R."""
    kept = _softmax(block, targets_R, slice(0, vocab_size)).sums.log_normaliser
    rest = _softmax(block, targets_R, slice(vocab_size, n_logits)).sums.log_normaliser
    # The sigmoid of a difference of logarithms: 1 - (share kept) would lose a small rest.
    return torch.sigmoid(rest - kept)[:, 0]


class _StudentAndTeacher:
    """Two models' softmax over the blocks so far, and the sum that is their divergence."""

    def __init__(self, targets_R: Tensor, top_k: int) -> None:
        self._top1s = Top1(targets_R), Top1(targets_R)
        self._student = StreamingSoftmax(targets_R, [self._top1s[0]])
        asked = quantities_of(Requested(entropy=True, top_k=top_k), targets_R)
        self._teacher = StreamingSoftmax(targets_R, [self._top1s[1], *asked])
        self._gap_R1 = torch.zeros_like(targets_R[:, None], dtype=torch.float64)
        """Σ w (z_teacher - z_student), with the teacher's weights w = exp(z - max)."""

    def add(self, student_RB: Tensor, teacher_RB: Tensor, first: int) -> None:
        """Take in the logits of the ids from `first` on; they are overwritten."""
        gaps_RB = teacher_RB - student_RB
        self._student.add(student_RB, first)
        weights_RB, scale_R1 = self._teacher.add(teacher_RB, first)
        # An id that is impossible to the teacher adds nothing, whatever the student's logit.
        products_RB = torch.where(weights_RB > 0, gaps_RB.mul_(weights_RB), 0.0)
        moved_R1 = torch.where(scale_R1 > 0, scale_R1 * self._gap_R1, 0.0)
        self._gap_R1 = moved_R1 + products_RB.sum(dim=1, keepdim=True)

    def result(self) -> dict[str, Tensor]:
        """Return arrays of shape R, or R x K of the teacher's best ids; nats."""
        student, teacher = self._student.sums, self._teacher.sums
        kls_R1 = student.log_sum - teacher.log_sum
        kls_R1 = kls_R1 + (student.greatest - teacher.greatest)
        kls_R1 = kls_R1 + self._gap_R1 / teacher.total
        of_teacher = self._teacher.result()
        top1s = self._top1s
        found = {
            "losses": self._student.result()["losses"],
            "teacher_losses": of_teacher["losses"],
            "teacher_entropies": of_teacher["entropies"],
            "kls": kls_R1[:, 0],
            "same_top1": (top1s[0].ids_M1 == top1s[1].ids_M1)[:, 0],
        }
        if "top_ids" in of_teacher:
            found["teacher_top_ids"] = of_teacher["top_ids"].int()
            found["teacher_top_log_probs"] = of_teacher["top_log_probs"]
        return found
