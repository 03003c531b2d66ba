"""Small models and tokenizers, made here, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seqloss_cli.backends.torch.head import LazyLogits

BOS, EOS = "<bos>", "<eos>"
N_BYTE_IDS = 258


def byte_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte: BOS is 0, EOS is 1, the bytes follow in the order of their stand-ins.

    The tokenizer does not put BOS in by itself. Without `bos` it names neither.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {BOS: 0, EOS: 1, **{char: n for n, char in enumerate(alphabet, start=2)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": BOS, "eos_token": EOS} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def lazy_logits(matrix: torch.Tensor, in_blocks: bool = True) -> LazyLogits:
    """What a model would compute, for every use anew: the logits are overwritten."""

    def compute(rows: slice, ids: slice | None) -> torch.Tensor:
        return (matrix[rows] if ids is None else matrix[rows, ids]).clone()

    return LazyLogits(compute, matrix.shape[1], in_blocks)


def llama(n_ids: int = N_BYTE_IDS, context: int = 64, layers: int = 2, **config: Any) -> Any:
    """A random Llama with sharp distributions, so that a wrong position changes a loss by nats."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": n_ids,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | config))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def zero_model(n_ids: int = N_BYTE_IDS, context: int = 64) -> Any:
    """All parameters zero: every loss is ln V."""
    model = llama(n_ids, context)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def bigram_model(log_probs: torch.Tensor, context: int = 64) -> Any:
    """No layers, one-hot embeddings, head = ln P[next | previous]; `log_probs` is V x V.

    The final norm multiplies a one-hot vector by the root of its length, which its scale undoes.
    """
    n_ids = len(log_probs)
    model = llama(
        n_ids,
        context,
        layers=0,
        hidden_size=n_ids,
        num_attention_heads=1,
        num_key_value_heads=1,
        rms_norm_eps=0.0,
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(n_ids))
        model.model.norm.weight.fill_(n_ids**-0.5)
        model.lm_head.weight.copy_(log_probs.T)
    return model


def save_checkpoint(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder
