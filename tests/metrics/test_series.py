"""Numbers of documents that are kept on disk: the same numbers, and bounded memory."""

from __future__ import annotations

import math
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.errors import RunError
from seqloss_cli.metrics import series
from seqloss_cli.metrics.divergence import DivergenceTotals, DocumentSums
from seqloss_cli.metrics.intervals import ratio_estimate, share_estimate
from seqloss_cli.metrics.series import Derived, Series, as_array, chunks_of, zeros
from seqloss_cli.metrics.totals import to_units


def of(values: list[float]) -> Series:
    found = Series()
    for value in values:
        found.append(value)
    return found


@given(st.lists(st.floats(allow_nan=False), max_size=20), st.integers(1, 6))
def test_numbers_come_back_in_order_in_chunks(values: list[float], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "CHUNK", chunk)
        found = of(values[:11])
        assert [x for part in found.chunks() for x in part.tolist()] == values[:11]
        for value in values[11:]:  # read, and then more
            found.append(value)
        assert [x for part in found.chunks() for x in part.tolist()] == values
        assert len(found) == len(values)
        assert all(len(part) <= chunk for part in found.chunks())


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=5, max_size=40))
def test_estimates_are_those_of_arrays(documents: list[tuple[float, int]]) -> None:
    y, m = [each for each, _ in documents], [float(n) for _, n in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "CHUNK", 3)
        for estimate, own in (
            (ratio_estimate, y),
            (share_estimate, [min(a, b) for a, b in documents]),
        ):
            found = estimate(of(own), of(m))
            patch.setattr(series, "CHUNK", 1 << 17)
            assert found == estimate(np.array(own), np.array(m))
            patch.setattr(series, "CHUNK", 3)
        assert [each.tolist() for each in chunks_of(np.arange(5.0))] == [[0, 1, 2], [3, 4]]


def test_numbers_on_disk_are_an_array_and_more_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "CHUNK", 3)
    found, other = of([1.0, 2, 3, 4, 5]), of([1.0, 2, 3, 4, 5])
    assert found.array().tolist() == [1, 2, 3, 4, 5]
    for each in (found, other):
        each.append(6.0)
    assert found.array().tolist() == [1, 2, 3, 4, 5, 6]
    assert as_array(Derived(np.subtract, found, other)).tolist() == [0.0] * 6
    assert as_array(Derived(lambda each: each[each > 2], found)).tolist() == [3, 4, 5, 6]
    for n, value in ((0, 7.0), (5, 8.0), (6, 9.0)):
        found[n] = value
    assert list(found) == [7, 2, 3, 4, 5, 8, 9] == found.array().tolist()
    assert not isinstance(zeros(4).base, np.ndarray)
    assert zeros(4).tolist() == [0.0] * 4


def test_of_documents_of_diverge_none_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "CHUNK", 64)
    names = ("cross_entropy", "teacher_entropy", "kl", "student_loss", "teacher_loss", "delta_p")
    sums = DivergenceTotals(1, 1, 3, 2, units=dict.fromkeys(names, to_units(0.5)))
    tokens = {name: np.ones(2) for name in ("kl", "acceptance", "teacher_entropy", "same_top1")}
    tokens["position"] = np.array([1.0, 2.0])
    documents = DocumentSums()
    documents._tokens = {}  # a reservoir, whose size is bounded
    monkeypatch.setattr("seqloss_cli.metrics.divergence.QUANTILE_FIGURES", ())

    def add(n: int) -> None:
        for _ in range(n):
            documents.add(sums, tokens)

    add(200)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        add(1500)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    found = documents.means()
    assert found["kl"].value == 0.25
    assert found["kl"].n == 1700
    assert found["loss_difference"].value == 0
    assert math.isclose(documents.positions.means(lambda n: (n, None))[0].mean_kl.value or 0, 1)


def test_a_directory_that_is_full_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(series, "CHUNK", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    found = of([1.0])
    for more in (lambda: found.append(2.0), lambda: zeros(3)):
        with pytest.raises(RunError, match=r"sums of [23] documents do not fit") as caught:
            more()
        assert str(tmp_path) in str(caught.value)
