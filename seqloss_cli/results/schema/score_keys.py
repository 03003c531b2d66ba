"""The keys of rows of `seqloss score` and `cond`, and the columns of their tokens, words, regions.

Losses are written as the float64 that was summed; what is unscored or infinite is null (rule 3 of
docs/numbers.md). `s` are the declarations of keys, `q` the keys that all sequences have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

from seqloss_cli.core.columns import COLUMNS, TokenColumn, cell_columns
from seqloss_cli.core.records import Boundary, Rejections, SequenceScore
from seqloss_cli.metrics import chain_rule as c
from seqloss_cli.metrics import totals as t
from seqloss_cli.metrics.words import RegionLosses, WordLosses, region_losses, word_losses
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import sequences as q

_RULE = ("log_prob_x", "log_prob_y_given_x", "log_prob_xy")


@dataclass
class ScoreView(q.SequenceView):
    """A sequence's score with its own totals, and what rows make of them, each computed once."""

    score: SequenceScore
    sums: t.Totals

    @cached_property
    def words(self) -> WordLosses | None:
        """Return the losses of words; None where the sequence has no text."""
        return word_losses(self.score, self.options.word_boundary_ids)

    @cached_property
    def regions(self) -> RegionLosses | None:
        """Return the losses of regions; None where the input has none."""
        return region_losses(self.score, self.options.word_boundary_ids)

    @cached_property
    def region_columns(self) -> dict[str, list[Any]]:
        """Return what JSON says of R regions, lists of R; `start` and `end` in characters."""
        found, columns = self.regions, dict[str, list[Any]]()
        if found is not None:
            for name in ("name", "start", "end"):
                columns[name] = [getattr(region, name) for region in found.regions]
            columns |= {"text": found.texts} if self.options.text else {}
            columns |= {"n_tokens": found.n_tokens, "loss": found.losses, "mean_loss": found.means}
            columns |= {} if found.corrected is None else {"corrected_loss": found.corrected}
        return columns

    @cached_property
    def rule(self) -> c.ChainRule:
        """Return the log-probabilities of a pair and its parts."""
        return c.chain_rule(self.score, self.sums)

    @property
    def flags(self) -> Mapping[str, int | bool]:
        """Return the flags of the sequence, and of its words and regions where they are shown."""
        # Only where they are shown: corrections of words would cost every row otherwise.
        flags = t.score_flags(self.score) | t.overflow_flags(self.sums)
        for part in (self.options.words and self.words, self.options.regions and self.regions):
            flags |= part.flags if part else {}
        return flags


def totals_row(totals: t.Totals, rejected: Rejections, n_empty_lines: int) -> s.Row:
    """Return the totals of a run, with the counts of what was not scored."""
    return s.row_of(TOTALS_KEYS, s.TotalsView(totals, rejected, n_empty_lines))


def top_log_probs(score: SequenceScore, name: Callable[[int], str]) -> list[list[s.Row] | None]:
    """Return for each scored token its K alternatives, best first; log-probabilities in nats."""
    assert score.top_ids is not None
    assert score.top_log_probs is not None
    rows = zip(
        score.scored.tolist(), score.top_ids.tolist(), score.top_log_probs.tolist(), strict=True
    )
    return [
        [
            # An alternative of probability 0 has minus infinity, which JSON cannot say.
            {"id": i, "token": name(i), "log_prob": p if math.isfinite(p) else None}
            for i, p in zip(ids, log_probs, strict=True)
        ]
        if scored
        else None
        for scored, ids, log_probs in rows
    ]


def _text_count(name: str) -> s.Key:
    """Return the key of a count that is null of a row without a text: it is not known."""
    return s.whole(
        name,
        lambda v: None if v.sums.n_without_text else getattr(v.sums, name),
        of=int | None,
        about=(t.Totals, name, "null of rows of ids."),
    )


def _n_inf_losses_y(view: ScoreView) -> Any:
    alone = view.sums.response_only
    return s.ABSENT if alone is None or not alone.n_infinite else alone.n_infinite


def _turns(view: ScoreView) -> Any:
    return [s.row_of(_TURN, each) for each in c.turn_scores(view.score)] or s.ABSENT


