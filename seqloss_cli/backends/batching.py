"""Put the windows of a read-ahead block into batches of rows of similar length.

Batches depend on the block's sequences, the budget and what the backend takes alone. Numbers do not
depend on them (rule 11): rows do not see one another, nor do suffixes of a common prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from seqloss_cli.backends.prefix_sharing import group_by_prefix
from seqloss_cli.backends.windows import plan_windows, with_end
from seqloss_cli.core.backend import Batch, Capabilities, Suffixes, Window, WindowTargets, padded
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import Ints, TokenSequence

WIDEST_SUFFIXES = 512
"""Tokens of a row's suffixes that are fed at a time: each is compared with all of them."""
LONGEST_SUFFIX = 2048
"""Tokens after a common prefix that may share it, if they are no more than the prefix or
`WIDEST_SUFFIXES`: the mask of a suffix is its length times that of the whole row."""
LEAST_ROW = 64
"""Tokens that a short row counts as where rows are sent as they come: it bounds their number."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """A window of a sequence, with its targets that are to be scored."""

    sequence: int
    """Index of the sequence in the read-ahead block."""
    window: Window
    ids: Ints
    """The tokens that are fed, shape `window.n_fed`."""
    targets: Ints
    """Positions in the sequence, shape M, ascending."""
    target_ids: Ints
    """Shape M."""

    @property
    def source_positions(self) -> Ints:
        """For each target the fed position that predicts it, shape M."""
        return self.targets - 1 - self.window.start + self.window.bos_first


@dataclass(frozen=True, slots=True)
class _PrefixRow:
    """Rows that begin with the same `prefix` tokens, which are fed once; the rest of each is a
    suffix."""

    prefix: int
    chunks: tuple[tuple[Row, ...], ...]
    """Rows whose suffixes are fed side by side."""

    @property
    def ids(self) -> Ints:
        """The tokens of the prefix."""
        return self.chunks[0][0].ids[: self.prefix]

    @property
    def width(self) -> int:
        """Tokens of the prefix and of all suffixes."""
        return self.prefix + sum(_suffix_tokens(chunk, self.prefix) for chunk in self.chunks)


def _suffix_tokens(chunk: Sequence[Row], prefix: int) -> int:
    return sum(len(row.ids) - prefix for row in chunk)


def plan_batches(
    sequences: Sequence[TokenSequence],
    windows: WindowPolicy,
    policy: BatchPolicy,
    capabilities: Capabilities,
) -> Iterator[Batch]:
    """Yield batches of at most `policy.tokens` tokens (one window at least), padding counted where
    rows are padded."""
    rows = [row for index, s in enumerate(sequences) for row in _rows_of(index, s, windows)]
    if tokens := capabilities.tokens_as_they_come:
        # In the order of the input, in which rows that begin alike are often neighbours.
        for some in _runs(rows, [max(LEAST_ROW, len(row.ids)) for row in rows], tokens):
            yield _row_batch(some)
        return
    shared: list[_PrefixRow] = []
    if policy.share_prefix and not capabilities.one_row_per_batch:
        shared, rows = _share_prefixes(rows, policy.tokens, capabilities.longest_shared)
    tokens = 1 if capabilities.one_row_per_batch else policy.tokens
    # Longest rows first, so that a budget too large for the machine shows at once.
    for some_shared in _fill(shared, [each.width for each in shared], tokens):
        yield _shared_batch(some_shared)
    longer = [row for row in rows if row.window.n_fed > capabilities.longest_packed]
    for some_rows in _fill(longer, [row.window.n_fed for row in longer], tokens):
        yield _row_batch(some_rows)
    others = [row for row in rows if row.window.n_fed <= capabilities.longest_packed]
    for some_rows in _fill(others, [row.window.n_fed for row in others], tokens, pad=False):
        yield _row_batch(some_rows)


def smaller_batches(batch: Batch, sequences: Sequence[TokenSequence]) -> list[Batch]:
    """Return batches of the same targets with at most half the tokens, nothing shared; none where
    the batch is a single row of one window, which cannot be made smaller."""
    if len(batch.parts) == 1 and not batch.suffixes:
        return []
    rows = [
        _row(part.sequence, part.window, part.targets, _ids_with_end(sequences[part.sequence]))
        for part in batch.parts
    ]
    widths = [len(row.ids) for row in rows]
    return [_row_batch(some) for some in _fill(rows, widths, max(1, batch.n_fed // 2))]


def _ids_with_end(sequence: TokenSequence) -> Ints:
    """Return the ids, and one more where the end of the text is scored."""
    # What follows the last token is one more target. It has no id of its own: that of any token
    # does, since its loss is never read, but for the probabilities beside it.
    ids = sequence.token_ids
    return np.append(ids, ids[-1]) if sequence.scores_text_end else ids


def _row(index: int, window: Window, targets: Ints, ids: Ints) -> Row:
    fed = ids[window.start : window.end]
    if window.bos_first:
        fed = np.concatenate([ids[:1], fed])
    return Row(index, window, fed, targets, ids[targets])


def _rows_of(index: int, sequence: TokenSequence, policy: WindowPolicy) -> Iterator[Row]:
    """Yield the sequence's windows that have targets to be scored."""
    n, has_bos, score_mask = sequence.n_tokens, sequence.begins_with_bos, sequence.score_mask
    ids = _ids_with_end(sequence)
    windows = plan_windows(n, policy.context, policy.stride, has_bos)
    if sequence.scores_text_end:
        score_mask = np.append(score_mask, True)
        windows = with_end(windows, n, policy.context, has_bos)
    for window in windows:
        here = score_mask[window.score_from : window.end + 1]
        targets = window.score_from + np.flatnonzero(here)
        if len(targets):
            # Tokens after the last target are not fed: nobody asks for what they predict.
            window = replace(window, end=int(targets[-1]))
            yield _row(index, window, targets, ids)


