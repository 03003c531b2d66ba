"""Checkpoints whose weights are quantised: by torchao, by bitsandbytes, in GGUF files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from helpers import gguf_files as files
from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.program import document
from seqloss_cli import ModelChoice, Scorer, UsageError
from seqloss_cli.api import as_samples
from seqloss_cli.core.errors import RunError

TEXTS = ["The cat sat on the mat.", "a", "Ein Satz, länger als der erste: 日本語.", "the the the"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return save_checkpoint(folder, llama(), byte_tokenizer())


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def save(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def torchao(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("torchao"), load(plain, quantization_config=int8()))


def losses_by(scorer: Scorer) -> list[np.ndarray]:
    samples = as_samples(TEXTS)
    return [outcome.losses[outcome.scored] for outcome in scorer.score(samples)]


@torch.no_grad()
def losses_of(model: Any, scorer: Scorer) -> list[np.ndarray]:
    """By one plain forward of each text, float64 log-softmax."""
    found = []
    for text in TEXTS:
        ids = torch.tensor([[0, *byte_tokenizer()(text)["input_ids"]]])
        assert scorer.tokenization.bos_id == 0
        log_probs = model(ids[:, :-1]).logits[0].double().log_softmax(-1)
        found.append(-log_probs.gather(1, ids[0, 1:, None])[:, 0].numpy())
    return found


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray], atol: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def test_int8_on_load_is_what_transformers_and_torchao_make(plain: Path) -> None:
    scorer = Scorer(ModelChoice(name=str(plain), quantize="int8"))
    found = losses_by(scorer)
    assert_equal(found, losses_of(load(plain, quantization_config=int8()), scorer))
    exact = np.concatenate(losses_by(Scorer(ModelChoice(name=str(plain)))))
    differences = np.abs(np.concatenate(found) - exact)
    assert 1e-3 < differences.max() < 1
    run = scorer.run_info()
    assert run.quantization == "torchao int8_weight_only (on load)"
    assert (run.dtype, run.path) == ("float32", "packed")
    assert scorer.warnings == []
    assert run.weights_sha256 == Scorer(ModelChoice(name=str(plain))).run_info().weights_sha256


def test_a_saved_torchao_checkpoint(plain: Path, torchao: Path) -> None:
    scorer = Scorer(ModelChoice(name=str(torchao)))
    assert scorer.run_info().quantization == "torchao int8_weight_only"
    assert scorer.backend.path == "packed"
    found = losses_by(scorer)
    assert_equal(found, losses_of(load(torchao), scorer))
    assert_equal(found, losses_by(Scorer(ModelChoice(name=str(plain), quantize="int8"))))
    with pytest.raises(UsageError, match="quantised already \\(torchao int8_weight_only\\)"):
        Scorer(ModelChoice(name=str(torchao), quantize="int8"))


def test_weights_of_another_dtype_are_computed_with_in_the_dtype_asked_for(
    plain: Path, tmp_path: Path
) -> None:
    """Packed weights stay what they are; products are as exact as of plain float32 weights."""
    half = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=int8()
    )
    scorer = Scorer(ModelChoice(name=str(save(tmp_path, half))))
    unpacked = load(tmp_path)
    for module in unpacked.modules():
        weight = getattr(module, "weight", None)
        if hasattr(weight, "qdata"):
            exact = weight.qdata.double() * weight.scale.double()
            module.weight = torch.nn.Parameter(exact, requires_grad=False)
    assert scorer.run_info().dtype == "float32"
    assert_equal(losses_by(scorer), losses_of(unpacked.double(), scorer))


@pytest.mark.parametrize("left_out", ["_weight_qdata", "_weight_scale", "layernorm"])
def test_a_quantised_checkpoint_is_loaded_whole_or_not_at_all(
    left_out: str, torchao: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    shutil.copytree(torchao, tmp_path, dirs_exist_ok=True)
    with safe_open(torchao / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    weights = load_file(torchao / "model.safetensors")
    del weights[next(name for name in weights if left_out in name)]
    save_file(weights, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(RunError, match=r"its weights do not match its config\.json: .* is missing"):
        Scorer(ModelChoice(name=str(tmp_path)))


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": "nosuch", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_8bit": True}],
)
def test_weights_that_are_not_quantised_as_their_configuration_says(
    plain: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """transformers passes over a method that it does not know."""
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    with pytest.raises(RunError, match=settings["quant_method"]):
        Scorer(ModelChoice(str(tmp_path)))


def test_fp8_weights_are_dequantised_where_it_is_not_computed_in(
    plain: Path, tmp_path: Path
) -> None:
    folder, expected = tmp_path / "fp8", tmp_path / "expected"
    for copy in (folder, expected):
        shutil.copytree(plain, copy)
    quantised, exact = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        quantised[name] = exact[name] = weight
        if name.endswith("proj.weight"):
            scale = weight.abs().max().reshape(1, 1) / 448
            quantised[name] = (weight / scale).to(torch.float8_e4m3fn)
            quantised[f"{name}_scale_inv"] = scale
            exact[name] = quantised[name].float() * scale
    save_file(quantised, folder / "model.safetensors", {"format": "pt"})
    save_file(exact, expected / "model.safetensors", {"format": "pt"})
    path, settings = folder / "config.json", {"quant_method": "fp8", "weight_block_size": [128] * 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    scorer = Scorer(ModelChoice(str(folder), device="cpu"))
    (warning,) = scorer.warnings
    assert "is quantised (fp8), in which cpu does not compute" in warning
    assert scorer.run_info().quantization == "fp8 (dequantised)"
    assert_equal(losses_by(scorer), losses_by(Scorer(ModelChoice(str(expected), device="cpu"))))


def test_rounded_activations_are_said_and_run_one_at_a_time(plain: Path, tmp_path: Path) -> None:
    """bitsandbytes' int8 treats columns in which any token of a forward is an outlier apart."""
    made = load(plain, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    scorer = Scorer(ModelChoice(name=str(save(tmp_path, made))))
    assert scorer.run_info().quantization == "bitsandbytes int8"
    assert scorer.backend.path == "single"
    (warning,) = scorer.warnings
    assert "rounds what goes into a layer" in warning
    found = losses_by(scorer)
    assert_equal(found, losses_of(load(tmp_path), scorer))
    exact = np.concatenate(losses_by(Scorer(ModelChoice(name=str(plain)))))
    differences = np.abs(np.concatenate(found) - exact)
    assert 1e-3 < differences.mean() < 1


def test_a_dtype_that_the_quantisation_does_not_give_is_said(plain: Path, tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    scorer = Scorer(ModelChoice(name=str(save(tmp_path, half))))
    dtype = scorer.run_info().dtype
    assert dtype in ("bfloat16", "float32")  # what is asked for, with transformers up to 5.17
    kept = any("keeps it in bfloat16" in warning for warning in scorer.warnings)
    assert kept == (dtype == "bfloat16")


@pytest.mark.parametrize(
    ("settings", "module", "package"),
    [
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao", "torchao"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel", "optimum"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel", "gptqmodel"),
    ],
)
def test_a_package_that_is_missing_is_named(
    settings: dict[str, Any],
    module: str,
    package: str,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((UsageError, RunError), match="pip install") as caught:
        Scorer(ModelChoice(name=str(tmp_path)))
    assert package in str(caught.value)
    if package in ("torchao", "bitsandbytes"):
        assert "pip install 'seqloss[quantised]'" in str(caught.value)


def test_quantising_in_double_precision_is_refused(plain: Path) -> None:
    with pytest.raises(UsageError, match="--quantize int8 goes with --dtype float32, bfloat16"):
        Scorer(ModelChoice(name=str(plain), quantize="int8", dtype="float64"))


def test_quantising_without_the_package(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UsageError, match=r"--quantize int8 needs torchao: .*seqloss\[quantised\]"):
        Scorer(ModelChoice(name=str(plain), quantize="int8"))


def test_the_difference_is_told_on_the_command_line(run_cli: Any, tmp_path: Path) -> None:
    for name, flags in (("float32", ()), ("int8", ("--quantize", "int8"))):
        path = tmp_path / f"{name}.jsonl"
        done = run_cli("score", "samples/texts.jsonl", "--model", "demo", *flags, "-o", path)
        assert done.exit_code == 0, done.stderr
    done = run_cli("compare", tmp_path / "float32.jsonl", tmp_path / "int8.jsonl")
    assert done.exit_code == 0, done.stderr
    assert "quantization none and torchao int8_weight_only (on load)" in done.stderr
    shown = run_cli("score", "--text", "Hello.", "--quantize", "int8", COLUMNS="100").stdout
    assert "demo, torchao int8_weight_only (on load), float32 on cpu" in shown


# -- GGUF files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    return llama(files.N_BYTE_IDS)


@torch.no_grad()
def assert_losses_of(scorer: Scorer, model: Any) -> None:
    for outcome in scorer.score(as_samples(TEXTS)):
        ids = torch.from_numpy(outcome.sequence.token_ids)
        log_probs = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
        expected = -log_probs.gather(1, ids[1:, None])[:, 0].numpy()
        np.testing.assert_allclose(outcome.losses[1:], expected, rtol=1e-5, atol=1e-4)


def test_a_gguf_file_is_the_model_that_it_was_made_of(model: Any, tmp_path: Path) -> None:
    path = files.write_model(tmp_path / "tiny.gguf", model)
    scorer = Scorer(ModelChoice(name=str(path)))
    assert scorer.backend.path == "packed"
    assert_losses_of(scorer, model)
    run = scorer.run_info()
    assert (run.quantization, run.dtype, run.context) == (None, "float32", 64)
    (warning,) = scorer.warnings
    assert "the tokenizer is made anew" in warning
    assert "--tokenizer DIR" in warning


def test_blocks_of_a_gguf_file_are_dequantised(model: Any, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    path = files.write_model(tmp_path / "tiny.GGUF", model, block=kind)
    scorer = Scorer(ModelChoice(name=str(path)))
    rounded = llama(files.N_BYTE_IDS)
    with torch.no_grad():
        for weight in rounded.parameters():
            if weight.ndim > 1 and weight.shape[-1] % 32 == 0:
                blocks = gguf.quants.quantize(weight.numpy(), kind)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    assert_losses_of(scorer, rounded)
    assert scorer.run_info().quantization == "gguf F32, Q8_0"
    assert any("is dequantised to float32" in warning for warning in scorer.warnings)


def test_the_hash_of_a_gguf_file_is_over_its_bytes(model: Any, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path in paths[:2]:
        files.write_model(path, model)
    files.write_model(paths[2], llama(files.N_BYTE_IDS, layers=1))
    found = [Scorer(ModelChoice(name=str(p))).run_info().weights_sha256 for p in paths]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("the cat", ["<s>", "▁the", "▁cat"]), ("thé", ["<s>", "▁th", "<0xC3>", "<0xA9>"])],
)
def test_a_sentencepiece_vocabulary_in_a_gguf_file(
    text: str, tokens: list[str], tmp_path: Path
) -> None:
    model = llama(len(files.PIECES))
    path = files.write_pieces(tmp_path / "tiny.gguf", model)
    scorer = Scorer(ModelChoice(name=str(path)))
    (outcome,) = scorer.score(as_samples(text))
    assert [files.PIECES[n] for n in outcome.sequence.token_ids] == tokens
    assert outcome.sequence.bos == "tokenizer"
    assert outcome.sequence.byte_offsets[-1] == len(text.encode())
    assert_losses_of(scorer, model)


def test_a_tokenizer_that_lies_beside_a_gguf_file_is_not_taken_for_its_own(
    model: Any, tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    path = files.write_model(tmp_path / "tiny.gguf", model)
    own, other = (
        Scorer(ModelChoice(name=str(path), tokenizer=tokenizer))
        for tokenizer in (None, str(tmp_path))
    )
    lengths = [next(scorer.score(as_samples("the"))).sequence.n_tokens for scorer in (own, other)]
    assert lengths == [3, 4]  # with a merge, and without
    assert other.warnings == []


def test_rotary_factors_of_llama_3_are_not_left_out(tmp_path: Path) -> None:
    """transformers reads neither them nor that there are any."""
    scaling = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 16}
    scaled = llama(files.N_BYTE_IDS, rope_parameters=scaling)
    plain = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    factors = (plain / scaled.model.rotary_emb.inv_freq).numpy()
    assert factors.max() > 2
    path = files.write_model(
        tmp_path / "tiny.gguf", scaled, more={"rope_freqs.weight": factors.astype(np.float32)}
    )
    assert_losses_of(Scorer(ModelChoice(name=str(path))), scaled)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"leave_out": "blk.1.ffn_up.weight"}, "layers.1.mlp.up_proj.weight is missing"),
        ({"settings": lambda writer: _yarn(writer)}, r"scales its positions \(yarn\)"),
        # llama.cpp takes a factor without a type for a linear one, under its older name, too.
        ({"settings": lambda writer: writer.add_rope_scaling_factor(4.0)}, r"positions \(linear\)"),
        ({"settings": lambda w: w.add_float32("llama.rope.scale_linear", 2.0)}, r"\(linear\)"),
        ({"more": {"rope_factors_long.weight": np.ones(4, np.float32)}}, "scales its positions"),
        ({"more": {"rope_freqs.weight": np.ones(3, np.float32)}}, "has no place in the model"),
    ],
)
def test_gguf_files_that_would_be_scored_wrongly_are_refused(
    change: dict[str, Any], reason: str, model: Any, tmp_path: Path
) -> None:
    path = files.write_model(tmp_path / "tiny.gguf", model, **change)
    with pytest.raises(RunError, match=reason):
        Scorer(ModelChoice(name=str(path)))


