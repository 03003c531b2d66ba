"""Check recordings: score the ids that they are of, or take another recording's values for that.

Shapes: N tokens of a sequence.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import LOGIT_SHAPE
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import (
    Item,
    Outcome,
    Recording,
    Rejected,
    Sample,
    SequenceScore,
    TokenSequence,
    rejection,
)
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.deltas import (
    DeltaDocuments,
    DeltaTotals,
    RecordedScore,
    delta_totals,
)
from seqloss_cli.metrics.fault_fits import Observed
from seqloss_cli.metrics.faults import Diagnosis, diagnose
from seqloss_cli.metrics.sampling_fits import LogitShapes
from seqloss_cli.scoring.pipeline import OnProgress
from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.scoring.tasks import FinishedInputs, Task
from seqloss_cli.tokenization.chat_templates import ChatTemplate
from seqloss_cli.tokenization.tokenizer import Tokenization

MOST_TOKENS = 1 << 15
"""Tokens that a diagnosis looks at: of more, every second row is left out, then every fourth, …"""
CHECK_REQUEST = Requested(internal=(LOGIT_SHAPE,))
CheckTask = Task[RecordedScore, DeltaTotals, Any]


class Examined:
    """Rows for a diagnosis, in bounded memory: evenly from all, the same ones in each run."""

    def __init__(self, eos_id: int | None, n_ids: int) -> None:
        """`n_ids` is the size of the vocabulary; 0 where no model is run."""
        self._eos_id, self._n_ids = eos_id, n_ids
        self._rows: list[RecordedScore] = []
        self._every, self._n_seen, self._n_tokens = 1, 0, 0

    def add(self, found: RecordedScore) -> None:
        """Add a row, if it is among those that are kept."""
        if self._n_seen % self._every == 0:
            self._rows.append(found)
            self._n_tokens += len(found.log_probs)
        self._n_seen += 1
        while self._n_tokens > MOST_TOKENS and len(self._rows) > 1:
            self._rows, self._every = self._rows[::2], 2 * self._every
            self._n_tokens = sum(len(each.log_probs) for each in self._rows)

    def diagnosis(self) -> Diagnosis:
        """Return what is wrong with these rows."""
        rows = self._rows
        if not rows:
            return Diagnosis("nothing")
        lengths = [len(each.log_probs) for each in rows]
        # Of all tokens, recorded or not: a value may be that of a neighbour.
        known = [each.score.scored & np.isfinite(each.score.losses) for each in rows]
        scored = [
            np.where(mask, each.scored_log_probs, np.nan)
            for each, mask in zip(rows, known, strict=True)
        ]
        none = [np.zeros(n, dtype=bool) for n in lengths]
        sampled = [n if r.sampled is None else r.sampled for r, n in zip(rows, none, strict=True)]
        prompts = [-1 if each.n_prompt is None else each.n_prompt for each in rows]
        return diagnose(
            Observed(
                np.concatenate([each.log_probs for each in rows]),
                np.concatenate(scored),
                np.concatenate(sampled),
                np.repeat(np.arange(len(rows)), lengths),
                np.repeat(np.array(prompts), lengths),
                np.concatenate([each.score.sequence.token_ids for each in rows]),
                self._eos_id,
                self._shapes(),
            )
        )

    def _shapes(self) -> LogitShapes | None:
        rows = [each for each in self._rows if each.compared.any()]
        if not self._n_ids or not rows:
            return None
        columns = {
            name: np.concatenate([each.score.columns[name][each.compared] for each in rows])
            for name in LOGIT_SHAPE.array_names
        }
        log_probs = np.concatenate([each.scored_log_probs[each.compared] for each in rows])
        return LogitShapes.of(log_probs, columns, self._n_ids)


@dataclass
class Checking:
    """Figures and rows that a check gathers."""

    documents: DeltaDocuments
    examined: Examined
    _diagnosis: Diagnosis | None = field(default=None, init=False)

    def add(self, found: RecordedScore, sums: DeltaTotals) -> None:
        """Add a row."""
        self.documents.add(found)
        self.examined.add(found)

    def diagnosis(self) -> Diagnosis:
        """Return what is wrong with the recording: to be asked for when all rows are there."""
        # Asked for by the table and by --fail-above's message, and it takes a second.
        if self._diagnosis is None:
            self._diagnosis = self.examined.diagnosis()
        return self._diagnosis


def check_task(
    scorer: Scorer, threshold: float, chat_template: str | None
) -> tuple[CheckTask, Checking]:
    """Return the task that scores recordings with a model, and what it gathers.

    Raises UsageError where the backend does not tell of its logits.
    """
    scorer.require_possible(CHECK_REQUEST)
    tokenization = scorer.tokenization
    resolve = _Resolver(tokenization, chat_template)

    def results(
        items: Iterable[Item], on_progress: OnProgress, finished: FinishedInputs[Any]
    ) -> Iterator[RecordedScore | Rejected]:
        scored = scorer.score(map(resolve, items), CHECK_REQUEST, on_progress)
        # A generator: the loop that writes closes it, and with it a thread that reads ahead.
        return (_recorded(outcome) for outcome in scored)

    examined = Examined(tokenization.eos_id, scorer.backend.vocab_size())
    checking = Checking(DeltaDocuments(threshold), examined)
    return _task(scorer.run_info("check"), scorer, results, checking), checking


def _task(run: RunInfo, source: Any, results: Any, checking: Checking) -> CheckTask:
    threshold = checking.documents.threshold
    return Task(
        run,
        source,
        results,
        lambda found: delta_totals(found, threshold),
        DeltaTotals(),
        checking.add,
    )


def _recorded(outcome: Outcome) -> RecordedScore | Rejected:
    """Lay the recording beside the score, which may have a BOS more."""
    if isinstance(outcome, Rejected):
        return outcome
    recording = outcome.sample.recording
    assert recording is not None
    n_more = len(outcome.losses) - len(recording.log_probs)
    before = np.full(n_more, np.nan)
    sampled = recording.sampled
    if sampled is not None:
        sampled = np.concatenate([np.zeros(n_more, dtype=bool), sampled])
    n_prompt = None if recording.n_prompt is None else recording.n_prompt + n_more
    return RecordedScore(outcome, np.concatenate([before, recording.log_probs]), sampled, n_prompt)


class _Resolver:
    """Finds the ids of tokens that are known by their bytes, and of prompts that are texts."""

    def __init__(self, tokenization: Tokenization, chat_template: str | None) -> None:
        self._tokenization, self._given = tokenization, chat_template
        self._ids: dict[bytes, int] | None = None
        self._template: ChatTemplate | None = None

    def __call__(self, item: Item) -> Item:
        """Return the sample with all ids, or why it has none."""
        if isinstance(item, Rejected) or item.recording is None or not item.recording.pieces:
            return item
        try:
            before = self._prompt_ids(item)
            ids = [self._id_of(n, piece) for n, piece in enumerate(item.recording.pieces)]
        except RowError as error:
            return rejection(item, error.reason, error.message)
        return _with_ids(item, before, ids)

    def _prompt_ids(self, sample: Sample) -> list[int]:
        if sample.input_ids is not None:
            given: list[int] = sample.input_ids.tolist()
            return given
        text, tokenization = sample.text, self._tokenization
        if sample.chat is not None:
            if self._template is None:
                tokenizer = tokenization.vocabulary.tokenizer
                self._template = ChatTemplate(tokenizer, self._given)
            rendering = self._template.render(sample.chat)
            text = rendering.beginning(sample.chat.n_prompt, prompt=True)
            if text is None:
                raise RowError("chat_template_error", "the chat template takes no such prompt")
        if not text:
            return []
        (ids,) = tokenization.encode([text])
        if isinstance(ids, RowError):
            raise ids
        bos = tokenization.bos_id
        # A rendered template holds its BOS already.
        puts = tokenization.policy.bos != "never" and bos is not None and ids[:1] != [bos]
        return [bos, *ids] if puts and bos is not None else ids

    def _id_of(self, place: int, piece: bytes | int) -> int:
        if isinstance(piece, int):
            return piece
        if self._ids is None:
            self._ids = _ids_by_bytes(self._tokenization)
        found = self._ids.get(piece)
        if found is None:
            shown = piece.decode(errors="backslashreplace")
            what = f"token {place} of the answer, {shown!r:.40}, is no token of the model's"
            raise RowError("unknown_token", f"{what}: give ids (vLLM: return_token_ids)")
        return found


def _ids_by_bytes(tokenization: Tokenization) -> dict[bytes, int]:
    vocabulary, found = tokenization.vocabulary, dict[bytes, int]()
    spelled = vocabulary.spelled_ids(tokenization.n_ids)
    for token_id, piece in enumerate(spelled):
        # Of a byte and a letter that is this byte, the letter is what a text is made of: it has the
        # higher id in vocabularies that have both.
        if piece:
            found[piece] = token_id
    for token_id, name in vocabulary.special.items():
        found[name.encode()] = token_id
    return found


def _with_ids(sample: Sample, prompt: list[int], ids: list[int]) -> Sample:
    """Return a sample of the ids of its prompt and of what the recording is of."""
    recording, n = sample.recording, len(prompt)
    assert recording is not None
    sampled = None
    if recording.sampled is not None:
        sampled = np.concatenate([np.zeros(n, dtype=bool), recording.sampled])
    whole = Recording(
        np.concatenate([np.full(n, np.nan), recording.log_probs]),
        sampled,
        n + (recording.n_prompt or 0),
    )
    input_ids = np.array([*prompt, *ids], dtype=np.int64)
    return replace(sample, text=None, chat=None, input_ids=input_ids, recording=whole)


# -- two recordings, no model -----------------------------------------------------------------


class RecordedTokens:
    """The ids of recordings, without a tokenizer or a model."""

    pairing = None

    def __init__(self) -> None:
        self.tokenization: Any = self
        self._pieces: dict[bytes, int] = {}

    def token_texts(self, sequence: TokenSequence) -> list[str]:
        """Return a text for each token: its bytes where it is known by these, else its id."""
        names = {number: piece for piece, number in self._pieces.items()}
        return [
            names[i].decode(errors="backslashreplace") if i in names else str(i)
            for i in sequence.token_ids.tolist()
        ]

    def name_token(self, token_id: int) -> str:
        """Return the text of an id: its digits."""
        return str(token_id)

    def with_ids(self, sample: Sample) -> Sample:
        """Return the sample with numbers in the place of ids where it knows bytes only."""
        recording = sample.recording
        if recording is None or not recording.pieces:
            return sample
        # Negative: no id of a vocabulary.
        ids = [
            piece if isinstance(piece, int)
            else self._pieces.setdefault(piece, -1 - len(self._pieces))
            for piece in recording.pieces
        ]  # fmt: skip
        prompt = [] if sample.input_ids is None else sample.input_ids.tolist()
        return _with_ids(sample, prompt, ids)

    def run_info(self) -> RunInfo:
        """Return the run record, in which nothing is known of tokens."""
        return RunInfo(
            command="check",
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            tokenizer="none",
            tokenizer_sha256="",
            bos="never",
            bos_token_id=None,
            bos_token=None,
            eos=False,
            eos_token_id=None,
            special_tokens="parse",
            versions={"python": platform.python_version(), "seqloss": version("seqloss")},
        )


def against_task(
    find: Callable[[Item], tuple[int, Sample] | Rejected], threshold: float
) -> tuple[CheckTask, Checking]:
    """Return the task that takes another recording's values for scores, and what it gathers.

    `find` gives each input its row of the other recording; it is asked once for each, in order.
    """
    tokens = RecordedTokens()

    def results(
        items: Iterable[Item], on_progress: OnProgress, finished: FinishedInputs[Any]
    ) -> Iterator[RecordedScore | Rejected]:
        for item in items:
            row = find(item)
            if isinstance(item, Rejected):
                yield item
            elif isinstance(row, Rejected):
                yield replace(row, end=item.end, n_bytes_read=item.n_bytes_read)
            else:
                yield _beside(tokens.with_ids(item), tokens.with_ids(row[1]), row)

    checking = Checking(DeltaDocuments(threshold), Examined(None, 0))
    return _task(tokens.run_info(), tokens, results, checking), checking


def _beside(sample: Sample, other: Sample, row: tuple[int, Sample]) -> RecordedScore | Rejected:
    """Lay a recording beside another one of the same ids."""
    ids, theirs = sample.input_ids, other.input_ids
    assert ids is not None
    assert theirs is not None
    recording, scores = sample.recording, other.recording
    assert recording is not None
    assert scores is not None
    if not np.array_equal(ids, theirs):
        return rejection(sample, "other_ids", _how_ids_differ(ids, theirs, row))
    n = len(ids)
    everywhere = np.ones(n, dtype=bool)
    sequence = TokenSequence(
        sample, None, ids, None, everywhere, everywhere, "none", "none", dict(sample.flags)
    )
    known = np.isfinite(scores.log_probs)
    losses = np.where(known, 0.0 - scores.log_probs, 0.0)
    score = SequenceScore(sequence, losses, known, np.arange(n))
    sampled = recording.sampled if recording.sampled is not None else scores.sampled
    return RecordedScore(score, recording.log_probs, sampled, recording.n_prompt)


def _how_ids_differ(ids: NDArray[Any], theirs: NDArray[Any], row: tuple[int, Sample]) -> str:
    place = f"{row[1].source}:{row[0]}"
    if ids.min(initial=0) < 0 or theirs.min(initial=0) < 0:
        return f"and {place} are not of the same tokens: those that are known by bytes have no ids"
    if len(ids) != len(theirs):
        return f"has {len(ids)} ids, and {place} has {len(theirs)}"
    at = int(np.argmax(ids != theirs))
    return f"has id {ids[at]} at token {at}, and {place} has {theirs[at]}"
