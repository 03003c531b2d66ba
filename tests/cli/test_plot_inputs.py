"""What `seqloss plot` takes: which options do something, what is told apart, what is counted."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from helpers.program import document
from helpers.results import row, rows_of, write
from seqloss_cli.cli.conflicts import CONFLICTS, TYPED
from seqloss_cli.cli.main import app

Run = Callable[..., Any]
ALWAYS = {"results", "kind", "json", "output", "config", "debug"}
VALUES = {
    "by": "set", "cluster": "book", "metric": "perplexity", "level": "token", "bins": "9",
    "bins_by": "mass", "unit": "bits", "seed": "7", "confidence": "0.8", "title": "T",
    "width": "4", "height": "3", "dpi": "90", "allow_different": None, "force": None,
    "label": "member", "min_k": "30", "pair": "pair",
}  # fmt: skip
# What a kind has a use for, beside -o FILE.svg: written down again, not read from the table.
USED = {
    "curve": {"metric", "unit", "cluster", "confidence", "seed"},
    "histogram": {"unit"},
    "position": {"unit", "cluster", "confidence"},
    "calibration": {"bins", "bins_by", "cluster", "confidence", "seed"},
    "scatter": {"unit", "level", "seed", "dpi"},
    "groups": {"by", "metric", "unit", "cluster", "confidence"},
    "roc": {"label", "min_k", "pair", "cluster", "confidence", "seed"},
}
# Options without which there is no such plot.
NEEDED = {"groups": ("--by", "set"), "roc": ("--label", "member")}
ALL = {"title", "width", "height", "force", "allow_different"}


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{n}.jsonl", rows_of(24, 0.1 * n), model=f"step-{n}") for n in (1, 2)]


@pytest.fixture
def report(run_cli: Run, tmp_path: Path) -> bytes:
    models = ["samples/checkpoints/step-100", "samples/checkpoints/step-600"]
    words = ["--data", "CHANGELOG.md", "--lines", "--limit", "12", "--json"]
    done = run_cli("objective", *models, *words)
    assert done.exit_code == 0, done.stderr
    return bytes(done.stdout_bytes)


def labelled() -> list[dict[str, Any]]:
    metas = ({"member": k % 2, "pair": k} for k in range(24))
    return [
        each | {"text": each["id"], "meta": each["meta"] | meta}
        for each, meta in zip(rows_of(24), metas, strict=True)
    ]


def given(name: str) -> list[str]:
    flag, value = f"--{name.replace('_', '-')}", VALUES[name]
    return [flag] if value is None else [flag, value]


# -- options that do nothing ---------------------------------------------------------------------


def test_every_option_has_a_rule_or_is_always_used() -> None:
    command = typer.main.get_command(app).commands["plot"]  # type: ignore[attr-defined]
    names = {parameter.name for parameter in command.params} - {"help"}
    rows = [row for row in CONFLICTS if not {"draws", "objective", "suffix"}.isdisjoint(row.where)]
    idle = {name for row in rows for name, holds in row.where.items() if holds is TYPED}
    assert names - ALWAYS == idle == set(VALUES)


@pytest.mark.parametrize("kind", USED)
@pytest.mark.parametrize("name", VALUES)
def test_what_does_nothing_is_refused(
    run_cli: Run, pair: list[Path], tmp_path: Path, kind: str, name: str
) -> None:
    files, needed = pair, NEEDED.get(kind, ())
    if kind == "roc":
        files = [write(tmp_path / "roc.jsonl", labelled())]
    words = [*files, "--kind", kind, "-o", tmp_path / "p.svg", *given(name)]
    words += () if given(name)[0] in needed else needed
    done = run_cli("plot", *words)
    flag = given(name)[0]
    used = USED[kind] | (ALL - {"allow_different"} if kind == "roc" else ALL)
    if name in used:
        assert done.exit_code == 0, done.stderr
    else:
        assert done.exit_code == 2
        assert f"error: {flag} is for " in done.stderr
        assert not (tmp_path / "p.svg").exists()


@pytest.mark.parametrize("metric", ["perplexity", "bits_per_byte"])
@pytest.mark.parametrize("kind", ["curve", "groups"])
def test_rates_have_units_of_their_own(
    run_cli: Run, pair: list[Path], metric: str, kind: str
) -> None:
    by = ["--by", "set"] if kind == "groups" else []
    words = [*pair, "--kind", kind, *by, "--metric", metric, "--json"]
    assert run_cli("plot", *words).exit_code == 0
    done = run_cli("plot", *words, "--unit", "nats")
    assert done.exit_code == 2
    assert "--unit is for --metric mean_loss" in done.stderr


@pytest.mark.parametrize("name", ["title", "width", "height", "dpi", "force"])
def test_what_is_for_the_file_needs_one(run_cli: Run, pair: list[Path], name: str) -> None:
    done = run_cli("plot", *pair, "--json", *given(name))
    assert done.exit_code == 2
    assert "-o FILE" in done.stderr


def test_pixels_are_for_png_and_one_file_differs_from_none(
    run_cli: Run, pair: list[Path], tmp_path: Path
) -> None:
    words = [pair[0], "-o", tmp_path / "p.png"]
    assert run_cli("plot", *words, "--dpi", "90").exit_code == 0
    done = run_cli("plot", *words, "--force", "--allow-different")
    assert done.exit_code == 2
    assert "two RESULTS files or more" in done.stderr


def test_a_configuration_is_no_flag(run_cli: Run, pair: list[Path], tmp_path: Path) -> None:
    """And what it says of other kinds has no part in this one."""
    config = tmp_path / "c.yaml"
    config.write_text("metric: perplexity\nbins: 9\ndpi: 100\n")
    words = [*pair, "--kind", "position", "--json"]
    found = document(run_cli("plot", *words, "--config", config))
    assert found == document(run_cli("plot", *words))
    assert found["axis"] == "Mean loss (nats per token)"


# -- reports of objective ------------------------------------------------------------------------


def test_a_report_of_objective_is_known_by_what_it_holds(
    run_cli: Run, report: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(report)
    by_name = run_cli("plot", path, "--json")
    by_stdin = run_cli("plot", "-", "--json", stdin=report)
    indented = run_cli(
        "plot", "-", "--json", stdin=json.dumps(json.loads(report), indent=2).encode()
    )
    assert "--kind curve, as objective wrote this report" in by_name.stderr
    found = [document(each) for each in (by_name, by_stdin, indented)]
    assert [each.pop("files") for each in found][1] == [{"file": "<stdin>"}]
    assert found[0] == found[1] == found[2]
    written = json.loads(report)["checkpoints"]
    for point, checkpoint in zip(found[0]["points"], written, strict=True):
        assert point["step"] == checkpoint["step"]
        assert point["estimate"]["value"] == checkpoint["mean_loss"]
        assert point["estimate"]["low"] == checkpoint["mean_loss_low"]
    assert run_cli("plot", "-", "-o", tmp_path / "c.svg", stdin=report).exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "histogram"], "is a report of objective, which --kind curve is for"),
        (["--seed", "3"], "has its intervals already"),
        (["--confidence", "0.5"], "has its intervals already"),
        (["--bins", "3"], "--bins is for --kind calibration"),
    ],
)
def test_what_a_report_of_objective_cannot_be(
    run_cli: Run, report: bytes, words: list[str], said: str
) -> None:
    done = run_cli("plot", "-", "--json", *words, stdin=report)
    assert done.exit_code == 2
    assert said in done.stderr


def test_results_on_stdin_and_what_is_neither(run_cli: Run, pair: list[Path]) -> None:
    by_name = document(run_cli("plot", pair[0], "--json"))
    by_stdin = document(run_cli("plot", "-", "--json", stdin=pair[0].read_bytes()))
    assert by_stdin["series"] == by_name["series"]
    for other in (b'{"schema_version":1,"comparisons":[]}\n', b'{"checkpoints":[]}\n', b"hello\n"):
        done = run_cli("plot", "-", "--kind", "curve", "--json", stdin=other)
        assert done.exit_code == 2
        assert "holds no results of seqloss" in done.stderr


# -- rows ----------------------------------------------------------------------------------------


def test_a_cluster_may_stand_in_any_file(run_cli: Run, tmp_path: Path) -> None:
    with_books = write(tmp_path / "b.jsonl", rows_of(24), model="step-2")
    plain = [{k: v for k, v in each.items() if k != "meta"} for each in rows_of(24)]
    plain.append(row("unpaired", [None, 1.0]))
    without = write(tmp_path / "a.jsonl", plain, model="step-1")
    words = ["--kind", "curve", "--cluster", "book", "--json"]
    done = run_cli("plot", without, with_books, *words)
    summed = document(run_cli("summarize", with_books, "--cluster", "book", "--json"))
    for point in document(done)["points"]:
        assert point["estimate"] == summed["estimates"]["mean_loss"]
        assert "clusters" in point["estimate"]["method"]
    assert "have no such field" not in done.stderr
    assert "the plot is of 24 of the rows" in done.stderr


def test_rows_without_a_cluster_are_counted_among_those_that_are_used(
    run_cli: Run, tmp_path: Path
) -> None:
    rows = [row(f"r{n}", [None, 1.0 + n], meta={"book": n // 2}) for n in range(6)]
    del rows[5]["meta"]
    first = write(tmp_path / "a.jsonl", [*rows, row("x", [None])], model="step-1")
    second = write(tmp_path / "b.jsonl", [*rows, row("x", [None])], model="step-2")
    done = run_cli("plot", first, second, "--kind", "curve", "--cluster", "book", "--json")
    assert "--cluster book: 1 of 6 rows have no such field" in done.stderr
    assert "1 rows are left out: nothing scored (first x)" in done.stderr
    assert document(done)["n_documents"] == 6
    refused = run_cli("plot", first, second, "--kind", "curve", "--cluster", "bok", "--json")
    assert refused.exit_code == 2


def test_a_row_that_only_the_first_file_does_not_score_is_said(
    run_cli: Run, tmp_path: Path
) -> None:
    rows = [row(f"r{n}", [None, 1.0]) for n in range(4)]
    first = write(tmp_path / "a.jsonl", [row("r0", [None, None]), *rows[1:]], model="step-1")
    second = write(tmp_path / "b.jsonl", rows, model="step-2")
    done = run_cli("plot", first, second, "--kind", "curve", "--json")
    assert "1 rows are left out: other tokens are scored (first r0)" in done.stderr
    assert document(done)["rows"]["left_out"] == {"other tokens are scored": 1}


@pytest.mark.parametrize("kind", ["histogram", "position", "calibration"])
def test_why_there_is_nothing(run_cli: Run, pair: list[Path], tmp_path: Path, kind: str) -> None:
    for rows in ([], [row("a", [None]), row("b", [None, None])]):
        empty = write(tmp_path / "e.jsonl", rows, model="hollow")
        done = run_cli("plot", pair[0], empty, "--kind", kind, "--json")
        assert done.exit_code == 1
        assert "nothing to plot: hollow: no token is scored" in done.stderr
        assert "--no-tokens" not in done.stderr


def test_positions_of_some_rows_only_are_refused(run_cli: Run, tmp_path: Path) -> None:
    plain = {"token_ids": None, "tokens": None, "token_losses": None, "byte_offsets": None}
    rows = [row("a", [None, 1.0]), row("b", [None, 9.0]) | plain, row("c", [None]) | plain]
    file = write(tmp_path / "a.jsonl", rows)
    done = run_cli("plot", file, "--kind", "position", "--json")
    assert done.exit_code == 2
    assert "a.jsonl:3" in done.stderr
    assert "--no-tokens" in done.stderr


@pytest.mark.parametrize("kind", USED)
def test_losses_whose_squares_overflow(run_cli: Run, tmp_path: Path, kind: str) -> None:
    """The same numbers as of losses that are smaller by 1e250, and no warning of numpy's."""
    top = [None, *[[{"id": 1, "token": "x", "log_prob": math.log(0.7)}]] * 2]
    made: dict[float, Any] = {}
    for size in (1.0, 1e250):
        files = []
        for shift in (1.0, 1.5):
            rows = [
                row(f"h{k}", [None, size * (k + shift), size],
                    meta={"set": "ab"[k % 2], "member": k % 2}, top_logprobs=top)
                for k in range(10)
            ]  # fmt: skip
            path = tmp_path / f"{size}-{shift}.jsonl"
            files.append(write(path, rows, model=f"step-{shift * 2:.0f}"))
        files = files[:1] if kind == "roc" else files
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            output = ["-o", tmp_path / f"{size}.png"]
            done = run_cli("plot", *files, "--kind", kind, *NEEDED.get(kind, ()), "--json", *output)
        made[size] = document(done)
        assert "overflow" not in done.stderr
    if kind in ("curve", "position", "groups"):
        small, large = ([*estimates(made[size])] for size in (1.0, 1e250))
        assert len(small) == len(large) > 0
        for a, b in zip(small, large, strict=True):
            for key in ("value", "low", "high", "standard_error"):
                assert b[key] == pytest.approx(a[key] * 1e250)


def estimates(found: Any) -> Any:
    if isinstance(found, dict) and "standard_error" in found:
        yield found
    elif isinstance(found, dict | list):
        for each in found.values() if isinstance(found, dict) else found:
            yield from estimates(each)
