"""Ids are those of the directory's own files, whatever class transformers would make of them."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.builders import llama, save_checkpoint
from helpers.fuzz import examples
from helpers.layouts import LAYOUTS
from helpers.oracles import reference_losses
from seqloss_cli import ModelChoice, Scorer, TokenPolicy
from seqloss_cli.core.errors import RunError
from seqloss_cli.core.records import Sample
from seqloss_cli.models.tokenizer_loading import load_tokenizer
from seqloss_cli.tokenization.tokenizer import Tokenization
from seqloss_cli.tokenization.vocabulary import Vocabulary

ALPHABET = pre_tokenizers.ByteLevel.alphabet()
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CLASSES = [
    *(None, "LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "GPT2Tokenizer"),
    *("Qwen2Tokenizer", "PreTrainedTokenizerFast"),
]
TYPES = ["llama", "mistral", "gemma", "gpt2", "qwen2", "phi3"]
TEXTS = [
    *("a b", " lead", "lead", "trail ", "  two", "a   b", "tab\tx", " \n x", "a\r\nb", "\n\n"),
    *("x</s>dog", "x</s> dog", "<s>hello</s><s>hello", "<s> <s>", "</s> x ", "x<unk>y", " </s>"),
    *("日本語", "🐕‍🦺", "é e\u0301 ﬁ", "1234567", "DON'T don't I'M", "naïve", "a\u00a0b", "▁x ▁"),
]


def directory(folder: Path, own: Tokenizer, model_type: str = "llama", **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    own.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": model_type, "vocab_size": own.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def loaded_from(folder: Path) -> tuple[Any, list[str]]:
    return load_tokenizer(ModelChoice(str(folder), offline=True))


def assert_ids_of(own: Tokenizer, tokenizer: Any, texts: Any = TEXTS) -> None:
    for text in texts:
        expected = own.encode(text, add_special_tokens=False).ids
        found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert found == expected, text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_are_those_of_the_tokenizer_json(layout: str, tmp_path: Path) -> None:
    own = LAYOUTS[layout]()
    for n, (cls, legacy) in enumerate(product(CLASSES, (None, True, False))):
        settings = NAMES | {"chat_template": "{{ messages }}"}
        settings |= {} if cls is None else {"tokenizer_class": cls}
        settings |= {} if legacy is None else {"legacy": legacy}
        folder = directory(tmp_path, own, TYPES[(n + n // 6) % len(TYPES)], **settings)
        tokenizer, warnings = loaded_from(folder)
        assert_ids_of(own, tokenizer)
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
        assert tokenizer.chat_template == "{{ messages }}"
        assert len(tokenizer) == own.get_vocab_size()
        assert all("tokenizer.json" in warning for warning in warnings)
        assert len(warnings) <= 1


@cache
def loaded_as(layout: str, cls: str) -> Vocabulary:
    with TemporaryDirectory() as folder:
        own = LAYOUTS[layout]()
        found, _ = loaded_from(directory(Path(folder), own, tokenizer_class=cls, **NAMES))
    return Vocabulary(found, special_as_text=False)


PARTS = [
    *("lead", "The", "x", " ", "  ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "12"),
    *(
        "日本",
        "🐕",
        "👩\u200d👧",
        "e\u0301",
        "\u0301",
        "ﬁ",
        "각",
        "ΑΣ",
        "'t",
        "I'M",
        "camelCase",
        "_x(",
    ),
    *("</s>", "<s>", "<unk>", "▁", "▁▁", "<0x41>", "----", "Ġ", "\0", "\ufeff"),
]


@settings(max_examples=examples(60))
@given(
    layout=st.sampled_from([*LAYOUTS]),
    cls=st.sampled_from(["LlamaTokenizer", "GemmaTokenizer", "GPT2Tokenizer"]),
    parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=8),
)
def test_any_text_has_the_ids_of_the_tokenizer_json(
    layout: str, cls: str, parts: list[str]
) -> None:
    text = "".join(parts)
    expected = LAYOUTS[layout]().encode(text, add_special_tokens=False).ids
    assert loaded_as(layout, cls).encode([text]) == [expected]


def test_a_blank_that_llama_2_s_files_keep_is_kept(tmp_path: Path) -> None:
    """`lead` and ` lead` have other ids and losses; AutoTokenizer gives both the same."""
    own = LAYOUTS["llama2"]()
    model = llama(own.get_vocab_size(), bos_token_id=1, eos_token_id=2)
    model.save_pretrained(tmp_path)
    directory(tmp_path, own, tokenizer_class="LlamaTokenizer", legacy=False, **NAMES)
    model.config.save_pretrained(tmp_path)
    scorer = Scorer(ModelChoice(str(tmp_path)))
    found = []
    for text in (" lead", "lead", "x</s>dog", "<s>hello</s><s>hello"):
        (outcome,) = scorer.score([Sample("a", "<text>", text=text)])
        ids = own.encode(text, add_special_tokens=False).ids
        ids = ids if text.startswith("<s>") else [1, *ids]
        assert outcome.sequence.token_ids.tolist() == ids
        np.testing.assert_allclose(outcome.losses[1:], reference_losses(model, ids)[1:], atol=1e-4)
        found.append(ids)
    assert found[0] != found[1]
    (warning,) = scorer.warnings
    assert "LlamaTokenizer" in warning
    assert "normalizer" in warning


def test_flags_of_a_token_are_those_of_the_tokenizer_json(tmp_path: Path) -> None:
    own = Tokenizer.from_str(LAYOUTS["gpt2"]().to_str())
    own.add_tokens([AddedToken("</s>", special=True, normalized=False, rstrip=True)])
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "special": True}
    declared = {"2": {"content": "</s>", **flags}}
    folder = directory(tmp_path, own, added_tokens_decoder=declared, **NAMES)
    tokenizer, (warning,) = loaded_from(folder)
    assert_ids_of(own, tokenizer)
    assert "'rstrip' of '</s>'" in warning


@pytest.mark.parametrize("cls", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_tokens_that_only_the_configuration_adds_stay(cls: str, tmp_path: Path) -> None:
    own = LAYOUTS["llama2"]()
    n = own.get_vocab_size()
    flags = {"lstrip": False, "rstrip": True, "normalized": False, "special": True}
    declared = {str(n): {"content": "<|im_end|>", **flags}}
    names = NAMES | {"eos_token": "<|im_end|>", "add_bos_token": False}
    folder = directory(tmp_path, own, added_tokens_decoder=declared, tokenizer_class=cls, **names)
    tokenizer, _ = loaded_from(folder)
    assert tokenizer.eos_token_id == n
    ids = tokenizer.backend_tokenizer.encode("x<|im_end|> y", add_special_tokens=False).ids
    assert ids == [*own.encode("x").ids[1:], n, *own.encode("y").ids[1:]]
    assert_ids_of(own, tokenizer)


def test_an_id_that_the_tokenizer_does_not_keep_is_said(tmp_path: Path) -> None:
    own = LAYOUTS["gpt2"]()
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "special": True}
    declared = {"900": {"content": "<|late|>", **flags}}
    _, (warning,) = loaded_from(directory(tmp_path, own, added_tokens_decoder=declared, **NAMES))
    assert "'<|late|>' the id 900" in warning


@pytest.mark.parametrize("cls", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_ids_are_not_drawn_at_random(cls: str, tmp_path: Path) -> None:
    own = Tokenizer.from_str(LAYOUTS["llama2"]().to_str())
    own.model.dropout = 0.5
    tokenizer, warnings = loaded_from(directory(tmp_path, own, tokenizer_class=cls, **NAMES))
    assert any("dropout" in warning for warning in warnings)
    assert_ids_of(LAYOUTS["llama2"](), tokenizer)


def test_a_directory_that_autotokenizer_cannot_load_keeps_its_names(tmp_path: Path) -> None:
    own = LAYOUTS["llama2"]()
    folder = directory(tmp_path, own, model_type="nobody's", chat_template="{{ x }}", **NAMES)
    tokenizer, warnings = loaded_from(folder)
    assert_ids_of(own, tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.chat_template == "{{ x }}"
    assert len(warnings) <= 1


@pytest.mark.parametrize("model_type", ["gemma", "bert"])
def test_a_class_that_cannot_encode_the_file_s_texts_is_no_bug(
    model_type: str, tmp_path: Path
) -> None:
    """Its unknown token is none of the vocabulary's."""
    own = Tokenizer(models.BPE({c: n for n, c in enumerate("abc de")}, []))
    tokenizer, (warning,) = loaded_from(directory(tmp_path, own, model_type))
    assert_ids_of(own, tokenizer, ["bad", " a", "xa"])
    assert "tokenizer.json" in warning


