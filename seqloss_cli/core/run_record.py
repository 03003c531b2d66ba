"""What a run did, for its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a run did: rule 12 of the numbers contract. Field names are the keys in JSON."""

    command: str
    started_at: str
    """UTC, ISO 8601."""
    model: str | None
    """None, as with the other figures of the model, where no weights were loaded."""
    revision: str | None
    weights_sha256: str | None
    adapter: str | None
    """Put on the model beside its weights; its files count in `weights_sha256`."""
    quantization: str | None
    """How the weights are quantised, such as `torchao int8_weight_only (on load)`."""
    tokenizer: str
    tokenizer_sha256: str
    dtype: str | None
    device: str | None
    threads: int | None
    bos: str
    """The policy; what was done stands in each sequence."""
    bos_token_id: int | None
    bos_token: str | None
    eos: bool
    eos_token_id: int | None
    special_tokens: str
    context: int | None
    context_source: str | None
    stride: int | None
    """None where a sequence must fit the context."""
    boundary: str | None
    """The policy for the boundary of prompt and response; None where there is none."""
    pairs: Mapping[str, Any] | None
    """The other policies for pairs and chats; None where there are none."""
    share_prefix: bool
    """Whether prompts that rows have in common are computed once."""
    batch_tokens: int | None
    path: str | None
    """`packed`, `batched`, `single` or `plain`: how the model was run."""
    compiled: bool | None
    """Whether its layers were compiled: packed rows go through them; branches of a common prompt
    and rows beyond a sliding window do not."""
    devices: int | None
    """How many shared the batches."""
    gold: str | None
    """The distribution that losses are taken against."""
    versions: Mapping[str, str]
    teacher: Mapping[str, Any] | None = None
    """Where the gold is a teacher's: which, and how it is known."""
    reading: Mapping[str, Any] | None = None
    """Which inputs, and how they are read; None where no command read them."""
    rows: Mapping[str, Any] | None = None
    """What a sequence's row holds; None where no command wrote it."""

    @property
    def made_of(self) -> str:
        """What the model is beside its name: commit, adapter, quantisation."""
        revision = f" at {self.revision[:12]}" if self.revision else ""
        adapter = f" with {self.adapter}" if self.adapter else ""
        return revision + adapter + (f", {self.quantization}" if self.quantization else "")
