"""Scores of membership, held to the formulas of their papers; and what separates members."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.program import document
from helpers.results import row, write
from seqloss_cli.inputs import duplicates
from seqloss_cli.metrics import membership as m
from seqloss_cli.metrics import resampling, series
from seqloss_cli.metrics.intervals import Estimate

Run = Callable[..., Any]
SCORES = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=40)


# -- the formulas, slowly --------------------------------------------------------------------------


def least(values: Sequence[float], percent: float) -> float:
    """Shi et al. 2024, equation 1: the mean over the k % of tokens with the least probability."""
    k = max(1, math.floor(Fraction(repr(percent)) * len(values) / 100))
    return sum(sorted(values)[:k]) / k


def z_of(log_probs: Sequence[float], log_p: float) -> float:
    """Zhang et al. 2024, equation 3: (ln p(x_t) - mean) / deviation of ln p over the vocabulary."""
    mean = sum(math.exp(each) * each for each in log_probs)
    variance = sum(math.exp(each) * (each - mean) ** 2 for each in log_probs)
    return (log_p - mean) / math.sqrt(variance)


def area(scores: Sequence[float], members: Sequence[bool]) -> float:
    """The share of pairs of a member and another in which the member's score is higher."""
    own = [s for s, is_member in zip(scores, members, strict=True) if is_member]
    others = [s for s, is_member in zip(scores, members, strict=True) if not is_member]
    wins = sum((a > b) + (a == b) / 2 for a in own for b in others)
    return wins / (len(own) * len(others))


def best_rate(scores: Sequence[float], members: Sequence[bool], most: float) -> float:
    """The largest true positive rate of all thresholds whose false positive rate is not above."""
    own = [s for s, is_member in zip(scores, members, strict=True) if is_member]
    others = [s for s, is_member in zip(scores, members, strict=True) if not is_member]
    found = 0.0
    for threshold in [math.inf, *scores]:
        if sum(s >= threshold for s in others) / len(others) <= most + 1e-12:
            found = max(found, sum(s >= threshold for s in own) / len(own))
    return found


# -- scores ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-30, 0), min_size=1, max_size=60), st.floats(0.01, 100))
def test_the_least_likely_tokens(log_probs: list[float], percent: float) -> None:
    assert m.least_mean(np.array(log_probs), percent) == pytest.approx(least(log_probs, percent))


def test_fewer_tokens_than_a_share_of_one_are_one() -> None:
    assert m.least_mean(np.array([-3.0, -1.0]), 20) == -3.0
    assert m.least_mean(np.arange(10.0), 20) == 0.5
    assert m.least_mean(np.arange(9.0), 20) == 0.0
    assert m.least_mean(np.arange(4.0), 100) == 1.5
    # 4.6 * 1500 is below 6900 to a float.
    assert m.least_mean(np.arange(1500.0), 4.6) == 34.0


def test_standardised_scores_are_those_of_whole_distributions() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (12, 50))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    probs, targets = np.exp(log_probs), generator.integers(0, 50, 12)
    entropies = -(probs * log_probs).sum(1)
    varentropies = (probs * (log_probs + entropies[:, None]) ** 2).sum(1)
    losses = -log_probs[np.arange(12), targets]
    found = m.standardised(losses, entropies, varentropies)
    assert found is not None
    wanted = [z_of(each, each[t]) for each, t in zip(log_probs.tolist(), targets, strict=True)]
    assert found.tolist() == pytest.approx(wanted)
    varentropies[3] = 0.0
    assert m.standardised(losses, entropies, varentropies) is None


def test_bytes_that_zlib_makes() -> None:
    text = "Größe " * 30
    assert m.compressed_bytes(text) == len(zlib.compress(text.encode(), 6))


# -- how well they separate ------------------------------------------------------------------------


@given(
    SCORES, st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.2, 0.5, 1.0]), st.integers(1, 50)
)
def test_area_and_rates_are_those_of_all_pairs(
    scores: list[float], seed: int, most: float, at_a_time: int
) -> None:
    members = np.random.default_rng(seed).permutation(len(scores)) % 2 == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m, "FALSE_POSITIVE_RATES", (most,))
        patch.setattr(m, "_MOST_ENTRIES", at_a_time)
        sums = m.RocSums(np.array(scores), members, np.arange(len(scores)))
        found = sums.figures(np.ones((1, len(scores))))
    assert found[None][0] == pytest.approx(area(scores, members.tolist()))
    assert found[most][0] == pytest.approx(best_rate(scores, members.tolist(), most))


