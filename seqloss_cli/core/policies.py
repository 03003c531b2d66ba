"""Settings of a run, as plain records: what the flags mean once they are parsed and resolved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

from seqloss_cli.core.errors import UsageError

BosChoice = Literal["auto", "always", "never"]
SpecialChoice = Literal["parse", "text", "error"]
BoundaryChoice = Literal["joint", "separate", "compare"]
TruncateChoice = Literal["error", "left"]
TurnChoice = Literal["assistant", "last", "all"]
CompileChoice = Literal["auto", "on", "off"]
DtypeChoice = Literal["auto", "float32", "bfloat16", "float16", "float64"]
QuantizeChoice = Literal["int8"]

DEFAULT_MODEL = "demo"
DEFAULT_CONTEXT = 2048
"""Where the model's configuration names none (rule 7)."""
_OPTIONAL = ("revision", "tokenizer", "adapter")
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

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no flag could have."""
        _require_choice("--bos", self.bos, BosChoice)
        _require_choice("--special-tokens", self.special_tokens, SpecialChoice)
        _require_flag("--eos", self.eos)
        if isinstance(self.bos_token, int) and not isinstance(self.bos_token, bool):
            object.__setattr__(self, "bos_token", str(self.bos_token))
        if not isinstance(self.bos_token, str | None):
            raise UsageError(f"--bos-token takes a token or an id, not {self.bos_token!r}")


@dataclass(frozen=True, slots=True)
class PairPolicy:
    """What of prompts, responses and chats is scored, and how (rules 8, 9, 13, 14)."""

    boundary: BoundaryChoice = "joint"
    truncate: TruncateChoice = "error"
    marginal: bool = True
    """Score the prompts, too."""
    pmi: bool = False
    """Score the responses without their prompts, too."""
    turns: TurnChoice = "assistant"
    """Which turns of a chat are scored."""
    end_of_turn: bool = True
    """Whether a scored turn reaches through the token that ends it."""
    chat_template: str | None = None
    """In place of the tokenizer's own."""
    separator: str = ""
    """Between a prompt and its response; scored with the response."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no flag could have."""
        if not isinstance(self.separator, str):
            raise UsageError(f"--separator takes a text, not {self.separator!r}")
        _require_choice("--boundary", self.boundary, BoundaryChoice)
        _require_choice("--truncate", self.truncate, TruncateChoice)
        _require_choice("--score", self.turns, TurnChoice)
        _require_flag("--no-marginal", self.marginal)
        _require_flag("--pmi", self.pmi)
        _require_flag("--no-end-of-turn", self.end_of_turn)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which checkpoint, and how it is loaded."""

    name: str = DEFAULT_MODEL
    revision: str | None = None
    tokenizer: str | None = None
    adapter: str | None = None
    """LoRA or another of PEFT, beside the weights, not merged into them."""
    quantize: QuantizeChoice | None = None
    """Quantise the weights when they are loaded."""
    dtype: DtypeChoice = "auto"
    device: str = "auto"
    threads: int | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    offline: bool = False
    backend: str = "torch"
    """What runs it: a name of `backends.opening.BACKENDS`."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no flag could have; paths may be path objects."""
        for field in ("name", "tokenizer", "adapter"):
            if isinstance(value := getattr(self, field), os.PathLike):
                object.__setattr__(self, field, os.fspath(value))
        for field in ("name", "device", "revision", "tokenizer", "adapter"):
            value = getattr(self, field)
            if not isinstance(value, str) and not (value is None and field in _OPTIONAL):
                raise UsageError(f"--{field.replace('name', 'model')} takes a name, not {value!r}")
        _require_choice("--dtype", self.dtype, DtypeChoice)
        if self.quantize is not None:
            _require_choice("--quantize", self.quantize, QuantizeChoice)
        if self.threads is not None:
            require_whole("--threads", self.threads, 1)
        for flag in ("allow_pickle", "trust_remote_code", "offline"):
            _require_flag(f"--{flag.replace('_', '-')}", getattr(self, flag))


@dataclass(frozen=True, slots=True)
class SpeedPolicy:
    """How the machine is used; numbers do not depend on it beyond rounding."""

    compile: CompileChoice = "auto"
    """auto: if what it saves on `work_bytes` is more than it takes."""
    work_bytes: int | None = None
    """How much text there is to score, where that is known."""
    devices: int = 1
    """GPUs of this machine, each with the whole model, that share the batches."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no flag could have."""
        _require_choice("--compile", self.compile, CompileChoice)
        require_whole("--devices", self.devices, 1)


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """C and S of rule 7, once the model's own length is known."""

    context: int
    context_source: str
    """Where `context` comes from: `--context`, the name of a configuration key, or `default`."""
    stride: int


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How sequences are put together for a forward pass."""

    tokens: int = DEFAULT_BATCH_TOKENS
    """The most tokens of a batch, padding counted."""
    share_prefix: bool = False
    """Compute what sequences of a read-ahead block begin with in common once."""
    prefetch: bool = False
    """Read and tokenize on another thread, while the model is at work on the block before."""
    auto: bool = False
    """Choose `tokens` by a probe, once the model is loaded."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no flag could have."""
        require_whole("--batch-tokens", self.tokens, 1)
        _require_flag("--no-share-prefix", self.share_prefix)


def require_whole(flag: str, value: Any, least: int) -> None:
    """Raises UsageError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{flag} takes a whole number of at least {least}, not {value!r}")


def _require_choice(flag: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise UsageError(f"{flag} takes one of {', '.join(get_args(choices))}, not {value!r}")


def _require_flag(flag: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{flag} is true or false, not {value!r}")
