"""How two runs differ: what makes their numbers other numbers, and what only may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POLICIES = ("command", "bos", "eos", "special_tokens", "boundary", "pairs", "gold", "teacher")
"""What the tokens of a text are, and which of them count: other numbers for the same model."""
MODEL = ("model", "revision", "weights_sha256")
TOKENIZER = ("tokenizer_sha256",)
TOKENS = ("bos_token_id", "eos_token_id")
"""Policies, too, between runs with one tokenizer."""
NUMERICS = ("context", "stride", "dtype", "quantization", "adapter")
"""The same tokens, seen with more or less before them, more or less exactly, or by a model that was
adapted."""


@dataclass(frozen=True, slots=True)
class Difference:
    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        if isinstance(self.first, Mapping) and isinstance(self.second, Mapping):
            a, b = self.first, self.second
            keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
            parts = (f"{key} {_shown(a.get(key))} and {_shown(b.get(key))}" for key in keys)
            return f"{self.key}: {', '.join(parts)}"
        return f"{self.key} {_shown(self.first)} and {_shown(self.second)}"


def run_differences(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    keys: Sequence[str] = (*MODEL, *TOKENIZER, *POLICIES, *NUMERICS),
) -> list[Difference]:
    """Of the keys that change numbers: a name alone does not where the weights are the same."""
    same_weights = first.get("weights_sha256") == second.get("weights_sha256") is not None
    skipped = ("model", "revision") if same_weights else ()
    same_tokenizer = first.get("tokenizer_sha256") == second.get("tokenizer_sha256")
    more = TOKENS if same_tokenizer and "bos" in keys else ()
    return [
        Difference(key, first.get(key), second.get(key))
        for key in (*keys, *more)
        if first.get(key) != second.get(key) and key not in skipped
    ]


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value).lower() if value is True else str(value)
    return text if len(text) <= 40 else text[:12] + "…"
