"""`seqloss diverge`: against float64 by hand, and the identities that define its figures."""

from __future__ import annotations

import csv
import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import (
    bigram_model,
    byte_tokenizer,
    lazy_logits,
    llama,
    save_checkpoint,
)
from helpers.program import document, in_process
from helpers.schemas import hold_csv, hold_document, hold_parquet, hold_text
from seqloss_cli import ModelChoice, Scorer
from seqloss_cli.backends import teacher_files
from seqloss_cli.backends.torch import divergence as module
from seqloss_cli.backends.torch.divergence import diverge, diverge_from_saved
from seqloss_cli.backends.torch.head import LazyLogits, score_logits
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import BatchPolicy
from seqloss_cli.core.records import SavedTeacherRows
from seqloss_cli.metrics import divergence as d
from seqloss_cli.metrics.divergence import DocumentSums, divergence_totals
from seqloss_cli.metrics.intervals import share_estimate
from seqloss_cli.metrics.resampling import cluster_quantiles
from seqloss_cli.scoring.teacher_scorer import TeacherScorer

TEXT = "the cat sat on the mat, and the dog on the cat"


def by_hand(student: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
    """In float64, whole rows at once."""
    p, q = (matrix.double().log_softmax(1) for matrix in (student, teacher))
    terms = torch.where(q.exp() > 0, q.exp() * (q - p), 0.0)
    own = torch.where(q.exp() > 0, q.exp() * q, 0.0)
    return {
        "kls": terms.sum(1).numpy(),
        "teacher_entropies": -own.sum(1).numpy(),
        "teacher_losses": -q.gather(1, ids[:, None])[:, 0].numpy(),
        "student_losses": -p.gather(1, ids[:, None])[:, 0].numpy(),
        "same_top1": (student.argmax(1) == teacher.argmax(1)).numpy(),
        **measures_by_hand(p, q),
    }


OVERLAP_K = 4


def measures_by_hand(p: torch.Tensor, q: torch.Tensor) -> dict[str, Any]:
    """Reverse KL, Jensen-Shannon and the like of log-probabilities, as their papers have them."""
    mean = (p.exp() + q.exp()) / 2

    def kl(a: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        terms = [
            [0.0 if x == -math.inf else math.exp(x) * (x - y) for x, y in zip(*rows, strict=True)]
            for rows in zip(a.tolist(), of.tolist(), strict=True)
        ]
        return torch.tensor([math.fsum(row) for row in terms], dtype=torch.float64)

    def best(a: torch.Tensor) -> list[set[int]]:
        k = min(OVERLAP_K, a.shape[1])
        return [{*sorted(range(len(row)), key=lambda v: -row[v])[:k]} for row in a.tolist()]

    shared = [len(a & b) / len(a) for a, b in zip(best(p), best(q), strict=True)]
    return {
        "reverse_kls": kl(p, q).numpy(),
        "jensen_shannons": (kl(p, mean.log()) / 2 + kl(q, mean.log()) / 2).numpy(),
        "total_variations": 1 - torch.minimum(p.exp(), q.exp()).sum(1).numpy(),
        "top_k_overlaps": np.array(shared),
    }


def random_logits(n_rows: int, n_words: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(n_rows, n_words, generator=torch.manual_seed(seed))


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 99), st.booleans(), st.integers(1, 50))
def test_figures_against_float64(
    n_rows: int, n_words: int, seed: int, in_blocks: bool, width: int
) -> None:
    student, teacher = random_logits(n_rows, n_words, seed), random_logits(n_rows, n_words, -seed)
    ids, k = torch.arange(n_rows) % n_words, min(OVERLAP_K, n_words)
    with pytest.MonkeyPatch.context() as patch:
        blocks = module.vocab_blocks
        patch.setattr(module, "_id_blocks", lambda n, ids: blocks(ids, width))
        found = diverge(lazy_logits(student, in_blocks), lazy_logits(teacher), ids, n_words, 0, k)
    expected = by_hand(student, teacher, ids)
    np.testing.assert_allclose(found.losses, expected.pop("student_losses"), atol=1e-5)
    for name, values in expected.items():
        np.testing.assert_allclose(found.columns[name], values, atol=1e-5, err_msg=name)


def test_a_model_and_itself_have_exactly_no_divergence() -> None:
    logits = random_logits(50, 3000, 1)
    found = diverge(lazy_logits(logits), lazy_logits(logits), torch.arange(50), 3000)
    for name in ("kls", "reverse_kls", "jensen_shannons", "total_variations"):
        assert (found.columns[name] == 0).all(), name
    assert (found.columns["top_k_overlaps"] == 1).all()
    assert found.columns["same_top1"].all()
    assert (found.losses == found.columns["teacher_losses"]).all()


def test_losses_are_those_of_score() -> None:
    student, teacher = random_logits(70, 5000, 1), random_logits(70, 5000, 2)
    ids = torch.arange(70)
    found = diverge(lazy_logits(student), lazy_logits(teacher), ids, 5000)
    for logits, losses in ((student, found.losses), (teacher, found.columns["teacher_losses"])):
        alone = score_logits(lazy_logits(logits), ids, Requested())
        np.testing.assert_allclose(losses, alone.losses, rtol=1e-6)


def test_small_divergences_are_not_lost_in_rounding() -> None:
    """What int8 costs is of this size; a constant on all logits changes nothing."""
    teacher = random_logits(40, 3000, 1)
    teacher[:, 7] += 20
    student = teacher + 0.003 * random_logits(40, 3000, 2, 1.0) + 15
    found = diverge(lazy_logits(student), lazy_logits(teacher), torch.arange(40), 3000).columns[
        "kls"
    ]
    expected = by_hand(student, teacher, torch.arange(40))["kls"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-13)
    assert (found >= 0).all()


def test_an_impossible_word_in_an_early_block_adds_nothing_if_it_weighs_nothing() -> None:
    """The teacher's weight there underflows once a later block has the maximum."""
    student, teacher = torch.zeros(1, 6), torch.zeros(1, 6)
    student[0, 0], teacher[0, 5] = -torch.inf, 2000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_id_blocks", lambda n, ids: module.vocab_blocks(ids, 2))
        found = diverge(lazy_logits(student), lazy_logits(teacher), torch.tensor([5]), 6)
    assert found.columns["kls"][0] == pytest.approx(math.log(5))


def test_what_only_the_teacher_thinks_possible_is_infinitely_far() -> None:
    student, teacher = torch.zeros(2, 4), torch.zeros(2, 4)
    student[0, 3] = teacher[1, 3] = -torch.inf
    found = diverge(lazy_logits(student), lazy_logits(teacher), torch.tensor([0, 0]), 4)
    assert found.columns["kls"][0] == math.inf
    assert found.columns["kls"][1] == pytest.approx(math.log(4 / 3))


def test_heads_that_differ_in_padding_are_cut_and_normalised() -> None:
    student, teacher = random_logits(9, 23, 1), random_logits(9, 30, 2)
    ids = torch.arange(9)
    found = diverge(lazy_logits(student), lazy_logits(teacher), ids, 20)
    expected = by_hand(student[:, :20], teacher[:, :20], ids)
    np.testing.assert_allclose(found.losses, expected["student_losses"], atol=1e-5)
    np.testing.assert_allclose(found.columns["kls"], expected["kls"], atol=1e-5)
    for name, logits in (("student_cut", student), ("teacher_cut", teacher)):
        cut = logits.double().softmax(1)[:, 20:].sum(1)
        np.testing.assert_allclose(found.columns[name], cut, rtol=1e-5)


def test_no_more_logits_than_a_loss_needs_whatever_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asked for in blocks of the same size for 20 times the words."""
    monkeypatch.setattr(module, "BLOCK_LOGITS", 1 << 16)
    asked: list[int] = []

    def of(rows: slice, words: slice | None) -> torch.Tensor:
        assert words is not None
        asked.append((rows.stop - rows.start) * (words.stop - words.start))
        return torch.zeros(rows.stop - rows.start, words.stop - words.start)

    largest = []
    for n_words in (4_000, 80_000):
        asked.clear()
        logits = LazyLogits(of, n_words, True)
        diverge(logits, logits, torch.zeros(100, dtype=torch.long), n_words)
        largest.append(max(asked))
    assert largest[0] == largest[1] <= 1 << 16


@given(
    st.integers(2, 30), st.integers(1, 30), st.integers(0, 99), st.sampled_from([0.5, 3, 20, 60])
)
def test_what_is_saved_bounds_the_divergence(
    n_words: int, top_k: int, seed: int, scale: float
) -> None:
    top_k = min(top_k, n_words)
    student, teacher = random_logits(5, n_words, seed, scale), random_logits(5, n_words, -seed - 1)
    ids = torch.arange(5) % n_words
    columns = diverge(lazy_logits(student), lazy_logits(teacher), ids, n_words, top_k).columns
    q = teacher.double().log_softmax(1)
    known = torch.tensor(columns["teacher_top_ids"]).long()
    rest = q.exp().scatter(1, known, 0.0)
    np.testing.assert_allclose(
        np.exp(columns["teacher_rest_log_prob"]), rest.sum(1), rtol=1e-9, atol=0
    )
    own = torch.where(rest > 0, rest * q, 0.0).sum(1)
    np.testing.assert_allclose(columns["teacher_rest_p_log_p"], own, rtol=1e-6, atol=1e-15)
    names = ("top_ids", "top_log_probs", "rest_log_prob", "rest_p_log_p")
    saved = SavedTeacherRows(
        **{name: columns[f"teacher_{name}"] for name in names},
        losses=columns["teacher_losses"],
        entropies=columns["teacher_entropies"],
    )
    found = diverge_from_saved(lazy_logits(student), ids, saved, n_words)
    kls = by_hand(student, teacher, ids)["kls"]
    assert (found.columns["kls"] <= kls + 1e-12 * scale).all()
    assert (kls <= found.columns["kls_at_most"] + 1e-12 * scale).all()
    np.testing.assert_allclose(found.columns["kls"], columns["kls_in_part"], atol=1e-13 * scale)
    if top_k == n_words:
        np.testing.assert_allclose(found.columns["kls"], kls, atol=1e-12 * scale)
        np.testing.assert_allclose(found.columns["kls_at_most"], kls, atol=1e-12 * scale)


@given(
    st.integers(2, 30), st.integers(1, 30), st.integers(0, 99), st.sampled_from([0.5, 3, 20, 60])
)
def test_what_is_saved_bounds_the_other_measures(
    n_words: int, top_k: int, seed: int, scale: float
) -> None:
    top_k = min(top_k, n_words)
    k = min(OVERLAP_K, top_k)
    student, teacher = random_logits(5, n_words, seed, scale), random_logits(5, n_words, -seed - 1)
    ids = torch.arange(5) % n_words
    whole = diverge(lazy_logits(student), lazy_logits(teacher), ids, n_words, top_k, k).columns
    names = ("top_ids", "top_log_probs", "rest_log_prob", "rest_p_log_p")
    saved = SavedTeacherRows(
        **{name: whole[f"teacher_{name}"] for name in names},
        losses=whole["teacher_losses"],
        entropies=whole["teacher_entropies"],
    )
    found = diverge_from_saved(lazy_logits(student), ids, saved, n_words, k).columns
    for name in ("reverse_kls", "jensen_shannons", "total_variations"):
        assert (found[name] <= whole[name] + 1e-12 * scale).all(), name
        assert (whole[name] <= found[f"{name}_at_most"] + 1e-12 * scale).all(), name
        if top_k == n_words:
            for bound in (name, f"{name}_at_most"):
                np.testing.assert_allclose(found[bound], whole[name], atol=1e-12 * scale)
    assert (found["top_k_overlaps"] == whole["top_k_overlaps"]).all()
    if top_k < n_words and scale < 20:
        assert np.isinf(found["reverse_kls_at_most"]).all()


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-5])
def test_small_measures_are_not_lost_in_rounding(size: float) -> None:
    """To second order both KLs are V / 2 and Jensen-Shannon V / 8, V the variance of what
    parts the logits."""
    teacher = random_logits(20, 1000, 3).double()
    gaps = size * random_logits(20, 1000, 4, 1.0).double()
    found = diverge(
        lazy_logits(teacher + gaps), lazy_logits(teacher), torch.arange(20), 1000
    ).columns
    q = teacher.softmax(1)
    variance = (q * (gaps - (q * gaps).sum(1, keepdim=True)) ** 2).sum(1).numpy()
    np.testing.assert_allclose(found["kls"], variance / 2, rtol=3 * size + 2e-3)
    np.testing.assert_allclose(found["reverse_kls"], variance / 2, rtol=3 * size + 2e-3)
    np.testing.assert_allclose(found["jensen_shannons"], variance / 8, rtol=3 * size + 2e-3)


def test_models_that_share_no_word_are_as_far_apart_as_can_be() -> None:
    student = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    teacher = torch.tensor([[-math.inf, -math.inf, 0.0, 0.0]])
    found = diverge(lazy_logits(student), lazy_logits(teacher), torch.tensor([0]), 4, 0, 2).columns
    assert found["total_variations"][0] == 1.0
    assert found["jensen_shannons"][0] == pytest.approx(math.log(2))
    assert found["reverse_kls"][0] == math.inf
    assert found["top_k_overlaps"][0] == 0.0


# -- drafts ---------------------------------------------------------------------------------------


def accepted_by_hand(alphas: list[float], counted: list[bool], length: int) -> list[float]:
    """Σ over i of Π over j of α, from each start with as many counted positions after it."""
    found = []
    for t in range(len(alphas) - length + 1):
        if all(counted[t : t + length]):
            found.append(math.fsum(math.prod(alphas[t : t + i]) for i in range(1, length + 1)))
    return found


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_drafts_are_those_of_the_formula(tokens: list[tuple[float, bool]], length: int) -> None:
    alphas, counted = [a for a, _ in tokens], [is_counted for _, is_counted in tokens]
    found = d.accepted_drafts(np.array(alphas), np.array(counted), length)
    assert found.tolist() == pytest.approx(accepted_by_hand(alphas, counted, length))


@given(st.floats(0, 1), st.integers(1, 20))
def test_drafts_of_tokens_that_are_alike(alpha: float, length: int) -> None:
    counted = np.ones(length + 2, dtype=bool)
    found = d.accepted_drafts(np.full(length + 2, alpha), counted, length)
    assert len(found) == 3
    assert found[0] == pytest.approx(d.accepted_if_alike(alpha, length), rel=1e-6, abs=1e-12)
    assert d.accepted_if_alike(1.0, length) == length


# -- models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a`, `b`: random; `padded`: `a` with a wider head; `other`: another vocabulary."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), byte_tokenizer()
    save_checkpoint(folder / "a", llama(), tokenizer)
    other = llama()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_checkpoint(folder / "b", other, tokenizer)
    padded = llama()
    padded.resize_token_embeddings(272, mean_resizing=False)
    save_checkpoint(folder / "padded", padded, tokenizer)
    swapped = json.loads((folder / "a" / "tokenizer.json").read_text())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    save_checkpoint(folder / "other", llama(), tokenizer)
    (folder / "other" / "tokenizer.json").write_text(json.dumps(swapped))
    return folder


def oracle(student: Any, teacher: Any, ids: list[int]) -> dict[str, float]:
    """One forward per prefix, in float64."""
    sums = dict.fromkeys(("kl", "teacher_entropy", "student_loss", "teacher_loss"), 0.0)
    for t in range(1, len(ids)):
        prefix, target = torch.tensor([ids[:t]]), torch.tensor([ids[t]])
        with torch.no_grad():
            rows = [model(prefix).logits[0, -1:] for model in (student, teacher)]
        found = by_hand(rows[0], rows[1], target)
        sums["kl"] += found["kls"][0]
        sums["teacher_entropy"] += found["teacher_entropies"][0]
        sums["student_loss"] += found["student_losses"][0]
        sums["teacher_loss"] += found["teacher_losses"][0]
    return sums


def test_the_command_against_one_forward_per_prefix(models: Path) -> None:
    words = ["diverge", "--text", TEXT, "-m", models / "b", "--teacher", models / "a", "--json"]
    found = document(in_process(*words))
    (row,), totals = found["sequences"], found["totals"]
    pair = [Scorer(ModelChoice(str(models / name))).backend.model for name in ("b", "a")]
    expected = oracle(pair[0], pair[1], row["token_ids"])
    for name, value in expected.items():
        assert totals[name] == pytest.approx(value, abs=1e-4 * totals["n_scored"])
        assert totals[f"mean_{name}"] == totals[name] / totals["n_scored"]
    assert totals["cross_entropy"] == pytest.approx(totals["kl"] + totals["teacher_entropy"])
    assert math.fsum(filter(None, row["kls"])) == row["kl"]
    deltas = [
        math.exp(-ours) - math.exp(-theirs)
        for ours, theirs in zip(row["student_losses"][1:], row["teacher_losses"][1:], strict=True)
    ]
    assert row["token_delta_p"][1:] == pytest.approx(deltas)
    assert row["delta_p"]["rms"] == pytest.approx(np.sqrt(np.mean(np.square(deltas))))
    assert found["run"]["gold"] == "teacher"
    assert found["run"]["teacher"]["adapter"] is None
    assert found["run"]["teacher"]["weights_sha256"] != found["run"]["weights_sha256"]
    alone = document(in_process("score", "--text", TEXT, "-m", models / "b", "--json"))
    assert totals["student_loss"] == pytest.approx(alone["totals"]["total_loss"], rel=1e-6)


def test_measures_of_the_command_are_those_of_one_forward_per_prefix(models: Path) -> None:
    """Of rows, totals, bins and drafts, from the arrays of a float64 oracle."""
    from transformers import AutoModelForCausalLM

    words = ("diverge", "--model", models / "a", "--teacher", models / "b", "--json")
    found = document(in_process(*words, "--text", TEXT, "--draft-length", "3", "--overlap-k", "4"))
    (row,), totals = found["sequences"], found["totals"]
    ids = row["token_ids"]
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float64)
        for name in ("a", "b")
    )
    logits = []
    for model in (student, teacher):
        with torch.no_grad():
            logits.append(model(torch.tensor([ids])).logits[0, :-1])
    by_token = by_hand(*logits, torch.tensor(ids[1:]))
    by_token["acceptances"] = 1 - by_token["total_variations"]
    means = {
        "reverse_kls": "mean_reverse_kl", "jensen_shannons": "mean_jensen_shannon",
        "total_variations": "mean_total_variation", "acceptances": "mean_acceptance",
        "top_k_overlaps": "mean_top_k_overlap",
    }  # fmt: skip
    for name, mean in means.items():
        assert row[name][0] is None
        assert row[name][1:] == pytest.approx(by_token[name].tolist(), abs=1e-5), name
        assert row[mean] == totals[mean] == pytest.approx(by_token[name].mean(), abs=1e-5)
    alphas = by_token["acceptances"].tolist()
    drafts = accepted_by_hand(alphas, [True] * len(alphas), 3)
    assert row["n_draft_starts"] == len(drafts) == len(alphas) - 2
    assert totals["accepted_draft_tokens"] == pytest.approx(float(np.mean(drafts)), abs=1e-5)
    assert totals["tokens_per_step"] == totals["accepted_draft_tokens"] + 1
    alpha = float(np.mean(alphas))
    alike = totals["accepted_draft_tokens_if_alike"]
    assert alike == pytest.approx(alpha * (1 - alpha**3) / (1 - alpha), abs=1e-5)
    assert totals["overlap_k"] == 4
    positions = np.arange(1, len(ids))
    for each in totals["by_position"]:
        inside = (positions >= each["low"]) & (positions <= each["high"])
        assert each["n_scored"] == inside.sum()
        assert each["mean_acceptance"]["value"] == pytest.approx(
            np.array(alphas)[inside].mean(), abs=1e-5
        )
    assert sum(each["n_scored"] for each in totals["by_position"]) == len(alphas)
    entropies = by_token["teacher_entropies"]
    for each in totals["by_teacher_entropy"]:
        inside = (entropies >= each["low"]) & (entropies < (each["high"] or math.inf))
        assert each["n_scored"] == inside.sum()
        assert each["mean_kl"]["value"] == pytest.approx(by_token["kls"][inside].mean(), abs=1e-5)
    assert sum(each["n_scored"] for each in totals["by_teacher_entropy"]) == len(alphas)


def test_a_saved_teacher_bounds_the_other_measures(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "teacher.jsonl"
    words = ("diverge", "--model", models / "a", "--text", TEXT, "--json", "--draft-length", "3")
    saved = ("--save-teacher", path, "--teacher-top-k", "7", "--overlap-k", "4")
    whole = document(in_process(*words, "--teacher", models / "b", *saved))["totals"]
    done = in_process(*words, "--teacher", path, "--overlap-k", "4")
    found = document(done)["totals"]
    for name in ("jensen_shannon", "total_variation", "acceptance"):
        assert found[f"mean_{name}"] <= whole[f"mean_{name}"] + 1e-12, name
        assert whole[f"mean_{name}"] <= found[f"mean_{name}_at_most"] + 1e-12, name
    assert found["mean_reverse_kl"] <= whole["mean_reverse_kl"]
    assert found["mean_reverse_kl_at_most"] is None
    assert found["mean_top_k_overlap"] == whole["mean_top_k_overlap"]
    least, most = (
        found[name] for name in ("accepted_draft_tokens", "accepted_draft_tokens_at_most")
    )
    assert least <= whole["accepted_draft_tokens"] <= most
    assert "mean_acceptance_at_most" not in whole
    done = in_process(*words, "--teacher", path)
    assert document(done)["totals"]["overlap_k"] == 7
    assert "the 7 most probable ids are compared" in done.stderr


def test_drafts_of_resumed_runs_are_those_of_whole_ones(models: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"the cat {'sat ' * n}\n" for n in range(1, 7)))
    words = ("diverge", "--model", models / "a", "--teacher", models / "b", "--lines", texts)
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    draft = ("--draft-length", "4")
    assert in_process(*words, *draft, "-o", whole).exit_code == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    left = tmp_path / "part.jsonl.partial"
    left.write_bytes(b"".join(lines[:4]))
    done = in_process(*words, *draft, "-o", part, "--resume")
    assert done.exit_code == 0, done.stderr
    assert part.read_bytes().splitlines()[1:] == whole.read_bytes().splitlines()[1:]
    part.unlink()
    left.write_bytes(b"".join(lines[:4]))
    done = in_process(*words, "--draft-length", "5", "-o", part, "--resume")
    assert (done.exit_code, "--draft-length" in done.stderr) == (2, True)


def test_drafts_need_a_teacher(models: Path) -> None:
    words = ("diverge", "--model", models / "a", "--text", TEXT, "--label-smoothing", "0.1")
    done = in_process(*words, "--draft-length", "4")
    assert (done.exit_code, "is for two models" in done.stderr) == (2, True)
    assert "mean_acceptance" not in document(in_process(*words, "--json"))["totals"]


def test_identical_models_have_no_divergence_at_all(models: Path) -> None:
    words = ["diverge", "--text", TEXT, "-m", models / "a", "--teacher", models / "a", "--json"]
    totals = document(in_process(*words))["totals"]
    assert totals["kl"] == 0.0
    assert totals["same_top1"] == 1.0
    assert totals["delta_p"]["rms"] == 0.0
    assert totals["student_loss"] == totals["teacher_loss"]


def test_a_one_hot_gold_is_the_loss_of_score(models: Path) -> None:
    words = ["--text", TEXT, "-m", models / "a", "--json"]
    hard = document(in_process("diverge", *words, "--label-smoothing", "0"))
    scored = document(in_process("score", *words))
    assert hard["totals"]["cross_entropy"] == scored["totals"]["total_loss"]
    assert hard["sequences"][0]["token_losses"] == scored["sequences"][0]["token_losses"]
    assert hard["totals"]["teacher_entropy"] == 0
    assert hard["totals"]["kl"] == hard["totals"]["cross_entropy"]


def test_smoothed_gold_against_torch(models: Path) -> None:
    words = ["diverge", "--text", TEXT, "-m", models / "a", "--label-smoothing", "0.3", "--json"]
    found = document(in_process(*words))
    ids = torch.tensor([found["sequences"][0]["token_ids"]])
    model = Scorer(ModelChoice(str(models / "a"))).backend.model
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    expected = torch.nn.functional.cross_entropy(
        logits, ids[0, 1:], label_smoothing=0.3, reduction="sum"
    )
    assert found["totals"]["cross_entropy"] == pytest.approx(float(expected), rel=1e-5)
    gold = torch.full_like(logits, 0.3 / logits.shape[1])
    gold[torch.arange(len(logits)), ids[0, 1:]] += 0.7
    entropy = -(gold * gold.log()).sum()
    assert found["totals"]["teacher_entropy"] == pytest.approx(float(entropy))
    assert found["totals"]["kl"] == pytest.approx(float(expected - entropy), rel=1e-5)


def test_a_wider_head_is_cut_and_said(models: Path) -> None:
    words = ["diverge", "--text", TEXT, "--json", "-m", models / "a"]
    found = document(in_process(*words, "--teacher", models / "padded"))
    teacher = found["run"]["teacher"]
    assert (teacher["n_words"], teacher["n_logits"], teacher["n_logits_student"]) == (258, 272, 258)
    assert found["totals"]["mean_student_cut"] == pytest.approx(0, abs=1e-12)
    assert 0 < found["totals"]["mean_teacher_cut"] < 1
    assert found["totals"]["kl"] == pytest.approx(0, abs=1e-4)  # its first 258 words are a's


def test_another_vocabulary_is_refused(models: Path) -> None:
    words = ["diverge", "--text", TEXT, "-m", models / "a", "--teacher"]
    result = in_process(*words, models / "other")
    assert result.exit_code == 2
    assert "2 tokens differ, such as 'a'" in result.stderr
    assert in_process(*words, "demo").exit_code == 2


@pytest.mark.parametrize("flags", [["--batch-tokens", "9"], ["--context", "16", "--stride", "5"]])
def test_batches_do_not_matter_and_windows_are_those_of_score(
    models: Path, tmp_path: Path, flags: list[str]
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXT[n:] for n in range(0, 30, 3)) + "\n")
    words = [path, "--lines", "-m", models / "b", "--json"]
    teach = ["--teacher", models / "a"]
    found = document(in_process("diverge", *words, *teach, *flags))
    scored = document(in_process("score", *words, *flags))
    for ours, theirs in zip(found["sequences"], scored["sequences"], strict=True):
        assert ours["student_loss"] == pytest.approx(theirs["total_loss"], abs=1e-3)
    if flags[0] == "--batch-tokens":
        whole = document(in_process("diverge", *words, *teach))
        assert found["totals"]["kl"] == pytest.approx(whole["totals"]["kl"], abs=1e-3)


def test_a_saved_teacher_gives_the_same_but_for_what_it_says(models: Path, tmp_path: Path) -> None:
    path, texts = tmp_path / "a.teacher", tmp_path / "texts.jsonl"
    rows = [{"text": TEXT[n:]} for n in range(0, 20, 4)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["diverge", texts, "-m", models / "b", "--json"]
    save = ["--teacher", models / "a", "--save-teacher", path, "--teacher-top-k", "5"]
    whole = document(in_process(*words, *save))
    found = document(in_process(*words, "--teacher", path))
    for name in ("student_loss", "teacher_loss", "teacher_entropy", "same_top1", "delta_p"):
        assert found["totals"][name] == whole["totals"][name]
    at_least, at_most = (found["totals"][name] for name in ("kl", "kl_at_most"))
    assert at_least <= whole["totals"]["kl"] <= at_most
    assert found["totals"]["kl_is"] == "at least"
    assert found["totals"]["cross_entropy"] <= whole["totals"]["cross_entropy"]
    assert whole["totals"]["cross_entropy"] <= found["totals"]["cross_entropy_at_most"]
    measured = found["run"]["teacher"]["measured"]
    assert measured == whole["totals"]["saved"]
    assert measured["mean_kl"] == pytest.approx(whole["totals"]["mean_kl"])
    assert measured["mean_kl_in_part"] == pytest.approx(found["totals"]["mean_kl"])
    assert found["run"]["gold"] == "saved teacher"
    unknown = in_process("diverge", "--text", "new", "-m", models / "b", "--teacher", path)
    assert unknown.exit_code == 3
    assert "not_in_teacher" in unknown.stderr
    other = in_process(*words, "--teacher", path, "--context", "32")
    assert other.exit_code == 2
    assert "--context" in other.stderr
    wider = ["diverge", texts, "-m", models / "padded", "--json"]
    padded = document(in_process(*wider, "--teacher", path))  # cut to the teacher's words
    assert padded["totals"]["mean_student_cut"] > 0
    plain = document(in_process(*wider, "--teacher", models / "a"))["totals"]
    assert padded["totals"]["student_loss"] == pytest.approx(plain["student_loss"], rel=1e-6)
    assert padded["totals"]["kl"] <= plain["kl"] <= padded["totals"]["kl_at_most"]
    refused = ["diverge", texts, "-m", models / "padded", "--teacher", models / "a"]
    assert in_process(*refused, "--save-teacher", tmp_path / "x").exit_code == 2
    path.write_bytes(path.read_bytes()[:-20])
    assert in_process(*words, "--teacher", path).exit_code == 2


def test_what_is_saved_with_all_ids_is_exact(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.teacher"
    words = ["diverge", "--text", TEXT, "-m", models / "b", "--json"]
    save = ["--teacher", models / "a", "--save-teacher", path, "--teacher-top-k", "258"]
    whole = document(in_process(*words, *save))["totals"]
    found = document(in_process(*words, "--teacher", path))["totals"]
    assert found["kl"] == pytest.approx(whole["kl"], rel=1e-9)
    assert found["kl_at_most"] == pytest.approx(found["kl"], rel=1e-9)
    assert found["kl_is"] == "whole"


def test_long_texts_are_saved_in_pieces_and_found_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_files, "CHUNK", 7)
    path, texts = tmp_path / "a.teacher", tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": 3 * TEXT[n:]}) + "\n" for n in (0, 5, 0, 9)))
    words = ["diverge", texts, "-m", models / "b", "--json", "--context", "20", "--stride", "6"]
    save = ["--teacher", models / "a", "--save-teacher", path, "--teacher-top-k", "258"]
    whole = document(in_process(*words, *save))
    found = document(in_process(*words, "--teacher", path, "--batch-tokens", "64"))
    for ours, theirs in zip(found["sequences"], whole["sequences"], strict=True):
        assert ours["kls"][1:] == pytest.approx(theirs["kls"][1:], abs=1e-5)
        assert ours["teacher_losses"] == theirs["teacher_losses"]


def test_a_rejected_row_costs_neither_file(models: Path, tmp_path: Path) -> None:
    path, texts = tmp_path / "a.teacher", tmp_path / "texts.jsonl"
    texts.write_text('{"text": "abc"}\n{"texts": "abc"}\n{"text": "cab"}\n')
    words = ["diverge", texts, "-m", models / "b", "--teacher"]
    saved = in_process(*words, models / "a", "--save-teacher", path, "-o", tmp_path / "o.json")
    assert saved.exit_code == 3
    assert path.exists()
    assert in_process(*words, path, "--json").exit_code == 3


@pytest.mark.parametrize("gold", [["--teacher", "a"], ["--label-smoothing", "0.1"]])
def test_a_text_without_a_scored_token_has_no_figures(
    models: Path, tmp_path: Path, gold: list[str]
) -> None:
    gold = [str(models / word) if word == "a" else word for word in gold]
    texts = tmp_path / "texts.txt"
    texts.write_text("a\nabc\n")
    words = ["diverge", texts, "--lines", "-m", models / "b", "--bos", "never", "--json", *gold]
    alone, other = document(in_process(*words))["sequences"]
    assert alone["n_scored"] == 0
    assert alone["kl"] is None
    assert alone["kls"] == [None]
    assert other["n_scored"] == 2
    if gold[0] == "--teacher":
        path = tmp_path / "x.teacher"
        document(in_process(*words, "--save-teacher", path))
        again = document(in_process(*words[:-2], "--teacher", path))
        assert again["sequences"][0]["kl"] is None


def test_a_teacher_that_gives_nan_rejects_the_row(models: Path, tmp_path: Path) -> None:
    broken = llama()
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    folder = save_checkpoint(tmp_path / "nan", broken, byte_tokenizer())
    words = ["diverge", "--text", TEXT, "-m", models / "a", "--teacher", folder, "--json"]
    found = document(in_process(*words), exit_code=3)
    assert found["rejected"][0]["reason"] == "nan_loss"
    assert "teacher" in found["rejected"][0]["message"]


def test_what_is_infinite_is_null_and_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seqloss_cli.backends.torch import teacher as teaching

    plain = teaching.diverge_each

    def odd(*arguments: Any) -> Any:
        (found,) = plain(*arguments)
        found.columns["kls"][2] = found.columns["teacher_losses"][3] = math.inf
        return [found]

    monkeypatch.setattr(teaching, "diverge_each", odd)
    words = ["diverge", "--text", TEXT, "-m", models / "b", "--teacher", models / "a"]
    found = document(in_process(*words, "--json"))
    (row,), totals = found["sequences"], found["totals"]
    assert row["inf_kls"] == [3]
    assert row["inf_teacher_losses"] == [4]
    assert totals["flags"] == {"inf_kl": 1, "inf_teacher_loss": 1}
    assert totals["kl"] is totals["teacher_loss"] is None
    assert totals["student_loss"] > 0
    assert "nan" not in in_process(*words, "--summary").stdout


def test_the_vocabularies_are_compared_whatever_tokenizer_is_named(models: Path) -> None:
    words = ["diverge", "--text", TEXT, "-m", models / "a", "--tokenizer", models / "a"]
    assert in_process(*words, "--teacher", models / "other").exit_code == 2


@pytest.mark.parametrize("damage", ["end", "header", "column"])
def test_a_damaged_file_is_named(models: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.teacher"
    words = ["diverge", "--text", TEXT, "-m", models / "b", "--teacher"]
    document(in_process(*words, models / "a", "--save-teacher", path, "--json"))
    lines = path.read_text().splitlines()
    if damage == "end":
        lines[-1] = "[]"
    elif damage == "header":
        lines[0] = lines[0].replace("n_words", "m_words")
    else:
        lines[1] = lines[1].replace('"losses":"', '"losses":"AAAA')
    path.write_text("\n".join(lines) + "\n")
    result = in_process(*words, path)
    assert result.exit_code == (1 if damage == "column" else 2)
    assert str(path) in result.stderr


def test_the_table_at_80_columns(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["diverge", "--text", TEXT, "-m", models / "b", "--teacher", models / "a"]
    shown = in_process(*words).stdout
    assert max(map(len, shown.splitlines())) <= 80
    for part in ("KL divergence", "gold entropy", "same favourite", "delta p, RMS", "teacher"):
        assert part in shown


def test_rows_of_ids_with_labels_count_where_the_labels_do(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ids = [0, 5, 6, 7, 8]
    path.write_text(json.dumps({"input_ids": ids, "labels": [-100, -100, 6, 7, -100]}) + "\n")
    words = ["diverge", path, "-m", models / "b", "--teacher", models / "a", "--json"]
    (row,) = document(in_process(*words))["sequences"]
    assert row["n_scored"] == 2
    assert row["kl"] == math.fsum([row["kls"][2], row["kls"][3]])


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ([], "--teacher"),
        (["--teacher", "demo", "--label-smoothing", "0.1"], "--label-smoothing"),
        (["--label-smoothing", "1"], "--label-smoothing"),
        (["--label-smoothing", "0.1", "--teacher-dtype", "float32"], "--teacher-dtype"),
        (["--label-smoothing", "0.1", "--save-teacher", "x"], "--save-teacher"),
        (["--teacher", "demo", "--teacher-top-k", "3"], "--save-teacher"),
        (["--teacher", "demo", "--format", "openai"], "openai"),
    ],
)
def test_flags_that_contradict_each_other(words: list[str], flag: str) -> None:
    result = in_process("diverge", "--text", "x", *words)
    assert result.exit_code == 2
    assert flag in result.stderr


def test_out_of_memory_halves_the_batch(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seqloss_cli.backends.torch import teacher as teaching

    texts = [TEXT[n:] for n in range(6)]
    plain, n_failed = teaching.diverge_each, 0

    def scarce(students: Any, teacher: Any, targets: Any, *rest: Any) -> Any:
        nonlocal n_failed
        if len(targets) > 100:
            n_failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(students, teacher, targets, *rest)

    def kls() -> list[float]:
        scorer = Scorer(ModelChoice(str(models / "b")), batches=BatchPolicy())
        gold = TeacherScorer.with_teacher(scorer, ModelChoice(str(models / "a")))
        from seqloss_cli.api import as_samples

        return [divergence_totals(each).total("kl") for each in gold.diverge(as_samples(texts))]  # type: ignore[arg-type,misc]

    expected = kls()
    monkeypatch.setattr(teaching, "diverge_each", scarce)
    assert kls() == pytest.approx(expected, abs=1e-3)
    assert n_failed


def test_a_bigram_pair_by_hand() -> None:
    """H, H(q, p) and KL of two distributions that can be written down."""
    q, p = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    found = diverge(lazy_logits(p.log()), lazy_logits(q.log()), torch.tensor([0]), 3)
    assert found.columns["teacher_entropies"][0] == pytest.approx(1.5 * math.log(2))
    assert found.columns["kls"][0] == pytest.approx(0.25 * math.log(2))
    assert found.losses[0] == pytest.approx(math.log(4))
    assert not found.columns["same_top1"][0]


def test_a_teacher_of_shorter_texts_sets_the_context(models: Path, tmp_path: Path) -> None:
    log_probs = torch.zeros(258, 258).log_softmax(-1)
    short = save_checkpoint(tmp_path / "short", bigram_model(log_probs, 16), byte_tokenizer())
    words = ["diverge", "--text", TEXT, "-m", models / "a", "--teacher", short]
    run = document(in_process(*words, "--json"))["run"]
    assert run["context"] == 16
    assert "teacher" in run["context_source"]
    assert in_process(*words, "--context", "32").exit_code == 2


def test_smoothing_of_one_or_more_is_refused(models: Path) -> None:
    with pytest.raises(UsageError, match="--label-smoothing"):
        TeacherScorer.with_smoothing(Scorer(ModelChoice(str(models / "a"))), 1.0)


def test_the_python_api(models: Path) -> None:
    import seqloss_cli

    (found,) = seqloss_cli.diverge(TEXT, str(models / "a"), str(models / "b"))
    totals = seqloss_cli.divergence_totals(found)  # type: ignore[arg-type]
    words = ["diverge", "--text", TEXT, "-m", models / "b", "--teacher", models / "a", "--json"]
    assert totals.total("kl") == document(in_process(*words))["totals"]["kl"]


# -- estimates ----------------------------------------------------------------------------------


def test_quantiles_of_clusters() -> None:
    values, clusters = np.arange(100.0), np.repeat(np.arange(10), 10)
    found = cluster_quantiles(values, clusters, (0.5, 1.0), 300, 0)
    assert found[0.5].value == 49.0  # the least that half of the values do not exceed
    assert found[1.0].value == 99.0
    assert found[0.5].low < 49 < found[0.5].high  # type: ignore[operator]
    shuffled = np.random.default_rng(0).permutation(100)
    again = cluster_quantiles(values[shuffled], clusters[shuffled], (0.5,), 300, 0)
    assert again[0.5] == found[0.5]
    assert cluster_quantiles(values, 0 * clusters, (0.5,), 300, 0)[0.5].low is None


def test_a_share_stays_between_0_and_1() -> None:
    ones, counts = np.array([10.0, 9.0, 10.0, 10.0, 10.0]), np.full(5, 10.0)
    found = share_estimate(ones, counts)
    assert found.value == pytest.approx(49 / 50)
    assert 0 < found.low < 49 / 50 < found.high <= 1  # type: ignore[operator]
    whole = share_estimate(counts, counts)
    assert whole.high == 1
    assert whole.low < 0.5  # type: ignore[operator]  # five documents are few
    sizes = np.array([1.0, 2, 5, 7, 3])
    same = share_estimate(29 * sizes, 56 * sizes)
    assert same.high - same.low > 0.05  # type: ignore[operator]


def test_estimates_are_over_documents(models: Path) -> None:
    from seqloss_cli.api import as_samples

    gold = TeacherScorer.with_teacher(
        Scorer(ModelChoice(str(models / "b"))), ModelChoice(str(models / "a"))
    )
    documents, sums = DocumentSums(), []
    for each in gold.diverge(as_samples([TEXT[n:] for n in range(5)])):
        totals = divergence_totals(each)  # type: ignore[arg-type]
        documents.add(totals, each.counted_values())  # type: ignore[union-attr]
        sums.append(totals)
    whole = sum(sums[1:], sums[0])
    means = documents.means()
    assert means["kl"].value == pytest.approx(whole.mean("kl"))
    assert means["kl"].n == 5
    difference = whole.mean("student_loss") - whole.mean("teacher_loss")  # type: ignore[operator]
    assert means["loss_difference"].value == pytest.approx(difference)
    assert means["rms_delta_p"].value == pytest.approx(whole.mean("squared_delta_p") ** 0.5)  # type: ignore[operator]


# -- several models beside one teacher ------------------------------------------------------------


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=3), st.integers(2, 40), st.integers(0, 99),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_each_of_several_students_is_as_if_it_were_alone(
    widths: list[int], width: int, seed: int, in_blocks: bool, of_teacher: bool
) -> None:
    """To the last bit, heads of other widths included; the teacher computes no id twice."""
    computed: list[tuple[int, int, int, int]] = []
    ids, whole = torch.arange(7) % min(*widths, width), random_logits(7, width, -seed - 1)

    def compute(rows: slice, some: slice | None) -> torch.Tensor:
        some = some or slice(0, width)
        computed.append((rows.start, rows.stop, some.start, some.stop))
        return whole[rows, some]

    teacher = LazyLogits(compute, width, of_teacher)
    heads = [(lazy_logits(random_logits(7, n, seed + k), in_blocks), min(n, width))
             for k, n in enumerate(widths)]  # fmt: skip
    k = min(OVERLAP_K, width, *widths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_id_blocks", lambda n, ids: module.vocab_blocks(ids, 5))
        patch.setattr(module, "BLOCK_ROWS", 3)
        together = module.diverge_each(heads, teacher, ids, 0, k)
        assert len(widths) == 1 or len(set(computed)) == len(computed)
        alone = [diverge(head, teacher, ids, n, 0, k) for head, n in heads]
    for one, other in zip(together, alone, strict=True):
        assert one.columns.keys() == other.columns.keys()
        np.testing.assert_array_equal(one.losses, other.losses)
        for name, values in other.columns.items():
            np.testing.assert_array_equal(one.columns[name], values)


TEXTS = ("the cat sat on the mat, and the dog on the cat", "x", "", "a dog, a cat and a mat: " * 5)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def run_of(texts: Path, teacher: object, *names: object, options: tuple[object, ...] = ()) -> Any:
    flags = [word for name in names for word in ("-m", name)]
    words = ("diverge", texts, *flags, "--teacher", teacher, "--draft-length", 2, *options)
    found = document(in_process(*words, "--json"), exit_code=3)
    hold_document(found)
    return found


@pytest.mark.parametrize("options", [("--context", "16", "--stride", "5"), ("--batch-tokens", "9")])
def test_several_models_have_the_figures_of_runs_alone(
    models: Path, texts: Path, options: tuple[object, ...]
) -> None:
    names = [f"{models / 'a'}#float64", models / "b", models / "padded"]
    found = run_of(texts, models / "b", *names, options=options)
    rows, totals = found["sequences"], found["totals"]
    assert [row["model"] for row in rows[:3]] == list(map(str, names))
    assert [each["name"] for each in found["run"]["models"]] == list(map(str, names))
    assert [each["dtype"] for each in found["run"]["models"]] == ["float64", "float32", "float32"]
    assert (totals["n_sequences"], totals["n_rejected"], len(rows)) == (3, 1, 9)
    assert totals["best"] == str(models / "b")
    for n, name in enumerate(names):
        alone = run_of(texts, models / "b", name, options=options)
        own = [{k: v for k, v in row.items() if k != "model"} for row in rows[n::3]]
        assert own == alone["sequences"]
        part = {k: v for k, v in totals["models"][n].items() if k != "model"}
        counts = ("n_rejected", "rejections", "n_empty_lines")
        assert part == {k: v for k, v in alone["totals"].items() if k not in counts}
    assert len(found["rejected"]) == 1


def test_differences_of_models_are_of_documents_in_pairs(
    models: Path, texts: Path, tmp_path: Path
) -> None:
    names, text = (models / "a", models / "b", models / "padded"), texts.read_text()
    many = tmp_path / "many.jsonl"
    many.write_text(text + "".join(json.dumps({"text": TEXT[n:]}) + "\n" for n in range(12)))
    found = run_of(many, models / "b", *names)
    kls = [np.array([row["kl"] for row in found["sequences"][n::3]]) for n in range(3)]
    counts = np.array([row["n_scored"] for row in found["sequences"][::3]])
    differences = found["totals"]["kl_differences"]
    assert [each["model"] for each in differences] == [str(names[0]), str(names[2])]
    for n, each in zip((0, 2), differences, strict=True):
        mean = (kls[n] - kls[1]).sum() / counts.sum()
        assert each["value"] == pytest.approx(mean)
        # The linearised variance of a ratio (Cochran 1977, section 6.3).
        rest = kls[n] - kls[1] - mean * counts
        variance = len(counts) / (len(counts) - 1) * (rest**2).sum() / counts.sum() ** 2
        assert each["standard_error"] == pytest.approx(math.sqrt(variance))
        assert each["less"] == str(models / "b")


def test_several_models_beside_a_saved_teacher(models: Path, texts: Path, tmp_path: Path) -> None:
    saved = tmp_path / "t.jsonl"
    words = ("--save-teacher", saved, "--teacher-top-k", 9)
    run_of(texts, models / "b", models / "a", options=words)
    names = (models / "a", models / "b")
    found = run_of(texts, saved, *names)
    for n, name in enumerate(names):
        alone = run_of(texts, saved, name)
        own = [{k: v for k, v in row.items() if k != "model"} for row in found["sequences"][n::2]]
        assert own == alone["sequences"]
        assert found["totals"]["models"][n]["kl_at_most"] == alone["totals"]["kl_at_most"]
        assert found["totals"]["models"][n]["kl_is"] == "at least"


def test_a_row_that_one_model_cannot_score_is_of_none(models: Path, tmp_path: Path) -> None:
    broken = llama()
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    folder = save_checkpoint(tmp_path / "nan", broken, byte_tokenizer())
    words = ("diverge", "--text", TEXT, "-m", models / "a", "-m", folder, "--teacher", models / "b")
    found = document(in_process(*words, "--json"), exit_code=3)
    assert found["rejected"][0]["reason"] == "nan_loss"
    assert (found["sequences"], found["totals"]["best"]) == ([], None)


def test_lines_and_tables_of_several_models(models: Path, texts: Path, tmp_path: Path) -> None:
    words = ("diverge", texts, "-m", models / "a", "-m", models / "b", "--teacher", models / "b")
    by_row = in_process(*words, "--format", "csv").stdout
    assert hold_text(in_process(*words, "--jsonl").stdout.encode()) == 9
    assert hold_csv(by_row, "diverge", None) == 7
    lines = list(csv.DictReader(StringIO(by_row)))
    kept = [str(models / "a"), str(models / "b")]
    assert [line["model"] for line in lines if not line["reason"]] == kept * 3
    by_token = in_process(*words, "--format", "csv", "--level", "token").stdout
    hold_csv(by_token, "diverge", "token")
    tokens = [line for line in csv.DictReader(StringIO(by_token)) if not line["reason"]]
    assert {line["model"] for line in tokens} == {*kept}
    assert len(tokens) == sum(int(line["n_tokens"]) for line in lines if not line["reason"])
    shown = in_process(*words, COLUMNS="200").stdout
    assert "least KL: b; models by the ends of their paths" in shown
    assert all(each in shown for each in ("perplexity", "reverse KL", "the teacher"))
    rows = tmp_path / "rows.parquet"
    done = in_process(*words, "-o", rows)
    hold_parquet(rows)
    assert "2 models, least mean KL 0" in done.stderr
    refused = in_process("report", rows, "-o", tmp_path / "page.html")
    assert refused.exit_code != 0
    assert "rows of 2 models" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--resume", "-o", "x.jsonl"), "of 2 --model rows belong to no single run"),
        (("--save-teacher", "x.jsonl"), "--save-teacher is measured with one model"),
        (("--report", "x.html"), "--report shows one model"),
        (("--shard", "1/2"), "of 2 --model rows"),
    ],
)
def test_what_several_models_do_not_go_with(
    models: Path, texts: Path, options: tuple[str, ...], said: str
) -> None:
    words = ("diverge", texts, "-m", models / "a", "-m", models / "b", "--teacher", models / "b")
    done = in_process(*words, *options)
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


def test_models_that_cannot_stand_beside_each_other(models: Path, tmp_path: Path) -> None:
    def error(*words: object, n: int = 2) -> str:
        done = in_process("diverge", "--text", TEXT, *words)
        assert done.exit_code == n, done.stderr
        return str(done.stderr)

    a, teacher = models / "a", ("--teacher", models / "b")
    assert "is named twice" in error("-m", a, "-m", a, *teacher)
    short = llama()
    short.config.max_position_embeddings = 32
    folder = save_checkpoint(tmp_path / "short", short, byte_tokenizer())
    said = error("-m", a, "-m", folder, *teacher)
    assert "its context is 32" in said
    assert "--context N gives all of them one" in said
    assert in_process(
        "diverge", "--text", TEXT, "-m", a, "-m", folder, *teacher, "--context", "32", "--summary"
    ).exit_code == 0  # fmt: skip
    assert "its tokenizer_sha256 is" in error("-m", a, "-m", models / "other", *teacher)
    assert "'int3' after # is none of int8, auto" in error("-m", f"{a}#int3", "-m", a, *teacher)
    assert "give --teacher" in error("-m", a, "-m", models / "b", "--label-smoothing", "0.1")


def test_the_page_has_bins_and_drafts(models: Path, texts: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = run_of(texts, models / "b", models / "a", options=("--report", page))
    totals, shown = found["totals"], page.read_text()
    for title in ("By position in the sequence", "By gold&#39;s entropy, nats", "Drafts of 2"):
        assert title in shown, title
    for figure in (totals["accepted_draft_tokens"], totals["tokens_per_step"]):
        assert f"{figure:.4f}" in shown
    for each in (*totals["by_position"], *totals["by_teacher_entropy"]):
        assert f"{each['mean_acceptance']['value']:.4f}" in shown
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(found | {"totals": totals | {"n_draft_starts": "many"}}))
    refused = in_process("report", broken, "-o", page, "--force")
    assert refused.exit_code == 2
    assert "its totals: field 'n_draft_starts' is not a count: 'many'" in refused.stderr
