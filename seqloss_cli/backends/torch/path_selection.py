"""Find out on a few tokens how a model may be run: the fastest path that equals plain forwards.

No list of models is kept: a path is used where its losses equal those of `model(ids).logits`. Four
paths are tried in this order, and the first that is exact is used:

1. packed: rows one after another without padding, hidden states once, then the head on the scored
   positions only, a bounded number at a time (rows beyond a sliding window are batched);
2. batched: the same with rows padded on the right, without an attention mask (models whose
   attention cannot be told where rows begin);
3. single: the same, one row at a time (models whose states or positions depend on padding);
4. plain: `model(ids).logits`, row by row (heads that cannot be run on their own).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seqloss_cli.backends.batching import plan_batches
from seqloss_cli.backends.prefix_sharing import SHORTEST_PREFIX
from seqloss_cli.backends.torch.forward import (
    PATHS,
    RunPath,
    can_run_in_blocks,
    possible_backbones,
)
from seqloss_cli.backends.torch.tensor_parallel import forward_of
from seqloss_cli.core.backend import Batch, Capabilities, Requested
from seqloss_cli.core.errors import RunError
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import Floats, Ints, Sample, TokenSequence
from seqloss_cli.models.model_loading import is_out_of_memory
from seqloss_cli.models.quantization import activation_quantization

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Nats per token between two ways of computing the same, by the model's dtype (parts of some models
run in float32 whatever it is)."""
_ROW_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
"""Nats by which a row's losses may change with the ids of another: the rounding of experts that
take other numbers of tokens."""
_LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")
"""Rotary factors that change, for all rows, with the longest row of a batch."""
_WINDOW_SETTINGS = ("sliding_window", "attention_chunk_size", "window_size")
"""Settings of configurations for the number of tokens that layers look back."""
_PACKED_POSITION_SETTINGS = ("attn_temperature_tuning",)
"""Settings of models that scale attention by a token's place in what is fed, not in its row, beyond
thousands of tokens."""


