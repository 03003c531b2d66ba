"""Results files read back: every format, what is damaged, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.results import RUN, open_results, row, write
from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.records import Rejected
from seqloss_cli.results.resume import recorded_run
from seqloss_cli.results.schema.scores import ResultRow


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


def test_a_byte_order_mark_is_dropped(path: Path) -> None:
    write(path, [row("a", [None, 1.0])])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [r.fields["id"] for r in rows_of(path) if isinstance(r, ResultRow)] == ["a"]
    path.write_bytes(b'\xef\xbb\xbf{"type":"run","command":"score"}\n')
    assert recorded_run(path) == {"type": "run", "command": "score"}


def test_a_document_says_the_same_as_lines(path: Path, tmp_path: Path) -> None:
    rows = [row("a", [None, 1.0]), row("b", [None, 2.0, 0.25])]
    write(path, rows)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for bom, indent in (("", None), ("", 2), ("\ufeff", None), ("\ufeff", 2)):  # as jq prints it
        document = tmp_path / "results.json"
        document.write_text(
            bom
            + json.dumps(
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
        ({"id": None}, "wrong_type"),
        ({"meta": [1]}, "wrong_type"),
        ({"flags": ["x"]}, "wrong_type"),
        ({"flags": {"x": "y"}}, "wrong_type"),
        ({"inf_losses": [7]}, "wrong_length"),
        ({"inf_losses": "x"}, "wrong_type"),
        ({"token_losses": "xy"}, "wrong_type"),
        ({"token_losses": [None, "1.0"]}, "wrong_type"),
        ({"token_losses": {"a": 1, "b": 2}}, "wrong_type"),
        ({"byte_offsets": [0, 1]}, "wrong_length"),
        ({"byte_offsets": [0, None, 2]}, "wrong_type"),
        ({"loss_mask": [0, "y"]}, "wrong_type"),
        ({"tokens": ["a"]}, "wrong_length"),
        ({"tokens": [7, 7]}, "wrong_type"),
        ({"token_losses": [None, -1.0], "total_loss": -1.0}, "impossible"),
        ({"token_losses": [None, True]}, "wrong_type"),
        ({"total_loss": 1.7e308, "token_losses": None}, "impossible"),
        ({"n_words": 1 << 60}, "wrong_type"),
        ({"source": 3}, "wrong_type"),
        (
            {"separate": {"n_scored": -1}, "n_response_tokens": 1, "n_prompt_tokens": 1},
            "wrong_type",
        ),
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
    assert file.complete
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


def test_a_run_behind_a_torn_line_is_seen(path: Path, tmp_path: Path) -> None:
    write(path, [row("a", [None, 1.0]), row("b", [None, 1.0])], complete=False)
    path.write_bytes(path.read_bytes()[:-20])
    other = write(tmp_path / "2.jsonl", [row("c", [None, 2.0])], bos="never")
    second = other.read_text().replace('{"type": "run"', '{"type":"run"')
    path.write_text(path.read_text() + second)
    with pytest.raises(UsageError, match="goes on with another run: bos auto and never"):
        rows_of(path)
    again = write(tmp_path / "3.jsonl", [row("c", [None, 2.0])])
    write(path, [row("a", [None, 1.0])], complete=False)
    path.write_bytes(path.read_bytes()[:-20] + again.read_bytes().replace(b": ", b":"))
    file = open_results(str(path))
    assert [r.id for r in file.rows if isinstance(r, ResultRow)] == ["c"]
    assert file.complete, "nothing of the first run is used"


def test_a_newer_run_in_the_middle_ends_it(path: Path) -> None:
    write(path, [row("a", [None, 1.0])])
    newer = json.dumps({"type": "run", "schema_version": 99, **RUN})
    path.write_text(path.read_text() + newer + "\n")
    with pytest.raises(UsageError, match="newer seqloss"):
        rows_of(path)


def test_a_file_of_summary_says_that_it_holds_no_rows(path: Path) -> None:
    write(path, [row("a", [None, 1.0])])
    run, _, totals = path.read_text().splitlines(keepends=True)
    of_summary = json.dumps(json.loads(run) | {"rows": {"summary": True}}) + "\n" + totals
    path.write_text(of_summary)
    with pytest.raises(RowError, match="with --summary: it holds no rows") as error:
        open_results(str(path))
    assert error.value.reason == "no_rows"
    path.write_text(run + of_summary)
    with pytest.raises(UsageError, match="goes on with a run that was written with --summary"):
        rows_of(path)


def test_a_row_that_was_taken_out_is_missed(path: Path) -> None:
    write(path, [row("a", [None, 1.0]), row("b", [None, 2.0])])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    assert reasons(path) == ["rows_missing"]
    path.write_text(lines[0] + lines[-1])
    assert reasons(path) == ["rows_missing"]
    changed = lines[1].replace("1.0", "1.5")
    path.write_text("".join([lines[0], changed, *lines[2:]]))
    assert reasons(path) == ["impossible"]
