"""The keys of rows of `seqloss score` and `cond`, and the columns of their tokens, words, regions.

Losses are written as the float64 that was summed; what is unscored or infinite is null (rule 3 of
the numbers contract).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from seqloss_cli.core.columns import COLUMNS, TokenColumn, cell_columns
from seqloss_cli.core.records import SequenceScore, TokenSequence
from seqloss_cli.metrics.chain_rule import (
    ChainRule,
    boundary_difference,
    chain_rule,
    log_prob_y,
    pointwise_mutual_information,
    turn_scores,
)
from seqloss_cli.metrics.totals import (
    RATES,
    TEXT_COUNTS,
    Totals,
    corpus_flags,
    overflow_flags,
    score_flags,
)
from seqloss_cli.metrics.words import RegionLosses, WordLosses, region_losses, word_losses
from seqloss_cli.results.schema import (
    ABSENT,
    Key,
    Kind,
    Row,
    RowOptions,
    When,
    always,
    as_column,
    children,
    ints,
    numbers_or_null,
    with_tokens,
)
from seqloss_cli.results.schema.sequences import (
    BYTE_OFFSETS,
    ENDS,
    IDENTITY,
    LABELS,
    LOSS_MASK,
    MASK_OF_TOKENS,
    META,
    N_RESPONSE_TOKENS,
    PART,
    POSITION,
    RESPONSE_SHA256,
    STARTS_AND_ENDS,
    TEXTS,
    TOKEN_IDS,
    TOKENS,
    flags_key,
    of_pairs,
)


@dataclass
class ScoreView:
    """A sequence's score with its own totals, and what rows make of them, each computed once."""

    score: SequenceScore
    totals: Totals
    options: RowOptions

    @property
    def sequence(self) -> TokenSequence:
        """Return the sequence that was scored."""
        return self.score.sequence

    @cached_property
    def words(self) -> WordLosses | None:
        """Return the losses of words; None where the sequence has no text."""
        return word_losses(self.score, self.options.marks)

    @cached_property
    def regions(self) -> RegionLosses | None:
        """Return the losses of regions; None where the input has none."""
        return region_losses(self.score, self.options.marks)

    @cached_property
    def rule(self) -> ChainRule:
        """Return the log-probabilities of a pair and its parts."""
        return chain_rule(self.score, self.totals)

    def flags(self) -> Mapping[str, int | bool]:
        """Return the flags of the sequence, and of its words and regions where they are shown."""
        flags = score_flags(self.score) | overflow_flags(self.totals)
        for shown, found in (("words", self.options.words), ("regions", self.options.regions)):
            if found and (part := getattr(self, shown)) is not None:
                flags |= part.flags
        return flags


def top_log_probs(score: SequenceScore, name: Callable[[int], str]) -> list[list[Row] | None]:
    """Return for each scored token its K alternatives, best first; log-probabilities in nats."""
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


def totals_row(totals: Totals, n_rejected: int, n_empty_lines: int) -> Row:
    """Return the totals of a run, with the counts of what was not scored."""
    pairs: Row = {}
    if totals.n_pairs:
        pairs = {
            "n_prompt_tokens": totals.n_prompt_tokens,
            "n_response_tokens": totals.n_response_tokens,
            "boundaries": totals.boundaries,
        }
        if totals.response_only is not None:
            pairs |= {"log_prob_y": log_prob_y(totals), "pmi": pointwise_mutual_information(totals)}
        if totals.separate_tokenization is not None:
            pairs |= {
                "separate": _separate(totals),
                "separate_minus_joint": boundary_difference(totals),
            }
        pairs["loss"] = totals.total_loss
    return {
        "n_sequences": totals.n_sequences,
        "n_sequences_scored": totals.n_sequences_scored,
        "n_rejected": n_rejected,
        "n_empty_lines": n_empty_lines,
        "n_without_text": totals.n_without_text,
        **pairs,
        **{name: getattr(totals, name) for name in (*_COUNTS, *RATES)},
        "mean_sequence_loss": totals.mean_sequence_loss,
        "mean_of_mean_losses": totals.mean_of_mean_losses,
        "flags": corpus_flags(totals),
    }


_COUNTS = ("n_tokens", "n_scored", *TEXT_COUNTS)


def _of_totals(name: str, kind: Kind, when: When = always) -> Key:
    return Key(name, kind, lambda v: getattr(v.totals, name), when)


def _text_count(name: str) -> Key:
    """Return the key of a count that is null of a row without a text: it is not known."""
    return Key(
        name, Kind.whole, lambda v: None if v.totals.n_without_text else getattr(v.totals, name)
    )


