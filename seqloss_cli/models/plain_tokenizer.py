"""The tokenizer of a plain `tokenizer.json`, without transformers, whose import takes seconds.

Only where transformers would add nothing of its own: what it would is left to it. The two are held
to each other in the tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that take a `tokenizer.json` as it is."""
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
          "mask_token")  # fmt: skip
_NEUTRAL = {
    *("backend", "tokenizer_class", "model_max_length", "clean_up_tokenization_spaces"),
    *("chat_template", "padding_side", "truncation_side", "model_input_names", "is_local"),
    *("local_files_only", "name_or_path"),
}
"""Keys of a tokenizer_config.json that change neither ids nor special tokens."""
_OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", "chat_template.json")


class PlainTokenizer:
    """A tokenizer with the attributes of transformers' that the rest of the package uses."""

    def __init__(self, backend: Any, names: dict[str, str], chat_template: str | None) -> None:
        """`names` are the named special tokens, such as `bos_token`, that there are."""
        self.backend_tokenizer = backend
        self.special_tokens_map = names
        self.chat_template = chat_template
        self.added_tokens_decoder: dict[int, Any] = backend.get_added_tokens_decoder()
        self.all_special_tokens = list(dict.fromkeys(names.values()))
        self.all_special_ids = [backend.token_to_id(name) for name in self.all_special_tokens]
        for kind in _NAMED:
            name = names.get(kind)
            setattr(self, kind, name)
            setattr(self, f"{kind}_id", None if name is None else backend.token_to_id(name))

    def __len__(self) -> int:
        """Return the number of tokens, added ones counted."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of tokens."""
        found: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return found

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, with what the file's post-processor adds where asked for."""
        found: list[int] = self.backend_tokenizer.encode(
            text, add_special_tokens=add_special_tokens
        ).ids
        return found

    def get_chat_template(self, template: str | None = None, tools: Any = None) -> str:
        """Return the template. Raises ValueError where there is none."""
        if self.chat_template is None:
            raise ValueError("the tokenizer has no chat template")
        return self.chat_template


def plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """Return the tokenizer of a directory; None where transformers has to make it."""
    settings = _object(folder / "tokenizer_config.json")
    if settings is None or settings.get("tokenizer_class") not in _CLASSES:
        return None
    if any((folder / name).exists() for name in _OTHER_FILES) or "auto_map" in settings:
        return None
    # Classes have defaults for what is not named: null says that there is none.
    if not {"bos_token", "eos_token"} <= settings.keys() or settings.keys() - _NEUTRAL - {*_NAMED}:
        return None
    names = {k: settings[k] for k in _NAMED if settings.get(k) is not None}
    template = _template(folder, settings)
    if not all(isinstance(name, str) for name in names.values()) or template is NotImplemented:
        return None
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # the other way says what is wrong with it
        return None
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    if not special.issuperset(names.values()) or _samples(backend):
        return None
    return PlainTokenizer(backend, names, template)


def plain_config(folder: Path) -> Any:
    """Return the facts of a directory's config.json that need no class of transformers; None where
    they do."""
    found = _object(folder / "config.json")
    needed = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "model_type")
    # Text parts, lengths that RoPE stretches and code of the model's own are for its class.
    if found is None or not {*needed} <= found.keys() or "auto_map" in found:
        return None
    if any(isinstance(value, dict) for key, value in found.items() if key != "rope_parameters"):
        return None
    rope = found.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or found.get("rope_scaling") is not None:
        return None
    config = SimpleNamespace(**{key: found[key] for key in needed}, rope_parameters=rope)
    config.get_text_config = lambda: config
    return config


def _template(folder: Path, settings: dict[str, Any]) -> Any:
    """Return the chat template or None; NotImplemented where there are several."""
    file = folder / "chat_template.jinja"
    if (folder / "additional_chat_templates").exists():
        return NotImplemented
    if file.exists():
        return NotImplemented if settings.get("chat_template") else file.read_text("utf-8")
    found = settings.get("chat_template")
    return found if found is None or isinstance(found, str) else NotImplemented


def _samples(backend: Any) -> bool:
    model = backend.model
    return any(getattr(model, name, None) for name in ("dropout", "alpha", "nbest_size"))


def _object(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
