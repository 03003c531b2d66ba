"""Rows of `seqloss diverge`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from seqloss_cli.metrics.divergence_totals import (
    SUMS,
    DivergenceScore,
    DivergenceTotals,
    Documents,
)
from seqloss_cli.results.writing.formats import RowMakers
from seqloss_cli.results.writing.rows import Row, RowOptions, identity_row, numbers_or_null

FURTHER = ("cross_entropy_at_most", "kl_at_most", "student_cut", "teacher_cut")
"""Sums that not every run has."""


def divergence_rows(
    options: RowOptions,
    documents: Documents,
    measured: Callable[[], Row | None],
    in_part: bool = False,
) -> RowMakers[DivergenceScore, DivergenceTotals]:
    """`documents` are those of the rows, for the totals' intervals; `measured` says at the end what
    the error of a file is that was saved by the way."""
    return RowMakers(
        lambda diverged, sums: divergence_row(diverged, sums, options),
        lambda sums, n_rejected, n_empty: divergence_totals_row(
            sums, documents, n_rejected, n_empty, measured(), in_part
        ),
        options.summary,
    )


def divergence_row(diverged: DivergenceScore, totals: DivergenceTotals, options: RowOptions) -> Row:
    """`totals` are those of this sequence."""
    sequence, sample = diverged.score.sequence, diverged.sample
    row = identity_row(sequence)
    if options.text:
        row["text"] = sequence.text
    if sample.meta is not None:
        row["meta"] = sample.meta
    row |= {"bos": sequence.bos, "eos": sequence.eos}
    row |= _sums(totals)
    row["flags"] = totals.flags
    row |= _infinite(diverged)
    if options.tokens:
        row |= _tokens(diverged, options)
    return row


def _sums(totals: DivergenceTotals) -> Row:
    row: Row = {"n_tokens": totals.n_tokens, "n_scored": totals.n_scored}
    names = (*SUMS, *(name for name in FURTHER if name in {*totals.units, *totals.n_infinite}))
    row |= {name: totals.total(name) for name in names if not name.endswith("_cut")}
    row |= {f"mean_{name}": totals.mean(name) for name in names}
    row["same_top1"] = totals.same_top1
    mean_square = totals.mean("squared_delta_p")
    row["delta_p"] = {
        "mean": totals.mean("delta_p"),
        "rms": None if mean_square is None else mean_square**0.5,
    }
    return row


def _infinite(diverged: DivergenceScore) -> Row:
    """Where losses and divergences are infinite, and so null."""
    found, scored = diverged.divergences, diverged.score.scored
    columns = {
        "inf_losses": found.student_losses,
        "inf_teacher_losses": found.gold_losses,
        "inf_kls": found.kls,
    }
    places = {name: np.flatnonzero(np.isinf(each) & scored) for name, each in columns.items()}
    return {name: each.tolist() for name, each in places.items() if len(each)}


def _tokens(diverged: DivergenceScore, options: RowOptions) -> Row:
    """Of every token, null where it has no loss."""
    score, found = diverged.score, diverged.divergences
    sequence, scored = score.sequence, score.scored
    columns = {
        "token_losses": found.cross_entropies,
        "teacher_entropies": found.gold_entropies,
        "kls": found.kls,
        "kls_at_most": found.kls_at_most,
        "student_losses": found.student_losses,
        "teacher_losses": found.gold_losses,
        "token_delta_p": found.delta_p,
    }
    row: Row = {"token_ids": sequence.token_ids.tolist(), "tokens": options.token_texts(sequence)}
    for name, values in columns.items():
        if values is not None:
            row[name] = numbers_or_null(values, scored)
    row["token_same_top1"] = [
        same if known else None
        for same, known in zip(found.same_top1.tolist(), scored.tolist(), strict=True)
    ]
    offsets = sequence.byte_offsets
    row["byte_offsets"] = None if offsets is None else offsets.tolist()
    if sequence.sample.labels is not None:
        row["loss_mask"] = sequence.loss_mask.astype(int).tolist()
    return row


def divergence_totals_row(
    totals: DivergenceTotals,
    documents: Documents,
    n_rejected: int,
    n_empty_lines: int,
    measured: Row | None,
    in_part: bool,
) -> Row:
    """`in_part`: gold is known in part, and divergences and cross-entropies are lower bounds."""
    means = documents.means()
    deltas, kls = documents.quantiles("delta_p"), documents.quantiles("kl")
    row: Row = {
        "n_sequences": totals.n_sequences,
        "n_sequences_scored": totals.n_sequences_scored,
        "n_rejected": n_rejected,
        "n_empty_lines": n_empty_lines,
        **_sums(totals),
    }
    row["kl_is"] = "at least" if in_part else "whole"
    row["delta_p"] |= {"quantiles": {str(q): each.value for q, each in deltas.items()}}
    row["kl_quantiles"] = {str(q): each.value for q, each in kls.items()}
    row["estimates"] = {_estimate_name(name): asdict(each) for name, each in means.items()} | {
        "delta_p_quantiles": {str(q): asdict(each) for q, each in deltas.items()},
        "kl_quantiles": {str(q): asdict(each) for q, each in kls.items()},
    }
    if measured is not None:
        row["saved"] = measured
    row["flags"] = totals.flags
    return row


def _estimate_name(name: str) -> str:
    return name if name in ("same_top1", "rms_delta_p") else f"mean_{name}"
