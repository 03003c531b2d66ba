"""A local torch model as a `Backend`: ids in, losses out, by the fastest path that is exact.

Three paths, tried in this order, the first that equals a plain forward being used:
1. batched: right-padded rows, no attention mask, hidden states once, then the head on the scored
   positions only, a bounded number at a time;
2. single: the same, one row at a time (models whose states or positions mind the padding);
3. plain: `model(ids).logits`, one row at a time (heads that cannot be run on their own).

Shape letters: B rows, T positions, M scored positions, R of them at a time, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqloss_cli.errors import RunError
from seqloss_cli.head import score_positions
from seqloss_cli.records import IGNORED, Batch, Floats, Ints, TokenScores, Wants, Window

RunPath = Literal["batched", "single", "plain"]
PATHS: tuple[RunPath, ...] = ("batched", "single", "plain")
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Nats per token between two ways of computing the same, by the model's dtype (parts of some models
run in float32 whatever it is)."""
_LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")
"""Rotary factors that change, for all rows, with the longest row of a batch."""


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

    def __init__(self, model: Any, max_tokens: int, path: RunPath | None = None) -> None:
        """`max_tokens` is the most tokens that the model may be fed; `path` skips the choice.

        Raises RunError when the model is not causal: its losses would see their own targets.
        """
        self.model = model
        self.warnings: list[str] = []
        self._backbones = _possible_backbones(model)
        self._backbone = self._backbones[0] if self._backbones else None
        self._vocabulary: int | None = None  # as wide as the first logits turn out to be
        self.path: RunPath = path or self._checked_path(min(12, max_tokens))

    @torch.inference_mode()
    def score(self, batch: Batch, wants: Wants) -> TokenScores:
        """Score every target of the batch that is not -100, row by row.

        Raises RunError when memory does not suffice, naming what helps.
        """
        try:
            return self._score_by(self.path, batch, wants)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            rows, width = batch.input_ids.shape
            raise RunError(
                f"out of memory in a batch of {rows} rows of {width} tokens: lower --batch-tokens"
                + (", or --context, or choose --dtype bfloat16" if rows == 1 else "")
            ) from error

    def _score_by(self, path: RunPath, batch: Batch, wants: Wants) -> TokenScores:
        if path == "batched":
            return self._score_rows(batch, wants)
        one_row = self._score_rows if path == "single" else self._score_plain
        return _concatenate([one_row(row, wants) for row in _single_rows(batch)])

    def _score_rows(self, batch: Batch, wants: Wants) -> TokenScores:
        ids_BT, targets_BT = self._on_device(batch)
        assert self._backbone is not None
        hidden_BTD = self._backbone(input_ids=ids_BT, use_cache=False)[0]
        wanted_BT = targets_BT != IGNORED
        hidden_MD, targets_M = hidden_BTD[wanted_BT], targets_BT[wanted_BT]
        if self._vocabulary is None:
            self._vocabulary = self._logits_of(hidden_MD[:1]).shape[1]
        return score_positions(
            lambda rows: self._logits_of(hidden_MD[rows]), targets_M, self._vocabulary, wants
        )

    def _score_plain(self, batch: Batch, wants: Wants) -> TokenScores:
        ids_BT, targets_BT = self._on_device(batch)
        logits_TV = self.model(input_ids=ids_BT, use_cache=False).logits[0]
        wanted_T = targets_BT[0] != IGNORED
        logits_MV = logits_TV[wanted_T]
        return score_positions(
            lambda rows: logits_MV[rows], targets_BT[0][wanted_T], logits_MV.shape[1], wants
        )

    def _logits_of(self, hidden_RD: Tensor) -> Tensor:
        """The model's own forward with its backbone replaced: soft caps, scales and biases that
        stand between hidden states and logits are applied, whatever they are."""
        assert self._backbone is not None
        with _returning(self._backbone, _BackboneOutput(hidden_RD[None])):
            ids_1R = torch.zeros(1, len(hidden_RD), dtype=torch.long, device=hidden_RD.device)
            logits: Tensor = self.model(input_ids=ids_1R, use_cache=False).logits[0]
            return logits

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self.model.device
        return (
            torch.from_numpy(batch.input_ids).to(device),
            torch.from_numpy(batch.targets).to(device),
        )

    # -- the check at load ------------------------------------------------------------------

    def _checked_path(self, n_tokens: int) -> RunPath:
        name = type(self.model).__name__
        try:
            return self._choose_path(n_tokens)
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

    @torch.inference_mode()
    def _choose_path(self, n_tokens: int) -> RunPath:
        """The first path whose losses equal those of plain forwards on a few tokens."""
        ids, short = _probe_ids(n_tokens + 1, self._n_ids()), max(1, n_tokens * 2 // 3)
        plain = self._score_plain(_first_tokens(ids, n_tokens), Wants()).losses
        plain_short = self._score_plain(_first_tokens(ids, short), Wants()).losses
        if not np.allclose(
            plain[:short], plain_short, rtol=1e-6, atol=self._leak(plain), equal_nan=True
        ):
            raise RunError(
                f"{type(self.model).__name__} is not causal: what it predicts depends on the "
                "tokens that come after (an encoder?), so its losses would mean nothing"
            )
        skipped = n_tokens // 3  # as later windows do: a head must not mind which rows it sees
        expected = np.concatenate([plain[skipped:], plain_short])
        ragged = _stacked(_first_tokens(ids, n_tokens, skipped), _first_tokens(ids, short))
        paths = PATHS[1:-1] if _rope_minds_length(self.model) else PATHS[:-1]
        for path in paths:
            for backbone in self._backbones:
                self._backbone = backbone
                if self._agrees(path, ragged, expected):
                    return self._said(path)
        return self._said("plain")

    def _agrees(self, path: RunPath, ragged: Batch, expected: Any) -> bool:
        try:
            losses = self._score_by(path, ragged, Wants()).losses
        except Exception as error:  # whatever a model raises when it is not called as it expects
            if is_out_of_memory(error):
                raise
            return False
        return self._equal(losses, expected)

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


def _first_tokens(ids: Ints, n_fed: int, skipped: int = 0) -> Batch:
    """One row that feeds the first tokens and scores what each predicts, but for the first few."""
    targets = ids[None, 1 : n_fed + 1].copy()
    targets[0, :skipped] = IGNORED
    window = Window(0, n_fed, 1 + skipped, False)
    return Batch(ids[None, :n_fed], targets, np.array([n_fed]), ((0, window),))


def _stacked(a: Batch, b: Batch) -> Batch:
    """Two rows, the second shorter: padded on the right."""
    gap = a.input_ids.shape[1] - b.input_ids.shape[1]
    padding = ((0, 0), (0, gap))
    return Batch(
        np.concatenate([a.input_ids, np.pad(b.input_ids, padding)]),
        np.concatenate([a.targets, np.pad(b.targets, padding, constant_values=IGNORED)]),
        np.concatenate([a.lengths, b.lengths]),
        a.rows + b.rows,
    )


def _single_rows(batch: Batch) -> Iterator[Batch]:
    """Each row as a batch of its own, without padding."""
    for b, row in enumerate(batch.rows):
        cut = slice(0, int(batch.lengths[b]))
        yield Batch(
            batch.input_ids[b : b + 1, cut],
            batch.targets[b : b + 1, cut],
            batch.lengths[b : b + 1],
            (row,),
        )


def _concatenate(parts: list[TokenScores]) -> TokenScores:
    def joined(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        return None if columns[0] is None else np.concatenate(columns)

    return TokenScores(**{name: joined(name) for name in TokenScores.__slots__})
