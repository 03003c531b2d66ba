"""Run by lm-evaluation-harness' own environment: one task by several sides, as JSON on stdout.

On stdin: `rows` of multiple choice, `texts` for rolling log-likelihoods, the `model` directory, and
`sides`, each with the settings of `HFLM` or, where they have a `base_url`, of `local-completions`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any


def tasks(rows: list[dict[str, Any]], texts: list[str]) -> list[Any]:
    import datasets
    from lm_eval.api.task import ConfigurableTask

    def made(name: str, docs: list[dict[str, Any]], **config: Any) -> Any:
        own = {"test": datasets.Dataset.from_list(docs)}
        return ConfigurableTask(
            config={"task": name, "custom_dataset": lambda **_: own, "dataset_path": name,
                    "test_split": "test", **config}
        )  # fmt: skip

    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True}
               for name in ("acc", "acc_norm", "acc_mutual_info")]  # fmt: skip
    choice = made(
        "choice", rows, output_type="multiple_choice", doc_to_text="{{prompt}}",
        doc_to_target="{{answer}}", doc_to_choice="{{choices}}", metric_list=metrics,
    )  # fmt: skip
    rates = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    rolling = made(
        "rolling", [{"text": text} for text in texts], output_type="loglikelihood_rolling",
        doc_to_text="", doc_to_target="{{text}}", metric_list=rates,
    )  # fmt: skip
    return [choice, rolling]


def peer(model: str, settings: dict[str, Any]) -> Any:
    if "base_url" in settings:
        from lm_eval.models.openai_completions import LocalCompletionsAPI

        return LocalCompletionsAPI(tokenizer=model, tokenizer_backend="huggingface", **settings)
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return HFLM(pretrained=loaded, tokenizer=tokenizer, backend="causal", **settings)


def measured(asked: dict[str, Any], settings: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=peer(asked["model"], settings), tasks=tasks(asked["rows"], texts),
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    samples = {
        name: [each["resps"] for each in sorted(rows, key=lambda each: each["doc_id"])]
        for name, rows in found["samples"].items()
    }
    return {"samples": samples, "results": found["results"]}


def main() -> None:
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        found = [measured(asked, each["settings"], each["texts"]) for each in asked["sides"]]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
