"""A backend in one module, as small as one can be: losses of a target, and nothing beside."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.builders import N_BYTE_IDS, byte_tokenizer
from seqloss_cli.core.backend import (
    Batch,
    Capabilities,
    LoadedTokenizer,
    OpenedModel,
    Requested,
    TokenScores,
)
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, SpeedPolicy, WindowPolicy


class LossesOnly:
    """The loss of a target is its id."""

    capabilities = Capabilities(longest_packed=64)
    warnings = ("a made-up backend",)
    n_too_large = 0

    def vocab_size(self) -> int:
        return N_BYTE_IDS

    def describe(self) -> dict[str, Any]:
        return {"model": "made up", "path": "remote"}

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        return TokenScores(batch.targets.astype(np.float64))


def open_model(
    choice: ModelChoice,
    context: int | None,
    stride: int | None,
    batches: BatchPolicy,
    speed: SpeedPolicy,
) -> OpenedModel:
    loaded = LoadedTokenizer(
        tokenizer=byte_tokenizer(),
        tokenizer_name="bytes",
        bos_ids=(0,),
        eos_ids=(1,),
        n_ids=N_BYTE_IDS,
        warnings=(),
    )
    windows = WindowPolicy(context or 64, "made up", stride or 32)
    return OpenedModel(loaded, windows, lambda: (LossesOnly(), batches))
