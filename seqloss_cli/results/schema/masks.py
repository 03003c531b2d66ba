"""Rows of `seqloss mask`: labels, how others' differ, and what the loss would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from seqloss_cli.metrics.chain_rule import turn_scores
from seqloss_cli.metrics.masks import Mask, MaskTotals
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.schema import RowMakers
from seqloss_cli.results.writing.pairs import Row, texts_row
from seqloss_cli.results.writing.rows import RowOptions, identity_row, numbers_or_null
from seqloss_cli.tokenization.labels import Finding, labels_of
from seqloss_cli.tokenization.trl import NAME as TRAINER_NAME


def mask_rows(options: RowOptions) -> RowMakers[Mask, MaskTotals]:
    return RowMakers(
        lambda mask, sums: mask_row(mask, sums, options), mask_totals_row, options.summary
    )


def mask_row(mask: Mask, sums: MaskTotals, options: RowOptions) -> Row:
    """`sums` are those of this sequence."""
    sequence, prompt_boundary = mask.sequence, mask.sequence.prompt_boundary
    assert prompt_boundary is not None
    row = identity_row(sequence)
    if options.text:
        row |= texts_row(sequence)
    if sequence.sample.meta is not None:
        row["meta"] = sequence.sample.meta
    row |= {
        "bos": sequence.bos,
        "eos": sequence.eos,
        "boundary": prompt_boundary.boundary,
        "n_tokens": sums.n_tokens,
        "n_prompt_tokens": sums.n_tokens - sums.n_counted,
        "n_response_tokens": sums.n_counted,
    }
    if prompt_boundary.turns:
        row["turns"] = _turns(mask)
    row["flags"] = sequence.flags
    row |= _losses(sums)
    if mask.checked:
        row["check"] = _findings(mask.findings)
    if mask.trainer is not None:
        theirs = mask.trainer.labels
        row["trainer"] = {
            "name": TRAINER_NAME,
            "input_ids": None if theirs is None else theirs.input_ids.tolist(),
            "labels": None if theirs is None else theirs.labels.tolist(),
            "not_trained": mask.trainer.note,
            "differences": _findings(mask.trainer_findings),
        }
    if options.tokens:
        offsets = sequence.byte_offsets
        row |= {
            "token_ids": sequence.token_ids.tolist(),
            "tokens": options.token_texts(sequence),
            "byte_offsets": None if offsets is None else offsets.tolist(),
            "loss_mask": sequence.loss_mask.astype(int).tolist(),
            "labels": labels_of(sequence).labels.tolist(),
        }
        if mask.score is not None:
            row["token_losses"] = numbers_or_null(mask.score.losses, mask.score.scored)
    return row


def mask_totals_row(sums: MaskTotals, n_rejected: int, n_empty_lines: int) -> Row:
    return {
        "n_sequences": sums.n_sequences,
        "n_rejected": n_rejected,
        "n_empty_lines": n_empty_lines,
        "n_tokens": sums.n_tokens,
        "n_prompt_tokens": sums.n_tokens - sums.n_counted,
        "n_response_tokens": sums.n_counted,
        **_losses(sums),
        "n_checked": sums.n_checked,
        "n_different": sums.n_different,
        "check": sums.findings,
        "n_not_trained": sums.n_not_trained,
        "n_trainer_different": sums.n_trainer_different,
        "trainer": sums.trainer_findings,
    }


def _turns(mask: Mask) -> list[Row]:
    """Counts of each turn; with losses, those of the tokens that count."""
    assert mask.sequence.prompt_boundary is not None
    rows: list[Row] = []
    for turn in mask.sequence.prompt_boundary.turns:
        counted = int(mask.sequence.loss_mask[turn.start : turn.end].sum())
        rows.append(
            {
                "role": turn.role,
                "start": turn.start,
                "end": turn.end,
                "n_tokens": turn.end - turn.start,
                "n_counted": counted,
            }
        )
    if mask.score is not None:
        for row, found in zip(rows, turn_scores(mask.score), strict=True):
            row |= {"loss": found.loss, "mean_loss": found.mean_loss}
    return rows


def _losses(sums: MaskTotals) -> Row:
    if sums.responses is None or sums.everything is None:
        return {}
    return {
        "response": _loss(sums.responses),
        "all_tokens": _loss(sums.everything),
        "prompt_share": sums.prompt_share,
    }


def _loss(totals: Totals) -> Row:
    return {
        "n_scored": totals.n_scored,
        "total_loss": totals.total_loss,
        "mean_loss": totals.mean_loss,
    }


def _findings(findings: Sequence[Finding]) -> list[Row]:
    return [asdict(finding) for finding in findings]
