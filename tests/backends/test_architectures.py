"""Every kind of model against its own plain forward, one window at a time.

The oracle plans its windows by the wording of rule 7 of the contract and takes a float64
log-softmax of `model(ids).logits`; it knows neither batches nor padding nor heads.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import AttentionInterface

from helpers.architectures import (
    ARCHITECTURES,
    PADDED,
    SMALL,
    build,
    build_wrapper,
)
from helpers.builders import N_BYTE_IDS, byte_tokenizer, llama, save_checkpoint
from helpers.oracles import (
    CONTEXT,
    STRIDE,
    assert_alternatives_right,
    losses_of,
    plain_losses,
    truth_of,
)
from seqloss_cli import ModelChoice, RunError, Sample, Scorer, TokenPolicy
from seqloss_cli.backends.batching import plan_batches
from seqloss_cli.backends.torch import forward as running
from seqloss_cli.backends.torch import head
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.backends.torch.forward import PATHS
from seqloss_cli.backends.torch.path_selection import probe_of
from seqloss_cli.core.backend import Capabilities, Requested
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.scoring.pipeline import score_samples
from seqloss_cli.tokenization.tokenizer import Tokenization

TEXTS = [
    "a",
    "The cat sat on the mat.",
    "Ragged rows",
    "One text is longer than the context: it needs several windows, with 日本語 and 🐕 in it. "
    "Its last window is short.",
]
EVERYTHING = Requested(ranks=True, entropy=True, top_k=3)


SLIDES = {"qwen3": {"use_sliding_window": True, "max_window_layers": 0}}
SCALED_HEADS = ["cohere", "falcon-h1", "gemma2", "granite"]


def samples(texts: list[str]) -> list[Sample]:
    return [Sample(str(n), "<text>", text=text) for n, text in enumerate(texts)]


def scored(outcomes: Any) -> list[SequenceScore]:
    listed = list(outcomes)
    assert all(isinstance(outcome, SequenceScore) for outcome in listed), listed
    return listed


def scores_of(
    backend: TorchBackend,
    bos: Any = "auto",
    requested: Requested = EVERYTHING,
    texts: list[str] = TEXTS,
    context: int = CONTEXT,
) -> list[SequenceScore]:
    """Texts through the pipeline with a backend of the test's own."""
    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(bos=bos), N_BYTE_IDS)
    policy = WindowPolicy(context, "--context", STRIDE)
    return scored(
        score_samples(
            samples(texts), tokenization.tokenize, backend, policy, requested, BatchPolicy(4096)
        )
    )


# -- the oracle -------------------------------------------------------------------------------


def assert_right(model: Any, scores: list[SequenceScore], tolerance: float = 1e-4) -> None:
    """Every loss of every text equals the oracle's, and what stands beside it agrees."""
    assert len(scores) == len(TEXTS)
    for score in scores:
        ids = score.sequence.token_ids.tolist()
        truth = truth_of(model, ids, score.sequence.begins_with_bos)
        assert score.scored.tolist() == [False, *[True] * (len(ids) - 1)]
        np.testing.assert_allclose(score.losses[1:], losses_of(truth, ids), rtol=0, atol=tolerance)
        assert score.context_lengths[1:].tolist() == list(truth.context_lengths.values())
        if score.ranks is not None:
            assert_alternatives_right(score, ids, truth, tolerance)


def test_the_oracle_plans_the_windows_of_the_worked_example() -> None:
    truth = truth_of(llama(), list(range(8)), has_bos=False, context=4, stride=2)
    assert truth.context_lengths == {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 6: 4, 7: 4}


# -- checkpoints, from the directory to the loss ----------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_are_those_of_a_plain_forward(name: str, tmp_path: Path) -> None:
    model = build(name)
    folder = save_checkpoint(tmp_path, model, byte_tokenizer())
    scorer = Scorer(ModelChoice(name=str(folder)), context=CONTEXT, stride=STRIDE)
    assert_right(model, scored(scorer.score(samples(TEXTS), EVERYTHING)))
    assert scorer.backend.path == ("batched" if name in PADDED else "packed")
    assert ["rows are padded, since" in each for each in scorer.warnings] == [True] * (
        name in PADDED
    )


