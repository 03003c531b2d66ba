"""Make samples/rollouts.jsonl: answers drawn from the demo model, with log-probabilities beside.

`rollout_log_probs` are those of a sampler at temperature 0.7 with top-p 0.9, `old_log_probs` those
of a trainer that computes in float32. Run it from the repository's root: it gives the same file
each time.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL, TEMPERATURE, TOP_P, N_NEW = "seqloss_cli/demo", 0.7, 0.9, 24
PROMPTS = (
    "The list is", "A model of language", "Each line of the file", "The loss of a token",
    "Texts are", "In the end", "The first row", "A word is",
)  # fmt: skip


def main() -> None:
    """Draw, and write."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    bos = tokenizer.bos_token_id
    with Path("samples/rollouts.jsonl").open("w") as out:
        for n, prompt in enumerate(PROMPTS):
            before = tokenizer.encode(prompt, add_special_tokens=False)
            before = before if bos is None else [bos, *before]
            ids, drawn, exact = [*before], [], []
            for _ in range(N_NEW):
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0, -1].double()
                kept = torch.log_softmax(logits / TEMPERATURE, 0)
                order = kept.argsort(descending=True)
                n_kept = 1 + int((kept[order].exp().cumsum(0) < TOP_P).sum())
                kept[order[n_kept:]] = -torch.inf
                kept = torch.log_softmax(kept, 0)
                token = int(torch.multinomial(kept.exp(), 1))
                ids.append(token)
                drawn.append(round(float(kept[token]), 6))
                exact.append(round(float(torch.log_softmax(logits, 0)[token]), 6))
                if token == tokenizer.eos_token_id:
                    break
            row = {
                "id": f"rollout-{n}",
                "prompt_ids": before,
                "response_ids": ids[len(before) :],
                "rollout_log_probs": drawn,
                "old_log_probs": exact,
            }
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
