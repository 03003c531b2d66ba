"""Settings of what is scored and how: plain records, with the options that fill their fields."""

# No `from __future__ import annotations`: the command line reads these annotations when it starts,
# and as strings each of them would have to be compiled a second time.

import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import (
    A_MODEL,
    CHATS,
    INPUT,
    MODEL,
    POLICIES,
    SERVER,
    SPEED,
    check_values,
    option,
)

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
"""For a model whose configuration names none (rule 7)."""
DEFAULT_BATCH_TOKENS = 4096
DEFAULT_OVERLAP_K = 10
DEFAULT_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reading:
    """The way inputs are read."""

    PANEL = INPUT

    lines: bool = option(False, "Each non-empty line is a text.")
    jsonl: bool = option(False, "Inputs are JSONL, whatever they are called.", flag="--jsonl-input")
    text_field: str = option("text", "Field of a JSONL row that holds the text.")
    keep_meta: bool = option(False, "Carry a row's other fields through as meta.")
    limit: int | None = option(None, "Take the first N inputs.", min=1)
    max_bytes: int = option(DEFAULT_MAX_BYTES, "Longest text or line that is taken.", min=1)
    dataset: str | None = option(
        None, "A data set: a hub name or a directory (package datasets).", takes="a name"
    )
    split: str | None = option(None, "Split of the data set.")
    dataset_config: str | None = option(None, "Configuration of the data set.", metavar="NAME")
    dataset_revision: str | None = option(
        None, "Branch, tag or commit of the data set.", metavar="REV"
    )
    shard: str | None = option(
        None, "Read part I of N, from 0; auto/N: I from the scheduler.", metavar="I/N"
    )


ROWS_ELSEWHERE = ("dataset", "split", "dataset_config", "dataset_revision", "shard")
"""Fields of `Reading` that name rows of a data set, and a part of them."""


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """The tokens that are put around a text, and the way its own are made (rules 4, 5, 6)."""

    PANEL = POLICIES

    bos: BosChoice = option(
        "auto", "auto: the tokenizer's BOS, else the model's, else the first token is unscored."
    )
    bos_token: str | None = option(None, "Token or id to use as BOS.", takes="a token or an id")
    """A token or an id in place of the model's own BOS."""
    eos: bool = option(False, "Append the end-of-sequence token and score it.")
    special_tokens: SpecialChoice = option(
        "parse", "Control tokens written in a text: what to make of them."
    )
    eos_token: str | None = option(None, "Token or id to use as EOS.", takes="a token or an id")
    """A token or an id in place of the model's own EOS."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no option could have; an id may be a number."""
        for name in ("bos_token", "eos_token"):
            value = getattr(self, name)
            # True is an int to Python, and would be the token of id 1.
            if isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, name, str(value))
        check_values(self)


@dataclass(frozen=True, slots=True)
class WindowChoice:
    """The lengths of windows that were asked for; None leaves them to the model (rule 7)."""

    PANEL = POLICIES

    context: int | None = option(
        None, "Most tokens fed at a time; the model's own length by default.", min=1
    )
    stride: int | None = option(None, "Targets a later window scores; half the context.", min=1)


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """C and S of rule 7, once the model's own length is known."""

    context: int
    context_source: str
    """The origin of `context`: `--context`, the name of a configuration key, or `default`."""
    stride: int