class PathSelector:
    """The ways in which a model may be run, tried on a few made-up ids. `warnings` says what is not
    the fastest, and why."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        """`max_tokens` is the most tokens that the model may be fed."""
        self.model, self.warnings = model, list[str]()
        self.longest = longest_unwindowed_row(model, max_tokens)
        """The longest row of which every token sees all before it."""
        self.model_forward = forward_of(model, self.longest)
        self.backbones = possible_backbones(model)
        self._rounding = activation_quantization(model.config)
        self._last_error = ""
        """The error of the last way that was tried, or nothing."""
        self._not_packed = ""
        """The reason why rows are padded, or fed one at a time."""

    def choose_path(self, n_tokens: int) -> None:
        """Use the first path whose losses equal those of plain forwards on `n_tokens` tokens.

        Raises RunError for a model that is not causal.
        """
        ids, n_short = probe_ids(n_tokens + 1, self.n_ids), max(1, n_tokens * 2 // 3)
        self._say_what_is_rounded(probe_of(ids))
        short = probe_of(ids[: n_short + 1])
        plain, plain_short = self.losses([probe_of(ids), short])
        atol = self._causality_tolerance(plain)
        if not np.allclose(plain[:n_short], plain_short, rtol=1e-6, atol=atol, equal_nan=True):
            raise RunError(
                f"{type(self.model).__name__} is not causal: what it predicts depends on the "
                "tokens that come after (an encoder, or a model of prefixes?), so its losses would "
                "mean nothing"
            )
        # Later windows skip targets, too: a head must not depend on which positions it is given.
        skipped = n_tokens // 3
        probes, expected = [probe_of(ids, skipped), short], [plain[skipped:], plain_short]
        paths = self._possible_paths()
        blocks = (True, False) if can_run_in_blocks(self.model) else (False,)
        for path, backbone, in_blocks in product(paths, self.backbones, blocks):
            self.model_forward.use_path(path, backbone, in_blocks)
            # Three blocks: so few positions would be done in one, and blocks stay untried.
            self.model_forward.block_width = -(-self.n_ids // 3)
            if self.agrees(probes, expected) and self._rows_are_independent(*probes):
                self.model_forward.block_width = None
                self._say_what_is_slow(slow_head=blocks[0] and not in_blocks)
                return
            if path == "packed" and not self._not_packed:
                self._not_packed = self._last_error or "packed, they would get other losses"
        self.model_forward.use_path("plain", None)
        self._say_what_is_slow()

    def _say_what_is_rounded(self, probe: TokenSequence) -> None:
        """Warn of a float64 model that computes in other types, too."""
        if self.model.dtype != torch.float64:
            return
        with _RoundingWatch() as watch:  # type: ignore[no-untyped-call]
            self.losses([probe])
        if watch.rounds:
            self.warnings.append(
                "--dtype float64: transformers computes parts of this model (rotary angles, norms "
                "or softmaxes) in float32, so that its losses are right to about 0.0001 nats"
            )

    def _possible_paths(self) -> tuple[RunPath, ...]:
        """Paths that are left to be tried after what the configuration says."""
        if has_length_dependent_rope(self.model) or self._rounding is not None:
            return ("single",)
        if not self.longest:
            self._not_packed = "its layers look back in ways that are not known"
        elif depends_on_packed_position(self.model):
            self._not_packed = "its attention minds where in a batch a row stands"
        return PATHS[1:-1] if self._not_packed else PATHS[:-1]

    def _rows_are_independent(self, long: TokenSequence, short: TokenSequence) -> bool:
        """True where a row's losses stay as they are when the ids of the row before it change."""
        if self.model_forward.capabilities.one_row_per_batch:
            return True
        other = probe_of((long.token_ids[::-1] + 1) % self.n_ids)
        before, after = (self.losses([first, short])[1] for first in (long, other))
        atol = _ROW_TOLERANCE.get(self.model.dtype, 1e-5)
        return bool(np.allclose(before, after, rtol=0, atol=atol, equal_nan=True))

    def choose_longest_shared(self) -> int:
        """Return the longest sequence, in tokens, that can share its prefix: 0 where one that does
        so gets other losses, or where a cache cannot be shared."""
        longest = self.longest  # the masks of suffixes know no sliding windows
        a, b = SHORTEST_PREFIX, SHORTEST_PREFIX + 3
        ids = probe_ids(b + 22, self.n_ids)
        rows = [ids[: a + 1], ids[: a + 6], np.append(ids[:a], ids[b : b + 4])]
        rows += [ids[1 : b + 3], np.append(ids[1:b], ids[-5:])]
        rows = [row[: longest + 1] for row in rows]
        if longest < b + 6:
            return 0
        probes = [probe_of(row) for row in rows]
        if self.agrees(probes, self.losses(probes), longest):
            return longest
        self.warnings.append(
            f"{type(self.model).__name__}: what prompts have in common is computed for each of "
            "them, since its cache cannot be shared (exact, but slower)"
        )
        return 0

    def losses(self, probes: list[TokenSequence], longest_shared: int = 0) -> list[Floats]:
        """Return the losses of each probe (nats, shape M), batched as sequences are, by the path
        that is set."""
        policy = BatchPolicy(share_prefix=longest_shared > 0)
        capabilities = replace(self.model_forward.capabilities, longest_shared=longest_shared)
        losses = [np.empty(0)] * len(probes)
        for batch in probe_batches(probes, capabilities, policy):
            scores = self.model_forward.score(batch, Requested())
            for part in batch.parts:
                losses[part.sequence] = scores.losses[part.score_places]
        return losses

    def agrees(
        self, probes: list[TokenSequence], expected: list[Floats], longest_shared: int = 0
    ) -> bool:
        """Return whether the probes' losses (nats, shape M each) are as expected."""
        self._last_error = ""
        try:
            losses = self.losses(probes, longest_shared)
        except Exception as error:  # models raise anything where they are not called as they expect
            if is_out_of_memory(error):
                raise
            self._last_error = " ".join(str(error).split())[:200] or type(error).__name__
            return False
        return self.equal(np.concatenate(losses), np.concatenate(expected))

    def equal(self, a: Any, b: Any) -> bool:
        """Return whether losses are equal within the dtype's tolerance, which grows with them; NaN
        equals NaN."""
        tolerance = _TOLERANCE.get(self.model.dtype, 1e-4)
        return bool(np.allclose(a, b, rtol=tolerance / 10, atol=tolerance, equal_nan=True))

    def _causality_tolerance(self, losses: Floats) -> float:
        """Return a difference of losses, in nats, that is more than noise."""
        # A thousandth of how losses vary, since a model that was never trained is nearly flat; but
        # no less than the dtype's own grain, nor than a token more makes of rounded activations.
        tolerance = _TOLERANCE.get(self.model.dtype, 1e-4)
        spread = float(np.nanstd(losses[np.isfinite(losses)])) if np.isfinite(losses).any() else 0.0
        if self._rounding is not None:
            return max(_TOLERANCE[torch.bfloat16], spread / 4)
        return tolerance if tolerance > 1e-4 else max(5e-6, min(tolerance, spread / 1000))

    def _say_what_is_slow(self, slow_head: bool = False) -> None:
        if self._rounding is not None:
            self.warnings.append(
                f"{self._rounding} rounds what goes into a layer, too, by scales of all that "
                "is fed at a time: one sequence at a time, and later tokens may move a loss a bit"
            )
        why = {
            "batched": f"rows are padded, since they cannot be packed ({self._not_packed})",
            "single": "a row's numbers would depend on its batch: one sequence at a time",
            "plain": "its head cannot be run apart: one sequence at a time with full logits",
        }
        path = self.model_forward.path
        reasons = [why[path]] if path in why and self._rounding is None else []
        if slow_head:
            reasons += ["its head cannot be run for a part of the vocabulary: whole rows of logits"]
        name = type(self.model).__name__
        self.warnings += [f"{name}: {reason} (exact, but slower)" for reason in reasons]

    @property
    def n_ids(self) -> int:
        """Rows of the table of embeddings: ids that the model takes."""
        return int(self.model.get_input_embeddings().weight.shape[0])


