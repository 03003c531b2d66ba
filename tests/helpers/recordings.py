"""Made-up recordings: logits, tokens drawn of them, and what engines with faults would write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from seqloss_cli.core.columns import N_TOP_LOGITS, TEMPERATURES
from seqloss_cli.metrics.fault_fits import Observed
from seqloss_cli.metrics.sampling_fits import LogitShapes


def kept(logits: Any, temperature: float = 1.0, **truncation: float) -> Any:
    """Logits of a sampler, M x V, -inf where an id is not kept: one row at a time, from the text of
    the papers."""
    found = logits / temperature
    for row in found:
        order = np.argsort(-row)
        if "top_k" in truncation:
            row[order[int(truncation["top_k"]) :]] = -np.inf
        probabilities = np.exp(log_softmax(row))
        if "top_p" in truncation:
            n = 1 + int((np.cumsum(probabilities[order]) < truncation["top_p"]).sum())
            row[order[n:]] = -np.inf
        if "min_p" in truncation:
            row[probabilities < truncation["min_p"] * probabilities.max()] = -np.inf
    return found


def bfloat16(values: Any) -> Any:
    """Values rounded to bfloat16, to nearest even."""
    import torch

    return torch.tensor(values, dtype=torch.float64).to(torch.bfloat16).double().numpy()


@dataclass
class Made:
    """Rows of one length, with the logits of their tokens."""

    logits: Any
    """Shape M x V."""
    ids: Any
    rows: Any
    n_prompt: int

    @classmethod
    def of(
        cls, seed: int, n_rows: int = 12, n: int = 40, n_prompt: int = 8, vocab: int = 60,
        **sampler: float,
    ) -> Made:  # fmt: skip
        """Rows whose tokens were drawn by a sampler."""
        random = np.random.default_rng(seed)
        logits = random.normal(0, random.uniform(1.5, 3), (n_rows * n, vocab))
        logits += random.normal(0, 2, (n_rows * n, 1))
        noise = random.gumbel(size=logits.shape)
        ids = np.argmax(kept(logits, **sampler) + noise, axis=1)
        return cls(logits, ids, np.repeat(np.arange(n_rows), n), n_prompt)

    def of_ids(self, values: Any) -> Any:
        """The value of each token, of M x V."""
        return values[np.arange(len(self.ids)), self.ids]

    @property
    def log_probs(self) -> Any:
        """ln p of each token, shape M."""
        return self.of_ids(log_softmax(self.logits, axis=1))

    @property
    def places(self) -> Any:
        """Each token's place in its row."""
        return np.arange(len(self.ids)) % (self.rows == 0).sum()

    @property
    def sampled(self) -> Any:
        """Tokens of the responses."""
        return self.places >= self.n_prompt

    def drawn(self, temperature: float = 1.0, **truncation: float) -> Any:
        """ln p of each token as a sampler has it."""
        return self.of_ids(log_softmax(kept(self.logits, temperature, **truncation), axis=1))

    def observed(self, recorded: Any, with_logits: bool = True, **changes: Any) -> Observed:
        """What a check sees; the first token of a row has no score."""
        scored = np.where(self.places == 0, np.nan, self.log_probs)
        recorded = np.where(self.places == 0, np.nan, recorded)
        shapes = None
        if with_logits:
            known = np.isfinite(recorded) & np.isfinite(scored)
            z = self.logits[known]
            columns = {
                "log_normalisers": logsumexp(z, axis=1),
                "tempered_log_sums": np.stack([logsumexp(z / t, axis=1) for t in TEMPERATURES], 1),
                "top_logits": -np.sort(-z, axis=1)[:, :N_TOP_LOGITS],
            }
            shapes = LogitShapes.of(scored[known], columns)
        fields = {
            "sampled": self.sampled,
            "rows": self.rows,
            "prompts": np.full(len(self.ids), self.n_prompt),
            "ids": self.ids,
            "shapes": shapes,
        }
        return Observed(recorded, scored, **{**fields, **changes})
