"""Tokenizers in the layouts that published directories have, trained on a few lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "The quick brown fox jumps over the lazy dog; lead 2023 and 650841823.\n\nhello don't I'm",
    "日本語のテキスト naïve café 🐕 def f(x):\n\treturn x + 1\r\n  two   three",
] * 4
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_REPLACE = normalizers.Replace(" ", "▁")
_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _spelled(normalizer: Any, pre: Any, decoder: Any, special: Sequence[str]) -> Tokenizer:
    """As SentencePiece: `▁` for blanks, and a piece for each byte."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    for name, part in (("normalizer", normalizer), ("pre_tokenizer", pre), ("decoder", decoder)):
        if part is not None:
            setattr(made, name, part)
    return _trained(made, [*special, *BYTES], 560, special)


def _byte_level(split: str | None = None, normalizer: Any = None) -> Tokenizer:
    made = Tokenizer(models.BPE())
    if normalizer is not None:
        made.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    cut = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, level]) if cut else level
    made.decoder = decoders.ByteLevel()
    special = ("<unk>", "<s>", "</s>")
    return _trained(made, special, 330, special, pre_tokenizers.ByteLevel.alphabet())


def _trained(
    made: Tokenizer,
    first: Sequence[str],
    size: int,
    special: Sequence[str],
    alphabet: Sequence[str] = (),
) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*first], initial_alphabet=[*alphabet], show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    parts = json.loads(made.to_str())
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["content"] in special]
    for token in parts["added_tokens"]:
        token["normalized"] = False
    return Tokenizer.from_str(json.dumps(parts))


def _llama2() -> Tokenizer:
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), _REPLACE])
    made = _spelled(normalizer, None, _decoder(strip=True), ("<unk>", "<s>", "</s>"))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return made


def _decoder(strip: bool) -> Any:
    ends = [decoders.Strip(" ", 1, 0)] if strip else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    return decoders.Sequence(steps)


def _metaspace() -> Tokenizer:
    pre, decoder = (
        part("▁", "first", False) for part in (pre_tokenizers.Metaspace, decoders.Metaspace)
    )
    return _spelled(None, pre, decoder, ("<unk>", "<s>", "</s>"))


def _gemma() -> Tokenizer:
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    return _spelled(_REPLACE, split, _decoder(strip=False), ("<pad>", "</s>", "<s>", "<unk>"))


LAYOUTS: dict[str, Callable[[], Tokenizer]] = {
    "llama2": cache(_llama2),
    "metaspace": cache(_metaspace),
    "gemma": cache(_gemma),
    "gpt2": cache(_byte_level),
    "qwen2": cache(lambda: _byte_level(_DIGITS % "", normalizers.NFC())),
    "llama3": cache(lambda: _byte_level(_DIGITS % "{1,3}")),
}
