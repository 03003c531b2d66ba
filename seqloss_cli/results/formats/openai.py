"""The legacy completions object."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, BinaryIO

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.formats.json import Document
from seqloss_cli.results.schema import Rows, json_bytes, numbers_or_null
from seqloss_cli.results.schema.score_keys import top_log_probs


class OpenAIWriter(Document):
    """The legacy completions object with `logprobs`, a choice for each sequence.

    Log-probabilities in nats; `text_offset` in characters; `top_logprobs` is null unless --top-k
    asked for it. `seqloss` holds the run, rejected inputs and totals.
    """

    def __init__(self, sink: BinaryIO, rows: Rows[SequenceScore, Totals, Any]) -> None:
        super().__init__(sink)
        self._options, self._totals = rows.options, rows.totals

    def begin(self, run: RunInfo) -> None:
        self._run, self._index = json_bytes(asdict(run)), 0
        self._sink.write(
            b'{"object":"text_completion","model":%s,\n"choices":[' % json_bytes(run.model)
        )

    def sequence(self, result: SequenceScore, sums: Totals) -> None:
        if self._options.summary:
            return
        score, tokens = result, self._options.token_texts(result.sequence)
        top = None
        if score.top_ids is not None:
            top = [
                None if row is None else {entry["token"]: entry["log_prob"] for entry in row}
                for row in top_log_probs(score, self._options.name_token)
            ]
        choice = {
            "index": self._index,
            "id": score.sequence.sample.id,
            "text": score.sequence.text if self._options.text else None,
            "finish_reason": "length",
            "logprobs": {
                "tokens": tokens,
                "token_logprobs": numbers_or_null(0.0 - score.losses, score.scored),
                "top_logprobs": top,
                "text_offset": _char_offsets(score),
            },
        }
        self._index += 1
        self._element(choice)

    def end(self, sums: Totals, n_rejected: int, n_empty_lines: int) -> None:
        closing = json_bytes(self._totals(sums, n_rejected, n_empty_lines))
        self._sink.write(b'],\n"seqloss":{"run":' + self._run + b',"rejected":[')
        self._write_rejected()
        self._sink.write(b'],"totals":' + closing + b"}}\n")


def _char_offsets(score: SequenceScore) -> list[int] | None:
    """For each token the character in which its first byte lies."""
    covered = TokenBytes.of(score.sequence)
    return None if covered is None else covered.chars_of_tokens().tolist()
