"""`seqloss summarize`: what it says of a file is what the run said, and how sure it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.results import RUN, open_results, row, rows_of, write
from seqloss_cli.analysis import summarize as summarize_module
from seqloss_cli.analysis.plot_data import without_directories
from seqloss_cli.analysis.summarize import Summary, SummaryOptions, summarize
from seqloss_cli.metrics import series
from seqloss_cli.results.schema.scores import totals_of_row

Run = Callable[..., Any]
LOSSES = st.lists(st.one_of(st.none(), st.floats(0, 30)), min_size=1, max_size=12)


def summary_of(path: Path, **options: Any) -> Summary:
    return summarize(open_results(str(path)).rows, SummaryOptions(**options))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def scored(run_cli: Run, path: Path, *arguments: str) -> dict[str, Any]:
    """The totals that the run itself printed."""
    done = run_cli(*arguments, "-o", str(path), "--force")
    assert done.exit_code in (0, 3), done.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {k: v for k, v in lines[-1].items() if k != "type"}


@pytest.mark.parametrize(
    "options",
    [
        {}, {"cluster": "id"}, {"cluster": "meta.g"}, {"bootstrap": 100},
        {"bootstrap": 100, "cluster": "meta.g"},
    ],
    ids=str,
)  # fmt: skip
def test_figures_of_documents_on_disk_are_those_of_memory(
    options: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = [
        row(f"d{n}", [None, 3.0 + n], meta={"g": n}, unspelled_bytes=3 * (n % 4 == 0))
        for n in range(24)
    ]
    write(path, [*rows_of(40), *dropped])
    expected = summary_of(path, by="source", **options)
    monkeypatch.setattr(series, "CHUNK", 7)
    found = summary_of(path, by="source", **options)
    assert (found.whole, found.groups) == (expected.whole, expected.groups)
    assert found.positions == expected.positions
    assert found.whole.estimates["bits_per_byte"].low is not None


def test_quantiles_of_a_sample_say_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, rows_of(60))
    assert "sample" not in summary_of(path).whole.quantiles[0.5].method
    monkeypatch.setattr(summarize_module, "MOST_SORTED", 50)
    median = summary_of(path).whole.quantiles[0.5]
    assert median.method == "order statistics of documents, of a uniform sample of 50"
    assert median.n == 50


def test_bits_per_byte_are_of_the_rows_that_tokens_spell(path: Path) -> None:
    spelled = [row(f"s{n}", [None, 2.0 + n, 1.0]) for n in range(6)]
    dropped = [row(f"d{n}", [None, 90.0], unspelled_bytes=3) for n in range(2)]
    write(path, [dropped[0], *spelled, dropped[1]])
    whole = summary_of(path, cluster="id").whole
    write(path, spelled)
    alone = summary_of(path, cluster="id").whole
    assert whole.estimates["bits_per_byte"] == alone.estimates["bits_per_byte"]
    assert whole.estimates["mean_loss"].value == pytest.approx((180 + 33) / 14)
    write(path, dropped)
    assert "bits_per_byte" not in summary_of(path).whole.estimates


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "samples/texts.jsonl"),
        ("score", "samples/texts.jsonl", "--no-tokens", "--no-text"),
        ("score", "samples/text.txt", "--words", "--bos", "never"),
        ("cond", "samples/pairs.jsonl", "--pmi", "--boundary", "compare"),
        ("cond", "samples/pairs.jsonl", "--pmi", "--bos", "never"),
        ("cond", "samples/chats.jsonl", "--chat-template", "samples/chat.jinja"),
        ("cond", "samples/chats.jsonl", "--chat-template", "samples/chat.jinja", "--pmi"),
    ],
    ids=" ".join,
)
def test_totals_are_those_that_the_run_printed_to_the_last_bit(
    run_cli: Run, path: Path, arguments: tuple[str, ...]
) -> None:
    printed = scored(run_cli, path, *arguments)
    report = json.loads(run_cli("summarize", str(path), "--json").stdout)
    assert report["totals"] == printed


def test_rejected_rows_and_empty_lines_are_counted(
    run_cli: Run, path: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "One."}\n\nnot json\n{"text": "<|endoftext|> two"}\n')
    printed = scored(run_cli, path, "score", str(data))
    assert (printed["n_rejected"], printed["n_empty_lines"]) == (1, 1)
    done = run_cli("summarize", str(path), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["totals"] == printed


@given(st.lists(LOSSES, min_size=1, max_size=8))
def test_rows_sum_to_the_last_bit(texts: list[list[float | None]]) -> None:
    rows = [row(str(n), [None, *losses]) for n, losses in enumerate(texts)]
    totals = [totals_of_row(each) for each in rows]
    total = sum(totals[1:], totals[0])
    every = [loss for losses in texts for loss in losses if loss is not None]
    if every:
        expected = math.fsum(math.fsum(x for x in t if x is not None) for t in texts)
        assert total.total_loss == expected
        assert total.mean_loss == expected / len(every)
    else:
        assert total.total_loss is None


def test_groups_add_up_and_have_intervals(path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        row(
            f"r{n}",
            [None, *generator.exponential(2, 3 + n % 5)],
            meta={"set": "ab"[n % 2], "book": n % 6},
        )
        for n in range(60)
    ]
    write(path, rows)
    found = summary_of(path, by="set")
    assert [group.value for group in found.groups] == ["a", "b"]
    sums = [group.totals for group in found.groups]
    assert (sums[0] + sums[1]).total_loss == found.whole.totals.total_loss
    mean = found.whole.estimates["mean_loss"]
    assert mean.value == found.whole.totals.mean_loss
    assert mean.low is not None
    assert mean.high is not None
    perplexity = found.whole.estimates["perplexity"]
    assert (perplexity.low, perplexity.high) == (math.exp(mean.low), math.exp(mean.high))
    assert not found.whole.notes
    few = summary_of(path, by="meta.set", cluster="book").whole
    assert few.estimates["mean_loss"].n == 6
    assert "few clusters (6)" in few.notes[0]
    fewer = summary_of(path, by="meta.set", cluster="set").whole.estimates["mean_loss"]
    assert (fewer.low, fewer.method) == (None, "no interval: fewer than 5 clusters (2)")


def test_one_long_text_is_resampled_in_blocks(path: Path) -> None:
    losses = np.random.default_rng(0).exponential(2, 900)
    write(path, [row("long", [None, *losses])])
    estimates = summary_of(path).whole.estimates
    assert "900" not in estimates["mean_loss"].method
    assert "30 blocks of 30 tokens" in estimates["mean_loss"].method
    assert estimates["mean_sequence_loss"].low is None
    assert "one document" in summary_of(path).whole.notes[0]
    bits = estimates["bits_per_byte"]
    assert bits.value == pytest.approx(losses.sum() / math.log(2) / 1800)


def test_extremes_quantiles_and_positions(path: Path) -> None:
    rows = [row(f"r{n}", [None, *[float(n + t) for t in range(4)]]) for n in range(25)]
    write(path, rows)
    found = summary_of(path, n_extremes=3)
    assert [entry.id for entry in found.extremes["worst_sequences"]] == ["r24", "r23", "r22"]
    assert [entry.id for entry in found.extremes["best_sequences"]] == ["r0", "r1", "r2"]
    assert [(e.id, e.position, e.loss) for e in found.extremes["worst_tokens"][:2]] == [
        ("r24", 4, 27.0), ("r23", 4, 26.0),
    ]  # fmt: skip
    assert found.extremes["best_tokens"][0].loss == 0.0
    every = [float(n + t) for n in range(25) for t in range(4)]
    assert found.token_quantiles[0.5] == np.quantile(every, 0.5)
    assert found.whole.quantiles[0.5].value == 13.5
    assert [(p.first, p.last, p.n_scored) for p in found.positions] == [
        (1, 1, 25), (2, 3, 50), (4, 7, 25),
    ]  # fmt: skip
    assert found.positions[0].mean_loss.value == 12.0
    assert found.positions[1].mean_loss.value == 13.5


def test_infinite_and_unscored_rows(path: Path) -> None:
    write(path, [row("a", [None, 1.0]), row("b", [None]), row("c", [None, 2.0])])
    found = summary_of(path)
    assert found.whole.estimates["mean_loss"].n == 2
    write(path, [row("a", [None, 1.0]), row("b", [None, math.inf])])
    found = summary_of(path)
    assert found.whole.estimates == {}
    assert found.whole.totals.total_loss is None
    assert [entry.id for entry in found.extremes["worst_sequences"]] == ["a"]


def test_duplicates_are_said(run_cli: Run, path: Path) -> None:
    write(path, [row("a", [None, 1.0]), row("a", [None, 1.0])])
    done = run_cli("summarize", str(path), "--json")
    assert json.loads(done.stdout)["n_duplicates"] == 1
    assert "1 rows came before" in done.stderr


def test_bad_rows_cost_only_themselves_and_exit_with_3(run_cli: Run, path: Path) -> None:
    write(path, [row("a", [None, 1.0]), row("b", [None, 2.0])], complete=False)
    path.write_bytes(path.read_bytes()[:-9])
    done = run_cli("summarize", str(path), "--json")
    assert done.exit_code == 3
    report = json.loads(done.stdout)
    assert (report["totals"]["n_sequences"], report["n_unusable"]) == (1, 1)
    assert "results.jsonl:3" in done.stderr
    assert "not complete" in done.stderr
    assert report["files"][0]["complete"] is False


def test_other_runs_are_refused_by_name(run_cli: Run, path: Path, tmp_path: Path) -> None:
    write(path, [row("a", [None, 1.0])])
    other = write(tmp_path / "b.jsonl", [row("b", [None, 1.0])], bos="never")
    done = run_cli("summarize", str(path), str(other))
    assert done.exit_code == 2
    assert "bos auto and never" in done.stderr
    assert run_cli("summarize", str(path), str(other), "--allow-different").exit_code == 0
    assert run_cli("summarize", str(tmp_path / "none.jsonl")).exit_code == 2


@pytest.mark.parametrize("width", [80, 200])
def test_the_tables(run_cli: Run, path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    generator = np.random.default_rng(0)
    rows = [
        row(f"r{n}", [None, *generator.exponential(2, 3 + n % 5)], meta={"set": "ab"[n % 2]})
        for n in range(40)
    ]
    write(path, rows)
    shown = run_cli("summarize", str(path), "--by", "set", "--worst", "2").stdout
    for text in ("linearised ratio over documents", "quantiles of loss", "worst tokens", "by set"):
        assert text in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= width
    bits = run_cli("summarize", str(path), "--unit", "bits").stdout
    assert "bits per token" in bits


def test_a_field_that_no_row_has_is_refused(run_cli: Run, path: Path) -> None:
    write(path, [row("a", [None, 1.0], meta={"x": [1]}), row("b", [None, 1.0])])
    done = run_cli("summarize", str(path), "--cluster", "sorce")
    assert done.exit_code == 2
    assert "--cluster sorce: no row has such a field" in done.stderr
    done = run_cli("summarize", str(path), "--cluster", "x", "--by", "x", "--json")
    assert done.exit_code == 0
    assert "1 of 2 rows have no such field" in done.stderr
    groups = json.loads(done.stdout)["groups"]
    assert [group["value"] for group in groups] == ["[1]", None]
    assert groups[0]["totals"]["n_rejected"] is None


def test_an_input_is_not_written_over(run_cli: Run, path: Path) -> None:
    document = path.with_suffix(".json")
    document.write_text(write(path, [row("a", [None, 1.0])]).read_text())
    done = run_cli("summarize", str(document), "-o", str(document), "--force")
    assert done.exit_code == 2
    assert "is one of the inputs" in done.stderr


def test_clusters_reach_positions_and_quantiles(path: Path) -> None:
    rows = [row(f"d{n}", [None, 1.0 + n, 2.0], meta={"book": n // 5}) for n in range(20)]
    write(path, rows)
    found = summary_of(path, cluster="book")
    assert found.positions[0].mean_loss.n == 4
    assert "clusters" in found.positions[0].mean_loss.method
    assert found.whole.quantiles[0.5].low is None
    assert "clusters" in found.whole.quantiles[0.5].method


def test_estimates_are_the_totals_to_the_last_bit(path: Path) -> None:
    generator = np.random.default_rng(2)
    write(path, [row(f"d{n}", [None, *generator.exponential(3, 7)]) for n in range(50)])
    whole = summary_of(path).whole
    for name, estimate in whole.estimates.items():
        assert estimate.value == getattr(whole.totals, name)


def test_a_run_that_strict_stopped_is_not_complete(
    run_cli: Run, path: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "One."}\nnot json\n{"text": "Two."}\n')
    assert run_cli("score", str(data), "-o", str(path), "--strict").exit_code == 3
    done = run_cli("summarize", f"{path}.partial", "--json")
    assert json.loads(done.stdout)["files"][0]["complete"] is False
    assert "not complete" in done.stderr


# -- names of fields ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["summarize", "compare", "plot", "report"])
def test_a_name_that_is_both_seqlosss_and_the_inputs_is_refused(
    run_cli: Run, path: Path, tmp_path: Path, command: str
) -> None:
    """`source` is the file of a row: what a row says of its own source stands in meta."""
    rows = [row(f"r{n}", [None, 1.0 + n], meta={"source": "abc"[n % 3]}) for n in range(6)]
    write(path, rows)
    flag = "--cluster" if command == "compare" else "--by"
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    files = [str(path), str(copy)] if command == "compare" else [str(path)]
    output = {"report": ["--force", "-o", str(tmp_path / "a.html")]}.get(command, ["--json"])
    done = run_cli(command, *files, flag, "source", *output)
    assert done.exit_code == 2
    assert "'a', and one that seqloss wrote, 'made.jsonl'" in done.stderr
    assert "call it meta.source or seqloss.source" in done.stderr
    for name in ("meta.source", "seqloss.source"):
        assert run_cli(command, *files, flag, name, *output).exit_code == 0


def test_groups_are_of_the_field_that_is_named(path: Path) -> None:
    write(path, [row(f"r{n}", [None, 1.0], meta={"source": "ab"[n % 2]}) for n in range(4)])
    assert [g.value for g in summary_of(path, by="meta.source").groups] == ["a", "b"]
    assert [g.value for g in summary_of(path, by="seqloss.source").groups] == ["made.jsonl"]


def test_a_field_that_no_row_has_is_named_with_those_that_there_are(
    run_cli: Run, path: Path
) -> None:
    write(path, [row("r", [None, 1.0], meta={"kind": "a", "n": 1})])
    said = run_cli("summarize", str(path), "--by", "meta.knid").stderr
    assert "--by meta.knid: no row has such a field; fields: meta.kind, meta.n" in said
    assert "did you mean meta.kind?" in said


def test_fields_that_were_not_kept_are_missed_in_words(run_cli: Run, path: Path) -> None:
    write(path, [row("r", [None, 1.0])])
    assert "need --keep-meta" in run_cli("summarize", str(path), "--by", "kind").stderr
    said = run_cli("summarize", str(path), "--by", "source").stderr
    assert "note: --by source is the file that a row was read from" in said
    kept = {**RUN, "reading": {"keep_meta": True}}
    write(path, [row("r", [None, 1.0])], run=kept)
    assert "note:" not in run_cli("summarize", str(path), "--by", "source").stderr


@given(st.lists(st.text("ab/", min_size=1, max_size=7), min_size=1, max_size=5))
def test_names_are_shortened_to_ends_that_tell_them_apart(names: list[str]) -> None:
    found = without_directories(names)
    if found == names:
        return
    assert len(set(found)) == len(names)
    parts = [
        (PurePath(name).parts, PurePath(end).parts) for name, end in zip(names, found, strict=True)
    ]
    n = max(len(end) for _, end in parts)
    for whole, end in parts:
        assert whole[-n:] == end
    shorter = {whole[-(n - 1) :] for whole, _ in parts}
    assert n == 1 or len(shorter) < len(names)


def test_the_last_part_is_enough_for_checkpoints_of_one_run() -> None:
    assert without_directories(["runs/a/step-1", "runs/a/step-2", "demo"]) == [
        "step-1",
        "step-2",
        "demo",
    ]
    twins = ["runs/a/step-1", "runs/b/step-1"]
    assert without_directories(twins) == ["a/step-1", "b/step-1"]
    assert without_directories(["x/demo", "demo"]) == ["x/demo", "demo"]
    assert without_directories(["same", "same"]) == ["same", "same"]