def _or_absent(value: Callable[[t.Totals], Any]) -> Callable[[ScoreView], Any]:
    """Return a value of the sums; ABSENT where prompt and response are not tokenized apart."""
    return lambda v: s.ABSENT if v.sums.separate_tokenization is None else value(v.sums)


def _separate(totals: t.Totals) -> s.Row:
    """Return the same responses with prompt and response tokenized apart."""
    return s.row_of(_SEPARATE, totals.separate_tokenization)


def _about(column: TokenColumn) -> str:
    return f"{column.help.removesuffix('.')}{column.unit and f', {column.unit}'}."


def _column_key(column: TokenColumn) -> s.Key:
    # Rows have no such key where nothing of them was scored: no window came to the backend.
    name, when = column.name, f"tokens {column.name}"
    if column.kind == "alternatives":
        lists: Any = list[list[Alternative] | None]
        return s.nested(
            name, _alternatives, when, bulky=True, of=lists, optional=True, about=_about(column)
        )
    declare = {"whole": s.wholes, "real": s.reals}[column.kind]
    return q.token_array(
        name,
        lambda v: v.score.columns.get(name),
        when,
        declare,
        bulky=True,
        about=_about(column),
    )


def _alternatives(view: ScoreView) -> Any:
    known = view.score.top_ids is not None
    return top_log_probs(view.score, view.options.name_token) if known else s.ABSENT


def _of_words(value: Callable[[WordLosses], Any]) -> Callable[[ScoreView], Any]:
    """Return a value of the words; None where the sequence has no text."""
    return lambda view: None if view.words is None else value(view.words)


def _region_objects(view: ScoreView) -> list[s.Row] | None:
    if view.regions is None:
        return None
    names, entries = view.region_columns.keys(), zip(*view.region_columns.values(), strict=True)
    return [dict(zip(names, values, strict=True)) for values in entries]


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that the model had in mind."""

    id: int
    """The token's id."""
    token: str
    """Its text."""
    log_prob: float | None
    """Nats; None where its probability is 0."""


# Of bytes and words there are none of its own: the text is that of the pair.
_SEPARATE = (
    s.whole("n_scored", "n_scored", about="Tokens of the response that have a loss."),
    s.real("loss", "total_loss", about=(t.Totals, "total_loss")),
    s.real("mean_loss", "mean_loss", about=(t.Totals, "mean_loss")),
    s.real("log_prob_y_given_x", "log_prob", about=(t.Totals, "log_prob")),
)
"""Keys of the responses of pairs whose parts were tokenized apart."""
_TURN = (
    *q.TURN,
    s.whole("n_scored", "n_scored", about="Its tokens that count."),
    s.real("loss", "loss", about=(c.TurnScore, "loss")),
    s.real("mean_loss", "mean_loss", about=(c.TurnScore, "mean_loss")),
)
TOKEN_LOSSES = q.token_array(
    "token_losses",
    lambda v: v.score.losses,
    length=0,
    bulky=True,
    optional=False,
    about="Loss of each token, nats; null where it is not scored or infinite.",
)
_CONTEXTS = q.token_array(
    "context_lengths",
    lambda v: v.score.context_lengths,
    "tokens context_lengths",
    s.wholes,
    bulky=True,
    about="Tokens that each token was predicted from, BOS included.",
)
_WORDS = s.texts(
    "words",
    _of_words(lambda w: w.words),
    "words",
    bulky=True,
    of=list[str] | None,
    about="Words of `text.split()`; null of rows of ids.",
)
_OF_WORDS: Any = list[float | None] | None
_WORD_LOSSES = s.reals(
    "word_losses",
    _of_words(lambda w: w.losses),
    "words",
    bulky=True,
    of=_OF_WORDS,
    about="Sum of the losses of each word's tokens, nats; null where one has none.",
)
_CORRECTED = s.reals(
    "corrected_word_losses",
    _of_words(lambda w: w.corrected),
    "words corrected",
    bulky=True,
    of=_OF_WORDS,
    about="The same, nats, with the probability that a word ends moved to that word; null where "
    "a word has none.",
)
_WORD_KEYS = (
    _WORDS,
    _WORD_LOSSES,
    _CORRECTED,
    s.spans(
        "word_byte_offsets",
        _of_words(lambda w: w.byte_offsets.tolist()),
        "words",
        bulky=True,
        of=list[tuple[int, int]] | None,
        about="Bytes [start, end) of each word in the text; null of rows of ids.",
    ),
)


