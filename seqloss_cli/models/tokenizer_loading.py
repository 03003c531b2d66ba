"""Load the tokenizer that a model was trained with, and notice when transformers gives another.

For many model types `AutoTokenizer` builds a class of its choice from a directory's vocabulary,
whose normalizer, pre-tokenizer and flags of added tokens are not those of the directory's own
`tokenizer.json`, without a word. Losses are then wrong by nats (seen: Llama 2's layout, 31.65
instead of 39.03 for ` lead`). Ids are always those of the file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.models import sentencepiece_models as spm
from seqloss_cli.models.files import (
    checkpoint_path,
    find_file,
    hub_error,
    hub_settings,
    require_whole_files,
)
from seqloss_cli.models.gguf import read_gguf
from seqloss_cli.models.gguf_vocabulary import gguf_tokenizer

_PARTS = ("normalizer", "pre_tokenizer", "decoder", "model")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_BESIDE = (*_TOKEN_FILES, "chat_template.jinja")
_NUMBERED_ANEW = "sentencepiece.bpe.model"
"""Name of models whose pieces have other ids: those of fairseq (XGLM)."""
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.model", _NUMBERED_ANEW)
"""Names of SentencePiece models; under the first, ids are the model's own, whatever the class."""
_PLAIN_CLASSES = (
    "None",
    "T5Tokenizer",
    "ReformerTokenizer",
    "LlamaTokenizer",
    "PreTrainedTokenizer",
)
"""Classes that change neither a model's ids nor the texts that it is given."""
_TEXTS = (
    *(" lead", "trail ", "two  blanks", "   three", "tab\tx", " \n x", "a\r\nb\n\n", "1234567"),
    *("日本語", "🐕‍🦺", "e\u0301 é ﬁ", "DON'T don't", "naïve_x(y);", "a\u00a0b\u3000c", "\u200bx"),
)
"""Texts at which tokenizers differ: blanks, line ends, digits, scripts, marks, compatibility."""
_AROUND = ("x{}dog", "{} x", "{}hello{}{}hello", "a {} ")
"""Texts around control tokens."""
_MOST_ODD = 4000
"""Pieces of a vocabulary that are tried, at most."""


def load_tokenizer(choice: ModelChoice) -> tuple[Any, list[str]]:
    """Load the tokenizer of a directory, GGUF file or hub name; returns it with warnings.

    Raises RunError when there is none.
    """
    name = checkpoint_path(choice.tokenizer or choice.name)
    revision = None if choice.tokenizer else choice.revision
    own_file = find_file(name, "tokenizer.json", choice.offline, revision)
    if own_file is not None:
        require_whole_files(own_file)
        loaded, warnings = _load_own(name, own_file, choice, revision)
    else:
        loaded, warnings = _load_made(name, choice, revision)
    # Asked twice, of the file and of what was made of it: the warning is the same.
    backend = getattr(loaded, "backend_tokenizer", None)
    return loaded, [*dict.fromkeys(warnings + _without_sampling(backend))]


def _load_made(name: str, choice: ModelChoice, revision: str | None) -> tuple[Any, list[str]]:
    """Load a tokenizer that is made of other files than a `tokenizer.json`."""
    if (file := read_gguf(name)) is not None:
        return gguf_tokenizer(file)
    if (model := _find_sentencepiece(name, choice, revision)) is not None:
        files = [find_file(name, file, choice.offline, revision) for file in _BESIDE]
        settings = _json(model.path.parent / "tokenizer_config.json")
        cls = str(settings.get("tokenizer_class")).removesuffix("Fast")
        # Code of the model's own knows how its vocabulary is used.
        has_code = choice.trust_remote_code and "AutoTokenizer" in settings.get("auto_map", {})
        is_plain = cls in _PLAIN_CLASSES and model.path.name != _NUMBERED_ANEW
        if not has_code and (is_plain or model.path.name == _SENTENCEPIECE[0]):
            return _load_sentencepiece(model, settings, [path for path in files if path]), []
    try:
        loaded = _automatic(name, choice, revision)
        # Some classes put control tokens of their own into a vocabulary that they did not find.
        no_words = len(loaded) <= len(loaded.all_special_tokens)
        empty = no_words or not loaded.encode("a b", add_special_tokens=False)
    except Exception as error:
        if model is not None:
            raise spm.refusal(model, f"{cls} is not read from such a file alone") from error
        gone = hub_error("tokenizer", name, revision, choice.offline, error)
        if isinstance(gone, UsageError) and not Path(name).exists():
            raise gone from error
        reason = _one_line(error)
        if reason.startswith("Couldn't instantiate"):  # and names packages that would not help
            reason = "transformers finds no vocabulary in it"
        raise RunError(
            f"no tokenizer could be loaded from {name}; name one with --tokenizer ({reason})"
        ) from error
    # Where the files are missing, transformers makes a tokenizer without a vocabulary.
    if empty and model is not None:
        raise spm.refusal(model, f"{cls} is not read from such a file alone")
    if empty:
        raise RunError(f"{name} has no tokenizer; name one with --tokenizer")
    # Where a class does not find its file, all is unknown to it. Those in Python ask the package.
    if model is not None and hasattr(loaded, "backend_tokenizer"):
        spm.require_pieces(model, loaded, _TEXTS)
    places = (find_file(name, file, choice.offline, revision) for file in _TOKEN_FILES)
    folder = next((place.parent for place in places if place is not None), None)
    return loaded, _without_invented(loaded, frozenset() if folder is None else _configured(folder))


