"""What the README says of other programs' figures: each is computed here by that program's own
arithmetic, in plain torch, and held against what the flags that the README names give.

The demo model; its tokenizer's BOS is left out or named, as each program has it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.program import ROOT, document, in_process

NEAR = 1e-4
"""Nats per token, in float32."""
LINES = ["Return a list of the names.", "The list is sorted in place.", "x = {}  # empty"]
Log = Callable[[list[int]], torch.Tensor]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "seqloss_cli" / "demo")


@pytest.fixture(scope="module")
def losses_after_the_first() -> Callable[[list[int]], list[float]]:
    """Of what is fed in one go: the loss of each token but the first, nats."""
    from transformers import AutoModelForCausalLM

    folder = ROOT / "seqloss_cli" / "demo"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def losses(ids: list[int]) -> list[float]:
        fed = torch.tensor([ids])
        with torch.no_grad():
            log_probs = model(fed[:, :-1]).logits[0].double().log_softmax(-1)
        return (-log_probs.gather(1, fed[0, 1:, None])[:, 0]).tolist()

    return losses


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> list[int]:
    """A long text's own tokens; the text never changes."""
    text = (ROOT / "LICENSE").read_text()
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(found) > 512
    return found


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: object) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def score(*arguments: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first sequence, and the totals."""
    found = document(in_process("score", *arguments, "--json"))
    return found["sequences"][0], found["totals"]


def near(expected: list[float]) -> Any:
    return pytest.approx(expected, abs=NEAR)


# -- transformers' documentation: strided windows -------------------------------------------------


def strided(losses_of: Any, ids: list[int], length: int, stride: int) -> list[list[float]]:
    """The losses of each window: those of the labels that the window before did not reach, less
    one label of the first, which the shift drops."""
    windows, reached = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        windows.append(losses_of(ids[begin:end])[-(end - reached) :])
        reached = end
        if end == len(ids):
            break
    return windows


def strided_perplexity(windows: list[list[float]], n_labels_of_later: list[int]) -> float:
    """A window's mean counts as often as it has labels, less one, which is right for the first."""
    weights = [len(windows[0]), *(n - 1 for n in n_labels_of_later)]
    means = [math.fsum(window) / len(window) for window in windows]
    total = math.fsum(m * w for m, w in zip(means, weights, strict=True))
    return math.exp(total / sum(weights))


@pytest.mark.parametrize(("length", "stride"), [(32, 8), (32, 31), (48, 1), (512, 256)])
def test_the_strided_recipe_scores_each_token_as_we_do(
    length: int, stride: int, ids: list[int], losses_after_the_first: Any, rows: Any
) -> None:
    n = length + stride * (2 if length < 512 else 0)
    ids = ids[:n]
    windows = strided(losses_after_the_first, ids, length, stride)
    expected = [loss for window in windows for loss in window]
    flags = ("--bos", "never", "--context", length - 1, "--stride", stride)
    row, totals = score(rows({"input_ids": ids}), *flags)
    assert row["token_losses"][0] is None
    assert row["token_losses"][1:] == near(expected)
    assert totals["n_scored"] == len(expected) == len(ids) - 1
    mean = math.fsum(expected) / len(expected)
    assert totals["mean_loss"] == pytest.approx(mean, abs=NEAR)
    ours, parts = iter(row["token_losses"][1:]), [len(window) for window in windows]
    regrouped = [[next(ours) for _ in range(part)] for part in parts]
    printed = strided_perplexity(windows, parts[1:])
    assert strided_perplexity(regrouped, parts[1:]) == pytest.approx(printed, rel=NEAR)
    if stride == 8:
        assert totals["perplexity"] != pytest.approx(printed, rel=NEAR), "S - 1 for S tokens"


def test_of_a_text_also_without_the_tokenizers_bos(
    tokenizer: Any, losses_after_the_first: Any, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "samples" / "text.txt").read_text())
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    expected = strided(losses_after_the_first, ids, 512, 256)
    row, totals = score(text, "--bos", "never", "--context", 511, "--stride", 256)
    assert row["token_losses"][1:] == near(expected[0])
    printed = strided_perplexity(expected, [])
    assert totals["perplexity"] == pytest.approx(printed, rel=NEAR), "one window: the same figure"


def test_only_a_last_window_that_is_not_full_differs(
    ids: list[int], losses_after_the_first: Any, rows: Any
) -> None:
    ids = ids[: 32 + 2 * 8 + 3]
    windows = strided(losses_after_the_first, ids, 32, 8)
    assert [len(window) for window in windows] == [31, 8, 8, 3]
    flags = ("--bos", "never", "--context", 31, "--stride", 8, "--context-lengths")
    row, _ = score(rows({"input_ids": ids}), *flags)
    before = [loss for window in windows[:-1] for loss in window]
    ours = row["token_losses"][1:]
    assert ours[: len(before)] == near(before)
    assert ours[len(before) :] != near(windows[-1])
    assert row["context_lengths"][-3:] == [29, 30, 31], "theirs see 24, 25 and 26 tokens"


# -- lm-evaluation-harness: rolling log-likelihood ------------------------------------------------


def rolling(losses_of: Any, prefix: int, ids: list[int], length: int) -> list[float]:
    """Disjoint stretches of `length` predictions; the first is fed the prefix and its own tokens, a
    later one the `length` tokens before its last, which reach at least one before its first."""
    fed, losses = [prefix, *ids], []
    for first in range(1, len(fed), length):
        end = min(first + length, len(fed))
        losses += losses_of(fed[max(0, end - length - 1) : end])[-(end - first) :]
    return losses


