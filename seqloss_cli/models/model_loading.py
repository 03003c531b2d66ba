"""Load a model with transformers, whole or not at all.

What transformers raises becomes one message that names the flag which helps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.models.adapters import CONFIGURATION, put_adapter_on
from seqloss_cli.models.gguf import (
    GgufFile,
    in_folder,
    is_gguf,
    make_whole,
    read_gguf,
    refuse_unread,
)
from seqloss_cli.models.memory import fuse_activations, is_out_of_memory, keep_freed_memory
from seqloss_cli.models.quantization import (
    described,
    quantization_on_load,
    require_packages,
    settings_of,
)


def _common(choice: ModelChoice) -> dict[str, Any]:
    return {
        "revision": choice.revision,
        "trust_remote_code": choice.trust_remote_code,
        "local_files_only": choice.offline,
    }


def load_config(path: str, choice: ModelChoice) -> Any:
    """The configuration of a causal LM; RunError for what is none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if is_gguf(path):
        read_gguf(path)  # whether it can be read
    folder, source = in_folder(path)
    try:
        config = AutoConfig.from_pretrained(folder, **source, **_common(choice))
    except Exception as error:
        raise RunError(_explain(choice, path, error)) from error
    if getattr(config, "is_encoder_decoder", False):
        raise RunError(
            f"model {path} is an encoder-decoder ({config.model_type}): seqloss scores causal "
            "language models"
        )
    custom = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in AutoModelForCausalLM._model_mapping and not custom:
        raise RunError(
            f"model {path} ({config.model_type}) is no causal language model: it has no "
            "distribution of the next token to score with"
        )
    return config


