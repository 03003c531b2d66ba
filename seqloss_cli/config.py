"""Settings of a run, as plain records: what the flags mean once they are parsed and resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BosChoice = Literal["auto", "always", "never"]
SpecialChoice = Literal["parse", "text", "error"]
DtypeChoice = Literal["auto", "float32", "bfloat16", "float16", "float64"]

DEFAULT_MODEL = "demo"
DEFAULT_CONTEXT = 2048
"""Where the model's configuration names none (rule 7)."""
DEFAULT_BATCH_TOKENS = 4096
DEFAULT_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """What is put around and made of a text's tokens (rules 4, 5, 6)."""

    bos: BosChoice = "auto"
    bos_token: str | None = None
    """A token or an id in place of the model's own BOS."""
    eos: bool = False
    special_tokens: SpecialChoice = "parse"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which checkpoint, and how it is loaded."""

    name: str = DEFAULT_MODEL
    revision: str | None = None
    tokenizer: str | None = None
    dtype: DtypeChoice = "auto"
    device: str = "auto"
    threads: int | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """C and S of rule 7, once the model's own length is known."""

    context: int
    context_source: str
    """Where `context` comes from: `--context`, the name of a configuration key, or `default`."""
    stride: int
