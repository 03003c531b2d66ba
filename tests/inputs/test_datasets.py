"""Data sets of directories that are made here, and shards of them (`make test-remote`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.program import strictly
from helpers.stub import ran

pytestmark = pytest.mark.remote
ROWS = [{"id": f"row-{n}", "text": f"row number {n}", "kind": "odd" * (n % 2)} for n in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of each kind, with one split of texts and one of pairs."""
    import datasets

    found = tmp_path_factory.mktemp("datasets")
    pairs = [{"prompt": "Q", "response": f" answer {n}"} for n in range(5)]
    whole = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(pairs)
    )
    whole.save_to_disk(found / "saved")
    whole["train"].save_to_disk(found / "one")
    (found / "files").mkdir()
    whole["train"].to_parquet(found / "files" / "train.parquet")
    (found / "lines").mkdir()
    for n in range(3):
        part = found / "lines" / f"train-{n}.jsonl"
        part.write_text("".join(json.dumps(row) + "\n" for row in ROWS[100 * n : 100 * (n + 1)]))
    (found / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return found


def rows(raw: bytes) -> list[Any]:
    found = [strictly(line) for line in raw.splitlines()]
    return [{**row, "source": ""} for row in found if row["type"] in ("sequence", "totals")]


@pytest.mark.parametrize("name", ["saved", "one", "files", "lines"])
def test_rows_of_a_data_set_are_those_of_lines(name: str, folder: Path) -> None:
    expected = rows(ran("score rows.jsonl --keep-meta --jsonl", folder).stdout_bytes)
    line = f"score --dataset {name} --split train --keep-meta --jsonl"
    done = ran(line, folder)
    assert rows(done.stdout_bytes) == expected
    run = strictly(done.stdout.splitlines()[0])
    assert run["reading"]["inputs"] == [f"{name}:train"]
    assert (run["reading"]["dataset"], run["reading"]["split"]) == (name, "train")
    assert len(rows(ran(f"{line} --limit 7", folder).stdout_bytes)) == 8


def test_shards_of_a_data_set_are_merged(folder: Path) -> None:
    for name in ("saved", "lines"):
        line = f"score --dataset {name} --split train"
        whole = rows(ran(f"{line} --jsonl", folder).stdout_bytes)
        for n in range(3):
            ran(f"{line} --shard {n}/3 -o {name}-{n}.jsonl", folder)
        merged = ran("merge " + " ".join(f"{name}-{n}.jsonl" for n in range(3)), folder)
        assert rows(merged.stdout_bytes) == whole


def test_pairs_and_ids_of_a_data_set(folder: Path) -> None:
    found = rows(ran("cond --dataset saved --split test --jsonl", folder).stdout_bytes)
    assert [row["id"] for row in found[:-1]] == [f"saved:test:{n}" for n in range(1, 6)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset saved", "--split says which rows"),
        ("--dataset saved --split none", "saved has train, test"),
        ("--dataset one --split test", "one has train"),
        ("--dataset saved --split train --dataset-config a", "saved has none"),
        ("--dataset lines --split train --dataset-revision a", "lines is a directory here"),
        ("--dataset lines --split none", "--dataset lines, --split none: "),
        ("--dataset gone-away --split train", "--dataset gone-away, --split train: "),
        ("--dataset saved --split test", "has no field 'text'"),
        ("--split train rows.jsonl", "--split goes with --dataset"),
        ("--dataset saved --split train rows.jsonl", "exclude each other"),
        ("--dataset saved --split train --lines", "leave --lines"),
    ],
)
def test_data_sets_that_are_refused(words: str, message: str, folder: Path) -> None:
    assert message in " ".join(ran(f"score {words}", folder, 2).stderr.split())