_SHARED = "1 where another region has bytes of one of its tokens, too, else 0."


@dataclass(frozen=True, slots=True)
class RegionRow:
    """A region of a text, and its losses."""

    name: str
    """Its name."""
    start: int
    """First character."""
    end: int
    """The character after the last."""
    text: str = field(metadata={"is_optional": True})
    """Its text."""
    n_tokens: int
    """Tokens that begin in it."""
    loss: float | None
    """Sum over the tokens that begin in it, nats."""
    mean_loss: float | None
    """Nats per token."""
    corrected_loss: float | None = field(metadata={"is_optional": True})
    """With --word-correction: nats."""


_OF_PAIRS = (
    *(s.real(name, f"rule.{name}", "pairs", about=(c.ChainRule, name)) for name in _RULE),
    s.real(
        "log_prob_y",
        lambda v: c.log_prob_y(v.sums),
        "pmi",
        about="ln Pr of the response's ids after BOS alone, nats.",
    ),
    s.real(
        "pmi",
        lambda v: c.pointwise_mutual_information(v.sums),
        "pmi",
        about="log_prob_y_given_x - log_prob_y, nats.",
    ),
    s.real(
        "ifd",
        lambda v: c.instruction_following_difficulty(v.sums),
        "pmi",
        about="Mean loss over that of the response's ids after BOS alone, a ratio.",
    ),
)
_SEPARATE_KEYS = (
    s.nested(
        "separate",
        _or_absent(_separate),
        "compared",
        cells=s.children(*(key.name for key in _SEPARATE)),
        of=_SEPARATE,
        optional=True,
        about="Figures of prompt and response tokenized apart.",
    ),
    s.real(
        "separate_minus_joint",
        _or_absent(c.boundary_difference),
        "compared",
        optional=True,
        about="Loss with prompt and response tokenized apart, less the joint one, nats.",
    ),
)
# mean_loss, perplexity, bits_per_byte and their like, by the names of the properties of totals
_RATE_KEYS = tuple(s.real(name, f"sums.{name}", about=(t.Totals, name)) for name in t.RATES)
SCORE_KEYS = (
    *q.FIRST_KEYS,
    q.RESPONSE_SHA256,
    s.text(
        "boundary",
        "sequence.prompt_boundary.boundary",
        "pairs",
        of=Boundary | None,
        about="How the tokens of the two texts meet (rule 9); null of chats.",
    ),
    s.whole("n_prompt_tokens", "sums.n_prompt_tokens", "pairs", about="The prompt's; BOS is its."),
    q.N_RESPONSE_TOKENS,
    *_OF_PAIRS,
    s.whole(
        "n_inf_losses_y",
        _n_inf_losses_y,
        "pmi",
        optional=True,
        about="Infinite losses of the response without its prompt.",
    ),
    s.nested(
        "turns",
        _turns,
        "pairs",
        bulky=True,
        of=[_TURN],
        optional=True,
        about="Of a chat: its messages.",
    ),
    *_SEPARATE_KEYS,
    s.real("loss", "sums.total_loss", "pairs", about="The response's: total_loss, nats."),
    *q.SIZES,
    *(_text_count(name) for name in t.TEXT_COUNTS),
    s.whole(
        "unspelled_bytes",
        lambda v: v.sums.unspelled_bytes or s.ABSENT,
        optional=True,
        about=(t.Totals, "unspelled_bytes"),
    ),
    *_RATE_KEYS,
    q.flags_key("flags"),
    q.infinite_key("inf_losses", lambda v: v.score.losses, checked=True),
    *q.TOKENS,
    TOKEN_LOSSES,
    *q.MASKS,
    *(_column_key(column) for column in COLUMNS),
    _CONTEXTS,
    *_WORD_KEYS,
    s.nested(
        "regions",
        _region_objects,
        "regions",
        bulky=True,
        of=list[RegionRow] | None,
        about="Losses of the regions that --regions names; null where the input has none.",
    ),
)
"""Keys of a row, in the order of its JSON object."""


