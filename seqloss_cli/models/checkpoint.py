"""Load a causal LM checkpoint with its tokenizer, and record exactly which they are (rule 12).

Does not score.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seqloss_cli.core.backend import LoadedTokenizer
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import require_whole
from seqloss_cli.core.policies import DEFAULT_CONTEXT, ModelChoice, WindowPolicy
from seqloss_cli.models import files
from seqloss_cli.models.adapters import adapter_files
from seqloss_cli.models.gguf import read_gguf
from seqloss_cli.models.model_loading import find_device, find_devices, load_config, load_model
from seqloss_cli.models.parts import refuse_model
from seqloss_cli.models.plain_tokenizer import plain_config, plain_tokenizer
from seqloss_cli.models.quantization import quantization_name
from seqloss_cli.models.tokenizer_loading import load_tokenizer

_NOISY_LOGGERS = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""Loggers whose warnings no user can act on, some of them for every matrix product."""
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of RoPE scaling by whose factor a model takes more than the length that it is of. (Of
`llama3` and `longrope` the configuration names the stretched length itself.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(LoadedTokenizer):
    """A model in memory with its tokenizer, and where both come from."""

    model: Any
    """A transformers model in eval mode, on its device."""
    name: str
    """Name of the model as the user gave it."""
    revision: str | None
    """The commit that a hub name resolved to."""
    weights_sha256: str
    adapter: str | None
    """Name of the adapter as the user gave it."""
    quantization: str | None
    dtype: str
    device: str
    copies: tuple[Any, ...] = ()
    """Copies of the model on further devices."""


def load_checkpoint(choice: ModelChoice, n_devices: int = 1, n_parts: int = 1) -> Checkpoint:
    """Load weights, once for each device, and tokenizer. With `n_parts` the weights of this process
    are a part of them; others load the rest at the same time.

    Raises RunError or UsageError with what mends it.
    """
    files.require_names(choice)
    path = files.checkpoint_path(choice.name)
    choice, hub_warnings = _prepare(choice, path)
    import torch

    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    adapter = adapter_files(choice)
    config = load_config(path, choice)
    configuration = _configuration_sha256(config)  # before loading marks it
    device, *more_devices = find_devices(choice.device, n_devices)
    model, warnings = load_model(path, config, choice, device, n_parts)
    # Loaded anew for each device: packed weights may refuse to be moved.
    copies = [load_model(path, config, choice, other)[0] for other in more_devices]
    tokenizer, more_warnings = load_tokenizer(choice)
    warnings = [*hub_warnings, *warnings, *more_warnings]
    revision = getattr(config, "_commit_hash", None)
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        name=choice.name,
        tokenizer_name=choice.tokenizer or choice.name,
        revision=revision,
        weights_sha256=files.weights_sha256(files.weights_path(path, revision), *adapter),
        configuration_sha256=configuration,
        adapter=choice.adapter,
        quantization=_quantization(path, config, model, choice),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        copies=tuple(copies),
        **_configured(config, model.get_input_embeddings().weight.shape[0], warnings),
    )


def _configuration_sha256(config: Any) -> str:
    """Return a hash of what a configuration says, wherever the model lies."""
    found = config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        found.pop(name, None)
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def load_part(choice: ModelChoice, n_parts: int) -> Any:
    """Load this process's part of a model, as `load_checkpoint` does in the first process."""
    path = files.checkpoint_path(choice.name)
    choice, _ = _prepare(choice, path)
    import torch

    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    config = load_config(path, choice)
    return load_model(path, config, choice, find_device(choice.device), n_parts)[0]


def refuse_checkpoint(choice: ModelChoice, n_parts: int) -> None:
    """Raise UsageError for a checkpoint that cannot be cut into so many parts, before its weights
    are loaded; RunError where it is no model."""
    files.require_names(choice)
    path = files.checkpoint_path(choice.name)
    choice, _ = _prepare(choice, path)
    refuse_model(choice.name, load_config(path, choice), n_parts)


