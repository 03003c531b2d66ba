"""Which tokens two sequences have in common: integers only."""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np

from seqloss_cli.core.records import Bools, Ints

_MOST_COMPARED = 2000  # tokens between what two sequences have in common at both ends


def common_prefix(a: Ints, b: Ints) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def run_length(ids: Ints, allowed: Bools) -> int:
    """How many of the first ids are the same and allowed."""
    different = np.flatnonzero((ids != ids[:1]) | ~allowed)
    return int(different[0]) if len(different) else len(ids)


def aligned(ours: Ints, theirs: Ints) -> Ints:
    """Positions of the same token in both, shape pairs x 2, ascending."""
    head = common_prefix(ours, theirs)
    tail = common_prefix(ours[head:][::-1], theirs[head:][::-1])
    blocks = [(0, 0, head)]
    middle = ours[head : len(ours) - tail].tolist(), theirs[head : len(theirs) - tail].tolist()
    if max(map(len, middle)) <= _MOST_COMPARED:
        matcher = SequenceMatcher(None, *middle, autojunk=False)
        blocks += [(head + a, head + b, n) for a, b, n in matcher.get_matching_blocks()]
    blocks.append((len(ours) - tail, len(theirs) - tail, tail))
    steps = [np.arange(n)[:, None] + [[a, b]] for a, b, n in blocks]
    return np.concatenate(steps).astype(np.int64)