def _yarn(writer: Any) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


def test_tensors_without_a_place_are_said(model: Any, tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": np.ones(32, np.float32)}
    path = files.write_model(tmp_path / "tiny.gguf", model, more=bias)
    warnings = Scorer(ModelChoice(name=str(path))).warnings
    assert any("22 tensors, of which the model takes 21" in warning for warning in warnings)


def test_gguf_files_on_the_command_line(model: Any, run_cli: Any, tmp_path: Path) -> None:
    path = files.write_model(tmp_path / "tiny.gguf", model)
    run = document(run_cli("score", "--text", "the cat", "--model", path, "--json"))["run"]
    assert (run["model"], run["tokenizer"]) == (str(path), str(path))
    masks = run_cli("mask", "--prompt", "a", "--response", "b", "--model", path, "--json")
    assert masks.exit_code == 0, masks.stderr
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, or so")
    for flags, code, reason in (
        (("--model", tmp_path / "bad.gguf"), 1, "is no GGUF file that can be read"),
        (("--model", path, "--revision", "main"), 2, "--revision is for names of the hub"),
        (("--model", path, "--quantize", "int8"), 2, "is not for GGUF files"),
        (("--model", "README.md"), 2, "or a .gguf"),
        (("--model", "gone.gguf"), 2, "--model gone.gguf: no such file"),
    ):
        done = run_cli("score", "--text", "a", *flags)
        assert done.exit_code == code, done.stderr
        assert reason in done.stderr


def test_gguf_without_the_package(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write_model(tmp_path / "tiny.gguf", model)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"needs gguf: pip install 'seqloss\[gguf\]'"):
        Scorer(ModelChoice(name=str(path)))
