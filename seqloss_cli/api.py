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

from seqloss_cli.backend import Wants
from seqloss_cli.checkpoint import load_checkpoint, load_tokenizer_only, window_policy
from seqloss_cli.config import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_MODEL,
    BatchPolicy,
    ModelChoice,
    PairPolicy,
    TokenPolicy,
    WindowPolicy,
    require_whole,
)
from seqloss_cli.errors import UsageError
from seqloss_cli.masking import tokenized
from seqloss_cli.pairing import PairTokenization
from seqloss_cli.reading import checked_pair, text_sample
from seqloss_cli.records import Outcome, Pair, Rejected, RunInfo, Sample, TokenSequence
from seqloss_cli.scoring import OnProgress, ignore_progress, read_ahead, score_samples
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
        batches: BatchPolicy | None = None,
        pairs: PairPolicy | None = None,
    ) -> None:
        """With `pairs` it scores samples that are pairs or chats, else texts and rows of ids."""
        policy, self.batches = policy or TokenPolicy(), batches or BatchPolicy()
        checkpoint = load_checkpoint(choice)
        from seqloss_cli.engine import Engine

        self.checkpoint = checkpoint
        self.windows = window_policy(checkpoint, context, stride)
        self.tokenization = Tokenization(
            checkpoint.tokenizer, policy, checkpoint.n_ids, checkpoint.bos_id, checkpoint.eos_id
        )
        self.pairing: PairTokenization | None = None
        if pairs is not None:
            self.pairing = PairTokenization(self.tokenization, pairs, self.windows.context + 1)
        self.engine = Engine(
            checkpoint.model, self.windows.context, share_prefix=self.batches.share_prefix
        )
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
        tokenize = (self.pairing or self.tokenization).tokenize
        return score_samples(
            items, tokenize, self.engine, self.windows, wants, self.batches, on_progress
        )

    def run_info(self, command: str = "api") -> RunInfo:
        import torch

        checkpoint = self.checkpoint
        return replace(
            _run_info(command, self.tokenization, checkpoint.tokenizer_name, self.pairing),
            model=checkpoint.name,
            revision=checkpoint.revision,
            weights_sha256=checkpoint.weights_sha256,
            dtype=checkpoint.dtype,
            device=checkpoint.device,
            threads=torch.get_num_threads(),
            context=self.windows.context,
            context_source=self.windows.context_source,
            stride=None if self.pairing else self.windows.stride,
            share_prefix=self.engine.longest_shared > 0,
            batch_tokens=self.batches.tokens,
            path=self.engine.path,
            gold="one-hot",
        )


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
        self._name = found.name
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
        gold=None,
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
    choice, policy = _choices("score", model, options)
    scorer = Scorer(choice, policy, context, stride, BatchPolicy(batch_tokens))
    _warn(scorer)
    return scorer.score(as_samples(texts), Wants(ranks, entropy, top_k))


def cond(
    pairs: Iterable[tuple[str, str] | Sample],
    model: str = DEFAULT_MODEL,
    *,
    ranks: bool = False,
    entropy: bool = False,
    top_k: int = 0,
    context: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    share_prefix: bool = True,
    **options: Any,
) -> Iterator[Outcome]:
    """Score responses given their prompts: pairs of (prompt, response), or samples that hold a
    `Pair` or a `Chat`. `options` are as in `score`, and the fields of `PairPolicy`.

    The figures of an outcome are made by `chain_rule(outcome, totals_of(outcome))`.
    """
    own = {k: options.pop(k) for k in PairPolicy.__dataclass_fields__ if k in options}
    choice, policy = _choices("cond", model, options)
    batches = BatchPolicy(batch_tokens, share_prefix)
    scorer = Scorer(choice, policy, context, None, batches, PairPolicy(**own))
    _warn(scorer)
    return scorer.score(as_pairs(pairs), Wants(ranks, entropy, top_k))


def _choices(caller: str, model: str, options: dict[str, Any]) -> tuple[ModelChoice, TokenPolicy]:
    """Raises UsageError for an option that is a field of neither."""
    names = set(ModelChoice.__dataclass_fields__) - {"name"}
    choice = {name: options.pop(name) for name in names if name in options}
    policy = {k: options.pop(k) for k in TokenPolicy.__dataclass_fields__ if k in options}
    if options:
        raise UsageError(f"{caller}() has no option {', '.join(sorted(options))}")
    return ModelChoice(name=model, **choice), TokenPolicy(**policy)


def _warn(scorer: Scorer) -> None:
    for message in scorer.warnings:
        warnings.warn(message, stacklevel=3)


def as_pairs(pairs: Iterable[tuple[str, str] | Sample]) -> Iterator[Sample | Rejected]:
    """Samples of pairs. One whose texts cannot be encoded, or without a response, is `Rejected`.

    Raises UsageError for what is neither two strings nor a sample of a pair or a chat.
    """
    for number, pair in enumerate(pairs, start=1):
        place = f"<pair {number}>"
        if isinstance(pair, Sample) and (pair.pair is not None or pair.chat is not None):
            yield pair
        elif isinstance(pair, tuple | list) and [type(part) for part in pair] == [str, str]:
            yield checked_pair(Pair(*pair), place)
        else:
            raise UsageError(f"pair {number} is neither two strings nor a Sample: {pair!r:.100}")


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
