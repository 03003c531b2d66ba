"""LoRA and other adapters of PEFT, put on a model without being merged."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import seqloss_cli
from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.program import document
from seqloss_cli import ModelChoice, Scorer, UsageError
from seqloss_cli.api import as_samples
from seqloss_cli.core.errors import RunError

TEXTS = ["The cat sat on the mat.", "a", "Ein Satz, länger als der erste: 日本語.", "the the the"]
LAYERS = ["q_proj", "v_proj"]
B_OF_LAYER_1 = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("made") / "base", llama(), byte_tokenizer())


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tied"
    return save_checkpoint(folder, llama(tie_word_embeddings=True), byte_tokenizer())


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "lora", base)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make(folder: Path, base: Path, config: Any = None, **options: Any) -> Path:
    """An adapter that was trained, as it were: what it adds is not zero."""
    if config is None:
        options = {"target_modules": LAYERS, "r": 4, "lora_alpha": 16} | options
        config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights, which are as they should be here
        model = peft.get_peft_model(load(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)
    return folder


def put_on(base: Path, adapter: Path) -> Any:
    """As PEFT itself does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(load(base), str(adapter)).eval()


def losses_by(scorer: Scorer) -> np.ndarray:
    found = [outcome.losses[outcome.scored] for outcome in scorer.score(as_samples(TEXTS))]
    return np.concatenate(found)


@torch.no_grad()
def losses_of(model: Any) -> np.ndarray:
    found = []
    for text in TEXTS:
        ids = torch.tensor([[0, *byte_tokenizer()(text)["input_ids"]]])
        log_probs = model(input_ids=ids[:, :-1]).logits[0].double().log_softmax(-1)
        found.append(-log_probs.gather(1, ids[0, 1:, None])[:, 0].numpy())
    return np.concatenate(found)


def assert_equal(found: np.ndarray, expected: np.ndarray, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)