@pytest.mark.parametrize(
    "name",
    [
        "emu3",
        "internvl",
        "llama4",
        "llava",
        "mistral3",
        "qwen2-audio",
        "qwen2.5-omni",
        "qwen2.5-vl",
        "qwen3-omni",
    ],
)
def test_the_text_part_of_a_multimodal_model_is_scored(name: str, tmp_path: Path) -> None:
    model = build_wrapper(name)
    folder = save_checkpoint(tmp_path, model, byte_tokenizer())
    scorer = Scorer(ModelChoice(name=str(folder)), context=CONTEXT, stride=STRIDE)
    # Models that speak have no forward but that of the part that writes.
    # Llama 4 has none in transformers 5.24, where its own fails without an image.
    writer = model.language_model if name == "llama4" else getattr(model, "thinker", model)
    assert_right(writer, scored(scorer.score(samples(TEXTS), EVERYTHING)))
    assert "takes more than text: its text part is scored" in scorer.warnings[0]
    assert not any("have no place" in each for each in scorer.warnings)


@pytest.mark.parametrize(
    ("name", "message"),
    [("paligemma", "is not causal"), ("kosmos-2", "cannot be fed token ids alone (You have to")],
)
def test_a_multimodal_model_without_losses_of_texts_is_refused(
    name: str, message: str, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path, build_wrapper(name), byte_tokenizer())
    with pytest.raises(RunError, match=re.escape(message)):
        Scorer(ModelChoice(name=str(folder)), context=CONTEXT, stride=STRIDE)


@pytest.mark.parametrize("name", SCALED_HEADS)
def test_these_heads_are_more_than_a_matrix_product(name: str) -> None:
    """Else the test above would not notice a forgotten scale or cap."""
    model, ids = build(name), torch.arange(2, 12)[None]
    with torch.no_grad():
        bare = model.get_output_embeddings()(model.get_decoder()(input_ids=ids)[0])
        logits = model(input_ids=ids).logits
    assert (bare - logits).abs().max() > 1


@pytest.mark.parametrize("bos", ["auto", "never"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["bloom", "gemma2", "gpt2", "llama", "mamba", "mixtral", "rwkv"])
def test_each_path_gives_the_same_numbers(name: str, path: Any, bos: Any) -> None:
    model = build(name)
    backend = TorchBackend(model, CONTEXT, path=path)
    assert backend.path == path
    if path == "packed" and name in PADDED:
        with pytest.raises((ValueError, AssertionError)):
            assert_right(model, scores_of(backend, bos))
    else:
        assert_right(model, scores_of(backend, bos))


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - PADDED))
def test_packed_rows_do_not_see_one_another(name: str) -> None:
    """Nor their own place in the pack: any order, with any neighbours, the same losses."""
    model, fed = build(name, **({"sliding_window": 64} if name == "phi3" else {})), []
    backend = TorchBackend(model, CONTEXT)
    backbone = model.get_decoder()
    bare = backbone.forward

    def forward(**values: Any) -> Any:
        fed.append(values["input_ids"].shape)
        return bare(**values)

    backbone.forward = forward
    together = scores_of(backend)
    assert {rows for rows, _ in fed} == {1}, "no padding"
    assert max(tokens for _, tokens in fed) > 2 * CONTEXT
    for text, score in zip(TEXTS, together, strict=True):
        (alone,) = scores_of(backend, texts=[text])
        np.testing.assert_allclose(score.losses, alone.losses, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["phi3", "qwen3"])
