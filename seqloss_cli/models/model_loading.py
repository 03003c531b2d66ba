"""Load a model with transformers, whole or not at all; find its device and watch its memory.

An exception of transformers becomes one message that names the flag which helps.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RunError, SeqlossError, UsageError
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.models import files
from seqloss_cli.models.adapters import attach_adapter
from seqloss_cli.models.gguf import complete_model, gguf_source, read_gguf, refuse_unread_scaling
from seqloss_cli.models.parts import cut, unchecked
from seqloss_cli.models.quantization import (
    quantization_name,
    quantization_on_load,
    quantization_settings,
    require_packages,
)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_WHOLE_NUMBERS = ("I8", "U8", "I16", "I32")
"""Types of safetensors that quantised weights are packed in; masks and positions are of others."""
_MOST_KEPT = (1 << 31) - 1


def load_config(path: str, choice: ModelChoice) -> Any:
    """Load the configuration of a causal LM; RunError for any other model."""
    from transformers import AutoConfig

    read_gguf(path)  # RunError where it is damaged
    if (configuration := Path(path) / files.CONFIGURATION).is_file():
        files.require_whole_files(configuration)
    folder, source = gguf_source(path)
    try:
        config = AutoConfig.from_pretrained(folder, **source, **files.hub_settings(choice))
    except Exception as error:
        raise _explained(choice, path, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise RunError(
            f"model {path} is an encoder-decoder ({config.model_type}): seqloss scores causal "
            "language models"
        )
    # Models that speak (Qwen Omni) have a part that writes, and no forward as a whole.
    part = getattr(config, "thinker_config", config)
    if not _auto_classes(config) or not _auto_classes(part):
        raise RunError(
            f"model {path} ({config.model_type}) is no causal language model that this "
            "transformers knows: it has no distribution of the next token to score with"
        )
    for name in ("_commit_hash", "quantization_config"):
        if hasattr(config, name):
            setattr(part, name, getattr(config, name))
    return part


def _auto_classes(config: Any) -> list[Any]:
    """Return the Auto classes that make models with a language head of a configuration."""
    # Not from the package's top, where there are none without torch.
    known = import_module("transformers.models.auto.modeling_auto")
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return [known.AutoModelForCausalLM]
    # The last two are models for images or sound with texts: fed ids alone, they run their text
    # part. Whether that is causal, and needs nothing but ids, is tried when a path is chosen.
    names = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    # The last came with transformers 5.
    found = (getattr(known, name, None) for name in names)
    fitting = [each for each in found if each and type(config) in each._model_mapping]
    # The first for each class of models.
    return [*{each._model_mapping[type(config)]: each for each in fitting[::-1]}.values()][::-1]


def find_device(requested: str) -> str:
    """Return the torch device; UsageError for one that is of no use here."""
    import torch

    if requested == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    # A build without CUDA, or a GPU without a driver, shows only when memory is asked for.
    try:
        torch.zeros(1, device=requested)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {requested} cannot be used here: {reason}") from error
    return requested


def find_devices(requested: str, n_devices: int) -> list[str]:
    """Return as many GPUs, beginning with the first; UsageError where there are fewer."""
    import torch

    device = find_device(requested)
    if n_devices == 1:
        return [device]
    n_there = torch.cuda.device_count() if device == "cuda" else 0
    if n_devices > n_there:
        raise UsageError(
            f"--devices {n_devices}: there are {n_there} CUDA devices to share the work"
            + ("" if device == "cuda" else f" (--device is {device})")
        )
    return [f"cuda:{n}" for n in range(n_devices)]


def load_model(
    path: str, config: Any, choice: ModelChoice, device: str, n_parts: int = 1
) -> tuple[Any, list[str]]:
    """Load the model in eval mode on its device, or of `n_parts` the one of this process; returns
    it with warnings.

    Raises RunError where it is not whole, does not fit into memory, or is no model.
    """
    from seqloss_cli.models.onednn import use_onednn  # imports torch

    _require_weights(path, choice)
    require_packages(path, config)
    file = read_gguf(path)
    if file is not None:
        refuse_unread_scaling(file, config)
    arguments = _loading_arguments(path, config, choice, device) | cut(n_parts)
    try:
        model, loading = _from_pretrained(arguments, config, choice, device)
    except Exception as error:
        if is_out_of_memory(error):
            raise RunError(
                f"model {path} does not fit into the memory of {device}: choose a smaller --dtype "
                "or another --device"
            ) from error
        raise _explained(choice, path, error) from error
    _check_weights(path, model, loading)
    dtype = str(model.dtype).removeprefix("torch.")
    warnings = _check_quantization(path, config, model, loading)
    warnings += [] if file is None else complete_model(file, model, dtype)
    is_part = config.get_text_config() is not config
    if is_part or _auto_classes(config)[0].__name__ != "AutoModelForCausalLM":
        warnings += [f"{path} ({config.model_type}) takes more than text: its text part is scored"]
    if arguments["dtype"] not in ("auto", model.dtype):
        warnings.append(f"the quantisation of {path} keeps it in {dtype}")
    if choice.adapter is None and (Path(path) / files.ADAPTER_CONFIGURATION).is_file():
        warnings.append(
            f"{path} holds an adapter, too, which is left out: --adapter {path} takes it"
        )
    unused = sorted(loading["unexpected_keys"])
    # Where a class of the text part alone was made, all other parts are left over.
    if unused and not (is_part and type(model.config) is not type(config)):
        warnings += [f"{len(unused)} weights of {path} have no place in the model: {unused[0]} …"]
    if n_parts > 1 and (doubt := unchecked(config)) is not None:
        warnings.append(doubt)
    warnings += attach_adapter(model, choice)
    if device == "cpu":
        keep_freed_memory()
        use_onednn(model)  # after the adapter, which replaces layers
    return model, warnings


def keep_freed_memory() -> None:
    """Have the C library keep large freed blocks for the next batch, where it is glibc."""
    # By default glibc maps each large block anew and trims its heap: the system then clears the
    # activations' memory page by page, in every layer of every batch.
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if (mallopt := getattr(library, "mallopt", None)) is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out, on an accelerator or on the CPU."""
    import torch

    # torch has an exception for accelerators; on a CPU it raises a bare RuntimeError.
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _explained(choice: ModelChoice, path: str, error: Exception) -> SeqlossError:
    """Return an error with one line of what transformers says, and the flag that helps."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return RunError(f"model {path} brings code of its own; --trust-remote-code runs it")
    if "Can't find 'adapter_config.json'" in text:
        return RunError(
            f"model {path} holds an adapter, too, which this version of transformers cannot leave "
            "out: pip install --upgrade transformers, or move the adapter elsewhere"
        )
    if "CONVERSION" in text:  # of the parts of a weight, or of weights to their places
        why = "its weights do not match its config.json: a part of one is missing"
        return RunError(f"model {path}: {why}")
    if Path(path).exists():
        return RunError(f"model {path}: {text}")
    return files.hub_error("model", path, choice.revision, choice.offline, error)


def _loading_arguments(path: str, config: Any, choice: ModelChoice, device: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that depend on the kind of file and the dtype."""
    import torch
    import transformers

    dtype: Any = choice.dtype
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    if dtype != "auto":
        dtype = getattr(torch, dtype)
    folder, arguments = gguf_source(path)
    arguments |= {"pretrained_model_name_or_path": folder, "dtype": dtype}
    if files.is_gguf(path):
        if choice.quantize is not None:
            raise UsageError(f"--quantize {choice.quantize} is not for GGUF files: {path}")
        # Some kinds of blocks would stay packed; earlier versions always made floats of them.
        if (gguf_config := getattr(transformers, "GgufConfig", None)) is not None:
            arguments["quantization_config"] = gguf_config(dequantize=True)
        return arguments
    quantization = quantization_on_load(path, config, choice.quantize, choice.dtype)
    if quantization is not None:
        arguments["quantization_config"] = quantization
    if quantization is not None or quantization_settings(config) is not None:
        arguments["device_map"] = {"": device}
    return arguments


