"""Small random models of every architecture that the tests know."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from helpers.builders import N_BYTE_IDS

IDS = {"vocab_size": N_BYTE_IDS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 4.0}
HYBRID = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "cohere": ("Cohere", GROUPED | {"logit_scale": 0.25}),
    "falcon-h1": ("FalconH1", GROUPED | HYBRID | {"mamba_n_groups": 1, "lm_head_multiplier": 0.2}),
    "gemma2": ("Gemma2", GEMMA),
    "gpt-neox": ("GPTNeoX", SMALL),
    "gpt2": ("GPT2", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "granite": ("Granite", GROUPED | {"logits_scaling": 3.0}),
    "llama": ("Llama", GROUPED),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "mixtral": ("Mixtral", GROUPED | {"num_local_experts": 4}),
    "opt": ("OPT", SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "phi3": ("Phi3", GROUPED | {"sliding_window": 16}),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "rwkv": ("Rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}),
}
PADDED = {"bloom", "falcon-h1", "gemma2", "mamba", "rwkv"}
"""Whose attention wants more than causality, or whose states do not come from attention alone."""


def build(name: str, **config: Any) -> Any:
    """A random model, sharp enough that a wrong position or scale moves a loss by nats."""
    family, settings = ARCHITECTURES[name]
    model_class = getattr(hf, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**IDS, **(settings | config))).eval()
    with torch.no_grad():
        if name not in ("mamba", "rwkv"):  # which are sharp enough as they are
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
        model.get_output_embeddings().weight.mul_(4)
    return model
