"""docs/numbers.md, the contract of the numbers; docs/architecture.md, how the house is built."""

from __future__ import annotations

import gzip
import json
import math
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from packaging.version import Version

import floors
from helpers.builders import N_BYTE_IDS, byte_tokenizer, lazy_logits
from helpers.program import ROOT
from seqloss_cli import Sample, TokenPolicy
from seqloss_cli.backends.torch.head import score_logits
from seqloss_cli.backends.windows import plan_windows
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import RowError
from seqloss_cli.metrics.chain_rule import ChainRule
from seqloss_cli.metrics.totals import RATES, Totals, to_units
from seqloss_cli.tokenization.tokenizer import Tokenization

HOUSE = (ROOT / "docs" / "architecture.md").read_text()
NUMBERS = (ROOT / "docs" / "numbers.md").read_text()
KEYS, RULES, EXAMPLES = re.split(r"^## \d\..*\n", NUMBERS, flags=re.M)[1:]
PLACES = [
    *sorted((ROOT / "seqloss_cli").rglob("*.py")),
    *sorted((ROOT / "tests").rglob("*.py")),
    *(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))),
]
CITED = re.compile(r"\brules?\s+(\d+(?:(?:,\s+|,?\s+and\s+)\d+)*)", re.IGNORECASE)


def rules_cited(text: str) -> Iterator[int]:
    for found in CITED.findall(text):
        yield from map(int, re.findall(r"\d+", found))


def test_every_rule_that_is_cited_is_there() -> None:
    written = [int(n) for n in re.findall(r"^(\d+)\. \*\*", RULES, flags=re.M)]
    assert written == list(range(1, len(written) + 1))
    cited = {(path, n) for path in PLACES for n in rules_cited(path.read_text())}
    assert len(cited) > 20
    assert {(path, n) for path, n in cited if n not in written} == set()
    assert set(rules_cited("Rules 4, 5, 6 and\n10, rule 16")) == {4, 5, 6, 10, 16}


# -- keys -----------------------------------------------------------------------------------------


def documents() -> Iterator[Any]:
    """What golden files hold: JSON documents, and lines of results files."""
    for path in sorted((ROOT / "tests" / "golden").glob("*.json")):
        yield json.loads(path.read_text())
    for path in sorted((ROOT / "tests" / "golden" / "net").iterdir()):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        for line in text.splitlines():
            if re.match(r'\{"type":"(run|sequence|rejected|totals)".*\}$', line):
                yield json.loads(line.replace('"threads":N', '"threads":1'))


def keys_written() -> set[str]:
    """Of rows and totals, one level deep, and of the runs' records."""
    found: set[str] = set()
    for each in documents():
        parts = [each] if "type" in each else [each["run"], each["totals"], *each["sequences"]]
        for part in parts:
            found |= set(part)
            found |= set(part.get("flags", {}))
            for choice in part.get("choices", ()):
                found |= set(choice)
    return found - {"type", "schema_version"}


def documented(name: str) -> bool:
    """Named in the doc; `mean_…` stands for the means of the sums that it names."""
    known = set(re.findall(r"`(\w+)(?:\[t\])?`", NUMBERS))
    return name in known or name.removeprefix("mean_") in known


def test_every_key_that_is_written_is_documented() -> None:
    names = {*keys_written(), *RATES, *(column.name for column in COLUMNS)}
    assert len(names) > 100
    assert [name for name in sorted(names) if not documented(name)] == []


# -- worked examples: figures of the doc, computed by the code -------------------------------------


def totals(*losses: float) -> Totals:
    """Of one sequence whose scored tokens have these losses."""
    total = math.fsum(losses)
    return Totals(
        n_sequences=1, n_sequences_scored=1, n_tokens=len(losses) + 1, n_scored=len(losses),
        loss_units=to_units(total), mean_loss_units=to_units(total / len(losses)),
    )  # fmt: skip


def example(begins: str) -> str:
    (found,) = [text for text in re.split(r"^- ", EXAMPLES, flags=re.M) if text.startswith(begins)]
    return " ".join(found.split())


def figures(text: str) -> list[float]:
    """Numbers of a text, but for those in names such as x_1."""
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text)]


def test_sums_and_means() -> None:
    *losses, total = figures(example("Losses 1.2"))
    assert totals(*losses).total_loss == total == 4.0
    *losses, total, mean = figures(example("Losses 0.1"))
    assert (totals(*losses).total_loss, totals(*losses).mean_loss) == (total, mean) == (1.0, 0.25)
    *losses, total = figures(example("Sequences with losses"))
    assert sum(map(totals, losses), Totals()).total_loss == total == 16.0
    n, loss, total, rounded = figures(example("1000 tokens"))
    assert (n, rounded) == (1000, 2304)
    assert totals(*[loss] * int(n)).total_loss == total == 2296.875