def test_rows_beyond_a_sliding_window_are_padded(name: str) -> None:
    model = build(name, sliding_window=10, **SLIDES.get(name, {}))
    backend = TorchBackend(model, CONTEXT)
    assert (backend.path, backend.capabilities.longest_packed) == ("packed", 10)
    assert_right(model, scores_of(backend))
    unaware = TorchBackend(model, CONTEXT)
    unaware.capabilities = Capabilities(longest_packed=CONTEXT)
    unaware.model_forward.longest_packed = CONTEXT
    with pytest.raises(AssertionError):  # else this test would prove nothing
        assert_right(model, scores_of(unaware))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_heads_in_blocks_give_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft caps, scales and biases apply to a block as to the whole; all but the first block are
    further words."""
    monkeypatch.setattr(head, "BLOCK_ROWS", 13)
    monkeypatch.setattr(head, "BLOCK_LOGITS", 1)
    monkeypatch.setattr(head, "LEAST_WIDTH", 50)
    model, widths = build(name), set()
    backend = TorchBackend(model, CONTEXT)
    layer = model.get_output_embeddings()
    requested = Requested(entropy=True, top_k=3)

    def product(x: Any, weight: Any, bias: Any) -> Any:
        widths.add(len(weight))
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(running, "product_of", lambda layer: product)
    assert_right(model, scores_of(backend, requested=requested))
    assert widths == {50, N_BYTE_IDS % 50}
    assert layer.forward.__self__ is layer, "the layer's own forward is back"


def test_a_head_that_cannot_be_cut_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")

    class Sorted(torch.nn.Linear):
        """Of another class: what it does with its weights is not known."""

    layer = model.get_output_embeddings()
    layer.__class__ = Sorted
    backend = TorchBackend(model, CONTEXT)
    monkeypatch.setattr(running, "product_of", None)
    assert_right(model, scores_of(backend, requested=Requested(entropy=True)))


class Centred(hf.LlamaForCausalLM):
    """Logits that depend on those of all other words."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * output.logits.std(dim=-1, keepdim=True)
        return output


def test_a_head_that_looks_at_all_words_is_run_whole_and_says_so() -> None:
    model = modified(Centred, llama())
    backend = TorchBackend(model, CONTEXT)
    assert backend.path == "packed"
    assert any("whole rows of logits" in warning for warning in backend.warnings)
    assert_right(model, scores_of(backend, requested=Requested(entropy=True)))


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    byte_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    scorer = Scorer(ModelChoice(name=str(tmp_path)), context=CONTEXT, stride=STRIDE)
    assert_right(model, scored(scorer.score(samples(TEXTS))))
    assert scorer.warnings == []


@pytest.mark.parametrize(
    ("name", "tolerance"), [("gpt2", 1e-9), ("opt", 1e-9), ("gemma2", 1e-6), ("mamba", 1e-6)]
)
def test_float64_losses(name: str, tolerance: float, tmp_path: Path) -> None:
    """The latter two compute their norms in float32 whatever the dtype."""
    model = build(name)
    folder = save_checkpoint(tmp_path, model, byte_tokenizer())
    choice = ModelChoice(name=str(folder), dtype="float64")
    scorer = Scorer(choice, context=CONTEXT, stride=STRIDE)
    assert scorer.run_info().dtype == "float64"
    assert scorer.backend.path == ("batched" if name in PADDED else "packed")
    double = type(model).from_pretrained(folder, dtype=torch.float64).eval()
    assert_right(double, scored(scorer.score(samples(TEXTS))), tolerance)


