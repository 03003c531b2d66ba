"""The pipeline from samples to scores, in input order, in bounded memory.

Samples are read ahead in blocks, tokenized, cut into windows and batched by length (if asked on
another thread), then scored and assembled again. The cut of a block depends on the samples alone,
so a run can be repeated exactly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from seqloss_cli.backends.batching import plan_batches, smaller_batches
from seqloss_cli.core.backend import Backend, Batch, Requested, TokenScores
from seqloss_cli.core.errors import BatchError, OutOfMemoryError
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import (
    Entry,
    Item,
    Outcome,
    Rejected,
    Sample,
    SavedTeacherRows,
    SequenceScore,
    TokenSequence,
)
from seqloss_cli.scoring.assembler import ScoreAssembler
from seqloss_cli.scoring.prefetch import prefetch

FIRST_BLOCK_ROWS, LARGEST_BLOCK_ROWS = 1, 1024
FIRST_SHARED_ROWS = 256
"""Rows of the first block where common prefixes are shared: rows wait for others that begin
alike."""
BLOCK_BYTES = 1 << 20
OnProgress = Callable[[int, float, Item, int], None]
"""Told of tokens as they are scored: their number, the share of the block that is done, the block's
last item, and of how many inputs the block is."""
Tokenize = Callable[[Sequence[Sample]], list[Entry]]


def ignore_progress(n_tokens: int, share: float, last: Item, n_inputs: int) -> None:
    """Do nothing: nobody watches."""


def ignore_finished(entry: Entry) -> None:
    """Do nothing: no row was finished before."""


def score_samples(
    items: Iterable[Item],
    tokenize: Tokenize,
    backend: Backend,
    windows: WindowPolicy,
    requested: Requested,
    policy: BatchPolicy,
    on_progress: OnProgress = ignore_progress,
    n_finished: int | Callable[[], int] = 0,
    on_finished: Callable[[Entry], None] = ignore_finished,
) -> Iterator[Outcome]:
    """Yield a score or a rejection for each item, in order.

    The first `n_finished` items were scored by an earlier run: `on_finished` is told of them. Where
    that number is known only as items are read, it is asked for at each block, of those so far.
    """

    def prepare(block: list[Item]) -> _Block:
        entries = tokenize_block(block, tokenize)
        if requested.word_boundary_ids is not None:
            entries = list(map(_to_text_end, entries))
        if not backend.capabilities.scores_after_bos:
            entries = list(map(_without_first, entries))
        good = (entry for entry in entries if isinstance(entry, TokenSequence))
        sequences = [sequence for entry in good for sequence in (entry, *entry.auxiliary)]
        batches = plan_batches(sequences, windows, policy, backend.capabilities)
        return _Block(block[-1], entries, sequences, batches)

    n_passed = 0
    shares = policy.share_prefix and not backend.capabilities.one_row_per_batch
    blocks = read_ahead(items, FIRST_SHARED_ROWS if shares else FIRST_BLOCK_ROWS)
    for block in prefetch(blocks, prepare) if policy.prefetch else map(prepare, blocks):
        # Blocks are cut, and one that is finished in part is scored, as without an earlier run: so
        # the outcomes of the others are those of one whole run, to the last bit.
        n_so_far = n_finished if isinstance(n_finished, int) else n_finished()
        finished_here = block.entries[: max(0, n_so_far - n_passed)]
        n_passed += len(block.entries)
        for entry in finished_here:
            on_finished(entry)
        if len(finished_here) < len(block.entries):
            n_inputs = _n_inputs(block.entries[len(finished_here) :])
            outcomes = _outcomes(block, n_inputs, backend, requested, on_progress)
            yield from islice(outcomes, len(finished_here), None)


@dataclass(frozen=True, slots=True)
class _Block:
    """Items that were read together, ready to be scored."""

    last: Item
    entries: list[Entry]
    """One for each item, in order."""
    sequences: list[TokenSequence]
    """The sequences among the entries, each followed by its auxiliary ones."""
    batches: Iterator[Batch]
    """Planned as they are asked for."""


def tokenize_block(block: list[Item], tokenize: Tokenize) -> list[Entry]:
    """Return a sequence or a rejection for each item, in order. Raises OutOfMemoryError."""
    samples = [item for item in block if isinstance(item, Sample)]
    try:
        tokenized = iter(tokenize(samples))
    except MemoryError as error:
        raise OutOfMemoryError(
            f"out of memory while tokenizing {len(samples)} inputs, first {samples[0].id!r}: lower "
            "--max-bytes, or cut long inputs"
        ) from error
    return [next(tokenized) if isinstance(item, Sample) else item for item in block]


def _n_inputs(entries: list[Entry]) -> int:
    """Return of how many inputs entries are: parts of one, as those of a ranking, are one."""
    of = (entry.sample if isinstance(entry, TokenSequence) else entry for entry in entries)
    return len({(each.source, each.line, each.id) for each in of})


def _to_text_end(entry: Entry) -> Entry:
    """Make whatever follows the last token of a text a target, unless an EOS is scored there."""
    if isinstance(entry, Rejected) or not entry.text or entry.eos == "appended":
        return entry
    return replace(entry, scores_text_end=True)


def _without_first(entry: Entry) -> Entry:
    """Leave the token right after BOS unscored, and say so."""
    return entry if isinstance(entry, Rejected) else _after_bos_unscored(entry)


def _after_bos_unscored(sequence: TokenSequence) -> TokenSequence:
    # A response without its prompt lacks its first token then: ln Pr(y) is not known (rule 14).
    sequence = replace(sequence, response_only=None)
    if (separate := sequence.separate_tokenization) is not None:
        sequence = replace(sequence, separate_tokenization=_after_bos_unscored(separate))
    if not sequence.begins_with_bos or not sequence.score_mask[1:2].any():
        return sequence
    mask = sequence.score_mask.copy()
    mask[1] = False
    return replace(
        sequence, score_mask=mask, flags={**sequence.flags, "first_token_unscored": True}
    )


def _outcomes(
    block: _Block, n_inputs: int, backend: Backend, requested: Requested, on_progress: OnProgress
) -> Iterator[Outcome]:
    """Score a block, then yield an outcome for each of its entries, which are of `n_inputs`."""
    sequences = block.sequences
    assemblers = [ScoreAssembler(sequence, requested) for sequence in sequences]
    n_done, n_targets = 0, sum(int(s.score_mask[1:].sum()) + s.scores_text_end for s in sequences)
    for batch, scores in _scored(block, backend, requested):
        assert len(scores.losses) == len(batch.targets)
        requested.require_arrays(scores.columns)
        for part in batch.parts:
            assemblers[part.sequence].take(part, scores)
            n_done += len(part.targets)
        on_progress(len(scores.losses), n_done / n_targets, block.last, n_inputs)
    if n_targets and (confirm := backend.capabilities.confirm) is not None:
        confirm()
    finished = iter(assemblers)
    for entry in block.entries:
        yield _outcome(entry, finished) if isinstance(entry, TokenSequence) else entry


def _scored(
    block: _Block, backend: Backend, requested: Requested
) -> Iterator[tuple[Batch, TokenScores]]:
    """Yield every batch, or halves of it, with its scores; as many at a time as the backend can
    take."""
    n_concurrent = backend.capabilities.n_concurrent_batches
    if n_concurrent == 1:
        for batch in block.batches:
            yield from _score_or_halve(batch, block.sequences, backend, requested)
        return

    def score(batch: Batch) -> list[tuple[Batch, TokenScores]]:
        return list(_score_or_halve(batch, block.sequences, backend, requested))

    pool = ThreadPoolExecutor(n_concurrent)
    try:
        waiting: deque[Future[list[tuple[Batch, TokenScores]]]] = deque()
        for batch in block.batches:
            waiting.append(pool.submit(score, batch))
            # In order, and few at a time: the scores of those that wait are in memory.
            if len(waiting) > 2 * n_concurrent:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _score_or_halve(
    batch: Batch, sequences: Sequence[TokenSequence], backend: Backend, requested: Requested
) -> Iterator[tuple[Batch, TokenScores]]:
    """Yield the batch with its scores, or halves of it where it is not scored as a whole."""
    batch = _with_saved(batch, sequences)
    try:
        scores = backend.score(batch, requested)
    except BatchError:
        halves = smaller_batches(batch, sequences)
        if not halves:
            raise
    else:
        yield batch, scores
        return
    # Outside the except block: there the error would keep the tensors of the batch alive.
    for half in halves:
        yield from _score_or_halve(half, sequences, backend, requested)


def _with_saved(batch: Batch, sequences: Sequence[TokenSequence]) -> Batch:
    """Add a teacher file's knowledge of each target, where there is such a file."""
    parts = [(part, sequences[part.sequence].saved) for part in batch.parts]
    found = [saved(part.targets) for part, saved in parts if saved is not None]
    if not found:
        return batch
    assert len(found) == len(parts), "all sequences of a run have a teacher, or none"
    places = np.concatenate([np.arange(len(batch.targets))[part.score_places] for part, _ in parts])
    order = np.argsort(places)
    return replace(batch, teacher_rows=SavedTeacherRows.join(found).take(order))


