"""Measure the demo model with this program and write its model card: `python tools/model_card.py`.

Held-out bits per byte is the corpus figure of `seqloss score` over the held-out documents, each a
sequence of its own; the yardsticks compress the same documents joined in one file.
"""

from __future__ import annotations

import bz2
import lzma
from pathlib import Path

import train_demo
from demo_corpus import documents, held_out_text
from seqloss_cli import ModelChoice, Sample, Scorer, Totals, totals_of
from seqloss_cli.core.records import SequenceScore

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = {
    "seqloss_cli/demo": "demo",
    "samples/checkpoints/step-600": str(ROOT / "samples/checkpoints/step-600"),
    "samples/checkpoints/step-100": str(ROOT / "samples/checkpoints/step-100"),
}


def held_out_totals(model: str) -> Totals:
    """Corpus sums of the held-out documents under a model."""
    samples = [Sample(d.name, d.name, text=d.text) for d in documents() if d.held_out]
    totals = Totals()
    for outcome in Scorer(ModelChoice(name=model)).score(samples):
        assert isinstance(outcome, SequenceScore), outcome
        totals += totals_of(outcome)
    return totals


def main() -> None:
    found = documents()
    held_out = held_out_text(found).encode()
    train_bytes = sum(len(d.text.encode()) for d in found if not d.held_out)
    rows = [
        f"| `{shown}` | {held_out_totals(name).bits_per_byte:.4f} |"
        for shown, name in CHECKPOINTS.items()
    ]
    for name, compressed in (
        ("`xz -9`", lzma.compress(held_out, preset=9)),
        ("`bzip2 -9`", bz2.compress(held_out)),
    ):
        rows.append(f"| {name} | {8 * len(compressed) / len(held_out):.4f} |")
    card = CARD.format(
        n_train=sum(not d.held_out for d in found),
        n_held_out=sum(d.held_out for d in found),
        train_bytes=train_bytes,
        held_out_bytes=len(held_out),
        rows="\n".join(rows),
        steps=train_demo.STEPS,
        batch=train_demo.BATCH,
        context=train_demo.CONTEXT,
        rate=train_demo.PEAK_RATE,
        seed=train_demo.SEED,
    )
    (ROOT / "seqloss_cli" / "demo" / "README.md").write_text(card)


CARD = """\
---
license: apache-2.0
language: en
---

# The seqloss demo model

A causal language model that is small enough to travel inside the package, so that the first
command works without a network and the tests run on trained weights. It knows the style of Python
documentation and nothing else: use it to try `seqloss`, not to judge texts.

| | |
|---|---|
| architecture | Llama: 5 layers, hidden size 128, 4 heads, feed-forward size 384, tied embeddings |
| parameters | 1,590,656, stored in float16 (3.2 MB) |
| context | {context} tokens |
| tokenizer | byte-level BPE, 4096 ids; puts `<|begin_of_text|>` before a text |
| data | the documentation in a CPython 3.11 installation: the topics of `pydoc_data.topics` and \
the docstrings of the standard library (© Python Software Foundation, PSF licence) |
| split | by document, by a hash of its name: {n_train} documents ({train_bytes:,} bytes) to train \
on, {n_held_out} ({held_out_bytes:,} bytes) held out; a paragraph that occurs in several documents \
is kept once |
| training | {steps} steps of {batch} × {context} tokens, AdamW, peak rate {rate} with a cosine, a \
tenth of the merges undone at random three times over, seed {seed}; under 30 minutes on two CPU \
cores |
| made by | `python tools/train_demo.py`; this card by `python tools/model_card.py` |

Held-out bits per byte, measured with `seqloss` (a sequence for each document, context 512, stride
256); lower is better:

| | bits per byte |
|---|---|
{rows}

`samples/checkpoints/` holds two earlier states of the same run, after 100 and 600 steps.
"""


if __name__ == "__main__":
    main()
