"""Which sequences begin alike: integers only.

A group's common beginning, its trunk, is computed once, and what follows of each sequence branches
off it. Groups are chosen so that as many tokens as possible are not computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from seqloss_cli.core.alignment import common_prefix
from seqloss_cli.core.records import Ints

SHORTEST_PREFIX = 16
"""Tokens: below this, what sharing costs is no less than what it saves."""
_DEEPEST = 64
"""Levels of beginnings within beginnings that are looked into (texts that grow word by word have as
many levels as rows)."""


@dataclass(frozen=True, slots=True)
class Group:
    prefix: int
    """Tokens that its members begin with."""
    members: tuple[int, ...]
    """Indexes of the sequences, those that are most alike side by side."""


def group_by_prefix(sequences: Sequence[Ints], shortest: int = SHORTEST_PREFIX) -> list[Group]:
    """Groups of at least two sequences with at least `shortest` tokens in common.

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
    """The grouping of the sorted sequences [start, stop) that saves the most tokens, and how many
    those are: all in one group, or what is best for the parts between the places where neighbours
    have the least in common, and a group of those that are then left over."""
    if stop - start < 2:
        return 0, []
    inside = common[start : stop - 1]
    prefix = min(inside)
    whole = prefix * (stop - start - 1)
    if not depth:
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
    """Bytes that sort as the ids do."""
    return ids.astype(">u4").tobytes()