def _outcome(sequence: TokenSequence, finished: Iterator[ScoreAssembler]) -> Outcome:
    """Return the sequence's score with those of its auxiliary sequences; a rejection of one rejects
    the sample."""
    score = next(finished).outcome()
    auxiliary = [next(finished).outcome() for _ in sequence.auxiliary]
    for outcome in (score, *auxiliary):
        if isinstance(outcome, Rejected):
            return outcome
    assert isinstance(score, SequenceScore)
    scores = {id(s.sequence): s for s in auxiliary if isinstance(s, SequenceScore)}
    return replace(
        score,
        response_only=scores.get(id(sequence.response_only)),
        separate_tokenization=scores.get(id(sequence.separate_tokenization)),
    )


def read_ahead(items: Iterable[Item], first_rows: int = FIRST_BLOCK_ROWS) -> Iterator[list[Item]]:
    """Yield blocks, cut by the row's position or after a mebibyte of text."""
    # Small ones first, so that first results come soon: an idle pipe shows its first line.
    block: list[Item] = []
    rows, size = first_rows, 0
    for item in items:
        block.append(item)
        size += _size(item)
        if len(block) >= rows or size >= BLOCK_BYTES:
            yield block
            block, size, rows = [], 0, min(2 * rows, LARGEST_BLOCK_ROWS)
    if block:
        yield block


def _size(item: Item) -> int:
    if item.n_bytes_read or isinstance(item, Rejected):
        return item.n_bytes_read
    if item.pair is not None:
        return len(item.pair.text)
    return 4 * len(item.input_ids) if item.input_ids is not None else len(item.text or "")