def load_tokenizer_only(choice: ModelChoice, spare_torch: bool = False) -> LoadedTokenizer:
    """Load the tokenizer of a checkpoint, or of a directory that holds nothing else.

    `spare_torch` leaves torch out, whose import takes seconds, where the tokenizer needs none of
    it; no model can be loaded in this process then. Raises RunError or UsageError with what mends
    it.
    """
    imported = not sys.modules.keys().isdisjoint(("torch", "transformers"))
    # Code of a checkpoint's own may import torch, and GGUF files are read with it.
    is_gguf = files.is_gguf(choice.tokenizer or choice.name) or files.is_gguf(choice.name)
    needed = choice.trust_remote_code or is_gguf
    if not spare_torch or imported or needed:
        return _load_tokenizer(choice)
    # transformers imports torch wherever it finds it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    # Else it says that there is no torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        return _load_tokenizer(choice)
    except Exception as error:
        if not _lacks_a_package(error):
            raise
    # It was needed after all: transformers goes, too, which remembers that there was none.
    for name in [name for name in sys.modules if name.split(".")[0] in ("torch", "transformers")]:
        del sys.modules[name]
    return _load_tokenizer(choice)


def _lacks_a_package(error: BaseException | None) -> bool:
    """Tell whether an error came of a package that is not there."""
    while error is not None and not isinstance(error, ImportError):
        error = error.__cause__ or error.__context__
    return error is not None


def _load_tokenizer(choice: ModelChoice) -> LoadedTokenizer:
    flag = "--tokenizer" if choice.tokenizer else "--model"
    files.require_there(files.checkpoint_path(choice.tokenizer or choice.name), flag)
    path = files.checkpoint_path(choice.name)
    if (plain := _load_plain(Path(path), choice)) is not None:
        return plain
    choice, hub_warnings = _prepare(choice, path)
    tokenizer, warnings = load_tokenizer(choice)
    warnings = [*hub_warnings, *warnings]
    if Path(path).is_dir() and not (Path(path) / files.CONFIGURATION).is_file():
        facts: dict[str, Any] = {"n_ids": len(tokenizer), "warnings": tuple(warnings)}
    else:
        config = load_config(path, choice)
        n_ids = max(len(tokenizer), config.get_text_config().vocab_size)
        facts = _configured(config, n_ids, warnings)
    name = choice.tokenizer or choice.name
    return LoadedTokenizer(tokenizer=tokenizer, tokenizer_name=name, **facts)


def _load_plain(folder: Path, choice: ModelChoice) -> LoadedTokenizer | None:
    """Load the tokenizer of a directory without transformers; None where that would not do."""
    # Chat templates of TRL, say, are rendered by methods of transformers' own tokenizers.
    if choice.engine is None or choice.tokenizer is not None or not folder.is_dir():
        return None
    if choice.revision is not None:  # which is for names of the hub, as `_prepare` says
        return None
    tokenizer, config = plain_tokenizer(folder), plain_config(folder)
    if tokenizer is None or config is None:
        return None
    n_ids = max(len(tokenizer), config.vocab_size)
    facts = _configured(config, n_ids, [])
    return LoadedTokenizer(tokenizer=tokenizer, tokenizer_name=choice.name, **facts)


def window_policy(loaded: LoadedTokenizer, context: int | None, stride: int | None) -> WindowPolicy:
    """Resolve C and S of rule 7, in tokens; UsageError where the flags do not fit the model."""
    return _windows(loaded.max_context, loaded.max_context_key, context, stride)


def refuse_windows(name: str, context: int | None, stride: int | None) -> None:
    """Raise UsageError where a directory's configuration tells before anything is loaded that the
    flags do not fit the model. `window_policy` sees to all others."""
    longest = _plain_context(Path(files.checkpoint_path(name)) / files.CONFIGURATION)
    if longest is not None or context is not None:
        _windows(longest, _CONTEXT_KEYS[0], context, stride)


