"""What rows of pairs and chats hold beside the figures of any sequence."""

from __future__ import annotations

import hashlib
from typing import Any

from seqloss_cli.core.records import SequenceScore, TokenSequence
from seqloss_cli.metrics.chain_rule import (
    boundary_difference,
    chain_rule,
    log_prob_y,
    pointwise_mutual_information,
    turn_scores,
)
from seqloss_cli.metrics.totals import Totals

Row = dict[str, Any]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def texts_row(sequence: TokenSequence) -> Row:
    """`prompt` and `response` of a pair, and `text` where it is not just these: of a chat the
    rendered template."""
    pair, row = sequence.sample.pair, Row()
    if pair is not None:
        row |= {"prompt": pair.prompt, "response": pair.response}
        if pair.separator:
            row["separator"] = pair.separator
    if pair is None or sequence.sample.chat is not None:
        row["text"] = sequence.text
    return row


def pair_row(score: SequenceScore, totals: Totals, pmi: bool) -> Row:
    """The log-probabilities of a pair and its parts; `totals` are those of this sequence."""
    prompt_boundary = score.sequence.prompt_boundary
    assert prompt_boundary is not None
    rule, pair = chain_rule(score, totals), score.sequence.sample.pair
    row: Row = {
        "response_sha256": None if pair is None else sha256(pair.response),
        "boundary": prompt_boundary.boundary,
        "n_prompt_tokens": totals.n_prompt_tokens,
        "n_response_tokens": totals.n_response_tokens,
        "log_prob_x": rule.log_prob_x,
        "log_prob_y_given_x": rule.log_prob_y_given_x,
        "log_prob_xy": rule.log_prob_xy,
    }
    row |= _pmi_row(totals) if pmi else {}
    if totals.response_only is not None and totals.response_only.n_infinite:
        row["n_inf_losses_y"] = totals.response_only.n_infinite
    if prompt_boundary.turns:
        row["turns"] = [
            {
                "role": found.turn.role,
                "start": found.turn.start,
                "end": found.turn.end,
                "n_tokens": found.turn.end - found.turn.start,
                "n_scored": found.n_scored,
                "loss": found.loss,
                "mean_loss": found.mean_loss,
            }
            for found in turn_scores(score)
        ]
    return row | comparison_row(totals) | {"loss": totals.total_loss}


def _pmi_row(totals: Totals) -> Row:
    return {"log_prob_y": log_prob_y(totals), "pmi": pointwise_mutual_information(totals)}


def pair_totals_row(totals: Totals) -> Row:
    """Of a set of pairs; nothing where there are none."""
    if not totals.n_pairs:
        return {}
    return {
        "n_prompt_tokens": totals.n_prompt_tokens,
        "n_response_tokens": totals.n_response_tokens,
        "boundaries": totals.boundaries,
        **({} if totals.response_only is None else _pmi_row(totals)),
        **comparison_row(totals),
        "loss": totals.total_loss,
    }


def comparison_row(totals: Totals) -> Row:
    """The same responses with prompt and response tokenized apart, where both were asked for."""
    apart = totals.separate_tokenization
    if apart is None:
        return {}
    return {
        "separate": {
            "n_scored": apart.n_scored,
            "loss": apart.total_loss,
            "mean_loss": apart.mean_loss,
            "log_prob_y_given_x": apart.log_prob,
        },
        "separate_minus_joint": boundary_difference(totals),
    }
