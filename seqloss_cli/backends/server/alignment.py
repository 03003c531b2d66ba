"""Find out how a server of OpenAI's shape is asked, and which token each of its values belongs to.

The alternatives that stand beside a token are those of the place before it. So they are the same
for two rows that differ in their last token alone. Where they are not, values are one place off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from seqloss_cli.backends.server.backend import Server
from seqloss_cli.backends.server.openai import OpenAi, Way
from seqloss_cli.backends.server.pieces import Pieces
from seqloss_cli.backends.server.protocols import Question, hint_of, wrong
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
    if trouble := _misplaced(found, rows, tolerance):
        has_bos = pieces.begins_with_bos(rows[0])
        raise RunError(f"{server.transport.url}: {trouble}{'' if has_bos else _WITHOUT_BOS}")
    bare = [row[1:] for row in rows if pieces.begins_with_bos(row)]
    return replace(way, needs_bos=bool(bare and _misplaced(found, bare, tolerance)))


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


def _misplaced(server: Server, rows: Sequence[Sequence[int]], tolerance: float) -> str | None:
    """Return what shows that values are not those of the tokens that they stand beside, or that it
    cannot be told; None where they are."""
    row = rows[0]
    lengths = [n for n in _LENGTHS if n <= len(row)] or [len(row)]
    try:
        worst = max(_dependence(server, row[:n], [*row[n:], *row[: n - 1]]) for n in lengths)
    except RowError as error:
        return error.message
    if worst <= tolerance:
        return None
    return (
        f"the alternatives to a row's last token depend on that token (by {worst:.2g} nats, "
        f"--probe-tolerance {tolerance:g}): its values are not those of the tokens that they stand "
        "beside"
    )


def _dependence(server: Server, row: Sequence[int], others: Sequence[int]) -> float:
    """Return by how much the alternatives to the last token of a row differ, nats, where another of
    `others` stands in its place. Raises RowError."""
    first = _beside_last(server, row)
    second = _beside_last(server, _exchanged(server, row, others))
    # The most probable one stands beside both; others may have given way to the token itself.
    texts = {max(each, key=lambda text: each[text]) for each in (first, second)}
    texts |= first.keys() & second.keys()
    return max(abs(first.get(text, -math.inf) - second.get(text, -math.inf)) for text in texts)


def _beside_last(server: Server, row: Sequence[int]) -> Mapping[str, float]:
    """Return the alternatives to the last token of a row, by their texts; raises RowError."""
    protocol, question = server.protocol, Question(row, len(row) - 1, _N_ALTERNATIVES)
    assert isinstance(protocol, OpenAi)
    answer = server.fetch(question)
    (found,) = protocol.alternatives(answer, question)
    text, value = protocol.listed(answer, question).last
    if text not in found or found[text] != value:
        raise wrong("position", f"has {value} for its last token {text!r:.40}, which its own "
                    f"alternatives do not say: {dict(found)!r:.200}")  # fmt: skip
    return found


def _exchanged(server: Server, row: Sequence[int], others: Sequence[int]) -> Sequence[int]:
    """Return the row with another last token, one that can be asked for; raises RowError."""
    failure = RowError("server_text", "the tokenizer makes too few tokens to probe the server")
    for other in others:
        try:
            found = [*row[:-1], other]
            if other != row[-1]:
                server.protocol.body(server.model, Question(found, 1))
                return found
        except RowError as error:
            failure = error
    raise failure
