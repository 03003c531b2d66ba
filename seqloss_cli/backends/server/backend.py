"""A server as a `Backend`: one row a request, many at a time, each answer checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqloss_cli.backends.server.protocols import Answer, Question, ServerProtocol, wrong
from seqloss_cli.backends.server.transport import Refused, Transport
from seqloss_cli.core.backend import Batch, Capabilities, Requested, TokenScores
from seqloss_cli.core.errors import RowError, RunError
from seqloss_cli.core.records import Ints


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
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every request beside the row's own: for probes."""

    def ask(self, question: Question) -> Answer:
        """Return a checked answer. Raises RowError where it cannot be believed, or the server takes
        no such row; RunError where there is none."""
        return self.protocol.read(self.fetch(question), question)

    def fetch(self, question: Question) -> Any:
        """Return an answer as it came. Raises as `ask` does."""
        body = {**self.protocol.body(self.model, question), **self.options}
        try:
            found = self.transport.post(self.protocol.path, body, question.most_bytes)
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
        theirs = found.get("model") if isinstance(found, dict) else None
        if theirs not in (None, self.model):
            raise wrong("model", f"is of the model {theirs!r:.80}, not {self.model!r:.80}")
        return found


class ServerBackend:
    """Losses that a server computes. `warnings` says what was not checked."""

    def __init__(
        self,
        server: Server,
        n_ids: int,
        record: Mapping[str, Any],
        warnings: list[str],
        scores_after_bos: bool = True,
    ) -> None:
        """`record` is what run records say of the server."""
        self._server, self._n_ids, self._record = server, n_ids, record
        self.warnings = warnings
        self.n_too_large = 0
        """Always 0: the server's memory is its own."""
        self.capabilities = Capabilities(
            one_row_per_batch=True,
            n_concurrent_batches=server.transport.gate.most,
            quantities=server.protocol.quantities,
            prefetch_helps=True,
            scores_after_bos=scores_after_bos,
        )

    def vocab_size(self) -> int:
        """Return the number of ids of the tokenizer: the server tells no other."""
        return self._n_ids

    def describe(self) -> dict[str, Any]:
        """Return its part of the run record."""
        server = self._server
        return {
            "model": server.model,
            "dtype": server.dtype,
            "path": "server",
            "engine": self._record,
            "versions": {},
        }

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        """Score every target of a batch of one row; a `failure` says why there are no scores.

        Raises RunError where the server gives no answer after all attempts.
        """
        ids, first, places = row_of(batch)
        question = Question(ids, first, requested.top_k, requested.asks_for("ranks"))
        try:
            answer = self._server.ask(question)
            return _scores(answer, places, requested)
        except RowError as error:
            return _failed(len(batch.targets), requested, error)
        except RunError as error:
            # Rows that are on their way would be asked for again and again. They all tell why:
            # which row's turn it is to be heard, nobody knows.
            self._server.transport.close(str(error))
            raise


def row_of(batch: Batch) -> tuple[list[int], int, Ints]:
    """Return the ids to send (one more than are fed: the last target), the first that is scored,
    and the places of the batch's targets among those from there on; shape M."""
    assert len(batch.lengths) == 1
    assert not batch.suffixes
    assert batch.source_positions[-1] == len(batch.input_ids) - 1, "the last token has a target"
    sent = np.append(batch.input_ids, batch.targets[-1])
    # Each target is the id that follows the place that predicts it.
    assert (sent[batch.source_positions + 1] == batch.targets).all()
    first = int(batch.source_positions[0]) + 1
    return sent.tolist(), first, batch.source_positions + 1 - first


def _scores(answer: Answer, places: Ints, requested: Requested) -> TokenScores:
    arrays: dict[str, Any] = {}
    if requested.asks_for("ranks"):
        if answer.ranks is None:
            raise RowError("server_missing", "the server's answer has no ranks")
        arrays["ranks"] = answer.ranks[places]
    if requested.asks_for("top_logprobs"):
        assert answer.top_ids is not None
        assert answer.top_log_probs is not None
        arrays["top_ids"] = answer.top_ids[places]
        arrays["top_log_probs"] = answer.top_log_probs[places]
    # 0.0 - x: of a probability of one the loss is 0, not -0.
    return TokenScores(0.0 - answer.log_probs[places], arrays)


def _failed(n: int, requested: Requested, error: RowError) -> TokenScores:
    arrays: dict[str, Any] = {}
    for column in requested.columns:
        shape = (n, requested.top_k) if column.kind == "alternatives" else (n,)
        for name in column.array_names:
            dtype = np.int64 if name in ("ranks", "top_ids") else np.float64
            arrays[name] = np.zeros(shape, dtype=dtype)
    return TokenScores(np.full(n, np.nan), arrays, error)
