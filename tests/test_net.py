"""What the program writes, byte for byte, while no model is asked: losses come from a stub.

Every case runs commands in a folder of its own and keeps all they print and write: one file each in
`tests/golden/net/`. What changes from run to run or machine to machine (times, versions, threads,
folders) is replaced, and long decimals are cut to 12 digits, as exp and log of two machines differ
in the last. `python tests/test_net.py` writes the golden files anew.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.program import ROOT, in_process

# -- all that depends on names inside the package -----------------------------------------------
#
# `stubbed` puts a `Backend` (see seqloss_cli/core/backend.py) where the model would be, and the
# tokenizer alone where a checkpoint would be loaded. Whoever moves these mends them here.

INFINITE, NAN = 4094, 4095
"""Ids whose losses are so."""


@lru_cache
def _tokenizer_of(choice: Any) -> Any:
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
        bos_id=found.bos_id, eos_id=found.eos_id, n_ids=found.n_ids, max_context=found.max_context,
        max_context_key=found.max_context_key, warnings=found.warnings,
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
            return _scores(self.model, np.concatenate(fed)[batch.sources], batch.targets, wants)

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
        given = {
            "ranks": ranks,
            "entropies": 0.0625 * (mixed % 61),
            "varentropies": 0.0625 * (mixed % 53),
            "top_ids": top_ids,
            "top_log_probs": -finite[:, None] * shares,
            "mean_log_prob": -4 - losses,
            "word_boundary_log_probs": boundaries,
        }
        asked = [name for column in wants.columns for name in column.array_names]
        return TokenScores(losses, {name: given[name] for name in asked})

    def _taught(self: Any, batch: Any, wants: Any) -> Any:
        """Return what `teacher_divergences` and a file read, for `StudentTeacherBackend.score`."""
        losses = self._student.score(batch, Requested()).losses
        mixed = np.where(np.isfinite(losses), 16 * losses, 0).astype(np.int64) + batch.targets
        further: dict[str, Any] = {
            "student_losses": losses,
            "kls": 0.0625 * (mixed % 23),
            "same_top1": mixed % 3 > 0,
        }
        if self._teacher is None:
            further |= {
                "teacher_losses": batch.saved.losses,
                "teacher_entropies": batch.saved.entropies,
                "kls_at_most": 0.0625 * (mixed % 23 + mixed % 2),
            }
            return TokenScores(losses, further)
        further["teacher_losses"] = self._teacher.score(batch, Requested()).losses
        further["teacher_entropies"] = 0.0625 * (mixed % 29)
        if n := self._top_k:
            further |= {
                "top_ids": ((batch.targets[:, None] + np.arange(n)) % 4096).astype(np.int32),
                "top_log_probs": -0.125 * (1 + np.arange(n)) + 0 * losses[:, None],
                "rest_log_prob": np.full(len(losses), -0.5),
                "rest_own": np.full(len(losses), -1.5),
                "kls_in_part": 0.0625 * (mixed % 19),
            }
        return TokenScores(losses, further)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "load_tokenizer_only", _tokenizer_of)
        patch.setattr(opening, "load_checkpoint", _checkpoint)
        patch.setattr(torch_backend, "TorchBackend", _Stub)
        patch.setattr(opening, "_compile", lambda backends, speed: None)
        patch.setattr(teaching, "load_checkpoint", _checkpoint)
        patch.setattr(teaching, "TorchBackend", _Stub)
        patch.setattr(teaching.StudentTeacherBackend, "score", _taught)
        yield


# -- what is run --------------------------------------------------------------------------------

GOLDEN = ROOT / "tests" / "golden" / "net"
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
        {"id": "pair", "item": 1, "condition": "a", "regions": ["The list", "sorted"]},
        {"id": "merged", "item": 1, "condition": "b", "regions": ["value."]},
    ],
}  # fmt: skip
TEXTS = {
    "lines.txt": "The cat sat on the mat.\n\nA second line\tof text.\n",
    "options.yaml": "top-k: 1\nranks: true\neos: true\n",
}
PREPARED = (
    "score samples/sentences.jsonl --keep-meta --ranks --top-k 2 --words -o a.jsonl",
    "score samples/sentences.jsonl --keep-meta --ranks -m samples/checkpoints/step-600 -o b.jsonl",
    "score samples/sentences.jsonl --keep-meta -m samples/checkpoints/step-100 -o c.parquet",
    "score samples/texts.jsonl samples/text.txt --keep-meta -o texts.jsonl",
    "cond samples/pairs.jsonl --pmi --words --entropy -o pairs.jsonl",
    "cond samples/chats.jsonl --chat-template samples/chat.jinja -o chats.jsonl",
    "rank samples/choices.jsonl --pmi --tokens -o ranked.jsonl",
    "diverge samples/sentences.jsonl -m samples/checkpoints/step-600 --teacher demo -o gap.jsonl",
    "mask samples/pairs.jsonl --jsonl -o labels.jsonl",
    "objective samples/checkpoints/step-100 samples/checkpoints/step-600 demo --data "
    "samples/sentences.jsonl -o objective.json",
)
"""Results that later cases start from; what the commands say is a case, too."""

ALL = "--ranks --entropy --top-k 2 --words --context-lengths --keep-meta"
CHAT = "--chat-template samples/chat.jinja"
SEAM = "--pmi --boundary compare --context 16 --truncate left --eos"
REGIONS = "score samples/sentences.jsonl --regions samples/regions.jsonl"
TAUGHT = "diverge samples/sentences.jsonl --limit 2 -m samples/checkpoints/step-600 --teacher demo"
STEPS = "samples/checkpoints/step-100 samples/checkpoints/step-600 demo"
COLOUR = "FORCE_COLOR=1"
CSV_LEVELS = {
    "sequence": "--keep-meta",
    "token": "--ranks --entropy --context-lengths --keep-meta",
    "word": "--words",
}
CASES: dict[str, tuple[str, ...]] = {
    # score
    "score-json": (f"score corpus.jsonl --json {ALL}",),
    "score-jsonl": (f"score corpus.jsonl --jsonl {ALL}",),
    "score-jsonl-lean": ("score corpus.jsonl lines.txt --jsonl --no-text --no-tokens",),
    "score-json-summary": ("score corpus.jsonl --json --summary",),
    "score-to-files": ("score corpus.jsonl -o out.json", "score corpus.jsonl --jsonl -o out.rows"),
    "score-openai": ("score corpus.jsonl --format openai --top-k 2",),
    "score-windows": (
        "score samples/text.txt --jsonl --eos --context 48 --stride 16 --context-lengths",
    ),
    "score-no-bos": ("score corpus.jsonl --jsonl --bos never --special-tokens text --limit 4",),
    "score-regions": (f"{REGIONS} --jsonl", f"{REGIONS} --words --word-correction --jsonl"),
    "score-word-correction": (
        "score corpus.jsonl samples/text.txt --words --word-correction --jsonl --context 32",
    ),
    "score-broken": (
        "score broken.jsonl --jsonl",
        "score broken.jsonl",
        "score broken.jsonl missing.txt --strict --json",
    ),
    **{
        f"score-{kind}-{level}": (f"score corpus.jsonl --format {kind} --level {level} {flags}",)
        for kind in ("csv", "tsv")
        for level, flags in CSV_LEVELS.items()
    },
    "score-csv-region": (f"{REGIONS} -o out.csv --level region",),
    "score-tsv-region": (f"{REGIONS} -o out.tsv --level region --words --word-correction",),
    "score-parquet": (f"score corpus.jsonl -o out.parquet {ALL}",),
    "score-parquet-lean": ("score corpus.jsonl -o out.parquet --no-text --no-tokens",),
    "score-parquet-regions": (f"{REGIONS} -o out.parquet",),
    "score-table-80": (f"score corpus.jsonl {ALL}", "score corpus.jsonl"),
    "score-table-200": (f"COLUMNS=200 score corpus.jsonl {ALL}", "COLUMNS=200 score corpus.jsonl"),
    "score-table-bits": (
        "score lines.txt --lines --unit bits --words --word-correction",
        f"{REGIONS} --unit bits",
        "score samples/text.txt --summary",
    ),
    "score-table-many": (
        "score samples/text.txt samples/sentences.jsonl samples/texts.jsonl",
        "score samples/text.txt --all-tokens -o out.txt --format table",
    ),
    "score-stdin": (
        "score - --lines --jsonl < lines.txt",
        "score --jsonl-input --jsonl < corpus.jsonl",
        "score --text 'One text.' --jsonl",
    ),
    "score-configured": (
        "score --text 'One text.' --json --config options.yaml",
        "SEQLOSS_TOP_K=2 SEQLOSS_UNIT=bits score --text 'One text.' --config options.yaml",
    ),
    "score-heat": (
        "score samples/text.txt samples/texts.jsonl --view heat",
        "COLUMNS=40 score samples/text.txt --view heat --show-whitespace --all-tokens",
    ),
    "score-heat-colour": (
        f"{COLOUR} score samples/text.txt --view heat",
        f"{COLOUR} score samples/sentences.jsonl --view heat --theme light --unit bits",
    ),
    "score-varentropy": (
        "score corpus.jsonl --varentropy --entropy --jsonl",
        "score corpus.jsonl --varentropy --unit bits",
        "score corpus.jsonl --varentropy --level token --format csv",
        "score corpus.jsonl --varentropy -o out.parquet",
    ),
    # cond
    "cond-json": (f"cond mixed.jsonl --json {ALL} {CHAT}",),
    "cond-jsonl": (f"cond mixed.jsonl --jsonl {ALL} {CHAT} {SEAM}",),
    "cond-jsonl-lean": (
        "cond samples/pairs.jsonl --jsonl --no-text --no-tokens --no-marginal",
        "cond samples/pairs.jsonl --jsonl --no-tokens --boundary separate --no-share-prefix",
    ),
    "cond-json-summary": (f"cond mixed.jsonl --json --summary {CHAT} --pmi",),
    "cond-turns": (
        f"cond samples/chats.jsonl --jsonl {CHAT} --score last --no-end-of-turn",
        f"cond samples/chats.jsonl --jsonl {CHAT} --score all --no-tokens",
        f"cond samples/pairs.jsonl --limit 2 --chat --jsonl {CHAT}",
    ),
    "cond-openai": (f"cond mixed.jsonl --format openai --top-k 2 {CHAT}",),
    **{
        f"cond-csv-{level}": (f"cond mixed.jsonl --format csv --level {level} {flags} {CHAT}",)
        for level, flags in CSV_LEVELS.items()
    },
    "cond-tsv-sequence": (f"cond mixed.jsonl -o out.tsv {SEAM} {CHAT}",),
    "cond-csv-region": (
        "cond mixed.jsonl --limit 2 --regions pair-regions.jsonl --level region -o out.csv",
    ),
    "cond-parquet": (f"cond mixed.jsonl -o out.parquet {ALL} {SEAM} {CHAT}",),
    "cond-table-80": (f"cond mixed.jsonl {ALL} {CHAT} {SEAM}",),
    "cond-table-200": (f"COLUMNS=200 cond mixed.jsonl {ALL} {CHAT} {SEAM}",),
    "cond-table-bits": ("cond samples/pairs.jsonl --unit bits --pmi",),
    "cond-heat": (f"cond mixed.jsonl {CHAT} --view heat",),
    "cond-heat-colour": (f"{COLOUR} cond mixed.jsonl {CHAT} --view heat",),
    "cond-one": ("cond --prompt 'A' --response @lines.txt --separator ' ' --jsonl",),
    # mask
    "mask-json": (f"mask mixed.jsonl --json {CHAT}",),
    "mask-jsonl": (f"mask mixed.jsonl --jsonl {CHAT} --no-text",),
    "mask-json-loss": (f"mask mixed.jsonl --json {CHAT} --loss",),
    "mask-like": (
        f"mask samples/chats.jsonl --jsonl {CHAT} --like trl",
        f"mask samples/chats.jsonl --jsonl {CHAT} --like trl-assistant-only --max-length 40 --loss",
        f"mask samples/chats.jsonl {CHAT} --like trl",
    ),
    "mask-check": ("mask samples/pairs.jsonl --eos --check labels.jsonl",),
    "mask-table": (f"mask mixed.jsonl {CHAT}", f"mask mixed.jsonl {CHAT} --loss"),
    "mask-to-file": ("mask samples/pairs.jsonl --boundary separate --bos never -o out.json",),
    "mask-table-200": (f"COLUMNS=200 mask mixed.jsonl {CHAT} --loss",),
    "mask-heat": (
        f"mask mixed.jsonl {CHAT} --view heat",
        f"mask mixed.jsonl {CHAT} --view heat --loss",
    ),
    "mask-heat-colour": (f"{COLOUR} mask mixed.jsonl {CHAT} --view heat --loss",),
    # rank
    "rank-json": ("rank questions.jsonl --json --keep-meta",),
    "rank-jsonl-tokens": ("rank questions.jsonl --jsonl --tokens --pmi",),
    "rank-table-80": ("rank questions.jsonl --separator ' '",),
    "rank-table-200": ("COLUMNS=200 rank questions.jsonl --separator ' ' --pmi --by pmi",),
    "rank-summary": (
        "rank samples/choices.jsonl --summary --unit bits",
        "rank samples/choices.jsonl --json --summary --pmi",
    ),
    "rank-ranked": (
        "rank questions.jsonl --keep-meta --output-ranked best.jsonl --by char --summary",
        "rank questions.jsonl --no-text -o out.jsonl --output-ranked pmi.jsonl --pmi "
        "--by mutual_information",
    ),
    "rank-minimal-pairs": (
        "rank samples/minimal-pairs.jsonl --no-prompt --choices-field good,bad --answer 0",
    ),
    "rank-one": (
        "rank --prompt 'A list is' --response ' sorted.' --response ' wet.' --answer 1 --jsonl",
        f"rank --prompt 'A list?' --response Yes. --response No. --chat {CHAT} --jsonl",
    ),
    # diverge
    "diverge-json": (f"{TAUGHT} --json",),
    "diverge-jsonl": (f"{TAUGHT} --jsonl", f"{TAUGHT} --jsonl --no-text --no-tokens"),
    "diverge-table-80": (f"{TAUGHT}", f"{TAUGHT} --unit bits --summary"),
    "diverge-table-200": (f"COLUMNS=200 {TAUGHT}",),
    "diverge-smoothing": (
        "diverge corpus.jsonl --label-smoothing 0.125 --jsonl",
        "diverge corpus.jsonl --label-smoothing 0.125",
        "diverge samples/texts.jsonl --label-smoothing 0 --json --summary",
    ),
    "diverge-saved": (
        f"{TAUGHT} --save-teacher teacher.jsonl --teacher-top-k 3",
        "diverge samples/sentences.jsonl --limit 3 -m samples/checkpoints/step-600 "
        "--teacher teacher.jsonl --jsonl",
        "diverge samples/sentences.jsonl --limit 2 -m samples/checkpoints/step-600 "
        "--teacher teacher.jsonl",
    ),
    "diverge-broken": ("diverge broken.jsonl --teacher demo --jsonl",),
    # results
    "prepared": PREPARED,
    "summarize-80": ("summarize a.jsonl", "summarize texts.jsonl --by kind --worst 3"),
    "summarize-200": ("COLUMNS=200 summarize texts.jsonl --by kind --unit bits",),
    "summarize-json": (
        "summarize texts.jsonl --by kind --json",
        "summarize c.parquet --json --confidence 0.9 --worst 2",
        "summarize pairs.jsonl --json --bootstrap 200 --seed 3",
    ),
    "summarize-files": (
        "summarize a.jsonl b.jsonl --allow-different --cluster source",
        "summarize a.jsonl b.jsonl",
        "summarize a.jsonl -o out.txt",
        "summarize a.jsonl -o out.json",
    ),
    "compare-80": ("compare a.jsonl b.jsonl",),
    "compare-200": ("COLUMNS=200 compare a.jsonl b.jsonl c.parquet --unit bits --worst 2",),
    "compare-json": (
        "compare a.jsonl b.jsonl --json --bootstrap 200",
        "compare a.jsonl texts.jsonl --json",
    ),
    "compare-heat": ("compare a.jsonl b.jsonl --view heat --worst 2 --bootstrap 200",),
    "compare-heat-colour": (
        f"{COLOUR} compare a.jsonl b.jsonl --view heat --worst 2 --bootstrap 200",
    ),
    "compare-models": (
        "compare -m demo -m samples/checkpoints/step-600 --data corpus.jsonl --bootstrap 200",
    ),
    "objective": (
        f"objective {STEPS} --data samples/sentences.jsonl",
        f"COLUMNS=200 objective {STEPS} --data samples/sentences.jsonl --unit bits",
    ),
    "objective-json": (f"objective {STEPS} --data samples/sentences.jsonl --json",),
    # plots, as the numbers and as they are drawn
    "plot-curve": ("plot a.jsonl b.jsonl c.parquet --kind curve -o plot.svg --json",),
    "plot-curve-objective": ("plot objective.json -o plot.svg --json",),
    "plot-histogram": ("plot a.jsonl -o plot.svg --json",),
    "plot-position": ("plot a.jsonl b.jsonl --kind position -o plot.svg --json",),
    "plot-calibration": ("plot a.jsonl --kind calibration --bins 5 -o plot.svg --json",),
    "plot-scatter": ("plot a.jsonl b.jsonl --level token -o plot.svg --json",),
    "plot-groups": ("plot texts.jsonl --by kind -o plot.svg --json --unit bits",),
    # pages
    "page-score": ("report a.jsonl -o page.html --by id",),
    "page-score-report": ("score corpus.jsonl --report page.html --summary",),
    "page-cond": ("report pairs.jsonl -o page.html", "report chats.jsonl -o chats.html"),
    "page-compare": ("report a.jsonl b.jsonl -o page.html --worst 5",),
    "page-compare-report": ("compare a.jsonl c.parquet --report page.html --bootstrap 200",),
    "page-rank": ("report ranked.jsonl -o page.html",),
    "page-rank-report": ("rank questions.jsonl --pmi --report page.html -o out.jsonl",),
    "page-diverge": ("report gap.jsonl -o page.html --title 'A <title>'",),
    "page-diverge-report": (f"{TAUGHT} --report page.html --summary",),
    # refusals
    "refused": (
        "score",
        "score --limit 0 --unit bytes",
        "score --nothing",
        "score missing.txt",
        "score --text a --json --jsonl",
        "score --text a --format csv --top-k 2",
        "score --text a --top-k 5000",
        "score --text a --level word",
        "score --text a --context 1000",
        "score --text a --word-correction",
        "score corpus.jsonl -o corpus.jsonl",
        "score --text a -m ./nowhere",
        "cond --prompt a",
        "cond samples/chats.jsonl --jsonl",
        "mask samples/pairs.jsonl --format openai",
        "rank --prompt a --response b",
        "rank samples/choices.jsonl --by pmi",
        "diverge --text a",
        "diverge --text a --teacher lines.txt",
        "diverge --text a --label-smoothing 2",
        "summarize lines.txt",
        "summarize gap.jsonl",
        "summarize a.jsonl --by colour",
        "compare a.jsonl",
        "plot a.jsonl",
        "plot a.jsonl -o plot.svg --kind scatter",
        "report a.jsonl b.jsonl c.parquet -o page.html",
    ),
    # help
    "help": ("COLUMNS=100 --help", "--version"),
    **{
        f"help-{name}": (f"COLUMNS=100 {name} --help",)
        for name in ("score", "cond", "rank", "diverge", "mask", "summarize", "compare",
                     "objective", "plot", "report")
    },
}  # fmt: skip


# -- how it is run ------------------------------------------------------------------------------


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


def recorded(lines: tuple[str, ...], folder: Path) -> str:
    """What the commands print, and the files that are there when they are done."""
    there = {path.name for path in folder.iterdir()}
    parts = []
    for line in lines:
        done = run(line, folder)
        parts.append(f"$ {line}\n")
        for stream in ("stdout", "stderr"):
            text = getattr(done, f"{stream}_bytes").decode()
            if COLOUR not in line:  # help may be coloured by what the terminal of the tests is
                text = re.sub(r"\x1b\[[\d;]*m", "", text)
            if text:
                parts.append(f"[{stream}]\n{text}\n")
        parts.append(f"[exit] {done.exit_code}\n\n")
    for path in sorted(folder.iterdir()):
        if path.name not in there:
            parts.append(f"[file {path.name}]\n{content_of(path)}\n")
    return normal("".join(parts), folder)


def content_of(path: Path) -> str:
    if path.suffix == ".parquet":
        return parquet_text(path)
    text = path.read_bytes().decode()
    return without_assets(text) if path.suffix == ".html" else text


def parquet_text(path: Path) -> str:
    """Schema, metadata and rows as JSON."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    kept = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()
            if key != b"ARROW:schema"}  # fmt: skip
    whole = {
        "schema": [f"{field.name}: {field.type}" for field in file.schema_arrow],
        "metadata": {name: json.loads(value) for name, value in kept.items()},
        "rows": file.read().to_pylist(),
    }
    return json.dumps(whole, indent=1, ensure_ascii=False)


