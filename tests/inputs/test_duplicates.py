"""Ids that come twice are found, in memory and on disk."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.errors import RunError
from seqloss_cli.core.records import Sample
from seqloss_cli.inputs import duplicates, reading
from seqloss_cli.inputs.duplicates import DuplicateIds, Table, Waiting
from seqloss_cli.inputs.reading import ReadOptions, ReadStats, read_inputs
from seqloss_cli.scoring.prefetch import prefetch


@given(st.lists(st.text("abc", max_size=3)), st.integers(1, 8))
def test_they_are_those_of_a_set(names: list[str], most_in_memory: int) -> None:
    ids, seen = DuplicateIds(most_in_memory), set[str]()
    for name in names:
        assert ids.seen_before(name) == (name in seen)
        seen.add(name)


def test_they_are_found_far_apart_and_on_both_sides_of_the_step_to_the_disk() -> None:
    ids = DuplicateIds(10_000)
    assert not any(ids.seen_before(f"id {n}") for n in range(20_000))
    assert all(ids.seen_before(f"id {n}") for n in range(20_000))
    assert not ids.seen_before("id 20000")


@given(st.lists(st.tuples(st.text("a\ud800'\n", max_size=2), st.integers(0, 3))), st.integers(0, 5))
def test_a_table_is_a_dict(entries: list[tuple[str, int]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST_KEYS", most)
        table, expected = Table[tuple[int, str]](), {}
        for key, value in entries:
            assert table.get((key, 1)) == expected.get(key)
            table.put((key, 1), (value, key))
            expected[key] = value, key
        assert all(table.get((key, 1)) == value for key, value in expected.items())
        assert len(table._memory) <= most


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("ab'"), st.sampled_from(["", "x", "\ud800"]), st.integers()),
        st.tuples(st.sampled_from("ab'"), st.sampled_from([None, "x"])),
    ),
    max_size=30,
)


@given(STEPS, st.integers(0, 40))
def test_items_wait_on_disk_as_in_memory(steps: list[Any], most: int) -> None:
    """The order of dicts in dicts, with ids that are taken and come again."""
    with pytest.MonkeyPatch.context() as patch:
        one = Waiting[int]()
        patch.setattr(duplicates, "MOST_WAITING", most)
        other = Waiting[int]()
        for step in steps:
            patch.setattr(duplicates, "MOST_WAITING", 1 << 20)
            if len(step) == 3:
                one.add(*step, 1)
                patch.setattr(duplicates, "MOST_WAITING", most)
                other.add(*step, 1)
            elif one.has(*step):
                assert other.has(*step)
                assert one.take(*step) == other.take(*step)
            else:
                assert not other.has(*step)
            assert list(one.all_keys()) == list(other.all_keys())
            assert (len(one), one.ids(5)) == (len(other), other.ids(5))
    assert one._database is None
    assert other._database is not None or other._size <= most


def test_on_disk_no_id_takes_memory() -> None:
    ids = DuplicateIds(100)
    for n in range(1000):
        ids.seen_before(str(n))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(1000, 11_000):
            ids.seen_before(str(n))
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()
    assert len(ids._table) == 1


def test_a_disk_that_is_full_ends_the_run_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = duplicates._temporary_database

    def small() -> Any:
        database = make()
        database.execute("PRAGMA max_page_count = 4")
        return database

    monkeypatch.setattr(duplicates, "_temporary_database", small)
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    ids = DuplicateIds(4)
    with pytest.raises(RunError, match=r"after [\d,]+ ids: database or disk is full") as caught:
        any(ids.seen_before(str(n)) for n in range(100_000))
    assert str(tmp_path) in str(caught.value)
    assert "TMPDIR" in str(caught.value)
    monkeypatch.setattr(duplicates, "MOST_KEYS", 4)
    table = Table[str]()
    with pytest.raises(RunError, match=r"no more than \d+ keys can be kept: database or disk"):
        any(table.put(n, "x" * 1000) for n in range(100_000))  # type: ignore[func-returns-value]


def _rows(path: Path, ids: str) -> Path:
    path.write_text("".join(json.dumps({"id": each, "text": "a b"}) + "\n" for each in ids))
    return path


def test_samples_are_flagged_beyond_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reading, "DuplicateIds", partial(DuplicateIds, 2))
    stats = ReadStats()
    items = read_inputs([str(_rows(tmp_path / "r.jsonl", "abcdeaed"))], ReadOptions(), stats)
    flags = [isinstance(item, Sample) and "duplicate_id" in item.flags for item in items]
    assert flags == [False] * 5 + [True] * 3
    assert (stats.n_duplicate_ids, stats.duplicate_id) == (3, "a")


def test_a_thread_that_reads_ahead_may_end_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reading, "DuplicateIds", partial(DuplicateIds, 2))
    items = read_inputs([str(_rows(tmp_path / "r.jsonl", "abcda"))], ReadOptions(), ReadStats())
    first = [next(items) for _ in range(4)]
    (last,) = prefetch(items, lambda item: item)
    assert [each.id for each in (*first, last)] == [*"abcda"]
    assert isinstance(last, Sample)
    assert last.flags == {"duplicate_id": True}
