"""Shards of `check` are its whole run, with its diagnosis; they go on; what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import stub
from helpers.program import strictly
from seqloss_cli.metrics import faults

LAYOUTS = ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.jsonl b.jsonl.gz", "b.parquet a.jsonl")
LOGITS = b'"logit_shape"'


def made(seed: int, n: int) -> list[dict[str, Any]]:
    """Rows of ids with values, of which some are missing and some row has none."""
    random, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    for number in range(n):
        ids = random.integers(4, 40, random.integers(2, 9)).tolist()
        if number in (3, 8):
            ids[-1] = stub.INFINITE if number == 3 else stub.NAN
        values = [None, *(-random.exponential(2, len(ids) - 1)).round(3).tolist()]
        rows.append({"id": f"r{number % 7}", "input_ids": ids, "logprobs": values, "n": number})
        if number % 3 == 0:
            rows[-1]["loss_mask"] = [0] + [1] * (len(ids) - 1)
        if number % 5 == 4:
            rows[-1]["logprobs"] = values[:-2]
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
        return
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def records(raw: bytes) -> list[Any]:
    """The lines of JSONL, the run's without its time."""
    found = [strictly(line) for line in raw.splitlines()]
    assert found[0].pop("started_at")
    return found


def ran(line: str, folder: Path, code: tuple[int, ...] = (0, 3)) -> Any:
    done = stub.run(line, folder)
    assert done.exit_code in code, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("check-shards")
    for name in {each for layout in LAYOUTS for each in layout.split()}:
        write(found / name, made(len(name), 13))
    return found


def shards_of(line: str, folder: Path, n: int, suffix: str = "jsonl") -> str:
    names = [f"shard-{index}.{suffix}" for index in range(n)]
    for index, name in enumerate(names):
        ran(f"{line} --shard {index}/{n} -o {name} --force", folder)
    return " ".join(names)


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(LAYOUTS), st.integers(1, 4), st.sampled_from([9, 40, 1 << 15]))
def test_merged_shards_are_the_whole_run(folder: Path, layout: str, n: int, most: int) -> None:
    line = f"check {layout} --keep-meta"
    with mock.patch.object(faults, "MOST_TOKENS", most):
        whole = ran(f"{line} --jsonl", folder).stdout_bytes
        names = shards_of(line, folder, n)
        merged = ran(f"merge {names}", folder).stdout_bytes
    assert records(merged) == records(whole)
    assert LOGITS not in whole
    # Of few tokens not all rows have their logits.
    raw = b"".join((folder / name).read_bytes() for name in names.split())
    assert 0 < raw.count(LOGITS) <= raw.count(b'"type":"sequence"')
    assert most > 9 or raw.count(LOGITS) < raw.count(b'"type":"sequence"')


def test_what_is_merged_of_parquet_and_into_it(folder: Path) -> None:
    from seqloss_cli.results.formats.parquet import read_parquet_rows

    whole = records(ran("check a.jsonl --jsonl", folder).stdout_bytes)
    names = shards_of("check a.jsonl", folder, 2, "parquet")
    ran(f"merge {names} -o whole.parquet --force", folder)
    found = list(read_parquet_rows(folder / "whole.parquet"))
    del found[0]["started_at"]
    assert found == whole
    assert "logit_shape" not in pa.parquet.read_schema(folder / "whole.parquet").names
    assert ran("report whole.parquet -o page.html --force", folder)


# -- two recordings --------------------------------------------------------------------------------


def spelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, whose tokens are known by their bytes."""
    return [
        {"id": row["id"], "prompt_ids": [1], "logprobs": {"content": [
            {"token": f"t{i}", "bytes": [*f"t{i}".encode()], "logprob": value or -1.0}
            for i, value in zip(row["input_ids"], row["logprobs"], strict=True)]}}
        for row in rows if len(row["input_ids"]) == len(row["logprobs"])
    ]  # fmt: skip


@pytest.mark.parametrize("of_bytes", [False, True])
def test_shards_of_two_recordings(of_bytes: bool, folder: Path) -> None:
    rows = [{**row, "id": str(n)} for n, row in enumerate(made(1, 9))]
    others = [{**row, "logprobs": [v and v - 0.1 for v in row["logprobs"]]} for row in rows]
    for name, each in (("one.jsonl", rows), ("two.jsonl", others[::-1])):
        write(folder / name, spelled(each) if of_bytes else each)
    line = "check one.jsonl --against two.jsonl"
    whole = records(ran(f"{line} --jsonl", folder).stdout_bytes)
    done = ran(f"merge {shards_of(line, folder, 3)}", folder)
    assert records(done.stdout_bytes) == whole
    assert whole[-1]["n_compared"] > 9
    # A row that was written is one that can be read.
    ran(f"{line} -o plain.jsonl --force", folder)
    assert ran("report plain.jsonl -o page.html --force", folder)


def test_rows_of_the_other_recording_need_ids_of_their_own(folder: Path) -> None:
    rows = made(1, 4)
    write(folder / "twice.jsonl", [rows[0], rows[0]])
    write(folder / "none.jsonl", [{**row, "id": None} for row in rows])
    write(folder / "none.parquet", [{k: v for k, v in row.items() if k != "id"} for row in rows])
    for name, said in (
        ("twice.jsonl", "has the id 'r0' twice"), ("none.jsonl", "have no id"),
        ("none.parquet", "have no id"),
    ):  # fmt: skip
        done = ran(f"check a.jsonl --against {name} --shard 0/2", folder, (2,))
        assert said in done.stderr
        assert ran(f"check a.jsonl --against {name}", folder)


def test_another_recording_that_changed_between_shards(folder: Path) -> None:
    rows = [{**row, "id": str(n)} for n, row in enumerate(made(1, 9))]
    write(folder / "one.jsonl", rows)
    for n in range(2):
        write(folder / "two.jsonl", rows[n:])
        ran(f"check one.jsonl --against two.jsonl --shard {n}/2 -o s{n}.jsonl --force", folder)
    done = ran("merge s0.jsonl s1.jsonl", folder, (2,))
    assert "--against changed between runs: " in done.stderr


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", " --against two.jsonl"])
def test_a_shard_goes_on_where_it_stopped(more: str, folder: Path) -> None:
    rows = [{**row, "id": str(n)} for n, row in enumerate(made(3, 20))]
    write(folder / "one.jsonl", rows)
    write(folder / "two.jsonl", rows[::-1])
    line = f"check one.jsonl{more} --keep-meta --shard 1/2"
    ran(f"{line} -o go.jsonl --force", folder)
    whole = (folder / "go.jsonl").read_bytes()
    (folder / "go.jsonl").unlink()
    lines = whole.splitlines(True)
    (folder / "go.jsonl.partial").write_bytes(b"".join(lines[:4]) + b'{"ty')
    ran(f"{line} -o go.jsonl --resume", folder)
    assert records((folder / "go.jsonl").read_bytes()) == records(whole)
    assert "nothing to do" in ran(f"{line} -o go.jsonl --resume", folder).stderr
    # Another value in the recording, or another row, is no row of this file.
    changed = [{**row, "logprobs": [v and v - 1 for v in row["logprobs"]]} for row in rows]
    write(folder / "one.jsonl", changed)
    done = ran(f"{line} -o go.jsonl --resume", folder, (2,))
    assert "recorded_log_probs" in done.stderr or "input_bytes" in done.stderr


def test_what_check_does_not_go_on_with(folder: Path) -> None:
    for words, said in (
        ("--resume -o x.jsonl", "give --shard, too"),
        ("--shard 0/2 --no-tokens", "leave --no-tokens out"),
        ("--shard 0/2 --fail-above 0.1", "share_beyond"),
        ("--shard 0/2 --limit 3", "--limit"),
        ("--shard 2/2", "no shard 2"),
        ("--shard 0/2 --resume", "give -o FILE.jsonl"),
    ):
        assert said in ran(f"check a.jsonl {words}", folder, (2,)).stderr, words


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (LOGITS, b'"else"', "has no field 'logit_shape'"),
        (b'"log_sums":"', b'"log_sums":"AAAA', "'logit_shape' is damaged"),
        (b'"of":"float', b'"of":"int', "'logit_shape' is damaged"),
        (b'"n_beyond":', b'"n_beyond":9', "n_beyond is not"),
        (b'"scored_log_probs"', b'"else"', "has no field 'scored_log_probs'"),
        (b'"threshold":0.05', b'"threshold":null', "its threshold is None"),
    ],
)
def test_damaged_shards(old: bytes, new: bytes, said: str, folder: Path) -> None:
    names = shards_of("check a.jsonl", folder, 2).split()
    raw = (folder / names[0]).read_bytes()
    assert old in raw
    for name in names[: 2 if b"threshold" in old else 1]:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw.replace(old, new, 1))
    done = ran(f"merge {' '.join(names)}", folder, (1, 2))
    assert said in done.stderr


def test_missing_shards_of_check(folder: Path) -> None:
    shards_of("check a.jsonl", folder, 3)
    (folder / "shard-1.jsonl").unlink()
    assert ran("merge --missing 'shard-[0-2].jsonl'", folder).stdout == "1\n"
