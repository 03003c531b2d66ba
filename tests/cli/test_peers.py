"""Figures beside those that other programs compute: `make test-peers`, in their environment."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT, document, in_process

pytestmark = pytest.mark.peers
DEMO = ROOT / "seqloss_cli" / "demo"
NAMES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
TOLERANCE = 1e-4  # nats per token, rule 11


def hellaswag_shaped(n_rows: int) -> list[dict[str, Any]]:
    """Prompts with four endings of unequal length, one of them right; some twice, some not in
    ASCII."""
    draw = random.Random(0)
    words = (ROOT / "README.md").read_text().split()
    words = [word for word in words if word.isalpha()] + ["naïve", "größer", "日本語"]
    rows: list[dict[str, Any]] = []
    for _ in range(n_rows):
        endings = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(4)]
        if draw.random() < 0.2:
            endings[3] = endings[draw.randrange(3)]
        prompt = " ".join(draw.choices(words, k=draw.randint(1, 20)))
        rows.append({"prompt": prompt, "choices": endings, "answer": draw.randrange(4)})
    return rows


def blimp_shaped(n_rows: int) -> list[dict[str, Any]]:
    """Two sentences that differ in the order of two words, and no prompt."""
    rows = []
    for made in hellaswag_shaped(n_rows):
        words = [*made["prompt"].split(), "end"]
        swapped = words[:-2] + words[-2:][::-1]
        pair = [" ".join(words), " ".join(swapped)]
        rows.append({"prompt": "", "choices": pair, "answer": 0})
    return rows


def by_the_harness(rows: list[dict[str, Any]], delimiter: str) -> list[dict[str, Any]]:
    import datasets
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = ConfigurableTask(
        config={
            "task": "made",
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
            "dataset_path": "made",
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "doc_to_choice": "{{choices}}",
            "target_delimiter": delimiter,
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in NAMES
            ],
        }
    )
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    peer = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4, add_bos_token=True
    )
    found = simple_evaluate(model=peer, tasks=[task], bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"]["made"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(rows)
    return samples


@pytest.mark.parametrize(
    ("rows", "delimiter"), [(hellaswag_shaped(60), " "), (blimp_shaped(40), "")]
)
def test_accuracies_are_those_of_lm_evaluation_harness(
    tmp_path: Path, rows: list[dict[str, Any]], delimiter: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["rank", path, "-m", "demo", "--separator", delimiter, "--pmi", "--json"]
    mine = document(in_process(*words))
    theirs = by_the_harness(rows, delimiter)
    for row, found, peer in zip(rows, mine["sequences"], theirs, strict=True):
        n = len(row["choices"])
        logs = [resp[0][0] for resp in peer["resps"]]
        assert [c["boundary"] for c in found["choices"]] == ["clean"] * n
        for choice, conditional, alone in zip(found["choices"], logs, logs[n:], strict=False):
            much = TOLERANCE * choice["n_tokens"] + TOLERANCE
            assert choice["log_prob"] == pytest.approx(conditional, abs=much)
            assert choice["log_prob_alone"] == pytest.approx(alone, abs=much)
        assert {name: found["correct"][name] for name in NAMES} == {
            name: bool(peer[name]) for name in NAMES
        }
    assert 0 < mine["totals"]["accuracies"]["acc_norm"]["value"] < 1


# -- texts ----------------------------------------------------------------------------------------

TEXTS = ["Return a list of the names.", "The list is sorted in place. ", "naïve 日本語 größer"]
BOS = 0
RATES = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def harness(**settings: Any) -> tuple[Any, Any]:
    """The demo model in the harness, and its tokenizer, which adds BOS."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    peer = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1, **settings)
    return peer, tokenizer


def rolling(peer: Any, texts: list[str]) -> list[float]:
    """What `loglikelihood_rolling` gives for each text, in nats."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    found: list[float] = peer.loglikelihood_rolling(requests, disable_tqdm=True)
    return found


def rates_by_the_harness(peer: Any, texts: list[str]) -> dict[str, float]:
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask

    documents = datasets.Dataset.from_list([{"text": text} for text in texts])
    task = ConfigurableTask(
        config={
            "task": "made",
            "custom_dataset": lambda **_: {"test": documents},
            "dataset_path": "made",
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": name} for name in RATES],
        }
    )
    found = simple_evaluate(model=peer, tasks=[task], bootstrap_iters=0)["results"]["made"]
    return {name: found[f"{name},none"] for name in RATES}


def ours(path: Path, *flags: object) -> dict[str, Any]:
    return document(in_process("score", path, *flags, "--json"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def log_probs(found: dict[str, Any]) -> list[float]:
    return [row["log_prob"] for row in found["sequences"]]


def test_texts_are_scored_as_by_the_harness_without_a_second_bos(tmp_path: Path) -> None:
    peer, _ = harness(add_bos_token=False)
    path = write(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    found = ours(path, "--bos", "always", "--bos-token", BOS)
    assert log_probs(found) == pytest.approx(rolling(peer, TEXTS), abs=30 * TOLERANCE)
    rates, totals = rates_by_the_harness(peer, TEXTS), found["totals"]
    assert totals["bits_per_byte"] == pytest.approx(rates["bits_per_byte"], rel=1e-5)
    assert 2 ** totals["bits_per_byte"] == pytest.approx(rates["byte_perplexity"], rel=1e-5)
    n_ends = sum(text != text.strip() for text in TEXTS)
    per_word = math.exp(totals["total_loss"] / (totals["n_words"] + n_ends))
    assert per_word == pytest.approx(rates["word_perplexity"], rel=1e-4)


def test_by_default_the_harness_scores_a_second_bos(tmp_path: Path) -> None:
    """Its tokenizer adds a BOS to the one that is put before each text."""
    peer, tokenizer = harness()
    rows = [{"input_ids": [BOS, *tokenizer(text)["input_ids"]]} for text in TEXTS]
    assert all(row["input_ids"][:2] == [BOS, BOS] for row in rows)
    found = ours(write(tmp_path / "rows.jsonl", rows))
    assert log_probs(found) == pytest.approx(rolling(peer, TEXTS), abs=30 * TOLERANCE)


def test_longer_texts_are_scored_in_the_windows_of_the_harness(tmp_path: Path) -> None:
    peer, tokenizer = harness(add_bos_token=False, max_length=64)
    text = (ROOT / "LICENSE").read_text()[:1500]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 3 * 64
    path = write(tmp_path / "rows.jsonl", [{"input_ids": [BOS, *ids]}])
    found = ours(path, "--context", 64, "--stride", 64, "--bos-token", 1)
    assert log_probs(found) == pytest.approx(rolling(peer, [text]), abs=len(ids) * TOLERANCE)
