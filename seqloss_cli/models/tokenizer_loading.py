"""Load the tokenizer that a model was trained with, and notice when transformers gives another.

For some model types `AutoTokenizer` replaces a directory's own `tokenizer.json` by a class of its
choice, or adds tokens to it, without a word; losses are then wrong by nats (seen: model type qwen2,
5.86 instead of 1.38).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seqloss_cli.core.errors import RunError
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.models.files import checkpoint_path, find_file, hub_settings, is_gguf
from seqloss_cli.models.gguf import gguf_source, read_gguf, tokenizer_warning

_PROBE = "The  quick brown\n fox's 12345 déjà-vu 日本語 🐕 can't\t_x(y);"
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(choice: ModelChoice) -> tuple[Any, list[str]]:
    """Load the tokenizer of a directory, GGUF file or hub name; returns it with warnings.

    Raises RunError when there is none.
    """
    from transformers import AutoTokenizer

    name = checkpoint_path(choice.tokenizer or choice.name)
    revision = None if choice.tokenizer else choice.revision
    file = read_gguf(name)
    try:
        with _isolated(name) as place:
            folder, source = gguf_source(place)
            settings = {**hub_settings(choice), "revision": revision, **source}
            loaded = AutoTokenizer.from_pretrained(folder, **settings)
        empty = not loaded.encode("a b", add_special_tokens=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        own_file = find_file(name, "tokenizer.json", choice.offline, revision)
        if own_file is not None:
            why = f"AutoTokenizer cannot load {name} ({reason})"
            return _from_file(own_file, None), [f"{why}: its tokenizer.json is used as it is"]
        raise RunError(
            f"no tokenizer could be loaded from {name}; name one with --tokenizer ({reason})"
        ) from error
    # Where the files are missing, transformers makes a tokenizer without a vocabulary.
    if empty:
        raise RunError(f"{name} has no tokenizer; name one with --tokenizer")
    if file is not None:
        return loaded, [tokenizer_warning(file, loaded)]
    own_file = find_file(name, "tokenizer.json", choice.offline, revision)
    if own_file is None or (difference := _difference(loaded, own_file)) is None:
        return loaded, []
    return _from_file(own_file, loaded), [
        f"AutoTokenizer chose {type(loaded).__name__}, {difference}: {own_file} is used instead "
        "(--tokenizer names another)"
    ]


@contextmanager
def _isolated(name: str) -> Iterator[str]:
    """Give a GGUF file a folder of its own; other names stay as they are."""
    if not is_gguf(name):
        yield name
        return
    # In its own folder AutoTokenizer would take a tokenizer that lies beside it, of any model.
    with TemporaryDirectory(prefix="seqloss-") as folder:
        link = Path(folder) / "model.gguf"
        link.symlink_to(Path(name).resolve())
        yield str(link)


def _difference(loaded: Any, own_file: Path) -> str | None:
    """Describe how a tokenizer differs from the directory's own file; None when it does not."""
    if getattr(loaded, "backend_tokenizer", None) is None:
        return None
    own = _read(own_file)
    backend = loaded.backend_tokenizer
    encoded = [t.encode(_PROBE, add_special_tokens=False).ids for t in (own, backend)]
    if encoded[0] != encoded[1]:
        return "which encodes text differently from the directory's own tokenizer.json"
    # Tokens that tokenizer_config.json and its like name are no additions of transformers.
    known = own.get_vocab(with_added_tokens=True)
    configured = _configured_text(own_file.parent)
    strange = [
        token
        for token, token_id in backend.get_vocab(with_added_tokens=True).items()
        if known.get(token) != token_id and (token in known or token not in configured)
    ]
    return f"which adds or moves tokens ({strange[0]!r})" if strange else None


def _from_file(own_file: Path, loaded: Any) -> Any:
    """Make the file's tokenizer, with the special tokens of the loaded one that are the model's."""
    from transformers import PreTrainedTokenizerFast

    known = _read(own_file).get_vocab(with_added_tokens=True)
    configured = _configured_text(own_file.parent)
    # The class that AutoTokenizer chose brings defaults, such as <|endoftext|>, that the model may
    # not have: transformers would append them to the vocabulary.
    special = {
        name: token
        for name in _SPECIAL_NAMES
        if (token := getattr(loaded, name, None)) and (token in known or token in configured)
    }
    rebuilt = PreTrainedTokenizerFast(tokenizer_file=str(own_file), **special)
    rebuilt.chat_template = getattr(loaded, "chat_template", None)
    return rebuilt


def _read(own_file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(own_file))
    except Exception as error:
        raise RunError(f"{own_file} cannot be read: {error}") from error


def _configured_text(folder: Path) -> str:
    """Return everything that the directory's configuration says of tokens."""
    paths = [folder / name for name in _TOKEN_FILES]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