@pytest.mark.parametrize("name", ["cohere", "gpt2", "llama", "qwen3"])
def test_bfloat16_is_no_further_from_the_truth_than_a_plain_forward(
    name: str, tmp_path: Path
) -> None:
    """The truth: the same rounded weights in float64. Plain: bfloat16, then float64 softmax.

    Both are loaded anew: a model cast in memory rounds its rotary frequencies, too.
    """
    model_class = type(build(name))
    folder = save_checkpoint(tmp_path, build(name).to(torch.bfloat16), byte_tokenizer())
    choice = ModelChoice(name=str(folder), dtype="bfloat16")
    scorer = Scorer(choice, context=CONTEXT, stride=STRIDE)
    assert scorer.run_info().dtype == "bfloat16"
    scores = scored(scorer.score(samples(TEXTS)))
    exact = model_class.from_pretrained(folder, dtype=torch.float64).eval()
    rounded = model_class.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ours, plain = [], []
    for score in scores:
        ids = score.sequence.token_ids.tolist()
        truth = np.array(losses_of(truth_of(exact, ids, True), ids))
        ours += np.abs(score.losses[1:] - truth).tolist()
        plain += np.abs(losses_of(truth_of(rounded, ids, True), ids) - truth).tolist()
    assert max(plain) > 1e-3, "bfloat16 should be seen to round"
    assert all(a <= b + 0.08 for a, b in zip(ours, plain, strict=True))
    assert math.fsum(ours) <= 1.1 * math.fsum(plain)


def test_rotary_factors_that_change_with_the_length_of_the_row(tmp_path: Path) -> None:
    """Phi-3's long rotary factors: a short text must not get those of a long one beside it."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 32.0],
        "original_max_position_embeddings": 16,
    }
    model = build("phi3", original_max_position_embeddings=16, rope_parameters=rope)
    folder = save_checkpoint(tmp_path, model, byte_tokenizer())
    scorer = Scorer(ModelChoice(name=str(folder)), context=CONTEXT, stride=STRIDE)
    assert_right(model, scored(scorer.score(samples(TEXTS))))


def test_a_dynamic_rope_knows_nothing_of_the_rows_before() -> None:
    """transformers keeps the factors of the longest row so far for all beyond the first length."""
    rope = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0}
    model = build("llama", max_position_embeddings=16, rope_parameters=rope)
    texts = ["long " * 12, "of thirty characters, or nearly", "of as many as 16", "short"]
    found = scores_of(TorchBackend(copy.deepcopy(model), 64), texts=texts, context=64)
    for score in found:
        ids = score.sequence.token_ids.tolist()
        truth = plain_losses(copy.deepcopy(model), ids)
        np.testing.assert_allclose(score.losses[1:], truth, rtol=0, atol=1e-4)


# -- models that cannot take the fast path ----------------------------------------------------


def modified(model_class: type, model: Any) -> Any:
    """The same weights under another forward."""
    changed = model_class(model.config).eval()
    changed.load_state_dict(model.state_dict())
    return changed


class CopyBias(hf.LlamaForCausalLM):
    """Logits that look at the ids, past backbone and head."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        seen = torch.nn.functional.one_hot(input_ids, output.logits.shape[-1])
        output.logits = output.logits + 5 * seen
        return output


class ColderWithPosition(hf.LlamaForCausalLM):
    """Logits that look at their position: right alone, wrong when only some are computed."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        positions = torch.arange(output.logits.shape[1])
        output.logits = output.logits * (1 + 0.1 * positions[:, None])
        return output


class HiddenStatesHead(hf.LlamaForCausalLM):
    """A head that reads the states between the layers."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, output_hidden_states=True, **kwargs)
        output.logits = self.lm_head(output.hidden_states[0] + output.hidden_states[-1])
        return output


class MixingBackbone(hf.LlamaModel):
    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        states = output.last_hidden_state
        output.last_hidden_state = (states + states.flip(0) + states.cumsum(1)) / 3
        return output


