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

EIGHT = GROUPED | {"head_dim": 8}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4} | {
    "num_experts_per_tok": 2
}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}  # fmt: skip
SLIDING, WHOLE = {"sliding_window": 16}, {"sliding_window": None}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("Apertus", GROUPED),
    "arcee": ("Arcee", GROUPED),
    "cohere2": ("Cohere2", GROUPED | SLIDING),
    "deepseek_v2": ("DeepseekV2", SMALL | LATENT),
    "deepseek_v3": ("DeepseekV3", SMALL | LATENT),
    "ernie4_5": ("Ernie4_5", EIGHT),
    "gemma": ("Gemma", EIGHT),
    "gemma3": ("Gemma3", EIGHT | SLIDING),
    "glm": ("Glm", EIGHT),
    "glm4": ("Glm4", EIGHT),
    "glm4_moe": ("Glm4Moe", EIGHT | LATENT | EXPERTS | {"num_key_value_heads": 2}),
    "granitemoe": ("GraniteMoe", GROUPED | EXPERTS),
    "helium": ("Helium", EIGHT),
    "llama4": ("Llama4", EIGHT | EXPERTS | {"intermediate_size_mlp": 48}),
    "minimax_m2": ("MiniMaxM2", EIGHT | EXPERTS),
    "mistral": ("Mistral", GROUPED | WHOLE),
    "nemotron": ("Nemotron", GROUPED),
    "olmo2": ("Olmo2", GROUPED),
    "olmo3": ("Olmo3", GROUPED | SLIDING),
    "olmoe": ("Olmoe", GROUPED | EXPERTS),
    "phi": ("Phi", SMALL),
    "phimoe": ("Phimoe", GROUPED | EXPERTS),
    "qwen2": ("Qwen2", GROUPED | {"tie_word_embeddings": True}),
    "qwen2_moe": ("Qwen2Moe", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3Moe", EIGHT | EXPERTS),
    "qwen3_next": ("Qwen3Next", EIGHT | EXPERTS),
    "seed_oss": ("SeedOss", EIGHT),
    "smollm3": ("SmolLM3", GROUPED),
    "starcoder2": ("Starcoder2", GROUPED),
}
"""Those that are run in parts alone."""


TEXT = IDS | GROUPED
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
WRAPPERS: dict[str, tuple[str, dict[str, Any]]] = {
    "internvl": (
        "InternVLForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
            "image_token_id": 5,
        },
    ),
    "llama4": (
        "Llama4ForConditionalGeneration",
        {
            "text_config": TEXT
            | {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2},
            "vision_config": VISION | {"vision_output_dim": 32, "projector_input_dim": 32},
            "image_token_index": 5,
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model"},
            "image_token_index": 5,
        },
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "mistral"},
            "vision_config": VISION | {"model_type": "pixtral"},
            "image_token_index": 5,
        },
    ),
    "qwen2-audio": (
        "Qwen2AudioForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "audio_config": {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4},
            "audio_token_index": 5,
        },
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": TEXT | MROPE,
            "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 4, "out_hidden_size": 32},
            "image_token_id": 5,
            "video_token_id": 6,
        },
    ),
    "emu3": (
        "Emu3ForConditionalGeneration",
        {
            "text_config": TEXT
            | {
                "pad_token_id": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            "vq_config": {
                "embed_dim": 8,
                "codebook_size": 16,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "latent_channels": 4,
                "attn_resolutions": [],
                "hidden_size": 32,
            },
            "vocabulary_map": {"<image>": 5},
        },
    ),
    "qwen2.5-omni": (
        "Qwen2_5OmniForConditionalGeneration",
        {
            "enable_audio_output": False,
            "thinker_config": {
                "text_config": TEXT | MROPE,
                "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 4},
                "audio_config": {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4},
            },
        },
    ),
    "qwen3-omni": (
        "Qwen3OmniMoeForConditionalGeneration",
        {
            "enable_audio_output": False,
            "thinker_config": {
                "text_config": TEXT
                | MROPE
                | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
                "vision_config": {
                    "depth": 1,
                    "hidden_size": 32,
                    "num_heads": 4,
                    "out_hidden_size": 32,
                    "deepstack_visual_indexes": [0],
                },
                "audio_config": {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4},
            },
        },
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "gemma", "head_dim": 8},
            "vision_config": VISION | {"model_type": "siglip_vision_model"},
            "image_token_id": 5,
            "projection_dim": 32,
        },
    ),
    "kosmos-2": (
        "Kosmos2ForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": N_BYTE_IDS,
                "embed_dim": 32,
                "layers": 2,
                "ffn_dim": 48,
                "attention_heads": 4,
            },
            "vision_config": VISION,
        },
    ),
}
"""Models for images or sound that have a language model as a part."""


def build_wrapper(name: str) -> Any:
    """A random model of images or sound, as sharp as those of `build`."""
    family, settings = WRAPPERS[name]
    torch.manual_seed(0)
    model_class = getattr(hf, family)
    model = model_class(model_class.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def build(name: str, **config: Any) -> Any:
    """A random model, sharp enough that a wrong position or scale moves a loss by nats."""
    family, settings = (ARCHITECTURES | FURTHER)[name]
    model_class = getattr(hf, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**(IDS | settings | config))).eval()
    with torch.no_grad():
        if name not in ("mamba", "rwkv"):  # which are sharp enough as they are
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
        model.get_output_embeddings().weight.mul_(4)
    return model
