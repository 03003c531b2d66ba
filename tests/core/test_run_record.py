"""The fields of run records that are marked, in the order in which differences are named."""

from __future__ import annotations

from seqloss_cli.core.run_record import POLICIES, TOKEN_POLICIES


def test_the_policies_are_the_marked_fields() -> None:
    assert POLICIES == (
        "command",
        "bos",
        "eos",
        "special_tokens",
        "boundary",
        "pairs",
        "gold",
        "teacher",
    )
    # The header of a teacher's file names them in this order.
    assert TOKEN_POLICIES == ("bos", "bos_token_id", "eos", "special_tokens")
