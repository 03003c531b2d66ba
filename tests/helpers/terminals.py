"""Made scores, and what the terminal's tables print of them; whole outputs held to snapshots.

The snapshots are in tests/display/snapshots; `UPDATE_SNAPSHOTS=1 pytest tests/display` writes them
anew (look at the difference before you commit it). ESC stands there as `\\e`; white space at the
end of a line is left out.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console

from helpers.program import ROOT
from seqloss_cli.core.records import PromptBoundary, Sample, SequenceScore, TokenSequence, Turn
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.formatting import TableOptions
from seqloss_cli.display.terminal.writer import TableWriter
from seqloss_cli.metrics.totals import Totals, totals_of

SNAPSHOTS = ROOT / "tests" / "display" / "snapshots"
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m")
TOKENS = ("The", " cat", "\tsat", " 日本", "語", "🐕", "\r\n", " \x1b[31m", "\u202e", "e\u0301.")
LOSSES = (0.1234, 0.5, 1.9999, 2.5, 4.0, 6.75, 9.125, 22.5, 0.0, 1e-5)
VOCABULARY = (" the", ".", "猫", "\n", "\x9b2J", " quite a long alternative")
RUN = RunInfo(
    command="score",
    started_at="2030-01-01T00:00:00+00:00",
    model="some/model",
    revision="0123456789abcdef",
    weights_sha256="0" * 64,
    adapter=None,
    quantization=None,
    tokenizer="some/model",
    tokenizer_sha256="1" * 64,
    dtype="float32",
    device="cpu",
    threads=2,
    bos="auto",
    bos_token_id=1,
    bos_token="<s>",
    eos=False,
    eos_token_id=2,
    special_tokens="parse",
    context=512,
    context_source="max_position_embeddings",
    stride=256,
    boundary=None,
    pairs=None,
    share_prefix=False,
    batch_tokens=4096,
    path="batched",
    compiled=False,
    devices=1,
    gold="one-hot",
    versions={},
)


def score_of(
    tokens: Sequence[str] = TOKENS,
    losses: Sequence[float] = LOSSES,
    identity: str = "sample.txt",
    flags: Mapping[str, Any] | None = None,
    first_id: int = 100,
    **asked: Any,
) -> SequenceScore:
    """BOS, which is not scored, and then the tokens, each with its loss."""
    text = "".join(tokens)
    ends = np.cumsum([0, 0, *(len(token.encode()) for token in tokens)])
    n = len(tokens) + 1
    sequence = TokenSequence(
        sample=Sample(identity, identity, text=text),
        text=text,
        token_ids=np.array([1, *range(first_id, first_id + len(tokens))]),
        byte_offsets=ends,
        loss_mask=np.ones(n, dtype=bool),
        score_mask=np.ones(n, dtype=bool),
        bos="tokenizer",
        eos="none",
        flags=flags or {},
    )
    return SequenceScore(
        sequence=sequence,
        losses=np.array([0.0, *losses]),
        scored=np.arange(n) > 0,
        context_lengths=np.arange(n),
        columns=asked,
    )


def asked_for(n_tokens: int, names: Sequence[int], largest_rank: int = 4096) -> dict[str, Any]:
    """Ranks, entropies and alternatives for BOS and `n_tokens` tokens."""
    n = n_tokens + 1
    halves = -np.log(2.0) * np.arange(1, len(names) + 1)
    return {
        "ranks": np.linspace(1, largest_rank, n).astype(int),
        "entropies": np.linspace(0, 8.3177, n),
        "top_ids": np.tile(np.array(names), (n, 1)),
        "top_log_probs": np.tile(halves, (n, 1)),
    }


def token_texts(sequence: TokenSequence) -> list[str]:
    assert sequence.sample.text is not None
    assert sequence.byte_offsets is not None
    source, edges = sequence.sample.text.encode(), sequence.byte_offsets.tolist()
    pieces = [source[a:b].decode() for a, b in pairwise(edges[1:])]
    return ["<s>", *pieces]


def shown(
    *scores: SequenceScore,
    width: int = 80,
    colour: bool = False,
    rejected: Mapping[str, int] | None = None,
    n_empty_lines: int = 0,
    run: RunInfo = RUN,
    **options: Any,
) -> str:
    """What the writer prints for these scores."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
    named = TableOptions(token_texts, VOCABULARY.__getitem__, **options)
    writer = TableWriter(console, named)
    writer.begin(run)
    for score in scores:
        writer.sequence(score, totals_of(score))
    writer.end(_sum(map(totals_of, scores)), rejected or {}, n_empty_lines)
    return file.getvalue()


def _sum(parts: Iterable[Totals]) -> Totals:
    return sum(parts, Totals())


def without_own_marks(output: str) -> str:
    """Take away the marks that tables put behind texts from right to left, before blanks only."""
    return re.sub(r"\u200e(?= |$)", "", output, flags=re.MULTILINE)


def assert_snapshot(name: str, output: str) -> None:
    lines = (line.rstrip() + "\n" for line in output.replace("\x1b", "\\e").splitlines())
    written, path = "".join(lines), SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(written, encoding="utf-8")
    assert written == path.read_text(encoding="utf-8")


def pair_of(n_prompt: int = 4, identity: str = "pair", **asked: Any) -> SequenceScore:
    """BOS and the first tokens are the prompt's."""
    score = score_of(identity=identity, **asked)
    mask = np.arange(len(TOKENS) + 1) >= n_prompt
    prompt_boundary = PromptBoundary(boundary="merged", empty_prompt=False, n_words=3)
    return replace(
        score, sequence=replace(score.sequence, loss_mask=mask, prompt_boundary=prompt_boundary)
    )


def chat_of() -> SequenceScore:
    score = pair_of()
    assert score.sequence.prompt_boundary is not None
    mask = np.isin(np.arange(len(TOKENS) + 1), (4, 5, 8, 9))
    turns = (Turn("system", 0, 2), Turn("user", 2, 4), Turn("assistant", 4, 6))
    turns += (Turn("\x1b[31mtool", 6, 8), Turn("assistant", 8, 11))
    prompt_boundary = replace(score.sequence.prompt_boundary, boundary=None, n_spans=2, turns=turns)
    return replace(
        score, sequence=replace(score.sequence, loss_mask=mask, prompt_boundary=prompt_boundary)
    )


PAIRED = replace(
    RUN,
    command="cond",
    boundary="joint",
    share_prefix=True,
    stride=None,
    pairs={"truncate": "error", "marginal": True, "chat_template_sha256": None},
)
