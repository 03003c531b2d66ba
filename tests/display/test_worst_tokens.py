"""`--worst N` of score, cond and summarize: the tokens of the highest losses, in their text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.program import ROOT, in_process
from helpers.stub import stubbed
from helpers.terminals import score_of, token_texts
from seqloss_cli.analysis.extremes import NEAR, WorstTokens, text_near
from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.schema.scores import ResultRow

Run = Callable[..., Any]
TEXT = "One list is sorted in place.\nThe function returns 日本語 and more of it.\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "pairs.jsonl").write_text(
        '{"id": "p", "prompt": "The list is", "response": " sorted in place."}\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def ran(*arguments: str) -> Any:
        with stubbed():
            return in_process(*arguments)

    return ran


@given(
    st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=12),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_the_highest_losses_with_the_text_around(tokens: list[str], size: int, random: Any) -> None:
    tokens = ["".join(c if c.isprintable() else "x" for c in token) for token in tokens]
    losses = [random.choice([0.5, 1.25, 2.0, float("inf")]) for _ in tokens]
    worst = WorstTokens(size, token_texts)
    worst.add(score_of(tokens, losses))
    found = worst.items()
    assert [each.loss for each in found] == sorted(losses, reverse=True)[:size]
    for each in found:
        place = each.position - 1  # BOS stands before them
        before, after = "".join(tokens[:place]), "".join(tokens[place + 1 :])
        assert each.before == cut(before, NEAR)
        assert each.after == cut(after[::-1], NEAR)[::-1]
        assert each.within is None
        assert each.token == tokens[place]


@given(st.text(max_size=30), st.data())
def test_text_around_is_of_whole_characters(text: str, data: st.DataObject) -> None:
    text = text.encode("utf-8", "replace").decode()
    raw = text.encode()
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, len(raw)))
    token_bytes = TokenBytes(raw, np.array([0, start, end, len(raw)]))
    before, after = token_bytes.around(start, end, 5)
    ends = np.cumsum([len(char.encode()) for char in text] or [0])
    n_before = int((ends <= start).sum()) if text else 0
    first_after = int((ends - [len(char.encode()) for char in text] < end).sum()) if text else 0
    assert before == cut(text[:n_before], 5)
    assert after == cut(text[first_after:][::-1], 5)[::-1]


def cut(text: str, n: int) -> str:
    """The last n characters: from a blank on, where one is in the first half of them."""
    kept = text[-n:]
    if kept == text or text[-n - 1].isspace():
        return kept
    blanks = [place for place in range(n // 2 + 1) if kept[place].isspace()]
    return kept[blanks[0] :] if blanks else kept


@pytest.mark.parametrize("has_text", [True, False])
@given(st.text(st.sampled_from("a é日🐕"), min_size=1, max_size=12), st.data())
def test_a_part_of_a_character_is_shown_in_it(
    has_text: bool, text: str, data: st.DataObject
) -> None:
    raw = text.encode()
    cuts = data.draw(st.sets(st.sampled_from(range(len(raw)))))
    offsets = np.array(sorted({0, *cuts, len(raw)}))
    names = TokenBytes(raw, offsets).texts()
    fields = {"tokens": names, "byte_offsets": offsets} | ({"text": text} if has_text else {})
    for place, name in enumerate(names):
        row = ResultRow("a.jsonl:1", fields, Totals(), None)
        before, within, after = text_near(row, place)
        assert f"{before}{within or name}{after}" == text
        assert (within is None) == ("<0x" not in name)


def test_the_list_names_the_byte_beside_its_character(run: Run) -> None:
    done = run("score", "--text", "🐕 日x", "-m", "demo", "--summary", "--worst", "9")
    header, _, *rows = done.stdout.partition("worst tokens, nats\n")[2].splitlines()
    assert header.split() == ["loss", "token", "in", "its", "text", "token", "sequence", "pos"]
    assert any("🐕 ⟦日⟧x" in row and "<0xE6>" in row for row in rows), rows
    assert any("⟦🐕⟧ 日x" in row and "<0xF0>" in row for row in rows), rows


def test_score_lists_them_after_the_totals(run: Run) -> None:
    done = run("score", "text.txt", "-m", "demo", "--summary", "--worst", "3")
    assert done.exit_code == 0, done.stderr
    totals, _, listed = done.stdout.partition("worst tokens, nats\n")
    assert "totals" in totals
    _, _, *rows = listed.splitlines()
    losses = [float(row.split()[0]) for row in rows]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert all(row.count("⟦") == row.count("⟧") == 1 for row in rows)


def test_they_are_those_of_the_rows(run: Run) -> None:
    done = run("score", "text.txt", "-m", "demo", "-o", "rows.jsonl", "--worst", "4")
    listed = [line for line in done.stdout.splitlines() if "⟦" in line]
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if "token_losses" in row]
    highest = sorted((loss or 0.0 for loss in row["token_losses"]), reverse=True)[:4]
    assert [float(line.split()[0]) for line in listed] == pytest.approx(highest, abs=1e-4)
    summary = json.loads(run("summarize", "rows.jsonl", "--worst", "4", "--json").stdout)
    for line, each in zip(listed, summary["worst_tokens"], strict=True):
        assert TEXT.startswith(each["before"], TEXT.find(each["before"]))
        assert each["before"][-5:].replace("\n", "↵") in line
        assert each["after"][:5].replace("\n", "↵") in line
    shown = run("summarize", "rows.jsonl", "--worst", "4").stdout
    assert all(line.rstrip() in shown for line in listed)


def test_of_a_pair_only_tokens_of_the_response_are_listed(run: Run) -> None:
    done = run("cond", "pairs.jsonl", "-m", "demo", "--summary", "--worst", "9")
    listed = done.stdout.partition("worst tokens, nats\n")[2].splitlines()[2:]
    assert listed
    assert all(line.split("⟦")[0].split(None, 1)[1].startswith("The list is") for line in listed)


def test_a_table_in_a_file_has_the_list(run: Run) -> None:
    arguments = ("score", "text.txt", "-m", "demo", "--format", "table", "-o", "out.txt")
    done = run(*arguments, "--worst", "2")
    assert done.stdout == ""
    assert Path("out.txt").read_text().count("⟦") == 2


def test_files_without_texts_have_the_names_of_tokens(run: Run) -> None:
    found = []
    for flags in ((), ("--no-text",)):
        run("score", "text.txt", "-m", "demo", "-o", "rows.jsonl", "--force", *flags)
        summary = json.loads(run("summarize", "rows.jsonl", "--json", "--worst", "99").stdout)
        found.append({each["position"]: each for each in summary["worst_tokens"]})
    with_text, without = found
    assert with_text == without
    assert with_text[2]["after"] in TEXT
    assert NEAR // 2 <= len(with_text[2]["after"]) <= NEAR
    assert "日" in {each["within"] for each in with_text.values()}


def test_tokens_that_differ_have_their_text(run: Run) -> None:
    for name, model in (("a", "samples/checkpoints/step-600"), ("b", "demo")):
        run(
            "score",
            "text.txt",
            "-m",
            str(ROOT / model) if "/" in model else model,
            "-o",
            f"{name}.jsonl",
        )
    done = run("compare", "a.jsonl", "b.jsonl", "--worst", "3", "--json")
    (pair,) = json.loads(done.stdout)["comparisons"]
    for each in pair["tokens"]:
        assert each["before"] is not None
        assert (each["before"] + each["token"] + each["after"]).strip()
    shown = run("compare", "a.jsonl", "b.jsonl", "--worst", "3").stdout
    assert shown.count("⟦") == 3


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--json",), "give -o FILE"),
        (("--jsonl", "--resume", "-o", "x.jsonl"), "seqloss summarize"),
    ],
)
def test_a_list_that_cannot_be_shown_is_refused(
    run: Run, flags: tuple[str, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("score", "text.txt", "-m", "demo", *flags)
    done = run(*arguments, "--worst", "2")
    assert done.exit_code == 2
    assert why in " ".join(done.stderr.split())
    monkeypatch.setenv("SEQLOSS_WORST", "2")
    done = run(*arguments)
    assert done.exit_code == 0
    assert f"{why}" in " ".join(done.stderr.split())
    assert "left out" in done.stderr