def _plain_context(file: Path) -> int | None:
    """Return the most tokens that a model takes, where its configuration surely says so."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):  # said where the model is loaded
        return None
    if not isinstance(found, dict):
        return None
    # RoPE may stretch a context, parts of a model have their own, and code reads what it likes.
    rope = found.pop("rope_parameters", None) or {"rope_type": "default"}
    plain = isinstance(rope, dict) and rope.get("rope_type") == "default"
    longest = found.get(_CONTEXT_KEYS[0])
    if not plain or any(isinstance(value, dict) for value in (*found.values(), *rope.values())):
        return None
    return longest if type(longest) is int and longest > 0 else None


def _windows(
    longest: int | None, key: str | None, context: int | None, stride: int | None
) -> WindowPolicy:
    for flag, value in (("--context", context), ("--stride", stride)):
        if value is not None:
            require_whole(flag, value, 1)
    source = "--context"
    if context is None:
        source = key or "default (the model's configuration names none)"
        context = longest or DEFAULT_CONTEXT
    elif longest is not None and context > longest:
        raise UsageError(f"--context {context} is more than the model takes ({key}: {longest})")
    if stride is None:
        stride = max(1, context // 2)
    if stride > context:
        raise UsageError(f"--stride {stride} is more than the context of {context} (--context)")
    return WindowPolicy(context, source, stride)


def _quantization(path: str, config: Any, model: Any, choice: ModelChoice) -> str | None:
    if (file := read_gguf(path)) is not None:
        return file.quantization
    name = quantization_name(model.config)
    # transformers takes the setting off a model whose weights it dequantised.
    if name is None and (undone := quantization_name(config)) is not None:
        return f"{undone} (dequantised)"
    return f"{name} (on load)" if choice.quantize else name


def _configured(config: Any, n_ids: int, warnings: list[str]) -> dict[str, Any]:
    """Return the fields of `LoadedTokenizer` that the configuration and the model's ids give."""
    text_config, ids = config.get_text_config(), list[tuple[int, ...]]()
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(text_config, name, None)
        named = value if isinstance(value, list | tuple) else [] if value is None else [value]
        # Some configurations name ids of another vocabulary than the model's.
        outside = [i for i in named if not 0 <= i < n_ids]
        warnings = warnings + [
            f"the configuration's {name} {i} is none of the {n_ids} ids: left out" for i in outside
        ]
        ids.append(tuple(i for i in named if i not in outside))
    context, key = _longest_context(text_config)
    if key is not None and "linear" in key:
        doubt = "where the first is stretched already, as in some configurations, it is too long"
        warnings = [*warnings, f"a context of {context} tokens, of {key}: {doubt} (--context)"]
    return {
        "bos_ids": ids[0],
        "eos_ids": ids[1],
        "n_ids": n_ids,
        "max_context": context,
        "max_context_key": key,
        "warnings": tuple(warnings),
    }


def _longest_context(text_config: Any) -> tuple[int | None, str | None]:
    """Return the most tokens that a model takes, and the keys of its configuration that say so."""
    lengths = ((getattr(text_config, key, None), key) for key in _CONTEXT_KEYS)
    named = ((n, key) for n, key in lengths if isinstance(n, int) and n > 0)
    longest, key = next(named, (None, None))
    rope = getattr(text_config, "rope_parameters", None) or {}
    layers = [each for each in rope.values() if isinstance(each, dict)]
    # Of a linear one for some layers (Gemma 3) the configuration names the stretched length.
    stretching = ("yarn",) if layers else _STRETCHED
    for each in layers or [rope]:
        kind, factor = each.get("rope_type"), each.get("factor")
        if longest is None or kind not in stretching or not isinstance(factor, int | float):
            continue
        # max_position_embeddings is the length before scaling in some configurations. In others
        # (DeepSeek-V3) it is the one after it, and RoPE's own key names the one before.
        stretched = int((each.get("original_max_position_embeddings") or longest) * factor)
        if stretched > longest:
            return stretched, f"{key} and RoPE: {kind} {factor:g}"
    return longest, key


def _prepare(choice: ModelChoice, path: str) -> tuple[ModelChoice, list[str]]:
    """Make libraries ready to load what is at the path; returns the choice, offline where the hub
    does not answer, and warnings. UsageError for a revision of a file."""
    if choice.revision is not None and Path(path).exists():
        kind = "directory" if Path(path).is_dir() else "file"
        raise UsageError(f"--revision is for names of the hub; {choice.name} is a {kind}")
    if choice.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported, not later
    warnings = []
    if (missing := files.missing_hub(choice)) is not None:
        choice, warnings = replace(choice, offline=True), [missing]
    # Else transformers may download kernels from the hub and run them: code beside the weights.
    os.environ.setdefault("USE_HUB_KERNELS", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as own_logging

    own_logging.set_verbosity_error()
    own_logging.disable_progress_bar()
    # It reports each time that it asks the hub again.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return choice, warnings
