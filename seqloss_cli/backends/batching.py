"""From the sequences of a read-ahead block to batches of rows of similar length, and back.

Batches depend on the block's sequences, the budget and what the backend takes alone. Numbers do not
depend on them (rule 11): rows do not see one another, nor do the branches of a trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from seqloss_cli.backends.prefix_sharing import group_by_prefix
from seqloss_cli.backends.windows import plan_windows, with_end
from seqloss_cli.core.backend import Batch, Capabilities, Part, Suffixes, Window, padded
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import Ints, TokenSequence

WIDEST_BRANCHES = 512
"""Tokens of a row's branches that are fed at a time: each is compared with all of them."""
LONGEST_BRANCH = 2048
"""Tokens after a common beginning that may branch off it, if they are no more than the beginning or
`WIDEST_BRANCHES`: what a branch sees is a mask of its length times that of the whole row."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Fed:
    """A window of a sequence, with the targets in it that are wanted."""

    index: int
    window: Window
    ids: Ints
    targets: Ints
    """Positions in the sequence."""
    target_ids: Ints

    @property
    def sources(self) -> Ints:
        """For each target the fed position that predicts it."""
        return self.targets - 1 - self.window.start + self.window.bos_first


@dataclass(frozen=True, slots=True)
class _Tree:
    """Fed sequences that begin with the same `prefix` tokens; what follows of each is a branch."""

    prefix: int
    chunks: tuple[tuple[_Fed, ...], ...]
    """Those whose branches are fed side by side."""

    @property
    def width(self) -> int:
        """Tokens of the trunk and of all branches."""
        return self.prefix + sum(_branch_tokens(chunk, self.prefix) for chunk in self.chunks)


def _branch_tokens(chunk: Sequence[_Fed], prefix: int) -> int:
    return sum(len(fed.ids) - prefix for fed in chunk)


def plan_batches(
    sequences: Sequence[TokenSequence],
    windows: WindowPolicy,
    policy: BatchPolicy,
    capabilities: Capabilities,
) -> Iterator[Batch]:
    """Batches of at most `policy.tokens` tokens (one window at least), longest rows first, so that
    a budget too large for the machine shows at once. Padding counts, where rows are padded."""
    rows = [fed for index, s in enumerate(sequences) for fed in _fed_windows(index, s, windows)]
    trees: list[_Tree] = []
    if policy.share_prefix and not capabilities.one_row:
        trees, rows = _trees(rows, policy.tokens, capabilities.longest_shared)
    tokens = 1 if capabilities.one_row else policy.tokens
    for some_trees in _fill(trees, [tree.width for tree in trees], tokens):
        yield _tree_batch(some_trees)
    longer = [row for row in rows if row.window.n_fed > capabilities.longest_packed]
    for some_rows in _fill(longer, [row.window.n_fed for row in longer], tokens):
        yield _row_batch(some_rows)
    others = [row for row in rows if row.window.n_fed <= capabilities.longest_packed]
    for some_rows in _fill(others, [row.window.n_fed for row in others], tokens, pad=False):
        yield _row_batch(some_rows)


def smaller_batches(batch: Batch, sequences: Sequence[TokenSequence]) -> list[Batch]:
    """The same targets in batches of at most half the tokens, nothing shared; none when the batch
    is a single row of one window, which cannot be made smaller."""
    if len(batch.parts) == 1 and not batch.suffixes:
        return []
    rows = [_fed(part, _ids_with_end(sequences[part.sequence])) for part in batch.parts]
    widths = [len(row.ids) for row in rows]
    return [_row_batch(some) for some in _fill(rows, widths, max(1, batch.n_fed // 2))]


def _ids_with_end(sequence: TokenSequence) -> Ints:
    """Where the end is wanted it is one more target, with some id of the model's: its loss is the
    loss of nothing."""
    ids = sequence.token_ids
    return np.append(ids, ids[-1]) if sequence.end_scored else ids


def _fed(part: Part, token_ids: Ints) -> _Fed:
    fed = token_ids[part.window.start : part.window.end]
    if part.window.bos_first:
        fed = np.concatenate([token_ids[:1], fed])
    return _Fed(part.sequence, part.window, fed, part.targets, token_ids[part.targets])


def _fed_windows(index: int, sequence: TokenSequence, policy: WindowPolicy) -> Iterator[_Fed]:
    """The sequence's windows, as far as they have wanted targets."""
    n, has_bos, wanted = sequence.n_tokens, sequence.begins_with_bos, sequence.score_mask
    ids = _ids_with_end(sequence)
    windows = plan_windows(n, policy.context, policy.stride, has_bos)
    if sequence.end_scored:
        wanted = np.append(wanted, True)
        windows = with_end(windows, n, policy.context, has_bos)
    for window in windows:
        targets = window.score_from + np.flatnonzero(wanted[window.score_from : window.end + 1])
        if len(targets):
            window = replace(window, end=int(targets[-1]))  # nobody asks for what comes after
            yield _fed(Part(index, window, targets, slice(0)), ids)


