"""Memory that runs out, wherever it does. What else goes wrong is in `test_interruptions.py`.

Whatever happens, numbers stay the same or there are none; the run ends soon and says why.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.builders import llama
from helpers.oracles import CONTEXT
from helpers.program import document, in_process
from helpers.runs import TEXTS, Narrow, assert_all_free, scores_of
from seqloss_cli.backends.torch import batch_budget
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.forward import ModelForward
from seqloss_cli.backends.torch.opening import MultiDeviceBackend
from seqloss_cli.cli.main import app
from seqloss_cli.core.errors import OutOfMemoryError
from seqloss_cli.tokenization.tokenizer import Tokenization
from seqloss_cli.tokenization.vocabulary import Vocabulary


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


def score(rows: Path, *flags: object) -> Any:
    return in_process("score", rows, "--lines", "--model", "demo", "--device", "cpu", *flags)


def losses_in(found: Any) -> list[float]:
    return [loss for row in found["sequences"] for loss in row["token_losses"] if loss is not None]


def no_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_python_memory() -> None:
    raise MemoryError


def no_cpu_memory() -> None:
    torch.empty(1 << 50)


SHORTAGES = [no_gpu_memory, no_python_memory, no_cpu_memory]


def with_room_for(
    patch: pytest.MonkeyPatch, stage: str, room: int, shortage: Callable[[], None] = no_cpu_memory
) -> None:
    """The backbone runs out of memory beyond so many tokens, or the head beyond as many positions;
    the check at load has 20."""
    name = {"backbone": "_packed", "head": "_logits_of"}[stage]
    whole = getattr(ModelForward, name)

    def narrow(runner: Any, first: Any, *others: Any) -> Any:
        if (first.input_ids.size if stage == "backbone" else len(first)) > room:
            shortage()
        return whole(runner, first, *others)

    patch.setattr(ModelForward, name, narrow)


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("stage", ["backbone", "head"])
def test_a_batch_too_large_is_halved(
    rows: Path, monkeypatch: pytest.MonkeyPatch, stage: str, shortage: Callable[[], None]
) -> None:
    plain = document(score(rows, "--json"))
    with_room_for(monkeypatch, stage, 60, shortage)
    result = score(rows, "--json")
    found = document(result)
    np.testing.assert_allclose(losses_in(found), losses_in(plain), rtol=0, atol=1e-4)
    assert found["totals"]["n_scored"] == plain["totals"]["n_scored"] == len(losses_in(found))
    assert "did not fit in memory and were halved (see --batch-tokens)" in result.stderr


@pytest.mark.parametrize("stage", ["backbone", "head"])
def test_a_row_too_large_says_what_to_do(
    rows: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    rows.write_text("a row\nanother\n" + "of some text " * 40)
    with_room_for(monkeypatch, stage, 20)
    result = score(rows, "--jsonl")
    assert result.exit_code == 1
    (message,) = result.stderr.splitlines()
    assert "out of memory in a batch of 1 rows" in message
    assert "--context" in message
    assert "--batch-tokens" in message


def test_no_memory_for_the_check_at_load(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelForward, "score", lambda *_: no_cpu_memory())
    result = score(rows)
    assert result.exit_code == 1
    assert "out of memory in the first forward" in result.stderr
    assert "--dtype" in result.stderr


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_no_memory_for_the_weights(
    rows: Path, monkeypatch: pytest.MonkeyPatch, shortage: Callable[[], None]
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: shortage())
    result = score(rows)
    assert result.exit_code == 1
    assert "--dtype" in result.stderr


def test_no_memory_to_tokenize(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenization, "token_bytes", lambda *_: no_python_memory())
    result = CliRunner().invoke(app, ["score", str(rows), "--lines", "--model", "demo", "--jsonl"])
    assert result.exit_code == 1
    assert "out of memory while tokenizing" in result.stderr
    assert "--max-bytes" in result.stderr


def test_no_memory_in_the_tokenizer_is_not_the_fault_of_a_row(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Vocabulary, "encode", lambda *_: no_python_memory())
    result = CliRunner().invoke(app, ["score", str(rows), "--lines", "--model", "demo", "--jsonl"])
    assert result.exit_code == 1
    assert "out of memory while tokenizing" in result.stderr


@pytest.mark.parametrize("room", [3000, 700])
def test_no_memory_for_the_probe_of_budgets(
    rows: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """What is chosen fits, if any probe does; the run itself halves whatever does not."""
    plain, whole = document(score(rows, "--json")), batch_budget.probe_seconds

    def faster_and_faster(backend: Any, tokens: int, row: int) -> float:
        whole(backend, tokens, row)
        return tokens**0.5

    monkeypatch.setattr(batch_budget, "_LONG_ENOUGH", 1e9)
    monkeypatch.setattr(batch_budget, "probe_seconds", faster_and_faster)
    with_room_for(monkeypatch, "backbone", room)
    found = document(score(rows, "--json", "--batch-tokens", "auto"))
    np.testing.assert_allclose(losses_in(found), losses_in(plain), rtol=0, atol=1e-4)
    assert found["run"]["batch_tokens"] == (2048 if room > 1024 else 512)


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend(llama(), CONTEXT)


def test_one_of_several_devices_has_less_memory(backend: TorchBackend) -> None:
    expected = [outcome.losses for outcome in scores_of(backend)]
    other = TorchBackend(copy.deepcopy(backend.model), CONTEXT)
    devices: Any = MultiDeviceBackend([Narrow(backend, 40), Narrow(other, 10**9)])  # type: ignore[list-item]
    found = list(scores_of(devices, tokens=200))
    assert devices.n_too_large > 0
    for outcome, losses in zip(found, expected, strict=True):
        np.testing.assert_allclose(outcome.losses, losses, rtol=0, atol=1e-4)
    members = [Narrow(backend, CONTEXT - 1), Narrow(other, CONTEXT - 1)]
    devices = MultiDeviceBackend(members)  # type: ignore[arg-type]
    with pytest.raises(OutOfMemoryError, match="--batch-tokens"):
        list(scores_of(devices))
    assert_all_free(devices, members)
