"""Vocabularies of GGUF files give llama.cpp's ids (`make test-peers` asks llama.cpp itself)."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from helpers import gguf_files as files
from helpers.builders import llama
from helpers.layouts import BYTES, LAYOUTS
from seqloss_cli import ModelChoice
from seqloss_cli.core.errors import RunError
from seqloss_cli.models.gguf_vocabulary import _CUTS
from seqloss_cli.models.tokenizer_loading import load_tokenizer
from seqloss_cli.tokenization.vocabulary import Vocabulary

TEXTS = [
    *("a b", " lead", "lead", "trail ", "  two", "a   b", "tab\tx", " \n x", "a\r\nb", "\n\n"),
    *("x</s>dog", "x</s> dog", "<s>hello</s><s>hello", "<s> <s>", "</s> x ", "x<unk>y", " </s>"),
    *("日本語", "🐕‍🦺", "1234567", "a12 345x", "DON'T don't I'M I'll", "naïve", "a\u00a0b", "▁x ▁"),
    *(
        "<0x41>",
        "  ",
        "x=$1+2`<=>",
        "½ ² ٣",
        "ab.\n\ncd /\n e",
        "\u3000a",
        "I'LL they've",
        "iPhone",
    ),
    *(
        "नमस्ते हिन्दी",
        "สวัสดี",
        "한국어 カタカナ",
        "a!b ?? ...",
        "12 345 6789",
        "line\r\n\r\n \n\t\tx  \n",
    ),
    *(
        "tail   \n",
        "a\u2028b",
        "(a|b),c.d!e?f…g。h，i",
        "http://x.y/z?a=1#c",
        "' s't",
        "é ﬁ É e\u0301x",
    ),
]
MARKED = [text for text in TEXTS if any(c in text for c in "नสÉ\u0301")]
"""Texts that llama.cpp cuts elsewhere than the models that gpt-4o and tekken are named after."""


def made_of(path: Path) -> tuple[Any, list[str]]:
    return load_tokenizer(ModelChoice(str(path), offline=True))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return Vocabulary(tokenizer, special_as_text=False).encode([text])[0]


def pieces_of(tokenizer: Any, text: str) -> list[str]:
    return [str(tokenizer.convert_ids_to_tokens(n)) for n in ids_of(tokenizer, text)]


def test_a_blank_is_put_before_each_stretch_of_text(tmp_path: Path) -> None:
    """As llama.cpp: also before one that begins with a blank, and after control tokens."""
    tokenizer, _ = made_of(files.write_pieces(tmp_path / "a.gguf", llama(len(files.PIECES))))
    assert pieces_of(tokenizer, " the") == ["▁", "▁the"]
    assert pieces_of(tokenizer, "the") == ["▁the"]
    assert pieces_of(tokenizer, "</s> the") == ["</s>", "▁", "▁the"]
    assert pieces_of(tokenizer, "</s>the") == ["</s>", "▁the"]
    tokenizer, _ = made_of(files.write_like(tmp_path / "b.gguf", LAYOUTS["llama2"](), None))
    for text in TEXTS:
        expected = LAYOUTS["llama2"]().encode(text, add_special_tokens=False).ids
        assert ids_of(tokenizer, text) == expected, text
    assert tokenizer.encode("the")[0] == tokenizer.bos_token_id == 1


def test_the_end_of_a_text_is_a_control_token_whatever_its_type(tmp_path: Path) -> None:
    path = files.write_like(tmp_path / "a.gguf", LAYOUTS["llama2"](), None, changes={"</s>": 1})
    tokenizer, _ = made_of(path)
    assert ids_of(tokenizer, "a</s>b").count(2) == 1
    assert tokenizer.eos_token_id == 2


def test_no_blank_is_put_in_where_the_file_says_so(tmp_path: Path) -> None:
    own = LAYOUTS["gemma"]()
    path = files.write_like(
        tmp_path / "a.gguf", own, None, settings=lambda w: w.add_add_space_prefix(False)
    )
    tokenizer, _ = made_of(path)
    for text in TEXTS:
        assert ids_of(tokenizer, text) == own.encode(text, add_special_tokens=False).ids, text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (2, 1)


def test_pieces_of_the_user_s_are_found_whole(tmp_path: Path) -> None:
    own = Tokenizer.from_str(LAYOUTS["llama2"]().to_str())
    own.add_tokens([AddedToken(piece, normalized=False) for piece in ("lo", "x")])
    tokenizer, _ = made_of(
        files.write_like(tmp_path / "a.gguf", LAYOUTS["llama2"](), None, changes={"lo": 4, "x": 4})
    )
    for text in (*TEXTS, "hello fox"):
        assert ids_of(tokenizer, text) == own.encode(text, add_special_tokens=False).ids, text
    assert "lo" in pieces_of(tokenizer, "hello fox")


TIED = ["▁", *"ab-", "ab", "▁a", "b-", "--", "-b", "bb", "-a", "a▁", "--▁", "aa", "bab", "ba"]


def joined_by(text: str, scores: dict[str, float]) -> list[str]:
    """The oracle: of all neighbours that are a piece, the first of the highest score are joined."""
    parts = [*f"▁{text.replace(' ', '▁')}"]
    while found := [
        (-scores[a + b], n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in scores
    ]:
        _, n = min(found)
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    return parts


@pytest.mark.parametrize("step", [1, 3, 100])
def test_of_equal_scores_the_first_neighbours_are_joined(step: int, tmp_path: Path) -> None:
    """Chinese-LLaMA's added pieces all have the score 0; other files have but one score."""
    pytest.importorskip("sentencepiece")
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *TIED]
    scores = {piece: -float(n // step) for n, piece in enumerate(TIED)}

    def settings(writer: Any) -> None:
        found = writer.kv_data[0]["tokenizer.ggml.scores"]
        found.value = [scores.get(piece, 0.0) for piece in pieces]

    own = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    own.add_special_tokens(pieces[:3])
    tokenizer, _ = made_of(files.write_like(tmp_path / "a.gguf", own, None, settings=settings))
    texts = ["".join(letters) for letters in product("ab- ", repeat=4)]
    found = Vocabulary(tokenizer, special_as_text=False).encode(texts)
    expected = [joined_by(text, scores) for text in texts]
    assert [[pieces[n] for n in ids] for ids in found] == expected
    assert pieces_of(tokenizer, "a</s>--b")[-3:] == ["</s>", *joined_by("--b", scores)][-3:]
    assert hasattr(tokenizer, "sentencepiece_ids") == (step > 1)


def test_bytes_are_found_by_their_names_whatever_their_types(tmp_path: Path) -> None:
    path = files.write_like(
        tmp_path / "a.gguf", LAYOUTS["llama2"](), None, changes=dict.fromkeys(BYTES, 1)
    )
    tokenizer, _ = made_of(path)
    assert pieces_of(tokenizer, "Ω") == ["▁", "<0xCE>", "<0xA9>"]


@pytest.mark.parametrize(
    ("layout", "pre"),
    [
        *(("gpt2", "gpt-2"), ("gpt2", "olmo"), ("llama3", "llama-bpe"), ("llama3", "dbrx")),
        *(("qwen2", "qwen2"), ("qwen2", "deepseek-r1-qwen")),
    ],
)
def test_texts_are_cut_as_the_model_s_own_tokenizer_cuts_them(
    layout: str, pre: str, tmp_path: Path
) -> None:
    own = LAYOUTS[layout]()
    tokenizer, _ = made_of(files.write_like(tmp_path / "a.gguf", own, pre))
    for text in TEXTS:
        if layout == "qwen2" and "\u0301" in text:
            continue  # neither the file nor llama.cpp composes characters
        assert ids_of(tokenizer, text) == own.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize(("pre", "pieces"), [("llama-bpe", ["lead"]), ("dbrx", ["l", "e", "ad"])])
def test_a_word_that_no_merges_lead_to_is_a_piece_where_the_model_takes_it(
    pre: str, pieces: list[str], tmp_path: Path
) -> None:
    own = Tokenizer(models.BPE({c: n for n, c in enumerate(sorted(_ALPHABET))}, []))
    parts = json.loads(own.to_str())
    for piece in ("<unk>", "<s>", "</s>", "ad", "lead"):
        parts["model"]["vocab"][piece] = len(parts["model"]["vocab"])
    parts["model"]["merges"] = [["a", "d"]]
    path = files.write_like(tmp_path / "a.gguf", Tokenizer.from_str(json.dumps(parts)), pre)
    tokenizer, _ = made_of(path)
    assert pieces_of(tokenizer, "lead") == pieces
    # All that take words whole add a BOS where the file does not say.
    assert (tokenizer.encode("l")[0] == tokenizer.bos_token_id) == (pre == "llama-bpe")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.pre", "new-one", "'new-one'.*--tokenizer DIR"),
        ("tokenizer.ggml.pre", None, "does not say how it cuts texts.*--tokenizer DIR"),
        ("tokenizer.ggml.model", "bert", "'bert'.*--tokenizer DIR"),
        ("tokenizer.ggml.model", "t5", "'t5'.*--tokenizer DIR"),
        ("tokenizer.ggml.model", "gemma4", "'gemma4'.*--tokenizer DIR"),
        ("tokenizer.ggml.model", None, "has no tokenizer.*--tokenizer"),
    ],
)
def test_what_is_not_known_is_refused(
    key: str, value: str | None, message: str, tmp_path: Path
) -> None:
    path = files.write_like(
        tmp_path / "a.gguf", LAYOUTS["gpt2"](), "gpt-2", settings=lambda w: _set(w, key, value)
    )
    with pytest.raises(RunError, match=message):
        made_of(path)


