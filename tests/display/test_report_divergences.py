"""Pages of what `diverge` wrote: figures that are the command's own, and texts that stay texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import EVIL, Page, lines_of, page_of, values_of
from helpers.results import diverged_row, write_divergences
from seqloss_cli.display.html.page import number
from seqloss_cli.display.html.spans import loss_or_mark
from seqloss_cli.display.html.text_pages import _mean_figures
from seqloss_cli.display.scales import KL_EDGES, step_of
from seqloss_cli.metrics.divergence import DivergenceTotals
from seqloss_cli.metrics.intervals import Estimate

Run = Callable[..., Any]
STUDENT = ("-m", "samples/checkpoints/step-600")


@pytest.fixture
def results(run_cli: Run, tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    done = run_cli("diverge", "samples/texts.jsonl", *STUDENT, "--teacher", "demo", "-o", path)
    assert done.exit_code == 0, done.stderr
    return path


def test_figures_are_those_of_the_command(run_cli: Run, results: Path) -> None:
    page, lines = page_of(run_cli, results), lines_of(results)
    totals, values = lines[-1], values_of(page)
    for name, estimate in totals["estimates"].items():
        several = estimate.values() if name.endswith("quantiles") else [estimate]
        if name.endswith("quantiles"):
            several = [estimate[q] for q in ("0.01", "0.05", "0.5", "0.95", "0.99")]
        for each in several:
            for end in ("value", "low", "high"):
                if each[end] is not None:
                    assert any(math.isclose(each[end], v, rel_tol=1e-8) for v in values), name
    assert number(totals["mean_kl"], 4) in page.text
    rows = [line for line in lines if line["type"] == "sequence" and line["text_sha256"]]
    assert page.panes[: len(rows)] == [row["text"] for row in rows]
    first = page.data["panes"][0]
    assert first["kl"] == [loss_or_mark(kl) for kl in rows[0]["kls"]]
    assert [kind.split()[0] for kind, _ in page.spans[0]] == [
        "u" if kl is None else f"s{step_of(kl, KL_EDGES)}" for kl in rows[0]["kls"]
    ]
    assert lines[0]["teacher"]["weights_sha256"] in page.text
    assert "The teacher" in page.text


def test_unscored_is_not_nothing_and_infinite_is_the_darkest(run_cli: Run, tmp_path: Path) -> None:
    row = diverged_row(["a", "b", "c"], [None, 0.0, 0.5])
    page = page_of(run_cli, write_divergences(tmp_path / "r.jsonl", [row]))
    assert [kind for kind, _ in page.spans[0]] == ["u z", "u", "s0", "s4"]
    assert page.data["panes"][0]["kl"] == [None, None, 0, 0.5]
    row = diverged_row(["a", "b"], [0.0, 0.5])
    row |= {"kl": None, "cross_entropy": None, "kls": [None, 0.0, None], "inf_kls": [2]}
    row["token_losses"] = [None, 1.0, None]
    page = page_of(run_cli, write_divergences(tmp_path / "r.jsonl", [row]))
    assert [kind for kind, _ in page.spans[0]] == ["u z", "s0", "s6"]
    assert page.data["panes"][0]["kl"] == [None, 0, -1]


def test_texts_stay_texts(run_cli: Run, tmp_path: Path) -> None:
    row = diverged_row(EVIL, [n / 10 for n in range(len(EVIL))])
    page = page_of(run_cli, write_divergences(tmp_path / "<evil>.jsonl", [row]))
    assert page.panes == ["".join(EVIL)]
    assert [text for _, text in page.spans[0]] == ["", *EVIL]
    assert not set("<>&\u2028\u2029") & set(page.raw["application/json"])
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_bounds_of_a_saved_teacher_are_called_bounds(run_cli: Run, tmp_path: Path) -> None:
    saved, path, results = (tmp_path / n for n in ("t.bin", "page.html", "r.jsonl"))
    text = ("--text", "The cat sat on the mat.")
    done = run_cli("diverge", *text, "--teacher", "demo", "--save-teacher", saved,
                   "--teacher-top-k", "4", "--summary")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    words = ("diverge", *text, *STUDENT, "--teacher", saved)
    done = run_cli(*words, "-o", results, "--report", path)
    assert done.exit_code == 0, done.stderr
    page = Page(path.read_text())
    for said in ("KL ≥", "KL at most", "cross-entropy ≥", "lower bounds"):
        assert said in page.text
    row = lines_of(results)[1]
    assert page.data["panes"][0]["km"] == [loss_or_mark(kl) for kl in row["kls_at_most"]]
    assert any(math.isclose(row["mean_kl_at_most"], v, rel_tol=1e-8) for v in values_of(page))
    before = saved.read_bytes()
    for flags in ((*words, "--report", saved), (*words, "--report", results, "-o", results),
                  (*words, "--report", path)):  # fmt: skip
        forced = () if flags[-1] == path else ("--force",)
        assert run_cli(*flags, *forced).exit_code == 2
    both = ("diverge", *text, "--teacher", "demo", "--save-teacher", path, "--report", path)
    done = run_cli(*both, "--force")
    assert done.exit_code == 2
    assert "--save-teacher are one file" in done.stderr
    assert saved.read_bytes() == before


@pytest.mark.parametrize("output", [[], ["--summary"], ["--json"]])
def test_a_page_beside_any_output(run_cli: Run, tmp_path: Path, output: list[str]) -> None:
    path = tmp_path / "page.html"
    gold = ("--label-smoothing", "0.1")
    done = run_cli("diverge", "--text", "The cat.", *gold, *output, "--report", path)
    assert done.exit_code == 0, done.stderr
    page = Page(path.read_text())
    assert page.panes == ["The cat."]
    assert "Divergences of demo" in page.text


def test_without_tokens_there_are_tables(run_cli: Run, results: Path) -> None:
    lines = lines_of(results)
    arrays = ("tokens", "token_ids", "token_losses", "kls", "byte_offsets")
    rows = [{k: v for k, v in line.items() if k not in arrays}
            for line in lines if line["type"] == "sequence"]  # fmt: skip
    page = page_of(run_cli, write_divergences(results.parent / "plain.jsonl", rows))
    assert page.panes == []
    assert "--no-tokens" in page.text
    assert "Quantiles" not in page.text
    assert any(math.isclose(lines[-1]["mean_kl"], v, rel_tol=1e-8) for v in values_of(page))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl": 9.0}, "its tokens' sum to"),
        ({"n_scored": 1}, "n_scored is not"),
        ({"kls": [None, -1.0, 1.0]}, "holds what it cannot"),
        ({"kls": [None]}, "kls is not as long"),
        ({"student_loss": -2.0}, "a sum is below 0"),
        ({"delta_p": None, "token_losses": None}, "'delta_p' cannot be"),
    ],
)
def test_wrong_figures_are_refused(
    run_cli: Run, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    rows = [diverged_row(["a", "b"], [0.25, 0.5]) | changes]
    done = run_cli(
        "report", write_divergences(tmp_path / "r.jsonl", rows), "-o", tmp_path / "page.html"
    )
    assert done.exit_code == 3
    assert said in done.stderr


def test_kinds_are_not_mixed(run_cli: Run, results: Path, tmp_path: Path) -> None:
    scores, mixed, path = (tmp_path / n for n in ("s.jsonl", "mixed.jsonl", "page.html"))
    assert run_cli("score", "--text", "The cat.", "-o", scores).exit_code == 0
    mixed.write_text(scores.read_text() + results.read_text())
    done = run_cli("report", mixed, "-o", path)
    assert done.exit_code == 2
    assert "goes on with what 'diverge' wrote, after what 'score' wrote" in done.stderr
    done = run_cli("report", results, scores, "-o", path)
    assert done.exit_code == 2
    assert "holds what 'diverge' wrote, not results of score or cond" in done.stderr
    assert run_cli("summarize", results).exit_code == 2
    done = run_cli("report", results, "--by", "id", "-o", path)
    assert done.exit_code == 2
    assert "--by is for pages of what score and cond wrote" in done.stderr
    assert not path.exists()


def test_why_there_is_no_interval_is_said_once() -> None:
    why = "no interval: fewer than 5 documents (1)"
    means = {name: Estimate(0.5, method=why) for name in ("kl", "delta_p", "same_top1")}
    figures = _mean_figures(means, DivergenceTotals(), in_part=False)
    abouts = [figure.about for figure in figures]
    assert sum(why in about for about in abouts) == 1
    assert not any(". n" in about for about in abouts)
