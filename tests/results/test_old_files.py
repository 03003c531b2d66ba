"""Files in `tests/results/old/`, which the program wrote before its rooms were: read, and resumed.

Their losses are those of the net's stub; run records differ in versions, threads and times only.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from helpers import stub
from seqloss_cli.core.records import Rejected
from seqloss_cli.results.files import open_any
from seqloss_cli.results.formats.parquet import read_parquet_rows
from seqloss_cli.results.schema.divergences import DIVERGENCE_KINDS
from seqloss_cli.results.schema.rankings import RANKING_KINDS
from seqloss_cli.results.schema.scores import loss_kinds

OLD = Path(__file__).parent / "old"
LINES = {
    "score": f"score corpus.jsonl {stub.ALL}",
    "cond": f"cond mixed.jsonl {stub.CHAT} {stub.ALL} --pmi --boundary compare",
    "rank": "rank questions.jsonl samples/choices.jsonl --pmi --tokens --keep-meta",
    "diverge": "diverge corpus.jsonl -m samples/checkpoints/step-600 --teacher demo --keep-meta",
    "mask": f"mask mixed.jsonl {stub.CHAT} --like trl --loss",
}
VOLATILE = ("started_at", "versions", "threads")
LATER = re.compile(
    r"^(ifd|overlap_k|by_position|by_teacher_entropy|(mean_|inf_)?(reverse_kl|jensen_shannon|"
    r"total_variation|acceptance|top_k_overlap)s?)$"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and what the commands write of them now."""
    found = tmp_path_factory.mktemp("old")
    stub.furnish(found)
    for command, line in LINES.items():
        done = stub.run(f"{line} -o {command}-now.jsonl", found)
        assert done.exit_code == 3, done.stderr
    return found


def are_alike(a: Any, b: Any) -> bool:
    """Equal, keys in the same order, but for the last digits: exp and log differ by machine."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(are_alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(are_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return type(a) is type(b) and a == b


def _drop_what_came_later(row: Any) -> None:
    """Drop the keys of later versions from a row or totals."""
    for name in [*row]:
        if LATER.search(name):
            del row[name]
    if estimates := row.get("estimates"):
        _drop_what_came_later(estimates)


def lines_of(path: Path) -> list[Any]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for name in VOLATILE:
        found[0][name] = None
    # Counts by reason came later.
    rejections = found[-1].pop("rejections", None)
    assert rejections is None or sum(rejections.values()) == found[-1]["n_rejected"]
    for row in found:
        _drop_what_came_later(row)
    # Of diverge: their order went by hashes then, and fewer than 5 documents had intervals.
    if estimates := found[-1].get("estimates"):
        found[-1]["estimates"] = values_of(dict(sorted(estimates.items())))
    return found


def values_of(estimates: Any) -> Any:
    """Estimates without their intervals."""
    if "value" in estimates:
        return estimates["value"], estimates["n"]
    return {name: values_of(inner) for name, inner in estimates.items()}


@pytest.mark.parametrize("command", LINES)
def test_lines_are_as_they_were(command: str, folder: Path) -> None:
    old, now = lines_of(OLD / f"{command}.jsonl"), lines_of(folder / f"{command}-now.jsonl")
    assert len(old) == len(now)
    for before, after in zip(old, now, strict=True):
        assert are_alike(before, after), before.get("id")


@pytest.mark.parametrize("command", LINES)
def test_an_old_file_is_resumed(command: str, folder: Path) -> None:
    old = (OLD / f"{command}.jsonl").read_bytes().splitlines(keepends=True)
    now = (folder / f"{command}-now.jsonl").read_bytes().splitlines(keepends=True)
    run = json.loads(old[0]) | {name: json.loads(now[0])[name] for name in VOLATILE}
    old[0] = json.dumps(run, separators=(",", ":")).encode() + b"\n"
    for n_kept in (1, 3, len(old) - 2):
        kept = b"".join(old[: 1 + n_kept])
        (folder / "out.jsonl.partial").write_bytes(kept + b'{"type":')
        done = stub.run(f"{LINES[command]} -o out.jsonl --resume", folder)
        assert done.exit_code == 3, done.stderr
        whole = (folder / "out.jsonl").read_bytes()
        assert whole.startswith(kept)
        assert whole[len(kept) :].splitlines(keepends=True)[:-1] == now[1 + n_kept : -1]
        totals, whole_run = json.loads(whole.splitlines()[-1]), json.loads(now[-1])
        if command == "diverge":  # rows of the old file do not hold them
            assert totals["mean_acceptance"] is None
            assert "not known" in totals["estimates"]["mean_acceptance"]["method"]
            for each in (totals, whole_run):
                _drop_what_came_later(each)
        assert are_alike(totals, whole_run)
        (folder / "out.jsonl").unlink()


@pytest.mark.parametrize(
    "name", ["score.jsonl", "score.json", "score.parquet", "cond.parquet", "rank.jsonl",
             "diverge.jsonl"],
)  # fmt: skip
def test_an_old_file_is_read_back(name: str) -> None:
    kinds: dict[str, Any] = {**loss_kinds(True, True), **RANKING_KINDS, **DIVERGENCE_KINDS}
    file = open_any(str(OLD / name), kinds)
    rows = list(file.rows)
    assert rows
    assert not any(isinstance(row, Rejected) for row in rows)
    assert file.complete


def test_an_old_parquet_file_holds_the_lines_of_jsonl() -> None:
    found = list(read_parquet_rows(OLD / "score.parquet"))
    for name in VOLATILE:
        found[0][name] = None
    expected = lines_of(OLD / "score.jsonl")
    assert [{**row} for row in found] == expected