def _of_rule(name: str) -> Key:
    return Key(name, Kind.real, lambda v: getattr(v.rule, name), of_pairs)


def _with_pmi(options: RowOptions) -> bool:
    return options.pmi and of_pairs(options)


def _compared(options: RowOptions) -> bool:
    return of_pairs(options) and options.run.boundary == "compare"


def _n_inf_losses_y(view: ScoreView) -> Any:
    alone = view.totals.response_only
    return ABSENT if alone is None or not alone.n_infinite else alone.n_infinite


def _turns(view: ScoreView) -> Any:
    if view.sequence.prompt_boundary is None or not view.sequence.prompt_boundary.turns:
        return ABSENT
    return [
        {
            "role": found.turn.role,
            "start": found.turn.start,
            "end": found.turn.end,
            "n_tokens": found.turn.end - found.turn.start,
            "n_scored": found.n_scored,
            "loss": found.loss,
            "mean_loss": found.mean_loss,
        }
        for found in turn_scores(view.score)
    ]


def _separate(totals: Totals) -> Any:
    """Return the same responses with prompt and response tokenized apart, where asked for."""
    apart = totals.separate_tokenization
    if apart is None:
        return ABSENT
    return {
        "n_scored": apart.n_scored,
        "loss": apart.total_loss,
        "mean_loss": apart.mean_loss,
        "log_prob_y_given_x": apart.log_prob,
    }


def _separate_minus_joint(view: ScoreView) -> Any:
    if view.totals.separate_tokenization is None:
        return ABSENT
    return boundary_difference(view.totals)


def _inf_losses(view: ScoreView) -> Any:
    places = np.flatnonzero(np.isinf(view.score.losses) & view.score.scored)
    return ints(places) if len(places) else ABSENT


def _column_key(column: TokenColumn) -> Key:
    kinds = {"whole": Kind.wholes, "real": Kind.reals, "alternatives": Kind.nested}

    def value(view: ScoreView) -> Any:
        if column.array_names[0] not in view.score.columns:  # nothing of the input was scored
            return ABSENT
        if column.kind == "alternatives":
            return top_log_probs(view.score, view.options.name_token)
        return numbers_or_null(view.score.columns[column.name], view.score.scored)

    def when(options: RowOptions) -> bool:
        return options.tokens and column in options.columns

    return Key(column.name, kinds[column.kind], value, when, bulky=True)


def _of_words(name: str, value: Callable[[WordLosses], Any], kind: Kind, when: When) -> Key:
    def found(view: ScoreView) -> Any:
        return None if view.words is None else value(view.words)

    return Key(name, kind, found, when, bulky=True)


def _with_words(options: RowOptions) -> bool:
    return options.words


def _with_corrected(options: RowOptions) -> bool:
    return options.words and options.marks is not None


def _region_objects(view: ScoreView) -> list[Row] | None:
    """Return an object for each region; `start` and `end` in characters."""
    found, rows = view.regions, list[Row]()
    for n, region in enumerate(() if found is None else found.regions):
        assert found is not None
        row: Row = {"name": region.name, "start": region.start, "end": region.end}
        if view.options.text:
            row["text"] = found.texts[n]
        row |= {"n_tokens": found.n_tokens[n], "loss": found.losses[n], "mean_loss": found.means[n]}
        if found.corrected is not None:
            row["corrected_loss"] = found.corrected[n]
        rows.append(row)
    return None if found is None else rows


