"""Checkpoints in one GGUF file, as llama.cpp has them.

transformers makes a plain model of such a file, and leaves out without a word what it does not
read. That is completed here, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import calcsize, error, unpack_from
from typing import Any, NamedTuple

import numpy as np

from seqloss_cli.core.errors import RunError, load_extra
from seqloss_cli.models.files import is_gguf, require_whole_files

_FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
_ROPE_FACTORS = "rope_freqs.weight"
_TOKENIZER = "tokenizer."
_TEXT, _ARRAY = 8, 9
_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Letters of `struct` for the kinds of numbers of GGUF, which numpy reads as well with `<`."""


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
    name: str
    tokenizer: Mapping[str, Any]
    """Its fields on the vocabulary: `ggml.model`, `ggml.tokens`, `chat_template`, …"""

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
    require_whole_files(Path(path))
    stat = Path(path).stat()
    return _read(gguf, path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(gguf: Any, path: str, size: int, time: int) -> GgufFile:
    try:
        # Not with gguf's own reader: an array for each string of a vocabulary takes half a minute.
        with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            cursor = _Cursor(data)
            fields, tensors = _read_head(cursor)
            start = -(-cursor.at // (alignment := fields.get("general.alignment", 32))) * alignment
            factors = None
            if (found := tensors.get(_ROPE_FACTORS)) is not None:
                place = start + found.offset
                factors = np.frombuffer(data[place : place + 4 * found.size], "<f4")
        types = {gguf.GGMLQuantizationType(tensor.type).name for tensor in tensors.values()}
    except (ValueError, OSError, KeyError, IndexError, OverflowError, error) as problem:
        raise RunError(f"model {path} is no GGUF file that can be read: {problem}") from problem
    architecture = str(fields.get("general.architecture", "none"))
    rope = f"{architecture}.rope"
    factor = fields.get(f"{rope}.scaling.factor", fields.get(f"{rope}.scale_linear", 1.0))
    # As llama.cpp reads them: a factor without a type is a linear one.
    kind = fields.get(f"{rope}.scaling.type", "none" if factor in (0, 1) else "linear")
    return GgufFile(
        path=path,
        tensor_types=tuple(sorted(types)),
        tensor_names=tuple(tensors),
        rope_factors=factors,
        rope_scaling=None if kind == "none" else str(kind),
        name=str(fields.get("general.name", "")),
        tokenizer={
            name.removeprefix(_TOKENIZER): value
            for name, value in fields.items()
            if name.startswith(_TOKENIZER)
        },
    )


class _Tensor(NamedTuple):
    """A tensor as the head of a file describes it."""

    type: int
    offset: int
    """Bytes from the start of the tensors."""
    size: int
    """Numbers in it."""


class _Cursor:
    """A place in a file's head, which is read from its beginning; numbers are little-endian."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self.at = 0

    def take(self, form: str) -> Any:
        """Read a value of a format of `struct`."""
        (found,) = unpack_from(f"<{form}", self._data, self.at)
        self.at += calcsize(f"<{form}")
        return found

    def text(self) -> str:
        """Read a string."""
        length = self.take("Q")
        self.at += length
        if self.at > len(self._data):
            raise ValueError("it ends within a string")
        return self._data[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        """Read a value of a kind of GGUF: a number, a string, or an array of these."""
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.take(_NUMBERS[kind])
        inner, count = self.take("I"), self.take("Q")
        if inner in (_TEXT, _ARRAY):
            return [self.value(inner) for _ in range(count)]
        numbers = np.frombuffer(self._data, f"<{_NUMBERS[inner]}", count, self.at)
        self.at += numbers.nbytes
        return numbers.tolist()


def _read_head(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """Read the fields of a file and what it says of its tensors."""
    if cursor.take("4s") != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    if (version := cursor.take("I")) not in (2, 3):
        raise ValueError(f"version {version} is not known")
    n_tensors, n_fields = cursor.take("Q"), cursor.take("Q")
    fields = {cursor.text(): cursor.value(cursor.take("I")) for _ in range(n_fields)}
    tensors = {}
    for _ in range(n_tensors):
        name = cursor.text()
        size = prod(cursor.take("Q") for _ in range(cursor.take("I")))
        tensors[name] = _Tensor(cursor.take("I"), cursor.take("Q"), size)
    return fields, tensors


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
    factors = torch.tensor(file.rope_factors)
    found = [m for m in model.modules() if getattr(m, "inv_freq", None) is not None]
    if not found or any(m.inv_freq.numel() != factors.numel() for m in found):
        raise RunError(
            f"model {file.path}: its {_ROPE_FACTORS} has no place in the model: score the "
            "checkpoint that it was made from"
        )
    for module in found:
        module.inv_freq.div_(factors.to(module.inv_freq))