def _fill(entries: list[T], widths: list[int], tokens: int, pad: bool = True) -> Iterator[list[T]]:
    """Entries of similar width together, as many as there is room for, widest first. Each takes the
    room of the widest where they are to be padded."""
    order = sorted(range(len(entries)), key=lambda n: -widths[n])
    start = 0
    while start < len(order):
        widest = widths[order[start]]
        stop, used = start, 0
        while stop < len(order):
            width = widest if pad else widths[order[stop]]
            if stop > start and used + width > tokens:
                break
            used, stop = used + width, stop + 1
        yield [entries[n] for n in order[start:stop]]
        start = stop


def _row_batch(rows: list[_Fed]) -> Batch:
    collected = _Targets()
    n_before = 0
    for fed in rows:
        scores = collected.add(n_before + fed.sources, fed.target_ids)
        collected.parts.append(Part(fed.index, fed.window, fed.targets, scores))
        n_before += len(fed.ids)
    return collected.batch([fed.ids for fed in rows], ())


# -- sequences that begin alike ---------------------------------------------------------------


def _trees(rows: list[_Fed], tokens: int, longest: int) -> tuple[list[_Tree], list[_Fed]]:
    """Trees of the rows that begin alike, and the rows that remain."""
    eligible = [fed for fed in rows if fed.window.start == 0 and len(fed.ids) <= longest]
    trees: list[_Tree] = []
    taken: set[int] = set()
    for group in group_by_prefix([fed.ids for fed in eligible]):
        most = min(LONGEST_BRANCH, max(WIDEST_BRANCHES, group.prefix))
        members = [
            eligible[n] for n in group.members if len(eligible[n].ids) - group.prefix <= most
        ]
        if len(members) < 2:
            continue
        taken.update(fed.index for fed in members)
        trees += _cut(group.prefix, members, max(tokens - group.prefix, group.prefix))
    alone = [fed for fed in rows if fed.window.start != 0 or fed.index not in taken]
    return trees, alone


def _cut(prefix: int, members: list[_Fed], most: int) -> Iterator[_Tree]:
    """Trees of at most `most` tokens in branches (one branch at least)."""
    chunks: list[tuple[_Fed, ...]] = []
    used = 0
    for chunk in _side_by_side(prefix, members, min(most, WIDEST_BRANCHES)):
        size = _branch_tokens(chunk, prefix)
        if chunks and used + size > most:
            yield _Tree(prefix, tuple(chunks))
            chunks, used = [], 0
        chunks.append(chunk)
        used += size
    yield _Tree(prefix, tuple(chunks))


def _side_by_side(prefix: int, members: list[_Fed], most: int) -> Iterator[tuple[_Fed, ...]]:
    chunk: list[_Fed] = []
    for fed in members:
        if chunk and _branch_tokens([*chunk, fed], prefix) > most:
            yield tuple(chunk)
            chunk = []
        chunk.append(fed)
    yield tuple(chunk)


