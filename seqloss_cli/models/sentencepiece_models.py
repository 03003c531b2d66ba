"""The tokenizer of a directory that has a SentencePiece model and no `tokenizer.json`.

transformers makes classes of such a file whose blanks and normalization are those of the class.
Here ids are those that the package `sentencepiece` gives. The parts of `tokenizers` that stand
beside it find control tokens, and are close to it: they normalize marks and half-width letters in
another way, and choose among equal scores in another order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import pack, unpack
from typing import Any

import numpy as np

from seqloss_cli.core.byte_spans import char_edges
from seqloss_cli.core.errors import RunError, load_extra
from seqloss_cli.core.records import Ints
from seqloss_cli.tokenization.vocabulary import any_of

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Types of pieces, here and in GGUF; 1 is an ordinary one, 5 an unused one."""
SPACE = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_UNIGRAM, _BPE = 1, 2
NO_PREFIX = b"\x1a\x02\x18\x00"
"""Put behind a model, it changes its normalizer: no blank before a text."""


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


def sentencepiece_backend(model: SentencePieceModel) -> Any:
    """Make a `tokenizers.Tokenizer` with the model's vocabulary, and ids that are nearly its own.

    Raises RunError for a kind of model that is not read.
    """
    from tokenizers import AddedToken, Tokenizer

    if model.algorithm not in (_UNIGRAM, _BPE) or model.marks_ends:
        raise refusal(model, "it is of a kind that is not read")
    backend = Tokenizer(_core(model))
    _normalize(backend, model)
    backend.decoder = spelled_decoder(model.adds_prefix)
    pieces = model.pieces_of(UNKNOWN, CONTROL)
    backend.add_tokens([AddedToken(p, special=True, normalized=False) for p in pieces])
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


def _normalize(backend: Any, model: SentencePieceModel) -> None:
    """Give a tokenizer what the model does to a text before it is cut."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.strips:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.adds_prefix:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if whole := model.pieces_of(USER_DEFINED):
        cuts = Regex("|".join(map(re.escape, whole)))
        backend.pre_tokenizer = pre_tokenizers.Split(cuts, "isolated")


def merges_by_score(ids: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """List the pairs of pieces that are a piece together, the highest score first."""
    # Any two neighbours that are a piece together are joined, by its score.
    found = [
        (-scores[n], n, cut, piece)
        for piece, n in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [(piece[:cut], piece[cut:]) for _, _, cut, piece in sorted(found)]


def spelled_decoder(prefix: bool) -> Any:
    """Make the decoder of a vocabulary with `▁` for blanks; with `prefix` the first was put in."""
    from tokenizers import decoders

    cut = [decoders.Strip(" ", 1, 0)] if prefix else []
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *cut]
    return decoders.Sequence(steps)


def serialized_model(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> bytes:
    """Make a file's bytes of a BPE model that changes no text, but for the prefix blank."""
    rows = (
        _field(1, _field(1, piece.encode()) + _field(2, score) + _field(3, kind))
        for piece, score, kind in zip(pieces, scores, types, strict=True)
    )
    trainer, normalizer = _field(3, _BPE) + _field(35, int(BYTE in types)), _field(4, 0)
    return b"".join(rows) + _field(2, trainer) + _field(3, normalizer)


def _field(key: int, value: bytes | int | float) -> bytes:
    """Return a field of a message: a number of seven bits a byte, a float32, or else its bytes."""
    if isinstance(value, bytes):
        return _seven_bits(key << 3 | 2) + _seven_bits(len(value)) + value
    if isinstance(value, float):
        return _seven_bits(key << 3 | 5) + pack("<f", value)
    return _seven_bits(key << 3) + _seven_bits(value)


def _seven_bits(number: int) -> bytes:
    more = _seven_bits(number >> 7) if number > 127 else b""
    return bytes([number & 127 | (128 if more else 0)]) + more


