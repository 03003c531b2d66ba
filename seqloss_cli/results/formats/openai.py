"""The legacy completions object of OpenAI's servers, with `logprobs`."""

from __future__ import annotations

from dataclasses import asdict

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.formats.json import JsonWriter
from seqloss_cli.results.schema import Row, json_bytes, numbers_or_null
from seqloss_cli.results.schema.score_keys import top_log_probs


class OpenAIWriter(JsonWriter[SequenceScore, Totals]):
    """Writes a choice for each sequence.

    Log-probabilities in nats; `text_offset` in characters; `top_logprobs` is null unless --top-k
    asked for it. `seqloss` holds the run, rejected inputs and totals.
    """

    def begin(self, run: RunInfo) -> None:
        """Write the model's name, and begin the choices."""
        self._run, self._index = json_bytes(asdict(run)), 0
        model = json_bytes(run.model)
        self.sink.write(b'{"object":"text_completion","model":%s,\n"choices":[' % model)

    def make_row(self, result: SequenceScore, sums: Totals) -> Row:
        """Return the choice of a score."""
        options, sequence, top = self.rows.options, result.sequence, None
        token_bytes = TokenBytes.of(sequence)
        if result.top_ids is not None:
            # As the servers' own: two ids of one text share a key, and the less probable one stays.
            top = [
                None if row is None else {entry["token"]: entry["log_prob"] for entry in row}
                for row in top_log_probs(result, options.name_token)
            ]
        self._index += 1
        return {
            "index": self._index - 1,
            "id": sequence.sample.id,
            "text": sequence.text if options.text else None,
            "finish_reason": "length",
            "logprobs": {
                "tokens": options.token_texts(sequence),
                # Not `-losses`: a certain token would have -0.0.
                "token_logprobs": numbers_or_null(0.0 - result.losses, result.scored),
                "top_logprobs": top,
                "text_offset": token_bytes and token_bytes.chars_of_tokens().tolist(),
            },
        }

    def write_totals(self, row: Row) -> None:
        """End the choices, and write what no completions object has."""
        self.sink.write(b'],\n"seqloss":{"run":' + self._run + b',"rejected":[')
        self.write_rejected()
        self.sink.write(b'],"totals":' + json_bytes(row) + b"}}\n")
