"""Measure how far a model's distributions are from a teacher's: cross-entropy, entropy, KL.

With the teacher's q and the model's p at a position, over the ids v (Cover & Thomas, Elements of
Information Theory, 2006, chapter 2): H(q, p) = -Σ q ln p, H(q) = -Σ q ln q, and KL(q ‖ p) =
H(q, p) - H(q) = Σ q (ln q - ln p). KL is computed as a sum of differences of logits, not as a
difference of entropies, and in float64: of a model and itself it is exactly 0, and what int8 costs
is not lost in rounding. Units: nats.

The other measures need both distributions normalised, and so every logit a second time, when the
last block has given the sums: the logits of both models at some rows are held meanwhile. These are
KL(p ‖ q); the Jensen-Shannon divergence ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2 (Lin 1991); the
total variation ½ Σ |p - q|; and 1 less that, Σ min(p, q), the probability that a token which the
model drafts is accepted (Leviathan, Kalman & Matias, Fast Inference from Transformers via
Speculative Decoding, 2023).

Shape letters: M positions, R of them at a time, B ids of a block, K ids that a file knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from seqloss_cli.backends.torch.head import LazyLogits, rows_at_once, to_host, vocab_blocks
from seqloss_cli.backends.torch.quantities import (
    Alternatives,
    KnownIds,
    Quantity,
    Top1,
    quantities_of,
)
from seqloss_cli.backends.torch.softmax import StreamingSoftmax
from seqloss_cli.core.backend import Requested, TokenScores
from seqloss_cli.core.records import SavedTeacherRows

BLOCK_ROWS, BLOCK_LOGITS, LEAST_WIDTH = 1024, 1 << 20, 512
"""Rows and logits of a block at most, as in `head`; ids at least, half of those in `head`, since
there are two models, in float64."""
BLOCK_SIZE_GUESS = "diverge.block_size"
"""The name of these sizes in the run record of a GPU, for which they were not chosen."""
_LN_2 = math.log(2)
_SMALL = 0.02
"""Below it ln p - ln q has a series: the closed form would lose the figure in rounding."""
Block = Callable[[slice], Tensor]
"""Computes the logits of some ids at the rows in hand."""


def diverge(
    student: LazyLogits,
    teacher: LazyLogits,
    targets_M: Tensor,
    vocab_size: int,
    top_k: int = 0,
    overlap_k: int = 1,
) -> TokenScores:
    """Score targets, ids of shape M, with the student; compare it with the teacher, in nats.

    Columns, shape M: `kls`, `teacher_losses`, `teacher_entropies`, `same_top1`, `reverse_kls`,
    `jensen_shannons`, `total_variations`, and `top_k_overlaps`, the share of the `overlap_k` most
    probable ids that both have. With `top_k` also
    the columns that a file keeps of the teacher, and the KL that would be known from them. Ids from
    `vocab_size` on are left out of both distributions, which are normalised without them.
    """
    return diverge_each([(student, vocab_size)], teacher, targets_M, top_k, overlap_k)[0]


def diverge_each(
    students: Sequence[tuple[LazyLogits, int]],
    teacher: LazyLogits,
    targets_M: Tensor,
    top_k: int = 0,
    overlap_k: int = 1,
) -> list[TokenScores]:
    """Compare students with a teacher at M targets, as `diverge` does one; nats, shape M each.

    With each student comes the number of its ids that count. The teacher's logits are computed
    once: those of some rows are held, beside one student's.
    """
    parts: list[list[dict[str, Tensor]]] = [[] for _ in students]
    for rows in _chunks(len(targets_M), *(each for each, _ in students), teacher):
        of_teacher = _block(teacher, rows)
        if len(students) > 1:
            of_teacher = _held(of_teacher)
        for own, (student, vocab_size) in zip(parts, students, strict=True):
            blocks = _block(student, rows), of_teacher
            found = _compared(blocks, targets_M[rows], vocab_size, top_k, overlap_k)
            if student.vocab_size != vocab_size or teacher.vocab_size != vocab_size:
                widths = {"student_cut": student.vocab_size, "teacher_cut": teacher.vocab_size}
                for (name, width), block in zip(widths.items(), blocks, strict=True):
                    found[name] = _cut_share(block, targets_M[rows], vocab_size, width)
            own.append(found)
    return [to_host(each) for each in parts]


def _held(block: Block) -> Block:
    """Return a block that computes the same ids once."""
    known: dict[tuple[int, int], Tensor] = {}

    def of(ids: slice) -> Tensor:
        key = ids.start, ids.stop
        if key not in known:
            known[key] = block(ids)
        return known[key]

    return of


def _compared(
    blocks: tuple[Block, Block], targets_R: Tensor, vocab_size: int, top_k: int, overlap_k: int
) -> dict[str, Tensor]:
    """Return the columns of `diverge` at R targets, of a student and its teacher."""
    both, (of_student, of_teacher) = _StudentAndTeacher(targets_R, top_k, overlap_k), blocks
    for ids in _id_blocks(len(targets_R), slice(0, vocab_size)):
        both.add(of_student(ids), of_teacher(ids), ids.start)
    found = both.result()
    if top_k:
        by_teacher = _probabilities_of(of_teacher, found["teacher_top_ids"], vocab_size)
        by_student = _probabilities_of(of_student, found["teacher_top_ids"], vocab_size)
        rest = ("rest_log_prob", "rest_p_log_p")
        found |= {f"teacher_{name}": by_teacher[name] for name in rest}
        found["kls_in_part"], _ = kl_bounds(by_teacher, by_student)
    return found


def diverge_from_saved(
    student: LazyLogits,
    targets_M: Tensor,
    saved: SavedTeacherRows,
    vocab_size: int,
    overlap_k: int = 1,
) -> TokenScores:
    """Score targets (shape M) with the student, and compare it with a file's knowledge of a teacher
    at each of them, in nats: `kls` is the least and `kls_at_most` the greatest possible KL, and so
    with other measures; a reverse KL has no greatest one, and infinity stands for it."""
    parts = []
    on_device = {
        name: torch.from_numpy(getattr(saved, name)).to(targets_M.device)
        for name in ("top_ids", "top_log_probs", "rest_log_prob", "rest_p_log_p")
    }
    for rows in _chunks(len(targets_M), student):
        block, of = _block(student, rows), {name: each[rows] for name, each in on_device.items()}
        ids_RK = of["top_ids"].long()
        top1, best = Top1(targets_M[rows]), _best_ids(targets_M[rows], overlap_k)
        softmax = _softmax(block, targets_M[rows], slice(0, vocab_size), top1, best)
        by_teacher = {**of, "log_probs": of["top_log_probs"]}
        by_student = _probabilities_of(block, ids_RK, vocab_size)
        at_least, at_most = kl_bounds(by_teacher, by_student)
        scored = softmax.result()
        found: dict[str, Tensor] = {
            "losses": scored["losses"],
            "kls": at_least,
            "kls_at_most": at_most,
            "same_top1": top1.ids_M1[:, 0] == ids_RK[:, 0],
            "top_k_overlaps": _overlap(scored["top_ids"], ids_RK[:, :overlap_k]),
            **measure_bounds(by_teacher, by_student),
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


def measure_bounds(teacher: dict[str, Tensor], student: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the least and the greatest of other measures, each of shape M: nats, or shares.

    Both sides are as in `kl_bounds`. Merging the other ids makes no measure greater, and gives the
    least (data processing: Cover & Thomas 2006, section 2.8). The greatest is that of models whose
    other ids are not the same, of which each adds its whole probability; of reverse KL there is
    none, since the teacher's may be as small as it likes.
    """
    q_M, p_M = (each["rest_log_prob"].exp() for each in (teacher, student))
    inside = _measures_of(teacher["log_probs"], student["log_probs"])
    others = _measures_of(*(each["rest_log_prob"][:, None] for each in (teacher, student)))
    at_least = {name: each + others[name] for name, each in inside.items()}
    beyond = {"total_variations": (q_M + p_M) / 2, "jensen_shannons": (q_M + p_M) / 2 * _LN_2}
    most = {"total_variations": 1.0, "jensen_shannons": _LN_2}
    at_most = {
        name: torch.maximum(at_least[name], (inside[name] + each).clamp(max=most[name]))
        for name, each in beyond.items()
    }
    none = torch.full_like(q_M, torch.inf)
    at_most["reverse_kls"] = torch.where((q_M == 0) & (p_M == 0), at_least["reverse_kls"], none)
    return at_least | {f"{name}_at_most": each for name, each in at_most.items()}