def _from_pretrained(
    arguments: dict[str, Any], config: Any, choice: ModelChoice, device: str
) -> tuple[Any, Any]:
    from seqloss_cli.models.onednn import fuse_activations

    # Nothing else turns off transformers' progress bar over the tensors of a GGUF file.
    quiet = redirect_stderr(StringIO()) if "gguf_file" in arguments else nullcontext()
    arguments |= {
        # Not the default None, which takes pickled files where there are no others.
        "use_safetensors": None if choice.allow_pickle else True,
        "output_loading_info": True,
        # Mismatches are then in `loading`, all of them, with names and shapes.
        "ignore_mismatched_sizes": True,
        # Else an adapter that lies beside the weights would be put on them without a word.
        "adapter_kwargs": {"subfolder": "no-adapter-beside-the-weights"},
    }
    with quiet:
        for auto_class in _auto_classes(config):
            model: Any = None  # memory need not hold two of them
            model, loading = auto_class.from_pretrained(
                **arguments, config=config, **files.hub_settings(choice)
            )
            # Some classes of a text part do not find it among the weights of the whole (Emu3).
            if not loading["missing_keys"]:
                break
    # Quantised weights are on the device by `device_map`: some kinds refuse to be moved.
    if not {"device_map", "distributed_config"} & arguments.keys():
        model = model.to(device)
    model = model.eval()
    fuse_activations(model)
    return model, loading


def _check_weights(path: str, model: Any, loading: Any) -> None:
    """Raise RunError for a weight that is missing, misshaped, or of a layer beyond the config's."""
    # transformers would fill what is missing or of another shape at random, and drop the rest.
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
        problem = files.first_problem(wrong)
        raise RunError(f"model {path}: its weights do not match its config.json: {problem}")


def _check_quantization(path: str, config: Any, model: Any, loading: Any) -> list[str]:
    """Return what to say of quantised weights; RunError for those that are not read as such."""
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = quantization_settings(config)
    if files.is_gguf(path) or getattr(model, "hf_quantizer", None) is not None:
        return []
    if settings is None:
        return _check_stored_types(path, config, loading)
    # transformers passes over a quantisation method that it does not know, without a word.
    name = quantization_name(config)
    if not AutoHfQuantizer.supports_quant_method({**settings}):
        unknown = "which this version of transformers does not know"
        raise RunError(f"model {path}: config.json names the quantisation {name}, {unknown}")
    # Kinds that only some GPUs compute in, such as fp8, are undone elsewhere.
    what = f"is quantised ({name}), in which {model.device.type} does not compute"
    return [f"{path} {what}: its weights were dequantised"]


def _check_stored_types(path: str, config: Any, loading: Any) -> list[str]:
    """Return what to say of weights whose configuration names no quantisation; RunError for
    quantised ones."""
    # transformers would take the stored numbers for the weights, without their scales.
    left_over = {key.rpartition(".")[0] for key in loading["unexpected_keys"] if "scale" in key}
    place = files.weights_path(path, getattr(config, "_commit_hash", None))
    stored = [each for file in files.weight_files(place) for each in _stored_types(file)]
    for name, kind in stored:
        whole = kind in _WHOLE_NUMBERS and name.endswith("weight")
        if whole or (kind.startswith("F8") and name.rpartition(".")[0] in left_over):
            what = "holds whole numbers" if whole else "has scales beside it"
            raise RunError(
                f"model {path}: {name} {what} ({kind}), and config.json has no "
                "quantization_config that says what they stand for"
            )
    rounded = [f"{name} ({kind})" for name, kind in stored if kind.startswith("F8")]
    if not rounded:
        return []
    return [f"{path} stores {rounded[0]} and more in 8 bits without scales: taken as it stands"]


def _stored_types(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each weight of a file and the type that it is stored in, as safetensors
    names it."""
    import torch
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it cannot be iterated over)
                yield name, tensors.get_slice(name).get_dtype()
    elif file.name.startswith("pytorch_model"):
        # Nothing but types and shapes is read.
        for name, value in torch.load(file, map_location="meta", weights_only=True).items():
            kind = str(getattr(value, "dtype", "")).removeprefix("torch.").upper()
            yield name, kind.replace("UINT", "U").replace("INT", "I").replace("FLOAT", "F")


def _any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


def _require_weights(path: str, choice: ModelChoice) -> None:
    folder = Path(path)
    if not folder.is_dir():
        return  # a GGUF file, or a hub name: transformers looks for the files
    safe, pickled = (any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))
    files.require_weights(f"model {path}", ".safetensors file", safe, pickled, choice)
    files.require_whole_files(*files.weight_files(folder))
