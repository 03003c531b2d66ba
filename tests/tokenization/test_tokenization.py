"""Tokens, the bytes they cover, and what stands around them (rules 4, 5, 6, 10, 13).

The tokenizers are made here, one of each kind that checkpoints bring.
"""

from __future__ import annotations

import json
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch
import transformers as hf
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from helpers.builders import BOS, EOS, N_BYTE_IDS, byte_tokenizer, llama, save_checkpoint
from helpers.fuzz import examples
from helpers.oracles import reference_losses
from seqloss_cli import (
    ModelChoice,
    Rejected,
    RunError,
    Sample,
    Scorer,
    TokenPolicy,
    UsageError,
    totals_of,
)
from seqloss_cli.core.byte_spans import TokenBytes, word_spans
from seqloss_cli.core.records import SequenceScore, TokenSequence
from seqloss_cli.tokenization.byte_offsets import in_order
from seqloss_cli.tokenization.tokenizer import Tokenization

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not.",
    "Ein Käfer läuft über die Straße, während die Katze schläft.",
    "日本語の文章です。東京は日本の首都です。",
    "Быстрая лисица перепрыгнула через ленивую собаку.",
    "مرحبا بالعالم 🐕 naïve café 🐕",
]
NINE_BYTES = "🐕 日x"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


# -- tokenizers -------------------------------------------------------------------------------