def _measures_of(teacher_RB: Tensor, student_RB: Tensor) -> dict[str, Tensor]:
    """Return the parts of measures over B ids, shape R each, of log-probabilities in nats.

    With d = ln p - ln q, tanh(d / 2) is (p - q) / (p + q), so that nothing cancels however near
    the two are: the Jensen-Shannon divergence is Σ m (d/2 tanh(d/2) - ln cosh(d/2)).
    """
    p_RB, q_RB = student_RB.exp(), teacher_RB.exp()
    # An id that is impossible to both adds nothing: -inf less -inf would be NaN.
    gaps_RB = (student_RB - teacher_RB).masked_fill_((p_RB == 0) & (q_RB == 0), 0.0)
    reverse_RB = torch.where(p_RB > 0, p_RB * gaps_RB, 0.0)
    halves_RB = (p_RB + q_RB) / 2
    # In place from here on: a block of float64 is 8 MB, and there would be ten of them.
    gaps_RB.abs_()
    variations_RB = halves_RB * torch.tanh(gaps_RB / 2)
    shannons_RB = halves_RB * _js_of(gaps_RB)
    sums = {
        "reverse_kls": reverse_RB,
        "jensen_shannons": shannons_RB,
        "total_variations": variations_RB,
    }
    return {name: each.sum(dim=1) for name, each in sums.items()}


