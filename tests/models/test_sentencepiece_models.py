"""Directories with a SentencePiece model alone: the ids of the package `sentencepiece`."""

from __future__ import annotations

import base64
import io
import json
import sys
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from helpers.layouts import LINES
from seqloss_cli import ModelChoice
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.models.sentencepiece_models import read_sentencepiece
from seqloss_cli.models.tokenizer_loading import load_tokenizer
from seqloss_cli.tokenization.vocabulary import Vocabulary

sentencepiece = pytest.importorskip("sentencepiece")
PLAIN = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "vocab_size": 500,
}
OWN = ["<start_of_turn>", "he", "▁▁", "▁▁▁"]
MODELS: dict[str, dict[str, Any]] = {
    "llama": PLAIN | {"split_digits": True, "allow_whitespace_only_pieces": True},
    "gemma": PLAIN | {"add_dummy_prefix": False, "user_defined_symbols": OWN},
    "user's": PLAIN | {"user_defined_symbols": OWN},
    "stripping": {"model_type": "bpe", "vocab_size": 200},
    "unigram": {"model_type": "unigram", "vocab_size": 68},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 450},
    "folding": {
        "model_type": "unigram",
        "vocab_size": 66,
        "normalization_rule_name": "nmt_nfkc_cf",
    },
    "unigram, user's": {"model_type": "unigram", "vocab_size": 70, "user_defined_symbols": OWN[:2]},
}
TEXTS = [
    *(
        "a b",
        " lead",
        "lead",
        "trail ",
        "  two",
        "a   b",
        "tab\tx",
        " \n x",
        "a\r\nb",
        "\n\n",
        "  ",
    ),
    *(
        "日本語",
        "🐕‍🦺",
        "é e\u0301 ﬁ Ⅳ",
        "1234567",
        "DON'T don't",
        "naïve",
        "a\u00a0b\u3000c",
        "▁x ▁",
    ),
    *(
        "\u200bx",
        "ＡＢ",
        "<0x41>",
        "a<start_of_turn>b <start_of_turn> c",
        "<start_of_turn>x",
        "▁▁x",
    ),
    *("   three    four", "the", ""),
]


ODD = [
    *("A\u0302\u0301", "ﾊﾟ ｶﾞx", "\u1100\u1161\u11a8", "e\u0327\u0301", "\ufffdx", "\u0344"),
    *("====aaaaa", "aaaaa-----", "x  =====  ~~~~~", "\u2028\u2028aaaaa", "a\0\x01b"),
]
"""Texts that the parts of `tokenizers` normalize in another way, or with several equal cuts."""


@cache
def trained(name: str) -> bytes:
    out, options = io.BytesIO(), {"hard_vocab_limit": False, "minloglevel": 2} | MODELS[name]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, *ODD, *ODD]),
        model_writer=out,
        character_coverage=1.0,
        **options,
    )
    return out.getvalue()


def directory(folder: Path, name: str, **settings: Any) -> Path:
    (folder / "tokenizer.model").write_bytes(trained(name))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 600}))
    return folder


def loaded(folder: Path) -> Any:
    tokenizer, warnings = load_tokenizer(ModelChoice(str(folder), offline=True))
    assert warnings == []
    return tokenizer


def ids_of(tokenizer: Any, *texts: str) -> list[list[int]]:
    return Vocabulary(tokenizer, special_as_text=False).encode([*texts])


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_sentencepiece(name: str, tmp_path: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained(name))
    for cls, legacy in (("LlamaTokenizer", None), ("GemmaTokenizer", False)):
        tokenizer = loaded(directory(tmp_path, name, tokenizer_class=cls, legacy=legacy))
        assert ids_of(tokenizer, *TEXTS, *ODD) == processor.encode([*TEXTS, *ODD])
    assert tokenizer.bos_token_id == processor.bos_id()
    assert tokenizer.eos_token_id == processor.eos_id()
    assert tokenizer.unk_token_id == processor.unk_id()


def test_a_file_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    model = read_sentencepiece(directory(tmp_path, "gemma") / "tokenizer.model")
    assert model is not None
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained("gemma"))
    n = processor.get_piece_size()
    assert model.pieces == [processor.id_to_piece(i) for i in range(n)]
    assert model.scores == pytest.approx([processor.get_score(i) for i in range(n)])
    assert [t == 6 for t in model.types] == [processor.is_byte(i) for i in range(n)]
    assert [t in (3, 4) for t in model.types] == [
        processor.is_control(i) or model.pieces[i] in OWN for i in range(n)
    ]


@pytest.mark.parametrize(("legacy", "stretch"), [(None, "▁x"), (False, "x")])
def test_the_settings_say_whether_a_blank_stands_after_control_tokens(
    legacy: Any, stretch: str, tmp_path: Path
) -> None:
    tokenizer = loaded(directory(tmp_path, "llama", legacy=legacy))
    (ids,) = ids_of(tokenizer, "x</s>x")
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁x", "</s>", stretch]


def test_what_lies_beside_the_model_counts(tmp_path: Path) -> None:
    folder = directory(tmp_path, "llama", eos_token="<|end|>", chat_template="{{ x }}")
    n = len(read_sentencepiece(folder / "tokenizer.model").pieces)  # type: ignore[union-attr]
    (folder / "added_tokens.json").write_text(json.dumps({"<|end|>": n}))
    tokenizer = loaded(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, n)
    assert tokenizer.chat_template == "{{ x }}"
    assert tokenizer.encode("x")[0] == 1


def test_the_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UsageError, match="sentencepiece"):
        loaded(directory(tmp_path, "llama"))


@pytest.mark.parametrize("text", ["A\u0302\u0301</s>ﾊﾟx", "A\u0302\u0301 ऋ", "a<unk>ऋ ﾊﾟ"])
def test_each_token_covers_what_it_was_made_of(text: str, tmp_path: Path) -> None:
    """Unknown characters beside others that only the package knows."""
    vocabulary = Vocabulary(loaded(directory(tmp_path, "unigram")), special_as_text=False)
    (ids,) = vocabulary.encode([text])
    covered, is_exact = vocabulary.token_bytes(text, ids)
    assert covered.is_valid
    assert not is_exact
    names = [vocabulary.name_token(n) for n in ids]
    for name, piece in zip(names, covered.pieces(), strict=True):
        expected = "ऋ" if name == "<unk>" and piece != b"<unk>" else name
        found = unicodedata.normalize("NFKC", piece.decode())
        assert found.strip() == unicodedata.normalize("NFKC", expected).strip()
    assert len(covered.unspelled) == len("ऋ".encode()) * text.count("ऋ")


def test_a_file_that_the_package_cannot_read_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path, "llama")
    # The unknown piece comes twice.
    raw = trained("llama")
    size = 2 + raw[1]
    (folder / "tokenizer.model").write_bytes(raw[:size] + raw)
    with pytest.raises(RunError, match="sentencepiece cannot read it"):
        loaded(folder)


@pytest.mark.parametrize(
    ("file", "cls", "read"),
    [
        ("spiece.model", "T5Tokenizer", True),  # rinna's GPT-2
        ("spiece.model", None, True),
        ("spiece.model", "AlbertTokenizer", False),
        ("sentencepiece.bpe.model", "XGLMTokenizer", False),
        ("sentencepiece.bpe.model", None, False),
    ],
)
def test_models_of_other_names(file: str, cls: str | None, read: bool, tmp_path: Path) -> None:
    """transformers makes XGLM's class without its file: all is unknown to it."""
    folder = directory(tmp_path, "unigram", **({"tokenizer_class": cls} if cls else {}))
    (folder / "tokenizer.model").rename(folder / file)
    (folder / "config.json").write_text(json.dumps({"model_type": "xglm", "vocab_size": 600}))
    if not read:
        with pytest.raises(RunError, match=rf"{file}: .*--tokenizer"):
            loaded(folder)
        return
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained("unigram"))
    assert ids_of(loaded(folder), *TEXTS) == processor.encode(TEXTS)


@pytest.mark.parametrize("option", [{"model_type": "char"}, {"treat_whitespace_as_suffix": True}])
def test_kinds_of_models_that_are_not_read_are_refused(
    option: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "other", {"vocab_size": 90} | option)
    trained.cache_clear()
    with pytest.raises(RunError, match="--tokenizer"):
        loaded(directory(tmp_path, "other"))


def test_a_file_in_the_other_format_needs_the_other_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiktoken's: a line for each token, in base64, with its rank."""
    folder = directory(tmp_path, "llama", tokenizer_class="PreTrainedTokenizerFast")
    lines = (base64.b64encode(bytes([n])).decode() + f" {n}\n" for n in range(256))
    (folder / "tokenizer.model").write_text("".join(lines))
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(RunError, match="pip install tiktoken"):
        loaded(folder)
