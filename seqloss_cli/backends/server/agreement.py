"""Contradictions within an answer: what it says of a token in one place and not in another.

Log-probabilities, ranks and alternatives of a place are of one distribution. An answer where they
are not has a number that is wrong, and nobody knows which.

Shapes: M scored tokens, N values of each place: the token's own, then those of the alternatives
that are other tokens; -inf where a place has fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Bools, Floats, Ints

ROUNDING = 2e-3
"""Probabilities of a place may add up to so much more than 1: logits in half precision."""
GIVE_LOGITS = "vLLM gives logits unless it has --logprobs-mode raw_logprobs, its default"
SLACK = 1e-4
"""Nats by which two ways to the same number may differ, in single precision."""


def contradiction(message: str) -> RowError:
    """Return the rejection of a row whose answer contradicts itself."""
    return RowError("server_contradiction", f"the server's answer contradicts itself: {message}")


def require_agreement(log_probs: Floats, ranks: Ints, k: int) -> None:
    """Raises RowError unless what an answer says of each place can be true.

    `log_probs` and `ranks` have shape M x N, nats; a rank of 0 is one that is not told. The K most
    probable tokens of each place are among the values, if K is not 0. Servers count ties in ranks
    as they like.
    """
    mass = np.exp(log_probs).sum(axis=1)
    if (bad := mass > 1 + ROUNDING).any():
        n = int(bad.argmax())
        raise contradiction(_too_much(log_probs.shape[1], float(mass[n]), n))
    own, others = log_probs[:, 0], log_probs[:, 1:]
    if k and others.shape[1] >= k:
        lowest = np.partition(others, -k, axis=1)[:, -k]
        _none(
            (own > lowest + SLACK) & np.isfinite(lowest), log_probs, ranks,
            f"its {k} best alternatives are not the most probable ones",
        )  # fmt: skip
    if ranks.any():
        _require_ranks(log_probs, ranks, k)


def _require_ranks(log_probs: Floats, ranks: Ints, k: int) -> None:
    told = ranks > 0
    each, all_of_place = log_probs[:, :, None], log_probs[:, None, :]
    n_above = (all_of_place > each + SLACK).sum(axis=2)
    bad = told & (ranks <= n_above)
    # As many tokens as the rank says are as probable as this one, or more so.
    bad |= told & (log_probs + np.log(np.maximum(ranks, 1)) > ROUNDING)
    if k:
        lowest = np.partition(log_probs, -k, axis=1)[:, [-k]]
        n_alike = (all_of_place >= each - SLACK).sum(axis=2)
        bad |= told & (log_probs > lowest + SLACK) & (ranks > n_alike)
    _none(bad.any(axis=1), log_probs, ranks, "a rank is not the place of its value")


def _none(bad: Bools, log_probs: Floats, ranks: Ints, message: str) -> None:
    """Raises RowError where a place is bad; shape M."""
    if bad.any():
        n = int(bad.argmax())
        said = f"log-probabilities {log_probs[n].tolist()}"
        if ranks[n].any():
            said += f", ranks {ranks[n].tolist()}"
        raise contradiction(f"{message} at scored token {n}: {said:.200}")


def require_probabilities(by_text: Mapping[str, float], n: int) -> None:
    """Raises RowError where probabilities of alternatives, known by their texts, are too many."""
    mass = sum(map(math.exp, by_text.values()))
    if mass > 1 + ROUNDING:
        raise contradiction(_too_much(len(by_text), mass, n))


def require_own(
    own: float, text: str, by_text: Mapping[str, float], n: int, is_shared: Callable[[str], bool]
) -> None:
    """Raises RowError unless alternatives, known by their texts, say what is said of the token.

    `is_shared` tells whether tokens have a text in common: the best of them may stand for another.
    """
    best, listed = max(by_text.values(), default=-math.inf), by_text.get(text)
    is_said = listed is not None and abs(listed - own) <= SLACK
    is_hidden = listed in (None, best) and not is_said and is_shared(text)
    if best < own - SLACK or not (is_said or is_hidden):
        raise contradiction(
            f"it has {own} for scored token {n}, {text!r:.40}, which its own alternatives do not "
            f"say: {dict(by_text)!r:.200}"
        )


def _too_much(n_values: int, mass: float, n: int) -> str:
    return f"probabilities of {n_values} tokens add up to {mass:.4g} at scored token {n}"
