"""A server as a `Backend`: many requests at a time, of one row unless it is ours; each answer is
checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from seqloss_cli.backends.server.asking import AnotherProcess, Server
from seqloss_cli.backends.server.known_rows import RECORDED_TOKENS, KnownRow, Watch
from seqloss_cli.backends.server.protocols import Answer, Question, wrong
from seqloss_cli.core.backend import Batch, Capabilities, Requested, TokenScores
from seqloss_cli.core.errors import BatchError, RowError, RunError
from seqloss_cli.core.records import Ints

TOKENS_TOGETHER = 4096
"""Tokens of rows in one request, where several may be: about a batch of the server."""
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
        known: KnownRow,
        watch: Watch,
        scores_after_bos: bool = True,
    ) -> None:
        """`record` is what run records say of the server; `known` was asked for at the start."""
        self._server, self._n_ids, self._watch = server, n_ids, watch
        self._record = {**record, "probe_row": asdict(known.beginning(RECORDED_TOKENS))}
        self.warnings = warnings
        self.n_too_large = 0
        """Always 0: the server's memory is its own."""
        self.capabilities = Capabilities(
            one_row_per_batch=not server.protocol.takes_several,
            tokens_as_they_come=TOKENS_TOGETHER if server.protocol.takes_several else 1,
            # Where each answer names its process, that is asked as soon as it is another one.
            confirm=None if server.processes else watch.confirm,
            n_concurrent_batches=server.transport.gate.most,
            quantities=server.protocol.quantities,
            prefetch_helps=True,
            scores_after_bos=scores_after_bos,
        )

    def vocab_size(self) -> int:
        """Return the number of ids of the tokenizer: the server tells no other."""
        return self._n_ids

    def _answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Return checked answers, of processes of the server that give the known row's numbers.

        Raises RowError, and RunError as `Watch.confirm` does.
        """
        if self.capabilities.confirm is not None:
            self._watch.require_length(max((each.ids for each in questions), key=len))
        for _ in range(_MOST_PROCESSES):
            try:
                found = self._server.ask_all([self._to_show(each) for each in questions])
                pairs = zip(questions, found, strict=True)
                answers = [answer.last(len(each.ids) - each.first) for each, answer in pairs]
                for question, answer in zip(questions, answers, strict=True):
                    self._require_certain(question, answer)
                if self.capabilities.confirm is not None:
                    self._watch.ask_canary()
                return answers
            except AnotherProcess:
                self._watch.confirm()
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
