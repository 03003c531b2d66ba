"""Quantised weights of a checkpoint: the method's name and packages, its effect on numbers.

Also quantises a model when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from seqloss_cli.core.errors import UsageError, load_extra
from seqloss_cli.core.policies import QuantizeChoice

_PACKAGES = {"torchao": ("torchao", "accelerate"), "bitsandbytes": ("bitsandbytes", "accelerate")}
"""Packages of `seqloss[quantised]`; transformers itself names those of other methods."""
_WEIGHTS_ONLY = frozenset(
    ("gptq", "awq", "auto-round", "hqq", "quanto", "aqlm", "spqr", "vptq", "higgs", "eetq", "mxfp4")
)
"""Methods that quantise weights and leave activations as they are."""


def quantization_settings(config: Any) -> Mapping[str, Any] | None:
    """Return the `quantization_config` of a model's configuration; None where it has none."""
    # Multimodal checkpoints keep it in the configuration of their language model.
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found is not None:
            settings: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
            return settings
    return None


def quantization_name(config: Any) -> str | None:
    """Name method and kind, such as `torchao int8_weight_only`; None without a quantisation."""
    settings = quantization_settings(config)
    if settings is None:
        return None
    method = _method(settings)
    if method == "torchao":
        return f"torchao {_torchao_kind(settings)}"
    if method == "bitsandbytes":
        eight = settings.get("load_in_8bit")
        return f"bitsandbytes {'int8' if eight else settings.get('bnb_4bit_quant_type', 'fp4')}"
    bits = settings.get("bits")
    return f"{method} {bits} bit" if isinstance(bits, int) else method


def activation_quantization(config: Any) -> str | None:
    """Name the quantisation where it quantises a product's input, too; else None.

    The input's scale is found from the input as it comes: the numbers of a row then depend a little
    on the rows that are computed with it, so that rule 11 holds for single rows only.
    """
    settings = quantization_settings(config)
    if settings is None:
        return None
    method = _method(settings)
    if method == "torchao":
        found = "weight_only" not in _torchao_kind(settings)
    elif method == "bitsandbytes":
        found = bool(settings.get("load_in_8bit"))
    else:  # a method that is not known may quantise it
        found = method not in _WEIGHTS_ONLY or settings.get("activations") is not None
    return quantization_name(config) if found else None


def require_packages(name: str, config: Any) -> None:
    """Raise UsageError where a package of `seqloss[quantised]` is missing that the model needs."""
    settings = quantization_settings(config)
    method = None if settings is None else _method(settings)
    if method in _PACKAGES:
        load_extra("quantised", f"model {name} ({method})", *_PACKAGES[method])


def quantization_on_load(
    name: str, config: Any, requested: QuantizeChoice | None, dtype: str
) -> Any:
    """Make the `quantization_config` that transformers takes; None where nothing is requested.

    Raises UsageError for a model that is quantised already, for a dtype that torchao does not have,
    and for want of a package.
    """
    if requested is None:
        return None
    flag = f"--quantize {requested}"
    if (present := quantization_name(config)) is not None:
        raise UsageError(f"{flag}: model {name} is quantised already ({present})")
    if dtype == "float64":
        raise UsageError(f"{flag} goes with --dtype float32, bfloat16 or float16, not float64")
    load_extra("quantised", flag, "torchao", "accelerate")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    # Old files of bitsandbytes name no method.
    if method is None and any(settings.get(f"load_in_{bits}bit") for bits in (4, 8)):
        return "bitsandbytes"
    return str(getattr(method, "value", method))


def _torchao_kind(settings: Mapping[str, Any]) -> str:
    """Return `Int8WeightOnlyConfig` as `int8_weight_only`."""
    kind: Any = settings.get("quant_type")
    if isinstance(kind, Mapping):
        kind = kind.get("default", kind)
        kind = kind.get("_type", kind) if isinstance(kind, Mapping) else kind
    name = str(kind).removesuffix("Config")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
