"""A loaded model, or a tokenizer alone, with the policies of a run: the pipeline composed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import (
    BatchPolicy,
    ModelChoice,
    PairPolicy,
    SpeedPolicy,
    TokenPolicy,
    WindowPolicy,
    require_whole,
)
from seqloss_cli.core.records import Outcome, Rejected, Sample, TokenSequence
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.masks import tokenized
from seqloss_cli.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_tokenizer_only,
    window_policy,
)
from seqloss_cli.scoring.pipeline import (
    Entry,
    OnProgress,
    ignore_finished,
    ignore_progress,
    read_ahead,
    score_samples,
    with_ends,
)
from seqloss_cli.scoring.prefetch import prefetch_helps
from seqloss_cli.tokenization.pairs import PairTokenization
from seqloss_cli.tokenization.tokenizer import Tokenization

if TYPE_CHECKING:
    from seqloss_cli.backends.multi_device import MultiDeviceBackend
    from seqloss_cli.backends.torch.backend import TorchBackend
    from seqloss_cli.backends.torch.teacher import StudentTeacherBackend


class Scorer:
    """A loaded model with the policies of a run.

    Raises RunError when the model cannot be loaded and UsageError when options do not fit it.
    `warnings` holds what should be said on stderr.
    """

    def __init__(
        self,
        choice: ModelChoice,
        policy: TokenPolicy | None = None,
        context: int | None = None,
        stride: int | None = None,
        batches: BatchPolicy | None = None,
        pairs: PairPolicy | None = None,
        speed: SpeedPolicy | None = None,
    ) -> None:
        """With `pairs` it scores samples that are pairs or chats, else texts and rows of ids."""
        policy, speed = policy or TokenPolicy(), speed or SpeedPolicy()
        checkpoint = load_checkpoint(choice, speed.devices)
        self.checkpoint = checkpoint
        self.windows = window_policy(checkpoint, context, stride)
        self.tokenization = Tokenization(
            checkpoint.tokenizer, policy, checkpoint.n_ids, checkpoint.bos_id, checkpoint.eos_id
        )
        self.pairing: PairTokenization | None = None
        if pairs is not None:
            self.pairing = PairTokenization(self.tokenization, pairs, self.windows.context + 1)
        self.backend: TorchBackend | MultiDeviceBackend | StudentTeacherBackend
        self.backend, self.batches = _open_backend(
            checkpoint, self.windows.context, batches or BatchPolicy(), speed
        )
        if not prefetch_helps(checkpoint.device):
            self.batches = replace(self.batches, prefetch=False)
        self.prepare: Callable[[Sequence[Entry]], list[Entry]] | None = None
        """What else is done to sequences before they are scored."""
        self.warnings = [*checkpoint.warnings, *self.tokenization.warnings, *self.backend.warnings]

    def score(
        self,
        items: Iterable[Sample | Rejected],
        requested: Requested | None = None,
        on_progress: OnProgress = ignore_progress,
        n_finished: int = 0,
        on_finished: Callable[[Entry], None] = ignore_finished,
    ) -> Iterator[Outcome]:
        """A score or a rejection for each item, in order, as soon as it is ready. The first
        `n_finished` are not scored, but handed to `on_finished` as they would be.

        Raises UsageError when more alternatives are wanted than the model has ids.
        """
        requested = requested or Requested()
        require_whole("--top-k", requested.top_k, 0)
        if requested.top_k > self.checkpoint.n_ids:
            raise UsageError(
                f"--top-k {requested.top_k} is more than the model's {self.checkpoint.n_ids} ids"
            )
        return score_samples(
            items,
            self._tokenize if requested.word_marks is None else with_ends(self._tokenize),
            self.backend,
            self.windows,
            requested,
            self.batches,
            on_progress,
            n_finished,
            on_finished,
        )

    def _tokenize(self, samples: Sequence[Sample]) -> list[Entry]:
        entries = (self.pairing or self.tokenization).tokenize(samples)
        return entries if self.prepare is None else self.prepare(entries)

    def run_info(self, command: str = "api") -> RunInfo:
        import torch

        checkpoint = self.checkpoint
        return replace(
            _run_info(command, self.tokenization, checkpoint.tokenizer_name, self.pairing),
            model=checkpoint.name,
            revision=checkpoint.revision,
            weights_sha256=checkpoint.weights_sha256,
            adapter=checkpoint.adapter,
            quantization=checkpoint.quantization,
            dtype=checkpoint.dtype,
            device=checkpoint.device,
            threads=torch.get_num_threads(),
            context=self.windows.context,
            context_source=self.windows.context_source,
            stride=None if self.pairing else self.windows.stride,
            share_prefix=self.backend.capabilities.longest_shared > 0,
            batch_tokens=self.batches.tokens,
            path=self.backend.path,
            compiled=self.backend.compiled,
            devices=self.backend.capabilities.at_once,
            gold="one-hot",
            versions=_versions(*_packages(checkpoint)),
        )


def _open_backend(
    checkpoint: Checkpoint, context: int, batches: BatchPolicy, speed: SpeedPolicy
) -> tuple[TorchBackend | MultiDeviceBackend, BatchPolicy]:
    """The model, or its copies, ready to score, and the budget of a batch that was settled on."""
    from seqloss_cli.backends.multi_device import MultiDeviceBackend
    from seqloss_cli.backends.torch.backend import TorchBackend
    from seqloss_cli.backends.torch.batch_budget import choose_batch_tokens

    backends = [
        TorchBackend(model, context, share_prefix=batches.share_prefix)
        for model in (checkpoint.model, *checkpoint.copies)
    ]
    _compile(backends, speed)
    if batches.auto:
        budget = min(choose_batch_tokens(backend, context) for backend in backends)
        batches = replace(batches, tokens=budget, auto=False)
    return (MultiDeviceBackend(backends) if len(backends) > 1 else backends[0]), batches


def _compile(backends: list[TorchBackend], speed: SpeedPolicy) -> None:
    """All or none. Raises RunError when it is demanded and cannot be done."""
    from seqloss_cli.backends.torch.batch_budget import compiling_pays

    first = backends[0]
    if speed.compile == "off" or (
        speed.compile == "auto"
        and not (first.path == "packed" and compiling_pays(first.model, speed.work_bytes))
    ):
        return
    try:
        for backend in backends:
            backend.compile()
    except RunError as error:
        if speed.compile == "on":
            raise
        for backend in backends:
            backend.stop_compiled()
        first.warnings.append(f"not compiled: {error}")


class PairTokens:
    """Pairs and chats as token sequences, without a model: no weights are loaded.

    Raises RunError when there is no tokenizer and UsageError when options do not fit it.
    """

    def __init__(
        self,
        choice: ModelChoice,
        policy: TokenPolicy | None = None,
        pairs: PairPolicy | None = None,
        context: int | None = None,
    ) -> None:
        found = load_tokenizer_only(choice)
        self._name = found.tokenizer_name
        self.tokenization = Tokenization(
            found.tokenizer, policy or TokenPolicy(), found.n_ids, found.bos_id, found.eos_id
        )
        self.windows: WindowPolicy | None = None
        if context is not None or found.max_context is not None:
            self.windows = window_policy(found, context, None)
        longest = None if self.windows is None else self.windows.context + 1
        self.pairing = PairTokenization(self.tokenization, pairs or PairPolicy(), longest)
        self.warnings = [*found.warnings, *self.tokenization.warnings]

    def sequences(self, items: Iterable[Sample | Rejected]) -> Iterator[TokenSequence | Rejected]:
        """A sequence or a rejection for each item, in order."""
        return tokenized(read_ahead(items), self.pairing.tokenize)

    def run_info(self, command: str = "api") -> RunInfo:
        info = _run_info(command, self.tokenization, self._name, self.pairing)
        if self.windows is None:
            return info
        windows = self.windows
        return replace(info, context=windows.context, context_source=windows.context_source)


def _run_info(
    command: str, tokenization: Tokenization, tokenizer_name: str, pairing: PairTokenization | None
) -> RunInfo:
    """What is known without a model."""
    bos_id, policy = tokenization.bos_id, tokenization.policy
    return RunInfo(
        command=command,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=None,
        revision=None,
        weights_sha256=None,
        adapter=None,
        quantization=None,
        tokenizer=tokenizer_name,
        tokenizer_sha256=tokenization.sha256,
        dtype=None,
        device=None,
        threads=None,
        bos=policy.bos,
        bos_token_id=bos_id,
        bos_token=None if bos_id is None else tokenization.name_token(bos_id),
        eos=policy.eos,
        eos_token_id=tokenization.eos_id,
        special_tokens=policy.special_tokens,
        context=None,
        context_source=None,
        stride=None,
        boundary=None if pairing is None else pairing.policy.boundary,
        pairs=None if pairing is None else pairing.described(),
        share_prefix=False,
        batch_tokens=None,
        path=None,
        compiled=None,
        devices=None,
        gold=None,
        versions=_versions(),
    )


def _packages(checkpoint: Checkpoint) -> list[str]:
    """What else made the model's numbers."""
    kinds = (checkpoint.quantization or "").split(" ")[0].lower()
    return [
        *(["peft"] if checkpoint.adapter else []),
        *(name for name in ("torchao", "bitsandbytes", "gguf") if name == kinds),
    ]


def _versions(*further: str) -> dict[str, str]:
    names = ("seqloss", "torch", "transformers", "tokenizers", "numpy", *further)
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
