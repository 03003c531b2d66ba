"""Find the tokens that two sequences have in common: integers only.

Shapes: N and M tokens of the two sequences, P pairs of tokens that are the same.
"""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np

from seqloss_cli.core.records import Bools, Ints

# Where few ids make up most of both, time goes with the square of this: 2 s at 2000, 7 at 4000.
_MOST_COMPARED = 2000


def common_prefix(a: Ints, b: Ints) -> int:
    """Number of tokens that both begin with; `a` has shape N, `b` shape M."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def run_length(ids: Ints, allowed: Bools) -> int:
    """Number of first ids that are the same and allowed; both have shape N."""
    different = np.flatnonzero((ids != ids[:1]) | ~allowed)
    return int(different[0]) if len(different) else len(ids)


def align_ids(a: Ints, b: Ints) -> Ints:
    """Shape P x 2, ascending: positions of the same token in `a`, shape N, and `b`, M.

    Between their common beginning and end, sequences are compared only up to a length.
    """
    head = common_prefix(a, b)
    tail = common_prefix(a[head:][::-1], b[head:][::-1])
    blocks = [(0, 0, head)]
    middle = a[head : len(a) - tail].tolist(), b[head : len(b) - tail].tolist()
    if max(map(len, middle)) <= _MOST_COMPARED:
        # autojunk would leave out every id that makes up over 1 % of a sequence of 200.
        matcher = SequenceMatcher(None, *middle, autojunk=False)
        blocks += [(head + i, head + j, n) for i, j, n in matcher.get_matching_blocks()]
    blocks.append((len(a) - tail, len(b) - tail, tail))
    steps = [np.arange(n)[:, None] + [[i, j]] for i, j, n in blocks]
    return np.concatenate(steps).astype(np.int64)
