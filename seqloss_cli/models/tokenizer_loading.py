"""Load the tokenizer that a model was trained with, and notice when transformers gives another.

For some model types `AutoTokenizer` replaces a directory's own `tokenizer.json` by a class of its
choice, or adds tokens to it, without a word; losses are then wrong by nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seqloss_cli.core.errors import RunError
from seqloss_cli.models.gguf import doubts_of_tokenizer, in_folder, is_gguf, read_gguf

_PROBE = "The  quick brown\n fox's 12345 déjà-vu 日本語 🐕 can't\t_x(y);"
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_CONFIGURATIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(
    name: str, revision: str | None, trust_remote_code: bool, offline: bool
) -> tuple[Any, str | None]:
    """The tokenizer of a directory or hub name, and a warning when it is not AutoTokenizer's.

    Raises RunError when there is none.
    """
    from transformers import AutoTokenizer

    file = read_gguf(name) if is_gguf(name) else None
    try:
        with _alone(name) as place:
            folder, source = in_folder(place)
            loaded = AutoTokenizer.from_pretrained(
                folder,
                revision=revision,
                trust_remote_code=trust_remote_code,
                local_files_only=offline,
                **source,
            )
        empty = not loaded.encode("a b", add_special_tokens=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        own_file = _own_file(name, revision, offline)
        if own_file.is_file():
            why = f"AutoTokenizer cannot load {name} ({reason})"
            return _from_file(own_file, None), f"{why}: its tokenizer.json is used as it is"
        raise RunError(
            f"no tokenizer could be loaded from {name}; name one with --tokenizer ({reason})"
        ) from error
    if empty:  # transformers makes an empty one where the files are missing
        raise RunError(f"{name} has no tokenizer; name one with --tokenizer")
    if file is not None:
        return loaded, doubts_of_tokenizer(file, loaded)
    own_file = _own_file(name, revision, offline)
    difference = difference_from_own(loaded, own_file)
    if difference is None:
        return loaded, None
    return (
        _from_file(own_file, loaded),
        f"AutoTokenizer chose {type(loaded).__name__}, {difference}: {own_file} is used instead "
        "(--tokenizer names another)",
    )


@contextmanager
def _alone(name: str) -> Iterator[str]:
    """A GGUF file in a folder of its own: else a tokenizer that lies beside it, of whatever model,
    would be taken in its place."""
    if not is_gguf(name):
        yield name
        return
    with TemporaryDirectory(prefix="seqloss-") as folder:
        link = Path(folder) / "model.gguf"
        link.symlink_to(Path(name).resolve())
        yield str(link)


def _own_file(name: str, revision: str | None, offline: bool) -> Path:
    """The `tokenizer.json` of a directory or of a hub name; it may not exist."""
    if not Path(name).is_dir():
        from transformers.utils import cached_file

        try:
            found = cached_file(name, "tokenizer.json", revision=revision, local_files_only=offline)
        except OSError:  # the hub has none under this name
            found = None
        if found is not None:
            return Path(found)
    return Path(name) / "tokenizer.json"


def difference_from_own(loaded: Any, own_file: Path) -> str | None:
    """How a tokenizer differs from the directory's own `tokenizer.json`; None when it does not."""
    if not own_file.is_file() or getattr(loaded, "backend_tokenizer", None) is None:
        return None
    own = _read(own_file)
    backend = loaded.backend_tokenizer
    encoded = [t.encode(_PROBE, add_special_tokens=False).ids for t in (own, backend)]
    if encoded[0] != encoded[1]:
        return "which encodes text differently from the directory's own tokenizer.json"
    known = own.get_vocab(with_added_tokens=True)
    configured = _configured_text(own_file.parent)
    strange = [
        token
        for token, token_id in backend.get_vocab(with_added_tokens=True).items()
        if known.get(token) != token_id and (token in known or token not in configured)
    ]
    return f"which adds or moves tokens ({strange[0]!r})" if strange else None


def _from_file(own_file: Path, loaded: Any) -> Any:
    """The file's tokenizer, with those special names of the loaded one that the directory knows."""
    from transformers import PreTrainedTokenizerFast

    known = _read(own_file).get_vocab(with_added_tokens=True)
    configured = _configured_text(own_file.parent)
    named = {name: getattr(loaded, name, None) for name in _SPECIAL_NAMES}
    special = {
        name: token
        for name, token in named.items()
        if token and (token in known or token in configured)
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
    """Everything that the directory's configuration says of tokens."""
    paths = [folder / name for name in _CONFIGURATIONS]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
