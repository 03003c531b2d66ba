"""Checkpoints in one GGUF file, as llama.cpp has them. transformers makes a plain model of them;
what it would leave out without a word is put right here, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RunError
from seqloss_cli.core.extras import load_extra

_PLAIN = frozenset(("F64", "F32", "F16", "BF16"))
_ROPE_FACTORS = "rope_freqs.weight"
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a file says of itself."""

    path: str
    architecture: str
    types: tuple[str, ...]
    """Of its tensors: `Q8_0`, `F32`, …"""
    tensors: tuple[str, ...]
    rope_factors: Any
    """By which rotary frequencies are divided; None where the file has none."""
    rope_scaling: str | None
    vocabulary: str | None
    """`gpt2`: byte-level BPE, `llama`: sentencepiece, …"""
    pre_tokenizer: str | None
    adds_space: bool

    @property
    def quantization(self) -> str | None:
        """None where all its tensors are floats."""
        return None if set(self.types) <= _PLAIN else f"gguf {', '.join(self.types)}"


def is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf") and Path(name).is_file()


def in_folder(name: str) -> tuple[str, dict[str, Any]]:
    """What transformers takes in place of a name: the folder of a GGUF file, and which it is."""
    if not is_gguf(name):
        return name, {}
    return str(Path(name).parent), {"gguf_file": Path(name).name}


def read_gguf(path: str) -> GgufFile:
    """Raises RunError for what is no GGUF file, and UsageError without `gguf` and `accelerate`."""
    gguf: Any = load_extra("gguf", f"{path} (GGUF)", "gguf", "accelerate")
    stat = Path(path).stat()
    return _read(gguf, path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(gguf: Any, path: str, size: int, time: int) -> GgufFile:
    """Once for a file as it is."""
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if _wanted(name)}
    except (ValueError, OSError, KeyError, IndexError, RuntimeError) as error:
        raise RunError(f"model {path} is no GGUF file that can be read: {error}") from error
    architecture = str(fields.get("general.architecture", "none"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors, scaling = tensors.get(_ROPE_FACTORS), f"{architecture}.rope.scaling"
    stretched = fields.get(f"{scaling}.type", "none") != "none"
    return GgufFile(
        path=path,
        architecture=architecture,
        types=tuple(sorted({tensor.tensor_type.name for tensor in reader.tensors})),
        tensors=tuple(tensors),
        rope_factors=None if factors is None else factors.data.copy(),
        rope_scaling=str(fields[f"{scaling}.type"]) if stretched else None,
        vocabulary=fields.get("tokenizer.ggml.model"),
        pre_tokenizer=fields.get("tokenizer.ggml.pre"),
        adds_space=bool(fields.get("tokenizer.ggml.add_space_prefix", True)),
    )


def _wanted(name: str) -> bool:
    """Not the vocabulary, which takes a while."""
    asked = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix")
    return name == "general.architecture" or ".rope.scaling." in name or name in asked


def refuse_unread(file: GgufFile, config: Any) -> None:
    """Raises RunError where the file says of its positions what transformers does not read."""
    written = repr(getattr(config.get_text_config(), "rope_parameters", None))
    unread = file.rope_scaling if file.rope_scaling and "'default'" in written else None
    factors = [name for name in file.tensors if name.startswith("rope_factors")]
    if unread or factors:
        raise RunError(
            f"model {file.path} scales its positions ({unread or factors[0]}), which transformers "
            "does not read from a GGUF file: score the checkpoint that it was made from"
        )


def make_whole(file: GgufFile, model: Any, dtype: str) -> list[str]:
    """Give the model what transformers left out of it; returns warnings."""
    if file.rope_factors is not None:
        _divide_frequencies(file, model)
    warnings = []
    if file.quantization is not None:
        warnings.append(f"{file.path} is dequantised to {dtype} ({', '.join(file.types)} in it)")
    n_read = len({id(parameter) for parameter in model.parameters()})
    n_there = len(set(file.tensors) - {_ROPE_FACTORS})
    if n_there > n_read and not any("_exps" in name for name in file.tensors):
        warnings.append(
            f"{file.path} holds {n_there} tensors, of which the model takes {n_read}: its losses "
            "may not be those of the file"
        )
    return warnings


def _divide_frequencies(file: GgufFile, model: Any) -> None:
    """As llama.cpp does for Llama 3.1 and its like."""
    import torch

    factors = torch.from_numpy(file.rope_factors).reshape(-1)
    found = [m for m in model.modules() if getattr(m, "inv_freq", None) is not None]
    if not found or any(m.inv_freq.numel() != factors.numel() for m in found):
        raise RunError(
            f"model {file.path}: its {_ROPE_FACTORS} has no place in the model: score the "
            "checkpoint that it was made from"
        )
    for module in found:
        module.inv_freq.div_(factors.to(module.inv_freq))


def doubts_of_tokenizer(file: GgufFile, tokenizer: Any) -> str:
    """A warning: the tokenizer is made anew from the file, and in what it is likely to differ."""
    doubts = []
    if file.vocabulary == "gpt2" and file.pre_tokenizer not in _known_pre_tokenizers():
        doubts.append(f"how it cuts texts ({file.pre_tokenizer}) is not known")
    if not file.adds_space and tokenizer.tokenize("a")[0].startswith(_SPACE):
        doubts.append("it puts a space before texts, which the file says not to")
    why = f", and {' and '.join(doubts)}" if doubts else ""
    return (
        f"the tokenizer is made anew from {file.path}{why}: --tokenizer DIR takes the model's own"
    )


def _known_pre_tokenizers() -> frozenset[str]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_PRE_TOKENIZER_SPLITS,
        )
    except ImportError:  # another version of transformers
        return frozenset(("gpt-2",))
    return frozenset(("gpt-2", *GGUF_PRE_TOKENIZER_SPLITS))
