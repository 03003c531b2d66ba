"""A local torch model as a `Backend`: ids in, losses out, by the fastest path that is exact.

Four paths, tried in this order, the first that equals a plain forward being used:
1. packed: rows one after another without padding, hidden states once, then the head on the scored
   positions only, a bounded number at a time (rows beyond a sliding window are batched);
2. batched: the same with rows padded on the right, without an attention mask (models whose
   attention cannot be told where rows begin);
3. single: the same, one row at a time (models whose states or positions mind the padding);
4. plain: `model(ids).logits`, row by row (heads that cannot be run on their own)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch

from seqloss_cli.backend import Batch, TokenScores, Wants
from seqloss_cli.batching import plan_batches
from seqloss_cli.compiling import CompiledLayers
from seqloss_cli.config import BatchPolicy, WindowPolicy
from seqloss_cli.errors import OutOfMemoryError, RunError, SeqlossError
from seqloss_cli.quantization import described
from seqloss_cli.records import Floats, Ints, Sample, TokenSequence
from seqloss_cli.running import PATHS, Runner, RunPath, can_run_in_blocks
from seqloss_cli.sharing import SHORTEST_TRUNK
from seqloss_cli.traits import (
    longest_seen_whole,
    minds_its_place,
    possible_backbones,
    rope_minds_length,
    rounds_what_comes_in,
)
from seqloss_cli.tuning import is_out_of_memory

T = TypeVar("T")
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Nats per token between two ways of computing the same, by the model's dtype (parts of some models
run in float32 whatever it is)."""
_APART = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Nats by which a row's losses may change with the ids of another: the rounding of experts that
take other numbers of tokens."""


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
        self._backbones = possible_backbones(model)
        self._longest = longest_seen_whole(model, max_tokens)
        self._runner = Runner(model, self._longest)
        self._rounding = rounds_what_comes_in(model)
        self.n_too_large = 0
        """Batches that did not fit in memory."""
        if path is None:
            self._at_load(lambda: self._choose_path(min(12, max_tokens)))
        elif path != "plain":
            self._runner.go_by(path, self._backbones[0])
        self.abilities = self._runner.abilities
        if share_prefix and not self.abilities.one_row:
            longest_shared = self._at_load(self._choose_longest_shared)
            self.abilities = replace(self.abilities, longest_shared=longest_shared)

    @property
    def path(self) -> RunPath:
        return self._runner.path

    @property
    def compiled(self) -> bool:
        """Whether packed rows go through compiled layers."""
        return self._runner.compiled is not None

    @torch.inference_mode()
    def compile(self) -> None:
        """Compile the layers, which takes a while, and see that losses stay the same.

        Raises RunError when that cannot be done; then nothing is changed.
        """
        name = type(self.model).__name__
        if self.path != "packed":
            raise RunError(f"{name} is run one way only, which cannot be compiled: --compile off")
        ids = _probe_ids(min(24, self._longest) + 1, self._n_ids())
        probes = [_probe(ids), _probe(ids[: len(ids) // 2 + 1])]
        expected = self._losses(probes)
        try:
            self._runner.compiled = CompiledLayers(self._runner.backbone)
            equal = self._equal(*(np.concatenate(x) for x in (self._losses(probes), expected)))
        except Exception as error:  # the compiler has many ways to fail
            self.stop_compiled()
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{name} cannot be compiled here ({type(error).__name__}: {reason}): --compile off "
                "does without"
            ) from error
        if not equal:
            self.stop_compiled()
            raise RunError(f"{name} gives other losses when it is compiled: --compile off")

    def stop_compiled(self) -> None:
        """Run the layers as they are again."""
        self._runner.compiled = None

    def score(self, batch: Batch, wants: Wants) -> TokenScores:
        """Score every target of the batch.

        Raises OutOfMemoryError when memory does not suffice, naming what helps.
        """
        return self.run(batch, lambda runner: runner.score(batch, wants))

    @torch.inference_mode()
    def run(self, batch: Batch, compute: Callable[[Runner], TokenScores]) -> TokenScores:
        """What is computed of the batch; raises as `score` does."""
        try:
            return compute(self._runner)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.n_too_large += 1
            rows, width = len(batch.lengths), int(batch.lengths.max())
            width += sum(branches.input_ids.shape[1] for branches in batch.branches)
            raise OutOfMemoryError(
                f"out of memory in a batch of {rows} rows of {width} tokens: lower --batch-tokens"
                + (", or --context, or choose --dtype bfloat16" if rows == 1 else "")
                + (", or give --no-share-prefix" if batch.branches else "")
            ) from error

    @torch.inference_mode()
    def vocabulary(self) -> int:
        """How many logits the model has."""
        probe = _probe(_probe_ids(2, self._n_ids()))
        windows, policy = WindowPolicy(2, "probe", 1), BatchPolicy()
        (batch,) = plan_batches([probe], windows, policy, self._runner.abilities)
        return self._runner.logits(batch).vocabulary

    # -- the checks at load -----------------------------------------------------------------

    @torch.inference_mode()
    def _at_load(self, check: Callable[[], T]) -> T:
        name = type(self.model).__name__
        try:
            return check()
        except SeqlossError:
            raise
        except Exception as error:  # quantised layers that were not made whole fail in many ways
            if is_out_of_memory(error):
                raise RunError(
                    f"out of memory in the first forward of {name}: choose a smaller --dtype or "
                    "another --device"
                ) from error
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if (kind := described(self.model.config)) is not None:
                raise RunError(
                    f"{name} cannot be run as it is quantised ({kind}: {reason})"
                ) from error
            if not isinstance(error, RuntimeError | MemoryError):
                raise
            raise RunError(
                f"{name} cannot be run in {self.model.dtype} ({reason}); try another --dtype"
            ) from error

    def _choose_path(self, n_tokens: int) -> None:
        """Go by the first path whose losses equal those of plain forwards on a few tokens."""
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
        alone = rope_minds_length(self.model) or self._rounding is not None
        paths: tuple[RunPath, ...] = ("single",) if alone else PATHS[:-1]
        if "packed" in paths and (not self._longest or minds_its_place(self.model)):
            paths = PATHS[1:-1]
        blocks = (True, False) if can_run_in_blocks(self.model) else (False,)
        for path, backbone, in_blocks in product(paths, self._backbones, blocks):
            self._runner.go_by(path, backbone, in_blocks)
            self._runner.block_width = -(-self._n_ids() // 3)  # else a few positions need one block
            if self._agrees(probes, expected) and self._keeps_apart(*probes):
                self._runner.block_width = None
                self._say_what_is_slow(slow_head=blocks[0] and not in_blocks)
                return
        self._runner.go_by("plain", None)
        self._say_what_is_slow()

    def _keeps_apart(self, long: TokenSequence, short: TokenSequence) -> bool:
        """Whether a row's losses stay as they are when the ids of the row before it change."""
        if self._runner.abilities.one_row:
            return True
        other = _probe((long.token_ids[::-1] + 1) % self._n_ids())
        before, after = (self._losses([first, short])[1] for first in (long, other))
        atol = _APART.get(self.model.dtype, 1e-5)
        return bool(np.allclose(before, after, rtol=0, atol=atol, equal_nan=True))

    def _choose_longest_shared(self) -> int:
        """The longest sequence that can share its beginning: 0 where one that does so gets other
        losses, or where a cache cannot be shared. Masks for branches know no sliding windows."""
        longest = self._longest
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
        abilities = replace(self._runner.abilities, longest_shared=longest_shared)
        losses = [np.empty(0)] * len(probes)
        for batch in plan_batches(probes, windows, policy, abilities):
            scores = self._runner.score(batch, Wants())
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
        was never trained is nearly flat, but no less than the dtype's own grain, nor than what
        rounded activations make of a token more or less."""
        tolerance = _TOLERANCE.get(self.model.dtype, 1e-4)
        spread = float(np.nanstd(losses[np.isfinite(losses)])) if np.isfinite(losses).any() else 0.0
        if self._rounding is not None:
            return max(_TOLERANCE[torch.bfloat16], spread / 4)
        return tolerance if tolerance > 1e-4 else max(5e-6, min(tolerance, spread / 1000))

    def _say_what_is_slow(self, slow_head: bool = False) -> None:
        why = {
            "single": "a row's numbers would depend on its batch: one sequence at a time",
            "plain": "its head cannot be run apart: one sequence at a time with full logits",
        }
        reasons = [why[self.path]] if self.path in why and self._rounding is None else []
        if self._rounding is not None:
            self.warnings.append(
                f"{self._rounding} rounds what goes into a layer, too, by scales of all that "
                "is fed at a time: one sequence at a time, and later tokens may move a loss a bit"
            )
        if slow_head:
            reasons += ["its head cannot be run for a part of the vocabulary: whole rows of logits"]
        name = type(self.model).__name__
        self.warnings += [f"{name}: {reason} (exact, but slower)" for reason in reasons]

    def _n_ids(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])


def _probe_ids(n_tokens: int, n_ids: int) -> Ints:
    return (np.arange(n_tokens, dtype=np.int64) * 7919 + 17) % n_ids


def _probe(ids: Ints, skipped: int = 0) -> TokenSequence:
    """A sequence that scores all its tokens but for the first few."""
    wanted = np.arange(len(ids)) > skipped
    return TokenSequence(Sample("", "<probe>"), None, ids, None, wanted, wanted, "none", "none", {})
