"""What a model and its configuration say of how it may be fed, where a probe of a few tokens cannot
tell."""

from __future__ import annotations

from typing import Any

from seqloss_cli.models.quantization import activation_quantization

_LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")
"""Rotary factors that change, for all rows, with the longest row of a batch."""
_REACHES = ("sliding_window", "attention_chunk_size", "window_size")
"""How far layers look back, by the names that configurations have for it."""
_PACKED_POSITION_SETTINGS = ("attn_temperature_tuning",)
"""Settings of models that scale attention by a token's place in what is fed, not in its row, beyond
thousands of tokens."""


def longest_seen_whole(model: Any, max_tokens: int) -> int:
    """The longest row of which every token sees all before it: no layer slides a window. 0 where
    layers differ in a way that is not known."""
    config = model.config.get_text_config()
    reaches = [getattr(config, name, None) for name in _REACHES]
    if any(isinstance(reach, list | tuple) for reach in reaches):
        return 0
    return min([max_tokens, *(r for r in reaches if isinstance(r, int) and r > 0)])


def depends_on_packed_position(model: Any) -> bool:
    """Whether a token's place in what is fed counts, beside its place in its row."""
    config = model.config.get_text_config()
    return any(getattr(config, name, None) for name in _PACKED_POSITION_SETTINGS)


def has_length_dependent_rope(model: Any) -> bool:
    """Whether rotary factors depend on the longest row: then a row's numbers depend on its batch.

    A probe of a few tokens cannot see it: the factors switch beyond a length of thousands.
    """
    written = repr(getattr(model.config.get_text_config(), "rope_parameters", None))
    return any(f"'{kind}'" in written for kind in _LENGTH_DEPENDENT_ROPE)


def quantizes_activations(model: Any) -> str | None:
    """The quantisation, where it rounds activations by what they are computed together with."""
    return activation_quantization(model.config)


def possible_backbones(model: Any) -> list[Any]:
    """The modules that may turn ids into hidden states; which one does is found by trying."""
    found = []
    for candidate in (model.get_decoder(), model.base_model):
        if candidate is not None and candidate is not model and candidate not in found:
            found.append(candidate)
    return found
