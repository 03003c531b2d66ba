"""Prompts with responses against lm-evaluation-harness, batch 16.

The harness sorts its requests by length, so that of 256 documents each of its batches holds
neighbours in length. A round is one such batch: 16 documents of one stratum, split in halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import goals
from figures import TOLERANCE, Check, Found, Side, Times, difference, ratio_figure
from profiling import limits, profile_round
from rates import Shapes
from settings import STRATA, Settings
from sides import Harness, Ours, PairTexts
from tokenizers import Tokenizer
from workload import (
    checkpoint,
    neighbours,
    prompts_with_endings,
    ragged,
    split_cleanly,
    tokenizer,
)

Peers = dict[str, Callable[[Sequence[PairTexts]], list[float]]]


def _lengths(tokens: Tokenizer, pairs: Sequence[PairTexts]) -> list[int]:
    return [len(tokens.encode(response, add_special_tokens=False).ids) for _, response in pairs]


def _peers(model: str, dtype: str) -> Peers:
    """In bfloat16 the harness also with its softmax in float32."""
    peer = Harness(checkpoint(model), dtype)
    peers: Peers = {"its default": peer.pairs()}
    if dtype != "float32":
        peers["float32 softmax"] = peer.pairs("float32")
    return peers


def _checks(
    section: str, title: str, ours: dict[str, Ours], peers: Peers, pairs: Sequence[PairTexts]
) -> Iterator[Check]:
    counts = _lengths(tokenizer(), pairs)
    for mode, side in ours.items():
        found = side.pairs(pairs)
        for name, peer in peers.items():
            tolerance = TOLERANCE["float32" if "float32" in title else "bfloat16"]
            worst = difference(found, peer(pairs), counts)
            yield Check(section, f"{title}, {mode} and the harness ({name})", worst, tolerance)


def _measured(rounds: Sequence[Sequence[PairTexts]], ours: dict[str, Ours], peers: Peers) -> Times:
    times = Times()
    for number, pairs in enumerate(rounds):
        sides: dict[str, Side] = {mode: partial(side.pairs, pairs) for mode, side in ours.items()}
        sides |= {name: partial(peer, pairs) for name, peer in peers.items()}
        times.round(number, sides)
    return times


def run(settings: Settings, model: str, dtype: str) -> Found:
    """Documents of neighbouring lengths; with `mixed_harness` also of all lengths at once."""
    tokens, found, title = tokenizer(), Found(), f"{model}, {dtype}"
    ours = {m: Ours(checkpoint(model), dtype, m, pairs=True) for m in settings.modes}
    peers = _peers(model, dtype)

    warm = [split_cleanly(tokens, texts) for texts in neighbours(settings.longest, 4)]
    for pairs in warm[:2]:
        for side in ours.values():
            side.pairs(pairs)
    small = min(warm, key=lambda pairs: sum(len(a) for a, _ in pairs))
    found.checks += _checks("lm-eval", title, ours, peers, small)
    kinds = {"neighbours in length": neighbours(settings.longest, settings.rounds)}
    if settings.mixed_harness:
        kinds["all lengths in a batch"] = [ragged(settings.longest, n) for n in range(STRATA)]
    for kind, texts in kinds.items():
        rounds = [split_cleanly(tokens, some) for some in texts]
        together = partial(ours["eager"].pairs, [pair for pairs in rounds for pair in pairs])
        shares = profile_round(together, Shapes.of(checkpoint(model)))
        times = _measured(rounds, ours, peers)
        notes = {peer: limits(times.ratio(peer, "eager"), shares) for peer in peers}
        for mode in ours:
            for peer in peers:
                found.figures.append(
                    ratio_figure(
                        "lm-eval",
                        f"{title}, {mode}; {kind}; {peer}",
                        times[peer],
                        times[mode],
                        goals.HARNESS[dtype, mode],
                        of_sums=True,
                        note=notes[peer],
                    )
                )
    return found


def run_shared(settings: Settings) -> Found:
    """Rows that begin alike, GPT-2 small's shape in float32, eager."""
    found, modes = Found(), ("eager",)
    ours: Any = {m: Ours(checkpoint("gpt2"), "float32", m, pairs=True) for m in modes}
    peers = _peers("gpt2", "float32")
    kinds = {
        "HellaSwag-like": (settings.hellaswag, goals.HELLASWAG),
        "one prompt": (settings.one_prompt, goals.ONE_PROMPT),
    }
    for kind, (shape, goal) in kinds.items():
        title = f"{kind}: {shape[0]} of {shape[1]} tokens, {shape[2]} responses of {shape[3]}"
        rounds = [prompts_with_endings(shape, seed) for seed in range(settings.rounds)]
        warm = prompts_with_endings(shape, 99)[:16]
        found.checks += _checks("shared", f"{title}, float32", ours, peers, warm)
        ours["eager"].pairs(rounds[0])  # warms up
        shares = profile_round(
            partial(ours["eager"].pairs, rounds[0]), Shapes.of(checkpoint("gpt2"))
        )
        times = _measured(rounds, ours, peers)
        theirs = times["its default"]
        note = limits(times.ratio("its default", "eager"), shares)
        for mode in ours:
            name = f"{title}; {mode}"
            figure = ratio_figure("shared", name, theirs, times[mode], goal, note=note)
            found.figures.append(figure)
    return found
