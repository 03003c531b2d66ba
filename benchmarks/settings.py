"""How much is measured: the default run, `--quick`, and `--full`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = HERE / ".cache"
SECTIONS = (
    "products",
    "textbook",
    "lm-eval",
    "minicons",
    "shared",
    "memory",
    "around",
    "corpus",
    "profile",
)
MODELS, DTYPES, MODES = ("gpt2", "llama"), ("float32", "bfloat16"), ("eager", "compiled")
STRATA = 16
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Settings:
    """Rounds end at `rounds`, or after `seconds` of a part once `LEAST_ROUNDS` are done: the report
    says how many there were."""

    name: str = "default"
    threads: int = 2
    rounds: int = 7
    seconds: float = 90.0
    longest: int = 1000
    """Tokens of the longest document."""
    models: tuple[str, ...] = MODELS
    dtypes: tuple[str, ...] = DTYPES
    modes: tuple[str, ...] = MODES
    mixed_harness: bool = False
    """Also give lm-evaluation-harness batches of documents of all lengths."""
    minicons_models: tuple[str, ...] = ("gpt2",)
    hellaswag: tuple[int, int, int, int] = (32, 60, 4, 25)
    """Prompts, their tokens, endings of each, their tokens."""
    one_prompt: tuple[int, int, int, int] = (1, 512, 64, 16)
    slow_rounds: int = LEAST_ROUNDS
    """Of a peer that takes a minute a round: minicons, and the harness on one long prompt."""
    vocabularies: tuple[int, ...] = (32_000, 152_000, 256_000)
    memory_tokens: int = 8192
    corpus_rows: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Multiples of the first, whose tokens are then exact multiples, too."""
    around_rows: int = 100_000
    around_rounds: int = 2

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def round_numbers(self, most: int | None = None) -> Iterator[int]:
        """0, 1, … as long as there is time."""
        started = time.monotonic()
        for number in range(most or self.rounds):
            if number >= LEAST_ROUNDS and time.monotonic() - started > self.seconds:
                return
            yield number


DEFAULT = Settings()
FULL = replace(
    DEFAULT,
    name="full",
    rounds=STRATA,  # a round takes one document of each stratum: all 256
    seconds=1e9,
    mixed_harness=True,
    slow_rounds=7,
    minicons_models=MODELS,
    corpus_rows=(1_000, 10_000, 100_000, 1_000_000),
    around_rounds=7,
)
QUICK = replace(
    DEFAULT,
    name="quick",
    rounds=2,
    slow_rounds=1,
    seconds=10.0,
    longest=100,
    models=("gpt2",),
    hellaswag=(8, 60, 4, 25),
    one_prompt=(1, 512, 16, 16),
    vocabularies=(32_000, 152_000),
    memory_tokens=2048,
    corpus_rows=(1_000, 2_000, 10_000),
    around_rows=10_000,
    around_rounds=2,
)
