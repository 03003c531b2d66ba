"""The tokenizer that a GGUF file describes, with the ids that llama.cpp gives.

transformers makes one, too, of a class whose parts are that class's own: it drops a blank before a
text, say, where the file has a piece for it. Here each part follows from the file's fields. A file
holds less than a `tokenizer.json` does (no normalizer): `--tokenizer DIR` names the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from seqloss_cli.core.errors import RunError
from seqloss_cli.models import sentencepiece_models as spm
from seqloss_cli.models.gguf import GgufFile
from seqloss_cli.tokenization.vocabulary import is_in_brackets

_ALWAYS_CONTROL = frozenset(
    ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>")
) | {"<|end|>", "<end_of_turn>", "<end_of_utterance>", "<EOT>", "[EOT]", "[EOS]", "<turn|>"}
"""Ends of texts and turns, which llama.cpp takes for control tokens whatever their type."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_ENDS}"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = _QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"^\s\p{L}", r"^\s\p{L}\p{M}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_ENDS}"
)
_TEKKEN = _GPT4O.replace(f"{_SHORT}?", "").replace("{1,3}", "")
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*{_ENDS}"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_CUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"), (_GPT2,)),
    **dict.fromkeys(("gigachat", "a.x-4.0", "mellum", "mpt", "olmo", "jais", "trillion"), (_GPT2,)),
    **dict.fromkeys(("granite-docling", "exaone4"), (_GPT2,)),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("codeshell", "exaone", "minerva-7b", "mellum2"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), (_LLAMA3,)),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2", "jina-v5-nano"), (_LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), (_QWEN2,)),
    "qwen35": (_QWEN35,),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_GPT4O,)),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK),
    ),
    "falcon": (r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]"),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), (_BLOOM,)),
    "viking": (_BLOOM, r"\p{N}"),
}
"""Patterns that a text is cut by, one after another, by the names of `tokenizer.ggml.pre`: those of
the `tokenizer.json` of the models that these are named after."""
_WHOLE_WORDS = frozenset(
    ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
) | {"jina-v5-nano", "tekken"}
"""Names of those that take a word which is a piece whole, whatever the merges, and add a BOS."""


def gguf_tokenizer(file: GgufFile) -> tuple[Any, list[str]]:
    """Make the tokenizer of a file; returns it with warnings.

    Raises RunError for a file without a vocabulary, and for one that is not read here.
    """
    from transformers import PreTrainedTokenizerFast

    fields = file.tokenizer
    pieces: list[str] = fields.get("ggml.tokens", [])
    types: list[int] = fields.get("ggml.token_type") or [1] * len(pieces)
    types = [
        spm.CONTROL if kind == 1 and piece in _ALWAYS_CONTROL else kind
        for piece, kind in zip(pieces, types, strict=False)
    ]
    kind = fields.get("ggml.model")
    if not pieces or kind in (None, "none", "no_vocab"):
        raise RunError(f"{file.path} has no tokenizer; name one with --tokenizer")
    if kind not in ("llama", "gpt2"):
        raise RunError(f"{file.path} has a vocabulary of the kind {kind!r}, which {_UNREAD}")
    if len({*pieces}) < len(pieces) or len(types) < len(pieces):
        raise RunError(f"{file.path} has a vocabulary with a piece twice, or without its type")
    backend = (_sentencepiece if kind == "llama" else _byte_level)(file, pieces, types)
    backend.add_tokens([*_whole_tokens(file, pieces, types)])
    names, warnings = _names(file, pieces, types)
    adds_bos = fields.get("ggml.add_bos_token", kind == "llama" or _pre(file) in _WHOLE_WORDS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=bool(adds_bos) and "bos_token" in names,
        chat_template=fields.get("chat_template"),
        **names,
    )
    if kind == "llama":
        _break_ties(file, pieces, types, tokenizer)
    doubt = ", and llama.cpp cuts marks and capitals beyond ASCII elsewhere"
    doubt = doubt if _CUTS.get(_pre(file) or "") in ((_GPT4O,), (_TEKKEN,)) else ""
    made = f"the tokenizer is made anew from {file.path}{doubt}"
    return tokenizer, [f"{made}: --tokenizer DIR takes the model's own", *warnings]


_UNREAD = "is not read from such files: name the model's own tokenizer with --tokenizer DIR"


