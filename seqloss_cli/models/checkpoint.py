"""A causal LM checkpoint with its tokenizer, and exactly which they are. Does not score."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import (
    DEFAULT_CONTEXT,
    DEFAULT_MODEL,
    ModelChoice,
    WindowPolicy,
    require_whole,
)
from seqloss_cli.models.adapters import CONFIGURATION, adapter_files
from seqloss_cli.models.fingerprints import weights_sha256
from seqloss_cli.models.gguf import is_gguf, read_gguf
from seqloss_cli.models.model_loading import find_devices, load_config, load_model, weights_folder
from seqloss_cli.models.quantization import described
from seqloss_cli.models.tokenizer_loading import load_tokenizer

DEMO_FOLDER = Path(str(resources.files("seqloss_cli") / "demo"))
_TALKATIVE = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""Loggers that warn of what no user can mend, some of them for every product."""
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
    adapter: str | None
    """As the user named it."""
    quantization: str | None
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
    copies: tuple[Any, ...] = ()
    """The same model on further devices."""


@dataclass(frozen=True, slots=True)
class TokenizerOnly:
    """A checkpoint's tokenizer, with what its configuration says of tokens; no weights."""

    tokenizer: Any
    name: str
    bos_id: int | None
    eos_id: int | None
    n_ids: int
    max_context: int | None
    """None where there is no configuration, or it names none."""
    max_context_key: str | None
    warnings: tuple[str, ...]


def load_checkpoint(choice: ModelChoice, n_devices: int = 1) -> Checkpoint:
    """Load weights, once for each device, and tokenizer.

    Raises RunError or UsageError with what mends it.
    """
    path = _path_of(choice.name)
    _check_local_path(path)
    _check_revision(choice, path)
    _set_environment(choice)
    import torch

    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    adapter = adapter_files(choice)
    config = load_config(path, choice)
    device, *more_devices = find_devices(choice.device, n_devices)
    model, warnings = load_model(path, config, choice, device)
    copies = [load_model(path, config, choice, other)[0] for other in more_devices]
    tokenizer, tokenizer_warning = _load_tokenizer(choice)
    n_ids = model.get_input_embeddings().weight.shape[0]
    bos_id, bos_warning = _id_in_range("bos_token_id", config, n_ids)
    eos_id, eos_warning = _id_in_range("eos_token_id", config, n_ids)
    longest, key = _longest(config)
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        name=choice.name,
        tokenizer_name=choice.tokenizer or choice.name,
        revision=getattr(config, "_commit_hash", None),
        weights_sha256=weights_sha256(weights_folder(path, config), *adapter),
        adapter=choice.adapter,
        quantization=_quantization(path, model, choice),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        bos_id=bos_id,
        eos_id=eos_id,
        n_ids=n_ids,
        max_context=longest,
        max_context_key=key,
        warnings=tuple(w for w in (*warnings, tokenizer_warning, bos_warning, eos_warning) if w),
        copies=tuple(copies),
    )


def load_tokenizer_only(choice: ModelChoice) -> TokenizerOnly:
    """The tokenizer of a checkpoint, or of a directory that holds nothing else.

    Raises RunError or UsageError with what mends it.
    """
    path = _path_of(choice.name)
    _check_revision(choice, path)
    _set_environment(choice)
    tokenizer, warning = _load_tokenizer(choice)
    name = choice.tokenizer or choice.name
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        said = (warning,) if warning else ()
        return TokenizerOnly(tokenizer, name, None, None, len(tokenizer), None, None, said)
    config = load_config(path, choice)
    n_ids = max(len(tokenizer), config.get_text_config().vocab_size)
    bos_id, bos_warning = _id_in_range("bos_token_id", config, n_ids)
    eos_id, eos_warning = _id_in_range("eos_token_id", config, n_ids)
    warnings = tuple(w for w in (warning, bos_warning, eos_warning) if w)
    return TokenizerOnly(tokenizer, name, bos_id, eos_id, n_ids, *_longest(config), warnings)


def window_policy(
    checkpoint: Checkpoint | TokenizerOnly, context: int | None, stride: int | None
) -> WindowPolicy:
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


def _quantization(path: str, model: Any, choice: ModelChoice) -> str | None:
    if is_gguf(path):
        return read_gguf(path).quantization
    name = described(model.config)
    return f"{name} (on load)" if choice.quantize else name


def _load_tokenizer(choice: ModelChoice) -> tuple[Any, str | None]:
    return load_tokenizer(
        _path_of(choice.tokenizer or choice.name),
        None if choice.tokenizer else choice.revision,
        choice.trust_remote_code,
        choice.offline,
    )


def _longest(config: Any) -> tuple[int | None, str | None]:
    """The longest sequence that a configuration names, and the key that names it."""
    text_config = config.get_text_config()
    key = next((key for key in _CONTEXT_KEYS if _positive(text_config, key)), None)
    return (getattr(text_config, key) if key else None), key


def _check_revision(choice: ModelChoice, path: str) -> None:
    if choice.revision is not None and Path(path).exists():
        kind = "directory" if Path(path).is_dir() else "file"
        raise UsageError(f"--revision is for names of the hub; {choice.name} is a {kind}")


def _path_of(name: str) -> str:
    return str(DEMO_FOLDER) if name == DEFAULT_MODEL else name


def _set_environment(choice: ModelChoice) -> None:
    """What transformers and the hub client read at import, and their own progress bars."""
    if choice.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # never run code fetched beside the weights
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as own_logging

    own_logging.set_verbosity_error()
    own_logging.disable_progress_bar()


def _check_local_path(path: str) -> None:
    """A name that can only be a path must exist; others may be hub names."""
    wants_file = path.lower().endswith(".gguf")
    looks_local = path.startswith((".", "~", os.sep)) or path.count("/") > 1 or wants_file
    folder = Path(path)
    if folder.is_file() and not is_gguf(path):
        raise RunError(f"{path} is a file; --model takes the directory of a checkpoint, or a .gguf")
    if looks_local and not folder.exists():
        raise RunError(f"model {path}: no such {'file' if wants_file else 'directory'} (--model)")
    if folder.is_dir() and not (folder / "config.json").is_file():
        if (folder / CONFIGURATION).is_file():
            raise UsageError(
                f"model {path} is an adapter: name the model that it was made for with --model, "
                f"and give --adapter {path}"
            )
        raise RunError(f"model {path}: no config.json in it, so it is no checkpoint (--model)")


def _id_in_range(name: str, config: Any, n_ids: int) -> tuple[int | None, str | None]:
    """A token id of the configuration, and a warning where the model does not embed it."""
    value = getattr(config.get_text_config(), name, None)
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is None or 0 <= value < n_ids:
        return value, None
    return None, f"the configuration's {name} {value} is none of the {n_ids} ids: left out"


def _positive(config: Any, key: str) -> bool:
    value = getattr(config, key, None)
    return isinstance(value, int) and value > 0
