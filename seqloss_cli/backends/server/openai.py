"""Completions with `echo` and `logprobs`: ids go there where they are taken, texts where not.

Values of this shape stand in a list, with no id beside them. So it is found out before the first
row where in the list the prompt's tokens are, and which token a value belongs to (`alignment.py`).
llama-cpp-python's server leaves BOS out of its lists and gives no value of the token after it.
Where no BOS stands before a text, its values are those of tokens that are in the context already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqloss_cli.backends.server.agreement import require_own, require_probabilities
from seqloss_cli.backends.server.pieces import Pieces
from seqloss_cli.backends.server.protocols import (
    Answer,
    Question,
    require_choice,
    require_entry,
    require_list,
    require_log_prob,
    require_log_probs,
    wrong,
)
from seqloss_cli.core.errors import RowError

_MAX_TOKENS = 1
"""One token is generated and left out: some servers fill the context where none is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way in which a server of this shape is asked, and in which it answers."""

    as_text: bool = False
    """It takes no ids: texts are sent."""
    spells_bos: bool = False
    """BOS is spelled out in texts, since the server puts none in front."""
    drops_bos: bool = False
    """Its lists begin with the token after BOS, whose value is missing."""
    needs_bos: bool = False
    """Without a BOS its values are not those of the tokens that they stand beside."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The lists of an answer, cut to the tokens of the prompt: the last ones of the row."""

    values: list[Any]
    texts: list[Any]
    tops: list[Any] | None
    """Alternatives at each token, by their texts; None where the answer has none."""

    @property
    def last(self) -> tuple[Any, Any]:
        """The last token's text and value."""
        return self.texts[-1], self.values[-1]


class OpenAi:
    """Completions of OpenAI's older shape."""

    name = "openai"
    path = "/v1/completions"
    quantities = frozenset[str]()
    id_field: str | None = None
    sends_first = takes_several = False

    def __init__(self, pieces: Pieces, way: Way | None = None) -> None:
        self.pieces, self.way = pieces, way or Way()
        self._has_tops = self._has_echo = False

    @property
    def takes_ids(self) -> bool:
        """It takes any ids, and no texts."""
        return not self.way.as_text

    def has_shown(self, ids: Sequence[int]) -> bool:
        """Tell that no text need be asked for: each answer shows those of all tokens."""
        return True

    def body(self, model: str, question: Question) -> dict[str, Any]:
        """Return the request of one row. Raises RowError where it cannot be asked for."""
        ids, way = question.ids, self.way
        if way.needs_bos and not self.pieces.begins_with_bos(ids):
            raise RowError(
                "server_position",
                "it begins with no BOS, and the server gives right values only after one (--bos "
                "always)",
            )
        return {
            "model": model,
            "prompt": self.pieces.text_of(ids, way.spells_bos)[0] if way.as_text else list(ids),
            "max_tokens": _MAX_TOKENS,
            "temperature": 0,
            "echo": True,
            "logprobs": max(1, question.top_k),
        }

    def read(self, answer: Any, question: Question) -> Answer:
        """Return what an answer says of the tokens of the prompt."""
        listed, n_before = self.listed(answer, question), self._n_before(question.ids)
        if listed.values[0] is not None:
            raise wrong("length", "has a log-probability of the first token, which has none")
        start = question.first - n_before
        log_probs = require_log_probs(listed.values[start:], "token_logprobs")
        if listed.tops is None:
            if self._has_tops:
                raise wrong("missing", "has no top_logprobs, which others of this server have")
        else:
            self._has_tops = True
            places = zip(log_probs.tolist(), listed.texts[start:], listed.tops[start:], strict=True)
            for n, (own, text, top) in enumerate(places):
                require_own(own, text, _alternatives(top, n), n, self.pieces.is_shared)
        return Answer(log_probs)

    def listed(self, answer: Any, question: Question) -> Listed:
        """Return the lists of an answer, checked to be about the prompt's tokens."""
        ids, n_before = question.ids, self._n_before(question.ids)
        n_asked = len(ids) - n_before
        if self.way.as_text:
            _, ids = self.pieces.text_of(ids, self.way.spells_bos)
        n_more = self._require_length(answer, len(ids))
        n = len(ids) - n_before
        found = require_entry(require_choice(answer).get("logprobs"), "logprobs")
        values = found.get("token_logprobs")
        n_found = len(values) if isinstance(values, list) else 0
        n_listed = n_found if n < n_found <= n + n_more else n
        values = require_list(values, "token_logprobs", n_listed)
        texts = require_list(found.get("tokens"), "tokens", n_listed)[:n]
        if self.way.as_text:
            self.pieces.require_same_cut(texts, ids[n_before:], "tokens")
        else:
            self.pieces.require_shown(texts, ids[n_before:], "tokens")
            self._require_echo(require_choice(answer).get("text"), ids)
        tops = found.get("top_logprobs")
        if tops is not None:
            tops = require_list(tops, "top_logprobs", n_listed)[:n_asked]
        return Listed(values[:n_asked], texts[:n_asked], tops)

    def _require_echo(self, text: Any, ids: Sequence[int]) -> None:
        """Raises RowError where the text of an answer is not that of the ids, if texts of this
        server were before: parts of characters are shown by nothing in its lists."""
        echo = self.pieces.is_within(text, ids) if isinstance(text, str) else None
        if echo is False and self._has_echo:
            raise wrong("text", f"is about another text: {text!r:.80}")
        self._has_echo = self._has_echo or bool(echo)

    def alternatives(self, answer: Any, question: Question) -> list[Mapping[str, float]]:
        """Return the alternatives at each scored token, by their texts. Raises RowError."""
        listed, n_before = self.listed(answer, question), self._n_before(question.ids)
        if listed.tops is None:
            raise wrong("answer", "has no top_logprobs")
        tops = listed.tops[question.first - n_before :]
        return [_alternatives(each, n) for n, each in enumerate(tops)]

    def _n_before(self, ids: Sequence[int]) -> int:
        """Return the number of tokens that the lists leave out."""
        return int(self.way.drops_bos and self.pieces.begins_with_bos(ids))

    def _require_length(self, answer: Any, n: int) -> int:
        """Return the most tokens that follow the prompt in the lists.

        Raises RowError where the answer is about another number of tokens: a BOS too many, a prompt
        that was cut. Of a text the number must be known.
        """
        usage = require_entry(answer, "an answer").get("usage")
        counts = usage if isinstance(usage, dict) else {}
        theirs, n_more = counts.get("prompt_tokens"), counts.get("completion_tokens")
        if theirs is None and self.way.as_text:
            raise wrong("length", "has no usage.prompt_tokens: the server takes texts only, and "
                        "may put a BOS in front or not")  # fmt: skip
        if theirs not in (None, n):
            raise wrong("length", f"is about {theirs} tokens, not {n} (usage.prompt_tokens)")
        # llama-cpp-python's server goes on within a character, whatever it was asked for.
        return max(_MAX_TOKENS, n_more) if isinstance(n_more, int) else _MAX_TOKENS


def _alternatives(value: Any, n: int) -> Mapping[str, float]:
    """Return alternatives by their texts, checked to be log-probabilities."""
    found = require_entry(value, f"top_logprobs of scored token {n}")
    found = {text: require_log_prob(each) for text, each in found.items()}
    require_probabilities(found, n)
    return found