def _explain(choice: ModelChoice, path: str, error: Exception) -> str:
    """One line of what transformers says, and the flag that helps."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return f"model {path} brings code of its own; --trust-remote-code runs it"
    if "CONVERSION" in text:  # of the parts of a weight, or of weights to their places
        return f"model {path}: its weights do not match its config.json: a part of one is missing"
    if Path(path).exists():
        return f"model {path}: {text}"
    hint = "" if not choice.offline else "; --offline looks into the local cache only"
    return f"model {path}: neither a directory nor a model of the hub{hint} ({text[:200]})"


def find_device(wanted: str) -> str:
    """The torch device; UsageError for one that cannot be used here."""
    import torch

    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", wanted):
        raise UsageError(f"--device {wanted}: choose auto, cpu, cuda, cuda:N or mps")
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {wanted} cannot be used here: {reason}") from error
    return wanted


def find_devices(wanted: str, n_devices: int) -> list[str]:
    """As many GPUs, beginning with the first; UsageError where there are fewer."""
    import torch

    device = find_device(wanted)
    if n_devices == 1:
        return [device]
    n_there = torch.cuda.device_count() if device == "cuda" else 0
    if n_devices > n_there:
        raise UsageError(
            f"--devices {n_devices}: there are {n_there} CUDA devices to share the work"
            + ("" if device == "cuda" else f" (--device is {device})")
        )
    return [f"cuda:{n}" for n in range(n_devices)]


def load_model(path: str, config: Any, choice: ModelChoice, device: str) -> tuple[Any, list[str]]:
    """The model in eval mode on its device, and warnings. RunError when it cannot be had whole."""
    _require_weights(path, choice)
    require_packages(path, config)
    file = read_gguf(path) if is_gguf(path) else None
    if file is not None:
        refuse_unread(file, config)
    source = _source(path, config, choice, device)
    try:
        with _quiet(file):
            model, loading = _from_pretrained(source, config, choice)
        if "device_map" not in source:
            model = model.to(device)
        model = model.eval()
        fuse_activations(model)
    except Exception as error:
        if is_out_of_memory(error):
            raise RunError(
                f"model {path} does not fit into the memory of {device}: choose a smaller --dtype "
                "or another --device"
            ) from error
        raise RunError(_explain(choice, path, error)) from error
    _check_weights(path, model, loading)
    if file is None and settings_of(config) is not None:
        _require_quantised(path, model, config)
    if device == "cpu":
        keep_freed_memory()
    warnings = _made_fit(path, model, file, choice, source["dtype"])
    if unused := sorted(loading["unexpected_keys"]):
        warnings.append(
            f"{len(unused)} weights of {path} have no place in the model: {unused[0]} …"
        )
    warnings += put_adapter_on(model, choice)
    if device == "cpu":
        from seqloss_cli.models.onednn import use_onednn  # imports torch

        use_onednn(model)
    return model, warnings


def _require_quantised(path: str, model: Any, config: Any) -> None:
    """transformers passes over a method that it does not know, and says so to nobody."""
    if getattr(model, "hf_quantizer", None) is None:
        raise RunError(
            f"model {path}: its config.json names the quantisation {described(config)}, which this "
            "version of transformers does not know"
        )


def _source(path: str, config: Any, choice: ModelChoice, device: str) -> dict[str, Any]:
    """From what a model is loaded, and as what."""
    import torch

    dtype: Any = choice.dtype
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    if dtype != "auto":
        dtype = getattr(torch, dtype)
    folder, source = in_folder(path)
    source |= {"pretrained_model_name_or_path": folder, "dtype": dtype}
    if is_gguf(path):
        return source | _unpacked(path, choice)
    quantization = quantization_on_load(path, config, choice.quantize, choice.dtype)
    if quantization is not None:
        source["quantization_config"] = quantization
    if quantization is not None or settings_of(config) is not None:
        source["device_map"] = {"": device}  # packed weights may refuse to be moved
    return source


def _unpacked(path: str, choice: ModelChoice) -> dict[str, Any]:
    """For transformers to make floats of all blocks of a GGUF file."""
    import transformers

    if choice.quantize is not None:
        raise UsageError(f"--quantize {choice.quantize} is not for GGUF files: {path}")
    known = getattr(transformers, "GgufConfig", None)  # earlier versions unpack always
    return {} if known is None else {"quantization_config": known(dequantize=True)}


def _from_pretrained(source: dict[str, Any], config: Any, choice: ModelChoice) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        **source,
        config=config,
        use_safetensors=None if choice.allow_pickle else True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported, with names and shapes
        # else an adapter that lies beside the weights would be put on them without a word
        adapter_kwargs={"subfolder": "no-adapter-beside-the-weights"},
        **_common(choice),
    )
    return model, loading


@contextmanager
def _quiet(file: GgufFile | None) -> Iterator[None]:
    """No progress bar of transformers while a GGUF file is read: nothing turns that one off."""
    if file is None:
        yield
        return
    with redirect_stderr(StringIO()):
        yield


def _made_fit(
    path: str, model: Any, file: GgufFile | None, choice: ModelChoice, dtype: Any
) -> list[str]:
    """Warnings of what the model is that was not asked for."""
    own = str(model.dtype).removeprefix("torch.")
    warnings = [] if file is None else make_whole(file, model, own)
    if dtype not in ("auto", model.dtype):
        warnings.append(f"the quantisation of {path} keeps it in {own}")
    if choice.adapter is None and (Path(path) / CONFIGURATION).is_file():
        warnings.append(
            f"{path} holds an adapter, too, which is left out: --adapter {path} takes it"
        )
    return warnings


def _check_weights(path: str, model: Any, loading: Any) -> None:
    """No weight may be missing or of another shape (transformers would fill it at random), and no
    layer may be left over (the configuration says fewer)."""
    wrong = [
        f"{name} is {tuple(stored)}, not {tuple(expected)}"
        for name, stored, expected in sorted(loading["mismatched_keys"])
    ]
    wrong += [f"{name} is missing" for name in sorted(loading["missing_keys"])]
    known = {_any_layer(name) for name in model.state_dict()}
    wrong += [
        f"{name} belongs to a layer that config.json does not have"
        for name in sorted(loading["unexpected_keys"])
        if _any_layer(name) != name and _any_layer(name) in known
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RunError(f"model {path}: its weights do not match its config.json: {wrong[0]}{more}")


def _any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


def _require_weights(path: str, choice: ModelChoice) -> None:
    folder = Path(path)
    if not folder.is_dir():
        return  # a GGUF file, or a hub name: transformers looks for the files
    safe = any(folder.glob("*.safetensors"))
    pickled = any(folder.glob("*.bin"))
    if not safe and pickled and not choice.allow_pickle:
        raise RunError(
            f"model {path} has pickled weights only, which can run code when they are loaded; "
            "--allow-pickle takes them"
        )
    if not safe and not pickled:
        raise RunError(f"model {path}: no weights in it (no .safetensors file)")


def weights_folder(path: str, config: Any) -> Path:
    """Where the weights lie: the directory or file itself, or the hub cache's snapshot of it."""
    if Path(path).exists():
        return Path(path)
    from transformers.utils import cached_file

    found = cached_file(
        path, "config.json", revision=getattr(config, "_commit_hash", None), local_files_only=True
    )
    assert found is not None
    return Path(found).parent
