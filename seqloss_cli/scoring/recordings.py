"""Check recordings: score the ids that they are of, or take another recording's values for that.

Shapes: N tokens of a sequence.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
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
    aligned,
    delta_totals,
)
from seqloss_cli.metrics.faults import Checking, Examined
from seqloss_cli.scoring.pipeline import OnProgress
from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.scoring.tasks import FinishedInputs, Task
from seqloss_cli.tokenization.chat_templates import ChatTemplate
from seqloss_cli.tokenization.tokenizer import Tokenization

_NO_ID = 1 << 40
"""No vocabulary has as many ids. Numbers of tokens that are known by their bytes are from here on;
they fit into a float64."""
CHECK_REQUEST = Requested(internal=(LOGIT_SHAPE,))
CheckTask = Task[RecordedScore, DeltaTotals, Any]


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
        scored = scorer.score(
            map(resolve, items), CHECK_REQUEST, on_progress, finished.n, finished.on_input
        )
        # A generator: the loop that writes closes it, and with it a thread that reads ahead.
        return (_recorded(outcome) for outcome in scored)

    checking = Checking(DeltaDocuments(threshold), Examined(tokenization.eos_id))
    return _task(scorer.run_info("check"), scorer, results, checking), checking


def _task(run: RunInfo, source: Any, results: Any, checking: Checking) -> CheckTask:
    threshold = checking.documents.threshold
    return Task(
        run,
        source,
        results,
        lambda found: delta_totals(found, threshold),
        DeltaTotals(),
        lambda found, sums: checking.add(found),
    )


def _recorded(outcome: Outcome) -> RecordedScore | Rejected:
    """Lay the recording beside the score, which may have a BOS more."""
    if isinstance(outcome, Rejected):
        return outcome
    recording = aligned(outcome.sequence)
    return RecordedScore(outcome, recording.log_probs, recording.sampled, recording.n_prompt)


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
        self._pieces: dict[int, bytes] = {}

    def token_texts(self, sequence: TokenSequence) -> list[str]:
        """Return a text for each token: its bytes where it is known by these, else its id."""
        return [
            self._pieces[i].decode(errors="backslashreplace") if i in self._pieces else str(i)
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
        ids = [each if isinstance(each, int) else self._number(each) for each in recording.pieces]
        prompt = [] if sample.input_ids is None else sample.input_ids.tolist()
        return _with_ids(sample, prompt, ids)

    def _number(self, piece: bytes) -> int:
        """Return the number of a piece: the same in every run, and no id of a vocabulary."""
        digest = hashlib.blake2b(piece, digest_size=6).digest()
        number = _NO_ID + int.from_bytes(digest)
        self._pieces[number] = piece
        return number

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
        for number, item in enumerate(items):
            row = find(item)
            if isinstance(item, Rejected):
                found: RecordedScore | Rejected = item
            elif isinstance(row, Rejected):
                found = replace(row, end=item.end, n_bytes_read=item.n_bytes_read)
            else:
                found = _beside(tokens.with_ids(item), tokens.with_ids(row[1]), row)
            if number < finished.n:
                finished.on_input(found)
            else:
                yield found

    checking = Checking(DeltaDocuments(threshold), Examined(None))
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
    if max(ids.max(initial=0), theirs.max(initial=0)) >= _NO_ID:
        return f"and {place} are not of the same tokens: those that are known by bytes have no ids"
    if len(ids) != len(theirs):
        return f"has {len(ids)} ids, and {place} has {len(theirs)}"
    at = int(np.argmax(ids != theirs))
    return f"has id {ids[at]} at token {at}, and {place} has {theirs[at]}"