def test_a_lora_is_applied_and_not_merged(base: Path, lora: Path) -> None:
    scorer = Scorer(ModelChoice(name=base, adapter=lora))  # type: ignore[arg-type]
    found = losses_by(scorer)
    assert_equal(found, losses_of(put_on(base, lora)))
    assert_equal(found, losses_of(put_on(base, lora).merge_and_unload()))
    without = Scorer(ModelChoice(name=str(base)))
    assert np.abs(found - losses_by(without)).max() > 0.1
    assert (scorer.backend.path, scorer.warnings) == ("packed", [])
    run, run_without = scorer.run_info(), without.run_info()
    assert (run.model, run.adapter, run_without.adapter) == (str(base), str(lora), None)
    assert run.weights_sha256 != run_without.weights_sha256
    state = scorer.backend.model.state_dict()
    assert any("lora_A" in name for name in state)
    own = load(base).state_dict()["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(state["model.layers.0.self_attn.q_proj.base_layer.weight"], own)


def test_the_hash_of_the_weights_is_of_the_adapter_too(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    shutil.copytree(lora, tmp_path / "same")
    shutil.copytree(lora, tmp_path / "scaled")
    path = tmp_path / "scaled" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 16', '"lora_alpha": 8'))
    make(tmp_path / "other", base, r=2)
    found = [
        Scorer(ModelChoice(name=str(base), adapter=str(folder))).run_info().weights_sha256
        for folder in (lora, *(tmp_path / name for name in ("same", "scaled", "other")))
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize("which", ["base", "tied"])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": [*LAYERS, "lm_head"]},
        {"target_modules": [*LAYERS, "embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "norm"]},
        {"trainable_token_indices": [70, 80]},
        {"use_dora": True},
        {"use_rslora": True, "lora_bias": True},
    ],
    ids=str,
)
def test_kinds_of_lora(
    options: dict[str, Any], which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(which)
    make(tmp_path, base, **options)
    scorer = Scorer(ModelChoice(name=str(base), adapter=str(tmp_path)))
    assert_equal(losses_by(scorer), losses_of(put_on(base, tmp_path)))
    assert (scorer.backend.path, scorer.warnings) == ("packed", [])


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            task_type="CAUSAL_LM",
        ),
        peft.LoHaConfig(target_modules=LAYERS, task_type="CAUSAL_LM"),
        peft.VeraConfig(target_modules=LAYERS, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: type(config).__name__,
)
def test_other_adapters(config: Any, base: Path, tmp_path: Path) -> None:
    make(tmp_path, base, config)
    scorer = Scorer(ModelChoice(name=str(base), adapter=str(tmp_path)))
    assert_equal(losses_by(scorer), losses_of(put_on(base, tmp_path)))


def test_an_adapter_on_int8_weights(base: Path, lora: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    scorer = Scorer(ModelChoice(name=str(base), adapter=str(lora), quantize="int8"))
    rounded = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    expected = peft.PeftModel.from_pretrained(rounded, str(lora)).eval()
    assert_equal(losses_by(scorer), losses_of(expected))
    assert scorer.run_info().quantization == "torchao int8_weight_only (on load)"


def test_an_adapter_in_half_precision_and_a_model_in_double(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    shutil.copytree(lora, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    scorer = Scorer(ModelChoice(name=str(base), adapter=str(tmp_path), dtype="float64"))
    assert scorer.run_info().dtype == "float64"
    assert_equal(losses_by(scorer), losses_of(put_on(base, tmp_path).double()), 1e-6)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda own: {name: own[name] for name in own if name != B_OF_LAYER_1}, "is missing"),
        (lambda own: own | {"base_model.model.x": torch.ones(2)}, "has no place in the model"),
        (lambda own: own | {B_OF_LAYER_1: torch.ones(3, 4)}, r"is \(3, 4\), not \(16, 4\)"),
    ],
)
def test_an_adapter_is_loaded_whole_or_not_at_all(
    edit: Any, reason: str, base: Path, lora: Path, tmp_path: Path
) -> None:
    shutil.copytree(lora, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_model.safetensors"
    save_file(edit(load_file(path)), path)
    with pytest.raises(RunError, match=reason) as caught:
        Scorer(ModelChoice(name=str(base), adapter=str(tmp_path)))
    assert str(tmp_path) in str(caught.value)


def test_an_adapter_of_a_larger_vocabulary_is_refused_with_the_reason(
    base: Path, tmp_path: Path
) -> None:
    larger = save_checkpoint(tmp_path / "larger", llama(300), byte_tokenizer())
    make(tmp_path / "adapter", larger, modules_to_save=["lm_head", "embed_tokens"])
    with pytest.raises(RunError, match=r"was its vocabulary resized\?"):
        Scorer(ModelChoice(name=str(base), adapter=str(tmp_path / "adapter")))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
            "adds tokens in front of every text",
        ),
        (
            peft.LoraConfig(
                target_modules=LAYERS, task_type="CAUSAL_LM", alora_invocation_tokens=[70]
            ),
            "only after its invocation tokens",
        ),
        (peft.LoraConfig(target_modules=["query_key_value"]), "cannot be put on the model"),
    ],
    ids=["prompt", "alora", "other layers"],
)
def test_adapters_that_cannot_be_put_on_are_refused(
    config: Any, reason: str, base: Path, lora: Path, tmp_path: Path
) -> None:
    shutil.copytree(lora, tmp_path, dirs_exist_ok=True)
    config.save_pretrained(tmp_path)
    with pytest.raises(RunError, match=reason):
        Scorer(ModelChoice(name=str(base), adapter=str(tmp_path)))


def test_an_adapter_of_another_base_is_warned_of(base: Path, lora: Path, tmp_path: Path) -> None:
    shutil.copytree(lora, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "someone/other-7b"}
    path.write_text(json.dumps(config))
    (warning,) = Scorer(ModelChoice(name=str(base), adapter=str(tmp_path))).warnings
    assert "was made for someone/other-7b" in warning


def test_settings_that_peft_does_not_know_are_refused(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    """PEFT would drop them, and they may be what the adapter does."""
    shutil.copytree(lora, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"brand_new_variant": True}))
    with pytest.raises(RunError, match="brand_new_variant"):
        Scorer(ModelChoice(name=str(base), adapter=str(tmp_path)))
    path.write_text(json.dumps(written | {"variant": None, "base_model_name_or_path": None}))
    scorer = Scorer(ModelChoice(name=str(base), adapter=str(tmp_path)))
    assert any("does not say which model" in warning for warning in scorer.warnings)
    assert "peft" in scorer.run_info().versions


