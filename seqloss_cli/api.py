"""Score from Python: the pipeline of the command line, as records.

    import seqloss_cli
    for outcome in seqloss_cli.score(["The cat sat.", "Another text."], model="demo"):
        if isinstance(outcome, seqloss_cli.SequenceScore):
            print(outcome.losses)      # nats per token, where outcome.scored

`Scorer` keeps a model loaded over several calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import numpy as np

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_MODEL,
    BatchPolicy,
    CompileChoice,
    ModelChoice,
    PairPolicy,
    SpeedPolicy,
    TokenPolicy,
)
from seqloss_cli.core.records import Choices, Outcome, Pair, Rejected, Sample
from seqloss_cli.inputs.reading import choices_sample, pair_sample, text_sample
from seqloss_cli.metrics.divergence import DivergenceScore
from seqloss_cli.metrics.ranking import Ranking
from seqloss_cli.metrics.ranking import rank as ranked
from seqloss_cli.scoring.scorer import Scorer
from seqloss_cli.scoring.teacher_scorer import TeacherScorer

Policy = TypeVar("Policy", ModelChoice, TokenPolicy, PairPolicy)
AnyScorer = TypeVar("AnyScorer", Scorer, TeacherScorer)


def score(
    texts: str | Iterable[str | Sample],
    model: str = DEFAULT_MODEL,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int | Literal["auto"] = DEFAULT_BATCH_TOKENS,
    compile: CompileChoice = "auto",
    devices: int = 1,
    tensor_parallel: int = 1,
    **options: Any,
) -> Iterator[Outcome]:
    """Score texts (or samples) with a model; yields a `SequenceScore` or `Rejected` for each.

    `compile="on"` compiles the layers ("auto" does not: how much text will come is not known).
    `options` are what to compute at each token beside its loss (ranks, entropy, top_k: the options
    of `core.columns.COLUMNS`), and the fields of `ModelChoice` (dtype, device, …) and `TokenPolicy`
    (bos, eos, …); another name or value raises UsageError. Warnings that the command line writes to
    stderr (a tokenizer that was replaced, a slower path) are given to `warnings.warn`. Loading a
    model sets the number of torch's threads and the verbosity of transformers for the whole
    process. On a CPU the C library then keeps freed memory for the next batch.
    """
    requested = _requested(options)
    choice, policy = _choices("score", model, options)
    batches = _batches(batch_tokens)
    speed = SpeedPolicy(compile, None, devices, tensor_parallel)
    scorer = _warned(Scorer(choice, policy, context, stride, batches, speed=speed))
    return scorer.score(as_samples(texts), requested)


def cond(
    pairs: Iterable[tuple[str, str] | Sample],
    model: str = DEFAULT_MODEL,
    *,
    context: int | None = None,
    batch_tokens: int | Literal["auto"] = DEFAULT_BATCH_TOKENS,
    compile: CompileChoice = "auto",
    devices: int = 1,
    tensor_parallel: int = 1,
    share_prefix: bool = True,
    **options: Any,
) -> Iterator[Outcome]:
    """Score responses given their prompts: pairs of (prompt, response), or samples that hold a
    `Pair` or a `Chat`. `options` are as in `score`, and the fields of `PairPolicy`.

    The figures of an outcome are made by `chain_rule(outcome, totals_of(outcome))`.
    """
    requested = _requested(options)
    pair_policy = _taken(PairPolicy, options)
    choice, policy = _choices("cond", model, options)
    batches = _batches(batch_tokens, share_prefix)
    speed = SpeedPolicy(compile, None, devices, tensor_parallel)
    scorer = _warned(Scorer(choice, policy, context, None, batches, pair_policy, speed))
    return scorer.score(as_pairs(pairs, pair_policy.separator), requested)


def rank(
    rows: Iterable[tuple[str, Sequence[str]] | Sample],
    model: str = DEFAULT_MODEL,
    *,
    pmi: bool = False,
    context: int | None = None,
    batch_tokens: int | Literal["auto"] = DEFAULT_BATCH_TOKENS,
    share_prefix: bool = True,
    **options: Any,
) -> Iterator[Ranking | Rejected]:
    """Rank responses: rows of (prompt, responses), or samples that hold `Choices`. `options` are as
    in `cond`; `pmi` scores the responses without their prompts, too.

    A ranking's `scored` choices have `score_by`, its `orders` the places under each score.
    """
    pair_policy = _taken(PairPolicy, options, marginal=False, pmi=pmi)
    choice, policy = _choices("rank", model, options)
    batches = _batches(batch_tokens, share_prefix)
    scorer = _warned(Scorer(choice, policy, context, None, batches, pair_policy))
    return ranked(as_choices(rows, pair_policy.separator), scorer.score, pmi)


def diverge(
    texts: str | Iterable[str | Sample],
    teacher: str | ModelChoice,
    model: str = DEFAULT_MODEL,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int | Literal["auto"] = DEFAULT_BATCH_TOKENS,
    **options: Any,
) -> Iterator[DivergenceScore | Rejected]:
    """Measure how far `model` is from `teacher` on the texts; yields a `DivergenceScore` for each.

    Its `divergences` are arrays of a figure for each token; `divergence_totals` gives sums.
    `options` are as in `score`, of the model; a teacher by name gets the same dtype and device.
    """
    choice, policy = _choices("diverge", model, options)
    if isinstance(teacher, str):
        teacher = replace(choice, name=teacher, revision=None, adapter=None, quantize=None)
    scorer = _warned(Scorer(choice, policy, context, stride, _batches(batch_tokens)))
    return _warned(TeacherScorer.with_teacher(scorer, teacher)).diverge(as_samples(texts))


def _batches(tokens: int | Literal["auto"], share_prefix: bool = False) -> BatchPolicy:
    return BatchPolicy(cast(int, tokens), share_prefix)  # it reads `auto` itself


def _requested(options: dict[str, Any]) -> Requested:
    """Take the quantities of each token out of the options."""
    names = [column.option for column in COLUMNS if column.option in options]
    return Requested(**{name: options.pop(name) for name in names})


def _taken(policy: type[Policy], options: dict[str, Any], **defaults: Any) -> Policy:
    """A policy of the options that are its fields; they are taken out of `options`."""
    # A model's name is no option: it is a parameter of its own.
    names = [name for name in policy.__dataclass_fields__ if name in options and name != "name"]
    return policy(**defaults | {name: options.pop(name) for name in names})


def _choices(caller: str, model: str, options: dict[str, Any]) -> tuple[ModelChoice, TokenPolicy]:
    """Raises UsageError for an option that is a field of neither."""
    choice, policy = _taken(ModelChoice, options, name=model), _taken(TokenPolicy, options)
    if options:
        raise UsageError(f"{caller}() has no option {', '.join(sorted(options))}")
    return choice, policy


def _warned(scorer: AnyScorer) -> AnyScorer:
    """The scorer, whose warnings are given to the caller of the public function."""
    for message in scorer.warnings:
        warnings.warn(message, stacklevel=3)
    return scorer


def as_pairs(
    pairs: Iterable[tuple[str, str] | Sample], separator: str = ""
) -> Iterator[Sample | Rejected]:
    """Samples of pairs; two strings are joined by the separator.

    One whose texts cannot be encoded, or without a response, is `Rejected`. Raises UsageError for
    what is neither two strings nor a sample of a pair or a chat.
    """
    for number, pair in enumerate(pairs, start=1):
        place = f"<pair {number}>"
        if isinstance(pair, Sample) and pair.pair is not None:
            checked = pair_sample(pair.pair, pair.source)
            yield replace(checked, id=pair.id) if isinstance(checked, Rejected) else pair
        elif isinstance(pair, Sample) and pair.chat is not None:
            yield pair
        elif isinstance(pair, tuple | list) and [type(part) for part in pair] == [str, str]:
            yield pair_sample(Pair(*pair, separator), place)
        else:
            raise UsageError(f"pair {number} is neither two strings nor a Sample: {pair!r:.100}")


def as_choices(
    rows: Iterable[tuple[str, Sequence[str]] | Sample], separator: str = ""
) -> Iterator[Sample | Rejected]:
    """Samples of a prompt with several responses.

    One that cannot be scored is `Rejected`. Raises UsageError for what is neither a string with
    strings nor a sample of choices.
    """
    for number, row in enumerate(rows, start=1):
        place = f"<row {number}>"
        if isinstance(row, Sample) and row.choices is not None:
            checked = choices_sample(row.choices, row.source)
            yield replace(checked, id=row.id) if isinstance(checked, Rejected) else row
            continue
        if not isinstance(row, tuple | list) or len(row) != 2 or not isinstance(row[0], str):
            raise UsageError(f"row {number} is neither a prompt with responses nor a Sample")
        responses = tuple(row[1])
        if isinstance(row[1], str) or not all(isinstance(text, str) for text in responses):
            raise UsageError(f"row {number}: its responses are no list of strings")
        yield choices_sample(Choices(row[0], responses, separator), place)


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
