"""Models that are loaded in parts, one for each process: which can be, and how.

transformers cuts a model by the plan of its class; what cannot be cut is refused in words, before
any weight is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import ModelChoice, SpeedPolicy
from seqloss_cli.models import files
from seqloss_cli.models.quantization import quantization_name

CHECKED = frozenset((
    "apertus", "arcee", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "gemma",
    "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt_neox", "granite", "granitemoe",
    "helium", "llama", "llama4_text", "minimax_m2", "mistral", "mixtral", "nemotron", "olmo2",
    "olmo3", "olmoe", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "qwen3_next", "seed_oss", "smollm3", "starcoder2",
))  # fmt: skip
"""Types of models (`model_type` of the text part) whose two parts give the numbers of the whole:
`make test-parts` holds all of them to that."""
LEAST_TRANSFORMERS = [5, 17]
"""Earlier ones cut models in another way."""
_KEYS = ("k_proj", "qkv_proj", "query_key_value")
_QUERIES = ("q_proj", *_KEYS[1:])
"""Names of layers whose outputs are heads."""


def refuse_settings(choice: ModelChoice, speed: SpeedPolicy) -> None:
    """Raise UsageError for settings that do not go with a model in parts."""
    name = choice.name
    gguf = files.is_gguf(files.checkpoint_path(name))
    reasons = {
        f"weights of {name} (GGUF) are made anew as they are read": gguf,
        f"--quantize {choice.quantize} packs whole weights": choice.quantize is not None,
        f"--adapter {choice.adapter} is put on whole layers": choice.adapter is not None,
        "--compile on does not know sums over processes": speed.compile == "on",
        f"--devices {speed.devices} has the whole model on each device": speed.devices > 1,
        f"--device {choice.device} is one device": choice.device.startswith(("cuda:", "mps")),
    }
    for reason, holds in reasons.items():
        if holds:
            flag = f"--tensor-parallel {speed.tensor_parallel}"
            raise UsageError(f"{flag} loads layers in parts, and {reason}: leave one of them out")


def device_of_parts(choice: ModelChoice, n_parts: int) -> str:
    """Return the type of the devices that have a part each. Raises UsageError where there are too
    few of them, or where transformers would take others."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    there = "cpu" if accelerator is None else accelerator.type
    if choice.device != "auto" and choice.device != there:
        hint = (
            "CUDA_VISIBLE_DEVICES= hides GPUs"
            if there == "cuda"
            else f"there is no {choice.device}"
        )
        raise UsageError(
            f"--tensor-parallel {n_parts} --device {choice.device}: the parts are put on {there} "
            f"here; {hint}"
        )
    if there not in ("cpu", "cuda"):
        raise UsageError(f"--tensor-parallel {n_parts} is for CUDA and CPUs, and {there} is here")
    if there == "cuda" and (n_there := torch.cuda.device_count()) < n_parts:
        raise UsageError(f"--tensor-parallel {n_parts}: there are {n_there} CUDA devices")
    return there


def refuse_model(name: str, config: Any, n_parts: int) -> None:
    """Raise UsageError for a model that cannot be cut into so many parts."""
    flag, text = f"--tensor-parallel {n_parts}", config.get_text_config()
    if (quantization := quantization_name(config)) is not None:
        raise UsageError(f"{flag}: {name} is quantised ({quantization}), and is loaded whole only")
    plan = {**(getattr(config, "base_model_tp_plan", None) or {})}
    plan |= getattr(text, "base_model_tp_plan", None) or {}
    if not plan:
        raise UsageError(
            f"{flag}: transformers {version('transformers')} has no plan of how layers of "
            f"{config.model_type} are cut (base_model_tp_plan), which {name} is: it is loaded "
            "whole only"
        )
    _require_transformers(flag)
    heads = [n for key, names in _HEADS.items() if _cuts(plan, names) for n in _numbers(text, key)]
    if any(n % n_parts for n in heads):
        common = math.gcd(*heads)
        fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise UsageError(
            f"{flag}: {name} has {' and '.join(map(str, sorted(set(heads), reverse=True)))} heads "
            f"of attention ({', '.join(_HEADS)} of its configuration), which go to processes "
            f"undivided: --tensor-parallel can be {', '.join(fitting)}"
        )


_HEADS = {"num_attention_heads": _QUERIES, "num_key_value_heads": _KEYS}


def _cuts(plan: Mapping[str, str], names: tuple[str, ...]) -> bool:
    """Return whether a layer of one of these names is cut by its outputs."""
    return any(key.rpartition(".")[2] in names and how == "colwise" for key, how in plan.items())


def _numbers(text_config: Any, key: str) -> list[int]:
    found = getattr(text_config, key, None)
    return [
        n for n in (found if isinstance(found, list | tuple) else [found]) if isinstance(n, int)
    ]


def _require_transformers(flag: str) -> None:
    found = version("transformers")
    numbers = [int(part) for part in found.split(".")[:2] if part.isdigit()]
    if numbers < LEAST_TRANSFORMERS:
        least = ".".join(map(str, LEAST_TRANSFORMERS))
        raise UsageError(
            f"{flag} needs transformers {least} or later, and {found} is installed: pip install "
            "--upgrade transformers"
        )


def unchecked(config: Any) -> str | None:
    """Return what to say of a model whose parts nobody compared with the whole; None of others."""
    kind = str(config.get_text_config().model_type)
    if kind in CHECKED:
        return None
    return (
        f"--tensor-parallel: no test of seqloss compared parts of models of type {kind} with the "
        "whole; compare a small one first"
    )


def cut(n_parts: int) -> dict[str, Any]:
    """Return the arguments by which transformers loads the part of this process."""
    if n_parts == 1:
        return {}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=n_parts, tp_plan="auto")}
