"""How a checkpoint's weights are quantised: its name, the packages it needs, and what it does to a
row's numbers; quantising one when it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.extras import load_extra
from seqloss_cli.core.policies import QuantizeChoice

_PACKAGES = {"torchao": ("torchao", "accelerate"), "bitsandbytes": ("bitsandbytes", "accelerate")}
"""What `seqloss[quantised]` brings; transformers itself names what other methods need."""
_WEIGHTS_ONLY = frozenset(
    ("gptq", "awq", "auto-round", "hqq", "quanto", "aqlm", "spqr", "vptq", "higgs", "eetq", "mxfp4")
)
"""Methods that multiply what comes in as it is."""


def settings_of(config: Any) -> Mapping[str, Any] | None:
    """The quantisation that a model's configuration names."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found is not None:
            settings: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
            return settings
    return None


def described(config: Any) -> str | None:
    """The method and its kind, such as `torchao int8_weight_only`; None where there is none."""
    settings = settings_of(config)
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


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if method is None and any(settings.get(f"load_in_{bits}bit") for bits in (4, 8)):
        return "bitsandbytes"  # as old files have it
    return str(getattr(method, "value", method))


def _torchao_kind(settings: Mapping[str, Any]) -> str:
    """`Int8WeightOnlyConfig` as `int8_weight_only`."""
    kind: Any = settings.get("quant_type")
    if isinstance(kind, Mapping):
        kind = kind.get("default", kind)
        kind = kind.get("_type", kind) if isinstance(kind, Mapping) else kind
    name = str(kind).removesuffix("Config")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def rounds_activations(config: Any) -> bool:
    """Whether what goes into a product is rounded, too, by a scale that is found as it comes: then
    the numbers of a row jump a little with whatever it is computed together with. True where that
    is not known."""
    settings = settings_of(config)
    if settings is None:
        return False
    method = _method(settings)
    if method == "torchao":
        return "weight_only" not in _torchao_kind(settings)
    if method == "bitsandbytes":
        return bool(settings.get("load_in_8bit"))
    return method not in _WEIGHTS_ONLY or settings.get("activations") is not None


def require_packages(name: str, config: Any) -> None:
    """Raises UsageError where the model cannot be loaded for want of a package of ours."""
    settings = settings_of(config)
    method = None if settings is None else _method(settings)
    if method in _PACKAGES:
        load_extra("quantised", f"model {name} ({method})", *_PACKAGES[method])


def quantization_on_load(name: str, config: Any, wanted: QuantizeChoice | None, dtype: str) -> Any:
    """What transformers takes as `quantization_config`; None where nothing is asked for.

    Raises UsageError for a model that is quantised already, for a dtype that torchao does not have,
    and for want of a package.
    """
    if wanted is None:
        return None
    flag = f"--quantize {wanted}"
    if (there := described(config)) is not None:
        raise UsageError(f"{flag}: model {name} is quantised already ({there})")
    if dtype == "float64":
        raise UsageError(f"{flag} goes with --dtype float32, bfloat16 or float16, not float64")
    load_extra("quantised", flag, "torchao", "accelerate")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())
