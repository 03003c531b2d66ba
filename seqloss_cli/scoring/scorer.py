"""Compose the pipeline: a loaded model, or a tokenizer alone, with the policies of a run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, islice
from typing import Any

import numpy as np

from seqloss_cli.backends.opening import open_backend
from seqloss_cli.core.backend import (
    LoadedTokenizer,
    Requested,
    StudentWithTeacher,
    require_quantities,
)
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.options import require_whole
from seqloss_cli.core.policies import (
    DEFAULT_MODEL,
    BatchPolicy,
    ModelChoice,
    PairPolicy,
    SpeedPolicy,
    TokenPolicy,
    WindowPolicy,
)
from seqloss_cli.core.records import (
    Entry,
    Item,
    Outcome,
    Rejected,
    Sample,
    SequenceScore,
    TokenSequence,
)
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.models.checkpoint import load_tokenizer_only, window_policy
from seqloss_cli.models.plain_tokenizer import PlainTokenizer
from seqloss_cli.scoring import pipeline
from seqloss_cli.tokenization.pairs import PairTokenization
from seqloss_cli.tokenization.tokenizer import Tokenization


class _Tokens:
    """A tokenizer with the policies of a run."""

    def __init__(self, loaded: LoadedTokenizer, policy: TokenPolicy | None) -> None:
        ids = loaded.n_ids, loaded.bos_ids, loaded.eos_ids
        self.tokenization = Tokenization(loaded.tokenizer, policy or TokenPolicy(), *ids)
        self.pairing: PairTokenization | None = None
        self.warnings = [*loaded.warnings, *self.tokenization.warnings]
        self._tokenizer_name = loaded.tokenizer_name
        self._attach_teacher_rows: Callable[[Entry], Entry] | None = None

    def _set_pairing(self, policy: PairPolicy, windows: WindowPolicy | None) -> None:
        longest = None if windows is None else windows.context + 1
        self.pairing = PairTokenization(self.tokenization, policy, longest)

    def _tokenize(self, samples: Sequence[Sample]) -> list[Entry]:
        entries = (self.pairing or self.tokenization).tokenize(samples)
        return (
            entries
            if self._attach_teacher_rows is None
            else list(map(self._attach_teacher_rows, entries))
        )

    def _run_info(self, command: str, windows: WindowPolicy | None) -> RunInfo:
        """Make a run record of the policies: the fields of the model stay empty."""
        tokens, pairing = self.tokenization, self.pairing
        bos_id, policy = tokens.bos_id, tokens.policy
        return RunInfo(
            command=command,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            tokenizer=self._tokenizer_name,
            tokenizer_sha256=tokens.sha256,
            bos=policy.bos,
            bos_token_id=bos_id,
            bos_token=None if bos_id is None else tokens.name_token(bos_id),
            eos=policy.eos,
            eos_token_id=tokens.eos_id,
            special_tokens=policy.special_tokens,
            context=None if windows is None else windows.context,
            context_source=None if windows is None else windows.context_source,
            boundary=None if pairing is None else pairing.policy.boundary,
            pairs=None if pairing is None else pairing.described(),
            versions=_versions(),
        )


class Scorer(_Tokens):
    """A loaded model with the policies of a run. `warnings` are for stderr.

    Raises RunError when the model cannot be loaded and UsageError when options do not fit it.
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
        opened = open_backend(
            choice, context, stride, batches or BatchPolicy(), speed or SpeedPolicy()
        )
        super().__init__(opened.loaded, policy)
        self.backend_name, self.windows = choice.backend, opened.windows
        self.configuration_sha256 = opened.loaded.configuration_sha256
        self._choice, self._pairs, self._verified = choice, pairs, dict[str, Any]()
        if pairs is not None:
            self._set_pairing(pairs, self.windows)
        # Only now: a token that is none is an error before probes and compilers take minutes.
        self.backend, self.batches = opened.start()
        if not self.backend.capabilities.prefetch_helps:
            self.batches = replace(self.batches, prefetch=False)
        self.warnings += self.backend.warnings

    def with_teacher(self, compared: StudentWithTeacher) -> Scorer:
        """Return a scorer of the model beside a teacher; this one stays as it is.

        The two share the model, so they cannot score at the same time.
        """
        found = copy(self)
        found.backend, found.windows = compared.backend, compared.windows
        found._attach_teacher_rows = compared.attach_teacher_rows
        if compared.n_ids is not None:
            # A copy: an id that the teacher does not know rejects a row here, and only here.
            found.tokenization = copy(self.tokenization)
            found.tokenization.n_ids = min(self.tokenization.n_ids, compared.n_ids)
        if self.pairing is not None:
            found._set_pairing(self.pairing.policy, found.windows)
        return found

    def score(
        self,
        items: Iterable[Sample | Rejected],
        requested: Requested | None = None,
        on_progress: pipeline.OnProgress = pipeline.ignore_progress,
        n_finished: int | Callable[[], int] = 0,
        on_finished: Callable[[Entry], None] = pipeline.ignore_finished,
    ) -> Iterator[Outcome]:
        """Yield a score or a rejection for each item, in order, as soon as it is ready. The first
        `n_finished` are not scored, but handed to `on_finished` as they would be.

        Raises UsageError as `require_possible` does.
        """
        requested = requested or Requested()
        self.require_possible(requested)
        return pipeline.score_samples(
            items,
            self._tokenize,
            self.backend,
            self.windows,
            requested,
            self.batches,
            on_progress,
            n_finished,
            on_finished,
        )

    def verified(
        self, items: Iterable[Item], as_scored: Callable[[list[Item]], Iterable[Item]] = list
    ) -> Iterator[Item]:
        """Return the items, the first of which were scored with the model itself, too, where
        --verify asks for it; `as_scored` makes what is scored of them.

        Raises RunError where a server's losses differ by more than its tolerance, UsageError where
        no model is named.
        """
        engine, items = self._choice.engine, iter(items)
        if engine is None or not engine.verify:
            return items
        name = self._choice.name or (DEFAULT_MODEL if self._choice.tokenizer is None else "")
        if not name:
            raise UsageError("--verify scores with the model itself: name it with --model")
        local = Scorer(
            replace(self._choice, name=name, backend="torch", engine=None),
            self.tokenization.policy,
            self.windows.context,
            self.windows.stride,
            pairs=self._pairs,
            speed=SpeedPolicy(compile="off"),
        )
        first, differences = list[Item](), list[float]()
        # On to others where a row has no token that both scored: it verifies nothing.
        while some := list(islice(items, max(0, engine.verify - len(differences)))):
            first += some
            differences += self._differences(local, as_scored(some))
        if not differences:
            raise RunError("--verify: there is no input with a token that both scored")
        # np.max, of which NaN is the greatest.
        worst = float(np.max(differences))
        tolerance = self.backend.describe()["engine"]["probe_tolerance"]
        if not worst <= tolerance:
            raise RunError(
                f"--verify: the server's losses differ by {worst:.3g} nats from those of "
                f"{name} here (--probe-tolerance {tolerance:g})"
            )
        # Sequences that both scored: of an input that one of them rejects nothing is verified.
        found = {"verified_rows": len(differences), "verified_worst_difference": worst}
        self._verified = found
        return chain(first, items)

    def _differences(self, other: Scorer, items: Iterable[Item]) -> Iterator[float]:
        """Yield the largest difference of a token's loss, nats, of each item with such a token."""
        items = list(items)
        for theirs, ours in zip(self.score(items), other.score(items), strict=True):
            if isinstance(theirs, SequenceScore) and isinstance(ours, SequenceScore):
                common = theirs.scored & ours.scored
                if common.any():
                    yield float(np.abs(theirs.losses - ours.losses)[common].max())

    def require_possible(self, requested: Requested) -> None:
        """Raise UsageError for a quantity that the backend cannot give, and for more alternatives
        than the model has ids."""
        require_whole("--top-k", requested.top_k, 0)
        if requested.top_k > self.tokenization.n_ids:
            raise UsageError(
                f"--top-k {requested.top_k} is more than the model's {self.tokenization.n_ids} ids"
            )
        require_quantities(self.backend.capabilities, requested)

    def run_info(self, command: str = "api") -> RunInfo:
        """Return the run record: the model and the policies, rule 12."""
        described = dict(self.backend.describe())
        versions = {**_versions(), **described.pop("versions", {})}
        batch_tokens: int | None = self.batches.tokens
        if "engine" in described:
            described["engine"] = {**described["engine"], **self._verified}
            # No number was computed here, and rows are not put together.
            batch_tokens = None
            del versions["torch"]
            if isinstance(self.tokenization.vocabulary.tokenizer, PlainTokenizer):
                del versions["transformers"]
        return replace(
            self._run_info(command, self.windows),
            stride=None if self.pairing else self.windows.stride,
            share_prefix=self.backend.capabilities.longest_shared > 0,
            batch_tokens=batch_tokens,
            gold="one-hot",
            versions=versions,
            **described,
        )


class PairTokens(_Tokens):
    """Pairs and chats as token sequences, without a model: no weights are loaded.

    Raises RunError when there is no tokenizer and UsageError when options do not fit it.
    """

    def __init__(
        self,
        choice: ModelChoice,
        policy: TokenPolicy | None = None,
        pairs: PairPolicy | None = None,
        context: int | None = None,
        spare_torch: bool = False,
    ) -> None:
        """With `spare_torch` no model can be loaded in this process afterwards."""
        found = load_tokenizer_only(choice, spare_torch)
        super().__init__(found, policy)
        self.windows: WindowPolicy | None = None
        if context is not None or found.max_context is not None:
            self.windows = window_policy(found, context, None)
        self._set_pairing(pairs or PairPolicy(), self.windows)

    def sequences(self, items: Iterable[Sample | Rejected]) -> Iterator[TokenSequence | Rejected]:
        """Yield a sequence or a rejection for each item, in order."""
        for block in pipeline.read_ahead(items):
            yield from pipeline.tokenize_block(block, self._tokenize)

    def run_info(self, command: str = "api") -> RunInfo:
        """Return the run record, as far as it is known without a model."""
        return self._run_info(command, self.windows)


def _versions() -> dict[str, str]:
    names = ("seqloss", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
