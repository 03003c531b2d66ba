"""Find out which token each value of a server belongs to, and how one of OpenAI's shape is asked.

The alternatives that stand beside a token are those of the place before it. So they are the same
for two rows that differ in their last token alone, and others where the token before it differs.
Where they are not, values are one place off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seqloss_cli.backends.server.asking import Server
from seqloss_cli.backends.server.openai import OpenAi, Way
from seqloss_cli.backends.server.pieces import Pieces
from seqloss_cli.backends.server.protocols import Answer, Question, hint_of, wrong
from seqloss_cli.core.errors import RowError, RunError

_N_ALTERNATIVES = 5
"""The most that every server of this shape gives."""
_LENGTHS = (4, 7, 11)
"""Lengths of the rows whose last token is exchanged."""


def find_way(
    server: Server, pieces: Pieces, rows: Sequence[Sequence[int]], tolerance: float
) -> Way:
    """Return the way in which the server is asked and answers, known to give each token its own
    value. `rows` begin with BOS where there is one, and are of four tokens or more.

    Raises RunError where there is no such way.
    """
    way = _taken(server, pieces, rows[0])
    found = with_way(server, pieces, way)
    if trouble := _trouble(found, pieces, rows, tolerance):
        has_bos = pieces.begins_with_bos(rows[0])
        raise RunError(f"{server.transport.url}: {trouble}{'' if has_bos else _WITHOUT_BOS}")
    bare = [row[1:] for row in rows if pieces.begins_with_bos(row)]
    return replace(way, needs_bos=bool(bare and _trouble(found, pieces, bare, tolerance)))


def require_placed(
    server: Server, pieces: Pieces, rows: Sequence[Sequence[int]], tolerance: float
) -> None:
    """Raises RunError where values of a server that shows ids are not of the tokens beside them."""
    if "top_logprobs" not in server.protocol.quantities:
        return
    try:
        trouble = _misplaced(server, pieces, rows, tolerance)
    except RowError as error:
        if error.reason == "server_refused":
            return  # it gives fewer alternatives: then nothing shows what its numbers are, either
        trouble = f"{error.message}; {hint_of(error.reason)}"
    if trouble:
        raise RunError(f"{server.transport.url}: {trouble}")


_WITHOUT_BOS = (
    "; llama-cpp-python's server does this to texts without a BOS, and the tokenizer names none: "
    "--tokenizer names another"
)


def with_way(server: Server, pieces: Pieces, way: Way) -> Server:
    """Return the server, asked in this way."""
    return replace(server, protocol=OpenAi(pieces, way))


def _taken(server: Server, pieces: Pieces, row: Sequence[int]) -> Way:
    """Return a way in which the server answers for a row. Raises RunError where there is none."""
    # Not from the first target on: what follows BOS may have no value.
    question = Question(row, 2)
    ways = [Way(drops_bos=drops) for drops in (False, True)]
    try:
        return _read(server, pieces, ways, question)
    except RowError as error:
        if error.reason != "server_refused":
            hint = hint_of(error.reason)
            raise RunError(f"{server.transport.url}: {error.message}; {hint}") from None
    spelled = (False, True) if pieces.begins_with_bos(row) else (False,)
    failures = []
    for spells in spelled:
        ways = [Way(as_text=True, spells_bos=spells, drops_bos=drops) for drops in (True, False)]
        try:
            return _read(server, pieces, ways, question)
        except RowError as error:
            failures.append(error)
    why = failures[0].message
    if "logits_all" in why:
        why += "; start llama-cpp-python's server with --logits_all true"
    elif failures[0].reason != "server_refused":
        why += f"; {hint_of(failures[0].reason)}"
    raise RunError(f"{server.transport.url} takes no ids, and of texts: {why}")


def _read(server: Server, pieces: Pieces, ways: Sequence[Way], question: Question) -> Way:
    """Return the first way in which the answer to one request can be read; raises RowError."""
    answer = with_way(server, pieces, ways[0]).fetch(question)
    failure: RowError | None = None
    for way in ways:
        try:
            OpenAi(pieces, way).read(answer, question)
        except RowError as error:
            failure = failure or error
        else:
            return way
    assert failure is not None
    raise failure


def _trouble(
    server: Server, pieces: Pieces, rows: Sequence[Sequence[int]], tolerance: float
) -> str | None:
    """Return what `_misplaced` does, or why it cannot be told."""
    try:
        return _misplaced(server, pieces, rows, tolerance)
    except RowError as error:
        return error.message


def _misplaced(
    server: Server, pieces: Pieces, rows: Sequence[Sequence[int]], tolerance: float
) -> str | None:
    """Return what shows that values are not those of the tokens that they stand beside; None where
    they are. Raises RowError where it cannot be told."""
    row = rows[0]
    lengths = [n for n in _LENGTHS if n <= len(row)] or [len(row)]
    places = [_Place(server, pieces, row[:n], [*row[n:], *row[: n - 1]]) for n in lengths]
    if (worst := max(place.apart_with(1) for place in places)) > tolerance:
        return (
            f"the alternatives to a row's last token depend on that token (by {worst:.2g} nats, "
            f"--probe-tolerance {tolerance:g}): its values are not those of the tokens that they "
            "stand beside"
        )
    if (worst := max(place.own_apart() for place in places)) > tolerance:
        return (
            f"a row's last token has another log-probability than as an alternative (by "
            f"{worst:.2g} nats, --probe-tolerance {tolerance:g})"
        )
    # A model whose numbers depend on neither token is one of single tokens: nothing is misplaced.
    longer = [place for place in places if len(place.row) >= 4]
    if all(place.apart_with(2) <= tolerance for place in longer) and any(
        place.apart_with(3) > tolerance for place in longer
    ):
        return (
            "the alternatives to a row's last token do not depend on the token before it, but on "
            "the one before that: its values are a place late"
        )
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    """The last place of a row, of which alternatives are asked for."""

    server: Server
    pieces: Pieces
    row: Sequence[int]
    others: Sequence[int]
    """Ids that stand in the place of one of the row's."""

    def apart_with(self, n: int) -> float:
        """Return by how much the alternatives differ, nats, where the token n places before the end
        is another. Raises RowError."""
        first, second = self._beside(self.row), self._beside(self._exchanged(n))
        # The most probable one stands beside both; others may have given way to the token itself.
        names = {max(each, key=lambda name: each[name]) for each in (first, second)}
        names |= first.keys() & second.keys()
        return max(abs(first.get(name, -math.inf) - second.get(name, -math.inf)) for name in names)

    def own_apart(self) -> float:
        """Return by how much the value of an alternative differs, nats, from that of the same
        token where it stands last; 0 where alternatives have no ids. Raises RowError."""
        if isinstance(self.server.protocol, OpenAi):
            return 0.0  # each answer was held to its own alternatives
        found = self._beside(self.row)
        known = [name for name in found if name != self.row[-1] and self.pieces.is_plain(name)]
        return max(
            (abs(self._answer([*self.row[:-1], n]).log_probs[-1] - found[n]) for n in known[:1]),
            default=0.0,
        )

    def _answer(self, row: Sequence[int]) -> Answer:
        return self.server.ask(Question(row, len(row) - 1, _N_ALTERNATIVES))

    def _beside(self, row: Sequence[int]) -> Mapping[Any, float]:
        """Return the alternatives to the last token of a row, by their texts or ids, best first
        where these are ids; raises RowError."""
        protocol, question = self.server.protocol, Question(row, len(row) - 1, _N_ALTERNATIVES)
        if not isinstance(protocol, OpenAi):
            answer = self._answer(row)
            assert answer.top_ids is not None
            assert answer.top_log_probs is not None
            pairs = zip(answer.top_ids[0].tolist(), answer.top_log_probs[0].tolist(), strict=True)
            return dict(pairs)
        answer = self.server.fetch(question)
        (found,) = protocol.alternatives(answer, question)
        text, value = protocol.listed(answer, question).last
        if text not in found or found[text] != value:
            raise wrong("position", f"has {value} for its last token {text!r:.40}, which its own "
                        f"alternatives do not say: {dict(found)!r:.200}")  # fmt: skip
        return found

    def _exchanged(self, n: int) -> Sequence[int]:
        """Return the row with another token n places before its end, one that can be asked for;
        raises RowError."""
        failure = RowError("server_text", "the tokenizer makes too few tokens to probe the server")
        # Control tokens last: they may be shown as parts of characters are, by nothing.
        for other in sorted(self.others, key=self.pieces.is_plain, reverse=True):
            try:
                found = [*self.row[:-n], other, *self.row[len(self.row) - n + 1 :]]
                if other != self.row[-n]:
                    self.server.protocol.body(self.server.model, Question(found, 1))
                    return found
            except RowError as error:
                failure = error
        raise failure