@given(SCORES)
def test_scores_that_are_turned_have_the_other_area(scores: list[float]) -> None:
    members = np.arange(len(scores)) % 2 == 0
    one, other = (
        m.separation(np.array(sign * np.array(scores)), members, 100, 0).auroc.value
        for sign in (1.0, -1.0)
    )
    assert one is not None
    assert other == pytest.approx(1 - one)


def test_resampled_counts_are_those_of_documents_written_out() -> None:
    """A document that is drawn twice counts as two of them."""
    scores, members = np.array([3.0, 1.0, 2.0, 2.0, 0.0]), np.array([1, 1, 1, 0, 0], dtype=bool)
    weights = np.array([[2.0, 0.0, 1.0, 1.0, 3.0]])
    found = m.RocSums(scores, members, np.arange(5)).figures(weights)
    places = np.repeat(np.arange(5), weights[0].astype(int))
    assert found[None][0] == pytest.approx(area(scores[places], members[places]))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of two normals a standard deviation apart the area is Φ(1/√2) = 0.7602."""
    generator, held = np.random.default_rng(1), 0
    for seed in range(100):
        scores = np.r_[generator.normal(1, 1, 60), generator.normal(0, 1, 80)]
        auroc = m.separation(scores, np.arange(140) < 60, 200, seed).auroc
        assert auroc.low is not None
        assert auroc.high is not None
        held += auroc.low <= 0.7602 <= auroc.high
    assert 88 <= held <= 100


def test_rates_need_one_non_member_to_be_wrong_about() -> None:
    scores = np.r_[np.full(10, 2.0), np.zeros(999)]
    found = m.separation(scores, scores > 1, 100, 0).true_positive_rates
    assert (found[0.01].value, found[0.001].value) == (1.0, None)
    assert found[0.001].method == "fewer than 1,000 non-members (999)"
    scores = np.r_[scores, 0.0]
    assert m.separation(scores, scores > 1, 100, 0).true_positive_rates[0.001].value == 1.0


def test_few_or_no_members() -> None:
    scores = np.arange(10.0)
    few = m.separation(scores, scores > 6, 100, 0).auroc
    assert (few.value, few.low, few.method) == (
        1.0, None, "no interval: fewer than 5 documents (3)",
    )  # fmt: skip
    assert m.separation(scores, scores > 99, 100, 0).auroc.method == "there are no members"
    apart = m.separation(scores, scores > 4, 100, 0).auroc
    assert apart == Estimate(1.0, n=10, method="no interval: all resamples have the same figure")
    clusters, mixed = np.arange(10) // 2, scores % 3 == 0
    of_clusters = m.separation(scores, mixed, 100, 0, clusters).auroc
    assert of_clusters.n == 5
    assert "bootstrap over clusters" in of_clusters.method


# -- results ---------------------------------------------------------------------------------------


def made(id: str, losses: Sequence[float], member: Any, text: str, doc: Any = None) -> dict:
    entropies = [None, *(1.0 + 0.1 * n for n in range(len(losses)))]
    varentropies = [None, *(0.5 + 0.2 * n for n in range(len(losses)))]
    meta = {"member": member, "doc": doc}
    meta = {name: value for name, value in meta.items() if value is not None}
    found = row(id, [None, *losses], text, meta)
    return found | {"text": text, "entropies": entropies, "varentropies": varentropies}


@pytest.fixture
def rows() -> list[dict]:
    return [
        made("a", [1.0, 4.0, 2.0, 0.5, 3.0, 1.5], 1, "One Text", 7),
        made("b", [2.0, 2.5], False, "two", "x"),
        made("a2", [1.0, 4.5, 2.5, 0.5, 3.0, 1.5], True, "one text", 7),
        made("b2", [2.0, 2.5], "0", "two", "x"),
        made("c2", [1.0], 0, "lower c", 1.5),
        made("c", [0.5], "true", "Lower C", 1.5),
        made("d", [3.0], None, "Alone", None),
    ]


def run_on(run_cli: Run, tmp_path: Path, rows: list[dict], *words: str) -> Any:
    path = write(tmp_path / "r.jsonl", rows)
    return run_cli("summarize", str(path), "--membership", *words)


def test_figures_of_each_document(run_cli: Run, tmp_path: Path, rows: list[dict]) -> None:
    scores = tmp_path / "scores.jsonl"
    words = ("--label", "meta.member", "--pair", "meta.doc", "--min-k", "40")
    done = run_on(run_cli, tmp_path, rows, *words, "--scores", str(scores), "--json")
    assert done.exit_code == 0, done.stderr
    found = {each["id"]: each for each in map(json.loads, scores.read_text().splitlines())}
    assert list(found) == ["a", "b", "c", "d"]
    assert [each["member"] for each in found.values()] == [True, False, True, None]
    by_id = {each["id"]: each for each in rows}
    for id, scored in found.items():
        losses = by_id[id]["token_losses"][1:]
        mean = sum(losses) / len(losses)
        z = [
            (h - loss) / math.sqrt(v)
            for loss, h, v in zip(
                losses, by_id[id]["entropies"][1:], by_id[id]["varentropies"][1:], strict=True
            )
        ]
        assert scored["mean_loss"] == pytest.approx(mean)
        assert scored["min_k"] == pytest.approx(least([-loss for loss in losses], 40))
        assert scored["min_k_plus_plus"] == pytest.approx(least(z, 40))
        n_bytes = len(zlib.compress(by_id[id]["text"].encode(), 6))
        assert scored["zlib_ratio"] == pytest.approx(mean / n_bytes)
    ratios = [each["lower_ratio"] for each in found.values()]
    assert ratios == [pytest.approx(13.0 / 12.0), 1.0, 2.0, None]
    totals = document(done)["membership"]
    assert (totals["n_documents"], totals["n_members"], totals["n_non_members"]) == (4, 2, 1)
    assert (totals["n_unlabelled"], totals["n_without_pair"]) == (1, 1)
    assert totals["scores"]["lower_ratio"]["n_null"] == {"no_pair": 1}
    assert totals["scores"]["mean_loss"]["member_is"] == "lower"
    # Of members 2.0 and 0.5, of the other 2.25: both members are below it.
    assert totals["scores"]["mean_loss"]["auroc"]["value"] == 1.0
    assert totals["scores"]["lower_ratio"]["auroc"]["value"] == 1.0
    assert totals["scores"]["mean_loss"]["tpr_at_fpr"]["0.01"]["value"] is None


@pytest.mark.parametrize("options", [(), ("--cluster", "meta.doc"), ("--pair", "meta.doc")])
def test_numbers_on_disk_are_those_of_memory(
    run_cli: Run, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [each | {"meta": {**each["meta"], "doc": n % 20}} for n, each in enumerate(labelled(40))]
    for each in rows[20:] if "--pair" in options else ():
        each["text"] = rows[rows.index(each) - 20]["text"].lower()
    rows.append(made("none", [1.0], None, "Alone", None))
    scores, found = tmp_path / "scores.jsonl", []
    words = ("--label", "meta.member", "--scores", str(scores), "--force", "--json", *options)
    for most in (1 << 17, 3):
        monkeypatch.setattr(series, "CHUNK", most)
        monkeypatch.setattr(duplicates, "MOST_KEYS", most)
        done = run_on(run_cli, tmp_path, rows, "--bootstrap", "100", *words)
        assert done.exit_code == 0, done.stderr
        found.append((document(done), scores.read_text()))
    assert found[0] == found[1]
    summed = found[0][0]["membership"]["scores"]
    assert summed["lower_ratio"]["n"] == 20 * ("--pair" in options)
    assert summed["mean_loss"]["auroc"]["low"] is not None


def test_many_documents_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    scores, members = generator.normal(0, 1, 400).round(1), generator.random(400) < 0.4
    found = [m.separation(scores, members, 100, 0, c) for c in (None, np.arange(400) // 2)]
    monkeypatch.setattr(resampling, "_MOST_ENTRIES", 64)
    assert [m.separation(scores, members, 100, 0, c) for c in (None, np.arange(400) // 2)] == found
    assert found[0].auroc.low is not None


def test_why_there_is_no_score(run_cli: Run, tmp_path: Path) -> None:
    no_text = made("t", [1.0], 1, "T")
    del no_text["text"]
    no_tokens = {n: v for n, v in made("n", [1.0], 1, "N").items() if n != "token_losses"}
    flat = made("f", [1.0], 1, "F") | {"varentropies": [None, 0.0]}
    plain = {n: v for n, v in made("p", [1.0], 1, "P").items() if n != "entropies"}
    infinite = made("i", [1.0], 1, "I") | row("i", [None, math.inf])
    rows = [no_text, no_tokens, flat, plain, infinite, row("nothing", [None])]
    done = run_on(run_cli, tmp_path, rows, "--json")
    scores = document(done)["membership"]["scores"]
    assert {name: score["n_null"] for name, score in scores.items()} == {
        "mean_loss": {"inf_loss": 1},
        "min_k": {"no_tokens": 1, "inf_loss": 1},
        "min_k_plus_plus": {"no_tokens": 1, "no_variance": 1, "no_varentropies": 1, "inf_loss": 1},
        "zlib_ratio": {"no_text": 1, "inf_loss": 1},
        "lower_ratio": {"no_pair": 5},
    }
    shown = " ".join(run_on(run_cli, tmp_path, rows).stdout.split())
    assert "min_k_plus_plus: none of 1 document: score with --entropy --varentropy" in shown
    assert scores["mean_loss"]["auroc"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member": "yes"}, "'yes', which is neither 1 or true (a member) nor 0 or false"),
        ({"member": 2}, "says 2, which is neither"),
        ({"doc": 7}, "7 is the value of a third row"),
    ],
)
def test_what_is_refused(
    run_cli: Run, tmp_path: Path, rows: list[dict], change: dict, message: str
) -> None:
    rows[-1]["meta"] = {"member": 1, "doc": 9} | change
    done = run_on(run_cli, tmp_path, rows, "--label", "meta.member", "--pair", "meta.doc")
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_percentage_beyond_all(run_cli: Run, tmp_path: Path, rows: list[dict]) -> None:
    assert (
        "--min-k takes a number of at most 100, not '101'"
        in run_on(run_cli, tmp_path, rows, "--min-k", "101").stderr
    )


def test_pairs_that_are_none(run_cli: Run, tmp_path: Path, rows: list[dict]) -> None:
    rows[2] |= {"text": "another text"}
    done = run_on(run_cli, tmp_path, rows, "--pair", "meta.doc", "--json")
    totals = document(done)["membership"]
    assert totals["n_documents"] == 5
    assert totals["scores"]["lower_ratio"]["n_null"] == {"pair_differs": 2, "no_pair": 1}
    del rows[2]["text"]
    done = run_on(run_cli, tmp_path, rows, "--pair", "meta.doc")
    assert done.exit_code == 2
    assert "has no text, which tells the lower-case one of two" in done.stderr


def test_options_need_the_scores_that_they_are_for(run_cli: Run, tmp_path: Path) -> None:
    path = str(write(tmp_path / "r.jsonl", [made("a", [1.0], 1, "A")]))
    done = run_cli("summarize", path, "--label", "meta.member")
    assert (done.exit_code, "give --membership, too" in done.stderr) == (2, True)
    done = run_cli("summarize", path, "--membership", "--min-k", "0")
    assert (done.exit_code, "a percentage above 0" in done.stderr) == (2, True)
    assert "membership" not in document(run_cli("summarize", path, "--json"))


def test_responses_are_scored_with_their_separators(run_cli: Run, tmp_path: Path) -> None:
    """By a real run: of a pair the losses are those of separator and response."""
    results, scores = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    pair = ("--prompt", "The dog", "--response", "ran home", "--separator", " ")
    assert run_cli("cond", *pair, "-o", str(results)).exit_code == 0
    done = run_cli("summarize", str(results), "--membership", "--scores", str(scores))
    assert done.exit_code == 0, done.stderr
    (found,) = map(json.loads, scores.read_text().splitlines())
    n_bytes = len(zlib.compress(b" ran home", 6))
    assert found["zlib_ratio"] == pytest.approx(found["mean_loss"] / n_bytes)


# -- the plot --------------------------------------------------------------------------------------


def labelled(n: int) -> list[dict]:
    generator = np.random.default_rng(n)
    return [
        made(f"d{k}", generator.gamma(2, 2 if k % 2 else 3, 12).tolist(), k % 2, f"Text {k}")
        for k in range(n)
    ]


def test_the_curve_has_the_area_that_is_said(run_cli: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", labelled(40))
    words = ("plot", str(path), "--kind", "roc", "--label", "meta.member")
    found = document(run_cli(*words, "--json"))
    summed = document(
        run_cli("summarize", str(path), "--membership", "--label", "meta.member", "--json")
    )["membership"]["scores"]
    assert [each["label"] for each in found["series"]] == [
        "mean_loss", "min_k", "min_k_plus_plus", "zlib_ratio",
    ]  # fmt: skip
    for each in found["series"]:
        x, y = each["false_positive_rates"], each["true_positive_rates"]
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        steps = [
            (b - a) * (c + d) / 2 for (a, b), (c, d) in zip(pairwise(x), pairwise(y), strict=True)
        ]
        assert sum(steps) == pytest.approx(each["auroc"]["value"])
        assert each["auroc"] == summed[each["label"]]["auroc"]
    image = tmp_path / "roc.svg"
    done = run_cli(*words, "-o", str(image))
    assert done.exit_code == 0, done.stderr
    assert "AUROC" in image.read_text()


def test_a_plot_needs_both_classes(run_cli: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [made("a", [1.0], 1, "A")])
    done = run_cli("plot", str(path), "--kind", "roc", "--json")
    assert (done.exit_code, "--label FIELD says which is which" in done.stderr) == (2, True)
    done = run_cli("plot", str(path), "--kind", "roc", "--label", "meta.member", "--json")
    assert done.exit_code == 1
    assert "no score is known of members and of non-members" in done.stderr
