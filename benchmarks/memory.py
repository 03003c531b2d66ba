"""Peak memory of one long sequence beside that of the backbone's own activations.

Each point is a process of its own: it loads the model, notes what it holds (VmRSS), resets the
high-water mark, works, and reads the mark (VmHWM). Freed memory is handed back at once meanwhile,
so that what is measured is what is in use: where it is kept for the next batch, as in a run, the
mark also rises by the gaps between blocks, which differ from run to run (beside the others, for the
vocabulary that the goal names).
"""

from __future__ import annotations

import ctypes
import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import goals
import numpy as np
import torch
from figures import Figure, Found, table
from settings import Settings
from sides import hand_back_freed_memory, load_scorer
from workers import in_process
from workload import wide_checkpoint

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import BatchPolicy
from seqloss_cli.core.records import Sample, SequenceScore

MB = 1e6
SIDES = ("seqloss", "backbone")
Points = dict[tuple[str, int], dict[str, float]]
"""Bytes of each side, by dtype and vocabulary."""


def run(settings: Settings) -> Found:
    """The backbone's activations do not depend on the vocabulary: they are measured once."""
    points: Points = {}
    backbone: dict[str, float] = {}
    as_run: Points = {}
    for vocabulary in settings.vocabularies:
        folder = str(wide_checkpoint(vocabulary, settings.memory_tokens + 8))
        for dtype in settings.dtypes:
            if dtype not in backbone:
                backbone[dtype] = _peak(settings, folder, dtype, "backbone")
            peak = _peak(settings, folder, dtype, "seqloss")
            points[dtype, vocabulary] = {"seqloss": peak, "backbone": backbone[dtype]}
            if vocabulary == settings.vocabulary_as_run and dtype == settings.dtypes[0]:
                as_run[dtype, vocabulary] = {
                    what: _peak(settings, folder, dtype, what, keep=True) for what in SIDES
                }
        shutil.rmtree(folder)  # gigabytes
    found = _found(settings, points)
    for title, some in (("in use", points), ("freed memory kept", as_run)):
        found.tables.append(_table(f"Peak above weights, {title}", some))
    return found


def _peak(settings: Settings, folder: str, dtype: str, what: str, keep: bool = False) -> float:
    arguments = {"folder": folder, "dtype": dtype, "what": what, "keep": keep}
    return float(in_process("memory_point", settings, **arguments)["peak"])


def _found(settings: Settings, points: Points) -> Found:
    found = Found()
    beyond = {key: (p["seqloss"] - p["backbone"]) / MB for key, p in points.items()}
    for dtype in settings.dtypes:
        own = {v: mb for (d, v), mb in beyond.items() if d == dtype}
        title = f"{dtype}, {settings.memory_tokens} tokens, hidden 1024"
        for vocabulary, mb in own.items():
            found.figures.append(
                Figure(
                    "memory",
                    f"{title}, vocabulary {vocabulary}: beyond the backbone's activations",
                    mb,
                    goals.MEMORY_MB,
                    at_most=True,
                    unit="MB",
                )
            )
        growth = own[max(own)] - own[min(own)]
        name = f"{title}: growth of that from vocabulary {min(own)} to {max(own)}"
        note = "the goal says flat, without a number; a tenth of the allowance is taken for noise"
        figure = Figure("memory", name, growth, goals.MEMORY_MB / 10, True, unit="MB", note=note)
        found.figures.append(figure)
    return found


def _table(title: str, points: Points) -> Any:
    rows = [
        [
            d,
            v,
            *(f"{p[what] / MB:.0f}" for what in SIDES),
            f"{(p[SIDES[0]] - p[SIDES[1]]) / MB:.0f}",
        ]
        for (d, v), p in points.items()
    ]
    columns = ["dtype", "vocabulary", "seqloss, MB", "backbone alone, MB", "difference, MB"]
    return table("memory", title, columns, rows)


def point(settings: Settings, folder: str, dtype: str, what: str, keep: bool) -> dict[str, float]:
    """Bytes beyond what is held once the model is loaded; with `keep` freed memory is kept."""
    scorer = load_scorer(folder, dtype, batches=BatchPolicy(tokens=4096))
    model = scorer.backend.model
    for weight in model.parameters():  # pages mapped from the file would come and go
        weight.data = weight.data.clone()
    if not keep:
        hand_back_freed_memory(1 << 20)
    ids = np.random.default_rng(4).integers(2, 30_000, settings.memory_tokens)

    def score() -> None:
        (result,) = scorer.score([Sample("long", "b", input_ids=ids)], Requested())
        assert isinstance(result, SequenceScore)
        assert result.scored.sum() == len(ids) - 1

    @torch.inference_mode()
    def backbone() -> None:
        model.get_decoder()(input_ids=torch.from_numpy(ids)[None], use_cache=False)

    return {"peak": _peak_beyond(score if what == "seqloss" else backbone)}


def _peak_beyond(work: Callable[[], Any]) -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    work()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024.0 * int(line.split()[1])
    raise KeyError(name)
