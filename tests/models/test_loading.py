"""Checkpoints that load as they should, or are refused with what mends them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.program import ROOT
from seqloss_cli import ModelChoice, Scorer
from seqloss_cli.core.errors import RunError


def test_a_wrong_tokenizer_class_is_noticed_in_a_hub_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same checkpoint as a directory and as a name in the hub's cache: the same ids."""
    folder = save_checkpoint(tmp_path / "own", llama(), byte_tokenizer())
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2"}
    config["architectures"] = ["Qwen2ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").unlink()
    snapshot = tmp_path / "hub" / "models--x--y" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    refs = tmp_path / "hub" / "models--x--y" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    code = """
import json, sys
from seqloss_cli import ModelChoice
from seqloss_cli.models.tokenizer_loading import load_tokenizer
for name in sys.argv[1:]:
    tokenizer, warnings = load_tokenizer(ModelChoice(name, offline=True))
    print(json.dumps([tokenizer.encode("hello wor", add_special_tokens=False), bool(warnings)]))
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "x/y"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    by_folder, by_name = done.stdout.splitlines()
    assert json.loads(by_folder) == [
        byte_tokenizer().encode("hello wor", add_special_tokens=False),
        True,
    ]
    assert by_name == by_folder


def test_fewer_layers_in_the_config_than_in_the_weights_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", llama(), byte_tokenizer())
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"layers\.1\..*config\.json"):
        Scorer(ModelChoice(name=str(folder)))


def test_a_model_that_does_not_fit_is_a_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Any, *args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.PreTrainedModel.to", no_memory)
    with pytest.raises(RunError, match="--dtype"):
        Scorer(ModelChoice())


def test_a_context_of_one_token_is_checked_like_any_other() -> None:
    scorer = Scorer(ModelChoice(), context=1)
    assert scorer.backend.path == "packed"
    assert scorer.warnings == []
