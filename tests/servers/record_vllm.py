"""Record answers of a running vLLM for tests/data: generations of the demo model.

    vllm serve seqloss_cli/demo --dtype float32 --max-model-len 512 --logprobs-mode MODE …
    python tests/servers/record_vllm.py http://127.0.0.1:8420 MODE

It asks at temperature 0.7 and top-p 0.9 for ids and their log-probabilities, and writes
tests/data/vllm-MODE.jsonl: answers as they came, less what no check reads.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

PROMPTS = (
    "The list is", "A model of language", "Each line of the file", "The loss of a token",
    "Texts are", "In the end", "The first row", "A word is", "It says", "What follows",
)  # fmt: skip
KEPT = ("prompt_token_ids", "token_ids", "prompt_logprobs", "logprobs", "finish_reason")


def ask(url: str, prompt: str, seed: int) -> Any:
    """Return the answer to a prompt."""
    body = {
        "prompt": prompt, "max_tokens": 24, "temperature": 0.7, "top_p": 0.9, "seed": seed,
        "logprobs": 0, "prompt_logprobs": 0, "return_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body | {"model": MODEL}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


MODEL = "seqloss_cli/demo"


def main(url: str, mode: str) -> None:
    """Ask, and write."""
    global MODEL
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        MODEL = json.load(answer)["data"][0]["id"]
    with Path(f"tests/data/vllm-{mode}.jsonl").open("w") as out:
        for n, prompt in enumerate(PROMPTS):
            (choice,) = ask(url, prompt, n)["choices"]
            row = {"id": f"{mode}-{n}", "prompt": prompt,
                   "choices": [{name: choice[name] for name in KEPT}]}  # fmt: skip
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
