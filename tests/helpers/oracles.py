"""Slow and obvious truths: float64, one sequence and one window at a time, no batches.

They know neither padding nor packs, blocks, caches, shared prefixes or compilers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from seqloss_cli.core.records import SequenceScore

CONTEXT, STRIDE = 32, 12
"""The windows of most tests of backends."""


@torch.no_grad()
def reference_losses(model: Any, ids: list[int]) -> list[float | None]:
    """The slow oracle: one forward per prefix, float64 log-softmax of the last position."""
    losses: list[float | None] = [None]
    for t in range(1, len(ids)):
        logits = model(torch.tensor([ids[:t]])).logits[0, -1].double()
        losses.append(-float(logits.log_softmax(-1)[ids[t]]))
    return losses


@torch.no_grad()
def plain_losses(model: Any, ids: list[int]) -> list[float]:
    logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    return (-logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]).tolist()


@dataclass
class Truth:
    log_probs: dict[int, np.ndarray]
    """Target to its distribution, float64."""
    context_lengths: dict[int, int]


@torch.no_grad()
def truth_of(
    model: Any, ids: list[int], has_bos: bool, context: int = CONTEXT, stride: int = STRIDE
) -> Truth:
    truth = Truth({}, {})
    last = len(ids) - 1
    unscored, end = 1, min(context, last)
    fed = ids[:end]
    while unscored <= last:
        logits = model(input_ids=torch.tensor([fed])).logits[0].double()
        for target in range(unscored, end + 1):
            seen = len(fed) - (end - target)
            assert target not in truth.log_probs
            truth.log_probs[target] = logits[seen - 1].log_softmax(-1).numpy()
            truth.context_lengths[target] = seen
        unscored, end = end + 1, min(end + stride, last)
        fed = [ids[0], *ids[end - (context - 1) : end]] if has_bos else ids[end - context : end]
    return truth


def losses_of(truth: Truth, ids: list[int]) -> list[float]:
    return [-truth.log_probs[t][ids[t]] for t in range(1, len(ids))]


def assert_alternatives_right(
    score: SequenceScore, ids: list[int], truth: Truth, tolerance: float
) -> None:
    for t in range(1, len(ids)):
        log_probs = truth.log_probs[t]
        at_target = log_probs[ids[t]]
        surely_above = int((log_probs > at_target + tolerance).sum())
        maybe_above = int((log_probs > at_target - tolerance).sum()) - 1
        assert 1 + surely_above <= score.ranks[t] <= 1 + maybe_above
        entropy = -float((np.exp(log_probs) * log_probs).sum())
        assert score.entropies[t] == pytest.approx(entropy, abs=10 * tolerance)
        best = np.sort(log_probs)[::-1][:3]
        np.testing.assert_allclose(score.top_log_probs[t], best, rtol=0, atol=tolerance)
        np.testing.assert_allclose(log_probs[score.top_ids[t]], best, rtol=0, atol=tolerance)
        assert len(set(score.top_ids[t].tolist())) == 3


def assert_true(exact: Any, score: SequenceScore, tolerance: float = 1e-4) -> None:
    """Losses, context lengths, ranks up to ties, entropies and alternatives are the oracle's."""
    sequence, ids = score.sequence, score.sequence.token_ids.tolist()
    truth = truth_of(exact, ids, sequence.begins_with_bos)
    assert score.scored.tolist() == [False] + [True] * (len(ids) - 1)
    np.testing.assert_allclose(score.losses[1:], losses_of(truth, ids), rtol=0, atol=tolerance)
    assert score.context_lengths[1:].tolist() == list(truth.context_lengths.values())
    assert_alternatives_right(score, ids, truth, tolerance)


def calibration_by_hand(rows: list[dict[str, Any]], n_bins: int) -> tuple[float, list[list[float]]]:
    """Straight from the definition, a token at a time."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(n_bins)]
    for each in rows:
        for t, top in enumerate(each["top_logprobs"]):
            if top is None:
                continue
            p = math.exp(top[0]["log_prob"])
            n = next(n for n in range(n_bins) if p <= (n + 1) / n_bins or n == n_bins - 1)
            members[n].append((p, top[0]["id"] == each["token_ids"][t]))
    total = sum(map(len, members))
    error, bins = 0.0, []
    for found in members:
        sure = sum(p for p, _ in found) / len(found) if found else 0.0
        right = sum(is_right for _, is_right in found) / len(found) if found else 0.0
        error += len(found) / total * abs(right - sure)
        bins.append([len(found), sure, right])
    return error, bins