def _js_of(gaps: Tensor) -> Tensor:
    """Return x tanh x - ln cosh x, x = d / 2, of d >= 0 in nats, in their shape: 0 to ln 2."""
    squares = (gaps.clamp(max=_SMALL) / 2).square()
    series = squares * (0.5 - squares * (0.25 - squares / 9))
    small = (-gaps).exp()
    # Of an infinite d the product would be NaN; e^-d is 0 long before.
    spread = gaps.clamp(max=1e3) * small / (1 + small)
    return torch.where(gaps < _SMALL, series, _LN_2 - spread - torch.log1p(small))


def _best_ids(targets_R: Tensor, k: int) -> Quantity:
    """Return what finds a model's k most probable ids."""
    return Alternatives(targets_R, Requested(top_k=k))


def _overlap(ids_RK: Tensor, others_RK: Tensor) -> Tensor:
    """Return the share of K ids that are among K others, shape R."""
    shared = (ids_RK[:, :, None] == others_RK[:, None, :]).any(dim=2)
    return shared.double().mean(dim=1)


def _chunks(n_rows: int, *models: LazyLogits) -> Iterator[slice]:
    """Yield the positions, as many at a time as have room for the logits of the largest model."""
    # Those of a student alone, which is compared with a file, are not held.
    held = [m for m in models if len(models) > 1 or not m.in_blocks]
    step = min([BLOCK_ROWS, *(rows_at_once(m.vocab_size) for m in held)])
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _id_blocks(n_rows: int, ids: slice) -> Iterator[slice]:
    """Yield the ids in blocks."""
    return vocab_blocks(ids, max(LEAST_WIDTH, BLOCK_LOGITS // n_rows))


def _block(logits: LazyLogits, rows: slice) -> Block:
    """Return the function that computes the logits of some ids at these rows."""
    if logits.in_blocks:
        return lambda ids: logits.compute(rows, ids)
    whole = logits.compute(rows, None)
    return lambda ids: whole[:, ids]


def _float64_copy(logits: Tensor) -> Tensor:
    """In float64, and free to be overwritten: `double` gives float64 logits back uncopied."""
    return logits.clone() if logits.dtype == torch.float64 else logits.double()


def _softmax(block: Block, targets_R: Tensor, ids: slice, *asked: Quantity) -> StreamingSoftmax:
    """Return a model's softmax over some ids, with quantities that are computed by the way."""
    softmax = StreamingSoftmax(targets_R, asked)
    for some in _id_blocks(len(targets_R), ids):
        softmax.add(_float64_copy(block(some)), some.start)
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

    def __init__(self, targets_R: Tensor, top_k: int, overlap_k: int) -> None:
        self._top1s = Top1(targets_R), Top1(targets_R)
        self._top_k, self._overlap_k, n_best = top_k, overlap_k, max(top_k, overlap_k)
        best = _best_ids(targets_R, overlap_k)
        self._student = StreamingSoftmax(targets_R, [self._top1s[0], best])
        asked = quantities_of(Requested(entropy=True, top_k=n_best), targets_R)
        self._teacher = StreamingSoftmax(targets_R, [self._top1s[1], *asked])
        self._gap_R1 = torch.zeros_like(targets_R[:, None], dtype=torch.float64)
        """Σ w (z_teacher - z_student), with the teacher's weights w = exp(z - max)."""
        self._held: list[tuple[Tensor, Tensor]] = []
        """The logits of both, R x B of each block."""

    def add(self, student_RB: Tensor, teacher_RB: Tensor, first: int) -> None:
        """Take in the logits of the ids from `first` on, and hold them."""
        # As they came: in float64 they would take twice the room, or four times.
        self._held.append((student_RB, teacher_RB))
        student_RB, teacher_RB = _float64_copy(student_RB), _float64_copy(teacher_RB)
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
        of_student, of_teacher = self._student.result(), self._teacher.result()
        top1s = self._top1s
        found = {
            "losses": of_student["losses"],
            "teacher_losses": of_teacher["losses"],
            "teacher_entropies": of_teacher["entropies"],
            "kls": kls_R1[:, 0],
            "same_top1": (top1s[0].ids_M1 == top1s[1].ids_M1)[:, 0],
            "top_k_overlaps": _overlap(
                of_student["top_ids"], of_teacher["top_ids"][:, : self._overlap_k]
            ),
            **self._measures(student.log_normaliser, teacher.log_normaliser),
        }
        if self._top_k:
            found["teacher_top_ids"] = of_teacher["top_ids"][:, : self._top_k].int()
            found["teacher_top_log_probs"] = of_teacher["top_log_probs"][:, : self._top_k]
        return found

    def _measures(self, student_R1: Tensor, teacher_R1: Tensor) -> dict[str, Tensor]:
        """Return the measures that need the normalisers ln Σ exp(z), R x 1 nats; shape R each."""
        sums: dict[str, Tensor] = {}
        while self._held:
            of_student, of_teacher = self._held.pop(0)
            log_probs = of_teacher.double() - teacher_R1, of_student.double() - student_R1
            parts = _measures_of(*log_probs)
            sums = {name: sums.get(name, 0.0) + each for name, each in parts.items()}
        # Of two models that share no id a sum may round to just above its bound.
        bounds = {"total_variations": 1.0, "jensen_shannons": _LN_2}
        return sums | {name: sums[name].clamp(max=most) for name, most in bounds.items()}