def _tree_batch(trees: list[_Tree]) -> Batch:
    lengths = [tree.prefix for tree in trees]
    starts = [0, *np.cumsum(lengths).tolist()]
    collected = _Targets()
    shared = [_add_trunk(collected, *both) for both in zip(trees, starts, strict=False)]
    n_before = starts[-1]
    suffixes = []
    for c in range(max(len(tree.chunks) for tree in trees)):
        row_chunks = [tree.chunks[c] if c < len(tree.chunks) else () for tree in trees]
        sizes = [_branch_tokens(k, t.prefix) for k, t in zip(row_chunks, trees, strict=True)]
        for b, (tree, chunk) in enumerate(zip(trees, row_chunks, strict=True)):
            first_branch = n_before + b * max(sizes)
            _add_branches(collected, tree.prefix, chunk, shared[b], starts[b], first_branch)
        if max(sizes):
            suffixes.append(_branches(trees, row_chunks, max(sizes)))
            n_before += len(trees) * max(sizes)
    return collected.batch([t.chunks[0][0].ids[: t.prefix] for t in trees], tuple(suffixes))


def _add_trunk(collected: _Targets, tree: _Tree, row_start: int) -> tuple[Ints, slice]:
    """The targets within the trunk that any of its sequences wants, and where their scores are."""
    wanted = [fed.targets[fed.targets < tree.prefix] for chunk in tree.chunks for fed in chunk]
    targets = np.unique(np.concatenate(wanted))
    ids = tree.chunks[0][0].ids
    return targets, collected.add(row_start + targets - 1, ids[targets])


def _add_branches(
    collected: _Targets,
    prefix: int,
    chunk: Sequence[_Fed],
    shared: tuple[Ints, slice],
    row_start: int,
    branch_start: int,
) -> None:
    """Each sequence's targets: those in the trunk, which are there already, and its own, of which
    the trunk's last position predicts the first."""
    trunk_targets, trunk_scores = shared
    for fed in chunk:
        in_trunk = fed.targets < prefix
        found = trunk_scores.start + np.searchsorted(trunk_targets, fed.targets[in_trunk])
        own = fed.targets[~in_trunk]
        at = np.where(own == prefix, row_start + prefix - 1, branch_start + own - 1 - prefix)
        scores = collected.add(at, fed.target_ids[~in_trunk])
        places = np.concatenate([found, np.arange(scores.start, scores.stop)])
        collected.parts.append(Part(fed.index, fed.window, fed.targets, places))
        branch_start += len(fed.ids) - prefix


def _branches(trees: list[_Tree], chunks: Sequence[Sequence[_Fed]], width: int) -> Suffixes:
    ids, positions, numbers = [], [], []
    for tree, chunk in zip(trees, chunks, strict=True):
        tails = [fed.ids[tree.prefix :] for fed in chunk]
        nothing = [np.empty(0, dtype=np.int64)]
        ids.append(np.concatenate(tails + nothing))
        positions.append(np.concatenate([tree.prefix + np.arange(len(t)) for t in tails] + nothing))
        numbers.append(np.repeat(np.arange(len(tails)), [len(tail) for tail in tails]))
    return Suffixes(padded(ids, width), padded(positions, width), padded(numbers, width, -1))


class _Targets:
    """The targets of a batch while it is put together."""

    def __init__(self) -> None:
        self._sources: list[Ints] = []
        self._ids: list[Ints] = []
        self._n = 0
        self.parts: list[Part] = []

    def add(self, sources: Ints, ids: Ints) -> slice:
        """Where the scores of these will stand."""
        self._sources.append(sources)
        self._ids.append(ids)
        start, self._n = self._n, self._n + len(ids)
        return slice(start, self._n)

    def batch(self, rows: list[Ints], suffixes: tuple[Suffixes, ...]) -> Batch:
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        sources, ids = np.concatenate(self._sources), np.concatenate(self._ids)
        return Batch(np.concatenate(rows), lengths, sources, ids, tuple(self.parts), suffixes)
