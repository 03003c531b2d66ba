"""A local torch model as a `Backend`: ids in, losses out, by the fastest path that is exact.

Three paths, tried in this order, the first that equals a plain forward being used:
1. batched: right-padded rows, no attention mask, hidden states once, then the head on the scored
   positions only, a bounded number at a time;
2. single: the same, one row at a time (models whose states or positions mind the padding);
3. plain: `model(ids).logits`, one row at a time (heads that cannot be run on their own).

Shape letters: B rows, T positions, M scored positions, R of them at a time, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from seqloss_cli.backend import Batch, Branches, TokenScores, Wants
from seqloss_cli.batching import plan_batches
from seqloss_cli.config import BatchPolicy, WindowPolicy
from seqloss_cli.errors import RunError
from seqloss_cli.head import score_positions
from seqloss_cli.records import Floats, Ints, Sample, TokenSequence
from seqloss_cli.sharing import SHORTEST_TRUNK

T = TypeVar("T")
RunPath = Literal["batched", "single", "plain"]
PATHS: tuple[RunPath, ...] = ("batched", "single", "plain")
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Nats per token between two ways of computing the same, by the model's dtype (parts of some models
run in float32 whatever it is)."""
_LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")
"""Rotary factors that change, for all rows, with the longest row of a batch."""
_REACHES = ("sliding_window", "attention_chunk_size", "window_size")
"""How far layers look back, by the names that configurations have for it."""


@dataclass(frozen=True, slots=True)
class _BackboneOutput:
    """What a backbone returns, as far as a head looks at it: hidden states, nothing else."""

    last_hidden_state: Tensor

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return


