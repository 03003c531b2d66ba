"""Score from Python: the pipeline of the command line, as records.

    import seqloss_cli
    for outcome in seqloss_cli.score(["The cat sat.", "Another text."], model="demo"):
        if isinstance(outcome, seqloss_cli.SequenceScore):
            print(outcome.losses)      # nats per token, where outcome.scored

`Scorer` keeps a model loaded over several calls.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from seqloss_cli.checkpoint import load_checkpoint, window_policy
from seqloss_cli.config import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_MODEL,
    ModelChoice,
    TokenPolicy,
    require_whole,
)
from seqloss_cli.errors import UsageError
from seqloss_cli.reading import text_sample
from seqloss_cli.records import Outcome, Rejected, RunInfo, Sample, Wants
from seqloss_cli.scoring import OnProgress, ignore_progress, score_samples
from seqloss_cli.tokenization import Tokenization


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
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> None:
        policy = policy or TokenPolicy()
        require_whole("--batch-tokens", batch_tokens, 1)
        checkpoint = load_checkpoint(choice)
        from seqloss_cli.engine import Engine

        self.checkpoint = checkpoint
        self.batch_tokens = batch_tokens
        self.windows = window_policy(checkpoint, context, stride)
        self.tokenization = Tokenization(
            checkpoint.tokenizer, policy, checkpoint.n_ids, checkpoint.bos_id, checkpoint.eos_id
        )
        self.engine = Engine(checkpoint.model, self.windows.context)
        self.warnings = [*checkpoint.warnings, *self.tokenization.warnings, *self.engine.warnings]

    def score(
        self,
        items: Iterable[Sample | Rejected],
        wants: Wants | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> Iterator[Outcome]:
        """A score or a rejection for each item, in order, as soon as it is ready.

        Raises UsageError when more alternatives are wanted than the model has ids.
        """
        wants = wants or Wants()
        require_whole("--top-k", wants.top_k, 0)
        if wants.top_k > self.checkpoint.n_ids:
            raise UsageError(
                f"--top-k {wants.top_k} is more than the model's {self.checkpoint.n_ids} ids"
            )
        return score_samples(
            items,
            self.tokenization.tokenize,
            self.engine,
            self.windows,
            wants,
            self.batch_tokens,
            on_progress,
        )

    def run_info(self, command: str = "api") -> RunInfo:
        import torch

        checkpoint, tokenization = self.checkpoint, self.tokenization
        bos_id = tokenization.bos_id
        return RunInfo(
            command=command,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            model=checkpoint.name,
            revision=checkpoint.revision,
            weights_sha256=checkpoint.weights_sha256,
            tokenizer=checkpoint.tokenizer_name,
            tokenizer_sha256=tokenization.sha256,
            dtype=checkpoint.dtype,
            device=checkpoint.device,
            threads=torch.get_num_threads(),
            bos=tokenization.policy.bos,
            bos_token_id=bos_id,
            bos_token=None if bos_id is None else tokenization.name_token(bos_id),
            eos=tokenization.policy.eos,
            eos_token_id=tokenization.eos_id,
            special_tokens=tokenization.policy.special_tokens,
            context=self.windows.context,
            context_source=self.windows.context_source,
            stride=self.windows.stride,
            boundary=None,
            batch_tokens=self.batch_tokens,
            path=self.engine.path,
            gold="one-hot",
            versions=_versions(),
        )


def score(
    texts: str | Iterable[str | Sample],
    model: str = DEFAULT_MODEL,
    *,
    ranks: bool = False,
    entropy: bool = False,
    top_k: int = 0,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    **options: Any,
) -> Iterator[Outcome]:
    """Score texts (or samples) with a model; yields a `SequenceScore` or `Rejected` for each.

    `options` are the fields of `ModelChoice` (dtype, device, …) and `TokenPolicy` (bos, eos, …);
    another name or value raises UsageError. What the command line would say on stderr (a tokenizer
    that was replaced, a slower path) is given to `warnings.warn`. Loading a model sets the number
    of torch's threads and the verbosity of transformers for the whole process.
    """
    names = set(ModelChoice.__dataclass_fields__) - {"name"}
    choice = {name: options.pop(name) for name in names if name in options}
    policy = {k: options.pop(k) for k in TokenPolicy.__dataclass_fields__ if k in options}
    if options:
        raise UsageError(f"score() has no option {', '.join(sorted(options))}")
    scorer = Scorer(
        ModelChoice(name=model, **choice), TokenPolicy(**policy), context, stride, batch_tokens
    )
    for message in scorer.warnings:
        warnings.warn(message, stacklevel=2)
    return scorer.score(as_samples(texts), Wants(ranks, entropy, top_k))


def as_samples(texts: str | Iterable[str | Sample]) -> Iterator[Sample | Rejected]:
    """Samples of texts. A text that cannot be encoded or is empty becomes a `Rejected`.

    Raises UsageError for what is neither a text nor a sample of one text or of ids.
    """
    for number, text in enumerate([texts] if isinstance(texts, str) else texts, start=1):
        if isinstance(text, str):
            yield text_sample(text, f"<text {number}>", max_bytes=None)
        elif isinstance(text, Sample):
            yield _checked_sample(text)
        else:
            raise UsageError(f"text {number} is neither a string nor a Sample: {text!r:.100}")


def _checked_sample(sample: Sample) -> Sample | Rejected:
    if isinstance(sample.text, str) and sample.input_ids is None and sample.labels is None:
        checked = text_sample(sample.text, sample.source, max_bytes=None)
        return replace(checked, id=sample.id) if isinstance(checked, Rejected) else sample
    if sample.text is not None or sample.input_ids is None:
        raise UsageError(f"sample {sample.id!r} must have either a text or input_ids")
    ids = np.asarray(sample.input_ids, dtype=np.int64)
    labels = None if sample.labels is None else np.asarray(sample.labels, dtype=np.int64)
    if ids.ndim != 1 or (labels is not None and labels.shape != ids.shape):
        raise UsageError(f"sample {sample.id!r}: labels must be as many as input_ids, in one row")
    return replace(sample, input_ids=ids, labels=labels)


def _versions() -> dict[str, str]:
    names = ("seqloss", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
