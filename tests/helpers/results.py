"""Results files written by hand, for tests that need no model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.files import ResultsFile, open_any
from seqloss_cli.results.schema.score_keys import totals_row
from seqloss_cli.results.schema.scores import loss_kinds, totals_of_row

RUN: dict[str, Any] = {
    "command": "score", "started_at": "2026-01-01T00:00:00+00:00", "model": "made",
    "revision": None, "weights_sha256": "w" * 64, "tokenizer": "made",
    "tokenizer_sha256": "t" * 64, "dtype": "float32", "bos": "auto", "eos": False,
    "special_tokens": "parse", "context": 512, "stride": 256, "boundary": None, "pairs": None,
    "gold": "one-hot",
}  # fmt: skip


def row(
    id: str,
    losses: Sequence[float | None],
    text: str | None = None,
    meta: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Of tokens that cover two bytes each, the first of them BOS; None is unscored."""
    infinite = [n for n, loss in enumerate(losses) if loss is not None and math.isinf(loss)]
    known = [loss for loss in losses if loss is not None]
    total = None if infinite or not known else math.fsum(known)
    n_bytes, n_scored = 2 * (len(losses) - 1), len(known)
    of_text = None if text == "" else hashlib.sha256((text or id).encode()).hexdigest()
    made = {
        "id": id, "source": "made.jsonl", "line": 1, "text_sha256": of_text, "bos": "prepended",
        "eos": "none", "n_tokens": len(losses), "n_scored": n_scored,
        "n_bytes": n_bytes, "n_scored_bytes": 2 * n_scored, "n_chars": n_bytes,
        "n_scored_chars": 2 * n_scored, "n_words": 3, "n_unscored_text_tokens": 0,
        "total_loss": total, "mean_loss": None if total is None else total / n_scored,
        "flags": {}, "token_ids": list(range(len(losses))),
        "tokens": [f"t{n}" for n in range(len(losses))],
        "token_losses": [None if n in infinite else loss for n, loss in enumerate(losses)],
        "byte_offsets": [0, *range(0, 2 * len(losses), 2)],
    }  # fmt: skip
    if infinite:
        made |= {"inf_losses": infinite, "flags": {"inf_loss": len(infinite)}}
    if meta is not None:
        made["meta"] = meta
    return made | fields


def write(
    path: Path,
    rows: Iterable[dict[str, Any]],
    run: dict[str, Any] | None = None,
    complete: bool = True,
    **changes: Any,
) -> Path:
    rows = list(rows)
    lines: list[dict[str, Any]] = [{"type": "run", "schema_version": 1, **(run or RUN), **changes}]
    lines += [{"type": "sequence", **each} for each in rows]
    if complete:
        totals = sum((totals_of_row(each) for each in rows), Totals())
        lines.append({"type": "totals", **totals_row(totals, {}, 0)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_divergences(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """As `diverge` would, without totals."""
    run = {"type": "run", "schema_version": 1, **RUN, "command": "diverge"}
    lines = [run, *({"type": "sequence", **row} for row in rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def diverged_row(tokens: list[str], kls: list[float | None]) -> dict[str, Any]:
    """BOS, then tokens that are pieces of the text; null is unscored."""
    ends, scored = [0, 0], [kl for kl in kls if kl is not None]
    for token in tokens:
        ends.append(ends[-1] + len(token.encode()))
    ones = [None, *(None if kl is None else 1.0 for kl in kls)]
    total, n = math.fsum(scored), len(scored)
    return {
        "id": "<b>x</b>\u202e", "source": "made", "line": 1, "text_sha256": "0" * 64,
        "text": "".join(tokens), "n_tokens": len(tokens) + 1, "n_scored": n,
        "cross_entropy": total + n, "teacher_entropy": float(n), "kl": total,
        "student_loss": float(n), "teacher_loss": float(n), "same_top1": 1.0,
        "delta_p": {"mean": 0.0, "rms": 0.0}, "flags": {},
        "token_ids": list(range(len(tokens) + 1)), "tokens": ["<s>", *tokens],
        "token_losses": [None, *(None if kl is None else kl + 1 for kl in kls)],
        "teacher_entropies": ones, "kls": [None, *kls], "student_losses": ones,
        "teacher_losses": ones, "token_delta_p": [None if x is None else 0.0 for x in ones],
        "token_same_top1": [None if x is None else True for x in ones], "byte_offsets": ends,
    }  # fmt: skip


def write_rankings(path: Path, rows: Iterable[dict[str, Any]], **rows_hold: Any) -> Path:
    """As `rank` would, without totals."""
    run = {"type": "run", "schema_version": 1, **RUN, "command": "rank", "rows": rows_hold}
    lines = [run, *({"type": "sequence", **row} for row in rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ranked_row(
    prompt: str,
    responses: Sequence[str],
    log_probs: Sequence[float | None],
    answers: list[int] | None = None,
) -> dict[str, Any]:
    """Choices of one token each; a log-probability of None is that of what is impossible."""
    known = [-math.inf if each is None else each for each in log_probs]
    weights = [math.exp(each - max(known)) for each in known]
    choices = [
        {
            "response": response, "log_prob": log_prob, "probability": weight / math.fsum(weights),
            "n_tokens": 1, "n_bytes": len(response.encode()), "n_chars": len(response),
            "boundary": "clean", "flags": {"inf_loss": 1} if log_prob is None else {},
        }
        for response, log_prob, weight in zip(responses, log_probs, weights, strict=True)
    ]  # fmt: skip
    lengths = {"sum": "", "token": "n_tokens", "byte": "n_bytes", "char": "n_chars"}
    orders, tied = {}, []
    for name, key in lengths.items():
        scores = [each / (choices[n][key] if key else 1) for n, each in enumerate(known)]
        orders[name] = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
        tied += [name] * (scores.count(max(scores)) > 1)
        for choice, score in zip(choices, scores, strict=True):
            choice.setdefault("scores", {})[name] = None if math.isinf(score) else score
    judged = {"acc": "sum", "acc_norm": "char", "acc_bytes": "byte", "acc_tokens": "token"}
    right = {name: orders[score][0] in (answers or ()) for name, score in judged.items()}
    n_impossible = log_probs.count(None)
    return {
        "id": "<b>x</b>\u202e", "source": "made", "line": 1, "prompt": prompt, "choices": choices,
        "orders": orders, "tied": tied, "answers": answers,
        "correct": None if answers is None else right,
        "flags": {"inf_loss": n_impossible} if n_impossible else {},
    }  # fmt: skip


def rows_of(n: int, shift: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    made = []
    for k in range(n):
        losses = generator.exponential(2, 3 + k % 5) + shift
        sure = generator.uniform(0.05, 1, len(losses))
        right = generator.random(len(losses)) < sure
        top: list[Any] = [None]
        for t, (p, is_right) in enumerate(zip(sure, right, strict=True), start=1):
            top.append([{"id": t if is_right else 99, "token": "x", "log_prob": math.log(p)}])
        made.append(
            row(f"r{k}", [None, *losses], meta={"set": "abc"[k % 3], "book": k // 4},
                top_logprobs=top)
        )  # fmt: skip
    return made


def open_results(name: str, **settings: bool) -> ResultsFile:
    """A file of `score` or `cond`."""
    return open_any(name, loss_kinds(**settings))