def _without_invented(tokenizer: Any, configured: Collection[str]) -> list[str]:
    """Take away the names of tokens that only the class knows; returns a warning of such."""
    # Code of the model's own knows what it names.
    if not type(tokenizer).__module__.startswith("transformers."):
        return []
    # A model whose embedding is wider than its vocabulary would be fed a row that nobody trained.
    found = {
        kind: token
        for kind in _SPECIAL_NAMES
        if (token := getattr(tokenizer, kind, None)) and token not in configured
        if (tokenizer.convert_tokens_to_ids(token) or 0) >= tokenizer.vocab_size
    }
    for kind in found:
        setattr(tokenizer, kind, None)
    if not found:
        return []
    names = ", ".join(map(repr, dict.fromkeys(found.values())))
    return [
        f"{type(tokenizer).__name__} names {names}, which no file of the tokenizer has: left out"
    ]


def _find_sentencepiece(
    name: str, choice: ModelChoice, revision: str | None
) -> spm.SentencePieceModel | None:
    for file in _SENTENCEPIECE:
        if (path := find_file(name, file, choice.offline, revision)) is not None:
            require_whole_files(path)
            return spm.read_sentencepiece(path)
    return None


def _load_sentencepiece(
    model: spm.SentencePieceModel, settings: dict[str, Any], beside: Sequence[Path]
) -> Any:
    """Make the tokenizer of a SentencePiece model and the settings in the files beside it."""
    from transformers import PreTrainedTokenizerFast

    # Without `legacy` text after a control token gets no blank, unless blanks are stripped.
    every_stretch = settings.get("legacy") is not False or model.strips
    backend = spm.sentencepiece_backend(model)
    names = {name: piece for name, piece in model.named.items() if not settings.get(name)}
    with TemporaryDirectory(prefix="seqloss-") as folder:
        backend.save(str(Path(folder) / "tokenizer.json"))
        for path in beside:
            (Path(folder) / path.name).write_bytes(path.read_bytes())
        adds_bos = settings.get("add_bos_token", True)
        made = PreTrainedTokenizerFast.from_pretrained(folder, add_bos_token=adds_bos, **names)
    raw = model.path.read_bytes()
    found = spm.SentencePieceIds(str(model.path), raw, made.backend_tokenizer, every_stretch)
    made.sentencepiece_ids = found
    return made


def _automatic(name: str, choice: ModelChoice, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, **{**hub_settings(choice), "revision": revision})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


# -- directories with a tokenizer.json -----------------------------------------------------------


def _load_own(
    name: str, own_file: Path, choice: ModelChoice, revision: str | None
) -> tuple[Any, list[str]]:
    """Load AutoTokenizer's choice where it is the file's tokenizer, else the file's."""
    own = _read(own_file)
    sampled = _without_sampling(own)
    configured = _configured(own_file.parent)
    try:
        loaded = _automatic(name, choice, revision)
    except Exception as error:
        why = f"AutoTokenizer cannot load {name} ({_one_line(error)})"
        loaded, warnings = None, [f"{why}: its tokenizer.json is used as it is"]
    else:
        if not (differences := _differences(loaded, own, configured)):
            return loaded, sampled + _moved(loaded, own_file.parent)
        warnings = [
            f"AutoTokenizer chose {type(loaded).__name__}, which differs from the directory's own "
            f"tokenizer.json in {', '.join(differences)}{_example(loaded, own)}: {own_file} is "
            "used instead (--tokenizer names another)"
        ]
    rebuilt = _rebuild(name, own, own_file, loaded, configured)
    return rebuilt, warnings + sampled + _moved(rebuilt, own_file.parent)


def _differences(loaded: Any, own: Any, configured: Collection[str]) -> list[str]:
    """Name what of a tokenizer is not as in the directory's own file."""
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        return ["how it encodes texts"] if _differing_text(loaded, own) is not None else []
    found = [part for part in _PARTS if not _same(getattr(own, part), getattr(backend, part))]
    own_tokens, tokens = own.get_added_tokens_decoder(), backend.get_added_tokens_decoder()
    for token_id, token in own_tokens.items():
        other = tokens.get(token_id)
        if other is None or other.content != token.content:
            found.append(f"the token {token.content!r}")
        elif flags := [f for f in _FLAGS if getattr(token, f) != getattr(other, f)]:
            found.append(f"the flag {flags[0]!r} of {token.content!r}")
        elif token.special and not other.special:
            found.append(f"the flag 'special' of {token.content!r}")
    # Tokens that tokenizer_config.json and its like name are no additions of transformers.
    more = [token.content for token_id, token in tokens.items() if token_id not in own_tokens]
    found += [f"the token {content!r}" for content in more if content not in configured]
    return found[:3]


