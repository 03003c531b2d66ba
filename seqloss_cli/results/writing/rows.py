"""Records as JSON objects. Losses are written as the float64 that was summed; what is unscored or
infinite is null (rule 3 of the numbers contract)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.backend import WordBoundaryIds
from seqloss_cli.core.columns import COLUMNS, TokenColumn
from seqloss_cli.core.records import IGNORED, Bools, Rejected, SequenceScore, TokenSequence
from seqloss_cli.metrics.totals import (
    RATES,
    TEXT_COUNTS,
    Totals,
    corpus_flags,
    overflow_flags,
    score_flags,
)
from seqloss_cli.metrics.words import RegionLosses, region_losses, word_losses
from seqloss_cli.results.writing.pairs import pair_row, pair_totals_row, sha256, texts_row

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What a sequence's row holds beside its sums."""

    token_texts: Callable[[TokenSequence], list[str]]
    name_token: Callable[[int], str]
    text: bool = True
    tokens: bool = True
    """The per-token arrays."""
    summary: bool = False
    """No sequences at all: totals and rejected rows only."""
    words: bool = False
    marks: WordBoundaryIds | None = None
    """With `words`: corrected losses, too."""
    regions: bool = False
    context_lengths: bool = False
    pmi: bool = False
    columns: tuple[TokenColumn, ...] = ()
    """The quantities of each token that were asked for. Rows hold those that a score has; formats
    with a fixed header must know before the first row."""


def sequence_row(score: SequenceScore, totals: Totals, options: RowOptions) -> Row:
    """`totals` are those of this sequence."""
    sequence, sample = score.sequence, score.sequence.sample
    flags = score_flags(score) | overflow_flags(totals)
    words = word_losses(score, options.marks) if options.words else None
    if words is not None:
        flags |= words.flags
    regions = region_losses(score, options.marks) if options.regions else None
    if regions is not None:
        flags |= regions.flags
    row = identity_row(sequence)
    if options.text:
        row |= texts_row(sequence)
    if sample.meta is not None:
        row["meta"] = sample.meta
    row |= {"bos": sequence.bos, "eos": sequence.eos}
    if sequence.prompt_boundary is not None:
        row |= pair_row(score, totals, options.pmi)
    row |= _sums(totals, one_sequence=True)
    row["flags"] = flags
    infinite = np.flatnonzero(np.isinf(score.losses) & score.scored)
    if len(infinite):
        row["inf_losses"] = infinite.tolist()
    if options.tokens:
        row |= _token_arrays(score, options)
    if options.words:
        row["words"] = None if words is None else words.words
        row["word_losses"] = None if words is None else words.losses
        if options.marks is not None:
            row["corrected_word_losses"] = None if words is None else words.corrected
        row["word_byte_offsets"] = None if words is None else words.byte_offsets.tolist()
    if options.regions:
        row["regions"] = None if regions is None else region_rows(regions, options.text)
    return row


def region_rows(found: RegionLosses, with_text: bool) -> list[Row]:
    """An object for each region; `start` and `end` in characters."""
    rows: list[Row] = []
    for n, region in enumerate(found.regions):
        row: Row = {"name": region.name, "start": region.start, "end": region.end}
        if with_text:
            row["text"] = found.texts[n]
        row |= {"n_tokens": found.n_tokens[n], "loss": found.losses[n], "mean_loss": found.means[n]}
        if found.corrected is not None:
            row["corrected_loss"] = found.corrected[n]
        rows.append(row)
    return rows


def identity_row(sequence: TokenSequence) -> Row:
    """Which input it is."""
    sample, text = sequence.sample, sequence.text
    row: Row = {"id": sample.id, "source": sample.source, "line": sample.line}
    row["text_sha256"] = None if text is None else sha256(text)
    if text is None:
        row["ids_sha256"] = _ids_sha256(sequence)
    return row


def _ids_sha256(sequence: TokenSequence) -> str:
    """What stands in for a text: the ids, and which of them count."""
    parts = (sequence.token_ids.astype("<i8"), sequence.loss_mask.astype("u1"))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def totals_row(totals: Totals, n_rejected: int, n_empty_lines: int) -> Row:
    return {
        "n_sequences": totals.n_sequences,
        "n_sequences_scored": totals.n_sequences_scored,
        "n_rejected": n_rejected,
        "n_empty_lines": n_empty_lines,
        "n_without_text": totals.n_without_text,
        **pair_totals_row(totals),
        **_sums(totals, one_sequence=False),
        "mean_sequence_loss": totals.mean_sequence_loss,
        "mean_of_mean_losses": totals.mean_of_mean_losses,
        "flags": corpus_flags(totals),
    }


def rejected_row(rejected: Rejected) -> Row:
    return {
        "id": rejected.id,
        "source": rejected.source,
        "line": rejected.line,
        "reason": rejected.reason,
        "message": rejected.message,
    }


def numbers_or_null(values: NDArray[Any], known: Bools) -> list[Any]:
    """Numbers of shape N where known and finite, else None; whole ones of an array of those."""
    kept = known & np.isfinite(values)
    return [
        value if keep else None for value, keep in zip(values.tolist(), kept.tolist(), strict=True)
    ]


def top_log_probs(score: SequenceScore, name: Callable[[int], str]) -> list[list[Row] | None]:
    """For each scored token its alternatives, best first."""
    assert score.top_ids is not None
    assert score.top_log_probs is not None
    rows = zip(
        score.scored.tolist(), score.top_ids.tolist(), score.top_log_probs.tolist(), strict=True
    )
    return [
        [
            {"id": i, "token": name(i), "log_prob": p if math.isfinite(p) else None}
            for i, p in zip(ids, log_probs, strict=True)
        ]
        if scored
        else None
        for scored, ids, log_probs in rows
    ]


def _sums(totals: Totals, one_sequence: bool) -> Row:
    """Counts, sums and rates; of a row without a text, what is counted in it is not known."""
    row: Row = {"n_tokens": totals.n_tokens, "n_scored": totals.n_scored}
    without_text = one_sequence and totals.n_without_text
    for name in TEXT_COUNTS:
        row[name] = None if without_text else getattr(totals, name)
    for name in RATES:
        row[name] = getattr(totals, name)
    return row


def _token_arrays(score: SequenceScore, options: RowOptions) -> Row:
    sequence = score.sequence
    offsets = sequence.byte_offsets
    row: Row = {
        "token_ids": sequence.token_ids.tolist(),
        "tokens": options.token_texts(sequence),
        "token_losses": numbers_or_null(score.losses, score.scored),
        "byte_offsets": None if offsets is None else offsets.tolist(),
    }
    if sequence.sample.labels is not None or sequence.prompt_boundary is not None:
        row["loss_mask"] = sequence.loss_mask.astype(int).tolist()
        row["labels"] = np.where(sequence.loss_mask, sequence.token_ids, IGNORED).tolist()
    for column in COLUMNS:
        if column.array_names[0] not in score.columns:
            continue
        if column.kind == "alternatives":
            row[column.name] = top_log_probs(score, options.name_token)
        else:
            row[column.name] = numbers_or_null(score.columns[column.name], score.scored)
    if options.context_lengths:
        row["context_lengths"] = numbers_or_null(score.context_lengths, score.scored)
    return row
