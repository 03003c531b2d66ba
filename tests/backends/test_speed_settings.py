"""Settings of speed: they choose well, they are obeyed, and they never change a number."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.activations import FastGELUActivation, NewGELUActivation, QuickGELUActivation

from helpers.architectures import build
from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.oracles import CONTEXT, assert_true
from helpers.program import document, in_process
from helpers.runs import LONGEST, NEEDS_COMPILER, Counting, random_rows, scores_by
from seqloss_cli.backends.torch import backend as backend
from seqloss_cli.backends.torch import batch_budget
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.policies import BatchPolicy
from seqloss_cli.models.onednn import fuse_activations


@pytest.fixture(scope="module")
def ready() -> TorchBackend:
    return TorchBackend(llama(context=LONGEST), LONGEST)


# -- activations ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NewGELUActivation, FastGELUActivation])
def test_a_fused_activation_is_the_one_that_was_written_out(kind: Any) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-20, 100.0, -100.0])])
    parent = torch.nn.Sequential(kind(), torch.nn.ReLU(), QuickGELUActivation())
    written = [child(x) for child in parent]
    assert fuse_activations(parent) == 1
    assert isinstance(parent[0], torch.nn.GELU)
    fused = [child(x) for child in parent]
    torch.testing.assert_close(fused[0], written[0], rtol=1e-6, atol=2e-6)
    assert all(torch.equal(a, b) for a, b in zip(fused[1:], written[1:], strict=True))
    assert (torch.nn.functional.gelu(x) - written[0]).abs().max() > 1e-4, "erf is another function"


def test_gpt2_scores_the_same_with_fused_activations() -> None:
    model = build("gpt2")
    exact, sequences = copy.deepcopy(model).double(), random_rows(2, 12)
    before = scores_by(TorchBackend(model, LONGEST), sequences, BatchPolicy())
    assert fuse_activations(model) == 2
    assert fuse_activations(model) == 0
    after = scores_by(TorchBackend(model, LONGEST), sequences, BatchPolicy())
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a.losses, b.losses, rtol=0, atol=1e-4)
        assert_true(exact, a)


# -- budgets --------------------------------------------------------------------------------


def test_compiling_pays_for_much_text_only(
    ready: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_budget, "product_rate", lambda model: 1e10)
    for unknown in (None, 0):
        assert not batch_budget.compiling_pays(ready.model, unknown)
    verdicts = [batch_budget.compiling_pays(ready.model, 10**n) for n in range(14)]
    assert verdicts == sorted(verdicts)
    assert not verdicts[0]
    assert verdicts[-1]
    monkeypatch.undo()
    assert batch_budget.compiling_pays(ready.model, 10**18)


def test_slow_first_products_do_not_count(
    ready: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same command would compile or not by how the machine woke up."""
    took = iter([0.0, 5.0, 0.0, 2.0, 0.0, 0.5, *(0.0, 1.0) * 20])
    monkeypatch.setattr(batch_budget.time, "perf_counter", lambda: next(took))
    flop = 2 * 512 * 4 * ready.model.config.hidden_size**2
    assert batch_budget.product_rate(ready.model) == flop / 0.5


