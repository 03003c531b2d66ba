"""Rows that begin alike: the engine with common prompts computed once, against the same engine,
batched, with `--no-share-prefix`.

Both sides run in this process, alternating; medians of the ratios of neighbours are printed. The
model has GPT-2 small's shape and random weights (speed does not depend on them), float32.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import Sample, SequenceScore, TokenSequence
from seqloss_cli.scoring.pipeline import score_samples

CONTEXT = 1024
Shape = tuple[int, int, int, int]
SHAPES: dict[str, Shape] = {
    "one prompt of 512, 64 responses of 16": (1, 512, 64, 16),
    "HellaSwag-like: 32 prompts of 60, 4 endings of 25": (32, 60, 4, 25),
}
GOALS = {"one prompt of 512, 64 responses of 16": 12.0}
HELLASWAG_GOAL = 1.8


def sequences(shape: Shape, seed: int = 0) -> list[TokenSequence]:
    """Rows of random ids; the responses' tokens count, all are scored."""
    n_prompts, prompt, n_responses, response = shape
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n_prompts):
        beginning = random.integers(0, 50257, prompt)
        for _ in range(n_responses):
            ids = np.concatenate([beginning, random.integers(0, 50257, response)])
            mask = np.arange(len(ids)) >= prompt
            wanted = np.ones(len(ids), dtype=bool)
            sample = Sample(str(len(rows)), "benchmark")
            rows.append(TokenSequence(sample, None, ids, None, mask, wanted, "none", "none", {}))
    return rows


def run(backend: TorchBackend, rows: list[TokenSequence], share: bool) -> list[SequenceScore]:
    windows = WindowPolicy(CONTEXT, "benchmark", CONTEXT)
    found = score_samples(
        [row.sample for row in rows],
        lambda samples: [rows[int(sample.id)] for sample in samples],
        backend,
        windows,
        Requested(),
        BatchPolicy(share_prefix=share),
    )
    return [score for score in found if isinstance(score, SequenceScore)]


def seconds(backend: TorchBackend, rows: list[TokenSequence], share: bool) -> float:
    start = time.perf_counter()
    run(backend, rows, share)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    backend = TorchBackend(model, CONTEXT, share_prefix=True)
    for name, shape in SHAPES.items():
        rows = sequences(shape)
        apart, shared = run(backend, rows, False), run(backend, rows, True)  # also warms up
        worst = max(
            float(np.abs(a.losses - b.losses).max()) for a, b in zip(apart, shared, strict=True)
        )
        pairs = []
        for _ in range(options.repeats):
            pairs.append((seconds(backend, rows, False), seconds(backend, rows, True)))
        ratio = statistics.median(a / b for a, b in pairs)
        goal = GOALS.get(name, HELLASWAG_GOAL)
        median = [statistics.median(side) for side in zip(*pairs, strict=True)]
        print(f"{name}: {ratio:.2f} times faster (goal {goal}); medians {median[0]:.2f} s and "
              f"{median[1]:.2f} s; losses differ by at most {worst:.1e} nats")  # fmt: skip


if __name__ == "__main__":
    main()
