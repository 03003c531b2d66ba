"""A tokenizer that is made without transformers is the one that transformers makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT
from seqloss_cli.core.policies import EngineChoice, ModelChoice, TokenPolicy
from seqloss_cli.models import checkpoint
from seqloss_cli.models.plain_tokenizer import PlainTokenizer, plain_config, plain_tokenizer
from seqloss_cli.tokenization.tokenizer import Tokenization

DEMO = ROOT / "seqloss_cli" / "demo"
TEXTS = ["The cat sat.", " two  blanks\n", "日本語 🐕‍🦺 é", "<|end_of_text|>x", ""]


def copied(folder: Path, **settings: Any) -> Path:
    """The demo's tokenizer and configuration, with other settings of the tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(DEMO / name, folder / name)
    file = folder / "tokenizer_config.json"
    found = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({k: v for k, v in found.items() if v != "left out"}))
    return folder


def both(folder: Path) -> tuple[Any, Any]:
    """What is loaded of a folder for a server, and for a model here."""
    engine = EngineChoice(url="http://127.0.0.1:1")
    plain = checkpoint.load_tokenizer_only(ModelChoice(name=str(folder), engine=engine))
    whole = checkpoint.load_tokenizer_only(ModelChoice(name=str(folder)))
    return plain, whole


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bos_token": None},
        {"eos_token": None, "pad_token": "<|end_of_text|>"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True},
        {"chat_template": "{{ messages }}", "model_max_length": 10},
    ],
)
def test_it_is_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    plain, whole = both(copied(tmp_path, **settings))
    assert isinstance(plain.tokenizer, PlainTokenizer)
    for name in ("bos_ids", "eos_ids", "n_ids", "max_context", "max_context_key", "warnings"):
        assert getattr(plain, name) == getattr(whole, name), name
    ours, theirs = (
        Tokenization(each.tokenizer, TokenPolicy(), each.n_ids, each.bos_ids, each.eos_ids)
        for each in (plain, whole)
    )
    for name in ("sha256", "bos_id", "eos_id", "warnings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("special", "unk_id", "control", "prefix_ids", "bos_id", "eos_id"):
        assert getattr(ours.vocabulary, name) == getattr(theirs.vocabulary, name), name
    assert ours.vocabulary.encode(TEXTS) == theirs.vocabulary.encode(TEXTS)
    assert plain.tokenizer.special_tokens_map == dict(whole.tokenizer.special_tokens_map)
    assert plain.tokenizer.chat_template == whole.tokenizer.chat_template
    assert len(plain.tokenizer) == len(whole.tokenizer)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "left out"},
        {"add_bos_token": True},
        {"bos_token": "left out"},
        {"bos_token": "<s>"},
        {"extra_special_tokens": ["<x>"]},
        {"auto_map": {}},
        {"chat_template": [{"name": "a", "template": "b"}]},
    ],
)
def test_what_transformers_would_change_is_left_to_it(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    assert plain_tokenizer(copied(tmp_path, **settings)) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"text_config": {"vocab_size": 5}},
        {"max_position_embeddings": "left out"},
        {"eos_token_id": "left out"},
        {"auto_map": {"AutoConfig": "x"}},
    ],
)
def test_configurations_that_need_their_class_are_left_to_it(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    file = copied(tmp_path) / "config.json"
    found = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({k: v for k, v in found.items() if v != "left out"}))
    assert plain_config(tmp_path) is None


def test_the_demo_needs_no_torch_with_a_server() -> None:
    """The client of a server starts in less than a second."""
    import subprocess
    import sys

    code = (
        "import sys; from seqloss_cli.core.policies import *; "
        "from seqloss_cli.models.checkpoint import load_tokenizer_only as load; "
        "load(ModelChoice(engine=EngineChoice(url='http://x'))); "
        "import seqloss_cli.backends.server.opening, seqloss_cli.scoring.scorer; "
        "print(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "", done.stderr
    assert done.returncode == 0
