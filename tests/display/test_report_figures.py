"""Figures of the page of results: of the whole input, with the intervals that were asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.pages import Page, text_row
from helpers.results import write
from seqloss_cli.display.html.charts import concentration_chart, difference_chart, loss_chart
from seqloss_cli.display.html.page import number, signed

Run = Callable[..., Any]
WORDS = ["The", " cat", " sat", "\n", " on", " the", " mat", "."]


@pytest.fixture
def report(run_cli: Run, tmp_path: Path) -> Callable[..., Page]:
    def made(*arguments: object) -> Page:
        path = tmp_path / "page.html"
        done = run_cli("report", *arguments, "-o", path, "--force")
        assert done.exit_code == 0, done.stderr
        return Page(path.read_text())

    return made


def links(page: Page) -> list[str]:
    found = [str(a.get("href")) for tag, a in page.tags if tag == "a"]
    return [href.removeprefix("#") for href in found if href.startswith("#t") and "-" in href]


def text_at(page: Page, anchor: str) -> str:
    """Of the span that a link leads to."""
    sequence, pane, span = map(int, anchor.removeprefix("t").split("-"))
    n_panes = len(page.panes) // len({a["data-s"] for tag, a in page.tags if tag == "article"})
    return page.spans[sequence * n_panes + pane][span][1]


# -- worst tokens, over all that was read --------------------------------------------------------


def test_worst_tokens_lead_to_their_own_row(report: Callable[..., Page], tmp_path: Path) -> None:
    """Rows may share an id, a source and a line, or have no source."""
    rows = [text_row("same", WORDS, [0.1] * 8), text_row("same", [" one", " two"], [9.0, 2.0])]
    for changes in ({}, {"source": None, "line": None}):
        page = report(write(tmp_path / "r.jsonl", [row | changes for row in rows]), "--worst", 2)
        assert [text_at(page, anchor) for anchor in links(page)] == [" one", " two"]


def test_infinite_losses_are_the_worst_and_are_told_of(
    report: Callable[..., Page], tmp_path: Path
) -> None:
    losses: list[float | None] = [1.0, math.inf, 25.0]
    row = text_row("a", ["x", "y", "z"], losses) | {"total_loss": None, "mean_loss": None}
    row |= {"inf_losses": [2], "token_losses": [None, 1.0, None, 25.0], "flags": {"inf_loss": 1}}
    page = report(write(tmp_path / "r.jsonl", [row, text_row("b", WORDS, [2.0] * 8)]))
    assert [text_at(page, anchor) for anchor in links(page)][:2] == ["y", "z"]
    assert "Infinite losses, of tokens of probability 0, in 1 of 2 sequences" in page.text
    assert "∞" in page.text


def test_what_lies_beyond_the_shown_is_listed(report: Callable[..., Page], tmp_path: Path) -> None:
    tokens = [f"w{n} " for n in range(66_000)]
    losses: list[float | None] = [1.0] * 66_000
    losses[64_999], losses[9] = 30.0, 20.0
    page = report(write(tmp_path / "r.jsonl", [text_row("long", tokens, losses)]), "--worst", 2)
    assert links(page) == ["t0-0-10"]
    assert "token 65,000" in page.text
    assert "w64998·w64999·w65000·" in page.text  # before, the token, after
    assert "stand in text that this page does not show" in page.text


def test_sequences_of_the_worst_tokens_are_shown(
    report: Callable[..., Page], tmp_path: Path
) -> None:
    """However low the mean losses of these sequences are."""
    generator = np.random.default_rng(0)
    rows = [
        text_row(f"r{n}", WORDS * 5, generator.exponential(2, 40).tolist()) for n in range(2100)
    ]
    rows[700] = text_row("low", WORDS * 5, [*([0.0] * 39), 40.0])
    page = report(write(tmp_path / "r.jsonl", rows), "--worst", 20)
    found = links(page)
    assert len(found) == 20
    assert page.text.count("low") >= 2
    assert "with the highest mean loss or loss of a token and" in page.text


def test_differences_are_of_all_texts(report: Callable[..., Page], tmp_path: Path) -> None:
    """Only the last 41 tokens of a text that there is no room for differ."""
    tokens = [f"w{n} " for n in range(20_500)]
    sides = []
    for name, last in (("a", 1.0), ("b", 9.0)):
        rows = [text_row("long", tokens, [*([1.0] * 20_459), *([last] * 41)])]
        rows.append(text_row("short", ["x", "y"], [1.0, 1.0]))
        sides.append(write(tmp_path / f"{name}.jsonl", rows, model=name, weights_sha256=name * 64))
    page = report(*sides)
    assert "w20459·" in page.text
    assert f"byte {sum(map(len, tokens[:20_459])):,}" in page.text
    assert "0.75 and more nats: 0.20%" in page.text
    assert "Differences of all tokens" in page.text


def test_a_link_leads_to_its_stretch_where_only_the_end_is_cut_otherwise(
    report: Callable[..., Page], tmp_path: Path
) -> None:
    """What is shown has the same tokens under both models; the whole text has not."""
    words = [f"w{n} " for n in range(21_000)]
    sides = []
    for name, end, loss in (("a", ["xy"], 1.0), ("b", ["x", "y"], 9.0)):
        losses = [1.0] * (21_000 + len(end))
        losses[5] = loss
        rows = [text_row("long", [*words, *end], losses)]
        tokenizer = {"tokenizer_sha256": name * 64}
        sides.append(write(tmp_path / f"{name}.jsonl", rows, model=name, **tokenizer))
    page = report(*sides, "--worst", 1)
    assert [text_at(page, anchor) for anchor in links(page)] == ["w5 "]


def test_a_long_stretch_is_shortened(report: Callable[..., Page], tmp_path: Path) -> None:
    text = "abcdefghij" * 12
    a = write(tmp_path / "a.jsonl", [text_row("x", [text[:50], text[50:]], [1.0, 5.0])])
    b = write(tmp_path / "b.jsonl", [text_row("x", [text[:70], text[70:]], [1.0, 1.0])],
              tokenizer_sha256="u" * 64)  # fmt: skip
    page = report(a, b)
    assert f"{text[:48]}…" in page.text


# -- charts --------------------------------------------------------------------------------------


def test_the_last_bar_says_that_it_is_open() -> None:
    chart = loss_chart([np.array([1.0, 3.0, 26.0])], [], 3)
    assert chart is not None
    assert "20 and more nats: 33.33% of tokens" in chart.drawing
    assert "20 to 20.5" not in chart.drawing
    chart = loss_chart([np.array([1.0, 3.0])], [], 3)
    assert chart is not None
    assert "and more" not in chart.drawing
    assert "a random sample of 2 of the 3 tokens" in chart.about
    chart = difference_chart(np.array([-30.0, 0.1, 0.2, 30.0]), 4)
    assert chart is not None
    assert "below -9.75 nats: 25.00%" in chart.drawing
    assert "9.75 and more nats: 25.00%" in chart.drawing


def test_shares_of_few_tokens_are_those_of_the_curve() -> None:
    chart = concentration_chart([np.array([10.0, *([1.0] * 9)])], [], 10)
    assert chart is not None
    shares = {str(row[0]): row[1] for row in chart.rows}
    assert shares["worst 1%"] == "5.3%"  # a tenth of the first token's 10 of 19
    assert shares["worst 10%"] == "52.6%"
    assert shares["worst 50%"] == "73.7%"


def test_loss_by_position_says_of_how_many_documents(
    report: Callable[..., Page], tmp_path: Path
) -> None:
    rows = [
        text_row(f"r{n}", WORDS[: 2 if n else 8], [1.0] * (8 if not n else 2)) for n in range(6)
    ]
    page = report(write(tmp_path / "r.jsonl", rows))
    assert "Over 6 documents, the last positions over 1." in page.text
    assert "scoreddocuments" in "".join(page.text.split())
    page = report(write(tmp_path / "s.jsonl", rows[1:]))
    assert "Over 5 documents." in page.text


def test_charts_have_the_intervals_of_the_comparison(run_cli: Run, tmp_path: Path) -> None:
    generator, sides = np.random.default_rng(0), []
    for name in "ab":
        rows = [
            text_row(f"r{n}", WORDS, generator.exponential(2, 8).tolist(), meta={"set": n // 2})
            for n in range(12)
        ]
        sides.append(write(tmp_path / f"{name}.jsonl", rows, model=name, weights_sha256=name * 64))
    asked = ("--confidence", "0.8", "--cluster", "set")
    path = tmp_path / "page.html"
    done = run_cli("compare", *sides, *asked, "--report", path)
    assert done.exit_code == 0, done.stderr
    page = Page(path.read_text())
    assert "with its 80 % interval over values of set" in page.text
    values = [float(a["value"] or 0) for tag, a in page.tags if tag == "data"]
    for side in sides:
        summary = json.loads(run_cli("summarize", side, *asked, "--json").stdout)
        for entry in summary["positions"]:
            mean = entry["mean_loss"]
            for end in ("value", "low", "high"):
                assert any(math.isclose(mean[end], value, rel_tol=1e-8) for value in values)


# -- figures -------------------------------------------------------------------------------------


def test_tiny_differences_are_not_rounded_to_nothing(
    report: Callable[..., Page], tmp_path: Path
) -> None:
    sides = [
        write(tmp_path / f"{name}.jsonl",
              [text_row(f"r{n}", WORDS, [1 + n / 100 + more] * 8) for n in range(12)],
              model=name, weights_sha256=name * 64)
        for name, more in (("a", 0.0), ("b", 3e-5))
    ]  # fmt: skip
    page = report(*sides)
    assert "B is worse than A: B − A is +0.0000300 nats per token" in page.text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.0000"), (1.00005, "1.0001"), (-3e-5, "−3e−05"), (2.5e9, "2.500000e+09"),
     (1234.6, "1,234.600"), (2421693.1408, "2,421,693"), (math.inf, "∞")],
)  # fmt: skip
def test_numbers(value: float, shown: str) -> None:
    assert number(value, 4) == shown
    assert signed(value, 4) == (shown if value < 0 else f"+{shown}")


def test_the_token_among_its_alternatives_is_told_by_its_id(
    report: Callable[..., Page], tmp_path: Path
) -> None:
    row = text_row("a", ["x", "y"], [1.0, 2.0], token_ids=[0, 7, 8])
    same = [{"id": n, "token": "\ufffd", "log_prob": -1.0} for n in (6, 7)]
    page = report(write(tmp_path / "r.jsonl", [row | {"top_logprobs": [None, same, same]}]))
    assert page.data["panes"][0]["h"] == [-1, 1, -1]


def test_losses_keep_the_digits_that_are_shown(report: Callable[..., Page], tmp_path: Path) -> None:
    losses: list[float | None] = [1.469949, 1234.567891, 3.3e-5]
    page = report(write(tmp_path / "r.jsonl", [text_row("a", ["x", "y", "z"], losses)]))
    assert page.data["panes"][0]["l"] == [None, 1.469949, 1234.56789, 3.3e-5]


def test_what_the_results_lack_is_said(report: Callable[..., Page], tmp_path: Path) -> None:
    row = text_row("a", ["x"], [1.0])
    page = report(write(tmp_path / "r.jsonl", [row]))
    assert "Not in these results: ranks (--ranks), entropies (--entropy)" in page.text
    page = report(write(tmp_path / "r.jsonl", [row | {"ranks": [None, 3]}]))
    assert "Not in these results: entropies (--entropy), alternatives (--top-k N)" in page.text
