"""Rows of `seqloss mask`: labels, how others' differ, and what the loss would be.

What a row holds follows from its input, but for losses: --resume makes the row anew and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Rejected, TokenSequence
from seqloss_cli.metrics.chain_rule import turn_scores
from seqloss_cli.metrics.masks import Mask, MaskTotals, mask_totals
from seqloss_cli.metrics.totals import Totals, to_units
from seqloss_cli.results.schema import (
    ABSENT,
    Fields,
    Key,
    Kind,
    Row,
    RowOptions,
    Rows,
    as_column,
    children,
    count,
    figure,
    json_bytes,
    numbers_or_null,
    possible,
    row_of,
)
from seqloss_cli.results.schema.sequences import (
    BYTE_OFFSETS,
    ENDS,
    FOUND_BY_SCORING,
    IDENTITY,
    LABELS,
    LOSS_MASK,
    META,
    POSITION,
    STARTS_AND_ENDS,
    TEXTS,
    TOKEN_IDS,
    TOKENS,
    expected_rejection,
    flags_key,
)
from seqloss_cli.tokenization.labels import Finding
from seqloss_cli.tokenization.trl import NAME as TRAINER_NAME


@dataclass(frozen=True, slots=True)
class MaskView:
    """A sequence's labels with their own counts."""

    mask: Mask
    sums: MaskTotals
    options: RowOptions

    @property
    def sequence(self) -> TokenSequence:
        """Return the sequence that the labels are of."""
        return self.mask.sequence


def mask_rows(
    options: RowOptions, checked: bool, trainer: bool
) -> Rows[Mask, MaskTotals, Mask | Rejected]:
    """Return the rows of a run of `mask`; with `checked` labels of a file, or a trainer's."""
    left_out = {"check"} if not checked else set[str]()
    left_out |= {"trainer"} if not trainer else set()
    keys = [key for key in possible(options, MASK_KEYS) if key.name not in left_out]

    with_losses = _with_losses(options)
    unsure = _OF_LOSSES if with_losses else ()

    def expected(entry: Mask | Rejected, row: Fields) -> Row:
        if isinstance(entry, Rejected):
            return expected_rejection(entry)
        view = MaskView(entry, mask_totals(entry), options)
        if row.get("reason") in FOUND_BY_SCORING:
            return {"type": "rejected"} | row_of(IDENTITY[:3], view)
        sure = [key for key in keys if key.name not in unsure]
        made: Row = orjson.loads(json_bytes(row_of(sure, view)))
        absent = dict.fromkeys(name for name in row if name not in {*made, *unsure})
        return absent | made | {"type": "sequence"}

    return Rows(
        options,
        tuple(keys),
        {"token": possible(options, _TOKEN_COLUMNS)},
        lambda mask, sums: MaskView(mask, sums, options),
        mask_totals_row,
        expected,
        lambda row, place, entry: totals_of_mask_row(row, with_losses),
    )


def mask_totals_row(sums: MaskTotals, n_rejected: int, n_empty_lines: int) -> Row:
    """Return the totals of a run."""
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


def _turns(view: MaskView) -> Any:
    """Return counts of each turn; with losses, those of the tokens that count."""
    mask, boundary = view.mask, view.sequence.prompt_boundary
    if boundary is None or not boundary.turns:
        return ABSENT
    rows: list[Row] = []
    for turn in boundary.turns:
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


def _trainer(view: MaskView) -> Any:
    trainer = view.mask.trainer
    if trainer is None:
        return ABSENT
    theirs = trainer.labels
    return {
        "name": TRAINER_NAME,
        "input_ids": None if theirs is None else theirs.input_ids.tolist(),
        "labels": None if theirs is None else theirs.labels.tolist(),
        "not_trained": trainer.note,
        "differences": _findings(view.mask.trainer_findings),
    }


def _kinds_cell(findings: Sequence[Fields]) -> str:
    return ";".join(str(each["kind"]) for each in findings)


def _with_losses(options: RowOptions) -> bool:
    return options.run.model is not None


