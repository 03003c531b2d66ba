"""Shards of inputs: together they are the whole, whatever the files hold."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.program import in_process
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Item, Rejected
from seqloss_cli.inputs.options import ReadOptions
from seqloss_cli.inputs.reading import ReadStats, read_inputs
from seqloss_cli.inputs.shards import Cuts, Part, Shard

LINE = st.sampled_from([b"", b" ", b"a", b"\r", b"a\rb", b"caf\xc3\xa9", b"x" * 40, b"\xff", b"bb"])
ENDS = st.sampled_from([b"\n", b"\n", b"\r\n"])
FILE = st.tuples(
    st.booleans(),
    st.lists(st.tuples(LINE, ENDS), max_size=12),
    st.sampled_from([b"", b"", b"last"]),
)
"""A byte-order mark or none, lines with their ends, and a last one without."""


def raw_of(drawn: Any) -> bytes:
    marked, lines, last = drawn
    return b"\xef\xbb\xbf" * marked + b"".join(line + end for line, end in lines) + last


def read(
    names: list[str], shard: Shard | None = None, **options: Any
) -> tuple[list[Item], ReadStats]:
    settings, stats = ReadOptions(**options), ReadStats()
    return list(read_inputs(names, settings, stats, Cuts(names, settings, shard))), stats


def key(item: Item) -> tuple[Any, ...]:
    """All that tells an input from others, and what it holds."""
    said = (item.reason, item.message) if isinstance(item, Rejected) else (item.text, item.flags)
    return (item.source, item.line, item.id, *said)


def require_whole(names: list[str], n_shards: int, in_order: bool, **options: Any) -> list[int]:
    """The union of shards is the whole; returns how many items each has."""
    whole, all_stats = read(names, **options)
    shards = [read(names, Shard(n, n_shards), **options) for n in range(n_shards)]
    found = [key(item) for items, _ in shards for item in items]
    expected = [key(item) for item in whole]
    assert (found if in_order else sorted(found, key=str)) == (
        expected if in_order else sorted(expected, key=str)
    )
    assert sum(stats.n_empty_lines for _, stats in shards) == all_stats.n_empty_lines
    return [len(items) for items, _ in shards]


@given(st.lists(FILE, min_size=1, max_size=3), st.integers(1, 9))
def test_stretches_of_lines_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], n_shards: int
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    names = [str(folder / f"{n}.txt") for n in range(len(drawn))]
    for name, each in zip(names, drawn, strict=True):
        Path(name).write_bytes(raw_of(each))
    require_whole(names, n_shards, in_order=True, lines=True, max_bytes=30)


@given(FILE, st.integers(1, 5))
def test_every_nth_line_of_what_cannot_be_cut(
    tmp_path_factory: pytest.TempPathFactory, drawn: Any, n_shards: int
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    packed, plain = folder / "a.gz", folder / "b"
    packed.write_bytes(gzip.compress(raw_of(drawn)))
    plain.write_bytes(raw_of(drawn))
    require_whole([str(packed), str(plain)], n_shards, in_order=False, lines=True, max_bytes=30)


TABLES = ("parquet", "feather", "csv")


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 9), st.sampled_from(TABLES))
def test_parts_of_tables_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, n_rows: int, group: int, n_shards: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("tables") / f"a.{suffix}"
    table = pa.table({"text": [f"row {n}" * (1 + n % 7) for n in range(n_rows)]})
    if suffix == "parquet":
        pa.parquet.write_table(table, path, row_group_size=group)
    elif suffix == "feather":
        pa.feather.write_feather(table, path, chunksize=group)
    else:
        path.write_text("text\n" + "".join(f"{each}\n" for each in table["text"].to_pylist()))
    require_whole([str(path)], n_shards, in_order=suffix == "parquet")


# -- balance ---------------------------------------------------------------------------------------


def test_one_giant_file_is_cut_evenly(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n:04}"}) + "\n" for n in range(1000)))
    assert {*require_whole([str(path)], 8, in_order=True)} == {125}


def test_several_files_are_cut_evenly(tmp_path: Path) -> None:
    for name, n_rows in (("a", 10), ("b", 970), ("c", 20)):
        (tmp_path / f"{name}.txt").write_text("0123456789\n" * n_rows)
    names = [str(tmp_path / f"{name}.txt") for name in "abc"]
    assert {*require_whole(names, 5, in_order=True, lines=True)} == {200}


def test_row_groups_stay_whole_where_none_is_too_large(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    table = pa.table({"text": [f"row {n:04}" for n in range(1000)]})
    pa.parquet.write_table(table, path, row_group_size=100)
    assert {*require_whole([path], 5, in_order=True)} == {200}
    # Ten groups of 100 between four: each is one shard's.
    assert {n % 100 for n in require_whole([path], 4, in_order=True)} == {0}
    # More shards than groups, or a group alone: rows.
    assert {*require_whole([path], 20, in_order=True)} == {50}
    pa.parquet.write_table(table, path)
    assert {*require_whole([path], 8, in_order=True)} == {125}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 99)), max_size=9), st.integers(1, 9))
def test_rows_of_groups_are_each_in_one_part(groups: list[tuple[int, int]], n: int) -> None:
    size = 1000
    cuts = [size * each // n for each in range(n + 1)]
    found = [
        (group, row)
        for start, stop in pairwise(cuts)
        for group, rows in Part(start, stop, size=size, fair=(size, n)).rows_of(groups)
        for row in rows
    ]
    assert found == [
        (group, row)
        for group, first in enumerate([sum(n for n, _ in groups[:g]) for g in range(len(groups))])
        for row in range(first, first + groups[group][0])
    ]


def test_views_of_strings_have_shards(tmp_path: Path) -> None:
    texts = pa.array([f"a text of row {n}" for n in range(20)], pa.string_view())
    table, path = pa.table({"text": texts}), tmp_path / "views.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    require_whole([str(path)], 3, in_order=False)


# -- what is told of a file as a whole -----------------------------------------------------------


def test_what_is_wrong_with_a_file_is_told_by_one_shard(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b"\n" * 9)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b"\n\n"))
    (tmp_path / "first.txt").write_bytes(b"\n" * 50 + b"last\n")
    (tmp_path / "wide.txt").write_bytes("wide\n".encode("utf-16"))
    files = "empty.txt blank.txt packed.txt.gz first.txt gone.txt wide.txt"
    names = [str(tmp_path / each) for each in files.split()]
    for n_shards in (1, 2, 5, 99):
        require_whole(names, n_shards, in_order=False, lines=True)


def test_texts_are_each_one_shards(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{n}.txt") for n in range(20)]
    for name in names:
        Path(name).write_text("a text\nof lines\n")
    assert {*require_whole(names, 4, in_order=True)} == {5}


# -- what --shard says -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["8/8", "9/8", "1", "/", "a/b", "-1/2", "1/0", "auto", "auto/x",
                                  "1/2/3", "٣/٤", "1 /2", ""])  # fmt: skip
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(text, {"SLURM_ARRAY_TASK_ID": "0"})


def test_the_number_of_a_task_is_taken_as_it_is() -> None:
    assert Shard.parse("3/8", {}) == Shard(3, 8)
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "SKYPILOT_NODE_RANK"):
        assert Shard.parse("auto/8", {name: "7"}) == Shard(7, 8)
    both = {"SLURM_ARRAY_TASK_ID": "1", "JOB_COMPLETION_INDEX": "1"}
    assert Shard.parse("auto/2", both) == Shard(1, 2)
    with pytest.raises(UsageError, match="disagree"):
        Shard.parse("auto/2", {**both, "JOB_COMPLETION_INDEX": "0"})
    # An array from 1 to 8 has no task 0, and its last is none.
    with pytest.raises(UsageError, match=r"SLURM_ARRAY_TASK_ID=8.*they are 0 to 7"):
        Shard.parse("auto/8", {"SLURM_ARRAY_TASK_ID": "8"})
    with pytest.raises(UsageError, match="is set"):
        Shard.parse("auto/8", {})
    with pytest.raises(UsageError, match="is no number"):
        Shard.parse("auto/8", {"SLURM_ARRAY_TASK_ID": "x"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.jsonl", "--shard", "2/2"), "there is no shard 2 of 2"),
        (("a.jsonl", "--shard", "0/2", "--limit", "1"), "--limit"),
        (("--text", "a", "--shard", "0/2"), "--shard is a part of files"),
        (("a.jsonl", "a.jsonl", "--shard", "0/2"), "named twice"),
    ],
)
def test_shards_that_are_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"text": "a"}\n')
    done = in_process("score", *words)
    assert done.exit_code == 2
    assert message in done.stderr
