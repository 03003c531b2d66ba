"""Code that only GPUs run, on a GPU that is none (helpers/fake_cuda.py): the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen

from helpers.architectures import ARCHITECTURES, PADDED, build
from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.fake_cuda import FREE_BYTES, fake_cuda, varlen_of_2_10, varlen_of_2_11
from helpers.oracles import CONTEXT
from helpers.program import document, in_process
from helpers.runs import EVERYTHING, outcomes, random_rows, scores_by
from seqloss_cli import ModelChoice, Scorer
from seqloss_cli.api import as_samples
from seqloss_cli.backends.torch import batch_budget, head
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import BatchPolicy, SpeedPolicy
from seqloss_cli.core.records import SequenceScore

TEXTS = ["a", "The cat sat on the mat.", "Ragged rows", "日本語 and 🐕 are of more bytes"]
# Nats: the grain of 8 bits (11 of float16) in weights and hidden states of a model with sharp
# distributions, beside another way of adding up.
GRAIN = {"float32": 2e-4, "float16": 0.05, "bfloat16": 0.4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of keys are shared, as they are in most models."""
    return save_checkpoint(tmp_path_factory.mktemp("llama"), llama(), byte_tokenizer())


def scores_of(scorer: Scorer, requested: Requested = EVERYTHING) -> list[SequenceScore]:
    found = list(scorer.score(as_samples(TEXTS), requested=requested))
    assert all(isinstance(each, SequenceScore) for each in found), found
    return found  # type: ignore[return-value]


def assert_alike(found: list[SequenceScore], expected: list[SequenceScore], atol: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.scored == b.scored).all()
        np.testing.assert_allclose(a.losses[a.scored], b.losses[b.scored], rtol=0, atol=atol)
        assert list(a.columns) == list(b.columns)
        for name in ("entropies", "varentropies"):
            if name in a.columns:
                expected_at = b.columns[name][b.scored]
                np.testing.assert_allclose(
                    a.columns[name][a.scored], expected_at, rtol=atol, atol=2 * atol
                )


