"""Where texts meet in a tokenization: integers only (rule 9 of the numbers contract).

`offsets` has one entry more than there are tokens: token t covers bytes [offsets[t], offsets[t+1]).
"""

from __future__ import annotations

import numpy as np

from seqloss_cli.core.records import Bools, Boundary, Ints


def first_response_token(offsets: Ints, prompt_boundary: int) -> int:
    """The first token that begins at the seam or after it, or straddles it (rule 9)."""
    of_response = (offsets[:-1] >= prompt_boundary) | (offsets[1:] > prompt_boundary)
    return int(np.argmax(of_response)) if of_response.any() else len(of_response)


def tokens_of_span(offsets: Ints, start: int, end: int) -> Bools:
    """Tokens that cover, or stand in front of, a byte of the span [start, end)."""
    inside: Bools = ((offsets[:-1] >= start) | (offsets[1:] > start)) & (offsets[:-1] < end)
    return inside


def boundary_of(
    joint: list[int], prompt: list[int], offsets: Ints, prompt_boundary: int
) -> Boundary:
    """How the texts meet in the joint tokenization, whichever policy runs."""
    first = first_response_token(offsets, prompt_boundary)
    if first < len(joint) and offsets[first] < prompt_boundary:
        return "merged"
    return "clean" if joint[:first] == prompt else "differs"