def _count(name: str) -> s.Key:
    return s.whole(name, f"sums.{name}", about=(t.Totals, name))


# The order of keys is part of the file: what is resumed is to be the same byte for byte.
TOTALS_KEYS = (
    _count("n_sequences"),
    _count("n_sequences_scored"),
    *s.UNSCORED,
    _count("n_without_text"),
    *s.only_if(
        lambda v: v.sums.n_pairs,
        _count("n_prompt_tokens"),
        _count("n_response_tokens"),
        s.nested(
            "boundaries", "sums.boundaries", of=dict[str, int], about=(t.Totals, "boundaries")
        ),
        *s.only_if(lambda v: v.sums.response_only is not None, *_OF_PAIRS[len(_RULE) :]),
        *_SEPARATE_KEYS,
        s.real(
            "loss", "sums.total_loss", "pairs", about="That of the responses: total_loss, nats."
        ),
    ),
    *map(_count, ("n_tokens", "n_scored", *t.TEXT_COUNTS)),
    *_RATE_KEYS,
    *s.only_if(
        lambda v: v.sums.n_unspelled_sequences,
        _count("unspelled_bytes"),
        _count("n_unspelled_sequences"),
    ),
    *(
        s.real(name, f"sums.{name}", about=(t.Totals, name))
        for name in ("mean_sequence_loss", "mean_of_mean_losses")
    ),
    q.flags_key(lambda v: t.corpus_flags(v.sums)),
)
"""Keys of totals, of a `TotalsView`."""


def _bits(key: s.Key) -> s.Key:
    def value(view: ScoreView) -> Any:
        nats = key.value(view)
        return nats and [None if loss is None else loss / t.NATS_PER_BIT for loss in nats]

    return s.reals("bits", value, about="The same in bits.")


def _asked(name: str) -> s.Key:
    """Return the column of what an input says of all its regions."""
    value = attrgetter(f"sample.regions.{name}")
    about = f"The {name} that the input names; null where it names none."
    return s.texts(name, lambda v: [value(v)] * len(v.regions.regions), about=about)


def _region(name: str, declare: Callable[..., s.Key] = s.reals, when: str = "") -> s.Key:
    return declare(name, lambda v: v.region_columns[name], when, about=(RegionRow, name))


SCORE_LEVELS: Mapping[str, tuple[s.Key, ...]] = {
    "token": (
        *q.TOKEN,
        q.PAIR_PART,
        s.as_column(TOKEN_LOSSES, "loss"),
        *q.SCORED,
        *(s.as_column(_column_key(column), column.csv) for column in cell_columns()),
        s.as_column(_CONTEXTS, "context_length"),
    ),
    "word": (
        s.wholes("position", _of_words(lambda w: range(len(w.words))), about="Its place, from 0."),
        s.as_column(_WORDS, "word"),
        s.as_column(_WORD_LOSSES, "loss"),
        _bits(_WORD_LOSSES),
        s.as_column(_CORRECTED, "corrected_loss"),
        s.wholes("start", _of_words(lambda w: s.ints(w.byte_offsets[:, 0])), about="First byte."),
        s.wholes("end", _of_words(lambda w: s.ints(w.byte_offsets[:, 1])), about="The byte after."),
    ),
    "region": (
        _asked("item"),
        _asked("condition"),
        s.wholes(
            "region", lambda v: range(1, len(v.regions.regions) + 1), about="Its number, from 1."
        ),
        _region("name", s.texts),
        _region("text", s.texts, "text"),
        _region("n_tokens", s.wholes),
        _region("loss"),
        _bits(_region("loss")),
        _region("mean_loss"),
        _region("corrected_loss", when="corrected"),
        s.wholes("shared", lambda v: list(map(int, v.regions.shared)), about=_SHARED),
        *(_region(name, s.wholes) for name in ("start", "end")),
    ),
}
"""Parts of a row that a line can be of, to their columns. A word's ends are in bytes, those of a
region in characters."""