def test_three_means_of_a_set() -> None:
    few, many, high, low, *means = figures(example("Sequences of 1"))
    corpus = totals(*[high] * int(few)) + totals(*[low] * int(many))
    assert means == [corpus.mean_loss, corpus.mean_of_mean_losses, corpus.mean_sequence_loss]


def test_single_probabilities() -> None:
    found = figures(example("Pr = 0.75"))
    for probability, loss in zip(found[::2], found[1::2], strict=True):
        assert -math.log(probability) == pytest.approx(loss, abs=5e-7)
        logits = torch.tensor([[probability, 1 - probability]]).log()
        scored = score_logits(lazy_logits(logits), torch.tensor([0]), Requested()).losses
        assert float(scored[0]) == pytest.approx(loss, abs=5e-7)


def test_a_joint_above_its_marginal() -> None:
    joint, marginal = figures(example("A joint"))
    with pytest.raises(RowError, match="above"):
        ChainRule(log_prob_x=marginal, log_prob_y_given_x=None, log_prob_xy=joint)


def test_windows() -> None:
    n, context, stride, *rest = map(int, map(abs, figures(example("n = 8").replace("–", " "))))
    windows = list(plan_windows(n, context, stride, has_bos=False))
    spans = [(window.score_from, window.end) for window in windows]
    assert spans == [(1, 4), (5, 6), (7, 7)]
    assert rest[:5] == [1, 4, 5, 6, 7]
    seen = [
        t - window.start for window in windows for t in range(window.score_from, window.end + 1)
    ]
    assert rest[5:-1] == seen


def test_bytes_of_a_text(demo: Any) -> None:
    """By the tokenizer of the demo model, and by one that has a token for each byte."""
    text, (n_bytes,) = "🐕 日x", figures(example("`🐕 日x`"))
    assert len(text.encode()) == n_bytes == 9
    in_bytes = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
    for tokenization in (demo.tokenization, in_bytes):
        (sequence,) = tokenization.tokenize([Sample("x", "x", text=text)])
        assert sequence.byte_offsets[-1] == n_bytes


# -- the house ------------------------------------------------------------------------------------

ANSWERS = {
    "the strided window rule": ("backends/windows.py", "stride"),
    "the byte offset of a token": ("tokenization/byte_offsets.py", "offsets"),
    "the JSON key `bits_per_byte`": ("metrics/totals.py", "bits_per_byte"),
    "the CSV column of ranks": ("core/columns.py", 'csv="rank"'),
    "the Wilson interval": ("metrics/intervals.py", "Wilson"),
    "the option `--separator`": ("core/policies.py", "separator: str = option"),
}
"""What a newcomer asks: a file of the answer, and what stands in it."""


@pytest.mark.parametrize("question", ANSWERS)
def test_a_newcomer_finds_the_file(question: str) -> None:
    (line,) = [line for line in HOUSE.splitlines() if line.startswith(f"| {question}")]
    name, said = ANSWERS[question]
    assert f"`seqloss_cli/{name}`" in line
    assert said in (ROOT / "seqloss_cli" / name).read_text()


def test_what_the_house_is_said_to_have_is_there() -> None:
    named = set(re.findall(r"`((?:seqloss_cli|tests|docs)/[\w./]*)`", HOUSE))
    assert len(named) > 40
    assert {name for name in named if not (ROOT / name).exists()} == set()
    rooms = {f"seqloss_cli/{p.name}/" for p in (ROOT / "seqloss_cli").iterdir() if p.is_dir()}
    assert rooms - named == {"seqloss_cli/demo/", "seqloss_cli/__pycache__/"} & rooms


def test_the_rows_are_those_that_are_guarded() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    guarded = [row for row in layers["contracts"][0]["layers"] if row != "__main__"]
    assert "\n".join(guarded) in HOUSE


def test_exit_codes_are_those_of_the_page_on_errors() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    codes = [re.findall(r"^\| (\d+) \|", text, flags=re.M) for text in (HOUSE, page)]
    assert codes[0] == codes[1] == ["0", "1", "2", "3", "70", "130"]


def test_versions_that_were_tried_are_those_that_are_promised() -> None:
    text = (ROOT / "docs" / "gpus.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \|", text, flags=re.M)
    assert sorted(f"{name}=={low}" for name, low, _ in rows) == sorted(floors.lowest())
    assert all(Version(low) <= Version(new) for _, low, new in rows)
    readme = (ROOT / "docs" / "install.md").read_text()
    lowest = {name: low for name, low, _ in rows}
    assert f"torch {lowest['torch']} and transformers {lowest['transformers']}, or later" in readme