class _RoundingWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether anything is computed in less than float64."""

    rounds = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.is_floating_point():
            # Counts and positions are whole numbers, which float32 holds exactly.
            self.rounds |= found.dtype != torch.float64 and bool((found != found.round()).any())
        return found


def probe_ids(n_tokens: int, n_ids: int) -> Ints:
    """Return made-up ids, shape N, that look alike nowhere."""
    return (np.arange(n_tokens, dtype=np.int64) * 7919 + 17) % n_ids


def probe_of(ids: Ints, skipped: int = 0) -> TokenSequence:
    """Return a sequence of ids (shape N) that scores all its tokens but for the first few."""
    score_mask = np.arange(len(ids)) > skipped
    return TokenSequence(
        Sample("", "<probe>"), None, ids, None, score_mask, score_mask, "none", "none", {}
    )


def probe_batches(
    probes: list[TokenSequence], capabilities: Capabilities, policy: BatchPolicy
) -> Iterator[Batch]:
    """Yield the probes in batches, each in one window."""
    windows = WindowPolicy(max(probe.n_tokens for probe in probes), "probe", 1)
    return plan_batches(probes, windows, policy, capabilities)


def longest_unwindowed_row(model: Any, max_tokens: int) -> int:
    """Return the longest row, in tokens, of which every token sees all before it: no layer slides a
    window. 0 where layers differ in a way that is not known."""
    config = model.config.get_text_config()
    reaches = [getattr(config, name, None) for name in _WINDOW_SETTINGS]
    if any(isinstance(reach, list | tuple) for reach in reaches):
        return 0
    return min([max_tokens, *(r for r in reaches if isinstance(r, int) and r > 0)])


def depends_on_packed_position(model: Any) -> bool:
    """Return whether a token's place among all that is fed counts, beside its place in its row."""
    config = model.config.get_text_config()
    return any(getattr(config, name, None) for name in _PACKED_POSITION_SETTINGS)


def has_length_dependent_rope(model: Any) -> bool:
    """Return whether rotary factors depend on the longest row: then a row's numbers depend on its
    batch."""
    # A probe of a few tokens cannot see it: the factors switch beyond a length of thousands.
    written = repr(getattr(model.config.get_text_config(), "rope_parameters", None))
    return any(f"'{kind}'" in written for kind in _LENGTH_DEPENDENT_ROPE)
