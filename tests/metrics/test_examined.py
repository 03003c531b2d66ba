"""The rows that a diagnosis looks at: the first by a hash of their ids, of all and of parts."""

from __future__ import annotations

import hashlib
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.records import Sample, SequenceScore, TokenSequence
from seqloss_cli.metrics import faults
from seqloss_cli.metrics.deltas import RecordedScore

MOST = 12
ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=15), min_size=1, max_size=20)


def row(number: int, ids: list[int]) -> RecordedScore:
    everywhere, values = np.ones(len(ids), dtype=bool), np.array(ids)
    sample = Sample(str(number), "a", number, input_ids=values)
    sequence = TokenSequence(sample, None, values, None, everywhere, everywhere, "none", "none", {})
    score = SequenceScore(sequence, np.full(len(ids), 1.0), everywhere, values)
    return RecordedScore(score, np.full(len(ids), -1.0), None)


def first(rows: list[list[int]]) -> list[str]:
    """All rows are sorted, and those that fit are taken from the front."""

    def place(number: int) -> tuple[bytes, int]:
        raw = b"".join(each.to_bytes(8, "little") for each in rows[number])
        return hashlib.blake2b(raw, digest_size=8).digest(), number

    kept, n_tokens = list[int](), 0
    for number in sorted(range(len(rows)), key=place):
        n_tokens += len(rows[number])
        if kept and n_tokens > MOST:
            break
        kept.append(number)
    return [str(number) for number in sorted(kept)]


def examined(numbered: list[tuple[int, list[int]]]) -> tuple[list[str], set[str]]:
    """The rows that are kept, and all that were once."""
    found, once = faults.Examined(None), set[str]()
    for number, ids in numbered:
        if found.add(row(number, ids)):
            once.add(str(number))
    return [each.sample.id for each in found.rows()], once


@given(ROWS, st.integers(1, 4), st.booleans())
def test_rows_of_all_are_among_those_of_the_parts(
    rows: list[list[int]], n: int, by_number: bool
) -> None:
    numbered = list(enumerate(rows))
    with mock.patch.object(faults, "MOST_TOKENS", MOST):
        kept, once = examined(numbered)
        assert kept == first(rows)
        assert {*kept} <= once
        size = -(-len(rows) // n)
        for part in range(n):
            stretch = slice(part, None, n) if by_number else slice(part * size, (part + 1) * size)
            own, own_once = examined(numbered[stretch])
            ids = {str(number) for number, _ in numbered[stretch]}
            # Logits of rows that were kept once are written: they suffice for the whole.
            assert {*kept} & ids <= {*own} <= own_once
            assert once & ids <= own_once


def test_a_diagnosis_is_of_the_rows_that_are_kept() -> None:
    found: Any = faults.Examined(None)
    assert found.diagnosis().verdict == "nothing"
    with mock.patch.object(faults, "MOST_TOKENS", MOST):
        for number in range(9):
            found.add(row(number, [number] * 5))
    assert found.diagnosis().n_sequences == 2
