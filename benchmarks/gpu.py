"""One GPU, bfloat16, a Llama of about a billion parameters: the share of the plain rate of matrix
products, and lm-evaluation-harness beside it. Without a GPU the report says that there was none."""

from __future__ import annotations

import statistics
from functools import partial

import goals
import torch
from figures import TOLERANCE, Check, Figure, Found, Times, difference, ratio_figure, table
from rates import PlainRate, Shapes
from settings import Settings
from sides import Harness, Ours, Watch
from workload import billion_checkpoint, ragged, split_cleanly, tokenizer

DTYPE, BATCH_TOKENS, TEXTS_PER_ROUND = "bfloat16", 16_384, 8
"""A round takes that many times 16 documents: a GPU is done with 16 before it is warm."""


def run(settings: Settings) -> Found:
    if not torch.cuda.is_available():
        rows = [["none: nothing of this part was measured"]]
        return Found(tables=[table("gpu", "GPU", ["device"], rows)])
    return measured(settings, "cuda")


def measured(settings: Settings, device: str) -> Found:
    """`device` is cuda, or cpu to try this code without a GPU."""
    folder, found, tokens = billion_checkpoint(), Found(), tokenizer()
    ours = Ours(folder, DTYPE, "eager", device=device, tokens=BATCH_TOKENS)
    pairs = Ours(folder, DTYPE, "eager", pairs=True, device=device, tokens=BATCH_TOKENS)
    peer = Harness(folder, DTYPE, device).pairs("float32")
    rounds = [_texts(settings, number) for number in range(settings.rounds)]
    split = [split_cleanly(tokens, texts) for texts in rounds]
    with Watch(ours.scorer) as watch:
        ours.texts(rounds[0])
    counts = [len(tokens.encode(r, add_special_tokens=False).ids) for _, r in split[0]]
    worst = difference(pairs.pairs(split[0]), peer(split[0]), counts)
    found.checks.append(Check("gpu", "seqloss and the harness", worst, TOLERANCE[DTYPE]))
    rate = PlainRate(Shapes(folder), watch.mean_tokens, getattr(torch, DTYPE), device)
    times, shares = Times(), []
    for number, texts in enumerate(rounds):
        n_fed = sum(len(tokens.encode(text).ids) - 1 for text in texts)
        before = rate.measure()[0]
        times.round(number, {"texts": partial(ours.texts, texts)})
        flop = rate.shapes.flop(n_fed, n_fed) / times["texts"][-1]
        shares.append(2 * flop / (before + rate.measure()[0]))
        sides = {"ours": partial(pairs.pairs, split[number]), "peer": partial(peer, split[number])}
        times.round(number, sides)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    note = f"{name}; {ours.scorer.backend.path} at batches of {watch.mean_tokens} tokens"
    found.figures = [
        Figure("gpu", "share of plain `F.linear`'s rate", statistics.median(shares),
               goals.GPU_PRODUCTS, ratios=shares, note=note),
        ratio_figure("gpu", "times lm-evaluation-harness, float32 softmax", times["peer"],
                     times["ours"], goals.GPU_HARNESS),
    ]  # fmt: skip
    return found


def _texts(settings: Settings, number: int) -> list[str]:
    numbers = range(number * TEXTS_PER_ROUND, (number + 1) * TEXTS_PER_ROUND)
    return [text for n in numbers for text in ragged(settings.longest, n)]