def without_assets(page: str) -> str:
    """A page with its style sheet and its script as their hashes."""

    def hashed(found: re.Match[str]) -> str:
        return f"{found[1]}sha256 {hashlib.sha256(found[2].encode()).hexdigest()}{found[3]}"

    return re.sub(r"(<style>|<script>)(.*?)(</style>|</script>)", hashed, page, flags=re.DOTALL)


VOLATILE: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00| UTC)"), "WHEN"),
    (re.compile(r'("threads": ?)\d+'), r"\1N"),
    (re.compile(r'("versions": ?)\{[^}]*\}'), r"\1{}"),
    (re.compile(r"seqloss \d+\.\d+\.\d+"), "seqloss VERSION"),
)
LONG = re.compile(r"(?<![\w.])\d+\.\d{9,}(e-?\d+)?")


def normal(text: str, folder: Path) -> str:
    """Without what differs from run to run and machine to machine."""
    text = text.replace(str(folder), "FOLDER")
    for pattern, replacement in VOLATILE:
        text = pattern.sub(replacement, text)
    return LONG.sub(lambda found: f"{float(found[0]):.12g}", text)


# -- golden files -------------------------------------------------------------------------------

_LARGE = 16_000


def golden_of(name: str) -> str:
    path = GOLDEN / f"{name}.txt"
    return path.read_bytes().decode() if path.exists() else _unpacked(GOLDEN / f"{name}.txt.gz")


