"""Adapters (LoRA and others of PEFT): put on a loaded model beside its weights, never merged.

The layers that an adapter changes are replaced in place, so that the model stays of its own class.
What its file holds and what the model takes are held against each other by name and shape: PEFT and
transformers leave what is missing as it was made, at random, with a warning at most.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.extras import load_extra
from seqloss_cli.core.policies import ModelChoice

CONFIGURATION = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_files(choice: ModelChoice) -> tuple[Path, ...]:
    """Configuration and weights of the adapter, of a directory or from the hub; none without one.

    Raises RunError or UsageError when they cannot be had.
    """
    name = choice.adapter
    if name is None:
        return ()
    configuration = _find(name, CONFIGURATION, choice.offline)
    if configuration is None and Path(name).exists():
        raise UsageError(f"--adapter {name}: no {CONFIGURATION} in it, so it is no adapter of PEFT")
    if configuration is None:
        hint = "; --offline looks into the local cache only" if choice.offline else ""
        raise UsageError(f"--adapter {name}: neither a directory nor an adapter of the hub{hint}")
    safe, pickled = (_find(name, file, choice.offline) for file in _WEIGHTS)
    if safe is not None:
        return configuration, safe
    if pickled is None:
        raise RunError(f"adapter {name}: no weights in it (no {_WEIGHTS[0]})")
    if not choice.allow_pickle:
        raise RunError(
            f"adapter {name} has pickled weights only, which can run code when they are loaded; "
            "--allow-pickle takes them"
        )
    return configuration, pickled


def _find(name: str, file: str, offline: bool) -> Path | None:
    if Path(name).exists():
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(name, file, local_files_only=offline)
    except OSError:  # the hub has none under this name
        return None
    return None if found is None else Path(found)


def put_adapter_on(model: Any, choice: ModelChoice) -> list[str]:
    """Put the adapter of the choice on the model, if it names one; returns warnings.

    Raises RunError when its weights are not whole or do not fit, UsageError without `peft`.
    """
    if choice.adapter is None:
        return []
    peft: Any = load_extra("adapters", "--adapter", "peft")
    configuration, weights = adapter_files(choice)
    try:
        with warnings.catch_warnings(action="ignore"):  # of training, merging and saving
            _put_on(peft, model, choice, weights.parent)
    except RunError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise RunError(
            f"adapter {choice.adapter} cannot be put on the model {choice.name}: {text}"
        ) from error
    if str(model.dtype) == "torch.float64":
        model.double()
    model.eval()
    return _other_base(choice, json.loads(configuration.read_text(encoding="utf-8")))


def _put_on(peft: Any, model: Any, choice: ModelChoice, folder: Path) -> None:
    config = peft.PeftConfig.from_pretrained(str(folder))
    _refuse_what_cannot_be_put_on(choice, config)
    written = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
    _refuse_unknown_settings(choice, config, written)
    stored = peft.load_peft_weights(str(folder), device="cpu")
    config.inference_mode = True
    whole = peft.PeftModel(model, config)
    _require_whole(choice, stored, *_expected(peft, whole))
    peft.set_peft_model_state_dict(whole, stored)


def _refuse_what_cannot_be_put_on(choice: ModelChoice, config: Any) -> None:
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
    """PEFT drops what it does not know, which may be what makes the adapter's numbers."""
    known = {field.name for field in fields(config)}
    unknown = sorted(name for name, value in written.items() if name not in known and value)
    if unknown:
        raise RunError(
            f"adapter {choice.adapter} has settings that this version of peft does not know: "
            f"{', '.join(unknown)}; a newer one may"
        )


def _expected(peft: Any, whole: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What an adapter's file must hold, and what it may: embeddings of the model beside."""
    least, most = (
        peft.get_peft_model_state_dict(whole, save_embedding_layers=embeddings)
        for embeddings in (False, True)
    )
    return least, most


def _require_whole(
    choice: ModelChoice,
    stored: Mapping[str, Any],
    least: Mapping[str, Any],
    most: Mapping[str, Any],
) -> None:
    wrong = [f"{name} is missing" for name in sorted(set(least) - set(stored))]
    wrong += [f"{name} has no place in the model" for name in sorted(set(stored) - set(most))]
    wrong += [
        f"{name} is {tuple(stored[name].shape)}, not {tuple(most[name].shape)}"
        + (" (was its vocabulary resized?)" if "lora" not in name else "")
        for name in sorted(set(stored) & set(most))
        if stored[name].shape != most[name].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RunError(
            f"adapter {choice.adapter} does not fit the model {choice.name}: {wrong[0]}{more}"
        )


def _other_base(choice: ModelChoice, configuration: Mapping[str, Any]) -> list[str]:
    """A warning where the adapter names another model than the one that it is put on."""
    base = configuration.get("base_model_name_or_path")
    if not base:
        return [f"adapter {choice.adapter} does not say which model it was made for"]
    if Path(base).name.lower() == Path(choice.name).resolve().name.lower():
        return []
    return [
        f"adapter {choice.adapter} was made for {base}, and is put on {choice.name}: unless they "
        "are the same weights, its losses mean nothing (--model)"
    ]
