"""Texts for servers that take no ids, and the proof that they made the same tokens of them.

A server that tokenizes a text itself may cut it elsewhere than we do: another version, a BOS of its
own, a blank in front. What it shows of each token must leave one way to cut the text: ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from seqloss_cli.backends.server.protocols import wrong
from seqloss_cli.core.byte_spans import show_bytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.tokenization.tokenizer import Tokenization

_CUT_ELSEWHERE = "windows are cut elsewhere with another --stride or --context"


class Pieces:
    """The bytes of a tokenizer's ids, and what servers show of them."""

    def __init__(self, tokens: Tokenization) -> None:
        """`tokens` takes special tokens in a text for what they are, as servers do."""
        self._tokens = tokens
        self._vocabulary = tokens.vocabulary
        self.bos_id = tokens.bos_id
        self._shown = set[tuple[str, int]]()
        """Texts and ids that were found to be of one token: most come again and again."""
        self._ids_shown = set[int]()
        self._shows_blanks = False
        """The server has shown the blank before a word: a word without one is another token."""

    def begins_with_bos(self, ids: Sequence[int]) -> bool:
        """Tell whether the first id is the BOS."""
        return self.bos_id is not None and ids[0] == self.bos_id

    def is_plain(self, token_id: int) -> bool:
        """Tell whether an id has a token that is no control token."""
        known = self._vocabulary
        is_one = 0 <= token_id < self._tokens.n_ids and token_id not in known.control
        return is_one and known.written(token_id) is not None

    def text_of(self, ids: Sequence[int], with_bos: bool) -> tuple[str, list[int]]:
        """Return a text that makes these ids, and the ids that it makes: these and perhaps some
        after them. A BOS at the beginning is spelled out with `with_bos`, else left to the server.

        Raises RowError where no text makes them.
        """
        n_before = int(self.begins_with_bos(ids))
        own, before = [*ids[n_before:]], [*ids[:n_before]]
        try:
            text = b"".join(map(self._vocabulary.bytes_of, own)).decode()
        except UnicodeDecodeError:
            raise RowError(
                "server_text",
                "the server takes texts only, and what it would be sent begins or ends within a "
                f"character; {_CUT_ELSEWHERE}",
            ) from None
        # Tokenizers that put a blank in front are given the text without it. A window that ends
        # within a run of blanks has the tokens that something after it leaves there.
        for begun in (text, text[text.startswith(" ") :]):
            for found in (begun, begun + "a"):
                made = self._tokens.encode([found])[0] if begun else []
                if isinstance(made, list) and own and made[: len(own)] == own:
                    name = self._vocabulary.name_token(ids[0]) if before and with_bos else ""
                    return name + found, before + made
        raise RowError(
            "server_text",
            "the server takes texts only, and no text has these tokens where it begins with them; "
            + _CUT_ELSEWHERE,
        )

    def require_shown(self, shown: Sequence[object], ids: Sequence[int], name: str) -> None:
        """Raises RowError where a text that is shown for an id is that of another."""
        for n, (theirs, token_id) in enumerate(zip(shown, ids, strict=True)):
            if isinstance(theirs, str) and (theirs, token_id) in self._shown:
                continue
            if not isinstance(theirs, str) or not self._may_be(theirs, token_id):
                raise self._other(name, n, theirs, token_id)
            self._shown.add((theirs, token_id))
            self._ids_shown.add(token_id)
            is_word = theirs.startswith(" ") and theirs[1:2].isalnum() and self.is_plain(token_id)
            if is_word and theirs.encode() == self._vocabulary.bytes_of(token_id):
                self._shows_blanks = True

    def is_within(self, text: str, ids: Sequence[int]) -> bool | None:
        """Tell whether a text holds that of these ids, but for blanks and control tokens; None
        where it shows parts of characters by a sign, or the ids have no text."""
        plain = [each for each in ids if self.is_plain(each)]
        ours = b"".join(map(self._vocabulary.bytes_of, plain)).decode(errors="ignore")
        ours, theirs = "".join(ours.split()), "".join(text.split())
        return None if "\ufffd" in theirs or not ours else ours in theirs

    def has_shown(self, ids: Sequence[int]) -> bool:
        """Tell whether a text was shown for each id, and was its own."""
        return self._ids_shown.issuperset(ids)

    def require_same_cut(self, shown: Sequence[object], ids: Sequence[int], name: str) -> None:
        """Raises RowError unless what is shown for each id leaves one way to cut the text: ours."""
        for n, (theirs, token_id) in enumerate(zip(shown, ids, strict=True)):
            if theirs not in self._forms(self._vocabulary.bytes_of(token_id)):
                raise self._other(name, n, theirs, token_id)
        if self._n_cuts([str(each) for each in shown], ids) != 1:
            raise wrong("text", "does not show where a character is cut into tokens, and the "
                        "server, which takes texts only, may have cut it elsewhere")  # fmt: skip

    def _other(self, name: str, n: int, theirs: object, token_id: int) -> RowError:
        ours = self._vocabulary.name_token(token_id)
        return wrong(
            "ids", f"is about other tokens: {name}[{n}] is {theirs!r:.40}, sent {ours!r:.40}"
        )

    def _may_be(self, theirs: str, token_id: int) -> bool:
        raw = self._vocabulary.bytes_of(token_id)
        if theirs == f"token_id:{token_id}" or theirs in self._forms(raw):
            return True
        if theirs == self._vocabulary.written(token_id):  # as older versions of vLLM show it
            return True
        try:
            # Some leave blanks out, of tokens that are nothing else, too. Others only those before
            # signs (transformers' clean_up_tokenization_spaces).
            ours = raw.decode()
            is_word = ours.strip()[:1].isalnum() and "'" not in ours
            if ours == theirs or (self._shows_blanks and is_word):
                return ours == theirs
            return ours.strip() == theirs.strip() and bool(ours.strip() or ours.endswith(theirs))
        except UnicodeDecodeError:
            # vLLM shows a character where its last byte is.
            shown = theirs.encode(errors="replace")
            return theirs == "" or "\ufffd" in theirs or shown.endswith(raw)

    def _forms(self, raw: bytes) -> set[str]:
        """Return the ways in which servers show a token: parts of characters are left out or
        replaced, control tokens are left out."""
        found = {raw.decode(errors="ignore"), raw.decode(errors="replace"), show_bytes(raw)}
        return found | {""} if raw in self._controls else found

    def is_shared(self, text: str) -> bool:
        """Tell whether several ids may be shown as this text."""
        return self._n_shown[text.strip()] != 1

    @cached_property
    def _n_shown(self) -> Counter[str]:
        """The number of ids that may be shown as each text, without the blanks around it."""
        spelled = self._vocabulary.spelled_ids(self._tokens.n_ids)
        shown = [self._forms(raw or b"") for raw in spelled]
        return Counter(text for each in shown for text in {form.strip() for form in each})

    @cached_property
    def _controls(self) -> frozenset[bytes]:
        known = self._vocabulary
        return frozenset(map(known.bytes_of, known.control))

    @cached_property
    def _all(self) -> frozenset[bytes]:
        """The bytes of every id."""
        spelled = self._vocabulary.spelled_ids(self._tokens.n_ids)
        return self._controls | {raw for raw in spelled if raw}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._all))

    def _n_cuts(self, shown: Sequence[str], ids: Sequence[int]) -> int:
        """Return the number of ways to cut the bytes of the ids into tokens that would be shown
        like this: 1, or 2 for more."""
        pieces = [self._vocabulary.bytes_of(token_id) for token_id in ids]
        if all(text.encode() == raw for text, raw in zip(shown, pieces, strict=True)):
            return 1
        whole = b"".join(pieces)
        ways = Counter({0: 1})
        for text in shown:
            after = Counter[int]()
            for start, n in ways.items():
                for stop in range(start + 1, min(len(whole), start + self._longest) + 1):
                    raw = whole[start:stop]
                    if raw in self._all and text in self._forms(raw):
                        after[stop] = min(2, after[stop] + n)
            ways = after
        return ways[len(whole)]
