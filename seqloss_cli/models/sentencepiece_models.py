"""The tokenizer of a directory that has a SentencePiece model and no `tokenizer.json`.

transformers makes classes of such a file whose blanks and normalization are those of the class.
Here each part follows from the file's fields, and the ids are held to those of the package
`sentencepiece`: a vocabulary that cannot be had right is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from struct import unpack
from typing import Any

from seqloss_cli.core.errors import RunError, load_extra
from seqloss_cli.models.gguf_vocabulary import (
    BYTE,
    CONTROL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    merges_by_score,
    spelled_decoder,
)

_UNIGRAM, _BPE = 1, 2
_MOST_PIECES = 4000
"""Pieces of a vocabulary that are tried, at most."""


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """A model file as it was read; the types of its pieces are those of GGUF, too."""

    path: Path
    pieces: list[str]
    scores: list[float]
    types: list[int]
    algorithm: int
    named: dict[str, str]
    """Pieces by `bos_token`, `eos_token`, `unk_token`, `pad_token`."""
    charsmap: bytes
    """The compiled rules by which a text is normalized; empty where there are none."""
    adds_prefix: bool
    strips: bool
    """Blanks at the ends of a text, and all but one of several, are taken out."""
    marks_ends: bool
    """A blank belongs to the word before it."""

    def pieces_of(self, *types: int) -> list[str]:
        """Pieces of some types, the longest first."""
        found = (p for p, kind in zip(self.pieces, self.types, strict=True) if kind in types)
        return sorted(found, key=len, reverse=True)


def read_sentencepiece(path: Path) -> SentencePieceModel | None:
    """Read a model file; None for a file that is none, such as one in tiktoken's format."""
    try:
        parts = [*_fields(path.read_bytes())]
        pieces = [dict(_fields(value)) for key, value in parts if key == 1]
        trainer, normalizer = (dict(_fields(dict(parts)[key])) for key in (2, 3))
        texts = [piece[1].decode() for piece in pieces]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    ids = {
        f"{name}_token": trainer.get(key, default)
        for name, key, default in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1))
    }
    return SentencePieceModel(
        path=path,
        pieces=texts,
        scores=[unpack("<f", piece.get(2, bytes(4)))[0] for piece in pieces],
        types=[piece.get(3, 1) for piece in pieces],
        algorithm=trainer.get(3, _UNIGRAM),
        named={name: texts[n] for name, n in ids.items() if 0 <= n < len(texts)},
        charsmap=normalizer.get(2, b""),
        adds_prefix=bool(normalizer.get(3, True)),
        strips=bool(normalizer.get(4, True)),
        marks_ends=bool(trainer.get(24, False)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message of protocol buffers: numbers as int, all else as bytes."""
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        kind = tag & 7
        if kind == 0:
            value: Any
            value, at = _number(message, at)
        else:
            size, at = _number(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if at + size > len(message):
                raise ValueError("it ends within a field")
            value, at = message[at : at + size], at + size
        yield tag >> 3, value


def _number(message: bytes, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; returns it and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def sentencepiece_backend(model: SentencePieceModel, every_stretch: bool) -> Any:
    """Make a `tokenizers.Tokenizer` with the model's ids.

    With `every_stretch` the prefix blank stands after control tokens, too, else before a text only.
    Raises RunError for a kind of model that is not read.
    """
    from tokenizers import AddedToken, Tokenizer

    if model.algorithm not in (_UNIGRAM, _BPE) or model.marks_ends:
        raise _refusal(model, "it is of a kind that is not read")
    backend = Tokenizer(_core(model))
    _normalize(backend, model, every_stretch)
    backend.decoder = spelled_decoder(model.adds_prefix)
    backend.add_tokens(
        [
            AddedToken(piece, special=True, normalized=False)
            for piece in model.pieces_of(UNKNOWN, CONTROL)
        ]
    )
    return backend


def _core(model: SentencePieceModel) -> Any:
    """Make what cuts a normalized text into pieces."""
    from tokenizers import models

    falls_back = BYTE in model.types
    if model.algorithm == _BPE:
        ids = {piece: n for n, piece in enumerate(model.pieces)}
        return models.BPE(
            ids,
            merges_by_score(ids, model.scores),
            unk_token=model.named.get("unk_token"),
            fuse_unk=True,
            byte_fallback=falls_back,
            # Pieces of the user's, which `_normalize` cuts out, are whole without merges.
            ignore_merges=USER_DEFINED in model.types,
        )
    scored = [*zip(model.pieces, model.scores, strict=True)]
    return models.Unigram(scored, model.types.index(UNKNOWN), falls_back)


def _normalize(backend: Any, model: SentencePieceModel, every_stretch: bool) -> None:
    """Give a tokenizer what the model does to a text before it is cut."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.strips:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.adds_prefix and every_stretch:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    cuts: list[Any] = []
    if model.adds_prefix and not every_stretch:
        # Put in as a blank: Metaspace would put none before a text that begins with its own mark.
        cuts.append(pre_tokenizers.Metaspace(" ", "first", split=False))
        cuts.append(pre_tokenizers.Metaspace(SPACE, "never", split=False))
    whole = model.pieces_of(USER_DEFINED)
    if BYTE in model.types and (whole or model.algorithm == _UNIGRAM):
        # A piece that stands for a byte is not found by its spelling.
        cuts.append(pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "isolated"))
    if whole:
        cuts.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, whole))), "isolated"))
    if cuts:
        backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)


def require_same_ids(model: SentencePieceModel, backend: Any, texts: Sequence[str]) -> None:
    """Raise RunError where a text, or a piece of the vocabulary, has other ids in sentencepiece.

    Raises UsageError where that is not installed.
    """
    package: Any = load_extra("sentencepiece", f"{model.path} (SentencePiece)", "sentencepiece")
    processor = package.SentencePieceProcessor(model_file=str(model.path))
    control = model.pieces_of(UNKNOWN, CONTROL)
    user_defined = (f"a{piece}b {piece} c" for piece in model.pieces_of(USER_DEFINED))
    odd = (p.replace(SPACE, " ") for p in model.pieces_of(1) if not p.strip(SPACE).isalnum())
    for text in chain(texts, islice(chain(user_defined, odd), _MOST_PIECES)):
        if any(piece in text for piece in control):
            continue
        if backend.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise _refusal(model, f"{text!r} would have other ids than sentencepiece gives it")


def _refusal(model: SentencePieceModel, why: str) -> RunError:
    return RunError(
        f"{model.path}: {why}; name a directory with a tokenizer.json of it with --tokenizer"
    )