@pytest.mark.parametrize("prefix", ["<|begin_of_text|>", "<|end_of_text|>"])
@pytest.mark.parametrize("text", ["The cat sat\non the mat.", "\n Déjà vu: 🐕 \n"])
def test_rolling_log_likelihoods_of_texts_that_fit(
    prefix: str, text: str, tokenizer: Any, losses_after_the_first: Any
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    token = tokenizer.convert_tokens_to_ids(prefix)
    total = math.fsum(rolling(losses_after_the_first, token, ids, 64))
    flags = ("--bos", "always", "--bos-token", prefix, "--context", 64)
    _, totals = score("--text", text, *flags)
    n_bytes = len(text.encode())
    assert totals["log_prob"] == pytest.approx(-total, abs=NEAR * len(ids))
    assert totals["bits_per_byte"] == pytest.approx(total / n_bytes / math.log(2), abs=NEAR)
    byte_perplexity = math.exp(total / n_bytes)
    assert 2 ** totals["bits_per_byte"] == pytest.approx(byte_perplexity, rel=NEAR)
    words = len(re.split(r"\s+", text))
    ends_in_space = (text != text.lstrip()) + (text != text.rstrip())
    assert words == totals["n_words"] + ends_in_space
    ours = math.exp(totals["total_loss"] / (totals["n_words"] + ends_in_space))
    assert ours == pytest.approx(math.exp(total / words), rel=NEAR)
    same = totals["word_perplexity"] == pytest.approx(math.exp(total / words), rel=NEAR)
    assert same == (not ends_in_space)


def test_a_corpus_is_weighted_by_its_counts(
    tokenizer: Any, losses_after_the_first: Any, rows: Any
) -> None:
    encoded = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES]
    bos = tokenizer.bos_token_id
    total = math.fsum(
        loss for ids in encoded for loss in rolling(losses_after_the_first, bos, ids, 64)
    )
    _, totals = score(rows(*({"text": line} for line in LINES)), "--bos", "always")
    n_bytes = sum(len(line.encode()) for line in LINES)
    n_words = sum(len(re.split(r"\s+", line)) for line in LINES)
    assert totals["bits_per_byte"] == pytest.approx(total / n_bytes / math.log(2), abs=NEAR)
    assert totals["word_perplexity"] == pytest.approx(math.exp(total / n_words), rel=NEAR)


def test_rolling_over_longer_texts_is_had_by_rows_of_ids(
    ids: list[int], tokenizer: Any, losses_after_the_first: Any, rows: Any
) -> None:
    ids, length = ids[:75], 32
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for prefix, other in ((begin, end), (end, begin)):
        theirs = rolling(losses_after_the_first, prefix, ids, length)
        path = rows({"input_ids": [prefix, *ids]})
        flags = ("--context", length, "--stride", length)
        row, _ = score(path, *flags, "--bos-token", other)
        assert row["token_losses"][1:] == near(theirs), "as the README has it"
        again, _ = score(path, *flags, "--bos-token", prefix)
        assert again["token_losses"][1 : length + 1] == near(theirs[:length])
        assert again["token_losses"][1:] != near(theirs), "each of our windows begins with BOS"


# -- SRILM: ppl and ppl1 --------------------------------------------------------------------------


@pytest.mark.parametrize("words_are", ["tokens", "words"])
def test_ppl_and_ppl1(
    words_are: str, tokenizer: Any, losses_after_the_first: Any, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(line + "\n\n" for line in LINES))
    encoded = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    losses = [loss for ids in encoded for loss in losses_after_the_first([begin, *ids, end])]
    log10 = -math.fsum(losses) / math.log(10)
    words = encoded if words_are == "tokens" else [line.split() for line in LINES]
    n_words, n_sentences = sum(map(len, words)), len(LINES)
    ppl = 10 ** (-log10 / (n_words + n_sentences))
    ppl1 = 10 ** (-log10 / n_words)
    _, totals = score(text, "--lines", "--eos")
    total, n_sequences = totals["total_loss"], totals["n_sequences"]
    if words_are == "tokens":
        ours = totals["perplexity"], math.exp(total / (totals["n_scored"] - n_sequences))
    else:
        ours = math.exp(total / (totals["n_words"] + n_sequences)), totals["word_perplexity"]
    assert ours == pytest.approx((ppl, ppl1), rel=NEAR)


# -- llama-perplexity: second halves of chunks ----------------------------------------------------


def test_second_halves_are_had_by_labels_and_not_by_flags(
    ids: list[int], tokenizer: Any, losses_after_the_first: Any, rows: Any
) -> None:
    n_ctx, ids = 32, ids[:150]
    first, n_chunks = n_ctx // 2, len(ids) // n_ctx
    chunks = [ids[n * n_ctx : (n + 1) * n_ctx] for n in range(n_chunks)]
    chunks = [[tokenizer.bos_token_id, *chunk[1:]] for chunk in chunks]
    scored = [loss for chunk in chunks for loss in losses_after_the_first(chunk)[first:]]
    assert len(scored) == n_chunks * (n_ctx - 1 - first)
    theirs = math.exp(math.fsum(scored) / len(scored))
    for stride in (1, first, n_ctx):
        _, totals = score(rows({"input_ids": ids}), "--context", n_ctx, "--stride", stride)
        assert totals["n_scored"] == len(ids) - 1 > len(scored)
        assert totals["perplexity"] != pytest.approx(theirs, rel=1e-2)
    labels = [[-100] * (first + 1) + chunk[first + 1 :] for chunk in chunks]
    prepared = [{"input_ids": c, "labels": m} for c, m in zip(chunks, labels, strict=True)]
    _, totals = score(rows(*prepared))
    assert totals["n_scored"] == len(scored)
    assert totals["perplexity"] == pytest.approx(theirs, rel=NEAR)
