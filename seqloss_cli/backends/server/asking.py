"""A server that was found, and how it is asked: one row in a request, or several of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

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
from seqloss_cli.core.errors import RowError, RunError


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