def _unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def write_golden(name: str, text: str) -> None:
    """Anew, packed where it is large; the same text gives the same bytes."""
    small, packed = GOLDEN / f"{name}.txt", GOLDEN / f"{name}.txt.gz"
    for path in (small, packed):
        path.unlink(missing_ok=True)
    if len(text) < _LARGE:
        small.write_bytes(text.encode())
    else:
        packed.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def difference(name: str, found: str, expected: str) -> str:
    """A short unified diff; long lines are broken at commas and brackets."""
    a, b = ([piece[:160] for piece in re.split(r"(?<=[,>}])|\n", text)]
            for text in (expected, found))  # fmt: skip
    lines = list(difflib.unified_diff(a, b, f"golden/net/{name}", "now", n=2, lineterm=""))
    more = [f"… {len(lines) - 40} more lines"] if len(lines) > 40 else []
    return "\n".join([*lines[:40], *more])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


def prepare(folder: Path) -> None:
    furnish(folder)
    for line in PREPARED:
        assert run(line, folder).exit_code == 0, line


def made(name: str, folder: Path, prepared: Path) -> str:
    furnish(folder, None if name == "prepared" else prepared)
    return recorded(CASES[name], folder)


@pytest.mark.parametrize("name", CASES)
def test_output_is_as_it_was(name: str, tmp_path: Path, prepared: Path) -> None:
    found, expected = made(name, tmp_path, prepared), golden_of(name)
    if found != expected:
        pytest.fail(difference(name, found, expected), pytrace=False)


