"""The Python functions: what they take, what they refuse, what they pass on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import seqloss_cli
from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.program import ROOT
from seqloss_cli import Sample, Scorer, UsageError
from seqloss_cli.core.records import Rejected


@pytest.mark.parametrize(
    "options",
    [
        {"bos": "nevr"},
        {"special_tokens": "Error"},
        {"eos": "no"},
        {"dtype": "fp16"},
        {"device": "meta"},
        {"revision": "main"},
        {"threads": 0},
        {"context": 0},
        {"context": "64"},
        {"stride": 0},
        {"top_k": -1},
        {"top_k": 5000},
        {"batch_tokens": 0},
        {"colour": "red"},
        {"name": "demo"},
    ],
)
def test_the_api_refuses_what_no_flag_could_say(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        seqloss_cli.score("hello", **options)
    name = next(iter(options)).replace("_", "-")
    assert name in str(caught.value)


@pytest.mark.parametrize("text", [b"hello", 5, None, Sample("x", "x")])
def test_the_api_refuses_what_is_no_text(text: Any, demo: Scorer) -> None:
    with pytest.raises(UsageError):
        list(seqloss_cli.score([text]))


def test_the_api_takes_paths_ids_and_lists() -> None:
    folder = ROOT / "samples" / "checkpoints" / "step-100"
    sample = Sample("x", "x", input_ids=[0, 450, 271], labels=[-100, -100, 271])  # type: ignore[arg-type]
    (by_path,) = seqloss_cli.score([sample], model=folder, bos_token=0)  # type: ignore[arg-type]
    assert by_path.counted.tolist() == [False, False, True]
    (lone,) = seqloss_cli.score(["a\udc80"])
    assert isinstance(lone, Rejected)
    assert lone.reason == "lone_surrogate"


def test_the_api_passes_warnings_on(tmp_path: Path) -> None:
    model = llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    folder = save_checkpoint(tmp_path / "model", model, byte_tokenizer())
    with pytest.warns(UserWarning, match="one sequence at a time"):
        seqloss_cli.score("a", model=str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        seqloss_cli.score("a", model="demo")