TOKEN_LOSSES = Key(
    "token_losses",
    Kind.reals,
    lambda v: numbers_or_null(v.score.losses, v.score.scored),
    with_tokens,
    length=0,
    bulky=True,
)
INF_LOSSES = Key("inf_losses", Kind.wholes, _inf_losses, checked=True)
_CONTEXT_LENGTHS = Key(
    "context_lengths",
    Kind.wholes,
    lambda v: numbers_or_null(v.score.context_lengths, v.score.scored),
    lambda options: options.tokens and options.context_lengths,
    bulky=True,
)
_WORDS = _of_words("words", lambda found: found.words, Kind.texts, _with_words)
_WORD_LOSSES = _of_words("word_losses", lambda found: found.losses, Kind.reals, _with_words)
_CORRECTED = _of_words(
    "corrected_word_losses", lambda found: found.corrected, Kind.reals, _with_corrected
)
SCORE_KEYS = (
    *IDENTITY,
    *TEXTS,
    META,
    *ENDS,
    RESPONSE_SHA256,
    Key("boundary", Kind.text, lambda v: v.sequence.prompt_boundary.boundary, of_pairs),
    _of_totals("n_prompt_tokens", Kind.whole, of_pairs),
    N_RESPONSE_TOKENS,
    *(_of_rule(name) for name in ("log_prob_x", "log_prob_y_given_x", "log_prob_xy")),
    Key("log_prob_y", Kind.real, lambda v: log_prob_y(v.totals), _with_pmi),
    Key("pmi", Kind.real, lambda v: pointwise_mutual_information(v.totals), _with_pmi),
    Key("n_inf_losses_y", Kind.whole, _n_inf_losses_y, _with_pmi),
    Key("turns", Kind.nested, _turns, of_pairs, bulky=True),
    Key(
        "separate",
        Kind.nested,
        lambda v: _separate(v.totals),
        _compared,
        cells=children("n_scored", "loss", "mean_loss", "log_prob_y_given_x"),
    ),
    Key("separate_minus_joint", Kind.real, _separate_minus_joint, _compared),
    Key("loss", Kind.real, lambda v: v.totals.total_loss, of_pairs),
    _of_totals("n_tokens", Kind.whole),
    _of_totals("n_scored", Kind.whole),
    *(_text_count(name) for name in TEXT_COUNTS),
    *(_of_totals(name, Kind.real) for name in RATES),
    flags_key(lambda v: v.flags()),
    INF_LOSSES,
    TOKEN_IDS,
    TOKENS,
    TOKEN_LOSSES,
    BYTE_OFFSETS,
    LOSS_MASK,
    LABELS,
    *(_column_key(column) for column in COLUMNS),
    _CONTEXT_LENGTHS,
    _WORDS,
    _WORD_LOSSES,
    _CORRECTED,
    _of_words(
        "word_byte_offsets", lambda found: found.byte_offsets.tolist(), Kind.spans, _with_words
    ),
    Key("regions", Kind.nested, _region_objects, lambda o: o.regions, bulky=True),
)
"""Of a row, in the order of its JSON object."""


# -- columns of lines that are a token, a word or a region ------------------------------------


def _in_bits(key: Key) -> Key:
    def value(view: ScoreView) -> Any:
        nats = key.value(view)
        return nats and [None if loss is None else loss / math.log(2) for loss in nats]

    return Key("bits", Kind.reals, value)


def _of_regions(name: str, value: Callable[[RegionLosses], Any], when: When = always) -> Key:
    return Key(name, Kind.reals, lambda v: value(v.regions), when)


def _asked(name: str) -> Key:
    """Return the column of what an input says of all its regions."""

    def value(view: ScoreView) -> Any:
        regions = view.sequence.sample.regions
        assert regions is not None
        return [getattr(regions, name)] * len(regions.regions)

    return Key(name, Kind.texts, value)


_REGION_LOSSES = _of_regions("loss", lambda found: found.losses)
SCORE_LEVELS: Mapping[str, tuple[Key, ...]] = {
    "token": (
        POSITION,
        as_column(TOKEN_IDS, "token_id"),
        as_column(TOKENS, "token"),
        PART,
        as_column(TOKEN_LOSSES, "loss"),
        Key("scored", Kind.wholes, lambda v: ints(v.score.scored)),
        MASK_OF_TOKENS,
        *STARTS_AND_ENDS,
        *(as_column(_column_key(column), column.csv) for column in cell_columns()),
        as_column(_CONTEXT_LENGTHS, "context_length"),
    ),
    "word": (
        _of_words("position", lambda found: range(len(found.words)), Kind.wholes, always),
        as_column(_WORDS, "word"),
        as_column(_WORD_LOSSES, "loss"),
        _in_bits(_WORD_LOSSES),
        as_column(_CORRECTED, "corrected_loss"),
        _of_words("start", lambda found: ints(found.byte_offsets[:, 0]), Kind.wholes, always),
        _of_words("end", lambda found: ints(found.byte_offsets[:, 1]), Kind.wholes, always),
    ),
    "region": (
        _asked("item"),
        _asked("condition"),
        _of_regions("region", lambda found: range(1, len(found.regions) + 1)),
        _of_regions("name", lambda found: [region.name for region in found.regions]),
        _of_regions("text", lambda found: found.texts, lambda options: options.text),
        _of_regions("n_tokens", lambda found: found.n_tokens),
        _REGION_LOSSES,
        _in_bits(_REGION_LOSSES),
        _of_regions("mean_loss", lambda found: found.means),
        _of_regions("corrected_loss", lambda found: found.corrected, lambda o: o.marks is not None),
        _of_regions("shared", lambda found: list(map(int, found.shared))),
        _of_regions("start", lambda found: [region.start for region in found.regions]),
        _of_regions("end", lambda found: [region.end for region in found.regions]),
    ),
}
"""What a line can be, if not a row, to its columns. A word's ends are in bytes, those of a region
in characters."""