def _fill(entries: list[T], widths: list[int], tokens: int, pad: bool = True) -> Iterator[list[T]]:
    """Yield entries of similar width together, as many as there is room for, widest first. Each
    takes the room of the widest where they are to be padded."""
    order = sorted(range(len(entries)), key=lambda n: -widths[n])
    return _runs([entries[n] for n in order], [widths[n] for n in order], tokens, pad)


def _runs(
    entries: Sequence[T], widths: Sequence[int], tokens: int, pad: bool = False
) -> Iterator[list[T]]:
    """Yield neighbours together that take at most `tokens` (one at least); with `pad`, each takes
    the room of the first."""
    run: list[T] = []
    first = used = 0
    for entry, width in zip(entries, widths, strict=True):
        if run and used + (first if pad else width) > tokens:
            yield run
            run, used = [], 0
        if not run:
            first = width
        run.append(entry)
        used += first if pad else width
    if run:
        yield run


def _row_batch(rows: list[Row]) -> Batch:
    targets = _Targets()
    n_before = 0
    for row in rows:
        scores = targets.add(n_before + row.source_positions, row.target_ids)
        targets.parts.append(WindowTargets(row.sequence, row.window, row.targets, scores))
        n_before += len(row.ids)
    return targets.batch([row.ids for row in rows], ())


def _share_prefixes(
    rows: list[Row], tokens: int, longest: int
) -> tuple[list[_PrefixRow], list[Row]]:
    """Return rows that share a prefix, and the rows that share none."""
    eligible = [row for row in rows if row.window.start == 0 and len(row.ids) <= longest]
    shared: list[_PrefixRow] = []
    taken: set[int] = set()
    for group in group_by_prefix([row.ids for row in eligible]):
        most = min(LONGEST_SUFFIX, max(WIDEST_SUFFIXES, group.prefix))
        members = [
            eligible[n] for n in group.members if len(eligible[n].ids) - group.prefix <= most
        ]
        if len(members) < 2:
            continue
        taken.update(row.sequence for row in members)
        shared += _cut(group.prefix, members, max(tokens - group.prefix, group.prefix))
    alone = [row for row in rows if row.window.start != 0 or row.sequence not in taken]
    return shared, alone


def _cut(prefix: int, members: list[Row], most: int) -> Iterator[_PrefixRow]:
    """Yield rows of at most `most` tokens in suffixes (one suffix at least)."""
    lengths = [len(row.ids) - prefix for row in members]
    chunks = [tuple(run) for run in _runs(members, lengths, min(most, WIDEST_SUFFIXES))]
    for run in _runs(chunks, [_suffix_tokens(chunk, prefix) for chunk in chunks], most):
        yield _PrefixRow(prefix, tuple(run))


