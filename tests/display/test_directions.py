"""A difference is shown with its sign and its unit, and words say which way it points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.results import row, write
from helpers.terminals import PAIRED, pair_of, shown
from seqloss_cli.analysis.compare import CompareOptions, Comparison, compare
from seqloss_cli.display.terminal.comparisons import comparison_sentence
from seqloss_cli.display.terminal.formatting import Unit, more_probable, way
from seqloss_cli.display.terminal.rank_and_diverge import _way_of
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.results.schema.scores import read_row


def compared(shift: float) -> Comparison:
    files = [
        [read_row(row(f"d{n}", [None, 1.0 + by, 2.0 + by + n / 8]), "made:1") for n in range(6)]
        for by in (0.0, shift)
    ]
    return compare(files, True, CompareOptions(bootstrap=100)).pairs[0]


@pytest.mark.parametrize("unit", [Unit(), Unit(bits=True)])
@pytest.mark.parametrize("shift", [-0.5, 0.25, 0.0])
@pytest.mark.parametrize("significant", [True, False])
def test_the_sentence_says_which_model_is_lower(
    unit: Unit, shift: float, significant: bool
) -> None:
    pair = replace(compared(shift), is_significant=significant)
    sentence = comparison_sentence(pair, ["A", "B"], unit)
    assert sentence.startswith("no difference shown: ") == (not significant)
    if not shift:
        assert "B's loss is that of A" in sentence
        return
    direction = "lower" if shift < 0 else "higher"
    assert f"B's loss is {direction} than A's by {unit.text(abs(shift))}" in sentence
    assert f" {unit} per token; {direction} on 6 of 6 documents" in sentence


@given(st.floats(-1e6, 1e6))
def test_words_follow_the_sign(value: float) -> None:
    words = {way(value, "the same"), more_probable(value), _way_of(Estimate(value))}
    higher = {"higher", ": the prompt makes it more probable", ": the model's is higher"}
    lower = {"lower", ": the prompt makes it less probable", ": the model's is lower"}
    assert words == (higher if value > 0 else lower if value < 0 else {"the same", ""})
    assert way(None) == more_probable(None) == ""


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.1, 0.3, "higher, not beyond noise"), (0.1, 0.3, "higher"), (None, None, "higher")],
)
def test_noise_is_said(low: float | None, high: float | None, said: str) -> None:
    assert _way_of(Estimate(0.2, low, high)) == f": the model's is {said}"


def test_figures_of_a_pair_have_their_unit() -> None:
    for bits, unit in ((False, "nats"), (True, "bits")):
        output = shown(pair_of(), run=PAIRED, bits=bits)
        for line in output.splitlines():
            if line.startswith(("ln Pr", "log2 Pr", "loss  ")):
                assert f" {unit}  " in line, line


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_the_page_says_it_too(run_cli: Any, tmp_path: Path, shift: float) -> None:
    for name, by in (("a", 0.0), ("b", shift)):
        rows = [row("d", [None, 1.0 + by, 2.0 + by], text="x")]
        write(tmp_path / f"{name}.jsonl", rows, weights_sha256=name)
    page = tmp_path / "page.html"
    names = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    done = run_cli("report", *map(str, names), "-o", str(page))
    assert done.exit_code == 0, done.stderr
    direction = "lower" if shift < 0 else "higher"
    assert f"B&#39;s loss is {direction} than A&#39;s" in page.read_text()
