"""Made sequences through the pipeline, with a backend of the test's own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from helpers.builders import N_BYTE_IDS, byte_tokenizer
from helpers.oracles import CONTEXT, STRIDE
from seqloss_cli import PairPolicy
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.errors import OutOfMemoryError
from seqloss_cli.core.policies import BatchPolicy, TokenPolicy, WindowPolicy
from seqloss_cli.core.records import Pair, Sample, SequenceScore, TokenSequence
from seqloss_cli.scoring import pipeline
from seqloss_cli.scoring.pipeline import ignore_progress, score_samples
from seqloss_cli.tokenization.pairs import PairTokenization
from seqloss_cli.tokenization.tokenizer import Tokenization

LONGEST = 64
"""What the engines may be fed; windows of `CONTEXT` are shorter."""
EVERYTHING = Requested(ranks=True, entropy=True, top_k=3)
HAS_COMPILER = any(shutil.which(name) for name in ("g++", "clang++"))
NEEDS_COMPILER = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")


def sequence_of(ids: list[int], has_bos: bool) -> TokenSequence:
    array = np.array([0, *ids] if has_bos else ids, dtype=np.int64)
    wanted = np.arange(len(array)) > 0
    bos: Any = "prepended" if has_bos else "none"
    return TokenSequence(Sample("", "test"), None, array, None, wanted, wanted, bos, "none", {})


def scores_by(
    backend: Any,
    sequences: list[TokenSequence],
    policy: BatchPolicy,
    requested: Requested = EVERYTHING,
    first_rows: int = 256,
) -> list[SequenceScore]:
    """`first_rows` are read together at first: rows of different blocks are in no one batch."""
    left = iter(sequences)
    with patch.object(pipeline, "FIRST_BLOCK_ROWS", first_rows):
        found = score_samples(
            (Sample(str(n), "test", text="x") for n in range(len(sequences))),
            lambda samples: [next(left) for _ in samples],
            backend,
            WindowPolicy(CONTEXT, "test", STRIDE),
            requested,
            policy,
        )
        scores = [outcome for outcome in found if isinstance(outcome, SequenceScore)]
    assert [id(score.sequence) for score in scores] == [id(sequence) for sequence in sequences]
    return scores


def random_rows(seed: int, n_rows: int) -> list[TokenSequence]:
    """Ragged, with and without BOS; some need several windows."""
    made = np.random.default_rng(seed)
    lengths = made.integers(1, 90, n_rows)
    return [sequence_of(made.integers(2, N_BYTE_IDS, n).tolist(), n % 3 > 0) for n in lengths]


PROMPTS = ("The quick brown fox jumps over", "The quick brown dog", "Another prompt altogether, ")
PAIRS = [
    Pair(prompt, response)
    for prompt in PROMPTS
    for response in (" it.", " the lazy dog", " the lazy cat", "!", " 日本語🐕")
]


def outcomes(
    backend: Any,
    share: bool,
    pairs: list[Pair] = PAIRS,
    tokens: int = 4096,
    policy: PairPolicy | None = None,
    requested: Requested | None = None,
) -> list[SequenceScore]:
    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
    pairing = PairTokenization(tokenization, policy or PairPolicy(), LONGEST + 1)
    samples = [Sample(str(n), "test", pair=pair) for n, pair in enumerate(pairs)]
    windows = WindowPolicy(LONGEST, "test", LONGEST)
    batches = BatchPolicy(tokens, share)
    found = list(
        score_samples(
            samples, pairing.tokenize, backend, windows, requested or Requested(), batches
        )
    )
    assert all(isinstance(outcome, SequenceScore) for outcome in found), found
    return found  # type: ignore[return-value]


class Counting:
    """An engine that counts the tokens it was fed."""

    def __init__(self, backend: TorchBackend) -> None:
        self.backend, self.fed, self.batches = backend, 0, []
        self.capabilities = backend.capabilities

    def score(self, batch: Any, requested: Requested) -> Any:
        self.batches.append(batch)
        self.fed += int(batch.lengths.sum())
        self.fed += sum(int((suffixes.numbers >= 0).sum()) for suffixes in batch.suffixes)
        return self.backend.score(batch, requested)


TEXTS = [f"row {n} " + "of some text " * (n % 4) for n in range(24)]


class Narrow:
    """An engine with room for so many tokens."""

    def __init__(self, backend: TorchBackend, room: int) -> None:
        self.backend, self.room, self.n_too_large = backend, room, 0
        self.path, self.warnings, self.compiled = backend.path, backend.warnings, backend.compiled
        self.capabilities = backend.capabilities

    def score(self, batch: Any, requested: Requested) -> Any:
        if batch.input_ids.size > self.room:
            self.n_too_large += 1
            raise OutOfMemoryError("out of memory: lower --batch-tokens")
        return self.backend.score(batch, requested)


def scores_of(
    backend: Any,
    samples: Any = None,
    tokens: int = 4096,
    prefetch: bool = True,
    tokenize: Any = None,
    on_progress: Any = ignore_progress,
) -> Iterator[Any]:
    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
    return score_samples(
        samples or (Sample(str(n), "test", text=text) for n, text in enumerate(TEXTS)),
        tokenize or tokenization.tokenize,
        backend,
        WindowPolicy(CONTEXT, "test", STRIDE),
        Requested(),
        BatchPolicy(tokens, prefetch=prefetch),
        on_progress,
    )


def assert_all_free(fleet: Any, members: list[Narrow]) -> None:
    """Each takes a batch while the others still have theirs."""
    barrier = threading.Barrier(len(members))
    for each in members:
        each.score = lambda batch, requested: barrier.wait(60)  # type: ignore[method-assign]
    with ThreadPoolExecutor(len(members)) as pool:
        list(pool.map(lambda _: fleet.score(None, None), members))
