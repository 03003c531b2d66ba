"""Pages of results: one file that says what the results say, and in which texts stay texts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pages import EVIL, Page, text_row
from helpers.results import row, write
from seqloss_cli.analysis.extremes import Limits, Selection
from seqloss_cli.analysis.joining import align
from seqloss_cli.core.byte_spans import TokenBytes, char_edges
from seqloss_cli.display.html.document import json_text
from seqloss_cli.display.html.page import TokenNames, number
from seqloss_cli.display.html.sequences import PageSequence, page_sequence
from seqloss_cli.display.html.spans import stretches_of, token_pane
from seqloss_cli.display.scales import LOSS_EDGES, step_of
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses, read_row, totals_of_row

Run = Callable[..., Any]


@pytest.fixture
def report(run_cli: Run, tmp_path: Path) -> Callable[..., Page]:
    def made(*arguments: object) -> Page:
        path = tmp_path / "page.html"
        done = run_cli("report", *arguments, "-o", path, "--force")
        assert done.exit_code in (0, 3), done.stderr
        return Page(path.read_bytes().decode())

    return made


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    losses = [float(n) / 2 for n in range(len(EVIL))]
    rows = [
        text_row("<script>alert(2)</script>\u202e", EVIL, losses, meta={"set": "<b>"}),
        text_row("plain", ["The", " cat", "."], [0.2, 3.0, 12.0], meta={"set": "b"}),
    ]
    rows[0]["top_logprobs"] = [None] + [[{"id": 1, "token": t, "log_prob": -1.0}] for t in EVIL]
    return write(tmp_path / "<evil>.jsonl", rows, model="</title><script>alert(3)</script>")


# -- what is in the file -------------------------------------------------------------------------


def test_one_file_that_loads_nothing(report: Callable[..., Page], evil: Path) -> None:
    page = report(evil, "--by", "set", "--title", "</title><script>alert(4)</script>")
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "img")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,"
    assert [a for tag, a in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"}, {},
    ]  # fmt: skip


def test_the_policy_names_this_style_and_this_script(
    report: Callable[..., Page], evil: Path
) -> None:
    page = report(evil)
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; ")
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_texts_stay_texts(report: Callable[..., Page], evil: Path) -> None:
    page = report(evil)
    assert page.panes == ["".join(EVIL), "The cat."]
    assert [text for _, text in page.spans[0]] == ["", *EVIL]
    assert set(EVIL) <= set(page.data["names"])
    assert "alert(1)" not in page.raw["script"]
    assert not set("<>&\u2028\u2029") & set(page.raw["application/json"])


def test_hidden_characters_are_shown_beside_the_text(
    report: Callable[..., Page], evil: Path
) -> None:
    marks = [a.get("data-m") for tag, a in report(evil).tags if tag == "span" and "data-m" in a]
    assert {"<s>", "RLO", "LRI", "ESC", "ZWSP", "BOM", "LSEP PSEP"} <= set(marks)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), st.data()
)
def test_spans_are_the_text_however_it_is_cut(words: list[str], data: st.DataObject) -> None:
    raw = "".join(words).encode()
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=12))
    offsets = tuple(sorted([0, *cuts, len(raw)]))
    n = len(offsets) - 1
    whole = shown_of(raw, offsets, data.draw(st.lists(st.floats(0, 20), min_size=n, max_size=n)))
    pane = token_pane(whole, "", TokenNames())
    parsed = Page(f"<div class=pane>{pane.spans}</div>")
    exact = pane.data.get("x", {})
    found = [exact.get(k, text) for k, (_, text) in enumerate(parsed.spans[0])]
    assert "".join(found) == raw.decode()
    spans = whole.token_bytes.char_spans()
    assert [s[0] for s in spans] == pane.data.get("n", list(range(n)))
    edges = set(char_edges(raw).tolist())
    assert all({start, end} <= edges for *_, start, end in spans)
    assert [a[1] for a in spans][:-1] == [b[0] for b in spans][1:]
    for (first, last, *_), (kind, _) in zip(spans, parsed.spans[0], strict=True):
        step = step_of(math.fsum(map(float, whole.losses()[first:last])), LOSS_EDGES)
        assert kind.split()[0] == f"s{step}"


def shown_of(raw: bytes, offsets: tuple[int, ...], losses: list[float]) -> PageSequence:
    n = len(offsets) - 1
    totals = totals_of_row(row("x", [None, 1.0]))
    token_bytes = TokenBytes(raw, np.array(offsets, dtype=np.int64))
    names = [f"t{k}" for k in range(n)]
    every = np.ones(n, dtype=bool)
    tokens = TokenLosses(np.array(losses, dtype=np.float64), every, every)
    shown = ResultRow("x:1", {"id": "x", "tokens": names}, totals, tokens)
    return PageSequence(0, shown, "", token_bytes)


@given(st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False)
       | st.text(st.characters(exclude_categories=["Cs"])), st.lists))  # fmt: skip
def test_data_ends_no_element_and_reads_back(value: Any) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


# -- what it says --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["texts", "pairs"])
def test_totals_are_those_of_summarize(
    run_cli: Run, report: Callable[..., Page], tmp_path: Path, name: str
) -> None:
    results = tmp_path / "results.jsonl"
    command = "cond" if name == "pairs" else "score"
    further = ["samples/sentences.jsonl"] * (command == "score")  # none of fewer than 5 documents
    done = run_cli(command, f"samples/{name}.jsonl", *further, "--ranks", "--entropy", "--top-k",
                   "2", "-o", results)  # fmt: skip
    assert done.exit_code == 0
    summary = json.loads(run_cli("summarize", results, "--json").stdout)
    page = report(results)
    values = [float(a["value"] or 0) for tag, a in page.tags if tag == "data"]
    for figure in ("total_loss", "mean_loss", "perplexity"):
        estimate = summary["estimates"][figure]
        for end in ("value", "low", "high"):
            assert any(math.isclose(estimate[end], value, rel_tol=1e-8) for value in values)
    assert number(summary["totals"]["mean_loss"], 4) in page.text
    for entry in summary["worst_tokens"]:
        assert any(math.isclose(entry["loss"], value, rel_tol=1e-8) for value in values)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    rows = [line for line in lines if line["type"] == "sequence" and line["text_sha256"]]
    for each in rows:
        text = each.get("text") or each["prompt"] + each.get("separator", "") + each["response"]
        assert text in page.panes
    first = page.data["panes"][0]
    assert len(first["l"]) == len(first["r"]) == len(first["a"]) == rows[0]["n_tokens"]
    assert lines[0]["weights_sha256"] in page.text


def test_rows_without_tokens_or_text_have_tables_and_say_why(
    run_cli: Run, report: Callable[..., Page], tmp_path: Path
) -> None:
    for flag in ("--no-tokens", "--no-text"):
        results = tmp_path / "results.jsonl"
        run_cli("score", "samples/texts.jsonl", "--limit", "3", flag, "-o", results, "--force")
        page = report(results)
        assert page.panes == []
        assert flag in page.text
        assert "prose" in page.text
        assert "mean loss" in page.text


def test_prompts_are_told_from_responses(
    run_cli: Run, report: Callable[..., Page], tmp_path: Path
) -> None:
    results = tmp_path / "results.jsonl"
    run_cli("cond", "--prompt", "The list is", "--response", " sorted.", "-o", results)
    spans = report(results).spans[0]
    dimmed = "".join(text for kind, text in spans if "m" in kind.split())
    assert dimmed == "The list is"


def test_infinite_and_unscored_losses(report: Callable[..., Page], tmp_path: Path) -> None:
    made = text_row("a", ["x", "y", "z"], [1.0, math.inf, None])
    made |= {"inf_losses": [2], "total_loss": None, "flags": {"inf_loss": 1}, "n_scored": 2}
    made["token_losses"] = [None, 1.0, None, None]
    page = report(write(tmp_path / "r.jsonl", [made], complete=False))
    assert [kind for kind, _ in page.spans[0]] == ["u z", "s2", "s6", "u"]
    assert page.data["panes"][0]["l"] == [None, 1.0, -1, None]
    assert "did not come to its end" in page.text


def test_groups(report: Callable[..., Page], run_cli: Run, evil: Path, tmp_path: Path) -> None:
    assert "By set" in report(evil, "--by", "set").text
    done = run_cli("report", evil, "--by", "none", "-o", tmp_path / "x.html")
    assert done.exit_code == 2
    assert "--by none: no row has such a field" in done.stderr


def test_files_that_are_there_are_kept(run_cli: Run, evil: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    assert run_cli("report", evil, "-o", path).exit_code == 2
    assert path.read_text() == "mine"
    assert run_cli("report", evil, "-o", evil, "--force").exit_code == 2
    assert run_cli("report", evil).exit_code == 2
    assert run_cli("report", evil, evil, evil, "-o", path, "--force").exit_code == 2
    assert run_cli("report", tmp_path / "no.jsonl", "-o", path, "--force").exit_code == 2
    assert path.read_text() == "mine"


@pytest.mark.parametrize("output", [[], ["--summary"], ["-o", "r.jsonl"], ["-o", "r.csv"]])
def test_a_page_beside_any_output(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_cli("score", "--text", "The cat.", *output, "--report", "page.html")
    assert done.exit_code == 0, done.stderr
    assert Page(Path("page.html").read_text()).panes == ["The cat."]
    done = run_cli("score", "--text", "The cat.", "--report", "page.html")
    assert done.exit_code == 2
    assert "page.html exists" in done.stderr


def test_a_page_comes_although_inputs_are_rejected(run_cli: Run, tmp_path: Path) -> None:
    data, path = tmp_path / "data.jsonl", tmp_path / "page.html"
    data.write_text('{"text": "One."}\nnot json\n')
    assert run_cli("score", data, "--summary", "--report", path).exit_code == 3
    page = Page(path.read_text())
    assert page.panes == ["One."]
    assert "1 inputs were rejected" in page.text


# -- limits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """So many tokens, which can be cut anywhere."""

    size: int

    def cut(self, most: int) -> Tokens:
        return Tokens(min(self.size, most))


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 30)), max_size=40), st.randoms())
def test_too_many_sequences_leave_the_worst_and_a_sample(
    items: list[tuple[float, int]], shuffled: Any
) -> None:
    limits = Limits(tokens=100, sequences=12)

    def chosen(entries: list[tuple[float, int]]) -> Any:
        selection = Selection[Tokens](limits, 0)
        for badness, size in entries:
            selection.add(Tokens(size), badness, badness / size)
        return selection.chosen()

    found = chosen(items)
    assert len(found.items) <= limits.sequences
    sizes = [item.size for item in found.items]
    assert sum(sizes) <= limits.tokens
    assert found.n_seen == len(items)
    if sum(size for _, size in items) <= limits.tokens and len(items) <= limits.sequences:
        assert sizes == [size for _, size in items]
        return
    assert found.n_worst >= 1
    assert found.n_worst + found.n_sampled == len(found.items)
    mixed = list(items)
    shuffled.shuffle(mixed)
    assert chosen(mixed).n_worst == found.n_worst or len({b for b, _ in items}) < len(items)


def test_a_large_file_shows_some_and_says_so(report: Callable[..., Page], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = [f"w{n} " for n in range(40)]
    rows = [
        text_row(f"r{n}", words, generator.exponential(2, 40).round(3).tolist())
        for n in range(2200)
    ]
    page = report(write(tmp_path / "large.jsonl", rows))
    assert len(page.panes) < 2000
    assert sum(map(len, page.spans)) <= 60_000
    assert "Of 2,200 sequences these are the" in page.text
    assert "drawn at random (seed 0)" in page.text
    worst = max(rows, key=lambda each: each["total_loss"])
    assert f"{worst['id']}" in page.text
    long = text_row("long", ["a "] * 70_000, [1.0] * 70_000)
    page = report(write(tmp_path / "long.jsonl", [long]))
    assert sum(map(len, page.spans)) <= 60_000
    assert sum(map(len, page.spans)) == 60_000  # nothing else wants the room
    assert "The first 60,000 tokens of 70,001" in page.text
    assert "Of 1 sequences" not in page.text


@given(st.text(min_size=1, max_size=20), st.integers(1, 20))
def test_a_cut_text_ends_with_a_character(text: str, n: int) -> None:
    raw = text.encode("utf-8", "replace")
    whole = shown_of(raw, tuple(range(len(raw) + 1)), [1.0] * len(raw))
    part = whole.cut(n)
    part.text.decode()
    assert part.size + part.n_left_out == whole.size
    assert part.token_bytes.offsets[-1] == len(part.text)


# -- two models ----------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=20), st.data())
def test_two_tokenizers_meet_at_common_ends(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-8", "replace")
    sides = []
    for _ in range(2):
        cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=8))
        offsets = tuple(sorted([0, *cuts, len(raw)]))
        n = len(offsets) - 1
        losses = data.draw(st.lists(st.floats(0, 20), min_size=n, max_size=n))
        sides.append(shown_of(raw, offsets, losses))
    found = align(*(side.counted_losses() for side in sides))
    assert found.spans[0][2] == 0
    assert found.spans[-1][3] == len(raw)
    assert all(a[3] == b[2] for a, b in pairwise(found.spans))
    for side, sums in zip(sides, (found.losses_a, found.losses_b), strict=True):
        known = [value for value in sums if value is not None]
        assert math.fsum(known) == pytest.approx(math.fsum(map(float, side.losses())))
        places = stretches_of(side.token_bytes.char_spans(), found)
        assert places == sorted(places)
    for _, _, start, end in found.spans:
        inner = set(range(start + 1, end)) & set(char_edges(raw).tolist())
        for side in sides:
            inner &= set(side.token_bytes.offsets.tolist())
        assert not inner


def test_two_models_side_by_side(run_cli: Run, report: Callable[..., Page], tmp_path: Path) -> None:
    a = [text_row("x", ["The", " cat", "."], [1.0, 5.0, 2.0]), text_row("y", ["No"], [4.0])]
    b = [text_row("x", ["The", " cat", "."], [1.0, 2.0, 2.5]), text_row("z", ["No!"], [4.0])]
    files = [write(tmp_path / f"{n}.jsonl", rows, model=n, weights_sha256=n * 64)
             for n, rows in (("a", a), ("b", b))]  # fmt: skip
    page = report(*files)
    assert page.panes == ["The cat."] * 3
    assert [kind for kind, _ in page.spans[2]] == ["u z", "d4", "d1", "d5"]
    assert page.data["panes"][2]["d"] == [None, 0.0, -3.0, 0.5]
    assert "1 rows of A have no partner" in page.text
    links = [a["href"] for tag, a in page.tags if tag == "a" and "t0-2" in (a.get("href") or "")]
    assert links == ["#t0-2-2", "#t0-2-3"]
    found = json.loads(run_cli("compare", *files, "--json").stdout)["comparisons"][0]
    assert number(found["difference"]["value"], 4) in page.text


def test_other_tokenizers_are_aligned_on_bytes(report: Callable[..., Page], tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [text_row("x", ["Th", "e c", "at"], [1.0, 5.0, 2.0])])
    b = write(tmp_path / "b.jsonl", [text_row("x", ["The", " c", "a", "t"], [1.0, 1.0, 1.0, 1.0])],
              tokenizer_sha256="u" * 64)  # fmt: skip
    page = report(a, b)
    assert [text for _, text in page.spans[2]] == ["The c", "at"]
    assert page.data["panes"][2]["d"] == [-4.0, 0.0]
    assert page.data["panes"][0]["g"] == [0, 0, 0, 1]
    assert "per byte" in page.text


def test_compare_makes_the_page_too(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    models = ["-m", "samples/checkpoints/step-600", "-m", "demo", "--data", "samples/texts.jsonl"]
    done = run_cli("compare", *models, "--report", path)
    assert done.exit_code == 0, done.stderr
    page = Page(path.read_text())
    assert len(page.panes) % 3 == 0
    assert "A: samples/checkpoints/step-600" in page.text
    assert run_cli("compare", *models, "-m", "demo", "--report", path, "--force").exit_code == 2


# -- the package ---------------------------------------------------------------------------------


def test_the_wheel_holds_the_templates(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel")
    root = Path(__file__).resolve().parents[2]
    (made,) = builder.WheelBuilder(str(root)).build(directory=str(tmp_path))
    names = zipfile.ZipFile(made).namelist()
    for name in ("templates/report.html.j2", "templates/parts.html.j2", "assets/report.js",
                 "assets/report.css"):  # fmt: skip
        assert f"seqloss_cli/display/html/{name}" in names


def test_the_script_has_no_way_to_make_markup() -> None:
    import seqloss_cli.display.html

    script = (Path(seqloss_cli.display.html.__file__).parent / "assets" / "report.js").read_text()
    assert not re.search(
        "innerHTML|outerHTML|insertAdjacent|document.write|eval|Function\\(", script
    )


@pytest.mark.parametrize("text", [True, False])
def test_what_a_page_does_not_show_of_a_row_is_let_go(text: bool) -> None:
    made = text_row("a", [*"naïve text of some length"], [1.0] * 25)
    if not text:
        del made["text"]
    found = page_sequence(read_row(made, "a:1", whole=True), 0).cut(3)
    assert (found.size, bool(found.why_plain)) == (3 if text else 0, not text)
    tokens, fields = found.row.tokens, found.row.fields
    assert tokens is not None
    arrays = (tokens.losses, tokens.scored, tokens.counted, fields["token_ids"], fields["tokens"])
    assert [len(array) for array in arrays] == [found.size] * 5
    assert all(array.base is None for array in arrays[:4])
    assert found.totals.n_tokens == read_row(made, "a:1").totals.n_tokens
