"""Rows whose log-probabilities are known, and others beside those of a run: where a server gives
other numbers than at the start, is several servers, or goes wrong in long rows, they show it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, cycle
from random import SystemRandom

import numpy as np

from seqloss_cli.backends.server.asking import Server
from seqloss_cli.backends.server.protocols import Answer, Question
from seqloss_cli.core.errors import RowError, RunError
from seqloss_cli.core.records import Floats

RECORDED_TOKENS = 65
"""Tokens of the known row that stand in records: the longer, the more surely other weights show."""
_TRIES = 3
"""Times that the known row is asked for where answers cannot be believed, which may be an accident
of one answer."""
_CANARY_EVERY = 16
"""Requests of which one has a known row beside it, which takes the same way to the server; so have
the first, second, fourth and eighth one."""
_MUCH_LONGER = 1.25
"""Rows that are so many times as long as any before are held to themselves first."""
_COMMON = (1, 2, 4, 8, 16, 32)
"""Tokens that rows have in common with a known row, which a router may take for the whole."""
_ALIKE, _DRAWN = 4, 8
"""Rows with each common beginning, of one token four times as many, and the tokens that are drawn.
Every other one but those is as long as the known row, for routers by whole blocks."""
_TOGETHER = 64
"""Tokens over which differences of a long row are averaged."""
_SINGLE = 10
"""Times the tolerance by which a single token may differ."""
_draw = SystemRandom()


@dataclass(frozen=True, slots=True)
class KnownRow:
    """A row that a server was asked for: asked again, it tells whether the numbers are the same."""

    token_ids: list[int]
    first: int
    """The first that is scored."""
    log_probs: list[float]
    """Nats, of those from there on."""

    @property
    def question(self) -> Question:
        """The whole row, its texts asked for."""
        return Question(self.token_ids, self.first, texts=True)

    def again(self, server: Server) -> KnownRow:
        """Return the row as the server gives it now: of values that are asked for twice, those
        that are farther from these. Raises as `Server.ask` does."""
        whole = self.question
        middle = (self.first + len(self.token_ids)) // 2
        if not server.protocol.sends_first or middle <= self.first:
            return replace(self, log_probs=server.ask(whole).log_probs.tolist())
        # What a server remembers of a beginning is read only where that is not asked for.
        both = [whole, replace(whole, first=middle)]
        is_one = server.protocol.takes_several
        asked = server.ask_all(both) if is_one else map(server.ask, both)
        found, end = (each.log_probs for each in asked)
        n_before = middle - self.first
        there, known = found[n_before:], np.array(self.log_probs)[n_before:]
        is_farther = np.abs(end - known) > np.abs(there - known)
        farthest = np.concatenate([found[:n_before], np.where(is_farther, end, there)])
        return replace(self, log_probs=farthest.tolist())

    def apart(self, other: KnownRow) -> float:
        """Return the largest difference of a log-probability of the same row, nats."""
        return float(np.abs(np.subtract(self.log_probs, other.log_probs)).max())

    def with_drawn_end(self, n: int, n_more: int) -> Question:
        """Return its first `n` tokens, and at most `n_more` of all of them, drawn at random; no
        longer row than this one."""
        unlike = sorted({*self.token_ids[1:]})  # frequent ones would be drawn again and again
        drawn = _draw.choices(unlike, k=min(n_more, len(self.token_ids) - n))
        return Question([*self.token_ids[:n], *drawn], self.first)

    def beginning(self, n: int) -> KnownRow:
        """Return its first `n` tokens."""
        return KnownRow(self.token_ids[:n], self.first, self.log_probs[: n - self.first])


def ask_again(known: Sequence[KnownRow], server: Server) -> tuple[list[KnownRow], float]:
    """Return known rows as the server gives them now, and by how much they differ, nats.

    The first one once more after the others: what a cache keeps of one that begins alike is read.
    Raises as `Server.ask` does.
    """
    turns = [*known, *(known[:1] if len(known) > 1 else ())]
    found = [each.again(server) for each in turns]
    apart = max(now.apart(then) for now, then in zip(found, turns, strict=True))
    return found[: len(known)], apart


class Watch:
    """Rows that are asked for beside those of a run, of a server that is not ours.

    `longest` is the number of tokens of the longest row that was held to itself; `keep_longest` is
    told of longer ones.
    """

    def __init__(
        self,
        server: Server,
        known: Sequence[KnownRow],
        tolerance: float,
        longest: int,
        keep_longest: Callable[[int], None],
    ) -> None:
        self._server, self._known, self._tolerance = server, known, tolerance
        self._longest, self._keep_longest = longest, keep_longest
        self._turns, self._asked = cycle(reversed(known)), count(1)
        self._lock = threading.Lock()

    def confirm(self) -> None:
        """Raises RunError where the server gives other numbers than at the start. Of several rows
        that are known each time another one is asked for."""
        known, server = next(self._turns), replace(self._server, is_settled=False, processes=set())
        self._require_near(self._told(lambda: known.apart(known.again(server))))
        self._server.processes.update(server.processes)

    def ask_canary(self) -> None:
        """Ask for a known row among the others, over any of the connections and as busy as the
        server is: replicas and fall-backs with other weights show. Raises RunError."""
        n_asked = next(self._asked)
        if n_asked % _CANARY_EVERY and n_asked not in (1, 2, 4, 8):
            return
        known = self._known[0].beginning(RECORDED_TOKENS)
        n = len(known.token_ids)
        if self._server.protocol.takes_ids and n // 4 > known.first:
            # Another end each time: neither a cache of answers nor a router knows the row.
            n_kept = _draw.randrange(n // 4, n * 3 // 4)
            known, row = known.beginning(n_kept), known.with_drawn_end(n_kept, n - n_kept)
        else:
            # Of texts, not each beginning can be asked for, nor each end; such rows are short.
            known = known if self._server.can_be_asked(known.question) else self._known[0]
            row = known.question

        def apart() -> float:
            found = self._server.ask(row).log_probs[: len(known.log_probs)]
            return _largest_mean(np.abs(np.subtract(found, known.log_probs)))

        self._require_near(self._told(apart))

    def require_length(self, ids: Sequence[int]) -> None:
        """Ask for a row that is much longer than any before twice and cut, before a number of it
        counts: blocks of a cache and parts of prompts may be longer than rows of the probe, and
        long rows may be sent to another server. Raises RunError where it depends on that."""
        if len(ids) <= _MUCH_LONGER * self._longest:
            return
        with self._lock:
            if len(ids) <= _MUCH_LONGER * self._longest:
                return
            try:
                apart = self._length_apart(ids)
            except RowError:
                return  # the row itself will say it; the next one is asked for in its place
            if not apart <= self._tolerance:
                raise RunError(
                    f"{self._server.transport.url}: a row of {len(ids)} tokens has "
                    f"log-probabilities that differ by {apart:.2g} nats, a mean of up to "
                    f"{_TOGETHER} tokens, where it is asked for again, without its end, or after a "
                    f"known beginning (--probe-tolerance {self._tolerance:g}): a cache of "
                    "beginnings does that (vLLM: --no-enable-prefix-caching, SGLang: "
                    "--disable-radix-cache), and so do several servers of other weights behind one "
                    "address"
                )
            self._longest = len(ids)
            self._keep_longest(len(ids))

    def _length_apart(self, ids: Sequence[int]) -> float:
        """Return the largest mean difference of neighbours in a row like `ids`, nats."""
        known, ask = self._known[0], self._server.ask
        if not self._server.protocol.takes_ids:  # a text of drawn tokens may have other ones
            whole = Question(ids, known.first)
            cold = ask(whole).log_probs
            ask(known.question)
            return _largest_mean(np.abs(cold - ask(whole).log_probs))
        known = known.beginning(min(RECORDED_TOKENS, len(ids) // 2))
        # What follows is new to the server: what it keeps of the row itself would be the same.
        drawn = _draw.choices(known.token_ids[1:], k=_DRAWN)
        row = [*known.token_ids, *drawn, *ids[len(known.token_ids) + _DRAWN :]][: len(ids)]
        whole, cut = Question(row, known.first), _draw.randrange(len(row) // 2 + 1, len(row))
        cold = ask(whole).log_probs
        # What a server remembers of a beginning is read only where that is not asked for.
        again = replace(whole, first=cut) if self._server.protocol.sends_first else whole
        warm = ask(again).log_probs
        short = ask(replace(whole, ids=row[:cut])).log_probs
        differences = (
            cold[again.first - known.first :] - warm,
            cold[: cut - known.first] - short,
            cold[: len(known.log_probs)] - known.log_probs,
        )
        return max(_largest_mean(np.abs(each)) for each in differences)

    def _told(self, ask: Callable[[], float]) -> float:
        """Return what `ask` does, in a few tries. Raises RunError where no answer is believed: that
        is of no row of the run."""
        for _ in range(_TRIES):
            try:
                return ask()
            except RowError as error:
                message = error.message
        raise RunError(f"{self._server.transport.url}: {message}")

    def _require_near(self, apart: float) -> None:
        """Raises RunError where a known row has other numbers, nats, than at the start."""
        if not apart <= self._tolerance:
            raise RunError(
                f"{self._server.transport.url}: log-probabilities of the same row differ by "
                f"{apart:.2g} nats from those at the start of the run (--probe-tolerance "
                f"{self._tolerance:g}): the server has other weights under the name "
                f"{self._server.model!r:.80}, or several servers are behind the address; rows "
                "since the last such check are not written, and --resume goes on once it is as it "
                "was"
            )


def _largest_mean(differences: Floats) -> float:
    """Return the largest mean of neighbours, or a part of a single one that is larger: batches of a
    busy server in bfloat16 differ by more at one token."""
    n = min(_TOGETHER, len(differences))
    sums = np.concatenate([[0.0], differences.cumsum()])
    return float(max((sums[n:] - sums[:-n]).max() / n, differences.max() / _SINGLE))


def difference_of_beginnings(server: Server, known: KnownRow) -> float:
    """Return by how much rows that begin as a known one differ from it and from each other, nats: a
    mean of the tokens that they have in common, or of alternatives at the one after those.

    A router sends what begins alike to the same one of several servers; these rows have from one
    token to 32 in common. Raises RowError where an answer cannot be believed.
    """
    if not server.protocol.takes_ids:
        return 0.0  # a text of drawn tokens may have other ones
    common = [n for n in _COMMON if known.first <= n < len(known.token_ids)]
    shortest, whole = common[0], len(known.token_ids)
    common = [n for n in common for _ in range(_ALIKE * (4 if n == shortest else 1))]
    drawn = [whole if at % 2 and n > shortest else _DRAWN for at, n in enumerate(common)]
    asked = [known.with_drawn_end(n, n_drawn) for n, n_drawn in zip(common, drawn, strict=True)]
    if "top_logprobs" in server.protocol.quantities:
        try:
            with_tops = [replace(each, top_k=_DRAWN) for each in asked]
            return _apart(server, known, with_tops, common)
        except RowError as error:
            if error.reason != "server_refused":
                raise  # else it gives fewer alternatives
    return _apart(server, known, asked, common)


def _apart(
    server: Server, known: KnownRow, asked: Sequence[Question], common: Sequence[int]
) -> float:
    """Return the worst mean difference of rows that are asked for at once, nats. `common` is how
    many tokens each has in common with the known row."""
    with ThreadPoolExecutor(min(len(asked), server.transport.gate.most)) as pool:
        answers = list(pool.map(server.ask, asked))
    means = [0.0]
    for at, answer in enumerate(answers):
        n = common[at] - known.first  # values that all with this beginning have
        if n:
            means.append(np.abs(answer.log_probs[:n] - known.log_probs[:n]).mean())
        if asked[at].top_k and at and common[at - 1] == common[at]:
            means.append(_alternatives_apart(answers[at - 1], answer, n))
    return float(max(means))


def _alternatives_apart(a: Answer, b: Answer, place: int) -> float:
    """Return the mean difference of a place's alternatives, nats."""
    found: list[dict[int, float]] = []
    for each in (a, b):
        assert each.top_ids is not None
        assert each.top_log_probs is not None
        ids, values = each.top_ids[place].tolist(), each.top_log_probs[place].tolist()
        found.append(dict(zip(ids, values, strict=True)))
    # One that only the other has is as probable as the last one here, at most.
    lowest = [min(each.values()) for each in found]
    apart = [abs(found[0].get(i, lowest[0]) - found[1].get(i, lowest[1]))
             for i in found[0].keys() | found[1].keys()]  # fmt: skip
    return sum(apart) / len(apart)
