"""Checkpoints that load as they should, or are refused with what mends them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from helpers.architectures import build
from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.program import ROOT, in_process
from seqloss_cli import ModelChoice, Scorer
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.models import files
from seqloss_cli.models.checkpoint import load_tokenizer_only, refuse_windows, window_policy
from seqloss_cli.models.files import require_whole_files


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


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def sharded(folder: Path) -> Path:
    save_checkpoint(folder, llama(), byte_tokenizer())
    (folder / "model.safetensors").unlink()
    llama().save_pretrained(folder, max_shard_size="20KB")
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "pointer": ("model-00002-of-*", lambda p: p.write_bytes(POINTER), "`git lfs pull`"),
    "cut": ("model-00002-of-*", cut, "is cut off: "),
    "empty": ("model-00002-of-*", lambda p: p.write_bytes(b""), "is empty"),
    "page": ("model-00001-of-*", lambda p: p.write_text("<!DOCTYPE html>"), "no safetensors file"),
    "missing": ("model-00001-of-*", Path.unlink, "is not there"),
    "index": ("model.safetensors.index.json", lambda p: p.write_bytes(POINTER), "`git lfs pull`"),
    "no index": ("model.safetensors.index.json", lambda p: p.write_text("{}"), "no index"),
    "tokenizer": ("tokenizer.json", lambda p: p.write_bytes(POINTER), "`git lfs pull`"),
    "config": ("config.json", lambda p: p.write_bytes(POINTER), "`git lfs pull`"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_with_its_damage(tmp_path: Path, kind: str) -> None:
    pattern, damage, said = DAMAGE[kind]
    (path,) = sharded(tmp_path).glob(pattern)
    damage(path)
    with pytest.raises(RunError) as error:
        Scorer(ModelChoice(str(tmp_path), device="cpu"))
    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_pointers_that_are_not_read_do_no_harm(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "tokenizer.model", "model.onnx"):
        (sharded(tmp_path) / name).write_bytes(POINTER)
    assert Scorer(ModelChoice(str(tmp_path), device="cpu")).tokenization.n_ids


def test_other_weights_that_are_damaged_are_named(tmp_path: Path) -> None:
    for name, content in (
        ("pytorch_model.bin", b"PK\x03\x04cut off"),
        ("model.gguf", POINTER),
        ("adapter.safetensors", (1 << 40).to_bytes(8, "little") + b"{" + bytes(40)),
        ("other.safetensors", (8).to_bytes(8, "little") + b'{"a": 1}'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunError, match=name):
            require_whole_files(tmp_path / name)


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


ORIGINAL = {"original_max_position_embeddings": 32768}
ORIGINAL_4K = {"original_max_position_embeddings": 4096}
LONG_FACTORS = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


@pytest.mark.parametrize(
    ("kind", "settings", "longest", "key"),
    [
        ("qwen2", {}, 32768, "max_position_embeddings"),
        (
            "qwen2",  # Qwen2.5 with the lines that its card says to add
            {"rope_scaling": {"type": "yarn", "factor": 4.0} | ORIGINAL},
            131072,
            "max_position_embeddings and RoPE: yarn 4",
        ),
        (
            "deepseek_v3",  # whose max_position_embeddings is stretched already
            {
                "max_position_embeddings": 163840,
                "rope_scaling": {"type": "yarn", "factor": 40} | ORIGINAL_4K,
            },
            163840,
            "max_position_embeddings",
        ),
        (
            "llama",  # Vicuna 16k
            {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
            16384,
            "max_position_embeddings and RoPE: linear 4",
        ),
        (
            "llama",
            {"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            4096,
            "max_position_embeddings and RoPE: dynamic 2",
        ),
        (
            "olmo3",  # a RoPE for each kind of layer
            {
                "max_position_embeddings": 8192,
                "num_hidden_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"],
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {
                        "rope_type": "yarn",
                        "rope_theta": 1e6,
                        "factor": 8.0,
                        "original_max_position_embeddings": 8192,
                    },
                },
            },
            65536,
            "max_position_embeddings and RoPE: yarn 8",
        ),
        (
            "gemma3_text",  # whose max_position_embeddings is stretched already
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            131072,
            "max_position_embeddings",
        ),
        (
            "llama",  # Llama 3.2
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
            "max_position_embeddings",
        ),
        (
            "phi3",  # Phi-3.5
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"} | LONG_FACTORS,
            },
            131072,
            "max_position_embeddings",
        ),
    ],
)
def test_a_scaled_rope_gives_the_context_that_the_model_takes(
    kind: str, settings: dict[str, Any], longest: int, key: str, tmp_path: Path
) -> None:
    """Configurations as these models have them; the tokenizer is that of the tests."""
    config = AutoConfig.for_model(kind, **settings)
    config.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    found = load_tokenizer_only(ModelChoice(str(tmp_path)))
    assert (found.max_context, found.max_context_key) == (longest, key)
    doubtful = "where the first is stretched already" in " ".join(found.warnings)
    assert doubtful == ("linear" in key)
    assert window_policy(found, longest, None).context == longest
    assert window_policy(found, None, None).context_source == key
    with pytest.raises(UsageError, match="is more than the model takes"):
        window_policy(found, longest + 1, None)


def test_whole_numbers_without_their_scales_are_refused(tmp_path: Path) -> None:
    """Weights of torchao or bitsandbytes whose config.json lost its quantization_config."""
    folder = save_checkpoint(tmp_path / "model", llama(), byte_tokenizer())
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = (weights[name] * 127 / weights[name].abs().max()).round().to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RunError, match=r"up_proj.weight holds whole numbers \(I8\), and config.json"
    ):
        Scorer(ModelChoice(str(folder)))


def test_the_same_in_a_pickled_file(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", llama(), byte_tokenizer())
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model.layers.0.mlp.up_proj.weight"
    torch.save(weights, folder / "pytorch_model.bin")
    assert Scorer(ModelChoice(str(folder), allow_pickle=True)).warnings == []
    weights[name] = (weights[name] * 127 / weights[name].abs().max()).round().to(torch.int8)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(RunError, match=r"up_proj.weight holds whole numbers \(I8\)"):
        Scorer(ModelChoice(str(folder), allow_pickle=True))


def test_weights_in_8_bits_of_floating_point_need_their_scales(tmp_path: Path) -> None:
    """Numbers as they are, rounded to float8, are weights; with scales beside them they are not."""
    folder = save_checkpoint(tmp_path / "model", llama(), byte_tokenizer())
    # Copies: weights that are read may lie in the file that is written here.
    weights = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (warning,) = Scorer(ModelChoice(str(folder))).warnings
    assert f"{name} (F8_E4M3) and more in 8 bits without scales" in warning
    weights[f"{name}_scale_inv"] = torch.tensor([0.5])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"up_proj.weight has scales beside it \(F8_E4M3\)"):
        Scorer(ModelChoice(str(folder)))


@pytest.mark.parametrize(("name", "said"), [("llama", True), ("bloom", True), ("gpt2", False)])
def test_float64_says_what_is_not(name: str, said: bool, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, build(name), byte_tokenizer())
    warnings = Scorer(ModelChoice(str(folder), dtype="float64")).warnings
    assert any("or softmaxes) in float32" in each for each in warnings) == said


# -- a hub that is not there ----------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port that takes connections and says nothing, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    ask = files._hub_problem
    ask.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        yield server
    ask.cache_clear()


def cached(folder: Path, name: str, file: str) -> None:
    place = folder / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("c" * 40)
    (place / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (place / "snapshots" / ("c" * 40) / file).write_text("{}")


def test_a_hub_that_refuses_is_named_with_the_reason(hub: socket.socket) -> None:
    endpoint = constants.ENDPOINT
    hub.close()
    with pytest.raises(RunError) as found:
        files.missing_hub(ModelChoice("some/model"))
    assert str(found.value) == (
        f"--model some/model: is no directory, the hub ({endpoint}) cannot be reached (Connection "
        "refused), and its local cache does not have it (--offline asks the cache alone)"
    )


def test_a_hub_that_does_not_answer_is_not_waited_for(
    hub: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.05")
    with pytest.raises(RunError, match=r"--tokenizer a/b: .* does not answer within 0\.05 s, and"):
        files.missing_hub(ModelChoice("demo", tokenizer="a/b"))


def test_a_hub_that_is_not_there_leaves_its_cache(
    hub: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close()
    cached(tmp_path, "some/model", "config.json")
    said = files.missing_hub(ModelChoice("some/model"))
    assert said is not None
    assert "taken from its local cache" in said
    assert constants.HF_HUB_OFFLINE, "or each library asks it again"
    with pytest.raises(RunError, match="--adapter an/adapter: is no directory"):
        files.missing_hub(ModelChoice("some/model", adapter="an/adapter"))


@pytest.mark.parametrize(("status", "problem"), [(200, None), (404, None), (503, "answers 503")])
def test_any_answer_but_that_of_a_broken_server_is_one(
    status: int, problem: str | None, hub: socket.socket
) -> None:
    def answer() -> None:
        connection, _ = hub.accept()
        connection.recv(4096)
        connection.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    assert files._hub_problem(constants.ENDPOINT) == problem
    thread.join()


def test_no_hub_is_asked_for_what_is_here(
    tmp_path: Path, hub: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_hub_problem", lambda endpoint: pytest.fail("asked"))
    for choice in (ModelChoice("demo"), ModelChoice(str(tmp_path))):
        assert files.missing_hub(choice) is None


@pytest.mark.parametrize("by_option", [True, False])
def test_a_name_that_is_not_in_the_cache_which_alone_is_asked_is_wrong(
    by_option: bool, hub: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(files, "_hub_problem", cache(lambda endpoint: pytest.fail("asked")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not by_option)
    cached(tmp_path, "some/model", "config.json")
    there = ModelChoice("some/model", offline=by_option)
    assert files.missing_hub(there) is None
    named = {
        "--model dmeo": replace(there, name="dmeo"),
        "--model a--b": replace(there, name="a--b"),
        "--tokenizer b/c": replace(there, tokenizer="b/c"),
        "--adapter b/c": replace(there, adapter="b/c"),
    }
    for flag, choice in named.items():
        with pytest.raises(UsageError, match=f"^{flag}: neither a directory nor in the hub") as e:
            files.missing_hub(choice)
        assert str(e.value).endswith("; did you mean demo?") == (choice.name == "dmeo")
    flags = ("--teacher", "--tokenizer", "--teacher-adapter")
    with pytest.raises(UsageError, match=r"^--teacher-adapter b/c: "):
        files.missing_hub(named["--adapter b/c"], flags)


@pytest.mark.parametrize("words", [
    ("score", "--text", "a", "--model", "dmeo"),
    ("mask", "--prompt", "a", "--response", "b", "--tokenizer", "dmeo"),
    ("diverge", "--text", "a", "--teacher", "dmeo"),
    ("diverge", "--text", "a", "--teacher", "demo", "--teacher-adapter", "dmeo"),
    ("compare", "--model", "demo", "--data", "README.md", "--model", "dmeo"),
    ("objective", "demo", "dmeo", "--data", "README.md"),
    ("objective", "demo", "runs/dmeo-*", "--data", "README.md"),
])  # fmt: skip
def test_a_name_that_is_nothing_is_shown_with_what_gave_it(words: tuple[str, ...]) -> None:
    done = in_process(*words, "--offline")
    assert (done.exit_code, done.stdout) == (2, "")
    name = next(word for word in words if "dmeo" in word)
    flag = "CHECKPOINT" if words[0] == "objective" else words[words.index(name) - 1]
    assert f"error: {flag} {name}: n" in done.stderr


def test_a_name_that_the_hub_does_not_know_is_wrong_and_a_gated_one_is_not() -> None:
    for name, kind in (("RepositoryNotFoundError", UsageError), ("GatedRepoError", RunError)):
        error = OSError("x")
        error.__cause__ = type(name, (Exception,), {})()
        assert type(files.hub_error("model", "a/b", None, False, error)) is kind


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (hub_errors.LocalEntryNotFoundError("x"), "nor in the hub's local cache"),
        (hub_errors.HFValidationError("Repo id must …"), "nor a name that the hub could have"),
        (ValueError("y " * 500), "(" + ("y " * 500).strip() + ")"),
    ],
)
def test_what_the_hub_says_is_one_sentence_of_ours_and_never_cut(
    cause: Exception, said: str
) -> None:
    error = OSError(str(cause))
    error.__cause__ = cause
    message = str(files.hub_error("model", "a/b", None, False, error))
    assert message.startswith("model a/b: neither a directory nor ")
    assert said in message


@pytest.mark.parametrize(
    ("more", "known"),
    [
        ({}, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, True),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, False),
        ({"rope_parameters": {"full": {"rope_type": "default"}}}, False),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, False),
        ({"text_config": {"max_position_embeddings": 64}}, False),
        ({"auto_map": {"AutoConfig": "own.Config"}}, False),
        ({"max_position_embeddings": "32"}, False),
    ],
)
def test_a_context_is_known_before_loading_only_where_nothing_may_change_it(
    more: dict[str, Any], known: bool, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"max_position_embeddings": 32} | more))
    refuse_windows(str(tmp_path), 32, 32)
    refuse_windows(str(tmp_path), None, None)
    if known:
        with pytest.raises(UsageError, match="--context 33 is more"):
            refuse_windows(str(tmp_path), 33, None)
    else:
        refuse_windows(str(tmp_path), 33, None)
    for broken in ("[]", "{", ""):
        path.write_text(broken)
        refuse_windows(str(tmp_path), 33, None)
