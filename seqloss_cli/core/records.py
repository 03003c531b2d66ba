"""The records that flow through the pipeline: frozen, no behaviour beyond small properties.

Shape letters: N tokens of one sequence, B rows of a batch, T positions of a row, K alternatives.
Arrays run parallel per sequence; there is never an object per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Flags = Mapping[str, int | bool]
BosOrigin = Literal["tokenizer", "prepended", "text", "none"]
EosOrigin = Literal["appended", "text", "none"]
Boundary = Literal["clean", "merged", "differs"]

SCHEMA_VERSION = 1
"""Version of the JSON that is written; a reader refuses a newer one than it knows."""
# Labels are unshifted: labels[t] belongs to x_t. Trainers shift them inside the model.
IGNORED = -100
"""The label of a position that is not scored, as trainers write it."""


class WrittenNumber(float):
    """A number that keeps the digits it was read with: `1.10`, or more than a float64 holds."""

    __slots__ = ("written",)
    written: str

    def __new__(cls, written: str) -> WrittenNumber:
        """Make a number of its digits."""
        number = super().__new__(cls, written)
        number.written = written
        return number


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt x and a response y; the separator between them is scored with the response."""

    prompt: str
    response: str
    separator: str = ""

    @property
    def text(self) -> str:
        """Prompt, separator and response as one text."""
        return self.prompt + self.separator + self.response


@dataclass(frozen=True, slots=True)
class Choices:
    """A prompt and the responses that are to be ranked."""

    prompt: str
    responses: tuple[str, ...]
    """Two or more."""
    separator: str = ""
    answers: tuple[int, ...] | None = None
    """Places of the right ones, counted from 0; None where that is not known."""
    as_chat: bool = False
    """Wrap each as a turn of the assistant, after the prompt as one of the user."""
    messages: Sequence[Mapping[str, Any]] = ()
    """With `as_chat`, in place of that turn of the user; `prompt` then tells of them."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """With `as_chat`, the chat's other fields."""


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages that a chat template makes a text of."""

    messages: Sequence[Mapping[str, Any]]
    """Each with a `role`, most with a `content`."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """JSON schemas, for the template."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Other variables of the template."""
    n_prompt: int = 0
    """Messages of the prompt, at the beginning: no turn of theirs counts."""


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a text."""

    name: str
    start: int
    """First character (code point)."""
    end: int
    """One past the last."""


@dataclass(frozen=True, slots=True)
class Regions:
    """The parts of one text, in the order in which they were given."""

    regions: tuple[Region, ...]
    item: str | int | None = None
    """Item of an experiment, as the row named it."""
    condition: str | int | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """Log-probabilities that an engine or a trainer wrote of a sample's tokens."""

    log_probs: Floats
    """Shape N, as written: nats, if they are what they are called. NaN where there is none."""
    sampled: Bools | None = None
    """Shape N: tokens of a response that were sampled; None where the row does not tell."""
    n_prompt: int | None = None
    """Tokens before the response; None where the row does not tell."""
    # OpenAI's servers give texts of tokens: ids are found once there is a tokenizer. Until then
    # N counts these alone, and `input_ids` of the sample are the prompt's.
    pieces: tuple[bytes | int, ...] = ()
    """Bytes of the N tokens where the row has no ids of them, or their ids where the prompt has
    none."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One input as it was read: a text, ids that stand in for one, a pair, or a chat."""

    id: str
    source: str
    """The path as given, `<stdin>` or `<text>`."""
    line: int | None = None
    """1-based, in inputs of one sample a line, or a row of a table."""
    text: str | None = None
    input_ids: Ints | None = None
    """Shape N, instead of `text`."""
    labels: Ints | None = None
    """Shape N, with `input_ids`: the id where the loss counts, -100 elsewhere, unshifted."""
    pair: Pair | None = None
    chat: Chat | None = None
    """With `pair` when that was wrapped as one turn of each side."""
    choices: Choices | None = None
    """Instead of a pair, for rankings."""
    meta: Mapping[str, Any] | None = None
    """The row's other fields, when they are to be carried through; each number is a
    `WrittenNumber` unless it is an int of 64 bits."""
    regions: Regions | None = None
    """Regions of a text or a pair, where their losses are asked for."""
    recording: Recording | None = None
    """With ids: log-probabilities that are to be checked."""
    flags: Flags = field(default_factory=dict)
    end: int = 0
    """Bytes of its source up to the end of this sample, as stored; for progress only."""
    # A row of a kilobyte of text may hold megabytes in fields that are not used.
    n_bytes_read: int = 0
    """Bytes that were read for it, other fields of a row included: they bound the read-ahead."""


