"""Figures beside those that other programs compute: `make test-peers`, in their environment."""

from __future__ import annotations

import json
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
    ours = document(in_process(*words))
    theirs = by_the_harness(rows, delimiter)
    for row, found, peer in zip(rows, ours["sequences"], theirs, strict=True):
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
    assert 0 < ours["totals"]["accuracies"]["acc_norm"]["value"] < 1
