"""The program with a stub in place of the model: what it writes depends on no weights.

`stubbed` puts a `Backend` (see seqloss_cli/core/backend.py) where the model would be, and the
tokenizer alone where a checkpoint would be loaded. Whoever moves these mends them here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.program import ROOT, in_process

INFINITE, NAN = 4094, 4095
"""Ids whose losses are so."""


@lru_cache
def _tokenizer_of(choice: Any, spare_torch: bool = False) -> Any:
    from seqloss_cli.models.checkpoint import load_tokenizer_only

    return load_tokenizer_only(choice)


def _checkpoint(choice: Any, n_devices: int = 1) -> Any:
    """In place of `load_checkpoint`: its "model" is its name."""
    from seqloss_cli.models.checkpoint import Checkpoint

    found = _tokenizer_of(choice)
    return Checkpoint(
        model=choice.name, tokenizer=found.tokenizer, name=choice.name,
        tokenizer_name=choice.tokenizer or choice.name, revision=None, weights_sha256="0" * 64,
        adapter=choice.adapter, quantization=None, dtype="float32", device="cpu",
        bos_ids=found.bos_ids, eos_ids=found.eos_ids, n_ids=found.n_ids,
        max_context=found.max_context, max_context_key=found.max_context_key,
        warnings=found.warnings,
    )  # fmt: skip


@contextmanager
def stubbed() -> Iterator[None]:
    """While it lasts, no weights are loaded, and losses are those of `_Stub`."""
    from seqloss_cli.backends.torch import backend as torch_backend
    from seqloss_cli.backends.torch import opening
    from seqloss_cli.backends.torch import teacher as teaching
    from seqloss_cli.backends.torch.backend import TorchBackend
    from seqloss_cli.backends.torch.quantities import QUANTITIES
    from seqloss_cli.core.backend import Capabilities, Requested, TokenScores
    from seqloss_cli.core.columns import TEMPERATURES
    from seqloss_cli.scoring import scorer

    class _Stub(TorchBackend):  # a TorchBackend, as diverge takes no other
        """Figures of a target are sixteenths made of its id and the one before, of the model's name
        and of nothing else: whatever the batches, they are the same."""

        path, compiled = "packed", False  # type: ignore[assignment]

        def __init__(
            self, model: str, max_tokens: int, share_prefix: bool = False, checkpoint: Any = None
        ) -> None:
            self.model, self.warnings, self.n_too_large = model, [], 0
            self.checkpoint = checkpoint
            self.capabilities = Capabilities(
                longest_packed=512,
                longest_shared=512 * share_prefix,
                quantities=frozenset(QUANTITIES),
            )

        def vocab_size(self) -> int:
            return 4096

        def score(self, batch: Any, wants: Any) -> Any:
            fed = [batch.input_ids, *(branch.input_ids.ravel() for branch in batch.suffixes)]
            return _scores(
                self.model, np.concatenate(fed)[batch.source_positions], batch.targets, wants
            )

    def _scores(name: str, before: NDArray[Any], targets: NDArray[Any], wants: Any) -> Any:
        salt = sum(name.encode())
        mixed = 31 * targets + (17 + salt % 13) * before + salt
        losses = 0.0625 * (mixed % 97)
        log_ranks = (mixed % 97) // 25
        ranks = 2**log_ranks  # 1, 2, 4, 8
        losses[targets == INFINITE], losses[targets == NAN] = np.inf, np.nan
        places = np.arange(wants.top_k)
        top_ids = (targets[:, None] + places - (ranks[:, None] - 1)) % 4096
        shares = (places + 1) / ranks[:, None]  # 1 at the target, which stands at its rank
        finite = np.where(np.isfinite(losses), losses, 6.0)
        boundaries = -0.0625 * np.stack([mixed % 7, mixed % 11, mixed % 13 + 16], axis=1)
        given: dict[str, Any] = {
            "ranks": ranks,
            "entropies": 0.0625 * (mixed % 61),
            "varentropies": 0.0625 * (mixed % 53),
            "top_ids": top_ids,
            "top_log_probs": -finite[:, None] * shares,
            "mean_log_prob": -4 - losses,
            "word_boundary_log_probs": boundaries,
            "log_normalisers": 2 + 0.0625 * (mixed % 5),
            "tempered_log_sums": 3 / (1 + np.arange(len(TEMPERATURES))) + 0 * finite[:, None],
            "top_logits": -0.5 * np.arange(8) + 0 * finite[:, None],
        }
        asked = [name for column in wants.columns for name in column.array_names]
        return TokenScores(losses, {name: given[name] for name in asked})

    def _taught(self: Any, batch: Any, wants: Any) -> Any:
        """Return what `teacher_divergences` and a file read, for `StudentTeacherBackend.score`."""
        losses = self._student.score(batch, Requested()).losses
        mixed = np.where(np.isfinite(losses), 16 * losses, 0).astype(np.int64) + batch.targets
        columns: dict[str, Any] = {
            "kls": 0.0625 * (mixed % 23),
            "same_top1": mixed % 3 > 0,
            "reverse_kls": 0.0625 * (mixed % 17),
            "jensen_shannons": 0.03125 * (mixed % 13),
            "total_variations": 0.0625 * (mixed % 11),
            "top_k_overlaps": 0.125 * (mixed % 9),
        }
        if self._teacher is None:
            columns |= {
                "teacher_losses": batch.teacher_rows.losses,
                "teacher_entropies": batch.teacher_rows.entropies,
                "kls_at_most": 0.0625 * (mixed % 23 + mixed % 2),
                "reverse_kls_at_most": np.full(len(losses), np.inf),
                "jensen_shannons_at_most": 0.03125 * (mixed % 13 + mixed % 2),
                "total_variations_at_most": 0.0625 * (mixed % 11 + mixed % 2),
            }
            return TokenScores(losses, columns)
        columns["teacher_losses"] = self._teacher.score(batch, Requested()).losses
        columns["teacher_entropies"] = 0.0625 * (mixed % 29)
        if n := self._top_k:
            columns |= {
                "teacher_top_ids": ((batch.targets[:, None] + np.arange(n)) % 4096).astype(
                    np.int32
                ),
                "teacher_top_log_probs": -0.125 * (1 + np.arange(n)) + 0 * losses[:, None],
                "teacher_rest_log_prob": np.full(len(losses), -0.5),
                "teacher_rest_p_log_p": np.full(len(losses), -1.5),
                "kls_in_part": 0.0625 * (mixed % 19),
            }
        return TokenScores(losses, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "load_tokenizer_only", _tokenizer_of)
        patch.setattr(opening, "load_checkpoint", _checkpoint)
        patch.setattr(torch_backend, "TorchBackend", _Stub)
        patch.setattr(opening, "_compile", lambda backends, speed: None)
        patch.setattr(teaching.StudentTeacherBackend, "score", _taught)
        yield


ROWS: dict[str, list[Any]] = {
    "corpus.jsonl": [
        {"id": "docs", "text": "Return a list of the names.", "kind": "python", "n": 1},
        {"id": "unicode", "text": "🐕 日x\tend\n", "kind": "bytes", "n": 2},
        {"no": "text"},
        {"id": "ids", "input_ids": [0, 450, 271, 289], "labels": [-100, -100, 271, 289]},
        {"id": "one", "input_ids": [450]},
        {"id": "control", "text": "A <|end_of_text|> b", "kind": "python", "n": 1},
    ],
    "broken.jsonl": [
        {"id": "infinite", "input_ids": [0, 450, INFINITE, 289]},
        {"id": "nan", "input_ids": [0, 450, NAN, 289]},
        {"id": "whole", "input_ids": [0, 450, 271]},
    ],
    "mixed.jsonl": [
        {"id": "pair", "prompt": "The list is", "response": " sorted.", "kind": "a"},
        {"id": "merged", "prompt": "The re", "response": "turn value.", "kind": "b"},
        {"id": "empty", "prompt": "", "response": "Nothing before."},
        {"prompt": 3, "response": "x"},
        {"id": "chat", "messages": [{"role": "user", "content": "A list?"},
                                    {"role": "assistant", "content": "Yes."},
                                    {"role": "user", "content": "Two?"},
                                    {"role": "assistant", "content": "No, one."}]},
    ],
    "questions.jsonl": [
        {"id": "sort", "prompt": "The list is", "choices": ["sorted.", "on the moon."],
         "answer": 0, "kind": "a"},
        {"id": "tie", "prompt": "A", "choices": ["b", "b"]},
        {"prompt": "no choices"},
        {"id": "raise", "prompt": "A KeyError is", "choices": ["eaten.", "raised."], "answer": 1},
    ],
    "pair-regions.jsonl": [
        {"id": "pair", "item": 1, "condition": "a", "regions": ["The list", "is sorted."]},
        {"id": "merged", "item": 1, "condition": "b", "regions": ["value."]},
    ],
}  # fmt: skip
TEXTS = {
    "lines.txt": "The cat sat on the mat.\n\nA second line\tof text.\n",
    "options.yaml": "top-k: 1\nranks: true\neos: true\n",
}
ALL = "--ranks --entropy --top-k 2 --words --context-lengths --keep-meta"
CHAT = "--chat-template samples/chat.jinja"


def furnish(folder: Path, prepared: Path | None = None) -> None:
    """Put the inputs there: samples, rows, and results that are prepared."""
    (folder / "samples").symlink_to(ROOT / "samples")
    for name, rows in ROWS.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    for path in () if prepared is None else sorted(prepared.iterdir()):
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)


def run(line: str, folder: Path) -> Any:
    """Run a line as a shell would: variables, words, and `< FILE` at its end."""
    line, _, source = line.partition(" < ")
    words = shlex.split(line)
    own = ("FORCE_COLOR", "NO_COLOR", "COLORFGBG", "COLORTERM")
    outer = (name for name in os.environ if name.startswith("SEQLOSS_"))
    env: dict[str, Any] = {
        **dict.fromkeys((*own, *outer)),
        "COLUMNS": "80",
        "TERM": "xterm-256color",
    }
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    before = Path.cwd()
    os.chdir(folder)
    try:
        with stubbed():
            return in_process(*words, stdin=Path(source).read_bytes() if source else None, **env)
    finally:
        os.chdir(before)


def ran(line: str, folder: Path, code: int = 0) -> Any:
    """Run a line, which ends with this code."""
    done = run(line, folder)
    assert done.exit_code == code, done.stderr
    return done


def without_time(raw: bytes) -> bytes:
    """Results without the time at which they were begun."""
    return re.sub(rb'"started_at":"[^"]*"', b"", raw)
