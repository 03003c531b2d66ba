"""The record of a run that stands in its output (rule 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_POLICY = {"is_policy": True}
"""Marks a field that decides what the tokens of a text are, or which of them count: with another
value a model has other numbers."""
_OF_TOKENS = {"is_of_tokens": True}
"""Marks a field that a teacher's file must agree with, or it is of other tokens."""
_OF_WEIGHTS = {"is_of_weights": True}
"""Marks a field that tells which weights computed."""
_SOMETIMES = {"is_optional": True}
"""Marks a field that is not written where it is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The model, the policies and the settings of a run. Field names are the keys in JSON.

    --resume compares these records with those of older files: a new field, or a new key of a
    mapping, may be there only where a new option was used.
    """

    command: str = field(metadata=_POLICY)
    """The command that scored."""
    started_at: str
    """UTC, ISO 8601."""
    model: str | None = None
    """Its name, as it was typed; None where no weights were loaded."""
    revision: str | None = field(default=None, metadata=_OF_WEIGHTS)
    """Commit of the hub; None where it is not known."""
    weights_sha256: str | None = field(default=None, metadata=_OF_WEIGHTS)
    """SHA-256 over those of the weight files, sorted, and of an adapter; None without weights."""
    adapter: str | None = field(default=None, metadata=_OF_WEIGHTS)
    """Put on the model beside its weights, and in `weights_sha256`; None without one."""
    quantization: str | None = field(default=None, metadata=_OF_WEIGHTS)
    """The method and its kind, such as `torchao int8_weight_only (on load)`; None without one."""
    tokenizer: str
    """Name of the tokenizer."""
    tokenizer_sha256: str
    """SHA-256 of its serialized form."""
    dtype: str | None = None
    """Type of the weights in memory; None without any."""
    device: str | None = None
    """Device that computed; None without weights."""
    threads: int | None = None
    """Threads of the CPU; None without weights."""
    bos: str = field(metadata=_POLICY | _OF_TOKENS)
    """The policy; what was done stands in each sequence."""
    bos_token_id: int | None = field(metadata=_OF_TOKENS)
    """Its id; None where there is none."""
    bos_token: str | None
    """Its text; None where there is none."""
    eos: bool = field(metadata=_POLICY | _OF_TOKENS)
    """True with --eos."""
    eos_token_id: int | None
    """Its id; None where there is none."""
    special_tokens: str = field(metadata=_POLICY | _OF_TOKENS)
    """The policy for special tokens that stand in texts."""
    context: int | None = None
    """Tokens that a window holds; None without a model."""
    context_source: str | None = None
    """The key or option that number comes from; None without a model."""
    stride: int | None = None
    """Tokens that windows advance by; None where a sequence must fit the context."""
    boundary: str | None = field(default=None, metadata=_POLICY)
    """The policy for the boundary of prompt and response; None where there is none."""
    pairs: Mapping[str, Any] | None = field(default=None, metadata=_POLICY)
    """The other policies for pairs and chats; None where there are none."""
    share_prefix: bool = False
    """True where prompts that rows have in common are computed once."""
    batch_tokens: int | None = None
    """Tokens of a batch; None where a server computed the losses, row by row."""
    path: str | None = None
    """`packed`, `batched`, `single` or `plain`: how the model was run; None without weights."""
    compiled: bool | None = None
    """True where its layers were compiled: packed rows go through them, suffixes of a common prompt
    and rows beyond a sliding window do not; None without weights."""
    devices: int | None = None
    """Devices that shared the batches; None without weights."""
    gold: str | None = field(default=None, metadata=_POLICY)
    """The reference distribution that losses are taken against; None without losses."""
    versions: Mapping[str, str]
    """Versions of the packages that numbers come from; with a server, of those that make tokens."""
    teacher: Mapping[str, Any] | None = field(default=None, metadata=_POLICY)
    """The teacher, its weights, and how they are known; None where the reference is none."""
    reading: Mapping[str, Any] | None = None
    """The inputs, and how they are read; None where no command read them."""
    rows: Mapping[str, Any] | None = None
    """The parts of a sequence's row; None where no command wrote it."""
    tensor_parallel: int | None = field(default=None, metadata=_SOMETIMES)
    """Processes that had a part of the model each; None where one had the whole of it."""
    guesses: Sequence[str] | None = field(default=None, metadata=_SOMETIMES)
    """Settings of speed that nobody measured on such a device; None where all were."""
    engine: Mapping[str, Any] | None = field(default=None, metadata=_SOMETIMES)
    """The server that computed the losses, and how its answers were checked; None without one."""
    models: Sequence[Mapping[str, Any]] | None = field(default=None, metadata=_SOMETIMES)
    """Models that one pass of the teacher was compared with: each as its rows name it, and the
    fields above that are its own. The first is that of those fields; None of one model."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name, without those of `_SOMETIMES` where there are none."""
        sometimes = _marked("is_optional")
        return {k: v for k, v in asdict(self).items() if v or k not in sometimes}

    @property
    def made_of(self) -> str:
        """Commit, adapter and quantisation of the model, as they follow its name."""
        revision = f" at {self.revision[:12]}" if self.revision else ""
        adapter = f" with {self.adapter}" if self.adapter else ""
        return revision + adapter + (f", {self.quantization}" if self.quantization else "")


def recorded(options: Any, *names: str) -> dict[str, Any]:
    """Return options under the names of their fields, which are their keys in the run record."""
    return {name: getattr(options, name) for name in names}


def _marked(mark: str) -> tuple[str, ...]:
    return tuple(each.name for each in fields(RunInfo) if mark in each.metadata)


POLICIES = _marked("is_policy")
TOKEN_POLICIES = _marked("is_of_tokens")
WEIGHTS = _marked("is_of_weights")
"""Names of the marked fields of run records, in order."""