def _sentencepiece(file: GgufFile, pieces: Sequence[str], types: Sequence[int]) -> Any:
    """Make a SentencePiece model's tokenizer, whose merges follow from the scores."""
    from tokenizers import Tokenizer, models, normalizers

    ids = {piece: n for n, piece in enumerate(pieces)}
    unknown = file.tokenizer.get("ggml.unknown_token_id", 0)
    backend = Tokenizer(
        models.BPE(
            ids,
            spm.merges_by_score(ids, file.tokenizer.get("ggml.scores") or [0.0] * len(pieces)),
            unk_token=pieces[unknown] if unknown < len(pieces) else None,
            fuse_unk=True,
            byte_fallback=True,  # llama.cpp finds them by their names, whatever their types
        )
    )
    # A blank before each stretch of text, the first and those after whole tokens: one that begins
    # with a blank gets a second one.
    prefix = file.tokenizer.get("ggml.add_space_prefix", True)
    put_in = [normalizers.Prepend(spm.SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*put_in, normalizers.Replace(" ", spm.SPACE)])
    backend.decoder = spm.spelled_decoder(prefix)
    return backend


def _break_ties(file: GgufFile, pieces: Sequence[str], types: Sequence[int], made: Any) -> None:
    """Have ids of `sentencepiece`, which joins as llama.cpp does, where scores are equal.

    Of such neighbours those that stand first are joined; merges of `tokenizers` have an order.
    """
    scores = file.tokenizer.get("ggml.scores") or [0.0] * len(pieces)
    joined = [s for s, piece, t in zip(scores, pieces, types, strict=True) if t == 1 and piece[1:]]
    if len({*joined}) == len(joined):
        return
    unknown, bytes_there = file.tokenizer.get("ggml.unknown_token_id", 0), {*spm.BYTES} <= {*pieces}
    kinds = [spm.BYTE if bytes_there and piece in spm.BYTES else 1 for piece in pieces]
    kinds[unknown if unknown < len(kinds) else 0] = spm.UNKNOWN
    prefix = file.tokenizer.get("ggml.add_space_prefix", True)
    model = spm.serialized_model(pieces, scores, kinds) + (b"" if prefix else spm.NO_PREFIX)
    name = f"{file.path}, where pieces have equal scores"
    made.sentencepiece_ids = spm.SentencePieceIds(name, model, made.backend_tokenizer, True)


def _byte_level(file: GgufFile, pieces: Sequence[str], types: Sequence[int]) -> Any:
    """Make a tokenizer of byte-level BPE, whose merges the file lists."""
    from tokenizers import Tokenizer, decoders, models

    # A merge is two pieces with a blank between them; the first may be that blank's own.
    merges = [merge.partition(" ")[::2] for merge in file.tokenizer.get("ggml.merges", [])]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    whole = _pre(file) in _WHOLE_WORDS
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    backend.pre_tokenizer = _pre_tokenizer(file)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre(file: GgufFile) -> str | None:
    name: str | None = file.tokenizer.get("ggml.pre")
    return name


def _pre_tokenizer(file: GgufFile) -> Any:
    """Make what cuts texts into words. Raises RunError where it is not known."""
    from tokenizers import Regex, pre_tokenizers

    name = _pre(file)
    if (patterns := _CUTS.get(name or "")) is None:
        what = "does not say how it cuts texts" if name is None else f"cuts texts as {name!r} does"
        raise RunError(f"{file.path} {what}, which {_UNREAD}")
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, level])


def _whole_tokens(file: GgufFile, pieces: Sequence[str], types: Sequence[int]) -> Iterator[Any]:
    """Yield the tokens that are found in a text as they are, before it is cut."""
    from tokenizers import AddedToken

    # llama.cpp's rule for what the format has no field for.
    is_phi3 = re.search("phi-?3", file.name.lower()) is not None
    for piece, kind in zip(pieces, types, strict=False):
        if kind in (spm.UNKNOWN, spm.CONTROL, spm.USER_DEFINED):
            cuts_right = is_phi3 and piece not in ("<unk>", "<s>", "<|endoftext|>")
            special = kind != spm.USER_DEFINED
            yield AddedToken(piece, special=special, normalized=False, rstrip=cuts_right)


def _names(
    file: GgufFile, pieces: Sequence[str], types: Sequence[int]
) -> tuple[dict[str, str], list[str]]:
    """Return the tokens that the file names, and warnings about those that are words."""
    names, warnings = dict[str, str](), list[str]()
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for kind, key in keys.items():
        token_id = file.tokenizer.get(f"ggml.{key}_token_id")
        if token_id is None or not 0 <= token_id < len(pieces):
            continue
        piece = pieces[token_id]
        if types[token_id] in (spm.UNKNOWN, spm.CONTROL, spm.USER_DEFINED) or is_in_brackets(piece):
            names[f"{kind}_token"] = piece
        else:
            said = f"{file.path} names {piece!r} as {key}_token_id, no control token: left out"
            warnings.append(said)
    return names, warnings