@pytest.mark.parametrize("dtype", GRAIN)
@pytest.mark.parametrize("like", [varlen.varlen_attn, varlen_of_2_11, varlen_of_2_10])
def test_packed_rows(
    dtype: Any, like: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scores_of(Scorer(ModelChoice(str(folder), device="cpu", dtype="float32")))
    with fake_cuda(monkeypatch, like=like) as used:
        scorer = Scorer(ModelChoice(str(folder), dtype=dtype))
        found = scores_of(scorer)
        record = scorer.backend.describe()
    assert (record["device"], record["path"]) == ("cuda:0", "packed")
    assert not scorer.warnings
    assert_alike(found, expected, GRAIN[dtype])
    assert used["pin_memory"]
    assert bool(used["varlen_attn"]) == bool(used["mm"]) == (dtype != "float32")
    for name in ("enable_gqa", "num_splits"):
        assert bool(used[name]) == (dtype != "float32" and name in signature(like).parameters)


def test_a_scale_that_torch_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Granite's: rows are padded with torch 2.10, and said."""
    with fake_cuda(monkeypatch, like=varlen_of_2_10):
        backend = TorchBackend(build("granite", attention_multiplier=0.1).bfloat16(), CONTEXT)
    assert backend.path == "batched"
    assert "a scale of its own" in " ".join(backend.warnings)


def test_float32_logits_are_not_rounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of half-precision factors is exact here, beside what a CPU rounds (0.03 nats)."""
    with fake_cuda(monkeypatch):
        scorer = Scorer(ModelChoice(str(folder), dtype="bfloat16"))
        model: Any = scorer.backend.checkpoint.model  # type: ignore[attr-defined]
        hidden = torch.randn(3, 32).bfloat16()
        exact = hidden.double() @ model.lm_head.weight.double().T
        logits = scorer.backend.model_forward._logits_of(hidden, slice(0, 258))  # type: ignore[attr-defined]
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(3, 6)
    with fake_cuda(monkeypatch) as used:
        backend = TorchBackend(build(name).bfloat16(), CONTEXT)
        plain = TorchBackend(backend.model, CONTEXT, path="plain")
        expected = scores_by(plain, rows, BatchPolicy(256))
        found = scores_by(backend, rows, BatchPolicy(256))
    takes_scale = "scale" in signature(varlen.varlen_attn).parameters
    padded = PADDED if takes_scale else PADDED | {"granite", "opt"}
    assert (backend.path == "packed") == (name not in padded)
    assert bool(used["varlen_attn"]) or name in padded
    assert_alike(found, expected, GRAIN["bfloat16"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_common_prompts(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = getattr(torch, dtype)
    cpu = TorchBackend(llama(), CONTEXT, share_prefix=True)
    expected = outcomes(cpu, False)
    with fake_cuda(monkeypatch):
        backend = TorchBackend(llama().to(whole), CONTEXT, share_prefix=True)
        assert backend.capabilities.longest_shared == CONTEXT
        found = outcomes(backend, True)
    assert_alike(found, expected, GRAIN[dtype])


def test_devices_share_the_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice, rows = ModelChoice(str(folder), dtype="float32"), random_rows(4, 30)
    expected = scores_by(TorchBackend(llama(), CONTEXT), rows, BatchPolicy(128))
    with fake_cuda(monkeypatch, n_devices=3):
        scorer = Scorer(choice, batches=BatchPolicy(128), speed=SpeedPolicy(devices=3))
        assert scorer.backend.capabilities.n_concurrent_batches == 3
        assert scorer.backend.describe()["devices"] == 3
        found = scores_by(scorer.backend, rows, BatchPolicy(128))
        refused = in_process("score", "--text", "a", "-m", folder, "--devices", "4")
    assert_alike(found, expected, GRAIN["float32"])
    assert refused.exit_code == 2
    assert "there are 3 CUDA devices" in " ".join(refused.stderr.split())


def test_the_program_on_its_own_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("score", "samples/text.txt", "-m", folder, "--json", "--dtype", "bfloat16")
    with fake_cuda(monkeypatch) as used:
        made = document(in_process(*words, "--batch-tokens", "auto"))
    assert made["run"]["device"] == "cuda:0"
    assert made["run"]["guesses"] == GUESSES
    assert used["mem_get_info"]
    on_cpu = document(in_process(*words, "--device", "cpu"))
    assert "guesses" not in on_cpu["run"]
    a, b = (each["totals"]["mean_loss"] for each in (made, on_cpu))
    assert a == pytest.approx(b, abs=0.05)


GUESSES = ["head.block_size", "compile.saving", "prefetch"]
ITEM = '{"id": "a", "prompt": "The cat", "choices": [" sat", " ran"], "answer": 0}'


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ("cond --prompt a --response bc", []),
        ("rank items.jsonl", []),
        ("mask --prompt a --response bc --loss", []),
        ("diverge --text abc --teacher model", ["diverge.block_size"]),
    ],
)
def test_guesses_stand_in_every_record(
    line: str, more: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(folder)
    (tmp_path / "items.jsonl").write_text(ITEM + "\n")
    monkeypatch.chdir(tmp_path)
    words = [*line.split(), "-m", "model", "--json"]
    with fake_cuda(monkeypatch):
        on_gpu = document(in_process(*words))
    assert on_gpu["run"]["guesses"] == GUESSES + more
    assert "guesses" not in document(in_process(*words, "--device", "cpu"))["run"]


def test_a_teacher_beside_the_student(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("diverge", "samples/text.txt", "-m", folder, "--teacher", folder, "--json")
    words += ("--context", 64, "--stride", 32)
    with fake_cuda(monkeypatch) as used:
        made = document(in_process(*words, "--dtype", "bfloat16", "--teacher-dtype", "float32"))
    assert used["varlen_attn"]
    assert 0 < made["totals"]["mean_kl"] < 0.05


def test_free_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        assert batch_budget.free_memory(llama()) == FREE_BYTES


@pytest.mark.parametrize(
    ("bytes_per_token", "chosen"),
    [(1000, 65_536), (FREE_BYTES // 65_536, 32_768), (FREE_BYTES // 4096, 2048), (1 << 20, 1024)],
)
def test_the_budget_obeys_the_memory_that_probes_take(
    bytes_per_token: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is free is for batches, which may take twice a probe's at twice the tokens."""
    model, probed = llama(), [0]
    footprint = model.get_memory_footprint()

    def seconds(backend: Any, tokens: int, row: int) -> float:
        probed.append(tokens)
        return 0.01

    monkeypatch.setattr(batch_budget, "probe_seconds", seconds)
    with fake_cuda(monkeypatch):
        monkeypatch.setattr(
            torch.cuda, "max_memory_allocated", lambda _: footprint + bytes_per_token * probed[-1]
        )
        assert batch_budget.choose_batch_tokens(TorchBackend(model, CONTEXT), CONTEXT) == chosen


def test_a_batch_that_does_not_fit_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(5, 12)
    expected = scores_by(TorchBackend(llama(), CONTEXT), rows, BatchPolicy(512))
    with fake_cuda(monkeypatch):
        backend = TorchBackend(llama(), CONTEXT)
        whole: Callable[..., Any] = backend.model_forward.score

        def score(batch: Any, requested: Requested) -> Any:
            if batch.lengths.sum() > 128:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return whole(batch, requested)

        monkeypatch.setattr(backend.model_forward, "score", score)
        found = scores_by(backend, rows, BatchPolicy(512))
    assert backend.n_too_large
    assert_alike(found, expected, GRAIN["float32"])


def test_blocks_are_those_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        targets_M = torch.zeros(5000, dtype=torch.long)
        logits = head.LazyLogits(lambda rows, ids: targets_M, 100_000, True)
        assert head._rows_at_a_time(logits, targets_M, Requested()) == head.GPU_BLOCK_ROWS
        assert head._width(slice(0, 2048), targets_M) == head.GPU_BLOCK_LOGITS // 2048
