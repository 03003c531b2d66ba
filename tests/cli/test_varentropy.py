"""`--varentropy` from the flag to every output: JSON, Parquet, CSV, tables, pages, Python."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

import seqloss_cli
from helpers.program import in_process

TEXT = "The cat sat on the mat."
OPTIONS = ("score", "--text", TEXT, "--model", "demo", "--varentropy")


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    """The row of the text, with entropies."""
    done = in_process(*OPTIONS, "--entropy", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["run"]["rows"]["varentropy"] is True
    (found,) = document["sequences"]
    return dict(found)


@torch.inference_mode()
def test_it_is_the_variance_of_the_surprise_in_nats(row: dict[str, Any], demo: Any) -> None:
    ids = torch.tensor([row["token_ids"]])
    log_probs = demo.backend.model(ids).logits[0].double().log_softmax(-1)
    for t in range(1, len(row["token_ids"])):
        p, log_p = log_probs[t - 1].exp(), log_probs[t - 1]
        entropy = -(p * log_p).sum()
        assert row["entropies"][t] == pytest.approx(float(entropy), abs=1e-4)
        expected = float((p * (log_p + entropy) ** 2).sum())
        assert row["varentropies"][t] == pytest.approx(expected, rel=1e-4)
    assert row["varentropies"][0] is None
    keys = list(row)
    assert keys.index("varentropies") == keys.index("entropies") + 1


def test_files_hold_the_same_figures(row: dict[str, Any], tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.parquet", "out.csv", "out.tsv"):
        level = () if name.endswith(("l", "t")) else ("--level", "token")
        done = in_process(*OPTIONS, *level, "-o", tmp_path / name)
        assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[1]["varentropies"] == row["varentropies"]
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table["varentropies"].to_pylist() == [row["varentropies"]]
    for name, delimiter in (("out.csv", ","), ("out.tsv", "\t")):
        with (tmp_path / name).open(newline="") as file:
            cells = [each["varentropy"] for each in csv.DictReader(file, delimiter=delimiter)]
        assert [float(cell) if cell else None for cell in cells] == row["varentropies"]


@pytest.mark.parametrize(("unit", "scale"), [("nats", 1.0), ("bits", math.log(2) ** 2)])
def test_tables_hold_it_in_squares_of_their_unit(
    row: dict[str, Any], unit: str, scale: float
) -> None:
    done = in_process(*OPTIONS, "--unit", unit, "--format", "table")
    assert "varentropy" in done.stdout
    for value in row["varentropies"][1:]:
        assert f"{value / scale:.3f}" in done.stdout


def test_a_page_can_be_coloured_by_it(row: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert in_process(*OPTIONS, "--report", page).exit_code == 0
    text = page.read_text()
    assert '<option value="varentropy"' in text
    _, _, rest = text.partition('<script type="application/json" id="data">')
    data = json.loads(rest.partition("</script>")[0])
    assert {"name": "varentropy", "key": "varentropy", "whole": False, "power": 2} in data[
        "columns"
    ]
    shown = data["panes"][0]["varentropy"]
    assert shown[1:] == pytest.approx(row["varentropies"][1:], rel=1e-3)


def test_without_the_flag_nothing_tells_of_it(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    plain = in_process("score", "--text", TEXT, "--model", "demo", "--json", "--report", page)
    assert plain.exit_code == 0, plain.stderr
    assert "varentropy" not in plain.stdout
    assert "varentropies" not in plain.stdout
    assert "varentropy" not in page.read_text()


def test_python_has_it(row: dict[str, Any]) -> None:
    (outcome,) = seqloss_cli.score(TEXT, model="demo", varentropy=True)
    assert isinstance(outcome, seqloss_cli.SequenceScore)
    assert outcome.columns["varentropies"][1:].tolist() == row["varentropies"][1:]
    assert seqloss_cli.Wants(varentropy=True).described()["varentropy"] is True


def test_csv_has_no_place_for_it_but_at_tokens() -> None:
    done = in_process(*OPTIONS, "--format", "csv")
    assert done.exit_code == 2
    assert "--varentropy" in done.stderr


@pytest.mark.parametrize(
    ("before", "after", "advice"),
    [
        ((), ("--varentropy",), "leave --varentropy out"),
        (("--varentropy",), (), "give --varentropy"),
    ],
)
def test_resume_goes_on_with_the_same_columns_only(
    before: tuple[str, ...],
    after: tuple[str, ...],
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("One text.\nAnother text.\nA third.\n")
    command = ("score", "rows.txt", "--lines", "--model", "demo", "-o", "out.jsonl")
    assert in_process(*command, *before).exit_code == 0
    whole = Path("out.jsonl").read_bytes()
    run_line, first_row, *_ = whole.splitlines(keepends=True)

    def cut_off() -> None:
        Path("out.jsonl").unlink(missing_ok=True)
        Path("out.jsonl.partial").write_bytes(run_line + first_row)

    cut_off()
    refused = in_process(*command, *after, "--resume")
    assert refused.exit_code == 2
    assert advice in refused.stderr
    resumed = in_process(*command, *before, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert Path("out.jsonl").read_bytes() == whole