def test_mask_without_losses_takes_no_adapter(run_cli: Any, lora: Path) -> None:
    words = ["mask", "--prompt", "a", "--response", "b", "-m", "demo"]
    assert "--loss" in run_cli(*words, "--adapter", lora).stderr
    assert run_cli(*words, "--quantize", "int8").exit_code == 2


def test_an_adapter_beside_the_weights_is_left_out_and_said(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    """transformers puts it on them if `peft` is there, and does not if it is not."""
    shutil.copytree(base, tmp_path / "base")
    for path in lora.glob("adapter_*"):
        shutil.copy(path, tmp_path / "base")
    folder = str(tmp_path / "base")
    if Version(transformers.__version__) < Version("5.23"):  # it cannot be told to leave it out
        with pytest.raises(RunError, match="pip install --upgrade transformers"):
            Scorer(ModelChoice(name=folder))
        return
    plain, adapted = Scorer(ModelChoice(name=folder)), Scorer(ModelChoice(folder, adapter=folder))
    (warning,) = plain.warnings
    assert f"--adapter {folder} takes it" in warning
    assert_equal(losses_by(plain), losses_by(Scorer(ModelChoice(name=str(base)))))
    assert_equal(losses_by(adapted), losses_of(put_on(base, lora)))
    assert adapted.warnings == []


def test_pickled_adapters_need_a_flag(base: Path, lora: Path, tmp_path: Path) -> None:
    shutil.copytree(lora, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(path), tmp_path / "adapter_model.bin")
    path.unlink()
    with pytest.raises(RunError, match="--allow-pickle takes them"):
        Scorer(ModelChoice(name=str(base), adapter=str(tmp_path)))
    choice = ModelChoice(name=str(base), adapter=str(tmp_path), allow_pickle=True)
    assert_equal(losses_by(Scorer(choice)), losses_of(put_on(base, lora)))
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(RunError, match="no weights in it"):
        Scorer(choice)


def test_adapters_on_the_command_line_and_from_python(
    base: Path, lora: Path, run_cli: Any, tmp_path: Path
) -> None:
    flags = ("score", "--text", TEXTS[0], "--model", base, "--adapter", lora)
    result = document(run_cli(*flags, "--json"))
    assert result["run"]["adapter"] == str(lora)
    (outcome,) = seqloss_cli.score(TEXTS[0], model=str(base), adapter=str(lora))
    assert result["sequences"][0]["token_losses"][1:] == outcome.losses[1:].tolist()
    assert f"with {lora}, float32" in run_cli(*flags, COLUMNS="300").stdout
    for words, code, reason in (
        (("--model", lora), 2, f"--adapter {lora}"),
        (("--adapter", base), 2, "no adapter_config.json in it"),
        (
            ("--adapter", "no/such", "--offline"),
            2,
            "no/such: neither a directory nor in",
        ),
    ):
        done = run_cli("score", "--text", "a", *words)
        assert done.exit_code == code, done.stderr
        assert reason in done.stderr


def test_a_run_goes_on_with_the_same_adapter_only(
    base: Path, lora: Path, run_cli: Any, tmp_path: Path
) -> None:
    flags = ("score", "samples/texts.jsonl", "--model", base, "-o", tmp_path / "r.jsonl")
    run_cli(*flags, "--adapter", lora, "--context", 64)
    done = run_cli(*flags, "--resume", "--context", 64)
    assert done.exit_code == 2
    assert f"(--adapter {lora})" in done.stderr


def test_without_peft_the_user_is_told_what_to_install(
    base: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"--adapter needs peft: .*'seqloss\[adapters\]'"):
        Scorer(ModelChoice(name=str(base), adapter=str(lora)))