class MixesTokens(hf.LlamaForCausalLM):
    """Each row sees the others of its batch, and each token all before it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = MixingBackbone(config)


@pytest.mark.parametrize(
    ("model_class", "path"),
    [
        (CopyBias, "plain"),
        (ColderWithPosition, "plain"),
        (HiddenStatesHead, "plain"),
        (MixesTokens, "single"),
    ],
)
def test_unusual_models_fall_back_with_a_warning(model_class: type, path: str) -> None:
    model = modified(model_class, build("llama"))
    backend = TorchBackend(model, CONTEXT)
    assert_right(model, scores_of(backend))
    assert backend.path == path
    (warning,) = backend.warnings
    assert model_class.__name__ in warning
    assert "one sequence at a time" in warning


def test_the_unusual_models_would_be_wrong_on_the_fast_path() -> None:
    """Else the test above would prove nothing."""
    for model_class, path in [(CopyBias, "single"), (ColderWithPosition, "single")]:
        model = modified(model_class, build("llama"))
        with pytest.raises(AssertionError):
            assert_right(model, scores_of(TorchBackend(model, CONTEXT, path=path)))
    model = modified(MixesTokens, build("llama"))
    for path in ("packed", "batched"):
        with pytest.raises(AssertionError):
            assert_right(model, scores_of(TorchBackend(model, CONTEXT, path=path)))


class FaintlyMixingBackbone(hf.LlamaModel):
    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        states = output.last_hidden_state
        output.last_hidden_state = states + 0.1 * states.cumsum(1)
        return output


class FaintlyMixesTokens(hf.LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = FaintlyMixingBackbone(config)


def test_a_leak_within_the_tolerance_of_half_precision_is_noticed() -> None:
    """Losses of a model that is nearly flat differ by less than bfloat16 rounds others by."""
    model = modified(FaintlyMixesTokens, llama())
    with torch.no_grad():
        model.lm_head.weight.mul_(0.02)
    model = model.to(torch.bfloat16)
    backend = TorchBackend(model, CONTEXT)
    assert backend.path == "batched"
    probes, selector = [probe_of(np.arange(12)), probe_of(np.arange(7))], backend.selector
    with torch.inference_mode():
        expected = selector.losses(probes)
        selector.model_forward.use_path("packed", model.get_decoder())
        assert selector.agrees(probes, expected), "else this test would prove nothing"


@pytest.mark.parametrize(
    ("setting", "reason", "longest"),
    [
        ({"attn_temperature_tuning": True}, "minds where in a batch a row stands", 0),
        ({"sliding_window": [4, 8]}, "look back in ways that are not known", 0),
        ({"sliding_window": -1}, None, CONTEXT),
        ({"sliding_window": 7}, None, 7),
    ],
)
def test_what_a_probe_cannot_tell_is_read_from_the_configuration(
    setting: dict[str, Any], reason: str | None, longest: int
) -> None:
    model = build("llama")
    for name, value in setting.items():
        setattr(model.config, name, value)
    backend = TorchBackend(model, CONTEXT)
    path = "batched" if reason else "packed"
    assert (backend.path, backend.capabilities.longest_packed) == (path, longest)
    assert [str(reason) in warning for warning in backend.warnings] == [True] * bool(reason)


@pytest.mark.parametrize("unknown", ["softcap", "s_aux", "block_indices", "a_thing_to_come"])
def test_attention_that_asks_for_more_is_not_packed(unknown: str) -> None:
    model = build("llama")
    attention = [layer.self_attn for layer in model.model.layers]
    for module in attention:
        module.forward = partial(module.forward, **{unknown: torch.ones(1)})
    registered = AttentionInterface()["sdpa"]

    def lenient(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(unknown, None)
        return registered(*args, **kwargs)

    AttentionInterface.register("lenient", lenient)
    model.set_attn_implementation("lenient")
    backend = TorchBackend(model, CONTEXT)
    assert backend.path == "batched"
    (warning,) = backend.warnings
    assert f"attention with ['{unknown}'] cannot be packed" in warning


# -- models that are refused ------------------------------------------------------------------


def tiny_bert() -> Any:
    config = hf.BertConfig(**SMALL, vocab_size=N_BYTE_IDS, is_decoder=False, pad_token_id=None)
    torch.manual_seed(0)
    model = hf.BertLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize("context", [None, 3, 2])
def test_a_model_that_sees_the_future_is_refused(context: int | None, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, tiny_bert(), byte_tokenizer())
    with pytest.raises(RunError, match="not causal"):
        Scorer(ModelChoice(name=str(folder)), context=context)


@pytest.mark.parametrize(
    "config",
    [
        hf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4),
        hf.BartConfig(d_model=32, encoder_layers=1, decoder_layers=1),
    ],
    ids=["t5", "bart"],
)
def test_an_encoder_decoder_is_refused(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(RunError, match=r"encoder-decoder.*causal"):
        Scorer(ModelChoice(name=str(tmp_path)))


def test_a_model_without_a_language_head_is_refused(tmp_path: Path) -> None:
    hf.ViTConfig(hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(RunError, match="no causal language model that this transformers knows"):
        Scorer(ModelChoice(name=str(tmp_path)))


def test_more_tokens_than_a_model_has_positions_for_are_no_bug() -> None:
    """Decoders of encoder-decoders name them in a key of their own; Roberta's begin at 2."""
    config = hf.RobertaConfig(
        **SMALL, vocab_size=N_BYTE_IDS, is_decoder=True, pad_token_id=1, bos_token_id=0
    )
    backend = TorchBackend(hf.RobertaForCausalLM(config).eval(), 64)
    with pytest.raises(RunError, match=r"cannot be fed 64 tokens.*lower --context"):
        scores_of(backend, texts=["a" * 64], context=64)


