"""Checkpoints in one GGUF file, as llama.cpp has them.

transformers makes a plain model of such a file, and leaves out without a word what it does not
read. That is completed here, or refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RunError, load_extra
from seqloss_cli.models.files import is_gguf

_FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
_ROPE_FACTORS = "rope_freqs.weight"
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The description that a file gives of itself."""

    path: str
    tensor_types: tuple[str, ...]
    """Different types of its tensors: `Q8_0`, `F32`, …"""
    tensor_names: tuple[str, ...]
    rope_factors: Any
    """Divisors of the rotary frequencies, one each (a numpy array); None without such a tensor."""
    rope_scaling: str | None
    vocabulary: str | None
    """`gpt2`: byte-level BPE, `llama`: sentencepiece, …"""
    pre_tokenizer: str | None
    adds_prefix_space: bool

    @property
    def quantization(self) -> str | None:
        """Name of the quantisation for the run record; None where all tensors are floats."""
        if set(self.tensor_types) <= _FLOATS:
            return None
        return f"gguf {', '.join(self.tensor_types)}"


def gguf_source(name: str) -> tuple[str, dict[str, Any]]:
    """Return the folder of a GGUF file and the argument that names the file; else the name alone.

    `from_pretrained` of transformers takes both.
    """
    if not is_gguf(name):
        return name, {}
    return str(Path(name).parent), {"gguf_file": Path(name).name}


def read_gguf(path: str) -> GgufFile | None:
    """Read a file's own description, once for the file as it is; None for another name.

    Raises RunError for what is no GGUF file, and UsageError without `gguf` and `accelerate`.
    """
    if not is_gguf(path):
        return None
    gguf: Any = load_extra("gguf", f"{path} (GGUF)", "gguf", "accelerate")
    stat = Path(path).stat()
    return _read(gguf, path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(gguf: Any, path: str, size: int, time: int) -> GgufFile:
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if _is_read(name)}
    except (ValueError, OSError, KeyError, IndexError, RuntimeError) as error:
        raise RunError(f"model {path} is no GGUF file that can be read: {error}") from error
    architecture = str(fields.get("general.architecture", "none"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors, scaling = tensors.get(_ROPE_FACTORS), f"{architecture}.rope.scaling.type"
    stretched = fields.get(scaling, "none") != "none"
    return GgufFile(
        path=path,
        tensor_types=tuple(sorted({tensor.tensor_type.name for tensor in reader.tensors})),
        tensor_names=tuple(tensors),
        rope_factors=None if factors is None else factors.data.copy(),
        rope_scaling=str(fields[scaling]) if stretched else None,
        vocabulary=fields.get("tokenizer.ggml.model"),
        pre_tokenizer=fields.get("tokenizer.ggml.pre"),
        adds_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix", True)),
    )


def _is_read(name: str) -> bool:
    # Not the vocabulary: to make Python strings of its 100,000 entries takes seconds.
    keys = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix")
    return name == "general.architecture" or ".rope.scaling." in name or name in keys


def refuse_unread_scaling(file: GgufFile, config: Any) -> None:
    """Raise RunError where the file scales its positions in a way that transformers drops."""
    # transformers would leave the rotary embedding unscaled: other losses, and no warning.
    parameters = repr(getattr(config.get_text_config(), "rope_parameters", None))
    unread = file.rope_scaling if file.rope_scaling and "'default'" in parameters else None
    factors = [name for name in file.tensor_names if name.startswith("rope_factors")]
    if unread or factors:
        raise RunError(
            f"model {file.path} scales its positions ({unread or factors[0]}), which transformers "
            "does not read from a GGUF file: score the checkpoint that it was made from"
        )


def complete_model(file: GgufFile, model: Any, dtype: str) -> list[str]:
    """Give the model what transformers left out of it; returns warnings."""
    if file.rope_factors is not None:
        _divide_frequencies(file, model)
    warnings = []
    if file.quantization is not None:
        types = ", ".join(file.tensor_types)
        warnings.append(f"{file.path} is dequantised to {dtype} ({types} in it)")
    # Tied weights are one parameter. Experts are left out of the count, since transformers joins
    # or splits their tensors.
    n_read = len({id(parameter) for parameter in model.parameters()})
    n_there = len(set(file.tensor_names) - {_ROPE_FACTORS})
    if n_there > n_read and not any("_exps" in name for name in file.tensor_names):
        warnings.append(
            f"{file.path} holds {n_there} tensors, of which the model takes {n_read}: its losses "
            "may not be those of the file"
        )
    return warnings


def _divide_frequencies(file: GgufFile, model: Any) -> None:
    """Divide each rotary frequency by its factor, as llama.cpp does for Llama 3.1 and its like."""
    import torch

    # transformers drops the tensor `rope_freqs.weight` without a word.
    factors = torch.from_numpy(file.rope_factors).reshape(-1)
    found = [m for m in model.modules() if getattr(m, "inv_freq", None) is not None]
    if not found or any(m.inv_freq.numel() != factors.numel() for m in found):
        raise RunError(
            f"model {file.path}: its {_ROPE_FACTORS} has no place in the model: score the "
            "checkpoint that it was made from"
        )
    for module in found:
        module.inv_freq.div_(factors.to(module.inv_freq))


def tokenizer_warning(file: GgufFile, tokenizer: Any) -> str:
    """Return a warning that the tokenizer is made from the file, and how it is likely to differ."""
    doubts = []
    if file.vocabulary == "gpt2" and file.pre_tokenizer not in _known_pre_tokenizers():
        doubts.append(f"how it cuts texts ({file.pre_tokenizer}) is not known")
    if not file.adds_prefix_space and tokenizer.tokenize("a")[0].startswith(_SPACE):
        doubts.append("it puts a space before texts, which the file says not to")
    why = f", and {' and '.join(doubts)}" if doubts else ""
    return (
        f"the tokenizer is made anew from {file.path}{why}: --tokenizer DIR takes the model's own"
    )


def _known_pre_tokenizers() -> frozenset[str]:
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping
    except ImportError:  # another version of transformers
        return frozenset(("gpt-2",))
    return frozenset(("gpt-2", *getattr(mapping, "GGUF_PRE_TOKENIZER_SPLITS", ())))