@dataclass(frozen=True, slots=True)
class PairPolicy:
    """The parts of prompts, responses and chats that are scored (rules 8, 9, 13, 14)."""

    PANEL = POLICIES

    boundary: BoundaryChoice = option(
        "joint",
        "joint: both texts tokenized as one; separate: each by itself; compare: both ways, and "
        "the difference.",
    )
    truncate: TruncateChoice = option("error", "Too long: reject it, or cut its prompt's start.")
    marginal: bool = option(True, "Do not score prompts: faster.")
    """Score the prompts, too."""
    pmi: bool = option(False, "Score the response without its prompt, too.")
    turns: TurnChoice = option(
        "assistant",
        "Turns that count: every assistant's, the last, all text.",
        flag="--score",
        panel=CHATS,
    )
    """The turns of a chat that are scored."""
    end_of_turn: bool = option(True, "Leave out the token that ends a scored turn.", panel=CHATS)
    """A scored turn reaches through the token that ends it."""
    chat_template: str | None = None
    """In place of the tokenizer's own: the template, not its file."""
    separator: str = option(
        "", "Put between the two; scored with the response.", panel=INPUT, takes="a text"
    )
    """Between a prompt and its response; scored with the response."""
    template_date: str | None = option(
        None, "YYYY-MM-DD, for templates that read the clock.", panel=CHATS, metavar="DATE"
    )
    """Instead of now, of templates that read the clock; ISO 8601."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no option could have."""
        check_values(self)
        try:
            datetime.fromisoformat(self.template_date or "2000-01-01")
        except ValueError:
            raise UsageError(
                f"--template-date {self.template_date}: give YYYY-MM-DD, with THH:MM after it if "
                "the template writes a time"
            ) from None


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The server that computes losses in a local model's place, and how far it is believed."""

    PANEL = SERVER

    url: str | None = option(
        None,
        "A server computes the losses: vllm+http://HOST:PORT, sglang+…, openai+…, or http://….",
        flag="--engine",
        takes="a URL",
    )
    concurrency: int | None = option(
        None, "Requests at a time; found by trying by default.", min=1, max=256
    )
    verify: int = option(0, "Rows that --model scores here, too, for comparison.", min=0)
    probe_tolerance: float | None = option(
        None, "Nats that answers may differ by; 0.0001 in float32, else 0.05.", min=0
    )
    probe: bool = option(False, "Probe the server although it was probed before.")
    timeout: float = option(600.0, "Seconds that one answer may take.", flag="--engine-timeout")
    api_key_file: str | None = option(
        None, "File with the server's key; else SEQLOSS_API_KEY.", metavar="FILE"
    )
    insecure_http: bool = option(False, "Send texts and key unencrypted to another machine.")

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no option could have."""
        check_values(self)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The checkpoint, and how it is loaded."""

    PANEL = MODEL

    name: str = option(
        DEFAULT_MODEL,
        "Directory or .gguf file, hub name, or 'demo' (built in; the default).",
        flag="--model",
        short="-m",
        takes=A_MODEL,
        show_default=False,
    )
    revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    tokenizer: str | None = option(None, "Another tokenizer: directory or hub name.", takes=A_MODEL)
    adapter: str | None = option(None, "LoRA put on the model: directory or hub name.")
    """LoRA or another of PEFT, beside the weights, not merged into them."""
    quantize: QuantizeChoice | None = option(None, "Make the weights int8 when they are loaded.")
    dtype: DtypeChoice = option("auto", "auto: the checkpoint's own on a GPU, float32 on a CPU.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.")
    threads: int | None = option(None, "CPU threads; torch chooses by default.", min=1)
    allow_pickle: bool = option(False, "Load pickled weights, which can run code.")
    trust_remote_code: bool = option(False, "Run code that the checkpoint brings.")
    offline: bool = option(False, "Use the hub's local cache only.")
    backend: str = "torch"
    """The backend that runs it: a name of `backends.opening.BACKENDS`. From Python only."""
    engine: EngineChoice | None = None
    """The server that runs it, for the backend `server`; the tokenizer alone is loaded then: with
    an empty `name` that of `tokenizer`, or the demo's, if the server says that it has that one."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no option could have; paths may be path objects."""
        if self.engine is not None:  # else a model would be loaded here, and the server not asked
            object.__setattr__(self, "backend", "server")
        for field in ("name", "tokenizer", "adapter"):
            if isinstance(value := getattr(self, field), os.PathLike):
                object.__setattr__(self, field, os.fspath(value))
        check_values(self)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise UsageError(f"--device {self.device}: choose auto, cpu, cuda, cuda:N or mps")


@dataclass(frozen=True, slots=True)
class SpeedPolicy:
    """The use of the machine; numbers do not depend on it beyond rounding."""

    PANEL = SPEED

    compile: CompileChoice = option(
        "auto", "Compile the layers; auto: if the files are large enough to pay."
    )
    """auto: if what it saves on `work_bytes` is more than it takes."""
    work_bytes: int | None = None
    """Bytes of text to be scored, where that is known."""
    devices: int = option(1, "GPUs that share the work, each with the model.", min=1)
    """GPUs of this machine, each with the whole model, that share the batches."""
    tensor_parallel: int = option(
        1, "Processes that have a part of the model each, on a GPU each.", min=1
    )
    """Processes of this machine, each with its part of every layer and of the vocabulary."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no option could have."""
        check_values(self)


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The way sequences are put together for a forward pass."""

    PANEL = SPEED

    tokens: int = option(
        DEFAULT_BATCH_TOKENS,
        "Tokens in a batch; auto: by free memory and a short probe.",
        flag="--batch-tokens",
        kind=str,
        metavar="N|auto",
    )
    """The most tokens of a batch, padding counted."""
    # Off where nothing is said, although the flag turns it off: texts seldom begin alike, and the
    # last digits of a shared beginning are others. Commands for prompts turn it on.
    share_prefix: bool = option(
        False, "Compute a common beginning for each row.", flag="--no-share-prefix"
    )
    """Compute what sequences of a read-ahead block begin with in common once."""
    prefetch: bool = False
    """Read and tokenize on another thread, while the model is at work on the block before."""
    auto: bool = False
    """Choose `tokens` by a probe, once the model is loaded."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no option could have; `tokens` may be its text."""
        text: Any = self.tokens
        if isinstance(text, str):
            object.__setattr__(self, "auto", text == "auto")
            object.__setattr__(self, "tokens", _batch_tokens(text))
        check_values(self)


def _batch_tokens(text: str) -> int:
    """Raises UsageError for what is neither a whole number nor `auto`."""
    if text == "auto":
        return DEFAULT_BATCH_TOKENS
    # int() alone would take digits of other scripts, blanks and underscores, too.
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise UsageError(f"--batch-tokens takes a whole number of at least 1, or auto: {text!r}")
    return int(text)