def test_names_are_kept_of_a_configuration_that_autotokenizer_cannot_read(tmp_path: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
    own = LAYOUTS["llama2"]()
    folder = directory(tmp_path, own, model_type="gpt2", chat_template="{{ x }}", **names)
    tokenizer, (warning,) = loaded_from(folder)
    assert_ids_of(own, tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.chat_template == "{{ x }}"
    assert "eos_token" in warning


# -- ids that are no control tokens (rule 4) ----------------------------------------------------


def scored(folder: Path, text: str, **policy: Any) -> tuple[Any, Scorer]:
    scorer = Scorer(ModelChoice(str(folder)), TokenPolicy(**policy))
    (outcome,) = scorer.score([Sample("a", "<text>", text=text)])
    return outcome, scorer


def test_a_word_is_no_bos(tmp_path: Path) -> None:
    """A default of the configuration, 1, is the word `"` of this vocabulary."""
    own = Tokenizer(models.BPE({c: n for n, c in enumerate(sorted(ALPHABET))}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    assert own.id_to_token(1) == '"'
    model = llama(len(ALPHABET), bos_token_id=1, eos_token_id=2)
    save_checkpoint(tmp_path, model, PreTrainedTokenizerFast(tokenizer_object=own))
    for text in ("The dog.", '"The dog.'):
        outcome, scorer = scored(tmp_path, text)
        ids = own.encode(text).ids
        assert outcome.sequence.token_ids.tolist() == ids
        assert outcome.sequence.bos == "none"
        assert outcome.scored.tolist() == [False] + [True] * (len(ids) - 1)
        np.testing.assert_allclose(outcome.losses[1:], reference_losses(model, ids)[1:], atol=1e-4)
    assert [w for w in scorer.warnings if "bos_token_id 1 is '\"'" in w and "--bos-token" in w]
    outcome, _ = scored(tmp_path, "x", bos_token="1")
    assert outcome.sequence.token_ids.tolist()[0] == 1


@pytest.mark.parametrize(
    ("added", "special", "named", "bos"),
    [
        ("<|start|>", True, 256, 256),
        ("<|start|>", False, 256, 256),
        ("[BOS]", False, 256, 256),
        ("    ", False, 256, None),  # runs of blanks, as GPT-NeoX adds: 50256 is one of them
        ("COVID-19", False, 256, None),
        ("<|start|>", True, 255, None),
    ],
)
def test_an_added_token_is_a_bos_where_it_is_a_control_token(
    added: str, special: bool, named: int, bos: int | None
) -> None:
    own = Tokenizer(models.BPE({c: n for n, c in enumerate(sorted(ALPHABET))}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.add_tokens([AddedToken(added, special=special)])
    made = Tokenization(PreTrainedTokenizerFast(tokenizer_object=own), TokenPolicy(), 300, (named,))
    assert made.bos_id == bos
    assert len(made.warnings) == (bos is None)


def test_a_token_that_a_class_invents_is_no_bos(tmp_path: Path) -> None:
    """GPT-2's end of text, which files of a vocabulary lack, gets the id of an untrained row."""
    model = json.loads(LAYOUTS["gpt2"]().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])))
    config = {"model_type": "gpt2", "vocab_size": 384}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer, (warning,) = loaded_from(tmp_path)
    assert "'<|endoftext|>'" in warning
    made = Tokenization(tokenizer, TokenPolicy(), 384)
    assert (made.bos_id, made.eos_id) == (None, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}))
    assert loaded_from(tmp_path)[0].bos_token == "<|endoftext|>"


def test_the_first_control_token_of_a_list_is_the_eos(tmp_path: Path) -> None:
    """`generation_config.json` has no say, and words in a list are passed over."""
    own = LAYOUTS["gpt2"]()
    model = llama(own.get_vocab_size(), bos_token_id=None, eos_token_id=[70, 2, 1])
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [80, 1]}))
    own.save(str(tmp_path / "tokenizer.json"))
    outcome, scorer = scored(tmp_path, "lead", eos=True)
    assert outcome.sequence.token_ids.tolist()[-1] == 2
    assert outcome.sequence.bos == "none"
    assert scorer.warnings == []


def test_a_name_that_the_vocabulary_lacks_is_not_the_unknown_token() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=LAYOUTS["llama2"](), unk_token="<unk>")
    tokenizer._special_tokens_map["bos_token"] = "<nobody>"
    assert tokenizer.bos_token_id == tokenizer.unk_token_id == 0
    assert Tokenization(tokenizer, TokenPolicy(), 600).bos_id == 1  # the file puts `<s>` in front
    assert Tokenization(tokenizer, TokenPolicy(), 600).vocabulary.bos_id is None


def test_a_directory_without_a_vocabulary_is_not_put_down_to_a_package(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    settings = '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(RunError, match=r"--tokenizer \(transformers finds no vocabulary in it\)$"):
        load_tokenizer(ModelChoice(str(tmp_path)))