def test_no_golden_file_is_left_over() -> None:
    assert {path.name.partition(".txt")[0] for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("n_kept", [1, 3, 6])
@pytest.mark.parametrize(
    "command", ["score corpus.jsonl samples/sentences.jsonl", f"cond mixed.jsonl {CHAT} --pmi"],
    ids=["score", "cond"],
)  # fmt: skip
def test_resumed_output_is_that_of_a_whole_run(command: str, n_kept: int, tmp_path: Path) -> None:
    furnish(tmp_path)
    command += f" {ALL} -o"
    assert run(f"{command} whole.jsonl", tmp_path).exit_code == 3
    whole = (tmp_path / "whole.jsonl").read_bytes()
    part = b"".join(whole.splitlines(keepends=True)[:n_kept]) + b'{"type":"seq'
    (tmp_path / "again.jsonl.partial").write_bytes(part)
    done = run(f"{command} again.jsonl --resume", tmp_path)
    assert done.exit_code == 3, done.stderr
    assert f"{n_kept - 1} rows kept" in done.stderr or n_kept == 1
    assert (tmp_path / "again.jsonl").read_bytes() == whole


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    names = sys.argv[1:] or list(CASES)
    GOLDEN.mkdir(exist_ok=True)
    with TemporaryDirectory() as place:
        ready = Path(place) / "prepared"
        ready.mkdir()
        prepare(ready)
        for each in names:
            workplace = Path(place) / "cases" / each
            workplace.mkdir(parents=True)
            write_golden(each, made(each, workplace, ready))