def _token_losses(view: MaskView) -> Any:
    score = view.mask.score
    return ABSENT if score is None else numbers_or_null(score.losses, score.scored)


def _of_losses(name: str, kind: Kind, **settings: Any) -> Key:
    return Key(name, kind, lambda v: _losses(v.sums).get(name, ABSENT), _with_losses, **settings)


_LOSS_CELLS = children("n_scored", "total_loss", "mean_loss")
_LOSSES = Key(
    "token_losses", Kind.reals, _token_losses, lambda o: o.tokens and o.run.model is not None
)
_OF_LOSSES = ("response", "all_tokens", "prompt_share", "token_losses", "turns")
"""Keys that only scoring tells of; turns hold losses, too."""
MASK_KEYS = (
    *IDENTITY,
    *TEXTS,
    META,
    *ENDS,
    Key("boundary", Kind.text, lambda v: v.sequence.prompt_boundary.boundary),
    Key("n_tokens", Kind.whole, lambda v: v.sums.n_tokens),
    Key("n_prompt_tokens", Kind.whole, lambda v: v.sums.n_tokens - v.sums.n_counted),
    Key("n_response_tokens", Kind.whole, lambda v: v.sums.n_counted),
    Key("turns", Kind.nested, _turns),
    flags_key(lambda v: v.sequence.flags),
    # A second key of this name: with --loss the object takes the text's place in the row.
    _of_losses("response", Kind.nested, cells=_LOSS_CELLS),
    _of_losses("all_tokens", Kind.nested, cells=_LOSS_CELLS),
    _of_losses("prompt_share", Kind.real),
    Key("check", Kind.nested, lambda v: _findings(v.mask.findings), cells={"": _kinds_cell}),
    Key(
        "trainer",
        Kind.nested,
        _trainer,
        cells={
            ".not_trained": lambda theirs: theirs["not_trained"],
            ".differences": lambda theirs: _kinds_cell(theirs["differences"]),
        },
    ),
    TOKEN_IDS,
    TOKENS,
    BYTE_OFFSETS,
    LOSS_MASK,
    LABELS,
    _LOSSES,
)
"""Of a row, in the order of its JSON object."""
_TOKEN_COLUMNS = (
    POSITION,
    as_column(TOKEN_IDS, "token_id"),
    as_column(TOKENS, "token"),
    as_column(LABELS, "label"),
    LOSS_MASK,
    as_column(_LOSSES, "loss"),
    *STARTS_AND_ENDS,
)
"""What a line is at `--level token`."""


def totals_of_mask_row(row: Fields, with_losses: bool) -> MaskTotals:
    """Return the counts of a row that was read back; RowError for one that is missing."""
    check, trainer = row.get("check"), row.get("trainer")
    differences = [] if trainer is None else trainer.get("differences")
    for name, found in (("check", check or []), ("trainer", differences)):
        if not isinstance(found, list) or not all(isinstance(f, dict) for f in found):
            raise RowError("wrong_type", f"field {name!r} cannot be {row.get(name)!r:.40}")
    return MaskTotals(
        n_sequences=1,
        n_tokens=count(row, "n_tokens"),
        n_counted=count(row, "n_response_tokens"),
        n_checked=int("check" in row),
        n_different=int(bool(check)),
        findings={each["kind"]: 1 for each in check or []},
        n_trainer_different=int(bool(differences)),
        n_not_trained=int(trainer is not None and trainer["labels"] is None),
        trainer_findings={each["kind"]: 1 for each in differences},
        responses=_kept_loss(row, "response") if with_losses else None,
        everything=_kept_loss(row, "all_tokens") if with_losses else None,
    )


def _kept_loss(row: Fields, name: str) -> Totals:
    written = row.get(name)
    if not isinstance(written, dict):
        raise RowError("wrong_type", f"field {name!r} cannot be {written!r:.40}")
    n_scored, total = count(written, "n_scored"), figure(written, "total_loss")
    return Totals(
        n_sequences=1,
        n_sequences_scored=int(n_scored > 0),
        n_scored=n_scored,
        n_infinite=int(n_scored > 0 and total is None),
        loss_units=to_units(total or 0.0),
    )