Rejections = Mapping[str, int]
"""Reason to the number of inputs that were rejected for it."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that could not be scored."""

    id: str
    source: str
    line: int | None
    reason: str
    """A word that scripts can match, such as `bad_json`."""
    message: str
    """The reason in a sentence, for people."""
    end: int = 0
    n_bytes_read: int = 0
    """Both as in `Sample`."""


Item = Sample | Rejected
"""A result of reading: an input, or its rejection."""


def rejection(sample: Sample, reason: str, message: str) -> Rejected:
    """Return the rejection of a sample that was read."""
    return Rejected(
        sample.id, sample.source, sample.line, reason, message, sample.end, sample.n_bytes_read
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a chat in the rendered text."""

    role: str
    start: int
    """First token."""
    end: int
    """One past the last; what the template puts after a turn belongs to it."""


@dataclass(frozen=True, slots=True)
class PromptBoundary:
    """The meeting of prompt and response, or the scored turns of a chat (rules 8 and 9)."""

    boundary: Boundary | None
    """The way in which the two texts of a pair meet in their joint tokenization. None for chats."""
    empty_prompt: bool
    """No text stands before the response."""
    n_words: int
    """Words of the response."""
    prompt_scored: bool = True
    """The prompt's losses are asked for, too."""
    n_spans: int = 1
    """Stretches of text that are scored."""
    n_dropped: int = 0
    """Tokens that were cut from the start of the prompt."""
    turns: tuple[Turn, ...] = ()


class SavedTeacherRows(NamedTuple):
    """A teacher's distributions at M tokens, as far as a file knows them; nats."""

    top_ids: NDArray[np.int32]
    """Shape M x K: the teacher's most probable ids, best first."""
    top_log_probs: Floats
    """Shape M x K."""
    rest_log_prob: Floats
    """Shape M: of all other ids together."""
    rest_p_log_p: Floats
    """Shape M: Σ q ln q over these."""
    losses: Floats
    """Shape M: the teacher's own."""
    entropies: Floats
    """Shape M: of its whole distributions."""

    def take(self, places: Ints | Bools) -> SavedTeacherRows:
        """Return the rows at these places (P indexes or a mask of shape M), in their order."""
        columns: Iterable[NDArray[Any]] = self
        return SavedTeacherRows(*(column[places] for column in columns))

    @classmethod
    def join(cls, parts: Iterable[SavedTeacherRows]) -> SavedTeacherRows:
        """Return the M rows of all parts, one after another."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


SavedTeacher = Callable[[Ints], SavedTeacherRows]
"""Gives what a file knows of a teacher at M scored tokens of one sequence, by their positions."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A sample as the model will see it."""

    sample: Sample
    text: str | None
    """The text that the model is given: of a pair both parts, of a chat the rendered template."""
    token_ids: Ints
    """Shape N, with BOS and EOS."""
    byte_offsets: Ints | None
    """Shape N + 1: token t covers bytes [t, t + 1) of the UTF-8 text. None without a text."""
    # Two masks: the losses of a prompt are computed, for its marginal, and count in no total.
    loss_mask: Bools
    """Shape N: where a loss counts, if there is one."""
    score_mask: Bools
    """Shape N: where a loss is computed, if there is one."""
    bos: BosOrigin
    eos: EosOrigin
    flags: Flags
    unspelled: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Shape U: places of the bytes of the text that no token stands for."""
    prompt_boundary: PromptBoundary | None = None
    response_only: TokenSequence | None = None
    """The response's ids after BOS, when they are to be scored without the prompt (rule 14)."""
    separate_tokenization: TokenSequence | None = None
    """The pair as the other policy tokenizes it, when both are to be compared."""
    saved: SavedTeacher | None = None
    """Its part of a teacher's file, where the model is compared with one."""
    scores_text_end: bool = False
    """Whatever follows the last token is a target, too: so the last token is fed."""

    @property
    def n_tokens(self) -> int:
        """N: BOS and EOS are counted."""
        return len(self.token_ids)

    @property
    def begins_with_bos(self) -> bool:
        """True where x_0 is a BOS, whoever put it there."""
        return self.bos != "none"

    @property
    def text_tokens(self) -> slice:
        """The text's own tokens, without a BOS or EOS that was put around them."""
        n_before = int(self.bos in ("tokenizer", "prepended"))
        return slice(n_before, self.n_tokens - (self.eos == "appended"))

    @property
    def counted_span(self) -> tuple[int, int] | None:
        """The tokens [start, end) that count, where they stand side by side."""
        places = np.flatnonzero(self.loss_mask)
        if not len(places) or places[-1] - places[0] != len(places) - 1:
            return None
        return int(places[0]), int(places[-1]) + 1

    @property
    def auxiliary(self) -> tuple[TokenSequence, ...]:
        """Other sequences that are scored for the same sample."""
        return tuple(s for s in (self.response_only, self.separate_tokenization) if s is not None)


@dataclass(frozen=True, slots=True)
class SequenceScore:
    """A sequence with its losses. Where `scored` is false, the other arrays mean nothing."""

    sequence: TokenSequence
    losses: Floats
    """Shape N, nats."""
    # A mask, and not NaN in `losses`: a NaN of the model must not pass for an unscored token.
    scored: Bools
    """Shape N: the token has a loss."""
    context_lengths: Ints
    """Shape N: tokens that the target could see."""
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Other quantities of each token by name (`core/columns.py`), of shape N or N x K. Only
    `word_boundary_log_probs` is N + 1 x 3, and NaN where no boundary was asked for."""
    response_only: SequenceScore | None = None
    """Scores of `sequence.response_only`."""
    separate_tokenization: SequenceScore | None = None
    """Scores of `sequence.separate_tokenization`."""

    @property
    def sample(self) -> Sample:
        """The input that the sequence was made of."""
        return self.sequence.sample

    @property
    def counted(self) -> Bools:
        """Shape N: a loss exists and counts. Totals, means and rates are over exactly these."""
        return self.scored & self.sequence.loss_mask

    # Public since the first release, for scripts. Later quantities are in `columns` alone.
    @property
    def ranks(self) -> Ints | None:
        """Shape N: 1 is the most probable token. None where they were not asked for."""
        return self.columns.get("ranks")

    @property
    def entropies(self) -> Floats | None:
        """Shape N, nats. None where they were not asked for."""
        return self.columns.get("entropies")

    @property
    def top_ids(self) -> Ints | None:
        """Shape N x K: the most probable tokens, best first, ties by id."""
        return self.columns.get("top_ids")

    @property
    def top_log_probs(self) -> Floats | None:
        """Shape N x K, nats, <= 0: the log-probabilities of `top_ids`."""
        return self.columns.get("top_log_probs")


Entry = TokenSequence | Rejected
"""A result of tokenizing: the tokens of a sample, or its rejection."""
Outcome = SequenceScore | Rejected
"""A result of scoring: the score of a sample, or its rejection."""
