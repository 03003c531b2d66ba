"""Whether paired differences lean to one side by more than chance would have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqloss_cli.core.records import Floats

MOST_EXACT = 16
"""Up to so many differences every choice of signs is tried."""
_ENTRIES = 1 << 21
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class SignFlip:
    p: float
    """Two-sided."""
    exact: bool
    n_flips: int
    """Choices of signs that were tried, the one that was seen counted."""


def sign_flip_test(differences: Floats, n_flips: int = 9_999, seed: int = 0) -> SignFlip:
    """The share of all choices of signs whose sum is as far from 0 as the one that was seen
    (Fisher's randomisation of paired differences, The Design of Experiments, 1935, section 21).

    With many differences signs are drawn at random, and the seen choice counts among them, so that
    p is never 0 (Phipson & Smyth 2010).
    """
    n, seen = len(differences), abs(float(differences.sum()))
    edge = seen - _ROUNDING * float(np.abs(differences).sum())
    if n <= MOST_EXACT:
        numbers = np.arange(1 << n)[:, None] >> np.arange(n)
        sums = (1 - 2 * (numbers & 1)) @ differences
        return SignFlip(float((np.abs(sums) >= edge).mean()), True, 1 << n)
    generator, as_far = np.random.default_rng(seed), 1
    step = max(1, _ENTRIES // n)
    for start in range(0, n_flips, step):
        flips = generator.integers(0, 2, (min(step, n_flips - start), n), dtype=np.int8)
        sums = (1 - 2 * flips) @ differences
        as_far += int((np.abs(sums) >= edge).sum())
    return SignFlip(as_far / (n_flips + 1), False, n_flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for their number, so that the chance of any false one stays what it was (Holm 1979):
    the smallest times k, the next times k - 1, …, never falling, at most 1."""
    order, adjusted, highest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, highest)
    return adjusted
