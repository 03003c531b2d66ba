"""A saved teacher, read while the next texts are looked up: as with prefetch on a GPU."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from seqloss_cli.backends.teacher_files import TeacherFile, TeacherWriter
from seqloss_cli.core.columns import SAVED_TEACHER
from seqloss_cli.core.records import Sample, SequenceScore, TokenSequence

N_TEXTS, N_TOKENS, TOP_K = 40, 60, 2


def sequence(number: int) -> TokenSequence:
    ids = np.full(N_TOKENS, number, dtype=np.int64)
    everywhere = np.ones(N_TOKENS, dtype=bool)
    sample = Sample(str(number), "<made>")
    return TokenSequence(sample, None, ids, None, everywhere, everywhere, "none", "none", {})


@pytest.fixture
def file(tmp_path: Path) -> TeacherFile:
    """Every figure of a text is its number."""
    path = tmp_path / "teacher.jsonl"
    with path.open("wb") as sink:
        writer = TeacherWriter(sink, {"top_k": TOP_K, "n_words": 100}, "made")
        for number in range(N_TEXTS):
            scored = np.arange(N_TOKENS) > 0
            wide = {"teacher_top_ids": np.full((N_TOKENS, TOP_K), number)}
            wide["teacher_top_log_probs"] = wide["teacher_top_ids"] * -1.0
            names = (*SAVED_TEACHER.array_names, "kls", "kls_in_part", "teacher_losses")
            columns = {name: np.full(N_TOKENS, float(number)) for name in names} | wide
            columns["teacher_entropies"] = columns["kls"]
            losses = np.zeros(N_TOKENS)
            lengths = np.zeros(N_TOKENS, dtype=np.int64)
            writer.add(SequenceScore(sequence(number), losses, scored, lengths, columns))
        writer.end()
    return TeacherFile(path)


def test_rows_are_those_of_the_text_while_another_thread_looks_texts_up(file: TeacherFile) -> None:
    sequences = [sequence(number) for number in range(N_TEXTS)]
    targets, before = np.arange(1, N_TOKENS), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            looking_up = pool.submit(lambda: [file.rows_of(s) for s in sequences * 60])
            numbers = [
                (n, set(rows(targets).top_ids.ravel().tolist()))
                for _ in range(40)
                for n, rows in enumerate(map(file.rows_of, sequences))
            ]
            looking_up.result()
    finally:
        sys.setswitchinterval(before)
    assert all(found == {n} for n, found in numbers)
