"""Find sequences that begin alike: integers only.

A group's common prefix is computed once, and then the suffix of each sequence. Groups are chosen so
that as many tokens as possible are not computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from seqloss_cli.core.alignment import common_prefix
from seqloss_cli.core.records import Ints

SHORTEST_PREFIX = 16
"""Tokens: below this, sharing costs no less than it saves."""
_DEEPEST = 64
"""Levels of prefixes within prefixes that are looked into."""


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences with a common prefix."""

    prefix: int
    """Its length in tokens."""
    members: tuple[int, ...]
    """Indexes of the sequences, those that are most alike side by side."""


def group_by_prefix(sequences: Sequence[Ints], shortest: int = SHORTEST_PREFIX) -> list[Group]:
    """Return groups of at least two sequences (ids of shape N each) with at least `shortest` tokens
    in common at their beginning.

    A sequence is in one group at most; those in none are left out.
    """
    order = sorted(range(len(sequences)), key=lambda i: _sortable(sequences[i]))
    common = [common_prefix(sequences[a], sequences[b]) for a, b in pairwise(order)]
    groups: list[Group] = []
    start = 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or common[stop - 1] < shortest:
            groups += _best_groups(order, common, start, stop, _DEEPEST)[1]
            start = stop
    return groups


def _best_groups(
    order: list[int], common: list[int], start: int, stop: int, depth: int
) -> tuple[int, list[Group]]:
    """Return how many tokens the best grouping of the sorted sequences [start, stop) saves, and it.

    It is one group of all; or they are cut where neighbours have the least in common, each part is
    grouped at its best, and the sequences that are left over make a group."""
    if stop - start < 2:
        return 0, []
    inside = common[start : stop - 1]
    prefix = min(inside)
    whole = prefix * (stop - start - 1)
    if not depth:  # texts that grow word by word have as many levels as rows
        return whole, [Group(prefix, tuple(order[start:stop]))]
    cuts = [start, *(start + 1 + n for n, value in enumerate(inside) if value == prefix), stop]
    saved, groups = 0, []
    for a, b in pairwise(cuts):
        part_saved, part = _best_groups(order, common, a, b, depth - 1)
        saved += part_saved
        groups += part
    taken = {n for group in groups for n in group.members}
    rest = [n for n in order[start:stop] if n not in taken]
    if len(rest) > 1:
        groups.append(Group(prefix, tuple(rest)))
        saved += prefix * (len(rest) - 1)
    if whole >= saved:
        return whole, [Group(prefix, tuple(order[start:stop]))]
    return saved, groups


def _sortable(ids: Ints) -> bytes:
    """Return bytes that sort as the ids do."""
    # Big-endian: little-endian bytes would compare the lowest digit first.
    return ids.astype(">u4").tobytes()
