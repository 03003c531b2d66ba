"""Pages of what `rank` wrote: figures that are the command's own, and texts that stay texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.pages import EVIL, Page, lines_of, page_of, values_of
from helpers.program import document
from helpers.results import ranked_row, write_rankings
from seqloss_cli.analysis.extremes import Limits
from seqloss_cli.display.html import charts
from seqloss_cli.display.html.document import page_bytes
from seqloss_cli.display.html.page import PageOptions, number
from seqloss_cli.display.html.ranking_page import gather_rankings, ranking_page
from seqloss_cli.display.html.spans import loss_or_mark
from seqloss_cli.display.scales import LOSS_EDGES, step_of
from seqloss_cli.results.files import open_any
from seqloss_cli.results.schema.rankings import RANKING_KINDS

Run = Callable[..., Any]
RANK = ("rank", "samples/choices.jsonl", "--separator", " ", "--pmi", "--keep-meta")


@pytest.fixture
def results(run_cli: Run, tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    done = run_cli(*RANK, "--tokens", "-o", path)
    assert done.exit_code == 0, done.stderr
    return path


def test_figures_are_those_of_the_command(run_cli: Run, results: Path) -> None:
    page, lines = page_of(run_cli, results), lines_of(results)
    totals, rows, values = lines[-1], lines[1:-1], values_of(page)
    told = [totals["chance"]]
    for estimate in totals["accuracies"].values():
        told += [estimate[name] for name in ("value", "low", "high")]
    for row in rows:
        for choice in row["choices"]:
            told += [*choice["scores"].values(), choice["probability"]]
    right = [row["choices"][row["answers"][0]]["probability"] for row in rows]
    told.append(math.fsum(right) / len(rows))
    for value in told:
        assert any(math.isclose(value, v, rel_tol=1e-8, abs_tol=1e-300) for v in values), value
    for said in ("acc_mutual_info", "5 with an answer", f"clean {totals['n_choices']}"):
        assert said in page.text
    texts = [choice["text"] for row in rows for choice in row["choices"]]
    assert page.panes == texts
    assert all(row["prompt"] in page.text for row in rows)
    choices = [choice for row in rows for choice in row["choices"]]
    for pane, spans, choice in zip(page.data["panes"], page.spans, choices, strict=True):
        assert pane["l"] == [loss_or_mark(loss) for loss in choice["token_losses"]]
        steps = [f"s{step_of(loss, LOSS_EDGES)}" for loss in choice["token_losses"]]
        assert [kind.split()[0] for kind, _ in spans] == steps
    assert lines[0]["weights_sha256"] in page.text


def test_verdicts_and_margins(run_cli: Run, tmp_path: Path) -> None:
    rows = [
        ranked_row("A?", ["a", "b"], [-1.0, -3.5], [0]),
        ranked_row("B?", ["a", "b", "c"], [-1.0, -3.5, -2.0], [1, 2]),
        ranked_row("C?", ["a", "b"], [-2.0, -2.25]),
        ranked_row("D?", ["a", "b"], [-2.0, -2.0], [1]),
    ]
    page = page_of(run_cli, write_rankings(tmp_path / "r.jsonl", rows))
    for said in (
        "Right: choice 0 is preferred by sum; 0 is right.",
        "Wrong: choice 0 is preferred by sum; 1 and 2 are right.",
        "No answer is known: choice 0 is preferred by sum.",
        "Wrong: choice 0 is preferred by sum; 1 is right.",  # the first of equals is preferred
        "neither right nor wrong, since their answers are not known: 1",
        "right answer", "preferred by sum, per token, per byte, per char", "1 of 3",
    ):  # fmt: skip
        assert said in page.text, said
    for value in (2.5, -1.0, 0.25):
        assert value in values_of(page)
    classes = [str(a.get("class")).split() for tag, a in page.tags if tag == "span"]
    kinds = [each[1] for each in classes if each[0] == "mark"]
    assert kinds == ["gold", "preferred", "mistaken", "gold", "gold", "preferred", "mistaken",
                     "gold"]  # fmt: skip
    without = page_of(run_cli, write_rankings(tmp_path / "no.jsonl", rows[2:3]))
    assert "p(right)" not in without.text
    assert "How far the best is ahead" in without.text


def test_by_is_what_the_run_asked_for(run_cli: Run, tmp_path: Path) -> None:
    row = ranked_row("A?", ["a", "bbbb"], [-1.0, -2.0], [1])
    for by, verdict in (("sum", "Wrong"), ("char", "Right")):
        page = page_of(run_cli, write_rankings(tmp_path / "r.jsonl", [row], by=by))
        assert f"{verdict}: choice" in page.text
        assert f"is preferred by {by}" in page.text


def test_without_tokens_choices_are_coloured_as_wholes(run_cli: Run, tmp_path: Path) -> None:
    rows = [ranked_row("A?", ["a", "b"], [-1.5, None], [0])]
    page = page_of(run_cli, write_rankings(tmp_path / "r.jsonl", rows))
    assert [spans[0][0] for spans in page.spans] == ["s2", "s6"]
    assert [pane["l"] for pane in page.data["panes"]] == [[1.5], [-1]]
    assert page.panes == ["a", "b"]
    assert "coloured as a whole" in page.text
    assert "−∞" in page.text
    assert "inf_loss 1" in page.text
    rows[0]["choices"][0] |= {"n_tokens": 0}
    rows[0]["choices"][0]["scores"] |= {"token": None}
    del rows[0]["orders"]["token"]
    rows[0]["correct"]["acc_tokens"] = None
    page = page_of(run_cli, write_rankings(tmp_path / "r.jsonl", rows))
    assert page.spans[0][0][0] == "u"  # not known is not 0
    assert page.data["panes"][0]["l"] == [None]


def test_texts_stay_texts(run_cli: Run, tmp_path: Path) -> None:
    rows = [ranked_row("".join(EVIL), [*EVIL, "\0"], [-1.0] * (len(EVIL) + 1), [0])]
    page = page_of(run_cli, write_rankings(tmp_path / "<evil>.jsonl", rows))
    assert page.panes == [*EVIL, "\ufffd"]
    assert page.data["panes"][-1]["x"] == {"0": "\0"}
    assert "".join(EVIL) in page.text
    assert not set("<>&\u2028\u2029") & set(page.raw["application/json"])
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_lone_surrogates_are_shown(run_cli: Run, tmp_path: Path) -> None:
    row = ranked_row("a", ["b", "c"], [-1.0, -2.0]) | {"prompt": "X\ud800Y"}
    path = write_rankings(tmp_path / "r.jsonl", [row])
    done = run_cli("report", path, "-o", tmp_path / "page.html")
    assert done.exit_code == 3  # no JSON: the row is told of, and the page has the others
    assert "torn_row" in done.stderr


@pytest.mark.parametrize("output", [[], ["--summary"], ["--json"], ["-o"]])
def test_a_page_beside_any_output(run_cli: Run, tmp_path: Path, output: list[str]) -> None:
    path, rows = tmp_path / "page.html", tmp_path / "rows.jsonl"
    output = [*output, str(rows)] if output == ["-o"] else output
    done = run_cli(*RANK, *output, "--report", path)
    assert done.exit_code == 0, done.stderr
    page = Page(path.read_text())
    assert page.panes[0] == " sorted in place."
    assert "coloured as a whole" not in page.text
    assert ("Preferences of demo" in page.text) == (not rows.exists())


def test_rows_have_tokens_when_they_are_asked_for(run_cli: Run, tmp_path: Path) -> None:
    plain = document(run_cli(*RANK, "--json"))["sequences"]
    choices = document(run_cli(*RANK, "--json", "--tokens"))["sequences"]
    for before, after in zip(plain, choices, strict=True):
        for old, new in zip(before["choices"], after["choices"], strict=True):
            assert "token_losses" not in old
            assert math.fsum(new["token_losses"]) == pytest.approx(-new["log_prob"], abs=1e-12)
            assert new["text"] == " " + new["response"]
            ends = new["byte_offsets"]
            raw = new["text"].encode()
            parts = [raw[a:b].decode() for a, b in pairwise(ends)]
            assert parts == new["tokens"]
    bare = document(run_cli(*RANK, "--json", "--tokens", "--no-text"))["sequences"][0]
    assert "text" not in bare["choices"][0]


def test_chats_have_pages(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    words = ["rank", "--chat", "--chat-template", "samples/chat.jinja", "--prompt", "A list?"]
    words += ["--response", "A sequence.", "--response", "Né 日.", "--report", str(path)]
    done = run_cli(*words)
    assert done.exit_code == 0, done.stderr
    page = Page(path.read_text())
    assert page.panes[0].startswith("A sequence.")
    assert page.panes[1].startswith("Né 日.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--report", "{in}"), "--force"),
        (("--report", "{in}", "--force"), "is one of the inputs"),
        (("--report", "{a}", "-o", "{a}", "--json"), "one file"),
        (("--report", "{a}", "--output-ranked", "{a}"), "--output-ranked are one file"),
        (("--tokens",), "--jsonl"),
        (("--tokens", "--json", "--summary"), "--tokens is for rows"),
    ],
)
def test_what_cannot_be_is_refused(
    run_cli: Run, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    given, other = tmp_path / "in.jsonl", tmp_path / "a.html"
    given.write_text('{"prompt": "a", "choices": ["b", "c"]}\n')
    before = given.read_text()
    made = [word.replace("{in}", str(given)).replace("{a}", str(other)) for word in words]
    done = run_cli("rank", given, *made)
    assert done.exit_code == 2
    assert said in done.stderr
    assert given.read_text() == before
    assert not other.exists()


def test_a_prompt_is_not_written_over(run_cli: Run, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("a")
    done = run_cli("rank", "--prompt", f"@{prompt}", "--response", "b", "--response", "c",
                   "--report", prompt, "--force")  # fmt: skip
    assert done.exit_code == 2
    assert "is one of the inputs" in done.stderr
    assert prompt.read_text() == "a"


@pytest.mark.parametrize(
    ("changes", "of_choice", "said"),
    [
        ({"orders": {"sum": [1, 0]}}, {}, "'orders' is not what"),
        ({"correct": {"acc": False}}, {}, "'correct' is not what"),
        ({"answers": [2]}, {}, "no choice 2"),
        ({"choices": []}, {}, "'choices' cannot be"),
        ({}, {"log_prob": 0.5}, "above that of certainty"),
        ({}, {"log_prob": None}, "inf_loss"),
        ({}, {"probability": 0.5}, "a choice's probability is 0.5"),
        ({}, {"n_bytes": 2}, "score by byte"),
        ({}, {"token_losses": [1.25]}, "tokens sum to 1.25"),
        ({}, {"token_losses": [-1.0]}, "a token's loss is -1.0"),
        ({}, {"token_losses": [1.0], "byte_offsets": [0]}, "byte_offsets is not as long"),
        ({}, {"response": 7}, "'response' cannot be 7"),
    ],
)
def test_wrong_figures_are_refused(
    run_cli: Run, tmp_path: Path, changes: dict[str, Any], of_choice: dict[str, Any], said: str
) -> None:
    row = ranked_row("A?", ["a", "b"], [-1.0, -2.0], [0])
    row["choices"][0] |= of_choice
    path = write_rankings(tmp_path / "r.jsonl", [row | changes])
    done = run_cli("report", path, "-o", tmp_path / "page.html")
    assert done.exit_code == 3
    assert said in done.stderr


def test_long_results_show_the_worst_and_a_sample(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        ranked_row("p", ["a", "b"], generator.normal(-9, 1, 2).tolist(), [0]) | {"id": f"q{n}"}
        for n in range(60)
    ]
    rows.append(ranked_row("word " * 4000, ["a", "b"], [-1.0, -2.0], [0]) | {"id": "long"})
    path = write_rankings(tmp_path / "r.jsonl", rows)
    options = PageOptions(limits=Limits(tokens=2000, sequences=20))
    file = open_any(str(path), RANKING_KINDS)
    found = gather_rankings(file.rows, file.run, options)  # type: ignore[arg-type]
    page = Page(page_bytes(ranking_page(file, found, options)).decode())
    assert "Of 61 questions these are the 7 with the highest lead of a wrong choice" in page.text
    margins = {
        row["id"]: row["choices"][1]["log_prob"] - row["choices"][0]["log_prob"] for row in rows
    }
    worst = sorted(margins, key=lambda name: -margins[name])[:7]
    shown = [a["aria-label"] for tag, a in page.tags if tag == "article"]
    assert {id for id in worst if any(str(each).endswith(f": {id}") for each in shown)} == set(
        worst
    )
    assert found.sums.totals.n_rows == 61
    whole = PageOptions(limits=Limits(tokens=2000, sequences=200))
    file = open_any(str(path), RANKING_KINDS)
    found = gather_rankings(file.rows, file.run, whole)  # type: ignore[arg-type]
    page = Page(page_bytes(ranking_page(file, found, whole)).decode())
    assert "word word" not in page.text


def test_histograms_count_every_question() -> None:
    values = np.array([3.0, 0.0, -0.0, -1.0, -400.0])
    chart = charts.margin_chart(values)
    assert chart is not None
    assert chart.rows[0][:2] == ["wrong", "3"]
    assert chart.rows[1][:2] == ["right", "2"]
    drawn = str(chart.drawing)
    assert "wrong, margin -" in drawn
    assert drawn.count(": 0<") < drawn.count("<title>")
    many = charts.lead_chart(np.ones(1500))
    assert many is not None
    assert ">1,000<" in str(many.drawing)
    assert "e+" not in str(many.drawing)
    assert charts.margin_chart(np.array([])) is None
    sure = charts.probability_chart(np.array([1.0, -0.0, 0.5]), with_verdicts=True)
    assert sure is not None
    assert "0.95 to 1: 1 right" in str(sure.drawing)
    assert "0 to 0.05: 1 wrong" in str(sure.drawing)


def test_kinds_and_options_are_not_mixed(run_cli: Run, results: Path, tmp_path: Path) -> None:
    path, copy = tmp_path / "page.html", tmp_path / "copy.jsonl"
    copy.write_bytes(results.read_bytes())
    for words, code, said in (
        ((results, copy), 2, "holds what 'rank' wrote"),
        ((results, "--by", "id"), 2, "rank has a --by of its own"),
        ((results, "--worst", "3"), 2, "leave it out"),
    ):
        done = run_cli("report", *words, "-o", path)
        assert done.exit_code == code
        assert said in done.stderr
    lines = results.read_text().splitlines()
    results.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    done = run_cli("report", results, "-o", path)
    assert "its totals are of 5 sequences, and 4 are there" in done.stderr
    assert json.loads(lines[0])["rows"]["tokens"] is True
    assert number(math.inf, 4) == "∞"
