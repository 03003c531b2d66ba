"""Bytes, characters and words of tokens (rules 10 and 16), against plain loops over the text."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.byte_spans import TokenBytes, char_edges, show_bytes, word_spans
from seqloss_cli.core.records import Sample, TokenSequence

texts = st.text(
    st.one_of(
        st.sampled_from("ab \n\té日🐕\u00a0\u2028\u0301"), st.characters(exclude_categories=["Cs"])
    )
)


@st.composite
def tokens(draw: st.DrawFn) -> TokenBytes:
    """A text cut anywhere, inside characters too, with tokens of no bytes among the others."""
    raw = draw(texts).encode()
    cuts = draw(st.lists(st.integers(0, len(raw)), max_size=12))
    return TokenBytes(raw, np.array([0, *sorted(cuts), len(raw)], dtype=np.int64))


def same(a: TokenBytes, b: TokenBytes) -> bool:
    return a.text == b.text and a.offsets.tolist() == b.offsets.tolist()


def char_widths(text: bytes) -> list[int]:
    return [len(char.encode()) for char in text.decode()]


def is_edge(text: bytes, place: int) -> bool:
    return place in np.cumsum([0, *char_widths(text)]).tolist()


# -- tokens -----------------------------------------------------------------------------------


@given(tokens())
def test_tokens_cover_the_text_once(covered: TokenBytes) -> None:
    pieces = covered.pieces()
    assert b"".join(pieces) == covered.text
    assert [len(piece) for piece in pieces] == covered.widths.tolist()
    assert (covered.ends - covered.starts).tolist() == covered.widths.tolist()
    assert covered.is_valid
    assert same(TokenBytes.join(pieces), covered)
    assert covered.texts() == [show_bytes(piece) for piece in pieces]


def test_offsets_that_step_back_or_end_elsewhere_are_invalid() -> None:
    assert not TokenBytes(b"abc", np.array([0, 2, 1, 3])).is_valid
    assert not TokenBytes(b"abc", np.array([0, 2])).is_valid
    assert not TokenBytes(b"abc", np.array([0, 4])).is_valid


def test_parts_of_characters_are_shown_as_bytes() -> None:
    assert TokenBytes.join(["aé".encode(), b"\xf0\x9f", b"\x90\x95", b""]).texts() == [
        "aé",
        "<0xF0><0x9F>",
        "<0x90><0x95>",
        "",
    ]


@given(tokens(), st.data())
def test_tokens_at_a_span_are_found(covered: TokenBytes, data: st.DataObject) -> None:
    places = st.integers(0, len(covered.text))
    start, end = sorted([data.draw(places), data.draw(places)])
    spans = [*pairwise(covered.offsets.tolist())]
    reaching = [t for t, (a, b) in enumerate(spans) if a >= start or b > start]
    assert covered.first_reaching(start) == min(reaching, default=covered.n_tokens)
    expected = [t for t in reaching if spans[t][0] < end]
    assert [*range(covered.n_tokens)][covered.covering(start, end)] == expected
    within = [start <= a < b <= end for a, b in spans]
    assert covered.within(start, end).tolist() == within


# -- characters -------------------------------------------------------------------------------


@given(texts)
def test_char_edges_are_those_of_utf8(text: str) -> None:
    assert (
        char_edges(text.encode()).tolist() == np.cumsum([0, *char_widths(text.encode())]).tolist()
    )


@given(tokens())
def test_each_character_belongs_to_one_token(covered: TokenBytes) -> None:
    owners, edges = covered.tokens_of_chars(), covered.char_edges()
    assert len(owners) == len(covered.text.decode())
    for owner, end in zip(owners.tolist(), edges[1:].tolist(), strict=True):
        assert covered.offsets[owner] <= end - 1 < covered.offsets[owner + 1]
    for char, start in zip(
        covered.chars_of_tokens().tolist(), covered.starts.tolist(), strict=True
    ):
        assert char == sum(edge <= start for edge in edges[1:].tolist())


@given(tokens())
def test_runs_of_tokens_with_whole_characters_cover_the_text_once(covered: TokenBytes) -> None:
    spans = covered.char_spans()
    parts = [covered.text[start:end].decode() for *_, start, end in spans]
    assert "".join(parts) == covered.text.decode()
    assert [t for first, last, *_ in spans for t in range(first, last)] == [
        *range(covered.n_tokens)
    ]
    for first, last, start, end in spans:
        assert covered.offsets[[first, last]].tolist() == [start, end]
        assert not [t for t in range(first + 1, last) if is_edge(covered.text, covered.offsets[t])]


@given(tokens(), st.data())
def test_a_run_grows_until_its_characters_are_whole(
    covered: TokenBytes, data: st.DataObject
) -> None:
    first, last = sorted(data.draw(st.integers(0, covered.n_tokens)) for _ in range(2))
    before, after = covered.snap(first, last)
    edges = [t for t in range(covered.n_tokens + 1) if is_edge(covered.text, covered.offsets[t])]
    assert before == max(t for t in edges if t <= first)
    assert after == min(t for t in edges if t >= last)
    covered.part(before, after).text.decode()


# -- words ------------------------------------------------------------------------------------


@given(texts)
def test_words_are_those_of_split(text: str) -> None:
    source = text.encode()
    assert [source[a:b].decode() for a, b in word_spans(text).tolist()] == text.split()


@given(tokens())
def test_words_own_tokens_in_order(covered: TokenBytes) -> None:
    words = word_spans(covered.text.decode())
    owners = covered.words_of_tokens(words).tolist()
    expected = [
        min(
            (n for n, end in enumerate(words[:, 1].tolist()) if end > start), default=len(words) - 1
        )
        for start in covered.starts.tolist()
    ]
    assert owners == (expected if len(words) else [])


# -- other tokens and texts -------------------------------------------------------------------


@given(tokens(), st.data())
def test_parts_compose(covered: TokenBytes, data: st.DataObject) -> None:
    a, b = sorted(data.draw(st.integers(0, covered.n_tokens)) for _ in range(2))
    c, d = sorted(data.draw(st.integers(0, b - a)) for _ in range(2))
    part = covered.part(a, b)
    assert part.is_valid
    assert same(part.part(c, d), covered.part(a + c, a + d))
    assert same(covered.part(0, a) + part + covered.part(b, covered.n_tokens), covered)


@given(tokens(), texts, texts)
def test_shifts_compose(covered: TokenBytes, first: str, second: str) -> None:
    once, twice = covered.shift((first + second).encode()), covered.shift(second.encode())
    assert same(twice.shift(first.encode()), once)
    assert once.pieces() == covered.pieces()


@given(tokens(), st.integers(0, 2), st.integers(0, 2))
def test_tokens_around_a_text_cover_nothing(covered: TokenBytes, before: int, after: int) -> None:
    around = covered.surround(before, after)
    assert around.is_valid
    assert around.widths.tolist() == [0] * before + covered.widths.tolist() + [0] * after


@given(tokens(), st.data())
def test_the_bytes_of_dropped_tokens_stay_covered(covered: TokenBytes, data: st.DataObject) -> None:
    first, last = sorted(data.draw(st.integers(0, covered.n_tokens - 1)) for _ in range(2))
    left = covered.drop(slice(first, last))
    assert left.is_valid
    assert left.n_tokens == covered.n_tokens - (last - first)
    assert left.offsets[0] == 0


def test_a_text_without_tokens_goes_to_the_token_that_follows() -> None:
    blank = TokenBytes(b"  ", np.array([0]))
    assert (blank + TokenBytes.join([b"a", b"b"])).offsets.tolist() == [0, 3, 4]


def test_ids_without_a_text_have_no_bytes() -> None:
    ids, mask = np.array([1, 2]), np.ones(2, dtype=bool)
    sequence = TokenSequence(Sample("a", "b"), None, ids, None, mask, mask, "none", "none", {})
    assert TokenBytes.of(sequence) is None
