"""Results files read back: every format, what is damaged, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_results import RUN, row, write

from seqloss_cli.errors import RowError, UsageError
from seqloss_cli.records import Rejected
from seqloss_cli.results import ResultRow, open_results


def rows_of(path: Path) -> list[ResultRow | Rejected]:
    return list(open_results(str(path)).rows)


def reasons(path: Path) -> list[str]:
    return [row.reason for row in rows_of(path) if isinstance(row, Rejected)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_rows_come_back_with_their_sums(path: Path) -> None:
    write(path, [row("a", [None, 1.2, 0.5, 2.3]), row("b", [None, float("inf"), 1.0])])
    file = open_results(str(path))
    a, b = list(file.rows)
    assert isinstance(a, ResultRow)
    assert isinstance(b, ResultRow)
    assert a.totals.total_loss == 4.0
    assert b.totals.total_loss is None
    tokens = b.tokens
    assert tokens is not None
    assert tokens.losses.tolist() == [0.0, float("inf"), 1.0]
    assert tokens.scored.tolist() == [False, True, True]
    assert (file.complete, file.n_sequences) == (True, 2)


def test_a_document_says_the_same_as_lines(path: Path, tmp_path: Path) -> None:
    rows = [row("a", [None, 1.0]), row("b", [None, 2.0, 0.25])]
    write(path, rows)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for indent in (None, 2):  # as written, and as jq prints it
        document = tmp_path / "results.json"
        document.write_text(
            json.dumps(
                {"schema_version": 1, "run": RUN, "sequences": rows, "rejected": [],
                 "totals": lines[-1]}, indent=indent,
            )
        )  # fmt: skip
        file = open_results(str(document))
        assert [r.fields["id"] for r in file.rows if isinstance(r, ResultRow)] == ["a", "b"]
        assert file.complete
        assert file.run["model"] == "made"


def test_a_torn_last_line_costs_only_itself(path: Path) -> None:
    write(path, [row("a", [None, 1.0]), row("b", [None, 2.0])], complete=False)
    path.write_bytes(path.read_bytes()[:-20])
    file = open_results(str(path))
    good, torn = list(file.rows)
    assert isinstance(good, ResultRow)
    assert isinstance(torn, Rejected)
    assert (torn.reason, torn.line) == ("torn_row", 3)
    assert not file.complete


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"total_loss": 9.0}, "impossible"),
        ({"total_loss": -1.0, "token_losses": [None, -1.0]}, "impossible"),
        ({"n_scored": 2}, "impossible"),
        ({"n_scored": "1"}, "wrong_type"),
        ({"n_tokens": True}, "wrong_type"),
        ({"total_loss": "1.0"}, "wrong_type"),
        ({"token_losses": [None]}, "wrong_length"),
        ({"id": None}, "missing_field"),
        ({"log_prob_x": -5.2, "log_prob_xy": -3.5, "log_prob_y_given_x": -1.0}, "impossible"),
        ({"log_prob_x": 0.5}, "impossible"),
    ],
)
def test_figures_that_cannot_be_are_refused(
    path: Path, changes: dict[str, Any], reason: str
) -> None:
    write(path, [row("good", [None, 1.0])], complete=False)
    bad = json.dumps({"type": "sequence", **row("a", [None, 1.0]), **changes})
    path.write_text(path.read_text() + bad + "\n")
    good, rejected = rows_of(path)
    assert isinstance(good, ResultRow)
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.line) == (reason, 3)


def test_shards_of_one_run_are_one_and_others_are_refused(path: Path, tmp_path: Path) -> None:
    write(path, [row("a", [None, 1.0])])
    second = write(tmp_path / "2.jsonl", [row("b", [None, 2.0])], started_at="later")
    path.write_text(path.read_text() + second.read_text())
    file = open_results(str(path))
    assert len(list(file.rows)) == 2
    assert len(file.totals) == 2
    other = write(tmp_path / "3.jsonl", [row("c", [None, 2.0])], weights_sha256="x", model="other")
    path.write_text(path.read_text() + other.read_text())
    with pytest.raises(UsageError, match=r":7 goes on with another run: model made and other"):
        rows_of(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        ("hello\n", "no_results"),
        ('{"type": "sequence"}\n', "no_results"),
        ('{"type": "run", "schema_version": 2, "command": "score"}\n', "newer_schema"),
        ('{"type": "run", "schema_version": 1, "command": "mask"}\n', "no_results"),
        ('{"type": "run", "command": "score"}\n', "no_results"),
    ],
)
def test_what_holds_no_results_is_refused(path: Path, content: str, reason: str) -> None:
    path.write_text(content)
    with pytest.raises(RowError) as caught:
        open_results(str(path))
    assert caught.value.reason == reason
    with pytest.raises(RowError):
        open_results(str(path / "missing"))