def wrapped(tokenizer: Tokenizer, **names: str) -> Any:
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level(prefix_space: bool = False, normalizer: Any = None) -> Any:
    """As GPT-2's, trained."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, bos_token=BOS, eos_token=EOS)


def byte_fallback(normalizer: Any = None, pre_tokenizer: Any = None, n_learnt: int = 300) -> Any:
    """As SentencePiece's BPE: `▁` for a space, `<0xF0>` for the bytes of unknown characters."""
    parts = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    set_parts = {name: part for name, part in parts.items() if part is not None}
    trained = Tokenizer(models.BPE())
    for name, part in set_parts.items():
        setattr(trained, name, part)
    trainer = trainers.BpeTrainer(vocab_size=n_learnt, show_progress=False)
    trained.train_from_iterator([*CORPUS, "▁"], trainer)
    learnt = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *learnt["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: n for n, piece in enumerate(pieces)},
            [tuple(merge) for merge in learnt["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    for name, part in set_parts.items():
        setattr(tokenizer, name, part)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return wrapped(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace() -> Any:
    return byte_fallback(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"))


def old_llama(n_learnt: int = 300) -> Any:
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return byte_fallback(normalizer=normalizers.Sequence(steps), n_learnt=n_learnt)


def gemma() -> Any:
    return byte_fallback(normalizer=normalizers.Replace(" ", "▁"))


def unigram(**names: str) -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, **(names or {"bos_token": "<s>", "unk_token": "<unk>"}))


WORDS = ["The", "fox", "a", "b", "x", ".", "!"]


def words() -> Any:
    pieces = ["<unk>", *WORDS]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(tokenizer, unk_token="<unk>")


def stripping() -> Any:
    """One token a byte, and control tokens that swallow the white space beside them."""
    tokenizer = byte_tokenizer()
    left = AddedToken("<left>", lstrip=True, special=True)
    right = AddedToken("<right>", rstrip=True, special=True)
    tokenizer.backend_tokenizer.add_special_tokens([left, right])
    return wrapped(tokenizer.backend_tokenizer, bos_token=BOS, eos_token=EOS)


KINDS: dict[str, Callable[[], Any]] = {
    "one a byte": byte_tokenizer,
    "byte-level": byte_level,
    "byte-level, prefix space": lambda: byte_level(prefix_space=True),
    "metaspace": metaspace,
    "old llama": old_llama,
    "gemma": gemma,
    "unigram": unigram,
    "words": words,
    "nfc": lambda: byte_level(normalizer=normalizers.NFC()),
    "lowercase": lambda: byte_level(normalizer=normalizers.Lowercase()),
    "stripping": stripping,
}


@cache
def tokenization(kind: str) -> Tokenization:
    """Without BOS, so that the tokens are the text's own."""
    return Tokenization(KINDS[kind](), TokenPolicy(bos="never"), n_ids=1000)


def tokens_of(text: str, tokenization: Tokenization) -> TokenSequence:
    (sequence,) = tokenization.tokenize([Sample("a", "<text>", text=text)])
    assert isinstance(sequence, TokenSequence), sequence
    return sequence


def pieces_of(sequence: TokenSequence, tokenization: Tokenization) -> list[str]:
    backend = tokenization.vocabulary.tokenizer.backend_tokenizer
    return [backend.id_to_token(token_id) for token_id in sequence.token_ids.tolist()]


def covered(sequence: TokenSequence) -> list[str]:
    """The text of each token, where that is whole characters."""
    assert sequence.byte_offsets is not None
    assert sequence.sample.text is not None
    source = sequence.sample.text.encode()
    return [source[a:b].decode() for a, b in pairwise(sequence.byte_offsets.tolist())]


# -- bytes ------------------------------------------------------------------------------------

WHITE_AND_CONTROL = " \n\t\r\0\x1b\x85\u00a0\u200b\u2028\ufeff\ufffd"
odd_characters = st.sampled_from(
    [*WHITE_AND_CONTROL, "🐕", "👩\u200d👧", "e\u0301", "\u0301", "日本"]
)
any_character = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
texts = (
    st.lists(
        st.one_of(
            st.sampled_from(CORPUS), any_character, odd_characters, st.text("aé 日", max_size=9)
        ),
        min_size=1,
        max_size=12,
    )
    .map("".join)
    .filter(bool)
)


def width_byte_level(piece: str) -> int:
    return len(piece)


def width_sentencepiece(piece: str) -> int:
    return 1 if re.fullmatch("<0x..>", piece) else len(piece.replace("▁", " ").encode())


LOSSLESS = {
    "one a byte": (width_byte_level, lambda text: 0),
    "byte-level": (width_byte_level, lambda text: 0),
    "byte-level, prefix space": (width_byte_level, lambda text: not text.startswith(" ")),
    "metaspace": (width_sentencepiece, lambda text: not text.startswith(" ")),
    "old llama": (width_sentencepiece, lambda text: 1),
    "gemma": (width_sentencepiece, lambda text: 0),
    "stripping": (width_byte_level, lambda text: 0),
}
"""How many bytes a piece spells, and how many spaces the tokenizer puts before a text."""


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=texts)
def test_offsets_are_the_bytes_that_the_pieces_spell(kind: str, text: str) -> None:
    width, spaces_before = LOSSLESS[kind]
    sequence = tokens_of(text, tokenization(kind))
    widths = [width(piece) for piece in pieces_of(sequence, tokenization(kind))]
    widths[0] -= spaces_before(text)
    assert sequence.byte_offsets.tolist() == [0, *np.cumsum(widths)]
    assert sequence.byte_offsets[-1] == len(text.encode())
    assert "lossy_tokenizer" not in sequence.flags
    assert "unk_tokens" not in sequence.flags


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_offsets_begin_at_0_never_decrease_and_end_with_the_text(kind: str, text: str) -> None:
    (sequence,) = tokenization(kind).tokenize([Sample("a", "<text>", text=text)])
    if isinstance(sequence, Rejected):
        assert sequence.reason == "no_tokens"
        assert kind == "words"  # which drops white space
        assert not re.search(r"\S", text)
        return
    offsets = sequence.byte_offsets
    assert len(offsets) == sequence.n_tokens + 1
    assert offsets[0] == 0
    assert (np.diff(offsets) >= 0).all()
    assert offsets[-1] == len(text.encode())


def is_changed_by_words(text: str) -> bool:
    return re.search(r"\s", text) is not None or n_unknown_words(text) > 0


def n_unknown_words(text: str) -> int:
    return sum(word not in WORDS for word in re.findall(r"\w+|[^\w\s]+", text))


letters = st.text("aéÉe\u0301 ßẞIİǅΣ日ｶﾞ각", min_size=1)
some_words = st.lists(st.sampled_from([*WORDS, " ", "zzz", "é", "\n"]), min_size=1).map("".join)
LOSSY = {
    "words": (some_words, is_changed_by_words),
    "nfc": (letters, lambda text: unicodedata.normalize("NFC", text) != text),
    "lowercase": (letters, lambda text: text.lower() != text),
}
"""Texts, and whether the tokenizer changes one."""


@pytest.mark.parametrize("kind", LOSSY)
@given(data=st.data())
def test_the_flag_says_exactly_where_characters_were_changed(kind: str, data: Any) -> None:
    kind_texts, is_changed = LOSSY[kind]
    text = data.draw(kind_texts.filter(str.strip))
    flags = tokens_of(text, tokenization(kind)).flags
    assert flags.get("lossy_tokenizer", False) == is_changed(text)


@given(some_words.filter(str.strip))
def test_unknown_words_are_counted_and_are_no_special_tokens(text: str) -> None:
    flags = tokens_of(text, tokenization("words")).flags
    assert flags.get("unk_tokens", 0) == n_unknown_words(text)
    assert "special_tokens" not in flags


@pytest.mark.parametrize("names", [{"unk_token": "<unk>"}, {"bos_token": "<s>"}])
def test_unknown_characters_of_a_unigram_model_are_counted(names: dict[str, str]) -> None:
    """Whether or not the wrapper repeats the name of the model's unknown token."""
    unknown_aware = Tokenization(unigram(**names), TokenPolicy(bos="never"), 1000)
    sequence = tokens_of("fox ऋऌ foxऋ ऌ", unknown_aware)
    assert sequence.flags.get("unk_tokens") == 3
    assert sequence.flags.get("lossy_tokenizer") is True
    assert [piece for piece in covered(sequence) if {*piece} & {*"ऋऌ"}] == ["ऋऌ", "ऋ", "ऌ"]
    known = tokens_of("the fox", unknown_aware)
    assert {"unk_tokens", "lossy_tokenizer"}.isdisjoint(known.flags)


def test_what_lies_between_words_goes_to_the_later_one_and_the_rest_to_the_last() -> None:
    sequence = tokens_of("  The  zzz fox\n", tokenization("words"))
    assert covered(sequence) == ["  The", "  zzz", " fox\n"]


@pytest.mark.parametrize(
    ("kind", "text", "parts"),
    [
        ("nfc", "日e\u0301x", ["日", "e\u0301", "x"]),
        ("lowercase", "日Äx", ["日", "Ä", "x"]),
        ("lowercase", "İx", ["İ", "x"]),
    ],
)
def test_offsets_of_changed_characters_are_those_of_the_source(
    kind: str, text: str, parts: list[str]
) -> None:
    sequence = tokens_of(text, tokenization(kind))
    boundaries = np.cumsum([0, *(len(part.encode()) for part in parts)])
    assert set(boundaries.tolist()) <= set(sequence.byte_offsets.tolist())
    assert len(sequence.unspelled) == 0


def test_a_tokenizer_s_own_spans_may_overlap_or_step_back() -> None:
    starts, ends = in_order(np.array([(0, 2), (0, 1), (0, 0), (2, 3)]))
    assert starts.tolist() == [0, 0, 2, 2]
    assert ends.tolist() == [2, 2, 2, 3]


def test_swallowed_spaces_belong_to_the_token_that_swallowed_them() -> None:
    sequence = tokens_of("a <left> b <right> c", tokenization("stripping"))
    assert covered(sequence) == ["a", " <left>", " ", "b", " ", "<right> ", "c"]
    assert sequence.flags["lossy_tokenizer"] is True
    unswallowed = tokens_of("a<left>b<right>c", tokenization("stripping"))
    assert covered(unswallowed) == ["a", "<left>", "b", "<right>", "c"]
    assert "lossy_tokenizer" not in unswallowed.flags


@pytest.mark.parametrize("kind", ["metaspace", "old llama", "gemma"])
def test_a_literal_space_mark_becomes_a_space_so_the_tokenizer_is_lossy(kind: str) -> None:
    assert tokens_of("a▁b", tokenization(kind)).flags["lossy_tokenizer"] is True


def test_a_space_put_in_after_a_special_token_covers_no_byte() -> None:
    unmerged = Tokenization(old_llama(n_learnt=1), TokenPolicy(bos="never"), 1000)
    sequence = tokens_of("a</s>b</s> x", unmerged)
    pieces = pieces_of(sequence, unmerged)
    assert pieces == ["▁", "a", "</s>", "▁", "b", "</s>", "▁", "▁", "x"]
    assert covered(sequence) == ["", "a", "</s>", "", "b", "</s>", "", " ", "x"]


def test_a_changed_text_is_cut_at_special_tokens() -> None:
    steps = [normalizers.NFC(), normalizers.Prepend("▁"), SPACE_MARK]
    tokenizer = byte_fallback(normalizer=normalized_by(*steps), n_learnt=1)
    unmerged = Tokenization(tokenizer, TokenPolicy(bos="never"), 1000)
    sequence = tokens_of("ae\u0301</s>e\u0301</s> x", unmerged)
    assert covered(sequence) == ["", "a", "e\u0301", "</s>", "", "e\u0301", "</s>", "", " ", "x"]


@pytest.mark.parametrize("added", ["café", "日本", "two words", "<plain>"])
@pytest.mark.parametrize("kind", ["one a byte", "byte-level", "metaspace", "gemma"])
def test_a_word_added_to_the_vocabulary_covers_itself(kind: str, added: str) -> None:
    """Such a piece stands as plain text, also where the others spell bytes."""
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([AddedToken(added, normalized=False)])
    sequence = tokens_of(f"x{added}x", Tokenization(tokenizer, TokenPolicy(bos="never"), 1000))
    assert added in covered(sequence)
    assert "lossy_tokenizer" not in sequence.flags


@pytest.mark.parametrize("kind", KINDS)
def test_nine_bytes_however_they_are_tokenized(kind: str) -> None:
    """Counted as 🐕 4, space 1, 日 3, x 1, and not changed by BOS and EOS."""
    tokenizer = KINDS[kind]()
    has_eos = kind != "words"
    policy = TokenPolicy(bos_token="1", eos=has_eos)
    sequence = tokens_of(NINE_BYTES, Tokenization(tokenizer, policy, 1000, model_eos=(0, 1, 2)))
    n = sequence.n_tokens
    assert sequence.byte_offsets.tolist()[:2] == [0, 0]
    assert sequence.byte_offsets.tolist()[-2:] == [9, 9] or not has_eos
    scored = np.arange(n) > 0
    totals = totals_of(SequenceScore(sequence, np.ones(n), scored, np.arange(n)))
    assert (totals.n_bytes, totals.n_scored_bytes, totals.n_scored_chars) == (9, 9, 4)


def test_a_tokenizer_without_offsets_is_exact_or_refused() -> None:
    bytes_of_t5 = Tokenization(hf.ByT5Tokenizer(), TokenPolicy(bos="never"), 1000)
    assert covered(tokens_of("hello w", bytes_of_t5)) == [*"hello w"]
    (outcome,) = bytes_of_t5.tokenize([Sample("a", "<text>", text="日x")])
    if isinstance(outcome, Rejected):
        assert outcome.reason == "bytes_unknown"
        assert "--tokenizer" in outcome.message
    else:
        assert outcome.byte_offsets.tolist() == [0, 1, 2, 3, 4]


# -- texts that the tokenizer changes, or drops parts of ----------------------------------------


def normalized_by(*steps: Any) -> Any:
    return normalizers.Sequence([*steps])


COLLAPSE = normalizers.Replace(Regex(" {2,}"), " ")
NORMALIZERS = {
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "NFKD": normalizers.NFKD(),
    "NMT": normalizers.Nmt(),
    "lower-cased": normalizers.Lowercase(),
    "lower-cased NFKC": normalized_by(
        normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase()
    ),
    "without accents": normalized_by(normalizers.NFD(), normalizers.StripAccents()),
    "stripped": normalizers.Strip(),
    "collapsed": normalizers.Replace(Regex(r"\s+"), " "),
    "XLNet's": normalized_by(
        normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), COLLAPSE
    ),
    "BERT's": normalizers.BertNormalizer(handle_chinese_chars=False),
}
SPACE_MARK = normalizers.Replace(" ", "▁")
SPELLINGS: dict[str, tuple[Callable[..., Any], Any]] = {
    "byte-level": (byte_level, None),
    "byte fallback": (byte_fallback, SPACE_MARK),
    "byte fallback, prefix blank": (
        byte_fallback,
        normalized_by(normalizers.Prepend("▁"), SPACE_MARK),
    ),
}
"""How tokens spell a text, and the normalizer that this takes."""
marked = ["e\u0301", "E\u0301", "e\u0323\u0302", "a\u0301\u0323", "x\u0338", "\u0344", "\u0301"]
composed = [*"éÉẤйÅªﬁﷺ¼①²Ω", "각", "한국", "ㄱㅏ", "ｶﾞ", "ﾊﾟ", "ガ", "क्षि", "ก็", "שּׁ"]
blanks = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff", "\0", "\x01"]
others = ["İ", "ẞ", "ß", "``", '"', "🐕", "👩\u200d👧", "🇩🇪", "日", "本語", "The", "fox", "x"]
changeable = st.lists(
    st.sampled_from(
        [*marked, *composed, *blanks, *others]
        + [unicodedata.normalize("NFD", word) for word in ("한국어", "Käfer", "Ấ", "й")]
    ),
    min_size=1,
    max_size=9,
).map("".join)


@cache
def with_and_without(spelling: str, name: str) -> tuple[Tokenization, Tokenization]:
    """A tokenizer that normalises texts, and one of the same ids that does not."""
    make, step = SPELLINGS[spelling]
    both = make(normalizer=step), make(normalizer=step)
    norm = NORMALIZERS[name]
    both[0].backend_tokenizer.normalizer = norm if step is None else normalized_by(norm, step)
    first, second = (Tokenization(each, TokenPolicy(bos="never"), n_ids=1000) for each in both)
    return first, second


def seam_at(covered: TokenBytes, place: int) -> tuple[int, bool]:
    """The first token of what begins at a byte, and whether it crosses the byte (rule 9)."""
    first = covered.first_reaching(place)
    return first, first < covered.n_tokens and int(covered.starts[first]) < place


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=examples(60))
@given(name=st.sampled_from([*NORMALIZERS]), text=changeable)
@example(name="XLNet's", text="````")
def test_the_same_ids_have_the_same_words_and_seams_as_for_the_normalised_text(
    spelling: str, name: str, text: str
) -> None:
    """The oracle is the text given already normalised, whose bytes the tokens spell."""
    normalize = NORMALIZERS[name].normalize_str
    ours, reference = with_and_without(spelling, name)
    plain = normalize(text)
    assume(text.strip() and plain.strip())
    (ids,), (same) = ours.vocabulary.encode([text]), reference.vocabulary.encode([plain])
    assert [ids] == same
    covered, _ = ours.vocabulary.token_bytes(text, ids)
    expected, is_exact = reference.vocabulary.token_bytes(plain, ids)
    assert is_exact
    assert covered.is_valid
    graphemes = regex.findall(r"\X", text)
    vanished = [g for g in graphemes if not normalize(f"a{g}a")[1:-1].strip() and not g.isspace()]
    # What a blank was made of, or nothing, is part of a word in one of the two texts only.
    if not vanished and [normalize(word) for word in text.split()] == plain.split():
        owners = [t.words_of_tokens(word_spans(s)) for t, s in ((covered, text), (expected, plain))]
        assert owners[0].tolist() == owners[1].tolist()
    place = 0
    for before, after in pairwise(graphemes):
        place += len(before)
        left, right = normalize(text[:place]), normalize(text[place:])
        if left + right == plain and normalize(before).strip() and normalize(after).strip():
            here = seam_at(covered, len(text[:place].encode()))
            assert here == seam_at(expected, len(left.encode())), text[place:]


def sentencepiece_without(char: str) -> Any:
    """A normalizer as SentencePiece compiles it, a trie of bytes: one that drops a character."""
    units = [0] * 256
    place = 2 ^ ord(char)
    units[0] = 2 << 10
    units[place] = (place ^ 255) << 10 | 1 << 8 | ord(char)  # the value at 255 is 0: ""
    return normalizers.Precompiled(struct.pack("<257I", 4 * len(units), *units) + b"\0")


def test_offsets_hold_behind_what_was_dropped_at_the_beginning() -> None:
    """The library counts them wrong there."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = sentencepiece_without("\x01")
    sequence = tokens_of("\x01ab", Tokenization(tokenizer, TokenPolicy(bos="never"), 1000))
    assert covered(sequence) == ["\x01a", "b"]
    assert sequence.unspelled.tolist() == [0]


def made_of(pieces: Iterable[str], normalizer: Any = None, merges: Any = ()) -> Any:
    """BPE without an unknown token: it drops what it has no piece for."""
    names = [*pieces, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, [*merges]))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return wrapped(tokenizer)


def bytes_of(text: str, unk: str | None = None) -> Any:
    """Byte-level BPE that knows only the bytes of a text, maybe with an unknown token."""
    tokenizer = made_of([*sorted({*byte_alphabet(text)}), *([unk] if unk else [])])
    tokenizer.backend_tokenizer.model.unk_token = unk
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def byte_alphabet(text: str) -> str:
    (piece,) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        text
    )
    return piece[0]


@settings(max_examples=examples(60))
@given(
    pieces=st.sets(st.sampled_from("abé日 🐕\n"), min_size=1),
    merges=st.sets(st.sampled_from([("a", "b"), ("é", "日"), ("日", " "), ("b", "a")])),
    lower=st.booleans(),
    text=st.text("abAÉé日 🐕\n\u0301", min_size=1, max_size=12),
)
@example({"a", "b"}, {("a", "b"), ("b", "a")}, False, "bAabÉ")
def test_each_character_that_was_dropped_is_counted(
    pieces: set[str], merges: set[tuple[str, str]], lower: bool, text: str
) -> None:
    """The oracle asks of each character alone whether it is in the vocabulary."""
    known = [pair for pair in merges if {*pair} <= pieces]
    tokenizer = made_of(sorted(pieces), normalizers.Lowercase() if lower else None, known)
    held = [(char.lower() if lower else char) in pieces for char in text]
    (sequence,) = Tokenization(tokenizer, TokenPolicy(bos="never"), 1000).tokenize(
        [Sample("a", "<text>", text=text)]
    )
    if not any(held):
        assert isinstance(sequence, Rejected)
        return
    widths = [len(char.encode()) for char in text]
    assert sequence.unspelled.tolist() == np.flatnonzero(~np.repeat(held, widths)).tolist()
    # A token ends with the last character that it spells; the last one with the text.
    ends = np.cumsum(widths)[held]
    assert {*sequence.byte_offsets[1:-1].tolist()} <= {*ends.tolist()}


@pytest.mark.parametrize(
    ("tokenizer", "text", "parts", "n_unspelled"),
    [
        (made_of("abc "), "ab吾c 吾", ["a", "b", "吾c", " 吾"], 6),
        (made_of("naive", merges=[("a", "v"), ("av", "e")]), "naïve", ["n", "aïve"], 2),
        (made_of("abc ", normalizers.Lowercase()), "A, B!", ["A", ", ", "B!"], 2),
        (made_of("eax"), "e\u0301x", ["e", "\u0301x"], 2),
        (made_of("ex", NORMALIZERS["without accents"]), "e\u0301x", ["e\u0301", "x"], 0),
        (made_of("ab", normalizers.Nmt()), "a\x01b", ["a", "\x01b"], 1),
        (made_of("ab"), "a b", ["a", " b"], 1),
        (made_of("ab", COLLAPSE), "a b", ["a", " b"], 1),
        (bytes_of("日x"), "日本x", None, 2),
        (bytes_of("日x", unk="<unk>"), "日本x", None, 2),
        (words(), "The zzz  fox <unk>\n", ["The", " zzz", "  fox", " <unk>\n"], 3),
        (unigram(), "fox ऋऌ", None, 6),
    ],
)  # fmt: skip
def test_bytes_that_no_token_stands_for_are_counted(
    tokenizer: Any, text: str, parts: list[str] | None, n_unspelled: int
) -> None:
    """What was changed is spelled; blanks between words are, too, if words are split at them."""
    sequence = tokens_of(text, Tokenization(tokenizer, TokenPolicy(bos="never"), 1000))
    assert parts is None or covered(sequence) == parts
    assert len(sequence.unspelled) == n_unspelled
    assert sequence.flags.get("unspelled_text", False) == bool(n_unspelled)
    assert sequence.flags["lossy_tokenizer"] is True


# -- BOS --------------------------------------------------------------------------------------


def around_text(tokenizer: Any, template: str, **names: str) -> Any:
    """The tokenizer with tokens that it puts around a text by itself."""
    backend = tokenizer.backend_tokenizer
    special = [(name, backend.token_to_id(name)) for name in (BOS, EOS)]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return wrapped(backend, **names)


def nameless(template: str = "$A") -> Any:
    return around_text(byte_tokenizer(), template)


def named(template: str = "$A") -> Any:
    return around_text(byte_tokenizer(), template, bos_token=BOS, eos_token=EOS)


def ids_of(text: str) -> list[int]:
    """Of a text without special tokens, in the vocabulary of the byte tokenizer."""
    return byte_tokenizer().backend_tokenizer.encode(text).ids


def tokenized(
    tokenizer: Any, text: str, model_bos: int | None = None, **policy: Any
) -> TokenSequence:
    made = Tokenization(
        tokenizer, TokenPolicy(**policy), N_BYTE_IDS, () if model_bos is None else (model_bos,)
    )
    return tokens_of(text, made)


@pytest.mark.parametrize("text", ["hi", "日x", " "])
@pytest.mark.parametrize(
    ("tokenizer", "model_bos", "policy", "before", "origin"),
    [
        (named(f"{BOS} $A"), None, {}, [0], "tokenizer"),
        (nameless(f"{BOS} $A"), None, {}, [0], "tokenizer"),
        (named(f"{BOS} $A"), None, {"bos": "always"}, [0], "tokenizer"),
        (named(f"{BOS} $A"), None, {"bos": "never"}, [], "none"),
        (named(f"{BOS} $A"), None, {"bos_token": EOS}, [1], "prepended"),
        (named(), None, {}, [0], "prepended"),
        (named(), None, {"bos": "always"}, [0], "prepended"),
        (named(), None, {"bos": "never"}, [], "none"),
        (named(), 1, {}, [0], "prepended"),
        (nameless(), 1, {}, [1], "prepended"),
        (nameless(), None, {}, [], "none"),
        (nameless(), None, {"bos_token": EOS}, [1], "prepended"),
        (nameless(), None, {"bos_token": "1"}, [1], "prepended"),
        (nameless(), None, {"bos_token": "0", "bos": "always"}, [0], "prepended"),
        (nameless(), None, {"bos_token": "257"}, [257], "prepended"),
    ],
)
def test_what_is_put_before_a_text(
    tokenizer: Any, model_bos: Any, policy: Any, before: list[int], origin: str, text: str
) -> None:
    sequence = tokenized(tokenizer, text, model_bos, **policy)
    assert sequence.token_ids.tolist() == before + ids_of(text)
    assert sequence.bos == origin
    assert sequence.begins_with_bos == bool(before)
    assert sequence.byte_offsets.tolist() == [0] * len(before) + list(range(len(text.encode()) + 1))
    assert sequence.flags == ({} if before else {"first_token_unscored": True})


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
@pytest.mark.parametrize("template", ["$A", f"{BOS} $A"])
def test_a_text_that_begins_with_bos_gets_no_second_one(template: str, bos: Any) -> None:
    sequence = tokenized(named(template), "<bos>hi", bos=bos)
    assert sequence.token_ids.tolist() == [0, *ids_of("hi")]
    assert sequence.bos == "text"
    assert sequence.byte_offsets.tolist() == [0, 5, 6, 7]
    assert "first_token_unscored" not in sequence.flags


@pytest.mark.parametrize(
    ("tokenizer", "policy", "message"),
    [
        (nameless(), {"bos": "always"}, "--bos-token"),
        (nameless(), {"bos_token": "<nobody>"}, "--bos-token"),
        (nameless(), {"bos_token": "258"}, "--bos-token"),
        (nameless(), {"bos_token": "-1"}, "--bos-token"),
        (named(), {"bos_token": BOS, "bos": "never"}, "--bos never"),
        (named(f"{BOS} {EOS} $A"), {}, "--bos-token.*--bos never"),
        (nameless(), {"eos": True}, "--eos-token"),
        (nameless(), {"eos_token": "<nobody>"}, "--eos-token: '<nobody>'"),
        (nameless(), {"eos_token": "258"}, "--eos-token"),
    ],
)
def test_policies_that_the_tokenizer_cannot_follow(
    tokenizer: Any, policy: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Tokenization(tokenizer, TokenPolicy(**policy), N_BYTE_IDS)


@pytest.mark.parametrize(("policy", "before"), [({"bos": "never"}, []), ({"bos_token": BOS}, [0])])
def test_two_tokens_before_a_text_are_left_out_on_demand(policy: Any, before: list[int]) -> None:
    sequence = tokenized(named(f"{EOS} {BOS} $A"), "hi", **policy)
    assert sequence.token_ids.tolist() == before + ids_of("hi")


# -- EOS and special-token text ---------------------------------------------------------------


@pytest.mark.parametrize("template", ["$A", f"$A {EOS}", f"{BOS} $A {EOS}"])
@pytest.mark.parametrize(
    ("text", "eos", "after", "origin"),
    [
        ("hi", False, [], "none"),
        ("hi", True, [1], "appended"),
        ("hi<eos>", False, [1], "text"),
        ("hi<eos>", True, [1], "text"),
    ],
)
def test_eos_stands_only_where_it_was_asked_for(
    template: str, text: str, eos: bool, after: list[int], origin: str
) -> None:
    sequence = tokenized(named(template), text, eos=eos)
    assert sequence.token_ids.tolist() == [0, *ids_of("hi"), *after]
    assert sequence.eos == origin
    assert sequence.byte_offsets[-1] == len(text)
    assert np.diff(sequence.byte_offsets)[-1] == (0 if origin == "appended" else len(text) - 2 or 1)
    assert sequence.loss_mask[1:].all()


def test_the_model_names_eos_where_the_tokenizer_does_not() -> None:
    made = Tokenization(nameless(), TokenPolicy(eos=True), N_BYTE_IDS, model_eos=(1,))
    assert tokens_of("hi", made).token_ids.tolist() == [*ids_of("hi"), 1]


@pytest.mark.parametrize("written", [EOS, "1", 1])
def test_the_user_names_eos(written: Any) -> None:
    """In place of the model's, and of one that is a word."""
    policy = TokenPolicy(eos=True, eos_token=written)
    for names in ((), (0,), (5,)):
        made = Tokenization(nameless(), policy, N_BYTE_IDS, model_eos=names)
        assert tokens_of("hi", made).token_ids.tolist() == [*ids_of("hi"), 1]
        assert tokens_of("hi<eos>", made).eos == "text"
        assert made.warnings == []


def test_special_token_text_is_parsed_and_counted() -> None:
    sequence = tokenized(named(), "a<eos>b<bos><eos>")
    assert sequence.token_ids.tolist() == [0, *ids_of("a"), 1, *ids_of("b"), 0, 1]
    assert sequence.flags == {"special_tokens": 3}
    assert sequence.byte_offsets.tolist() == [0, 0, 1, 6, 7, 12, 17]


def test_special_token_text_is_taken_as_text_and_counted() -> None:
    sequence = tokenized(named(), "<bos>a<eos>", special_tokens="text")
    assert sequence.token_ids.tolist() == [0, *[ids_of(char)[0] for char in "<bos>a<eos>"]]
    assert (sequence.bos, sequence.eos) == ("prepended", "none")
    assert sequence.flags == {"special_tokens": 2}


def test_special_token_text_is_refused_on_demand() -> None:
    made = Tokenization(named(), TokenPolicy(special_tokens="error"), N_BYTE_IDS)
    bad, good = made.tokenize(
        [Sample("a", "f", 7, text="ab<eos>"), Sample("b", "f", 8, text="plain <text>")]
    )
    assert isinstance(bad, Rejected)
    assert (bad.id, bad.line, bad.reason) == ("a", 7, "special_token_text")
    assert "<eos>" in bad.message
    assert "character 2" in bad.message
    assert isinstance(good, TokenSequence)
    assert good.flags == {}


# -- rows of ids ------------------------------------------------------------------------------


def sample_of_ids(ids: list[int], labels: list[int] | None = None) -> Sample:
    as_array = None if labels is None else np.array(labels)
    return Sample("ids", "<rows>", input_ids=np.array(ids), labels=as_array)


def test_ids_are_taken_as_they_are() -> None:
    made = Tokenization(named(f"{BOS} $A {EOS}"), TokenPolicy(), N_BYTE_IDS)
    bare, with_bos = made.tokenize([sample_of_ids([5, 6, 7]), sample_of_ids([0, 5, 1])])
    assert bare.token_ids.tolist() == [5, 6, 7]
    assert (bare.bos, bare.eos) == ("none", "none")
    assert bare.flags == {"first_token_unscored": True}
    assert bare.byte_offsets is None
    assert with_bos.token_ids.tolist() == [0, 5, 1]
    assert (with_bos.bos, with_bos.eos) == ("text", "text")
    assert with_bos.flags == {}


def test_labels_say_where_the_loss_counts() -> None:
    made = Tokenization(named(), TokenPolicy(), N_BYTE_IDS)
    (sequence,) = made.tokenize([sample_of_ids([0, 5, 6, 7], [-100, -100, 6, 7])])
    assert sequence.loss_mask.tolist() == [False, False, True, True]


@pytest.mark.parametrize(("bad_id", "position"), [(258, 1), (-1, 1), (10**12, 1)])
def test_an_id_that_the_model_does_not_embed_costs_its_row_only(bad_id: int, position: int) -> None:
    made = Tokenization(named(), TokenPolicy(), N_BYTE_IDS)
    items = [sample_of_ids([0, bad_id]), Sample("b", "<text>", text="b"), sample_of_ids([0, 257])]
    rejected, text, largest = made.tokenize(items)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "id_out_of_range"
    assert str(bad_id) in rejected.message
    assert f"token {position}" in rejected.message
    assert text.token_ids.tolist() == [0, *ids_of("b")]
    assert largest.token_ids.tolist() == [0, 257]


def test_a_text_without_a_token_is_rejected() -> None:
    made = Tokenization(named(), TokenPolicy(), N_BYTE_IDS)
    (outcome,) = made.tokenize([Sample("a", "<text>", text="")])
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "no_tokens"


# -- names ------------------------------------------------------------------------------------


def test_names_of_tokens() -> None:
    made = Tokenization(named(), TokenPolicy(), n_ids=300)
    assert [made.name_token(token_id) for token_id in [0, 1, *ids_of("x \n")]] == [
        BOS,
        EOS,
        "x",
        " ",
        "\n",
    ]
    assert [made.name_token(token_id) for token_id in ids_of("🐕é")] == [
        *["<0xF0>", "<0x9F>", "<0x90>", "<0x95>"],
        *["<0xC3>", "<0xA9>"],
    ]
    assert "299" in made.name_token(299)


def test_texts_of_tokens() -> None:
    sequence_of = Tokenization(named(), TokenPolicy(eos=True), N_BYTE_IDS)
    sequence = tokens_of("日x", sequence_of)
    assert sequence_of.token_texts(sequence) == [BOS, "<0xE6>", "<0x97>", "<0xA5>", "x", EOS]
    sequence = tokens_of("<bos>x<eos>", sequence_of)
    assert sequence_of.token_texts(sequence) == [BOS, "x", EOS]
    (sequence,) = sequence_of.tokenize([sample_of_ids([0, *ids_of("é")])])
    assert sequence_of.token_texts(sequence)[:3] == [BOS, "<0xC3>", "<0xA9>"]


@pytest.mark.parametrize("kind", ["byte-level", "metaspace", "gemma", "words"])
@given(text=st.text("The fox\n.!a", min_size=1).filter(str.strip))
def test_texts_of_tokens_join_to_the_source(kind: str, text: str) -> None:
    sequence = tokens_of(text, tokenization(kind))
    assert "".join(tokenization(kind).token_texts(sequence)) == text


# -- the tokenizer that a checkpoint brings ---------------------------------------------------

FAMILIES = {"gpt2": hf.GPT2LMHeadModel, "llama": hf.LlamaForCausalLM, "qwen2": hf.Qwen2ForCausalLM}


def model_of(family: str, n_ids: int) -> Any:
    config = {"vocab_size": n_ids, "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        config |= {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
    else:
        config |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        config |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = FAMILIES[family](FAMILIES[family].config_class(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def score_in(folder: Path, text: str, **policy: Any) -> tuple[Any, Scorer]:
    scorer = Scorer(ModelChoice(name=str(folder)), TokenPolicy(**policy))
    (outcome,) = scorer.score([Sample("a", "<text>", text=text)])
    return outcome, scorer


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("configured", [True, False], ids=["configured", "tokenizer.json only"])
def test_the_directory_s_own_tokenizer_is_the_one_that_counts(
    family: str, configured: bool, tmp_path: Path
) -> None:
    """AutoTokenizer puts a byte-level class in the place of this SentencePiece-like one."""
    own = old_llama()
    model = model_of(family, len(own))
    save_checkpoint(tmp_path, model, own)
    if not configured:
        (tmp_path / "tokenizer_config.json").unlink()
    text = "The fox läuft über日本."
    ids = [1, *own.encode(text, add_special_tokens=False)]
    outcome, scorer = score_in(tmp_path, text)
    assert isinstance(outcome, SequenceScore), outcome
    assert outcome.sequence.token_ids.tolist() == ids
    np.testing.assert_allclose(outcome.losses[1:], reference_losses(model, ids)[1:], atol=1e-4)
    automatic = hf.AutoTokenizer.from_pretrained(tmp_path)
    replaced = automatic.encode(text, add_special_tokens=False) != ids[1:]
    assert ["tokenizer.json" in warning for warning in scorer.warnings] == [True] * replaced
    assert replaced or (family, configured) == ("gpt2", True)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("configured", [True, False], ids=["configured", "tokenizer.json only"])
def test_a_class_that_adds_tokens_of_its_own_adds_none(
    family: str, configured: bool, tmp_path: Path
) -> None:
    """These classes add `<|endoftext|>` as BOS or EOS, an id that the model does not embed."""
    model = model_of(family, N_BYTE_IDS)
    save_checkpoint(tmp_path, model, byte_tokenizer())
    if not configured:
        (tmp_path / "tokenizer_config.json").unlink()
    outcome, scorer = score_in(tmp_path, "a<|endoftext|>b", eos=configured)
    assert isinstance(outcome, SequenceScore), outcome
    bos, eos = (0, [1]) if configured else (1, [])  # the tokenizer's, else the model's
    assert outcome.sequence.token_ids.tolist() == [bos, *ids_of("a<|endoftext|>b"), *eos]
    # Id 2, the model's EOS, is the piece `!`.
    assert any("eos_token_id 2 is '!'" in warning for warning in scorer.warnings) != configured


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_without_tokenizer_is_refused_and_another_can_be_named(
    family: str, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "model", model_of(family, N_BYTE_IDS), None)
    with pytest.raises(RunError, match="--tokenizer"):
        Scorer(ModelChoice(name=str(folder)))
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    choice = ModelChoice(name=str(folder), tokenizer=str(tmp_path / "tokenizer"))
    (outcome,) = Scorer(choice).score([Sample("a", "<text>", text="hi")])
    assert outcome.sequence.token_ids.tolist() == [0, *ids_of("hi")]


def test_a_tokenizer_that_is_loaded_as_it_stands_gives_no_warning(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, llama(), byte_tokenizer())
    assert Scorer(ModelChoice(name=str(folder))).warnings == []


def test_the_demo_model_gives_no_warning(demo: Any) -> None:
    assert demo.warnings == []
