"""A server as a `Backend`: many requests at a time, of one row unless it is ours; each answer is
checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, cycle
from secrets import token_hex
from typing import Any

import numpy as np

from seqloss_cli.backends.server.protocols import (
    Answer,
    Question,
    ServerProtocol,
    Vllm,
    answered_id,
    kind_of,
    wrong,
)
from seqloss_cli.backends.server.transport import Busy, Refused, Transport
from seqloss_cli.core.backend import Batch, Capabilities, Requested, TokenScores
from seqloss_cli.core.errors import BatchError, RowError, RunError
from seqloss_cli.core.records import Ints

TOKENS_TOGETHER = 4096
"""Tokens of rows in one request, where several may be: about a batch of the server."""


class RowLimit:
    """Rows in one request, at most: as many as the server was found to take, and fewer while it is
    busy."""

    def __init__(self) -> None:
        self._most = self.now = 1 << 30

    def refuse(self, n_taken: int) -> None:
        """Take note of the most that were taken where more were refused."""
        self._most = self.now = min(self._most, n_taken)

    def shrink(self, n: int) -> None:
        """Ask for half of `n` next, for which there was no place."""
        self.now = max(1, n // 2)

    def grow(self, n: int) -> None:
        """Ask for up to twice as many again where `n` had a place."""
        if n >= self.now:
            self.now = min(self._most, 2 * n)


class AnotherProcess(Exception):  # noqa: N818
    """The server was started again, or there are several: these have not been held to a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that was found, and how it is asked."""

    transport: Transport
    protocol: ServerProtocol
    model: str
    """The server's own name of its model."""
    version: str | None
    max_model_len: int | None
    """The most ids that it takes, with the one that it generates; None where it says nothing."""
    dtype: str | None
    """None where it does not say."""
    weights: Mapping[str, str]
    """Its word on its weights, by keys of run records."""
    fingerprint: str | None = None
    """A hash that stands in each answer of `seqloss serve`; None for others."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every request beside the row's own: for probes."""
    rows: RowLimit = field(default_factory=RowLimit)
    """For servers that take several rows in a request."""
    processes: set[str] = field(default_factory=set)
    """Processes of the server that have answered; `seqloss serve` alone names its own."""
    is_settled: bool = False
    """An answer of another process is none: it raises AnotherProcess."""

    def ask(self, question: Question) -> Answer:
        """Return a checked answer. Raises RowError where it cannot be believed, or the server takes
        no such row; RunError where there is none."""
        return self.protocol.read(self.fetch(question), question)

    def can_be_asked(self, question: Question) -> bool:
        """Tell whether the row has a text, where texts are sent."""
        try:
            self.protocol.body(self.model, question)
        except RowError:
            return False
        return True

    def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Return checked answers of several rows, in one request unless it is too much for the
        server. Raises as `ask` does, for any of them."""
        answers: list[Answer] = []
        while len(answers) < len(questions):
            some = questions[len(answers) :][: self.rows.now]
            try:
                answers += self._ask_together(some)
            except Busy:
                self.rows.shrink(len(some))
            except RowError as error:
                if error.reason != "server_refused" or len(some) == 1:
                    raise
                half = (len(some) + 1) // 2
                answers += self.ask_all(some[:half]) + self.ask_all(some[half:])
                self.rows.refuse(half)  # no row was the reason: it was their number, or their bytes
            else:
                self.rows.grow(len(some))
        return answers

    def _ask_together(self, questions: Sequence[Question]) -> list[Answer]:
        if len(questions) == 1:
            return [self.ask(questions[0])]
        assert isinstance(self.protocol, Vllm)
        body = self.protocol.body_of_all(self.model, questions)
        found = self._posted(body, sum(each.most_bytes for each in questions), may_be_cut=True)
        return self.protocol.read_all(found, questions)

    def fetch(self, question: Question) -> Any:
        """Return an answer as it came. Raises as `ask` does."""
        return self._posted(self.protocol.body(self.model, question), question.most_bytes)

    def _posted(self, body: Mapping[str, Any], most_bytes: int, may_be_cut: bool = False) -> Any:
        id_field, own_id = self.protocol.id_field, token_hex(8)
        # A field that nobody reads, so that no cache of answers in between knows the request.
        sent = {**body, **self.options, (id_field or "user"): own_id}
        try:
            found = self.transport.post(self.protocol.path, sent, most_bytes, id_field, may_be_cut)
        except Refused as error:
            if error.status == 404:  # of the path or the model, which no row can help
                raise RunError(
                    f"{self.transport.url} has no {self.protocol.path}, or no model {self.model!r} "
                    f"any more (status 404): {error.text}"
                ) from None
            limit = (
                "" if self.max_model_len else "; if it is too long, --context N sends N + 1 tokens"
            )
            raise RowError(
                "server_refused",
                f"the server does not take it (status {error.status}): {error.text}{limit}",
            ) from None
        said = found if isinstance(found, dict) else {}
        if self.fingerprint is not None and said.get("system_fingerprint") != self.fingerprint:
            raise RunError(
                f"{self.transport.url} serves another model, or other weights, than when the run "
                "began; what came before is written, and --resume goes on once it is as it was"
            )
        process = said.get("instance")
        if isinstance(process, str) or self.processes:
            if self.is_settled and str(process) not in self.processes:
                raise AnotherProcess
            self.processes.add(str(process))
        theirs = said.get("model")
        if theirs not in (None, self.model):
            raise wrong("model", f"is of the model {theirs!r:.80}, not {self.model!r:.80}")
        if id_field and not str(answered_id(found)).startswith(own_id):
            raise wrong("answer", f"is to another request: {kind_of(answered_id(found))}")
        return found


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


RECORDED_TOKENS = 65
"""Tokens of the known row that stand in records: the longer, the more surely other weights show."""
_TRIES = 3
"""Times that the known row is asked for where answers cannot be believed, which may be an accident
of one answer."""
_CANARY_EVERY = 16
"""Requests of which one has a known row beside it, which takes the same way to the server."""
_MOST_PROCESSES = 16
"""Times that rows are asked for where another process of the server answers each time."""


class ServerBackend:
    """Losses that a server computes. `warnings` says what was not checked."""

    def __init__(
        self,
        server: Server,
        n_ids: int,
        record: Mapping[str, Any],
        warnings: list[str],
        known: Sequence[KnownRow],
        scores_after_bos: bool = True,
    ) -> None:
        """`record` is what run records say of the server; `known` was asked for at the start."""
        self._server, self._n_ids = replace(server, is_settled=True), n_ids
        self._turns = cycle(reversed(known))
        recorded = known[0].beginning(RECORDED_TOKENS)
        # Of texts, not each beginning can be asked for; such known rows are short.
        can_be_asked = server.can_be_asked(recorded.question)
        self._canary, self._asked = recorded if can_be_asked else known[0], count(1)
        self._record = {**record, "probe_row": asdict(recorded)}
        self.warnings = warnings
        self.n_too_large = 0
        """Always 0: the server's memory is its own."""
        self.capabilities = Capabilities(
            one_row_per_batch=not server.protocol.takes_several,
            tokens_as_they_come=TOKENS_TOGETHER if server.protocol.takes_several else 1,
            # Where each answer names its process, that is asked as soon as it is another one.
            confirm=None if server.processes else self._confirm,
            n_concurrent_batches=server.transport.gate.most,
            quantities=server.protocol.quantities,
            prefetch_helps=True,
            scores_after_bos=scores_after_bos,
        )

    def vocab_size(self) -> int:
        """Return the number of ids of the tokenizer: the server tells no other."""
        return self._n_ids

    def _confirm(self) -> None:
        """Raises RunError where the server gives other numbers than at the start. Of several rows
        that are known each time another one is asked for."""
        known, server = next(self._turns), replace(self._server, is_settled=False, processes=set())
        self._require_near(self._told(lambda: known.apart(known.again(server))))
        self._server.processes.update(server.processes)

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
        tolerance = self._record["probe_tolerance"]
        if not apart <= tolerance:
            raise RunError(
                f"{self._server.transport.url}: log-probabilities of the same row differ by "
                f"{apart:.2g} nats from those at the start of the run (--probe-tolerance "
                f"{tolerance:g}): the server has other weights under the name "
                f"{self._server.model!r:.80}, or several servers are behind the address; rows "
                "since the last such check are not written, and --resume goes on once it is as it "
                "was"
            )

    def _ask_canary(self) -> None:
        """Ask for a known row among the others, over any of the connections and as busy as the
        server is: replicas and fall-backs with other weights show. Raises RunError."""
        if self.capabilities.confirm is None or next(self._asked) % _CANARY_EVERY:
            return
        known = self._canary

        def apart() -> float:
            found = self._server.ask(known.question).log_probs
            # Their mean: batches of a busy server in bfloat16 differ by more at a single token.
            return float(np.abs(found - np.array(known.log_probs)).mean())

        self._require_near(self._told(apart))

    def _answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Return checked answers, of processes of the server that give the known row's numbers.

        Raises RowError, and RunError as `_confirm` does.
        """
        for _ in range(_MOST_PROCESSES):
            try:
                found = self._server.ask_all([self._to_show(each) for each in questions])
                pairs = zip(questions, found, strict=True)
                answers = [answer.last(len(each.ids) - each.first) for each, answer in pairs]
                for question, answer in zip(questions, answers, strict=True):
                    self._require_certain(question, answer)
                self._ask_canary()
                return answers
            except AnotherProcess:
                self._confirm()
        raise RunError(
            f"{self._server.transport.url}: {_MOST_PROCESSES} answers in turn were of processes "
            "of the server that had not answered before"
        )

    def _to_show(self, question: Question) -> Question:
        """Return the question so that its answer shows tokens that none has shown: those before the
        first scored one decide its number, too."""
        has_shown = self._server.protocol.has_shown
        if has_shown(question.ids):
            return question
        first = question.first if has_shown(question.ids[: question.first]) else 1
        return replace(question, first=first, texts=True)

    def _require_certain(self, question: Question, answer: Answer) -> None:
        """Raises RowError where all values are zeros, and the server's alternatives deny it."""
        if (
            answer.log_probs.any()
            or question.top_k
            or "top_logprobs" not in (self._server.protocol.quantities)
        ):
            return
        # Few tokens, of which a model may be certain: alternatives are held to their values.
        if self._server.ask(replace(question, top_k=1)).log_probs.any():
            raise wrong("zeros", "has zeros only, and other values when it is asked again")

    def describe(self) -> dict[str, Any]:
        """Return its part of the run record."""
        server = self._server
        return {
            **server.weights,
            "model": server.model,
            "dtype": server.dtype,
            "path": "server",
            "engine": self._record,
            "versions": {},
        }

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target of a batch; a `failure` says why there are no scores of its one row.

        Raises BatchError where one of several rows may be the reason, RunError where the server
        gives no answer after all attempts.
        """
        rows = rows_of(batch)
        asked = requested.top_k, requested.asks_for("ranks")
        try:
            questions = [Question(ids, first, *asked) for ids, first, _ in rows]
            answers = self._answers(questions)
            return _scores(answers, [places for _, _, places in rows], requested)
        except RowError as error:
            if len(rows) > 1:
                raise BatchError(error.message) from None
            return _failed(len(batch.targets), requested, error)
        except RunError as error:
            # Rows that are on their way would be asked for again and again. They all tell why:
            # which row's turn it is to be heard, nobody knows.
            self._server.transport.close(str(error))
            raise


def rows_of(batch: Batch) -> list[tuple[list[int], int, Ints]]:
    """Return of each row the ids to send (one more than are fed: the last target), the first that
    is scored, and the places of its targets among those from there on, shape: its targets."""
    assert not batch.suffixes
    ends = np.cumsum(batch.lengths)
    rows, n_targets = [], 0
    for start, end, part in zip(ends - batch.lengths, ends, batch.parts, strict=True):
        here = slice(n_targets, n_targets := n_targets + len(part.targets))
        assert part.score_places == here
        sources, targets = batch.source_positions[here] - start, batch.targets[here]
        assert sources[-1] == end - start - 1, "the last token has a target"
        sent = np.append(batch.input_ids[start:end], targets[-1])
        # Each target is the id that follows the place that predicts it.
        assert (sent[sources + 1] == targets).all()
        first = int(sources[0]) + 1
        rows.append((sent.tolist(), first, sources + 1 - first))
    return rows


def _scores(answers: Sequence[Answer], places: Sequence[Ints], requested: Requested) -> TokenScores:
    def joined(name: str) -> Any:
        found = [getattr(answer, name) for answer in answers]
        if any(each is None for each in found):
            raise RowError("server_missing", f"the server's answer has no {name}")
        return np.concatenate([each[at] for each, at in zip(found, places, strict=True)])

    arrays: dict[str, Any] = {}
    if requested.asks_for("ranks"):
        arrays["ranks"] = joined("ranks")
    if requested.asks_for("top_logprobs"):
        arrays["top_ids"], arrays["top_log_probs"] = joined("top_ids"), joined("top_log_probs")
    # 0.0 - x: of a probability of one the loss is 0, not -0.
    return TokenScores(0.0 - joined("log_probs"), arrays)


def _failed(n: int, requested: Requested, error: RowError) -> TokenScores:
    arrays: dict[str, Any] = {}
    for column in requested.columns:
        shape = (n, requested.top_k) if column.kind == "alternatives" else (n,)
        for name in column.array_names:
            dtype = np.int64 if name in ("ranks", "top_ids") else np.float64
            arrays[name] = np.zeros(shape, dtype=dtype)
    return TokenScores(np.full(n, np.nan), arrays, error)
