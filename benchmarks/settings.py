"""How much is measured: the default run, `--quick`, and `--full`."""

from __future__ import annotations

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
EACH = tuple((model, dtype) for model in MODELS for dtype in DTYPES)
STRATA = 16


@dataclass(frozen=True)
class Settings:
    name: str = "default"
    threads: int = 2
    rounds: int = 7
    longest: int = 1000
    """Tokens of the longest document."""
    models: tuple[str, ...] = MODELS
    dtypes: tuple[str, ...] = DTYPES
    modes: tuple[str, ...] = MODES
    harness: tuple[tuple[str, str], ...] = (("gpt2", "float32"), ("llama", "bfloat16"))
    """Models and dtypes that lm-evaluation-harness scores documents with."""
    mixed_harness: bool = False
    """Also give lm-evaluation-harness batches of documents of all lengths."""
    minicons_models: tuple[str, ...] = ("gpt2",)
    minicons_longest: int = 300
    """It pads every batch to the longest text, and holds all its logits."""
    hellaswag: tuple[int, int, int, int] = (8, 60, 4, 25)
    """Prompts, their tokens, endings of each, their tokens."""
    one_prompt: tuple[int, int, int, int] = (1, 256, 32, 8)
    vocabularies: tuple[int, ...] = (32_000, 152_000, 256_000)
    vocabulary_as_run: int = 152_000
    """That for which memory is also measured as in a run."""
    memory_tokens: int = 8192
    corpus_rows: tuple[int, ...] = (400, 4_000, 40_000)
    """Multiples of the distinct rows, so that ten times the rows are ten times the tokens."""
    around_rows: int = 5_000

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    """What JSON made lists of."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


DEFAULT = Settings()
FULL = replace(
    DEFAULT,
    name="full",
    rounds=STRATA,  # a round takes one document of each stratum: all 256
    harness=EACH,
    mixed_harness=True,
    hellaswag=(32, 60, 4, 25),
    one_prompt=(1, 512, 64, 16),
    minicons_models=MODELS,
    minicons_longest=1000,
    corpus_rows=(1_000, 10_000, 100_000, 1_000_000),
    around_rows=100_000,
)
QUICK = replace(
    DEFAULT,
    name="quick",
    rounds=2,
    longest=100,
    minicons_models=(),
    models=("gpt2",),
    dtypes=("float32",),
    modes=("eager",),  # compiling takes longer than all else here
    harness=(("gpt2", "float32"),),
    hellaswag=(2, 60, 4, 25),
    one_prompt=(1, 128, 8, 8),
    vocabularies=(32_000, 64_000),
    vocabulary_as_run=0,
    memory_tokens=1024,
    corpus_rows=(200, 2_000),
    around_rows=1_000,
)