def _shared_batch(rows: list[_PrefixRow]) -> Batch:
    """Hidden states are counted prefix by prefix, then chunk by chunk, each padded to its widest
    row."""
    starts = [0, *np.cumsum([row.prefix for row in rows]).tolist()]
    targets = _Targets()
    in_prefix = [_add_prefix(targets, *both) for both in zip(rows, starts, strict=False)]
    n_before = starts[-1]
    suffixes = []
    for c in range(max(len(row.chunks) for row in rows)):
        chunks = [row.chunks[c] if c < len(row.chunks) else () for row in rows]
        width = max(_suffix_tokens(k, row.prefix) for k, row in zip(chunks, rows, strict=True))
        for b, (row, chunk) in enumerate(zip(rows, chunks, strict=True)):
            first = n_before + b * width
            _add_suffixes(targets, row.prefix, chunk, in_prefix[b], starts[b], first)
        if width:
            suffixes.append(_suffixes(rows, chunks, width))
            n_before += len(rows) * width
    return targets.batch([row.ids for row in rows], tuple(suffixes))


def _add_prefix(targets: _Targets, row: _PrefixRow, row_start: int) -> tuple[Ints, slice]:
    """Add the targets within the prefix that any of its sequences has; return them, and where their
    scores will stand."""
    asked = [each.targets[each.targets < row.prefix] for chunk in row.chunks for each in chunk]
    positions = np.unique(np.concatenate(asked))
    return positions, targets.add(row_start + positions - 1, row.ids[positions])


def _add_suffixes(
    targets: _Targets,
    prefix: int,
    chunk: Sequence[Row],
    in_prefix: tuple[Ints, slice],
    row_start: int,
    suffix_start: int,
) -> None:
    """Add each sequence's own targets, and note where the scores of those in the prefix are."""
    prefix_targets, prefix_scores = in_prefix
    for row in chunk:
        within = row.targets < prefix
        found = prefix_scores.start + np.searchsorted(prefix_targets, row.targets[within])
        own = row.targets[~within]
        # The first token of a suffix is predicted by the last position of the prefix.
        at = np.where(own == prefix, row_start + prefix - 1, suffix_start + own - 1 - prefix)
        scores = targets.add(at, row.target_ids[~within])
        places = np.concatenate([found, np.arange(scores.start, scores.stop)])
        targets.parts.append(WindowTargets(row.sequence, row.window, row.targets, places))
        suffix_start += len(row.ids) - prefix


def _suffixes(rows: list[_PrefixRow], chunks: Sequence[Sequence[Row]], width: int) -> Suffixes:
    ids, positions, numbers = [], [], []
    for row, chunk in zip(rows, chunks, strict=True):
        tails = [each.ids[row.prefix :] for each in chunk]
        nothing = [np.empty(0, dtype=np.int64)]
        ids.append(np.concatenate(tails + nothing))
        positions.append(np.concatenate([row.prefix + np.arange(len(t)) for t in tails] + nothing))
        numbers.append(np.repeat(np.arange(len(tails)), [len(tail) for tail in tails]))
    return Suffixes(padded(ids, width), padded(positions, width), padded(numbers, width, -1))


class _Targets:
    """The targets of a batch while it is put together."""

    def __init__(self) -> None:
        self._sources: list[Ints] = []
        self._ids: list[Ints] = []
        self._n = 0
        self.parts: list[WindowTargets] = []

    def add(self, sources: Ints, ids: Ints) -> slice:
        """Add M targets by the hidden states that predict them; return where their scores will
        stand."""
        self._sources.append(sources)
        self._ids.append(ids)
        start, self._n = self._n, self._n + len(ids)
        return slice(start, self._n)

    def batch(self, rows: list[Ints], suffixes: tuple[Suffixes, ...]) -> Batch:
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        sources, ids = np.concatenate(self._sources), np.concatenate(self._ids)
        return Batch(np.concatenate(rows), lengths, sources, ids, tuple(self.parts), suffixes)