class Engine:
    """Scores batches with a transformers causal LM. `warnings` says what it had to fall back to."""

    def __init__(
        self,
        model: Any,
        max_tokens: int,
        path: RunPath | None = None,
        share_prefix: bool = False,
    ) -> None:
        """`max_tokens` is the most tokens that the model may be fed; `path` skips the choice.
        Whether common beginnings can be shared is found out if `share_prefix` asks for it.

        Raises RunError when the model is not causal: its losses would see their own targets.
        """
        self.model = model
        self.warnings: list[str] = []
        self._backbones = _possible_backbones(model)
        self._backbone = self._backbones[0] if self._backbones else None
        self._vocabulary: int | None = None  # as wide as the first logits turn out to be
        self.path: RunPath = path or "plain"
        self._longest_shared = 0
        if path is None:
            self.path = self._at_load(lambda: self._choose_path(min(12, max_tokens)))
        if share_prefix and not self.one_row:
            self._longest_shared = self._at_load(lambda: self._choose_longest_shared(max_tokens))

    @property
    def one_row(self) -> bool:
        return self.path != "batched"

    @property
    def longest_shared(self) -> int:
        return self._longest_shared

    @torch.inference_mode()
    def score(self, batch: Batch, wants: Wants) -> TokenScores:
        """Score every target of the batch.

        Raises RunError when memory does not suffice, naming what helps.
        """
        try:
            return self._score(batch, wants)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            rows, width = batch.input_ids.shape
            raise RunError(
                f"out of memory in a batch of {rows} rows of {width} tokens: lower --batch-tokens"
                + (", or --context, or choose --dtype bfloat16" if rows == 1 else "")
            ) from error

    def _score(self, batch: Batch, wants: Wants) -> TokenScores:
        assert not self.one_row or len(batch.input_ids) == 1
        sources_M, targets_M = self._on_device(batch.sources), self._on_device(batch.targets)
        if self.path == "plain":
            ids_BT = self._on_device(batch.input_ids)
            logits_TV = self.model(input_ids=ids_BT, use_cache=False).logits[0]
            logits_MV = logits_TV[sources_M]
            return score_positions(
                lambda rows: logits_MV[rows], targets_M, logits_MV.shape[1], wants
            )
        hidden_MD = self._hidden(batch)[sources_M]
        if self._vocabulary is None:
            self._vocabulary = self._logits_of(hidden_MD[:1]).shape[1]
        return score_positions(
            lambda rows: self._logits_of(hidden_MD[rows]), targets_M, self._vocabulary, wants
        )

    def _hidden(self, batch: Batch) -> Tensor:
        """The hidden states of all fed positions, in the order that `batch.sources` counts."""
        assert self._backbone is not None
        ids_BT = self._on_device(batch.input_ids)
        if not batch.branches:
            hidden_BTD: Tensor = self._backbone(input_ids=ids_BT, use_cache=False)[0]
            return hidden_BTD.flatten(0, 1)
        from transformers import DynamicCache

        cache, width = DynamicCache(), ids_BT.shape[1]
        hidden = [self._backbone(input_ids=ids_BT, past_key_values=cache, use_cache=True)[0]]
        lengths_B = self._on_device(batch.lengths)
        for branches in batch.branches:
            hidden.append(
                self._backbone(
                    input_ids=self._on_device(branches.input_ids),
                    position_ids=self._on_device(branches.position_ids),
                    attention_mask=self._mask(lengths_B, width, branches),
                    past_key_values=cache,
                    use_cache=True,
                )[0]
            )
            cache.crop(-branches.input_ids.shape[1])
        return torch.cat([hidden_BRD.flatten(0, 1) for hidden_BRD in hidden])

    def _mask(self, lengths_B: Tensor, width: int, branches: Branches) -> Tensor:
        """B x 1 x R x (T + R), 0 where a token of a branch sees: its trunk, and what comes before
        it in its own branch. Padding sees the trunk, so that no row of the mask is empty."""
        numbers_BR = self._on_device(branches.numbers)
        n_rows, n_branch = numbers_BR.shape
        device = lengths_B.device
        trunk_BT = torch.arange(width, device=device) < lengths_B[:, None]
        same_BRR = numbers_BR[:, :, None] == numbers_BR[:, None, :]
        own_BRR = same_BRR & (numbers_BR >= 0)[:, None, :]
        own_BRR &= torch.ones(n_branch, n_branch, dtype=torch.bool, device=device).tril()
        sees = torch.cat([trunk_BT[:, None].expand(n_rows, n_branch, width), own_BRR], dim=2)
        mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=device)
        return mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)[:, None]

    def _logits_of(self, hidden_RD: Tensor) -> Tensor:
        """The model's own forward with its backbone replaced: soft caps, scales and biases that
        stand between hidden states and logits are applied, whatever they are."""
        assert self._backbone is not None
        with _returning(self._backbone, _BackboneOutput(hidden_RD[None])):
            ids_1R = torch.zeros(1, len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
            logits: Tensor = self.model(input_ids=ids_1R, use_cache=False).logits[0]
            return logits

    def _on_device(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self.model.device)

    # -- the checks at load -----------------------------------------------------------------

    @torch.inference_mode()
    def _at_load(self, check: Callable[[], T]) -> T:
        name = type(self.model).__name__
        try:
            return check()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise RunError(
                    f"out of memory in the first forward of {name}: choose a smaller --dtype or "
                    "another --device"
                ) from error
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{name} cannot be run in {self.model.dtype} ({reason}); try another --dtype"
            ) from error

    def _choose_path(self, n_tokens: int) -> RunPath:
        """The first path whose losses equal those of plain forwards on a few tokens."""
        ids, n_short = _probe_ids(n_tokens + 1, self._n_ids()), max(1, n_tokens * 2 // 3)
        short = _probe(ids[: n_short + 1])
        plain, plain_short = self._losses([_probe(ids), short])
        if not np.allclose(
            plain[:n_short], plain_short, rtol=1e-6, atol=self._leak(plain), equal_nan=True
        ):
            raise RunError(
                f"{type(self.model).__name__} is not causal: what it predicts depends on the "
                "tokens that come after (an encoder?), so its losses would mean nothing"
            )
        skipped = n_tokens // 3  # as later windows do: a head must not mind which rows it sees
        probes, expected = [_probe(ids, skipped), short], [plain[skipped:], plain_short]
        for path in PATHS[1:-1] if _rope_minds_length(self.model) else PATHS[:-1]:
            for backbone in self._backbones:
                self.path, self._backbone = path, backbone
                if self._agrees(probes, expected):
                    return self._said(path)
        return self._said("plain")

    def _choose_longest_shared(self, max_tokens: int) -> int:
        """The longest sequence that can share its beginning: 0 where one that does so gets other
        losses, or where a cache cannot be shared. Masks for branches know no sliding windows."""
        config = self.model.config.get_text_config()
        reaches = [getattr(config, name, None) for name in _REACHES]
        longest = min([max_tokens, *(reach for reach in reaches if isinstance(reach, int))])
        a, b = SHORTEST_TRUNK, SHORTEST_TRUNK + 3
        ids = _probe_ids(b + 22, self._n_ids())
        rows = [ids[: a + 1], ids[: a + 6], np.append(ids[:a], ids[b : b + 4])]
        rows += [ids[1 : b + 3], np.append(ids[1:b], ids[-5:])]
        rows = [row[: longest + 1] for row in rows]
        if longest < b + 6:
            return 0
        probes = [_probe(row) for row in rows]
        if self._agrees(probes, self._losses(probes), longest):
            return longest
        self.warnings.append(
            f"{type(self.model).__name__}: what prompts have in common is computed for each of "
            "them, since its cache cannot be shared (exact, but slower)"
        )
        return 0

    def _losses(self, probes: list[TokenSequence], longest_shared: int = 0) -> list[Floats]:
        """Of each probe, batched as sequences are, by the path and backbone that are set."""
        windows = WindowPolicy(max(probe.n_tokens for probe in probes), "probe", 1)
        policy = BatchPolicy(share_prefix=longest_shared > 0)
        losses = [np.empty(0)] * len(probes)
        for batch in plan_batches(probes, windows, policy, self.one_row, longest_shared):
            scores = self._score(batch, Wants())
            for part in batch.parts:
                losses[part.sequence] = scores.losses[part.scores]
        return losses

    def _agrees(
        self, probes: list[TokenSequence], expected: list[Floats], longest_shared: int = 0
    ) -> bool:
        try:
            losses = self._losses(probes, longest_shared)
        except Exception as error:  # whatever a model raises when it is not called as it expects
            if is_out_of_memory(error):
                raise
            return False
        return self._equal(np.concatenate(losses), np.concatenate(expected))

    def _equal(self, a: Any, b: Any) -> bool:
        """Within the dtype's tolerance, which grows with the losses; NaN equals NaN."""
        tolerance = _TOLERANCE.get(self.model.dtype, 1e-4)
        return bool(np.allclose(a, b, rtol=tolerance / 10, atol=tolerance, equal_nan=True))

    def _leak(self, losses: Floats) -> float:
        """A difference that is more than noise: a thousandth of how losses vary, since a model that
        was never trained is nearly flat, but no less than the dtype's own grain."""
        tolerance = _TOLERANCE.get(self.model.dtype, 1e-4)
        spread = float(np.nanstd(losses[np.isfinite(losses)])) if np.isfinite(losses).any() else 0.0
        return tolerance if tolerance > 1e-4 else max(5e-6, min(tolerance, spread / 1000))

    def _said(self, path: RunPath) -> RunPath:
        why = {
            "single": "a row's numbers would depend on its batch: one sequence at a time",
            "plain": "its head cannot be run apart: one sequence at a time with full logits",
        }
        if path in why:
            self.warnings.append(f"{type(self.model).__name__}: {why[path]} (exact, but slower)")
        return path

    def _n_ids(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])