def _set(writer: Any, key: str, value: str | None) -> None:
    (fields,) = writer.kv_data
    del fields[key]
    if value is not None:
        fields[key] = gguf.GGUFValue(value, gguf.GGUFValueType.STRING)


def test_a_word_that_the_file_names_as_bos_is_none(tmp_path: Path) -> None:
    def settings(writer: Any) -> None:
        writer.kv_data[0]["tokenizer.ggml.bos_token_id"].value = 40

    own = LAYOUTS["gpt2"]()
    tokenizer, warnings = made_of(
        files.write_like(tmp_path / "a.gguf", own, "llama-bpe", settings=settings)
    )
    assert tokenizer.bos_token is None
    assert repr(own.id_to_token(40)) in warnings[1]
    assert tokenizer.encode("a")[0] != 40


# -- llama.cpp itself ---------------------------------------------------------------------------

_ALPHABET = pre_tokenizers.ByteLevel.alphabet()


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Asks llama.cpp for the ids of a text under a file."""
    xllamacpp = pytest.importorskip("xllamacpp")

    def ask(path: Path, texts: list[str]) -> list[list[int]]:
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), 64, 1
        params.n_gpu_layers, params.warmup, params.verbosity = 0, False, -1
        server = xllamacpp.Server(params)

        def ids(text: str) -> list[int]:
            body = {"content": text, "add_special": False, "parse_special": True}
            request = urllib.request.Request(
                f"{server.listening_address}/tokenize",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request) as answer:
                return list(json.load(answer)["tokens"])

        return [ids(text) for text in texts]

    return ask


@pytest.mark.peers
@pytest.mark.parametrize("prefix", [None, True, False])
@pytest.mark.parametrize("layout", ["llama2", "gemma"])
def test_pieces_by_scores_are_those_of_llama_cpp(
    layout: str, prefix: bool | None, llama_cpp: Any, tmp_path: Path
) -> None:
    def settings(writer: Any) -> None:
        if prefix is not None:
            writer.add_add_space_prefix(prefix)

    changes = {"lo": 4, "▁do": 4, "x": 4, "ow": 5, "</s>": 1}
    path = files.write_like(
        tmp_path / "a.gguf", LAYOUTS[layout](), None, settings=settings, changes=changes
    )
    tokenizer, _ = made_of(path)
    assert [ids_of(tokenizer, text) for text in TEXTS] == llama_cpp(path, TEXTS)


@pytest.mark.peers
@pytest.mark.parametrize("pre", {cuts: pre for pre, cuts in _CUTS.items()}.values())
def test_cuts_are_those_of_llama_cpp(pre: str, llama_cpp: Any, tmp_path: Path) -> None:
    """Merges across every edge of the texts: a cut elsewhere gives other ids."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=_ALPHABET
    )
    own.train_from_iterator(TEXTS * 2, trainer)
    path = files.write_like(tmp_path / "a.gguf", own, pre)
    tokenizer, warnings = made_of(path)
    approximated = any("llama.cpp cuts" in warning for warning in warnings)
    texts = [text for text in TEXTS if not (approximated and text in MARKED)]
    assert [ids_of(tokenizer, text) for text in texts] == llama_cpp(path, texts)