# -- memory -----------------------------------------------------------------------------------


def _gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _python_memory() -> None:
    raise MemoryError


def _cpu_memory() -> None:
    torch.empty(1 << 50)


SHORTAGES = [_gpu_memory, _python_memory, _cpu_memory]


class Hungry(hf.LlamaForCausalLM):
    """A model that fails as it is told to, once it is told."""

    shortage: Callable[[], None] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.shortage is not None:
            self.shortage()
        return super().forward(*args, **kwargs)


def hungry(shortage: Callable[[], None]) -> Any:
    model = modified(Hungry, llama())
    model.shortage = shortage
    return model


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shortage", SHORTAGES)
def test_too_little_memory_names_the_flag_that_helps(
    shortage: Callable[[], None], path: Any
) -> None:
    backend = TorchBackend(hungry(shortage), CONTEXT, path=path)
    with pytest.raises(RunError, match="--batch-tokens"):
        scores_of(backend)


class Narrow(hf.LlamaForCausalLM):
    """A model whose backbone has room for so many tokens."""

    room: int | None = None

    def get_decoder(self) -> Any:
        decoder = super().get_decoder()
        if "forward" not in decoder.__dict__:
            bare = decoder.forward

            def forward(**kwargs: Any) -> Any:
                if self.room is not None and kwargs["input_ids"].numel() > self.room:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return bare(**kwargs)

            decoder.forward = forward
        return decoder


@pytest.mark.parametrize("room", [CONTEXT, 2 * CONTEXT, 100])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(room: int) -> None:
    model = modified(Narrow, llama())
    backend = TorchBackend(model, CONTEXT)
    expected = [score.losses for score in scores_of(backend)]
    model.room = room
    assert backend.n_too_large == 0
    found = [score.losses for score in scores_of(backend)]
    assert backend.n_too_large > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    model.room = CONTEXT - 1
    with pytest.raises(RunError, match=r"1 rows of 32 tokens.*--context"):
        scores_of(backend)


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_too_little_memory_for_the_check_at_load_is_no_bug_report(
    shortage: Callable[[], None],
) -> None:
    with pytest.raises(RunError, match="memory"):
        TorchBackend(hungry(shortage), CONTEXT)


def test_another_error_of_the_model_is_not_taken_for_a_lack_of_memory() -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    backend = TorchBackend(hungry(broken), CONTEXT, path="plain")
    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
    sequence: Any = tokenization.tokenize(samples(["abc"]))[0]
    (batch,) = plan_batches(
        [sequence], WindowPolicy(CONTEXT, "--context", STRIDE), BatchPolicy(), backend.capabilities
    )
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        backend.score(batch, Requested())