def _rope_minds_length(model: Any) -> bool:
    """Whether rotary factors depend on the longest row: then a row's numbers depend on its batch.

    A probe of a few tokens cannot see it: the factors switch beyond a length of thousands.
    """
    written = repr(getattr(model.config.get_text_config(), "rope_parameters", None))
    return any(f"'{kind}'" in written for kind in _LENGTH_DEPENDENT_ROPE)


def is_out_of_memory(error: Exception) -> bool:
    """torch has an exception for it on accelerators; on a CPU it is any RuntimeError."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _possible_backbones(model: Any) -> list[Any]:
    """The modules that may turn ids into hidden states; which one does is found by trying."""
    found = []
    for candidate in (model.get_decoder(), model.base_model):
        if candidate is not None and candidate is not model and candidate not in found:
            found.append(candidate)
    return found


@contextmanager
def _returning(module: Any, output: Any) -> Iterator[None]:
    """While it lasts, calling the module returns `output`."""
    replaced = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced


def _probe_ids(n_tokens: int, n_ids: int) -> Ints:
    return (np.arange(n_tokens, dtype=np.int64) * 7919 + 17) % n_ids


def _probe(ids: Ints, skipped: int = 0) -> TokenSequence:
    """A sequence that scores all its tokens but for the first few."""
    wanted = np.arange(len(ids)) > skipped
    return TokenSequence(Sample("", "<probe>"), None, ids, None, wanted, wanted, "none", "none", {})
