"""Adapters (LoRA and others of PEFT): attached to a loaded model beside its weights, never merged.

The layers that an adapter changes are replaced in place, so that the model keeps its own class.
Weights in the adapter's file and places in the model are compared by name and shape: PEFT and
transformers leave what is missing as it was made, at random, with a warning at most.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RunError, UsageError, load_extra
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.models import files

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_files(choice: ModelChoice) -> tuple[Path, ...]:
    """Find configuration and weights of the adapter, in a directory or on the hub; () without one.

    Raises RunError or UsageError when they are missing.
    """
    name, offline = choice.adapter, choice.offline
    if name is None:
        return ()
    configuration = files.find_file(name, files.ADAPTER_CONFIGURATION, offline)
    if configuration is None:
        why = f"neither a directory nor an adapter of the hub{files.offline_hint(offline)}"
        if Path(name).exists():
            why = f"no {files.ADAPTER_CONFIGURATION} in it, so it is no adapter of PEFT"
        raise UsageError(f"--adapter {name}: {why}")
    safe, pickled = (files.find_file(name, file, offline) for file in _WEIGHTS)
    files.require_weights(f"adapter {name}", _WEIGHTS[0], bool(safe), bool(pickled), choice)
    weights = safe or pickled
    assert weights is not None
    files.require_whole_files(configuration, weights)
    return configuration, weights


def attach_adapter(model: Any, choice: ModelChoice) -> list[str]:
    """Attach the adapter of the choice to the model, if it names one; returns warnings.

    Raises RunError when its weights are not whole or do not fit, UsageError without `peft`.
    """
    if choice.adapter is None:
        return []
    peft: Any = load_extra("adapters", "--adapter", "peft")
    configuration, weights = adapter_files(choice)
    try:
        # PEFT warns of what matters to training, merging and saving only.
        with warnings.catch_warnings(action="ignore"):
            found = _attach(peft, model, choice, configuration, weights.parent)
    except RunError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise RunError(
            f"adapter {choice.adapter} cannot be put on the model {choice.name}: {text}"
        ) from error
    # The new layers come in the file's dtype: in double precision they would be the narrow part.
    if str(model.dtype) == "torch.float64":
        model.double()
    model.eval()
    return found


def _attach(
    peft: Any, model: Any, choice: ModelChoice, configuration: Path, folder: Path
) -> list[str]:
    config = peft.PeftConfig.from_pretrained(str(folder))
    _refuse_unsupported(choice, config)
    written = json.loads(configuration.read_text(encoding="utf-8"))
    _refuse_unknown_settings(choice, config, written)
    stored = peft.load_peft_weights(str(folder), device="cpu")
    config.inference_mode = True
    # Not `model.load_adapter` of transformers: it loads DoRA wrongly (logits off by 4.8).
    whole = peft.PeftModel(model, config)
    # The file must hold what the layers have, and may hold embeddings of the model beside it.
    required, allowed = (
        peft.get_peft_model_state_dict(whole, save_embedding_layers=embeddings)
        for embeddings in (False, True)
    )
    _require_whole(choice, stored, required, allowed)
    peft.set_peft_model_state_dict(whole, stored)
    return _base_warnings(choice, written)


def _refuse_unsupported(choice: ModelChoice, config: Any) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning:
        raise RunError(
            f"adapter {choice.adapter} ({kind}) adds tokens in front of every text; --adapter "
            "takes those that change layers, such as LoRA"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise RunError(
            f"adapter {choice.adapter} is on only after its invocation tokens (aLoRA); --adapter "
            "takes those that are on for every token"
        )


def _refuse_unknown_settings(choice: ModelChoice, config: Any, written: Mapping[str, Any]) -> None:
    # PEFT drops a setting that it does not know, and the adapter's numbers may rest on it.
    known = {field.name for field in fields(config)}
    unknown = sorted(name for name, value in written.items() if name not in known and value)
    if unknown:
        raise RunError(
            f"adapter {choice.adapter} has settings that this version of peft does not know: "
            f"{', '.join(unknown)}; a newer one may"
        )


def _require_whole(
    choice: ModelChoice,
    stored: Mapping[str, Any],
    required: Mapping[str, Any],
    allowed: Mapping[str, Any],
) -> None:
    wrong = [f"{name} is missing" for name in sorted(set(required) - set(stored))]
    wrong += [f"{name} has no place in the model" for name in sorted(set(stored) - set(allowed))]
    wrong += [
        f"{name} is {tuple(stored[name].shape)}, not {tuple(allowed[name].shape)}"
        + (" (was its vocabulary resized?)" if "lora" not in name else "")
        for name in sorted(set(stored) & set(allowed))
        if stored[name].shape != allowed[name].shape
    ]
    if wrong:
        raise RunError(
            f"adapter {choice.adapter} does not fit the model {choice.name}: "
            f"{files.first_problem(wrong)}"
        )


def _base_warnings(choice: ModelChoice, written: Mapping[str, Any]) -> list[str]:
    """Warn where the adapter names no model, or another than the one that it is attached to."""
    base = written.get("base_model_name_or_path")
    if not base:
        return [f"adapter {choice.adapter} does not say which model it was made for"]
    if Path(base).name.lower() == Path(choice.name).resolve().name.lower():
        return []
    return [
        f"adapter {choice.adapter} was made for {base}, and is put on {choice.name}: unless they "
        "are the same weights, its losses mean nothing (--model)"
    ]