class SentencePieceIds:
    """The ids that the package `sentencepiece` gives, with the tokens that are found whole.

    `model` is its serialized model, `name` the file for messages, `backend` a
    `tokenizers.Tokenizer` with the tokens that texts are cut at. With `every_stretch` the prefix
    blank stands after these, too. Raises UsageError where the package is not installed, and
    RunError for a model that it cannot read.

    Shapes: N tokens of a text.
    """

    def __init__(self, name: str, model: bytes, backend: Any, every_stretch: bool) -> None:
        self._first = _processor(name, model)
        self._later = self._first if every_stretch else _processor(name, model + NO_PREFIX)
        self._backend, self._whole = backend, backend.get_added_tokens_decoder()
        # Offsets take memory, and most texts hold no such token.
        tokens = self._whole.values()
        normalized = any(token.normalized for token in tokens)
        self._may_hold = re.compile("") if normalized else any_of(t.content for t in tokens)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        found = list[int]()
        for token_id, start, end in self._stretches(text):
            processor = self._later if start else self._first
            found += processor.encode(text[start:end]) if token_id is None else [token_id]
        return found

    def encode_spans(self, text: str) -> tuple[list[int], Ints]:
        """Return the ids, and the characters that each was made of, shape N x 2."""
        ids, spans, edges = list[int](), list[Any](), char_edges(text.encode())
        for token_id, start, end in self._stretches(text):
            if token_id is not None:
                ids.append(token_id)
                spans.append((start, end))
                continue
            processor = self._later if start else self._first
            raw = processor.encode(text[start:end], out_type="serialized_proto")
            pieces = [dict(_fields(value)) for key, value in _fields(raw) if key == 2]
            places = np.array([(p.get(4, 0), p.get(5, 0)) for p in pieces], dtype=np.int64)
            chars = np.searchsorted(edges, places.reshape(-1, 2) + edges[start])
            # The last byte of a character has all of it, and those before it nothing.
            for n in range(len(pieces) - 2, -1, -1):
                if chars[n, 0] == chars[n, 1] and pieces[n][1].decode() in BYTES:
                    chars[n] = chars[n + 1]
            ids += [piece.get(2, 0) for piece in pieces]
            spans += chars.tolist()
        return ids, np.array(spans, dtype=np.int64).reshape(-1, 2)

    def _stretches(self, text: str) -> Iterator[tuple[int | None, int, int]]:
        """Yield the tokens that are found whole, and the stretches between them with None.

        Each with the characters [start, end) that it was made of.
        """
        at = 0
        if self._may_hold.search(text):
            as_text = self._backend.encode_special_tokens
            found = self._backend.encode(text, add_special_tokens=False)
            for token_id, (start, end) in zip(found.ids, found.offsets, strict=True):
                token, part = self._whole.get(token_id), text[start:end]
                # The unknown token is one of them, wherever it stands for something else.
                if token is None or (as_text and token.special):
                    continue
                if token.normalized or token.content in part:
                    if at < start:
                        yield None, at, start
                    yield token_id, start, end
                    at = end
        if at < len(text):
            yield None, at, len(text)


def require_pieces(model: SentencePieceModel, tokenizer: Any, texts: Sequence[str]) -> None:
    """Raise RunError where a tokenizer of transformers gives a text other pieces than the model."""
    processor = _processor(str(model.path), model.path.read_bytes())
    for text in texts:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
        if pieces != [processor.id_to_piece(n) for n in processor.encode(text)]:
            made = type(tokenizer).__name__
            raise refusal(model, f"{made} gives {text!r} other pieces than sentencepiece does")


def _processor(name: str, model: bytes) -> Any:
    package: Any = load_extra("sentencepiece", f"{name} (SentencePiece)", "sentencepiece")
    try:
        return package.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"{name}: sentencepiece cannot read it ({error})") from error


def refusal(model: SentencePieceModel, why: str) -> RunError:
    """Make the error that says why a model is not read."""
    return RunError(
        f"{model.path}: {why}; name a directory with a tokenizer.json of it with --tokenizer"
    )
