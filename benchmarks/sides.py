"""The programs that are compared, each as a callable: texts or pairs in, log-probabilities out."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, PairPolicy, SpeedPolicy
from seqloss_cli.core.records import Pair, Sample, SequenceScore
from seqloss_cli.metrics.totals import totals_of
from seqloss_cli.models.model_loading import keep_freed_memory
from seqloss_cli.scoring.scorer import Scorer

PairTexts = tuple[str, str]
BATCH_TOKENS, PEER_BATCH = 4096, 16


def load_scorer(
    name: str,
    dtype: str,
    mode: str = "eager",
    batches: BatchPolicy | None = None,
    pairs: PairPolicy | None = None,
    device: str = "cpu",
) -> Scorer:
    """`mode` is eager or compiled."""
    return Scorer(
        ModelChoice(name=name, dtype=dtype, device=device),  # type: ignore[arg-type]
        batches=batches,
        pairs=pairs,
        speed=SpeedPolicy(compile="on" if mode == "compiled" else "off"),
    )


class Watch:
    """While it lasts, notes the batches that an engine is given."""

    def __init__(self, scorer: Any) -> None:
        self._backend, self.batches = scorer.backend, []

    def __enter__(self) -> Watch:
        score = self._backend.score

        def noting(batch: Any, requested: Any) -> Any:
            self.batches.append(batch)
            return score(batch, requested)

        self._backend.score = noting
        return self

    def __exit__(self, *_: object) -> None:
        del self._backend.score

    @property
    def mean_tokens(self) -> int:
        return round(sum(batch.n_fed for batch in self.batches) / len(self.batches))


class Ours:
    """seqloss from strings to losses. Rows of a call are planned together (`share_prefix` makes the
    first read-ahead block 256 rows), as they are in the middle of a long run."""

    def __init__(
        self,
        folder: Path,
        dtype: str,
        mode: str,
        pairs: bool = False,
        device: str = "cpu",
        tokens: int = BATCH_TOKENS,
    ) -> None:
        self.scorer = load_scorer(
            str(folder),
            dtype,
            mode,
            BatchPolicy(tokens=tokens, share_prefix=True),
            PairPolicy(marginal=False) if pairs else None,
            device,
        )

    def scores(self, samples: Sequence[Sample]) -> list[SequenceScore]:
        keep_freed_memory()  # as loading the model did; peers run without it
        found = list(self.scorer.score(samples, Requested()))
        hand_back_freed_memory()
        good = [score for score in found if isinstance(score, SequenceScore)]
        if len(good) != len(found):
            raise ValueError("seqloss rejected a text of the benchmark")
        return good

    def texts(self, texts: Sequence[str]) -> list[float]:
        scores = self.scores([Sample(str(n), "b", text=text) for n, text in enumerate(texts)])
        return [float(totals_of(score).log_prob or 0.0) for score in scores]

    def pairs(self, pairs: Sequence[PairTexts]) -> list[float]:
        samples = [Sample(str(n), "b", pair=Pair(*pair)) for n, pair in enumerate(pairs)]
        return [float(totals_of(score).log_prob or 0.0) for score in self.scores(samples)]


def hand_back_freed_memory(from_size: int = 32 << 20) -> None:
    """Undo what `keep_freed_memory` did for the process, so that peers find the C library as they
    do in a process of their own: blocks of so many bytes and more come from the system each time;
    32 MiB is where its own adjustment ends (mallopt(3): M_MMAP_THRESHOLD)."""
    library = ctypes.CDLL(None)
    for parameter, value in ((-4, 1 << 16), (-3, from_size), (-1, 2 * from_size)):
        library.mallopt(parameter, value)
    library.malloc_trim(0)


def load_plain(folder: Path, dtype: str) -> tuple[Any, Any]:
    """A model that nobody has touched, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def textbook(model: Any, tokenizer: Any) -> Callable[[Sequence[str]], list[float]]:
    """One text at a time, full logits, log-softmax in float32, and the targets picked from it."""

    @torch.no_grad()
    def log_probs(texts: Sequence[str]) -> list[float]:
        found = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            logits = model(ids).logits
            log_probs = torch.log_softmax(logits[0, :-1].float(), dim=-1)
            found.append(log_probs.gather(1, ids[0, 1:, None]).sum().item())
        return found

    return log_probs


class Harness:
    """lm-evaluation-harness, with BOS as ours."""

    def __init__(self, folder: Path, dtype: str, device: str = "cpu") -> None:
        logging.disable(logging.WARNING)
        with _quiet():
            from lm_eval.models.huggingface import HFLM

            self._model = HFLM(
                pretrained=str(folder),
                dtype=dtype,
                device=device,
                batch_size=PEER_BATCH,
                add_bos_token=True,
            )

    def pairs(self, softmax: str | None = None) -> Callable[[Sequence[PairTexts]], list[float]]:
        """`softmax` is its `softmax_dtype`; None is its default."""
        from lm_eval.api.instance import Instance

        dtype = None if softmax is None else getattr(torch, softmax)

        def log_probs(pairs: Sequence[PairTexts]) -> list[float]:
            self._model.softmax_dtype = dtype  # as the constructor sets it
            requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
            found = self._model.loglikelihood(requests, disable_tqdm=True)
            return [log_prob for log_prob, _ in found]

        return log_probs


def minicons(model: Any, tokenizer: Any) -> Callable[[Sequence[str]], list[float]]:
    """minicons, batches of 16 in the order that texts come in. The tokenizer puts BOS in front of
    them, so `bos_token` must stay off; the first token's probability is left out, as ours."""
    with _quiet():
        from minicons import scorer

        peer = scorer.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)

    def log_probs(texts: Sequence[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(texts), PEER_BATCH):
            batch = list(texts[start : start + PEER_BATCH])
            found += peer.sequence_score(batch, reduction=lambda x: x.sum(0).item())
        return found

    return log_probs


@contextlib.contextmanager
def _quiet() -> Any:
    """Peers say much while they load."""
    with (
        warnings.catch_warnings(),
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield
