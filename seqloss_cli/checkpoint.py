"""Load a causal LM checkpoint and its tokenizer, and say exactly which they are.

Turns what transformers raises into one message that names the flag which helps. Does not score.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqloss_cli.config import (
    DEFAULT_CONTEXT,
    DEFAULT_MODEL,
    ModelChoice,
    WindowPolicy,
    require_whole,
)
from seqloss_cli.errors import RunError, UsageError
from seqloss_cli.fingerprints import weights_sha256
from seqloss_cli.loading_tokenizers import load_tokenizer

DEMO_FOLDER = Path(__file__).parent / "demo"
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    model: Any
    """A transformers model in eval mode, on its device."""
    tokenizer: Any
    name: str
    """As the user named it."""
    tokenizer_name: str
    revision: str | None
    """The commit that a hub name resolved to."""
    weights_sha256: str
    dtype: str
    device: str
    bos_id: int | None
    """From the model's text configuration."""
    eos_id: int | None
    n_ids: int
    """Ids that the model embeds."""
    max_context: int | None
    """The longest sequence that the configuration names, and the key that names it."""
    max_context_key: str | None
    warnings: tuple[str, ...]
    """For stderr: nothing here changes silently."""


def load_checkpoint(choice: ModelChoice) -> Checkpoint:
    """Load weights and tokenizer. Raises RunError or UsageError with what mends it."""
    path = _path_of(choice.name)
    _check_local_path(path)
    if choice.revision is not None and Path(path).is_dir():
        raise UsageError(f"--revision is for names of the hub; {choice.name} is a directory")
    _set_environment(choice)
    import torch

    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    config = _load_config(path, choice)
    device = _device(choice.device)
    model, warnings = _load_model(path, config, choice, device)
    tokenizer, tokenizer_warning = load_tokenizer(
        _path_of(choice.tokenizer or choice.name),
        None if choice.tokenizer else choice.revision,
        choice.trust_remote_code,
        choice.offline,
    )
    if tokenizer_warning:
        warnings.append(tokenizer_warning)
    text_config = config.get_text_config()
    n_ids = model.get_input_embeddings().weight.shape[0]
    bos_id, bos_warning = _id_in_range("bos_token_id", text_config, n_ids)
    eos_id, eos_warning = _id_in_range("eos_token_id", text_config, n_ids)
    key = next((key for key in _CONTEXT_KEYS if _positive(text_config, key)), None)
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        name=choice.name,
        tokenizer_name=choice.tokenizer or choice.name,
        revision=getattr(config, "_commit_hash", None),
        weights_sha256=weights_sha256(_folder(path, config)),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        bos_id=bos_id,
        eos_id=eos_id,
        n_ids=n_ids,
        max_context=getattr(text_config, key) if key else None,
        max_context_key=key,
        warnings=tuple(w for w in (*warnings, bos_warning, eos_warning) if w),
    )


def window_policy(checkpoint: Checkpoint, context: int | None, stride: int | None) -> WindowPolicy:
    """C and S of rule 7; raises UsageError where the flags do not fit the model."""
    longest, key = checkpoint.max_context, checkpoint.max_context_key
    for flag, value in (("--context", context), ("--stride", stride)):
        if value is not None:
            require_whole(flag, value, 1)
    if context is None:
        source = key or "default (the model's configuration names none)"
        context = longest or DEFAULT_CONTEXT
    else:
        source = "--context"
        if longest is not None and context > longest:
            raise UsageError(f"--context {context} is more than the model takes ({key}: {longest})")
    if stride is None:
        stride = max(1, context // 2)
    if stride > context:
        raise UsageError(f"--stride {stride} is more than the context of {context} (--context)")
    return WindowPolicy(context, source, stride)


def _path_of(name: str) -> str:
    return str(DEMO_FOLDER) if name == DEFAULT_MODEL else name


def _set_environment(choice: ModelChoice) -> None:
    """What transformers and the hub client read at import, and their own progress bars."""
    if choice.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # never run code fetched beside the weights
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _check_local_path(path: str) -> None:
    """A name that can only be a path must exist; others may be hub names."""
    looks_local = path.startswith((".", "~", os.sep)) or path.count("/") > 1
    folder = Path(path)
    if folder.is_file():
        raise RunError(f"{path} is a file; --model takes the directory of a checkpoint")
    if looks_local and not folder.exists():
        raise RunError(f"model {path}: no such directory (--model)")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise RunError(f"model {path}: no config.json in it, so it is no checkpoint (--model)")


def _common(choice: ModelChoice) -> dict[str, Any]:
    return {
        "revision": choice.revision,
        "trust_remote_code": choice.trust_remote_code,
        "local_files_only": choice.offline,
    }


def _load_config(path: str, choice: ModelChoice) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, **_common(choice))
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
    if Path(path).exists():
        return f"model {path}: {text}"
    hint = "" if not choice.offline else "; --offline looks into the local cache only"
    return f"model {path}: neither a directory nor a model of the hub{hint} ({text[:200]})"


def _device(wanted: str) -> str:
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


def _load_model(path: str, config: Any, choice: ModelChoice, device: str) -> tuple[Any, list[str]]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype: Any = choice.dtype
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    if dtype != "auto":
        dtype = getattr(torch, dtype)
    _require_weights(path, choice)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=None if choice.allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with names and shapes
            **_common(choice),
        )
        model = model.to(device).eval()
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise RunError(
                f"model {path} does not fit into the memory of {device}: choose a smaller --dtype "
                "or another --device"
            ) from error
        raise RunError(_explain(choice, path, error)) from error
    _check_weights(path, model, loading)
    warnings = []
    if unused := sorted(loading["unexpected_keys"]):
        warnings.append(
            f"{len(unused)} weights of {path} have no place in the model: {unused[0]} …"
        )
    return model, warnings


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
        return  # a hub name: transformers looks for the files
    safe = any(folder.glob("*.safetensors"))
    pickled = any(folder.glob("*.bin"))
    if not safe and pickled and not choice.allow_pickle:
        raise RunError(
            f"model {path} has pickled weights only, which can run code when they are loaded; "
            "--allow-pickle takes them"
        )
    if not safe and not pickled:
        raise RunError(f"model {path}: no weights in it (no .safetensors file)")


def _id_in_range(name: str, config: Any, n_ids: int) -> tuple[int | None, str | None]:
    """A token id of the configuration, and a warning where the model does not embed it."""
    value = getattr(config, name, None)
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is None or 0 <= value < n_ids:
        return value, None
    return None, f"the configuration's {name} {value} is none of the {n_ids} ids: left out"


def _positive(config: Any, key: str) -> bool:
    value = getattr(config, key, None)
    return isinstance(value, int) and value > 0


def _folder(path: str, config: Any) -> Path:
    """Where the weights lie: the directory itself, or the hub cache's snapshot of it."""
    if Path(path).is_dir():
        return Path(path)
    from transformers.utils import cached_file

    found = cached_file(path, "config.json", revision=getattr(config, "_commit_hash", None))
    assert found is not None
    return Path(found).parent
