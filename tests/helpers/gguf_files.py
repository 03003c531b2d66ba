"""Small GGUF files, written as llama.cpp's converter writes those of a Llama."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer

from helpers.builders import byte_tokenizer, llama

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
N_BYTE_IDS = 260
"""Ids of `write_bytes`: those of `byte_tokenizer`, and two merges."""
PIECES = [
    *("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"),
    *("t", "h", "e", "c", "a", "th", "the", "▁t", "▁th", "▁the", "at", "▁c", "▁cat"),
]
"""Of `write_pieces`."""


def write_model(path: Path, model: Any, **options: Any) -> Path:
    """A Llama with the vocabulary of `byte_tokenizer` and two merges, which adds no BOS."""
    return _write(path, model, _bytes, **options)


def write_pieces(path: Path, model: Any, **options: Any) -> Path:
    """A Llama with a sentencepiece vocabulary, whose BOS is added."""
    return _write(path, model, _pieces, **options)


def write_like(path: Path, own: Tokenizer, pre: str | None, **options: Any) -> Path:
    """A Llama with the vocabulary of a tokenizer: byte-level BPE where `pre` is given, else
    SentencePiece's, with scores that fall with the ids. `changes` are types of its pieces."""
    changes = options.pop("changes", {})
    model = llama(own.get_vocab_size(), layers=1)
    return _write(path, model, lambda writer: _like(writer, own, pre, changes), **options)


def write_checkpoint(path: Path, directory: Path, add_bos: bool = True) -> Path:
    """The weights of a checkpoint of Llama's, float32, and its byte-level tokenizer with GPT-2's
    pattern, such as the demo model's."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    own = Tokenizer.from_file(str(directory / "tokenizer.json"))
    names = json.loads((directory / "tokenizer_config.json").read_text())

    def vocabulary(writer: Any) -> None:
        _like(writer, own, "gpt-2", {}, names["bos_token"], names["eos_token"])
        writer.add_add_bos_token(add_bos)

    return _write(path, model, vocabulary)


def _write(
    path: Path,
    model: Any,
    vocabulary: Any,
    block: gguf.GGMLQuantizationType | None = None,
    leave_out: str | None = None,
    more: dict[str, Any] | None = None,
    settings: Any = None,
) -> Path:
    """`block` quantises matrices, `more` adds tensors, `settings` is called with the writer."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary(writer)
    if settings is not None:
        settings(writer)
    for name, weight in model.state_dict().items():
        if _name(name) != leave_out:
            _add(writer, _name(name), weight.numpy(), config, block)
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_OF_LAYER[rest]}.weight"


def _add(writer: Any, name: str, weight: Any, config: Any, block: Any) -> None:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for part, n_heads in heads.items():
        if part in name:  # rotary halves side by side, as llama.cpp rotates them
            shape = (n_heads, 2, len(weight) // n_heads // 2, -1)
            weight = weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)
    weight = np.ascontiguousarray(weight)
    if block is None or weight.ndim == 1 or weight.shape[-1] % 32:
        writer.add_tensor(name, weight)
    else:
        writer.add_tensor(name, gguf.quants.quantize(weight, block), raw_dtype=block)


def _bytes(writer: Any) -> None:
    vocabulary = byte_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "th", "Ġth"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h", "Ġ th"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def _pieces(writer: Any) -> None:
    n_own = len(PIECES) - 259
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(PIECES)
    writer.add_token_scores([0.0] * 259 + [-float(n) for n in range(n_own)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * n_own)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _like(
    writer: Any,
    own: Tokenizer,
    pre: str | None,
    changes: dict[str, int],
    bos: str = "<s>",
    eos: str = "</s>",
) -> None:
    pieces = [own.id_to_token(n) for n in range(own.get_vocab_size())]
    control = {t.content: 3 for t in own.get_added_tokens_decoder().values()} | {"<unk>": 2}
    found = control | {piece: 6 for piece in pieces if _BYTE.fullmatch(piece)} | changes
    writer.add_tokenizer_model("llama" if pre is None else "gpt2")
    writer.add_tokenizer_pre(pre or "default")
    writer.add_token_list(pieces)
    writer.add_token_types([found.get(piece, 1) for piece in pieces])
    if pre is None:
        writer.add_token_scores([-float(n) for n in range(len(pieces))])
    else:
        merges = json.loads(own.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(pieces.index(bos))
    writer.add_eos_token_id(pieces.index(eos))
    if "<unk>" in pieces:
        writer.add_unk_token_id(pieces.index("<unk>"))
