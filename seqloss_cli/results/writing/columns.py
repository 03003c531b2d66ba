"""Which columns the rows of a run have, for formats that must know before the first row.

Names and order are those of the JSON rows. A key that `sequence_row` gives and this module does not
know is a bug, and the writers stop at it: no figure is left out in silence.
"""

from __future__ import annotations

from enum import StrEnum

from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.totals import RATES, TEXT_COUNTS
from seqloss_cli.results.writing.rows import RowOptions


class Kind(StrEnum):
    """What a column's cells are."""

    text = "text"
    whole = "whole"
    real = "real"
    nested = "nested"
    """Anything that JSON can say."""
    texts = "texts"
    wholes = "wholes"
    reals = "reals"
    spans = "spans"
    """Pairs of whole numbers."""


Columns = dict[str, Kind]
_KINDS = {"whole": Kind.wholes, "real": Kind.reals, "alternatives": Kind.nested}

_COUNTS = ("n_tokens", "n_scored", *TEXT_COUNTS)


def columns_of(options: RowOptions, run: RunInfo) -> Columns:
    """All columns that a row of this run can have, rejected ones included."""
    found: Columns = {"type": Kind.text, "id": Kind.text, "source": Kind.text}
    found |= {"line": Kind.whole, "text_sha256": Kind.text}
    found |= {"ids_sha256": Kind.text}
    if options.text:
        names = ("text",) if run.pairs is None else ("prompt", "response", "separator", "text")
        found |= dict.fromkeys(names, Kind.text)
    found |= {"meta": Kind.nested, "bos": Kind.text, "eos": Kind.text}
    if run.pairs is not None:
        found |= _pair_columns(options, compared=run.boundary == "compare")
    found |= dict.fromkeys(_COUNTS, Kind.whole) | dict.fromkeys(RATES, Kind.real)
    found |= {"flags": Kind.nested, "inf_losses": Kind.wholes}
    if options.tokens:
        found |= _token_columns(options)
    if options.words:
        found |= {"words": Kind.texts, "word_losses": Kind.reals}
        found |= {"corrected_word_losses": Kind.reals} if options.marks else {}
        found |= {"word_byte_offsets": Kind.spans}
    if options.regions:
        found |= {"regions": Kind.nested}
    return found | {"reason": Kind.text, "message": Kind.text}


def _pair_columns(options: RowOptions, compared: bool) -> Columns:
    found: Columns = {"response_sha256": Kind.text, "boundary": Kind.text}
    found |= dict.fromkeys(("n_prompt_tokens", "n_response_tokens"), Kind.whole)
    found |= dict.fromkeys(("log_prob_x", "log_prob_y_given_x", "log_prob_xy"), Kind.real)
    if options.pmi:
        found |= {"log_prob_y": Kind.real, "pmi": Kind.real, "n_inf_losses_y": Kind.whole}
    found |= {"turns": Kind.nested}
    if compared:
        found |= {"separate": Kind.nested, "separate_minus_joint": Kind.real}
    return found | {"loss": Kind.real}


def _token_columns(options: RowOptions) -> Columns:
    found: Columns = {"token_ids": Kind.wholes, "tokens": Kind.texts, "token_losses": Kind.reals}
    found |= dict.fromkeys(("byte_offsets", "loss_mask", "labels"), Kind.wholes)
    found |= {column.name: _KINDS[column.kind] for column in options.columns}
    if options.context_lengths:
        found |= {"context_lengths": Kind.wholes}
    return found
