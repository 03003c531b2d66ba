"""Rows of `seqloss mask`: labels, how others' differ, and what the loss would be.

A row but for its losses follows from its input: --resume makes it anew and compares. `s` are the
declarations of keys, `q` the keys that all sequences have.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import orjson

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Boundary, Rejected, Rejections
from seqloss_cli.metrics.chain_rule import TurnScore, turn_scores
from seqloss_cli.metrics.masks import Mask, MaskTotals, mask_totals
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import sequences as q
from seqloss_cli.results.schema.scores import written_loss
from seqloss_cli.tokenization.labels import Finding
from seqloss_cli.tokenization.trl import NAME as TRAINER_NAME


def mask_rows(
    options: s.RowOptions, checked: bool, trainer: bool
) -> s.Rows[Mask, MaskTotals, Mask | Rejected]:
    """Return the rows of a run of `mask`; with a key for each comparison that is made.

    `checked` compares with the labels of a file, `trainer` with those that a trainer makes.
    """
    shown = {"check": checked, "trainer": trainer}
    keys = tuple(key for key in MASK_KEYS if shown.get(key.name, True))
    with_losses = options.conditions()["losses"]
    of_losses = _OF_LOSSES if with_losses else ()
    sure = [key for key in s.possible(options, keys) if key.name not in of_losses]

    def view(mask: Mask, sums: MaskTotals) -> q.SequenceView:
        return q.SequenceView(options, mask.sequence, mask.score, sums, mask)

    def of_input(mask: Mask, row: s.Fields) -> s.Row:
        _require_same_parts(options, row)
        # Through JSON, as what is there has been: tuples are lists in it.
        made: s.Row = orjson.loads(s.json_bytes(s.row_of(sure, view(mask, mask_totals(mask)))))
        # A key that this input would not have: null, which differs from what is there.
        return dict.fromkeys(name for name in row if name not in ("type", *of_losses)) | made

    return s.Rows(
        options,
        keys,
        LEVELS,
        view,
        mask_totals_row,
        of_input,
        lambda row, place, entry: kept_mask_totals(row, with_losses),
    )


def _require_same_parts(options: s.RowOptions, row: s.Fields) -> None:
    """Raises UsageError where a row holds texts or tokens that this run leaves out, or lacks them.

    The run record of `mask` does not tell of them, which --resume compares for other commands.
    """
    if row["type"] != "sequence":
        return
    for part, asked in (("text", options.text), ("tokens", options.tokens)):
        if (holds := not _PART_NAMES[part].isdisjoint(row)) != asked:
            found = f"holds {'' if holds else 'no '}{part.removesuffix('s')}s"
            advice = f"leave --no-{part} out" if holds else f"give --no-{part}"
            raise UsageError(f"{found} ({advice})")


def mask_totals_row(sums: MaskTotals, rejected: Rejections, n_empty_lines: int) -> s.Row:
    """Return the totals of a run."""
    return s.row_of(MASK_TOTALS, s.TotalsView(sums, rejected, n_empty_lines))


def _turns(view: q.SequenceView) -> Any:
    """Return counts of each turn; with losses, those of the tokens that count."""
    boundary, counts = view.sequence.prompt_boundary, view.sequence.loss_mask
    if boundary is None or not boundary.turns:
        return s.ABSENT
    scores = itertools.repeat(None) if view.score is None else turn_scores(view.score)
    return [
        s.row_of(
            _TURN,
            SimpleNamespace(
                turn=turn, n_counted=int(counts[turn.start : turn.end].sum()), score=score
            ),
        )
        for turn, score in zip(boundary.turns, scores, strict=False)
    ]


def _trainer(view: q.SequenceView) -> Any:
    trainer = view.result.trainer
    if trainer is None:
        return s.ABSENT
    theirs = trainer.labels
    return {
        "name": TRAINER_NAME,
        **{n: theirs and getattr(theirs, n).tolist() for n in ("input_ids", "labels")},
        "not_trained": trainer.note,
        "differences": [*map(asdict, view.result.trainer_findings)],
    }


def _kinds_cell(findings: Sequence[s.Fields]) -> str:
    return ";".join(str(each["kind"]) for each in findings)


def _part(name: str, path: str) -> s.Key:
    """Return the key of the losses of one part of the tokens; totals of no row have none."""

    def value(view: Any) -> Any:
        totals = getattr(view.sums, path)
        return s.ABSENT if totals is None else s.attributes(totals, *_LOSS)

    return s.nested(
        name,
        value,
        "losses",
        cells=s.children(*_LOSS),
        of=_LOSS_KEYS,
        optional=True,
        about=(MaskTotals, path),
    )


_LOSS = ("n_scored", "total_loss", "mean_loss")
_LOSS_KEYS = (
    s.whole("n_scored", "n_scored", about="Tokens that have a loss."),
    *(s.real(name, name, about=(Totals, name)) for name in _LOSS[1:]),
)
_TURN = (
    *q.TURN,
    s.whole("n_counted", "n_counted", about="Its tokens that count."),
    *s.only_if(
        lambda v: v.score is not None,
        s.real("loss", "score.loss", "losses", about=(TurnScore, "loss")),
        s.real("mean_loss", "score.mean_loss", "losses", about=(TurnScore, "mean_loss")),
    ),
)
"""Keys of each message of a chat."""


@dataclass(frozen=True, slots=True)
class TrainerRow:
    """The labels that a trainer makes of an input."""

    name: str
    """Its name and version."""
    input_ids: list[int] | None
    """Ids that it trains on; None where it drops the input."""
    labels: list[int] | None
    """Its labels; None where it drops the input."""
    not_trained: str | None
    """Why it drops the input; None where it does not."""
    differences: list[Finding]
    """Differences of its labels from ours."""


_COUNTS = (
    q.N_TOKENS,
    s.whole(
        "n_prompt_tokens",
        lambda v: v.sums.n_tokens - v.sums.n_counted,
        about="Tokens that do not count.",
    ),
    s.whole("n_response_tokens", "sums.n_counted", about="Tokens that count."),
)
_LOSSES = (
    _part("response", "responses"),
    _part("all_tokens", "all_tokens"),
    s.real(
        "prompt_share",
        lambda v: s.ABSENT if v.sums.all_tokens is None else v.sums.prompt_share,
        "losses",
        optional=True,
        about=(MaskTotals, "prompt_share"),
    ),
)


def _of_totals(name: str, of: Any = int) -> s.Key:
    declare = s.whole if of is int else s.nested
    own = {"check": "findings", "trainer": "trainer_findings"}.get(name, name)
    return declare(name, f"sums.{own}", of=of, about=(MaskTotals, own))


_TOTALS = (
    *_COUNTS,
    *_LOSSES,
    *map(_of_totals, ("n_checked", "n_different")),
    _of_totals("check", dict[str, int]),
    *map(_of_totals, ("n_not_trained", "n_trainer_different")),
    _of_totals("trainer", dict[str, int]),
)
MASK_TOTALS = (_of_totals("n_sequences"), *s.UNSCORED, *_TOTALS)
"""Keys of the totals."""
_TOKEN_LOSSES = q.token_array(
    "token_losses", lambda v: v.score.losses, "tokens losses", about="Loss of each token, nats."
)
_OF_LOSSES = ("response", "all_tokens", "prompt_share", "token_losses", "turns")
"""Keys that only scoring tells of; turns hold losses, too."""
MASK_KEYS = (
    *q.FIRST_KEYS,
    s.text(
        "boundary",
        "sequence.prompt_boundary.boundary",
        of=Boundary | None,
        about="How the tokens of the two texts meet (rule 9); null of chats.",
    ),
    *_COUNTS,
    s.nested("turns", _turns, of=[_TURN], optional=True, about="Of a chat: its messages."),
    q.flags_key("sequence.flags"),
    # A second `response`: with --loss the object takes the text's place in the row.
    *_LOSSES,
    s.nested(
        "check",
        lambda v: [*map(asdict, v.result.findings)],
        cells={"": _kinds_cell},
        of=list[Finding],
        optional=True,
        about="With --check: how the labels of the file differ.",
    ),
    s.nested(
        "trainer",
        _trainer,
        cells={
            ".not_trained": lambda theirs: theirs["not_trained"],
            ".differences": lambda theirs: _kinds_cell(theirs["differences"]),
        },
        of=TrainerRow,
        optional=True,
        about="With --like: the labels that the trainer makes.",
    ),
    *q.TOKENS,
    *q.MASKS,
    _TOKEN_LOSSES,
)
"""Keys of a row, in the order of its JSON object."""
# With --loss an object takes the place of the response's text: that is no text.
_PART_NAMES = {
    part: {key.name for key in MASK_KEYS if part in key.when.split()} - {*_OF_LOSSES}
    for part in ("text", "tokens")
}
"""Part of a row to the names of its keys."""
_TOKEN_COLUMNS = (
    *q.TOKEN,
    s.as_column(q.LABELS, "label"),
    q.LOSS_MASK,
    s.as_column(_TOKEN_LOSSES, "loss"),
    *q.EDGES,
)
"""Columns of a line at `--level token`."""
LEVELS = {"token": _TOKEN_COLUMNS}


def kept_mask_totals(row: s.Fields, with_losses: bool) -> MaskTotals:
    """Return the counts of a row that was compared with its input; losses are the row's own."""
    check, trainer = row.get("check"), row.get("trainer")
    differences = [] if trainer is None else trainer["differences"]
    parts = {"responses": "response", "all_tokens": "all_tokens"} if with_losses else {}
    losses: dict[str, Any] = {
        part: written_loss(s.typed(row, name, dict), "total_loss") for part, name in parts.items()
    }
    return MaskTotals(
        n_sequences=1,
        n_tokens=s.count(row, "n_tokens"),
        n_counted=s.count(row, "n_response_tokens"),
        n_checked=int("check" in row),
        n_different=int(bool(check)),
        # Totals count rows that have a kind of difference, not its tokens.
        findings={each["kind"]: 1 for each in check or []},
        n_trainer_different=int(bool(differences)),
        n_not_trained=int(trainer is not None and trainer["labels"] is None),
        trainer_findings={each["kind"]: 1 for each in differences},
        **losses,
    )