def _same(part: Any, other: Any) -> bool:
    """Tell whether two parts of tokenizers are the same by construction."""
    if part is None or other is None:
        return part is other
    # Equal bytes need no parsing, which takes long for a large vocabulary.
    states = part.__getstate__(), other.__getstate__()
    return bool(states[0] == states[1]) or _plain(json.loads(states[0])) == _plain(
        json.loads(states[1])
    )


def _plain(part: Any) -> Any:
    """Return a part without what makes no difference to ids and their bytes."""
    if isinstance(part, dict):
        # Offsets are never trimmed here; classes write "" where a file has null.
        kept = {k: v for k, v in part.items() if k != "trim_offsets" and v not in (None, "")}
        return kept if part.get("type") == "BPE" else {k: _plain(v) for k, v in kept.items()}
    return [_plain(item) for item in part] if isinstance(part, list) else part


def _example(loaded: Any, own: Any) -> str:
    text = _differing_text(loaded, own)
    return "" if text is None else f" (so {text!r} has other ids)"


def _differing_text(loaded: Any, own: Any) -> str | None:
    """Return a text to which the two give different ids; None when none was found."""
    control = [token.content for token in own.get_added_tokens_decoder().values()][:20]
    around = (text.format(*[name] * 3) for text in _AROUND for name in control)
    odd = (piece for piece in own.get_vocab() if not piece.isalnum() and piece not in control)
    texts: Iterator[str] = chain(_TEXTS, around, islice(odd, _MOST_ODD))
    for text in texts:
        ids = own.encode(text, add_special_tokens=False).ids
        try:
            same = [*loaded.encode(text, add_special_tokens=False)] == ids
        except Exception:  # a class without the unknown token that it is made for
            same = False
        if not same:
            return text
    return None


def _rebuild(name: str, own: Any, own_file: Path, loaded: Any, configured: Collection[str]) -> Any:
    """Make the file's tokenizer, with what the directory's configuration says beside it."""
    from transformers import PreTrainedTokenizerFast

    own_tokens = own.get_added_tokens_decoder().values()
    known = {*configured, *(token.content for token in own_tokens)}
    # The class that AutoTokenizer chose brings defaults, such as <|endoftext|>, that the model may
    # not have: transformers would append them to the vocabulary.
    settings = _json(own_file.parent / "tokenizer_config.json")
    names = {k: getattr(loaded, k, None) or settings.get(k) for k in _SPECIAL_NAMES}
    names = {k: n.get("content") if isinstance(n, dict) else n for k, n in names.items()}
    special = {kind: name for kind, name in names.items() if name in known}
    try:
        rebuilt = PreTrainedTokenizerFast.from_pretrained(str(own_file.parent), **special)
    except Exception:  # the configuration may be why AutoTokenizer failed
        special["chat_template"] = settings.get("chat_template")
        rebuilt = PreTrainedTokenizerFast(tokenizer_file=str(own_file), **special)
    if loaded is not None:
        rebuilt.chat_template = getattr(loaded, "chat_template", None)
    # Flags of a token are those of the file, whatever tokenizer_config.json says.
    rebuilt.backend_tokenizer.add_tokens([*own_tokens])
    return rebuilt


def _moved(tokenizer: Any, folder: Path) -> list[str]:
    """Return a warning where a token has another id than the directory's configuration gives it."""
    settings, added = _json(folder / "tokenizer_config.json"), _json(folder / "added_tokens.json")
    tokens = settings.get("added_tokens_decoder")
    declared = {
        token["content"]: int(token_id)
        for token_id, token in (tokens.items() if isinstance(tokens, dict) else ())
        if isinstance(token, dict)
    } | added
    ids = {content: tokenizer.convert_tokens_to_ids(content) for content in declared}
    moved = [content for content, token_id in declared.items() if ids[content] != token_id]
    return [
        f"{folder} gives the token {content!r} the id {declared[content]}, its tokenizer "
        f"{ids[content]}: texts that hold it get the latter"
        for content in moved[:1]
    ]


def _read(own_file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(own_file))
    except Exception as error:
        raise RunError(f"{own_file} cannot be read: {error}") from error


def _configured(folder: Path) -> frozenset[str]:
    """Return every string, keys included, that the directory's configuration of tokens holds."""
    return frozenset(chain.from_iterable(_strings(_json(folder / name)) for name in _TOKEN_FILES))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings, chain(value, value.values())))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings, value))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # AutoTokenizer says what is wrong with it
        return {}
    return found if isinstance(found, dict) else {}


def _without_sampling(backend: Any) -> list[str]:
    """Switch off what makes ids random; returns a warning where there is such."""
    # For training: some published files still hold it, and each run would give other losses.
    model = getattr(backend, "model", None)
    sampled = [name for name in ("dropout", "alpha", "nbest_size") if getattr(model, name, None)]
    for name in sampled:
        setattr(model, name, None)
    if not sampled:
        return []
    return [f"the tokenizer samples how it cuts texts ({', '.join(sampled)}): switched off"]