@pytest.mark.parametrize(
    ("seconds_of", "allowed", "chosen", "most_probed"),
    [
        (lambda n: n * 1e-5, 1 << 30, 1024, 2048),  # never faster
        (lambda n: 0.01 + n * 1e-9, 1 << 30, 65536, 65536),  # always faster
        (lambda n: max(n, 8192) * 1e-6, 1 << 30, 8192, 16384),
        (lambda n: max(n, 8192) * 1e-6, 5000, 4096, 4096),  # no memory for more
        (lambda n: 1e-3, 700, 700, 0),  # not for the smallest, either
        (lambda n: n * 2e-3, 1 << 30, 4096, 1024),  # too slow to go on
        (lambda n: n * 2e-3, 2000, 2000, 1024),
    ],
)
def test_the_budget_obeys_memory_and_stops_growing(
    ready: TorchBackend,
    monkeypatch: pytest.MonkeyPatch,
    seconds_of: Callable[[int], float],
    allowed: int,
    chosen: int,
    most_probed: int,
) -> None:
    probed = [0]

    def seconds(backend: Any, tokens: int, row: int) -> float:
        probed.append(tokens)
        return seconds_of(tokens)

    free = 2 * allowed * batch_budget.token_bytes(ready.model)
    monkeypatch.setattr(batch_budget, "free_memory", lambda model: free)
    monkeypatch.setattr(batch_budget, "probe_seconds", seconds)
    assert batch_budget.choose_batch_tokens(ready, CONTEXT) == chosen
    assert max(probed) == most_probed


def test_a_probe_is_a_batch_of_the_budget(ready: TorchBackend) -> None:
    counting: Any = Counting(ready)
    counting.model = ready.model
    assert batch_budget.probe_seconds(counting, 1024, CONTEXT) > 0
    assert [batch.n_fed for batch in counting.batches] == [1024, 1024]


# -- the program ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ready: TorchBackend) -> Path:
    found = tmp_path_factory.mktemp("checkpoint")
    (found / "rows.txt").write_text("one\na longer row\nanother longer row\nx\n" * 3)
    return save_checkpoint(found, ready.model, byte_tokenizer())


def score(folder: Path, *flags: object) -> Any:
    return in_process(
        "score", folder / "rows.txt", "--lines", "--model", folder, "--device", "cpu",
        "--json", *flags,
    )  # fmt: skip


def losses_in(found: Any) -> list[float]:
    rows = [row["token_losses"] for row in found["sequences"]]
    return [math.nan if loss is None else loss for row in rows for loss in row]


def test_batch_tokens_auto_says_what_was_chosen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = document(score(folder))
    monkeypatch.setattr(
        batch_budget, "probe_seconds", lambda _, tokens, row: max(tokens, 2048) / 1e6
    )
    found = document(score(folder, "--batch-tokens", "auto"))
    assert (plain["run"]["batch_tokens"], found["run"]["batch_tokens"]) == (4096, 2048)
    np.testing.assert_allclose(losses_in(found), losses_in(plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        *[("--batch-tokens", value) for value in ("0", "-1", "x", "1.5", "", "²")],
        *[("--devices", value) for value in ("0", "2", "x")],
        ("--compile", "maybe"),
    ],
)
def test_wrong_values_name_the_flag(folder: Path, flags: tuple[str, str]) -> None:
    result = score(folder, *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert flags[0] in result.stderr


@NEEDS_COMPILER
def test_compile_on_gives_the_same_numbers(folder: Path) -> None:
    off = document(score(folder, "--compile", "off"))
    on = document(score(folder, "--compile", "on"))
    assert (off["run"]["compiled"], on["run"]["compiled"]) == (False, True)
    np.testing.assert_allclose(losses_in(on), losses_in(off), rtol=0, atol=1e-4)


@pytest.mark.parametrize("choice", ["on", "auto"])
def test_without_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    def refuse(backbone: Any) -> None:
        raise RuntimeError("no working C++ compiler found")

    plain = document(score(folder))
    monkeypatch.setattr(backend, "compiled_forwards", refuse)
    monkeypatch.setattr(batch_budget, "compiling_pays", lambda model, work_bytes: True)
    result = score(folder, "--compile", choice)
    assert "no working C++ compiler found" in result.stderr
    if choice == "on":
        assert (result.exit_code, result.stdout) == (1, "")
        assert "--compile off" in result.stderr
        return
    found = document(result)
    assert "warning: not compiled" in result.stderr
    assert not found["run"]["compiled"]
    assert losses_in(found) == pytest.approx(losses_in(plain), abs=1e-9, nan_ok=True)
