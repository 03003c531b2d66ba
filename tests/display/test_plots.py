"""`seqloss plot`: the numbers behind each plot, the files, and what is refused."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.oracles import calibration_by_hand
from helpers.program import ROOT, document
from helpers.results import row, rows_of, write

Run = Callable[..., Any]
TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "a.jsonl", rows_of(40), model="models/step-100")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write(
        tmp_path / "b.jsonl", rows_of(40, 0.1), model="models/step-600", weights_sha256="v" * 64
    )


def numbers(run_cli: Run, *words: object) -> Any:
    return document(run_cli("plot", *words, "--json"))


def every_loss(n: int = 40) -> list[float]:
    return [x for each in rows_of(n) for x in each["token_losses"] if x is not None]


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["nats", "bits"])
def test_shares_of_a_histogram_are_those_of_numpy(run_cli: Run, path: Path, unit: str) -> None:
    found = numbers(run_cli, path, "--unit", unit)
    losses = np.array(every_loss()) / (math.log(2) if unit == "bits" else 1)
    (series,) = found["series"]
    counts, edges = np.histogram(losses, found["edges"])
    assert edges[-1] > losses.max()
    assert len(counts) <= 60
    assert series["shares"] == pytest.approx(counts / len(losses))
    assert math.fsum(series["shares"]) + series["share_beyond"] == pytest.approx(1)
    assert series["mean"] == pytest.approx(losses.mean())
    assert (found["unit"], series["n_tokens"]) == (unit, len(losses))


def test_bins_are_shared_and_what_lies_beyond_is_said(run_cli: Run, tmp_path: Path) -> None:
    low = write(tmp_path / "l.jsonl", [row("a", [None, 0.01, 0.02])], model="low")
    high = write(tmp_path / "h.jsonl", [row("a", [None, 1.0, 64.0, math.inf, 80.0])], model="high")
    done = run_cli("plot", low, high, "--kind", "histogram", "--json")
    found = document(done)
    a, b = found["series"]
    assert found["edges"][-1] == 64
    assert (a["share_beyond"], b["share_beyond"]) == (0, 0.75)
    assert math.fsum(b["shares"]) == 0.25
    assert b["mean"] is None
    assert "high: 75 % of the tokens lie beyond 64 nats" in done.stderr
    assert run_cli("plot", high, "-o", tmp_path / "h.svg").exit_code == 0


def test_the_curve_is_that_of_objective(run_cli: Run, tmp_path: Path) -> None:
    checkpoints = ["samples/checkpoints/step-100", "samples/checkpoints/step-600"]
    report = tmp_path / "objective.json"
    data = ["--data", "CHANGELOG.md", "--lines"]
    assert run_cli("objective", *checkpoints, *data, "-o", report).exit_code == 0
    files = []
    for n, name in enumerate(checkpoints):
        files.append(tmp_path / f"{n}.jsonl")
        run_cli("score", "CHANGELOG.md", "--lines", "--model", name, "-o", files[-1])
    of_report = numbers(run_cli, report, "--kind", "curve")
    of_files = numbers(run_cli, *reversed(files), "--kind", "curve")
    written = json.loads(report.read_text())["checkpoints"]
    assert [point["step"] for point in of_files["points"]] == [100, 600]
    for a, b, c in zip(of_report["points"], of_files["points"], written, strict=True):
        for key, name in (("value", ""), ("low", "_low"), ("high", "_high")):
            assert a["estimate"][key] == c[f"mean_loss{name}"]
            assert b["estimate"][key] == pytest.approx(c[f"mean_loss{name}"], rel=1e-12)
    assert run_cli("plot", report, "--kind", "curve", "-o", tmp_path / "c.svg").exit_code == 0


@pytest.mark.parametrize("metric", ["mean_loss", "perplexity", "bits_per_byte"])
def test_intervals_are_those_of_summarize(
    run_cli: Run, path: Path, other: Path, metric: str
) -> None:
    for extra in ([], ["--cluster", "book"], ["--confidence", "0.8"]):
        found = numbers(run_cli, path, other, "--kind", "curve", "--metric", metric, *extra)
        for name, point in zip((path, other), found["points"], strict=True):
            summed = document(run_cli("summarize", name, "--json", *extra))
            assert point["estimate"] == summed["estimates"][metric]
        groups = numbers(run_cli, path, "--by", "set", "--metric", metric, *extra)
        summed = document(run_cli("summarize", path, "--by", "set", "--json", *extra))
        by_value = {each["value"]: each["estimates"][metric] for each in summed["groups"]}
        shown = {each["value"]: each["estimates"][0] for each in groups["groups"]}
        assert shown == by_value
        heights = [each["estimates"][0]["value"] for each in groups["groups"]]
        assert heights == sorted(heights, reverse=True)


def test_the_curve_is_of_the_rows_that_all_have(run_cli: Run, path: Path, tmp_path: Path) -> None:
    fewer = write(tmp_path / "f.jsonl", rows_of(30), model="step-7")
    done = run_cli("plot", path, fewer, "--kind", "curve", "--json")
    found = document(done)
    assert found["n_documents"] == 30
    assert [point["step"] for point in found["points"]] == [7, 100]
    assert found["points"][0]["estimate"] == found["points"][1]["estimate"]
    assert "10 rows have no partner" in done.stderr


def test_without_steps_checkpoints_stay_in_order(run_cli: Run, path: Path, tmp_path: Path) -> None:
    last = write(tmp_path / "l.jsonl", rows_of(40), model="final")
    done = run_cli("plot", last, path, "--kind", "curve", "--json")
    found = document(done)
    assert [point["label"] for point in found["points"]] == ["final", "step-100"]
    assert not found["by_step"]
    assert "in the order given" in done.stderr


def test_an_infinite_loss_has_no_point(run_cli: Run, path: Path, tmp_path: Path) -> None:
    rows = rows_of(40)
    rows[0] = row("r0", [None, math.inf, 1.0, 1.0], meta=rows[0]["meta"])
    bad = write(tmp_path / "bad.jsonl", rows, model="step-200")
    output = tmp_path / "c.png"
    done = run_cli("plot", path, bad, "--kind", "curve", "--json", "-o", output)
    assert [p["estimate"]["value"] is None for p in document(done)["points"]] == [False, True]
    assert "step-200 has no point" in done.stderr
    assert output.exists()


def test_one_long_text_has_the_interval_of_its_blocks(run_cli: Run, tmp_path: Path) -> None:
    losses = np.random.default_rng(0).exponential(2, 900)
    files = [
        write(tmp_path / f"{n}.jsonl", [row("long", [None, *(losses + n)])], model=f"step-{n}")
        for n in range(2)
    ]
    found = numbers(run_cli, *files, "--kind", "curve")
    summed = document(run_cli("summarize", files[1], "--json"))
    assert found["points"][1]["estimate"] == summed["estimates"]["mean_loss"]
    assert found["points"][1]["estimate"]["low"] is not None


@pytest.mark.parametrize("unit", ["nats", "bits"])
def test_positions_are_those_of_summarize(run_cli: Run, path: Path, unit: str) -> None:
    found = numbers(run_cli, path, "--kind", "position", "--unit", unit)
    summed = document(run_cli("summarize", path, "--json"))["positions"]
    (series,) = found["series"]
    per_nat = 1 / math.log(2) if unit == "bits" else 1
    for shown, expected in zip(series["positions"], summed, strict=True):
        assert (shown["first"], shown["last"]) == (expected["first"], expected["last"])
        for key in ("value", "low", "high"):
            wanted = expected["mean_loss"][key] * per_nat
            assert shown["mean_loss"][key] == pytest.approx(wanted)
    assert found["axis"] == f"Mean loss ({unit} per token)"


def test_the_scatter_counts_as_compare_does(run_cli: Run, tmp_path: Path) -> None:
    a = [row("x", [None, 1.0, 3.0]), row("y", [None, 2.0]), row("z", [None, 5.0])]
    b = [row("x", [None, 2.0, 1.0]), row("y", [None, 2.0]), row("z", [None, 6.0])]
    files = [
        write(tmp_path / f"{model}.jsonl", rows, model=model)
        for model, rows in (("A", a), ("B", b))
    ]
    found = numbers(run_cli, *files)
    assert (found["kind"], found["unit"], found["labels"]) == (
        "scatter", "nats per token", ["A", "B"],
    )  # fmt: skip
    assert sorted(zip(found["first"], found["second"], strict=True)) == [
        (2.0, 1.5), (2.0, 2.0), (5.0, 6.0),
    ]  # fmt: skip
    assert [found[f"n{key}"] for key in ("", "_lower", "_tied", "_higher")] == [3, 1, 1, 1]
    (pair,) = document(run_cli("compare", *files, "--json"))["comparisons"]
    assert [pair[key] for key in ("n_b_lower", "n_tied", "n_b_higher")] == [1, 1, 1]
    tokens = numbers(run_cli, *files, "--level", "token", "--unit", "bits")
    assert [tokens[f"n{key}"] for key in ("", "_lower", "_tied", "_higher")] == [4, 1, 1, 2]
    assert tokens["first"] == pytest.approx([x / math.log(2) for x in (1, 3, 2, 5)])
    assert tokens["unit"] == "bits"


def test_many_points_are_a_sample_of_pairs_and_all_are_counted(
    run_cli: Run, tmp_path: Path
) -> None:
    losses = np.random.default_rng(0).exponential(2, 30_000)
    files = [
        write(tmp_path / f"{n}.jsonl", [row("x", [None, *(losses + n)])], model=f"m{n}")
        for n in range(2)
    ]
    output = tmp_path / "s.svg"
    words = [*files, "--level", "token", "-o", output]
    done = run_cli("plot", *words, "--json")
    found = document(done)
    assert len(found["first"]) == 20_000
    assert np.array(found["second"]) - np.array(found["first"]) == pytest.approx(1)
    assert found["n"] == found["n_higher"] == 30_000
    assert "20,000 of 30,000 tokens are drawn" in done.stderr
    assert output.stat().st_size < 1_000_000  # the points are one picture


def test_across_tokenizers_the_scatter_is_by_bytes(
    run_cli: Run, path: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "o.jsonl", rows_of(40), tokenizer_sha256="o" * 64, model="other")
    done = run_cli("plot", path, other, "--json")
    assert document(done)["unit"] == "nats per byte"
    assert "tokenizer_sha256" in done.stderr
    refused = run_cli("plot", path, other, "--level", "token", "--json")
    assert refused.exit_code == 2
    assert "--level sequence" in refused.stderr
    curve = run_cli("plot", path, other, "--kind", "curve", "--json")
    assert "--metric bits_per_byte" in curve.stderr


@pytest.mark.parametrize("n_bins", [15, 4])
def test_calibration_is_that_of_the_definition(run_cli: Run, path: Path, n_bins: int) -> None:
    (series,) = numbers(run_cli, path, "--kind", "calibration", "--bins", n_bins)["series"]
    error, bins = calibration_by_hand(rows_of(40), n_bins)
    assert series["expected_calibration_error"]["value"] == pytest.approx(error)
    assert series["n_tokens"] == sum(n for n, _, _ in bins)
    for shown, (n, sure, right) in zip(series["bins"], bins, strict=True):
        assert shown["n_tokens"] == n
        if n:
            assert shown["confidence"] == pytest.approx(sure)
            assert shown["accuracy"]["value"] == pytest.approx(right)
            assert 0 <= shown["accuracy"]["low"] <= right <= shown["accuracy"]["high"] <= 1


def test_calibration_of_three_tokens(run_cli: Run, tmp_path: Path) -> None:
    """Favourites of 0.9 (right), 0.9 (wrong) and 0.2 (right): (2 |0.5 - 0.9| + |1 - 0.2|) / 3."""
    top = [None] + [
        [{"id": id, "token": "x", "log_prob": math.log(p)}]
        for id, p in ((1, 0.9), (7, 0.9), (3, 0.2))
    ]
    made = row("a", [None, 0.1, 3.0, 1.6], top_logprobs=top)
    file = write(tmp_path / "a.jsonl", [made, row("unscored", [None])])
    (series,) = numbers(run_cli, file, "--kind", "calibration")["series"]
    assert series["expected_calibration_error"]["value"] == pytest.approx(1.6 / 3)
    assert series["accuracy"] == pytest.approx(2 / 3)
    assert [n for n, each in enumerate(series["bins"]) if each["n_tokens"]] == [2, 13]


def test_calibration_of_the_demo_model(run_cli: Run, tmp_path: Path) -> None:
    """From every format; the favourite's own loss is never above the token's."""
    made = {}
    for name in ("r.jsonl", "r.json", "r.parquet"):
        path = tmp_path / name
        run_cli("cond", "samples/pairs.jsonl", "--top-k", "2", "-o", path)
        made[name] = numbers(run_cli, path, "--kind", "calibration")["series"]
    assert made["r.jsonl"] == made["r.json"] == made["r.parquet"]
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    scored = [
        (top[0]["id"] == id)
        for each in rows if each["type"] == "sequence"
        for id, top, counts in zip(
            each["token_ids"], each["top_logprobs"], each["loss_mask"], strict=True
        ) if counts and top
    ]  # fmt: skip
    assert made["r.jsonl"][0]["n_tokens"] == len(scored)
    assert made["r.jsonl"][0]["accuracy"] == pytest.approx(sum(scored) / len(scored))


# -- files ---------------------------------------------------------------------------------------

KINDS = {
    "curve": ["Training step", "Mean loss (nats per token)"],
    "histogram": ["Loss of a token (nats)", "Tokens (% per 0.5 nats)"],
    "position": ["Position in the sequence (tokens; bins double)", "Mean loss (nats per token)"],
    "calibration": ["Probability of the model's favourite", "(share of tokens)"],
    "scatter": ["Loss under A (nats per token)", "A = step-100"],
    "groups": ["Mean loss (nats per token)", "set (documents)"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_format(
    run_cli: Run, path: Path, other: Path, kind: str, tmp_path: Path
) -> None:
    words = [path, other, "--kind", kind, *(["--by", "set"] if kind == "groups" else [])]
    for suffix in ("svg", "png", "pdf"):
        output = tmp_path / f"plot.{suffix}"
        done = run_cli("plot", *words, "-o", output)
        assert (done.exit_code, done.stdout) == (0, ""), done.stderr
        assert "warning" not in done.stderr
    svg = ElementTree.fromstring((tmp_path / "plot.svg").read_bytes())
    texts = [text.text for text in svg.iter(TEXT)]
    for label in KINDS[kind]:
        assert label in texts
    description = (tmp_path / "plot.svg").read_text()
    for said in (f"seqloss {version('seqloss')}", "models/step-100", "models/step-600"):
        assert said in description
    png = (tmp_path / "plot.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n")
    assert b"models/step-600" in png
    pdf = (tmp_path / "plot.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"models/step-600" in pdf


def test_sizes_in_inches(run_cli: Run, path: Path, tmp_path: Path) -> None:
    output = tmp_path / "plot.png"
    size = ["--width", "3.25", "--height", "2", "--dpi", "200", "--title", "Losses & $x_1$"]
    run_cli("plot", path, "-o", output, *size)
    assert struct.unpack(">II", output.read_bytes()[16:24]) == (650, 400)
    output = tmp_path / "plot.svg"
    run_cli("plot", path, "-o", output, *size[:4], *size[6:])
    svg = ElementTree.fromstring(output.read_bytes())
    assert (svg.get("width"), svg.get("height")) == ("234pt", "144pt")
    assert "Losses & $x_1$" in [text.text for text in svg.iter(TEXT)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_same_results_give_the_same_bytes(
    run_cli: Run, path: Path, other: Path, tmp_path: Path, suffix: str, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = []
    words = [path, other, "--kind", kind, *(["--by", "set"] if kind == "groups" else [])]
    for n in range(2):
        output = tmp_path / f"{n}.{suffix}"
        run_cli("plot", *words, "-o", output)
        made.append(output.read_bytes())
        monkeypatch.setattr(time, "time", lambda: 2e9)
    assert made[0] == made[1]


def test_bytes_do_not_depend_on_a_users_matplotlibrc(
    run_cli: Run, path: Path, tmp_path: Path
) -> None:
    rc = tmp_path / "matplotlibrc"
    rc.write_text("font.size: 20\naxes.grid: True\nsvg.fonttype: path\nbackend: TkAgg\n")
    outputs = []
    for n, names in enumerate(({}, {"MATPLOTLIBRC": str(rc)})):
        outputs.append(tmp_path / f"{n}.svg")
        subprocess.run(
            [sys.executable, "-m", "seqloss_cli", "plot", path, "-o", outputs[-1]],
            cwd=ROOT, env={"PATH": "", "HOME": str(tmp_path), **names}, check=True,
        )  # fmt: skip
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_odd_names_are_drawn_as_they_are(run_cli: Run, tmp_path: Path) -> None:
    names = ["_hidden", "$\\frac", "a\x1b[31m" + "b" * 80]
    files = [
        write(tmp_path / f"{n}.jsonl", rows_of(5), model=name, weights_sha256=str(n) * 64)
        for n, name in enumerate(names)
    ]
    output = tmp_path / "plot.svg"
    done = run_cli("plot", *files, "--kind", "histogram", "-o", output)
    assert done.exit_code == 0, done.stderr
    texts = " ".join(text.text or "" for text in ElementTree.parse(output).iter(TEXT))
    assert "_hidden (mean" in texts
    assert "$\\frac (mean" in texts
    assert "\x1b" not in texts
    assert "…bbb" in texts


def test_what_the_font_lacks_is_said(run_cli: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows_of(5))
    done = run_cli("plot", file, "-o", tmp_path / "p.png", "--title", "損失")
    assert done.exit_code == 0
    assert "warning: the font has no 損失: boxes stand in their place" in done.stderr
    done = run_cli("plot", file, "-o", tmp_path / "p.svg", "--title", "損失")
    assert "損失" in (tmp_path / "p.svg").read_text()
    assert "warning" not in done.stderr


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "-o", "plot.jpg"], ".svg, .png or .pdf"),
        (["A"], "-o FILE"),
        (["A", "--kind", "scatter", "--json"], "two RESULTS files, A and B; 1 given"),
        (["A", "--kind", "curve", "--json"], "two checkpoints or more"),
        (["A", "--kind", "groups", "--json"], "--by FIELD"),
        (["A", "--by", "sett", "--json"], "--by sett: no row has such a field"),
        (["A", "--cluster", "sett", "--kind", "calibration", "--json"], "--cluster sett"),
        (["A", "--by", "set", "--kind", "position", "--json"], "--by is for --kind groups"),
        (["A", "--level", "token", "--json"], "--level is for --kind scatter"),
        (["A", "--bins", "9", "--json"], "--bins is for --kind calibration"),
        (["A", "--kind", "calibration", "--unit", "bits", "--json"], "--unit is for"),
        (["A"] * 7 + ["--kind", "histogram", "--json"], "6 RESULTS files at most"),
        (["A", "--kind", "pie", "--json"], "histogram"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused(run_cli: Run, path: Path, words: list[str], said: str) -> None:
    done = run_cli("plot", *(str(path) if word == "A" else word for word in words), COLUMNS="200")
    assert done.exit_code == 2
    assert said in done.stderr


def test_calibration_names_the_flag_that_it_needs(run_cli: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row("a", [None, 1.0])])
    done = run_cli("plot", file, "--kind", "calibration", "--json")
    assert done.exit_code == 2
    assert "--top-k 1" in done.stderr


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ([None, [{"id": 1, "log_prob": 0.5}]], "above 1"),
        ([None, [{"id": 1, "log_prob": math.nan}]], "torn_row"),
        ([None, []], "nothing at token 1"),
        ([None, None], "nothing at token 1"),
        ([None, [{"id": "x", "log_prob": -1.0}]], "nothing at token 1"),
        ([None], "not as long"),
        ({"a": 1}, "not as long"),
    ],
)
def test_alternatives_that_cannot_be_cost_their_row(
    run_cli: Run, tmp_path: Path, top: Any, said: str
) -> None:
    file = write(tmp_path / "a.jsonl", [*rows_of(3), row("bad", [None, 1.0], top_logprobs=top)])
    done = run_cli("plot", file, "--kind", "calibration", "--json")
    assert done.exit_code == 3
    assert said in done.stderr
    assert document(done, 3)["n_unusable"] in (1, 2)
    if said != "torn_row":  # those that nobody asks for are not looked at
        assert run_cli("summarize", file).exit_code == 0


@pytest.mark.parametrize("kind", ["histogram", "position"])
def test_results_without_tokens(run_cli: Run, tmp_path: Path, kind: str) -> None:
    plain = {"token_ids": None, "tokens": None, "token_losses": None, "byte_offsets": None}
    file = write(tmp_path / "a.jsonl", [row("a", [None, 1.0]) | plain])
    done = run_cli("plot", file, "--kind", kind, "--json")
    assert done.exit_code == 2
    assert "--no-tokens" in done.stderr


@pytest.mark.parametrize("kind", ["curve", "histogram", "scatter", "position", "calibration"])
def test_other_policies_are_refused(run_cli: Run, path: Path, tmp_path: Path, kind: str) -> None:
    other = write(tmp_path / "b.jsonl", rows_of(40), bos="never")
    words = [path, other, "--kind", kind, "--json"]
    done = run_cli("plot", *words)
    assert done.exit_code == 2
    assert "bos auto and never" in done.stderr
    assert "--allow-different" in done.stderr
    assert run_cli("plot", *words, "--allow-different").exit_code == 0


def test_what_is_there_is_not_written_over(run_cli: Run, path: Path, tmp_path: Path) -> None:
    output = tmp_path / "plot.svg"
    output.write_text("mine")
    done = run_cli("plot", path, "-o", output)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert output.read_text() == "mine"
    assert run_cli("plot", path, "-o", output, "--force").exit_code == 0
    assert run_cli("plot", path, "-o", tmp_path / "no" / "plot.svg").exit_code == 2


def test_nothing_to_plot(run_cli: Run, path: Path, tmp_path: Path) -> None:
    apart = write(tmp_path / "b.jsonl", [row("other", [None, 1.0])])
    unscored = write(tmp_path / "c.jsonl", [row("other", [None])])
    for words in ([path, apart], [path, apart, "--kind", "curve"], [unscored],
                  [unscored, "--by", "id"], [unscored, "--kind", "calibration"]):  # fmt: skip
        done = run_cli("plot", *words, "-o", tmp_path / "p.svg")
        assert done.exit_code == 1
        assert "nothing to plot" in done.stderr
        assert not (tmp_path / "p.svg").exists()
    assert run_cli("plot", tmp_path / "none.jsonl", "--json").exit_code == 2


def test_without_matplotlib_the_extra_is_named(
    run_cli: Run, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run_cli("plot", path, "-o", tmp_path / "p.svg")
    assert done.exit_code == 2
    assert "pip install 'seqloss[plot]'" in done.stderr
    assert run_cli("plot", path, "--json").exit_code == 0


def test_numbers_load_no_matplotlib(path: Path) -> None:
    code = (
        "import sys; from seqloss_cli.cli.main import app; "
        f"app(['plot', {str(path)!r}, '--json'], standalone_mode=False); "
        "sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize(("n", "kind"), [(1, "histogram"), (2, "scatter"), (3, "curve")])
def test_the_kind_is_chosen_and_said(run_cli: Run, path: Path, n: int, kind: str) -> None:
    done = run_cli("plot", *[path] * n, "--json")
    assert document(done)["kind"] == kind
    assert f"--kind {kind}" in done.stderr


def test_many_groups(run_cli: Run, path: Path, tmp_path: Path) -> None:
    many = write(tmp_path / "m.jsonl", rows_of(60))
    output = tmp_path / "g.svg"
    done = run_cli("plot", many, path, "--by", "id", "--json", "-o", output)
    found = document(done)
    assert (len(found["groups"]), found["n_groups"]) == (40, 60)
    assert "40 of 60 groups are shown" in done.stderr
    assert ElementTree.parse(output)


def test_a_mean_beyond_the_axis_is_written_above_it(run_cli: Run, tmp_path: Path) -> None:
    for mean in (100.0, 1e9):
        far = write(tmp_path / f"{mean}.jsonl", [row("a", [None, mean, mean])])
        output = tmp_path / f"{mean}.svg"
        done = run_cli("plot", far, "-o", output)
        assert done.exit_code == 0
        assert "100 % of the tokens lie beyond" in done.stderr
        assert "beyond the axis" in output.read_text()


def test_groups_and_positions_without_a_figure_are_named(run_cli: Run, tmp_path: Path) -> None:
    rows = [
        row("a", [None, 1.0, math.inf], meta={"grp": "one"}),
        row("b", [None, 1.0, 2.0], meta={"grp": "two"}),
    ]
    some = write(tmp_path / "s.jsonl", rows, model="some")
    done = run_cli("plot", some, "--by", "grp", "--json")
    assert "some: one has no bar" in done.stderr
    assert "are shown, the highest" not in done.stderr
    places = run_cli("plot", some, "--kind", "position", "--json")
    assert "have no point" in places.stderr


def test_a_file_named_three_times_has_three_points(
    run_cli: Run, path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "c.svg"
    done = run_cli("plot", path, path, path, "--kind", "curve", "-o", output, "--json")
    assert len(document(done)["points"]) == 3


def test_an_objective_report_keeps_its_own_confidence(run_cli: Run, tmp_path: Path) -> None:
    checkpoint = {
        "model": "step-1",
        "step": 1,
        "mean_loss": 2.0,
        "mean_loss_low": 1.5,
        "mean_loss_high": 2.5,
        "n_sequences": 4,
        "interval_method": "made",
        "bits_per_byte": 1.0,
    }
    report = tmp_path / "o.json"
    report.write_text(json.dumps({"confidence": 0.9, "checkpoints": [checkpoint] * 2}))
    words = ["plot", report, "--kind", "curve", "--json"]
    assert document(run_cli(*words))["confidence"] == 0.9
    assert "--confidence" in run_cli(*words, "--confidence", "0.5").stderr
    for wrong in ({"mean_loss": -5.0}, {"mean_loss_low": 3.0}, {"bits_per_byte": "q"}):
        bad = [checkpoint | wrong, checkpoint]
        report.write_text(json.dumps({"checkpoints": bad}))
        metric = ["--metric", "bits_per_byte"] if "bits_per_byte" in wrong else []
        assert run_cli(*words, *metric).exit_code == 2
